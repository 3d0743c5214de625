"A name, a folder or an archive becomes a checked data set; whatever is wrong with it is said."
import errno
import hashlib
import multiprocessing
import os
import pickle
import shutil
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cifar_fastai import archives, data, downloads, formats, images, sources  # not their names: pytest would take `test_files` for a test
from cifar_fastai.files import read_json, write_json
from cifar_fastai.synthetic import cifar10_classes, make_synthetic
from small_sets import picture, tiny_set, tgz, special, pack, tiny_batches, names, leftovers

forks = pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')


# --- layout

def test_a_hidden_class_is_told(tmp_path, recwarn):
    folder = tiny_set(tmp_path/'set', classes=('cat', 'cow', 'dog'))
    (folder/'train'/'.empty').mkdir()
    sources.check_layout(folder)
    assert not recwarn.list
    for split in ('train', 'test'): (folder/split/'dog').rename(folder/split/'.dog')
    with pytest.warns(UserWarning, match='train: .dog has images, but is left out'): info = sources.describe_data(folder)
    assert info.classes == ('cat', 'cow')


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
def test_path_is_taken_apart(file, want): assert sources.split_path(file) == want


def test_practice_set_is_described(practice):
    info = sources.describe_data(practice, verify=True)
    assert (info.variant, info.n_train, info.n_test, info.size, info.unreadable) == ('synthetic', 200, 50, (32, 32), ())
    assert info.classes == cifar10_classes and info.path == practice


def test_fingerprint_tells_images_of_the_same_names_apart(practice, tmp_path):
    files, copy = sources.train_files(practice), shutil.copytree(practice, tmp_path/'copy')
    original = sources.describe_data(practice).fingerprint
    assert original == sources.fingerprint(files[::-1]) == sources.describe_data(copy).fingerprint != sources.fingerprint(files[1:])
    file = sources.train_files(copy)[0]  # which is among those that are read
    spoiled = bytearray(file.read_bytes())
    spoiled[-20] ^= 1  # of the same length
    file.write_bytes(spoiled)
    assert sources.describe_data(copy).fingerprint != original
    file.write_bytes(files[0].read_bytes())
    info = sources.describe_data(copy)
    assert info.fingerprint == original and info.matches(dict(variant='synthetic')) and info.matches(dict(variant='synthetic', fingerprint=original))
    assert not info.matches(dict(variant='cifar10')) and not info.matches(dict(variant='synthetic', fingerprint='0'*16))
    for f in sources.train_files(copy):
        with Image.open(f) as image: image.save(f, compress_level=1)  # the same picture in other bytes
    assert any(a.read_bytes() != b.read_bytes() for a, b in zip(files, sources.train_files(copy))) and sources.describe_data(copy).fingerprint == original
    file.rename(file.with_name('another.png'))
    assert sources.describe_data(copy).fingerprint != original


def test_a_folder_is_listed_again_only_when_it_changed(tmp_path, monkeypatch):
    path = tiny_set(tmp_path/'set')
    def age():
        for p in (path/'train').rglob('*'): os.utime(p, (1, 1))
        os.utime(path/'train', (1, 1))
    age()
    before, walked, walk = sources.train_files(path), [], os.walk
    monkeypatch.setattr(os, 'walk', lambda top, **kwargs: walked.append(top) or walk(top, **kwargs))
    again = sources.train_files(path)
    assert again == before and not walked
    again.clear()
    assert sources.train_files(path) == before  # a list of one's own
    deeper = path/'train'/'cat'/'deeper'
    deeper.mkdir()
    picture().save(deeper/'0.png')
    assert len(sources.train_files(path)) == len(before) + 1  # and while what changed is new, each time
    picture().save(deeper/'1.png')
    assert len(sources.train_files(path)) == len(before) + 2
    shutil.rmtree(path/'train'/'cat')
    assert sources.train_files(path) == [f for f in before if f.parent.name != 'cat']


def test_only_visible_images_count(tmp_path):
    path = tiny_set(tmp_path/'set')
    before = sources.train_files(path)
    (path/'labels.txt').write_text('cat dog')
    (path/'.DS_Store').write_bytes(b'x')
    (path/'train'/'.ipynb_checkpoints').mkdir()
    picture().save(path/'train'/'.ipynb_checkpoints'/'0.png')
    picture().save(path/'train'/'stray.png')
    (path/'train'/'cat'/'notes.txt').write_text('x')
    picture().save(path/'train'/'cat'/'._0000.png')
    assert sources.train_files(path) == before
    assert sources.describe_data(path).classes == ('cat', 'dog')


@pytest.mark.parametrize('name', ['@eaDir', '__pycache__', 'lost+found', '$RECYCLE.BIN', '#recycle', 'System Volume Information', '__MACOSX',
                                  '.ipynb_checkpoints'])
def test_folders_that_systems_make_are_neither_classes_nor_images(tmp_path, name):
    path = tiny_set(tmp_path/'set')
    before = sources.train_files(path), sources.describe_data(path)
    for folder in (path, path/'train', path/'test', path/'train'/'cat', path/'train'/'cat'/'0000.png'):
        made = (folder.parent if folder.suffix else folder)/name/'0000.png'
        made.mkdir(parents=True, exist_ok=True)
        picture(7).save(made/'thumb.jpg')
    shutil.copytree(path/'train', tmp_path/name/'train')
    assert (sources.train_files(path), sources.describe_data(path)) == before
    assert sources.find_data(tmp_path) == sources.find_data(path) == path
    assert sorted(sources.walk_images(path/'train'/'cat')) == [str(path/'train'/'cat'/f'{i:04}.png') for i in range(4)]


@pytest.mark.skipif(os.name != 'posix', reason='links')
@pytest.mark.parametrize('link, target', [('cat/more', '../dog'), ('cow', 'dog'), ('ant', 'dog'), ('cat/more', '../dog/deeper')])
def test_a_link_into_another_class_is_refused(tmp_path, link, target):
    path = tiny_set(tmp_path/'set')
    shutil.rmtree(path/'test')
    (path/'train'/'dog'/'deeper').mkdir()
    picture(5).save(path/'train'/'dog'/'deeper'/'0.png')
    (path/'train'/link).symlink_to(target)
    for call in (sources.describe_data, data.cifar10_dataloaders):
        with pytest.raises(ValueError, match=f'train/{link} brings images of one class into another.*Remove the link'): call(path)


@pytest.mark.skipif(os.name != 'posix', reason='links')
@pytest.mark.parametrize('link, target, text', [
    ('train/cat/more', '..', 'A link to .., which is a folder above it'), ('train/cat/more', '../..', 'A link to ../.., which is a folder above it'),
    ('train/cow', '.', 'A link to ., which is a folder above it'), ('train/cat/deeper/more', '/', 'A link to /, which is a folder above it'),
    ('train/cow', 'nowhere', 'A link to nowhere, which does not exist'), ('train/cat/more', '../cow', 'A link to ../cow, which does not exist'),
    ('test', 'gone', 'A link to gone, which does not exist'), ('val', '.', 'A link to ., which is a folder above it'),
])
def test_a_link_that_leads_nowhere_or_up_is_refused(tmp_path, link, target, text):
    path = tiny_set(tmp_path/'set')
    shutil.rmtree(path/'test')
    (path/'train'/'cat'/'deeper').mkdir()
    (path/link).symlink_to(target)
    with pytest.raises(OSError) as e: sources.describe_data(path)
    assert text in str(e.value) and str(path/link) in str(e.value) and 'repair or remove' in str(e.value)


@pytest.mark.skipif(os.name != 'posix', reason='links')
def test_a_broken_link_is_told_and_the_rest_is_found(tmp_path):
    path = tiny_set(tmp_path/'set')
    (path/'train'/'cat'/'up').symlink_to('..')
    (path/'train'/'cat'/'gone').symlink_to('nowhere')
    (path/'train'/'cat'/'.#notes').symlink_to('user@machine')  # as editors mark an open file
    wrong = []
    assert len(list(sources.walk_images(path/'train'/'cat', onerror=wrong.append))) == 4
    assert sorted(e.filename for e in wrong) == [str(path/'train'/'cat'/name) for name in ('gone', 'up')]


def test_links_upper_case_and_subfolders_count(tmp_path):
    path = tiny_set(tmp_path/'set')
    elsewhere = tmp_path/'elsewhere'
    elsewhere.mkdir()
    picture().save(elsewhere/'A.PNG')
    picture().save(elsewhere/'b.WebP', 'webp')
    (path/'train'/'cat'/'more').symlink_to(elsewhere, target_is_directory=True)
    found = [f for f in sources.train_files(path) if 'more' in f.parts]
    assert [f.name for f in found] == ['A.PNG', 'b.WebP']
    assert {sources.class_of(f) for f in found} == {'cat'}


def test_files_are_sorted_by_path(practice):
    for files in (sources.train_files(practice), sources.test_files(str(practice))):
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
    for call in (sources.find_data, sources.describe_data, data.cifar10_dataloaders):
        with pytest.raises(error, match=text) as e: call(path)
        assert str(path) in str(e.value) and '\n' not in str(e.value)


def other_layout(path, what):
    "Images in a layout of others"
    def put(*names):
        for k, name in enumerate(names):
            (path/name).parent.mkdir(parents=True, exist_ok=True)
            picture(k).save(path/name)
    if what == 'kaggle':
        put('train/1.png', 'train/2.png', 'test/3.png')
        (path/'labels.csv').write_text('id,label\n1,frog\n2,cat\n')
        (path/'sampleSubmission.csv').write_text('id,label\n3,cat\n')
    if what == 'table':
        put('images/1.jpg', 'images/2.jpg')
        (path/'labels.csv').write_text('file,label\n1.jpg,frog\n2.jpg,cat\n')
    if what == 'empty table':
        put('1.jpg', '2.jpg')
        (path/'labels.csv').write_text('')
    if what == 'flat and a test': put('ant/0.png', 'bee/0.png', 'test/ant/0.png', 'test/bee/0.png')
    if what == 'names': put(*(f'train/{c}.{i}.jpg' for c in ('cat', 'dog') for i in range(3)))
    if what == 'names beside': put(*(f'great_pyrenees_{i}.jpg' for i in range(3)), *(f'Bombay_{i}.jpg' for i in range(3)))
    if what == 'no labels': put('train/1.png', 'train/2.png', 'train/3.png')
    if what == 'inside the folder': put('train/cat/1.png', 'train/dog/1.png'); return path/'train'
    if what == 'parquet':
        (path/'data').mkdir(parents=True)
        (path/'data'/'all.parquet').write_bytes(b'PAR1')
    if what == 'packed':
        path.mkdir()
        for name in ('train.7z', 'test.7z', 'trainLabels.csv'): (path/name).write_bytes(b'x')
    if what == 'arrays':
        path.mkdir()
        np.savez(path/'train.npz', x=np.zeros((2, 32, 32, 3), np.uint8))
    if what == 'array file':
        np.savez(path.with_suffix('.npz'), x=np.zeros((2, 32, 32, 3), np.uint8))
        return path.with_suffix('.npz')
    if what == 'test arrays':
        path.mkdir()
        for name in ('data', 'labels'): np.save(path/f'cifar10.1_v6_{name}.npy', np.zeros(1))
    if what == 'cifar100':
        path.mkdir()
        for name in ('train', 'test', 'meta', 'file.txt~'): (path/name).write_bytes(b'x')
    if what == 'other names': put('seg_train/cat/1.png', 'seg_train/dog/1.png', 'test/cat/1.png', 'test/dog/1.png')
    if what == 'other test': put('train/cat/1.png', 'train/dog/1.png', 'test_set/cat/1.png', 'test_set/dog/1.png')
    if what == 'other val': put(*(f'{s}/{c}/1.png' for s in ('train', 'test', 'dev') for c in ('cat', 'dog')))
    if what == 'only a test': put('test/cat/1.png', 'test/dog/1.png')
    if what == 'twice': put('train/train/cat/1.png', 'train/train/dog/1.png')
    if what == 'unlabeled test': put('train/cat/1.png', 'train/dog/1.png', 'test/1.png')
    return path


@pytest.mark.parametrize('what, text', [
    ('kaggle', r"no class folders. The labels seem to be in labels.csv. .*from_csv\(path, 'labels.csv', folder='train', suff='.png'\)"),
    ('table', r"The labels seem to be in labels.csv. .*create_learner.*from_csv\(path, 'labels.csv', folder='images'\)"),
    ('empty table', 'There are 2 images in set/ itself. Move each of them to train/<class>/'),
    ('flat and a test', 'The folders ant, bee seem to be the classes'),
    ('names', r'no class folders. The names of the images seem to begin with the label \(cat, dog\)'),
    ('names beside', r'begin with the label \(Bombay, great_pyrenees\)'), ('no labels', 'There are 3 images in train/ itself'),
    ('inside the folder', 'no train folder. Pass the folder above it: .*set'),
    ('parquet', 'Read all.parquet with pandas.read_parquet'), ('packed', r'Python cannot unpack test.7z. Unpack it first \(`7z x test.7z`\), and pass the folder'), ('arrays', 'Read train.npz with numpy.load'),
    ('array file', 'set.npz is no folder or archive of images. Read set.npz with numpy.load'),
    ('cifar100', 'train has the wrong checksum'), ('test arrays', 'test images only. Evaluate a run on them: `cifar-fastai evaluate RUN --data'),
    ('other names', 'has a folder seg_train, but no train folder. Rename it to train'),
    ('other test', 'has a folder test_set, but no test folder. Rename it to test'), ('other val', 'has a folder dev, but no val folder. Rename it to val'),
    ('only a test', 'no train folder. A data set holds'),
    ('twice', 'train holds a folder train instead of class folders. Move what is in train up'),
    ('unlabeled test', 'test has no class folders. .*rename it to unlabeled'),
])
def test_other_layouts_are_recognized(tmp_path, bare_machine, what, text):
    path = other_layout(tmp_path/'set', what)
    with pytest.raises((ValueError, FileNotFoundError), match=text) as e: sources.find_data(path)
    assert str(path) in str(e.value) and '\n' not in str(e.value)
    if path.is_dir() and what not in ('empty table', 'inside the folder'):
        with pytest.raises((ValueError, FileNotFoundError), match=text) as e: sources.find_data(pack(path, 'zip'), quiet=True)
        assert not leftovers(bare_machine)


def test_a_class_may_be_named_like_a_split(tmp_path):
    path = tiny_set(tmp_path/'set', classes=('test_tube', 'train station'))
    tiny_set(path/'old'), tiny_set(path/'train_tools', classes=('hammer', 'saw'))
    assert sources.describe_data(path).classes == ('test_tube', 'train station')


@pytest.mark.parametrize('name', ['CIFAR10', 'Cifar10', 'SYNTHETIC'])
def test_names_of_data_sets_ignore_case(tmp_path, bare_machine, monkeypatch, name):
    monkeypatch.setattr(sources, 'make_synthetic', lambda path: path)
    (bare_machine/'cifar10').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert sources.find_data(name) == bare_machine/name.lower()
    assert sources.find_data(tiny_set(tmp_path/name).name) == tmp_path/name  # unless there is such a path


def test_a_file_is_not_a_data_set(tmp_path):
    with pytest.raises(ValueError, match='is not a folder'): sources.describe_data(broken(tmp_path, 'file'))


def test_several_data_sets_in_a_folder(tmp_path):
    tiny_set(tmp_path/'a'); tiny_set(tmp_path/'b')
    with pytest.raises(ValueError, match='several data sets: a, b'): sources.find_data(tmp_path)


def test_without_test_folder_training_works_and_testing_says_why(tmp_path):
    path = tiny_set(tmp_path/'set')
    shutil.rmtree(path/'test')
    assert sources.describe_data(path).n_test == 0
    dls = data.cifar10_dataloaders(path, bs=2, valid=.25)
    assert (len(dls.train_ds), len(dls.valid_ds)) == (6, 2)
    for call in (lambda: sources.test_files(path), lambda: data.test_dataloader(dls), lambda: data.cifar10_dataloaders(path, valid='test')):
        with pytest.raises(FileNotFoundError, match="no test folder.*evaluate on the split 'valid'"): call()


@pytest.mark.parametrize('name', ['val', 'valid'])
def test_val_serves_as_the_test_folder(tmp_path, name):
    path = tiny_set(tmp_path/'set', ending='.webp')
    (path/'test').rename(path/name)
    assert sources.find_data(path) == path and sources.test_folder(path) == path/name
    info = sources.describe_data(path)
    assert (info.n_train, info.n_test, info.size, info.test_folder, info.unreadable) == (8, 4, (32, 32), name, ())
    assert names(sources.test_files(path)) == [f'{name}/{c}/{i:04}.webp' for c in ('cat', 'dog') for i in range(2)]
    dls = data.cifar10_dataloaders(path, bs=2, valid=.25)
    assert len(dls.train_ds) + len(dls.valid_ds) == 8  # none of them from the test folder
    assert data.test_dataloader(dls).one_batch()[1].tolist() == [0, 0]
    with pytest.warns(UserWarning, match='validates on the test images'): dls = data.cifar10_dataloaders(path, bs=2, valid='test')
    assert list(dls.valid_ds.items) == sources.test_files(path) and list(dls.train_ds.items) == sources.train_files(path)


@pytest.mark.parametrize('name', ['val', 'valid', 'Validation'])
def test_val_beside_test_is_the_validation_folder(tmp_path, name):
    path = tiny_set(tmp_path/'set')
    alone = sources.describe_data(path)
    fingerprint = alone.fingerprint  # as stored with earlier runs
    assert (alone.n_valid, alone.valid_folder, sources.validation_folder(path), sources.validation_files(path)) == (0, '', None, [])
    tiny_set(tmp_path/'more', n_train=3)
    (tmp_path/'more'/'train').rename(path/name)
    info = sources.describe_data(path)
    assert (info.n_train, info.n_valid, info.n_test) == (8, 6, 4) and (info.valid_folder, info.test_folder) == (name, 'test')
    assert sources.validation_folder(path) == path/name and sources.test_folder(path) == path/'test'
    assert names(sources.validation_files(path)) == [f'{name}/{c}/{i:04}.png' for c in ('cat', 'dog') for i in range(3)]
    assert {f.parts[-3] for f in sources.test_files(path)} == {'test'} and {f.parts[-3] for f in sources.train_files(path)} == {'train'}
    assert info.fingerprint != fingerprint == sources.fingerprint(sources.train_files(path))
    picture(99).save(path/name/'dog'/'0001.png')
    assert sources.describe_data(path).fingerprint != info.fingerprint
    (path/name/'dog'/'0000.png').write_text('no image')
    assert sources.describe_data(path, verify=True).unreadable == (path/name/'dog'/'0000.png',)
    shutil.rmtree(path/name/'dog')
    with pytest.raises(ValueError, match=f'train and {name} have different class folders: dog only in train'): sources.describe_data(path)
    shutil.rmtree(path/'test'), shutil.rmtree(path/name)
    assert sources.describe_data(path).test_folder == '' and sources.test_folder(path) is None


@pytest.mark.parametrize('train, test', [('TRAIN', 'Test'), ('Training', 'testing'), ('training', 'Val')])
def test_folders_of_splits_in_other_spellings(tmp_path, train, test):
    folder = tiny_set(tmp_path/'set')
    (folder/'train').rename(folder/train), (folder/'test').rename(folder/test)
    assert sources.find_data(folder) == sources.find_root(folder) == sources.find_data(tmp_path) == folder
    info = sources.describe_data(folder)
    assert (info.n_train, info.n_test, info.test_folder, info.classes) == (8, 4, test, ('cat', 'dog'))
    deeper = folder/train/'cat'/'deeper'
    deeper.mkdir()
    (folder/train/'cat'/'0000.png').rename(deeper/'0000.png')
    assert sources.count_classes(sources.train_files(folder)) == {'cat': 4, 'dog': 4}
    dls = data.cifar10_dataloaders(folder, bs=2, valid=.25)
    assert len(dls.train_ds) + len(dls.valid_ds) == 8 and data.test_dataloader(dls).one_batch()[1].tolist() == [0, 0]
    assert dls.train_ds.cache.n == 8  # of the whole folder
    assert sources.describe_labeled(folder, info.classes).fingerprint == sources.describe_data(folder).fingerprint


@pytest.mark.parametrize('one, other, split', [('val', 'valid', 'valid'), ('test', 'testing', 'test'), ('train', 'training', 'train')])
def test_two_folders_for_one_split_are_an_error(tmp_path, one, other, split):
    path = tiny_set(tmp_path/'set')
    for name in {one, other} - {'train', 'test'}: shutil.copytree(path/'test', path/name)
    with pytest.raises(ValueError, match=f"two folders for the split '{split}': {one} and {other}. Merge them, or move"): sources.find_data(path)


def test_classes_missing_in_val_are_named(tmp_path):
    path = tiny_set(tmp_path/'set')
    shutil.rmtree(path/'test'/'dog'), (path/'test').rename(path/'val')
    with pytest.raises(ValueError, match='train and val have different class folders: dog only in train'): sources.find_data(path)
    (path/'val'/'dog').mkdir()
    with pytest.raises(ValueError, match='val: no images in dog'): sources.find_data(path)


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


def test_tiny_imagenet_as_its_authors_pack_it(tmp_path, bare_machine):
    path = authors_tiny_imagenet(tmp_path/'tiny-imagenet-200')
    file, before = pack(path, 'zip'), sorted(path.rglob('*'))
    with pytest.raises(ValueError, match='val_annotations.txt.*sort_tiny_imagenet.*or use the .zip'): sources.find_data(path)
    assert sorted(path.rglob('*')) == before  # a user's folder is not touched
    for found in (sources.find_data(file, quiet=True), sources.find_data(sources.sort_tiny_imagenet(path)), sources.sort_tiny_imagenet(path)):
        info = sources.describe_data(found)
        assert (info.classes, info.n_train, info.n_test, info.size, info.test_folder) == (('n01', 'n02'), 8, 5, (64, 64), 'val')
        assert {f.name: sources.class_of(f) for f in sources.test_files(found)} == {f'val_{i}.JPEG': ('n01', 'n02')[i % 2] for i in range(5)}
        assert (found/'unlabeled'/'images'/'test_0.JPEG').is_file()


@pytest.mark.parametrize('labels', [{'val_0.JPEG': 'n03'}, {'val_0.JPEG': '../n01'}, {'../../train/n01/images/0000.JPEG': 'n02'}], ids=str)
def test_annotations_that_lead_astray_are_refused(tmp_path, labels):
    path = authors_tiny_imagenet(tmp_path/'set', labels=labels)
    before = sorted(path.rglob('*'))
    with pytest.raises(ValueError, match='val_annotations.txt: expected a file name and the name of a class folder'): sources.sort_tiny_imagenet(path)
    assert sorted(path.rglob('*')) == before


def test_annotations_of_a_missing_image(tmp_path):
    path = authors_tiny_imagenet(tmp_path/'set')
    (path/'val'/'images'/'val_3.JPEG').unlink()
    with pytest.raises(FileNotFoundError, match='names val_3.JPEG'): sources.sort_tiny_imagenet(path)


def test_unreadable_images_are_listed(tmp_path):
    path = tiny_set(tmp_path/'set', n_train=150)
    bad = [path/'train'/'cat'/'0007.png', path/'train'/'dog'/'0011.png', path/'test'/'cat'/'0000.png']
    bad[0].write_bytes(bad[0].read_bytes()[:500])   # cut short: the header is whole
    bad[1].write_text('no image')
    bad[2].write_bytes(b'')
    assert set(sources.describe_data(path, verify=True).unreadable) == set(bad)
    assert sources.describe_data(tiny_set(tmp_path/'whole'), verify=True).unreadable == ()


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


# --- duplicates

def places(group, root): return [f.relative_to(root).as_posix() for f in group.files]


def test_equal_pixels_are_found_whatever_the_files(tmp_path):
    path = tiny_set(tmp_path/'set')
    cat, dog = path/'train'/'cat'/'0000.png', path/'train'/'dog'/'0001.png'
    for f in list((path/'test').rglob('*.png')): picture(int(f.stem) + 500*(f.parent.name == 'dog') + 900).save(f)
    assert sources.find_duplicates(path) == [] and sources.describe_data(path, verify=True).duplicates == ()
    Image.open(cat).save(path/'test'/'cat'/'again.bmp')
    shutil.copy(dog, path/'train'/'cat'/'zebra.png')
    Image.open(cat).resize((64, 64)).save(path/'test'/'cat'/'larger.png')
    (path/'train'/'dog'/'broken.png').write_text('no image')
    groups = sources.find_duplicates(path)
    assert [places(g, path) for g in groups] == [['train/cat/0000.png', 'test/cat/again.bmp'], ['train/cat/zebra.png', 'train/dog/0001.png']]
    assert [(g.splits, g.labels) for g in groups] == [(('train', 'test'), ('cat',)), (('train',), ('cat', 'dog'))]
    assert sources.duplicates_by_kind(groups) == {'in train and test': groups[:1], 'with several labels': groups[1:]}
    info = sources.describe_data(path, verify=True)
    assert info.duplicates == tuple(groups) and [f.name for f in info.unreadable] == ['broken.png']
    assert sources.find_duplicates([cat, path/'test'/'cat'/'again.bmp']) == groups[:1]


def test_pixels_in_another_shape_are_another_image(tmp_path):
    for name, size in ('a.png', (4, 8)), ('b.png', (8, 4)): Image.new('RGB', size, 'red').save(tmp_path/name)
    assert sources.find_duplicates([tmp_path/'a.png', tmp_path/'b.png']) == []


def smooth(seed): return picture(seed, (5, 5)).resize((32, 32), Image.Resampling.BICUBIC)


@pytest.mark.parametrize('change', [
    lambda image: image.point(lambda v: .7*v), lambda image: image.resize((64, 64)), lambda image: image.resize((16, 16)),
    lambda image: Image.fromarray(np.roll(np.asarray(image), 1, 1))], ids=['darker', 'larger', 'smaller', 'shifted'])
def test_near_duplicates_are_found_on_demand(tmp_path, change):
    files = [tmp_path/f'{i}.png' for i in range(30)]
    for i, f in enumerate(files): smooth(i).save(f)
    change(smooth(7)).save(tmp_path/'changed.png')
    smooth(7).save(tmp_path/'stored.jpg', quality=30)
    files += [tmp_path/'changed.png', tmp_path/'stored.jpg']
    assert sources.find_duplicates(files) == []
    assert [[f.name for f in g.files] for g in sources.find_duplicates(files, near=.9)] == [['7.png', 'changed.png', 'stored.jpg']]


def test_images_with_nothing_in_them_are_not_near(tmp_path):
    "Their correlation would be that of their noise"
    for i in range(4): Image.fromarray(np.full((8, 8, 3), 60*i, np.uint8) + np.uint8(np.eye(8)[..., None])).save(tmp_path/f'{i}.png')
    assert sources.find_duplicates(sorted(tmp_path.iterdir()), near=.95) == []


def test_pairs_in_different_blocks_are_one_group():
    a = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    a[6] = a[1]
    a[4] = a[3]
    pairs = {(int(i), int(j)) for i, j in sources._near_pairs(list(a), .99, block=2)}
    assert pairs == {(1, 6), (3, 4)}
    assert sources._join(range(7), [*pairs, (4, 6)]) == [0, 1, 2, 1, 1, 5, 1]


# --- variants

def test_variants_of_complete_cifar10_and_fastais_copy(tmp_path, bare_machine, monkeypatch):
    assert sources._images_a_class == {'train': 5000, 'test': 1000}
    monkeypatch.setattr(sources, '_images_a_class', {'train': 3, 'test': 2})
    def cifar(path, **kwargs): return tiny_set(path, 3, 2, cifar10_classes, **kwargs)
    png = cifar(tmp_path/'fastai'/'data'/'cifar10')
    assert sources.describe_data(png).variant == 'cifar10'
    assert sources.find_data() == sources.find_data('cifar10', download=False) == png
    (png/'test'/'airplane'/'0000.png').unlink()  # as if fastai had been stopped while it unpacked
    assert sources.describe_data(png).variant == 'cifar10-part-30-19'
    with pytest.raises(FileNotFoundError, match='CIFAR-10 was not found'): sources.find_data('cifar10', download=False)
    assert sources.describe_data(cifar(tmp_path/'any', ending='.jpg')).variant == 'cifar10-jpeg'
    assert sources.describe_data(cifar(tmp_path/'big', size=(64, 64))).variant == 'big'


@pytest.mark.parametrize('data', ['elsewhere', '{tmp}/far/away', None])
def test_fastais_copy_is_where_its_settings_say(tmp_path, bare_machine, monkeypatch, data):
    monkeypatch.setattr(sources, '_images_a_class', {'train': 3, 'test': 2})
    home = tmp_path/'fastai'
    if data:
        home.mkdir()
        data = data.format(tmp=tmp_path)
        (home/'config.ini').write_text(f'[DEFAULT]\ndata = {data}\narchive = archive\n')
    tiny_set(home/(data or 'data')/'cifar10', 3, 2, cifar10_classes)
    assert sources.find_data(quiet=True) == home/(data or 'data')/'cifar10'
    assert (home/'config.ini').exists() == bool(data), 'what is only looked for is not made'


@pytest.mark.parametrize('text', ['data = no section', '[DEFAULT]\ndata = %(nothing)s', '[DEFAULT]\narchive = a'])
def test_settings_of_fastai_that_cannot_be_read(tmp_path, bare_machine, text):
    (tmp_path/'fastai').mkdir()
    (tmp_path/'fastai'/'config.ini').write_text(text)
    with pytest.raises(FileNotFoundError, match='CIFAR-10 was not found'): sources.find_data('cifar10', download=False)


def test_other_sets_are_named_by_their_folder(tmp_path, monkeypatch):
    assert sources.describe_data(tiny_set(tmp_path/'pets')).variant == 'pets'
    monkeypatch.chdir(tmp_path/'pets'/'train')
    assert sources.describe_data('..').variant == 'pets'
    assert sources.describe_data(tiny_set(tmp_path/'cifar10')).variant == 'cifar10-part-8-4'


@pytest.mark.parametrize('size', [(48, 40), (28, 28)])
def test_size_is_height_and_width(tmp_path, size):
    assert sources.describe_data(tiny_set(tmp_path/'set', size=size)).size == size


@pytest.mark.parametrize('ending', ['.jpg', '.png', '.webp'])
def test_size_is_that_of_upright_pictures(tmp_path, ending):
    folder, exif = tiny_set(tmp_path/'set', size=(48, 40), ending=ending), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    for f in folder.rglob(f'*{ending}'): Image.open(f).save(f, exif=exif)
    assert sources.describe_data(folder).size == (40, 48)
    assert images.ColorImage.create(next(folder.rglob(f'*{ending}'))).shape == (40, 48)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_tiffs_are_turned_once(tmp_path, orientation):
    "Pillow turns them as it reads them"
    folder, exif = tiny_set(tmp_path/'set', ending='.tif'), Image.Exif()
    exif[0x0112] = orientation
    for f in folder.rglob('*.tif'): picture(size=(24, 40)).save(f, exif=exif, compression='tiff_lzw')
    upright = ImageOps.exif_transpose(Image.open(f))
    found = images.ColorImage.create(f)
    assert np.array_equal(found, upright) and sources.describe_data(folder).size == found.shape


@pytest.mark.skipif(os.name != 'posix', reason='links')
def test_links_that_lead_back_are_not_followed(tmp_path):
    folder = tiny_set(tmp_path/'set')
    for name in 'ab': (folder/'train'/'cat'/name).symlink_to('.')
    (folder/'train'/'dog'/'back').symlink_to(folder/'train'/'dog')
    assert sources.describe_data(folder).n_train == 8 and len(set(sources.train_files(folder))) == 8


@pytest.mark.parametrize('name', ['train', 'test', 'val', 'valid'])
def test_a_class_with_a_folder_of_the_name_of_a_split_is_refused(tmp_path, name):
    folder = tiny_set(tmp_path/'set')
    inner = folder/'train'/'cat'/name/'morning'
    inner.mkdir(parents=True)
    for f in sorted((folder/'train'/'cat').glob('*.png'))[:2]: f.rename(inner/f.name)
    with pytest.raises(ValueError, match=f'cat.{name}.*: a folder inside a class folder must not be named'): sources.describe_data(folder)
    assert sources.describe_data(tiny_set(tmp_path/'names', classes=('train', 'test', 'val'))).classes == ('test', 'train', 'val')


def test_whatever_a_decoder_raises_the_file_is_named(tmp_path, monkeypatch):
    folder = tiny_set(tmp_path/'set')
    bad, open_image = sorted(folder.rglob('*.png'))[3], Image.open
    bad.write_bytes(bad.read_bytes() + b'!')  # unlike the others
    def fail(f, *args, **kwargs):
        if f.getvalue() == bad.read_bytes(): raise RuntimeError('Failed to decode image')
        return open_image(f, *args, **kwargs)
    monkeypatch.setattr(images.Image, 'open', fail)
    assert sources.describe_data(folder, verify=True).unreadable == (bad,)
    with pytest.raises(ValueError, match=f'{bad.name} cannot be read as an image .cannot be decoded: Failed to decode'): images.ColorImage.create(bad)


@pytest.mark.skipif(sys.platform != 'linux', reason='file names of any bytes')
@pytest.mark.parametrize('least', [1, 5000])
def test_file_names_need_not_be_text(tmp_path, monkeypatch, least):
    monkeypatch.setattr(data, '_worth_keeping', least)
    folder = tiny_set(tmp_path/'set')
    (folder/'train'/'cat'/'0000.png').rename(folder/'train'/'cat'/os.fsdecode(b'caf\xe9.png'))
    assert data.cifar10_dataloaders(folder, bs=4, valid=4).one_batch()[0].shape[0] == 4


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems change names')
@pytest.mark.parametrize('train, test, what', [
    ('caf\u00e9', 'cafe\u0301', r"accents: composed in one \(NFC\), decomposed in the other \(NFD\): 'caf\\xe9' and 'cafe\\u0301'"),
    ('cat', 'cat ', "spaces: 'cat' and 'cat '"), ('new cat', 'new\u00a0cat', r"spaces: 'new cat' and 'new\\xa0cat'"),
    ('cat', '\u200bcat', r"cannot be seen: 'cat' and '\\u200bcat'"), ('Cat', 'cat', "upper and lower case: 'Cat' and 'cat'")])
def test_class_names_that_look_alike(tmp_path, train, test, what):
    folder = tiny_set(tmp_path/'set', classes=(train, 'dog'))
    (folder/'test'/train).rename(folder/'test'/test)
    with pytest.raises(ValueError, match=f'train/{train} and test/{test} look alike, but differ in .*{what}. Give both the same name'):
        sources.check_layout(folder)
    both = tiny_set(tmp_path/'both', classes=(train, test))
    if train == 'Cat': assert sources.check_layout(both) == both  # letters may be classes
    else:
        with pytest.raises(ValueError, match='both/train: the class folders .* look alike, but differ in'): sources.check_layout(both)


# --- archives

@pytest.mark.parametrize('kind', ['gztar', 'tar', 'zip'])
@pytest.mark.parametrize('nested', [True, False])
def test_archives_are_unpacked_once(tmp_path, bare_machine, kind, nested):
    path = tiny_set(tmp_path/'pets')
    file = pack(path, kind) if nested else Path(shutil.make_archive(tmp_path/'flat', kind, path))
    found = sources.find_data(file, quiet=True)
    assert names(sources.train_files(found)) == names(sources.train_files(path))
    assert [f.read_bytes() for f in sources.test_files(found)] == [f.read_bytes() for f in sources.test_files(path)]
    assert found.parent == bare_machine and hashlib.sha256(file.read_bytes()).hexdigest()[:12] in found.name
    stamp = found.stat().st_mtime_ns
    assert sources.find_data(str(file)) == found and found.stat().st_mtime_ns == stamp
    assert not leftovers(bare_machine)


def test_another_content_under_the_same_name_is_another_set(tmp_path, bare_machine):
    file = pack(tiny_set(tmp_path/'pets'), 'zip')
    first = sources.find_data(file, quiet=True)
    shutil.rmtree(tmp_path/'pets')
    assert pack(tiny_set(tmp_path/'pets', n_train=5), 'zip') == file
    assert [len(sources.train_files(p)) for p in (first, sources.find_data(file, quiet=True))] == [8, 10]


@pytest.mark.parametrize('kind', ['gztar', 'tar', 'zip'])
@pytest.mark.parametrize('share', [.01, .2, .7])
def test_archive_cut_short(tmp_path, bare_machine, kind, share):
    file = pack(tiny_set(tmp_path/'pets'), kind)
    content = file.read_bytes()
    file.write_bytes(content[:int(len(content)*share)])
    with pytest.raises(ValueError, match='is not a complete .*archive .*download it again') as e: sources.find_data(file, quiet=True)
    assert str(file) in str(e.value) and '\n' not in str(e.value)
    assert not leftovers(bare_machine) and [p.name for p in bare_machine.iterdir()] == ['.unfinished']


@pytest.mark.parametrize('content', [b'', b'hello', b'\x89PNG' + bytes(600), bytes(2000)])
def test_no_archive(tmp_path, bare_machine, content):
    file = tmp_path/'a.tgz'
    file.write_bytes(content)
    with pytest.raises(ValueError, match=f'{file} is (not a complete|an empty)'): sources.find_data(file, quiet=True)


def test_archive_without_a_data_set(tmp_path, bare_machine):
    file = tgz(tmp_path/'a.tgz', [('readme.txt', b'x')])
    with pytest.raises(FileNotFoundError, match=f'{file} has no train folder'): sources.find_data(file, quiet=True)
    assert not leftovers(bare_machine)


@pytest.mark.parametrize('member', ['../evil.png', special(tarfile.SYMTYPE)], ids=['outside', 'link'])
def test_unsafe_archive_is_refused(tmp_path, bare_machine, member):
    file = tgz(tmp_path/'a.tgz', [('train/cat/1.png', b'x'), (member, b'evil'), ('train/cat/2.png', b'x')])
    with pytest.raises(ValueError, match=f'{file} was not unpacked: its member'): sources.find_data(file, quiet=True)
    assert not list(tmp_path.rglob('evil*')) and not leftovers(bare_machine)


@pytest.mark.skipif(os.name != 'posix', reason='named pipes')
def test_named_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path/'a.tgz')
    for source in (tmp_path/'a.tgz', [tmp_path/'a.tgz', tmp_path/'a.tgz']):
        with pytest.raises(ValueError, match='a.tgz is neither a folder nor a regular file'): sources.find_data(source)


@pytest.mark.parametrize('top', ['', 'pets\\'])
@pytest.mark.parametrize('folders', [True, False])
def test_zip_with_backslashes(tmp_path, bare_machine, top, folders):
    "As Windows PowerShell 5 writes them"
    path = tiny_set(tmp_path/'pets')
    with zipfile.ZipFile(tmp_path/'a.zip', 'w') as z:
        for f in sorted(path.rglob('*')):
            name = top + str(f.relative_to(path)).replace('/', '\\')
            if f.is_file(): z.writestr(name, f.read_bytes())
            elif folders: z.writestr(f'{name}\\', b'')
    found = sources.find_data(tmp_path/'a.zip', quiet=True)
    assert names(sources.train_files(found)) == names(sources.train_files(path))
    assert [f.read_bytes() for f in sources.test_files(found)] == [f.read_bytes() for f in sources.test_files(path)]


@pytest.mark.parametrize('source', ['https://example.org/a.zip', 'file:///a', Path('http://example.org')])
def test_addresses_are_not_downloaded(source):
    with pytest.raises(FileNotFoundError, match='is an address. Download the data set first'): sources.find_data(source)


def test_tilde_that_is_part_of_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sources.find_data(tiny_set(Path('~no_user'))).name == '~no_user'
    with pytest.raises(FileNotFoundError, match='No such path: .*~nobody_here'): sources.find_data('~nobody_here')


# --- several archives

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


def test_several_archives_are_one_data_set(bare_machine, three_parts, monkeypatch):
    path, files = three_parts
    found = sources.find_data(files, quiet=True)
    assert found.parent == bare_machine and found.name.startswith('tiny-') and len(found.name) == len('tiny-') + 12
    info = sources.describe_data(found)
    assert (info.classes, info.n_train, info.n_test, info.test_folder) == (('a', 'b', 'c'), 12, 6, 'val')
    assert [f.read_bytes() for f in sources.train_files(found)] == [f.read_bytes() for f in sources.train_files(path)]
    assert (found/'labels.txt').is_file() and not leftovers(bare_machine)
    stamp = found.stat().st_mtime_ns
    joined = os.pathsep.join(map(str, files))
    monkeypatch.setenv('CIFAR_FASTAI_DATA', joined)
    for again in (tuple(reversed(files)), list(map(str, files)), joined, None): assert sources.find_data(again, quiet=True) == found
    assert found.stat().st_mtime_ns == stamp
    assert data.cifar10_dataloaders(joined, bs=2, valid=3).data_info == info
    assert sources.find_data(files[:2], quiet=True) != found


def test_archives_with_and_without_a_folder_around(bare_machine, three_parts, tmp_path):
    path, files = three_parts
    flat = parts_of(path, top='', val=['val'])
    assert len(sources.test_files(sources.find_data([*files[:2], *flat], quiet=True))) == 6


def test_an_archive_of_several_data_sets_is_refused_beside_others_too(tmp_path, bare_machine):
    tgz(tmp_path/'more.tgz', [(f'{part}/train/a/{part}.png', b'x') for part in ('one', 'two')])
    tgz(tmp_path/'test.tgz', [('test/a/1.png', b'x')])
    with pytest.raises(ValueError, match='more.tgz holds several data sets: one, two. Pack each'): sources.find_data([tmp_path/'more.tgz', tmp_path/'test.tgz'], quiet=True)
    assert not leftovers(bare_machine)


def test_one_archive_in_a_list_is_that_archive(tmp_path, bare_machine):
    file = pack(tiny_set(tmp_path/'pets'), 'zip')
    assert sources.find_data([file], quiet=True) == sources.find_data(file, quiet=True)


def test_a_path_with_a_separator_in_its_name(tmp_path, practice, monkeypatch):
    odd = tmp_path/f'a{os.pathsep}b'
    shutil.copytree(practice, odd)
    assert sources.find_data(str(odd)) == odd
    with pytest.raises(FileNotFoundError, match='http://example.org/a.tgz is an address. Download the data set first'):
        sources.find_data('http://example.org/a.tgz')


@pytest.mark.parametrize('which', [(0, 1, 2, 0), (0, 0)])
def test_an_image_in_two_archives_is_refused(bare_machine, three_parts, which):
    _, files = three_parts
    with pytest.raises(ValueError, match='tiny-train-a.tgz contains train/[ab]/000.*so does an earlier archive'):
        sources.find_data([files[i] for i in which], quiet=True)
    assert not leftovers(bare_machine) and [p.name for p in bare_machine.iterdir()] == ['.unfinished']


@pytest.mark.parametrize('wrong, error, text', [
    ([], ValueError, 'empty list'), (5, TypeError, 'got 5'),
    (['{0}', '{parent}/nowhere.tgz'], FileNotFoundError, 'No such path: .*nowhere.tgz'),
    ('{0}' + os.pathsep + '{parent}/nowhere.tgz', FileNotFoundError, 'No such path: .*nowhere.tgz'),
    (['{0}', '{parent}'], ValueError, 'is a folder. If you pass several sources, all of them must be archives'),
    (['{2}', '{parent}/notes.tgz'], FileNotFoundError, 'notes.tgz has no train, test, val or valid folder'),
    (['{1}', '{2}'], ValueError, r'tiny-train-b.tgz \+ .*tiny-val.tgz: train and val have different class folders: a, b only in val'),
    (['{0}', '{parent}/cut.tgz'], ValueError, 'cut.tgz is not a complete'),
    (['{0}', '{parent}/evil.tgz'], ValueError, 'evil.tgz was not unpacked'),
])
def test_bad_lists_of_archives(bare_machine, three_parts, wrong, error, text):
    path, files = three_parts
    tgz(path.parent/'notes.tgz', [('notes.txt', b'x')])
    tgz(path.parent/'evil.tgz', [('train/c/1.webp', b'x'), ('../train/c/2.webp', b'x')])
    (path.parent/'cut.tgz').write_bytes(files[1].read_bytes()[:-100])
    def fill(name): return name.format(*files, parent=path.parent)
    with pytest.raises(error, match=text) as e:
        sources.find_data(fill(wrong) if isinstance(wrong, str) else list(map(fill, wrong)) if isinstance(wrong, list) else wrong, quiet=True)
    assert '\n' not in str(e.value) and not leftovers(bare_machine)


@pytest.mark.parametrize('names, want', [(['tiny-200-train-a', 'tiny-200-train-b', 'tiny-200-val'], 'tiny-200'), (['pets-train', 'pets-test'], 'pets'),
                                         (['b', 'a'], 'a'), (['pets', 'pets2'], 'pets'), (['pets-'], 'pets-')])
def test_common_name(names, want): assert sources._common_name(names) == want


# --- the authors' files

@pytest.mark.parametrize('how', ['folder', 'folder above', 'archive'])
def test_batches_become_images(tmp_path, bare_machine, monkeypatch, how):
    folder = tmp_path/'raw'/'cifar-10-batches-py'
    monkeypatch.setattr(sources, 'cifar10_batches', tiny_batches(folder))
    source = {'folder': folder, 'folder above': folder.parent, 'archive': pack(folder, 'gztar')}[how]
    found = sources.find_data(source, quiet=True)
    assert found.parent == bare_machine
    assert names(sources.train_files(found)) == ['train/cat/0_cat.png', 'train/cat/2_cat.png', 'train/cat/4_cat.png',
                                              'train/dog/1_dog.png', 'train/dog/3_dog.png', 'train/dog/5_dog.png']
    batch = pickle.loads((folder/'data_batch_2').read_bytes())
    want = batch['data'][1].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (np.array(Image.open(found/'train'/'cat'/'4_cat.png')) == want).all()
    assert sources.find_data(source, quiet=True) == found and not leftovers(bare_machine)


def test_wrong_checksum_of_a_batch(tmp_path, bare_machine, monkeypatch):
    folder = tmp_path/'cifar-10-batches-py'
    monkeypatch.setattr(sources, 'cifar10_batches', tiny_batches(folder))
    assert sources.find_data(folder, quiet=True)
    with (folder/'test_batch').open('ab') as f: f.write(b'x')
    with pytest.raises(ValueError, match='test_batch has the wrong checksum'): sources.find_data(folder, quiet=True)
    with pytest.raises(ValueError, match='wrong checksum'): sources.find_data(pack(folder, 'gztar'), quiet=True)
    (folder/'test_batch').unlink()
    with pytest.raises(FileNotFoundError, match='test_batch is missing'): sources.find_data(folder, quiet=True)
    assert not leftovers(bare_machine)


class Evil:
    def __reduce__(self): return os.mkdir, ('evil',)


def test_nothing_but_arrays_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    md5s = tiny_batches(tmp_path/'batches')
    (tmp_path/'batches'/'test_batch').write_bytes(pickle.dumps(dict(data=Evil(), labels=[]), protocol=4))
    md5s['test_batch'] = hashlib.md5((tmp_path/'batches'/'test_batch').read_bytes()).hexdigest()
    with pytest.raises(ValueError, match='mkdir, and only NumPy arrays are allowed'): sources.convert_batches(tmp_path/'batches', tmp_path/'to', md5s)
    assert not (tmp_path/'evil').exists() and not (tmp_path/'to').exists()


def test_unverified_is_not_unpickled(tmp_path, monkeypatch):
    tiny_batches(tmp_path/'batches')
    read = []
    monkeypatch.setattr(formats, '_ArrayUnpickler', lambda *a, **k: read.append(a))
    with pytest.raises(ValueError, match='expected c99cafc1'): sources.convert_batches(
        tmp_path/'batches', tmp_path/'to', {'data_batch_1': sources.cifar10_batches['data_batch_1']})
    assert not read


def test_published_checksums():
    assert len(sources.cifar10_batches) == 7
    assert sources.cifar10_batches['data_batch_1'] == 'c99cafc152244af753f735de768cd75f'
    assert sources.cifar10_batches['batches.meta'] == '5ff9c542aee3614f3951f8cda6e48888'


# --- whole or not at all

@forks
def test_two_processes_unpack_one_archive(tmp_path, bare_machine):
    file = pack(tiny_set(tmp_path/'pets', n_train=50), 'gztar')
    context = multiprocessing.get_context('fork')
    found, barrier = context.Queue(), context.Barrier(2)
    def run():
        barrier.wait()
        path = sources.find_data(file, quiet=True)
        found.put((path, len(sources.train_files(path))))
    processes = [context.Process(target=run) for _ in range(2)]
    for p in processes: p.start()
    assert found.get(timeout=60) == found.get(timeout=60) == (sources.find_data(file), 100)
    for p in processes: p.join(60)
    assert not leftovers(bare_machine)


def test_full_disk_is_a_clear_error(tmp_path, bare_machine, monkeypatch):
    file = pack(tiny_set(tmp_path/'pets'), 'zip')
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(archives, '_write', full)
    with pytest.raises(OSError, match='No space left.*set CIFAR_FASTAI_HOME'): sources.find_data(file, quiet=True)
    assert not leftovers(bare_machine)


def test_unwritable_cache_is_a_clear_error(tmp_path):
    file = pack(tiny_set(tmp_path/'pets'), 'zip')
    with pytest.raises(OSError, match='CIFAR_FASTAI_HOME'): sources.find_data(file, root=file/'cache', quiet=True)


# --- downloads

@pytest.fixture
def published(tmp_path):
    "A small archive and how it would be published: content, function that makes an `Archive` from an address"
    path = tiny_set(tmp_path/'cifar10')
    content = pack(path, 'gztar').read_bytes()
    md5 = hashlib.md5(content[:2**20]).hexdigest()
    return content, lambda url: sources.Archive(url, len(content), md5, first_mib=True, counts=(8, 4), n_classes=2)


@pytest.mark.parametrize('there', ['nothing', 'an empty folder', 'another folder'])
def test_a_download_into_a_folder_that_exists(published, http_server, tmp_path, there):
    content,archive = published
    known = [archive(http_server.answer('/a.tgz', content))]
    folder = tmp_path/'elsewhere'/'mine'
    if there != 'nothing': folder.mkdir(parents=True)
    if there == 'another folder':
        (folder/'notes.txt').write_text('mine')
        with pytest.raises(FileNotFoundError, match='has no train folder'): sources.download_cifar10(folder, known, quiet=True)
        return
    assert sources.download_cifar10(folder, known, quiet=True) == folder and len(sources.train_files(folder)) == 8


@pytest.mark.parametrize('name, to, accepted', [('test', 'train', False), ('val', 'test', False), ('test', '../other/test', True)])
def test_two_splits_that_are_one_folder(tmp_path, name, to, accepted):
    for place in ('set', 'other'): tiny_set(tmp_path/place)
    path = tmp_path/'set'
    if name == 'test': shutil.rmtree(path/'test')
    (path/name).symlink_to(to)
    if accepted: assert sources.check_layout(path) == path
    else:
        with pytest.raises(ValueError, match='are the same folder'): sources.check_layout(path)


@pytest.mark.parametrize('wrong', ['missing', 'class folders alone'])
def test_duplicates_of_nothing(tmp_path, wrong):
    if wrong == 'class folders alone': (tiny_set(tmp_path/'set')/'train').rename(tmp_path/wrong)
    with pytest.raises(FileNotFoundError, match='nothing to compare'): sources.find_duplicates(tmp_path/wrong)
    assert sources.find_duplicates([]) == []


def test_a_practice_set_that_cannot_be_written(tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='CIFAR_FASTAI_HOME'): sources.find_data('synthetic', root=tmp_path/'file'/'cache')


def test_files_of_the_system_in_tiny_imagenet(tmp_path, bare_machine):
    path = authors_tiny_imagenet(tmp_path/'tiny')
    for name in ('.DS_Store', '._val_0.JPEG'): (path/'val'/'images'/name).write_bytes(b'0')
    file = pack(path, 'zip')
    for found in (sources.find_data(file, quiet=True), sources.find_data(sources.sort_tiny_imagenet(path))): assert len(sources.test_files(found)) == 5
    path = authors_tiny_imagenet(tmp_path/'more')
    picture().save(path/'val'/'images'/'extra.JPEG')
    with pytest.raises(ValueError, match='does not name: extra.JPEG'): sources.sort_tiny_imagenet(path)


def test_known_archives():
    first, *others = sources.cifar10_archives
    assert (first.n_bytes, first.first_mib, first.counts) == (168_168_549, True, (50_000, 10_000))
    assert {(a.n_bytes, a.md5, a.first_mib) for a in others} == {(170_498_071, 'c58f30108f718f92721af3b95e74349a', False)}
    assert 'toronto' in others[-1].url and len(others) == 2


def test_download(tmp_path, published, http_server, capsys):
    content, archive = published
    url = http_server.answer('/cifar10.tgz', content)
    found = sources.download_cifar10(tmp_path/'cache'/'cifar10', [archive(url)])
    assert len(sources.train_files(found)) == 8 and not leftovers(found.parent)
    assert '100%' in capsys.readouterr().err  # the progress bar
    sources.download_cifar10(found, [archive(url)])
    assert http_server.asked == ['/cifar10.tgz']


def test_quiet_download_prints_nothing(tmp_path, published, http_server, capsys):
    content, archive = published
    sources.download_cifar10(tmp_path/'cache'/'cifar10', [archive(http_server.answer('/cifar10.tgz', content))], quiet=True)
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
    found = sources.download_cifar10(tmp_path/'cache'/'cifar10', [archive(first), archive(http_server.answer('/good.tgz', content))])
    assert len(sources.train_files(found)) == 8 and not leftovers(found.parent)
    said = capsys.readouterr().err
    assert 0 <= said.find(f'Downloading {first} (') < said.find(f'Download failed: {reason}')


def test_wrong_content_behind_a_right_first_megabyte(tmp_path, published, http_server, capsys):
    content, archive = published
    url = http_server.answer('/cifar10.tgz', content)
    wrong = sources.Archive(url, len(content), archive(url).md5, first_mib=True, counts=(50_000, 10_000))
    found = sources.download_cifar10(tmp_path/'cache'/'cifar10', [wrong, archive(url)])
    assert len(sources.train_files(found)) == 8
    assert 'contains 8 training and 4 test images' in capsys.readouterr().err


def test_dropped_connection_is_tried_again(tmp_path, published, http_server, capsys):
    content, archive = published
    url = http_server.answer('/cifar10.tgz', (content, len(content)//2), content)
    found = sources.download_cifar10(tmp_path/'cache'/'cifar10', [archive(url)])
    assert len(sources.train_files(found)) == 8 and http_server.asked == ['/cifar10.tgz']*2
    assert 'Going on with it' in capsys.readouterr().err


def test_an_interrupted_download_goes_on_in_the_next_call(tmp_path, published, http_server):
    content, archive = published
    half, more = len(content)//2, len(content)*3//4
    url = http_server.answer('/cifar10.tgz', (content, half), (content, more), content)
    http_server.ranges = True
    with pytest.raises(ConnectionError, match='could not be downloaded'): sources.download_cifar10(tmp_path/'cache'/'cifar10', [archive(url)])
    found = sources.download_cifar10(tmp_path/'cache'/'cifar10', [archive(url)])
    first, second = http_server.begun
    assert 0 < first <= half < second <= more and len(sources.train_files(found)) == 8 and not leftovers(found.parent)


def test_what_a_mirror_left_is_removed_when_another_one_works(tmp_path, published, http_server):
    content, archive = published
    broken = http_server.answer('/broken.tgz', (content, len(content)//2))
    sources.download_cifar10(tmp_path/'cache'/'cifar10', [archive(broken), archive(http_server.answer('/good.tgz', content))])
    assert not (tmp_path/'cache'/'.downloads').exists()


def test_what_killed_processes_left_is_removed_when_the_set_is_there(practice, bare_machine):
    shutil.copytree(practice, bare_machine/'cifar10')
    (bare_machine/'.unfinished'/'cifar10'/'new').mkdir(parents=True)
    assert sources.find_data('cifar10') == bare_machine/'cifar10' and not leftovers(bare_machine)


@pytest.mark.parametrize('ranges', [True, False])
def test_another_file_at_the_same_address(tmp_path, http_server, ranges):
    "One that is shorter than what was downloaded of the first; one that is longer has the wrong checksum, and is downloaded anew then"
    http_server.ranges = ranges
    url = http_server.answer('/a', (b'x'*1000, 900), (b'x'*1000, 900), b'y'*100)
    with pytest.raises(ConnectionError): sources.download_file(url, tmp_path/'a', quiet=True)
    assert sources.download_file(url, tmp_path/'a', quiet=True).read_bytes() == b'y'*100
    assert [f.name for f in tmp_path.iterdir()] == ['a']


def test_a_server_that_does_not_answer_is_given_up(tmp_path, published, http_server, silent_server, monkeypatch, capsys):
    content, archive = published
    assert all(0 < seconds < 120 for seconds in downloads.download_timeout)
    monkeypatch.setattr(downloads, 'download_timeout', (.3, .3))
    mirrors = archive(f'{silent_server}/a.tgz'), archive(http_server.answer('/b.tgz', content))
    assert len(sources.train_files(sources.download_cifar10(tmp_path/'cache'/'cifar10', mirrors))) == 8
    assert 'timed out' in capsys.readouterr().err


def test_authors_archive_is_converted(tmp_path, http_server, monkeypatch):
    folder = tmp_path/'cifar-10-batches-py'
    monkeypatch.setattr(sources, 'cifar10_batches', tiny_batches(folder, 4))
    content = pack(folder, 'gztar').read_bytes()
    archive = sources.Archive(http_server.answer('/a.tar.gz', content), len(content), hashlib.md5(content).hexdigest(), counts=(8, 4), n_classes=2)
    found = sources.download_cifar10(tmp_path/'cache'/'cifar10', [archive], quiet=True)
    assert sources.count_classes(sources.train_files(found)) == {'cat': 4, 'dog': 4}


def test_no_mirror_works(tmp_path, bare_machine, http_server, published):
    content, archive = published
    urls = [http_server.answer('/a.tgz', 404), http_server.answer('/b.tgz', (content, 10))]
    with pytest.raises(ConnectionError) as e: sources.download_cifar10(bare_machine/'cifar10', map(archive, urls), quiet=True)
    for part in (*urls, 'HTTP 404', 'manually', 'CIFAR_FASTAI_DATA', 'synthetic'): assert part in str(e.value)
    assert not (bare_machine/'cifar10').exists() and not leftovers(bare_machine)


# --- what find_data chooses

def test_order_of_choice(tmp_path, bare_machine, monkeypatch, http_server, published, practice):
    content, archive = published
    url = http_server.answer('/cifar10.tgz', content)
    monkeypatch.setattr(sources, 'cifar10_archives', (archive(url),))
    downloaded = sources.find_data(quiet=True)
    assert downloaded == bare_machine/'cifar10' and len(sources.train_files(downloaded)) == 8
    assert sources.find_data(quiet=True) == downloaded and http_server.asked == ['/cifar10.tgz']
    monkeypatch.setenv('CIFAR_FASTAI_DATA', str(practice))
    assert sources.find_data() == practice
    assert sources.find_data('cifar10') == downloaded
    monkeypatch.setenv('CIFAR_FASTAI_DATA', str(tmp_path/'nowhere'))
    with pytest.raises(FileNotFoundError, match=r"CIFAR_FASTAI_DATA is '.*nowhere'\. No such path"): sources.find_data()


@pytest.mark.parametrize('download', [True, False])
def test_practice_set_comes_last_and_loudly(bare_machine, monkeypatch, capsys, download):
    monkeypatch.setattr(sources, 'cifar10_archives', (sources.Archive('http://127.0.0.1:9/a.tgz', 1, ''),))
    small = make_synthetic
    monkeypatch.setattr(sources, 'make_synthetic', lambda path: small(path, n_train=2, n_test=1))
    assert sources.describe_data(sources.find_data(download=download, quiet=True)).variant == 'synthetic'
    out, err = capsys.readouterr()
    assert 'NO REAL DATA' in err and not out


def test_what_failed_is_said_once_and_not_tried_again(bare_machine, monkeypatch, capsys):
    urls = 'http://no-such-host.invalid/a.tgz', 'http://127.0.0.1:9/b.tgz'
    monkeypatch.setattr(sources, 'cifar10_archives', tuple(sources.Archive(url, 1, '') for url in urls))
    small = make_synthetic
    monkeypatch.setattr(sources, 'make_synthetic', lambda path: small(path, n_train=2, n_test=1))
    sources.find_data()
    said = capsys.readouterr().err.splitlines()
    assert [said.count(f'Downloading {url} (0 MB)') for url in urls] == [1, 1] and sum('ConnectionError' in line for line in said) == 2
    assert any(line.startswith("Download failed: ConnectionError: Failed to resolve 'no-such-host.invalid'") for line in said) and all(len(line) < 200 for line in said)
    sources.find_data()
    assert capsys.readouterr().err == ''
    monkeypatch.setattr(sources, '_replaced', set())  # as in another process
    sources.find_data()
    again = capsys.readouterr().err
    assert 'Downloading' not in again and "find_data('cifar10')" in again and 'NO REAL DATA' in again
    with pytest.raises(ConnectionError): sources.find_data('cifar10')
    assert 'Downloading' in capsys.readouterr().err


def fails_with(url):
    return (sources.Archive(url, 1, ''),)


def test_another_process_knows_what_failed_for_an_hour(bare_machine, monkeypatch, capsys, http_server):
    small = make_synthetic
    monkeypatch.setattr(sources, 'make_synthetic', lambda path: small(path, n_train=2, n_test=1))
    monkeypatch.setattr(sources, 'cifar10_archives', fails_with(http_server.answer('/a.tgz', 404)))
    note = bare_machine/'failed_download.json'
    def tries():
        "How often it is asked for; another process has this folder in common with the first, and nothing else"
        http_server.asked.clear()
        monkeypatch.setattr(sources, '_replaced', set())
        assert sources.find_data(quiet=True) == bare_machine/'synthetic'
        return len(http_server.asked)
    assert [tries(), tries()] == [1, 0] and 'failed 0 min ago' in capsys.readouterr().err
    last = read_json(note)
    for seconds, want in (-59*60, 0), (-61*60, 1), (10*60, 1):  # the last: a clock that was put back
        write_json(note, last | dict(time=time.time() + seconds))
        assert tries() == want
    monkeypatch.setattr(sources, 'cifar10_archives', fails_with(http_server.answer('/b.tgz', 404)))
    assert tries() == 1
    for damaged in '{', '{}', '{"time": "now", "urls": []}':
        note.write_text(damaged)
        assert tries() == 1




def test_cifar10_asked_for_by_name_is_not_replaced(bare_machine, monkeypatch):
    monkeypatch.setattr(sources, 'cifar10_archives', (sources.Archive('http://127.0.0.1:9/a.tgz', 1, ''),))
    with pytest.raises(ConnectionError, match='127.0.0.1:9'): sources.find_data('cifar10', quiet=True)


def test_home_and_relative_paths(tmp_path, practice, monkeypatch):
    monkeypatch.chdir(practice.parent)
    assert sources.find_data('practice') == practice
    monkeypatch.setenv('HOME', str(practice.parent))
    assert sources.find_data('~/practice') == practice
