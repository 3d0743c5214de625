"The practice set: same seed, same bytes; whole or not there at all; easy but for cats and dogs."
import errno
import hashlib
import os
import signal
import subprocess
import sys
import time

import numpy as np
import PIL
import pytest
from PIL import Image

import cifar_fastai.synthetic as synthetic
from cifar_fastai.evaluation import Evaluation
from cifar_fastai.files import read_json
from cifar_fastai.sources import find_data
from cifar_fastai.synthetic import bayes_accuracy, cifar10_classes, draw_image, make_synthetic

small = dict(n_train=2, n_test=1)
rng = np.random.default_rng


def contents(path):
    return {o.relative_to(path).as_posix(): o.read_bytes() for o in sorted(path.rglob('*')) if o.is_file()}


def digest(images):
    return hashlib.sha256(b''.join(o.tobytes() for o in images)).hexdigest()


@pytest.fixture
def pictures(monkeypatch):
    "Gray squares in no time, for tests of the folders; `pictures.before[n]` is called before picture n."
    class Pictures:
        def __init__(self): self.drawn, self.before = 0, {}

        def draw(self, label, rng, size=32):
            self.drawn += 1
            self.before.get(self.drawn, lambda: None)()
            return Image.new('RGB', (size, size), (128, 128, 128))

    pictures = Pictures()
    monkeypatch.setattr(synthetic, 'draw_image', pictures.draw)
    return pictures


def stop_with(error):
    def stop(): raise error
    return stop


# Pictures

@pytest.mark.parametrize('label', cifar10_classes)
@pytest.mark.parametrize('size', [1, 7, 32, 96])
def test_picture(label, size):
    image = draw_image(label, rng(1), size)
    assert (image.mode, image.size) == ('RGB', (size, size))
    assert digest([image]) == digest([draw_image(label, rng(1), size)])
    assert digest([image]) != digest([draw_image(label, rng(2), size)])


@pytest.mark.parametrize('label', cifar10_classes)
def test_same_scene_at_any_size(label):
    def shrunk(seed, size): return np.asarray(draw_image(label, rng(seed), size).resize((8, 8), Image.Resampling.BOX), float)
    same, other = (np.mean([abs(shrunk(i, 32) - shrunk(i + k, 96)).mean() for i in range(10)]) for k in (0, 1))
    assert same < 5 < other


@pytest.mark.parametrize('label', cifar10_classes)
def test_pictures_of_a_class_vary(label):
    "No pixel keeps its color, and no two pictures are nearly alike."
    x = np.stack([np.asarray(draw_image(label, rng(i)), float) for i in range(30)])
    assert x.std(0).min() > 10
    distances = abs(x[:, None] - x).mean((2, 3, 4)) + 255 * np.eye(30)
    assert distances.min() > 8


@pytest.mark.skipif(tuple(map(int, PIL.__version__.split('.')[:2])) < (11, 2), reason='older Pillows fill corners differently')
def test_pictures_are_those_they_were():
    "Changes to a drawing change every result on the practice set: they should be meant."
    images = [draw_image(label, synthetic._image_rng(0, 'train', label, i)) for label in cifar10_classes for i in range(5)]
    assert digest(images)[:16] == '300a609eb7d30e09'


def test_only_dogness_tells_cats_from_dogs():
    "Where cats and dogs overlap, they are the same pictures; outside they are not."
    def pet(draw, u):
        pen = synthetic._Pen(rng(0), 32)
        pen.between = lambda low, high, between=pen.between: setattr(pen, 'between', between) or low + (high - low) * u
        draw(pen)
        return pen.image
    cat, dog = synthetic._draw_cat, synthetic._draw_dog
    assert digest([pet(cat, .8)]) == digest([pet(dog, .2)])      # dogness .5
    assert digest([pet(cat, .1)]) != digest([pet(dog, .9)])
    assert bayes_accuracy == pytest.approx(.96)


@pytest.mark.parametrize('label, hint', [('kat', "Did you mean 'cat'?"), ('Truck', "Did you mean 'truck'?"), ('', 'all ten'), (3, 'all ten'), (['cat'], 'all ten')])
def test_unknown_class(label, hint):
    with pytest.raises(ValueError, match='Unknown class') as e: draw_image(label, rng(0))
    assert hint in str(e.value) and repr(label) in str(e.value)


@pytest.mark.parametrize('size', [0, -1, 1.5, '32', None])
def test_bad_size(size):
    with pytest.raises(ValueError, match='size must be a whole number of at least 1'): draw_image('cat', rng(0), size)


@pytest.mark.parametrize('bad', [0, None, np.random.RandomState(0)])
def test_bad_generator(bad):
    with pytest.raises(TypeError, match='default_rng'): draw_image('cat', bad)


# The set

def test_layout(tmp_path):
    path = make_synthetic(tmp_path/'deep'/'set', n_train=3, n_test=2, size=16)
    assert path == tmp_path/'deep'/'set'
    expected = {f'{split}/{label}/{i:04d}.png' for split, n in (('train', 3), ('test', 2)) for label in cifar10_classes for i in range(n)}
    assert set(contents(path)) == expected | {'practice_set.json'}
    assert Image.open(path/'train/frog/0002.png').size == (16, 16)
    assert read_json(path/'practice_set.json') == dict(variant='synthetic', n_train=3, n_test=2, seed=0, size=16)
    assert [o.name for o in (tmp_path/'deep').iterdir()] == ['set']


def test_same_seed_same_bytes(tmp_path):
    a, b, other = (contents(make_synthetic(tmp_path/name, **small, seed=seed)) for name, seed in (('a', 3), ('b', 3), ('c', 4)))
    assert a == b
    assert not set(a.values()) & set(other.values())


def test_counts_do_not_change_pictures(tmp_path):
    few, many = (contents(make_synthetic(tmp_path/str(n), n_train=n, n_test=n)) for n in (1, 3))
    assert all(many[name] == few[name] for name in few if name.endswith('.png'))


def test_no_picture_twice(practice):
    pictures = [data for name, data in contents(practice).items() if name.endswith('.png')]
    assert len(pictures) == len(set(pictures)) == 10 * (20 + 5)


def test_numpy_numbers_will_do(tmp_path):
    path = make_synthetic(tmp_path/'set', n_train=np.int64(2), n_test=np.int32(1))
    assert make_synthetic(str(path), **small) == path


@pytest.mark.parametrize('bad', [dict(n_train=0), dict(n_test=0), dict(n_train=-5), dict(size=0), dict(seed=-1), dict(n_test=2.5), dict(seed='a')])
def test_bad_numbers(tmp_path, bad):
    (name, value), = bad.items()
    with pytest.raises(ValueError, match=f'{name} must be a whole number of at least .*, got {value!r}'): make_synthetic(tmp_path/'set', **bad)
    assert not list(tmp_path.iterdir())


# What is there already

def test_complete_folder_is_kept(tmp_path, pictures):
    path = make_synthetic(tmp_path/'set', **small)
    before = contents(path), pictures.drawn
    assert make_synthetic(path, **small) == path
    assert (contents(path), pictures.drawn) == before


def test_empty_folder_is_filled(tmp_path, pictures):
    assert len(contents(make_synthetic(tmp_path, **small))) == 31


@pytest.mark.parametrize('change, message', [(dict(n_train=3), "'n_train': 3"), (dict(seed=1), "'seed': 1"), (dict(size=8), "'size': 8")])
def test_other_settings(tmp_path, pictures, change, message):
    path = make_synthetic(tmp_path/'set', **small)
    before = contents(path)
    with pytest.raises(FileExistsError, match=message): make_synthetic(path, **{**small, **change})
    assert contents(path) == before


def strange_folder(path): (path/'holiday.jpg').write_bytes(b'')
def strange_record(path): (path/'practice_set.json').write_text('[1, 2]')
def broken_record(path): (path/'practice_set.json').write_text('{"variant": "synth')
def binary_record(path): (path/'practice_set.json').write_bytes(b'\xff\xfe\x00')


@pytest.mark.parametrize('fill', [strange_folder, strange_record, broken_record, binary_record])
def test_something_else_is_left_alone(tmp_path, pictures, fill):
    fill(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match='is not a practice set. Choose another path'): make_synthetic(tmp_path, **small)
    assert contents(tmp_path) == before


def test_a_file_in_the_way(tmp_path, pictures):
    (tmp_path/'set').write_text('mine')
    with pytest.raises(FileExistsError, match='is not a practice set'): make_synthetic(tmp_path/'set', **small)
    assert (tmp_path/'set').read_text() == 'mine'


def test_damaged_set(tmp_path, pictures):
    path = make_synthetic(tmp_path/'set', **small)
    (path/'test/dog/0000.png').unlink()
    with pytest.raises(FileExistsError, match='test/dog has 0 of 1 images.*delete it'): make_synthetic(path, **small)


# Whole or not there at all

@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('no'), OSError(errno.ENOSPC, 'No space left on device')])
def test_interrupted(tmp_path, pictures, error):
    pictures.before = {17: stop_with(error)}
    with pytest.raises(type(error)): make_synthetic(tmp_path/'set', **small)
    assert not list(tmp_path.iterdir())
    assert len(contents(make_synthetic(tmp_path/'set', **small))) == 31


def test_nothing_at_path_before_the_end(tmp_path, pictures):
    def look(): assert not (tmp_path/'set').exists()
    pictures.before = dict.fromkeys(range(1, 31), look)
    make_synthetic(tmp_path/'set', **small)
    assert pictures.drawn == 30


@pytest.mark.parametrize('empty_folder', [False, True])
def test_another_process_is_quicker(tmp_path, pictures, empty_folder):
    path = tmp_path/'set'
    if empty_folder: path.mkdir()
    pictures.before = {5: lambda: make_synthetic(path, **small)}
    assert make_synthetic(path, **small) == path
    assert len(contents(path)) == 31 and [o.name for o in tmp_path.iterdir()] == ['set']


def test_something_else_comes_up_meanwhile(tmp_path, pictures):
    path = tmp_path/'set'
    pictures.before = {5: path.mkdir, 6: lambda: strange_folder(path)}
    with pytest.raises(FileExistsError, match='is not a practice set'): make_synthetic(path, **small)
    assert [o.name for o in tmp_path.rglob('*')] == ['set', 'holiday.jpg']


def start(path, n):
    return subprocess.Popen([sys.executable, '-c', f'from cifar_fastai.synthetic import make_synthetic; make_synthetic({str(path)!r}, {n}, 1)'])


@pytest.mark.skipif(os.name == 'nt', reason='needs SIGKILL')
def test_killed(tmp_path):
    process = start(tmp_path/'set', 100_000)
    deadline = time.monotonic() + 60
    while not any(tmp_path.rglob('*.png')):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path/'set').exists()
    assert len(contents(make_synthetic(tmp_path/'set', **small))) == 31


def test_two_processes_at_once(tmp_path):
    processes = [start(tmp_path/'set', 5) for _ in range(3)]
    assert [o.wait(timeout=120) for o in processes] == [0, 0, 0]
    assert [o.name for o in tmp_path.iterdir()] == ['set'] and len(contents(tmp_path/'set')) == 61


# What it is for

def test_no_torch():
    code = "import cifar_fastai.synthetic, sys; assert not {'torch', 'fastai', 'matplotlib', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.fixture
def one_thread():
    "So small a network is quickest with one, and on a busy machine far quicker."
    import torch
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


@pytest.mark.slow
def test_small_cnn_confuses_cats_and_dogs(one_thread):
    import torch
    import torch.nn.functional as F
    from torch import nn

    path = find_data('synthetic')

    def read(split):
        files = [o for label in cifar10_classes for o in sorted((path/split/label).iterdir())]
        x = torch.from_numpy(np.stack([np.asarray(Image.open(o)) for o in files])).permute(0, 3, 1, 2).float() / 64 - 2
        return x, torch.tensor([cifar10_classes.index(o.parent.name) for o in files])

    def block(i, o): return nn.Conv2d(i, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)

    (x, y), (x_test, y_test) = read('train'), read('test')
    torch.manual_seed(0)
    net = nn.Sequential(*block(3, 16), *block(16, 32), *block(32, 64), nn.Flatten(), nn.Linear(1024, 10))
    batches = [idx for _ in range(4) for idx in torch.randperm(len(y)).split(64)]
    optimizer = torch.optim.Adam(net.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, .005, total_steps=len(batches))
    for k, idx in enumerate(batches):
        loss = F.cross_entropy(net(x[idx].flip(3) if k % 2 else x[idx]), y[idx])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    net.eval()
    with torch.no_grad(): logits = net(x_test)
    losses = F.cross_entropy(logits, y_test, reduction='none')
    files = [f'{i}.png' for i in range(len(y_test))]
    said = Evaluation(logits.softmax(1).numpy(), y_test.numpy(), losses.numpy(), files, list(cifar10_classes))
    assert .85 < said.accuracy < bayes_accuracy + .02
    both = np.triu(said.confusion_matrix() + said.confusion_matrix().T, 1)
    cat_dog, others = both[cifar10_classes.index('cat'), cifar10_classes.index('dog')], np.sort(both, axis=None)[::-1][1]
    assert cat_dog == both.max() and cat_dog > 2 * others
    assert set(said.most_confused()[0][:2]) == {'cat', 'dog'} and len(said.confused('cat', 'dog')) == cat_dog
