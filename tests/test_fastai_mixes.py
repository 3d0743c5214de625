"""fastai's parts and ours, mixed: `DataLoaders`, learners, callbacks and evaluation of either side with those of the other. Each mix
has to give a value that is known from elsewhere."""
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import CutMix, MixUp
from fastai.callback.progress import CSVLogger, ShowGraphCallback
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.callback.training import GradientAccumulation
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import GrandparentSplitter, Normalize, get_image_files, parent_label
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner, load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import Flip, aug_transforms
from fastai.vision.data import ImageBlock, ImageDataLoaders
from fastai.vision.learner import vision_learner
from torch import nn

from cifar_fastai import data, sources
from cifar_fastai.data import StratifiedSplitter, cifar10_datablock, cifar10_dataloaders, set_augmentation
from cifar_fastai.evaluation import evaluate
from cifar_fastai.inference import load_classifier, save_classifier
from cifar_fastai.interpretation import plot_history
from cifar_fastai.recipes import Head, Recipe, Stage
from cifar_fastai.training import create_learner, load_run
from small_learner import loaders
from small_runs import tiny

pytestmark = pytest.mark.filterwarnings('ignore:load_learner')
constant = tiny.change(stages=Stage(epochs=3, lr=1e-2, schedule='constant'))


def small_arch(pretrained=False):
    "An architecture as `vision_learner` takes one: a body that ends in a pooling layer, and a head that is cut off"
    body = [nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def fastais_learner(dls, path, **kwargs):
    "A `vision_learner` of the small architecture, whose files go to `path`"
    set_seed(0)
    return vision_learner(dls, small_arch, pretrained=False, metrics=accuracy, path=path, ps=0., **kwargs)


def our_learner(dls, recipe=constant, **kwargs):
    set_seed(0)
    return create_learner(recipe, dls, **kwargs)


def quiet(learn, f, *args, **kwargs):
    "A method of the learner, without its output"
    with learn.no_bar(), learn.no_logging(): return getattr(learn, f)(*args, **kwargs)


def weights(learn): return {k: v.detach().clone() for k, v in learn.model.state_dict().items()}


def moved(learn, before):
    "The names of the weights that are not what they were"
    return {k for k, v in learn.model.state_dict().items() if not torch.equal(v, before[k])}


@pytest.fixture(scope='module')
def block():
    "A plain `DataBlock`: trains on the training folder, and validates on the test folder"
    return DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label,
                     splitter=GrandparentSplitter('train', 'test'), batch_tfms=[Flip(p=1), Normalize.from_stats([.5]*3, [.25]*3)])


@pytest.fixture(scope='module')
def fastais(block, practice): return block.dataloaders(practice, path=practice, bs=32, num_workers=0, device='cpu')


@pytest.fixture(scope='module')
def ours(practice): return loaders(practice, bs=32, in_memory=True)


@pytest.fixture(scope='module')
def theirs(fastais, tmp_path_factory):
    "fastai's learner on fastai's loaders, trained. Tests only ask it."
    learn = fastais_learner(fastais, tmp_path_factory.mktemp('theirs'))
    quiet(learn, 'fine_tune', 2, 5e-3)
    return learn


# ------------------------------------------------------------------------------------------- our data, fastai's learner

def test_vision_learner_fine_tunes_on_our_loaders(ours, tmp_path):
    learn = fastais_learner(ours, tmp_path)
    before, transforms = weights(learn), list(ours.train.after_batch.fs)
    learn.freeze()
    quiet(learn, 'fit_one_cycle', 1, 1e-2)
    convolutions = {k for k in before if k.startswith('0.') and before[k].ndim == 4}
    assert len(convolutions) == 2 and not moved(learn, before) & convolutions, 'a frozen body'
    quiet(learn, 'fine_tune', 8, 2e-2)
    assert convolutions <= moved(learn, before)
    assert evaluate(learn, 'train').accuracy > .5, 'of 180 images, which chance answers in one of ten'
    assert list(ours.train.after_batch.fs) == transforms


def test_our_datablock_says_what_a_batch_is(practice, capsys):
    cifar10_datablock(image_size=48, augment='none').summary(practice, bs=4, device='cpu')
    said = capsys.readouterr().out
    assert 'Found 200 items' in said and '2 datasets of sizes 180,20' in said and '4x3x48x48' in said


def test_our_splitter_in_a_datablock_is_the_split_of_our_loaders(practice):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=StratifiedSplitter(.2, seed=3))
    dls = block.dataloaders(practice/'train', path=practice, bs=8, num_workers=0)
    expected = cifar10_dataloaders(practice, valid=.2, seed=3, num_workers=0)
    for a, b in zip(dls.loaders, expected.loaders): assert sorted(a.items) == sorted(b.items)
    assert len(dls.valid_ds) == 40 and list(dls.vocab) == list(expected.vocab)


def test_fastais_transforms_augment_our_loaders(ours):
    plain, flipped = (set_augmentation(ours, o).train.new(shuffle=False).one_batch()[0] for o in ([], [Flip(p=1)]))
    assert torch.allclose(flipped, plain.flip(-1), atol=1e-4) and not torch.allclose(flipped, plain, atol=.1)
    many = set_augmentation(ours, aug_transforms(size=24))
    assert many.train.one_batch()[0].shape[-2:] == (24, 24) and many.valid is ours.valid


def test_pictures_of_batches_and_results_have_the_right_titles(theirs, ours, tmp_path, plain_pyplot):
    shown = ours.valid.new()
    images, targets = shown.one_batch()
    shown.show_batch((images, targets), max_n=4)
    assert [ax.get_title() for ax in plt.gcf().axes[:4]] == [ours.vocab[i] for i in targets[:4]]
    with theirs.no_bar(): theirs.show_results(max_n=4, shuffle=False)
    result = evaluate(theirs, 'valid')
    said = [tuple(ax.get_title().split('\n')) for ax in plt.gcf().axes[:4]]
    assert said == [(result.vocab[a], result.vocab[b]) for a, b in zip(result.targets[:4], result.predictions)]


# ------------------------------------------------------------------------------------------- fastai's learner and data, our evaluation

def test_evaluation_of_loaders_from_a_folder_is_fastais_validation(practice, tmp_path):
    dls = ImageDataLoaders.from_folder(practice, train='train', valid='test', bs=16, num_workers=0, device='cpu')
    learn = fastais_learner(dls, tmp_path)
    quiet(learn, 'fit', 1, 1e-2)
    loss, acc = quiet(learn, 'validate')
    valid, test = evaluate(learn, 'valid'), evaluate(learn)
    assert valid.accuracy == pytest.approx(acc) and valid.loss == pytest.approx(loss, abs=1e-5)
    expected = dict(zip(valid.files, valid.probs))  # the same images, found in the data set's folder
    assert set(test.files) == set(valid.files) and len(test) == 50
    for file, probs in zip(test.files, test.probs): np.testing.assert_allclose(probs, expected[file], atol=1e-5)


def test_interpretation_of_a_vision_learner_agrees(theirs):
    result = evaluate(theirs, 'valid')
    with theirs.no_bar():
        interp = ClassificationInterpretation.from_learner(theirs)
        assert np.array_equal(result.confusion_matrix(), interp.confusion_matrix())
        losses, positions = interp.top_losses(5)
    assert result.confusion_matrix().sum() == 50 and list(result.top_losses(5).index) == positions.tolist()
    np.testing.assert_allclose(result.top_losses(5).loss, losses, atol=1e-5)


def test_predictions_of_a_loader_of_files_agree(theirs, practice):
    files = sources.test_files(practice)[::7]
    dl = theirs.dls.test_dl(files, with_labels=True)
    result = evaluate(theirs, dl)
    probs, targets, losses = quiet(theirs, 'get_preds', dl=dl, with_loss=True)
    np.testing.assert_allclose(result.probs, probs, atol=1e-5)
    np.testing.assert_allclose(result.losses, losses, atol=1e-5)
    assert result.targets.tolist() == targets.tolist() == [theirs.dls.vocab.o2i[f.parent.name] for f in files]


def test_augmented_views_of_a_vision_learner_are_fastais(theirs):
    "Flip(p=1) mirrors every image, so nothing is random"
    expected, _ = quiet(theirs, 'tta')
    np.testing.assert_allclose(evaluate(theirs, 'valid', tta='fastai').probs, expected, atol=1e-5)
    assert np.abs(evaluate(theirs, 'valid').probs - expected.numpy()).max() > 1e-3


def test_history_of_a_vision_learner_is_drawn(fastais, tmp_path, plain_pyplot):
    learn = fastais_learner(fastais, tmp_path)
    quiet(learn, 'fit', 3, 1e-2)
    losses, accuracies = plot_history(learn)
    drawn = [line.get_ydata().tolist() for ax in (losses, accuracies) for line in ax.lines]
    assert drawn == [list(o) for o in zip(*learn.recorder.values)]


# ------------------------------------------------------------------------------------------- our learner, fastai's training

@pytest.mark.parametrize('recipe', ['ladder_3', 'tiny_cnn'])
def test_lr_find_changes_nothing(recipe, ours, tmp_path):
    learn = our_learner(ours, recipe, path=tmp_path)
    before = weights(learn)
    found = quiet(learn, 'lr_find', num_it=5, show_plot=False)
    assert found.valley > 0 and not moved(learn, before)
    assert learn.recorder.lrs == sorted(learn.recorder.lrs) and learn.recorder.lrs[0] == pytest.approx(1e-7)


@pytest.mark.parametrize('mix', [MixUp, CutMix])
def test_mixed_images_have_mixed_losses(mix, ours):
    seen = []

    class Watch(Callback):
        order, run_valid = 100, False

        def after_loss(self):
            mixing = getattr(self.learn, 'mix_up' if mix is MixUp else 'cut_mix')
            each = [nn.functional.cross_entropy(self.pred, o[0], reduction='none') for o in (self.yb, mixing.yb1)]
            seen.append((self.loss.item(), (mixing.lam*each[0] + (1 - mixing.lam)*each[1]).mean().item(), mixing.lam.min().item()))

    learn = our_learner(ours, cbs=[mix(), Watch()])
    quiet(learn, 'fit', 2, 1e-2)
    losses, expected, shares = zip(*seen)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(seen) == 2*len(ours.train) and min(shares) < .9
    assert learn.recorder.values[-1][1] == pytest.approx(evaluate(learn, 'valid').loss, abs=1e-5), 'validation is not mixed'
    assert isinstance(learn.loss_func, CrossEntropyLossFlat)


def test_accumulated_gradients_are_those_of_the_whole(practice):
    "Ten images at a time, or all forty at once"
    def trained(bs, *cbs):
        dls = cifar10_dataloaders(practice, bs=bs, limit=40, augment='none', num_workers=0, device='cpu')
        learn = our_learner(dls, constant.change(optimizer='sgd', wd=0.), cbs=list(cbs),
                            model=nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)))
        for p in learn.model.parameters(): nn.init.normal_(p, std=.05, generator=torch.Generator().manual_seed(p.numel()))
        quiet(learn, 'fit', 2, 1e-2)
        return weights(learn)

    whole, accumulated, parts = trained(40), trained(10, GradientAccumulation(40)), trained(10)
    assert all(torch.allclose(v, accumulated[k], atol=1e-5) for k, v in whole.items())
    assert not all(torch.allclose(v, parts[k], atol=1e-5) for k, v in whole.items())


@pytest.mark.parametrize('precision', ['to_fp16', 'to_bf16'])
@pytest.mark.filterwarnings('ignore:.*CUDA is not available')
def test_mixed_precision_of_a_gpu_is_nothing_on_a_cpu(precision, practice):
    def trained(*methods):
        set_seed(0)
        learn = our_learner(loaders(practice, bs=32))
        for f in methods: getattr(learn, f)()
        quiet(learn, 'fit', 1, 1e-2)
        return learn

    plain, mixed = trained(), trained(precision)
    assert any(isinstance(cb, MixedPrecision) for cb in mixed.cbs) and not moved(mixed, weights(plain))
    assert not any(isinstance(cb, MixedPrecision) for cb in mixed.to_fp32().cbs)


def test_rates_grow_from_group_to_group(ours):
    recipe = constant.change(model='tiny_cnn', groups=('stage2', 'stage3', 'head'))
    learn = our_learner(ours, recipe)
    quiet(learn, 'fit', 1, slice(1e-5, 1e-2))
    np.testing.assert_allclose([h['lr'] for h in learn.opt.hypers], [1e-5, 1e-4, 1e-3, 1e-2])
    assert [len(o) for o in learn.opt.param_lists] == [len(o) for o in learn.splitter(learn.model)]


@pytest.mark.parametrize('n', [-1, -2])
def test_frozen_groups_stay(n, ours):
    learn = our_learner(ours, constant.change(model='tiny_cnn', groups=('stage2', 'stage3', 'head')))
    groups = [list(o) for o in learn.splitter(learn.model)]
    learn.freeze_to(n)
    before = [[p.detach().clone() for p in o] for o in groups]
    quiet(learn, 'fit', 1, 1e-2)
    stayed = [all(torch.equal(p, q) for p, q in zip(*o) if p.ndim == 4) for o in zip(groups[:-1], before)]
    assert stayed == [i < 4 + n for i in range(3)]
    assert not torch.equal(groups[-1][-1], before[-1][-1])


def test_rate_falls_on_a_plateau(ours):
    "A loss that has to fall by 10 to count never does"
    learn = our_learner(ours, cbs=[ReduceLROnPlateau(min_delta=10, patience=1)])
    quiet(learn, 'fit', 4, 1e-2)
    np.testing.assert_allclose(learn.recorder.lrs[::len(ours.train)], [1e-2, 1e-2, 1e-3, 1e-4])


# ------------------------------------------------------------------------------------------- our training, fastai's callbacks

def test_training_keeps_the_best_weights_of_save_model(go):
    learn = go(constant, cbs=[SaveModelCallback(monitor='accuracy')])
    history = pd.read_csv(learn.run_dir/'history.csv')
    best = history.accuracy.max()
    assert evaluate(learn, 'valid').accuracy == pytest.approx(best, abs=1e-6)
    assert evaluate(load_run(learn.run_dir, num_workers=0), 'valid').accuracy == pytest.approx(best, abs=1e-6)


def test_training_stops_early(go):
    learn = go(constant, cbs=[EarlyStoppingCallback(min_delta=10, patience=1)])
    assert len(pd.read_csv(learn.run_dir/'history.csv')) == 2


def test_training_logs_what_fastai_logs(go, plain_pyplot):
    learn = go(constant, cbs=[CSVLogger('fastai.csv'), ShowGraphCallback()])
    theirs, history = (pd.read_csv(learn.run_dir/o) for o in ('fastai.csv', 'history.csv'))
    names = ['train_loss', 'valid_loss', 'accuracy']
    assert len(theirs) == 3
    np.testing.assert_allclose(theirs[names], history[names], atol=1e-5)


def test_fastais_log_does_not_replace_the_history(go, tmp_path):
    with pytest.raises(ValueError, match=r"train. keeps the run's history. Name another file: CSVLogger\('log.csv'\)"):
        go(cbs=[CSVLogger()])
    assert not (tmp_path/'run').exists()


# ------------------------------------------------------------------------------------------- saving and loading

def test_an_exported_learner_predicts_as_before(go, practice):
    learn = go()
    before = evaluate(learn)
    learn.export('learner.pkl')
    loaded = load_learner(learn.run_dir/'learner.pkl')
    dl = loaded.dls.test_dl(sources.test_files(practice))
    probs, _ = quiet(loaded, 'get_preds', dl=dl)
    np.testing.assert_allclose(probs, before.probs, atol=1e-5)
    label, number, probs = quiet(loaded, 'predict', sources.test_files(practice)[0])
    assert label == before.vocab[before.predictions[0]] and int(number) == before.predictions[0]


def test_a_recipe_of_a_body_and_a_new_head_is_fine_tuned_and_saved(practice, tmp_path):
    "A `vision_learner` in a recipe's words, which can be saved without pickle"
    recipe = Recipe(name='tuned', model='tiny_cnn', head=Head(), groups=('head',), stages=Stage(epochs=1, lr=1e-2))
    learn = our_learner(loaders(practice, bs=32), recipe, path=tmp_path)
    quiet(learn, 'fine_tune', 1, 1e-2)
    expected, targets = quiet(learn, 'get_preds', dl=data.test_dataloader(learn.dls))
    classifier = load_classifier(save_classifier(learn, tmp_path/'saved'), device='cpu')
    np.testing.assert_allclose(classifier.probabilities(sources.test_files(practice)), expected, atol=1e-4)
    with pytest.raises(ValueError, match='has no recipe'):
        save_classifier(fastais_learner(learn.dls, tmp_path), tmp_path/'other')


def test_fastais_checkpoint_goes_into_our_learner(ours, tmp_path):
    learn = our_learner(ours, path=tmp_path)
    quiet(learn, 'fit', 1, 1e-2)
    learn.save('checkpoint')
    again = our_learner(ours, path=tmp_path).load('checkpoint')
    assert not moved(again, weights(learn))
    bare = Learner(ours, again.model, loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    assert quiet(bare, 'validate')[1] == pytest.approx(evaluate(learn, 'valid').accuracy)
