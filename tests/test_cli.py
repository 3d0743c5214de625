"The command line: help, what each command prints and writes, and one clear line for every mistake"
import errno
import gc
import io
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from PIL import Image
from rich.console import Console

from cifar_fastai import __version__, cli, models, terminal
from cifar_fastai.augmentation import list_augmentations
from cifar_fastai.evaluation import load_evaluation
from cifar_fastai.files import read_json as read, write_json
from cifar_fastai.inference import Prediction
from cifar_fastai.models import list_models
from cifar_fastai.recipes import Recipe, Stage, get_recipe, list_recipes
from cifar_fastai.registry import UnknownNameError
from forks import forked
from small_sets import picture, tiny_set

tiny = Recipe(name='tiny', model='ladder_0', stages=Stage(epochs=2, lr=1e-2), bs=32)
names = ['data', 'models', 'recipes', 'train', 'runs', 'tune', 'lr-find', 'evaluate', 'report', 'compare', 'export', 'predict', 'push', 'app', 'course']
program = [sys.executable, '-c', 'import sys; from cifar_fastai.cli import main; sys.exit(main())']

@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    "Each test has an empty working folder, a cache of its own, and no data set by default"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path/'cache'))
    monkeypatch.delenv('CIFAR_FASTAI_DATA', raising=False)
    monkeypatch.delenv('CIFAR_FASTAI_DEBUG', raising=False)
    monkeypatch.delenv('COLUMNS', raising=False)  # which pytest-xdist sets

def run(*args):
    "Run a command in this process: code, out, err"
    out,err = io.StringIO(),io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): code = cli.main([str(a) for a in args])
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())

def fails(result, *texts, code=2):
    "One line that begins with Error: and says these things"
    assert result.code == code, result
    assert re.fullmatch(r'Error: [^\n]+\n', result.err), result.err
    for text in texts: assert text in result.err
    return result

def train(recipe, data, *args, workers=0, report=False):
    return run('train', '--recipe', recipe, '--data', data, '--workers', workers, '--device', 'cpu', '--report' if report else '--no-report', *args)
@pytest.fixture(scope='module')
def shared(tmp_path_factory): return tmp_path_factory.mktemp('cli')

@pytest.fixture(scope='module')
def recipe(shared):
    "A JSON file with a recipe that is quick"
    (shared/'tiny.json').write_text(tiny.to_json())
    return shared/'tiny.json'

@pytest.fixture(scope='module')
def trained(shared, recipe, practice):
    "What `train` printed; `folder` is its run folder, which tests only read"
    result = train(recipe, practice, '--out', shared/'run', '--seed', '3', report=True)
    assert result.code == 0, result.err
    return SimpleNamespace(folder=shared/'run', **vars(result))

@pytest.fixture
def folder(trained):
    "A copy of a run folder, to change"
    return Path(shutil.copytree(trained.folder, 'run'))

# Help

def commands():
    "The commands as typer sees them"
    return typer.main.get_command(cli.app).commands

def examples(command):
    "The command lines of a help's examples"
    return [l.strip() for l in (command.epilog or '').splitlines() if l.strip().startswith('cifar-fastai')]

def test_help_lists_all_commands():
    for args in ([], ['--help'], ['-h']):
        result = run(*args)
        assert result.code == 0 and re.findall(r'^  ([\w-]+)  +\S', result.out.split('Commands:')[1], re.M) == names
    assert list(commands()) == names

@pytest.mark.parametrize('name', names)
def test_help_of_a_command_has_examples_that_parse(name):
    command = commands()[name]
    text = run(name, '--help')
    assert text.code == 0 and 'Examples:' in text.out and max(map(len, text.out.splitlines())) <= 80
    assert all(getattr(p, 'help', None) for p in command.params), 'an option or argument without help'
    assert len(examples(command)) >= 2
    for line in examples(command):
        assert line in text.out
        words = shlex.split(line.split(' > ')[0], comments=True)
        commands()[words[1]].make_context(words[1], words[2:])

def test_help_names_every_augmentation():
    assert list(cli.augmentations) == list_augmentations()

def test_version():
    result = run('--version')
    assert result.code == 0 and result.out.startswith(f'cifar_fastai {__version__} (Python {sys.version.split()[0]}, fastai 2.')

@pytest.mark.parametrize('args', [['--help'], ['train', '--help'], ['recipes', '--json'], ['train', '--bs', '0'], ['--version'], ['models']])
def test_quick_commands_import_nothing_heavy(args):
    heavy = {'torch', 'fastai', 'pandas', 'numpy', 'matplotlib', 'PIL', 'rich'} - ({'rich'} if args == ['models'] else set()) # prints a table
    code = f'import sys; from cifar_fastai.cli import main; main({args}); print(sorted({heavy} & sys.modules.keys()))'
    assert subprocess.check_output([sys.executable, '-c', code], text=True, stderr=subprocess.DEVNULL).splitlines()[-1] == '[]'

@pytest.mark.alone
def test_help_takes_less_than_half_a_second():
    def seconds():  # of the processor, so that other programs do not count
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([*program, 'train', '--help'], stdout=subprocess.DEVNULL, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert any(seconds() < .5 for _ in range(10))

def test_installed_command():
    program = Path(sys.executable).with_name('cifar-fastai')
    assert subprocess.check_output([program, 'recipes', 'small_cnn', '--json'], text=True) == get_recipe('small_cnn').to_json() + '\n'

# Mistakes: one clear line, an exit code, nothing lost

@pytest.mark.parametrize('args, texts', [
    (['trian'], ["'trian'", "Did you mean 'train'?"]),
    (['--foo'], ['--foo', 'cifar-fastai --help']),
    (['train', '--epoch', '1'], ['--epoch', 'cifar-fastai train --help']),
    (['evaluate'], ['RUN', 'cifar-fastai evaluate --help']),
    (['predict', 'run'], ['PATH']),
    (['models', 'small_cn'], ["'small_cn'", "Did you mean 'small_cnn'?", '`cifar-fastai models` shows all']),
    (['models', 'resnet43'], ["Did you mean 'resnet34'?", '`cifar-fastai models` shows all']),
    (['models', 'timm/resnet10t.c3_in1k'], ["Use the network 'timm/resnet10t' with the weights 'c3_in1k'"]),
    (['models', 'x*'], ["'x*'", '`cifar-fastai models` shows all']),
    (['recipes', 'smal_cnn'], ["Did you mean 'small_cnn'?", '`cifar-fastai recipes` shows all']),
    (['recipes', '--json'], ['small_cnn', 'wide_cnn']),
    (['train', '--recipe', 'smal_cnn'], ["Did you mean 'small_cnn'?", '`cifar-fastai recipes` shows all']),
    (['train', '--recipe', 'nowhere.json'], ['No such file', 'nowhere.json']),
    (['train', '--bs', '0'], ['--bs', '0']),
    (['train', '--bs', '-5'], ['--bs', '-5']),
    (['train', '--bs', 'many'], ['--bs', 'many']),
    (['train', '--epochs', '0'], ['--epochs', '0']),
    (['train', '--epochs', '-1'], ['--epochs', '-1']),
    (['train', '--limit', '0'], ['--limit', '0']),
    (['train', '--seed', '-1'], ['--seed', '-1']),
    (['train', '--lr', '0'], ['lr must be a number', 'got 0.0']),
    (['train', '--lr', 'nan'], ['lr must be a number', 'got nan']),
    (['train', '--device', 'gpu'], ['--device gpu', 'cpu']),
    (['train', '--data', 'nowhere'], ['No such path', 'nowhere']),
    (['data', 'nowhere'], ['No such path', 'nowhere']), (['data', 'CIFAR'], ["or a name: 'cifar10'"]),
    (['evaluate', 'nowhere'], ['nowhere', 'run folder']),
    (['evaluate', 'nowhere', '--split', 'tset'], ['--split', "'tset'", "'test'"]),
    (['predict', 'nowhere', 'a.png'], ['nowhere']),
    (['predict', 'nowhere', 'a.png', '--top', '0'], ['--top', '0']),
], ids=' '.join)
def test_bad_input(args, texts, tmp_path):
    fails(run(*args), *texts)
    assert not list(tmp_path.iterdir())

def test_the_last_value_of_an_option_counts(): fails(run('train', '--epochs', '5', '--epochs', '1e3'), "got '1e3'")

@pytest.mark.parametrize('error', [MemoryError('Unable to allocate 9 GiB'), RuntimeError('CUDA out of memory. Tried to allocate 2 GiB'),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")])
def test_memory(error):
    text,code = terminal.describe_error(error)
    assert code == 1 and text.startswith('There is not enough memory. Use a smaller --bs or --image-size') and str(error) in text

def test_tilde_is_the_home_directory(monkeypatch, recipe, practice, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.setenv('USERPROFILE', str(tmp_path/'home'))
    (tmp_path/'home').mkdir()
    shutil.copy(recipe, tmp_path/'home'/'my.json')
    picture().save(tmp_path/'home'/'a.png')
    assert train('~/my.json', practice, '--out=~/run', '--epochs', '1', '--no-test').code == 0
    fails(run('app', '~who_is_that'), 'No such folder: ~who_is_that')
    assert run('evaluate', '~/run', '--split', 'valid').code == 0
    assert run('predict', '~/run', '~/a.png').code == 0
    assert (tmp_path/'home'/'run'/'confusion_matrix-valid.png').is_file() and not Path('~').exists()

def test_augmentation_of_stages(practice): fails(train('three_block_cnn', practice, '--augment', 'none'), 'have an augmentation of their own, so --augment is not clear', '--json > my.json')

def test_unknown_augmentation(practice): fails(train('small_cnn', practice, '--augment', 'flip_crp'), "Did you mean 'flip_crop'?", '`cifar-fastai train --help`')

@pytest.mark.parametrize('text, says', [
    ('{', 'Expecting'), (b'\xc3', 'codec'), ('[]', 'no recipe'), ('{}', "'stages'"), ('{"name": "a", "stages": []}', 'model'),
    (tiny.to_json().replace('"epochs": 2', '"epochs": 0'), 'epochs must be a whole number from 1 up, got 0'),
    (tiny.to_json().replace('"epochs"', '"epoch"'), "'epoch'"), (tiny.to_json().replace('"bs"', '"sb"'), "'sb'"),
    (tiny.to_json().replace('"bs": 32', '"bs": 0'), 'bs must be a whole number from 1 up, got 0')])
def test_damaged_recipe_file(text, says, practice):
    Path('my.json').write_bytes(text if isinstance(text, bytes) else text.encode())
    fails(train('my.json', practice), 'my.json holds no recipe', says)

@pytest.mark.parametrize('lister, says', [('list_models()', '`cifar-fastai models`'), ('list_augmentations()', '`cifar-fastai train --help`'),
                                          ('list_tta()', 'list_tta()')])
def test_listings_become_commands(lister, says):
    assert terminal.explain(UnknownNameError("Unknown name 'x'. Did you mean 'y'?", lister)) == f"Unknown name 'x'. Did you mean 'y'? {says} shows all."

def test_recipe_with_an_unknown_model(practice):
    Path('my.json').write_text(tiny.to_json().replace('ladder_0', 'ladder_00'))
    fails(train('my.json', practice), "Did you mean 'ladder_0'?", '`cifar-fastai models` shows all')

def test_epochs_of_two_stages(practice):
    "They are the most of each stage; one rate for both would not be clear"
    Path('two.json').write_text(Recipe(name='two', model='ladder_0', stages=(tiny.stages*2)).to_json())
    result = train('two.json', practice, '--epochs', 1)
    assert result.code == 0 and 'two_short on ' in result.out and ': 2 epochs, ' in result.out and Path('runs/two_short-seed0').is_dir()
    fails(train('two.json', practice, '--lr', .1), '2 stages', '--lr')

def tgz(name, members):
    "A .tgz of {path: content}"
    with tarfile.open(name, 'w:gz') as tar:
        for path, content in members.items():
            info = tarfile.TarInfo(path)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return Path(name)

def png(seed=0):
    "A picture as a file holds it"
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)).save(file, 'png')
    return file.getvalue()

def small_set(name='set', classes=('cat', 'dog'), n=4):
    "A data set of noise"
    for path in (Path(name, split, c, f'{i}.png') for split in ('train', 'test') for c in classes for i in range(n)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png())
    return Path(name)

def empty_folder(): Path('set').mkdir(); return 'is empty'
def no_train_folder(): Path('set/test/cat').mkdir(parents=True); return 'no train folder'
def class_missing_in_test(): shutil.rmtree(small_set()/'test'/'dog'); return 'dog'
def class_without_images(): [f.unlink() for f in (small_set()/'train'/'dog').iterdir()]; return 'no images in dog'
def not_an_image(): (small_set()/'train'/'cat'/'1.png').write_text('hello'); return '1.png'
def not_an_archive(): Path('set').write_text('hello'); return 'archive'
def truncated_archive():
    content = tgz('set', {f'a/train/cat/{i}.png': png(i) for i in range(9)}).read_bytes()
    Path('set').write_bytes(content[:len(content)//2])
    return 'archive'
def leaves_its_folder(): tgz('set', {'train/cat/0.png': png(), '../evil.txt': b'x'}); return "'../evil.txt'"
def wrong_checksum():
    Path('set').mkdir()
    for name in ('batches.meta', *(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'): Path('set', name).write_bytes(b'x')
    return 'checksum'

broken_sets = [empty_folder, no_train_folder, class_missing_in_test, class_without_images, not_an_image, not_an_archive,
               truncated_archive, leaves_its_folder, wrong_checksum]

@pytest.mark.parametrize('make', broken_sets, ids=lambda f: f.__name__)
def test_broken_data_sets(make, recipe, tmp_path):
    says = make()
    result = run('data', 'set')
    assert result.code and result.err.splitlines()[-1].startswith('Error: ') and says in result.err
    fails(train(recipe, 'set', '--out', 'run'), says)
    assert not Path('run').exists() and not list(tmp_path.rglob('evil.txt'))

@pytest.mark.parametrize('content', [b'hello', b'', png()[:200]], ids=['text', 'empty', 'truncated'])
@pytest.mark.parametrize('workers', [0, 2])
def test_a_broken_image_that_is_found_while_training(content, workers, recipe, monkeypatch):
    "Where the quick look at the data set has missed it"
    from cifar_fastai import data
    info = data.describe_data(small_set(n=40))
    monkeypatch.setattr(data, 'describe_data', lambda *args, **kwargs: info)
    for c in ('cat', 'dog'):
        for i in range(2, 40): Path(f'set/train/{c}/{i}.png').write_bytes(content)
    fails(train(recipe, 'set', '--out', 'run', workers=workers), '.png cannot be read', '`cifar-fastai data SOURCE --verify`')

def test_run_folders_that_cannot_be_written(recipe, practice):
    Path('file').write_text('mine')
    fails(train(recipe, practice, '--out', 'file/run'), 'Not a directory', 'file/run')
    fails(train(recipe, practice, '--out', 'file'), 'file', 'not an empty folder')
    Path('full').mkdir()
    Path('full/thesis.txt').write_text('years of work')
    fails(train(recipe, practice, '--out', 'full'), 'full', 'not an empty folder')
    assert Path('file').read_text() == 'mine' and Path('full/thesis.txt').read_text() == 'years of work'

def test_the_bar_is_full_when_an_epoch_ends(recipe, practice, monkeypatch):
    bars = []
    class Bar(terminal._Bar):
        def __init__(self, *args):
            super().__init__(*args)
            bars.append(self)
    monkeypatch.setattr(terminal, '_Bar', Bar)
    assert train(recipe, practice, '--out', 'run', '--no-test').code == 0
    [task] = bars[0].progress.tasks
    assert task.completed == task.total > 0

def full_disk(monkeypatch, name):
    "Make the disk full from the moment on when the file `name` gets its second line"
    from cifar_fastai.runs import Run
    add = Run.add_epoch
    def write(self, row):
        if row['epoch'] > 1: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.history_file))
        add(self, row)
    monkeypatch.setattr(Run, 'add_epoch', write)

def test_full_disk(recipe, practice, monkeypatch):
    full_disk(monkeypatch, 'history.csv')
    result = fails(train(recipe, practice, '--out', 'run'), 'No space left on device: run/history.csv', 'Saved in run', '1 epoch)', code=1)
    assert '1/2' in result.out and len(pd.read_csv('run/history.csv')) == 1

def test_loss_that_is_no_number(practice):
    Path('wild.json').write_text(tiny.change(lr=1000., optimizer='sgd').to_json())
    result = fails(train('wild.json', practice, '--out', 'run'), 'The loss became', 'epoch', 'batch', 'Saved in run', code=1)
    assert 'Exception occured' not in result.err and Path('run/history.csv').exists()
    assert '--resume' not in result.err + run('runs', '.').out  # it would end there again

def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv('CIFAR_FASTAI_DEBUG', '1')
    result = run('recipes', 'nothing')
    assert result.code == 2 and 'Traceback' in result.err and result.err.splitlines()[-1].startswith("Error: Unknown recipe 'nothing'")

@pytest.mark.parametrize('value', ['', '0'])
def test_debug_can_be_switched_off(value, monkeypatch):
    monkeypatch.setenv('CIFAR_FASTAI_DEBUG', value)
    fails(run('recipes', 'nothing'), "Error: Unknown recipe 'nothing'")

def test_an_error_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr(cli, '_print_purposes', lambda: 1/0)
    fails(run('recipes'), 'ZeroDivisionError', 'CIFAR_FASTAI_DEBUG=1', code=1)

@pytest.mark.slow
def test_a_recipe_that_watches_another_metric(practice):
    watching = Recipe(name='watching', model='ladder_0', l2=.01, stages=Stage(epochs=2, lr=1e-2, early_stopping=5, early_stopping_monitor='penalized_loss'))
    Path('watching.json').write_text(watching.to_json())
    result = train('watching.json', practice, '--out', 'run', '--limit', '40')
    assert result.code == 0 and re.search(r'^ +2/2 ', result.out, re.M)

@pytest.mark.parametrize('args', ['recipes small_cnn >&-', 'recipes small_cnn 2>&-', 'recipes small_cnn >&- 2>&-'])
def test_closed_streams(args):
    result = subprocess.run(f'{shlex.join(program)} {args}', shell=True, capture_output=True, text=True)
    assert result.returncode == 0 and 'Error' not in result.stdout + result.stderr

def test_patterns_on_windows():
    for name in ('b.jpg', 'a.jpg'): Path(name).touch()
    assert cli._expanded(['predict', 'run', '*.jpg', '*.png', '--json']) == ['predict', 'run', 'a.jpg', 'b.jpg', '*.png', '--json']
    assert cli._expanded(['models', '*']) == ['models', '*']

def test_class_names_cannot_steer_the_terminal():
    name = 'a\x1b[2J\n'
    assert cli._as_text('x.png', Prediction(name, .9, {name: .9, 'b': .1}, 0., None), 2).isprintable()

@pytest.mark.parametrize('option', [['--seed', '0'], ['--recipe', 'small_cnn'], ['--valid', '0'], ['--lr', '0']])
def test_resume_refuses_what_equals_a_default_too(option): fails(run('train', '--resume', 'r', *option), f'leave out {option[0]}')

@pytest.mark.parametrize('encoding', ['utf-16', 'utf-8-sig'])
def test_recipe_files_of_windows(encoding):
    Path('my.json').write_text(tiny.to_json(), encoding=encoding)
    assert Recipe.from_json(run('recipes', 'my.json', '--json').out) == tiny

def test_a_pipe_that_is_closed():
    result = subprocess.run(f'{shlex.join(program)} recipes | head -c 1', shell=True, capture_output=True, text=True)
    assert len(result.stdout) == 1 and not result.stderr

def test_only_our_own_warnings_are_shown(monkeypatch):
    def show():
        warnings.warn_explicit('theirs', UserWarning, 'torch/x.py', 1, module='torch.x')
        glyph = r'Glyph 29483 (\N{CJK UNIFIED IDEOGRAPH-732B}) missing from font(s) DejaVu Sans.'  # by Matplotlib, as if by us
        warnings.warn_explicit(glyph, UserWarning, 'cifar_fastai/report.py', 1, module='cifar_fastai.report')
        for line in (1, 2): warnings.warn_explicit('ours', UserWarning, 'cifar_fastai/data.py', line, module='cifar_fastai.data')
    monkeypatch.setattr(cli, '_print_purposes', show)
    before = warnings.filters[:]
    assert run('recipes').err == 'Warning: ours\n'
    assert warnings.filters == before

# Ctrl-C

go_on = 'To go on: cifar-fastai train --resume run'

@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.alone
@pytest.mark.slow
def test_ctrl_c(recipe, practice):
    args = ['train', '--recipe', recipe, '--data', practice, '--out', 'run', '--epochs', '5000', '--workers', '1']
    process = subprocess.Popen([*program, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not re.search(r' 1/5000 ', line := process.stdout.readline()): assert line, process.stderr.read()
    for _ in range(3): os.killpg(process.pid, signal.SIGINT)  # by an impatient hand, and to all processes, as a terminal does
    out,err = process.communicate(timeout=120)
    n = len(pd.read_csv('run/history.csv'))
    assert process.returncode == 130 and n >= 1
    assert err == f'Stopping at the end of this batch.\nStopped. Saved in run: history.csv ({terminal.counted(n, "epoch")}) and the weights. {go_on}\n'
    assert read('run/run.json')['status'] == 'interrupted'
    picture = next((practice/'test').rglob('*.png'))
    assert run('predict', 'run', picture).code == 0

@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('whom', [os.kill, os.killpg])
@pytest.mark.slow
def test_sigterm(recipe, practice, whom):
    "Of Docker, which tells one process, and of systemd and Slurm, which tell all"
    args = ['train', '--recipe', str(recipe), '--data', str(practice), '--out', 'run', '--epochs', '5000', '--workers', '1']
    process = forked(cli.main, args, out='out', err='err')
    while not (Path('out').exists() and ' 1/5000 ' in Path('out').read_text()):
        assert process.is_alive(), Path('err').read_text()
        time.sleep(.01)
    whom(process.pid, signal.SIGTERM)
    process.join(120)
    n = len(pd.read_csv('run/history.csv'))
    assert process.exitcode == 143 and n >= 1
    assert Path('err').read_text() == f'Stopped. Saved in run: history.csv ({terminal.counted(n, "epoch")}) and the weights. {go_on}\n'
    info = read('run/run.json')
    assert (info['status'], info['epochs'], info['error']) == ('interrupted', n, 'Terminated: 143') and Path('run/model.safetensors').exists()

def test_sigterm_where_python_drops_it(recipe, practice, monkeypatch):
    say,before = terminal.TrainingProgress.say,signal.signal(signal.SIGTERM, signal.SIG_DFL)
    class Drops:
        def __del__(self): os.kill(os.getpid(), signal.SIGTERM); time.sleep(.1)
    def at_first_epoch(self, text): say(self, text); ' 1/2 ' in text and Drops()
    monkeypatch.setattr(terminal.TrainingProgress, 'say', at_first_epoch)
    try:
        result = train(recipe, practice, '--out', 'run')
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally: signal.signal(signal.SIGTERM, before)
    assert result.code == 143 and result.err == 'Stopped. Saved in run: history.csv (1 epoch) and the weights. ' + go_on + '\n'

def test_a_run_that_was_killed(folder, recipe, practice):
    "In the moment between the weights and the end"
    info = read(folder/'run.json')
    for name in ('epochs', 'seconds', 'cpu_seconds', 'checksums'): del info[name]
    write_json(folder/'run.json', info | dict(status='training'))
    told = 'Warning: run did not end: it was killed, or is still training. It has a history of 2 epochs and weights.\n'
    for args in (['evaluate', folder, '--workers', 0], ['predict', folder, next((practice/'test').rglob('*.png'))], ['report', folder]):
        result = run(*args)
        assert result.code == 0 and result.err.replace('1 image read, 0 not.\n', '') == told
    page = (folder/'report.html').read_text(encoding='utf-8')
    assert 'This run did not end: it was killed' in page and '2 epochs, seed 3' in page
    (folder/'model.safetensors').unlink()
    for args in (['evaluate', folder], ['predict', folder, 'x.png'], ['report', folder]):
        result = run(*args)
        assert result.code == 2 and 'Error: run/model.safetensors is not there. A run that was killed before it ended has no weights.' in result.err
    fails(train(recipe, practice, '--weights', folder), 'run/model.safetensors is not there. A run that was killed before it ended has no weights.')

def test_report_of_a_run_that_cannot_be_written_to(folder, monkeypatch):
    from cifar_fastai.evaluation import Evaluation
    def full(self, path): raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    (folder/'valid.npz').unlink()
    monkeypatch.setattr(Evaluation, 'save', full)
    result = run('report', folder, '--split', 'valid', '--out', 'elsewhere.html')
    assert result.code == 0 and result.out == 'Written: elsewhere.html\n' and Path('elsewhere.html').exists()
    assert result.err == 'Warning: The evaluation was not saved, so the next report will repeat it: Read-only file system: run/valid.npz\n'

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems know their users')
@pytest.mark.slow
def test_a_user_without_a_home(recipe, practice, tmp_path):
    code = """
import os, pwd, sys
def no_such(uid): raise KeyError(uid)
pwd.getpwuid = no_such
for name in 'HOME', 'XDG_CACHE_HOME', 'CIFAR_FASTAI_HOME', 'FASTAI_HOME': os.environ.pop(name, None)
from cifar_fastai.cli import main
from cifar_fastai.sources import find_data
code = main(sys.argv[1:]) or main(['course'])
try: find_data('cifar10', download=False)
except FileNotFoundError as e: print(e)
sys.exit(code)
"""
    args = ['train', '--recipe', recipe, '--data', practice, '--out', 'run', '--workers', '0', '--no-report']
    result = subprocess.run([sys.executable, '-c', code, *map(str, args)], capture_output=True, text=True, env=os.environ | dict(TMPDIR=str(tmp_path)))
    assert result.returncode == 0, result.stderr
    assert f'CIFAR-10 was not found in {tmp_path}/cifar_fastai-{os.getuid()}' in result.stdout and not Path('~').exists()
    assert read('run/run.json')['status'] == 'finished'

def test_ctrl_c_while_something_is_half_made(recipe, practice, monkeypatch):
    "As when the processes of an epoch are being started: torch's iterator then lacks what its `__del__` asks for"
    class HalfMade:
        def __del__(self): raise AttributeError('_shutdown')
    say,complaints = terminal.TrainingProgress.say,[]
    def at_first_epoch(self, text):
        say(self, text)
        if ' 1/2 ' in text:
            half = HalfMade()  # noqa: F841  it is alive when the signal comes
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(.1)
    monkeypatch.setattr(terminal.TrainingProgress, 'say', at_first_epoch)
    monkeypatch.setattr(sys, 'unraisablehook', complaints.append)
    result = train(recipe, practice, '--out', 'run')
    gc.collect()
    assert result.code == 130 and result.err == 'Stopped. Saved in run: history.csv (1 epoch) and the weights. ' + go_on + '\n'
    assert not complaints

def test_ctrl_c_where_python_drops_it(recipe, practice, monkeypatch):
    "As when the processes of an epoch are cleared away: what is raised in a `__del__` is lost"
    class Drops:
        def __del__(self): os.kill(os.getpid(), signal.SIGINT); time.sleep(.1)
    say,before = terminal.TrainingProgress.say,signal.getsignal(signal.SIGINT)  # which a background job of a shell ignores
    def at_first_epoch(self, text): say(self, text); ' 1/2 ' in text and Drops()
    monkeypatch.setattr(terminal.TrainingProgress, 'say', at_first_epoch)
    result = train(recipe, practice, '--out', 'run')
    assert result.code == 130 and result.err == 'Stopped. Saved in run: history.csv (1 epoch) and the weights. ' + go_on + '\n'
    assert signal.getsignal(signal.SIGINT) is before

def test_ctrl_c_before_training(monkeypatch):
    def stop(): raise KeyboardInterrupt
    monkeypatch.setattr(cli, '_print_purposes', stop)
    result = run('recipes')
    assert result.code == 130 and result.err.strip() == 'Stopped.'

def test_ctrl_c_while_evaluating(recipe, practice, monkeypatch):
    from cifar_fastai import evaluation
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(evaluation, 'evaluate', stop)
    result = train(recipe, practice, '--out', 'run')
    assert result.code == 130 and result.err == 'Stopped. Training had finished and is saved in run; `cifar-fastai evaluate run` evaluates it.\n'
    assert (Path('run')/'model.safetensors').exists()

# data, models, recipes

def test_data(practice):
    result = run('data', practice, '--verify')
    assert result.code == 0 and str(practice) in result.out and '32x32' in result.out
    assert re.search(r'^cat +20 +5 *$', result.out, re.M) and re.search(r'^all +200 +50 *$', result.out, re.M)
    assert 'All 250 images can be read.' in result.out

def test_data_by_environment(practice, monkeypatch):
    monkeypatch.setenv('CIFAR_FASTAI_DATA', str(practice))
    assert str(practice) in run('data').out

@pytest.mark.slow
def test_data_lists_broken_images():
    bad = small_set(n=200)/'test'/'dog'/'77.png'
    bad.write_bytes(png()[:100])
    result = run('data', 'set', '--verify')
    assert result.code == 1 and re.search(rf'{bad}: .*truncated', result.err) and 'Error: 1 of the images cannot be read' in result.err

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='names of any bytes')
def test_names_of_files_and_of_the_data_set_need_not_be_text(recipe):
    folder = small_set().rename(os.fsdecode(b'caf\xe9'))
    for split in 'train', 'test': (folder/split/'cat'/'0.png').rename(folder/split/'cat'/os.fsdecode(b'\xe9.png'))
    assert train(recipe, folder, '--out', 'run', '--epochs', 1, '--bs', 4, '--valid', .5, '--test', report=True).code == 0
    assert run('evaluate', 'run').code == run('report', 'run', '--split', 'test').code == 0
    assert [f for f in load_evaluation('run/test.npz').files if f.endswith(os.fsdecode(b'cat/\xe9.png'))]
    assert re.search(r'caf\\(udc|x)e9', Path('run/report.html').read_text(encoding='utf-8'))

@pytest.mark.skipif(sys.platform != 'linux', reason='names of any bytes')
def test_class_names_that_are_not_text_are_refused_at_once(recipe):
    small_set()
    for split in 'train', 'test': Path('set', split, 'cat').rename(Path('set', split, os.fsdecode(b'caf\xe9')))
    for result in run('data', 'set'), train(recipe, 'set', '--out', 'run'):
        fails(result, r"set/train/caf\xe9': the name of this class folder is not valid UTF-8", 'convmv -f latin1 -t utf-8')
    assert not Path('run').exists()

def test_data_tells_duplicates():
    "Equal ones when all is decoded anyway, nearly equal ones on demand"
    folder = small_set()
    for i, f in enumerate(sorted(folder.rglob('*.png'))): picture(i).save(f)
    assert 'No image occurs more than once.' in run('data', 'set', '--verify').out
    shutil.copy(folder/'train'/'cat'/'0.png', folder/'test'/'dog'/'9.png')
    with Image.open(folder/'train'/'dog'/'1.png') as image: image.point(lambda v: .7*v).save(folder/'train'/'dog'/'9.png')
    assert 'same image' not in run('data', 'set').out
    result = run('data', 'set', '--verify')
    assert result.code == 0 and re.search(r'^in train and test +1 +2 +train/cat/0.png = test/dog/9.png', result.out, re.M)
    assert re.search(r'^with several labels +1 +2 ', result.out, re.M) and 'within train' not in result.out
    result = run('data', 'set', '--near')
    assert re.search(r'^within train +1 +2 +train/dog/1.png = train/dog/9.png', result.out, re.M) and 'can be read' in result.out

def test_data_without_a_test_folder():
    shutil.rmtree(small_set()/'test')
    result = run('data', 'set')
    assert result.code == 0 and 'no test folder' in result.out

def test_models():
    out = run('models', 'ladder_*').out
    assert re.search(r'^ladder_0 +263,402 +[\d,]+ +One convolution', out, re.M) and 'wide_cnn' not in out
    out = run('models').out
    assert all(re.search(rf'^{name} ', out, re.M) for name in list_models()) and "cifar-fastai models 'timm/*'" in out

def test_the_table_of_networks_is_true():
    def about(name):
        model = models.create_model(name)
        return models.count_parameters(model).total,models.multiply_adds(model),getattr(models, name).__doc__.strip().split('\n')[0]
    own = [name for name in list_models() if hasattr(models, name)] # without those that other tests registered
    assert cli._networks == {name: about(name) for name in own}

def test_models_are_those_that_a_recipe_can_name():
    assert run('models', 'resnet18').out == 'model    resnet18\nweights  DEFAULT, IMAGENET1K_V1\n'
    assert {'resnet18', 'resnet34'} < set(run('models', 'resnet*').out.split())
    assert 'c3_in1k' in run('models', 'timm/resnet10t').out
    out = run('models', '*mobilenet*').out.split()
    assert {'mobilenet_v2', 'timm/mobilenetv2_050'} < set(out)

def test_recipes():
    out = run('recipes', '*').out
    assert all(re.search(rf'^{name} ', out, re.M) for name in list_recipes())
    assert 'wide_cnn' not in run('recipes', 'small*').out

def test_recipes_of_a_file():
    Path('my.json').write_text(tiny.change(name='mine', bs=17).to_json())
    out = run('recipes', 'my.json').out
    assert re.search(r'^name +mine$', out, re.M) and re.search(r'^bs +17$', out, re.M)
    assert Recipe.from_json(run('recipes', 'my.json', '--json').out) == tiny.change(name='mine', bs=17)

def test_recipes_for_what():
    out = run('recipes').out
    assert re.search(r'^start here +small_cnn ', out, re.M) and re.search('ladder_0 to ladder_8_1_sgd +reference project 5: 11 recipes', out)
    assert len(out.splitlines()) < 30

def complete(words):
    "What a shell offers for the last word"
    env = os.environ | dict(_CIFAR_FASTAI_COMPLETE='complete_bash', COMP_WORDS=words, COMP_CWORD=str(words.count(' ')))
    return subprocess.run(program, env=env, capture_output=True, text=True).stdout.split()

def test_completion_in_a_shell():
    assert complete('cifar-fastai pre') == ['predict']
    assert complete('cifar-fastai train --recipe small_') == list_recipes('small_*')
    assert complete('cifar-fastai train --augment flip_') == ['flip_crop', 'flip_crop_2']

@pytest.mark.parametrize('variables, want', [
    ({}, 'passive'), (dict(OMP_WAIT_POLICY='active'), 'active'), (dict(GOMP_SPINCOUNT='1000'), None), (dict(KMP_BLOCKTIME='0'), None)])
def test_threads_sleep_where_nothing_is_set(variables, want):
    code = "import os, sys; from cifar_fastai.cli import main; main([]); print(os.environ.get('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    env = {k: v for k,v in os.environ.items() if k not in cli._wait_settings} | variables
    out = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True).stdout
    assert out.splitlines()[-1] == f'{want} False'

def test_nothing_is_set_once_torch_is_loaded(monkeypatch):
    for name in cli._wait_settings: monkeypatch.delenv(name, raising=False)
    run('recipes')
    assert 'OMP_WAIT_POLICY' not in os.environ

@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere it is another OpenMP')
def test_openmp_hears_of_it_before_it_is_loaded():
    env = {k: v for k,v in os.environ.items() if k not in cli._wait_settings} | dict(OMP_DISPLAY_ENV='true')
    said = subprocess.run([*program, 'models', 'resnet18'], env=env, capture_output=True, text=True).stderr
    assert set(re.findall(r"OMP_WAIT_POLICY = '(\w+)'", said)) == {'PASSIVE'}

def test_cells_of_tables(): assert [terminal._cell(v) for v in (True, False, 1000, .5, 'a')] == ['True', 'False', '1,000', '0.500', 'a']

def test_no_color(monkeypatch):
    "The one thing that has a color is the bar"
    screen = io.StringIO()
    monkeypatch.setenv('NO_COLOR', '1')
    monkeypatch.setattr(sys, 'stdout', screen)
    screen.isatty = lambda: True
    with terminal._progress_bar(terminal._console()) as bar: bar.update(bar.add_task('epoch 1/2', total=2, note=''), completed=1, refresh=True)
    assert 'epoch 1/2' in screen.getvalue() and not re.search(r'\x1b\[[\d;]*3[0-9]', screen.getvalue())

@pytest.mark.parametrize('name', list_recipes())
def test_recipe_shows_every_choice(name):
    recipe,out = get_recipe(name),run('recipes', name).out
    line = lambda key, value: re.search(rf'^{key} +{re.escape(str(value))}$', out, re.M)
    optimizers = {recipe.optimizer, *(s.optimizer for s in recipe.stages)}
    used = dict(stages=False, l2_on=recipe.l2, sgd_lr_mult='muon' in optimizers, bias_lr_mult=optimizers & {'sgd', 'muon'})
    for key, value in vars(recipe).items(): assert bool(line(key, value)) == bool(value and used.get(key, True)), key
    stage = recipe.stages[0]
    for key in ('epochs', 'lr', 'schedule', *(['div', 'moms'] if stage.schedule == 'one_cycle' else [])): assert line(f'  {key}', getattr(stage, key)), key
    assert ('plateau_factor' in out) == any(s.schedule == 'reduce_on_plateau' for s in recipe.stages)
    assert out.count('  epochs ') == len(recipe.stages)
    assert Recipe.from_json(run('recipes', name, '--json').out) == recipe

# train

def test_train_begins_with_a_header(trained, practice):
    header,empty,columns = trained.out.splitlines()[:3]
    device = read(trained.folder/'run.json')['hardware']['cpu']
    assert header == f'tiny on synthetic (180 training, 20 validation images), cpu ({device}): 2 epochs, about 10 seconds' and not empty
    assert columns.split() == ['epoch', 'train', 'loss', 'valid', 'loss', 'accuracy', 'time']

@pytest.mark.parametrize('seconds, says', [(2, 'about 10 seconds'), (44, 'about 40 seconds'), (100, 'about 2 minutes'), (190, 'about 3 minutes'), (3*3600, 'about 3.0 hours')])
def test_expected_time(seconds, says): assert terminal._roughly(seconds) == says

def test_small_images_count_less():
    "In units of an epoch of full-size images: half an epoch of 16 pixels and half of 32 is (1/4 + 1)/2"
    stage = Stage(epochs=2, lr=.1, progressive_resizing=(16, 32))
    assert terminal._rest_of_stage(stage, 32) == pytest.approx(2*.625) and terminal._rest_of_stage(stage, 32, .75) == pytest.approx(2*.25)
    assert terminal._rest_of_stage(Stage(epochs=3, lr=.1), 32, 1/3) == pytest.approx(2)

def test_time_left():
    "Ten batches an epoch, each a second; validation has as many images as a third of the training set, and no backward pass"
    dls = SimpleNamespace(train=range(10), valid=range(2), train_ds=range(300), valid_ds=range(100))
    recipe = Recipe(name='two', model='ladder_0', stages=(Stage(epochs=2, lr=.1), Stage(epochs=1, lr=.1)))
    learn = SimpleNamespace(dls=dls, recipe=recipe, training=True, epoch=0, iter=4, xb=[torch.zeros(1, 3, 32, 32)])
    bar = terminal._Bar(Console(file=io.StringIO()), learn)
    bar.seconds,bar.done = 5.,.5
    assert bar.left(learn, 1) == pytest.approx(25 + 3*10/9)
    learn.training,learn.epoch,learn.iter = False,1,0
    assert bar.left(learn, 1) == pytest.approx(10 + (1 + .5)*10/9)

def test_train_prints_a_line_an_epoch(trained):
    history = pd.read_csv(trained.folder/'history.csv')
    rows = re.findall(r'^ +(\d)/2 +([\d.]+) +([\d.]+) +([\d.]+)% +\d+:\d\d$', trained.out, re.M)
    shown = [[int(e), float(t), float(v), float(a)] for e, t, v, a in rows]
    for row, h in zip(shown, history.itertuples(), strict=True):
        assert row == pytest.approx([h.epoch, h.train_loss, h.valid_loss, 100*h.accuracy], abs=6e-3)

def test_train_is_quiet_without_a_terminal(trained):
    assert not trained.err and not re.search('[\r\x1b]', trained.out)

def test_train_ends_with_results_and_next_commands(trained):
    metrics = read(trained.folder/'metrics.json')
    assert list(metrics) == ['valid', 'test']
    for split in metrics: assert f'{split:<5} accuracy {metrics[split]["accuracy"]:.2%}' in trained.out
    end = dict(re.split('  +', line) for line in trained.out.splitlines()[-3:])
    assert 'most confused: ' in trained.out
    assert end['run folder'] == str(trained.folder) and end['report'] == str(trained.folder/'report.html')
    words = shlex.split(end['next'])
    assert words[:3] == ['cifar-fastai', 'predict', str(trained.folder)]
    commands()['predict'].make_context('predict', words[2:])

def test_run_folder(trained):
    assert {p.name for p in trained.folder.iterdir()} == {'recipe.json', 'run.json', 'history.csv', 'recalls.csv', 'metrics.json', 'model.safetensors',
                                                          'confusion_matrix-valid.png', 'confusion_matrix-test.png', 'history.png', 'valid.npz', 'test.npz', 'report.html'}
    for name in ('confusion_matrix-test.png', 'history.png'):
        with Image.open(trained.folder/name) as image: assert min(image.size) > 300
    m = read(trained.folder/'metrics.json')['test']
    assert m['n'] == 50 and len(m['per_class']) == 10 and m['variant'] == read(trained.folder/'run.json')['data']['variant']
    wrong = round((1 - m['accuracy'])*50)
    assert all(n <= wrong for _, _, n in m['most_confused']) and (not wrong or m['most_confused'])

def test_train_ends_with_a_report(trained):
    page = (trained.folder/'report.html').read_text(encoding='utf-8')
    assert f"{read(trained.folder/'metrics.json')['test']['accuracy']:.2%}" in page

def test_a_report_that_fails_costs_nothing_else(recipe, practice, monkeypatch):
    def fail(*args, **kwargs): raise OSError(28, 'No space left on device', 'report.html')
    monkeypatch.setattr('cifar_fastai.report.write_report', fail)
    result = train(recipe, practice, '--out', 'run', '--epochs', '1', report=True)
    assert result.code == 0 and result.err == 'The report was not written: No space left on device: report.html\n'
    assert read('run/run.json')['status'] == 'finished' and 'valid' in read('run/metrics.json') and not Path('run/report.html').exists()

@pytest.mark.parametrize('options, splits, says', [
    (['--epochs', '1'], ['valid'], '(--epochs)'),
    (['--epochs', '1', '--lr', '.02', '--bs', '16', '--augment', 'none'], ['valid'], '(--epochs, --lr, --bs, --augment)'),
    (['--limit', '50'], ['valid'], '(--limit)'),
    (['--epochs', '1', '--test'], ['valid', 'test'], ''), (['--no-test'], ['valid'], '')], ids=' '.join)
@pytest.mark.slow
def test_test_images_are_for_settings_that_are_fixed(options, splits, says, recipe, practice):
    result = train(recipe, practice, '--out', 'run', *options)
    assert result.code == 0 and list(read('run/metrics.json')) == splits
    assert ('validation set only' in result.out) == bool(says) and says in result.out
    assert ('cifar-fastai evaluate run' in result.out) == bool(says) and 'cifar-fastai predict run' in result.out

def test_options_change_the_recipe(recipe, practice):
    assert train(recipe, practice, '--out', 'run', '--epochs', '1', '--lr', '.02', '--bs', '16', '--augment', 'none', '--limit', '50', '--valid', '.3', '--device', 'cpu').code == 0
    assert Recipe.from_json(Path('run/recipe.json').read_text()) == tiny.change(epochs=1, lr=.02, bs=16, augment='none', valid=.3)
    assert read('run/run.json')['data']['n_train'] == 50

@pytest.mark.parametrize('valid', ['0', '1.5'])
def test_neither_a_fraction_nor_a_number_of_validation_images(valid, recipe, practice):
    fails(train(recipe, practice, '--out', 'run', '--valid', valid), f'valid={valid} means', 'use between 10 and 190')

def test_a_number_of_validation_images(recipe, practice):
    assert train(recipe, practice, '--out', 'run', '--epochs', '1', '--valid', '30').code == 0
    assert read('run/run.json')['data']['n_valid'] == 30

@pytest.mark.slow
def test_train_with_a_validation_folder(recipe, practice):
    shutil.copytree(practice, 'set')
    shutil.copytree('set/test', 'set/val')
    for f in Path('set/val').glob('*/0000.png'): f.unlink()
    shown = run('data', 'set')
    assert re.search(r'^class +train +valid +test$', shown.out, re.M) and re.search(r'^all +200 +40 +50$', shown.out, re.M)
    assert re.search(r'^cat +20 +4 +5$', shown.out, re.M) and 'Runs are validated on val/' in shown.out
    result = train(recipe, 'set', '--out', 'run', '--epochs', '1', '--limit', '50')
    assert result.code == 0 and '(50 training, 40 validation images of val/)' in result.out
    data = read('run/run.json')['data']
    assert (data['n_train'], data['n_valid'], data['n_test'], data['valid_folder']) == (50, 40, 50, 'val')
    assert read('run/metrics.json')['valid']['n'] == 40
    fails(train(recipe, 'set', '--valid', '.1'), '--valid: ', 'set has a validation folder of its own, val/', 'Leave out --valid')

def test_train_without_a_test_folder(recipe, practice):
    shutil.copytree(practice/'train', 'set/train')
    result = train(recipe, 'set', '--epochs', '1', '--test')
    assert result.code == 0 and 'no test set' in result.out and list(read('runs/tiny-seed0/metrics.json')) == ['valid']

@pytest.mark.slow
def test_train_makes_a_new_run_folder_each_time(recipe, practice):
    for name in ('tiny-seed0', 'tiny-seed0-2'):
        assert f'runs/{name}' in train(recipe, practice, '--epochs', '1', '--limit', '20').out
    assert sorted(p.name for p in Path('runs').iterdir()) == ['tiny-seed0', 'tiny-seed0-2']

@pytest.mark.slow
def test_epochs_count_on_over_stages(practice):
    Path('two.json').write_text(Recipe(name='two', model='ladder_0', stages=tiny.stages*2, bs=64).to_json())
    out = train('two.json', practice, '--no-test').out
    assert re.findall(r'^ +(\d)/4 |^(stage 2 of 2)$', out, re.M) == [('1', ''), ('2', ''), ('', 'stage 2 of 2'), ('3', ''), ('4', '')]

@pytest.mark.slow
def test_progress_in_a_terminal(recipe, practice, monkeypatch):
    screen = io.StringIO()
    def console(): return Console(file=screen, force_terminal=True, width=100, height=30, force_jupyter=False)
    monkeypatch.setattr(terminal, '_console', console)
    monkeypatch.setattr(terminal.time, 'perf_counter', lambda now=iter(range(10**6)): next(now))  # a second at each look
    assert train(recipe, practice, '--no-test').code == 0
    text = re.sub(r'\x1b\[[\d;?]*[a-zA-Z]', '', screen.getvalue())
    assert re.search(r'epoch 2/2 .*\d+% loss \d\.\d{3}  \d+:\d\d left', text) and '2/2' in text.splitlines()[-1] + text

@pytest.mark.slow
def test_a_reader_that_has_gone_does_not_end_training(recipe, practice, monkeypatch):
    reader,writer = os.pipe()
    os.close(reader)
    with open(writer, 'w', buffering=1, closefd=False) as gone, redirect_stdout(gone): cli.main(['train', '--recipe', str(recipe), '--data', str(practice), '--out', 'run', '--workers', '0', '--no-report', '--no-test'])
    os.close(writer)
    assert len(pd.read_csv('run/history.csv')) == 2 and read('run/run.json')['status'] == 'finished'

# tune

def tune(*args): return run('tune', '--workers', 0, *args)

@pytest.mark.slow
def test_tune(recipe, practice):
    args = '--recipe', recipe, '--data', practice, '--space', 'lr=1e-3..1e-1 log', '--space', 'bs=16,32', '--limit', 60
    result = tune(*args, '--trials', 3)
    assert result.code == 0 and 'run 3 of 3, trial-002' in result.err, result.err
    assert re.search(r'^trial +lr +bs +valid +status *$', result.out, re.M) and len(re.findall(r'^trial-00\d .*% +finished *$', result.out, re.M)) == 3
    assert re.search(r'^next +cifar-fastai train --recipe tune/best.json --seed 1$', result.out, re.M)
    assert 'The test images were not read: evaluate on them once, at the end, by hand.' in result.out and not list(Path('tune').glob('*/test*'))
    assert {p.name for p in Path('tune').iterdir() if p.is_file()} == {'best.json', 'results.csv', 'study.db', 'tune.png'}
    best = Recipe.from_json(Path('tune/best.json').read_text())
    table = pd.read_csv('tune/results.csv')
    assert best.name == 'tiny_tuned' and best.stages[0].lr == pytest.approx(table.lr[table.valid_accuracy.idxmax()])
    assert '4 of' not in (again := tune(*args, '--trials', 4)).err and again.out.count('finished') == 4
    assert run('runs', 'tune').out.count('finished') == 4
    fails(tune(*args, '--seed', 1), 'tune holds a study with other settings: seed was 0 and is now 1. Choose another folder (--out).')

@pytest.mark.parametrize('args, texts', [
    ([], ["Missing option '--space'"]), (['--space', 'lr'], ['--space lr: it must be a setting and its values', 'lr=1e-3..1e-1 log']),
    (['--space', '=1..2'], ['--space =1..2']), (['--space', 'lr=1..2', '--space', 'lr=2..3'], ['lr was given twice']),
    (['--space', 'lrs=1..2'], ["Did you mean 'lr'?", 'Write a range']), (['--space', 'lr=1..2', '--sampler', 'random'], ['--sampler', 'random']),
    (['--space', 'lr=1..2', '--sampler', 'grid'], ['A grid needs values']), (['--space', 'lr=1..2', '--trials', '0'], ['--trials']),
    (['--space', 'lr=1..2', '--recipe', 'smal_cnn'], ["Did you mean 'small_cnn'"]), (['--space', 'lr=1..2', '--storage', 'x'], ['The storage cannot be opened']),
    (['--recipe', 'resnet34_finetuned', '--space', 'lr=1..2'], ['3 stages, so lr is not clear', 'such as stage1.lr'])])
def test_tune_mistakes(practice, args, texts): fails(tune(*args, '--data', practice), *texts)

def test_tune_without_a_single_finished_trial(recipe, practice):
    result = tune('--recipe', recipe, '--data', practice, '--space', 'bs=3,5', '--space', 'model=no_such', '--sampler', 'grid')
    assert result.code == 1 and 'None of the 2 trials was finished. tune/results.csv says why.' in result.err and 'no_such' in result.err

# lr-find

def lr_find(recipe, data, *args): return run('lr-find', '--recipe', recipe, '--data', data, '--limit', 40, *args)

def test_lr_find(recipe, practice, tmp_path):
    result = lr_find(recipe, practice, '--out', 'rates.png')
    assert result.code == 0 and not result.err, result.err
    rates = dict(re.findall(r'^(valley|slide|minimum|steep) +([\d.e-]+)$', result.out, re.M))
    assert len(rates) == 4 and re.search(r'^recipe +0.01, the highest of its one-cycle schedule$', result.out, re.M)
    assert result.out.endswith(f'next  cifar-fastai train --recipe {recipe} --lr {rates["valley"]} --data {practice}\n')
    with Image.open('rates.png') as image: assert min(image.size) > 300
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != 'cache') == ['rates.png']

def test_lr_find_of_several_stages(practice):
    stages = Stage(epochs=1, lr=(None, .1), freeze_to='head', bn='frozen'),Stage(epochs=1, lr=.01)
    Path('two.json').write_text(Recipe(name='two', model='ladder_0', stages=stages, groups=('head',), bs=32).to_json())
    result = lr_find('two.json', practice)
    assert result.code == 0 and re.search(r'^Set lr of the first of the 2 stages in two.json to [\d.e-]+, then: cifar-fastai train --recipe two.json', result.out, re.M)
    assert Path('lr_find.png').exists()

@pytest.mark.parametrize('args, texts', [
    (['--recipe', 'smal_cnn'], ["Did you mean 'small_cnn'?"]), (['--out', 'lr.pdf'], ['--out lr.pdf', 'ends in .png']),
    (['--out', 'no/such/lr.png'], ['no folder no/such']), (['--data', 'nowhere'], ['No such path', 'nowhere']),
    (['--device', 'gpu'], ['--device gpu']), (['--limit', '0'], ['--limit'])], ids=' '.join)
def test_lr_find_mistakes(args, texts, tmp_path):
    fails(run('lr-find', *args), *texts)
    assert not list(tmp_path.iterdir())

# evaluate

@pytest.mark.parametrize('split', ['test', 'valid', 'train'])
def test_evaluate_agrees_with_metrics(split, folder):
    before = read(folder/'metrics.json')
    write_json(folder/'metrics.json', {**before, 'mine': 1})
    result,after = run('evaluate', folder, '--split', split, '--workers', 0),read(folder/'metrics.json')
    assert result.code == 0 and f'accuracy {after[split]["accuracy"]:.2%}' in result.out
    assert (f'cifar-fastai push {folder} --to' in result.out) == (split == 'test')
    assert after['mine'] == 1 and after[split]['n'] == dict(test=50, valid=20, train=180)[split]
    for key in before.get(split, {}): assert isinstance(after[split][key], list) or after[split][key] == pytest.approx(before[split][key], abs=1e-6)
    for row in after[split]['per_class']: assert re.search(rf'^{row["class"]} +{row["n"]} +{row["precision"]:.3f} ', result.out, re.M)
    for name, row in zip(after[split]['vocab'], after[split]['confusion_matrix']):
        assert re.search(rf'^{name} +' + ' +'.join(map(str, row)) + ' *$', result.out, re.M)

def test_figures_of_other_data_are_kept_apart(folder, practice):
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != 'metrics.json'},read(folder/'metrics.json')
    shutil.copytree(practice, 'mine')
    Path('mine/practice_set.json').unlink()  # now it is a folder like any other
    for f in Path('mine/test').rglob('*.png'): Image.open(f).convert('L').convert('RGB').save(f)
    assert run('evaluate', folder, '--data', 'mine', '--workers', 0).code == 0
    new = {'test-on-mine.npz', 'confusion_matrix-test-on-mine.png'}
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in {'metrics.json', *new}} == before[0] and all((folder/n).is_file() for n in new)
    after = read(folder/'metrics.json')
    assert after.pop('test on mine')['variant'] == 'mine' and after == before[1]

def test_figures_of_other_data_of_the_same_name_are_kept_apart(folder, practice):
    before = read(folder/'metrics.json')
    mine = Path(shutil.copytree(practice, f'other/{practice.name}'))
    next((mine/'train').rglob('*.png')).unlink()
    assert run('evaluate', folder, '--data', mine, '--workers', 0).code == 0
    after = read(folder/'metrics.json')
    assert after.pop('test on synthetic')['n'] == 50 and after == before

@pytest.mark.slow
def test_figures_of_two_folders_of_one_name_are_kept_apart(folder, practice):
    before = read(folder/'metrics.json')
    for k, name in enumerate(('mine', 'mine', 'mine-2'), 1):
        mine = Path(shutil.copytree(practice, f'{k}/{name}'))
        (mine/'practice_set.json').unlink()
        for f in list((mine/'test').rglob('*.png'))[:k]: f.unlink()
    for data in '1/mine', '2/mine', '1/mine', '3/mine-2', '3/mine-2': assert run('evaluate', folder, '--data', data, '--workers', 0).code == 0
    after = read(folder/'metrics.json')
    for name, n in (('mine', 49), ('mine 2', 48), ('mine-2 2', 47)):
        assert after.pop(f'test on {name}')['n'] == len(load_evaluation(folder/f'test-on-{name.replace(" ", "-")}.npz')) == n
    assert after == before

def labeled_folders(practice):
    "New labeled images as people keep them, and the files of the practice set that are in them"
    tests = sorted((practice/'test').rglob('*.png'))
    shutil.copytree(practice/'test', 'flat')
    yield 'flat', tests
    shutil.copytree(practice/'test', 'only/test')
    yield 'only', tests
    shutil.copytree(practice/'test', 'x/test/photos')  # a name that reads as a split's
    yield 'x/test/photos', tests
    shutil.copytree(practice/'test'/'cat', 'one/cat/2024/may')
    (Path('one')/'dog').mkdir()
    yield 'one', [f for f in tests if f.parent.name == 'cat']
    few = Path('few')
    for f in [*tests[:3], *tests[-2:]]:
        for split in ('train', 'test'):
            (few/split/f.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(f, few/split/f.parent.name)
    yield 'few', [*tests[:3], *tests[-2:]]
    yield practice, tests

@pytest.mark.slow
def test_evaluate_new_labeled_images(folder, practice):
    whole = load_evaluation(folder/'test.npz')
    right = {Path(f).name + Path(f).parent.name: r for f, r in zip(whole.files, whole.correct)}
    for data, files in labeled_folders(practice):
        result = run('evaluate', folder, '--data', data, '--workers', 0)
        expected = np.mean([right[f.name + f.parent.name] for f in files])
        assert result.code == 0 and f'test  accuracy {expected:.2%} on {len(files)} images' in result.out, (data, result)

def test_evaluate_images_that_cannot_be(folder, practice):
    (Path('mine')/'bird').mkdir(parents=True)
    fails(run('evaluate', folder, '--data', 'mine'), 'mine has no images in class folders', '`cifar-fastai predict`')
    shutil.copy(next((practice/'test').rglob('*.png')), 'mine/bird')
    (Path('mine')/'unicorn').mkdir()
    shutil.copy(next((practice/'test').rglob('*.png')), 'mine/unicorn')
    fails(run('evaluate', folder, '--data', 'mine'), 'mine has images of unicorn, but the network knows airplane, automobile, bird')
    shutil.copytree(practice/'train', 'other/train')
    fails(run('evaluate', folder, '--data', 'other'), 'other has no test folder. To evaluate its training images, pass', 'other/train.')

@pytest.mark.slow
def test_evaluate_the_training_images(folder, recipe):
    tiny_set(Path('d'), 20)
    assert train(recipe, 'd', '--out', 'r', '--no-test').code == 0
    result = run('evaluate', 'r', '--data', 'd/train', '--workers', 0)
    assert result.code == 0 and 'd/train holds the images that r was trained on' in result.err

@pytest.mark.slow
def test_data_that_moved(recipe):
    tiny_set(Path('d'), 20)
    assert train(recipe, 'd', '--out', 'r', '--no-test').code == 0
    Path('d').rename('e')
    fails(run('evaluate', 'r'), 'The data of r are gone', str(Path('d').absolute()), '--data')
    assert run('evaluate', 'r', '--data', 'e', '--workers', 0).code == 0

def test_evaluate_what_cannot_be(folder, recipe, practice):
    (folder/'model.safetensors').write_bytes(b'x')
    fails(run('evaluate', folder, '--workers', 0), 'model.safetensors')
    (folder/'model.safetensors').unlink()
    fails(run('evaluate', folder, '--workers', 0), 'model.safetensors')
    (folder/'run.json').write_text('{')
    fails(run('evaluate', folder), 'run.json')
    fails(run('evaluate', practice), 'run folder')

def test_evaluate_when_nothing_can_be_written(folder, monkeypatch):
    def full(self, target): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
    before = (folder/'metrics.json').read_text()
    monkeypatch.setattr(Path, 'replace', full)
    result = fails(run('evaluate', folder, '--workers', 0), 'No space left on device', code=1)
    assert 'test  accuracy' in result.out and (folder/'metrics.json').read_text() == before and not list(folder.glob('*.part'))

# report

@pytest.mark.slow
def test_report_against_another_run(folder, trained):
    result = run('report', trained.folder, '--against', folder, '--out', 'both.html')
    assert result.code == 0 and result.out == 'Written: both.html\n' and not result.err
    page = Path('both.html').read_text(encoding='utf-8')
    assert 'Comparison with another run' in page and '0 images fixed, 0 broken' in page

@pytest.mark.slow
def test_report_of_one_split(folder):
    assert run('report', folder, '--split', 'valid').code == 0
    assert 'evaluated on 20 validation images' in (folder/'report.html').read_text(encoding='utf-8')

def test_report_refuses(folder, practice):
    fails(run('report', practice), 'run.json')
    fails(run('report', folder, '--split', 'tset'), "Unknown split 'tset'. Allowed: 'test', 'valid'")
    (folder/'test.npz').write_bytes(b'')
    fails(run('report', folder), 'test.npz is not a saved Evaluation')
    Path('reports').mkdir()
    fails(run('report', folder, '--out', 'reports'), 'reports is a folder. The report is one file: name it, such as reports/report.html')
    fails(run('report', folder, '--split', 'valid', '--out', 'no/such/folder.html'), 'Folder no/such does not exist, so the report cannot be written')

# compare

def change_predictions(folder, split, n):
    "Another class for the first `n` images"
    from dataclasses import replace
    kept = load_evaluation(folder/f'{split}.npz')
    probs = kept.probs.copy()
    probs[:n] = np.roll(probs[:n], 1, axis=1)
    replace(kept, probs=probs).save(folder/f'{split}.npz')
    return kept,load_evaluation(folder/f'{split}.npz')

def test_compare(trained, folder):
    from cifar_fastai.evaluation import compare
    change = compare(*change_predictions(folder, 'test', 30))
    result = run('compare', trained.folder, folder)
    assert result.code == 0 and not result.err and 'test images: 50 of synthetic\n' in result.out, result.err
    low,high = change.interval()
    row = re.search(r'^run +([\d.]+)% +(\S+) +(\S+) to (\S+) +(\S+) +(\d+) +(\d+) *$', result.out, re.M)
    shown = [float(o) for o in row.groups()]
    want = [100*change.after.accuracy, 100*change.change, 100*low, 100*high, change.p_value, len(change.fixed), len(change.broken)]
    assert shown == pytest.approx(want, abs=.006) and len(change.fixed) and len(change.broken)
    most = change.per_class().set_index('class').change.abs().max()
    assert f'{100*most:.1f}' in result.out.split('changed most: run')[1].splitlines()[3]
    assert result.out.endswith(f'next  cifar-fastai report run --against {trained.folder}\n')

def test_compare_evaluates_what_is_missing_on_the_split_that_all_have(trained, folder):
    shutil.copytree(folder, 'other')
    for name in ('test.npz', 'valid.npz'): Path('other', name).unlink()
    metrics = read('other/metrics.json')
    del metrics['test']
    write_json(Path('other/metrics.json'), metrics)
    result = run('compare', trained.folder, 'other', folder)
    assert result.code == 0 and 'valid images: 20 of synthetic; not all runs were evaluated on the test images' in result.out
    assert len(re.findall(r' \+0.00 .* 1.000 +0 +0 *$', result.out, re.M)) == 2 and 'changed most' not in result.out
    assert Path('other/valid.npz').exists() and not Path('other/test.npz').exists()

def test_compare_refuses(trained, folder, recipe, practice):
    fails(run('compare', folder), 'compare needs at least two runs, got run alone')
    fails(run('compare', folder, practice), 'run.json')
    fails(run('compare', folder, trained.folder, '--split', 'train'), "Unknown split 'train'. Allowed: 'test', 'valid'")
    assert train(recipe, practice, '--seed', 4, '--epochs', 1, '--out', 'seed4').code == 0
    fails(run('compare', folder, 'seed4'), 'run and seed4 cannot be compared. compare needs two evaluations of the same images')

def test_evaluations_are_kept_whole(trained, folder):
    for split, n in (('valid', 20), ('test', 50)):
        kept = load_evaluation(trained.folder/f'{split}.npz')
        assert len(kept) == n and kept.accuracy == read(trained.folder/'metrics.json')[split]['accuracy']
    assert run('evaluate', folder, '--tta', 'flip', '--workers', 0).code == 0 and load_evaluation(folder/'test-flip.npz').tta == 'flip'

# predict

def odd_images(folder):
    "Images that are odd but legal"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
    rgb.convert('L').save(folder/'gray.png')
    rgb.convert('P').save(folder/'palette.gif')
    rgb.convert('RGBA').save(folder/'alpha.png')
    rgb.convert('CMYK').save(folder/'cmyk.jpg')
    rgb.convert('1').save(folder/'bits.png')
    rgb.resize((3000, 2000)).save(folder/'large.JPG')
    rgb.save(folder/'strange [name] :cat: 100%.png')
    Image.fromarray(rng.integers(0, 65536, (40, 30)).astype(np.uint16)).save(folder/'16-bit.png')
    exif = Image.Exif()
    exif[274] = 6
    rgb.save(folder/'turned.jpg', exif=exif)
    return sorted(folder.iterdir())

def broken_files(folder):
    "Files that are no images, with a word of what is said about each"
    folder.mkdir(parents=True)
    contents = {'text.png': (b'hello', 'not an image'), 'empty.jpg': (b'', 'empty'), 'short.png': (png()[:300], 'cannot be decoded')}
    for name, (content, _) in contents.items(): (folder/name).write_bytes(content)
    return {folder/name: word for name, (_, word) in contents.items()}

def test_predict_odd_images(trained, tmp_path):
    files = odd_images(tmp_path/'odd')
    (tmp_path/'odd'/'notes.txt').write_text('not asked for')
    result = run('predict', trained.folder, 'odd')
    assert result.code == 0 and not result.err and result.out.splitlines()[-1] == f'{len(files)} images read, 0 not.'
    for line, file in zip(result.out.splitlines(), files):
        name,*guesses = line.split('  ')
        assert name == str(Path('odd', file.name)) and len(guesses) == 3
        assert all(re.fullmatch(r'[a-z]+ \d+\.\d%', g) for g in guesses)

def test_predict_goes_on_after_what_it_cannot_read(trained, practice, tmp_path):
    broken = broken_files(tmp_path/'broken')
    good = sorted((practice/'test'/'ship').iterdir())[:2]
    result = run('predict', trained.folder, good[0], 'broken', 'missing.png', good[1], '--top', '1')
    assert result.code == 1 and result.out.splitlines()[-1] == '2 images read, 4 not.'
    assert [l.split('  ')[0] for l in result.out.splitlines()[:-1]] == list(map(str, good))
    said = dict(l.split(': ', 1) for l in result.err.splitlines())
    assert len(said) == 4 and 'no such file' in said['missing.png']
    for file, word in broken.items(): assert word in said[str(file.relative_to(tmp_path))]

def test_predict_json(trained, practice):
    files = sorted((practice/'test'/'frog').iterdir())
    result = run('predict', trained.folder, practice/'test'/'frog', 'missing.png', '--json', '--top', '2')
    rows = [json.loads(l) for l in result.out.splitlines()]
    assert result.code == 1 and [r['file'] for r in rows] == list(map(str, files))
    for r in rows: assert len(r['top']) == 2 and r['label'] == list(r['top'])[0] and r['top'][r['label']] == r['probability']
    assert 'missing.png: no such file' in result.err and result.err.splitlines()[-1] == '5 images read, 1 not.'

def test_predict_marks_what_may_be_none_of_the_classes(trained, folder, practice):
    pictures = sorted((practice/'test').rglob('*.png'))[:9]
    scores = [json.loads(line)['score'] for line in run('predict', folder, *pictures, '--json').out.splitlines()]
    metrics = read(folder/'metrics.json')
    assert metrics['valid']['ood_threshold'] == load_evaluation(folder/'valid.npz').ood_threshold()
    metrics['valid']['ood_threshold'] = sorted(scores)[3]
    write_json(folder/'metrics.json', metrics)
    write_json(folder/'run.json', read(folder/'run.json') | dict(checksums={}))
    lines = run('predict', folder, *pictures).out.splitlines()[:-1]
    assert [line.endswith('%  none of these?') for line in lines] == [score < sorted(scores)[3] for score in scores]
    answers = [json.loads(line) for line in run('predict', folder, *pictures, '--json').out.splitlines()]
    assert [a['none_of_these'] for a in answers] == [score < sorted(scores)[3] for score in scores]
    del metrics['valid']['ood_threshold']
    write_json(folder/'metrics.json', metrics)
    assert json.loads(run('predict', folder, pictures[0], '--json').out)['none_of_these'] is None

def test_predict_agrees_with_evaluate(trained, practice):
    rows = [json.loads(l) for l in run('predict', trained.folder, practice/'test', '--json').out.splitlines()]
    right = sum(Path(r['file']).parent.name == r['label'] for r in rows)
    assert len(rows) == 50 and right/50 == pytest.approx(read(trained.folder/'metrics.json')['test']['accuracy'])

def test_predict_with_a_saved_classifier(trained, practice):
    from cifar_fastai.inference import save_classifier
    from cifar_fastai.training import load_run
    save_classifier(load_run(trained.folder, num_workers=0), 'saved')
    picture = practice/'test'/'cat'/'0000.png'
    assert run('predict', 'saved', picture).out == run('predict', trained.folder, picture).out

def test_predict_names_what_cannot_be_entered(trained, practice, monkeypatch):
    shutil.copytree(practice/'test', 'photos')
    real = os.scandir
    def scandir(path):
        if str(path) == 'photos/ship': raise PermissionError(13, 'Permission denied', 'photos/ship')
        return real(path)
    monkeypatch.setattr(os, 'scandir', scandir)
    result = run('predict', trained.folder, 'photos', '--top', 1)
    assert result.code == 1 and result.out.splitlines()[-1] == '45 images read, 0 not.' and result.err == 'photos/ship: Permission denied\n'

def test_predict_goes_on_after_an_impossible_name(trained):
    Path('cat.png').write_bytes(png())
    result = run('predict', trained.folder, 'x'*300 + '.png', 'cat.png', '--top', 1)
    assert result.code == 1 and result.out.splitlines()[-1] == '1 image read, 1 not.' and 'File name too long' in result.err

def test_predict_an_empty_text(trained): fails(run('predict', trained.folder, ''), "empty path ''")

def test_predict_nothing(trained):
    Path('empty').mkdir()
    result = run('predict', trained.folder, 'empty')
    assert result.code == 1 and 'no images in this folder' in result.err
    Path('cat.png').write_bytes(png())
    result = run('predict', trained.folder, 'empty', 'cat.png')
    assert result.code == 1 and result.out.startswith('cat.png  ') and 'empty: no images in this folder' in result.err

@pytest.mark.skipif(sys.platform != 'linux', reason='file names of any bytes')
def test_predict_a_file_whose_name_is_no_text(trained):
    name = os.fsdecode(b'caf\xe9\n.png')
    Path(name).write_bytes(png())
    out = io.TextIOWrapper(io.BytesIO(), encoding='utf-8')
    with redirect_stdout(out): assert cli.main(['predict', str(trained.folder), name]) == 0
    assert len(out.buffer.getvalue().splitlines()) == 2

# How messages are translated

def test_commands_that_list_are_there():
    "Each takes the place of a function that a message of another module names"
    sources = [p.read_text() for p in Path(cli.__file__).parent.glob('*.py') if p.name not in ('cli.py', 'terminal.py', '_modidx.py')]
    for call, command in terminal._listing_commands.items():
        assert any(call in source for source in sources) and command.strip('`').split()[1] in names

# course

def test_course_lists_tutorials_exercises_and_what_was_solved(tmp_path, monkeypatch):
    monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path))
    from cifar_fastai.course import check, exercises, tutorials
    check('2.2', 448)
    check('2.1', (1, 2, 3, 4))
    lines = [l.rstrip() for l in run('course').out.splitlines()]
    row = lambda start: next(l for l in lines if l.startswith(start + ' '))
    assert row('2.2').endswith('right') and row('2.1').endswith('tried') and row('2.3').endswith('own with at most 100,000 parameters')
    assert row('2').split()[-3:] == ['1', 'of', str(len(exercises(2)))]
    assert all(t in '\n'.join(lines) for t in [*tutorials().title, *exercises().title])
    assert lines[-2:] == [f'Progress file: {tmp_path/"course.json"}', f'Next: 1.1, in {tutorials().file[0]}']

def test_course_copies_the_tutorials_and_overwrites_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = run('course', 'my course')
    copies = sorted((tmp_path/'my course').glob('*.ipynb'))
    assert first.code == 0 and len(copies) > 1 and f"jupyter lab 'my course/{copies[0].name}'" in first.out
    copies[0].write_text('mine', encoding='utf-8')
    copies[1].unlink()
    again = run('course', 'my course')
    assert copies[0].read_text(encoding='utf-8') == 'mine' and copies[1].exists()
    assert again.out.splitlines()[:2] == [str(Path('my course')/copies[1].name), f'{len(copies) - 1} of {len(copies)} exist in my course already and were not overwritten.']

def test_course_reset_says_what_it_removed(tmp_path, monkeypatch):
    monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path))
    from cifar_fastai.course import check
    assert run('course', '--reset').out == 'Nothing is stored; nothing was removed.\n'
    for number in '1.2', '2.1', '2.2': check(number, 1)
    assert run('course', '--reset', '2.1').out == 'Removed your progress in 1 exercise: 2.1.\n'
    assert run('course', '--reset', '2.1').out == 'Nothing is stored; nothing was removed.\n'
    fails(run('course', '--reset', '2.9'), "Unknown exercise '2.9'")
    assert run('course', '--reset').out == 'Removed your progress in 2 exercises: 1.2, 2.2.\n'
    (tmp_path/'course.json').write_text('{', encoding='utf-8')
    fails(run('course'), 'course --reset')
    assert run('course', '--reset').out == f'Removed {tmp_path/"course.json"}, which had no exercise in it.\n'
    assert run('course').code == 0

def test_course_into_a_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path/'taken').write_text('', encoding='utf-8')
    fails(run('course', 'taken'), 'taken')
