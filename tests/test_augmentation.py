"What augmentation changes, and what it leaves alone."
import multiprocessing

import numpy as np
import pytest
import torch
from fastai.torch_core import set_seed
from fastai.vision.core import TensorImage
from torch.nn import functional as F

from cifar_fastai import augmentation, data  # not their names: pytest would take `test_files` for a test

forks = pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')


# --- augmentation

def batch(n=64, size=32, channels=3, seed=0):
    return TensorImage(torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)))


def apply(tfms, x, split_idx=0):
    for tfm in tfms: x = tfm(x, split_idx=split_idx)
    return x


presets = [n for n in augmentation.list_augmentations() if n != 'none']


def test_presets_have_names():
    assert augmentation.list_augmentations() == ['none', 'flip_crop', 'flip_crop_2', 'alternating_flip_crop', 'alternating_flip_crop_2', 'alternating_cutout', 'cutout', 'shift_flip', 'rotate_shift_flip', 'rotate_shift_flip_zoom',
                                         'rotate10_shift_flip_zoom', 'aug_transforms', 'aug_transforms_crop']
    assert augmentation.augmentation('none') == []
    with pytest.raises(ValueError, match="Unknown augmentation 'cut_out'. Did you mean 'cutout'"): augmentation.augmentation('cut_out')


@pytest.mark.parametrize('name', presets)
@pytest.mark.parametrize('shape', [dict(size=32), dict(size=48, channels=1)], ids=str)
def test_preset_changes_training_images_each_in_its_own_way(name, shape):
    x = batch(1, **shape).expand(64, -1, -1, -1).clone()
    set_seed(0); a = apply(augmentation.augmentation(name, 32), x.clone())
    set_seed(0); b = apply(augmentation.augmentation(name, 32), x.clone())
    c = apply(augmentation.augmentation(name, 32), x.clone())
    assert (a.shape, a.dtype, a.device, type(a)) == (x.shape, x.dtype, x.device, TensorImage)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.isfinite(a).all() and a.min() >= -1e-5 and a.max() <= 1 + 1e-5
    assert len({im.numpy().tobytes() for im in a}) > (20 if name == 'alternating_flip_crop_2' else 30)  # one image in 25 places, mirrored as in all its copies
    assert torch.equal(apply(augmentation.augmentation(name, 32), x.clone(), split_idx=1), x)
    assert (a != x).flatten(1).any(1).float().mean() > .9


@pytest.mark.parametrize('size, pad', [((32, 32), 4), ((20, 28), 3), ((5, 5), 4)])
def test_flip_crop_is_a_crop_of_the_reflected_image(size, pad):
    x = TensorImage(torch.rand(200, 2, *size))
    out, padded = augmentation.FlipCrop(pad)(x, split_idx=0), F.pad(torch.Tensor(x), (pad,)*4, mode='reflect')
    places = []
    for im, source in zip(torch.Tensor(out), padded):
        for flip in (False, True):
            for dy in range(2*pad + 1):
                for dx in range(2*pad + 1):
                    crop = source[:, dy:dy+size[0], dx:dx+size[1]]
                    if torch.equal(im, crop.flip(2) if flip else crop): places.append((flip, dy, dx))
    assert len(places) >= 200
    for part in zip(*places): assert len(set(part)) > 1
    assert .35 < np.mean([p[0] for p in places]) < .65
    assert {p[1] for p in places} == {p[2] for p in places} == set(range(2*pad + 1))


@pytest.mark.parametrize('floats', [True, False])
def test_alternating_flips(floats):
    "About half of the images each epoch, wherever an image comes in a batch, all of them every two epochs; another seed, other images"
    x = (torch.rand(400, 3, 9, 8)*255).byte()
    x = TensorImage(x.float()/255 if floats else x)
    def mirrored(t, epoch, x=x):
        t.epoch = epoch
        out = t(x, split_idx=0)
        flipped = (out != x).flatten(1).any(1)
        assert torch.equal(out[flipped], x[flipped].flip(3))
        return flipped
    torch.manual_seed(0)
    t = augmentation.FlipCrop(0, alternate=True)
    first = mirrored(t, 0)
    assert 150 < first.sum() < 250
    assert torch.equal(mirrored(t, 1), ~first) and torch.equal(mirrored(t, 2), first)
    order = torch.randperm(400)
    assert torch.equal(mirrored(t, 4, x[order]), first[order]) and torch.equal(mirrored(t, 6, x[:3]), first[:3])
    assert 100 < (mirrored(augmentation.FlipCrop(0, alternate=True), 0) != first).sum() < 300
    moved = augmentation.FlipCrop(3, alternate=True)(x, split_idx=0)
    assert moved.shape == x.shape and (moved != x).flatten(1).any(1).float().mean() > .9


def test_flip_crop_keeps_integers_and_strides():
    x = TensorImage((torch.rand(8, 3, 16, 16)*255).byte()).to(memory_format=torch.channels_last)
    set_seed(1); a = augmentation.FlipCrop(2)(x, split_idx=0)
    set_seed(1); b = augmentation.FlipCrop(2)(x.contiguous(), split_idx=0)
    assert a.dtype == torch.uint8 and torch.equal(a, b)


def test_cutout_erases_one_square_an_image():
    out = augmentation.Cutout(8)(batch() + 1, split_idx=0)
    holes = (out == 0).all(1)
    corners = set()
    for hole in holes:
        rows, cols = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert hole.sum() == 64 and rows[-1] - rows[0] == cols[-1] - cols[0] == 7
        corners.add((rows[0].item(), cols[0].item()))
    assert len(corners) > 30 and max(max(c) for c in corners) > 20
    assert torch.equal(out[~holes[:, None].expand_as(out)], (batch() + 1)[~holes[:, None].expand_as(out)])


def test_shift_stays_in_its_range_and_repeats_the_border():
    ramp = torch.linspace(.5, 1, 41).expand(256, 1, 41, 41)  # brighter to the right, by .0125 a pixel
    out = torch.Tensor(apply(augmentation.affine_augmentation(max_shift=.1), TensorImage(ramp.clone())))
    steps = out.diff(dim=3)
    mirrored = (steps <= 1e-5).flatten(1).all(1)
    assert ((steps >= -1e-5).flatten(1).all(1) | mirrored).all()
    assert 80 < mirrored.sum() < 176
    assert out.min() >= .5 - 1e-5 and out.max() <= 1 + 1e-5
    moved = (out[:, 0, 20, 20] - .75)/.0125  # pixels
    assert 3.5 < moved.abs().max() <= 4.1 and moved.min() < -2 and moved.max() > 2


def test_rotation_keeps_the_centre_and_stays_in_its_range():
    line = torch.zeros(256, 1, 41, 41)
    line[:, :, 20, 20:] = 1  # from the center to the right border
    out = torch.Tensor(apply(augmentation.affine_augmentation(max_deg=15), TensorImage(line)))[:, 0]
    assert (out[:, 20, 20] > .6).all()
    right, left = out[:, :, 30], out[:, :, 10]
    rows = torch.where(right.amax(1, keepdim=True) > .3, right, left).argmax(1) - 20
    assert 2 <= rows.max() <= 3 and -3 <= rows.min() <= -2  # 10 pixels from the center: tan(15 degrees) is 2.7


def test_zoom_stays_in_its_range():
    disc = torch.zeros(256, 1, 81, 81)
    y, x = torch.meshgrid(torch.arange(81) - 40, torch.arange(81) - 40, indexing='ij')
    disc[:, :, (x**2 + y**2) <= 400] = 1
    radius = (torch.Tensor(apply(augmentation.affine_augmentation(max_zoom=.1), TensorImage(disc))).sum((1, 2, 3))/torch.pi).sqrt()
    assert 17.8 < radius.min() < 18.5 and 21.5 < radius.max() < 22.3


def test_rotate10_turns_by_ten_degrees_at_most():
    line = torch.zeros(256, 1, 81, 81)
    line[:, :, 40, 40:] = 1
    turn, = augmentation.augmentation('rotate10_shift_flip_zoom')
    spread = {}
    for name in ('rotate10_shift_flip_zoom', 'rotate_shift_flip_zoom'):
        set_seed(0)
        out = torch.Tensor(apply(augmentation.augmentation(name), TensorImage(line.clone())))[:, 0].flip(0)
        rows = out.argmax(1).float()  # of the line, in each column
        bright = out.amax(1) > .3
        slope = torch.stack([(r[b][-6] - r[b][5]).abs()/(b.nonzero()[-6, 0] - b.nonzero()[5, 0]) for r, b in zip(rows, bright) if b.sum() > 20])
        spread[name] = slope.quantile(.99).item()
    assert .12 < spread['rotate10_shift_flip_zoom'] < .23 < spread['rotate_shift_flip_zoom'] < .33  # tan(10 degrees) is .18, tan(15) .27


def test_crop_keeps_three_quarters_and_the_shape():
    ramp = TensorImage(torch.linspace(0, 1, 64).expand(8, 3, 64, 64).clone())
    crop, widths = augmentation.TrainingCrop(.75), []
    for seed in range(200):
        set_seed(seed)
        out = torch.Tensor(crop(ramp, split_idx=0))
        assert out.shape == ramp.shape and torch.equal(out[0], out[7])  # one window for the batch
        widths.append((out[0, 0, 0, -1] - out[0, 0, 0, 0]).item()*63/64 + 1/64)
    assert .75**.5 - .03 < min(widths) < .89 and .96 < max(widths) <= 1
    assert crop(TensorImage(torch.rand(4, 3, 24, 40)), split_idx=0).shape == (4, 3, 24, 40)


def test_fastais_crop_would_touch_validation_images_and_ours_does_not():
    x = batch(4, size=48)
    ours, theirs = ([t for t in tfms if isinstance(t, augmentation.RandomResizedCropGPU)][0]
                    for tfms in (augmentation.augmentation('aug_transforms_crop', 48), augmentation.aug_transforms(size=32, min_scale=.75)))
    assert theirs(x.clone(), split_idx=1).shape == (4, 3, 32, 32)
    assert ours(x, split_idx=1) is x and ours.min_scale == .75
    wide = TensorImage(torch.rand(2, 3, 20, 60))
    assert ours(wide, split_idx=1) is wide


def test_own_transforms_instead_of_a_preset(practice):
    dls = data.cifar10_dataloaders(practice, bs=8, augment=[augmentation.FlipCrop(2)])
    assert [t.pad for t in dls.train.after_batch.fs if isinstance(t, augmentation.FlipCrop)] == [2]
