"The page for pictures of one's own: what it says, what strangers may bring, and how it looks in a browser."
import io
import os
import re
import socket
import time
from base64 import b64decode
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_fastai import app, cli, probing
from cifar_fastai.app import AppNetwork, answer_html, serving_app
from cifar_fastai.errors import MissingPackageError
from cifar_fastai.evaluation import evaluate
from cifar_fastai.inference import Classifier, save_classifier
from cifar_fastai.recipes import Recipe, Stage
from cifar_fastai.sources import test_files as files_of
from cifar_fastai.training import train

tiny = Recipe(name='tiny', model='tiny_cnn', stages=Stage(epochs=2, lr=1e-2), bs=16)


@pytest.fixture(scope='module')
def learn(practice, tmp_path_factory):
    "A learner after a few steps. Its run folder holds the evaluation of its validation images; tests only read it."
    learn = train(tiny, source=practice, run_dir=tmp_path_factory.mktemp('run')/'first<b>', num_workers=0, device='cpu')
    evaluate(learn, 'valid').save(learn.run_dir/'valid.npz')
    return learn


@pytest.fixture(scope='module')
def network(learn): return AppNetwork(learn.run_dir, 'cpu')


@pytest.fixture(scope='module')
def plain(learn, tmp_path_factory): return AppNetwork(save_classifier(learn, tmp_path_factory.mktemp('saved')/'second'), 'cpu')


@pytest.fixture(scope='module')
def picture(practice): return files_of(practice)[0]


def images_in(html): return [Image.open(io.BytesIO(b64decode(o))) for o in re.findall('data:image/png;base64,([^"]+)', html)]
def headlines(html): return re.findall('cf-headline">([^<]*)', html)


# ---------------------------------------------------------------------------------------------------- answers

def test_probabilities_are_those_of_the_validation_images_at_their_temperature(network, learn):
    valid = evaluate(learn, 'valid')
    cooled = valid.with_temperature(valid.fit_temperature())
    assert network.threshold == cooled.coverage_at(.95)[1]
    for i in range(5):
        said = network.answer(Image.open(Path(valid.root)/valid.files[i]))
        np.testing.assert_allclose(list(said.prediction.probabilities.values()), cooled.probs[i], atol=1e-4)
        assert said.prediction.probability == max(said.prediction.probabilities.values())
        assert said.is_sure == (said.prediction.probability >= network.threshold)
    assert 'calibrated on 20 validation images' in answer_html([network], learn.dls.valid.items[0])


def test_without_them_nothing_is_calibrated(plain, picture):
    said = plain.answer(Image.open(picture))
    assert said.is_sure and said.prediction.probabilities == pytest.approx(plain.classifier.predict(picture).probabilities, abs=1e-6)
    assert 'not calibrated' in answer_html([plain], picture)


def test_heat_is_that_of_grad_cam(network, learn):
    file = learn.dls.valid.items[0]
    said = network.answer(Image.open(file))
    np.testing.assert_allclose(said.heat, probing.grad_cam(learn, [file], said.prediction.label)[0], atol=1e-3)


@pytest.mark.parametrize('ood, threshold, headline', [(-1e9, 0, None), (None, 0, None), (-1e9, 1.1, 'Not sure'), (1e9, 0, 'None of these?'), (1e9, 1.1, 'None of these?')])
def test_headlines(network, picture, ood, threshold, headline):
    other = copy(network)
    other.classifier = Classifier(replace(network.classifier.info, ood_threshold=ood), network.classifier.model, 'cpu')
    other.threshold = threshold
    html = answer_html([other], picture)
    assert headlines(html) == [headline or network.answer(Image.open(picture)).prediction.label]
    assert ('Nothing tells whether' in html) == (ood is None)


def test_a_probability_just_below_the_threshold(network, picture):
    other = copy(network)
    other.classifier = Classifier(replace(network.classifier.info, ood_threshold=None), network.classifier.model, 'cpu')
    other.threshold = network.answer(Image.open(picture)).prediction.probability + 1e-4
    p,needed = re.search(r'but (\S+) is less than the (\S+) that an answer needs', answer_html([other], picture)).groups()
    assert float(p.strip('%')) < float(needed.strip('%'))


def test_two_networks_answer_side_by_side(network, plain, picture):
    html = answer_html([network, plain], picture)
    assert re.findall('cf-run">([^<]*)', html) == ['first&lt;b&gt;', 'second'] and len(headlines(html)) == 2 and len(images_in(html)) == 4


@pytest.mark.slow
def test_exported_files_have_no_heatmap(learn, picture):
    for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)
    from cifar_fastai.exporting import export_run
    html = answer_html([AppNetwork(export_run(learn.run_dir).file)], picture)
    assert 'No heatmap: an ONNX file gives answers only.' in html and len(images_in(html)) == 1


def test_missing_captum_is_told(network, picture, monkeypatch):
    def missing(): raise ImportError('Grad-CAM needs captum: pip install it')
    monkeypatch.setattr(probing, '_import_grad_cam', missing)
    assert 'No heatmap: Grad-CAM needs captum' in answer_html([network], picture)


# ---------------------------------------------------------------------------------------------------- what people bring

def text(file): file.write_text('Dear reader')
def empty(file): file.touch()
def cut_off(file):
    Image.effect_noise((64, 64), 50).save(file, 'PNG')
    file.write_bytes(file.read_bytes()[:500])
def one_pixel(file): Image.new('RGB', (1, 1), 'red').save(file, 'PNG')
def long(file): Image.new('RGB', (3000, 1), 'red').save(file, 'PNG')
def sixteen_bits(file): Image.fromarray(np.linspace(0, 65535, 40*40).reshape(40, 40).astype(np.uint16)).save(file, 'PNG')
def moving(file): Image.new('P', (50, 40)).save(file, 'GIF', save_all=True, append_images=[Image.new('P', (50, 40), n) for n in range(1, 9)])
def transparent(file): Image.new('RGBA', (30, 20)).save(file, 'WEBP')
def photograph(file):
    "Of 12 megapixels, held upright: a note in the file says so"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.linear_gradient('L').resize((4000, 3000)).convert('RGB').save(file, 'JPEG', exif=exif)


@pytest.mark.parametrize('make, says', [(text, 'is not an image'), (empty, 'is empty'), (cut_off, 'cannot be decoded')])
def test_what_is_no_picture_is_told(network, tmp_path, make, says):
    file = tmp_path/'a&b.png'
    make(file)
    html = answer_html([network], file)
    assert headlines(html) == ['This is no picture that can be read'] and f'a&amp;b.png {says}' in html


@pytest.mark.parametrize('make', [one_pixel, long, sixteen_bits, moving, transparent, photograph])
def test_every_picture_gets_the_answer_of_predict(network, plain, tmp_path, make):
    file = tmp_path/'picture'
    make(file)
    html = answer_html([plain], file)
    said = plain.classifier.predict(file)
    assert headlines(html) == ['None of these?' if said.none_of_these else said.label]
    with Image.open(file) as image: upright = image.size if make is not photograph else image.size[::-1]
    shown,heat = images_in(html)
    assert shown.size == heat.size and max(shown.size) == 320 and np.argmax(shown.size) == np.argmax(upright)
    if make is sixteen_bits: assert 120 < np.asarray(shown).mean() < 135


# ---------------------------------------------------------------------------------------------------- the page

def test_missing_gradio_is_told(network, monkeypatch):
    monkeypatch.setattr(app, 'find_spec', lambda name: None)
    with pytest.raises(MissingPackageError, match=r'needs the package gradio: `pip install "cifar_fastai\[app\]'):
        with serving_app([network]): pass


@pytest.mark.parametrize('args, says', [(['a', 'b', 'c'], 'one or two runs, got 3'), (['nowhere'], 'No such folder: nowhere')])
def test_command_line(args, says, capsys):
    assert cli.main(['app', *args]) == 2 and says in capsys.readouterr().err


@pytest.fixture(scope='module')
def gradio(): return pytest.importorskip('gradio')


@pytest.fixture(scope='module')
def address(gradio, network, plain):
    "Of a page with two networks"
    with serving_app([network, plain]) as address: yield address


@pytest.fixture
def ask(gradio, address):
    "Upload a file and get the answer, as a program does it"
    from gradio_client import Client, handle_file
    client = Client(address, verbose=False, analytics_enabled=False)
    return lambda file: client.submit(handle_file(str(file)), api_name='/classify')


@pytest.mark.slow
def test_fifty_requests_at_once(ask, network, plain, picture, practice):
    files = [*files_of(practice)[:25], *[picture]*25]
    wanted = [answer_html([network, plain], file) for file in files]
    assert [job.result(timeout=60) for job in [ask(file) for file in files]] == wanted


@pytest.mark.slow
def test_requests_reach_no_other_file_and_no_other_host(ask, address, http_server, tmp_path, picture):
    import httpx
    file = tmp_path/'letter.txt'
    text(file)
    assert 'letter.txt is not an image' in ask(file).result(timeout=60)
    place = http_server.answer('/a.png', picture.read_bytes())
    def send(path, **more):
        asked = httpx.post(f'{address}gradio_api/call/classify', json=dict(data=[dict(path=str(path), **more)]), trust_env=False)
        return httpx.get(f'{address}gradio_api/call/classify/{asked.json()["event_id"]}', trust_env=False).text
    for more in dict(meta={'_type': 'gradio.FileData'}), dict(meta={'_type': 'x'}), dict(meta={}), {}:
        for path in place, picture, file, tmp_path: assert send(path, **more).startswith('event: error')
    assert http_server.asked == []


@pytest.mark.slow
def test_large_uploads_are_refused(address):
    import httpx
    sent = httpx.post(f'{address}gradio_api/upload', files=dict(files=('a.png', bytes(21*2**20))), trust_env=False)
    assert sent.status_code == 413


@pytest.mark.slow
def test_nothing_is_left_and_a_taken_port_is_told(gradio, network):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        with pytest.raises(OSError, match='cannot be opened at 127.0.0.1, port [0-9]+: the port is taken'):
            with serving_app([network], port=taken.getsockname()[1]): pass
    with serving_app([network]): assert (folder := Path(os.environ['GRADIO_TEMP_DIR'])).is_dir()
    assert not folder.exists()


@pytest.mark.slow
def test_uploads_are_deleted_soon(gradio, network, picture, monkeypatch):
    from gradio_client import Client, handle_file
    monkeypatch.setattr(app, '_kept_seconds', 4)
    with serving_app([network]) as address:
        folder = Path(os.environ['GRADIO_TEMP_DIR'])
        drawings = set(folder.glob('*.png'))
        Client(address, verbose=False, analytics_enabled=False).predict(handle_file(str(picture)), api_name='/classify')
        def kept(): return {o for o in folder.rglob('*') if o.is_file()}
        assert len(kept()) == 11
        until = time.monotonic() + 30
        while len(kept()) > 10 and time.monotonic() < until: time.sleep(.2)
        assert kept() == drawings and len(drawings) == 10


@pytest.mark.parametrize('width, scheme', [(1280, 'light'), (390, 'dark')])
def test_in_a_browser(tab, address, picture, network, plain, tmp_path, width, scheme):
    page, requests, errors = tab(width, scheme)
    page.goto(address)
    page.wait_for_selector('text=No picture yet')
    page.set_input_files('input[type=file]', picture)
    page.wait_for_selector('.cf-pictures img')
    assert page.locator('#answer .cf-headline').all_inner_texts() == headlines(answer_html([network, plain], picture))
    tops = [o['y'] for o in map(lambda o: o.bounding_box(), page.locator('.cf-pictures').all())]
    assert (tops[0] == tops[1]) == (width > 1000)  # side by side, or below each other
    before = page.locator('.cf-pictures img').first.get_attribute('src')
    page.locator('#drawings button').nth(3).click()
    page.wait_for_function('before => document.querySelector(".cf-pictures img").src != before', arg=before)
    assert page.evaluate('document.documentElement.scrollWidth') == width
    assert [o for o in requests if not o.startswith((address, 'data:', 'blob:'))] == [] and errors == []
