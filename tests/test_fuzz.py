"""Every reader of files under a fuzzer. Whatever a file holds, the answer is a result or a documented error, soon and in little
memory; nothing is run, and nothing is opened outside the folder. `--examples 20000` tries that many files for each reader."""
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from PIL import Image
from safetensors.torch import load, save
from torch import nn

from cifar_fastai import course
from cifar_fastai.caching import ItemCache
from cifar_fastai.evaluation import Evaluation, load_evaluation
from cifar_fastai.archives import unpack_archive
from cifar_fastai.experiments import read_runs
from cifar_fastai.formats import convert_batches, convert_parquet, read_arrays, write_images
from cifar_fastai.hub import model_card
from cifar_fastai.images import ColorImage, UnreadableImageError, bit_depth, image_pixels, read_image, read_size, why_unreadable
from cifar_fastai.inference import ClassifierInfo, load_classifier
from cifar_fastai.recipes import Head, Recipe
from cifar_fastai.runs import Run, list_runs
from cifar_fastai.sources import find_data, sort_tiny_imagenet
from cifar_fastai.synthetic import make_synthetic
from cifar_fastai.training import build_model, train
from cifar_fastai.weights import find_weights, load_weights
from small_runs import At, kinds, tiny
from small_sets import pack, picture, tiny_batches, tiny_set

pytestmark = pytest.mark.skipif(not hasattr(signal, 'setitimer'), reason='needs timers and limits of POSIX')


# --- what a reader may do

seconds, more_memory = 5, 2**30
watched = dict(folder=None, seen=[])  # the folder of the reader that runs now, and what it did against the rules
runs_something = {'os.system', 'os.exec', 'os.posix_spawn', 'os.fork', 'subprocess.Popen', 'socket.connect', 'socket.getaddrinfo',
                  'shutil.unpack_archive', 'webbrowser.open'}
changes = {'os.mkdir', 'os.rename', 'os.remove', 'os.rmdir', 'os.link', 'os.symlink', 'os.chmod', 'os.truncate'}


def watch(event, args):
    "Note programs, connections, and files outside the folder that are written, or read where no reader has to look"
    folder = watched['folder']
    if folder is None: return
    if event in runs_something: watched['seen'].append((event, args))
    elif event == 'open' or event in changes:
        if event in ('os.remove', 'os.rmdir') and args[1] >= 0: return  # below a folder that was opened, as `shutil.rmtree` does
        paths = [os.path.abspath(os.fsdecode(o)) for o in args[:2 if event in ('os.rename', 'os.link') else 1] if isinstance(o, (str, bytes, os.PathLike))]
        writes = event != 'open' or isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        for path in paths:
            inside = os.path.join(path, '').startswith(folder)
            secret = path.startswith(os.path.dirname(folder.rstrip('/')))
            if not inside and (writes and path != os.devnull or secret): watched['seen'].append((event, args))


@cache
def start_watching(): sys.addaudithook(watch)  # which stays for ever


class Hang(BaseException): "No reader catches it"


def hang(*_): raise Hang


@contextmanager
def bounded(folder):
    "A second limit, of real time, is for a reader that waits"
    start_watching()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open('/proc/self/statm') as f: now = int(f.read().split()[0])*resource.getpagesize()
    before = {s: signal.signal(s, hang) for s in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (now + more_memory, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 20*seconds)
    watched.update(folder=os.path.join(os.path.abspath(folder), ''), seen=[])
    try: yield
    finally:
        watched['folder'] = None
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL): signal.setitimer(timer, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        for s, handler in before.items(): signal.signal(s, handler)
    assert not watched['seen'], watched['seen']


def is_documented(e): # the errors of Python's own decoders do not say which file is damaged
    return isinstance(e, (ValueError, OSError)) and not isinstance(e, UnicodeError) and type(e) is not json.JSONDecodeError and bool(str(e))


def outcome(read, folder):
    "What a reader returns, or the error that it raises: one of those that it may"
    try:
        with bounded(folder), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return read(folder)
    except Exception as e:
        if not is_documented(e): raise
        return e


# --- two ways to damage a file

ends = st.sampled_from(['<', '>'])
numbers = st.sampled_from([0, 1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
places = st.integers(0, 2**20)
edits = st.lists(st.one_of(
    st.tuples(st.just('flip'), places, st.integers(0, 7)),
    st.tuples(st.just('put'), places, st.binary(min_size=1, max_size=8)),
    st.tuples(st.just('number'), places, st.tuples(ends, st.sampled_from('BHIQ'), numbers)),
    st.tuples(st.just('insert'), places, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just('remove'), places, st.sampled_from([1, 2, 4, 16, 100])),
    st.tuples(st.just('repeat'), places, st.tuples(st.sampled_from([1, 4, 40]), st.sampled_from([2, 50, 2000]))),
    st.tuples(st.just('cut'), places, st.none())), min_size=1, max_size=4)


def edited(content, changes):
    content = bytearray(content)
    for kind, i, how in changes:
        i %= len(content) + 1
        if kind == 'flip' and i < len(content): content[i] ^= 1 << how
        elif kind == 'put': content[i:i+len(how)] = how
        elif kind == 'number':
            end, size, n = how
            number = struct.pack(end + size, n % 2**(8*struct.calcsize(size)))
            content[i:i+len(number)] = number
        elif kind == 'insert': content[i:i] = how
        elif kind == 'remove': del content[i:i+how]
        elif kind == 'repeat': content[i:i] = content[i:i+how[0]]*how[1]
        elif kind == 'cut': del content[i:]
    return bytes(content)


def nested(n, kind): # what JSON's own parser accepts
    value = 1
    for _ in range(n): value = [value] if kind == 'list' else {'dict': value} if kind == 'dict' else {kind: [value]}
    return value


odd_values = [None, True, False, 0, -1, 1, 2, 2**31, 2**63, 10**20, -10**20, .5, 1e308, 5e-324, '', 'a', '0', 'nan', '../../x', '/etc/passwd', '..',
              '\0', '\ud800', '\u202e', 'é', '\n', 'x'*5000, 'F8_E4M3', 'I64', [], {}, [[]], [{}], {'a': 1}, [1, 2, 3], ['a', 'a'], [0, 'a', None]]
odd = st.one_of(st.sampled_from(odd_values), st.builds(nested, st.sampled_from([50, 400, 900]), st.sampled_from(['list', 'dict', 'tuple'])),
                st.integers(-10, 300), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=5))
json_edits = st.lists(st.tuples(st.sampled_from(['replace', 'replace', 'remove', 'rename', 'double', 'copy']), places, places, odd), min_size=1, max_size=3)


def places_of(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if len(path) == 20: return  # deep enough
    for key, inner in items: yield from places_of(inner, (*path, key))


def at(value, path):
    for key in path: value = value[key]
    return value


def json_edited(value, changes):
    "Change places in a tree of JSON; the object itself stays one"
    value = json.loads(json.dumps(value))
    for kind, i, j, new in changes:
        found = [p for p in places_of(value) if p]
        if not found: return value
        *above, key = found[i % len(found)]
        owner = at(value, above)
        if kind == 'replace': owner[key] = json.loads(json.dumps(new))
        elif kind == 'copy': owner[key] = json.loads(json.dumps(at(value, found[j % len(found)])))
        elif kind == 'remove': del owner[key]
        elif kind == 'rename' and isinstance(owner, dict): owner[str(new)[:50]] = owner.pop(key)
        elif kind == 'double' and isinstance(owner[key], (list, str)): owner[key] = owner[key]*(2 + j % 50)
    return value


def in_json(content, changes): return json.dumps(json_edited(json.loads(content), changes)).encode()


def in_header(content, changes):
    "In the JSON with which a safetensors file begins"
    n = int.from_bytes(content[:8], 'little')
    header = in_json(content[8:8+n], changes)
    return len(header).to_bytes(8, 'little') + header + content[8+n:]


def in_member(content, changes, name=''):
    "In one member of a zip, which gets the right checksum"
    with zipfile.ZipFile(io.BytesIO(content)) as z: members = {m: z.read(m) for m in z.namelist()}
    names = [m for m in members if name in m]
    chosen = names[changes[0][1] % len(names)]
    members[chosen] = edited(members[chosen], changes)
    with zipfile.ZipFile(out := io.BytesIO(), 'w') as z:
        for m, inner in members.items(): z.writestr(m, inner)
    return out.getvalue()


def in_about(content, changes):
    "In the JSON of an evaluation"
    with np.load(io.BytesIO(content)) as saved: arrays = dict(saved)
    arrays['about'] = np.frombuffer(in_json(arrays['about'].tobytes(), changes), np.uint8)
    np.savez(out := io.BytesIO(), **arrays)
    return out.getvalue()


def in_gzip(content, changes): return zlib.compress(edited(zlib.decompress(content, 31), changes), wbits=31)


def in_tar(content, changes):
    "With a right checksum of every header"
    content = bytearray(edited(content, changes))
    for start in range(0, len(content) - 511, 512):
        if content[start+257:start+262] != b'ustar': continue
        content[start+148:start+156] = b' '*8
        content[start+148:start+156] = b'%06o\0 ' % sum(content[start:start+512])
    return bytes(content)


def in_chunk(content, changes):
    "In one chunk of a PNG, which gets the right checksum"
    chunks, i = [], 8
    while i < len(content):
        n = int.from_bytes(content[i:i+4], 'big')
        chunks.append((content[i+4:i+8], content[i+8:i+8+n]))
        i += n + 12
    chosen = changes[0][1] % len(chunks)
    chunks[chosen] = chunks[chosen][0], edited(chunks[chosen][1], changes)
    return content[:8] + b''.join(struct.pack('>I', len(c)) + k + c + struct.pack('>I', zlib.crc32(k + c)) for k, c in chunks)


# --- the readers

@cache
def folder_of(make):
    "The files of a folder: name -> content"
    import tempfile
    with tempfile.TemporaryDirectory() as t:
        make(Path(t))
        return {p.relative_to(t).as_posix(): p.read_bytes() for p in sorted(Path(t).rglob('*')) if p.is_file()}


readers = {} # name -> (the files, the ones to damage with each way of damaging them, reader, share of the examples)


def reader(name, make, *ways, share=1.):
    "Register a function of a folder: each of `ways` is (file, strategy, how to apply it)"
    def register(read):
        readers[name] = make, ways, read, share
        return read
    return register


def both(file): return (file, edits, edited), (file, json_edits, in_json)


def make_archive(kind, folder):
    tiny_set(folder/'set', n_train=2, n_test=1, size=(4, 4))
    shutil.copy(pack(folder/'set', kind), folder/f'a.{kind}')
    for p in folder.iterdir():
        if p.name != f'a.{kind}': shutil.rmtree(p) if p.is_dir() else p.unlink()


def unpack(kind, folder):
    try: return unpack_archive(folder/f'a.{kind}', folder/'to')
    finally: assert {p.name for p in folder.iterdir()} <= {f'a.{kind}', 'to'}


for kind, way in dict(tar=in_tar, gztar=in_gzip, zip=in_member).items():
    reader(f'archive {kind}', partial(make_archive, kind), (f'a.{kind}', edits, edited), (f'a.{kind}', edits, way))(partial(unpack, kind))


def read_picture(name, folder):
    file = folder/name
    why, size, depth = why_unreadable(file), read_size(file), bit_depth(file)
    assert size is None or all(n > 0 for n in size)
    assert depth in (None, 8, 10, 12, 14, 16)
    read_image(file, (8, 8))
    image = read_image(file)
    assert why is None and image.mode == 'RGB' and image.size == size[::-1]
    assert image_pixels(file, (4, 4), 1).isfinite().all()
    assert ColorImage.create(file).size == image.size


def save_picture(name, mode, options, folder):
    exif = Image.Exif()
    exif[274] = 6
    picture(size=(10, 12)).convert(mode).save(folder/name, **dict(options, exif=exif) if 'exif' in options else options)


pictures = dict(
    png=('RGB', dict(exif=1)), palette_png=('P', {}), gray_png=('LA', {}), jpg=('RGB', dict(exif=1)), progressive_jpg=('RGB', dict(progressive=True)),
    cmyk_jpg=('CMYK', {}), gif=('P', {}), bmp=('RGB', {}), tif=('RGB', dict(compression='raw')), lzw_tif=('RGBA', dict(compression='tiff_lzw')),
    jpeg_tif=('RGB', dict(compression='jpeg')), deep_tif=('F', {}), webp=('RGB', {}), lossless_webp=('RGBA', dict(lossless=True)), ppm=('RGB', {}),
    ico=('RGBA', dict(sizes=[(12, 10)])), tga=('RGB', dict(compression='tga_rle')), jp2=('RGB', {}), avif=('RGB', {}), pcx=('P', {}), sgi=('RGB', {}), dds=('RGB', {}),
    im=('RGB', {}), xbm=('1', {}), msp=('1', {}))
for kind, (mode, options) in pictures.items():
    name = 'a.' + kind.rpartition('_')[2]
    ways = [(name, edits, edited)]
    if name == 'a.png': ways.append((name, edits, in_chunk))
    reader(f'picture {kind}', partial(save_picture, name, mode, options), *ways)(partial(read_picture, name))


def make_batches(folder): tiny_batches(folder/'batches')


@reader('batches', make_batches, *[(f'batches/{f}', edits, edited) for f in ('data_batch_1', 'test_batch', 'batches.meta')])
def read_batches(folder):
    md5s = {f.name: hashlib.md5(f.read_bytes()).hexdigest() for f in (folder/'batches').iterdir()}
    return convert_batches(folder/'batches', folder/'to', md5s)


def make_parquet(folder):
    import pyarrow
    import pyarrow.parquet
    images = [dict(bytes=png_of(i), path='') for i in range(4)]
    about = dict(info=dict(features=dict(img=dict(_type='Image'), label=dict(names=['cat', 'dog'], _type='ClassLabel'))))
    table = pyarrow.table(dict(img=images, label=[0, 1, 1, 0])).replace_schema_metadata(dict(huggingface=json.dumps(about)))
    pyarrow.parquet.write_table(table, folder/'train.parquet', compression='none')


def png_of(seed):
    picture(seed, size=(4, 4)).save(file := io.BytesIO(), 'png')
    return file.getvalue()


@reader('parquet', make_parquet, ('train.parquet', edits, edited))
def read_parquet_files(folder): return convert_parquet(dict(train=[folder/'train.parquet']), folder/'to')


def make_arrays(folder):
    np.save(folder/'new_data.npy', np.zeros((4, 4, 4, 3), np.uint8))
    np.save(folder/'new_labels.npy', np.arange(4))


@reader('arrays', make_arrays, ('new_data.npy', edits, edited), ('new_labels.npy', edits, edited))
def read_array_files(folder):
    arrays = read_arrays(folder/'new_data.npy', folder/'new_labels.npy', ['a', 'b', 'c', 'd'])
    write_images(arrays.pixels, arrays.labels, arrays.classes, folder/'to')


def make_table(folder):
    (folder/'set'/'train').mkdir(parents=True)
    for i in range(2): picture(i, size=(4, 4)).save(folder/'set'/'train'/f'{i}.png')
    (folder/'set'/'trainLabels.csv').write_text('id,label\n0,cat\n1,dog\n')


@reader('table of labels', make_table, ('set/trainLabels.csv', edits, edited))
def read_table(folder): return find_data(folder/'set', root=folder/'cache', quiet=True)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def make_weights(kind, folder):
    state = network().state_dict()
    if kind == 'safetensors': (folder/'w.safetensors').write_bytes(save(state))
    else: torch.save(dict(model=state, epoch=3), folder/'w.pth', _use_new_zipfile_serialization=kind == 'pth')


def read_weights(folder):
    file, = folder.iterdir()
    return load_weights(network(), find_weights('tiny_cnn', file))


reader('weights safetensors', partial(make_weights, 'safetensors'), ('w.safetensors', edits, edited), ('w.safetensors', json_edits, in_header))(read_weights)
reader('weights pth', partial(make_weights, 'pth'), ('w.pth', edits, edited), ('w.pth', edits, partial(in_member, name='data.pkl')))(read_weights)
reader('weights old pth', partial(make_weights, 'old'), ('w.pth', edits, edited))(read_weights)

recipe = tiny.change(model='tiny_cnn', bs=16, head=Head(lin_ftrs=(8,)))


def make_classifier(folder):
    weights = save(build_model(recipe, 2).state_dict())
    info = ClassifierInfo(recipe=recipe, vocab=('cat', 'dog'), mean=(.5,)*3, std=(.5,)*3, channels=3, item_size=(32, 32), image_size=32)
    (folder/'model-1.safetensors').write_bytes(weights)
    about = info.to_dict() | dict(weights='model-1.safetensors', sha256=hashlib.sha256(weights).hexdigest())
    (folder/'classifier.json').write_text(json.dumps(about))


@reader('classifier', make_classifier, *both('classifier.json'), share=.5)
def read_classifier(folder):
    classifier = load_classifier(folder, 'cpu')
    repr(classifier)
    str(classifier.predict(picture()))


@reader('classifier weights', make_classifier, ('model-1.safetensors', edits, edited), ('model-1.safetensors', json_edits, in_header), share=.5)
def read_classifier_weights(folder):
    about = json.loads((folder/'classifier.json').read_text())
    about['sha256'] = hashlib.sha256((folder/'model-1.safetensors').read_bytes()).hexdigest()
    (folder/'classifier.json').write_text(json.dumps(about))
    return read_classifier(folder)


def make_evaluation(folder):
    probs = np.float32([[.75, .25], [.5, .5], [.125, .875]])
    Evaluation(probs, np.int64([0, 1, 1]), np.float32([.1, .2, .3]), ['a.png', 'b.png', 'c.png'], ['cat', 'dog'], root='data').save(folder/'test.npz')


@reader('evaluation', make_evaluation, ('test.npz', edits, edited), ('test.npz', edits, in_member), ('test.npz', json_edits, in_about))
def read_evaluation(folder):
    result = load_evaluation(folder/'test.npz')
    repr(result), result._repr_html_(), result.top_losses(2), result.with_temperature(2.)
    json.dumps(result.to_dict())


several = kinds['stages'][0].change(stats=((.5,)*3, (.5,)*3), groups=('head',), head=None)


def make_recipe(folder): (folder/'recipe.json').write_text(several.to_json())


@reader('recipe', make_recipe, *both('recipe.json'))
def read_recipe(folder):
    found = Recipe.from_json((folder/'recipe.json').read_text(encoding='utf-8', errors='surrogateescape'))
    assert Recipe.from_json(found.to_json()) == found and hash(found) == hash(Recipe.from_json(found.to_json()))
    repr(found), found.epochs


def make_run(folder):
    run = Run.create(folder, recipe, dict(seed=0, parameters=dict(body=1, head=2), device='cpu', resumed=[dict(versions={})],
        data=dict(variant='v', path='.', classes=['cat', 'dog'], channels=3, limit=None, fingerprint='f', size=[32, 32], valid_digest='')))
    model = build_model(recipe, 2)
    try:
        with run.training(model):
            run.add_epoch(dict(stage=1, epoch=1, train_loss=1., valid_loss=1., accuracy=.5, lr=.1, seconds=1.))
            run.add_recalls(1, 1, dict(cat=.5, dog=.25))
            raise KeyboardInterrupt
    except KeyboardInterrupt: pass
    run.add_metrics('valid', dict(accuracy=.5, loss=1.))
    info = {k: v for k, v in json.loads(run.info_file.read_text()).items() if k not in ('checksums', 'content_checksum', 'command', 'started')}
    run.info_file.write_text(json.dumps(info))
    run.metrics_file.write_text(json.dumps(run.metrics))


of_run = ('run.json', 'recipe.json', 'metrics.json')
tables = ('history.csv', 'recalls.csv')


def attempt(read, *args):
    "The value, or the documented error"
    try: return read(*args)
    except Exception as e:
        if not is_documented(e): raise
        return e


@reader('run', make_run, *[way for f in of_run for way in both(f)], *[(f, edits, edited) for f in tables],
        ('model.safetensors', edits, edited), ('model.safetensors', json_edits, in_header), share=.4)
def read_run(folder):
    run = Run(folder)
    for what in ('info', 'status', 'recipe', 'choices', 'history', 'recalls', 'metrics'): attempt(getattr, run, what)
    attempt(run.warn_if_killed), attempt(run.read_weights), attempt(run.load_weights, build_model(recipe, 2)), attempt(run.keep_epochs, 1)
    attempt(read_runs, [r.folder for r in list_runs(folder)]), attempt(read_runs, folder)
    attempt(load_classifier, folder, 'cpu'), attempt(find_weights, 'ladder_0', folder), attempt(Run.open, folder)


def make_finished(folder):
    make_run(folder)
    run = Run(folder)
    info = json.loads(run.info_file.read_text())
    data = info['data'] | dict(n_train=4, n_valid=2, n_test=2)
    run.info_file.write_text(json.dumps(info | dict(status='finished', data=data, parameters=dict(trainable=1, frozen=2))))
    result = Evaluation(np.full((2, 2), .5, np.float32), np.array([0, 1]), np.ones(2, np.float32), ['a', 'b'], ['cat', 'dog'])
    run.metrics_file.write_text(json.dumps(dict(valid=dict(accuracy=.5), test=result.to_dict() | dict(most_confused=result.most_confused()))))
    result.save(run.evaluation_file('test'))


@reader('card', make_finished, *both('run.json'), *both('metrics.json'), ('test.npz', edits, edited), share=.5)
def read_card(folder): str(model_card(folder, 'jane/cnn'))


@reader('grid', lambda folder: make_run(folder/'a'), *[way for f in of_run for way in both(f'a/{f}')], share=.5)
def read_grid(folder):
    shutil.copytree(folder/'a', folder/'b')
    shutil.copy(folder/'b'/'recipe.json', folder/'a'/'recipe.json') if (folder/'a'/'recipe.json').stat().st_size % 2 else None
    return read_runs(folder)


results = 'run,recipe,lr,seed,valid_accuracy,status,error\na-seed0,a,0.1,0,0.5,finished,\n"b-seed0",b,"[0.1, 0.2]",1,,failed,"it, ""failed"""\n'


@reader('results', lambda folder: (folder/'results.csv').write_text(results), ('results.csv', edits, edited))
def read_results(folder): return read_runs(folder)


def make_progress(folder): (folder/'course.json').write_text(json.dumps({'1.1': dict(attempts=2, right=False, hint='Look again'), '1.2': dict(attempts=1, right=True)}))


@reader('progress', make_progress, *both('course.json'), share=.5)
def read_progress(folder):
    attempt(course.exercises), attempt(course.solution, '1.1'), attempt(course.check, '1.1', 5), attempt(course.tutorials)
    attempt(course.reset_progress, '1.1'), attempt(course.reset_progress)


def make_annotations(folder):
    tiny_set(folder, n_train=1, n_test=1)
    shutil.rmtree(folder/'test')
    (folder/'val'/'images').mkdir(parents=True)
    for i in range(2): picture(i, size=(4, 4)).save(folder/'val'/'images'/f'{i}.png')
    (folder/'val'/'val_annotations.txt').write_text('0.png\tcat\t0\t0\n1.png\tdog\t0\t0\n')


@reader('annotations', make_annotations, ('val/val_annotations.txt', edits, edited))
def read_annotations(folder): return sort_tiny_imagenet(folder)


def read_cache(folder): return ItemCache(3, lambda i: (torch.full((2,), i),), folder/'items.safetensors', 'these').take([0, 1, 2])


@reader('decoded images', read_cache, ('items.safetensors', edits, edited), ('items.safetensors', json_edits, in_header))
def check_cache(folder): assert read_cache(folder)[0].tolist() == [[0, 0], [1, 1], [2, 2]]


@reader('practice set', lambda folder: make_synthetic(folder/'set', n_train=1, n_test=1), *both('set/practice_set.json'), share=.1)
def read_practice(folder): return make_synthetic(folder/'set', n_train=1, n_test=1)


def make_stopped(folder):
    "A training that was stopped in its second epoch"
    make_synthetic(folder/'data', n_train=4, n_test=1)
    def stop(learn): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(stopped, source=folder/'data', run_dir=folder/'run', num_workers=0, device='cpu', checkpoint_minutes=0, cbs=[At(stop, 1, 1)])
    last = Run(folder/'run').checkpoints()[-1]
    for file in last.parent.iterdir():
        if file.stem != last.stem: file.unlink()
        else: file.rename(file.with_stem('000001'))
    found = json.loads((last.parent/'000001.json').read_text())
    (last.parent/'000001.json').write_text(json.dumps(found['state']))


stopped = tiny.change(model='ladder_0', bs=10, valid=.25)
of_checkpoint = 'run/checkpoints/000001'


@reader('checkpoint', make_stopped, (f'{of_checkpoint}.json', json_edits, in_json), (f'{of_checkpoint}.safetensors', edits, edited),
        (f'{of_checkpoint}.safetensors', json_edits, in_header), share=.1)
def resume(folder):
    file = folder/f'{of_checkpoint}.json'
    tensors = hashlib.sha256(file.with_suffix('.safetensors').read_bytes()).hexdigest()
    file.write_text(json.dumps(dict(state=json.loads(file.read_text()), tensors=tensors)))
    train(resume=folder/'run', source=folder/'data', num_workers=0, device='cpu', force=True)


def test_text_instead_of_a_callback_s_number(tmp_path):
    make_stopped(tmp_path)
    file = tmp_path/f'{of_checkpoint}.json'
    state = json.loads(file.read_text())
    attributes,number = next((a, k) for _,a in state['callbacks'] for k,v in a.items() if type(v) is int)
    attributes[number] = 'seven'
    file.write_text(json.dumps(state))
    with pytest.raises(ValueError, match="do not fit.*'seven' instead of a number"): resume(tmp_path)


# --- the fuzzer

@pytest.fixture
def n_examples(request): return request.config.getoption('examples')


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch, tmp_path):
    "Damage makes sizes of any height: what the largest ones cost is measured elsewhere"
    monkeypatch.setenv('CIFAR_FASTAI_MAX_PIXELS', str(2**20))
    monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path/'reader'))


def fill(folder, files):
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(content)


@pytest.mark.parametrize('name', readers)
def test_damage_is_a_documented_error(name, tmp_path, n_examples):
    make, ways, read, share = readers[name]
    files = folder_of(make)
    folder = tmp_path/'reader'
    fill(folder, files)
    if not isinstance(right := outcome(read, folder), Exception): pass
    else: raise AssertionError('what is not damaged must be read') from right

    def strategy(way): return st.tuples(st.just(way), way[1])
    n = n_examples or int(60*share)
    @settings(max_examples=n, derandomize=not n_examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(*map(strategy, ways)))
    def damage(change):
        (file, _, apply), how = change
        fill(folder, files | {file: apply(files[file], how)})
        outcome(read, folder)
        assert [p.name for p in tmp_path.iterdir()] == ['reader']
    damage()


# --- what the fuzzer and reading for it have found

def refused(read, folder, text):
    "A documented error, in bounded time and memory"
    error = outcome(read, folder)
    assert isinstance(error, ValueError) and text in str(error), error


def tiny_reader(name, tmp_path):
    "The files of a reader in a folder"
    make, ways, read, _ = readers[name]
    fill(folder := tmp_path/'reader', folder_of(make))
    return folder, read


@pytest.mark.parametrize('file, content, text', [
    ('data_batch_1', b'\x80', 'data_batch_1 is damaged'),  # EOFError, UnpicklingError, UnicodeDecodeError ...
    ('data_batch_1', b'\x80\x04\x95' + b'\xff'*8, 'data_batch_1 is damaged'),  # OverflowError
    ('data_batch_1', pickle.dumps([1]), 'it holds a value of type list'),
    ('data_batch_1', pickle.dumps(dict(labels=[])), 'data must be images'),
    ('data_batch_1', pickle.dumps(dict(data=np.zeros((1, 3072), np.uint8), labels=[2])), 'labels must be'),
    ('test_batch', pickle.dumps(dict(data=np.zeros((1, 3072), np.uint8), labels=['cat'])), 'labels must be'),
    ('batches.meta', pickle.dumps({}), 'label_names must be'),
    ('batches.meta', pickle.dumps(dict(label_names=['../../cat', 'dog'])), 'label_names must be'),  # which were written there
    ('batches.meta', b'cposix\nsystem\n(S"true"\ntR.', 'only NumPy arrays are allowed')])
def test_batches_of_another_content(tmp_path, file, content, text):
    folder, read = tiny_reader('batches', tmp_path)
    (folder/'batches'/file).write_bytes(content)
    refused(read, folder, text)
    assert not (folder/'to').exists()


def weights_file(tmp_path, state):
    (tmp_path/'reader').mkdir()
    torch.save(state, tmp_path/'reader'/'w.pth')
    return tmp_path/'reader'


def test_weights_in_a_dictionary_that_holds_itself(tmp_path):
    state = dict(w=torch.zeros(2))
    state['model'] = state  # which was looked into for ever
    refused(read_weights, weights_file(tmp_path, state), 'holds values that are not tensors')


@pytest.mark.parametrize('tensor', [torch.zeros(1).expand(10**11), torch.zeros(10**11, device='meta'), torch.eye(2).to_sparse()])
def test_weights_that_are_larger_than_their_file(tmp_path, tensor):
    refused(read_weights, weights_file(tmp_path, dict(w=tensor)), 'is not a weights file')


def test_weights_that_are_compressed(tmp_path):
    folder = weights_file(tmp_path, dict(w=torch.zeros(10**5)))
    with zipfile.ZipFile(folder/'w.pth') as z: members = {m: z.read(m) for m in z.namelist()}
    with zipfile.ZipFile(folder/'w.pth', 'w', zipfile.ZIP_DEFLATED) as z:
        for m, content in members.items(): z.writestr(m, content)
    refused(read_weights, folder, 'it is a compressed zip')


def test_weights_that_ask_for_memory_they_do_not_have(tmp_path):
    "A text of 1 GB was a MemoryError"
    folder, read = tiny_reader('weights old pth', tmp_path)
    content = (folder/'w.pth').read_bytes()
    (folder/'w.pth').write_bytes(content[:2] + b'X' + struct.pack('<I', 2**31 - 1) + content[2:])
    refused(read, folder, 'is not a weights file')


def float8(folder, name):
    "The first tensor of a file as numbers of 8 bits"
    state = {k: v.to(torch.float8_e4m3fn) if v.is_floating_point() else v for k, v in load(( folder/name).read_bytes()).items()}
    (folder/name).write_bytes(save(state))


@pytest.mark.parametrize('name, file', [('weights safetensors', 'w.safetensors'), ('classifier weights', 'model-1.safetensors')])
def test_numbers_of_8_bits(tmp_path, name, file):
    "For which PyTorch cannot tell what is finite: a RuntimeError"
    folder, read = tiny_reader(name, tmp_path)
    float8(folder, file)
    refused(read, folder, 'less than 16 bits')


@pytest.mark.parametrize('change', [dict(lin_ftrs=[2*10**9]), dict(lin_ftrs=[2**62]), dict(lin_ftrs=[10**20])])
@pytest.mark.parametrize('of_run', [False, True])
def test_a_network_is_only_built_if_its_weights_fit(tmp_path, change, of_run):
    "A recipe of a kilobyte asked for any memory"
    folder, read = tiny_reader('run' if of_run else 'classifier', tmp_path)
    file = folder/('recipe.json' if of_run else 'classifier.json')
    about = json.loads(file.read_text())
    (about if of_run else about['recipe'])['head'].update(change)
    file.write_text(json.dumps(about))
    error = outcome(partial(load_classifier, device='cpu'), folder)
    assert isinstance(error, ValueError), error


@pytest.mark.parametrize('change', [dict(temperature='1'), dict(split=['test']), dict(files=[[1], 'b', 'c']), dict(vocab=[1, 2]), dict(root=None), dict(trained_on=3)])
def test_values_of_an_evaluation_have_types(tmp_path, change):
    folder, read = tiny_reader('evaluation', tmp_path)
    with np.load(folder/'test.npz') as saved: arrays = dict(saved)
    about = json.loads(arrays['about'].tobytes()) | change
    np.savez(folder/'test.npz', **arrays | dict(about=np.frombuffer(json.dumps(about).encode(), np.uint8)))
    refused(read, folder, 'a value is not of its type')


def test_an_evaluation_that_unpacks_to_more_than_memory(tmp_path, monkeypatch):
    monkeypatch.setattr('cifar_fastai.evaluation.max_evaluation', 1000)
    folder, read = tiny_reader('evaluation', tmp_path)
    with np.load(folder/'test.npz') as saved: arrays = dict(saved)
    np.savez_compressed(folder/'test.npz', **arrays | dict(probs=np.zeros((100, 2), np.float32)))
    refused(read, folder, 'the limit is 1,000')


@pytest.mark.parametrize('stages, name', [(3, 'a'), ([1], 'a'), (None, 'a'), ([], ['a'])])
def test_a_recipe_of_another_shape_does_not_stop_a_table_of_runs(tmp_path, stages, name):
    folder, read = tiny_reader('run', tmp_path)
    (folder/'recipe.json').write_text(json.dumps(dict(stages=stages, name=name)))
    assert len(read_runs(folder)) == 1


@pytest.mark.parametrize('change', [dict(parameters=3), dict(parameters=dict(body='x')), dict(error=3), dict(device=None), dict(resumed=[3]), dict(resumed=[])])
def test_more_values_of_run_json_have_types(tmp_path, change):
    folder, read = tiny_reader('run', tmp_path)
    (folder/'run.json').write_text(json.dumps(json.loads((folder/'run.json').read_text()) | change))
    refused(lambda folder: Run(folder).info, folder, 'run.json is damaged')
    assert len(read_runs(folder)) == 1


def test_fields_of_a_table_that_are_too_long(tmp_path):
    "csv.Error is no ValueError"
    folder, read = tiny_reader('run', tmp_path)
    for name in ('history.csv', 'results.csv'): (folder/name).write_text('run,status\n' + 'x'*200_000 + ',finished\n')
    refused(lambda folder: Run(folder).keep_epochs(1), folder, 'history.csv is damaged')
    assert len(read_runs(folder/'results.csv')) == 1


def test_annotations_that_are_no_text(tmp_path):
    folder, read = tiny_reader('annotations', tmp_path)
    (folder/'val'/'val_annotations.txt').write_bytes(b'\xff')
    refused(read, folder, 'val_annotations.txt is damaged')


@pytest.mark.parametrize('kind', ['[', '{"a":'])
def test_json_that_is_nested_deeply(tmp_path, kind):
    "Which its parser reads, and what walks through it does not"
    folder, read = tiny_reader('recipe', tmp_path)
    (folder/'recipe.json').write_text('{"stages": ' + kind*200 + '1' + {'[': ']', '{': '}'}[kind[0]]*200 + '}')
    refused(read, folder, 'nested too deeply')


laughs = b''.join(b'q%ch%c\x86' % (i, i) for i in range(30))  # twice what is below it: 2^30 empty tuples


@pytest.mark.parametrize('content', [b'})' + laughs + b'K\x01s.', b')' + laughs + b')R.', b')' + laughs + b'\x85Q.', b'c' + b'a'*100_000 + b'\nb\n.'],
                         ids=['hash', 'function', 'storage', 'name'])
@pytest.mark.parametrize('zipped', [True, False])
def test_pickles_that_take_long(tmp_path, content, zipped):
    "Hundreds of bytes of which PyTorch's restricted reader wants a hash, or which it puts into a message and searches that"
    folder, read = tiny_reader('weights pth' if zipped else 'weights old pth', tmp_path)
    if zipped:
        with zipfile.ZipFile(folder/'w.pth') as z: members = {m: z.read(m) for m in z.namelist()}
        with zipfile.ZipFile(folder/'w.pth', 'w') as z:
            for m, inner in members.items(): z.writestr(m, b'\x80\x02' + content if m.endswith('data.pkl') else inner)
    else:
        beginning = pickle.dumps(0x1950a86a20f9469cfc6c, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
        (folder/'w.pth').write_bytes(beginning + b'\x80\x02' + content)
    refused(read, folder, 'w.pth')


# --- pictures

def test_a_jpeg_of_many_scans(tmp_path):
    "Of 360 KB, 1,000 scans of 64 megapixels take two minutes"
    picture(size=(200, 200)).save(file := tmp_path/'a.jpg', progressive=True)
    content = file.read_bytes()
    last = content[content.rindex(b'\xff\xda'):-2]
    file.write_bytes(content[:-2] + last*50 + content[-2:])
    read_image(file)
    file.write_bytes(content[:-2] + last*100 + content[-2:])
    with pytest.raises(UnreadableImageError, match='it has more than 100 scans'): read_image(file)
    hidden = b'\xff\xfe\x00\x04\xff\xd9'  # a comment that looks like the end
    file.write_bytes(content[:-2] + hidden + last*100 + content[-2:])
    with pytest.raises(UnreadableImageError, match='it has more than 100 scans'): read_image(file)
    file.write_bytes(content + last*200)  # after the end, where phones put films
    read_image(file)


def test_a_picture_of_too_many_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr('cifar_fastai.images.max_image_bytes', 1000)
    monkeypatch.setenv('CIFAR_FASTAI_MAX_PIXELS', str(2**26))
    picture().save(file := tmp_path/'a.png')
    assert why_unreadable(file) == f'is too large ({file.stat().st_size:,} bytes, the limit is 1,000). Make it smaller'
    assert read_size(file) is None
    monkeypatch.setenv('CIFAR_FASTAI_MAX_PIXELS', str(2**29))
    assert why_unreadable(file) is None


def test_a_picture_that_takes_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr('cifar_fastai.images.image_seconds', -1)
    picture().save(file := tmp_path/'a.png')
    assert why_unreadable(file) == 'cannot be decoded: it took more than -1 seconds'
    with pytest.raises(ValueError, match='it took more than'): ColorImage.create(file)
    with pytest.raises(UnreadableImageError): image_pixels(file)


def test_every_limit_is_on_one_page():
    from cifar_fastai import limits
    page = (Path(__file__).parent.parent/'nbs'/'00_limits.ipynb').read_text()
    assert [name for name in limits.__all__ if f"('{name}'," not in page] == []
