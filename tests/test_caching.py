"What is read once, kept in memory, and kept on disk"
import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import fastai.callback.progress  # noqa: F401  (gives learners `no_bar`)
from fastai.data.core import TfmdDL
from fastai.data.transforms import IntToFloatTensor, ToTensor
from fastai.learner import Learner
from fastai.torch_core import TensorCategory, TensorImage, set_seed
from fastai.vision.augment import Flip, Resize
from torch import nn

from cifar_fastai import caching, data, images, sources  # not their names: pytest would take `test_files` for a test
from cifar_fastai.caching import ItemCache, CachedDL, Rows

cpu, meta = torch.device('cpu'), torch.device('meta')


@pytest.mark.parametrize('t', [
    torch.rand(3, 4, 5), torch.rand(4, 5, 3).permute(2, 0, 1), torch.rand(4, 5, 1).permute(2, 0, 1), torch.tensor(3.), TensorImage(torch.rand(2, 3))], ids=lambda t: str(tuple(t.shape)))
def test_rows_are_laid_out_as_what_goes_in(t):
    rows = Rows(t, 4)
    rows[2], rows[0] = t, t + 1
    batch = rows[torch.tensor([0, 2, 2])]
    assert type(batch) is type(t) and batch[1].equal(t) and batch[2].equal(t) and batch[0].equal(t + 1)
    steps = lambda t: [step for step, n in zip(t.stride(), t.shape) if n > 1]  # along one row there are none
    assert steps(batch[1]) == steps(t) and rows.rows.is_contiguous()


class Squares:
    "Items that remember which of them were read"
    def __init__(self): self.seen = []
    def __call__(self, i):
        self.seen.append(i)
        return torch.full((2, 3), float(i)), TensorCategory(i**2)

def values(batch): return [part.flatten(1)[:, 0].tolist() if part.ndim > 1 else part.tolist() for part in batch]


def test_each_item_is_read_once():
    read = Squares()
    m = ItemCache(5, read)
    assert values(m.take([3, 1, 3])) == [[3, 1, 3], [9, 1, 9]] and m.left == 3
    assert values(m.take([1, 2])) == [[1, 2], [1, 4]] and m.left == 2
    m.take([0, 4])
    assert m.left == 0 and sorted(read.seen) == [0, 1, 2, 3, 3, 4] and type(m.take([0])[1]) is TensorCategory  # one more, for the layout


def test_an_item_that_cannot_be_read_is_asked_for_again():
    def read(i):
        if i == 1 and not healed: raise ValueError('item 1')
        return torch.tensor(i),
    healed, m = False, ItemCache(3, read)
    with pytest.raises(ValueError, match='item 1'): m.take([0, 1, 2])
    healed = True
    assert values(m.take([2, 1, 0])) == [[2, 1, 0]] and m.left == 0


@pytest.mark.parametrize('items', [[torch.tensor(3), torch.tensor(2.5)], [torch.ones(3), torch.ones(1)], [torch.ones(1), torch.ones(3)]], ids=['type', 'fewer', 'more'])
def test_items_that_are_not_alike_are_refused(items):
    with pytest.raises(ValueError, match='Item 1 has a tensor of shape .* same shape and dtype'): ItemCache(2, lambda i: (items[i],)).take([0, 1])


@pytest.mark.parametrize('item, kind', [(torch.ones(2), 'is a Tensor,'), ((torch.ones(2), 'cat'), r"is a tuple of \['Tensor', 'str'\],")])
def test_items_that_are_no_tuples_of_tensors_are_refused(item, kind):
    with pytest.raises(TypeError, match=f'Item 0 {kind} but only a tuple of tensors can be cached'): ItemCache(2, lambda i: item).take([0])


@pytest.mark.parametrize('in_memory', [True, False])
def test_other_transforms_of_items_are_applied(practice, in_memory):
    dls = data.cifar10_dataloaders(practice, bs=16, in_memory=in_memory, num_workers=0, device='cpu')
    before = dls.valid.one_batch()[0]
    smaller, seen = dls.valid.new(after_item=[Resize(16), ToTensor()]), set()
    assert smaller.one_batch()[0].shape[2:] == (16, 16) and dls.valid.one_batch()[0].equal(before)
    assert type(dls.valid.new(bs=8)) is type(dls.valid)
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)))
    learn.model.register_forward_hook(lambda model, x, y: seen.add(tuple(x[0].shape[2:])))
    with learn.no_bar(): learn.tta(n=1, item_tfms=[Resize(16), ToTensor()], batch_tfms=[IntToFloatTensor()])
    assert seen == {(16, 16)}
    if in_memory:
        with learn.no_bar(): assert learn.tta(n=1, batch_tfms=[IntToFloatTensor(), Flip()])[0].shape == (20, 10)


def test_batches_are_made_on_the_device_once_all_is_known():
    m = ItemCache(3, Squares())
    assert m.take([0, 1], meta)[0].device == cpu
    m.take([2])
    assert [part.device for part in m.take([0, 1], meta)] == [meta]*2 and m.take([0, 1], cpu)[0].device == cpu
    copies = m.copies[meta]
    assert m.take([1], meta) and m.copies[meta] is copies and m.parts[0].rows.device == cpu


def test_an_accelerator_without_room_is_spared(monkeypatch):
    m = ItemCache(3, Squares())
    m.take([0, 1, 2])
    gpu, n_bytes = torch.device('cuda'), 3*(6*4 + 8)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (2*n_bytes - 1, 10**6))
    assert caching._on_accelerator(m.parts, gpu) is None and m.take([1], gpu)[0].device == cpu
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (2*n_bytes, 10**6))
    if torch.cuda.is_available(): assert caching._on_accelerator(m.parts, gpu)[0].rows.is_cuda
    else:
        with pytest.raises((RuntimeError, AssertionError)): caching._on_accelerator(m.parts, gpu)  # it tries


def test_a_mac_without_room_is_spared(monkeypatch):
    m = ItemCache(3, Squares())
    m.take([0, 1, 2])
    monkeypatch.setattr(torch.mps, 'recommended_max_memory', lambda: 3*(6*4 + 8)*2 + 99)
    monkeypatch.setattr(torch.mps, 'driver_allocated_memory', lambda: 100)
    assert caching._on_accelerator(m.parts, torch.device('mps')) is None


def test_items_on_disk_need_no_memory_and_a_full_disk_is_told(tmp_path, monkeypatch):
    seen, reserve, into = [], caching._reserve, caching._map_into
    def watched(part, parts, about):
        seen.extend(p.rows.device.type for p in parts)
        return into(part, parts, about)
    monkeypatch.setattr(caching, '_map_into', watched)
    def full(f, size): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(caching, '_reserve', full)
    m = ItemCache(3, Squares(), tmp_path/'m.safetensors', on_disk=True)
    with pytest.raises(OSError, match='m.safetensors.*CIFAR_FASTAI_HOME'): m.take([0])
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(caching, '_reserve', reserve)
    for found,wanted in zip(m.take([2, 0, 1]), ItemCache(3, Squares()).take([2, 0, 1]), strict=True): assert found.equal(wanted)
    assert set(seen) == {'meta'} and [f.name for f in tmp_path.iterdir()] == ['m.safetensors']


def test_the_last_tenth_is_read_at_once():
    read = Squares()
    m = ItemCache(20, read)
    m.take(list(range(17)))
    assert m.left == 3
    m.take([17])
    assert m.left == 0 and values(m.take([19])) == [[19], [361]]


@pytest.fixture
def kept(tmp_path):
    "A file with three items in it"
    ItemCache(3, Squares(), tmp_path/'kept.safetensors', 'squares').take([0, 1, 2])
    return tmp_path/'kept.safetensors'

def test_the_file_is_there_when_all_is_known(tmp_path):
    m = ItemCache(3, Squares(), tmp_path/'new'/'it.safetensors', 'squares')
    m.take([0, 1])
    assert not (tmp_path/'new').exists()
    m.take([2])
    assert os.listdir(tmp_path/'new') == ['it.safetensors']

def test_the_next_memory_reads_the_file(kept):
    read = Squares()
    m = ItemCache(3, read, kept, 'squares')
    assert values(m.take([2, 0])) == [[2, 0], [4, 0]] and m.left == 0 and read.seen == [2] and bytes(m.known) == b'\1\1\1'

@pytest.mark.parametrize('damage', ['another', 'cut', 'noise', 'empty', 'folder', 'shape', 'part', 'plain', 'flipped'])
def test_a_file_that_does_not_fit_is_replaced(kept, damage):
    content, about, n = kept.read_bytes(), 'squares', 3
    if damage == 'another': about = 'circles'
    if damage == 'cut': kept.write_bytes(content[:-1])
    if damage == 'noise': kept.write_bytes(os.urandom(len(content)))
    if damage == 'empty': kept.write_bytes(b'')
    if damage == 'folder': kept.unlink(); kept.mkdir()
    if damage == 'shape': n = 4
    if damage == 'part': caching.save_file({'0': torch.rand(3, 2, 3)}, kept, dict(about=about))
    if damage == 'flipped': kept.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    if damage == 'plain': caching.save_file({'0': torch.rand(3, 2, 3), '1': torch.arange(3)}, kept)
    read = Squares()
    m = ItemCache(n, read, kept, about)
    assert values(m.take(list(range(n)))) == [list(range(n)), [i**2 for i in range(n)]] and sorted(set(read.seen)) == list(range(n))
    if damage != 'folder':
        again = Squares()
        ItemCache(n, again, kept, about).take([1])
        assert again.seen == [1]
    assert not list(kept.parent.glob('*.part'))

def test_mutations_of_the_file_change_no_item(kept):
    random, content = Random(0), kept.read_bytes()
    for _ in range(200):
        data = bytearray(content)
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        if random.random() < .3: del data[random.randrange(len(data)):]
        kept.write_bytes(data)
        assert values(ItemCache(3, Squares(), kept, 'squares').take([0, 1, 2])) == [[0, 1, 2], [0, 1, 4]]

@pytest.mark.parametrize('refusal', ['full', 'error', 'folder is a file'])
def test_without_room_there_is_no_file_and_no_error(tmp_path, monkeypatch, refusal):
    file = tmp_path/'sub'/'it.safetensors'
    if refusal == 'full': monkeypatch.setattr(shutil, 'disk_usage', lambda path: SimpleNamespace(free=100))
    if refusal == 'error': monkeypatch.setattr(caching, 'save_file', lambda *args, **kwargs: (_ for _ in ()).throw(OSError('no space left')))
    if refusal == 'folder is a file': (tmp_path/'sub').write_text('')
    m = ItemCache(3, Squares(), file)
    assert values(m.take([0, 1, 2]))[1] == [0, 1, 4] and m.left == 0 and not file.exists()
    assert refusal == 'folder is a file' or not os.listdir(tmp_path/'sub')

@pytest.mark.skipif(os.name != 'posix', reason='numbers of processes')
def test_what_a_killed_process_left_does_not_fill_the_disk(tmp_path, monkeypatch):
    "It is removed before the free space is looked at"
    code = f"""
import os, signal
from cifar_fastai.files import atomic_file
with atomic_file({str(tmp_path/'other.safetensors')!r}) as part: os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, '-c', code]).returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    monkeypatch.setattr(caching.shutil, 'disk_usage', lambda folder: SimpleNamespace(free=0 if left.exists() else 10**9))
    ItemCache(3, lambda i: (torch.ones(2)*i,), tmp_path/'a.safetensors').take([0, 1, 2])
    assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']

def test_what_is_mapped_is_not_written_to(kept):
    before = kept.read_bytes()
    m = ItemCache(3, Squares(), kept, 'squares')
    m.take([0])
    m.parts[0].rows.fill_(7)
    assert kept.read_bytes() == before

def test_a_memory_can_be_pickled(kept):
    m = ItemCache(3, Squares(), kept, 'squares')
    m.take([0], meta)
    assert values(pickle.loads(pickle.dumps(m)).take([2])) == [[2], [4]] and meta in m.copies


# --- a data set of images

@pytest.fixture
def large(practice, tmp_path, monkeypatch):
    "A practice set that counts as large, a cache folder, and the list of the files that are opened"
    path, opened, create = tmp_path/'large', [], images._NamesFile.create.__func__
    shutil.copytree(practice, path)
    monkeypatch.setattr(data, '_worth_keeping', 50)
    monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path/'home'))
    monkeypatch.setattr(images._NamesFile, 'create', classmethod(lambda cls, fn, **kwargs: opened.append(fn) or create(cls, fn, **kwargs)))
    return SimpleNamespace(path=path, opened=opened, files=lambda: sorted((tmp_path/'home'/'decoded').glob('*')))

def all_of(dls):
    "Every batch of an epoch: training, validation and test images"
    set_seed(3)
    return [*dls.train, *dls.valid, *data.test_dataloader(dls)]

def opened(large, **kwargs):
    "How many files were opened, to make the DataLoaders and go once through them"
    large.opened.clear()
    all_of(data.cifar10_dataloaders(large.path, **{**dict(bs=20), **kwargs}))
    return len(large.opened)

def test_the_second_start_opens_next_to_nothing(large):
    assert opened(large) >= 250 and [f.name.split('-')[1] for f in large.files()] == ['test', 'train']
    assert opened(large) < 10 and len(large.files()) == 2  # a few tell fastai what an item looks like

@pytest.mark.parametrize('kwargs', [{}, dict(limit=40), dict(valid=80, seed=3), dict(valid='test'), dict(image_size=48, stats='imagenet')], ids=str)
@pytest.mark.slow
def test_what_was_kept_gives_the_same_batches(large, kwargs):
    opened(large)
    with pytest.warns(UserWarning) if kwargs.get('valid') == 'test' else pytest.MonkeyPatch.context():
        set_seed(0); ours = data.cifar10_dataloaders(large.path, bs=20, **kwargs)
        set_seed(0); theirs = data.cifar10_dataloaders(large.path, bs=20, in_memory=False, num_workers=0, **kwargs)
    large.opened.clear()
    a = all_of(ours)
    n = len(large.opened)
    for x, y in zip(a, all_of(theirs), strict=True): assert list(map(type, x)) == list(map(type, y)) and all(map(torch.equal, x, y))
    assert n < 10 and len(large.opened) > 100

@pytest.mark.parametrize('change', ['date', 'content', 'name', 'fewer', 'more', 'class'])
@pytest.mark.slow
def test_a_changed_data_set_is_read_again(large, change):
    opened(large)
    file = sources.train_files(large.path)[7]
    if change == 'date': os.utime(file, (1, 1))
    if change == 'content': shutil.copy(sources.train_files(large.path)[150], file)
    if change == 'name': file.rename(file.with_stem('another'))
    if change == 'fewer': file.unlink()
    if change == 'more': shutil.copy(file, file.with_stem('another'))
    if change == 'class':
        for folder in ('train', 'test'): (large.path/folder/'cat').rename(large.path/folder/'zebra')
    assert opened(large) >= 190 and len(large.files()) == 2  # the old file is gone
    assert opened(large) < 10

@pytest.mark.skipif(os.name != 'posix', reason='st_ctime is the time of creation')
@pytest.mark.parametrize('which', [slice(None), slice(7, 8)], ids=['all', 'one'])
def test_other_pixels_under_the_same_names_sizes_and_dates_are_read(large, which):
    files = sources.train_files(large.path)
    for f in files: images.Image.open(f).save(f, compress_level=0)  # as large whatever it shows
    opened(large)
    for f in files[which]:
        before = f.stat()
        images.Image.fromarray(255 - np.array(images.Image.open(f))).save(f, compress_level=0)
        os.utime(f, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (f.stat().st_size, f.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    dls = data.cifar10_dataloaders(large.path, bs=20)
    x, _ = dls.train_ds.cache.take(range(200))
    for f, pixels in zip(files, x): assert np.array_equal(np.array(images.Image.open(f)), pixels.permute(1, 2, 0))

def test_what_is_kept_follows_the_fingerprint(large, monkeypatch):
    "That of the data set for the training images, which is computed once, and that of the files for others"
    opened(large)
    for where, another, n in ((sources.DataInfo, 'another', 200), (data, lambda files: 'another', 50)):
        monkeypatch.setattr(where, 'fingerprint', another)
        assert n <= opened(large) < n + 10

def test_other_sizes_and_gray_have_files_of_their_own(large):
    opened(large)
    assert opened(large, gray=True) >= 250 and len(large.files()) == 4
    for f in sources.train_files(large.path)[::9]: images.Image.open(f).resize((40, 20)).save(f)
    assert opened(large, image_size=24) >= 250 and len(large.files()) == 6
    assert opened(large, image_size=24) < 10

def test_some_of_the_images_are_read_alone(large):
    assert opened(large, limit=40) < 120 and [f.name.split('-')[1] for f in large.files()] == ['test']

def test_small_data_sets_leave_nothing_on_disk(large, monkeypatch):
    monkeypatch.setattr(data, '_worth_keeping', 5000)
    assert opened(large) >= 250 and opened(large) >= 250 and not large.files()

def test_two_data_sets_of_one_name(large, tmp_path):
    opened(large)
    shutil.copytree(large.path, tmp_path/'other'/'large')
    large.path = tmp_path/'other'/'large'
    assert opened(large) >= 250 and len(large.files()) == 4

def test_validation_shares_the_memory_of_its_folder(large):
    dls = data.cifar10_dataloaders(large.path, bs=20)
    assert dls.train_ds.cache is dls.valid_ds.cache and dls.train_ds.cache.n == 200
    assert sorted(dls.train_ds.rows + dls.valid_ds.rows) == list(range(200))
    a, b = (data.test_dataloader(dls) for _ in range(2))
    assert a.dataset.cache is b.dataset.cache is not dls.train_ds.cache

def test_files_of_another_folder_have_a_memory_of_their_own(large, practice):
    dls = data.cifar10_dataloaders(large.path, bs=20)
    files = [sources.test_files(large.path)[3], sources.test_files(practice)[5]]
    dl = data.image_loader(dls, files)
    x, y = dl.one_batch()
    assert dl.dataset.cache.n == 2 and [dls.vocab[i] for i in y] == list(map(sources.class_of, files))
    theirs = TfmdDL.do_item(dl, 1)
    assert dl.do_item(1)[0].equal(theirs[0])

@pytest.mark.parametrize('name', ['test', 'val'])
def test_files_of_another_data_set_where_this_one_has_no_such_folder(large, practice, tmp_path, name):
    shutil.rmtree(large.path/'test')
    if name == 'val': shutil.copytree(practice/'test', large.path/'val')
    dl = data.image_loader(data.cifar10_dataloaders(large.path, bs=20), [sources.test_files(practice)[5]])
    assert len(dl.one_batch()[0]) == 1 and dl.dataset.cache.n == 1

def test_worker_processes_make_their_batches_themselves(large, monkeypatch):
    dl = data.cifar10_dataloaders(large.path, bs=20).train
    dl.dataset.cache.take(range(200))
    asked = []
    monkeypatch.setattr(caching, 'get_worker_info', lambda: 'a worker')
    monkeypatch.setattr(data.ImageCache, 'take', lambda self, idxs, device=None: asked.append(device) or ItemCache.take(self, idxs))
    dl.one_batch()
    assert asked == [None]

def test_too_large_for_memory_is_refused(practice, monkeypatch):
    monkeypatch.setattr(os, 'sysconf', lambda name: {'SC_PHYS_PAGES': 150, 'SC_PAGE_SIZE': 4096}[name])
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: shutil._ntuple_diskusage(9000, 9000, 0))
    with pytest.raises(ValueError, match=r"80% of this machine's memory, or of what its container may use\), and 0.0 GiB of disk space are free in .*Use in_memory=False, or limit="): data.cifar10_dataloaders(practice, in_memory=True)
    assert data.cifar10_dataloaders(practice, limit=100, bs=10, in_memory=True).one_batch()
    assert isinstance(data.cifar10_dataloaders(practice, limit=100).train, CachedDL) and not isinstance(data.cifar10_dataloaders(practice).train, CachedDL)
    assert not isinstance(data.cifar10_dataloaders(practice, in_memory=False, num_workers=0).train, CachedDL)
