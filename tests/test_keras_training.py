"""The recipes of projects that used Keras train as Keras does: optimizers, BatchNorm's modes, the last batch, weighted losses, early
stopping and plateaus.

keras_training_reference.py ran Keras and wrote data/keras_training.json; Keras itself is not needed here."""
import json
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.layers import Flatten
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import Adam
from fastcore.foundation import L
from torch import nn

import keras_training_reference as ref
from cifar_fastai.callbacks import WeightedCrossEntropy
from cifar_fastai.finetuning import freeze_to, parameter_groups
from cifar_fastai.models import keras_defaults
from cifar_fastai.optimizers import keras_adam, nesterov_sgd, rmsprop
from cifar_fastai.recipes import Recipe, Stage, get_recipe
from cifar_fastai.training import fit_stage, optimizer_function

keras = json.loads(ref.path.read_text())


# --- optimizers

def optimizer(name, **changes):
    "That of a recipe with Keras' constants"
    recipe = Recipe(name='x', model='ladder_0', optimizer=name, keras=True, stages=Stage(epochs=1, lr=1e-3))
    return optimizer_function(recipe.change(**changes))

def changes_of(opt_func, lr):
    "How far four numbers are from their start after each of ten steps: (10, 4)"
    p = nn.Parameter(torch.tensor(ref.start, dtype=torch.float64))
    opt,found = opt_func([p], lr=lr),[]
    for g in ref.gradients():
        p.grad = torch.from_numpy(g.copy())
        opt.step()
        found.append(p.detach().numpy() - ref.start)
    return np.array(found)

def changes_in_keras(name): return np.array(keras['optimizers'][name]) - ref.start

@pytest.mark.parametrize('name,lr,tolerance', [('adam', 1e-3, 2e-5), ('rmsprop', 1e-3, 1e-6), ('sgd', .01, 1e-6)])
def test_steps(name, lr, tolerance):
    "Keras rounds Adam's betas to 32 bits"
    np.testing.assert_allclose(changes_of(optimizer(name), lr), changes_in_keras(name), rtol=tolerance, atol=1e-12)

@pytest.mark.parametrize('name,other', [
    ('adam', partial(Adam, mom=.9, sqr_mom=.999, eps=1e-7, wd=0.)), ('adam', partial(torch.optim.Adam, eps=1e-7)),
    ('rmsprop', partial(torch.optim.RMSprop, alpha=.9, eps=1e-7))])
def test_others_step_farther_where_gradients_are_small(name, other):
    "By more than a tenth: a test that they fail"
    ratio = changes_of(other, 1e-3)/changes_in_keras(name)
    assert ratio[0, 0] == pytest.approx(1, rel=1e-3) and abs(ratio[0, -1] - 1) > .1

def test_a_parameter_that_joins_later_counts_its_own_steps():
    "As after unfreezing: its first step is as far as the other's was"
    a,b = (nn.Parameter(torch.zeros(1, dtype=torch.float64)) for _ in range(2))
    opt = keras_adam([a, b], lr=.1)
    a.grad = torch.ones_like(a)
    opt.step()
    first = a.item()
    b.grad = torch.ones_like(b)
    opt.step()
    assert b.item() == pytest.approx(first) and opt.state[a]['step'] == 2

def test_weight_decay_is_an_l2_gradient():
    for opt_func in (keras_adam, rmsprop):
        decayed,plain = (nn.Parameter(torch.tensor([2.])) for _ in range(2))
        a,b = opt_func([decayed], lr=.1, wd=.5),opt_func([plain], lr=.1)
        decayed.grad,plain.grad = torch.tensor([1.]),torch.tensor([1. + .5*2])
        for opt in (a, b): opt.step()
        torch.testing.assert_close(decayed, plain)


# --- a small network, trained

def to_torch(name, w):
    "In PyTorch's layout"
    w = torch.tensor(w, dtype=torch.float64)
    return {4: lambda: w.permute(3, 2, 0, 1), 2: lambda: w.T, 1: lambda: w}[w.ndim]().contiguous()

def network():
    "That of the reference, with its weights"
    body = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, padding=1), norm=nn.BatchNorm2d(4), relu=nn.ReLU()))
    head = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=Flatten(), dense=nn.Linear(4, 10)))
    model = keras_defaults(nn.Sequential(OrderedDict(body=body, head=head))).double()
    for name,t in tensors(model).items(): t.data.copy_(to_torch(name, ref.weights()[name]))
    return model

def tensors(model):
    conv,norm,dense = model.body.conv,model.body.norm,model.head.dense
    return {'conv/kernel': conv.weight, 'conv/bias': conv.bias, 'norm/gamma': norm.weight, 'norm/beta': norm.bias, 'norm/moving_mean': norm.running_mean,
            'norm/moving_variance': norm.running_var, 'dense/kernel': dense.weight, 'dense/bias': dense.bias}

def learner(n, bs, opt_func, repeat=1):
    x = torch.from_numpy(ref.images(n)).permute(0, 3, 1, 2).double()
    items = list(zip(x, torch.from_numpy(ref.labels(n))))
    dls = DataLoaders(*(DataLoader(items*repeat, bs=bs, num_workers=0) for _ in range(2)), device='cpu')
    dls.c = 10
    learn = Learner(dls, network(), CrossEntropyLossFlat(), opt_func=opt_func, metrics=accuracy,
                    splitter=partial(parameter_groups, starts=('head',)))
    learn.recipe = get_recipe('wide_cnn')
    return learn

def quietly(learn, f, *args):
    with learn.no_bar(), learn.no_logging(): return f(*args)

def assert_as_in_keras(model, expected, rtol=1e-6, but=()):
    for name,t in tensors(model).items():
        if name not in but: torch.testing.assert_close(t.detach(), to_torch(name, expected[name]), rtol=rtol, atol=1e-9, msg=name)

@pytest.mark.parametrize('mode,bn,frozen', [('train', 'train', ''), ('weights', 'weights', ''), ('frozen', 'frozen', 'head'), ('weights_keras_3', 'train', '')])
def test_batchnorm(mode, bn, frozen):
    """After three steps; PyTorch's variances, of n - 1, differ from those of Keras 3 by one n-th of what a step adds.

    In Keras 2, a base that is called with `training=False` keeps its statistics while its weights learn; in Keras 3, they change in `fit`."""
    learn = learner(8, 8, partial(nesterov_sgd, mom=0.), repeat=3)
    cbs = freeze_to(learn, frozen, bn)
    quietly(learn, lambda: learn.fit(1, .5, cbs=cbs))
    expected,variance = keras['batchnorm'][mode],'norm/moving_variance'
    assert_as_in_keras(learn.model, expected, but=[variance])
    torch.testing.assert_close(learn.model.body.norm.running_var, to_torch(variance, expected[variance]), rtol=1e-5, atol=0)
    moved = {name for name,start in ref.weights().items() if not np.allclose(start, expected[name], rtol=1e-6)}
    body = {'train': set(ref.shapes) - {'conv/bias'}, 'weights': set(ref.shapes) - {variance, 'norm/moving_mean'}, 'frozen': set()}[bn]
    assert moved == body | {'dense/kernel', 'dense/bias'} # in training, BatchNorm cancels the bias before it

def test_last_batch():
    "Ten images in batches of four: three steps, of which the last weighs its two images twice as much"
    learn = learner(10, 4, optimizer('adam'))
    quietly(learn, learn.fit, 1, 1e-3)
    expected = keras['last_batch']
    assert len(learn.recorder.losses) == expected['steps'] == 3
    assert_as_in_keras(learn.model, expected['weights'], rtol=1e-4)

def test_weighted_loss():
    x,y = torch.from_numpy(ref.images()).permute(0, 3, 1, 2).double(),torch.from_numpy(ref.labels())
    weight = torch.ones(10, dtype=torch.float64)
    for c,w in ref.class_weights.items(): weight[c] = w
    found = {how: float(WeightedCrossEntropy(weight, reduction=how)(network()(x), y).detach()) for how in ('batchmean', 'mean')}
    assert found['batchmean'] == pytest.approx(keras['weighted_loss'], rel=1e-7) and found['mean'] < .9*keras['weighted_loss']


# --- early stopping and plateaus

class MadeUp(Callback):
    "Losses and accuracies of validation that are made up; in epoch i all biases of the last layer are i"
    order = 50 # after fastai's Recorder, before what watches its values
    def before_train(self): nn.init.constant_(self.model.head.dense.bias, self.epoch)
    def after_epoch(self): self.recorder.values[-1] = L(1., ref.losses[self.epoch], ref.accuracies[self.epoch])

class Rates(Callback):
    "The learning rate after each epoch"
    order = 62.5 # after the plateau, before early stopping
    def before_fit(self): self.found = []
    def after_epoch(self): self.found.append(self.opt.hypers[-1]['lr'])

@pytest.mark.parametrize('watched,monitor', [('loss', 'valid_loss'), ('accuracy', 'accuracy')])
def test_early_stopping_and_plateaus(watched, monitor, tmp_path):
    expected = keras['callbacks'][watched]
    learn = learner(4, 4, optimizer('adam'))
    learn.path = tmp_path
    stage = Stage(epochs=len(ref.losses), lr=1e-3, schedule='reduce_on_plateau', plateau_monitor=monitor, min_lr=ref.plateaus[watched]['min_lr'],
                  early_stopping=5)
    learn.add_cbs([MadeUp(), rates := Rates()])
    quietly(learn, fit_stage, learn, stage)
    assert rates.found == pytest.approx(expected['rates'], rel=1e-6)
    assert len(rates.found) == expected['epochs'] and round(learn.model.head.dense.bias.mean().item()) == expected['best']
