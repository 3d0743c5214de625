"Searches: what a space may be, trials that are pruned, stopped or taken up by other workers, and what is written down"
import json
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest

from cifar_fastai import tuning
from cifar_fastai.errors import NonFiniteLossError, Pruned
from cifar_fastai.experiments import plot_learning_curves, read_runs
from cifar_fastai.recipes import Recipe, Stage
from cifar_fastai.runs import Run
from cifar_fastai.tuning import open_study, plot_tuning, tune
from forks import run_script
from small_runs import tiny as longer
from test_experiments import FakeTrain, forks, names, start, wait_until

tiny = longer.change(model='ladder_0', augment='none')
two = tiny.change(name='two', stages=(Stage(epochs=1, lr=.1), Stage(epochs=2, lr=.01)))
rates = dict(lr='1e-3..1e-1 log')

@pytest.fixture
def out(tmp_path): return tmp_path/'study'

@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, 'train', FakeTrain(tmp_path/'calls'))
    monkeypatch.setattr(tuning, '_beat', 1)
    return tuning.train

@pytest.fixture
def search(practice, out):
    "Search on the practice set, in a folder of this test's own"
    return lambda space=rates, trials=4, recipe=tiny, **kwargs: tune(recipe, space, trials, **dict(out=out, source=practice) | kwargs)

def study_of(out): return optuna.load_study(study_name=out.name, storage=f'sqlite:///{out}/study.db')
def states(out): return [t.state.name for t in study_of(out).trials]

# The space

@pytest.mark.parametrize('name, text, expected', [
    ('lr', '1e-4..1e-1 log', optuna.distributions.FloatDistribution(1e-4, .1, log=True)), ('lr', '.1...5', optuna.distributions.FloatDistribution(.1, .5)),
    ('lr', ' 1..2 ', optuna.distributions.FloatDistribution(1, 2)), ('label_smoothing', '0..0.2 step .05', optuna.distributions.FloatDistribution(0, .2, step=.05)),
    ('epochs', '5..20', optuna.distributions.IntDistribution(5, 20)), ('bs', '64..512 step 64', optuna.distributions.IntDistribution(64, 512, step=64)),
    ('bs', '64..512 log', optuna.distributions.IntDistribution(64, 512, log=True)), ('optimizer', 'sgd, adamw', optuna.distributions.CategoricalDistribution(['sgd', 'adamw'])),
    ('bs', '64,128', optuna.distributions.CategoricalDistribution([64, 128])), ('keras', 'True,False', optuna.distributions.CategoricalDistribution([True, False])),
    ('augment', ['none', 'flip_crop'], optuna.distributions.CategoricalDistribution(['none', 'flip_crop'])), ('wd', [0., 1e-3], optuna.distributions.CategoricalDistribution([0., 1e-3])),
    ('moms', '(.9,.8,.9),(.95,.85,.95)', optuna.distributions.CategoricalDistribution(['[0.9, 0.8, 0.9]', '[0.95, 0.85, 0.95]'])),
    ('valid', '.1,fold1of5', optuna.distributions.CategoricalDistribution([.1, 'fold1of5']))])
def test_spaces(name, text, expected): assert tuning._space(tiny, {name: text}) == {name: expected}

@pytest.mark.parametrize('recipe, space, message', [
    (tiny, {}, 'The space is empty'), (tiny, dict(lrs='1..2'), "Did you mean 'lr'?"), (tiny, dict(lr='.1..'), "cannot be '.1..'"), (tiny, dict(lr='1..a'), 'could not convert'),
    (tiny, dict(lr='.2...1'), 'low <= high'), (tiny, dict(lr='0...1 log'), 'low > 0'), (tiny, dict(lr='1e-3..1e-1 lgo'), '1e-4..1e-1 log'), (tiny, dict(lr='-1..1'), 'lr must be'),
    (tiny, dict(epochs='.5..2'), 'invalid literal'), (tiny, dict(optimizer='sgd,adamm'), 'optimizer must be one of'), (tiny, dict(augment='none,flip_corp'), "Did you mean 'flip_crop'"),
    (tiny, dict(bs=[]), 'Write a range'), (tiny, dict(bs=None), 'Write a range'), (two, dict(lr='.1..1'), 'such as stage1.lr'), (two, {'stage3.lr': '.1..1'}, "has no stage3"),
    (two, {'stage2.bs': '8,16'}, "Unknown recipe field 'bs'"), (tiny, dict(optimizer='1..2'), 'optimizer must be one of')])
def test_what_is_no_space_is_told_before_anything_is_trained(fake, search, out, recipe, space, message):
    with pytest.raises(ValueError) as e: search(space, recipe=recipe)
    assert message in str(e.value) and not fake.calls and not out.exists()

def test_workers_are_not_started_together(fake, search, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(ValueError, match='torchrun started 2 processes .* Start each worker by its own command'): search()
    assert not fake.calls

def test_other_bad_input(fake, search, out, practice):
    with pytest.raises(ValueError, match="sampler must be 'tpe' or 'grid'"): search(sampler='random')
    with pytest.raises(ValueError, match='A grid needs values, and lr has a range. Write lr=A,B,C'): search(sampler='grid')
    with pytest.raises(ValueError, match="Unknown recipe 'tinny'"): search(recipe='tinny')
    with pytest.raises(FileNotFoundError): search(source=practice/'nowhere')
    with pytest.raises(ValueError, match='The storage cannot be opened.*postgresql'): search(storage='nonsense')
    with pytest.raises(ValueError, match='The storage cannot be opened'): search(storage='postgresql+psycopg://nobody@127.0.0.1:1/none')
    assert not fake.calls

def test_settings_of_stages(fake, search):
    found = search({'stage2.lr': '1e-3,1e-2', 'bs': '8'}, 2, two, sampler='grid')
    assert found['stage2.lr'].tolist() == [1e-3, 1e-2] and [Run(o).recipe.stages[1].lr for o in found.run] == [1e-3, 1e-2]
    assert {Run(o).recipe.stages[0].lr for o in found.run} == {.1}

# Trials

def test_the_first_trial_has_the_recipes_own_settings(fake, search, out):
    found = search(rates | dict(optimizer='sgd,adamw', bs='4,8', wd='0..1 step .5'))
    assert found.lr[0] == tiny.stages[0].lr and found.optimizer[0] == tiny.optimizer and len(set(found.lr)) == 4
    assert names(found) == fake.calls == [f'trial-{i:03}' for i in range(4)] and set(found.status) == {'finished'}
    assert all(Run(o).recipe.stages[0].lr == lr for o,lr in zip(found.run, found.lr))

def test_accuracy_of_the_validation_images_chooses(fake, search, out):
    found = search(trials=6)
    assert found.valid_accuracy.tolist() == [Run(o).metrics['valid']['accuracy'] for o in found.run]
    best = Recipe.from_json((out/'best.json').read_text())
    assert best == tiny.change(name='tiny_tuned', lr=found.lr[found.valid_accuracy.idxmax()], description=best.description)
    table = pd.read_csv(out/'results.csv')
    assert table.run.tolist() == names(found) and table.lr.tolist() == pytest.approx(found.lr.tolist()) and table.valid_accuracy.tolist() == found.valid_accuracy.tolist()
    assert not any('test' in Run(o).metrics for o in found.run)

@pytest.mark.slow
def test_a_search_goes_on_and_gives_what_it_would_have_given_at_once(fake, search, tmp_path, out):
    first = search(trials=12)
    search(trials=5, out=tmp_path/'parts')
    again = search(trials=12, out=tmp_path/'parts')
    assert again.lr.tolist() == first.lr.tolist() and len(fake.calls) == 24
    assert search(trials=12).equals(first) and len(search(trials=3)) == 12 and len(fake.calls) == 24
    assert search(trials=5, seed=1, out=tmp_path/'other').lr.tolist() != first.lr.tolist()[:5]

@pytest.mark.parametrize('change, message', [
    (dict(space=dict(lr='.1..1')), 'space of lr was'), (dict(recipe=tiny.change(wd=.1)), 'wd was 0.0 and is now 0.1'), (dict(limit=50), 'limit was None and is now 50'),
    (dict(seed=1), 'seed was 0 and is now 1')])
def test_another_search_in_the_same_folder_is_refused(fake, search, out, change, message):
    search(trials=2)
    with pytest.raises(ValueError, match=message): search(trials=2, **change)
    assert len(fake.calls) == 2

def test_grid(fake, search):
    found = search(dict(lr='.1,.2', bs='8,16'), None, sampler='grid')
    assert list(zip(found.lr, found.bs)) == [(.1, 8), (.1, 16), (.2, 8), (.2, 16)] and len(fake.calls) == 4

def test_errors_become_a_line_and_diverged_trials_teach_the_sampler(fake, search, out, capsys):
    def fail(recipe, seed):
        if recipe.stages[0].lr == .01: raise NonFiniteLossError('The loss became nan')
        if recipe.stages[0].lr == .1: raise RuntimeError('no luck')
    fake.then = fail
    found = search(dict(lr='.01,.1,.05'), None, sampler='grid')
    assert found.status.tolist() == ['failed', 'failed', 'finished'] and found.error[0] == 'NonFiniteLossError: The loss became nan'
    assert states(out) == ['PRUNED', 'FAIL', 'COMPLETE'] and 'trial-001: RuntimeError: no luck' in capsys.readouterr().err
    assert len(search(dict(lr='.01,.1,.05'), None, sampler='grid')) == 3 and len(fake.calls) == 3
    assert found.valid_accuracy.isna().tolist() == [True, True, False]

def test_what_failed_because_of_the_machine_is_tried_again(fake, search, out):
    "Once in each call"
    def fail(recipe, seed):
        if recipe.stages[0].lr == .1: raise OSError(28, 'No space left on device')
    fake.then = fail
    for n in 2,3:
        assert search(dict(lr='.1,.05'), None, sampler='grid').status.tolist() == ['failed', 'finished'] and len(fake.calls) == n
    fake.then = lambda recipe, seed: None
    found = search(dict(lr='.1,.05'), None, sampler='grid')
    assert found.status.tolist() == ['finished']*2 and found.lr.tolist() == [.1, .05] and len(fake.calls) == 4

def test_a_trial_whose_worker_died_right_at_its_end(fake, search, out):
    search(trials=1)
    run = Run(out/'trial-000')
    run.checkpoints_folder.mkdir()
    assert tuning.train_trial(None, run.folder, None, run.recipe, 0, None) is None and not run.checkpoints_folder.exists()

def test_tilde_is_the_home_directory(fake, search, tmp_path, monkeypatch):
    for name in 'HOME','USERPROFILE': monkeypatch.setenv(name, str(tmp_path))
    search(trials=1, out='~/study')
    assert {'study.db', 'trial-000', 'results.csv'} <= set(os.listdir(tmp_path/'study'))

def test_ctrl_c(fake, search, out, capsys):
    def stop(recipe, seed):
        if len(fake.calls) == 2: raise KeyboardInterrupt
    fake.then = stop
    with pytest.raises(KeyboardInterrupt): search()
    assert 'Stopped: 1 of 4 runs are finished' in capsys.readouterr().err and pd.read_csv(out/'results.csv').status.tolist() == ['finished', 'interrupted', 'waiting', 'waiting']
    fake.then = lambda recipe, seed: None
    found = search()
    assert set(found.status) == {'finished'} and sorted(fake.calls) == ['trial-000', 'trial-001', 'trial-001', 'trial-002', 'trial-003']

def test_trials_that_a_user_queues(fake, search, out):
    search(trials=1)
    study_of(out).enqueue_trial(dict(lr=.05))
    found = search(trials=1)
    assert found.lr[1] == .05 and fake.calls == ['trial-000', 'trial-001']

def test_a_run_of_another_search_is_not_taken_for_a_trial(fake, search, out):
    search(trials=2)
    (out/'study.db').unlink()
    found = search(trials=2, recipe=tiny.change(wd=.1))
    assert set(found.status) == {'failed'} and 'wd was 0.0 and is now 0.1' in found.error[0] and len(fake.calls) == 2

# Pruning

@pytest.fixture
def pruned(search, practice, out):
    "A search whose last trial is far worse than the others"
    space = dict(lr='1e-2,2e-2,3e-2,4e-2,5e-2,1e-8')
    return search(space, None, tiny.change(epochs=4, schedule='constant'), sampler='grid', prune=True, limit=150, seed=2)

def test_pruned_trials(pruned, out, monkeypatch):
    last = pruned.iloc[-1]
    run = Run(last.run)
    assert last.status == run.status == 'pruned' and np.isnan(last.valid_accuracy) and 1 < last.epochs_run < 4 and len(run.history) == last.epochs_run
    assert 'epochs is less than the median' in run.info['error'] and run.weights_file.exists() and not run.checkpoints()
    trial = study_of(out).trials[-1]
    assert trial.state.name == 'PRUNED' and list(trial.intermediate_values.values()) == run.history.accuracy.tolist() and 'error' not in trial.user_attrs
    assert all(len(t.intermediate_values) == 4 for t in study_of(out).trials[:-1] if t.state.name == 'COMPLETE')
    assert 'pruned' in read_runs(out).status.tolist() and plot_learning_curves(out)

def test_a_pruned_trial_whose_worker_died_stays_pruned(fake, search, out):
    fake.then = lambda recipe, seed: (_ for _ in ()).throw(Pruned('too little'))
    search(trials=1)
    run = out/'trial-000'/'run.json'
    run.write_text(json.dumps(json.loads(run.read_text()) | dict(status='pruned')))
    study_of(out).enqueue_trial(dict(lr=.01), user_attrs=dict(run='trial-000'))
    assert search(trials=1).status.tolist() == ['pruned'] and fake.calls == ['trial-000']

def test_a_resumed_trial_reports_all_its_epochs(search, out, monkeypatch):
    real = tuning.train
    class Stop(tuning.Callback):
        def before_epoch(self):
            if self.epoch == 2: raise KeyboardInterrupt
    def train(*args, cbs, **kwargs): return real(*args, cbs=[*cbs, *([] if 'resume' in kwargs else [Stop()])], **kwargs)
    monkeypatch.setattr(tuning, 'train', train)
    options = dict(trials=1, recipe=tiny.change(epochs=4), limit=60)
    with pytest.raises(KeyboardInterrupt): search(**options)
    found = search(**options)
    first,second = study_of(out).trials
    assert (first.state.name, second.state.name) == ('FAIL', 'COMPLETE') and first.params == second.params
    assert list(second.intermediate_values) == [1, 2, 3, 4] and 'resumed' in Run(found.run[0]).info

# Workers

@forks
def test_workers_share_a_search(fake, search, out):
    fake.then = lambda recipe, seed: tuning.time.sleep(.02)
    processes = [start(search, trials=12) for _ in range(2)]
    found = search(trials=12)
    for p in processes: p.join(60)
    assert [p.exitcode for p in processes] == [0, 0] and set(found.status) == {'finished'} and len(found) == 12
    assert sorted(fake.calls) == [f'trial-{i:03}' for i in range(12)] and len(set(found.lr)) == 12 and len(list(study_of(out).trials)) == 12

@pytest.mark.parametrize('name, values', [('lr', [(None, .001), (None, .002)]), ('class_weights', [{'cat': 2.}, {}]), ('augment', ['{not JSON', 'none'])])
def test_values_of_any_kind_come_back(name, values):
    given = tuning._distribution(name, values).choices
    assert [tuning._chosen({name: v})[name] for v in given] == [list(v) if isinstance(v, tuple) else v for v in values]

def test_names_of_folders(tmp_path):
    open_study(tmp_path/'a {b} {c')
    assert (tmp_path/'a {b} {c'/'study.db').is_file()
    with pytest.raises(ValueError, match='question mark'): open_study(tmp_path/'why?')

@pytest.mark.slow
@forks
@pytest.mark.parametrize('where', ['before', 'after'])
def test_a_trial_that_nobody_gave_a_sign_of_life_of_is_not_lost(fake, search, out, where, monkeypatch):
    "Killed between taking a trial and training it, or between training it and writing that down"
    with monkeypatch.context() as m:
        if where == 'before': m.setattr(tuning, '_train', lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        else: m.setattr(optuna.study.Study, '_log_completed_trial', lambda *args: os.kill(os.getpid(), signal.SIGKILL), raising=False)
        killed = start(search, trials=2)
        killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert set(search(trials=2).status) == {'finished'} and sorted(fake.calls) == ['trial-000', 'trial-001']

@forks
def test_a_worker_that_was_taken_for_dead_ends_quietly(fake, search, out, monkeypatch):
    "Its heart stopped (a laptop that slept, say), its trial was queued again, and then it went on"
    parent = os.getpid()
    def hang(recipe, seed):
        if os.getpid() != parent: wait_until(lambda: len(study_of(out).trials) > 1, 60)
    fake.then = hang
    monkeypatch.setattr(optuna.storages.RDBStorage, 'record_heartbeat', lambda self, trial_id, f=optuna.storages.RDBStorage.record_heartbeat: f(self, trial_id) if os.getpid() == parent else None)
    other = start(search, trials=1)
    wait_until(lambda: fake.calls, 60)
    study = study_of(out)
    study.tell(0, state=optuna.trial.TrialState.FAIL)
    study.enqueue_trial(dict(lr=.01), user_attrs=dict(run='trial-000'))
    other.join(60)
    assert other.exitcode == 0 and search(trials=1).status.tolist() == ['finished'] and len(fake.calls) == 1

@pytest.fixture
def killing(tmp_path):
    "What is left of a search with a worker that is killed again and again"
    def killing(*args):
        done = run_script(Path(__file__).with_name('workers.py'), *args, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        counts = json.loads(done.stdout.splitlines()[-1])
        assert counts['codes'] == [0, 0], done.stderr
        return counts
    return killing

def expect_all(counts, n): assert (counts['finished'], counts['names'], counts['completed'], counts['twice'], counts['lost']) == (n, n, n, 0, 0)

@pytest.mark.slow
@forks
def test_nothing_is_lost_or_done_twice_when_a_worker_is_killed(killing):
    counts = killing('--trials', 28, '--kills', 10)
    expect_all(counts, 28)
    assert counts['files'] == ['best.json', 'results.csv', 'study.db']

@pytest.fixture(scope='module')
def postgres():
    "The URL of a PostgreSQL server of this test's own, from Debian's package"
    programs = sorted(Path('/usr/lib/postgresql').glob('*/bin'))
    if not programs or not hasattr(os, 'getuid'): pytest.skip('no PostgreSQL on this machine')
    pytest.importorskip('psycopg')
    user = dict(user='postgres') if os.getuid() == 0 else {} # initdb refuses root
    folder = Path(tempfile.mkdtemp(prefix='cifar_fastai-postgres-'))
    if user: shutil.chown(folder, 'postgres')
    port = free_port()
    def call(program, *args): subprocess.run([programs[-1]/program, '-D', folder/'data', *args], check=True, capture_output=True, cwd='/', **user)
    try:
        call('initdb', '-A', 'trust', '-U', 'postgres')
        call('pg_ctl', '-w', '-l', folder/'log', '-o', f'-p {port} -k {folder} -c listen_addresses=127.0.0.1', 'start')
        yield f'postgresql+psycopg://postgres@127.0.0.1:{port}/postgres'
        call('pg_ctl', '-m', 'immediate', 'stop')
    finally: shutil.rmtree(folder, ignore_errors=True)

def free_port():
    import socket
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]

@pytest.mark.slow
@forks
def test_the_same_with_postgresql(killing, postgres):
    counts = killing('--trials', 12, '--kills', 4, '--storage', postgres, '--name', 'killed')
    expect_all(counts, 12)
    assert counts['files'] == ['best.json', 'results.csv']

@pytest.mark.slow
def test_machines_that_share_a_database_only(fake, search, postgres, tmp_path):
    "A trial whose folder is elsewhere begins anew once nobody gives signs of life of it"
    search(trials=2, storage=postgres, out=tmp_path/'a'/'elsewhere')
    study = optuna.load_study(study_name='elsewhere', storage=postgres)
    study.enqueue_trial({}, user_attrs=dict(run='trial-002'))
    study.ask()
    study._storage.record_heartbeat(study.trials[2]._trial_id)
    found = search(trials=4, storage=postgres, out=tmp_path/'b'/'elsewhere')
    assert set(found.status) == {'finished'} and len(found) == 4 and sorted(o.name for o in (tmp_path/'b'/'elsewhere').glob('trial-*')) == ['trial-002', 'trial-003']

# Figures

def test_plots(pruned, out, plain_pyplot):
    axes = plot_tuning(study_of(out))
    assert [ax.get_xlabel() for ax in axes] == ['trial', 'share of the variance of the accuracy (%)', 'learning rate']
    assert {ax.get_ylabel() for ax in axes} == {'validation accuracy (% of images)', 'setting'}
    best = [l for l in axes[0].lines if l.get_label() == 'best so far'][0].get_ydata()
    assert best.tolist() == np.maximum.accumulate(pruned.valid_accuracy.dropna()).tolist()

def test_plots_of_ranges_and_too_few_trials(fake, search, out, plain_pyplot):
    search(rates | dict(bs='4..8', optimizer='sgd,adamw'), 1)
    with pytest.raises(ValueError, match='fewer than two trials are finished'): plot_tuning(study_of(out))
    search(rates | dict(bs='4..8', optimizer='sgd,adamw'), 8)
    axes = plot_tuning(study_of(out), tuning.plt.figure().subplots(1, 5))
    assert [ax.get_xscale() for ax in axes] == ['linear', 'linear', 'log', 'linear', 'linear']
    assert [t.get_text() for t in axes[4].get_xticklabels()] == ['sgd', 'adamw'] and len(axes[2].lines[0].get_xdata()) == 8
    assert axes[2].get_xlabel() == 'learning rate' and axes[3].get_xlabel() == 'batch size (images)'
