"Files that hold many images, and data sets by the names that people know: found where others keep them, downloaded, converted; and what is wrong with them."
import hashlib
import json
import os
import pickle
import shutil
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from cifar_fastai import data, formats, sources
from cifar_fastai.errors import MissingPackageError
from cifar_fastai.synthetic import cifar10_classes
from conftest import serving
from small_sets import leftovers, names, pack, picture, tiny_batches, tiny_set

classes = [f'class_{i:02}' for i in range(100)]


def content(seed=0, ending='png', **kwargs): # of an image file
    import io
    file = io.BytesIO()
    picture(seed).save(file, ending, **kwargs)
    return file.getvalue()


# --- CIFAR-100

def fine_batches(folder, n_train=200, n_test=100, n_classes=100):
    "Write cifar-100-python; returns the md5s"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    def batch(n): return dict(data=rng.integers(0, 256, (n, 3072), dtype=np.uint8), fine_labels=[i % n_classes for i in range(n)], coarse_labels=[0]*n)
    files = dict(train=batch(n_train), test=batch(n_test), meta=dict(fine_label_names=classes[:n_classes], coarse_label_names=['all']))
    for name, c in files.items(): (folder/name).write_bytes(pickle.dumps(c, protocol=4))
    return {name: hashlib.md5((folder/name).read_bytes()).hexdigest() for name in files}


@pytest.fixture
def cifar100(tmp_path, monkeypatch, bare_machine):
    "A small CIFAR-100 with 2 and 1 images a class, as the authors pack it"
    folder = tmp_path/'raw'/'cifar-100-python'
    monkeypatch.setattr(sources, 'cifar100_batches', fine_batches(folder))
    monkeypatch.setattr(sources, '_fine_images_a_class', {'train': 2, 'test': 1})
    return folder


def test_published_checksums():
    assert formats.cifar100_batches == dict(train='16019d7e3df5f24257cddd939b257f8d', test='f0ef6b0ae62326f3e7ffdfab6717acfc',
                                            meta='7973b15100ade9c7d40fb424638fde48')
    fastais, authors = sources.cifar100_archives
    from torchvision.datasets import CIFAR100
    from fastai.data.external import URLs
    checks = eval(Path(sys_module('fastai.data.external')).with_name('download_checks.py').read_text())
    assert (authors.url, authors.md5) == (CIFAR100.url, CIFAR100.tgz_md5) and authors.n_classes == fastais.n_classes == 100
    assert (fastais.url, (fastais.n_bytes, fastais.md5), fastais.first_mib) == (URLs.CIFAR_100, checks[URLs.CIFAR_100], True)


def sys_module(name):
    import importlib
    return importlib.import_module(name).__file__


def test_cifar100_is_downloaded_by_its_name(tmp_path, cifar100, http_server, monkeypatch, bare_machine):
    packed = pack(cifar100, 'gztar').read_bytes()
    archive = sources.Archive(http_server.answer('/cifar-100-python.tar.gz', packed), len(packed), hashlib.md5(packed).hexdigest(), counts=(200, 100), n_classes=100)
    broken = sources.Archive(http_server.answer('/cifar100.tgz', 404), 1, '')
    monkeypatch.setattr(sources, 'cifar100_archives', (broken, archive))
    found = sources.find_data('CIFAR100', quiet=True)
    info = sources.describe_data(found)
    assert (found, info.variant, info.n_train, info.n_test, info.classes) == (bare_machine/'cifar100', 'cifar100', 200, 100, tuple(classes))
    wanted = pickle.loads((cifar100/'train').read_bytes())['data'][101].reshape(3, 32, 32).transpose(1, 2, 0)
    assert (np.array(Image.open(found/'train'/'class_01'/'101_class_01.png')) == wanted).all()
    assert sources.find_data('cifar100') == found and http_server.asked == ['/cifar100.tgz', '/cifar-100-python.tar.gz']


def test_superclasses_are_left_out(tmp_path, bare_machine, http_server, monkeypatch):
    path = tiny_set(tmp_path/'cifar100', n_train=2, n_test=1, classes=[f'super_{i}/class_{i}{j}' for i in range(2) for j in range(3)])
    packed = pack(path, 'gztar').read_bytes()
    archive = sources.Archive(http_server.answer('/cifar100.tgz', packed), len(packed), hashlib.md5(packed).hexdigest(), counts=(12, 6), n_classes=6)
    found = sources.download_cifar100(tmp_path/'to'/'cifar100', [archive], quiet=True)
    assert list(sources.count_classes(sources.train_files(found)).items()) == [(f'class_{i}{j}', 2) for i in range(2) for j in range(3)]


@pytest.mark.parametrize('counts, n_classes, text', [((200, 99), 100, 'contains 200 training and 100 test images'), ((200, 100), 50, 'contains 100 classes, expected 50')])
def test_another_data_set_in_the_place_of_one(tmp_path, cifar100, http_server, counts, n_classes, text):
    packed = pack(cifar100, 'gztar').read_bytes()
    archive = sources.Archive(http_server.answer('/a.tgz', packed), len(packed), hashlib.md5(packed).hexdigest(), counts=counts, n_classes=n_classes)
    with pytest.raises(ConnectionError, match=f'CIFAR-100 could not be downloaded.\n.*{text}'): sources.download_cifar100(tmp_path/'to', [archive], quiet=True)


def test_a_network_for_a_hundred_classes(cifar100, tmp_path):
    from cifar_fastai.training import load_run, train
    from small_runs import tiny
    learn = train(tiny.change(bs=100, stages=tiny.stages[0], valid=100).shorten(1), source=cifar100, run_dir=tmp_path/'run', num_workers=0)
    assert learn.model(learn.dls.one_batch()[0]).shape == (100, 100)
    assert load_run(tmp_path/'run', num_workers=0).dls.vocab == learn.dls.vocab


def test_a_run_of_cifar100_looks_for_cifar100(tmp_path):
    from cifar_fastai.training import _source_of
    def source(variant): return _source_of(SimpleNamespace(folder='run'), dict(path=str(tmp_path/'gone'), variant=variant))
    assert (source('cifar100'), source('cifar10-jpeg'), source('cifar10-part-8-4'), source('synthetic')) == ('cifar100', None, None, 'synthetic')
    for variant in ('cifar10n', 'cifar100-part-3-4'):
        with pytest.raises(FileNotFoundError, match='The data of run are gone'): source(variant)


# --- where others keep it

@pytest.mark.parametrize('place', ['keras/datasets/{0}', 'keras/datasets/{0}-target/{0}', 'data/{0}'])
@pytest.mark.parametrize('name, folder', [('cifar10', 'cifar-10-batches-py'), ('cifar100', 'cifar-100-python')])
def test_batches_that_keras_or_torchvision_downloaded(tmp_path, bare_machine, monkeypatch, capsys, place, name, folder):
    monkeypatch.chdir(tmp_path)
    path = tmp_path/place.format(folder)
    make = dict(cifar10=tiny_batches, cifar100=fine_batches)[name]
    monkeypatch.setattr(sources, f'{name}_batches', make(path))
    assert sources.find_data(name, download=False) == bare_machine/name and f'Using {path}' in capsys.readouterr().err
    shutil.rmtree(bare_machine/name)
    with next(path.iterdir()).open('ab') as f: f.write(b'x')
    with pytest.raises(FileNotFoundError, match='was not found in'): sources.find_data(name, download=False)


def test_home_of_keras(tmp_path, monkeypatch):
    monkeypatch.delenv('KERAS_HOME', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    assert sources._batch_folders('cifar10')[0] == tmp_path/'.keras'/'datasets'/'cifar-10-batches-py'


# --- Parquet

def write_parquet(file, labels, names=('cat', 'dog'), images=None, about=None, columns=None, **kwargs):
    "Write a file as the library `datasets` does"
    file.parent.mkdir(parents=True, exist_ok=True)
    images = [dict(bytes=content(i), path=f'{i}.png') for i in range(len(labels))] if images is None else images
    columns = columns or dict(img=images, label=labels)
    if about is None: about = dict(info=dict(features=dict(img=dict(_type='Image'), label=dict(names=list(names), _type='ClassLabel'))))
    table = pyarrow.table(columns).replace_schema_metadata(dict(huggingface=about if isinstance(about, str) else json.dumps(about)))
    pyarrow.parquet.write_table(table, file, **kwargs)
    return file


def parquet_set(folder, n_train=6, n_test=2, config='plain_text', **kwargs):
    for split, n in (('train', n_train), ('test', n_test)):
        write_parquet(folder/config/f'{split}-00000-of-00001.parquet', [i % 2 for i in range(n)], **kwargs)
    return folder


@pytest.mark.parametrize('how', ['folder', 'inner folder', 'folders of splits', 'archive', 'several files'])
def test_parquet_becomes_images(tmp_path, bare_machine, how):
    path = parquet_set(tmp_path/'set')
    inner = path/'plain_text'
    if how == 'folders of splits':
        for split in ('train', 'test'):
            (path/split).mkdir()
            (inner/f'{split}-00000-of-00001.parquet').rename(path/split/'0000.parquet')
    if how == 'several files':
        for i in range(2): write_parquet(inner/f'train-{i:05}-of-00002.parquet', [[0, 1, 0], [1, 0, 1]][i], images=[dict(bytes=content(3*i + j), path='') for j in range(3)])
        (inner/'train-00000-of-00001.parquet').unlink()
    source = {'inner folder': inner, 'archive': path}.get(how, path)
    if how == 'archive': source = pack(path, 'zip')
    found = sources.find_data(source, quiet=True)
    assert names(sources.train_files(found)) == [f'train/{c}/{i}_{c}.png' for c, n in (('cat', (0, 2, 4)), ('dog', (1, 3, 5))) for i in n] and found.parent == bare_machine
    assert names(sources.test_files(found)) == ['test/cat/0_cat.png', 'test/dog/1_dog.png']
    assert (found/'train'/'cat'/'4_cat.png').read_bytes() == content(4)
    assert sources.find_data(source, quiet=True) == found and not leftovers(bare_machine)


@pytest.mark.parametrize('ending', ['jpeg', 'webp'])
def test_images_in_parquet_of_other_formats(tmp_path, bare_machine, ending):
    write_parquet(tmp_path/'set'/'train.parquet', [0, 1], images=[dict(bytes=content(i, ending), path=None) for i in range(2)])
    assert sources.describe_data(sources.find_data(tmp_path/'set', quiet=True)).n_train == 2


def test_the_finest_labels_are_used(tmp_path, bare_machine):
    features = dict(img=dict(_type='Image'), coarse_label=dict(names=['pet'], _type='ClassLabel'), fine_label=dict(names=['cat', 'dog'], _type='ClassLabel'))
    images = [dict(bytes=content(i), path='') for i in range(2)]
    write_parquet(tmp_path/'set'/'train-0.parquet', [], about=dict(info=dict(features=features)), columns=dict(img=images, fine_label=[0, 1], coarse_label=[0, 0]))
    assert sources.describe_data(sources.find_data(tmp_path/'set', quiet=True)).classes == ('cat', 'dog')


@pytest.mark.parametrize('wrong, text', [
    (dict(labels=[0, 2]), 'an image with the label 2, expected a number from 0 to 1'), (dict(labels=[0, -1]), 'the label -1'), (dict(labels=[0, None]), 'the label None'),
    (dict(labels=[0., 1.]), "'label' whole numbers"), (dict(images=[content(0), content(1)]), "'img' must hold the bytes of images"),
    (dict(images=[dict(path='a.png'), dict(path='b.png')]), "'img' must hold the bytes of images"),
    (dict(images=[dict(bytes=content(0)), dict(bytes=None)]), 'a row without the content of a PNG'), (dict(images=[dict(bytes=b'GIF89a'), dict(bytes=b'')]), 'a row without the content'),
    (dict(names=['cat', '../dog']), 'does not say which columns'), (dict(names=['cat', 'cat']), 'does not say which columns'), (dict(about={}), 'Its columns: img, label'),
    (dict(about='{'), 'is damaged'), (dict(about='[1]'), 'is damaged'), (dict(about=dict(info=dict(features=[1]))), 'does not say'),
    (dict(about=dict(info=dict(features=dict(photo=dict(_type='Image'), label=dict(names=['a'], _type='ClassLabel'))))), 'must hold the bytes of images'),
])
def test_wrong_parquet_files(tmp_path, bare_machine, wrong, text):
    parquet_set(path := tmp_path/'set')
    write_parquet(path/'plain_text'/'train-00000-of-00001.parquet', **dict(labels=[0, 1]) | wrong)
    with pytest.raises(ValueError, match=text) as e: sources.find_data(path, quiet=True)
    assert 'train-00000-of-00001.parquet' in str(e.value) and '\n' not in str(e.value) and not leftovers(bare_machine)


@pytest.mark.parametrize('damage', [lambda b: b[:len(b)//2], lambda b: b'PAR1', lambda b: b'', lambda b: b[:-8] + b'\xff'*4 + b[-4:]])
def test_damaged_parquet_files(tmp_path, bare_machine, damage):
    file = parquet_set(tmp_path/'set')/'plain_text'/'train-00000-of-00001.parquet'
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f'{file} is damaged or no Parquet file'): sources.find_data(tmp_path/'set', quiet=True)


def test_limits_of_parquet_files(tmp_path, bare_machine, monkeypatch):
    path = parquet_set(tmp_path/'set')
    for name, value, text in (('max_members', 5, '6 rows, more than the 5 allowed'), ('max_column', 100, 'smaller row groups'), ('max_image_bytes', 100, 'more than the 100 allowed')):
        with monkeypatch.context() as m, pytest.raises(ValueError, match=text):
            m.setattr(formats, name, value)
            sources.find_data(path, quiet=True)
    with monkeypatch.context() as m, pytest.raises(ValueError, match='free on the disk'):
        m.setattr(formats.shutil, 'disk_usage', lambda folder: SimpleNamespace(free=1000))
        sources.find_data(path, quiet=True)


def test_several_sets_of_parquet_files(tmp_path, bare_machine):
    parquet_set(tmp_path/'set'), parquet_set(tmp_path/'set', config='other')
    with pytest.raises(ValueError, match='several data sets: other, plain_text. Name one'): sources.find_data(tmp_path/'set')


def test_without_pyarrow_it_says_what_to_install(tmp_path, bare_machine, monkeypatch):
    monkeypatch.setattr(formats, 'find_spec', lambda name: None)
    with pytest.raises(MissingPackageError, match=r'Reading Parquet files needs the package pyarrow: `pip install .cifar_fastai\[parquet\]'):
        sources.find_data(parquet_set(tmp_path/'set'))
    from cifar_fastai.terminal import describe_error
    assert describe_error(MissingPackageError('It', 'pyarrow', 'parquet'))[1] == 2


# --- the Hugging Face hub

@pytest.fixture
def hub(tmp_path, monkeypatch, bare_machine):
    "A cache of the hub's library in a new place, and data sets of two classes under the known names"
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path/'hf'))
    monkeypatch.setattr(sources, 'hub_names', dict(cifar10='uoft-cs/cifar10', cifar100='uoft-cs/cifar100'))
    monkeypatch.setattr(sources, '_hub_counts', (20, 10))
    return tmp_path/'hf'


def ten_classes(folder, n_train=2, n_test=1):
    for split, n in (('train', n_train), ('test', n_test)): write_parquet(folder/'plain_text'/f'{split}-00000-of-00001.parquet', list(range(10))*n, cifar10_classes)
    return folder


def in_cache(hub, revision='a'*40, **kwargs):
    "As `datasets` leaves it: without a name for the revision"
    folder = ten_classes(hub/'datasets--uoft-cs--cifar10'/'snapshots'/revision, **kwargs)
    (folder/'README.md').write_text('x')
    return folder


@pytest.mark.parametrize('name', ['cifar10', 'uoft-cs/cifar10'])
def test_what_the_hubs_library_has_downloaded(hub, bare_machine, monkeypatch, name):
    monkeypatch.setattr(sources, '_images_a_class', {'train': 2, 'test': 1})
    with pytest.raises(FileNotFoundError, match='downloading is disabled'): sources.find_data(name, download=False)
    in_cache(hub)
    found = sources.find_data(name, download=False, quiet=True)
    assert found == bare_machine/name.replace('/', '-') and sources.describe_data(found).variant == 'cifar10' and not leftovers(bare_machine)


def test_a_cache_with_another_content_is_not_used(hub, bare_machine, capsys):
    in_cache(hub, n_train=1)
    with pytest.raises(FileNotFoundError, match='CIFAR-10 was not found'): sources.find_data('cifar10', download=False)
    assert 'is not used: contains 10 training and 10 test images' in capsys.readouterr().err
    with pytest.raises(ValueError, match='contains 10 training and 10 test images'): sources.find_data('uoft-cs/cifar10', download=False)


class HubHandler(BaseHTTPRequestHandler):
    "As much of the hub as its client needs to fetch a data set"
    def answer(self, send):
        self.server.asked.append(self.path)
        found = self.server.files.get(self.path.partition('?')[0])
        if found is None: return self.send_error(404)
        self.send_response(200)
        headers = {'ETag': f'"{hashlib.sha256(found).hexdigest()}"', 'X-Repo-Commit': 'b'*40, 'Content-Length': len(found)}
        for k, v in headers.items(): self.send_header(k, str(v))
        self.end_headers()
        if send: self.wfile.write(found)

    def do_HEAD(self): self.answer(False)
    def do_GET(self): self.answer(True)
    def log_message(self, *args): pass


@pytest.fixture
def hub_server(hub, monkeypatch, tmp_path):
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with serving(HubHandler) as server:
        server.files, server.asked = {}, []
        address = f'http://127.0.0.1:{server.server_port}'
        monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', address)
        monkeypatch.setattr(huggingface_hub.constants, 'HUGGINGFACE_CO_URL_TEMPLATE', address + '/{repo_id}/resolve/{revision}/{filename}')
        files = [f for f in ten_classes(tmp_path/'served').rglob('*') if f.is_file()]
        listed = {f.relative_to(tmp_path/'served').as_posix(): f.read_bytes() for f in files} | {'README.md': b'x'}
        about = dict(id='uoft-cs/cifar10', sha='b'*40, siblings=[dict(rfilename=name) for name in listed], tags=[], private=False, downloads=0, likes=0)
        server.files = {f'/datasets/uoft-cs/cifar10/resolve/{"b"*40}/{name}': c for name, c in listed.items()}
        server.files['/api/datasets/uoft-cs/cifar10'] = json.dumps(about).encode()
        yield server


@pytest.mark.skipif(huggingface_hub.__version__ < '1', reason='before 1.0 the hub cannot be another server')
@pytest.mark.parametrize('name', ['cifar10', 'uoft-cs/cifar10'])
def test_the_hub_is_the_last_mirror(hub_server, bare_machine, monkeypatch, http_server, name, capfd):
    monkeypatch.setattr(sources, 'cifar10_archives', (sources.Archive(http_server.answer('/a.tgz', 404), 1, ''),))
    found = sources.find_data(name, quiet=True)
    assert len(sources.train_files(found)) == 20 and capfd.readouterr() == ('', '')
    assert http_server.asked == (['/a.tgz'] if name == 'cifar10' else []) and not any('README' in path for path in hub_server.asked)


def test_no_hub(hub, bare_machine, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', 'http://127.0.0.1:9')
    with pytest.raises(ConnectionError, match='uoft-cs/cifar10 was not downloaded from the Hugging Face hub: '): sources.find_data('uoft-cs/cifar10', quiet=True)
    with pytest.raises(ConnectionError, match='CIFAR-10 could not be downloaded.\n  huggingface.co/datasets/uoft-cs/cifar10: .*not downloaded'): sources.find_data('cifar10', quiet=True)
    monkeypatch.setattr(formats, 'find_spec', lambda name: None)
    with pytest.raises(MissingPackageError, match='pyarrow'): sources.find_data('uoft-cs/cifar10', quiet=True)
    with pytest.raises(ConnectionError, match=r'\n  huggingface.co/datasets/uoft-cs/cifar10: Reading Parquet files needs the package pyarrow'): sources.find_data('cifar10', quiet=True)


# --- labels in a table

def kaggle(path, n=4, rows=None, test=True):
    (path/'train').mkdir(parents=True)
    for i in range(n): picture(i).save(path/'train'/f'{i + 1}.png')
    if test:
        (path/'test').mkdir()
        picture(9).save(path/'test'/'1.png')
    rows = [f'{i + 1},{("cat", "dog")[i % 2]}' for i in range(n)] if rows is None else rows
    (path/'trainLabels.csv').write_text('\n'.join(['id,label', *rows]) + '\n')
    return path


@pytest.mark.parametrize('how', ['folder', 'archive', 'without links'])
def test_kaggles_layout(tmp_path, bare_machine, monkeypatch, capsys, how):
    def refuse(*args): raise OSError('no links here')
    if how == 'without links': monkeypatch.setattr(os, 'link', refuse)
    path = kaggle(tmp_path/'cifar-10')
    source = pack(path, 'zip') if how == 'archive' else path
    found = sources.find_data(source)
    assert names(sources.train_files(found)) == ['train/cat/1.png', 'train/cat/3.png', 'train/dog/2.png', 'train/dog/4.png']
    assert sources.describe_data(found).n_test == 0 and (found/'train'/'dog'/'2.png').read_bytes() == (path/'train'/'2.png').read_bytes()
    assert how == 'archive' or 'the images in test are left out, because trainLabels.csv has no labels' in capsys.readouterr().err
    assert sources.find_data(source, quiet=True) == found and not leftovers(bare_machine)
    if how == 'folder':
        picture(7).save(path/'train'/'5.png')
        (path/'trainLabels.csv').write_text('id,label\n' + ''.join(f'{i},cat\n' for i in range(1, 6)))
        assert len(sources.train_files(sources.find_data(path, quiet=True))) == 5


@pytest.mark.parametrize('rows, error, text', [
    (['1,cat', '2,dog', '3,cat'], ValueError, 'trainLabels.csv has no label for 1 of the images in train/: 4.png. Add them'),
    (['1,cat', '2,dog', '3,cat', '4,dog', '5,cat'], FileNotFoundError, 'has the labels of 1 images that are not in train/: 5. Unpack all'),
    (['1,cat', '1,dog'], ValueError, 'row 3 is .*expected an image of its own'), (['1'], ValueError, r"row 2 is \['1'\]"), (['1,../cat'], ValueError, 'the name of a class'),
    (['1,'], ValueError, 'the name of a class'), (['1,' + 'a'*300], ValueError, 'the name of a class'), ([], ValueError, 'no label for 4'),
    (['1,' + 'a'*200_000], ValueError, 'is no table of labels')])
def test_wrong_tables(tmp_path, bare_machine, rows, error, text):
    with pytest.raises(error, match=text) as e: sources.find_data(kaggle(tmp_path/'set', rows=rows), quiet=True)
    assert str(tmp_path/'set') in str(e.value) and '\n' not in str(e.value) and not leftovers(bare_machine)


@pytest.mark.parametrize('text', ['label,id\ncat,1\n', '', '\xff'])
def test_tables_with_other_columns(tmp_path, bare_machine, text):
    path = kaggle(tmp_path/'set')
    (path/'trainLabels.csv').write_bytes(text.encode('latin1'))
    with pytest.raises(ValueError, match='trainLabels.csv is no table of labels'): sources.find_data(path, quiet=True)


# --- class folders alone

def flat(path, classes=('ant', 'bee', 'cow', 'dog'), n=4):
    for k, c in enumerate(classes):
        (path/c).mkdir(parents=True)
        for i in range(n): picture(100*k + i).save(path/c/f'{i}.jpg', quality=95)
    return path


@pytest.mark.parametrize('how', ['folder', 'folder above', 'archive', 'archive without a folder', 'without links'])
def test_class_folders_are_split(tmp_path, bare_machine, monkeypatch, capsys, how):
    def refuse(*args, **kwargs): raise OSError('no links here')
    if how == 'without links': monkeypatch.setattr(Path, 'symlink_to', refuse)
    path = flat(tmp_path/'more'/'photos')
    source = {'folder above': path.parent, 'archive': path, 'archive without a folder': path}.get(how, path)
    if how == 'archive': source = pack(path, 'zip')
    if how == 'archive without a folder': source = Path(shutil.make_archive(tmp_path/'flat', 'zip', path))
    dls = data.cifar10_dataloaders(source, bs=4, valid=.25)
    assert list(dls.vocab) == ['ant', 'bee', 'cow', 'dog'] and (len(dls.train_ds), len(dls.valid_ds), dls.data_info.n_test) == (12, 4, 0)
    said = capsys.readouterr().err
    assert 'archive' in how or 'photos has no train folder: its folders (ant, bee, cow and 1 more) are the classes' in said
    again = data.cifar10_dataloaders(dls.path, bs=4, valid=.25)
    assert list(again.valid_ds.items) == list(dls.valid_ds.items) and again.data_info.fingerprint == dls.data_info.fingerprint
    if how in ('folder', 'without links'):
        def n_files(): return len(sources.train_files(sources.find_data(path, quiet=True)))
        picture(5).save(path/'ant'/'new.jpg')
        assert n_files() == 17
        (path/'ant'/'new.jpg').unlink()
        assert n_files() == 16
    if how == 'folder':
        shutil.rmtree(path)
        with pytest.raises(OSError, match='which does not exist'): sources.describe_data(dls.path)


def test_images_that_are_relative_links(tmp_path, bare_machine):
    "In Kaggle's layout, as data versioning makes them"
    folder = kaggle(tmp_path/'k')
    (folder/'objects').mkdir()
    for file in sorted((folder/'train').iterdir()):
        file.rename(folder/'objects'/file.name)
        file.symlink_to(Path('..')/'objects'/file.name)
    info = sources.describe_data(sources.find_data(folder, quiet=True))
    assert info.n_train == 4 and info.unreadable == ()


def test_what_is_wrong_with_class_folders_alone(tmp_path, bare_machine):
    path = flat(tmp_path/'photos')
    (path/'empty').mkdir()
    with pytest.raises(ValueError, match='no images in empty') as e: sources.find_data(path, quiet=True)
    assert str(e.value).startswith(f'{path}: ') and not leftovers(bare_machine)
    (path/'empty').rename(path/'Ant\u200b')
    picture().save(path/'Ant\u200b'/'0.png')
    (path/'ant').rename(path/'Ant')
    with pytest.raises(ValueError, match=f'{path}: the class folders .* look alike'): sources.find_data(path, quiet=True)


def test_a_run_on_class_folders_alone(tmp_path, bare_machine):
    from cifar_fastai.evaluation import evaluate
    from cifar_fastai.probing import features
    from cifar_fastai.training import load_run, load_run_for, train
    from small_runs import tiny
    path = flat(tmp_path/'photos', n=10)
    train(tiny.change(bs=8, valid=.2).shorten(1), source=path, run_dir=tmp_path/'run', num_workers=0)
    assert len(load_run(tmp_path/'run', num_workers=0).dls.valid_ds) == 8
    with pytest.warns(UserWarning, match='the images that .* was trained on'): learn = load_run_for(tmp_path/'run', path, num_workers=0)
    assert evaluate(learn).trained_on and features(learn, n=4).evaluation.trained_on


# --- arrays

def save_arrays(folder, name='cifar10.1_v6', n=20, images=None, labels=None):
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) if images is None else images
    np.save(folder/f'{name}_data.npy', images)
    np.save(folder/f'{name}_labels.npy', np.arange(n, dtype=np.int32) % 10 if labels is None else labels)
    return folder


@pytest.mark.parametrize('how', ['folder', 'images', 'labels'])
def test_new_test_images_in_arrays(tmp_path, bare_machine, how):
    folder = save_arrays(tmp_path/'CIFAR-10.1')
    source = {'folder': folder, 'images': folder/'cifar10.1_v6_data.npy', 'labels': folder/'cifar10.1_v6_labels.npy'}[how]
    info = sources.describe_labeled(source, cifar10_classes)
    assert (info.n_test, info.n_train, info.classes, info.size) == (20, 0, cifar10_classes, (32, 32)) and info.variant.startswith('cifar10.1_v6-')
    image = np.array(Image.open(info.path/'test'/'bird'/'12_bird.png'))
    assert (image == np.load(folder/'cifar10.1_v6_data.npy')[12]).all()
    with pytest.raises(ValueError, match='but the network knows cat, dog'): sources.describe_labeled(source, ['cat', 'dog'])
    with pytest.raises((ValueError, FileNotFoundError), match='numpy.load|test images only'): sources.find_data(source)


def test_two_versions_of_arrays(tmp_path, bare_machine):
    folder = save_arrays(save_arrays(tmp_path/'set'), 'cifar10.1_v4')
    with pytest.raises(ValueError, match='several data sets: cifar10.1_v4, cifar10.1_v6. Pass the file'): sources.describe_labeled(folder, cifar10_classes)
    assert sources.describe_labeled(folder/'cifar10.1_v4_data.npy', cifar10_classes).n_test == 20


zeros = np.zeros((20, 32, 32, 3), np.uint8)


@pytest.mark.parametrize('images, labels, text', [
    (zeros.astype(np.float32), None, 'data.npy has the shape .* float32. Images must be'), (zeros[..., :1], None, 'Images must be'), (zeros.reshape(20, -1), None, 'Images must be'),
    (np.zeros((1, 5000, 1, 3), np.uint8), [0], 'sides of up to 4,096'),
    (None, np.zeros(19, int), 'has 19 labels, and cifar10.1_v6_data.npy 20 images. Each image needs one'), (None, np.zeros((20, 1), int), 'Labels must be a whole number'),
    (None, np.zeros(20), 'float64. Labels must be'), (None, np.arange(20), 'has the label 10, expected 0 to 9: airplane'), (None, np.arange(20) - 1, 'has the label -1'),
    (None, np.array([dict(clean_label=[0])]*20), 'it holds Python objects, which could run code'), (np.array([zeros, None], object), None, 'could run code'),
])
def test_wrong_arrays(tmp_path, bare_machine, images, labels, text):
    with pytest.raises(ValueError, match=text): sources.describe_labeled(save_arrays(tmp_path/'set', images=images, labels=labels), cifar10_classes)


@pytest.mark.parametrize('damage, text', [(lambda b: b[:-1], 'was not loaded'), (lambda b: b[:50], 'was not loaded'), (lambda b: b'', 'was not loaded'), (lambda b: b'\x93NUMPY', 'was not loaded'),
                                          (lambda b: b.replace(b"'fortran_order': False", b"'fortran_order': (((("), 'was not loaded'), (lambda b: pickle.dumps(1), 'could run code')])
def test_damaged_arrays(tmp_path, bare_machine, damage, text):
    file = save_arrays(tmp_path/'set')/'cifar10.1_v6_data.npy'
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=f'{file} {text}' if text == 'was not loaded' else text): sources.describe_labeled(tmp_path/'set', cifar10_classes)


def test_missing_arrays(tmp_path, bare_machine):
    folder = save_arrays(tmp_path/'set')
    (folder/'cifar10.1_v6_labels.npy').unlink()
    with pytest.raises(FileNotFoundError, match='cifar10.1_v6_labels.npy is missing'): sources.describe_labeled(folder, cifar10_classes)
    with (folder/'cifar10.1_v6_labels.npy').open('wb') as f: np.savez(f, a=zeros)
    with pytest.raises(ValueError, match='an archive of several arrays'): sources.describe_labeled(folder, cifar10_classes)


# --- labels by people

def test_the_guide_reads_labels_of_people(tmp_path, monkeypatch, bare_machine):
    import torch
    monkeypatch.chdir(tmp_path)
    labels = [i % 10 for i in range(20)]
    for split in ('train', 'test'):
        for i, k in enumerate(labels):
            folder = tmp_path/'original'/split/cifar10_classes[k]
            folder.mkdir(parents=True, exist_ok=True)
            picture(i).save(folder/f'{i}_{cifar10_classes[k]}.png')
    torch.save(dict(clean_label=np.array(labels), worse_label=np.array([(k + (i == 3)) % 10 for i, k in enumerate(labels)])), 'CIFAR-10_human.pt')
    guide = json.loads((Path(__file__).parent.parent/'nbs'/'guides'/'01_your_own_images.ipynb').read_text())
    text = next(t for t in map(''.join, (c['source'] for c in guide['cells'])) if '## Labels by people' in t)
    code = text.partition('```python\n')[2].partition('```')[0]
    assert "'cifar-10-python.tar.gz'" in code
    exec(code.replace("'cifar-10-python.tar.gz'", "'original'"), {})
    assert sources.describe_data('cifar10n').n_train == 20 and (tmp_path/'cifar10n'/'train'/'deer'/'3_cat.png').is_file()
    class Evil:
        def __reduce__(self): return os.mkdir, ('evil',)
    torch.save(dict(clean_label=Evil()), 'CIFAR-10_human.pt')
    with pytest.raises(Exception, match='(?i)weights.only'): exec(code, {})
    assert not (tmp_path/'evil').exists()
