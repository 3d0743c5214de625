"Corruptions and robustness agree with what is computed by hand."
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from fastai.torch_core import set_seed
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest
from torch import nn

from cifar_fastai import sources  # not its names: pytest would take `test_files` for a test
from cifar_fastai.registry import UnknownNameError
from cifar_fastai.robustness import corrupt, corruption_levels, list_corruptions, plot_robustness, robustness, show_corruptions
from small_learner import loaders, make_learner, normalized, pixels

pytestmark = pytest.mark.usefixtures('plain_pyplot')


# ---------------------------------------------------------------------------------------------------- corruptions

@pytest.fixture(scope='module')
def images(practice): return (pixels(practice)[::5] * 255).astype(np.uint8)


def every(level=range(1, 6)): return [(name, o) for name in ('blur', 'noise', 'jpeg', 'contrast', 'shift') for o in level]


def strength(name, level): return corruption_levels().loc[name, level]


def test_corruptions_and_their_levels():
    assert list_corruptions() == ['blur', 'noise', 'jpeg', 'contrast', 'shift'] == corruption_levels().index.tolist()
    assert corruption_levels().columns.tolist() == ['unit', 1, 2, 3, 4, 5]


@pytest.mark.parametrize('name, level', every([1, 4]))
def test_an_image_is_corrupted_in_the_same_way_wherever_it_is(images, name, level):
    whole = corrupt(images, name, level)
    assert whole.shape == images.shape and whole.dtype == np.uint8 and (whole != images).any((1, 2, 3)).all()
    order = [7, 2, 5]
    np.testing.assert_array_equal(corrupt(images[order], name, level), whole[order])
    np.testing.assert_array_equal(corrupt(images[4:5], name, level), whole[4:5])
    np.testing.assert_array_equal(corrupt(images, name, level, seed=0), whole)
    assert (corrupt(images, name, level, seed=1) != whole).any() == (name in ('noise', 'shift'))


@pytest.mark.parametrize('name, level', every([3]))
def test_bytes_and_floats_agree(images, name, level):
    expected = corrupt(images, name, level)
    tensor = torch.from_numpy(images)
    for given, dtype in [(tensor, torch.uint8), (tensor.float() / 255, torch.float32), (images / 255, np.float64), (images.astype(np.float32) / 255, np.float32)]:
        before = given.copy() if isinstance(given, np.ndarray) else given.clone()
        out = corrupt(given, name, level)
        assert type(out) is type(given) and out.dtype == dtype
        shades = np.asarray(out) if dtype == torch.uint8 else np.asarray(out) * 255
        np.testing.assert_allclose(shades, expected, atol=1e-4)
        assert (np.asarray(given) == np.asarray(before)).all()


@pytest.mark.parametrize('name', ['blur', 'noise', 'jpeg', 'contrast', 'shift'])
def test_levels_get_worse(images, name):
    far = [np.abs(corrupt(images, name, level).astype(float) - images).mean() for level in range(1, 6)]
    assert far == sorted(far) and far[0] > 0


@pytest.mark.parametrize('size', [32, 64])
@pytest.mark.parametrize('level', [1, 5])
def test_blur_is_that_of_scipy(images, size, level):
    given = images.repeat(size // 32, 2).repeat(size // 32, 3)
    sigma = strength('blur', level) * size / 32
    expected = gaussian_filter(given / 255, (0, 0, sigma, sigma), mode='mirror', radius=(0, 0, *[int(np.ceil(3 * sigma))] * 2))
    np.testing.assert_allclose(corrupt(given, 'blur', level) / 255, expected, atol=.51 / 255 + 1e-4)


@pytest.mark.parametrize('level', range(1, 6))
def test_noise_has_its_deviation_and_no_bias(level):
    gray = np.full((4, 3, 64, 64), 128, np.uint8)
    gray[:, 0, 0, 0] = range(4)  # else the images were the same
    out = corrupt(gray, 'noise', level)[:, :, 1:] / 255 - 128 / 255
    assert out.std() == pytest.approx(strength('noise', level), rel=.03) and abs(out.mean()) < .003
    assert np.corrcoef(out.reshape(4, -1))[np.triu_indices(4, 1)] == pytest.approx(0, abs=.05)


@pytest.mark.parametrize('level', [1, 5])
def test_jpeg_is_that_of_pillow(images, level):
    file = BytesIO()
    Image.fromarray(images[3].transpose(1, 2, 0)).save(file, 'JPEG', quality=int(strength('jpeg', level)))
    np.testing.assert_array_equal(corrupt(images[3:4], 'jpeg', level)[0].transpose(1, 2, 0), np.array(Image.open(file)))


@pytest.mark.parametrize('level', [1, 5])
def test_contrast_moves_toward_the_mean_gray(images, level):
    x, factor = images / 255, strength('contrast', level)
    gray = np.einsum('nchw,c->nhw', x, (.299, .587, .114)).mean((1, 2))[:, None, None, None]
    np.testing.assert_allclose(corrupt(images, 'contrast', level) / 255, gray + factor * (x - gray), atol=.6 / 255)


@pytest.mark.parametrize('size', [32, 48])
@pytest.mark.parametrize('level', [1, 5])
def test_shift_moves_by_whole_pixels(images, size, level):
    given = np.pad(images, ((0, 0), (0, 0), (0, size - 32), (0, size - 32)), mode='symmetric')
    by = max(1, round(strength('shift', level) * size / 32))
    padded = np.pad(given, ((0, 0), (0, 0), (by, by), (by, by)), mode='reflect')
    ways = {(dy, dx): padded[:, :, by + dy * by:by + dy * by + size, by + dx * by:by + dx * by + size] for dy in (-1, 0, 1) for dx in (-1, 0, 1)}
    out = corrupt(given, 'shift', level)
    went = [[way for way, expected in ways.items() if (expected[i] == out[i]).all()] for i in range(len(given))]
    assert all(went) and all((0, 0) not in o for o in went) and len({o[0] for o in went}) > 1


@pytest.mark.parametrize('shape', [(2, 1, 32, 32), (1, 3, 5, 9), (1, 3, 1, 1), (2, 3, 96, 64)])
@pytest.mark.parametrize('name, level', every([5]))
def test_other_sizes_and_gray(shape, name, level):
    given = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert corrupt(given, name, level).shape == shape


def test_what_cannot_be_corrupted(images):
    with pytest.raises(UnknownNameError, match=r"Unknown corruption 'blurr'. Did you mean 'blur'\? list_corruptions"): corrupt(images, 'blurr', 1)
    for level in (0, 6, -1, 1.5, '3', None):
        with pytest.raises(ValueError, match='level must be a whole number from 1 .mild. to 5 .strong., got'): corrupt(images, 'blur', level)
    with pytest.raises(ValueError, match='seed must be'): corrupt(images, 'noise', 1, seed=-1)
    for bad in (images[0], images[:0], images[:, :2]):
        with pytest.raises(ValueError, match=r'takes images \(N, C, H, W\) with 1 or 3 channels'): corrupt(bad, 'blur', 1)
    with pytest.raises(TypeError, match='uint8 images, or floats from 0 to 1, got torch.int64'): corrupt(images.astype(np.int64), 'blur', 1)
    for bad in (normalized(images / 255), images.astype(np.float32), np.full((1, 3, 4, 4), np.nan)):
        with pytest.raises(ValueError, match='before normalization'): corrupt(bad, 'blur', 1)


def test_pictures_of_corruptions(images):
    axes = show_corruptions(images[:2], ['noise', 'shift', 'jpeg'], levels=[2, 5])
    assert axes.shape == (3, 3) and [ax.get_ylabel() for ax in axes[:, 0]] == ['noise', 'shift', 'jpeg']
    assert [ax.get_title() for ax in axes[0]] == ['clean', 'level 2', 'level 5']
    for row, i, name in zip(axes, (0, 1, 0), ('noise', 'shift', 'jpeg')):
        expected = [images[i], *(corrupt(images[i:i + 1], name, level)[0] for level in (2, 5))]
        for ax, image in zip(row, expected): np.testing.assert_array_equal(ax.images[0].get_array(), image.transpose(1, 2, 0))
    assert show_corruptions(torch.from_numpy(images[:1, :1]) / 255, 'blur').shape == (1, 6)
    with pytest.raises(ValueError, match='1 corruptions with 2 images each need 2 axes, got 1'): show_corruptions(images, 'blur', [1], axes=[plt.subplots()[1]])


# ---------------------------------------------------------------------------------------------------- robustness

def test_robustness_is_what_a_hand_computes(learn, practice, result):
    files, model = sources.test_files(practice), learn.model.eval()
    table = robustness(learn, n=None, levels=[2, 5], seed=3)
    assert table.columns.tolist() == ['corruption', 'level', 'n', 'accuracy', 'low', 'high', 'change']
    assert list(zip(table.corruption, table.level)) == [('clean', 0), *((name, level) for name, level in every([2, 5]))]
    images = (pixels(practice, files) * 255).round().astype(np.uint8)
    for _, row in table.iterrows():
        x = images if row.level == 0 else corrupt(images, row.corruption, row.level, seed=3)
        with torch.no_grad(): said = model(torch.from_numpy(normalized(x.astype(np.float32) / 255))).argmax(1).numpy()
        right = int((said == result.targets).sum())
        assert row.accuracy == pytest.approx(right / 50) and row.n == 50
        assert (row.low, row.high) == pytest.approx(tuple(binomtest(right, 50).proportion_ci(method='wilson')))
        assert row.change == pytest.approx(row.accuracy - result.accuracy)
    assert len(set(table.accuracy)) > 2


def test_images_are_corrupted_before_they_are_resized(practice):
    set_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 10, 8, stride=8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    seen = []
    learn = make_learner(loaders(practice, image_size=48, stats=None), model)
    hook = model.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    robustness(learn, corruptions=['noise'], levels=[5], n=None, bs=50)
    hook.remove()
    for x, given in zip(seen, (pixels(practice), corrupt(pixels(practice), 'noise', 5)), strict=True):
        expected = torch.nn.functional.interpolate(torch.from_numpy(given), (48, 48), mode='bilinear', align_corners=False, antialias=True)
        torch.testing.assert_close(torch.Tensor(x), expected, atol=1e-5, rtol=0)


def test_a_sample_sees_the_same_images_in_one_pass_each(learn):
    seen = []
    hook = learn.model.register_forward_hook(lambda *args: seen.append(len(args[2])))
    table = robustness(learn, 'valid', ['blur', 'shift'], (1, 5), n=10, bs=4)
    hook.remove()
    assert seen == [4, 4, 2] * 5 and set(table.n) == {10}
    np.testing.assert_array_equal(table, robustness(learn, 'valid', ['blur', 'shift'], (1, 5), n=10, bs=7))


@pytest.mark.parametrize('in_memory', [True, False])
def test_loaders_of_all_kinds(practice, learn, in_memory):
    other = make_learner(loaders(practice, in_memory=in_memory), learn.model)
    for split in ('train', 'valid', other.dls.valid):
        np.testing.assert_array_equal(robustness(other, split, 'noise', 3, n=8), robustness(learn, 'valid' if split is other.dls.valid else split, 'noise', 3, n=8))


def test_robustness_that_cannot_be_measured(learn, in_memory):
    with pytest.raises(UnknownNameError, match="Did you mean 'contrast'"): robustness(learn, corruptions=['contrst'])
    with pytest.raises(ValueError, match='level must be'): robustness(learn, levels=[1, 6])
    with pytest.raises(ValueError, match='at least 1, got 0'): robustness(learn, n=0)
    with pytest.raises(ValueError, match='at least one corruption'): robustness(learn, corruptions=[])
    with pytest.raises(ValueError, match='at least one level'): robustness(learn, levels=[])
    with pytest.raises(ValueError, match='seed must be'): robustness(learn, seed=-1)
    with pytest.raises(ValueError, match="DataLoader of fastai's data blocks"): robustness(make_learner(in_memory, learn.model), 'valid')


def test_lines_are_the_table(learn):
    table = robustness(learn, corruptions=['noise', 'jpeg'], levels=[1, 3], n=30)
    ax = plot_robustness(table)
    lines = [line for line in ax.lines if len(line.get_xdata()) == 3]
    assert len(lines) == 2
    for line, name in zip(lines, ('noise', 'jpeg')):
        rows = table[(table.corruption == name) | (table.level == 0)]
        np.testing.assert_allclose(line.get_ydata(), 100 * rows.accuracy)
        np.testing.assert_allclose(line.get_xdata(), [0, 1, 3], atol=.2)
    assert [t.get_text() for t in ax.texts] == ['noise', 'jpeg'] and [t.get_color() for t in ax.texts] == [line.get_color() for line in lines]
    assert [t.get_text() for t in ax.get_xticklabels()] == ['clean', '1', '2', '3'] and '%' in ax.get_ylabel()
    bars = [[y for _, y in o] for container in ax.containers for o in container.lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, 100 * table[['low', 'high']].iloc[[1, 2, 3, 4, 0]].to_numpy())
    ax.figure.canvas.draw()
    assert [t.get_text() for t in plot_robustness(table[table.level > 0]).get_xticklabels()] == ['1', '2', '3'], 'as evaluate_corruptions gives it'


def test_tables_that_cannot_be_drawn(learn):
    table = robustness(learn, corruptions='blur', levels=1, n=5)
    with pytest.raises(ValueError, match='no column low, high'): plot_robustness(table.drop(columns=['low', 'high']))
    with pytest.raises(ValueError, match='no corrupted images'): plot_robustness(table[:1])
