"Fine-tuning: what is frozen, what BatchNorm does meanwhile, what a stage can ask for, and every recipe from end to end"
import json
import math
import random
from collections import OrderedDict
from copy import deepcopy
from functools import partial

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import FocalLossFlat
from fastai.metrics import accuracy
from fastai.vision.learner import model_meta, vision_learner
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models import resnet18

from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.evaluation import evaluate
from cifar_fastai.finetuning import add_new_head, cut_body, freeze_to, parameter_groups, split_at_features
from cifar_fastai.inference import load_classifier, save_classifier
from cifar_fastai import models as our_models
from cifar_fastai.models import count_parameters, create_model, register_model
from cifar_fastai.recipes import Head, Recipe, Stage, get_recipe, list_recipes
from cifar_fastai.registry import UnknownNameError
from cifar_fastai.callbacks import L2Penalty, WeightedCrossEntropy
from cifar_fastai.training import build_model, create_learner, fit_stage, load_run, train
from cifar_fastai.weights import _packages, create_backbone, list_weights

constant = partial(Stage, epochs=1, schedule='constant')
small = Recipe(name='small', model='ladder_3', stages=constant(lr=1e-2), bs=32, groups=('block2', 'head'))

@pytest.fixture(scope='module')
def dls(practice): return cifar10_dataloaders(practice, bs=32, num_workers=0, augment='none')

def weights(learn): return {k: v.clone() for k,v in learn.model.state_dict().items()}
def changed(before, after): return {k for k in before if not torch.equal(before[k], after[k])}
def quietly(learn, f, *args, **kwargs):
    with learn.no_bar(), learn.no_logging(): return f(*args, **kwargs)

# Published numbers

def trainable(recipe, name):
    "What a recipe's network holds when it is frozen up to `name`"
    model = build_model(get_recipe(recipe), 10, pretrained=False)
    learn = Learner(None, model, loss_func=nn.functional.cross_entropy, splitter=partial(parameter_groups, starts=get_recipe(recipe).groups))
    freeze_to(learn, name, 'frozen')
    return count_parameters(model)

def test_three_block_cnn_with_two_blocks_frozen():
    n = trainable('three_block_cnn', 'block3')
    assert (n.trainable, n.total - n.trainable) == (2_330_378, 66_848)

def test_mobilenet_v2():
    n,head = trainable('mobilenet_v2_finetuned', 'features.16'),(1280*256 + 256) + 2*256 + 256*10
    assert n.trainable - head == 1_206_080
    assert n.trainable + n.frozen - head == 2_223_872 and n.statistics - 2*256 == 34_112

def test_resnet34():
    n = trainable('resnet34_finetuned', 'head')
    assert n.trainable == 532_480 and n.trainable + n.frozen == 21_817_152

@pytest.mark.parametrize('recipe,parameters', [('xception_finetuned', 20_861_480 + 2048*10 + 10), ('efficientnet_b2_finetuned', 7_768_562 + 1408*10 + 10)])
def test_keras_applications(recipe, parameters):
    "As Keras counts them without their top, statistics included; EfficientNet's seven numbers of normalization are not the network's here"
    assert count_parameters(build_model(get_recipe(recipe), 10, pretrained=False)).total == parameters

@pytest.mark.parametrize('name', ['resnet18', 'resnet34', 'resnet50'])
def test_groups_and_head_are_vision_learners(dls, name):
    theirs = vision_learner(dls, getattr(models, name), pretrained=False, normalize=False)
    ours = add_new_head(cut_body(create_backbone(name, 10)), 10)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.model.parameters()]
    by_fastai = model_meta[getattr(models, name)]['split'](theirs.model)
    assert [len(g) for g in parameter_groups(ours, ('layer3', 'head'))] == [len(g) for g in by_fastai]
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.model.state_dict().values())))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(): assert torch.allclose(ours.eval()(x), theirs.model.eval()(x), atol=1e-5)

def test_vision_learner_leaves_our_loaders_alone(practice):
    dls = cifar10_dataloaders(practice, bs=32, num_workers=0, stats='imagenet')
    before = [type(t) for t in dls.train.after_batch.fs]
    vision_learner(dls, models.resnet18, pretrained=False)
    assert [type(t) for t in dls.train.after_batch.fs] == before

# Groups

@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v2', 'efficientnet_b0', 'densenet121', 'timm/resnet10t'])
def test_bodies_keep_their_names_and_give_maps(name):
    body = cut_body(create_backbone(name, 10))
    with torch.no_grad(): assert body.eval()(torch.zeros(1, 3, 64, 64)).ndim == 4
    assert not any(n.split('.')[0] in ('fc', 'classifier') for n,_ in body.named_parameters())

@pytest.mark.parametrize('name', list_recipes())
def test_groups_hold_every_parameter_once_in_order(name):
    recipe = get_recipe(name)
    model = build_model(recipe, 10, pretrained=False)
    assert [p.data_ptr() for g in parameter_groups(model, recipe.groups) for p in g] == [p.data_ptr() for p in model.parameters()]

@pytest.mark.parametrize('starts', [('layer9',), ('head', 'block2'), ('block2', 'block2')])
def test_groups_that_cannot_be(starts):
    with pytest.raises(ValueError, match=r'No parameter group can start at .* Its layers are block1, block2, head'):
        parameter_groups(create_model('ladder_3'), starts)
    model = build_model(get_recipe('finetune'), 10, pretrained=False)
    with pytest.raises(ValueError, match='Its layers are conv_stem, bn1, blocks, conv_head, bn2, head'): parameter_groups(model, ('layer3',))

def test_unknown_network_and_group(dls):
    with pytest.raises(UnknownNameError, match="Did you mean 'resnet34'"): create_learner(small.change(model='resnet43', groups=()), dls)
    learn = create_learner(small, dls)
    with pytest.raises(ValueError, match="freeze_to must be one of '', 'block2', 'head', got 'block1'"): freeze_to(learn, 'block1')
    with pytest.raises(ValueError, match="bn must be one of 'train', 'weights', 'stats', 'frozen', got 'off'"): freeze_to(learn, 'head', 'off')

def test_discriminative_rates(dls):
    learn = create_learner(small, dls)
    for lr,expected in [((1e-4, 1e-2), (1e-4, 1e-3, 1e-2)), ((None, 1e-2), (1e-3, 1e-3, 1e-2)), (1e-2, (1e-2,)*3)]:
        quietly(learn, fit_stage, learn, constant(lr=lr))
        assert [h['lr'] for h in learn.opt.hypers] == pytest.approx(expected)

# BatchNorm

parts = dict(conv='body.block1.0.0.weight', weight='body.block1.0.1.weight', mean='body.block1.0.1.running_mean', last='head.3.weight')

@pytest.fixture(scope='module')
def two_batches(practice): return cifar10_dataloaders(practice, bs=32, limit=64, num_workers=0, augment='none')

@pytest.mark.parametrize('optimizer', ['sgd', 'muon', 'rmsprop', 'adam', 'adamw'])
@pytest.mark.parametrize('name,bn,expected', [
    ('head', 'train', {'weight', 'mean', 'last'}), ('head', 'stats', {'mean', 'last'}), ('head', 'frozen', {'last'}), ('head', 'weights', {'weight', 'last'}),
    ('', 'train', {'conv', 'weight', 'mean', 'last'}), ('', 'stats', {'conv', 'mean', 'last'}), ('', 'frozen', {'conv', 'last'}), ('', 'weights', {'conv', 'weight', 'last'})])
@pytest.mark.slow
def test_what_batchnorm_does(two_batches, name, bn, expected, optimizer):
    "After a stage in which everything trained, so that momentum and old gradients are there to do harm; weight decay, too"
    learn = create_learner(small.change(optimizer=optimizer, wd=.1), two_batches)
    quietly(learn, fit_stage, learn, constant(lr=1e-2))
    before = weights(learn)
    quietly(learn, fit_stage, learn, constant(lr=1e-2, freeze_to=name, bn=bn))
    moved = changed(before, weights(learn))
    assert {k for k,v in parts.items() if v in moved} == expected

def test_batchnorm_that_trains_is_not_touched_by_frozen_layers(dls):
    "block2 is not frozen, so its BatchNorm learns"
    learn = create_learner(small, dls)
    before = weights(learn)
    quietly(learn, fit_stage, learn, constant(lr=1e-2, freeze_to='block2', bn='frozen'))
    moved = changed(before, weights(learn))
    assert not any(k.startswith('body.block1.') for k in moved)
    assert {'body.block2.0.1.weight', 'body.block2.0.1.running_mean'} <= moved

def test_unfreezing_undoes_all_of_it(dls):
    learn = create_learner(small, dls)
    quietly(learn, fit_stage, learn, constant(lr=1e-2, freeze_to='head', bn='frozen'))
    before = weights(learn)
    quietly(learn, fit_stage, learn, constant(lr=1e-2))
    assert changed(before, weights(learn)) == set(before)

@pytest.mark.parametrize('bn,first', [('train', 'block1'), ('weights', 'block1'), ('stats', 'block2'), ('frozen', 'block2')])
@pytest.mark.parametrize('mixed_precision', [False, True])
def test_frozen_layers_have_no_backward_pass(dls, bn, first, mixed_precision):
    "No graph before the first layer with something to train: where BatchNorm's weights learn, that is at the beginning"
    learn = create_learner(small.change(mixed_precision=mixed_precision), dls)
    graphs = {}
    def note(name): # whether the outputs of a layer need a backward pass
        def hook(module, args, y): graphs[name] = y.requires_grad
        learn.model.body.get_submodule(name).register_forward_hook(hook)
    note('block1'); note('block2')
    watch = Watch(lambda l: dict(graphs), 'before_backward')
    with learn.added_cbs(watch): quietly(learn, fit_stage, learn, constant(lr=1e-2, freeze_to='block2', bn=bn))
    assert watch.seen == [dict(block1=first == 'block1', block2=True)]*len(watch.seen) != []

@pytest.mark.parametrize('bn', ['stats', 'frozen'])
def test_gradients_behind_frozen_layers_are_those_with_nothing_frozen(dls, bn):
    "And nothing is stored for the frozen layers: their parameters have no gradients"
    learn = create_learner(small, dls)
    x,y = (t.as_subclass(torch.Tensor) for t in dls.one_batch())
    norms = [m for m in learn.model.body.block1.modules() if isinstance(m, nn.BatchNorm2d)]
    def gradients():
        learn.model.train()
        if bn == 'frozen':
            for m in norms: m.eval()
        learn.model.zero_grad()
        nn.functional.cross_entropy(learn.model(x), y).backward()
        return {n: p.grad.clone() for n,p in learn.model.named_parameters() if p.grad is not None}
    torch.manual_seed(0); before = gradients()
    freeze_to(learn, 'block2', bn)
    torch.manual_seed(0); after = gradients()
    assert {n for n in before if n not in after} == {n for n in before if n.startswith('body.block1.')} != set()
    for n,g in after.items(): assert torch.equal(g, before[n]), n

def test_fixed_filters_stay_whatever_is_unfrozen(dls):
    learn = create_learner(get_recipe('small_cnn_one_cycle', bs=32), dls)
    before = weights(learn)
    learn.unfreeze()
    quietly(learn, learn.fit, 1, 1e-2)
    assert torch.equal(before['body.stem.filters'], weights(learn)['body.stem.filters'])

# What else a stage can ask for

class Watch(Callback):
    "Keep `f(learn)` of each training batch"
    order = 200
    def __init__(self, f, event): self.f,self.seen = f,[]; setattr(self, event, self._watch)
    def _watch(self): self.seen += [self.f(self.learn)] if self.training else []

def test_optimizer_goes_on_or_begins_anew(dls):
    learn = create_learner(small, dls)
    quietly(learn, fit_stage, learn, constant(lr=1e-2))
    opt = learn.opt
    quietly(learn, fit_stage, learn, constant(lr=1e-2))
    assert learn.opt is opt
    p = next(learn.model.parameters())
    steps = opt.state[p]['step']
    quietly(learn, fit_stage, learn, constant(lr=1e-2, reset_opt=True))
    assert learn.opt is not opt and steps == 10 and learn.opt.state[p]['step'] == 5

def test_discarded_stage(dls):
    learn = create_learner(small, dls)
    quietly(learn, fit_stage, learn, constant(lr=1e-2))
    before = weights(learn)
    watch = Watch(lambda l: l.loss.item(), 'after_loss')
    with learn.added_cbs(watch): quietly(learn, fit_stage, learn, constant(lr=1e-2, discard=True))
    assert len(watch.seen) == 5 and not changed(before, weights(learn))

class SpoilLastEpoch(Callback):
    "Turn the answers round before the last validation, so that an epoch before it was better"
    def after_train(self):
        if self.epoch == self.n_epoch - 1:
            for p in self.model.head[-1].parameters(): p.data.mul_(-10)

@pytest.mark.parametrize('monitor,better', [('accuracy', max), ('valid_loss', min)])
@pytest.mark.slow
def test_keep_best(practice, tmp_path, monitor, better):
    stage = constant(epochs=4, lr=1e-2, keep_best=monitor)
    learn = train(small.change(stages=stage, augment='none'), source=practice, run_dir=tmp_path/'run', num_workers=0, cbs=[SpoilLastEpoch()])
    h = pd.read_csv(learn.run_dir/'history.csv')
    metrics = json.loads((learn.run_dir/'metrics.json').read_text())['valid']
    assert metrics[monitor.removeprefix('valid_')] == pytest.approx(better(h[monitor]), abs=1e-5) and len(h) == 4
    assert h[monitor].iloc[-1] != better(h[monitor])  # else the last weights would do, too
    assert not list(learn.run_dir.glob('*.pth'))

@pytest.mark.slow
def test_monitors_apart(practice, tmp_path):
    "Stops by the loss while the rate follows the accuracy"
    stage = Stage(epochs=40, lr=1e-2, schedule='reduce_on_plateau', plateau_monitor='accuracy', plateau_patience=1, plateau_factor=.1,
                  early_stopping=4, early_stopping_monitor='valid_loss')
    learn = train(small.change(stages=stage, augment='none'), source=practice, run_dir=tmp_path/'run', num_workers=0)
    h = pd.read_csv(learn.run_dir/'history.csv')
    assert len(h) < 40 and len(h) - h.valid_loss.idxmin() - 1 == 4 and h.lr.iloc[-1] < 1e-2

def test_class_weights_are_for_training_only(dls):
    learn = create_learner(small.change(label_smoothing=.1), dls)
    losses = Watch(lambda l: (l.loss.item(), l.pred.detach(), l.y), 'after_loss')
    with learn.added_cbs(losses): quietly(learn, fit_stage, learn, constant(lr=1e-2, class_weights=dict(cat=2, dog=5)))
    weight = torch.ones(10); weight[3],weight[5] = 2,5
    for loss,pred,y in losses.seen:
        y = y.as_subclass(torch.Tensor)
        losses_of_images = nn.functional.cross_entropy(pred, y, label_smoothing=.1, reduction='none')
        assert loss == pytest.approx(((losses_of_images*weight[y]).sum()/weight[y].sum()).item(), rel=1e-5)
    plain = nn.functional.cross_entropy(*[t.as_subclass(torch.Tensor) for t in quietly(learn, learn.get_preds, act=nn.Identity())]).item()
    assert quietly(learn, learn.validate)[0] == pytest.approx(plain, rel=1e-4)

def test_class_weights_of_unknown_classes(dls):
    learn = create_learner(small, dls)
    with pytest.raises(ValueError, match="class_weights names 'tiger', but the classes are airplane"):
        quietly(learn, fit_stage, learn, constant(lr=1e-2, class_weights=dict(tiger=2)))

def test_gradients_are_clipped(dls):
    learn = create_learner(small, dls)
    norm = lambda l: torch.cat([p.grad.flatten() for p in l.model.parameters()]).norm().item()
    watch = Watch(norm, 'before_step')
    with learn.added_cbs(watch): quietly(learn, fit_stage, learn, constant(lr=1e-3, grad_clip=.01))
    assert watch.seen and max(watch.seen) == pytest.approx(.01, rel=1e-3)

def test_augmentation_of_a_stage(practice):
    dls = cifar10_dataloaders(practice, bs=32, num_workers=0, augment='none')
    learn = create_learner(small, dls)
    quietly(learn, fit_stage, learn, constant(lr=1e-2, augment='cutout'))
    names = lambda dls: [type(t).__name__ for t in dls.train.after_batch.fs]
    assert 'Cutout' in names(learn.dls) and 'Cutout' not in names(dls)
    quietly(learn, fit_stage, learn, constant(lr=1e-2))
    assert 'Cutout' in names(learn.dls)

def test_l2_is_keras_penalty(dls):
    "Gradients are those of loss + l2 * sum(w**2); the reported loss is without it"
    l2,in_order = .01,DataLoaders(dls.valid, dls.valid)
    plain,penalised = (create_learner(small.change(l2=x, l2_on='body.*', optimizer='sgd'), in_order) for x in (0., l2))
    penalised.model.load_state_dict(plain.model.state_dict())
    grads = [Watch(lambda l: ({n: p.grad.clone() for n,p in l.model.named_parameters()}, l.loss.item()), 'before_step') for _ in range(2)]
    for learn,watch in zip((plain, penalised), grads):
        with learn.added_cbs(watch): quietly(learn, learn.fit, 1, 0.)
    (a,loss_a),(b,loss_b) = grads[0].seen[0],grads[1].seen[0]
    assert loss_a == loss_b
    for n,p in plain.model.named_parameters():
        has = n.startswith('body.') and p.ndim > 1
        assert torch.allclose(b[n], a[n] + 2*l2*p if has else a[n], atol=1e-6), n

def test_l2_that_meets_nothing(dls):
    learn = create_learner(small.change(l2=.1, l2_on='tail.*'), dls)
    with pytest.raises(ValueError, match="No weights match 'tail"): quietly(learn, learn.fit, 1, 1e-3)

@pytest.mark.parametrize('recipe,n', [('residual_cnn', 13), ('ladder_7', 6), ('mobilenet_v2_finetuned', 2)])
def test_l2_is_on_the_layers_meant(recipe, n):
    recipe = get_recipe(recipe)
    cb = L2Penalty(recipe.l2, recipe.l2_on)
    cb.learn = Learner(None, build_model(recipe, 10, pretrained=False), loss_func=nn.functional.cross_entropy)
    cb.before_fit()
    assert len(cb.params) == n

def test_losses_are_kept_as_numbers(dls):
    learn = create_learner(small, dls)
    quietly(learn, learn.fit, 1, 1e-3)
    assert {type(l) for l in learn.recorder.losses} == {float}

@pytest.mark.cuda
def test_mixed_precision_on_cuda(practice):
    dls = cifar10_dataloaders(practice, bs=32, num_workers=0, device='cuda')
    learn = create_learner(small.change(mixed_precision=True), dls)
    watch = Watch(lambda l: l.pred.dtype, 'after_pred')
    with learn.added_cbs(watch): quietly(learn, learn.fit, 1, 1e-3)
    assert set(watch.seen) == {torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16}

# Weights

@pytest.mark.parametrize('name', [n for n in list_recipes() if get_recipe(n).weights])
def test_weights_of_recipes_are_published(name):
    "By their own names: what 'DEFAULT' means may change, and with it the experiment; unless it means a package, which a run records"
    recipe = get_recipe(name)
    names = set(list_weights(recipe.model))
    if recipe.model not in _packages: names -= {'DEFAULT'}
    assert recipe.weights in names

@pytest.mark.parametrize('name', [n for n in list_recipes() if get_recipe(n).model in _packages])
def test_images_are_normalized_as_the_weights_want_them(name):
    "What timm says of the network"
    recipe = get_recipe(name)
    cfg = create_backbone(recipe.model, 10).pretrained_cfg
    assert recipe.stats == (cfg['mean'], cfg['std']) and cfg['input_size'][0] == 3

@pytest.mark.slow
def test_weights_from_a_file_and_from_a_run(practice, tmp_path):
    "Pretraining, fine-tuning from its run folder, and a fine-tuned run as the next one's beginning"
    pre = Recipe(name='pre', model='resnet18', stages=constant(lr=1e-3), bs=32, image_size=32)
    first = train(pre, source=practice, run_dir=tmp_path/'pre', num_workers=0, limit=64)
    tune = pre.change(name='tune', weights=str(tmp_path/'pre'), head=Head(), groups=('layer3', 'head'), freeze_to='head', bn='frozen')
    learn = train(tune, source=practice, run_dir=tmp_path/'tune', num_workers=0, limit=64)
    body = load_file(first.run_dir/'model.safetensors')
    assert all(torch.equal(v, body[k]) for k,v in learn.model.body.state_dict().items() if 'num_batches' not in k)
    assert 'loaded: ' in json.loads((learn.run_dir/'run.json').read_text())['weights']
    again = create_learner(tune.change(weights=str(tmp_path/'tune')), learn.dls)
    assert all(torch.equal(v, body[k]) for k,v in again.model.body.state_dict().items() if 'num_batches' not in k)

@pytest.mark.slow
def test_a_run_comes_back_without_its_weights_file(practice, tmp_path):
    save_file(create_backbone('resnet18', 1000).state_dict(), tmp_path/'w.safetensors')
    recipe = Recipe(name='tune', model='resnet18', weights=str(tmp_path/'w.safetensors'), head=Head(lin_ftrs=()), groups=('head',), stages=constant(lr=1e-3), bs=32)
    learn = train(recipe, source=practice, run_dir=tmp_path/'run', num_workers=0, limit=64)
    (tmp_path/'w.safetensors').unlink()
    back = load_run(tmp_path/'run', num_workers=0)
    assert not changed(weights(learn), weights(back))
    save_classifier(learn, tmp_path/'classifier')
    file = next((practice/'test'/'cat').iterdir())
    probs = load_classifier(tmp_path/'classifier').predict(file).probabilities.values()
    assert torch.allclose(torch.tensor([*probs]), learn.predict(file)[2].as_subclass(torch.Tensor), atol=1e-5)

def test_missing_weights_are_found_out_before_the_run_folder_is_made(practice, tmp_path):
    recipe = get_recipe('resnet34_finetuned', weights='nowhere.pth', image_size=32, valid=.1)
    with pytest.raises(FileNotFoundError, match='nowhere.pth'): train(recipe, source=practice, run_dir=tmp_path/'run', num_workers=0)
    assert not (tmp_path/'run').exists()

# Every recipe from end to end

# from end to end: one of each kind that there is
whole = ['small_cnn_one_cycle', 'tiny_cnn', 'three_block_cnn', 'three_block_cnn_one_cycle', 'plain_cnn', 'ladder_1', 'ladder_8_1_sgd', 'mobilenet_v2_finetuned',
         'efficientnet_b2_finetuned', 'resnet34_finetuned', 'resnet34_tiny_imagenet', 'finetune_quick']

def kind(name):
    "What decides which code trains a recipe: optimizer, schedules, whether it has a new head, whether it uses 16 bits"
    recipe = get_recipe(name)
    return recipe.optimizer, frozenset(s.schedule for s in recipe.stages), recipe.head is not None, recipe.mixed_precision

def shortened(name, folder):
    "A recipe with one epoch in each stage; a large network at 64 pixels, its weights from a file"
    recipe = get_recipe(name).shorten(1)
    changes = dict(bs=16, image_size=min(recipe.image_size, 64)) | (dict(valid=10) if recipe.valid != 'test' else {})
    if recipe.weights:
        save_file(create_backbone(recipe.model, 1000).state_dict(), folder/'weights.safetensors')
        changes['weights'] = str(folder/'weights.safetensors')
    return recipe.change(**changes)

def test_recipes_of_every_kind_run_whole():
    missing = {kind(n): n for n in list_recipes() if kind(n) not in set(map(kind, whole))}
    assert not missing, f'add to `whole`, above, one recipe of each kind that none of it is of: {missing}'
    assert len({kind(n) for n in whole}) == len(whole), 'take out of `whole` what is of the kind of another'

@pytest.mark.slow
@pytest.mark.parametrize('name', whole)
@pytest.mark.filterwarnings("ignore:valid='test'")
def test_recipe_runs_whole(name, practice, tmp_path):
    recipe = shortened(name, tmp_path)
    learn = train(recipe, source=practice, run_dir=tmp_path/'run', num_workers=0, limit=32)
    h,run = pd.read_csv(learn.run_dir/'history.csv'),json.loads((learn.run_dir/'run.json').read_text())
    assert list(h.stage) == list(range(1, len(recipe.stages) + 1)) and run['status'] == 'finished' and learn.recipe.name == f'{name}_short'
    back = load_run(learn.run_dir, num_workers=0)
    a,b = evaluate(learn, 'valid'),evaluate(back, 'valid')
    assert abs(a.probs - b.probs).max() < 1e-5

@pytest.mark.slow
@pytest.mark.parametrize('name', [n for n in list_recipes() if n not in whole])
@pytest.mark.filterwarnings("ignore:valid='test'")
def test_recipe_is_built_and_steps(name, practice, tmp_path):
    "Every stage of it, one batch"
    recipe = shortened(name, tmp_path)
    dls = cifar10_dataloaders(practice, bs=16, valid=recipe.valid, image_size=recipe.image_size, augment=recipe.augment, stats=recipe.stats, limit=16, num_workers=0)
    learn = create_learner(recipe, dls, path=tmp_path)
    for stage in recipe.stages:
        before = weights(learn)
        quietly(learn, fit_stage, learn, stage)
        moved,parameters = changed(before, weights(learn)),dict(learn.model.named_parameters())
        assert any(p.requires_grad for n,p in parameters.items() if n in moved) and all(parameters[n].requires_grad for n in moved & parameters.keys())
        assert all(math.isfinite(loss) for loss in learn.recorder.losses)

@pytest.mark.parametrize('keras', [False, True])
def test_the_penalty_is_in_one_metric_alone(dls, keras):
    "The validation loss is the cross-entropy, whatever is minimized; Keras' `val_loss` has a name of its own"
    stage = Stage(epochs=1, lr=1e-2, schedule='reduce_on_plateau', plateau_monitor='penalized_loss')
    learn = create_learner(Recipe(name='l2', model='ladder_3', stages=stage, augment='none', bs=32, l2=.01, keras=keras, label_smoothing=.3), dls)
    quietly(learn, fit_stage, learn, stage)
    penalty = .01*sum(p.square().sum().item() for p in learn.model.parameters() if p.ndim > 1)
    _,loss,_,penalised = learn.recorder.values[-1]
    assert penalised == pytest.approx(loss + penalty, rel=1e-5) and penalty > .1
    assert loss == pytest.approx(evaluate(learn, 'valid').loss, rel=1e-5)
    assert quietly(learn, learn.get_preds, with_loss=True)[2].mean().item() == pytest.approx(loss, rel=1e-4)

def test_keras_head_on_a_pretrained_body():
    recipe = get_recipe('mobilenet_v2_finetuned')
    model = build_model(recipe, 10, pretrained=False)
    norms = [m for m in model.head.modules() if isinstance(m, nn.BatchNorm1d)]
    assert norms and {(m.eps, m.momentum) for m in norms} == {(1e-3, .01)}
    dense = [m for m in model.head.modules() if isinstance(m, nn.Linear)]
    for m in dense: assert m.weight.abs().max() <= (6/sum(m.weight.shape))**.5  # Glorot's bound
    assert {m.eps for m in model.body.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-5}

def test_a_body_without_feature_maps_is_refused():
    recipe = Recipe(name='vit', model='vit_b_16', head=Head(), stages=Stage(epochs=1, lr=1e-2), image_size=224)
    with pytest.raises(ValueError, match='Cannot add a new head to this body: a head needs feature maps'): build_model(recipe, 10, pretrained=False)

@pytest.mark.parametrize('name', ['small_cnn', 'airbench94', 'timm/resnet50_gn'])
@pytest.mark.parametrize('in_channels', [1, 3])
def test_any_network_gets_a_head(name, in_channels):
    recipe = Recipe(name='x', model=name, head=Head(), stages=Stage(epochs=1, lr=1e-2))
    model = build_model(recipe, 7, in_channels, pretrained=False)
    assert model.eval()(torch.zeros(2, in_channels, 32, 32)).shape == (2, 7)

@pytest.mark.parametrize('name', ['plain_cnn', 'small_cnn', 'timm/convnext_atto', 'resnet18'])
def test_weights_of_a_network_with_a_new_head(name, tmp_path):
    recipe = Recipe(name='x', model=name, head=Head(), stages=Stage(epochs=1, lr=1e-2))
    given = build_model(recipe, 10)
    save_file({k: v.contiguous() for k,v in given.state_dict().items()}, tmp_path/'w.safetensors')
    model = build_model(recipe.change(weights=str(tmp_path/'w.safetensors')), 4)
    body = {k: v for k,v in given.state_dict().items() if k.startswith('body.')}
    assert body and all(torch.equal(model.state_dict()[k], v) for k,v in body.items())
    plain = build_model(recipe.change(head=None, weights=str(tmp_path/'w.safetensors')), 4)
    assert len(plain.report.loaded) == len(body)

@pytest.mark.parametrize('head', [None, Head()])
def test_statistics_of_a_network_with_its_own_classifier_stay(head, practice):
    recipe = Recipe(name='x', model='resnet18', bs=16, head=head, stages=Stage(epochs=1, lr=1e-3, bn='frozen'))
    learn = create_learner(recipe, cifar10_dataloaders(practice, bs=16, limit=40, num_workers=0))
    norms = [m for n,m in learn.model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    quietly(learn, fit_stage, learn, recipe.stages[0])
    assert len(norms) == 20 and not any(m.running_mean.any() or m.weight.requires_grad for m in norms)

def test_networks_of_one_image_size_get_a_head():
    model = add_new_head(cut_body(create_backbone('timm/swin_tiny_patch4_window7_224', 10)), 7)
    assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 7)

@pytest.mark.parametrize('name, says', [('timm/vit_tiny_patch16_224', r'gave .an output of shape \(1, 197, 192\).'), ('timm/coat_lite_tiny', 'returns no feature maps')])
def test_networks_of_timm_without_feature_maps_are_refused(name, says):
    with pytest.raises(ValueError, match=f'{says}.* keep this network.s classifier with head=None'): add_new_head(cut_body(create_backbone(name, 10)), 7)

def test_weights_may_be_a_path(tmp_path):
    recipe = get_recipe('resnet34_finetuned', weights=tmp_path/'w.pth')
    assert recipe.weights == str(tmp_path/'w.pth') and Recipe.from_json(recipe.to_json()) == recipe

class ChannelsLastBackbone(torch.nn.Module):
    "As timm's Swin: feature maps with their channels at the end"
    output_fmt = 'NHWC'
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 5, 3, stride=4, padding=1)
    def reset_classifier(self, n_out, pool): pass
    def forward(self, x): return self.conv(x).permute(0, 2, 3, 1)

def test_feature_maps_with_their_channels_at_the_end():
    body = cut_body(ChannelsLastBackbone())
    assert body(torch.zeros(2, 3, 32, 32)).shape == (2, 5, 8, 8)
    assert add_new_head(body, 4)(torch.zeros(2, 3, 32, 32)).shape == (2, 4)

@pytest.mark.parametrize('reduction', ['mean', 'batchmean', 'sum', 'none'])
@pytest.mark.parametrize('eps', [0., .2])
def test_each_image_counts_by_the_weight_of_its_own_class(reduction, eps):
    torch.manual_seed(0)
    pred,y,weight = torch.randn(50, 4),torch.randint(4, (50,)),torch.tensor([1., 25., 0., 3.])
    loss = WeightedCrossEntropy(weight, eps, reduction)(pred, y)
    each = nn.functional.cross_entropy(pred, y, label_smoothing=eps, reduction='none')*weight[y]
    torch.testing.assert_close(torch.as_tensor(loss), dict(none=each, sum=each.sum(), batchmean=each.mean(), mean=each.sum()/weight[y].sum())[reduction])
    torch.testing.assert_close(WeightedCrossEntropy(weight, eps, reduction)(pred, nn.functional.one_hot(y, 4).float()), loss)

def test_the_parts_of_a_mixed_label_count_by_their_own_classes():
    torch.manual_seed(0)
    pred,a,b,weight = torch.randn(50, 4),torch.randint(4, (50,)),torch.randint(4, (50,)),torch.tensor([1., 25., 2., 3.])
    loss = WeightedCrossEntropy(weight, .1, 'none')
    mixed = .7*nn.functional.one_hot(a, 4) + .3*nn.functional.one_hot(b, 4)
    torch.testing.assert_close(loss(pred, mixed), .7*loss(pred, a) + .3*loss(pred, b))

@pytest.mark.parametrize('n_classes, weight, eps', [(2, 10., .2), (5, 25., .2), (2, 20., .4)])
def test_a_heavy_class_does_not_draw_the_others(n_classes, weight, eps):
    "A linear network on classes that are far apart: it must answer each, however heavy one is"
    torch.manual_seed(0)
    y = torch.arange(n_classes).repeat_interleave(50)[:-40]  # few of the last, which is the heavy one
    x = nn.functional.one_hot(y, n_classes) + .05*torch.randn(len(y), n_classes)
    layer,weights = nn.Linear(n_classes, n_classes),torch.ones(n_classes)
    weights[-1] = weight
    opt = torch.optim.LBFGS(layer.parameters(), max_iter=300)
    def closure():
        opt.zero_grad()
        loss = WeightedCrossEntropy(weights, eps)(layer(x), y)
        loss.backward()
        return loss
    opt.step(closure)
    assert (layer(x).argmax(1) == y).all()

@pytest.mark.parametrize('keras', [False, True])
def test_keras_divides_weighted_losses_by_the_number_of_images(dls, keras):
    learn = create_learner(small.change(keras=keras), dls)
    seen = Watch(lambda l: (l.loss_func(l.pred, l.y), nn.functional.cross_entropy(l.pred, l.y)), 'after_loss')
    with learn.added_cbs(seen): quietly(learn, fit_stage, learn, constant(lr=1e-2, class_weights=dict.fromkeys(dls.vocab, 2)))
    weighted,plain = map(torch.stack, zip(*seen.seen))
    torch.testing.assert_close(weighted, plain*(2 if keras else 1))

def test_a_loss_function_of_your_own_stays(dls):
    learn = create_learner(small.change(label_smoothing=.1), dls)
    learn.loss_func = FocalLossFlat()
    seen = Watch(lambda l: l.loss_func, 'after_loss')
    with learn.added_cbs(seen): quietly(learn, learn.fit, 1)
    assert seen.seen and all(f is learn.loss_func for f in seen.seen)
    with pytest.raises(ValueError, match='class_weights are for the cross-entropy, but learn.loss_func is FlattenedLoss of FocalLoss'):
        quietly(learn, fit_stage, learn, constant(lr=1e-2, class_weights=dict(cat=2)))

@pytest.mark.slow
def test_a_learner_of_fastai_is_trained_through_a_stage(dls):
    learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy)
    quietly(learn, fit_stage, learn, constant(lr=1e-3, class_weights=dict(cat=2)))
    assert len(learn.recorder.values) == 1
    with pytest.raises(ValueError, match="The optimizer 'rmsprop' of a stage needs.*create_learner"):
        fit_stage(learn, constant(lr=1e-3, optimizer='rmsprop'))

def test_class_weights_and_mixup(dls):
    "The loss of mixed images is that of both labels, weighted or not"
    class Seen(MixUp):
        def lf(self, pred, *yb): self.n = getattr(self, 'n', 0) + self.training; return super().lf(pred, *yb)
    learn, mixed = create_learner(small, dls), Seen()
    plain = learn.loss_func
    with learn.added_cbs(mixed): quietly(learn, fit_stage, learn, constant(lr=1e-2, class_weights=dict(cat=2)))
    assert mixed.n == 5 and learn.loss_func is plain

def test_class_weights_and_mixup_with_the_mean_of_keras(dls):
    "Over the images, mixed or not"
    seen = []
    class Look(Callback):
        def after_loss(self):
            if not self.training: return
            weight = torch.ones(10)
            weight[list(self.dls.vocab).index('cat')] = 2
            each = sum(share*weight[y]*F.cross_entropy(self.pred, y, reduction='none') for y,share in ((self.y, self.mix_up.lam), (self.mix_up.yb1[0], 1 - self.mix_up.lam)))
            seen.append((self.loss.item(), each.mean().item()))
    learn = create_learner(small.change(keras=True), dls)
    with learn.added_cbs([MixUp(.4), Look()]): quietly(learn, fit_stage, learn, constant(lr=1e-3, class_weights=dict(cat=2)))
    assert len(seen) == 5 and all(found == pytest.approx(wanted, rel=1e-4) for found,wanted in seen)

def test_what_a_network_has_fixed_stays(practice, tmp_path):
    @register_model
    def fixed_stem(n_out=10, in_channels=3, image_size=32):
        "A network whose first layer never learns"
        stem = nn.Conv2d(in_channels, 8, 3, padding=1).requires_grad_(False)
        return nn.Sequential(stem, nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, n_out))
    try:
        recipe = Recipe(name='x', model='fixed_stem', stages=(constant(lr=1e-2), constant(lr=1e-2)), bs=32)
        learn = create_learner(recipe, cifar10_dataloaders(practice, bs=32, num_workers=0))
        before = weights(learn)
        quietly(learn, fit_stage, learn, recipe.stages[0])
        assert changed(before, weights(learn)) == {'4.weight', '4.bias'} and learn.model.fixed == ('0.weight', '0.bias')
        learn = train(recipe, source=practice, run_dir=tmp_path/'run', num_workers=0, device='cpu')
        said = json.loads((learn.run_dir/'run.json').read_text())['parameters']
        assert count_parameters(learn.model)[:2] == (said['trainable'], said['frozen']) == (1290, 224)
    finally: del our_models._models['fixed_stem']

def test_a_new_head_leaves_the_body_in_training_mode():
    body = cut_body(create_backbone('resnet18', 10))
    body[1].eval()
    model = add_new_head(body, 10)
    assert [n for n, m in model.named_modules() if not m.training] == ['body.bn1']

def test_a_fine_tuned_run_goes_on_with_its_head(tmp_path):
    recipe = Recipe(name='x', model='resnet18', head=Head(), stages=Stage(epochs=1, lr=1e-2))
    given = build_model(recipe, 10)
    for p in given.parameters(): p.data += .01
    save_file({k: v.contiguous() for k,v in given.state_dict().items()}, tmp_path/'w.safetensors')
    recipe = recipe.change(weights=str(tmp_path/'w.safetensors'))
    same, other, unlike = build_model(recipe, 10), build_model(recipe, 4), build_model(recipe.change(head=Head(lin_ftrs=(64,))), 10)
    assert not changed(given.state_dict(), same.state_dict()) and str(same.report) == f'loaded: {len(given.state_dict())} tensors'
    assert other.report.dropped == ('head.8.weight',) and torch.equal(other.head[4].weight, given.head[4].weight)
    assert not unlike.report.missing and {k.partition('.')[0] for k in unlike.report.dropped} == {'head'}
    assert torch.equal(unlike.body.conv1.weight, given.body.conv1.weight)

# Features computed once

frozen_head = partial(Stage, epochs=3, lr=1e-3, freeze_to='head', bn='frozen', augment='none')
head_alone = small.change(groups=('head',), stages=frozen_head(), head=Head(ps=0.), augment='none', optimizer='sgd')

class LooksAtImages(Callback):
    def before_batch(self): self.last = self.x

def fitted(recipe, dls, *cbs):
    "A learner after the recipe's stages, and how many images went through its body"
    torch.manual_seed(0)
    learn = create_learner(recipe, dls, cbs=list(cbs))
    sizes = []
    learn.model.body.register_forward_hook(lambda layer, images, features: sizes.append(len(features)))
    for stage in recipe.stages: quietly(learn, fit_stage, learn, stage)
    return learn,sum(sizes)

@pytest.mark.parametrize('change', [
    dict(), dict(model='resnet18', stages=frozen_head(schedule='constant', early_stopping=1)), dict(model='tiny_cnn', head=None, bs=7),
    dict(head=Head(lin_ftrs=(), concat_pool=False, first_bn=False, ps=0.), label_smoothing=.1), dict(l2=.01, l2_on='body.*'),
    dict(stages=(frozen_head(keep_best='accuracy', class_weights={'cat': 3.}), frozen_head(epochs=2, augment=None, discard=True)))])
def test_kept_features_train_the_same_head(practice, change):
    recipe = head_alone.change(**change)
    def loaders():
        random.seed(0) # where a loader has its order from
        return cifar10_dataloaders(practice, bs=recipe.bs, num_workers=0, augment='none', device='cpu')
    dls = loaders()
    kept,images = fitted(recipe, dls)
    plain,all_images = fitted(recipe, loaders(), LooksAtImages())
    assert images <= len(recipe.stages)*(len(dls.train_ds) + len(dls.valid_ds) + 1) < all_images
    assert kept.dls.train.rng.getstate() == plain.dls.train.rng.getstate()
    for (name,a),b in zip(kept.model.state_dict().items(), plain.model.state_dict().values()):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f'{name}: {text}')

@pytest.mark.parametrize('change, cbs', [
    (dict(augment='flip_crop'), []), (dict(bn='train'), []), (dict(bn='stats'), []), (dict(freeze_to=''), []), (dict(epochs=1), []),
    (dict(progressive_resizing=(24, 32)), []), (dict(), [MixUp()]), (dict(), [LooksAtImages()]), (dict(model='plain_cnn'), [])]) # which has dropout
def test_features_that_change_are_not_kept(practice, change, cbs, monkeypatch):
    def refuse(*args): raise AssertionError('features were kept')
    monkeypatch.setattr('cifar_fastai.training.features_kept', refuse)
    model = change.get('model', head_alone.model)
    stage = frozen_head(**{name: value for name,value in (dict(epochs=2) | change).items() if name != 'model'})
    dls = cifar10_dataloaders(practice, bs=32, num_workers=0, augment='none', device='cpu')
    _,images = fitted(head_alone.change(stages=stage, model=model), dls, *cbs)
    assert images >= stage.epochs*(len(dls.train)*32 + len(dls.valid_ds))

class WithRelu(nn.Sequential):
    def forward(self, x): return self.head(F.relu(self.body(x)))

@pytest.fixture
def own(monkeypatch):
    "Register a network of parts, for one test"
    def own(cls=nn.Sequential, **parts):
        def build(n_out=10, in_channels=3, image_size=32): return cls(OrderedDict((name, deepcopy(part)) for name,part in parts.items()))
        monkeypatch.setitem(our_models._models, 'own', build)
        return head_alone.change(model='own', head=None)
    return own

pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())

@pytest.mark.parametrize('cls, parts', [(WithRelu, dict(head=nn.Sequential(*pooled, nn.Linear(8, 10)))),
                                        (nn.Sequential, dict(pool=pooled, head=nn.Sequential(nn.Linear(8, 10))))])
def test_features_are_not_kept_where_there_is_more_than_a_body_and_a_head(practice, own, cls, parts):
    recipe = own(cls, body=nn.Sequential(nn.Conv2d(3, 8, 3)), **parts)
    dls = cifar10_dataloaders(practice, bs=32, num_workers=0, augment='none', device='cpu')
    learn,images = fitted(recipe, dls)
    assert images >= 3*(len(dls.train)*32 + len(dls.valid_ds))

def test_features_leave_the_names_of_a_head(own):
    recipe = own(body=nn.Sequential(nn.Conv2d(3, 8, 3)), head=nn.Sequential(OrderedDict(pool=pooled[0], flat=pooled[1], fc=nn.Linear(8, 10))))
    model = build_model(recipe, 10)
    assert [name for name,_ in split_at_features(model)[1].named_parameters()] == ['head.fc.weight', 'head.fc.bias']

@pytest.mark.parametrize('bn', ['frozen', 'train'])
def test_a_norm_without_weights_in_a_frozen_layer(practice, own, bn):
    recipe = own(body=nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, affine=False)), head=nn.Sequential(*pooled, nn.Linear(8, 10)))
    recipe = recipe.change(stages=frozen_head(epochs=1, bn=bn))
    learn,_ = fitted(recipe, cifar10_dataloaders(practice, bs=32, num_workers=0, augment='none', device='cpu'))
    assert learn.model.body[1].running_mean.any() == (bn == 'train')

def test_a_norm_without_weights_at_the_start_of_a_head(practice, own):
    recipe = own(body=nn.Sequential(nn.Conv2d(3, 8, 3)), head=nn.Sequential(*pooled, nn.BatchNorm1d(8, affine=False), nn.Linear(8, 10)))
    learn,_ = fitted(recipe.change(stages=frozen_head(epochs=1)), cifar10_dataloaders(practice, bs=32, num_workers=0, augment='none', device='cpu'))
    assert learn.model.head[2].running_mean.any()

def test_features_that_need_too_much_memory_are_not_kept(dls, monkeypatch):
    monkeypatch.setattr('cifar_fastai.training.small_in_memory', 4*1024*10)
    _,images = fitted(head_alone, dls)
    assert images > 2*(len(dls.train_ds) + len(dls.valid_ds))

def test_what_stops_a_fit_puts_the_network_back(dls):
    class Stop(Callback):
        def before_epoch(self):
            if self.epoch == 1: raise KeyboardInterrupt
    learn = create_learner(head_alone, dls, cbs=[Stop()])
    model,loaders = learn.model,learn.dls.loaders
    with pytest.raises(KeyboardInterrupt): quietly(learn, fit_stage, learn, frozen_head(augment=None))
    assert learn.model is model and learn.dls.loaders is loaders

@pytest.mark.parametrize('stage', [frozen_head(keep_best='accuracy'), frozen_head(discard=True)])
def test_an_error_with_kept_features_is_told(dls, stage):
    "Weights that a callback has kept go back into the head that was trained"
    class Fail(Callback):
        def before_epoch(self):
            if self.epoch == 1: raise RuntimeError('mine')
    learn = create_learner(head_alone, dls, cbs=[Fail()])
    with pytest.raises(RuntimeError, match='mine$'): quietly(learn, fit_stage, learn, stage)

def test_the_head_is_the_networks_own():
    "And not what its body calls so, which keeps a norm when timm cuts off the classifier"
    recipe = Recipe(name='x', model='timm/convnext_atto', head=Head(), groups=('head',), stages=Stage(epochs=1, lr=1e-3, freeze_to='head'))
    model = build_model(recipe, 10)
    assert any('.head.' in name for name,_ in model.body.named_parameters())
    assert list(map(id, parameter_groups(model, ('head',))[1])) == list(map(id, model.head.parameters()))

@pytest.mark.parametrize('head', [None, Head()])
def test_keras_numbers_are_for_the_whole_network_without_weights(head):
    model = build_model(Recipe(name='x', model='resnet18', keras=True, head=head, stages=Stage(epochs=1, lr=1e-3)), 10)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 20 and {m.eps for m in norms} == {1e-3}
