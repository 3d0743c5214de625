"Where images come from, how they are split, augmented and batched."
import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import re
import shutil
import sys
import tarfile
import zipfile
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
from PIL import Image, ImageOps
from torch.nn import functional as F

from cifar_fastai import data  # not its names: pytest would take `test_files` for a test

forks = pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')


# ---------------------------------------------------------------------------------------------------- helpers

def picture(seed=0, size=(32, 32), mode='RGB'):
    "Random pixels as a PIL image; `size` is height and width"
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def tiny_set(folder, n_train=4, n_test=2, classes=('cat', 'dog'), ending='.png', **kwargs):
    "Write a data set of random images"
    for split, n in (('train', n_train), ('test', n_test)):
        for k, c in enumerate(classes):
            (folder/split/c).mkdir(parents=True)
            for i in range(n): picture(100*k + i, **kwargs).save(folder/split/c/f'{i:04}{ending}')
    return folder


def tgz(file, members, mode='w:gz'):
    "Write a tar of (name or TarInfo, content)"
    with tarfile.open(file, mode) as tar:
        for member, content in members:
            member = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if member.isfile(): member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def special(kind, name='train/cat/link.png', target='/etc/passwd'):
    "A tar member that is no file"
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def pack(folder, kind):
    "Put a folder in an archive beside it"
    return Path(shutil.make_archive(folder.parent/f'{folder.name}-{kind}', kind, folder.parent, folder.name))


def tiny_batches(folder, n=3):
    "Write cifar-10-batches-py with two classes; returns the md5s"
    folder.mkdir(parents=True)
    content = {'batches.meta': dict(label_names=['cat', 'dog'])}
    for i, name in enumerate(('data_batch_1', 'data_batch_2', 'test_batch')):
        pixels = np.random.default_rng(i).integers(0, 256, (n, 3072), dtype=np.uint8)
        content[name] = dict(data=pixels, labels=[(i + j) % 2 for j in range(n)])
    for name, c in content.items(): (folder/name).write_bytes(pickle.dumps(c, protocol=4))
    return {name: hashlib.md5((folder/name).read_bytes()).hexdigest() for name in content}


def names(files): return sorted('/'.join(f.parts[-3:]) for f in files)


def leftovers(cache): return [p for p in (cache/'.unfinished').glob('*') if p.is_dir()] if cache.exists() else []


@pytest.fixture
def alone(tmp_path, monkeypatch):
    "A machine with no data on it and no network. Returns its cache folder."
    monkeypatch.delenv('CIFAR_FASTAI_DATA', raising=False)
    monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path/'cache'))
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'fastai'))
    monkeypatch.setattr(data, 'cifar10_archives', ())
    return tmp_path/'cache'


@pytest.fixture(scope='module')
def dls(practice):
    set_seed(0)
    return data.cifar10_dataloaders(practice, bs=32, num_workers=0)


# ---------------------------------------------------------------------------------------------------- layout

@pytest.mark.parametrize('file, want', [
    ('/a/train/cat/1.png', ('train', 'cat', '1.png')),
    ('/train/test/dog/1.png', ('test', 'dog', '1.png')),
    ('/x/val/dog/1.png', ('val', 'dog', '1.png')),
    ('/x/valid/dog/1.png', ('valid', 'dog', '1.png')),
    ('train/val/1.png', ('train', 'val', '1.png')),
    ('train/n01/images/1.JPEG', ('train', 'n01', 'images/1.JPEG')),
    ('train/train/1.png', ('train', 'train', '1.png')),
    ('train/cat/train/1.png', ('train', 'cat', 'train/1.png')),
    ('cat/1.png', ('', 'cat', '1.png')),
    ('1.png', ('', '', '1.png')),
])
def test_path_is_taken_apart(file, want): assert data.split_path(file) == want


def test_practice_set_is_described(practice):
    info = data.describe_data(practice, verify=True)
    assert (info.variant, info.n_train, info.n_test, info.size, info.unreadable) == ('synthetic', 200, 50, (32, 32), ())
    assert info.classes == data.cifar10_classes and info.path == practice


def test_fingerprint_tells_images_of_the_same_names_apart(practice, tmp_path):
    files, copy = data.train_files(practice), shutil.copytree(practice, tmp_path/'copy')
    original = data.describe_data(practice).fingerprint
    assert original == data.fingerprint(files[::-1]) == data.describe_data(copy).fingerprint != data.fingerprint(files[1:])
    file = data.train_files(copy)[0]  # which is among those that are read
    spoiled = bytearray(file.read_bytes())
    spoiled[-20] ^= 1  # of the same length
    file.write_bytes(spoiled)
    assert data.describe_data(copy).fingerprint != original
    file.write_bytes(files[0].read_bytes())
    info = data.describe_data(copy)
    assert info.fingerprint == original and info.matches(dict(variant='synthetic')) and info.matches(dict(variant='synthetic', fingerprint=original))
    assert not info.matches(dict(variant='cifar10')) and not info.matches(dict(variant='synthetic', fingerprint='0'*16))
    for f in data.train_files(copy):
        with Image.open(f) as image: image.save(f, compress_level=1)  # the same picture in other bytes
    assert any(a.read_bytes() != b.read_bytes() for a, b in zip(files, data.train_files(copy))) and data.describe_data(copy).fingerprint == original
    file.rename(file.with_name('another.png'))
    assert data.describe_data(copy).fingerprint != original


def test_a_folder_is_listed_again_only_when_it_changed(tmp_path, monkeypatch):
    path = tiny_set(tmp_path/'set')
    def age():
        for p in (path/'train').rglob('*'): os.utime(p, (1, 1))
        os.utime(path/'train', (1, 1))
    age()
    before, walked, walk = data.train_files(path), [], os.walk
    monkeypatch.setattr(os, 'walk', lambda top, **kwargs: walked.append(top) or walk(top, **kwargs))
    again = data.train_files(path)
    assert again == before and not walked
    again.clear()
    assert data.train_files(path) == before  # a list of one's own
    deeper = path/'train'/'cat'/'deeper'
    deeper.mkdir()
    picture().save(deeper/'0.png')
    assert len(data.train_files(path)) == len(before) + 1  # and while what changed is new, each time
    picture().save(deeper/'1.png')
    assert len(data.train_files(path)) == len(before) + 2
    shutil.rmtree(path/'train'/'cat')
    assert data.train_files(path) == [f for f in before if f.parent.name != 'cat']


def test_only_visible_images_count(tmp_path):
    path = tiny_set(tmp_path/'set')
    before = data.train_files(path)
    (path/'labels.txt').write_text('cat dog')
    (path/'.DS_Store').write_bytes(b'x')
    (path/'train'/'.ipynb_checkpoints').mkdir()
    picture().save(path/'train'/'.ipynb_checkpoints'/'0.png')
    picture().save(path/'train'/'stray.png')
    (path/'train'/'cat'/'notes.txt').write_text('x')
    picture().save(path/'train'/'cat'/'._0000.png')
    assert data.train_files(path) == before
    assert data.describe_data(path).classes == ('cat', 'dog')


def test_links_upper_case_and_subfolders_count(tmp_path):
    path = tiny_set(tmp_path/'set')
    elsewhere = tmp_path/'elsewhere'
    elsewhere.mkdir()
    picture().save(elsewhere/'A.PNG')
    picture().save(elsewhere/'b.WebP', 'webp')
    (path/'train'/'cat'/'more').symlink_to(elsewhere, target_is_directory=True)
    found = [f for f in data.train_files(path) if 'more' in f.parts]
    assert [f.name for f in found] == ['A.PNG', 'b.WebP']
    assert {data.class_of(f) for f in found} == {'cat'}


def test_files_are_sorted_by_path(practice):
    for files in (data.train_files(practice), data.test_files(str(practice))):
        assert files == sorted(files, key=lambda f: f.relative_to(practice).as_posix())


def broken(tmp_path, what):
    "A folder with one thing wrong"
    path = tmp_path/'set'
    if what == 'missing': return path
    if what == 'empty': path.mkdir(); return path
    if what == 'file': path.write_text('x'); return path
    tiny_set(path)
    if what == 'no train': shutil.rmtree(path/'train')
    if what == 'no classes': shutil.rmtree(path/'train'); (path/'train').mkdir()
    if what == 'class missing in test': shutil.rmtree(path/'test'/'dog')
    if what == 'extra class in test': shutil.copytree(path/'test'/'dog', path/'test'/'cow')
    if what == 'empty class': [f.unlink() for f in (path/'train'/'dog').iterdir()]
    return path


@pytest.mark.parametrize('what, error, text', [
    ('missing', FileNotFoundError, 'No such path'),
    ('empty', FileNotFoundError, 'is empty'),
    ('no train', FileNotFoundError, 'has no train folder'),
    ('no classes', ValueError, 'no class folders'),
    ('class missing in test', ValueError, 'dog only in train'),
    ('extra class in test', ValueError, 'cow only in test'),
    ('empty class', ValueError, 'train: no images in dog'),
])
def test_bad_folder_is_one_clear_error(tmp_path, what, error, text):
    path = broken(tmp_path, what)
    for call in (data.find_data, data.describe_data, data.cifar10_dataloaders):
        with pytest.raises(error, match=text) as e: call(path)
        assert str(path) in str(e.value) and '\n' not in str(e.value)


def test_a_file_is_not_a_data_set(tmp_path):
    with pytest.raises(ValueError, match='is not a folder'): data.describe_data(broken(tmp_path, 'file'))


def test_several_data_sets_in_a_folder(tmp_path):
    tiny_set(tmp_path/'a'); tiny_set(tmp_path/'b')
    with pytest.raises(ValueError, match='several data sets: a, b'): data.find_data(tmp_path)


def test_without_test_folder_training_works_and_testing_says_why(tmp_path):
    path = tiny_set(tmp_path/'set')
    shutil.rmtree(path/'test')
    assert data.describe_data(path).n_test == 0
    dls = data.cifar10_dataloaders(path, bs=2, valid=.25)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (6, 2)
    for call in (lambda: data.test_files(path), lambda: data.test_dataloader(dls), lambda: data.cifar10_dataloaders(path, valid='test')):
        with pytest.raises(FileNotFoundError, match='no test folder.*Training needs none'): call()


@pytest.mark.parametrize('name', ['val', 'valid'])
def test_val_serves_as_the_test_folder(tmp_path, name):
    path = tiny_set(tmp_path/'set', ending='.webp')
    (path/'test').rename(path/name)
    assert data.find_data(path) == path and data.test_folder(path) == path/name
    info = data.describe_data(path)
    assert (info.n_train, info.n_test, info.size, info.test_folder, info.unreadable) == (8, 4, (32, 32), name, ())
    assert names(data.test_files(path)) == [f'{name}/{c}/{i:04}.webp' for c in ('cat', 'dog') for i in range(2)]
    dls = data.cifar10_dataloaders(path, bs=2, valid=.25)
    assert len(dls.train_ds) + len(dls.valid_ds) == 8  # none of them from the test folder
    assert data.test_dataloader(dls).one_batch()[1].tolist() == [0, 0]
    with pytest.warns(UserWarning, match='validates on the test images'): dls = data.cifar10_dataloaders(path, bs=2, valid='test')
    assert list(dls.valid_ds.items) == data.test_files(path) and list(dls.train_ds.items) == data.train_files(path)


def test_the_test_folder_comes_before_val(tmp_path):
    path = tiny_set(tmp_path/'set')
    (path/'val'/'cow').mkdir(parents=True)
    assert data.describe_data(path).test_folder == 'test' and len(data.test_files(path)) == 4
    assert {f.parts[-3] for f in data.test_files(path)} == {'test'}
    shutil.rmtree(path/'test'), shutil.rmtree(path/'val')
    assert data.describe_data(path).test_folder == '' and data.test_folder(path) is None


def test_classes_missing_in_val_are_named(tmp_path):
    path = tiny_set(tmp_path/'set')
    shutil.rmtree(path/'test'/'dog'), (path/'test').rename(path/'val')
    with pytest.raises(ValueError, match='train and val have different class folders: dog only in train'): data.find_data(path)
    (path/'val'/'dog').mkdir()
    with pytest.raises(ValueError, match='val: no images in dog'): data.find_data(path)


def authors_tiny_imagenet(folder, classes=('n01', 'n02'), labels=None):
    "A data set as the authors of Tiny ImageNet pack it"
    tiny_set(folder, classes=classes, ending='.JPEG', size=(64, 64))
    shutil.rmtree(folder/'test')
    for c in classes:
        (folder/'train'/c/'images').mkdir()
        for f in (folder/'train'/c).glob('*.JPEG'): f.rename(f.parent/'images'/f.name)
        (folder/'train'/c/f'{c}_boxes.txt').write_text('0000.JPEG\t0\t0\t63\t63\n')
    for split in ('val', 'test'): (folder/split/'images').mkdir(parents=True)
    labels = labels or {f'val_{i}.JPEG': classes[i % 2] for i in range(5)}
    for i, name in enumerate(labels):
        if '/' not in name: picture(i, (64, 64)).save(folder/'val'/'images'/name)
    picture().save(folder/'test'/'images'/'test_0.JPEG')
    (folder/'val'/'val_annotations.txt').write_text(''.join(f'{n}\t{c}\t0\t32\t44\t62\n' for n, c in labels.items()))
    return folder


def test_tiny_imagenet_as_its_authors_pack_it(tmp_path, alone):
    path = authors_tiny_imagenet(tmp_path/'tiny-imagenet-200')
    file, before = pack(path, 'zip'), sorted(path.rglob('*'))
    with pytest.raises(ValueError, match='text file.*sort_tiny_imagenet.*or name the .zip'): data.find_data(path)
    assert sorted(path.rglob('*')) == before  # a user's folder is not touched
    for found in (data.find_data(file, quiet=True), data.find_data(data.sort_tiny_imagenet(path)), data.sort_tiny_imagenet(path)):
        info = data.describe_data(found)
        assert (info.classes, info.n_train, info.n_test, info.size, info.test_folder) == (('n01', 'n02'), 8, 5, (64, 64), 'val')
        assert {f.name: data.class_of(f) for f in data.test_files(found)} == {f'val_{i}.JPEG': ('n01', 'n02')[i % 2] for i in range(5)}
        assert (found/'unlabelled'/'images'/'test_0.JPEG').is_file()


@pytest.mark.parametrize('labels', [{'val_0.JPEG': 'n03'}, {'val_0.JPEG': '../n01'}, {'../../train/n01/images/0000.JPEG': 'n02'}], ids=str)
def test_annotations_that_lead_astray_are_refused(tmp_path, labels):
    path = authors_tiny_imagenet(tmp_path/'set', labels=labels)
    before = sorted(path.rglob('*'))
    with pytest.raises(ValueError, match='val_annotations.txt: .* is no file name and class'): data.sort_tiny_imagenet(path)
    assert sorted(path.rglob('*')) == before


def test_annotations_of_a_missing_image(tmp_path):
    path = authors_tiny_imagenet(tmp_path/'set')
    (path/'val'/'images'/'val_3.JPEG').unlink()
    with pytest.raises(FileNotFoundError, match='names val_3.JPEG'): data.sort_tiny_imagenet(path)


def test_unreadable_images_are_listed(tmp_path):
    path = tiny_set(tmp_path/'set', n_train=150)
    bad = [path/'train'/'cat'/'0007.png', path/'train'/'dog'/'0011.png', path/'test'/'cat'/'0000.png']
    bad[0].write_bytes(bad[0].read_bytes()[:500])   # cut short: the header is whole
    bad[1].write_text('no image')
    bad[2].write_bytes(b'')
    assert set(data.describe_data(path, verify=True).unreadable) == set(bad)
    assert data.describe_data(tiny_set(tmp_path/'whole'), verify=True).unreadable == ()


def test_an_image_that_breaks_later_is_named(tmp_path):
    path = tiny_set(tmp_path/'set', n_train=150)
    bad = path/'train'/'cat'/'0007.png'
    bad.write_bytes(bad.read_bytes()[:500])
    dls = data.cifar10_dataloaders(path, bs=270)
    with pytest.raises(ValueError, match=f'{bad} cannot be read as an image .*truncated'): list(dls.train) + list(dls.valid)


def test_unreadable_image_stops_dataloaders(tmp_path):
    path = tiny_set(tmp_path/'set')
    (path/'train'/'dog'/'0001.png').write_text('no image')
    with pytest.raises(ValueError, match='0001.png cannot be read as an image'): data.cifar10_dataloaders(path)


# ---------------------------------------------------------------------------------------------------- variants

def test_variants_of_complete_cifar10_and_fastais_copy(tmp_path, alone, monkeypatch):
    assert data._images_a_class == {'train': 5000, 'test': 1000}
    monkeypatch.setattr(data, '_images_a_class', {'train': 3, 'test': 2})
    def cifar(path, **kwargs): return tiny_set(path, 3, 2, data.cifar10_classes, **kwargs)
    png = cifar(tmp_path/'fastai'/'data'/'cifar10')
    assert data.describe_data(png).variant == 'cifar10'
    assert data.find_data() == data.find_data('cifar10', download=False) == png
    (png/'test'/'airplane'/'0000.png').unlink()  # as if fastai had been stopped while it unpacked
    assert data.describe_data(png).variant == 'cifar10-part-30-19'
    with pytest.raises(FileNotFoundError, match='no copy of CIFAR-10'): data.find_data('cifar10', download=False)
    assert data.describe_data(cifar(tmp_path/'any', ending='.jpg')).variant == 'cifar10-jpeg'
    assert data.describe_data(cifar(tmp_path/'big', size=(64, 64))).variant == 'big'


def test_other_sets_are_named_by_their_folder(tmp_path, monkeypatch):
    assert data.describe_data(tiny_set(tmp_path/'pets')).variant == 'pets'
    monkeypatch.chdir(tmp_path/'pets'/'train')
    assert data.describe_data('..').variant == 'pets'
    assert data.describe_data(tiny_set(tmp_path/'cifar10')).variant == 'cifar10-part-8-4'


@pytest.mark.parametrize('size', [(48, 40), (28, 28)])
def test_size_is_height_and_width(tmp_path, size):
    assert data.describe_data(tiny_set(tmp_path/'set', size=size)).size == size


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.webp'])
def test_size_is_that_of_upright_pictures(tmp_path, ending):
    folder, exif = tiny_set(tmp_path/'set', size=(48, 40), ending=ending), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for f in folder.rglob(f'*{ending}'): Image.open(f).save(f, exif=exif)
    assert data.describe_data(folder).size == (40, 48)
    assert data.ColourImage.create(next(folder.rglob(f'*{ending}'))).shape == (40, 48)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_tiffs_are_turned_once(tmp_path, orientation):
    "Pillow turns them as it reads them"
    folder, exif = tiny_set(tmp_path/'set', ending='.tif'), Image.Exif()
    exif[0x0112] = orientation
    for f in folder.rglob('*.tif'): picture(size=(24, 40)).save(f, exif=exif, compression='tiff_lzw')
    upright = ImageOps.exif_transpose(Image.open(f))
    found = data.ColourImage.create(f)
    assert np.array_equal(found, upright) and data.describe_data(folder).size == found.shape


@pytest.mark.skipif(os.name != 'posix', reason='links')
def test_links_that_lead_back_are_not_followed(tmp_path):
    folder = tiny_set(tmp_path/'set')
    for name in 'ab': (folder/'train'/'cat'/name).symlink_to('.')
    (folder/'train'/'dog'/'back').symlink_to(folder/'train'/'dog')
    assert data.describe_data(folder).n_train == 8 and len(set(data.train_files(folder))) == 8


@pytest.mark.parametrize('name', ['train', 'test', 'val', 'valid'])
def test_a_class_with_a_folder_of_the_name_of_a_split_is_refused(tmp_path, name):
    folder = tiny_set(tmp_path/'set')
    inner = folder/'train'/'cat'/name/'morning'
    inner.mkdir(parents=True)
    for f in sorted((folder/'train'/'cat').glob('*.png'))[:2]: f.rename(inner/f.name)
    with pytest.raises(ValueError, match=f'cat.{name}.*: within a class, no folder may be called'): data.describe_data(folder)
    assert data.describe_data(tiny_set(tmp_path/'names', classes=('train', 'test', 'val'))).classes == ('test', 'train', 'val')


def test_whatever_a_decoder_raises_the_file_is_named(tmp_path, monkeypatch):
    folder = tiny_set(tmp_path/'set')
    bad, open_image = sorted(folder.rglob('*.png'))[3], Image.open
    def fail(f, *args, **kwargs):
        if f == bad: raise RuntimeError('Failed to decode image')
        return open_image(f, *args, **kwargs)
    monkeypatch.setattr(data.Image, 'open', fail)
    assert data.describe_data(folder, verify=True).unreadable == (bad,)
    with pytest.raises(ValueError, match=f'{bad.name} cannot be read as an image .Failed to decode'): data.ColourImage.create(bad)


@pytest.mark.skipif(sys.platform != 'linux', reason='file names of any bytes')
@pytest.mark.parametrize('least', [1, 5000])
def test_file_names_need_not_be_text(tmp_path, monkeypatch, least):
    monkeypatch.setattr(data, '_worth_keeping', least)
    folder = tiny_set(tmp_path/'set')
    (folder/'train'/'cat'/'0000.png').rename(folder/'train'/'cat'/os.fsdecode(b'caf\xe9.png'))
    assert data.cifar10_dataloaders(folder, bs=4, valid=4).one_batch()[0].shape[0] == 4


# ---------------------------------------------------------------------------------------------------- archives

@pytest.mark.parametrize('kind', ['gztar', 'tar', 'zip'])
@pytest.mark.parametrize('nested', [True, False])
def test_archives_are_unpacked_once(tmp_path, alone, kind, nested):
    path = tiny_set(tmp_path/'pets')
    file = pack(path, kind) if nested else Path(shutil.make_archive(tmp_path/'flat', kind, path))
    found = data.find_data(file, quiet=True)
    assert names(data.train_files(found)) == names(data.train_files(path))
    assert [f.read_bytes() for f in data.test_files(found)] == [f.read_bytes() for f in data.test_files(path)]
    assert found.parent == alone and hashlib.sha256(file.read_bytes()).hexdigest()[:12] in found.name
    stamp = found.stat().st_mtime_ns
    assert data.find_data(str(file)) == found and found.stat().st_mtime_ns == stamp
    assert not leftovers(alone)


def test_another_content_under_the_same_name_is_another_set(tmp_path, alone):
    file = pack(tiny_set(tmp_path/'pets'), 'zip')
    first = data.find_data(file, quiet=True)
    shutil.rmtree(tmp_path/'pets')
    assert pack(tiny_set(tmp_path/'pets', n_train=5), 'zip') == file
    assert [len(data.train_files(p)) for p in (first, data.find_data(file, quiet=True))] == [8, 10]


@pytest.mark.parametrize('kind', ['gztar', 'tar', 'zip'])
@pytest.mark.parametrize('share', [.01, .2, .7])
def test_archive_cut_short(tmp_path, alone, kind, share):
    file = pack(tiny_set(tmp_path/'pets'), kind)
    content = file.read_bytes()
    file.write_bytes(content[:int(len(content)*share)])
    with pytest.raises(ValueError, match='is not a whole .*archive .*download it again') as e: data.find_data(file, quiet=True)
    assert str(file) in str(e.value) and '\n' not in str(e.value)
    assert not leftovers(alone) and [p.name for p in alone.iterdir()] == ['.unfinished']


def test_tar_cut_between_two_members(tmp_path):
    file = tgz(tmp_path/'a.tar', [('train/cat/1.png', b'x'*512), ('train/cat/2.png', b'y'*512)], 'w')
    file.write_bytes(file.read_bytes()[:1024])
    with pytest.raises(ValueError, match='end mark'): data.unpack_archive(file, tmp_path/'to')


def test_gzip_with_a_wrong_sum(tmp_path):
    file = pack(tiny_set(tmp_path/'pets'), 'gztar')
    content = bytearray(file.read_bytes())
    content[-6] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match='not a whole'): data.unpack_archive(file, tmp_path/'to')


@pytest.mark.parametrize('content', [b'', b'hello', b'\x89PNG' + bytes(600), bytes(2000)])
def test_no_archive(tmp_path, alone, content):
    file = tmp_path/'a.tgz'
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f'{file} is (not a whole|an empty)'): data.find_data(file, quiet=True)


def test_archive_without_a_data_set(tmp_path, alone):
    file = tgz(tmp_path/'a.tgz', [('readme.txt', b'x')])
    with pytest.raises(FileNotFoundError, match=f'{file} has no train folder'): data.find_data(file, quiet=True)
    assert not leftovers(alone)


unsafe = ['../evil.png', '/evil.png', 'train/../../evil.png', 'C:/evil.png', 'C:evil.png', '..\\evil.png', '\\\\host\\evil.png',
          special(tarfile.SYMTYPE), special(tarfile.LNKTYPE), special(tarfile.CHRTYPE), special(tarfile.FIFOTYPE)]

@pytest.mark.parametrize('member', unsafe, ids=lambda o: o if isinstance(o, str) else f'member of type {o.type.decode()}')
def test_unsafe_tar_is_refused_before_anything_is_written(tmp_path, alone, member):
    file = tgz(tmp_path/'a.tgz', [('train/cat/1.png', b'x'), (member, b'evil'), ('train/cat/2.png', b'x')])
    with pytest.raises(ValueError, match='was not unpacked: its member') as e: data.unpack_archive(file, tmp_path/'to')
    assert repr(getattr(member, 'name', member)) in str(e.value)
    assert not (tmp_path/'to').exists()
    with pytest.raises(ValueError, match='was not unpacked'): data.find_data(file, quiet=True)
    assert not list(tmp_path.rglob('evil*')) and not leftovers(alone)


@pytest.mark.parametrize('name', [m for m in unsafe if isinstance(m, str)])
def test_unsafe_zip_is_refused(tmp_path, name):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        z.writestr('train/cat/1.png', 'x')
        z.writestr(name, 'evil')
    with pytest.raises(ValueError, match='was not unpacked'): data.unpack_archive(tmp_path/'a.zip', tmp_path/'to')
    assert not (tmp_path/'to').exists() and not list(tmp_path.rglob('evil*'))


def test_zip_with_a_wrong_sum(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr('train/cat/1.png', 'content')
    (tmp_path/'a.zip').write_bytes((tmp_path/'a.zip').read_bytes().replace(b'content', b'contend'))
    with pytest.raises(ValueError, match='1.png is damaged'): data.unpack_archive(tmp_path/'a.zip', tmp_path/'to')
    assert not (tmp_path/'to').exists()


def test_link_in_zip_is_refused(tmp_path):
    link = zipfile.ZipInfo('train/cat/link.png')
    link.create_system, link.external_attr = 3, 0o120777 << 16
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr(link, '/etc/passwd')
    with pytest.raises(ValueError, match='is a link or a device'): data.unpack_archive(tmp_path/'a.zip', tmp_path/'to')


def test_encrypted_zip(tmp_path):
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z: z.writestr('train/cat/1.png', 'x')
    content = bytearray((tmp_path/'a.zip').read_bytes())
    content[content.index(b'PK\x01\x02') + 8] |= 1
    (tmp_path/'a.zip').write_bytes(content)
    with pytest.raises(ValueError, match='it is encrypted'): data.unpack_archive(tmp_path/'a.zip', tmp_path/'to')


# ---------------------------------------------------------------------------------------------------- several archives

def parts_of(path, top='tiny', **parts):
    "Archives of some folders of a data set each: name -> folders"
    for name, folders in parts.items():
        with tarfile.open(path.parent/f'{name}.tgz', 'w:gz') as tar:
            for f in folders: tar.add(path/f, f'{top}/{f}' if top else f)
    return [path.parent/f'{name}.tgz' for name in parts]


@pytest.fixture
def three_parts(tmp_path):
    "A data set with val, and it in three archives: some classes, the others, and val"
    path = tiny_set(tmp_path/'tiny', classes=('a', 'b', 'c'), ending='.webp')
    (path/'test').rename(path/'val')
    (path/'labels.txt').write_text('a b c')
    return path, parts_of(path, **{'tiny-train-a': ['labels.txt', 'train/a', 'train/b'], 'tiny-train-b': ['labels.txt', 'train/c'], 'tiny-val': ['val']})


def test_several_archives_are_one_data_set(alone, three_parts, monkeypatch):
    path, files = three_parts
    found = data.find_data(files, quiet=True)
    assert found.parent == alone and found.name.startswith('tiny-') and len(found.name) == len('tiny-') + 12
    info = data.describe_data(found)
    assert (info.classes, info.n_train, info.n_test, info.test_folder) == (('a', 'b', 'c'), 12, 6, 'val')
    assert [f.read_bytes() for f in data.train_files(found)] == [f.read_bytes() for f in data.train_files(path)]
    assert (found/'labels.txt').is_file() and not leftovers(alone)
    stamp = found.stat().st_mtime_ns
    joined = os.pathsep.join(map(str, files))
    monkeypatch.setenv('CIFAR_FASTAI_DATA', joined)
    for again in (tuple(reversed(files)), list(map(str, files)), joined, None): assert data.find_data(again, quiet=True) == found
    assert found.stat().st_mtime_ns == stamp
    assert data.cifar10_dataloaders(joined, bs=2, valid=3).data_info == info
    assert data.find_data(files[:2], quiet=True) != found


def test_archives_with_and_without_a_folder_around(alone, three_parts, tmp_path):
    path, files = three_parts
    flat = parts_of(path, top='', val=['val'])
    assert len(data.test_files(data.find_data([*files[:2], *flat], quiet=True))) == 6


def test_an_archive_of_several_data_sets_is_refused_beside_others_too(tmp_path, alone):
    tgz(tmp_path/'more.tgz', [(f'{part}/train/a/{part}.png', b'x') for part in ('one', 'two')])
    tgz(tmp_path/'test.tgz', [('test/a/1.png', b'x')])
    with pytest.raises(ValueError, match='more.tgz holds several data sets: one, two. Pack each'): data.find_data([tmp_path/'more.tgz', tmp_path/'test.tgz'], quiet=True)
    assert not leftovers(alone)


def test_one_archive_in_a_list_is_that_archive(tmp_path, alone):
    file = pack(tiny_set(tmp_path/'pets'), 'zip')
    assert data.find_data([file], quiet=True) == data.find_data(file, quiet=True)


def test_a_path_with_a_separator_in_its_name(tmp_path, practice, monkeypatch):
    odd = tmp_path/f'a{os.pathsep}b'
    shutil.copytree(practice, odd)
    assert data.find_data(str(odd)) == odd
    with pytest.raises(FileNotFoundError, match='No such path: .*http'): data.find_data('http://example.org/a.tgz')


@pytest.mark.parametrize('which', [(0, 1, 2, 0), (0, 0)])
def test_an_image_in_two_archives_is_refused(alone, three_parts, which):
    _, files = three_parts
    with pytest.raises(ValueError, match='tiny-train-a.tgz holds train/[ab]/000.*so does an archive before it'):
        data.find_data([files[i] for i in which], quiet=True)
    assert not leftovers(alone) and [p.name for p in alone.iterdir()] == ['.unfinished']


@pytest.mark.parametrize('wrong, error, text', [
    ([], ValueError, 'empty list'), (5, TypeError, 'source=5'),
    (['{0}', '{parent}/nowhere.tgz'], FileNotFoundError, 'No such path: .*nowhere.tgz'),
    ('{0}' + os.pathsep + '{parent}/nowhere.tgz', FileNotFoundError, 'No such path: .*nowhere.tgz'),
    (['{0}', '{parent}'], ValueError, 'is a folder: several sources must all be archives'),
    (['{2}', '{parent}/notes.tgz'], FileNotFoundError, 'notes.tgz has no train folder'),
    (['{1}', '{2}'], ValueError, r'tiny-train-b.tgz \+ .*tiny-val.tgz: train and val have different class folders: a, b only in val'),
    (['{0}', '{parent}/cut.tgz'], ValueError, 'cut.tgz is not a whole'),
    (['{0}', '{parent}/evil.tgz'], ValueError, 'evil.tgz was not unpacked'),
])
def test_bad_lists_of_archives(alone, three_parts, wrong, error, text):
    path, files = three_parts
    tgz(path.parent/'notes.tgz', [('notes.txt', b'x')])
    tgz(path.parent/'evil.tgz', [('train/c/1.webp', b'x'), ('../train/c/2.webp', b'x')])
    (path.parent/'cut.tgz').write_bytes(files[1].read_bytes()[:-100])
    def fill(name): return name.format(*files, parent=path.parent)
    with pytest.raises(error, match=text) as e:
        data.find_data(fill(wrong) if isinstance(wrong, str) else list(map(fill, wrong)) if isinstance(wrong, list) else wrong, quiet=True)
    assert '\n' not in str(e.value) and not leftovers(alone)


@pytest.mark.parametrize('names, want', [(['tiny-200-train-a', 'tiny-200-train-b', 'tiny-200-val'], 'tiny-200'), (['pets-train', 'pets-test'], 'pets'),
                                         (['b', 'a'], 'a'), (['pets', 'pets2'], 'pets'), (['pets-'], 'pets-')])
def test_common_name(names, want): assert data._common_name(names) == want


# ---------------------------------------------------------------------------------------------------- the authors' files

@pytest.mark.parametrize('how', ['folder', 'folder above', 'archive'])
def test_batches_become_images(tmp_path, alone, monkeypatch, how):
    folder = tmp_path/'raw'/'cifar-10-batches-py'
    monkeypatch.setattr(data, 'cifar10_batches', tiny_batches(folder))
    source = {'folder': folder, 'folder above': folder.parent, 'archive': pack(folder, 'gztar')}[how]
    found = data.find_data(source, quiet=True)
    assert found.parent == alone
    assert names(data.train_files(found)) == ['train/cat/0_cat.png', 'train/cat/2_cat.png', 'train/cat/4_cat.png',
                                              'train/dog/1_dog.png', 'train/dog/3_dog.png', 'train/dog/5_dog.png']
    batch = pickle.loads((folder/'data_batch_2').read_bytes())
    want = batch['data'][1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (np.array(Image.open(found/'train'/'cat'/'4_cat.png')) == want).all()
    assert data.find_data(source, quiet=True) == found and not leftovers(alone)


def test_wrong_checksum_of_a_batch(tmp_path, alone, monkeypatch):
    folder = tmp_path/'cifar-10-batches-py'
    monkeypatch.setattr(data, 'cifar10_batches', tiny_batches(folder))
    assert data.find_data(folder, quiet=True)
    with (folder/'test_batch').open('ab') as f: f.write(b'x')
    with pytest.raises(ValueError, match='test_batch has the wrong checksum'): data.find_data(folder, quiet=True)
    with pytest.raises(ValueError, match='wrong checksum'): data.find_data(pack(folder, 'gztar'), quiet=True)
    (folder/'test_batch').unlink()
    with pytest.raises(FileNotFoundError, match='lacks test_batch'): data.find_data(folder, quiet=True)
    assert not leftovers(alone)


class Evil:
    def __reduce__(self): return os.mkdir, ('evil',)


def test_nothing_but_arrays_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    md5s = tiny_batches(tmp_path/'batches')
    (tmp_path/'batches'/'test_batch').write_bytes(pickle.dumps(dict(data=Evil(), labels=[]), protocol=4))
    md5s['test_batch'] = hashlib.md5((tmp_path/'batches'/'test_batch').read_bytes()).hexdigest()
    with pytest.raises(ValueError, match='mkdir, which no array needs'): data.convert_batches(tmp_path/'batches', tmp_path/'to', md5s)
    assert not (tmp_path/'evil').exists() and not (tmp_path/'to').exists()


def test_unverified_is_not_unpickled(tmp_path, monkeypatch):
    tiny_batches(tmp_path/'batches')
    read = []
    monkeypatch.setattr(data, '_ArrayUnpickler', lambda *a, **k: read.append(a))
    with pytest.raises(ValueError, match='published c99cafc1'): data.convert_batches(
        tmp_path/'batches', tmp_path/'to', {'data_batch_1': data.cifar10_batches['data_batch_1']})
    assert not read


def test_published_checksums():
    assert len(data.cifar10_batches) == 7
    assert data.cifar10_batches['data_batch_1'] == 'c99cafc152244af753f735de768cd75f'
    assert data.cifar10_batches['batches.meta'] == '5ff9c542aee3614f3951f8cda6e48888'


# ---------------------------------------------------------------------------------------------------- whole or not at all

@forks
def test_two_processes_unpack_one_archive(tmp_path, alone):
    file = pack(tiny_set(tmp_path/'pets', n_train=50), 'gztar')
    context = multiprocessing.get_context('fork')
    found, barrier = context.Queue(), context.Barrier(2)
    def run():
        barrier.wait()
        path = data.find_data(file, quiet=True)
        found.put((path, len(data.train_files(path))))
    processes = [context.Process(target=run) for _ in range(2)]
    for p in processes: p.start()
    assert found.get(timeout=60) == found.get(timeout=60) == (data.find_data(file), 100)
    for p in processes: p.join(60)
    assert not leftovers(alone)


def test_full_disk_is_a_clear_error(tmp_path, alone, monkeypatch):
    file = pack(tiny_set(tmp_path/'pets'), 'zip')
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(data.shutil, 'copyfileobj', full)
    with pytest.raises(OSError, match='No space left.*set CIFAR_FASTAI_HOME'): data.find_data(file, quiet=True)
    assert not leftovers(alone)


def test_unwritable_cache_is_a_clear_error(tmp_path):
    file = pack(tiny_set(tmp_path/'pets'), 'zip')
    with pytest.raises(OSError, match='CIFAR_FASTAI_HOME'): data.find_data(file, root=file/'cache', quiet=True)


# ---------------------------------------------------------------------------------------------------- downloads

@pytest.fixture
def published(tmp_path):
    "A small archive and how it would be published: content, function that makes an `Archive` from an address"
    path = tiny_set(tmp_path/'cifar10')
    content = pack(path, 'gztar').read_bytes()
    md5 = hashlib.md5(content[:2**20]).hexdigest()
    return content, lambda url: data.Archive(url, len(content), md5, first_mib=True, counts=(8, 4))


def test_known_archives():
    first, *others = data.cifar10_archives
    assert (first.n_bytes, first.first_mib, first.counts) == (168_168_549, True, (50_000, 10_000))
    assert {(a.n_bytes, a.md5, a.first_mib) for a in others} == {(170_498_071, 'c58f30108f718f92721af3b95e74349a', False)}
    assert 'toronto' in others[-1].url and len(others) == 2


def test_download(tmp_path, published, http_server, capsys):
    content, archive = published
    url = http_server.answer('/cifar10.tgz', content)
    found = data.download_cifar10(tmp_path/'cache'/'cifar10', [archive(url)])
    assert len(data.train_files(found)) == 8 and not leftovers(found.parent)
    assert '100%' in capsys.readouterr().err  # the progress bar
    data.download_cifar10(found, [archive(url)])
    assert http_server.asked == ['/cifar10.tgz']


def test_quiet_download_prints_nothing(tmp_path, published, http_server, capsys):
    content, archive = published
    data.download_cifar10(tmp_path/'cache'/'cifar10', [archive(http_server.answer('/cifar10.tgz', content))], quiet=True)
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('bad, reason', [
    (404, 'HTTP 404'),
    (503, 'HTTP 503'),
    (b'<html>Please log in</html>', 'wrong size: 26 bytes'),
    (None, 'wrong checksum'),
    ('dead', 'ConnectionError'),
])
def test_next_mirror_after_a_bad_one(tmp_path, published, http_server, capsys, bad, reason):
    content, archive = published
    if bad is None: bad = bytes([content[0] ^ 1]) + content[1:]
    first = 'http://127.0.0.1:9/cifar10.tgz' if bad == 'dead' else http_server.answer('/bad.tgz', bad)
    found = data.download_cifar10(tmp_path/'cache'/'cifar10', [archive(first), archive(http_server.answer('/good.tgz', content))])
    assert len(data.train_files(found)) == 8 and not leftovers(found.parent)
    said = capsys.readouterr().err
    assert 0 <= said.find(f'Downloading {first} (') < said.find(f'That failed: {reason}')


def test_wrong_content_behind_a_right_first_megabyte(tmp_path, published, http_server, capsys):
    content, archive = published
    url = http_server.answer('/cifar10.tgz', content)
    wrong = data.Archive(url, len(content), archive(url).md5, first_mib=True, counts=(50_000, 10_000))
    found = data.download_cifar10(tmp_path/'cache'/'cifar10', [wrong, archive(url)])
    assert len(data.train_files(found)) == 8
    assert 'holds 8 and 4 images' in capsys.readouterr().err


def test_dropped_connection_is_tried_again(tmp_path, published, http_server, capsys):
    content, archive = published
    url = http_server.answer('/cifar10.tgz', (content, len(content)//2), content)
    found = data.download_cifar10(tmp_path/'cache'/'cifar10', [archive(url)])
    assert len(data.train_files(found)) == 8 and http_server.asked == ['/cifar10.tgz']*2
    assert 'again from the start' in capsys.readouterr().err


def test_authors_archive_is_converted(tmp_path, http_server, monkeypatch):
    folder = tmp_path/'cifar-10-batches-py'
    monkeypatch.setattr(data, 'cifar10_batches', tiny_batches(folder))
    content = pack(folder, 'gztar').read_bytes()
    archive = data.Archive(http_server.answer('/a.tar.gz', content), len(content), hashlib.md5(content).hexdigest(), counts=(6, 3))
    found = data.download_cifar10(tmp_path/'cache'/'cifar10', [archive], quiet=True)
    assert data.count_classes(data.train_files(found)) == {'cat': 3, 'dog': 3}


def test_no_mirror_works(tmp_path, alone, http_server, published):
    content, archive = published
    urls = [http_server.answer('/a.tgz', 404), http_server.answer('/b.tgz', (content, 10))]
    with pytest.raises(ConnectionError) as e: data.download_cifar10(alone/'cifar10', map(archive, urls), quiet=True)
    for part in (*urls, 'HTTP 404', 'by hand', 'CIFAR_FASTAI_DATA', 'synthetic'): assert part in str(e.value)
    assert not (alone/'cifar10').exists() and not leftovers(alone)


# ---------------------------------------------------------------------------------------------------- what find_data chooses

def test_order_of_choice(tmp_path, alone, monkeypatch, http_server, published, practice):
    content, archive = published
    url = http_server.answer('/cifar10.tgz', content)
    monkeypatch.setattr(data, 'cifar10_archives', (archive(url),))
    downloaded = data.find_data(quiet=True)
    assert downloaded == alone/'cifar10' and len(data.train_files(downloaded)) == 8
    assert data.find_data(quiet=True) == downloaded and http_server.asked == ['/cifar10.tgz']
    monkeypatch.setenv('CIFAR_FASTAI_DATA', str(practice))
    assert data.find_data() == practice
    assert data.find_data('cifar10') == downloaded
    monkeypatch.setenv('CIFAR_FASTAI_DATA', str(tmp_path/'nowhere'))
    with pytest.raises(FileNotFoundError, match=r"CIFAR_FASTAI_DATA is '.*nowhere'\. No such path"): data.find_data()


@pytest.mark.parametrize('download', [True, False])
def test_practice_set_comes_last_and_loudly(alone, monkeypatch, capsys, download):
    monkeypatch.setattr(data, 'cifar10_archives', (data.Archive('http://127.0.0.1:9/a.tgz', 1, ''),))
    small = data.make_synthetic
    monkeypatch.setattr(data, 'make_synthetic', lambda path: small(path, n_train=2, n_test=1))
    assert data.describe_data(data.find_data(download=download, quiet=True)).variant == 'synthetic'
    out, err = capsys.readouterr()
    assert 'NO REAL DATA' in err and not out


def test_what_failed_is_said_once_and_not_tried_again(alone, monkeypatch, capsys):
    urls = 'http://no-such-host.invalid/a.tgz', 'http://127.0.0.1:9/b.tgz'
    monkeypatch.setattr(data, 'cifar10_archives', tuple(data.Archive(url, 1, '') for url in urls))
    small = data.make_synthetic
    monkeypatch.setattr(data, 'make_synthetic', lambda path: small(path, n_train=2, n_test=1))
    data.find_data()
    said = capsys.readouterr().err.splitlines()
    assert [said.count(f'Downloading {url} (0 MB)') for url in urls] == [1, 1] and sum('ConnectionError' in line for line in said) == 2
    assert any(line.startswith("That failed: ConnectionError: Failed to resolve 'no-such-host.invalid'") for line in said) and all(len(line) < 200 for line in said)
    data.find_data()
    again = capsys.readouterr().err
    assert 'Downloading' not in again and 'a new process tries it again' in again and 'NO REAL DATA' in again


def test_cifar10_asked_for_by_name_is_not_replaced(alone, monkeypatch):
    monkeypatch.setattr(data, 'cifar10_archives', (data.Archive('http://127.0.0.1:9/a.tgz', 1, ''),))
    with pytest.raises(ConnectionError, match='127.0.0.1:9'): data.find_data('cifar10', quiet=True)


def test_home_and_relative_paths(tmp_path, practice, monkeypatch):
    monkeypatch.chdir(practice.parent)
    assert data.find_data('practice') == practice
    monkeypatch.setenv('HOME', str(practice.parent))
    assert data.find_data('~/practice') == practice


# ---------------------------------------------------------------------------------------------------- splits

def file_list(**sizes): return [Path(f'/x/train/{c}/{i:04}.png') for c, n in sizes.items() for i in range(n)]


@pytest.mark.parametrize('valid', [.1, .25, 1/3, .9, 7, 60, 110])
@pytest.mark.parametrize('sizes', [dict(a=40, b=40, c=40), dict(a=100, b=15, c=5)], ids=str)
def test_split_is_a_stratified_partition(valid, sizes):
    files = file_list(**sizes)
    train, valid_idx = data.StratifiedSplitter(valid)(files)
    assert sorted(train + valid_idx) == list(range(120))
    assert len(valid_idx) == (valid if isinstance(valid, int) else round(valid*120))
    counts = data.count_classes(files[i] for i in valid_idx)
    for c, n in sizes.items():
        assert 1 <= counts[c] <= n - 1
        assert abs(counts[c] - n*len(valid_idx)/120) < 3 if min(sizes.values()) == 5 else abs(counts[c] - n*len(valid_idx)/120) < 1


def test_split_depends_on_class_name_and_seed_only():
    files = file_list(cat=30, dog=30)
    def chosen(files, **kwargs): return {data.split_path(files[i])[1:] for i in data.StratifiedSplitter(.2, **kwargs)(files)[1]}
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


@pytest.mark.parametrize('valid, text', [
    (0., 'valid=0.0 means 0 of 80'), (1., 'means 80 of 80'), (-.1, 'means -8'), (1.5, 'means 120'), (.01, 'use between 2 and 78'),
    (1, 'means 1 of 80'), (79, 'means 79 of 80'), (0, 'means 0'),
])
def test_impossible_splits(valid, text):
    with pytest.raises(ValueError, match=text): data.StratifiedSplitter(valid)(file_list(cat=40, dog=40))


def test_lone_image_and_wrong_type():
    with pytest.raises(ValueError, match='class dog has only one image'): data.StratifiedSplitter(.1)(file_list(cat=40, dog=1))
    with pytest.raises(TypeError): data.StratifiedSplitter([1])(file_list(cat=40, dog=40))
    with pytest.raises(ValueError, match="valid='tets'"): data.cifar10_datablock(valid='tets')


def test_validating_on_the_test_set_is_possible_and_warned_about(practice):
    with pytest.warns(UserWarning, match='validates on the test images'): dls = data.cifar10_dataloaders(practice, valid='test', bs=16)
    assert list(dls.valid_ds.items) == data.test_files(practice) and list(dls.train_ds.items) == data.train_files(practice)


def test_limit_keeps_validation_and_balance(practice):
    whole, small, all_of_it = (data.cifar10_dataloaders(practice, bs=16, limit=n) for n in (None, 50, 10_000))
    assert list(small.valid_ds.items) == list(whole.valid_ds.items)
    assert set(data.count_classes(small.train_ds.items).values()) == {5}
    assert set(small.train_ds.items) < set(whole.train_ds.items) == set(all_of_it.train_ds.items)
    with pytest.raises(ValueError, match='limit=5 means 5 of 180'): data.cifar10_dataloaders(practice, limit=5)


# ---------------------------------------------------------------------------------------------------- augmentation

def batch(n=64, size=32, channels=3, seed=0):
    return TensorImage(torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)))


def apply(tfms, x, split_idx=0):
    for tfm in tfms: x = tfm(x, split_idx=split_idx)
    return x


presets = [n for n in data.list_augmentations() if n != 'none']


def test_presets_have_names():
    assert data.list_augmentations() == ['none', 'flip_crop', 'flip_crop_2', 'alternating_flip_crop', 'alternating_flip_crop_2', 'alternating_cutout', 'cutout', 'shift_flip', 'rotate_shift_flip', 'rotate_shift_flip_zoom',
                                         'rotate10_shift_flip_zoom', 'aug_transforms', 'aug_transforms_crop']
    assert data.augmentation('none') == []
    with pytest.raises(ValueError, match="Unknown augmentation 'cut_out'. Did you mean 'cutout'"): data.augmentation('cut_out')


@pytest.mark.parametrize('name', presets)
@pytest.mark.parametrize('shape', [dict(size=32), dict(size=48, channels=1)], ids=str)
def test_preset_changes_training_images_each_in_its_own_way(name, shape):
    x = batch(1, **shape).expand(64, -1, -1, -1).clone()
    set_seed(0); a = apply(data.augmentation(name, 32), x.clone())
    set_seed(0); b = apply(data.augmentation(name, 32), x.clone())
    c = apply(data.augmentation(name, 32), x.clone())
    assert (a.shape, a.dtype, a.device, type(a)) == (x.shape, x.dtype, x.device, TensorImage)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.isfinite(a).all() and a.min() >= -1e-5 and a.max() <= 1 + 1e-5
    assert len({im.numpy().tobytes() for im in a}) > (20 if name == 'alternating_flip_crop_2' else 30)  # one image in 25 places, mirrored as in all its copies
    assert torch.equal(apply(data.augmentation(name, 32), x.clone(), split_idx=1), x)
    assert (a != x).flatten(1).any(1).float().mean() > .9


@pytest.mark.parametrize('size, pad', [((32, 32), 4), ((20, 28), 3), ((5, 5), 4)])
def test_flip_crop_is_a_crop_of_the_reflected_image(size, pad):
    x = TensorImage(torch.rand(200, 2, *size))
    out, padded = data.FlipCrop(pad)(x, split_idx=0), F.pad(torch.Tensor(x), (pad,)*4, mode='reflect')
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
    t = data.FlipCrop(0, alternate=True)
    first = mirrored(t, 0)
    assert 150 < first.sum() < 250
    assert torch.equal(mirrored(t, 1), ~first) and torch.equal(mirrored(t, 2), first)
    order = torch.randperm(400)
    assert torch.equal(mirrored(t, 4, x[order]), first[order]) and torch.equal(mirrored(t, 6, x[:3]), first[:3])
    assert 100 < (mirrored(data.FlipCrop(0, alternate=True), 0) != first).sum() < 300
    moved = data.FlipCrop(3, alternate=True)(x, split_idx=0)
    assert moved.shape == x.shape and (moved != x).flatten(1).any(1).float().mean() > .9


def test_flip_crop_keeps_integers_and_strides():
    x = TensorImage((torch.rand(8, 3, 16, 16)*255).byte()).to(memory_format=torch.channels_last)
    set_seed(1); a = data.FlipCrop(2)(x, split_idx=0)
    set_seed(1); b = data.FlipCrop(2)(x.contiguous(), split_idx=0)
    assert a.dtype == torch.uint8 and torch.equal(a, b)


def test_cutout_erases_one_square_an_image():
    out = data.Cutout(8)(batch() + 1, split_idx=0)
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
    out = torch.Tensor(apply(data.affine_augmentation(max_shift=.1), TensorImage(ramp.clone())))
    steps = out.diff(dim=3)
    mirrored = (steps <= 1e-5).flatten(1).all(1)
    assert ((steps >= -1e-5).flatten(1).all(1) | mirrored).all()
    assert 80 < mirrored.sum() < 176
    assert out.min() >= .5 - 1e-5 and out.max() <= 1 + 1e-5
    moved = (out[:, 0, 20, 20] - .75)/.0125  # pixels
    assert 3.5 < moved.abs().max() <= 4.1 and moved.min() < -2 and moved.max() > 2


def test_rotation_keeps_the_centre_and_stays_in_its_range():
    line = torch.zeros(256, 1, 41, 41)
    line[:, :, 20, 20:] = 1  # from the centre to the right border
    out = torch.Tensor(apply(data.affine_augmentation(max_deg=15), TensorImage(line)))[:, 0]
    assert (out[:, 20, 20] > .6).all()
    right, left = out[:, :, 30], out[:, :, 10]
    rows = torch.where(right.amax(1, keepdim=True) > .3, right, left).argmax(1) - 20
    assert 2 <= rows.max() <= 3 and -3 <= rows.min() <= -2  # 10 pixels from the centre: tan(15 degrees) is 2.7


def test_zoom_stays_in_its_range():
    disc = torch.zeros(256, 1, 81, 81)
    y, x = torch.meshgrid(torch.arange(81) - 40, torch.arange(81) - 40, indexing='ij')
    disc[:, :, (x**2 + y**2) <= 400] = 1
    radius = (torch.Tensor(apply(data.affine_augmentation(max_zoom=.1), TensorImage(disc))).sum((1, 2, 3))/torch.pi).sqrt()
    assert 17.8 < radius.min() < 18.5 and 21.5 < radius.max() < 22.3


def test_rotate10_turns_by_ten_degrees_at_most():
    line = torch.zeros(256, 1, 81, 81)
    line[:, :, 40, 40:] = 1
    turn, = data.augmentation('rotate10_shift_flip_zoom')
    spread = {}
    for name in ('rotate10_shift_flip_zoom', 'rotate_shift_flip_zoom'):
        set_seed(0)
        out = torch.Tensor(apply(data.augmentation(name), TensorImage(line.clone())))[:, 0].flip(0)
        rows = out.argmax(1).float()  # of the line, in each column
        bright = out.amax(1) > .3
        slope = torch.stack([(r[b][-6] - r[b][5]).abs()/(b.nonzero()[-6, 0] - b.nonzero()[5, 0]) for r, b in zip(rows, bright) if b.sum() > 20])
        spread[name] = slope.quantile(.99).item()
    assert .12 < spread['rotate10_shift_flip_zoom'] < .23 < spread['rotate_shift_flip_zoom'] < .33  # tan(10 degrees) is .18, tan(15) .27


def test_crop_keeps_three_quarters_and_the_shape():
    ramp = TensorImage(torch.linspace(0, 1, 64).expand(8, 3, 64, 64).clone())
    crop, widths = data.TrainingCrop(.75), []
    for seed in range(200):
        set_seed(seed)
        out = torch.Tensor(crop(ramp, split_idx=0))
        assert out.shape == ramp.shape and torch.equal(out[0], out[7])  # one window for the batch
        widths.append((out[0, 0, 0, -1] - out[0, 0, 0, 0]).item()*63/64 + 1/64)
    assert .75**.5 - .03 < min(widths) < .89 and .96 < max(widths) <= 1
    assert crop(TensorImage(torch.rand(4, 3, 24, 40)), split_idx=0).shape == (4, 3, 24, 40)


def test_fastais_crop_would_touch_validation_images_and_ours_does_not():
    x = batch(4, size=48)
    ours, theirs = ([t for t in tfms if isinstance(t, data.RandomResizedCropGPU)][0]
                    for tfms in (data.augmentation('aug_transforms_crop', 48), data.aug_transforms(size=32, min_scale=.75)))
    assert theirs(x.clone(), split_idx=1).shape == (4, 3, 32, 32)
    assert ours(x, split_idx=1) is x and ours.min_scale == .75
    wide = TensorImage(torch.rand(2, 3, 20, 60))
    assert ours(wide, split_idx=1) is wide


def test_own_transforms_instead_of_a_preset(practice):
    dls = data.cifar10_dataloaders(practice, bs=8, augment=[data.FlipCrop(2)])
    assert [t.pad for t in dls.train.after_batch.fs if isinstance(t, data.FlipCrop)] == [2]


# ---------------------------------------------------------------------------------------------------- statistics

@pytest.mark.parametrize('stats, grey, want', [
    ('cifar10', False, data.cifar10_stats), ('unit', False, None), (None, True, None), ((.5, .2), True, ((.5,), (.2,))),
    ('imagenet', False, ((.485, .456, .406), (.229, .224, .225))),
])
def test_stats(stats, grey, want): assert data.channel_stats(stats, grey) == want


def test_grey_stats_are_weighted():
    (mean,), (std,) = data.channel_stats('cifar10', grey=True)
    assert mean == pytest.approx(.299*.4914 + .587*.4822 + .114*.4465) and .24 < std < .25


@pytest.mark.parametrize('stats, grey', [('cifar', False), ((.5, .2), False), (((.5, .5), (.2, .2)), True)])
def test_bad_stats(stats, grey):
    with pytest.raises(ValueError, match='stats'): data.channel_stats(stats, grey)


# ---------------------------------------------------------------------------------------------------- batches

def test_real_fastai_objects(dls, practice):
    assert isinstance(data.cifar10_datablock(), DataBlock) and isinstance(dls, DataLoaders)
    x, y = dls.one_batch()
    assert (x.shape, x.dtype, y.shape) == ((32, 3, 32, 32), torch.float32, (32,))
    assert list(dls.vocab) == list(data.cifar10_classes) and dls.c == 10
    assert dls.path == practice and dls.data_info == data.describe_data(practice)


def test_pixels_are_normalised(dls):
    x, y = next(iter(dls.valid))
    mean, std = (torch.tensor(s)[:, None, None] for s in data.cifar10_stats)
    for file, got, label in zip(dls.valid_ds.items, x, y):
        raw = torch.tensor(np.array(Image.open(file))).permute(2, 0, 1)/255
        torch.testing.assert_close(torch.Tensor(got.cpu()), (raw - mean)/std)
        assert dls.vocab[label] == data.class_of(file)
    raw = torch.tensor(np.array(Image.open(dls.valid_ds.items[0]))).permute(2, 0, 1)
    assert (dls.valid.decode((x, y))[0][0] - raw).abs().max() <= 1  # rounding


@pytest.mark.parametrize('stats', ['unit', None])
def test_unit_stats_only_divide(practice, stats):
    x = data.cifar10_dataloaders(practice, bs=200, stats=stats).valid.one_batch()[0]
    assert x.min() >= 0 and .9 < x.max() <= 1


@pytest.mark.parametrize('name', presets)
def test_validation_images_are_untouched(practice, dls, name):
    same = data.cifar10_dataloaders(practice, bs=32, augment=name)
    assert torch.equal(same.valid.one_batch()[0], dls.valid.one_batch()[0])
    x, y = same.train.one_batch()
    assert x.shape == (32, 3, 32, 32) and torch.isfinite(x).all()


def test_labels_follow_their_images(practice):
    set_seed(3)
    dls = data.cifar10_dataloaders(practice, bs=180, augment='none', stats='unit')
    x, y = dls.train.one_batch()
    by_pixels = {np.array(Image.open(f)).tobytes(): data.class_of(f) for f in data.train_files(practice)}
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
    for (x, y), (x2, y2) in zip(dls.valid, with_workers.valid): assert torch.equal(x, x2) and torch.equal(y, y2)
    assert with_workers.train.fake_l.num_workers in (2, 0) and dls.train.fake_l.num_workers == 0


def test_what_workers_need_can_be_pickled(practice):
    dls = data.cifar10_dataloaders(practice, bs=32, num_workers=0)
    for dl in dls.loaders: next(iter(dl))  # a loop that was left early
    again = pickle.loads(pickle.dumps(dls.train.dataset))
    assert again[3][1] == dls.train.dataset[3][1]
    assert pickle.loads(pickle.dumps(dls.valid)).one_batch()[0].shape == (20, 3, 32, 32)
    assert pickle.loads(pickle.dumps(dls.train)).one_batch()[0].shape == (32, 3, 32, 32)


def test_memory_reads_each_image_once_and_changes_nothing(practice, monkeypatch):
    opened, create = [], data.ColourImage.create.__func__
    monkeypatch.setattr(data.ColourImage, 'create', classmethod(lambda cls, fn, **kwargs: opened.append(fn) or create(cls, fn, **kwargs)))
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


@pytest.mark.parametrize('kwargs', [{}, dict(grey=True, stats='unit'), dict(image_size=48)], ids=str)
def test_batches_from_memory_are_those_of_fastai(practice, kwargs):
    "Values, types and order, with and without labels, and the last batch as long as it is"
    ours = data.cifar10_dataloaders(practice, bs=48, augment='none', in_memory=True, **kwargs)
    theirs = data.cifar10_dataloaders(practice, bs=48, augment='none', in_memory=False, num_workers=0, **kwargs)
    files = data.test_files(practice)
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
    block = DataBlock((ImageBlock, RegressionBlock), get_items=data.train_files, get_y=lambda f: float(len(f.stem)))
    dls = block.dataloaders(practice, bs=8, dl_type=data.MemoryDL, num_workers=0, before_batch=AddOne())
    x, y = dls.one_batch()
    assert x.shape == (8, 3, 32, 32) and y.dtype == torch.float
    by_hand = [dls.valid.do_item(i)[1].item() for i in range(3)]
    assert by_hand == [float(len(f.stem)) for f in dls.valid_ds.items[:3]] and dls.valid.one_batch()[1][:3].tolist() == [o + 1 for o in by_hand]


def test_workers_by_default():
    assert data.default_workers(999) == 0
    assert 1 <= data.default_workers(50_000) <= min(8, os.cpu_count())


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
        dls = block.dataloaders(practice, bs=8, dl_type=data.MemoryDL, num_workers=0)
    else: dls = data.cifar10_dataloaders(practice, bs=8, image_size=224, augment='flip_crop')
    assert any(isinstance(t, data.FixedSize) for t in dls.train.after_item.fs)
    assert dls.one_batch()[0].shape == dls.valid.one_batch()[0].shape == (8, 3, 224, 224)
    for dl in dls:
        m = dl.dataset.memory
        images, classes = m.parts
        assert m.n == (len(dl.dataset) if fixed else 200) and images.rows.shape == (m.n, 32, 32, 3) and images.rows.dtype == torch.uint8
        assert classes.rows.shape == (m.n,) and sum(m.known) >= 8
    assert [t.pad for t in data.random_tfms(dls.train)] == [28]
    plain = data.cifar10_dataloaders(practice, bs=8, image_size=224, in_memory=False, num_workers=0)
    assert plain.train.do_item(0)[0].shape == (3, 32, 32)


@pytest.mark.parametrize('name', presets)
def test_presets_fit_enlarged_batches(practice, name):
    x, _ = data.cifar10_dataloaders(practice, bs=8, image_size=48, augment=name).one_batch()
    assert x.shape == (8, 3, 48, 48) and torch.isfinite(x).all()


# ---------------------------------------------------------------------------------------------------- another augmentation

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
    assert (new.bs, new.drop_last, new.shuffle, type(new.train), new.device) == (16, True, True, data.MemoryDL, old.device)
    assert isinstance(new, DataLoaders) and (new.path, new.data_info, list(new.vocab), new.c) == (old.path, old.data_info, list(old.vocab), 10)
    assert new.one_batch()[0].shape == fresh.one_batch()[0].shape and len(new.train) == len(fresh.train)


def test_set_augmentation_shares_memory_and_validation(practice, monkeypatch):
    old = data.cifar10_dataloaders(practice, bs=180, augment='rotate_shift_flip')
    images = old.one_batch()[0]
    def fail(*args, **kwargs): raise AssertionError('read again')
    monkeypatch.setattr(data.ColourImage, 'create', fail)
    new = data.set_augmentation(old, 'none')
    assert new.valid is old.valid and new.train_ds is old.train_ds and new.train is not old.train and len(new) == len(old) == 2
    a, b = new.one_batch()[0], new.one_batch()[0]
    assert torch.equal(a.flatten(1).sort(0)[0], b.flatten(1).sort(0)[0])  # shuffled, and nothing else
    assert not torch.equal(a, b) and a.shape == images.shape


def test_set_augmentation_takes_transforms_and_refuses_unknown_names(practice):
    old = data.cifar10_dataloaders(practice, bs=8, augment=[data.FlipCrop(2), data.Cutout(3)])
    new = data.set_augmentation(old, [data.FlipCrop(7)])
    assert [t.pad for t in data.random_tfms(new.train)] == [7] and len(data.random_tfms(old.train)) == 2
    with pytest.raises(ValueError, match="Unknown augmentation 'flip'"): data.set_augmentation(old, 'flip')


def test_a_learner_goes_on_under_another_augmentation(practice):
    dls = data.cifar10_dataloaders(practice, bs=60, augment='flip_crop', device='cpu')
    learn = Learner(dls, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10)))
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        learn.dls = data.set_augmentation(dls, 'aug_transforms_crop')
        learn.fit(1)
    assert len(learn.recorder.values) == 1 and all(learn.dls.train_ds.memory.known)


def test_grey(practice):
    dls = data.cifar10_dataloaders(practice, bs=8, grey=True)
    assert dls.one_batch()[0].shape == (8, 1, 32, 32)
    dls.show_batch()


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
    assert data.describe_data(path).size is None
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
    files = data.test_files(practice)
    assert [dls.vocab[i] for _, y in batches for i in y] == [data.class_of(f) for f in files]
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
        name, index, probs = learn.predict(data.test_files(practice)[0])
        augmented, _ = learn.tta(n=2)
    assert preds.shape == (50, 10) and targets.tolist() == sorted(targets.tolist())
    assert name in dls.vocab and torch.allclose(probs, preds[0], atol=1e-5)
    assert augmented.shape == (20, 10)


# ---------------------------------------------------------------------------------------------------- the real thing

@pytest.mark.skipif(not os.environ.get('CIFAR_FASTAI_DATA'), reason='CIFAR_FASTAI_DATA is not set')
@pytest.mark.slow
def test_real_data():
    path = data.find_data()
    info = data.describe_data(path)
    if info.n_train != 50_000: pytest.skip(f'CIFAR_FASTAI_DATA is {info.variant}, not CIFAR-10')
    assert info.variant in ('cifar10', 'cifar10-jpeg') and (info.n_test, info.size) == (10_000, (32, 32))
    assert info.classes == data.cifar10_classes
    train, valid = data.StratifiedSplitter()(data.train_files(path))
    assert (len(train), len(valid)) == (45_000, 5_000)
    files = data.train_files(path)
    assert set(data.count_classes(files[i] for i in valid).values()) == {500}


@pytest.mark.parametrize('kwargs', [{}, dict(grey=True, stats='unit'), dict(image_size=48), dict(odd=True, image_size=24)], ids=str)
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
        assert isinstance(dl.dataset.memory, data.ImageMemory)
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
    out = data.Cutout(8)(TensorImage(torch.ones(2000, 1, 16, 16)), split_idx=0)
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
    for kind in kinds: Image.new('RGB', (32, 32)).save(folder/f'image.{kind}')
    (folder/'notes.txt').write_text('no image')
    assert sorted(f.suffix[1:] for f in data.train_files(tmp_path)) == sorted(kinds)
    assert not data.describe_data(tmp_path, verify=True).unreadable


def test_a_class_folder_that_cannot_be_listed_is_an_error(practice, tmp_path, monkeypatch):
    shutil.copytree(practice, tmp_path/'mine')
    locked, real = str(tmp_path/'mine'/'train'/'cat'), os.scandir
    def scandir(path):
        if str(path) == locked: raise PermissionError(13, 'Permission denied', locked)
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    with pytest.raises(PermissionError, match='cat'): data.train_files(tmp_path/'mine')
