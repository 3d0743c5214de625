"The scripts that make and keep measured numbers"
import copy
import csv
import json
import os
import re
import sys
import tarfile
from contextlib import redirect_stdout
from functools import partial
from io import BytesIO, StringIO
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

benchmarks = Path(__file__).resolve().parent.parent/'benchmarks'
sys.path.insert(0, str(benchmarks))

import ablations
import allocator
import changes
import checkpoints
import confusions
import epochs
import everyday
import exports
import few_images
import interpretation
import loaders
import many_pictures
import near_copies
import outliers
import plain_fastai
import processes
import record_run
import reproduce
import scaling
import side_by_side
import speedruns
import steps
import tune_lr
import tutorials
from cifar_fastai import recipes, training
from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.evaluation import evaluate
from cifar_fastai.inference import create_classifier
from cifar_fastai.models import create_model
from cifar_fastai.outliers import auroc, builtin_outliers
from cifar_fastai.recipes import Recipe, Stage, get_recipe
from cifar_fastai.callbacks import training_precision
from cifar_fastai.runs import Run
from cifar_fastai.synthetic import cifar10_classes
from cifar_fastai.training import optimizer_function, train
from small_sets import picture

two_stages = Recipe(name='two_stages', model='ladder_0', stages=(Stage(epochs=20, lr=1e-2), Stage(epochs=1, lr=1e-3)), augment='none', bs=32)

def rows(path): return list(csv.DictReader(path.open(newline='')))

@pytest.mark.parametrize('seconds, epochs, limit', [
    (1e6, (20, 1), None), (21*1000, (20, 1), None), (21*1000 - 1, (19, 1), None), (4000, (3, 1), None), (3000, (2, 1), None),
    (2999, (2, 1), 999), (1500, (2, 1), 500), (1, (2, 1), 320)])
def test_a_budget_is_kept_by_fewer_epochs_and_then_by_fewer_images(seconds, epochs, limit):
    short,images = reproduce.shortened(two_stages, 1000, seconds, 1.)
    assert tuple(s.epochs for s in short.stages) == epochs and images == limit
    assert (short == two_stages) == (epochs == (20, 1)) and short.name == 'two_stages' + '_short'*(epochs != (20, 1))
    assert short.valid == (two_stages.valid if limit is None else limit//5)

def test_a_short_run_does_not_validate_on_the_test_images():
    assert reproduce.shortened(two_stages.change(valid='test'), 1000, 4000, 1.)[0].valid == .1
    assert reproduce.shortened(two_stages.change(valid='test'), 1000, 1e6, 1.)[0].valid == 'test'

@pytest.mark.slow
def test_the_same_call_goes_on(results, practice, tmp_path, monkeypatch):
    "However quick the machine is the second time, the runs are those of the first call"
    monkeypatch.setattr(reproduce, 'get_recipe', lambda name: two_stages.change(image_size=16))
    def call(n, speed):
        monkeypatch.setattr(reproduce, 'seconds_per_image', lambda *args: speed)
        monkeypatch.setattr(sys, 'argv', ['reproduce.py', 'two_stages', '--seeds', f'{n}', '--data', str(practice), '--out', str(tmp_path/'out'),
                                          '--budget', '.01', '--image-size', '32', '--device', 'cpu'])
        reproduce.main()
    call(1, .6/21/60)
    call(2, .6/21/70)
    found = rows(results/'training.csv')[1:]
    assert [r['seed'] for r in found] == ['0', '1'] and {r['recipe'] for r in found} == {'two_stages_short'} and {r['image_size'] for r in found} == {'32'}
    assert len({(r['n_train'], r['epochs']) for r in found}) == 1 and not any(r['test_accuracy'] for r in found)
    assert sorted(o.name for o in (tmp_path/'out').glob('*seed*')) == [f'two_stages_short-image_size=32-seed{i}' for i in (0, 1)]

def test_test_time_augmentation_has_figures_of_its_own(results, practice, tmp_path, monkeypatch):
    quick = two_stages.change(stages=Stage(epochs=1, lr=1e-2))
    monkeypatch.setattr(reproduce, 'get_recipe', lambda name: quick)
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', 'two_stages', '--seeds', '1', '--data', str(practice), '--out', str(tmp_path/'out'),
                                      '--tta', 'flip', '--device', 'cpu'])
    for _ in range(2): reproduce.main()
    row, = rows(results/'training.csv')[1:]
    kept = json.loads((tmp_path/'out'/'two_stages-seed0'/'metrics.json').read_text())
    epoch, = rows(results/'curves.csv')
    assert (epoch['recipe'], epoch['epoch']) == ('two_stages', '1') and float(epoch['seconds']) > 0
    assert float(epoch['valid_accuracy']) == pytest.approx(kept['valid']['accuracy'])
    assert (row['tta'], row['tta_accuracy']) == ('flip', str(kept['test flip']['accuracy'])) and kept['test flip']['tta'] == 'flip'
    assert row['test_accuracy'] == str(kept['test']['accuracy']) and kept['test']['loss'] != kept['test flip']['loss']

def test_a_wrong_augmentation_is_told_before_anything_is_trained(practice, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['reproduce.py', 'ladder_0', '--data', str(practice), '--out', str(tmp_path/'out'), '--tta', 'flop'])
    with pytest.raises(ValueError, match='flop'): reproduce.main()
    assert not (tmp_path/'out').exists()

@pytest.fixture
def results(monkeypatch, tmp_path):
    monkeypatch.setattr(record_run, 'results', tmp_path)
    (tmp_path/'training.csv').write_text('recipe,started,seed\nold,2026-01-01,7\n')
    return tmp_path

def test_rows_of_a_run(results, practice, tmp_path):
    learn = train(two_stages.shorten(2), seed=3, source=practice, run_dir=tmp_path/'run', num_workers=0)
    for _ in range(2): record_run.record(learn.run_dir)
    old,new = rows(results/'training.csv')
    assert (old['recipe'], old['seed'], old['epochs']) == ('old', '7', '')
    assert (new['recipe'], new['seed'], new['epochs'], new['n_train'], new['variant'], new['test_accuracy']) == ('two_stages_short', '3', '3', '180', 'synthetic', '')
    assert float(new['train_seconds']) > 0 < float(new['cpu_seconds']) and int(new['threads']) > 0
    first,second = rows(results/'stages.csv')
    assert (first['stage'], first['epochs'], second['stage'], second['epochs']) == ('1', '2', '2', '1')
    assert float(first['train_loss']) < float(first['first_train_loss']) and second['first_train_loss'] == second['train_loss']
    assert float(second['valid_accuracy']) == pytest.approx(float(new['valid_accuracy'])) and not (results/'curves.csv').exists()

def test_a_whole_run_without_test_figures_is_refused(results, practice, tmp_path):
    learn = train(two_stages.change(stages=Stage(epochs=1, lr=1e-2)), source=practice, run_dir=tmp_path/'run', num_workers=0)
    with pytest.raises(SystemExit, match='not evaluated on the test split'): record_run.record(learn.run_dir)
    assert len(rows(results/'training.csv')) == 1

@pytest.mark.parametrize('file, change, says', [
    ('run.json', dict(status='stopped'), 'not finished'), ('run.json', dict(data=dict(limit=50)), 'trained on 50 images only'),
    ('recipe.json', dict(stages=[dict(epochs=1, lr=.1)]), r'1 epochs, but the recipe tiny has 3')])
def test_runs_whose_row_would_mislead_are_refused(results, tmp_path, monkeypatch, file, change, says):
    monkeypatch.setitem(recipes._recipes, 'tiny', two_stages.change(name='tiny', stages=Stage(epochs=3, lr=.1)))
    (tmp_path/'run').mkdir()
    said = {'run.json': dict(status='finished', data=dict(limit=None)), 'recipe.json': dict(name='tiny', stages=[dict(epochs=3, lr=.1)])}
    for name,about in said.items(): (tmp_path/'run'/name).write_text(json.dumps(about | (change if name == file else {})))
    with pytest.raises(SystemExit, match=says): record_run.record(tmp_path/'run')
    assert len(rows(results/'training.csv')) == 1

def call(script, monkeypatch, *arguments):
    "What a script does when it is started with these arguments, in this process"
    monkeypatch.setattr(sys, 'argv', [f'{script.__name__}.py', *arguments])
    side_by_side.run_script(script.main)

@pytest.mark.parametrize('script, arguments, says', [
    (steps, ['smal_cnn'], "steps.py: Unknown recipe 'smal_cnn'. Did you mean 'small_cnn'?"), (steps, ['ladder_0', '--steps', '0'], '--steps: 0 is too small: at least 1'),
    (loaders, ['--augment', 'nope'], "invalid choice: 'nope'"), (allocator, [], 'required: RECIPE'), (interpretation, [], 'required: run'), (record_run, ['nowhere'], 'nowhere is no')],
    ids=lambda o: ' '.join(o) if isinstance(o, list) else '')
def test_mistakes_are_told_in_a_line(script, arguments, says, monkeypatch, capsys):
    with pytest.raises(SystemExit) as e: call(script, monkeypatch, *arguments)
    assert e.value.code and says in f'{e.value.code} {capsys.readouterr().err}'

def test_each_script_tells_mistakes_so():
    scripts = [o for o in benchmarks.glob('*.py') if "__name__ == '__main__'" in o.read_text(encoding='utf-8')]
    assert len(scripts) > 10
    for path in scripts: assert path.read_text(encoding='utf-8').splitlines()[-1].replace('side_by_side.', '') == "if __name__ == '__main__': run_script(main)", path.name

@pytest.mark.slow
def test_a_side_is_a_process_of_its_own(practice):
    options = ['--data', str(practice), '--bs', '32', '--seconds', '.1', '--device', 'cpu']
    (rate,), = side_by_side.in_turns(loaders.__file__, options, ['memory:cutout'], runs=1).values()
    assert rate > 0

@pytest.mark.slow
def test_the_peer_is_trained_and_recorded(results, practice, monkeypatch):
    monkeypatch.setattr(side_by_side, 'results', results)
    made = []
    monkeypatch.setattr(plain_fastai, 'create_model', lambda *args, **options: made.append(create_model(*args, **options)) or made[0])
    monkeypatch.setattr(sys, 'argv', ['plain_fastai.py', 'tiny_cnn', '--epochs', '2', '--bs', '32', '--workers', '0', '--data', str(practice)])
    plain_fastai.main()
    row = rows(results/'training.csv')[-1]
    assert (row['recipe'], row['model'], row['n_train'], row['n_valid'], row['epochs'], row.get('test_accuracy')) == ('plain_fastai', 'tiny_cnn', '180', '20', '2', None)
    assert float(row['cpu_seconds']) > 0
    epochs = rows(results/'curves.csv')
    assert [r['epoch'] for r in epochs] == ['1', '2'] and epochs[-1]['valid_accuracy'] == row['valid_accuracy'] and epochs[-1]['seconds'] == row['train_seconds']
    images = next(iter(cifar10_dataloaders(practice, bs=128, num_workers=0, augment='none').train))[0].as_subclass(torch.Tensor)
    outputs = torch.nn.functional.conv2d(images, made[0].body.stem.filters[:12]).transpose(0, 1).flatten(1)
    assert (torch.corrcoef(outputs) - torch.eye(12)).abs().max() < .5  # with random filters, more than .9

def test_two_sides_in_turns(tmp_path):
    script = tmp_path/'script.py'
    script.write_text('import sys, json\nprint("noise")\nprint(json.dumps(dict(ms=len(sys.argv[2]), args=sys.argv[1:])))\n')
    measured = side_by_side.in_turns(str(script), ['x'], ('a', 'bcd'), runs=2)
    assert [o['args'] for o in measured['bcd']] == [['x', 'bcd']]*2 and side_by_side.medians(measured, 'ms') == dict(a_ms=1, bcd_ms=3)

def test_rows_of_a_comparison_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    monkeypatch.setattr(side_by_side, 'commit', dict)
    side_by_side.add_row('x', dict(a=1))
    side_by_side.add_row('x', dict(a=2, b=3))
    assert rows(tmp_path/'x.csv') == [dict(a='1', b=''), dict(a='2', b='3')]
    side_by_side.add_row('x', dict(b=4))
    assert list(rows(tmp_path/'x.csv')[0]) == ['a', 'b'] and rows(tmp_path/'x.csv')[2] == dict(a='', b='4')
    side_by_side.add_row('x', dict(c=5, a=6))
    assert [list(r.items()) for r in rows(tmp_path/'x.csv')][1::2] == [[('c', ''), ('a', '2'), ('b', '3')], [('c', '5'), ('a', '6'), ('b', '')]]
    assert len(list(tmp_path.iterdir())) == 1
    side_by_side.add_row('x', dict(c='', a=1, b=7), instead_of=('c', 'a'))
    assert [(r['c'], r['a'], r['b']) for r in rows(tmp_path/'x.csv')] == [('', '2', '3'), ('', '', '4'), ('5', '6', ''), ('', '1', '7')]

def test_a_run_that_was_looked_at_again_keeps_its_place(results, practice, tmp_path):
    for seed in (1, 2): train(two_stages.shorten(1), seed=seed, source=practice, run_dir=tmp_path/f'run{seed}', num_workers=0)
    record_run.record(tmp_path/'run1', tmp_path/'run2')
    before = [(r['seed'], r['started']) for r in rows(results/'stages.csv')]
    Run(tmp_path/'run1').add_metrics('test flip', dict(tta='flip', accuracy=.5))
    record_run.record(tmp_path/'run1')
    assert [(r['seed'], r['tta_accuracy']) for r in rows(results/'training.csv')] == [('7', ''), ('1', '0.5'), ('2', '')]
    assert [(r['seed'], r['started']) for r in rows(results/'stages.csv')] == before

def test_what_the_plain_loop_does_not_do_is_refused(monkeypatch):
    with pytest.raises(SystemExit, match='l2'): steps.check(get_recipe('residual_cnn'), 'cpu')
    steps.check(get_recipe('resnet34_tiny_imagenet'), 'cpu')
    monkeypatch.setattr('torch.cuda.is_bf16_supported', lambda including_emulation: False)
    with pytest.raises(SystemExit, match='mixed_precision'): steps.check(get_recipe('resnet34_tiny_imagenet'), 'cuda')

def run_benchmark(script, monkeypatch, tmp_path, *args):
    "The rows that a script writes, whose sides run once each, in this process"
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    monkeypatch.setenv('CIFAR_FASTAI_HOME', os.environ['CIFAR_FASTAI_HOME'])  # a script may set another, for its process
    def in_turns(file, options, sides, runs=3):
        measured = {}
        for side in sides:
            with redirect_stdout(StringIO()) as out: call(script, monkeypatch, *options, side)
            measured[side] = [json.loads(out.getvalue().splitlines()[-1])]
        monkeypatch.setattr(sys, 'argv', [f'{script.__name__}.py', *args])
        return measured
    monkeypatch.setattr(script, 'in_turns', in_turns, raising=False)
    call(script, monkeypatch, *args)
    return rows(tmp_path/f'{script.__name__}.csv')

def test_loaders_are_timed(practice, monkeypatch, tmp_path):
    found = run_benchmark(loaders, monkeypatch, tmp_path, '--data', str(practice), '--bs', '32', '--seconds', '.1', '--device', 'cpu', '--augment', 'cutout')
    assert [(r['images'], r['workers'], r['augment']) for r in found] == [('files', '0', 'flip_crop'), ('files', '2', 'flip_crop'), ('memory', '', 'cutout')]
    assert all(float(r['slowest_images_per_second']) > 0 for r in found) and float(found[1]['ratio']) == 1
    assert float(found[2]['ratio']) == pytest.approx(float(found[2]['median_images_per_second'])/float(found[1]['median_images_per_second']), rel=.01)
    assert {r['variant'] for r in found} == {'synthetic'}

@pytest.mark.slow
@pytest.mark.parametrize('name', ['ladder_0', 'small_cnn'])
def test_steps_are_timed(name, practice, monkeypatch, tmp_path):
    monkeypatch.setattr(steps, 'matrix', 512)
    row, = run_benchmark(steps, monkeypatch, tmp_path, name, '--data', str(practice), '--bs', '16', '--steps', '3', '--device', 'cpu')
    assert (row['recipe'], row['bs'], row['steps'], row['device'], row['precision']) == (name, '16', '3', 'cpu', training_precision(get_recipe(name), 'cpu'))
    assert float(row['overhead']) == pytest.approx(float(row['learner_ms'])/float(row['loop_ms']) - 1, abs=.01)
    assert 0 < float(row['convolutions_share']) and 0 < float(row['loader_share']) < 1 and float(row['matrix_gflops']) > 0 <= float(row['learner_gflops'])

def test_the_plain_loop_steps_as_the_recipe_does():
    for name in ('sgd', 'adam', 'adamw', 'muon'):
        recipe,conv = get_recipe('small_cnn_one_cycle', optimizer=name, wd=0.), torch.nn.Conv2d(3, 4, 3)
        ours,loop = (copy.deepcopy(conv) for _ in range(2))
        ways = (ours, optimizer_function(recipe)(list(ours.parameters()), lr=1e-4, mom=.9)), (loop, steps.optimizer(loop, recipe))
        for net,opt in ways:
            net(torch.ones(2, 3, 8, 8)).square().sum().backward()
            opt.step()
        moved = ours.weight - conv.weight
        assert moved.abs().max() > 0 and torch.allclose(moved, loop.weight - conv.weight, rtol=.05, atol=1e-8)

@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/clear_refs').exists(), reason='needs Linux')
def test_checkpoints_are_timed(practice, monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints.Measured.__init__, '__defaults__', (10., 1., None))  # after every epoch
    monkeypatch.setattr(training, 'Checkpoints', training.Checkpoints)  # which the script replaces
    row, = run_benchmark(checkpoints, monkeypatch, tmp_path, 'small_cnn', '--epochs', '2', '--data', str(practice))
    assert int(row['checkpoints']) == 1 and 0 < float(row['share']) < 1 and 0 < float(row['weights_mib']) < float(row['checkpoint_mib'])

@pytest.mark.slow
def test_processes_are_compared(practice, monkeypatch, tmp_path):
    row, = run_benchmark(processes, monkeypatch, tmp_path, 'tiny_cnn', '--data', str(practice), '--bs', '16', '--steps', '2', '--processes', '2', '--device', 'cpu')
    assert (row['recipe'], row['bs'], row['processes'], row['device']) == ('tiny_cnn', '16', '2', 'cpu') and 0 < float(row['gradient_mib']) < 10
    assert float(row['ratio']) == pytest.approx(float(row['all_images_per_second'])/float(row['one_images_per_second']), abs=.01)

@pytest.mark.slow
def test_sizes_are_compared(practice, monkeypatch, tmp_path):
    found = run_benchmark(scaling, monkeypatch, tmp_path, 'plain_cnn', '--data', str(practice), '--bs', '16', '32', '--images', '600', '--per-side', '32',
                          '--seconds', '.1', '--device', 'cpu')
    assert [(r['what'], r['bs'], r['images']) for r in found] == [('training', '16', ''), ('training', '32', ''), ('loader', '64', '600')]
    assert all(float(r['images_per_second']) > 0 and float(r['mib']) > 100 for r in found)
    assert [bool(r['first_batch_cold_seconds']) for r in found] == [False, False, True]

@pytest.mark.slow
def test_speed_recipes_are_timed(results, practice, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, 'results', results)
    monkeypatch.setattr(speedruns, 'matching', lambda names: names)
    monkeypatch.setattr(speedruns, 'rate', lambda dl, seconds: loaders.rate(dl, .1))
    monkeypatch.setattr(speedruns, 'get_recipe', lambda name: two_stages.change(stages=Stage(epochs=2, lr=1e-2), optimizer='muon'))
    monkeypatch.setattr(sys, 'argv', ['speedruns.py', 'two_stages', '--seeds', '2', '--data', str(practice), '--out', str(tmp_path/'out'), '--tta', 'flip', '--device', 'cpu', '--busy'])
    speedruns.main()
    row, = rows(results/'speedruns.csv')
    runs = rows(results/'training.csv')[1:]
    assert [r['seed'] for r in runs] == ['0', '1'] and float(runs[0]['tta_seconds']) > 0
    mean = lambda column: sum(float(r[column]) for r in runs)/2
    assert float(row['accuracy_mean']) == pytest.approx(mean('test_accuracy'), abs=1e-5) and float(row['tta_accuracy_mean']) == pytest.approx(mean('tta_accuracy'), abs=1e-5)
    assert float(row['seconds_median']) == pytest.approx(mean('train_seconds')) and float(row['seconds_slowest']) <= sum(float(r['train_seconds']) for r in runs)
    assert (row['seeds'], row['epochs'], row['tta']) == ('2', '2', 'flip') and 0 < float(row['loader_share']) < 1 < float(row['images_per_second'])
    assert row['busy'] == 'yes' and row['started'] == min(r['started'] for r in runs) and {(r['commit'], r['committed']) for r in [row, *runs]} == {tuple(side_by_side.commit().values())}
    assert float(row['warm_up_seconds']) > 0 and sorted(o.name for o in (tmp_path/'out').glob('*seed*')) == ['two_stages-seed0', 'two_stages-seed1']
    monkeypatch.setattr(sys, 'argv', [*sys.argv, '--seeds', '1', '--epochs', '1'])
    speedruns.main()
    whole,shorter = rows(results/'speedruns.csv')
    assert whole == row and (shorter['recipe'], shorter['seeds'], shorter['epochs']) == ('two_stages_1_epochs', '1', '1')
    assert [(r['recipe'], r['epochs']) for r in rows(results/'training.csv')[1:]] == [('two_stages', '2')]*2 + [('two_stages_1_epochs', '1')]

@pytest.mark.slow
def test_recipes_are_timed_by_their_epochs(practice, monkeypatch, tmp_path):
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    monkeypatch.setattr(epochs, 'matching', lambda names: names)
    monkeypatch.setattr(epochs, 'get_recipe', lambda name: two_stages.change(name=name, bs=8, valid='test' if name == 'b' else .1))
    monkeypatch.setattr(epochs, 'seconds_per_image', lambda *args: 1.)  # however quick the machine is, eight batches
    timed,lasted = epochs.seconds_of_epochs,[]
    def remembered(*args):
        lasted.append(timed(*args))
        return lasted[-1]
    monkeypatch.setattr(epochs, 'seconds_of_epochs', remembered)
    monkeypatch.setattr(sys, 'argv', ['epochs.py', 'a', 'b', '--seconds', '.01', '--runs', '1', '--data', str(practice), '--device', 'cpu'])
    epochs.main()
    a,b = rows(tmp_path/'epochs.csv')
    assert [(r['recipe'], r['epochs'], r['n_train'], r['n_valid'], r['images_timed']) for r in (a, b)] == [('a', '21', '180', '20', '64'), ('b', '21', '200', '50', '64')]
    for row,(first,second) in zip((a, b), lasted[2:], strict=True):  # after the turn that does not count
        assert first > 0 < second and float(row['seconds_median']) == pytest.approx(20*first + second, abs=.1)
    monkeypatch.setattr(epochs, 'machine', lambda: side_by_side.machine() | dict(instructions='others'))  # a slower processor, perhaps of the same name
    monkeypatch.setattr(sys, 'argv', ['epochs.py', 'b', *sys.argv[3:]])
    for _ in range(2): epochs.main()
    assert [(r['recipe'], r['instructions']) for r in rows(tmp_path/'epochs.csv')] == [('a', a['instructions']), ('b', a['instructions']), ('b', 'others')]

def test_nothing_is_timed_on_a_busy_machine(monkeypatch):
    monkeypatch.setattr('os.getloadavg', lambda: (99., 0., 0.))
    with pytest.raises(SystemExit, match='not idle.*--busy'): call(speedruns, monkeypatch)
    monkeypatch.setattr('os.getloadavg', lambda: (0., 99., 99.))
    speedruns.check_idle()

def test_the_time_that_a_table_takes_is_known_from_rows_of_such_a_machine(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speedruns, 'results', tmp_path)
    speedruns.announce(['a'], 3, 'cpu')
    here = dict(device='cpu', gpu='', **side_by_side.machine())
    side_by_side.write_rows(tmp_path/'speedruns.csv', [dict(recipe='a', seconds_median=50, tta_seconds=9, warm_up_seconds=3, **here),
                                                       dict(recipe='b', seconds_median=7, **here | dict(instructions='others'))])
    side_by_side.write_rows(tmp_path/'epochs.csv', [dict(recipe='b', seconds_median=60, **here)])
    assert [speedruns.known_seconds(name, 3, 'cpu') for name in 'abc'] == [180, 180, None]
    for names in 'ab', 'abc': speedruns.announce(names, 3, 'cpu')
    assert capsys.readouterr().out == ('3 seeds of 2 recipes take about 6 minutes on a machine like this one.\n'
                                       '3 seeds of 3 recipes take more than 6 minutes on a machine like this one.\n')

def test_a_row_has_the_commit_of_its_code(monkeypatch):
    head = side_by_side.commit()
    if not side_by_side.head: pytest.skip('not a checkout')
    assert side_by_side.head.startswith(head['commit'].rstrip('+')) and len(head['commit']) >= 7
    assert side_by_side.commit('2090-01-01T00:00:00+0000') == head and side_by_side.commit('1999-01-01T00:00:00+0000') == dict(commit='', committed='')
    earlier = side_by_side.commit('2026-11-27T01:23:17+0000')  # of a run that is recorded after a later commit
    assert not earlier['commit'] or earlier['commit'][0] == '~' and earlier['committed'] < '2026-11-27T01:23:17+0000'
    for edited in (True, False):
        monkeypatch.setattr(side_by_side, 'edited', edited)
        assert side_by_side.commit()['commit'].endswith('+') == edited
    monkeypatch.setattr(side_by_side, 'head', '')  # what is installed
    assert side_by_side.commit() == side_by_side.commit('2026-11-27T01:23:17+0000') == dict(commit='', committed='')

def test_rows_from_before_a_change_of_their_recipe(monkeypatch, tmp_path):
    monkeypatch.setattr(changes, 'results', tmp_path)
    (tmp_path/'changes.csv').write_text('commit,date,what,recipes\na,2026-02-01T00:00:00+0000,order,*\nb,2026-03-01T00:00:00+0000,stems,tiny* small_cnn*\n')
    def since(recipe, committed): return changes.changes_since(dict(recipe=recipe, committed=committed))
    assert since('small_cnn_4_epochs', '2026-01-31T23:59:59+0000') == ['order', 'stems'] and since('plain_cnn', '2026-01-31T23:59:59+0000') == ['order']
    assert since('small_cnn', '2026-02-01T00:00:00+0000') == ['stems'] and not since('plain_cnn', '2026-02-01T00:00:00+0000')
    assert since('tiny_cnn', '') == since('tiny_cnn', float('nan')) == ['order', 'stems'] and not since('tiny_cnn', '2026-03-01T00:00:00+0000')
    assert changes.changes_since(dict(committed='')) == ['order']  # without a recipe, what concerns all

def test_changes_and_commits_of_the_results():
    "Each change concerns a recipe that there is, or a script; each row that was measured has a commit, or is joined with one that has"
    for change in rows(side_by_side.results/'changes.csv'):
        for pattern in change['recipes'].split(): assert pattern == 'plain_fastai' or recipes.list_recipes(pattern), pattern
    for path in side_by_side.results.glob('*.csv'):
        if path.stem.startswith('published') or path.stem in ('changes', 'choices', 'stages', 'curves'): continue
        for row in rows(path): assert row['commit'] and row['committed'], path.name
    runs = {(r['recipe'], r['seed'], r['started']) for r in rows(side_by_side.results/'training.csv')}
    for name in ('stages', 'curves'): assert {(r['recipe'], r['seed'], r['started']) for r in rows(side_by_side.results/f'{name}.csv')} <= runs

def test_a_run_that_is_recorded_again_keeps_its_commit(tmp_path):
    run = dict(recipe='a', seed=0, started='2026-01-01')
    record_run.add(tmp_path/'x.csv', [run | dict(n=1, commit='abc', committed='2026')])
    record_run.add(tmp_path/'x.csv', [run | dict(n=2, commit='~def', committed='2025')])
    assert rows(tmp_path/'x.csv') == [{k: str(v) for k,v in run.items()} | dict(n='2', commit='abc', committed='2026')]

def test_runs_that_were_made_elsewhere_get_no_row_of_here(practice, tmp_path):
    folder = train(two_stages.shorten(1), source=practice, run_dir=tmp_path/'run', device='cpu').run_dir
    run = json.loads((folder/'run.json').read_text())
    side_by_side.check_machine({folder: run}, 'cpu')
    for changed,device,message in (({}, 'cuda', 'device cpu, not cuda'), (dict(versions=run['versions'] | dict(torch='1.0')), 'cpu', 'torch 1.0, not'),
                                   (dict(hardware=run['hardware'] | dict(threads=99)), 'cpu', 'threads 99, not')):
        with pytest.raises(SystemExit, match=f'run was not made here: .*{message}.*another --out'): side_by_side.check_machine({folder: run | changed}, device)

def test_a_row_in_the_middle_may_have_more_columns(tmp_path):
    side_by_side.write_rows(tmp_path/'a.csv', [dict(a=1, c=2), dict(a=3, b=4, c=5), dict(a=6, c=7)])
    assert (tmp_path/'a.csv').read_text() == 'a,b,c\n1,,2\n3,4,5\n6,,7\n' and len(list(tmp_path.iterdir())) == 1

def test_images_are_read_before_anything_is_timed(practice, monkeypatch):
    took = []
    class Images:
        n = 3
        def take(self, rows): took.append(list(rows))
    loaders = [SimpleNamespace(dataset=SimpleNamespace(**kept)) for kept in (dict(cache=Images()), dict(cache=Images()), {})]
    monkeypatch.setattr(side_by_side, 'cifar10_dataloaders', lambda *args, **kwargs: SimpleNamespace(loaders=loaders))
    side_by_side.read_images(two_stages, practice)
    assert took == [[0, 1, 2]]*2

def test_rows_of_a_gpu_are_replaced_whatever_the_processor_beside_it(monkeypatch, tmp_path):
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    for device,gpu,instructions,ms in ('cuda', 'H', '', 1), ('cpu', '', 'AVX2', 2), ('cuda', 'H', 'AVX512', 3), ('cuda', 'A', 'AVX512', 4), ('cpu', '', 'AVX512', 5):
        side_by_side.add_row('x', dict(device=device, gpu=gpu, instructions=instructions, ms=ms), instead_of=side_by_side.kind_of_machine(device))
    assert [r['ms'] for r in rows(tmp_path/'x.csv')] == ['2', '3', '4', '5']

@pytest.mark.slow
def test_each_trick_is_left_out_once(results, practice, tmp_path, monkeypatch):
    recipe = get_recipe('small_cnn_one_cycle').change(name='quick', epochs=2, bs=32, progressive_resizing=(16,), lookahead=1)
    assert set(ablations.variants(recipe, [1, 2])) == {('', 1), ('', 2), *((k, 2) for k in ('whitening', 'identities', 'growing_images', 'averaging', 'label_smoothing'))}
    others = ablations.variants(get_recipe('airbench94_long'), [16])  # of another network, and with larger shifts
    assert not {('whitening', 16), ('identities', 16)} & set(others) and others['alternating_flips', 16].augment == 'flip_crop'
    monkeypatch.setattr(ablations, 'results', results)
    monkeypatch.setattr(ablations, 'get_recipe', lambda name: recipe)
    monkeypatch.setattr(ablations, 'tricks', {k: ablations.tricks[k] for k in ('whitening', 'averaging')})
    monkeypatch.setattr(sys, 'argv', ['ablations.py', 'quick', '--seeds', '1', '--epochs', '1', '--data', str(practice), '--limit', '64', '--out', str(tmp_path/'out'), '--device', 'cpu'])
    for _ in range(2): ablations.main()
    found = rows(results/'ablations.csv')
    assert [(r['without'], r['epochs']) for r in found] == [('', '1'), ('', '2'), ('whitening', '2'), ('averaging', '2')]
    runs = {f.parent.name: json.loads(f.read_text())['valid']['accuracy'] for f in (tmp_path/'out').glob('*/metrics.json')}
    assert float(found[2]['accuracy']) == pytest.approx(runs['quick_without_whitening-seed0'], abs=1e-5) and float(found[2]['cpu_seconds']) > 0
    stem = ablations.create_model('small_cnn_trained_stem').body.stem
    assert sum(p.requires_grad for p in stem.parameters()) == 1 and stem(torch.zeros(1, 3, 32, 32)).shape == (1, 24, 31, 31)

@pytest.mark.slow
def test_notebooks_are_timed_and_what_they_come_to_is_kept(monkeypatch, tmp_path):
    def write(name, *sources):
        (tmp_path/f'{name}.ipynb').write_text(json.dumps(dict(nbformat=4, nbformat_minor=5, metadata={}, cells=[
            dict(cell_type='code', id=f'{name}{i}', metadata={}, execution_count=None, outputs=[], source=source) for i,source in enumerate(sources)])))
    def in_turns(file, options, sides, runs):
        return {side: [tutorials.measure(tmp_path/f'{name}.ipynb', int(seed))] for side in sides for name,seed in [side.split(':')]}
    write('a', 'import time\ntime.sleep(.3)')
    write('b', 'acc = 0.', 'def f(seed): return .1*seed', 'acc = f(seed=0)')
    write('c', '#| eval: false\n1/0', 'import pandas as pd', "runs = pd.DataFrame(dict(recipe=['y', 'y', 'x'], valid_accuracy=[.2, .4, .5]))")
    write('d', 'x = 1', 'y = x/0')
    for name,value in dict(notebooks=tmp_path, grids=dict(c='runs'), networks=dict(b=dict(net='acc')), in_turns=in_turns, matrix_gflops=partial(tutorials.matrix_gflops, n=256)).items():
        monkeypatch.setattr(tutorials, name, value)
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    monkeypatch.setenv('CIFAR_FASTAI_DATA', 'nowhere')
    for name in 'tutorials','tutorial_accuracies': (tmp_path/f'{name}.csv').write_text('tutorial,network\ngone,net\n')
    for pattern in ('[abc]', 'a'):
        monkeypatch.setattr(sys, 'argv', ['tutorials.py', pattern, '--seeds', '3', '--data', 'synthetic'])
        tutorials.main()
    found = rows(tmp_path/'tutorials.csv')
    assert [(r['tutorial'], r['variant']) for r in found] == [('b', 'synthetic'), ('c', 'synthetic'), ('a', 'synthetic')]
    assert float(found[2]['seconds']) >= .3 and float(found[0]['mib']) > 10 and all(float(r['matrix_gflops']) > 0 for r in found)
    assert [[r[k] for k in ('tutorial', 'network', 'seeds', 'mean', 'lowest', 'highest')] for r in rows(tmp_path/'tutorial_accuracies.csv')] == [
        ['b', 'net', '3', '0.1', '0.0', '0.2'], ['c', 'y', '2', '0.3', '0.2', '0.4'], ['c', 'x', '1', '0.5', '0.5', '0.5']]
    for pattern,message in (('d', r'd.ipynb failed at this cell: ZeroDivisionError.*\ny = x/0'), ('e', "no notebook whose name fits 'e'")):
        monkeypatch.setattr(sys, 'argv', ['tutorials.py', pattern])
        with pytest.raises(SystemExit, match=message): tutorials.main()

def test_the_networks_of_the_tutorials_are_those_of_the_notebooks():
    "Each expression, and each table of a grid, is of a variable that the notebook sets; those that train several seeds are grids"
    for name,known in (tutorials.grids | tutorials.networks).items():
        source = (tutorials.notebooks/f'{name}.ipynb').read_text(encoding='utf-8')
        for expression in [known] if isinstance(known, str) else known.values(): assert f'{expression.split(".")[0]} = ' in source
        assert ('seeds=' in source) == (name in tutorials.grids)

expected = { # what the tutorials tell you to expect of a single run
    '02_a_first_cnn': {'one cycle': '45 to 53%'}, '03_augmentation': {'bare': '31 to 38%'},
    '04_transfer': {'from scratch': '36 to 50% from scratch', 'frozen body': '55 to 67% with a frozen body', 'frozen, then fine-tuned': '58 to 70% after fine-tuning'},
    '05_cats_and_dogs': {'as it is': '66 to 76%'},
    '06_the_ladder': {'ladder_0': '38 to 48% for `ladder_0`', 'ladder_2': '40 to 49% for `ladder_2`', 'ladder_3': '46 to 52% for `ladder_3`', 'ladder_4': '40 to 48% for `ladder_4`'},
    '08_use_it': {'two epochs': '65 to 75%'}}

@pytest.mark.parametrize('row', [r for r in rows(side_by_side.results/'tutorial_accuracies.csv') if r['network'] in expected.get(r['tutorial'], {}) and r['variant'] != 'synthetic'],
                         ids=lambda r: f"{r['tutorial']}, {r['network']}")
def test_what_to_expect_holds_for_every_row(row):
    said = expected[row['tutorial']][row['network']]
    assert said in (tutorials.notebooks/f"{row['tutorial']}.ipynb").read_text(encoding='utf-8')
    low,high = map(int, re.match(r'(\d+) to (\d+)%', said).groups())
    assert low <= 100*float(row['lowest']) and 100*float(row['highest']) <= high

@pytest.mark.slow
def test_few_images_have_a_row_a_seed_and_choices_none(practice, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    quick = two_stages.change(name='frozen', stages=Stage(epochs=1, lr=1e-2), valid=50)
    monkeypatch.setattr(few_images, 'recipes', lambda n: [quick, quick.change(name='another')])
    def call(*args):
        monkeypatch.setattr(sys, 'argv', ['few_images.py', '--images', '10', '--recipes', 'frozen', '--data', str(practice), '--out', str(tmp_path/'out'), *args])
        few_images.main()
    call('--choose')
    assert not (tmp_path/'few_images.csv').exists()
    call('--seeds', '2')
    made = rows(tmp_path/'few_images.csv')
    monkeypatch.setattr(side_by_side, 'head', 'of a later commit')
    monkeypatch.setattr(side_by_side, 'git', lambda *args: 'abc' if 'rev-list' in args else 'abc 2026-01-01T00:00:00+0000')
    call('--seeds', '2') # from its run folders
    assert {r['commit'] for r in rows(tmp_path/'few_images.csv')} == {'~abc'} and [r['started'] for r in rows(tmp_path/'few_images.csv')] == [r['started'] for r in made]
    found = rows(tmp_path/'few_images.csv')
    assert [(r['images_a_class'], r['recipe'], r['seed'], r['n_train'], r['n_valid']) for r in found] == [('10', 'frozen', str(seed), '100', '50') for seed in (0, 1)]
    assert all(0 <= float(r['test_accuracy']) <= 1 and r['cpu'] for r in found)

def test_a_search_for_a_learning_rate_has_a_row(practice, tmp_path, monkeypatch):
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    monkeypatch.setattr(tune_lr, 'get_recipe', lambda name: two_stages.change(name=name, stages=Stage(epochs=1, lr=1e-2)))
    monkeypatch.setattr(sys, 'argv', ['tune_lr.py', 'quick', '--trials', '3', '--seeds', '2', '--data', str(practice), '--limit', '64', '--out', str(tmp_path/'out'), '--device', 'cpu'])
    for _ in range(2): tune_lr.main()
    row, = rows(tmp_path/'tune_lr.csv')
    assert (row['recipe'], row['trials'], row['seeds'], row['own_lr']) == ('quick', '3', '2', '0.01') and .0025 <= float(row['best_lr']) <= .04
    assert float(row['difference']) == pytest.approx(float(row['best_accuracy']) - float(row['own_accuracy']), abs=2e-5)
    assert tune_lr.interval([.01, .02, .03])[1:] == pytest.approx((-.00484, .04484), abs=1e-4)
    assert not list(tmp_path.glob('out/*/*/test*.npz'))

def test_the_recipes_of_few_images_are_of_four_kinds():
    for n in 10, 25, 100, 500: assert [r.name for r in few_images.recipes(n)] == ['tiny_cnn from scratch', 'small_cnn from scratch', 'frozen', 'fine-tuned']

# ---------------------------------------------------------------------------------------------------- figures in texts

notebooks = benchmarks.parent/'nbs'
not_results = {'87.4': 'an example of two accuracies to compare', '62.5': 'how synthetic cats are drawn', '37.5': 'how synthetic cats are drawn',
               '20.23': 'standard deviations that are often copied', '19.94': 'the same', '20.10': 'the same'}

def accuracies():
    "What the tables of results say: measured, or published by others; remarks name accuracies too"
    for name in 'speedruns', 'replaced', 'training', 'tutorial_accuracies', 'ablations', 'published', 'published_runs', 'published_stages', 'published_recalls', 'stages':
        for row in rows(side_by_side.results/f'{name}.csv'):
            for column,value in row.items():
                if value and (column.startswith(('accuracy', 'test_accuracy', 'tta_accuracy', 'train_accuracy', 'recall')) or column in ('mean', 'lowest', 'highest')) and 'std' not in column:
                    yield float(value)
            yield from map(float, re.findall(r'\.\d{3,4}', row.get('remark', '')))
    yield from pd.read_csv(side_by_side.results/'few_images.csv').groupby(['images_a_class', 'recipe']).test_accuracy.mean()

def outputs(cells):
    data = (text for cell in cells for o in cell.get('outputs', ()) for text in (o.get('text', ''), *(v for k,v in o.get('data', {}).items() if k.startswith('text/'))))
    return ' '.join(map(''.join, data))

def unknown_figures(text, known, shown=''):
    "Accuracies in a text (87.57% or .8757) that no table of results has, nor what a notebook shows; one that fits another row by chance is not found"
    figures = re.findall(r'(?<![\d.,])(\d\d\.\d{1,2})%', text)
    figures += [f'{100*float(m):.{len(m) - 3}f}' for m in re.findall(r'(?<![\w.])\.\d{3,4}(?!\d)', text)]
    return {m for m in figures if m not in not_results and m not in shown and m not in {f'{100*a:.{len(m) - 3}f}' for a in known}}

def test_accuracies_in_texts_lead_to_a_row_or_to_an_output():
    known = list(accuracies())
    assert unknown_figures('86.92% after an epoch, .8757 in the end', known) == {'86.92'} and not unknown_figures('86.92%', known, 'so 86.92 it is')
    for path in sorted(notebooks.rglob('*.ipynb')):
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
        assert not unknown_figures(text, known, outputs(c for c in cells if c['cell_type'] == 'code')), path.name

def test_published_figures_name_their_source():
    published = {r['recipe']: r for r in rows(side_by_side.results/'published.csv')}
    assert all(r['source'] and r['remark'] for r in published.values())
    ours = get_recipe('resnet34_finetuned')
    like_ours = [r for r in rows(side_by_side.results/'published_runs.csv') if r['images'] == 'test' and int(r['n_train']) == 50_000*(1 - ours.valid)
                 and [int(n) for n in r['epochs'].split('+')] == [s.epochs for s in ours.stages]]
    row, = like_ours
    assert (row['accuracy'], row['tta_accuracy']) == tuple(published['resnet34_finetuned'][k] for k in ('accuracy', 'tta_accuracy'))

def test_near_copies_are_counted_as_the_page_says(practice, monkeypatch, tmp_path):
    page = (notebooks/'02_sources.ipynb').read_text(encoding='utf-8')
    found = {r['what']: (int(r['found']), int(r['n'])) for r in rows(side_by_side.results/'near_copies.csv') if r['variant'] == 'cifar10-jpeg'}
    assert '{:,} groups of {:,} images, and {:,} test images'.format(*(found[o][0] for o in ('groups', 'images in groups', 'test images in a group with a training image'))) in page
    for what,text in (('JPEG of quality 20', '{} of those stored as JPEG'), ('shifted by a pixel in one direction', '{} of those shifted by a pixel in one'),
                      ('shifted by a pixel in both directions', '{} of those shifted by a pixel in both'), ('cropped by two pixels on each side, enlarged', '{} of those cropped')):
        assert text.format(f'{found[what][0]/found[what][1]:.0%}') in page, what
    assert found['groups with equal pixels'][0] == 0 and min(found[o][0] for o in near_copies.changes if 'shifted' not in o and 'cropped' not in o) > 985
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    call(near_copies, monkeypatch, '--data', str(practice), '--images', '8')
    again = {r['what']: r for r in rows(tmp_path/'near_copies.csv')}
    assert set(again) == set(found) and again['half the size']['found'] == '8' and again['shifted by two pixels in both directions']['found'] < '4'

def test_the_score_is_the_one_that_tells_outliers_best_on_validation_images():
    "As the page says; figures of the test images came later, and only of that choice"
    page = (notebooks/'02_outliers.ipynb').read_text(encoding='utf-8')
    valid,test = ([r for r in rows(side_by_side.results/'outliers.csv') if r['split'] == split] for split in ('valid', 'test'))
    mean = {score: sum(float(r['auroc']) for r in valid if r['score'] == score) for score in outliers.scores}
    assert max(mean, key=mean.get) == 'energy' and {r['threshold'] for r in valid if r['score'] == 'energy'} == {r['threshold'] for r in test if r['score'] == 'energy'}
    for r in valid: assert f'{float(r["auroc"]):.3f}' in page
    for r in test:
        if r['score'] == 'energy': assert f'{float(r["auroc"]):.3f}' in page and f'{float(r["outliers_below"]):.0%}' in page and f'{float(r["images_below"]):.1%}' in page

def test_outliers_have_a_row_for_each_score_and_kind(practice, monkeypatch, tmp_path):
    learn = train(two_stages.change(stages=Stage(epochs=1, lr=1e-2)), source=practice, run_dir=tmp_path/'run', num_workers=0, device='cpu')
    with tarfile.open(tmp_path/'tiny.tgz', 'w:gz') as tar: # an acorn, twice; a poodle, which CIFAR-10's dogs are left out for; and a training image
        for i,name in enumerate(('val/n12267677/a.png', 'val/n12267677/b.png', 'val/n02113799/c.png', 'train/n12267677/d.png')):
            file = BytesIO()
            picture(i, (64, 64)).save(file, 'png')
            member = tarfile.TarInfo(f'tiny-imagenet-200/{name}')
            member.size = file.tell()
            tar.addfile(member, BytesIO(file.getvalue()))
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    for split in ('valid', 'valid', 'test'): call(outliers, monkeypatch, str(learn.run_dir), '--tiny', str(tmp_path/'tiny.tgz'), '--images', '6', '--split', split)
    found = rows(tmp_path/'outliers.csv')
    kinds = {'noise': '6', 'practice drawings': '6', 'Tiny ImageNet, 1 classes': '2'}
    assert [(r['split'], r['score'], r['outliers'], r['n_outliers']) for r in found] == [
        (split, score, kind, n) for split in ('valid', 'test') for score in outliers.scores for kind,n in kinds.items()]
    valid = evaluate(learn, 'valid')
    scores = create_classifier(learn).logits(builtin_outliers(6, learn.recipe.image_size)['noise']).logsumexp(1)
    assert float(found[0]['threshold']) == pytest.approx(valid.ood_threshold(), abs=1e-3) and found[0]['threshold'] == found[9]['threshold']
    assert float(found[0]['auroc']) == pytest.approx(auroc(valid.ood_scores, scores), abs=1e-3) and float(found[0]['images_below']) <= .05
    left_out = ' '.join(outliers.shows_cifar10.values()).split()
    assert len(set(left_out)) == len(left_out) and set(outliers.shows_cifar10) == set(cifar10_classes) and all(re.fullmatch(r'n\d{8}', o) for o in left_out)

@pytest.mark.slow
def test_exported_files_and_many_pictures_have_rows(practice, monkeypatch, tmp_path):
    pytest.importorskip('onnxscript')
    learn = train(two_stages.change(stages=Stage(epochs=2, lr=1e-2)), source=practice, run_dir=tmp_path/'run', num_workers=0, device='cpu')
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    call(exports, monkeypatch, str(learn.run_dir), '--images', '8', '--turns', '1')
    found = rows(tmp_path/'exports.csv')
    assert [(r['program'], r['precision'], r['n']) for r in found] == [
        ('PyTorch', 'fp32', '8'), ('PyTorch', 'bf16', '8'), ('ONNX Runtime', 'fp32', '8'), ('ONNX Runtime', 'int8', '8')]
    assert found[0]['accuracy'] == found[2]['accuracy'] and float(found[3]['megabytes']) < float(found[2]['megabytes'])
    monkeypatch.setattr(many_pictures, 'write_photographs', lambda folder, n: many_pictures.shutil.copytree(practice/'test'/'cat', folder, dirs_exist_ok=True))
    found = run_benchmark(many_pictures, monkeypatch, tmp_path, str(learn.run_dir), '--files', str(practice/'test'/'dog'), '--turns', '1')
    assert [(r['pictures'].split()[0], r['side'], r['n']) for r in found] == [(kind, side, '5') for kind in ('small', 'photographs') for side in many_pictures.sides]
    assert {r['ratio'] for r in found if r['side'] == 'loop'} == {'1.0'}

@pytest.mark.slow
def test_everyday_tasks_have_rows(practice, monkeypatch, tmp_path):
    "Each in this process, where everything is imported already"
    done = set()
    def measure(code, folder, cold):
        monkeypatch.chdir(folder)
        if code not in done:
            try: exec(code, {})
            except SystemExit as e: assert not e.code, code
        done.add(code)
        return 2. if 'cifar_fastai' in code else 3., 1.
    monkeypatch.setattr(everyday, 'measure', measure)
    monkeypatch.setattr(os, 'environ', dict(os.environ)) # to which fastai adds
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    tasks = ['list the networks', 'first batch, warm', 'classify five images', 'evaluate on the test images'] # the others end the process, or unpack
    call(everyday, monkeypatch, str(practice), '--turns', '1', '--tasks', *tasks)
    found = rows(tmp_path/'everyday.csv')
    assert [(r['task'], r['ours_seconds'], r['fastai_seconds'], r['ratio']) for r in found] == [(task, '2.0', '3.0', '1.5') for task in tasks]

def test_a_cold_cache_is_empty(tmp_path):
    (tmp_path/'caches').mkdir()
    wall,cpu = everyday.measure("import os; print(os.environ['CIFAR_FASTAI_HOME']); assert not os.path.exists('caches')", tmp_path, True)
    assert wall > 0 and 0 < cpu < 10*wall

def test_photographs_are_of_12_megapixels(tmp_path):
    many_pictures.write_photographs(tmp_path, 2, different=1)
    with Image.open(tmp_path/'0001.jpg') as photograph: assert photograph.size == (4000, 3000)

def test_the_readme_shows_what_the_default_run_confuses(practice, monkeypatch, tmp_path):
    cells = json.loads((notebooks/'index.ipynb').read_text(encoding='utf-8'))['cells']
    shown, = (outputs([c]) for c in cells if ''.join(c['source']).endswith('result.most_confused(min_count=50)'))
    known = rows(side_by_side.results/'confusions.csv')
    assert shown.strip() == str([(r['actual'], r['predicted'], int(r['images'])) for r in known if (r['recipe'], r['seed']) == ('small_cnn', '0')])
    learn = train(two_stages.change(stages=Stage(epochs=1, lr=1e-2)), source=practice, run_dir=tmp_path/'run', num_workers=0, device='cpu')
    result = evaluate(learn, 'test')
    Run(learn.run_dir).add_metrics('test', result.to_dict() | dict(most_confused=result.most_confused()[:20]))
    monkeypatch.setattr(side_by_side, 'results', tmp_path)
    call(confusions, monkeypatch, str(learn.run_dir), '--min-count', '2')
    first = rows(tmp_path/'confusions.csv')
    side_by_side.write_rows(tmp_path/'confusions.csv', [first[0] | dict(actual='nothing'), first[0] | dict(seed='7'), *first])
    call(confusions, monkeypatch, str(learn.run_dir), '--min-count', '2')
    kept,*again = rows(tmp_path/'confusions.csv')
    assert kept['seed'] == '7' and again == first, 'of the run, no earlier pair stays'
    side_by_side.write_rows(tmp_path/'confusions.csv', first)
    assert [(r['actual'], r['predicted'], int(r['images'])) for r in rows(tmp_path/'confusions.csv')] == result.most_confused(min_count=2)
