"Logs of a training by name: what they hold, over all stages and when a run is resumed; and that they change nothing."
import json
import os
import signal
import struct
import subprocess
import sys
import types
import warnings
from pathlib import Path

import pandas as pd
import pytest

from cifar_fastai import tracking
from cifar_fastai.cli import main
from cifar_fastai.errors import MissingPackageError
from cifar_fastai.recipes import Head, Stage
from cifar_fastai.runs import Run
from cifar_fastai.training import train
from small_runs import At, small, tiny

# six batches an epoch, three epochs in two stages; the best weights of the first are kept
stages = small.change(stages=(Stage(epochs=2, lr=1e-2, keep_best='accuracy'), Stage(epochs=1, lr=1e-3, augment='none', optimizer='rmsprop')))
n_steps = 18


@pytest.fixture(autouse=True)
def settings(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(('WANDB_', 'MLFLOW_'))]: monkeypatch.delenv(name)
    for name, value in dict(WANDB_MODE='offline', WANDB_SILENT='true', WANDB_CONFIG_DIR=str(tmp_path/'config'), WANDB_CACHE_DIR=str(tmp_path/'cache'),
                            WANDB_DATA_DIR=str(tmp_path/'data')).items(): monkeypatch.setenv(name, value)
    yield
    os.environ.pop('WANDB_SERVICE', None)  # of its helper process


@pytest.fixture
def go(practice, tmp_path):
    def go(recipe=stages, name='run', resume=False, **kwargs):
        place = dict(resume=tmp_path/name) if resume else dict(recipe=recipe, source=practice, run_dir=tmp_path/name, limit=96)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', r'.* was begun with cbs=\[At')
            return train(**place, num_workers=0, device='cpu', checkpoint_minutes=0, **kwargs)
    return go


def stop(learn): raise KeyboardInterrupt


def stopped_and_resumed(go, log, stage=1, epoch=1, batch=2, **kwargs):
    "A run that was stopped in a stage, and went on"
    def stop_in_stage(learn):
        if learn.checkpoints.stage == stage: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): go(log=log, cbs=[At(stop_in_stage, epoch, batch)])
    return go(resume=True, **kwargs)


def weights(learn): return {name: w.tolist() for name, w in learn.model.state_dict().items()}


# --- names

@pytest.mark.parametrize('log, names', [(None, []), ('', []), ('csv', ['csv']), (' csv,csv ,', ['csv']), (['csv'], ['csv'])])
def test_names(log, names): assert tracking.logger_names(log) == names


def test_unknown_names(go, tmp_path, practice, capsys):
    with pytest.raises(ValueError, match="Unknown logger 'tensorbord'. Use csv, mlflow, tensorboard, wandb, or several"): go(log='csv,tensorbord')
    assert main(['train', '--data', str(practice), '--out', str(tmp_path/'run'), '--log', 'wb']) == 2 and "Unknown logger 'wb'" in capsys.readouterr().err
    assert not (tmp_path/'run').exists()


@pytest.mark.parametrize('name', ['wandb', 'tensorboard', 'mlflow'])
def test_a_missing_package_is_told_before_the_training(go, tmp_path, monkeypatch, name):
    monkeypatch.setattr(tracking, 'find_spec', lambda package: None)
    with pytest.raises(MissingPackageError, match=f"The logger '{name}' needs the package {name}: `pip install .cifar_fastai.track."): go(log=name)
    assert not (tmp_path/'run').exists()


@pytest.mark.slow
def test_nothing_is_imported_unless_asked_for():
    unwanted = {'timm', 'tensorboard', 'mlflow', 'wandb', 'pyarrow.parquet', 'fastai.callback.tensorboard', 'fastai.callback.wandb'}
    code = f'import sys, cifar_fastai.all, cifar_fastai.tracking; print(sorted({unwanted} & sys.modules.keys()))'
    assert subprocess.check_output([sys.executable, '-c', code], text=True).strip() == '[]'


def test_parameters(go):
    learn = go(tiny.shorten(1))
    found = tracking.run_parameters(Run(learn.run_dir))
    assert (found['recipe.name'], found['seed'], found['data.variant'], found['data.n_train'], found['device'], found['recipe.stages.1.epochs']) == (
        learn.recipe.name, 0, 'synthetic', 96, 'cpu', 1)
    assert {'versions.torch', 'versions.fastai', 'hardware.cpu', 'precision', 'recipe.bs'} <= found.keys()
    assert all(isinstance(v, (int, float, str)) and len(str(v)) <= 500 for v in found.values()) and not {'checksums', 'status'} & {name.split('.')[0] for name in found}


# --- what they leave

@pytest.mark.slow
def test_they_change_nothing(go, tmp_path):
    plain, logged = go(name='plain'), go(name='logged', log='csv,tensorboard,wandb')
    assert weights(plain) == weights(logged)
    assert Run(plain.run_dir).history.drop(columns='seconds').equals(Run(logged.run_dir).history.drop(columns='seconds'))
    assert {f.name for f in logged.run_dir.iterdir()} - {f.name for f in plain.run_dir.iterdir()} == {'log.csv', 'tensorboard', 'wandb'}
    assert (Run(plain.run_dir).info['log'], Run(logged.run_dir).info['log']) == ([], ['csv', 'tensorboard', 'wandb'])
    logged.fit(1)  # which is no training of the run
    assert len(pd.read_csv(logged.run_dir/'log.csv')) == 3


def test_features_are_kept_with_a_log(go, practice):
    recipe = small.change(model='mobilenet_v3_small', head=Head(lin_ftrs=()), groups=('head',), augment='none',
                          stages=Stage(epochs=2, lr=1e-2, freeze_to='head', bn='frozen'))
    asked = []
    def ask(learn): asked.append(type(learn.dls.train_ds).__name__)
    go(recipe, log='tensorboard,wandb,csv', cbs=[At_epoch(ask)])
    assert asked[:2] == ['Features']*2


class At_epoch(tracking.Watcher):
    def __init__(self, f): self.f = f
    def before_epoch(self): self.f(self.learn)


def test_csv_has_the_epochs_of_all_stages(go):
    learn = go(log='csv')
    table, history = pd.read_csv(learn.run_dir/'log.csv'), Run(learn.run_dir).history
    assert table.columns.tolist() == ['epoch', 'train_loss', 'valid_loss', 'accuracy', 'time'] and table.epoch.tolist() == [0, 1, 0]
    assert table.valid_loss.round(5).tolist() == history.valid_loss.round(5).tolist()


@pytest.mark.slow
@pytest.mark.parametrize('place', [(1, 1, 2), (2, 0, 3), (1, 0, 1)])
def test_csv_and_tensorboard_go_on_when_a_run_is_resumed(go, place):
    loggers = ['csv', 'tensorboard']
    whole = go(name='whole', log=loggers).run_dir
    run = stopped_and_resumed(go, loggers, *place).run_dir
    resumed, wanted = (pd.read_csv(folder/'log.csv').drop(columns='time') for folder in (run, whole))
    assert resumed.equals(wanted) and scalars(run)[0] == scalars(whole)[0]


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder/'tensorboard'), dict(scalars=0, tensors=0))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()['scalars']}, found.Tags()


def test_tensorboard_counts_the_steps_of_all_stages(go):
    learn = go(log='tensorboard')
    found, tags = scalars(learn.run_dir)
    assert [step for step, _ in found['train_loss']] == [step for step, _ in found['lr_0']] == list(range(1, n_steps + 1))
    history, final = Run(learn.run_dir).history, Run(learn.run_dir).metrics['valid']
    assert [step for step, _ in found['accuracy']] == [6, 12, 18] and [v for _, v in found['valid_loss']] == pytest.approx(history.valid_loss.tolist(), abs=1e-5)
    assert found['final_valid/accuracy'] == [(n_steps, pytest.approx(final['accuracy'], abs=1e-5))] and 'parameters/text_summary' in tags['tensors']


def test_tensorboard_goes_on_after_the_last_batch_of_an_epoch(go, interruptible):
    whole, _ = scalars(go(name='whole', log='tensorboard').run_dir)
    with pytest.raises(KeyboardInterrupt): go(log='tensorboard', cbs=[At(lambda learn: signal.raise_signal(signal.SIGINT), 0, 5)])
    assert scalars(go(resume=True).run_dir)[0] == whole


def records(file):
    "The records of a file of wandb: 7 bytes, then in blocks of 32 KiB a checksum, the length and the kind of each part (1: whole, 4: the last)"
    content, i, record = file.read_bytes(), 7, b''
    while i + 7 <= len(content):
        if 2**15 - i % 2**15 < 7: i += 2**15 - i % 2**15
        _, n, kind = struct.unpack('<IHB', content[i:i+7])
        record += content[i+7:i+7+n]
        i += 7 + n
        if kind in (1, 4):
            yield record
            record = b''


def offline(folder):
    "What `wandb sync` would upload: rows of the history by step, config, summary, and the names of the run"
    from wandb.proto.wandb_internal_pb2 import Record
    history, config, summary, names = {}, {}, {}, set()
    def of(items): return {i.key or '.'.join(i.nested_key): json.loads(i.value_json) for i in items}
    for file in sorted(folder.glob('wandb/offline-run-*/*.wandb')):
        for content in records(file):
            record = Record.FromString(content)
            kind = record.WhichOneof('record_type')
            if kind == 'run':
                names.add((record.run.run_id, record.run.project, record.run.display_name))
                config |= of(record.run.config.update)
            if kind == 'config': config |= of(record.config.update)
            if kind == 'summary': summary |= of(record.summary.update)
            if kind == 'history':
                row = of(record.history.item)
                history.setdefault(int(row.get('_step', record.history.step.num)), {}).update(row)
    return history, config, summary, names


def test_wandb_without_a_network(go):
    learn = go(log='wandb')
    history, config, summary, ids = offline(learn.run_dir)
    assert len({run_id for run_id, *_ in ids}) == 1 and {(project, name) for _, project, name in ids} == {('cifar_fastai', 'run')}
    losses = [row['train_loss'] for row in history.values() if 'train_loss' in row]
    metrics = [row['accuracy'] for row in history.values() if 'accuracy' in row]
    assert len(losses) == n_steps and metrics == pytest.approx(Run(learn.run_dir).history.accuracy.tolist(), abs=1e-5)
    assert (config['recipe.name'], config['data.variant'], config['seed']) == (stages.name, 'synthetic', 0) and 'versions.torch' in config
    assert summary['final_valid_accuracy'] == pytest.approx(Run(learn.run_dir).metrics['valid']['accuracy'])
    import wandb
    assert wandb.run is None


def test_wandb_goes_on_when_a_run_is_resumed(go):
    learn = stopped_and_resumed(go, 'wandb', 1, 1, 2)
    history, _, _, ids = offline(learn.run_dir)
    assert len(list(learn.run_dir.glob('wandb/offline-run-*'))) == 2 and len({run_id for run_id, *_ in ids}) == 1
    assert len([row for row in history.values() if 'train_loss' in row]) == n_steps and len([row for row in history.values() if 'accuracy' in row]) == 3


def test_wandb_without_an_account(go, monkeypatch, tmp_path):
    import wandb
    def refuse(**kwargs): raise wandb.errors.UsageError('No API key configured. Use `wandb login` to log in.')
    monkeypatch.setattr(wandb, 'init', refuse)
    with pytest.raises(ValueError, match='wandb does not begin a log: .*wandb login.* set WANDB_MODE=offline'): go(log='csv,wandb')
    assert Run(tmp_path/'run').status == 'failed' and len(pd.read_csv(go(resume=True, log='csv').run_dir/'log.csv')) == 3


def test_a_run_of_wandb_that_is_there_is_used(go, tmp_path):
    import wandb
    mine = wandb.init(dir=tmp_path, project='mine')
    go(tiny.shorten(1), log='wandb')
    assert wandb.run is mine and not (tmp_path/'run'/'wandb').exists() and mine.summary['final_valid_accuracy'] >= 0
    wandb.finish()


# --- MLflow

class Client:
    "Takes what MLflow's client takes"
    runs, fails = {}, False
    def __init__(self, tracking_uri): Client.uri = tracking_uri
    def get_experiment_by_name(self, name): return types.SimpleNamespace(experiment_id=name) if Client.runs else None
    def create_experiment(self, name): return name
    def create_run(self, experiment_id, run_name, tags):
        made = f'{experiment_id} {run_name}'
        Client.runs[made] = dict(tags=tags, params={}, metrics=[], status='RUNNING')
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=made))
    def search_runs(self, ids, query): return [types.SimpleNamespace(info=types.SimpleNamespace(run_id=k)) for k, v in Client.runs.items() if v['tags'][tracking._tag] in query]
    def update_run(self, run_id, status): Client.runs[run_id]['status'] = status
    def log_param(self, run_id, key, value): Client.runs[run_id]['params'][key] = value
    def log_metric(self, run_id, key, value, step=None):
        if Client.fails: raise ConnectionError('no server')
        Client.runs[run_id]['metrics'].append((key, value, step))
    def set_terminated(self, run_id, status): Client.runs[run_id]['status'] = status


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setattr(tracking, 'find_spec', lambda name: name)
    monkeypatch.setitem(sys.modules, 'mlflow', types.SimpleNamespace(MlflowClient=Client))
    monkeypatch.setattr(Client, 'runs', {})
    return Client


def test_mlflow_gets_metrics_and_parameters(go, client):
    learn = go(log='mlflow')
    (name, found), = client.runs.items()
    assert name == 'cifar_fastai run' and found['status'] == 'FINISHED' and found['params'] == {k: v for k, v in tracking.run_parameters(Run(learn.run_dir)).items() if k in found['params']}
    accuracies = [(value, step) for key, value, step in found['metrics'] if key == 'accuracy']
    assert accuracies == [(pytest.approx(a, abs=1e-5), i) for i, a in enumerate(Run(learn.run_dir).history.accuracy, 1)]
    assert {key for key, *_ in found['metrics']} == {'train_loss', 'valid_loss', 'accuracy', 'lr', 'final_valid_loss', 'final_valid_accuracy', 'final_valid_n',
                                                      'final_valid_ood_threshold'}
    assert client.uri == f'sqlite:///{learn.run_dir}/mlflow.db' and {'recipe.name', 'seed', 'device'} <= found['params'].keys()


def test_mlflow_goes_on_when_a_run_is_resumed(go, client, monkeypatch):
    monkeypatch.setenv('MLFLOW_TRACKING_URI', 'http://127.0.0.1:9')
    monkeypatch.setenv('MLFLOW_EXPERIMENT_NAME', 'mine')
    with pytest.raises(KeyboardInterrupt): go(log='mlflow', cbs=[At(stop, 1, 2)])
    assert [v['status'] for v in client.runs.values()] == ['FAILED']
    go(resume=True)
    (name, found), = client.runs.items()
    assert name == 'mine run' and client.uri == 'http://127.0.0.1:9' and found['status'] == 'FINISHED'
    assert [step for key, _, step in found['metrics'] if key == 'accuracy'] == [1, 2, 3]


def test_a_server_that_is_back_gets_the_rest(go, client, monkeypatch):
    with monkeypatch.context() as m, pytest.warns(UserWarning, match='MLflow does not take the log'), pytest.raises(KeyboardInterrupt):
        m.setattr(client, 'fails', True)
        go(log='mlflow', cbs=[At(stop, 1, 2)])
    go(resume=True)
    found, = client.runs.values()
    assert found['status'] == 'FINISHED' and [step for key, _, step in found['metrics'] if key == 'accuracy'] == [2, 3]


def test_a_server_that_fails_does_not_stop_the_training(go, client, monkeypatch):
    monkeypatch.setattr(client, 'fails', True)
    with pytest.warns(UserWarning, match='MLflow does not take the log .no server.. Training goes on') as said: learn = go(log='mlflow')
    assert Run(learn.run_dir).status == 'finished' and len([w for w in said if 'MLflow' in str(w.message)]) == 1


@pytest.mark.slow
@pytest.mark.parametrize('store', ['database', 'files'])
def test_a_real_mlflow(go, tmp_path, monkeypatch, store):
    try: from mlflow import MlflowClient
    except ImportError: pytest.skip('no MLflow')
    if store == 'files':
        monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path/'mlruns').as_uri())
        monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    learn = stopped_and_resumed(go, 'mlflow', 1, 1, 2)
    uri = (tmp_path/'mlruns').as_uri() if store == 'files' else f'sqlite:///{learn.run_dir}/mlflow.db'
    client = MlflowClient(tracking_uri=uri)
    found, = client.search_runs([client.get_experiment_by_name('cifar_fastai').experiment_id])
    assert found.info.status == 'FINISHED' and found.data.params['recipe.name'] == stages.name and found.data.params['seed'] == '0'
    assert [m.step for m in client.get_metric_history(found.info.run_id, 'accuracy')] == [1, 2, 3]


def test_of_several_processes_the_first_one_logs(go, monkeypatch):
    monkeypatch.setenv('RANK', '1')
    monkeypatch.setenv('WORLD_SIZE', '2')
    run = Run.create(Path(os.environ['WANDB_CONFIG_DIR']).parent/'another', tiny, dict(seed=0))
    with tracking.tracking(['csv', 'tensorboard'], run) as watchers: assert watchers == []
    monkeypatch.setenv('RANK', '0')
    with tracking.tracking(['csv', 'tensorboard'], run) as watchers: assert len(watchers) == 2


# --- resuming

def test_the_log_is_remembered_and_may_be_changed(go):
    with pytest.raises(KeyboardInterrupt): go(log='csv', cbs=[At(stop, 1, 0)])
    learn = go(resume=True, log='tensorboard')
    assert len(pd.read_csv(learn.run_dir/'log.csv')) == 1 and (learn.run_dir/'tensorboard').is_dir()


def test_no_log_when_resumed(go):
    with pytest.raises(KeyboardInterrupt): go(log='csv', cbs=[At(stop, 1, 0)])
    learn = go(resume=True, log='')
    assert len(pd.read_csv(learn.run_dir/'log.csv')) == 1


def test_run_json_with_a_wrong_log(go):
    with pytest.raises(KeyboardInterrupt): go(log='csv', cbs=[At(stop, 1, 0)])
    file = Run('run').info_file.name
    from cifar_fastai.files import read_json, write_json
    path = next(Path(os.environ['WANDB_CONFIG_DIR']).parent.glob(f'run/{file}'))
    write_json(path, read_json(path) | dict(log='csv'))
    with pytest.raises(ValueError, match='log must be a list of text'): go(resume=True)


def test_the_command(practice, tmp_path, capsys):
    (tmp_path/'tiny.json').write_text(tiny.shorten(1).to_json())
    out = tmp_path/'run'
    assert main(['train', '--recipe', str(tmp_path/'tiny.json'), '--data', str(practice), '--out', str(out), '--limit', '96', '--log', 'csv,tensorboard', '--no-test', '--no-report']) == 0
    assert len(pd.read_csv(out/'log.csv')) == 1 and list((out/'tensorboard').iterdir())
