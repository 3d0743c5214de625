"Grad-CAM and features agree with what is computed by hand, and leave the learner as it was."
import random
import sys
import warnings
from dataclasses import replace
from importlib.util import find_spec

import matplotlib.pyplot as plt
import numpy as np
import pytest
import timm
import torch
from fastai.torch_core import set_seed
from fastai.vision.learner import vision_learner
from PIL import Image
from torch import nn
from torchvision import models

from cifar_fastai import probing
from cifar_fastai.evaluation import Evaluation, evaluate
from cifar_fastai.finetuning import add_new_head, cut_body
from cifar_fastai.models import create_model, list_models
from cifar_fastai.probing import Features, embed, features, find_cam_layer, grad_cam, plot_embedding, plot_grad_cam
from cifar_fastai.registry import UnknownNameError
from cifar_fastai.robustness import robustness
from small_learner import loaders, make_learner, network, normalized, pixels

needs_captum = pytest.mark.skipif(find_spec('captum') is None, reason='captum is not installed')


# ---------------------------------------------------------------------------------------------------- helpers

pytestmark = pytest.mark.usefixtures('plain_pyplot')


@pytest.fixture(scope='module')
def dls(learn): return learn.dls


def softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# ---------------------------------------------------------------------------------------------------- nothing is left behind

def state(learn):
    "What a question must not change"
    modules = list(learn.model.modules())
    hooks = [len(getattr(m, name)) for m in modules for name in ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')]
    numbers = [v.clone() for v in learn.model.state_dict().values()]
    grads = [p.grad if p.grad is None else p.grad.clone() for p in learn.model.parameters()]
    return (hooks, [m.training for m in modules], [p.requires_grad for p in learn.model.parameters()], [str(cb) for cb in learn.cbs],
            list(learn.recorder.values), random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
            [str(dl.after_batch) for dl in learn.dls.loaders], torch.is_grad_enabled()), numbers, grads


def same(a, b): return (a is None) == (b is None) and (a is None or a.equal(b))


@pytest.mark.parametrize('ask', [pytest.param(lambda learn: grad_cam(learn, range(5), bs=2), marks=needs_captum),
                                 lambda learn: features(learn, n=5), lambda learn: robustness(learn, corruptions='noise', levels=[2], n=5)],
                         ids=['grad_cam', 'features', 'robustness'])
def test_the_learner_is_left_as_it_was(learn, ask):
    learn.model.train()
    learn.model[1].eval()
    learn.model[0].weight.requires_grad_(False)
    learn.model[6].weight.grad = torch.ones_like(learn.model[6].weight)
    try:
        before = state(learn)
        first, second = ask(learn), ask(learn)
        after = state(learn)
    finally:
        learn.model.requires_grad_(True).zero_grad()
    assert before[0] == after[0]
    for a, b in zip([*before[1], *before[2]], [*after[1], *after[2]]): assert same(a, b)
    first, second = (o.values if isinstance(o, Features) else o for o in (first, second))
    np.testing.assert_array_equal(first, second)


@needs_captum
def test_hooks_are_removed_after_an_error(learn, monkeypatch):
    before = state(learn)[0][0]
    def fail(*args, **kwargs): raise RuntimeError('broken')
    monkeypatch.setattr(learn.model, 'forward', fail)
    for ask in (lambda: grad_cam(learn, [0]), lambda: features(learn), lambda: find_cam_layer(learn.model, torch.zeros(1, 3, 32, 32))):
        with pytest.raises(RuntimeError, match='broken'): ask()
    monkeypatch.undo()
    assert state(learn)[0][0] == before


# ---------------------------------------------------------------------------------------------------- Grad-CAM

def by_hand(side):
    "A network with one convolution whose windows do not overlap, and its last maps computed with numpy"
    torch.manual_seed(3)
    conv, linear = nn.Conv2d(3, 4, side, stride=side), nn.Linear(4, 10)
    model = nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    k, b, w = (o.detach().numpy().astype(np.float64) for o in (conv.weight, conv.bias, linear.weight))

    def maps(images):
        n, c, size, _ = images.shape
        windows = images.reshape(n, c, size//side, side, size//side, side)
        return np.maximum(np.einsum('nchiwj,kcij->nkhw', windows, k) + b[:, None, None], 0)
    return model, maps, w


def bilinear(image, size):
    "Enlarge a map: each pixel is the mean of the nearest four, by how near their middles are"
    at = (np.arange(size) + .5) * len(image) / size - .5
    weights = np.clip(1 - abs(np.clip(at, 0, len(image) - 1)[:, None] - np.arange(len(image))), 0, 1)
    return weights @ image @ weights.T


def heat_by_hand(maps, weights, size):
    "The gradient of a score with respect to a map that is averaged is the same everywhere, the weight over the number of pixels"
    cams = np.maximum((maps * weights[:, :, None, None]).sum(1), 0) / maps[0, 0].size
    cams = np.stack([bilinear(o, size) for o in cams])
    highest = cams.max((1, 2), keepdims=True)
    return cams / np.where(highest > 0, highest, 1)


@needs_captum
@pytest.mark.parametrize('side', [1, 4, 16])
@pytest.mark.parametrize('target', ['predicted', 'actual', 'dog', 'numbers'])
def test_heat_is_what_a_hand_computes(practice, dls, side, target):
    model, maps, w = by_hand(side)
    learn = make_learner(dls, model)
    said, positions = evaluate(learn), [3, 17, 18, 42, 0]
    numbers = [1, 0, 9, 5, 3]
    classes = {'predicted': said.predictions[positions], 'actual': said.targets[positions], 'dog': [said.vocab.index('dog')] * 5, 'numbers': numbers}[target]
    heat = grad_cam(learn, positions, numbers if target == 'numbers' else target, bs=2)
    expected = heat_by_hand(maps(normalized(pixels(practice))[positions]), w[classes], 32)
    assert heat.dtype == np.float32 and heat.shape == (5, 32, 32)
    np.testing.assert_allclose(heat, expected, atol=2e-4)
    assert heat.max() == 1


@needs_captum
def test_another_class_gives_another_map(learn, result):
    heats = [grad_cam(learn, range(4), name) for name in result.vocab[:3]]
    assert all(not np.allclose(a, b, atol=.05) for a, b in zip(heats, heats[1:]))


@needs_captum
@pytest.mark.parametrize('name', list_models())
@pytest.mark.slow
def test_every_network_of_ours(dls, name):
    set_seed(0)
    learn = make_learner(dls, create_model(name))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        heat = np.stack([grad_cam(learn, [0, 7], target) for target in ('cat', 'truck')])
    assert heat.shape == (2, 2, 32, 32) and np.isfinite(heat).all() and heat.min() >= 0
    assert set(heat.max((2, 3)).round(5).ravel()) <= {0, 1} and heat.max() == 1
    assert not np.allclose(*heat)
    layer = find_cam_layer(learn.model, torch.zeros(1, 3, 32, 32))
    assert layer.is_last and min(layer.height, layer.width) > 1 and layer.name.startswith('body')


@pytest.mark.parametrize('name, layer, side', [('three_block_cnn', 'body.block3.1', 8), ('ladder_0', 'body.block1.0', 32), ('small_cnn', 'body', 4),
                                               ('residual_cnn', 'body.stages.4.norm', 2)])
def test_maps_are_the_last_ones_before_pooling(name, layer, side):
    assert find_cam_layer(create_model(name), torch.zeros(2, 3, 32, 32)) == (layer, side, side, True)


class OneReLU(nn.Module):
    "Calls one module after convolutions and after a linear layer, as many tutorials do"
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.relu, self.pool = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
        self.fc1, self.fc2 = nn.Linear(1024, 32), nn.Linear(32, 10)
    def forward(self, x):
        for conv in self.conv1, self.conv2: x = self.pool(self.relu(conv(x)))
        return self.fc2(self.relu(self.fc1(x.flatten(1))))


@needs_captum
def test_a_module_that_is_called_again_later_is_not_taken(dls):
    assert find_cam_layer(OneReLU(), torch.zeros(1, 3, 32, 32)) == ('conv2', 16, 16, True)
    set_seed(0)
    assert all(heat.std() > .01 for heat in grad_cam(make_learner(dls, OneReLU()), [0, 1]))


@pytest.mark.slow
def test_transformers_give_their_last_maps_or_are_refused():
    x = torch.zeros(1, 3, 224, 224)
    swin = timm.create_model('swin_tiny_patch4_window7_224', num_classes=3)
    with pytest.raises(ValueError, match='do not output feature maps'): find_cam_layer(swin, x)
    assert find_cam_layer(add_new_head(cut_body(swin), 3).eval(), x)[1:] == (7, 7, True)
    with pytest.raises(ValueError, match='do not output feature maps'): find_cam_layer(timm.create_model('vit_tiny_patch16_224', num_classes=3), x)
    assert find_cam_layer(models.convnext_tiny(), x[..., :64, :64])[1:] == (2, 2, True)


@pytest.mark.parametrize('probs', [[[.4, .4, .2], [.2, .4, .4]], [[.5, .3, .2], [.1, .6, .3]]])
def test_the_runner_up_is_another_class(probs):
    said = Evaluation(probs, [0, 1], [.9, .9], ['#0', '#1'], list('abc'))
    assert probing._rivals(said, [0, 1])[0].tolist() == [1, 2]


def test_features_of_a_loader_are_of_its_split(dls):
    learn = make_learner(dls, network())
    for name in 'train', 'valid':
        assert features(learn, getattr(learn.dls, name), n=20).evaluation.split == features(learn, name, n=20).evaluation.split == name


def test_the_layer_is_the_last_with_a_where():
    model = models.resnet34()
    assert find_cam_layer(model, torch.zeros(1, 3, 32, 32)) == ('layer3', 2, 2, False)
    assert find_cam_layer(model, torch.zeros(1, 3, 64, 96)) == ('layer4', 2, 3, True)
    with pytest.raises(ValueError, match='1x1 maps of images of 1x1: Grad-CAM needs larger'): find_cam_layer(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 1, 1))


def torchvision_body(): return add_new_head(cut_body(models.resnet18()), 10)
def timm_body(): return add_new_head(cut_body(timm.create_model('test_efficientnet', pretrained=False)), 10)


@needs_captum
@pytest.mark.parametrize('build, side', [(torchvision_body, 64), (timm_body, 64), (lambda: models.DenseNet(8, (2, 2), 16, num_classes=10), 32)],
                         ids=['torchvision', 'timm', 'densenet'])
def test_pretrained_bodies(practice, build, side):
    set_seed(0)
    learn = make_learner(loaders(practice, image_size=side), build())
    learn.model.requires_grad_(False)  # all frozen
    heat = grad_cam(learn, [1, 20, 33], 'ship', bs=2)
    assert heat.shape == (3, side, side) and np.isfinite(heat).all() and heat.max() == 1
    assert not any(p.requires_grad for p in learn.model.parameters())


@needs_captum
def test_a_learner_of_fastai(practice):
    learn = vision_learner(loaders(practice, image_size=64, stats='imagenet'), models.resnet18, pretrained=False)
    heat = grad_cam(learn, ['test/cat/0001.png', 'test/dog/0001.png'], 'actual')
    assert heat.shape == (2, 64, 64) and set(heat.max((1, 2))) <= {0, 1}


@needs_captum
def test_coarse_maps_are_told(dls):
    learn = make_learner(dls, add_new_head(cut_body(models.resnet18()), 10))
    with pytest.warns(UserWarning, match=r"32x32.*are 1x1.*'body.layer3', with maps of 2x2.*image_size=128"): grad_cam(learn, [0])


@needs_captum
def test_a_layer_by_name(practice, dls):
    model, maps, w = by_hand(4)
    learn = make_learner(dls, nn.Sequential(model[0], model[1], nn.MaxPool2d(2), *model[2:]))
    default, named, pooled = (grad_cam(learn, [8], 'cat', layer=layer) for layer in (None, '1', '2'))
    assert (default == named).all() and not np.allclose(named, pooled)
    with pytest.raises(UnknownNameError, match="Unknown layer '11'.*named_modules"): grad_cam(learn, [8], layer='11')
    with pytest.raises(ValueError, match=r"Layer '5' outputs \(1, 10\), but Grad-CAM needs feature maps.*layer='1'"): grad_cam(learn, [8], layer='5')
    with pytest.raises(ValueError, match=r"Layer '3' outputs \(1, 4, 1, 1\)"): grad_cam(learn, [8], layer='3')


@needs_captum
def test_a_layer_by_name_where_none_is_found(dls):
    tokens = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(2), nn.Linear(16, 5), nn.Flatten(), nn.Linear(20, 10))
    learn = make_learner(dls, tokens)
    with pytest.raises(ValueError, match='do not output feature maps.*name it: layer='): grad_cam(learn, [0])
    assert grad_cam(learn, [0], layer='0').shape == (1, 32, 32)


@needs_captum
def test_positions_and_files_are_the_same_images(learn, result, practice):
    i = 23
    expected = grad_cam(learn, [i])
    for images in (i, np.array([i]), result.files[i], [practice/result.files[i]], [str(practice/result.files[i])]):
        np.testing.assert_array_equal(grad_cam(learn, images), expected)
    valid = evaluate(learn, 'valid')
    np.testing.assert_array_equal(grad_cam(learn, [4, 2], split='valid'), grad_cam(learn, [valid.files[4], valid.files[2]]))
    np.testing.assert_array_equal(grad_cam(learn, [4], split='train'), grad_cam(learn, evaluate(learn, 'train').files[4:5]))
    np.testing.assert_array_equal(grad_cam(learn, [4], split=learn.dls.valid), grad_cam(learn, [4], split='valid'))


@needs_captum
def test_batches_do_not_matter(learn):
    for bs in (1, 3, 7): np.testing.assert_allclose(grad_cam(learn, range(7), bs=bs), grad_cam(learn, range(7)), atol=1e-4)


@needs_captum
def test_images_that_are_no_files(learn, in_memory):
    other = make_learner(in_memory, learn.model)
    np.testing.assert_allclose(grad_cam(other, [5, 40], split='valid'), grad_cam(learn, [5, 40]), atol=1e-3)
    with pytest.raises(ValueError, match='do not read files. Pass positions'): grad_cam(other, ['test/cat/0001.png'])


@needs_captum
def test_requests_that_cannot_be_met(learn, dls, practice, tmp_path):
    for images in ([50], [-1], [0, 1.5], [99]):
        with pytest.raises(ValueError, match='is not one of the 50 images of the split. Allowed: whole numbers from 0 to 49'): grad_cam(learn, images)
    with pytest.raises(ValueError, match='at least one image'): grad_cam(learn, [])
    with pytest.raises(ValueError, match="Unknown target 'cta'. Allowed: 'predicted', 'actual', a class .*cat"): grad_cam(learn, [0], 'cta')
    for target in ([1, 2], [10], [-1], [.5], ['cat']):
        with pytest.raises(ValueError, match='one class number .0 to 9. for each of the 1 images'): grad_cam(learn, [0], target)
    with pytest.raises(ValueError, match="Unknown split 'tset'"): grad_cam(learn, [0], split='tset')
    with pytest.raises(ValueError, match='bs must be a batch size'): grad_cam(learn, [0], bs=0)
    with pytest.raises(TypeError, match='Learner'): grad_cam(learn.model, [0])
    with pytest.raises(FileNotFoundError, match='No image test/cat/none.png'): grad_cam(learn, 'test/cat/none.png')
    Image.new('RGB', (32, 32)).save(tmp_path / 'frog.png')
    with pytest.raises(ValueError, match='not in a folder named after a class.*frog'): grad_cam(learn, tmp_path / 'frog.png')
    flat = make_learner(dls, nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10)))
    with pytest.raises(ValueError, match='this Sequential has none'): grad_cam(flat, [0])


def test_captum_is_asked_for(learn, monkeypatch):
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(ImportError, match=r'pip install \"cifar_fastai\[interpret\] @ git\+'): grad_cam(learn, [0])


def titles(axes): return [[ax.get_title() for ax in row] for row in axes]


@needs_captum
def test_pictures_of_heat(learn, result, practice):
    right, wrong = (np.flatnonzero((result.predictions == result.targets) == o)[0] for o in (True, False))
    axes = plot_grad_cam(learn, result, [right, wrong])
    assert axes.shape == (2, 3)
    vocab, probs = result.vocab, result.probs
    second = probs[right].argsort()[-2]
    percent = lambda p: '<1%' if p < .01 else f'{p:.0%}'
    said = [f'predicted {vocab[result.predictions[i]]} {percent(probs[i].max())}' for i in (right, wrong)]
    t = result.targets[wrong]
    assert titles(axes) == [[f'actual {vocab[result.targets[right]]}', said[0], f'runner-up {vocab[second]} {percent(probs[right, second])}'],
                            [f'actual {vocab[t]}', said[1], f'actual {vocab[t]} {percent(probs[wrong, t])}']]
    drawn = [[ax.images[1].get_array() for ax in row[1:]] for row in axes]
    expected = [grad_cam(learn, [right], o)[0] for o in ('predicted', [second])], [grad_cam(learn, [wrong], o)[0] for o in ('predicted', 'actual')]
    np.testing.assert_allclose(drawn, expected, atol=1e-4)
    np.testing.assert_array_equal(axes[1, 0].images[0].get_array(), np.array(Image.open(practice/result.files[wrong])))
    axes[0, 0].figure.canvas.draw()


@needs_captum
def test_pictures_of_heat_go_where_they_are_told(learn, result, practice):
    fig, axes = plt.subplots(2, 4)
    tiles = plot_grad_cam(learn, replace(result, root=''), [1, 2], root=practice, axes=axes)
    assert tiles.ravel().tolist() == axes.ravel()[:6].tolist() and len(fig.axes) == 8
    with pytest.raises(ValueError, match='3 images need 9 axes, three for each, got 8'): plot_grad_cam(learn, result, [1, 2, 3], axes=axes)
    with pytest.raises(ValueError, match='Position 50 is not one of the 50 images of the evaluation'): plot_grad_cam(learn, result, [50])
    with pytest.raises(FileNotFoundError, match='root='): plot_grad_cam(learn, replace(result, root='nowhere'), [0])
    other = Evaluation([[.9, .1]], [0], [.1], [result.files[0]], ['cat', 'dog'], root=str(practice))
    with pytest.raises(ValueError, match='classes do not match'): plot_grad_cam(learn, other, [0])


# ---------------------------------------------------------------------------------------------------- features

def test_features_are_what_the_last_layer_gets(learn, result):
    found = features(learn, n=None)
    assert found.values.shape == (50, 32) and found.values.dtype == np.float32
    last = learn.model[-1]
    np.testing.assert_allclose(softmax(found.values @ last.weight.detach().numpy().T + last.bias.detach().numpy()), result.probs, atol=1e-5)
    assert found.evaluation.files == result.files and found.evaluation.split == 'test'
    np.testing.assert_allclose(found.evaluation.probs, result.probs, atol=1e-6)


@pytest.mark.parametrize('split', ['test', 'valid', 'train'])
def test_a_sample_is_some_of_the_images(learn, split):
    everything, some, again, other = (features(learn, split, n, seed) for n, seed in [(10**6, 0), (7, 0), (7, 0), (7, 1)])
    at = [everything.evaluation.files.index(name) for name in some.evaluation.files]
    assert len(at) == 7 and at == sorted(set(at)) and some.evaluation.split == split
    np.testing.assert_allclose(some.values, everything.values[at], atol=1e-5)
    np.testing.assert_array_equal(some.values, again.values)
    assert some.evaluation.files != other.evaluation.files


def test_features_take_one_pass(learn):
    seen = []
    hook = learn.model.register_forward_hook(lambda *args: seen.append(len(args[2])))
    features(learn, n=20, bs=8)
    hook.remove()
    assert seen == [8, 8, 4]


@pytest.mark.parametrize('name', list_models())
def test_features_of_every_network(dls, name):
    learn = make_learner(dls, create_model(name))
    found, last = features(learn, n=3), learn.model.head[-1]
    scores = torch.from_numpy(found.values) @ last.weight.T + (0 if last.bias is None else last.bias)
    np.testing.assert_allclose(scores.softmax(1).detach().numpy(), found.evaluation.probs, atol=1e-4)


def test_features_of_images_that_are_no_files(learn, in_memory):
    found = features(make_learner(in_memory, learn.model), 'valid', n=6, seed=2)
    at = [int(name[1:]) for name in found.evaluation.files]
    np.testing.assert_allclose(found.values, features(learn, n=None).values[at], atol=1e-4)


def test_features_that_cannot_be_had(learn, dls, practice, tmp_path):
    for n in (0, -1, 2.5):
        with pytest.raises(ValueError, match='n is a number of images and must be at least 1'): features(learn, n=n)
    with pytest.raises(ValueError, match='seed must be a whole number of at least 0, got -1'): features(learn, n=5, seed=-1)
    conv = make_learner(dls, nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()))
    with pytest.raises(ValueError, match='Linear layer, but this Sequential has none'): features(conv)
    unused = make_learner(dls, nn.Sequential(nn.Conv2d(3, 10, 32), nn.Flatten()))
    unused.model[1].idle = nn.Linear(2, 2)
    with pytest.raises(ValueError, match='not used in its forward pass'): features(unused)


@pytest.mark.parametrize('ask', [features, robustness, pytest.param(lambda learn: grad_cam(learn, [0]), marks=needs_captum)], ids=['features', 'robustness', 'grad_cam'])
def test_no_test_images(practice, tmp_path, ask):
    (tmp_path / 'train').symlink_to(practice / 'train', target_is_directory=True)
    learn = make_learner(loaders(tmp_path), network())
    with pytest.raises(FileNotFoundError, match='has no test folder'): ask(learn)


# ---------------------------------------------------------------------------------------------------- embedding

def clusters(n=40, dims=60, seed=0):
    "Three groups of points that lie far apart"
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(size=(n, dims)) + 30 * rng.normal(size=dims) for _ in range(3)]), np.repeat(range(3), n)


@pytest.mark.parametrize('method', ['tsne', 'pca'])
def test_groups_stay_apart(method):
    values, group = clusters()
    xy = embed(values, method)
    assert xy.shape == (120, 2) and xy.dtype == np.float32
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2) + 1e9 * np.eye(120)
    assert (group[distance.argmin(1)] == group).all()
    np.testing.assert_array_equal(xy, embed(values, method))


def test_pca_is_the_two_widest_directions():
    values, _ = clusters()
    centered = values - values.mean(0)
    u, s, _ = np.linalg.svd(centered, full_matrices=False)
    np.testing.assert_allclose(abs(embed(values, 'pca')), abs(u[:, :2] * s[:2]), rtol=1e-2, atol=.05)


def test_few_and_flat_features(learn):
    assert embed(np.random.default_rng(0).normal(size=(4, 3))).shape == (4, 2)
    assert embed(features(learn, n=12), 'pca').shape == (12, 2)
    for values, message in [(np.zeros((5, 4)), 'All images have the same features'), (np.full((5, 4), np.nan), 'diverged'),
                            (np.zeros((1, 4)), 'n and F at least 2'), (np.zeros(4), 'n and F at least 2'), (np.zeros((4, 1)), 'F at least 2')]:
        with pytest.raises(ValueError, match=message): embed(values)
    with pytest.raises(ValueError, match="Unknown method 'umap'. Allowed: 'tsne' or 'pca'"): embed(np.eye(4), 'umap')


def fake(targets, predictions, vocab):
    n, c = len(targets), len(vocab)
    probs = np.full((n, c), .1 / max(c - 1, 1))
    probs[range(n), predictions] = .9 if c > 1 else 1
    probs /= probs.sum(1, keepdims=True)
    return Evaluation(probs, targets, -np.log(probs[range(n), targets]), [f'{i}.png' for i in range(n)], vocab)


def test_points_have_their_class_and_the_wrong_ones_a_ring():
    targets, predictions = [0, 0, 1, 1, 2], [0, 1, 1, 1, 0]
    xy = np.arange(10.).reshape(5, 2) ** 2
    ax = plot_embedding(xy, fake(targets, predictions, ['cat', 'dog', 'frog']))
    right, wrong = ax.collections
    assert right.get_offsets().tolist() == xy[[0, 2, 3]].tolist() and wrong.get_offsets().tolist() == xy[[1, 4]].tolist()
    assert (right.get_facecolors()[1][:3] == right.get_facecolors()[2][:3]).all() and (right.get_facecolors()[0] != right.get_facecolors()[1]).any()
    assert (wrong.get_facecolors()[0][:3] == right.get_facecolors()[0][:3]).all() and (wrong.get_edgecolors()[0] == (0, 0, 0, 1)).all()
    assert wrong.get_zorder() > right.get_zorder()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ['correct (3)', 'wrong (2)'] and '5 test images' in ax.get_title()
    assert {t.get_text(): t.get_position() for t in ax.texts} == {'cat': tuple(np.median(xy[:2], 0)), 'dog': tuple(np.median(xy[2:4], 0)), 'frog': tuple(xy[4])}


def test_labels_at_one_place_are_moved_apart():
    xy = np.concatenate([np.zeros((10, 2)), [[100, 100]]])
    ax = plot_embedding(xy, fake([*range(10), 9], [*range(10), 0], [f'class {i}' for i in range(10)]))
    heights = sorted(t.get_position()[1] for t in ax.texts)
    assert min(np.diff(heights)) > 4


@pytest.mark.parametrize('targets, predictions, n_classes', [([0, 1, 2], [0, 1, 2], 3), ([0, 1], [1, 0], 2), (range(40), [0] * 40, 40), ([0, 0], [0, 0], 1)],
                         ids=['all right', 'all wrong', 'many classes', 'one class'])
def test_degenerate_embeddings_are_drawn(targets, predictions, n_classes):
    rng = np.random.default_rng(0)
    ax = plot_embedding(rng.normal(size=(len(targets), 2)), fake(list(targets), predictions, [f'class {i}' for i in range(n_classes)]), ax=plt.subplots()[1])
    ax.figure.canvas.draw()
    assert len(ax.texts) == (len(set(targets)) if n_classes <= 30 else 0)


def test_points_of_other_images_are_refused(result):
    with pytest.raises(ValueError, match='10 points, but 50 images .*found.evaluation'): plot_embedding(np.zeros((10, 2)), result)
    with pytest.raises(ValueError, match=r'needs points \(n, 2\).*got \(50, 3\)'): plot_embedding(np.zeros((50, 3)), result)


@pytest.mark.parametrize('n, named', [(20, 20), (30, 30), (31, 0), (200, 0)])
def test_names_of_many_classes_stay_within_an_embedding(n, named):
    rng = np.random.default_rng(0)
    targets = np.arange(1000) % n
    xy = rng.normal(size=(n, 2))[targets]*10 + rng.normal(size=(1000, 2))*2
    probs = np.eye(n)[targets]
    ax = plot_embedding(xy, Evaluation(probs, targets, np.zeros(1000), [f'{i}.png' for i in range(1000)], [f'a_class_of_ours_{i}' for i in range(n)]))
    ax.figure.canvas.draw()
    assert len(ax.texts) == named
    for text in ax.texts:
        box = text.get_window_extent()
        assert box.y1 <= ax.bbox.y1 and ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1
