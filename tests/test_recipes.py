"Recipes: data that says all, and says what is wrong with itself"
import json
import subprocess
import sys
from dataclasses import replace
from random import Random

import pytest

from cifar_fastai.recipes import Head, Recipe, Stage, choices_in_effect, get_recipe, list_recipes, register_recipe
from cifar_fastai.registry import UnknownNameError

one = Stage(epochs=1, lr=.1)

@pytest.mark.parametrize('name', list_recipes())
def test_json_round_trip(name):
    recipe = get_recipe(name)
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert recipe.name == name and recipe.description and recipe.epochs >= 1

@pytest.mark.parametrize('name', list_recipes())
def test_every_recipe_names_things_that_exist(name):
    from cifar_fastai.augmentation import list_augmentations
    from cifar_fastai.finetuning import parameter_groups
    from cifar_fastai.training import build_model
    recipe = get_recipe(name)
    assert {recipe.augment, *(s.augment for s in recipe.stages)} - {None} <= set(list_augmentations())
    model = build_model(recipe, 10, pretrained=False)
    assert len(parameter_groups(model, recipe.groups)) == len(recipe.groups) + 1

def test_recipes_are_frozen_and_hashable():
    recipe = get_recipe('small_cnn')
    with pytest.raises(AttributeError): recipe.bs = 1
    assert len({recipe, get_recipe('small_cnn')}) == 1

def test_change():
    recipe = get_recipe('small_cnn')
    new = recipe.change(bs=64, epochs=2, lr=.05)
    assert (new.bs, new.epochs, new.stages[0].lr, new.model) == (64, 2, .05, recipe.model)
    assert recipe == get_recipe('small_cnn')

def test_sizes_grow_with_the_image():
    recipe = get_recipe('small_cnn')
    assert recipe.stages[0].progressive_resizing == (24, 32)
    assert recipe.change(image_size=64).stages[0].progressive_resizing == (48, 64) and recipe.change(image_size=16, epochs=1).stages[0].progressive_resizing == (12, 16)
    assert recipe.change(image_size=64, progressive_resizing=(32,)).stages[0].progressive_resizing == (32,) and recipe.change(image_size=64, stages=one).stages == (one,)
    assert recipe.change(bs=8).stages == recipe.stages == recipe.change(image_size=32).stages

def test_change_of_stage_needs_one_stage():
    two = Recipe(name='two', model='small_cnn', stages=(one, one))
    assert two.change(bs=8).bs == 8
    with pytest.raises(ValueError, match="'two' has 2 stages, so epochs is not clear"): two.change(epochs=3)

def test_change_of_one_of_several_stages():
    two = Recipe(name='two', model='small_cnn', stages=(one, one))
    new = two.change(bs=8, **{'stage2.lr': .5, 'stage2.epochs': 7})
    assert new.stages == (one, replace(one, lr=.5, epochs=7)) and new.bs == 8 and two.stages == (one, one)
    assert new.settings['stage2.lr'] == .5 and new.setting('stage2.lr') == .5 and new.setting('bs') == 8 and new.setting('lr') == f'[{one.lr}, 0.5]'
    assert not {'name', 'description', 'source', 'stages'} & new.settings.keys() and new.fingerprint() != two.fingerprint() == two.change(name='other').fingerprint()
    for wrong,message in (('stage3.lr', "'two' has no stage3"), ('stages.lr', "'two' has no stages"), ('stage2.bs', "Unknown recipe field 'bs'"), ('stage2.lrs', "Did you mean 'lr'")):
        with pytest.raises(ValueError, match=message): two.change(**{wrong: .1})

def test_groups_and_the_stages_that_name_them_change_together():
    new = get_recipe('finetune_quick', groups=('blocks.3', 'head'), **{'stage2.freeze_to': 'blocks.3'})
    assert new.groups == ('blocks.3', 'head') and new.stages[1].freeze_to == 'blocks.3'
    new = get_recipe('small_cnn', groups=('blocks.3',), stages=replace(one, freeze_to='blocks.3'))
    assert new.stages[0].freeze_to == 'blocks.3'

def test_rates_of_other_optimizers_are_not_in_effect():
    def shown(recipe): return {'sgd_lr_mult', 'bias_lr_mult'} & choices_in_effect(recipe).keys()
    muon = get_recipe('small_cnn')
    assert shown(muon) == {'sgd_lr_mult', 'bias_lr_mult'} and shown(muon.change(optimizer='sgd')) == {'bias_lr_mult'} and not shown(muon.change(optimizer='adamw'))
    assert shown(muon.change(optimizer='adamw', stages=replace(one, optimizer='sgd'))) == {'bias_lr_mult'}

def test_stages_and_their_fields_at_once_are_refused():
    recipe = Recipe(name='one', model='small_cnn', stages=one)
    with pytest.raises(ValueError, match='stages and grad_clip were both given'): recipe.change(stages=(one, one), grad_clip=1.)
    assert recipe.change(stages=(one, one)).epochs == 2*one.epochs

@pytest.mark.parametrize('change,message', [
    (dict(bs=0), 'bs must be a whole number from 1 up, got 0'), (dict(bs=-4), 'got -4'), (dict(bs=True), 'got True'),
    (dict(epochs=0), 'epochs must be a whole number from 1 up, got 0'), (dict(lr=0), 'lr must be a number'), (dict(lr=float('nan')), 'got nan'),
    (dict(label_smoothing=1.5), 'label_smoothing must be a number from 0 to 1, got 1.5'), (dict(wd=-1), 'wd must be'),
    (dict(optimizer='adan'), "optimizer must be one of 'sgd', 'muon', 'rmsprop', 'adam', 'adamw', got 'adan'"), (dict(schedule='cos'), 'schedule must be one of'),
    (dict(plateau_monitor='loss'), 'plateau_monitor must be one of'), (dict(keep_best='best'), 'keep_best must be one of'), (dict(bn='off'), 'bn must be one of'),
    (dict(lr=(1e-2, 1e-3)), r'lr must be a number or \(low, high\)'), (dict(lr=(1, 2, 3)), 'lr must be a number'), (dict(class_weights=dict(cat=-1)), "class_weights of 'cat' must be"),
    (dict(l2=-1), 'l2 must be'), (dict(grad_clip=-1), 'grad_clip must be'), (dict(lookahead=2.5), 'lookahead must be a whole number'),
    (dict(progressive_resizing=(24, 33)), 'progressive_resizing of a stage must be a whole number from 1 to 32, got 33'), (dict(progressive_resizing=(0, 32)), 'progressive_resizing must be'), (dict(freeze_to='head'), "freeze_to of a stage must be one of '', got 'head'"),
    (dict(stages=()), 'stages is empty'), (dict(plateau_factor=2), 'plateau_factor'), (dict(plateau_factor=0), 'plateau_factor')])
def test_bad_choices(change, message):
    with pytest.raises(ValueError, match=message): get_recipe('small_cnn', **change)

def test_unknown_names_get_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'small_cnn'\? list_recipes\(\)"): get_recipe('smal_cnn')
    with pytest.raises(UnknownNameError, match="Unknown recipe field 'augmnt'. Did you mean 'augment'"): get_recipe('small_cnn', augmnt='none')
    with pytest.raises(UnknownNameError, match='Unknown recipe field'): Recipe.from_json(json.dumps(dict(name='x', model='y', stages=[], color=1)))

def test_names_are_taken_once():
    with pytest.raises(ValueError, match='registered already'): register_recipe(get_recipe('small_cnn'))

def test_lists_by_pattern():
    assert list_recipes('small_*')[0] == 'small_cnn' and list_recipes('nothing*') == []

def test_needs_no_torch():
    code = 'import sys, cifar_fastai.recipes; sys.exit("torch" in sys.modules or "numpy" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0

@pytest.mark.parametrize('text', ['', '[]', '{}', '{"name": "x"}', '{"name": "x", "stages": []}', '{"name": "x", "model": "y", "stages": [{"epochs": 1}]}'])
def test_what_is_no_recipe(text):
    with pytest.raises(ValueError, match='This is not a recipe|stages is empty'): Recipe.from_json(text)

def test_recipes_of_the_former_names_are_read():
    "A run folder may be older than the names of fields"
    recipe = get_recipe('small_cnn').change(bias_lr_mult=2., lookahead=5)
    text = recipe.to_json()
    for now,before in dict(progressive_resizing='sizes', lookahead='average', sgd_lr_mult='sgd_lr', bias_lr_mult='bias_lr').items():
        assert f'"{now}"' in text
        text = text.replace(f'"{now}"', f'"{before}"')
    assert Recipe.from_json(text) == recipe

@pytest.mark.parametrize('name', ['../../x', '/x', 'a/b', 'a\\b', '..', '.', '', ' a', 'a\n', 'a\0', 'x'*201, {'x': 1}, ['a'], None, 3, '\udce9'])
def test_a_name_is_one_plain_file_name(name):
    with pytest.raises(ValueError, match='name must be text that can name a folder'): Recipe(name=name, model='small_cnn', stages=one)

@pytest.mark.parametrize('field', [*Recipe.__dataclass_fields__])
@pytest.mark.parametrize('value', [{'x': 1}, ['a', 1], 1j, [[]]], ids=repr)
def test_fields_of_a_recipe_have_types(field, value):
    fields = dict(name='x', model='small_cnn', stages=one) | {field: value}
    with pytest.raises(ValueError, match=f'Recipe.*{field}'): Recipe(**fields)

@pytest.mark.parametrize('field', [*Stage.__dataclass_fields__])
@pytest.mark.parametrize('value', [{'x': 'y'}, ['a', 1], 1j, [[]]], ids=repr)
def test_fields_of_a_stage_have_types(field, value):
    with pytest.raises(ValueError, match=f'Stage: {field}'): Stage(**dict(epochs=1, lr=.1) | {field: value})

@pytest.mark.parametrize('field', [*Head.__dataclass_fields__])
@pytest.mark.parametrize('value', [{'x': 'y'}, ['a', 1], 1j, [[]], 'a', None], ids=repr)
def test_fields_of_a_head_have_types(field, value):
    with pytest.raises(ValueError, match=f'Head: {field}'): Head(**{field: value})

@pytest.mark.parametrize('change', [
    dict(groups='head'), dict(keras='yes'), dict(keras=1), dict(weights=None), dict(augment=None), dict(wd=float('inf')), dict(moms=(.9, .9)),
    dict(moms=(.9, .9, 'a')), dict(reset_opt=0), dict(stats=((0, 1),)), dict(stats=((.5,)*3, (.2, 0, .2))), dict(valid=None), dict(description=1), dict(stages=(one, 3))])
def test_more_wrong_types(change):
    with pytest.raises(ValueError, match=f'{[*change][0]} must be'): get_recipe('small_cnn', **change)

def test_json_with_a_wrong_type_is_refused():
    right = json.loads(get_recipe('small_cnn').to_json())
    for change in (dict(stages='abc'), dict(stages=3), dict(stages=[3]), dict(head='abc'), dict(head=[1]), dict(model=['a'])):
        with pytest.raises(ValueError): Recipe.from_json(json.dumps(right | change))
    with pytest.raises(ValueError, match='nested too deeply'): Recipe.from_json('['*100_000)

def test_mutations_of_a_recipe_are_read_or_refused():
    random = Random(0)
    right = get_recipe('three_block_cnn').to_json().encode()
    for _ in range(200):
        text = bytearray(right)
        text[random.randrange(len(text))] ^= 1 << random.randrange(8)
        if random.random() < .3: del text[random.randrange(len(text)):]
        try: Recipe.from_json(bytes(text))
        except ValueError: pass
