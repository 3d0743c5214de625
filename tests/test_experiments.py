"Grids: every combination once, nothing repeated or lost whatever happens, and figures with their spread"
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import time
from dataclasses import fields
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.colors import to_hex
from PIL import Image

from cifar_fastai import experiments, summaries, tuning
from cifar_fastai import runs as runs_module
from cifar_fastai.sources import train_files
from cifar_fastai.evaluation import evaluate
from cifar_fastai.experiments import diff_runs, out_of_fold, plot_accuracies, plot_learning_curves, read_runs, run_grid, summarize
from cifar_fastai.files import read_json as read, write_json
from cifar_fastai.recipes import Recipe, Stage
from cifar_fastai.errors import NonFiniteLossError
from cifar_fastai.runs import Run
from cifar_fastai.training import load_run, train

tiny = Recipe(name='tiny', model='ladder_0', stages=Stage(epochs=2, lr=.01), augment='none', bs=16)
forks = pytest.mark.skipif(sys.platform != 'linux', reason='needs fork')

def write(path, **changes): write_json(path, read(path) | changes)
def names(runs): return [o.rpartition(os.sep)[2] for o in runs.run]
def lines(grid): return (grid/'results.csv').read_text().splitlines()
def contents(folder): return {o.relative_to(folder): o.read_bytes() for o in folder.rglob('*') if o.is_file() and o.name not in ('study.db', 'results.csv')}

class FakeTrain:
    "Writes a run folder as `train` does, at once; `accuracy` and `then` may be replaced"
    def __init__(self, calls): self.calls_file = calls

    @property
    def calls(self): return self.calls_file.read_text().split() if self.calls_file.exists() else []

    def accuracy(self, recipe, seed): return round(.5 + recipe.stages[0].lr + .01*seed, 6)
    def then(self, recipe, seed): pass

    def __call__(self, recipe=None, seed=0, source=None, run_dir=None, limit=None, num_workers=None, device=None, cbs=(), resume=None):
        if resume is not None:
            run_dir,recipe = resume,Run(resume).recipe
            seed,limit = read(resume/'run.json')['seed'],read(resume/'run.json')['data']['limit']
        with self.calls_file.open('a') as f: f.write(run_dir.name + '\n')
        run_dir.mkdir(parents=True, exist_ok=True)
        run = dict(status='training', started='now', seed=seed, data=dict(variant='synthetic', path=str(source), limit=limit),
                   parameters=dict(trainable=90, frozen=10), device='cpu', versions=dict(torch='2.9'), hardware=dict(gpu=None))
        (run_dir/'recipe.json').write_text(recipe.to_json())
        (run_dir/'run.json').write_text(json.dumps(run))
        try:
            with Run(run_dir).alone(): self.then(recipe, seed)
        except Exception as e:
            (run_dir/'run.json').write_text(json.dumps(run | dict(status='failed', error=f'{type(e).__name__}: {e}')))
            raise
        accuracy = self.accuracy(recipe, seed)
        history = [f'1,{i + 1},2.0,1.5,{accuracy*(i + 1)/recipe.epochs},0.1,{i}' for i in range(recipe.epochs)]
        (run_dir/'history.csv').write_text('\n'.join(['stage,epoch,train_loss,valid_loss,accuracy,lr,seconds', *history]) + '\n')
        for cb in cbs:
            cb.learn = SimpleNamespace(run_dir=run_dir)
            cb.after_epoch()
        (run_dir/'metrics.json').write_text(json.dumps(dict(valid=dict(loss=1.5, accuracy=accuracy, n=20, vocab=['cat']))))
        (run_dir/'run.json').write_text(json.dumps(run | dict(status='finished', epochs=recipe.epochs, seconds=1.5)))

@pytest.fixture
def fake(monkeypatch, tmp_path):
    monkeypatch.setattr(tuning, 'train', FakeTrain(tmp_path/'calls'))
    monkeypatch.setattr(tuning, '_beat', 1)
    monkeypatch.setattr(time, 'sleep', lambda s, sleep=time.sleep: sleep(min(s, .02)))
    return tuning.train

@pytest.fixture
def grid(tmp_path): return tmp_path/'grid'

@pytest.fixture
def go(practice, grid):
    "Train a grid on the practice set into a folder of this test's own"
    return lambda recipes=tiny, seeds=2, **kwargs: run_grid(recipes, seeds=seeds, save_to=grid, source=practice, **kwargs)

# Which runs there are

def test_tilde_is_the_home_directory(fake, practice, tmp_path, monkeypatch):
    for name in 'HOME','USERPROFILE': monkeypatch.setenv(name, str(tmp_path))
    assert run_grid(tiny, seeds=1, save_to='~/grid', source=practice).run.tolist() == [str(tmp_path/'grid'/'tiny-seed0')]
    assert {'study.db', 'tiny-seed0', 'results.csv'} <= set(os.listdir(tmp_path/'grid'))

def test_every_combination_once(fake, go):
    runs = go([tiny, tiny.change(name='other')], lr=[.1, .2], bs=64)
    assert [tuple(r) for r in runs[['recipe', 'lr', 'bs', 'seed']].itertuples(index=False)] == list(product(['tiny', 'other'], [.1, .2], [64], [0, 1]))
    assert fake.calls == names(runs) and len(set(fake.calls)) == 8

@pytest.mark.parametrize('axes, name', [
    ({}, 'tiny-seed0'), (dict(lr=.01, bs=[16]), 'tiny-seed0'), (dict(lr=.1, bs=8), 'tiny-bs=8-lr=0.1-seed0'), (dict(bs=8, lr=.1), 'tiny-bs=8-lr=0.1-seed0'),
    (dict(lr=np.array([.5])), 'tiny-lr=0.5-seed0'), (dict(lr=2), 'tiny-lr=2-seed0'), (dict(lr=2.), 'tiny-lr=2-seed0'), (dict(keras=True), 'tiny-keras=True-seed0')])
def test_folders_are_named_after_what_was_changed(fake, go, axes, name):
    assert names(go(seeds=[0], **axes)) == [name]

@pytest.mark.parametrize('value', [(.9, .8, .9), [(.95, .85, .95), (.9, .8, .9)]])
def test_a_tuple_is_one_value(fake, go, value):
    runs = go(seeds=1, moms=value)
    assert len(runs) == len(value if isinstance(value, list) else [value])
    assert json.loads(runs.moms.iloc[-1]) == [.9, .8, .9]

def test_folder_names_are_safe(fake, go):
    "Whatever is in a value: one folder below the grid, a short name of harmless characters, and different ones for different values"
    stages = [Stage(epochs=n, lr=.1) for n in (1, 2)]
    runs = go(tiny.change(name='..my: recipe?'), seeds=1, stages=stages, stats=['cifar10', ((.5,)*3, (.25,)*3)])
    assert len(set(names(runs))) == 4
    for folder in map(Path, runs.run):
        assert folder.is_dir() and folder.parent.name == 'grid' and len(folder.name) < 180 and not set(folder.name) & set('/\\:*?"<>| ()')

def test_many_axes_still_make_a_folder(fake, go):
    axes = dict(augment='flip_crop', bs=64, div=10.12345678, div_final=1000.5, keras=True, label_smoothing=.123456789, lr=.123456789, optimizer='sgd',
                pct_start=.123456789, wd=.123456789, valid=.123456, min_lr=1e-7)
    a,b = names(go(seeds=1, **axes)) + names(go(seeds=1, **axes | dict(wd=.2)))
    assert a != b and max(len(a), len(b)) < 180

@pytest.mark.parametrize('seeds, expected', [(3, [0, 1, 2]), ([4, 7], [4, 7]), (range(2, 4), [2, 3]), (np.int64(1), [0]), ((5,), [5]), ([1, 1], [1])])
def test_seeds(fake, go, seeds, expected):
    assert go(seeds=seeds).seed.tolist() == expected

@pytest.mark.parametrize('kwargs, message', [
    (dict(lrs=[.1]), "Unknown axis 'lrs'. Did you mean 'lr'?"), (dict(seed=[1]), "Did you mean 'seeds'?"), (dict(augmnt='none'), "Did you mean 'augment'?"),
    (dict(axes=[1]), "Unknown axis 'axes'"), (dict(name=['a', 'b']), 'name is not an axis'), (dict(lr=[]), 'lr is empty'), (dict(seeds=[]), 'seeds is empty'),
    (dict(seeds=0), 'seeds is empty'), (dict(seeds=True), 'seeds must be'), (dict(seeds=[.5]), 'seeds must be'), (dict(seeds=[-1]), 'seeds must be'),
    (dict(lr=[.1, -1.]), 'lr must be'), (dict(optimizer='adamm'), 'optimizer must be'), (dict(augment=['none', 'flip_corp']), "Did you mean 'flip_crop'?"),
    (dict(limit=[50, 100]), 'limit must be one integer'), (dict(recipes='tinny'), "Unknown recipe 'tinny'"), (dict(recipes=[]), 'recipes is empty'),
    (dict(recipes=[tiny, tiny.change(bs=4)]), 'Two different recipes would both be trained as tiny-seed0')])
def test_bad_input_is_refused_before_anything_is_trained(fake, go, grid, kwargs, message):
    with pytest.raises(ValueError) as e: go(**kwargs)
    assert message in str(e.value) and not fake.calls and not grid.exists()

def test_missing_data_and_test_images_are_told_before_training(fake, go, grid, practice, tmp_path):
    with pytest.raises(FileNotFoundError): run_grid(tiny, source=tmp_path/'nowhere', save_to=grid)
    data = tmp_path/'data'
    data.mkdir()
    (data/'train').symlink_to(practice/'train')
    with pytest.raises(ValueError, match='no test images'): run_grid(tiny, source=data, save_to=grid, test=True)
    assert not fake.calls and not grid.exists()

# Going on

def test_finished_runs_are_never_repeated(fake, go, grid):
    first = go(lr=[.1, .2])
    before = contents(grid)
    assert go(lr=[.1, .2]).equals(first) and len(fake.calls) == 4 and contents(grid) == before
    more = go(lr=[.2, .3, .1], seeds=3)
    assert len(more) == 9 and len(fake.calls) == len(set(fake.calls)) == 9 and len(lines(grid)) == 10
    assert contents(grid).items() >= before.items()

def test_a_new_axis_is_a_new_column_with_the_old_runs_values(fake, go, grid):
    go(lr=[.1, .2], seeds=1)
    runs = go(lr=.1, augment=['none', 'flip_crop'], seeds=1)
    assert runs.augment.tolist() == ['none', 'flip_crop'] and len(fake.calls) == 3
    everything = read_runs(grid).set_index('run').loc[[*map(str, (grid/'tiny-lr=0.2-seed0',)), *runs.run]]
    assert everything.augment.tolist() == ['none', 'none', 'flip_crop'] and everything.lr.tolist() == [.2, .1, .1]
    go(bs=[8, 16], seeds=1)
    assert set(pd.read_csv(grid/'results.csv')) >= {'bs', 'lr', 'augment'} and len(lines(grid)) == 6

@pytest.mark.parametrize('change, message', [
    (dict(recipes=tiny.change(wd=.1)), 'wd was 0.0 and is now 0.1'), (dict(recipes=tiny.change(lr=.1)), 'stage1.lr was 0.01 and is now 0.1'),
    (dict(limit=50), 'limit was None and is now 50')])
def test_same_name_other_choices_is_an_error(fake, go, grid, change, message):
    go()
    before = contents(grid)
    with pytest.raises(ValueError) as e: go(seeds=3, **change)
    assert message in str(e.value) and 'Nothing was changed' in str(e.value)
    assert contents(grid) == before and len(fake.calls) == 2

def test_other_data_is_an_error(fake, go, grid):
    go()
    write(grid/'tiny-seed1'/'run.json', data=dict(variant='cifar10', limit=None))
    with pytest.raises(ValueError, match="tiny-seed1 holds .* variant was 'cifar10' and is now"): go()
    write(grid/'tiny-seed1'/'run.json', data=dict(variant='synthetic', limit=None))
    go()

def test_a_description_or_a_younger_field_makes_no_other_run(fake, go, grid):
    go()
    recipe = read(grid/'tiny-seed0'/'recipe.json')
    del recipe['label_smoothing'], recipe['stages'][0]['min_lr']
    (grid/'tiny-seed0'/'recipe.json').write_text(json.dumps(recipe))
    go(tiny.change(description='said better'))
    assert len(fake.calls) == 2

def test_what_did_not_finish_is_resumed(fake, go, grid):
    go()
    write(grid/'tiny-seed1'/'run.json', status='training')
    assert set(go().status) == {'finished'} and fake.calls == ['tiny-seed0', 'tiny-seed1', 'tiny-seed1']

def test_an_unfinished_run_with_other_settings_is_not_resumed(fake, go, grid):
    go(seeds=[1])
    write(grid/'tiny-seed1'/'run.json', status='interrupted')
    with pytest.raises(ValueError, match='tiny-seed1 holds a run with other settings: wd was 0.0 and is now 0.1'): go(tiny.change(wd=.1), seeds=[1])

def test_damaged_run_folders_are_told_and_left_alone(fake, go, grid):
    go()
    (grid/'tiny-seed1'/'run.json').write_text('{"status": "fini')
    runs = go()
    assert runs.status.tolist() == ['finished', 'damaged'] and 'run.json is damaged' in runs.error[1] and len(fake.calls) == 2

# The results file

@pytest.mark.parametrize('damage', [lambda text: None, lambda text: text[:-40], lambda text: text + 'tiny-se'])
def test_rows_come_back_from_the_run_folders(fake, go, grid, damage):
    whole = go(lr=[.1, .2])
    path = grid/'results.csv'
    before = lines(grid)
    damaged = damage(path.read_text())
    path.unlink() if damaged is None else path.write_text(damaged)
    assert go(lr=[.1, .2]).equals(whole) and len(fake.calls) == 4 and lines(grid) == before

@pytest.mark.parametrize('damage, n', [
    (lambda text: text, 4), (lambda text: text[:-40], 3), (lambda text: text + 'tiny-se', 4), (lambda text: text[:-30] + '\0'*30, 3),
    (lambda text: text + text.splitlines()[-1].replace('0.62', '0.63') + '\n', 4), (lambda text: text.rstrip('\n'), 4)])
def test_results_of_earlier_versions_are_read(fake, go, grid, damage, n):
    "They appended a row for each run; the process may have been killed then"
    whole = go(lr=[.1, .2])
    path = grid.parent/'results.csv'
    path.write_text(damage((grid/'results.csv').read_text()))
    found = read_runs(path)
    assert found.run.tolist() == [str(grid.parent/o) for o in names(whole)][:n] and found.lr.tolist() == whole.lr.tolist()[:n]
    assert found.valid_accuracy.tolist()[:3] == whole.valid_accuracy.tolist()[:3] and len(summarize(grid.parent/'results.csv')) == 2

def test_a_foreign_file_is_not_overwritten(fake, go, grid):
    grid.mkdir()
    (grid/'results.csv').write_text('model,score\na,1\n')
    with pytest.raises(ValueError, match='not what run_grid writes'): go()
    assert (grid/'results.csv').read_text() == 'model,score\na,1\n' and not fake.calls

def test_columns(fake, go, grid):
    runs = go(lr=[.1], limit=50, seeds=1)
    row = runs.iloc[0]
    assert list(runs) == ['run', 'recipe', 'lr', 'seed', 'valid_accuracy', 'test_accuracy', 'epochs_run', 'seconds', 'parameters', 'variant', 'limit',
                          'data_fingerprint', 'recipe_fingerprint', 'device', 'status', 'error']
    assert row.run == str(grid/'tiny-lr=0.1-seed0') and (row.valid_accuracy, row.epochs_run, row.seconds, row.parameters) == (.6, 2, 1.5, 100)
    assert (row.variant, row.limit, row.device, row.status, row.error) == ('synthetic', 50, 'cpu', 'finished', '') and math.isnan(row.test_accuracy)

def test_no_column_has_the_name_of_a_choice():
    assert not set(summaries._columns) & {f.name for cls in (Recipe, Stage) for f in fields(cls)}

def test_values_come_back_as_they_are(fake, go):
    runs = go(seeds=1, valid=['test', .1], keras=[True, False], augment='none')
    assert runs.keras.tolist() == [True, False]*2 and runs.valid.tolist() == ['test', 'test', '0.1', '0.1'] and set(runs.augment) == {'none'}

# When something goes wrong

def test_a_failing_run_is_recorded_and_the_grid_goes_on(fake, go, grid, capsys):
    def fail(recipe, seed):
        if recipe.stages[0].lr == .2: raise NonFiniteLossError('Exception occured in `Stop` when calling event `after_loss`:\n\tThe loss became nan,\nin epoch 1')
    fake.then = fail
    runs = go(lr=[.1, .2, .3])
    assert runs.status.tolist() == ['finished']*2 + ['failed']*2 + ['finished']*2
    assert runs.error[2] == 'NonFiniteLossError: The loss became nan, in epoch 1' and runs.lr[2] == .2 and 'tiny-lr=0.2-seed0: NonFinite' in capsys.readouterr().err
    assert summarize(runs).unfinished.to_dict() == {('tiny', .1): 0, ('tiny', .2): 2, ('tiny', .3): 0}
    fake.then = lambda recipe, seed: None
    assert set(go(lr=[.1, .2, .3]).status) == {'finished'} and len(fake.calls) == 8 and 'unfinished' not in summarize(grid)

def test_failing_before_there_is_a_folder(go, grid):
    runs = go(tiny.change(model='no_such'), lr=[.1, .2], seeds=1)
    assert runs.status.tolist() == ['failed']*2 and "no_such" in runs.error[0] and runs.seed.tolist() == [0, 0] and runs.lr.tolist() == [.1, .2]
    assert math.isnan(summarize(runs).valid_mean.iloc[0])

def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(fake, go, grid, capsys):
    def stop(recipe, seed):
        if seed == 2: raise KeyboardInterrupt
    fake.then = stop
    with pytest.raises(KeyboardInterrupt): go(seeds=4)
    assert 'Stopped: 2 of 4 runs are finished' in capsys.readouterr().err and len(read_runs(grid)) == 3
    fake.then = lambda recipe, seed: None
    assert len(go(seeds=4)) == 4 and sorted(fake.calls) == [f'tiny-seed{i}' for i in (0, 1, 2, 2, 3)]

# Several processes

def start(f, *args, **kwargs):
    "Run `f` in a process of its own"
    process = multiprocessing.get_context('fork').Process(target=f, args=args, kwargs=kwargs, daemon=True)
    process.start()
    return process

def wait_until(condition, seconds=20):
    end = time.time() + seconds
    while not condition():
        assert time.time() < end
        time.sleep(.01)

@forks
def test_two_processes_share_a_grid(fake, go, grid):
    fake.then = lambda recipe, seed: time.sleep(.02)
    processes = [start(go, seeds=6, lr=[.1, .2]) for _ in range(2)]
    runs = go(seeds=6, lr=[.1, .2])
    for p in processes: p.join(30)
    assert [p.exitcode for p in processes] == [0, 0] and set(runs.status) == {'finished'}
    assert len(fake.calls) == len(set(fake.calls)) == 12 and len(lines(grid)) == 13

@forks
def test_two_processes_with_different_grids_in_one_folder(fake, go, grid):
    fake.then = lambda recipe, seed: time.sleep(.02)
    other = start(go, seeds=4, lr=[.1, .2])
    runs = go(seeds=3, lr=[.2, .3])
    other.join(60)
    assert other.exitcode == 0 and set(names(runs)) == {f'tiny-lr={lr}-seed{seed}' for lr in (.2, .3) for seed in range(3)} and set(runs.status) == {'finished'}
    assert set(fake.calls) == {f'tiny-lr={lr}-seed{seed}' for lr,n in ((.1, 4), (.2, 4), (.3, 3)) for seed in range(n)}

def test_a_run_that_another_search_began_in_between(fake, go, tmp_path, monkeypatch):
    class Late(FakeTrain):
        def __call__(self, *args, resume=None, **kwargs):
            super().__call__(*args, resume=resume, **kwargs)
            if resume is None: raise FileExistsError('it exists')
    monkeypatch.setattr(tuning, 'train', late := Late(tmp_path/'calls'))
    runs = go(seeds=2)
    assert set(runs.status) == {'finished'} and not runs.error.any() and late.calls == ['tiny-seed0', 'tiny-seed1']

@forks
def test_who_waits_takes_over_what_a_killed_process_leaves(fake, go, grid, tmp_path):
    parent = os.getpid()
    def hang(recipe, seed):
        while os.getpid() != parent and seed == 1: time.sleep(1)
    fake.then = hang
    other = start(go, seeds=3)
    wait_until(lambda: fake.calls == ['tiny-seed0', 'tiny-seed1'])
    killer = start(lambda: (wait_until(lambda: 'tiny-seed2' in fake.calls), os.kill(other.pid, signal.SIGKILL)))
    runs = go(seeds=3)
    for p in (other, killer): p.join(30)
    assert other.exitcode == -signal.SIGKILL and set(runs.status) == {'finished'}
    assert fake.calls == ['tiny-seed0', 'tiny-seed1', 'tiny-seed2', 'tiny-seed1']

@forks
def test_killed_between_a_run_and_its_result(fake, go, grid, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr(experiments, '_add_tests', lambda *args: os.kill(os.getpid(), signal.SIGKILL))
        killed = start(go)
        killed.join(30)
    assert killed.exitcode == -signal.SIGKILL and not (grid/'results.csv').exists() and fake.calls == ['tiny-seed0']
    assert go().valid_accuracy.tolist() == [.51, .52] and fake.calls == ['tiny-seed0', 'tiny-seed1']

@forks
def test_what_failed_in_another_process_is_not_tried_again_in_this_session(fake, go, tmp_path):
    parent,begun = os.getpid(),tmp_path/'begun'
    def fail(recipe, seed):
        if os.getpid() == parent: begun.touch()
        else: wait_until(begun.exists)
        raise RuntimeError(f'no luck with {seed}')
    fake.then = fail
    other = start(go, seeds=4)
    wait_until(lambda: fake.calls)
    runs = go(seeds=4)
    other.join(30)
    assert other.exitcode == 0 and runs.error.tolist() == [f'RuntimeError: no luck with {i}' for i in range(4)]
    assert sorted(fake.calls) == [f'tiny-seed{i}' for i in range(4)]

# Progress

def test_the_bar_counts_what_is_left(fake, go, monkeypatch):
    bars = []
    class Bar(tuning.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append(self)
    monkeypatch.setattr(tuning, 'tqdm', Bar)
    go(seeds=1)
    go(seeds=3)
    go(seeds=3)
    assert [(b.total, b.n) for b in bars] == [(1, 1), (2, 2), (0, 0)]

# Real training

@pytest.fixture(scope='module')
def trained(practice, tmp_path_factory):
    "A real grid, its table, and what it printed"
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO
    out,err,grid = StringIO(),StringIO(),tmp_path_factory.mktemp('trained')/'grid'
    with redirect_stdout(out), redirect_stderr(err): runs = run_grid(tiny, seeds=2, bs=[16, 32], limit=60, source=practice, save_to=grid)
    return grid,runs,out.getvalue(),err.getvalue()

def test_a_grid_trains_as_train_does(trained, practice, tmp_path):
    grid,runs,*_ = trained
    learn = train(tiny.change(bs=32), seed=1, source=practice, limit=60, run_dir=tmp_path/'run')
    a,b = pd.read_csv(learn.run_dir/'history.csv'),pd.read_csv(grid/'tiny-bs=32-seed1'/'history.csv')
    assert a.drop(columns='seconds').equals(b.drop(columns='seconds'))
    assert runs.set_index('run').loc[str(grid/'tiny-bs=32-seed1')].valid_accuracy == read(learn.run_dir/'metrics.json')['valid']['accuracy']
    assert set(runs.epochs_run) == {2} and set(runs.limit) == {60}

def test_one_bar_with_the_time_left_and_nothing_else(trained):
    *_,out,err = trained
    last = err.replace('\r', '\n').strip().splitlines()[-1]
    assert out == '' and 'run 4 of 4' in last and '100%' in last and last.endswith('left') and 'train_loss' not in err

@pytest.mark.slow
def test_test_images_only_when_asked_for_and_without_training_again(trained, practice, monkeypatch):
    grid,runs,*_ = trained
    assert runs.test_accuracy.isna().all() and 'test' not in read(grid/'tiny-seed0'/'metrics.json')
    monkeypatch.setattr(tuning, 'train', None)
    tested = run_grid(tiny, seeds=2, bs=16, limit=60, source=practice, save_to=grid, test=True)
    assert tested.test_accuracy.tolist() == [evaluate(load_run(o), 'test').accuracy for o in tested.run] and len(lines(grid)) == 5
    assert tested.valid_accuracy.tolist() == runs[runs.bs == 16].valid_accuracy.tolist()
    assert read(grid/'tiny-seed0'/'metrics.json')['test']['n'] == 50
    table = summarize(grid)
    assert table.test_n.to_dict() == {('tiny', 16): 2, ('tiny', 32): 0} and len(read_runs(grid)) == 4

def test_a_run_is_evaluated_with_test_time_augmentation_too(practice, grid):
    options = dict(seeds=1, epochs=1, limit=40, source=practice, save_to=grid)
    with pytest.raises(ValueError, match='flap'): run_grid(tiny, test='flap', **options)
    run_grid(tiny, test=True, **options)
    folder = next(grid.glob('*/metrics.json')).parent
    plain = Run(folder).metrics
    run_grid(tiny, test='flip', **options)
    both = Run(folder).metrics
    assert plain.keys() == {'valid', 'test'} and both.keys() == {'valid', 'test', 'test flip'}
    assert both['test'] == plain['test'] and both['test flip']['tta'] == 'flip' and both['test flip']['seconds'] > 0

def test_a_fresh_run_is_evaluated_too(practice, grid):
    runs = run_grid(tiny, seeds=1, epochs=1, limit=40, source=practice, save_to=grid, test=True)
    assert runs.test_accuracy[0] == read(grid/'tiny-epochs=1-seed0'/'metrics.json')['test']['accuracy'] and len(lines(grid)) == 2

def test_nan_loss_in_a_grid(practice, grid):
    runs = run_grid(tiny, seeds=1, lr=[1e3, .01], schedule='constant', optimizer='sgd', limit=60, source=practice, save_to=grid)
    assert runs.status.tolist() == ['failed', 'finished'] and runs.error[0].startswith('NonFiniteLossError: The loss became')

# Tables

def table(accuracies, **columns):
    n = len(accuracies)
    return pd.DataFrame(dict(run=[f'r{i}' for i in range(n)], recipe='cnn', seed=range(n), valid_accuracy=accuracies, variant='cifar10', limit=np.nan,
                             status='finished') | columns)

def test_runs_without_an_accuracy_are_counted():
    assert summarize(table([.5, .7, np.nan])).loc['cnn', ['n', 'valid_n']].tolist() == [3, 2] and 'valid_n' not in summarize(table([.5, .7]))

def test_figures_are_those_of_scipy():
    x = [.81, .83, .82, .86]
    line = summarize(table(x)).loc['cnn']
    assert (line.n, line.valid_best, line.valid_worst) == (4, .86, .81) and line.valid_std == pytest.approx(np.std(x, ddof=1))
    assert (line.valid_low, line.valid_high) == pytest.approx(scipy.stats.t.interval(.95, 3, np.mean(x), scipy.stats.sem(x)))
    one = summarize(table([.8])).loc['cnn']
    assert one.valid_mean == .8 and one[['valid_std', 'valid_low', 'valid_high']].isna().all()
    two = summarize(table([.1, .9])).loc['cnn']
    assert (two.valid_low, two.valid_high) == (0, 1)

def test_groups_and_order():
    runs = table([.5, .6, .7, .9], lr=[.1, .1, .2, .2], augment=['a', 'b', 'a', 'b'])
    assert summarize(runs).index.tolist() == [('cnn', .2, 'b'), ('cnn', .2, 'a'), ('cnn', .1, 'b'), ('cnn', .1, 'a')]
    assert summarize(runs, by='lr').valid_mean.to_dict() == pytest.approx({.2: .8, .1: .55})
    assert summarize(runs, by=['augment', 'lr']).index.names == ['augment', 'lr']
    with pytest.raises(ValueError, match="Unknown column 'agument'. Did you mean 'augment'"): summarize(runs, by='agument')

@pytest.mark.parametrize('columns', [dict(variant=['cifar10', 'synthetic']), dict(limit=[np.nan, 500]), dict(data_fingerprint=['12', '13'])])
def test_different_data_are_not_averaged(columns):
    runs = table([.5, .6], **columns)
    with pytest.raises(ValueError, match='different data'): summarize(runs)
    with pytest.raises(ValueError, match='different data'): plot_accuracies(runs)
    assert len(summarize(runs, by=['recipe', *columns])) == 2
    assert len(summarize(runs.assign(status=['finished', 'failed']))) == 1

def test_figures_of_before_fingerprints_count():
    for none in ('', np.nan): assert summarize(table([.5, .6, .7], data_fingerprint=['12', none, '12'], recipe_fingerprint=[none, 'ab', 'ab'])).n.tolist() == [3]

def test_recipes_of_one_name_are_not_averaged(fake, go, grid, practice):
    other = grid.parent/'other'
    go(seeds=[0])
    run_grid(tiny.change(wd=.1, description='decayed'), seeds=[1], save_to=other, source=practice)
    with pytest.raises(ValueError, match=r"tiny has runs of different recipes: diff_runs\('.*seed0', '.*seed1'\) shows"): summarize([grid, other])
    with pytest.raises(ValueError, match='different recipes'): plot_learning_curves([grid, other])
    assert summarize([grid, other], by=['recipe', 'recipe_fingerprint']).n.tolist() == [1, 1] and summarize([grid, other], by='recipe').n.tolist() == [2]
    assert diff_runs(*read_runs([grid, other]).run).set_index('field').loc['wd'].tolist() == [0., .1]

def test_descriptions_do_not_make_another_recipe():
    fingerprints = [r.fingerprint() for r in (tiny, tiny.change(description='x'), tiny.change(lookahead=5))]
    assert len(set(fingerprints[:2])) == 1 and len(set(fingerprints)) == 2
    assert len({tiny.change(grad_clip=g).fingerprint() for g in (1, 1.)}) == 1

def test_a_grid_has_one_recipe_of_a_name(fake, go):
    go(seeds=[0])
    with pytest.raises(ValueError, match=r'tiny-seed0 holds a run with other settings: wd was 0.0 and is now 0.1'): go(tiny.change(wd=.1), seeds=[1, 2])
    assert fake.calls == ['tiny-seed0']
    for _ in range(2): assert len(go([tiny, tiny.change(name='tiny-seedless', wd=.1)], seeds=[1])) == 2
    assert fake.calls == ['tiny-seed0', 'tiny-seed1', 'tiny-seedless-seed1']

def test_a_finished_grid_is_not_read_again_for_each_of_its_runs(fake, go, monkeypatch):
    go(seeds=8)
    read,seen = runs_module.read_json,[]
    monkeypatch.setattr(runs_module, 'read_json', lambda path: seen.append(path) or read(path))
    go(seeds=8)
    assert len(seen) < 8*16

def test_augmentations_of_stages_are_choices_of_their_own(fake, practice, tmp_path):
    two = tiny.change(stages=[Stage(epochs=1, lr=.1), Stage(epochs=1, lr=.01, augment='flip_crop')])
    run_grid(two, seeds=1, save_to=tmp_path/'a', source=practice)
    run_grid(two.change(stages=[Stage(epochs=1, lr=.1), Stage(epochs=1, lr=.01, augment='none')]), seeds=1, save_to=tmp_path/'b', source=practice)
    table = summarize([tmp_path/'a'/'tiny-seed0', tmp_path/'b'/'tiny-seed0'])
    assert table.index.names == ['recipe', 'stage2.augment'] and sorted(table.index.get_level_values(1)) == ['flip_crop', 'none'] and table.n.tolist() == [1, 1]

def test_a_grid_notices_other_images_of_the_same_name(grid, practice, tmp_path):
    folders = [shutil.copytree(practice, tmp_path/name/'pictures') for name in 'ab']
    one = train_files(folders[1])[0]
    with Image.open(one) as image: image.point(lambda value: value//2).save(one)
    run = lambda folder: run_grid(tiny, seeds=1, limit=60, source=folder, save_to=grid)
    before = run(folders[0])
    with pytest.raises(ValueError, match='fingerprint was'): run(folders[1])
    shutil.copytree(folders[0], tmp_path/'c'/'pictures')
    assert run(tmp_path/'c'/'pictures').equals(before) and len(before.data_fingerprint[0]) == 16

def test_runs_may_be_given_in_many_ways(fake, go, grid):
    runs = go(lr=[.1, .2])
    expected = summarize(runs)
    for given in (grid, str(grid), grid/'results.csv', str(grid/'results.csv'), list(runs.run), [grid], [runs, grid], pd.concat([runs, runs])):
        assert summarize(given).equals(expected)
    (grid/'results.csv').unlink()
    assert summarize(grid).equals(expected) and summarize(runs.run[0]).n.tolist() == [1]

@pytest.mark.parametrize('given, error', [([], ValueError), ('nowhere', FileNotFoundError), ('nowhere.csv', FileNotFoundError), (pd.DataFrame(dict(a=[1])), ValueError)])
def test_what_is_no_run_is_told(given, error, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error): summarize(given)

def test_diff_runs(fake, go, grid):
    go([tiny, tiny.change(name='two', stages=(Stage(epochs=1, lr=.01), Stage(epochs=3, lr=.001)))], seeds=2)
    write(grid/'tiny-seed1'/'run.json', versions=dict(torch='2.10'))
    d = diff_runs(grid/'tiny-seed0', grid/'tiny-seed1').set_index('field')
    assert list(d.index) == ['run', 'seed', 'versions.torch', 'valid.accuracy'] and d.loc['seed'].tolist() == [0, 1] and d.loc['versions.torch'].tolist() == ['2.9', '2.10']
    d = diff_runs(str(grid/'tiny-seed0'), grid/'two-seed0')
    assert list(d) == ['field', 'a', 'b']
    d = d.set_index('field')
    assert d.loc['stage1.epochs'].tolist() == [2, 1] and d.loc['stage2.lr'].tolist() == [None, .001] and d.loc['name'].tolist() == ['tiny', 'two'] and 'seed' not in d.index
    assert len(diff_runs(grid/'tiny-seed0', grid/'tiny-seed0')) == 0
    with pytest.raises(FileNotFoundError, match='is not a run folder'): diff_runs(grid/'tiny-seed0', grid)

def test_initial_weights_differ_though_as_many_were_loaded(fake, go, grid):
    go()
    for seed in 0,1: write(grid/f'tiny-seed{seed}'/'run.json', weights='loaded: 318 tensors')
    (grid/'tiny-seed1'/'recipe.json').write_text(tiny.change(weights='b.pth').to_json())
    assert diff_runs(grid/'tiny-seed0', grid/'tiny-seed1').set_index('field').loc['weights'].tolist() == ['', 'b.pth']

@pytest.mark.parametrize('name', ['two  spaces', '実験\u3000一'])
def test_folders_are_found_by_the_table(fake, practice, tmp_path, name):
    runs = run_grid(tiny, seeds=2, save_to=tmp_path/name, source=practice)
    assert all(Path(run).is_dir() for run in runs.run) and len(lines(tmp_path/name)) == 3
    assert len(read_runs(tmp_path/name)) == 2 and plot_learning_curves(runs)

# Figures

def test_learning_curves_are_mean_and_range(fake, go):
    fake.accuracy = lambda recipe, seed: .5 + .1*seed
    ax = plot_learning_curves(go(epochs=[2, 3], seeds=3))
    line,= [l for l in ax.lines if l.get_label() == 'epochs 3 (3 runs)']
    assert line.get_xdata().tolist() == [1, 2, 3] and line.get_ydata().tolist() == pytest.approx([.2, .4, .6])
    band = ax.collections[1].get_paths()[0].vertices
    assert (band[band[:, 0] == 3, 1].min(), band[band[:, 0] == 3, 1].max()) == pytest.approx((.5, .7))
    assert ax.get_xlabel() == 'epoch' and 'validation accuracy' in ax.get_ylabel() and len({to_hex(l.get_color()) for l in ax.lines}) == 2

def test_where_runs_stopped_early_the_mean_is_dotted(fake, go, grid):
    runs = go(epochs=4, seeds=2)
    path = grid/'tiny-epochs=4-seed1'/'history.csv'
    path.write_text('\n'.join(path.read_text().splitlines()[:3]) + '\n')
    solid,dotted = plot_learning_curves(runs, metric='valid_loss').lines
    assert solid.get_xdata().tolist() == [1, 2] and dotted.get_xdata().tolist() == [2, 3, 4] and dotted.get_linestyle() == ':'

def test_accuracies_are_sorted_and_all_shown(fake, go):
    ax = plot_accuracies(go(lr=[.1, .3, .2], seeds=3))
    assert [t.get_text() for t in ax.get_yticklabels()] == ['lr 0.1 (3)', 'lr 0.2 (3)', 'lr 0.3 (3)']
    points = [l for l in ax.lines if l.get_marker() == 'o']
    assert points[2].get_xdata().tolist() == pytest.approx([.8, .81, .82]) and len(points) == 3
    low,high = bar_ends(ax.containers[0])
    assert (low, high) == pytest.approx(scipy.stats.t.interval(.95, 2, .61, scipy.stats.sem([.6, .61, .62])))

def bar_ends(container):
    "Left and right end of the error bar"
    (start,_),(end,_) = container[2][0].get_segments()[0]
    return start,end

def test_figures_take_axes_and_by(fake, go):
    runs = go([tiny, tiny.change(name='other')], lr=[.1, .2], seeds=2)
    ax,other = (summaries.plt.figure().subplots() for _ in range(2))
    assert plot_accuracies(runs, ax=ax) is ax and plot_learning_curves(runs, ax=other) is other and other.lines
    assert {t.get_text() for t in ax.get_yticklabels()} == {'tiny, lr 0.1 (2)', 'tiny, lr 0.2 (2)', 'other, lr 0.1 (2)', 'other, lr 0.2 (2)'}
    assert {t.get_text() for t in plot_accuracies(runs, by='recipe').get_yticklabels()} == {'tiny (4)', 'other (4)'}

def test_single_runs_and_missing_splits(fake, go):
    runs = go(seeds=1)
    assert [t.get_text() for t in plot_accuracies(runs).get_yticklabels()] == ['tiny (1)']
    assert plot_learning_curves(runs).get_legend().get_texts()[0].get_text() == 'tiny (1 run)'
    with pytest.raises(ValueError, match='test=True'): plot_accuracies(runs, 'test')
    with pytest.raises(ValueError, match='split must be'): plot_accuracies(runs, 'train')
    with pytest.raises(ValueError, match='None of these runs is finished'): plot_accuracies(runs.assign(status='failed'))
    with pytest.raises(ValueError, match="Did you mean 'valid_loss'"): plot_learning_curves(runs, metric='val_loss')

# What a grid writes down

def test_plain_test_figures_are_kept_where_those_with_tta_fail(go, grid):
    runs = go(seeds=1, epochs=1, test='fastai')
    assert "tta='fastai'" in runs.error[0] and read(grid/'tiny-epochs=1-seed0'/'metrics.json')['test']['accuracy'] == runs.test_accuracy[0] > 0

def test_errors_of_any_length_and_letters_are_written_down(go, grid, fake):
    def then(recipe, seed):
        if seed == 0: raise RuntimeError('missing key '*20_000 + '\udce9')
        if seed == 1: raise RuntimeError('ph\udce9')
    fake.then = then
    runs = go(seeds=3)
    assert runs.status.tolist() == ['failed', 'failed', 'finished'] and len(runs.error[0]) < 1100 and 'ph' in runs.error[1]
    assert read_runs(grid).status.tolist() == runs.status.tolist()

# Out-of-fold predictions

def test_every_training_image_is_predicted_by_a_network_that_did_not_see_it(practice, tmp_path):
    quick = tiny.change(epochs=1)
    result = out_of_fold(quick, 3, source=practice, save_to=tmp_path, num_workers=0)
    assert len(result.ood_scores) == len(result)
    assert result.files == [o.relative_to(practice).as_posix() for o in train_files(practice)]
    assert (result.split, result.trained_on) == ('out-of-fold', False)
    by_file = dict(zip(result.files, result.probs))
    runs = sorted(tmp_path.glob('tiny-*'))
    assert [o.name for o in runs] == [f'tiny-valid=fold{fold}of3-seed0' for fold in (1, 2, 3)]
    for run in runs:
        learn = load_run(run, num_workers=0)
        assert not set(learn.dls.valid_ds.items) & set(learn.dls.train_ds.items)
        held_out = evaluate(learn, 'valid')
        np.testing.assert_allclose([by_file[f] for f in held_out.files], held_out.probs, atol=1e-6)
    assert result.fingerprint == read(runs[0]/'run.json')['data']['fingerprint']
    assert {'file', 'actual', 'quality'} <= set(result.label_errors())

    before = contents(tmp_path)
    again = out_of_fold(quick, 3, source=practice, save_to=tmp_path, num_workers=0)  # trains nothing
    assert contents(tmp_path) == before and np.array_equal(again.probs, result.probs)

def test_folds_that_were_stopped_are_resumed(practice, tmp_path, monkeypatch):
    def stop(recipe, *args, **kwargs):
        if recipe.valid == 'fold2of2': raise KeyboardInterrupt
        return train(recipe, *args, **kwargs)
    monkeypatch.setattr(tuning, 'train', stop)
    def go(): return out_of_fold(tiny.change(epochs=1), 2, source=practice, save_to=tmp_path, num_workers=0)
    with pytest.raises(KeyboardInterrupt): go()
    first = (tmp_path/'tiny-valid=fold1of2-seed0'/'model.safetensors').stat().st_mtime_ns
    monkeypatch.setattr(tuning, 'train', train)
    assert len(go()) == len(train_files(practice))
    assert (tmp_path/'tiny-valid=fold1of2-seed0'/'model.safetensors').stat().st_mtime_ns == first

def test_a_fold_that_fails_is_named(fake, practice, grid):
    def diverge(recipe, seed):
        if recipe.valid == 'fold2of2': raise NonFiniteLossError(math.nan, epoch=1, batch=1, lr=1.)
    fake.then = diverge
    with pytest.raises(ValueError, match='fold2of2-seed0 failed, so its images have no predictions: NonFiniteLossError'):
        out_of_fold(tiny, 2, source=practice, save_to=grid)

@pytest.mark.parametrize('folds', [1, 0, 2.5, True])
def test_impossible_numbers_of_folds(practice, tmp_path, folds):
    with pytest.raises(ValueError, match='folds must be a whole number of at least 2'):
        out_of_fold(tiny, folds, source=practice, save_to=tmp_path)

def test_training_images_stay_so_when_one_is_moved(practice, tmp_path):
    "After a label was corrected, the run was still trained on the others"
    data = shutil.copytree(practice, tmp_path/'set')
    run = train(tiny.change(epochs=1), source=data, limit=40, run_dir=tmp_path/'run', num_workers=0).run_dir
    f = train_files(data)[0]
    f.rename(data/'train'/'cat'/f'corrected-{f.name}')
    with pytest.warns(UserWarning, match='was trained on other images'): learn = load_run(run, num_workers=0)
    assert evaluate(learn, 'train').trained_on

def test_wrong_labels_of_other_data_may_be_looked_for_in_its_training_images(practice, tmp_path):
    "A run has not seen the training images of another data set, until it is trained on them"
    run = train(tiny.change(epochs=1), source=practice, limit=40, run_dir=tmp_path/'run', num_workers=0).run_dir
    other = shutil.copytree(practice, tmp_path/'other')
    for f in train_files(other)[::20]: f.rename(other/'train'/'cat'/f'{f.parent.name}-{f.name}')
    learn = load_run(run, source=other, num_workers=0)
    result = evaluate(learn, 'train')
    assert not result.trained_on and len(result.label_errors().columns)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert evaluate(learn, 'train').trained_on
    assert evaluate(load_run(run, num_workers=0), 'train').trained_on
