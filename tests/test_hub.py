"A run on the Hugging Face hub: what its card says, what is uploaded, and reading it back. The hub is a small server on this machine"
import base64
import hashlib
import json
import re
import shutil
import sys
import time
from http.server import BaseHTTPRequestHandler
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
from huggingface_hub import ModelCard

from cifar_fastai import cli, hub, models
from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.evaluation import evaluate
from cifar_fastai.exporting import export_run
from cifar_fastai.files import read_json, write_json
from cifar_fastai.hub import model_card, push_to_hub, save_for_hub
from cifar_fastai.inference import load_classifier, save_classifier
from cifar_fastai.metrics import wilson_interval
from cifar_fastai.models import create_model
from cifar_fastai.runs import Run
from cifar_fastai.sources import test_files as files_to_test
from cifar_fastai.training import create_learner, train
from conftest import serving
from small_runs import tiny

needs_server = pytest.mark.skipif(huggingface_hub.__version__ < '1', reason='before 1.0 the hub cannot be another server')


@pytest.fixture(scope='module')
def finished(practice, tmp_path_factory):
    "A run that was evaluated on its test images, and its learner. Tests only read it."
    folder = tmp_path_factory.mktemp('hub')/'run'
    learn = train(tiny, seed=3, source=practice, run_dir=folder, num_workers=0, device='cpu')
    keep(folder, evaluate(learn))
    return SimpleNamespace(folder=folder, learn=learn)


def keep(folder, result, name=None):
    "As `cifar-fastai evaluate` does"
    run, name = Run(folder), name or result.split
    run.add_metrics(name, result.to_dict() | dict(most_confused=result.most_confused()[:20]))
    result.save(run.evaluation_file(name))


@pytest.fixture
def folder(finished, tmp_path): return Path(shutil.copytree(finished.folder, tmp_path/'run'))


def change(folder, **changes):
    "Change files of a run as if it had written them so"
    recipe = changes.pop('recipe', {})
    (folder/'recipe.json').write_text(json.dumps(read_json(folder/'recipe.json') | recipe))
    info = read_json(folder/'run.json')
    data = info['data'] | changes.pop('data', {})
    write_json(folder/'run.json', info | changes | dict(data=data, checksums={}))


# --- the card

def test_every_number_is_one_of_the_run(finished):
    text = model_card(finished.folder, 'jane/cnn').text
    info, metrics = Run(finished.folder).info, Run(finished.folder).metrics
    test, valid = metrics['test'], metrics['valid']
    low, high = test['accuracy_interval']
    assert f'It classifies {test["accuracy"]:.2%} of the 50 test images correctly** (95% interval {low:.1%} to {high:.1%})' in text
    low, high = wilson_interval(round(valid['accuracy']*20), 20)
    assert f'| validation images | 20 | {valid["accuracy"]:.2%} | {low:.1%} to {high:.1%} |' in text
    for row in test['per_class']: assert f'| {row["class"]} | {row["n"]} | {row["recall"]:.1%} | {row["precision"]:.1%} |' in text
    for actual, predicted, n in test['most_confused'][:5]: assert f'| {actual} | {predicted} | {n} |' in text
    result = evaluate(finished.learn)
    assert f'on the test images, those of its answers are {result.confidence.mean():.1%} on average, and {result.accuracy:.1%} of the answers are correct' in text
    assert f'(expected calibration error {100*result.calibration_error():.1f} percentage points, 15 bins)' in text
    n = info['parameters']
    assert f'| parameters | {sum(n.values()):,} ({n["trainable"]:,} trainable) |' in text and '| images | 180 for training, 20 for validation |' in text
    assert '| seed | 3 |' in text and 'with seed 3' in text and info['hardware']['cpu'].split()[0] in text and f'torch {info["versions"]["torch"]}' in text
    assert '| bs | `32` |' in text and '| epochs | `2` |' in text and '| l2' not in text and 'load_classifier(\'hf://jane/cnn\')' in text


def test_what_the_hub_reads(finished):
    card = ModelCard(str(model_card(finished.folder, 'jane/cnn', license='mit')))
    first, second = card.data.eval_results
    assert (first.dataset_split, second.dataset_split) == ('test', 'validation') and second.dataset_name == 'synthetic, 20 validation images'
    assert first.metric_value == round(Run(finished.folder).metrics['test']['accuracy'], 4) and first.metric_type == 'accuracy'
    assert card.data.license == 'mit' and 'The license of the weights is `mit`' in card.text
    assert card.data.library_name == 'cifar_fastai' and card.data.pipeline_tag == 'image-classification' and card.data.datasets is None


@pytest.mark.parametrize('variant, want', [('cifar10', ['uoft-cs/cifar10']), ('cifar10-jpeg', ['uoft-cs/cifar10']), ('cifar100', ['uoft-cs/cifar100']),
                                           ('cifar10-part-5-5', None), ('photos', None)])
def test_data_sets_of_the_hub_are_linked(folder, variant, want):
    change(folder, data=dict(variant=variant))
    assert model_card(folder, 'jane/cnn').data.datasets == want


def test_a_run_without_the_test_images(folder):
    (folder/'metrics.json').write_text('{"valid": {"accuracy": 0.75, "loss": 1.0}}')
    card = model_card(folder, 'jane/cnn')
    assert 'It classifies 75.00% of the 20 validation images correctly** (95% interval 53.1% to 88.8%). It was never evaluated on the test images.' in card.text
    assert 'may be too optimistic' in card.text and [o.dataset_split for o in card.data.eval_results] == ['validation']
    assert 'By class' not in card.text and 'calibration error' not in card.text
    change(folder, data=dict(n_test=0))
    assert 'The data has no test images.' in model_card(folder, 'jane/cnn').text


def test_validation_on_the_test_images_is_told(folder):
    change(folder, recipe=dict(valid='test'))
    (folder/'metrics.json').write_text('{"valid": {"accuracy": 0.75, "loss": 1.0}}')
    card = model_card(folder, 'jane/cnn').text
    assert 'uses the test images for validation, so this accuracy is too optimistic' in card and 'never evaluated' not in card


def test_test_images_in_several_views_are_test_images(folder):
    (folder/'metrics.json').write_text('{"valid": {"accuracy": 0.75}, "test flip": {"accuracy": 0.5, "n": 50}, "test flip on photos": {"accuracy": 0.25, "n": 4}}')
    card = model_card(folder, 'jane/cnn').text
    assert 'never evaluated' not in card and '| test images on photos, averaged over views (flip) | 4 |' in card
    (folder/'metrics.json').write_text('{"valid": {"accuracy": 0.75}, "test flip on photos": {"accuracy": 0.25, "n": 4}}')
    assert 'It was never evaluated on the test images.' in model_card(folder, 'jane/cnn').text


def test_the_size_that_the_network_sees(folder):
    change(folder, data=dict(size=[64, 64]))
    assert 'It sees 32x32 pixels.' in model_card(folder, 'jane/cnn').text


def test_a_run_without_any_evaluation(folder):
    (folder/'metrics.json').unlink()
    card = model_card(folder, 'jane/cnn')
    assert 'It was not evaluated.' in card.text and '## Results' not in card.text and card.data.eval_results is None


def test_other_evaluations_have_their_own_rows(folder):
    run = Run(folder)
    run.add_metrics('test flip', dict(accuracy=.8, n=50, accuracy_interval=[.7, .9], split='test', variant='synthetic'))
    run.add_metrics('test on photos', dict(accuracy=.5, n=10, accuracy_interval=[.2, .8], split='test', variant='photos'))
    run.add_metrics('test on CIFAR-10-C', dict(accuracy=.6, n=950))
    run.add_metrics('train', dict(accuracy=1.))
    run.add_metrics('mine', dict(accuracy='good'))
    card = model_card(folder, 'jane/cnn')
    rows = re.findall(r'^\| (\w+ images[^|]*) \| ([\d,]*) \| [\d.]+% \| ([^|]*) \|$', card.text, re.M)
    assert [row[0] for row in rows] == ['test images', 'validation images', 'test images, averaged over views (flip)', 'test images on photos', 'test images on CIFAR-10-C']
    assert rows[3][2] == '20.0% to 80.0%' and rows[4][1:] == ('950', '')
    assert [o.dataset_type for o in card.data.eval_results] == ['synthetic', 'synthetic', 'photos', 'CIFAR-10-C']


def test_names_do_not_break_the_page(folder):
    classes = ['a|b', '<script>', '*x*', '[y](z)', '`', '#', '{{ 1 }}', 'two\nlines', '\udcff', '---']
    change(folder, data=dict(classes=classes, variant='my |photos|: *'), recipe=dict(description='a | b'))
    metrics = read_json(folder/'metrics.json')
    for row, name in zip(metrics['test']['per_class'], classes): row['class'] = name
    write_json(folder/'metrics.json', metrics)
    card = ModelCard(str(model_card(folder, 'jane/cnn')))
    assert '<script>' not in card.text and r'\<script\>' in card.text and r'a\|b' in card.text and r'\{\{ 1 \}\}' in card.text
    rows = [line for line in card.text.splitlines() if line.startswith('|')]
    assert all(len(re.findall(r'(?<!\\)\|', line)) in (3, 4, 5) for line in rows) and 'my |photos|: *' in card.data.tags


@pytest.mark.parametrize('weights, want', [('', '| initial weights | random |'), ('DEFAULT', '`DEFAULT`'), ('/mnt/jane/old.pth', '`old.pth`'), (r'C:\jane\old.pth', '`old.pth`')])
def test_initial_weights_and_callbacks(folder, weights, want):
    change(folder, recipe=dict(weights=weights), callbacks=['MixUp'], processes=2)
    text = model_card(folder, 'jane/cnn').text
    assert want in text and '| callbacks | `MixUp` |' in text and '| processes | 2 |' in text and '/mnt' not in text and 'C:' not in text


def test_a_network_of_the_user_is_told(folder, monkeypatch):
    def my_net(n_out, in_channels, image_size): return create_model('ladder_3', n_out, in_channels, image_size)
    command = 'cifar-fastai predict hf://jane/cnn'
    assert command in model_card(folder, 'jane/cnn').text
    monkeypatch.setitem(models._models, 'my_net', my_net)
    change(folder, recipe=dict(model='my_net'))
    card = model_card(folder, 'jane/cnn').text
    assert "define the network 'my_net'" in card and command not in card


@pytest.mark.parametrize('metrics', ['{"test": {"accuracy": "good"}}', '{"test": {"accuracy": 0.5, "n": "x"}}', '{"test": {"accuracy": 0.5, "per_class": [1]}}',
                                     '{"test": {"accuracy": 0.5, "most_confused": [[1]]}}', '{"test": 1}', '['])
def test_damaged_metrics(folder, metrics):
    (folder/'metrics.json').write_text(metrics)
    with pytest.raises(ValueError, match=re.escape(str(folder))): model_card(folder, 'jane/cnn')


def test_a_run_of_an_older_version(folder):
    info = read_json(folder/'run.json')
    del info['parameters']
    write_json(folder/'run.json', info)
    with pytest.raises(ValueError, match="it has no model card: 'parameters'"): model_card(folder, 'jane/cnn')


# --- what is uploaded

@pytest.mark.parametrize('name', ['cnn', 'a/b/c', 'jane/', '/cnn', 'jane/my cnn', 'jane/cnn.git', 'jane/a--b', 'jane/..', '', 'hf://cnn'])
def test_bad_names(finished, tmp_path, name):
    for f in (push_to_hub, lambda run, name: save_for_hub(run, tmp_path/'card', name)):
        with pytest.raises(ValueError, match='cannot be the name of a model on the hub .* has to be user/name'): f(finished.folder, name)
    assert not (tmp_path/'card').exists()


@pytest.mark.parametrize('status', ['training', 'interrupted', 'failed', 'pruned'])
def test_only_finished_runs(folder, tmp_path, status):
    change(folder, status=status)
    for f in (model_card, push_to_hub, lambda run, name: save_for_hub(run, tmp_path/'card', name)):
        with pytest.raises(ValueError, match=f"is not finished: its status is '{status}'.*--resume {re.escape(str(folder))}"): f(folder, 'jane/cnn')


def test_a_learner_stands_for_its_run(finished, practice, tmp_path):
    assert str(model_card(finished.learn, 'jane/cnn')) == str(model_card(finished.folder, 'jane/cnn'))
    learn = create_learner(tiny, cifar10_dataloaders(practice, bs=32, num_workers=0))
    with pytest.raises(ValueError, match='no run folder'): model_card(learn, 'jane/cnn')
    with pytest.raises(FileNotFoundError, match='is not a run folder'): model_card(tmp_path, 'jane/cnn')


def test_only_what_others_need_is_written(folder, tmp_path, practice):
    change(folder, recipe=dict(weights='/mnt/jane/secret/old.pth'))
    (folder/'cnn.onnx').write_bytes(b'onnx')
    (folder/'cnn.onnx.data').write_bytes(b'data')
    card = save_for_hub(folder, tmp_path/'card', 'jane/cnn')
    names = sorted(p.name for p in card.iterdir())
    assert names[:4] == ['README.md', 'classifier.json', 'cnn.onnx', 'cnn.onnx.data'] and re.fullmatch(r'model-\w{8}\.safetensors', names[4]) and len(names) == 5
    for p in card.iterdir(): assert not any(o.encode() in p.read_bytes() for o in ('/mnt/jane', str(folder), str(practice)))
    assert '[`cnn.onnx`](cnn.onnx)' in (card/'README.md').read_text() and '](cnn.onnx.data)' not in (card/'README.md').read_text()
    files = files_to_test(practice)
    assert load_classifier(card).probabilities(files).equal(load_classifier(folder).probabilities(files))


@pytest.mark.slow
def test_exported_files_go_along(folder, tmp_path, practice):
    pytest.importorskip('onnxscript')
    change(folder, recipe=dict(weights='/mnt/jane/secret/old.pth'))
    export_run(folder, n=10, source=practice)
    card = save_for_hub(folder, tmp_path/'card', 'jane/cnn')
    assert '[`model.onnx`](model.onnx) is the network for ONNX Runtime' in (card/'README.md').read_text() and b'/mnt/jane' not in (card/'model.onnx').read_bytes()
    with pytest.raises(ValueError, match='The classifier does not hold the weights'): save_classifier(load_classifier(card/'model.onnx'), tmp_path/'again')
    assert not (tmp_path/'again').exists()


def test_other_folders_are_not_written(finished, tmp_path):
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'README.md').write_text('edited')
    with pytest.raises(FileExistsError, match='not an empty folder. Nothing was written'): save_for_hub(finished.folder, tmp_path/'mine', 'jane/cnn')
    with pytest.raises(FileExistsError): save_for_hub(finished.folder, tmp_path/'mine'/'README.md', 'jane/cnn')
    assert [p.name for p in (tmp_path/'mine').iterdir()] == ['README.md']


def test_a_folder_that_breaks_off_is_not_there(finished, tmp_path, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    with monkeypatch.context() as m, pytest.raises(OSError, match='No space left'):
        m.setattr(hub, 'atomic_write', full)
        save_for_hub(finished.folder, tmp_path/'card', 'jane/cnn')
    assert not any(tmp_path.iterdir()) and (save_for_hub(finished.folder, tmp_path/'card', 'jane/cnn')/'README.md').is_file()


# --- a small hub

class HubHandler(BaseHTTPRequestHandler):
    "As much of the hub as its client needs to make a model, commit files and fetch them"
    def reply(self, status=200, content=b'', **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        length = headers.pop('length', len(content))
        self.send_response(status)
        for k, v in dict(Content_Length=length, **headers).items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()
        if self.command != 'HEAD': self.wfile.write(content)
        self.close_connection = True

    def error(self, status, code): self.reply(status, dict(error=code), X_Error_Code=code)

    def resolve(self, repo, revision, file):
        repo = self.server.models.get(repo)
        if repo is None or repo['private'] and 'Authorization' not in self.headers: return self.error(401, 'RepoNotFound')
        revision = repo['commits'][-1][0] if revision == 'main' else revision
        files = dict(repo['commits']).get(revision)
        if files is None: return self.error(404, 'RevisionNotFound')
        if file not in files: return self.reply(404, dict(error='EntryNotFound'), X_Error_Code='EntryNotFound', X_Repo_Commit=revision)
        content = files[file]
        cut = self.server.cut if file.endswith('.safetensors') else None
        if self.command == 'GET' and self.server.next: repo['commits'].append(self.server.next.pop())
        self.reply(200, content[:cut] if self.command == 'GET' else content, length=len(content), ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=revision)

    def do_GET(self):
        self.server.asked.append(f'{self.command} {self.path}')
        if m := re.fullmatch(r'/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)', self.path.partition('?')[0]): return self.resolve(*m.groups())
        name = self.path.removeprefix('/api/models/')
        repo = self.server.models.get(name)
        if repo is None: return self.error(404, 'RepoNotFound')
        sha, files = repo['commits'][-1]
        self.reply(content=dict(id=name, sha=sha, private=repo['private'], siblings=[dict(rfilename=o) for o in files], tags=[], downloads=0, likes=0))

    do_HEAD = do_GET

    def do_POST(self):
        self.server.asked.append(f'{self.command} {self.path}')
        said = self.rfile.read(int(self.headers['Content-Length']))
        if self.headers.get('Authorization') != 'Bearer hf_write': return self.reply(self.server.refuse, dict(error='no'))
        if self.path == '/api/validate-yaml': return self.reply(content=dict(errors=[], warnings=[]))
        if self.path == '/api/repos/create':
            said = json.loads(said)
            name = f'{said["organization"]}/{said["name"]}'
            if name in self.server.models: return self.reply(409, dict(url=f'{huggingface_hub.constants.ENDPOINT}/{name}'))
            self.server.models[name] = dict(private=said.get('visibility') == 'private' or said.get('private', False), commits=[('0'*40, {'.gitattributes': b''})])
            return self.reply(content=dict(url=f'{huggingface_hub.constants.ENDPOINT}/{name}'))
        name, kind = re.match(r'/api/models/([^/]+/[^/]+)/(preupload|commit)/main', self.path).groups()
        if kind == 'preupload':
            files = json.loads(said)['files']
            return self.reply(content=dict(files=[dict(path=o['path'], uploadMode='regular', shouldIgnore=False) for o in files]))
        commits = self.server.models[name]['commits']
        files = dict(commits[-1][1])
        for line in map(json.loads, said.splitlines()):
            if line['key'] == 'file': files[line['value']['path']] = base64.b64decode(line['value']['content'])
            if line['key'] == 'deletedFile': del files[line['value']['path']]
        commits.append((f'{len(commits):040}', files))
        self.reply(content=dict(commitUrl=f'{huggingface_hub.constants.ENDPOINT}/{name}/commit/1', commitOid=commits[-1][0]))

    def log_message(self, *args): pass


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    "An empty cache, nobody logged in, and no server"
    constants = huggingface_hub.constants
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path/'token'))
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path/'hf'))
    def at(address):
        monkeypatch.setattr(constants, 'ENDPOINT', address)
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', address + '/{repo_id}/resolve/{revision}/{filename}')
    at('http://127.0.0.1:9')
    return SimpleNamespace(at=at, cache=tmp_path/'hf')


@pytest.fixture
def server(no_hub, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_write')
    with serving(HubHandler) as server:
        server.models, server.asked, server.refuse, server.cut, server.next = {}, [], 403, None, []
        no_hub.at(f'http://127.0.0.1:{server.server_port}')
        server.stop = lambda: no_hub.at('http://127.0.0.1:9')
        server.files = lambda name: server.models[name]['commits'][-1][1]
        yield server


def put(server, folder, name='jane/cnn', **files):
    "A model as `push` uploads it, with changed files"
    content = {p.name: p.read_bytes() for p in folder.iterdir()}
    server.models[name] = dict(private=False, commits=[('a'*40, content | {'pytorch_model.bin': b'pickle', 'model.py': b'1/0'} | files)])
    return content


@pytest.fixture(scope='module')
def saved(finished, tmp_path_factory): return save_classifier(load_classifier(finished.folder), tmp_path_factory.mktemp('hub')/'saved')


# --- upload

@needs_server
def test_push_and_read_back(server, finished, practice):
    assert push_to_hub(finished.folder, 'jane/cnn') == f'{huggingface_hub.constants.ENDPOINT}/jane/cnn'
    names = sorted(server.files('jane/cnn'))
    assert names[:3] == ['.gitattributes', 'README.md', 'classifier.json'] and len(names) == 4 and not server.models['jane/cnn']['private']
    assert len(server.models['jane/cnn']['commits']) == 2  # an empty one, and ours
    assert server.files('jane/cnn')['README.md'].decode() == str(model_card(finished.folder, 'jane/cnn'))
    files = files_to_test(practice)
    assert load_classifier('hf://jane/cnn').probabilities(files).equal(load_classifier(finished.folder).probabilities(files))


@needs_server
def test_a_second_push_replaces_the_first(server, folder, go):
    (folder/'old.onnx').write_bytes(b'onnx')
    push_to_hub(folder, 'hf://jane/cnn')
    server.files('jane/cnn')['LICENSE'] = b'mine'
    before = set(server.files('jane/cnn'))
    learn = go(name='other', seed=4)
    push_to_hub(learn, 'jane/cnn')
    after = set(server.files('jane/cnn'))
    assert len(server.models['jane/cnn']['commits']) == 3 and 'LICENSE' in after
    gone, new = before - after, after - before
    assert {Path(o).suffix for o in gone} == {'.onnx', '.safetensors'} and [Path(o).suffix for o in new] == ['.safetensors']
    revision = server.models['jane/cnn']['commits'][1][0]
    first, second = (next(load_classifier(name, 'cpu').model.parameters()) for name in (f'hf://jane/cnn@{revision}', 'hf://jane/cnn'))
    assert not first.equal(second)
    push_to_hub(learn, 'jane/cnn')  # nothing is new
    assert set(server.files('jane/cnn')) == after


@needs_server
def test_private_stays_private(server, finished):
    push_to_hub(finished.folder, 'jane/cnn', private=True)
    assert server.models['jane/cnn']['private']
    server.models['jane/cnn']['private'] = False
    with pytest.raises(ValueError, match='jane/cnn exists already and is public. Nothing was uploaded'): push_to_hub(finished.folder, 'jane/cnn', private=True)
    assert len(server.models['jane/cnn']['commits']) == 2


@needs_server
def test_a_model_of_another_kind_is_not_touched(server, finished):
    server.models['jane/bert'] = dict(private=False, commits=[('0'*40, {'README.md': b'', 'pytorch_model.bin': b'x'})])
    with pytest.raises(FileExistsError, match=r'already holds something else \(pytorch_model.bin\). Nothing was uploaded'): push_to_hub(finished.folder, 'jane/bert')
    assert len(server.models['jane/bert']['commits']) == 1


def test_nobody_is_logged_in(no_hub, finished):
    with pytest.raises(PermissionError, match='You are not logged in to the Hugging Face hub: run `hf auth login`, or set HF_TOKEN'): push_to_hub(finished.folder, 'jane/cnn')


@needs_server
@pytest.mark.parametrize('status, says', [(401, 'does not accept your token: run `hf auth login`'), (403, 'may not write to jane/cnn'), (402, 'jane/cnn was not uploaded: ')])
def test_a_token_that_is_not_enough(server, finished, status, says):
    server.refuse = status
    with pytest.raises(ConnectionError if status == 402 else PermissionError, match=says): push_to_hub(finished.folder, 'jane/cnn', token='hf_read')


@needs_server
def test_upload_without_a_connection(no_hub, finished, monkeypatch):
    start = time.perf_counter()
    with pytest.raises(ConnectionError, match='jane/cnn was not uploaded, since the Hugging Face hub was not reached'): push_to_hub(finished.folder, 'jane/cnn', token='x')
    assert time.perf_counter() - start < 5
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ConnectionError, match='not reached'): push_to_hub(finished.folder, 'jane/cnn', token='x')


# --- reading back

def downloaded(server): return sorted({o.rpartition('/')[2] for o in server.asked if o.startswith('GET') and '/resolve/' in o})  # the client asks for more, of its own


@needs_server
def test_only_two_files_are_read(server, saved, finished, practice, no_hub):
    content = put(server, saved)
    classifier = load_classifier('hf://jane/cnn', 'cpu')
    assert downloaded(server) == sorted(content) == ['classifier.json', next(o for o in content if o.startswith('model-'))]
    server.stop()  # and later from the cache
    again = load_classifier(Path('hf://jane/cnn'), 'cpu')
    files = files_to_test(practice)
    assert again.probabilities(files).equal(classifier.probabilities(files)) and repr(again) == repr(classifier)
    with pytest.raises(ConnectionError, match='hf://jane/other was not downloaded: .*only what was downloaded before'): load_classifier('hf://jane/other')
    shutil.rmtree(no_hub.cache)
    with pytest.raises(ConnectionError, match='hf://jane/cnn was not downloaded'): load_classifier('hf://jane/cnn')


@needs_server
def test_revisions(server, saved):
    put(server, saved)
    server.models['jane/cnn']['commits'].append(('b'*40, {'README.md': b''}))
    load_classifier('hf://jane/cnn@' + 'a'*40)
    with pytest.raises(FileNotFoundError, match='hf://jane/cnn: the model has no file classifier.json, so it is none that `cifar-fastai push` wrote'): load_classifier('hf://jane/cnn')
    with pytest.raises(FileNotFoundError, match="hf://jane/cnn: the model has no branch, tag or commit 'v9'"): load_classifier('hf://jane/cnn@v9')


@needs_server
def test_a_model_that_is_replaced_meanwhile(server, saved):
    put(server, saved)
    server.next = [('b'*40, {'README.md': b''})]
    load_classifier('hf://jane/cnn')
    assert not server.next


@needs_server
def test_models_that_are_not_there(server, saved, monkeypatch):
    with pytest.raises(FileNotFoundError, match='hf://jane/none: the Hugging Face hub has no such model, or it is private'): load_classifier('hf://jane/none')
    put(server, saved)
    server.models['jane/cnn']['private'] = True
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(FileNotFoundError, match='for a private model, run `hf auth login` or set HF_TOKEN'): load_classifier('hf://jane/cnn')
    monkeypatch.setenv('HF_TOKEN', 'hf_read')
    load_classifier('hf://jane/cnn')


@needs_server
@pytest.mark.parametrize('name', ['hf://a/b/c', 'hf://jane/my cnn', 'hf://jane/..'])
def test_names_that_cannot_be(server, name):
    with pytest.raises(ValueError, match='[Rr]epo.id'): load_classifier(name)
    assert not downloaded(server)


@needs_server
@pytest.mark.parametrize('name', ['../model-1.safetensors', '/etc/passwd', 'model.bin', 'a/model-1.safetensors', 5, ''])
def test_names_of_weights_that_lead_elsewhere(server, saved, name, tmp_path):
    content = put(server, saved)
    server.files('jane/cnn')['classifier.json'] = json.dumps(json.loads(content['classifier.json']) | dict(weights=name)).encode()
    with pytest.raises(ValueError, match='classifier.json is damaged'): load_classifier('hf://jane/cnn')
    assert downloaded(server) == ['classifier.json']


@needs_server
@pytest.mark.parametrize('content', [b'', b'[]', b'{"format": "x"}', b'{"format": "cifar_fastai classifier"}', b'\x80\x04cos\nsystem\n'])
def test_json_of_others(server, saved, content):
    put(server, saved)
    server.files('jane/cnn')['classifier.json'] = content
    with pytest.raises(ValueError, match='classifier.json'): load_classifier('hf://jane/cnn')


@needs_server
def test_damaged_weights(server, saved):
    content = put(server, saved)
    name = next(o for o in content if o.startswith('model-'))
    server.files('jane/cnn')[name] = content[name][:-1] + b'x'
    with pytest.raises(ValueError, match=f'{name} is damaged or was replaced'): load_classifier('hf://jane/cnn')
    del server.files('jane/cnn')[name]


@needs_server
def test_weights_that_are_not_there(server, saved):
    content = put(server, saved)
    name = next(o for o in content if o.startswith('model-'))
    del server.files('jane/cnn')[name]
    with pytest.raises(FileNotFoundError, match=f'no file {name}'): load_classifier('hf://jane/cnn')


@needs_server
def test_a_connection_that_breaks_off(server, saved, monkeypatch):
    put(server, saved)
    server.cut = 1000
    monkeypatch.setattr(time, 'sleep', lambda seconds: None)
    with pytest.raises(ConnectionError, match='hf://jane/cnn was not downloaded'): load_classifier('hf://jane/cnn')
    server.cut = None
    load_classifier('hf://jane/cnn')  # nothing that is half is left


def test_a_classifier_is_saved_again(saved, tmp_path):
    again = save_classifier(load_classifier(saved), tmp_path/'again')
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in saved.iterdir()}


# --- the command line

def run(*args, monkeypatch):
    out, err = StringIO(), StringIO()
    monkeypatch.setattr(sys, 'stdout', out)
    monkeypatch.setattr(sys, 'stderr', err)
    return SimpleNamespace(code=cli.main([str(o) for o in args]), out=out.getvalue(), err=err.getvalue())


@needs_server
def test_commands(server, finished, practice, tmp_path, monkeypatch):
    dry = run('push', finished.folder, '--to', 'jane/cnn', '--dir', tmp_path/'card', monkeypatch=monkeypatch)
    assert dry.code == 0 and str(tmp_path/'card'/'README.md') in dry.out and 'Nothing was uploaded' in dry.out and not server.models
    pushed = run('push', finished.folder, '--to', 'jane/cnn', '--private', '--license', 'mit', monkeypatch=monkeypatch)
    assert pushed.code == 0 and '/jane/cnn\n' in pushed.out and 'cifar-fastai predict hf://jane/cnn IMAGE...' in pushed.out
    assert server.models['jane/cnn']['private'] and b'license: mit' in server.files('jane/cnn')['README.md']
    picture = files_to_test(practice)[0]
    answers = [run('predict', where, picture, '--json', monkeypatch=monkeypatch).out for where in ('hf://jane/cnn', finished.folder)]
    assert answers[0] == answers[1] and json.loads(answers[0])['file'] == str(picture)


@pytest.mark.parametrize('args, code, says', [
    (['--to', 'cnn'], 2, "'cnn' cannot be the name of a model on the hub"), ([], 2, '--to'), (['--to', 'jane/cnn'], 1, 'You are not logged in'),
    (['--to', 'jane/cnn', '--dir', 'taken'], 2, 'not an empty folder')])
def test_mistakes(no_hub, finished, tmp_path, monkeypatch, args, code, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'taken').mkdir()
    (tmp_path/'taken'/'x').touch()
    result = run('push', finished.folder, *args, monkeypatch=monkeypatch)
    assert result.code == code and re.fullmatch(r'Error: [^\n]+\n', result.err) and says in result.err
