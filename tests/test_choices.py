"""The table of what the recipes of published projects have from their sources (benchmarks/results/choices.csv) is true of the
recipes, and leaves out none of their choices"""
import re
import sys
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fastai.callback.tracker import EarlyStoppingCallback
from fastai.vision.core import TensorImage
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent/'benchmarks'))

from choices import choices, recipes_as_published, value
from cifar_fastai import training
from cifar_fastai.augmentation import TrainingAffine, augmentation
from cifar_fastai.callbacks import KeepBest, TrainingLoss, WeightedCrossEntropy
from cifar_fastai.finetuning import parameter_groups
from cifar_fastai.models import count_parameters
from cifar_fastai.recipes import Head, Recipe, Stage, get_recipe, list_recipes

as_published = {r.name: r for r in recipes_as_published()}
rows = list(choices())


# --- what a recipe has, apart from its fields

@lru_cache
def built(name): return training.build_model(get_recipe(name), 10, pretrained=False)

def network(recipe): return built(recipe.name)

def layers(model, *kinds): return [m for m in model.modules() if isinstance(m, kinds)]

def norms(recipe): return layers(network(recipe).body, nn.BatchNorm2d)

def only(values):
    found, = set(values)
    return found

def trained_in(recipe, stage):
    "The parameters that learn in a stage"
    n = [*recipe.groups].index(stage.freeze_to) + 1
    return sum(p.numel() for group in parameter_groups(network(recipe), recipe.groups)[n:] for p in group)

def epsilon_of_adam(recipe):
    "With a gradient as large as epsilon, the first step is half the learning rate if epsilon is inside the bias correction"
    p = nn.Parameter(torch.zeros(1))
    opt = training.optimizer_function(recipe)([p], lr=1., wd=0.)
    eps = opt.hypers[0]['eps']
    p.grad = torch.full((1,), eps)
    opt.step()
    return f'{eps} {"inside" if abs(p.item()) > .4 else "outside"} the bias correction'

def last_batch(recipe):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, 'cifar10_dataloaders', lambda *args, drop_last, **kwargs: drop_last)
        return 'left out' if training._dataloaders(recipe, None, 0) else 'kept'

def divisor_of_variance(recipe):
    norm = type(norms(recipe)[0])(1, momentum=1.)
    norm(torch.tensor([0., 2.]).view(2, 1, 1, 1))
    return {1.: 'n', 2.: 'n - 1'}[norm.running_var.item()]

def divisor_of_weighted_loss(recipe):
    "The losses of two images, of weights 2 and 1, are log(10) each"
    weight = torch.ones(10)
    weight[3] = 2.
    training_loss, = [cb for cb in training._recipe_cbs(recipe, SimpleNamespace(device=torch.device('cpu'))) if isinstance(cb, TrainingLoss)]
    loss = WeightedCrossEntropy(weight, reduction=training_loss.reduction)(torch.zeros(2, 10), torch.tensor([3, 0])).item() / torch.tensor(10.).log().item()
    return {1.: 'the sum of their weights', 1.5: 'the number of images'}[round(loss, 4)]

def affine_transforms(recipe):
    names = {recipe.augment, *(s.augment for s in recipe.stages)} - {None}
    return [t for name in names for t in augmentation(name) if isinstance(t, TrainingAffine)]

def zoom(recipe):
    "Rotated and mirrored images have equal singular values; so have zoomed ones, if it is by one factor"
    torch.manual_seed(0)
    matrices = [t._get_affine_mat(TensorImage(torch.zeros(64, 3, 32, 32)))[:, :, :2] for t in affine_transforms(recipe)]
    larger,smaller = torch.linalg.svdvals(torch.cat(matrices).as_subclass(torch.Tensor)).unbind(1)
    assert larger.max() > 1.05 and smaller.min() < .95
    return 'one factor' if torch.allclose(larger, smaller, atol=1e-5) else 'a factor for the width and another for the height'

def weights_after_early_stopping(recipe):
    stage, = recipe.stages
    stops,keeps = [[cb for cb in training._stage_cbs(stage) if isinstance(cb, kind)] for kind in (EarlyStoppingCallback, KeepBest)]
    return 'of the best epoch' if [cb.monitor for cb in stops] == [cb.monitor for cb in keeps] else 'others'

facts = {
    'parameters': lambda r: count_parameters(network(r)).total, # as Keras counts, with statistics
    'trained parameters': lambda r: count_parameters(network(r)).trainable,
    'trained in stage 4': lambda r: trained_in(r, r.stages[3]),
    'training images': lambda r: round((1 - r.valid)*50_000),
    'hidden dense layers': lambda r: tuple(m.out_features for m in layers(network(r).head, nn.Linear)[:-1]),
    'dropout': lambda r: tuple(m.p for m in layers(network(r), nn.Dropout)),
    'bias of the last layer': lambda r: layers(network(r), nn.Linear)[-1].bias is not None,
    'epsilon of BatchNorm': lambda r: only(m.eps for m in norms(r)),
    'momentum of BatchNorm': lambda r: only(round(1 - m.momentum, 6) for m in norms(r)),
    "divisor of the variance in BatchNorm's statistics": divisor_of_variance,
    'padding of max-pools': lambda r: {0: 'none', 1: 'on all sides'}[only(m.padding for m in layers(network(r).body, nn.MaxPool2d))],
    'epsilon of Adam': epsilon_of_adam,
    'momentum of SGD': lambda r: training.optimizer_function(r)([nn.Parameter(torch.zeros(1))], lr=1.).hypers[0]['mom'],
    'last batch': last_batch,
    "divisor of a batch's weighted loss": divisor_of_weighted_loss,
    'pixels from outside': lambda r: only(t.pad_mode for t in affine_transforms(r)),
    'zoom': zoom,
    'weights after early stopping': weights_after_early_stopping}

in_words = {'seed', 'validation images', 'a lowered learning rate counts', "statistics of the learning layers' BatchNorm",
            'accuracy after each epoch', 'resizing'}


# --- the table

def field(recipe, path):
    "A field by its path, such as stages[0].epochs"
    found = recipe
    for name,i in re.findall(r'(\w+)(?:\[(\d+)\])?', path): found = getattr(found, name)[int(i)] if i else getattr(found, name)
    return found

def rows_of(recipe): return [row for row in rows if recipe.name in row['names']]

def untrue(recipe):
    "The choices of which the table says something else than the recipe has: {choice: (in the table, in the recipe)}"
    found = {}
    for row in rows_of(recipe):
        choice = row['choice']
        if choice in in_words: continue
        has = facts[choice](recipe) if choice in facts else field(recipe, choice)
        if has != value(row['ours']): found[choice] = (row['ours'], has)
    return found

def not_default(cls, obj): return [f.name for f in fields(cls) if getattr(obj, f.name) != f.default]

def choices_of(recipe):
    "What the table must have: each field that is not at its default, all of a head's, and the size of the network"
    elsewhere = {'name', 'model', 'description', 'source', 'groups', 'stages', 'head'} # the network is in the facts, a group in `freeze_to`
    of_stages = [f'stages[{i}].{name}' for i,stage in enumerate(recipe.stages) for name in not_default(Stage, stage)]
    of_head = [f'head.{f.name}' for f in fields(Head)] if recipe.head else []
    return {'dropout', *of_stages, *of_head, *not_default(Recipe, recipe)} - elsewhere

def left_out(recipe): return choices_of(recipe) - {row['choice'] for row in rows_of(recipe)}

@pytest.mark.parametrize('name', as_published)
def test_table_is_true(name): assert untrue(as_published[name]) == {}

@pytest.mark.parametrize('name', as_published)
def test_table_is_complete(name):
    recipe = as_published[name]
    named = [row['choice'] for row in rows_of(recipe)]
    assert left_out(recipe) == set() and {'parameters', 'trained parameters'} & set(named)
    assert len(named) == len(set(named)), sorted(c for c in named if named.count(c) > 1)

def test_what_differs_has_a_reason_and_what_does_not_has_none():
    for row in rows:
        assert row['names'] and row['ours'], row
        assert bool(row['why']) == (row['compared'] != 'same'), row

def test_recipes_that_call_themselves_as_published_are_those_of_the_table():
    assert set(as_published) == {name for name in list_recipes() if get_recipe(name).description.startswith('as published')}

def test_a_change_of_a_recipe_is_noticed():
    recipe = get_recipe('wide_cnn')
    assert set(untrue(recipe.change(bs=32, optimizer='adamw', keras=False))) == {'bs', 'optimizer', 'keras', 'last batch', 'epsilon of Adam'}
    assert left_out(recipe.change(wd=.1, grad_clip=1.)) == {'wd', 'stages[0].grad_clip'}
    two_stages = recipe.change(stages=(*recipe.stages, Stage(epochs=1, lr=.1)))
    assert left_out(two_stages) == {'stages[1].epochs', 'stages[1].lr'}
