"A training that takes a second, and what it left."
import json

import pandas as pd
from fastai.callback.core import Callback

from cifar_fastai.recipes import Recipe, Stage

tiny = Recipe(name='tiny', model='ladder_3', stages=Stage(epochs=2, lr=1e-2), bs=32)
overfitting = tiny.change(model='ladder_0', augment='none')  # 180 images by heart in a few epochs

# One recipe of each kind for 96 images, with batches after which a test stops it: stage, epoch and batch

small = tiny.change(bs=16) # six batches an epoch
kinds = dict(
    one_cycle=(small, [(1, 0, 0), (1, 0, 5), (1, 1, 2)]),
    plateau=(small.change(stages=Stage(epochs=5, lr=3e-2, schedule='reduce_on_plateau', plateau_patience=1, early_stopping=2,
                                       early_stopping_monitor='accuracy')), [(1, 1, 0), (1, 2, 3)]),
    stages=(small.change(stages=(Stage(epochs=2, lr=1e-2, keep_best='accuracy', augment='cutout'),
                                 Stage(epochs=2, lr=1e-3, augment='none', optimizer='rmsprop', discard=True),
                                 Stage(epochs=2, lr=1e-3, schedule='constant', class_weights={'cat': 2.}))),
            [(1, 1, 5), (2, 0, 1), (2, 1, 1), (3, 0, 0), (3, 1, 3)]),
    averaged=(small.change(model='tiny_cnn', augment='alternating_cutout', label_smoothing=.1, l2=1e-4,
                           stages=Stage(epochs=3, lr=1e-2, lookahead=2, progressive_resizing=(16, 24, 32), grad_clip=1.)),
              [(1, 0, 2), (1, 1, 4), (1, 2, 0)]),
    muon=(small.change(model='tiny_cnn', optimizer='muon', stages=Stage(epochs=2, lr=1e-2)), [(1, 0, 3), (1, 1, 1)]),
    keras=(small.change(keras=True, optimizer='adam', bs=10, stages=Stage(epochs=2, lr=1e-3, schedule='constant')), [(1, 0, 9), (1, 1, 5)]),
    affine=(small.change(augment='aug_transforms_crop', optimizer='sgd'), [(1, 0, 2), (1, 1, 3)]))

class At(Callback):
    "Do something at the beginning of batch `batch` of epoch `epoch`"
    def __init__(self, f, epoch, batch=0): self.f,self.at = f,(epoch, batch)
    def before_batch(self):
        if self.training and (self.epoch, self.iter) == self.at: self.f(self.learn)

def read(folder, name): return json.loads((folder/name).read_text())
def history_of(folder): return pd.read_csv(folder/'history.csv')
def history(learn): return pd.read_csv(learn.run_dir/'history.csv')
