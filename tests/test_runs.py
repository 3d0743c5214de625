"Run folders: claimed by one process, true however a training ends, and readable when they are old or damaged."
import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from pathlib import Path
from random import Random

import pytest
import torch
from torch import nn

from cifar_fastai import errors, runs
from cifar_fastai.evaluation import load_evaluation
from cifar_fastai.experiments import read_runs
from cifar_fastai.files import read_json, write_json
from cifar_fastai.inference import load_classifier
from cifar_fastai.recipes import Recipe, Stage
from cifar_fastai.runs import Run, list_runs
from cifar_fastai.training import load_run, train
from cifar_fastai.weights import find_weights

tiny = Recipe(name='tiny', model='ladder_3', stages=Stage(epochs=2, lr=1e-2))
epoch = dict(stage=1, epoch=1, train_loss=.9, valid_loss=.7, accuracy=.75, lr=.01, seconds=1.5)


@pytest.fixture
def run(tmp_path): return Run.create(tmp_path/'runs'/'a', tiny, dict(seed=0, data=dict(variant='synthetic')))


def test_cpu_seconds_count_worker_processes(run):
    def burn():
        began = time.process_time()
        while time.process_time() < began + .3: pass
    run.set_clock()
    worker = multiprocessing.get_context('fork').Process(target=burn)
    worker.start()
    worker.join()
    assert run.cpu_seconds() >= .25


def state(model): return {k: v.clone() for k, v in model.state_dict().items()}


# --- claiming a folder

@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')
@pytest.mark.parametrize('exists', [False, True])
def test_one_of_several_processes_gets_the_folder(tmp_path, exists):
    if exists: (tmp_path/'a').mkdir()
    context = multiprocessing.get_context('fork')
    barrier, answers = context.Barrier(4), context.Queue()
    def claim(n):
        barrier.wait()
        try: answers.put(Run.create(tmp_path/'a', tiny, dict(seed=n)).info['seed'])
        except FileExistsError: answers.put(None)
    processes = [context.Process(target=claim, args=[n]) for n in range(4)]
    for p in processes: p.start()
    said = [answers.get(timeout=60) for _ in processes]
    for p in processes: p.join(60)
    [winner] = [n for n in said if n is not None]
    assert Run.open(tmp_path/'a').info['seed'] == winner


@pytest.mark.parametrize('there', ['file', 'notes.txt', 'run.json', 'recipe.json', 'history.csv'])
def test_what_is_there_is_not_touched(tmp_path, there):
    if there == 'file': (tmp_path/'a').write_text('mine')
    else:
        (tmp_path/'a').mkdir()
        (tmp_path/'a'/there).write_text('mine')
    with pytest.raises(FileExistsError, match='Nothing was written'): Run.create(tmp_path/'a', tiny, {})
    assert [p.read_text() for p in tmp_path.rglob('*') if p.is_file()] == ['mine']


def test_runs_are_listed_by_name(tmp_path):
    for name in ('b', 'a'): Run.create(tmp_path/name, tiny, {})
    (tmp_path/'c').mkdir()
    assert [r.folder.name for r in list_runs(tmp_path)] == ['a', 'b']
    assert [r.folder.name for r in list_runs(tmp_path/'b')] == ['b'] and list_runs(tmp_path/'c') == list_runs(tmp_path/'nowhere') == []


def test_a_full_disk_leaves_the_folder_free(tmp_path, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as m:
        m.setattr(runs, '_append', full)
        with pytest.raises(OSError, match='No space'): Run.create(tmp_path/'a', tiny, {})
    assert not any((tmp_path/'a').iterdir())
    Run.create(tmp_path/'a', tiny, {})
    with pytest.raises(FileExistsError): Run.create(tmp_path/'a', tiny, {})
    assert Run.open(tmp_path/'a').recipe == tiny


# --- however it ends

@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('name, code', [('SIGTERM', 143), ('SIGHUP', 129)])
def test_a_signal_is_an_interruption(run, name, code):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as e, run.training(nn.Linear(2, 2)):
            run.add_epoch(epoch)
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_DFL
    finally: signal.signal(number, before)
    assert (e.value.code, run.status, run.info['epochs']) == (code, 'interrupted', 1) and run.weights_file.exists()


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_nohup_is_kept(run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with run.training(nn.Linear(2, 2)): signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and run.status == 'finished'
    finally: signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_sigterm_of_others_stays(run):
    "A handler of the program is left alone, and a process that was forked ends as it would have"
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(1))
    try:
        with run.training(nn.Linear(2, 2)): signal.raise_signal(signal.SIGTERM)
        assert seen == [1] and run.status == 'finished'
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with errors.raising_terminated():
            process = multiprocessing.get_context('fork').Process(target=signal.raise_signal, args=[signal.SIGTERM])
            process.start()
            process.join(60)
        assert process.exitcode == -signal.SIGTERM
    finally: signal.signal(signal.SIGTERM, before)


@pytest.mark.skipif(os.name == 'nt', reason='signals')
def test_a_second_sigterm_ends_at_once():
    code = """
import os, signal
from cifar_fastai.errors import raising_terminated
try:
    with raising_terminated(): os.kill(os.getpid(), signal.SIGTERM)
finally:
    print('saving', flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print('saved')
"""
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert (process.returncode, process.stdout, process.stderr) == (-signal.SIGTERM, 'saving\n', '')


def test_a_run_that_was_killed_says_so(run):
    model = nn.Linear(2, 2)
    run.add_epoch(epoch)
    with pytest.warns(UserWarning, match='did not end: it was killed, .* a history of 1 epoch and no weights'), pytest.raises(FileNotFoundError): run.load_weights(model)
    run.save_weights(model)
    with pytest.warns(UserWarning, match='did not end: .* 1 epoch and weights'): run.load_weights(model)
    with run.training(model): pass
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        run.load_weights(model)


def test_figures_of_two_at_once_are_all_kept(run, monkeypatch):
    "Each reads metrics.json before the other has written it"
    real = runs.write_json
    def slowly(*args):
        time.sleep(.05)
        return real(*args)
    monkeypatch.setattr(runs, 'write_json', slowly)
    threads = [threading.Thread(target=run.add_metrics, args=[name, dict(accuracy=.5)]) for name in ('valid', 'test', 'test flip')]
    for t in threads: t.start()
    for t in threads: t.join()
    assert set(run.metrics) == {'valid', 'test', 'test flip'} and not list(run.folder.glob('.*'))


@pytest.mark.parametrize('error, status', [(None, 'finished'), (KeyboardInterrupt(), 'interrupted'), (errors.Pruned('why'), 'pruned'), (ValueError('why'), 'failed')])
def test_status_and_weights_are_those_of_the_end(run, error, status):
    model = nn.Linear(2, 2)
    assert run.status == 'training'
    try:
        with run.training(model):
            run.add_epoch(epoch)
            nn.init.constant_(model.weight, 7.)
            if error: raise error
    except (KeyboardInterrupt, ValueError, errors.Pruned) as e: assert e is error
    info = run.info
    assert (run.status, info['epochs'], info['seed'], len(run.history)) == (status, 1, 0, 1) and info['seconds'] >= 0
    assert info.get('error') == (f'{type(error).__name__}: {error}' if error else None)
    assert run.read_weights()['weight'].eq(7).all()


def test_a_run_that_nobody_trains_any_more_was_killed(run, tmp_path):
    assert run.was_killed() and not Run(tmp_path/'nowhere').was_killed()
    with run.alone(): assert not run.was_killed()
    with run.training(nn.Linear(2, 2)): run.add_epoch(epoch)
    assert not run.was_killed()
    run.info_file.write_text('{"status": "train')
    assert not run.was_killed()


def test_weights_that_were_saved_are_not_saved_again(run, monkeypatch):
    model, calls, real = nn.Linear(2, 2), [], runs.save_file
    monkeypatch.setattr(runs, 'save_file', lambda *args: calls.append(args) or real(*args))
    with pytest.raises(ValueError), run.training(model):
        run.save_weights(model)
        raise ValueError('the final validation fails')
    assert len(calls) == 1 and run.status == 'failed'


def test_a_damaged_history_does_not_hide_what_ended_the_training(run):
    with pytest.raises(ArithmeticError, match='first'), run.training(nn.Linear(2, 2)):
        run.history_file.write_text('')
        raise ArithmeticError('first')
    assert run.weights_file.exists()


def test_a_full_disk_is_told_once_and_the_weights_lie_elsewhere(run, tmp_path, monkeypatch):
    model, real = nn.Linear(2, 2), runs.save_file
    def save_file(state, path):
        if Path(path).is_relative_to(run.folder): raise OSError(errno.ENOSPC, 'No space left on device')
        real(state, path)
    monkeypatch.setattr(runs, 'save_file', save_file)
    monkeypatch.setattr(runs.tempfile, 'tempdir', str(tmp_path))
    with pytest.raises(OSError, match='weights were saved in'), run.training(model): pass
    [kept] = tmp_path.glob('cifar_fastai-*/model.safetensors')
    assert run.status == 'failed' and not run.weights_file.exists() and torch.equal(runs.load_file(kept)['weight'], model.weight)


@pytest.mark.parametrize('refused', ['mkdtemp', 'save_file'])
def test_two_full_disks_are_one_error(run, tmp_path, monkeypatch, refused):
    "One without a safetensors error alone, and without half a file in the folder for temporary files"
    def full(*args, **kwargs): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(runs.tempfile, 'tempdir', str(tmp_path))
    monkeypatch.setattr(runs, 'save_file', full)
    if refused == 'mkdtemp': monkeypatch.setattr(runs.tempfile, 'mkdtemp', full)
    with pytest.raises(OSError, match='could not be saved: neither .*model.safetensors .* nor .*set TMPDIR'), run.training(nn.Linear(2, 2)): pass
    assert run.status == 'failed' and not list(tmp_path.glob('cifar_fastai-*'))


# --- read again

def test_weights_come_back(run):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with run.training(model): model(torch.ones(4, 2))
    other = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    run.load_weights(other)
    assert all(torch.equal(v, state(model)[k]) for k, v in state(other).items())


@pytest.mark.skipif(os.name == 'nt', reason='no modes')
@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o027, 0o640)])
def test_all_files_of_a_run_have_the_same_mode(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        run = Run.create(tmp_path/'run', tiny, dict(seed=0, data=dict(variant='synthetic')))
        with run.training(nn.Linear(2, 3)): pass
    finally: os.umask(before)
    assert run.weights_file.exists()
    assert {f.name: f.stat().st_mode & 0o777 for f in run.folder.iterdir()} == {f.name: mode for f in run.folder.iterdir()}


def test_weights_of_another_run_are_refused(run, tmp_path):
    other = Run.create(tmp_path/'other', tiny, {})
    for r in (run, other):
        with r.training(nn.Linear(2, 2)): pass
    shutil.copy(other.weights_file, run.weights_file)
    with pytest.raises(ValueError, match='model.safetensors is damaged or not the file that this run wrote'): run.load_weights(nn.Linear(2, 2))
    info = run.info
    del info['checksums']  # an older run
    write_json(run.info_file, info)
    run.load_weights(nn.Linear(2, 2))
    with pytest.raises(ValueError, match='does not hold the weights of this network'): run.load_weights(nn.Linear(2, 3))


def test_weights_of_another_user_are_not_called_damaged(run, monkeypatch):
    with run.training(nn.Linear(2, 2)): pass
    monkeypatch.setattr(os, 'access', lambda path, mode: Path(path) != run.weights_file)
    with pytest.raises(PermissionError) as e: run.read_weights()
    assert (e.value.strerror, e.value.filename) == ('This user may not read the file', str(run.weights_file))


@pytest.mark.parametrize('name, content, read, message', [
    ('run.json', None, Run.open, 'is not a run folder: it has no run.json'), ('recipe.json', None, Run.open, 'is not a run folder: it has no recipe.json'),
    ('run.json', '{"a', Run.open, 'run.json is damaged'), ('recipe.json', '[]', Run.open, 'recipe.json is damaged'),
    ('recipe.json', '{"name": 3}', lambda folder: Run(folder).recipe, 'recipe.json is damaged or not the file that this run wrote'),
    ('metrics.json', '{', lambda folder: Run(folder).metrics, 'metrics.json is damaged'),
    ('model.safetensors', None, lambda folder: Run(folder).read_weights(), 'model.safetensors is not there')])
def test_what_is_missing_or_damaged_is_named(run, name, content, read, message):
    with run.training(nn.Linear(2, 2)): pass
    if content is None: (run.folder/name).unlink()
    else: (run.folder/name).write_text(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message): read(run.folder)


def test_figures_are_added_to_those_of_their_name(run):
    run.add_metrics('valid', dict(accuracy=.5, n=10))
    run.add_metrics('test', dict(accuracy=.4))
    run.add_metrics('valid', dict(accuracy=.6))
    assert run.metrics == dict(valid=dict(accuracy=.6, n=10), test=dict(accuracy=.4))
    assert json.loads(run.metrics_file.read_text()).keys() == {'valid', 'test', 'content_checksum'}


# --- what was written before there was a class for it

@pytest.fixture
def old(tmp_path):
    "A run, an evaluation and a classifier of November 2026, and what was read from them then"
    with tarfile.open(Path(__file__).parent/'data'/'before_runs.tgz') as packed: packed.extractall(tmp_path/'old')
    return tmp_path/'old'


def test_an_old_run_is_read(old, practice):
    learn, said = load_run(old/'run', source=practice, num_workers=0, device='cpu'), read_json(old/'answers.json')
    run = Run.open(old/'run')
    assert (run.status, run.recipe.model, len(run.history)) == ('finished', 'plain_cnn', 1) and run.metrics['test']['accuracy'] == said['accuracy']
    assert read_runs(old/'run').test_accuracy.tolist() == [said['accuracy']] and learn.recipe == run.recipe


def test_an_old_evaluation_is_read(old):
    result = load_evaluation(old/'evaluation.npz')
    assert result.accuracy == read_json(old/'answers.json')['accuracy'] and len(result) == 50


@pytest.mark.parametrize('folder', ['run', 'classifier'])
def test_old_classifiers_answer_as_they_did(old, practice, folder):
    said = read_json(old/'answers.json')['probabilities']
    answers = load_classifier(old/folder, 'cpu').probabilities([practice/name for name in said])
    assert torch.allclose(answers, torch.tensor(list(said.values())), atol=1e-4) and answers.std() > .01


def test_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    run = Run.create('~/runs/a', tiny, {})
    assert run.folder == tmp_path/'runs'/'a' and run.info_file.is_file()
    assert runs.create_run_dir(tiny, 0, '~/runs') == tmp_path/'runs'/'tiny-seed0'
    assert Run.open('~/runs/a').recipe == tiny
    assert [r.folder.name for r in list_runs('~/runs')] == ['a']


# --- files of another shape

@pytest.mark.parametrize('text', ['[]', '3', 'null', '', '['*100_000, b'\xff'], ids=lambda text: repr(text)[:12])
@pytest.mark.parametrize('name, read', [('run.json', lambda r: r.info), ('run.json', lambda r: r.status), ('metrics.json', lambda r: r.metrics),
                                        ('recipe.json', lambda r: r.recipe), ('recipe.json', lambda r: r.choices)])
def test_json_of_another_shape_is_damage(run, name, read, text):
    (run.folder/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f'{name} is damaged'): read(run)


@pytest.mark.parametrize('change, message', [
    (dict(seed='0'), 'seed must be a whole number'), (dict(seed=True), 'seed must'), (dict(seed=.5), 'seed must'), (dict(status=1), 'status must be text'),
    (dict(data=[]), 'data must be an object'), (dict(data=dict(classes=['cat', 3])), r'data\.classes must be a list of text'),
    (dict(data=dict(classes='cat')), r'data\.classes must'), (dict(data=dict(channels=2)), r'data\.channels must be 1 or 3'), (dict(data=dict(path=None)), r'data\.path must'),
    (dict(data=dict(limit='x')), r'data\.limit must'), (dict(checksums=None), 'checksums must be an object'), (dict(epochs='x'), 'epochs must'), (dict(versions=[]), 'versions must')])
def test_values_of_run_json_have_types(run, change, message):
    write_json(run.info_file, run.info | change)
    with pytest.raises(ValueError, match=f'run.json is damaged: {message}'): run.info


@pytest.mark.parametrize('change, message', [
    (dict(seed=None), 'seed must'), (dict(data={}), r'it lacks data\.variant'), (dict(data=dict(variant='a', path='b')), r'it lacks data\.classes')])
def test_a_run_without_data_is_not_loaded(run, change, message):
    write_json(run.info_file, run.info | change)
    with pytest.raises(ValueError, match=f'run.json is damaged: {message}'): load_run(run.folder)


@pytest.mark.parametrize('text', ['', 'stage', 'stage,epoch\n1,2', '\0', 'a,b\n1,2,3,4\n1', b'\xff\xfe', 'stage,epoch,train_loss,valid_loss,accuracy,lr,seconds\n1,1,x,1,1,1,1'], ids=repr)
def test_a_history_of_another_shape_is_damage(run, text):
    run.history_file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match='history.csv is damaged'): run.history


def test_recalls_of_another_shape_are_damage(run):
    for text in ('', 'stage', 'stage,epoch,cat\n1,1,x'):
        run.recalls_file.write_text(text)
        with pytest.raises(ValueError, match='recalls.csv is damaged'): run.recalls


def test_figures_of_another_shape_are_damage(run):
    write_json(run.metrics_file, dict(valid=3))
    with pytest.raises(ValueError, match='metrics.json is damaged: valid must be an object'): run.metrics


@pytest.mark.parametrize('wanted', [None, 3, '', 'flipped'])
def test_a_checksum_is_not_skipped(run, wanted):
    with run.training(nn.Linear(2, 2)): pass
    data = bytearray(run.weights_file.read_bytes())
    if wanted == 'flipped':
        data[-1] ^= 1
        run.weights_file.write_bytes(data)
    else: write_json(run.info_file, run.info | dict(checksums={'model.safetensors': wanted}))
    with pytest.raises(ValueError, match='model.safetensors is damaged or not the file'): run.read_weights()
    with pytest.raises(ValueError, match='model.safetensors is damaged or not the file'): find_weights('small_cnn', run.folder)


def mutations(right, n=200, seed=0):
    "Flipped bits, and files that were cut off; one in four has both"
    random = Random(seed)
    for k in range(n):
        data = bytearray(right)
        if k % 4 < 3: data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        if k % 4 > 1: del data[random.randrange(len(data)):]
        yield bytes(data)


@pytest.mark.parametrize('name', ['info', 'metrics', 'recipe', 'choices', 'history', 'recalls', 'read_weights'])
def test_mutated_files_are_refused(run, name):
    "The right answer, or an error that names the file; the key of the checksum itself may be damaged too"
    right_keys = None
    def read():
        answer = getattr(run, name)
        if name == 'read_weights': answer = {k: v.tolist() for k, v in answer().items()}
        return {k: answer.get(k) for k in right_keys or answer} if isinstance(answer, dict) else repr(answer)
    with run.training(nn.Linear(2, 2)):
        run.add_epoch(epoch)
        run.add_recalls(1, 1, dict(cat=.5, dog=.25))
    run.add_metrics('valid', dict(accuracy=.5))
    file = dict(info=run.info_file, metrics=run.metrics_file, recipe=run.recipe_file, choices=run.recipe_file, history=run.history_file,
                recalls=run.recalls_file, read_weights=run.weights_file)[name]
    right, answer, refused = file.read_bytes(), read(), 0
    right_keys = answer if isinstance(answer, dict) else None
    for data in mutations(right):
        file.write_bytes(data)
        try: assert read() == answer, data
        except ValueError as e:
            assert file.name in str(e)
            refused += 1
    assert refused > 150


def test_json_values_that_are_exchanged_are_seen(run):
    with run.training(nn.Linear(2, 2)): pass
    text = run.info_file.read_text()
    run.info_file.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(ValueError, match='run.json is damaged or was edited: .* delete the entry content_checksum'): run.info
    info = json.loads(run.info_file.read_text())
    for said in (None, '', 0):
        run.info_file.write_text(json.dumps(info | dict(content_checksum=said)))
        with pytest.raises(ValueError, match='run.json is damaged or was edited'): run.info
    del info['content_checksum']
    run.info_file.write_text(json.dumps(info))
    assert run.info['seed'] == 1
    write_json(run.info_file, run.info)
    assert run.info['seed'] == 1 and '"content_checksum": ' in run.info_file.read_text()


def test_a_run_that_may_not_be_written_names_what_could_not_be(run, monkeypatch):
    def no(path, *args): raise PermissionError(errno.EACCES, 'Permission denied', str(path))
    monkeypatch.setattr(runs, 'locked', no)
    with pytest.raises(PermissionError) as e: run.add_metrics('test', dict(accuracy=.5))
    assert e.value.filename == str(run.metrics_file)


def test_another_seed_is_another_split(tmp_path, practice):
    "The record of a run says which images were held out"
    folder = train(tiny.change(epochs=1), source=practice, run_dir=tmp_path/'a', num_workers=0, device='cpu').run_dir
    run = Run(folder)
    assert len(run.info['data']['valid_digest']) == 16
    def warned():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            load_run(folder, num_workers=0, device='cpu')
        return [str(w.message) for w in said if 'are not those that' in str(w.message)]
    assert warned() == []
    write_json(run.info_file, run.info | dict(seed=1))
    assert len(warned()) == 1
