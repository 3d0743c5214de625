"How images are split and batched."
import multiprocessing
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.core import DataLoaders, TfmdDL
from fastai.callback.progress import ProgressCallback
from fastai.learner import Learner
from fastai.torch_core import set_seed
from fastai.vision.core import PILImage, TensorImage
from PIL import Image

from cifar_fastai import augmentation, data, images, sources  # not their names: pytest would take `test_files` for a test
from cifar_fastai.augmentation import list_augmentations
from cifar_fastai.synthetic import cifar10_classes
from small_sets import picture, tiny_set

forks = pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')


# --- splits

def file_list(**sizes): return [Path(f'/x/train/{c}/{i:04}.png') for c, n in sizes.items() for i in range(n)]


@pytest.mark.parametrize('valid', [.1, .25, 1/3, .9, 7, 60, 110])
@pytest.mark.parametrize('sizes', [dict(a=40, b=40, c=40), dict(a=100, b=15, c=5)], ids=str)
def test_split_is_a_stratified_partition(valid, sizes):
    files = file_list(**sizes)
    train, valid_idx = data.StratifiedSplitter(valid)(files)
    assert sorted(train + valid_idx) == list(range(120))
    assert len(valid_idx) == (valid if isinstance(valid, int) else round(valid*120))
    counts = sources.count_classes(files[i] for i in valid_idx)
    for c, n in sizes.items():
        assert 1 <= counts[c] <= n - 1
        assert abs(counts[c] - n*len(valid_idx)/120) < 3 if min(sizes.values()) == 5 else abs(counts[c] - n*len(valid_idx)/120) < 1


def test_split_depends_on_class_name_and_seed_only():
    files = file_list(cat=30, dog=30)
    def chosen(files, **kwargs): return {sources.split_path(files[i])[1:] for i in data.StratifiedSplitter(.2, **kwargs)(files)[1]}
    shuffled = [files[i] for i in np.random.default_rng(0).permutation(60)]
    moved = [Path('other')/f.relative_to('/x') for f in files]
    assert chosen(files) == chosen(shuffled) == chosen(moved) == chosen([str(f) for f in files])
    assert chosen(files) != chosen(files, seed=1)
    assert {n for c, n in chosen(files) if c == 'cat'} != {n for c, n in chosen(files) if c == 'dog'}


def test_split_is_the_same_on_every_machine():
    _, valid = data.StratifiedSplitter(.1)(file_list(cat=40, dog=40))
    assert valid == [6, 21, 28, 37, 51, 60, 65, 73]


def test_more_images_do_not_reshuffle():
    few, many = file_list(cat=100), file_list(cat=110)
    chosen = [{files[i] for i in data.StratifiedSplitter(n)(files)[1]} for files, n in ((few, 20), (many, 22))]
    assert len(chosen[0] & chosen[1]) >= 16  # a fresh draw would share about four


@pytest.mark.parametrize('n', [2, 5, 7])
def test_folds_hold_out_every_image_once(n):
    files = file_list(a=40, b=23, c=2)
    splits = [data.FoldSplitter(fold, n)(files) for fold in range(1, n + 1)]
    assert sorted(i for _, held_out in splits for i in held_out) == list(range(65))
    for train, held_out in splits:
        assert sorted(train + held_out) == list(range(65)) and abs(len(held_out) - 65/n) < 1
        assert set(sources.count_classes(files[i] for i in train)) == {'a', 'b', 'c'}
        counts = sources.count_classes(files[i] for i in held_out)
        assert all(abs(counts.get(c, 0) - size/n) < 1 for c, size in dict(a=40, b=23, c=2).items())


def test_folds_depend_on_class_name_and_seed_only():
    files = file_list(cat=30, dog=30)
    def held_out(files, *args): return {sources.split_path(files[i])[1:] for i in data.FoldSplitter(2, 3, *args)(files)[1]}
    shuffled = [files[i] for i in np.random.default_rng(0).permutation(60)]
    assert held_out(files) == held_out(shuffled) == held_out([str(f) for f in files]) != held_out(files, 1)


def test_a_fold_is_a_kind_of_valid(tmp_path):
    path = tiny_set(tmp_path, n_train=6)
    held_out = [o for fold in '123' for o in data.cifar10_dataloaders(path, valid=f'fold{fold}of3', bs=2, num_workers=0).valid_ds.items]
    assert sorted(held_out) == sources.train_files(path)


@pytest.mark.parametrize('args, text', [((0, 5), 'fold 0 of 5'), ((6, 5), 'fold 6 of 5'), ((1, 1), 'at least 2 folds'), ((1, 81), '81 folds are too many for 80')])
def test_impossible_folds(args, text):
    with pytest.raises(ValueError, match=text): data.FoldSplitter(*args)(file_list(cat=40, dog=40))


def test_folds_of_a_lone_image():
    with pytest.raises(ValueError, match='class dog has only one image'): data.FoldSplitter(1, 2)(file_list(cat=40, dog=1))


@pytest.mark.parametrize('valid, text', [
    (0., 'valid=0.0 means 0 of 80'), (1., 'means 80 of 80'), (-.1, 'means -8'), (1.5, 'means 120'),
    (1, 'means 1 of 80'), (79, 'means 79 of 80'), (0, 'means 0'),
])
def test_impossible_splits(valid, text):
    with pytest.raises(ValueError, match=text): data.StratifiedSplitter(valid)(file_list(cat=40, dog=40))


@pytest.mark.parametrize('classes, n, valid, want', [
    (5, 9, .02, 5), (14, 6, .02, 14), (10, 40, .02, 10), (2, 20, .02, 2), (3, 2, .1, 3), (2, 40, .999, 78), (100, 5, .02, 100), (3, 10, .02, 3)])
def test_a_fraction_takes_one_of_each_class(classes, n, valid, want):
    files = file_list(**{f'c{i:02}': n for i in range(classes)})
    train, held_out = data.StratifiedSplitter(valid)(files)
    assert len(held_out) == want and sorted(train + held_out) == list(range(classes*n))
    assert len(sources.count_classes(files[i] for i in held_out)) == len(sources.count_classes(files[i] for i in train)) == classes


def test_lone_image_and_wrong_type():
    with pytest.raises(ValueError, match='class dog has only one image'): data.StratifiedSplitter(.1)(file_list(cat=40, dog=1))
    with pytest.raises(TypeError): data.StratifiedSplitter([1])(file_list(cat=40, dog=40))
    with pytest.raises(ValueError, match="valid='tets'"): data.cifar10_datablock(valid='tets')


def test_validating_on_the_test_set_is_possible_and_warned_about(practice):
    with pytest.warns(UserWarning, match='validates on the test images'): dls = data.cifar10_dataloaders(practice, valid='test', bs=16)
    assert list(dls.valid_ds.items) == sources.test_files(practice) and list(dls.train_ds.items) == sources.train_files(practice)


def test_limit_keeps_validation_and_balance(practice):
    whole, small, all_of_it = (data.cifar10_dataloaders(practice, bs=16, limit=n) for n in (None, 50, 10_000))
    assert list(small.valid_ds.items) == list(whole.valid_ds.items)
    assert set(sources.count_classes(small.train_ds.items).values()) == {5}
    assert set(small.train_ds.items) < set(whole.train_ds.items) == set(all_of_it.train_ds.items)
    with pytest.raises(ValueError, match='limit=5 means 5 of 180'): data.cifar10_dataloaders(practice, limit=5)


def set_with_val(tmp_path, name='val', **kwargs):
    "A data set with a validation folder of its own"
    path = tiny_set(tmp_path/'set', n_train=12, **kwargs)
    tiny_set(tmp_path/'more', n_train=3)
    (tmp_path/'more'/'train').rename(path/name)
    return path


@pytest.mark.parametrize('name', ['val', 'Validation'])
@pytest.mark.parametrize('in_memory', [True, False])
def test_a_validation_folder_is_the_validation_set(tmp_path, name, in_memory):
    path = set_with_val(tmp_path, name)
    dls = data.cifar10_dataloaders(path, bs=6, valid=.5, in_memory=in_memory, augment='none', stats='unit', num_workers=0)
    assert list(dls.train_ds.items) == sources.train_files(path) and list(dls.valid_ds.items) == sources.validation_files(path)
    pixels = np.stack([np.array(Image.open(f)) for f in dls.valid_ds.items])
    x, y = dls.valid.one_batch()
    assert np.array_equal((torch.Tensor(x).cpu()*255).round().byte().permute(0, 2, 3, 1).numpy(), pixels) and y.tolist() == [0, 0, 0, 1, 1, 1]
    assert [len(data.split_loader(dls, split).dataset) for split in ('train', 'valid', 'test')] == [24, 6, 4]
    assert data.file_names(dls.valid_ds, path)[0] == f'{name}/cat/0000.png' and dls.data_info.n_valid == 6
    few = data.cifar10_dataloaders(path, bs=6, limit=10, in_memory=in_memory)
    assert sources.count_classes(few.train_ds.items) == {'cat': 5, 'dog': 5} and list(few.valid_ds.items) == list(dls.valid_ds.items)
    with pytest.warns(UserWarning, match='validates on the test images'): on_test = data.cifar10_dataloaders(path, valid='test', in_memory=in_memory)
    assert list(on_test.valid_ds.items) == sources.test_files(path) and list(on_test.train_ds.items) == sources.train_files(path)


def test_a_validation_folder_needs_memory_too(tmp_path):
    alone, beside = sources.describe_data(tiny_set(tmp_path/'alone', n_train=12)), sources.describe_data(set_with_val(tmp_path))
    assert [data._n_bytes(info, (32, 32), None, False) for info in (alone, beside)] == [24*3072, 30*3072]


# --- statistics

@pytest.mark.parametrize('stats, gray, want', [
    ('cifar10', False, data.cifar10_stats), ('unit', False, None), (None, True, None), ((.5, .2), True, ((.5,), (.2,))),
    ('imagenet', False, ((.485, .456, .406), (.229, .224, .225))),
])
def test_stats(stats, gray, want): assert data.channel_stats(stats, gray) == want


def test_gray_stats_are_weighted():
    (mean,), (std,) = data.channel_stats('cifar10', gray=True)
    assert mean == pytest.approx(.299*.4914 + .587*.4822 + .114*.4465) and .24 < std < .25


@pytest.mark.parametrize('stats, gray', [('cifar', False), ((.5, .2), False), (((.5, .5), (.2, .2)), True),
                                         (((.5,)*3, (.2, 0., .2)), False), ((.5, -.2), True)])
def test_bad_stats(stats, gray):
    with pytest.raises(ValueError, match='stats'): data.channel_stats(stats, gray)


# --- batches

def test_real_fastai_objects(dls, practice):
    assert isinstance(data.cifar10_datablock(), DataBlock) and isinstance(dls, DataLoaders)
    x, y = dls.one_batch()
    assert (x.shape, x.dtype, y.shape) == ((32, 3, 32, 32), torch.float32, (32,))
    assert list(dls.vocab) == list(cifar10_classes) and dls.c == 10
    assert dls.path == practice and dls.data_info == sources.describe_data(practice)


def test_pixels_are_normalized(dls):
    x, y = next(iter(dls.valid))
    mean, std = (torch.tensor(s)[:, None, None] for s in data.cifar10_stats)
    for file, got, label in zip(dls.valid_ds.items, x, y):
        raw = torch.tensor(np.array(Image.open(file))).permute(2, 0, 1)/255
        torch.testing.assert_close(torch.Tensor(got.cpu()), (raw - mean)/std)
        assert dls.vocab[label] == sources.class_of(file)
    raw = torch.tensor(np.array(Image.open(dls.valid_ds.items[0]))).permute(2, 0, 1)
    assert (dls.valid.decode((x, y))[0][0] - raw).abs().max() <= 1  # rounding


@pytest.mark.parametrize('stats', ['unit', None])
def test_unit_stats_only_divide(practice, stats):
    x = data.cifar10_dataloaders(practice, bs=200, stats=stats).valid.one_batch()[0]
    assert x.min() >= 0 and .9 < x.max() <= 1


@pytest.mark.parametrize('name', [n for n in list_augmentations() if n != 'none'])
def test_validation_images_are_untouched(practice, dls, name):
    same = data.cifar10_dataloaders(practice, bs=32, augment=name)
    assert torch.equal(same.valid.one_batch()[0], dls.valid.one_batch()[0])
    x, y = same.train.one_batch()
    assert x.shape == (32, 3, 32, 32) and torch.isfinite(x).all()


def test_labels_follow_their_images(practice):
    set_seed(3)
    dls = data.cifar10_dataloaders(practice, bs=180, augment='none', stats='unit')
    x, y = dls.train.one_batch()
    by_pixels = {np.array(Image.open(f)).tobytes(): sources.class_of(f) for f in sources.train_files(practice)}
    pixels = (torch.Tensor(x)*255).round().byte().permute(0, 2, 3, 1).numpy()
    assert [by_pixels[p.tobytes()] for p in pixels] == [dls.vocab[i] for i in y]
    assert y.tolist() != sorted(y.tolist())


def test_batches_follow_the_seed(practice):
    def first(seed):
        set_seed(seed)
        return data.cifar10_dataloaders(practice, bs=32).one_batch()
    (a, _), (b, _), (c, _) = first(1), first(1), first(2)
    assert torch.equal(a, b) and not torch.equal(a, c)


@forks
def test_workers_change_nothing(practice, dls):
    with_workers = data.cifar10_dataloaders(practice, bs=32, num_workers=2)
    for (x, y), (x2, y2) in zip(dls.valid, with_workers.valid, strict=True): assert torch.equal(x, x2) and torch.equal(y, y2)
    assert with_workers.train.fake_l.num_workers == (0 if sys.platform == 'darwin' else 2) and dls.train.fake_l.num_workers == 0 # fastai has none on a Mac


def test_what_workers_need_can_be_pickled(practice):
    dls = data.cifar10_dataloaders(practice, bs=32, num_workers=0)
    for dl in dls.loaders: next(iter(dl))  # a loop that was left early
    again = pickle.loads(pickle.dumps(dls.train.dataset))
    assert again[3][1] == dls.train.dataset[3][1]
    assert pickle.loads(pickle.dumps(dls.valid)).one_batch()[0].shape == (20, 3, 32, 32)
    assert pickle.loads(pickle.dumps(dls.train)).one_batch()[0].shape == (32, 3, 32, 32)
    labeled = data.labeled_dataloaders(practice/'test', dls.vocab, num_workers=0)
    assert pickle.loads(pickle.dumps(labeled.valid)).one_batch()[1].equal(labeled.valid.one_batch()[1])


def test_memory_reads_each_image_once_and_changes_nothing(practice, monkeypatch):
    opened, create = [], images.ColorImage.create.__func__
    monkeypatch.setattr(images.ColorImage, 'create', classmethod(lambda cls, fn, **kwargs: opened.append(fn) or create(cls, fn, **kwargs)))
    def epochs(**kwargs):
        set_seed(5)
        dls = data.cifar10_dataloaders(practice, bs=60, **kwargs)
        opened.clear()
        return [[x.clone() for x, _ in dls.train] for _ in range(2)], len(opened)
    (first, second), n_kept = epochs()
    (first2, second2), n_read = epochs(in_memory=False, num_workers=0)
    assert n_kept <= 201 and n_read == 360  # validation images, and one for the layout
    assert all(map(torch.equal, first, first2)) and all(map(torch.equal, second, second2))
    assert not torch.equal(torch.cat(first).sort(0)[0], torch.cat(second).sort(0)[0])  # augmented afresh


@pytest.mark.parametrize('kwargs', [{}, dict(gray=True, stats='unit'), dict(image_size=48)], ids=str)
def test_batches_from_memory_are_those_of_fastai(practice, kwargs):
    "Values, types and order, with and without labels, and the last batch as long as it is"
    ours = data.cifar10_dataloaders(practice, bs=48, augment='none', in_memory=True, **kwargs)
    theirs = data.cifar10_dataloaders(practice, bs=48, augment='none', in_memory=False, num_workers=0, **kwargs)
    files = sources.test_files(practice)
    for a, b in [(ours.valid, theirs.valid), *((ours.test_dl(files, with_labels=o), theirs.test_dl(files, with_labels=o)) for o in (True, False))]:
        for x, y in zip(a, b, strict=True):
            assert list(map(type, x)) == list(map(type, y)) and all(map(torch.equal, x, y))


def test_memory_keeps_what_fits_no_pattern(practice):
    "A data block of one's own: no labels of a class, images of fastai's type, and something that works on the items of a batch"
    from fastai.data.block import DataBlock, RegressionBlock
    from fastai.vision.data import ImageBlock
    from fasttransform import ItemTransform
    class AddOne(ItemTransform):
        def encodes(self, items): return [(x, y + 1) for x, y in items]
    block = DataBlock((ImageBlock, RegressionBlock), get_items=sources.train_files, get_y=lambda f: float(len(f.stem)))
    dls = block.dataloaders(practice, bs=8, dl_type=data.CachedDL, num_workers=0, before_batch=AddOne())
    x, y = dls.one_batch()
    assert x.shape == (8, 3, 32, 32) and y.dtype == torch.float
    by_hand = [dls.valid.do_item(i)[1].item() for i in range(3)]
    assert by_hand == [float(len(f.stem)) for f in dls.valid_ds.items[:3]] and dls.valid.one_batch()[1][:3].tolist() == [o + 1 for o in by_hand]


def test_workers_by_default(monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {1, 3}, raising=False)
    assert [data.default_workers(n) for n in (999, 1000, 50_000)] == [0, 2, 2]
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(64)), raising=False)
    assert data.default_workers(50_000) == 8


@pytest.mark.parametrize('name', ['bs', 'image_size', 'limit'])
@pytest.mark.parametrize('value, error', [(0, ValueError), (-8, ValueError), (True, ValueError), (2.5, TypeError), ('8', TypeError)])
def test_numbers_are_checked(practice, name, value, error):
    with pytest.raises(error, match=f'{name}={value!r}'): data.cifar10_dataloaders(practice, **{name: value})


def test_fewer_images_than_a_batch(practice):
    dls = data.cifar10_dataloaders(practice, bs=256)
    assert [len(x) for x, _ in dls.train] == [180] and len(dls.train) == 1
    assert [len(x) for x, _ in data.cifar10_dataloaders(practice, bs=100).train] == [100]  # the rest is dropped, as fastai does


@pytest.mark.parametrize('size, shape', [(64, (64, 64)), (16, (16, 16)), (32, (32, 32))])
def test_image_size(practice, size, shape):
    dls = data.cifar10_dataloaders(practice, bs=8, image_size=size)
    assert dls.one_batch()[0].shape == dls.valid.one_batch()[0].shape == (8, 3, *shape)
    assert any(isinstance(t, data.ResizeBatch) for t in dls.train.after_batch.fs) == (size != 32)


@pytest.mark.parametrize('fixed', [False, True])
def test_memory_and_loaders_hold_images_as_they_were_read(practice, fixed):
    if fixed:
        block = data.cifar10_datablock(augment='flip_crop', image_size=224, item_size=(32, 32))
        dls = block.dataloaders(practice, bs=8, dl_type=data.CachedDL, num_workers=0)
    else: dls = data.cifar10_dataloaders(practice, bs=8, image_size=224, augment='flip_crop')
    assert any(isinstance(t, images.FixedSize) for t in dls.train.after_item.fs)
    assert dls.one_batch()[0].shape == dls.valid.one_batch()[0].shape == (8, 3, 224, 224)
    for dl in dls:
        m = dl.dataset.cache
        pixels, classes = m.parts
        assert m.n == (len(dl.dataset) if fixed else 200) and pixels.rows.shape == (m.n, 32, 32, 3) and pixels.rows.dtype == torch.uint8
        assert classes.rows.shape == (m.n,) and sum(m.known) >= 8
    assert [t.pad for t in data.random_tfms(dls.train)] == [28]
    plain = data.cifar10_dataloaders(practice, bs=8, image_size=224, in_memory=False, num_workers=0)
    assert plain.train.do_item(0)[0].shape == (3, 32, 32)


@pytest.mark.parametrize('name', [n for n in list_augmentations() if n != 'none'])
def test_presets_fit_enlarged_batches(practice, name):
    x, _ = data.cifar10_dataloaders(practice, bs=8, image_size=48, augment=name).one_batch()
    assert x.shape == (8, 3, 48, 48) and torch.isfinite(x).all()


# --- another augmentation

def described(dl):
    "The names and settings of a loader's batch transforms"
    return [re.sub(' at 0x[0-9a-f]+', '', t.name) for t in dl.after_batch.fs]


@pytest.mark.parametrize('image_size', [None, 64])
@pytest.mark.parametrize('name', ['none', 'cutout', 'rotate_shift_flip', 'aug_transforms_crop'])
def test_set_augmentation_is_as_if_made_with_it(practice, name, image_size):
    kwargs = dict(bs=16, seed=3, image_size=image_size)
    old, fresh = (data.cifar10_dataloaders(practice, augment=a, **kwargs) for a in ('flip_crop', name))
    before = described(old.train)
    new = data.set_augmentation(old, name)
    assert described(new.train) == described(fresh.train) and described(old.train) == before != described(new.train)
    assert list(new.train_ds.items) == list(fresh.train_ds.items) and list(new.valid_ds.items) == list(fresh.valid_ds.items)
    assert (new.bs, new.drop_last, new.shuffle, type(new.train), new.device) == (16, True, True, data.CachedDL, old.device)
    assert isinstance(new, DataLoaders) and (new.path, new.data_info, list(new.vocab), new.c) == (old.path, old.data_info, list(old.vocab), 10)
    assert new.one_batch()[0].shape == fresh.one_batch()[0].shape and len(new.train) == len(fresh.train)


def test_set_augmentation_shares_memory_and_validation(practice, monkeypatch):
    old = data.cifar10_dataloaders(practice, bs=180, augment='rotate_shift_flip')
    batch = old.one_batch()[0]
    def fail(*args, **kwargs): raise AssertionError('read again')
    monkeypatch.setattr(images.ColorImage, 'create', fail)
    new = data.set_augmentation(old, 'none')
    assert new.valid is old.valid and new.train_ds is old.train_ds and new.train is not old.train and len(new) == len(old) == 2
    a, b = new.one_batch()[0], new.one_batch()[0]
    assert torch.equal(a.flatten(1).sort(0)[0], b.flatten(1).sort(0)[0])  # shuffled, and nothing else
    assert not torch.equal(a, b) and a.shape == batch.shape


def test_set_augmentation_takes_transforms_and_refuses_unknown_names(practice):
    old = data.cifar10_dataloaders(practice, bs=8, augment=[augmentation.FlipCrop(2), augmentation.Cutout(3)])
    new = data.set_augmentation(old, [augmentation.FlipCrop(7)])
    assert [t.pad for t in data.random_tfms(new.train)] == [7] and len(data.random_tfms(old.train)) == 2
    with pytest.raises(ValueError, match="Unknown augmentation 'flip'"): data.set_augmentation(old, 'flip')


def test_a_learner_goes_on_under_another_augmentation(practice):
    dls = data.cifar10_dataloaders(practice, bs=60, augment='flip_crop', device='cpu')
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.dls = data.set_augmentation(dls, 'aug_transforms_crop')
        learn.fit(1)
    assert len(learn.recorder.values) == 1 and all(learn.dls.train_ds.cache.known)


def test_gray(practice):
    dls = data.cifar10_dataloaders(practice, bs=8, gray=True)
    assert dls.one_batch()[0].shape == (8, 1, 32, 32)
    dls.show_batch()


@pytest.mark.parametrize('in_memory', [True, False])
@pytest.mark.parametrize('bs,drop_last,sizes', [
    (8, True, [8, 8]), (8, False, [8, 8, 4]), (10, False, [10, 10]), (19, False, [19]), (19, True, [19]), (50, True, [20]), (50, False, [20])])
def test_the_last_batch(practice, in_memory, bs, drop_last, sizes):
    "Of 20 training images; one of a single image is always left out"
    dls = data.cifar10_dataloaders(practice, bs=bs, limit=20, valid=10, drop_last=drop_last, in_memory=in_memory, num_workers=0)
    assert len(dls.train_ds) == 20
    assert [len(x) for x,_ in dls.train] == sizes and len(dls.train) == len(sizes)

@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'LA', '1'])
def test_odd_images_become_rgb(tmp_path, mode):
    path = tiny_set(tmp_path/'set', mode=mode)
    assert data.cifar10_dataloaders(path, bs=2, valid=.25).one_batch()[0].shape == (2, 3, 32, 32)


def test_other_classes_and_sizes(tmp_path):
    path = tiny_set(tmp_path/'set', classes=('apple', 'pear', 'zebra'), size=(24, 40), ending='.jpg')
    dls = data.cifar10_dataloaders(path, bs=4, valid=3)
    assert dls.one_batch()[0].shape == (4, 3, 24, 40) and list(dls.vocab) == ['apple', 'pear', 'zebra']
    assert data.cifar10_dataloaders(path, bs=4, valid=3, image_size=16).one_batch()[0].shape == (4, 3, 16, 16)


def test_images_of_different_sizes(tmp_path):
    path = tiny_set(tmp_path/'set')
    picture(size=(50, 20)).save(path/'train'/'cat'/'0002.png')
    assert sources.describe_data(path).size is None
    with pytest.raises(ValueError, match='differ in size: pass image_size'): data.cifar10_dataloaders(path)
    dls = data.cifar10_dataloaders(path, bs=6, valid=.25, image_size=24)
    assert dls.one_batch()[0].shape == (6, 3, 24, 24)


def test_an_image_of_another_size_can_be_predicted_on(dls):
    large, right = np.zeros((70, 50, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    for items in ([large, right], [Image.fromarray(large), Image.fromarray(right)], [PILImage.create(large)]):
        x, = dls.test_dl(items).one_batch()
        assert x.shape == (len(items), 3, 32, 32)


def test_test_images_come_in_order_and_unaugmented(practice, dls):
    set_seed(0)
    loader = data.test_dataloader(dls)
    batches = list(loader)
    files = sources.test_files(practice)
    assert [dls.vocab[i] for _, y in batches for i in y] == [sources.class_of(f) for f in files]
    assert list(loader.items) == files and sum(len(x) for x, _ in batches) == 50
    assert torch.equal(batches[0][0], next(iter(data.test_dataloader(dls)))[0])


def test_show_batch_and_summary(dls, practice, capsys):
    dls.show_batch(max_n=4)
    dls.valid.show_batch(max_n=4)
    data.cifar10_datablock(augment='rotate_shift_flip').summary(practice)
    assert 'Normalize' in capsys.readouterr().out


def test_a_learner_trains_predicts_and_is_tta_able(practice):
    dls = data.cifar10_dataloaders(practice, bs=32, device='cpu')
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)), cbs=[])
    learn.remove_cb(ProgressCallback)
    with learn.no_logging():
        learn.fit(1)
        preds, targets = learn.get_preds(dl=data.test_dataloader(dls))
        name, index, probs = learn.predict(sources.test_files(practice)[0])
        augmented, _ = learn.tta(n=2)
    assert preds.shape == (50, 10) and targets.tolist() == sorted(targets.tolist())
    assert name in dls.vocab and torch.allclose(probs, preds[0], atol=1e-5)
    assert augmented.shape == (20, 10)


# --- the real thing

@pytest.mark.skipif(not os.environ.get('CIFAR_FASTAI_DATA'), reason='CIFAR_FASTAI_DATA is not set')
@pytest.mark.slow
def test_real_data():
    path = sources.find_data()
    info = sources.describe_data(path)
    if info.n_train != 50_000: pytest.skip(f'CIFAR_FASTAI_DATA is {info.variant}, not CIFAR-10')
    assert info.variant in ('cifar10', 'cifar10-jpeg') and (info.n_test, info.size) == (10_000, (32, 32))
    assert info.classes == cifar10_classes
    train, valid = data.StratifiedSplitter()(sources.train_files(path))
    assert (len(train), len(valid)) == (45_000, 5_000)
    files = sources.train_files(path)
    assert set(sources.count_classes(files[i] for i in valid).values()) == {500}


@pytest.mark.parametrize('kwargs', [{}, dict(gray=True, stats='unit'), dict(image_size=48), dict(odd=True, image_size=24)], ids=str)
def test_quick_reading_gives_what_fastais_transforms_give(practice, tmp_path, kwargs):
    "The same tensors, of the same types and layout in memory, for training, validation and test images"
    kwargs, path = dict(kwargs), practice
    if kwargs.pop('odd', False):
        path = tmp_path/'odd'
        shutil.copytree(practice, path)
        for i, f in enumerate(sorted(path.rglob('*.png'))[::7]): Image.open(f).resize((20 + i % 9, 40)).save(f)
    dls = data.cifar10_dataloaders(path, bs=8, in_memory=True, **kwargs)
    test = data.test_dataloader(dls)
    for dl in (dls.train, dls.valid, test):
        assert isinstance(dl.dataset.cache, data.ImageCache)
        for i in range(0, len(dl.dataset), 3):
            for ours, theirs in zip(dl.do_item(i), TfmdDL.do_item(dl, i)):
                assert type(ours) is type(theirs) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
                steps = [[step for step, n in zip(t.stride(), t.shape) if n > 1] for t in (ours, theirs)]  # along one row there are none
                assert steps[0] == steps[1]


def test_shrinking_smooths_first():
    x = TensorImage(torch.zeros(1, 1, 80, 80))
    x[..., ::2, ::2] = x[..., 1::2, 1::2] = 1  # a chessboard of single pixels
    small = data.ResizeBatch(16)(x)
    assert small.shape == (1, 1, 16, 16) and (small[..., 1:-1, 1:-1] - .5).abs().max() < .02


def test_cutout_reaches_every_edge():
    torch.manual_seed(0)
    out = augmentation.Cutout(8)(TensorImage(torch.ones(2000, 1, 16, 16)), split_idx=0)
    starts = {(int(rows[0]), int(cols[0])) for rows, cols in (torch.where(x[0] == 0) for x in out)}
    assert starts == {(i, j) for i in range(9) for j in range(9)}


def test_large_images_are_read_at_the_size_they_are_used_at(tmp_path):
    "Whether all have one size or not: a batch of whole photos would fill the memory"
    for part, label, i in [(p, c, i) for p in ('train', 'test') for c in 'ab' for i in range(10)]:
        file = tmp_path/part/label/f'{i}.jpg'
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (200, 150), (10*i, 0, 0)).save(file)
    at = lambda size: data.cifar10_dataloaders(tmp_path, bs=4, image_size=size).valid.do_item(0)[0].shape[-2:]
    assert at(32) == (32, 32) and at(100) == (150, 200) and at(300) == (150, 200)
    dls = data.cifar10_dataloaders(tmp_path, bs=4, image_size=32)
    assert dls.data_info.size == (150, 200) and dls.one_batch()[0].shape[-2:] == (32, 32)


def test_files_of_every_kind_that_pillow_reads_are_found(tmp_path):
    "Those too that the system's table of types does not know"
    kinds = ['png', 'jpg', 'jp2', 'tga', 'qoi', 'webp', 'avif', 'jfif', 'pcx', 'ico', 'dds', 'tif', 'gif', 'bmp', 'ppm']
    folder = tmp_path/'train'/'cat'
    folder.mkdir(parents=True)
    Image.init()
    kinds = [kind for kind in kinds if Image.EXTENSION.get(f'.{kind}') in Image.SAVE]  # older versions of Pillow write fewer
    for kind in kinds: Image.new('RGB', (32, 32)).save(folder/f'image.{kind}')
    (folder/'notes.txt').write_text('no image')
    assert sorted(f.suffix[1:] for f in sources.train_files(tmp_path)) == sorted(kinds)
    assert not sources.describe_data(tmp_path, verify=True).unreadable


def test_a_class_folder_that_cannot_be_listed_is_an_error(practice, tmp_path, monkeypatch):
    shutil.copytree(practice, tmp_path/'mine')
    locked, real = str(tmp_path/'mine'/'train'/'cat'), os.scandir
    def scandir(path):
        if str(path) == locked: raise PermissionError(13, 'Permission denied', locked)
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(PermissionError, match='cat'): sources.train_files(tmp_path/'mine')


@pytest.mark.parametrize('in_memory', [True, False])
@pytest.mark.parametrize('folder', ['monday/photos', 'test/photos', 'valid/2024/may', 'train/new'])
def test_labeled_files_elsewhere_have_the_class_of_their_folder(practice, tmp_path, folder, in_memory):
    dls = data.cifar10_dataloaders(practice, bs=32, num_workers=0, in_memory=in_memory)
    files = []
    for c in ('dog', 'cat'):
        (tmp_path/folder/c).mkdir(parents=True)
        files.append(Path(shutil.copy(next((practice/'test'/c).iterdir()), tmp_path/folder/c)))
    for dl in (dls.test_dl(files, with_labels=True), data.image_loader(dls, files)):
        assert [dls.vocab[i] for i in dl.one_batch()[1]] == ['dog', 'cat']


@pytest.mark.parametrize('files, want', [
    ({}, float('inf')),
    ({'memory.max': 'max\n'}, float('inf')),
    ({'memory.max': '2147483648\n'}, 2**31),
    ({'memory/memory.limit_in_bytes': '1073741824\n'}, 2**30),
    ({'memory.max': '3000', 'memory/memory.limit_in_bytes': '9223372036854771712'}, 3000)])
def test_the_memory_of_a_container_is_a_limit(tmp_path, monkeypatch, files, want):
    (tmp_path/'memory').mkdir()
    for name, text in files.items(): (tmp_path/name).write_text(text)
    assert data._group_limit(tmp_path, tmp_path/'none') == want
    monkeypatch.setattr(data, '_group_limit', lambda: 3000)
    assert data._room() == 2400
    monkeypatch.setattr(data.shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(9000, 6000, 3000))
    assert [data._only_on_disk(n, whole) for n,whole in ((2400, True), (2400, False), (2401, True))] == [False, False, True]
    for n,whole in ((2401, False), (3000, True)):
        with pytest.raises(ValueError, match=r'container.* GiB of disk space are free in .*Use in_memory=False'): data._only_on_disk(n, whole)


@pytest.mark.parametrize('own, files', [
    ('0::/slurm/job_1/step_0\n', {'slurm/job_1/step_0/memory.max': 'max', 'slurm/job_1/memory.max': '3000', 'slurm/memory.max': 'max'}),
    ('3:cpu:/other\n4:memory:/job\n', {'memory/job/memory.limit_in_bytes': '3000', 'memory/other/memory.limit_in_bytes': '1000'})])
def test_the_memory_of_a_batch_job_is_a_limit(tmp_path, own, files):
    for name, text in files.items():
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text(text)
    (tmp_path/'own').write_text(own)
    assert data._group_limit(tmp_path, tmp_path/'own') == 3000


def test_images_that_memory_does_not_hold_are_cached_on_disk(practice, tmp_path, monkeypatch):
    "The same batches; and the file is one for the next run"
    def batch(**kwargs):
        set_seed(0)
        dls = data.cifar10_dataloaders(practice, bs=20, augment='none', device='cpu', **kwargs)
        return dls.train_ds.cache,[b for b in dls.train]
    _,whole = batch()
    monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path))
    monkeypatch.setattr(data, '_room', lambda: 1000)
    kept = None
    for turn in range(2):
        if turn: monkeypatch.setattr(data.shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(9000, 8000, 1000)) # the file takes the rest
        cache,found = batch(in_memory=True)
        assert all(a.equal(b) for x,y in zip(whole, found, strict=True) for a,b in zip(x, y)) and cache.on_disk and not cache.left
        file, = tmp_path.rglob('*.safetensors')
        kept = kept or cache.file.stat().st_mtime_ns
        assert file == cache.file and cache.file.stat().st_mtime_ns == kept and not list(tmp_path.rglob('*.part'))
    monkeypatch.setattr(data, '_room', lambda: 10**9)
    monkeypatch.setattr(data, '_worth_keeping', 100)
    cache,_ = batch()
    assert not cache.on_disk and cache.file.stat().st_mtime_ns == kept
