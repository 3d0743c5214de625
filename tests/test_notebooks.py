"""Every notebook runs from top to bottom on the practice set, each in a process of its own, and shows what is saved in it.

A tutorial trains for minutes. Here it runs with fewer images and epochs, where that shows the same: `smaller` says what stands
in the place of what. It runs as it is with `--whole` (`make tutorials`), and whenever you changed it. `make quick` runs the
notebooks that you changed, and no others."""
import json
import multiprocessing
import os
import re
import subprocess
import sys
from functools import lru_cache

import pytest

from cifar_fastai.sources import describe_data, find_data
from notebook_cells import execute, root
from test_project import notebooks, read

# Code that sets how long a notebook takes, and what stands there here.
from_memory = {'limit=2000, num_workers=0': 'limit=1000'}
smaller = {
    '05_training': {'limit=500': 'limit=200', "'synthetic', 500)": "'synthetic', 200)", 'num_it=40': 'num_it=10'},
    '06_evaluation': {**from_memory, 'epochs=8': 'epochs=6'},
    '07_inference': {'limit=600': 'limit=100'},
    '07_interpretation': {**from_memory, 'epochs=10': 'epochs=2', 'find_lr(learn.recipe,': 'find_lr(learn.recipe.change(bs=16),',
                          "'synthetic', limit=600": "'synthetic', limit=100"},
    '07_probing': from_memory,
    '07_robustness': from_memory,
    '08_exporting': {'epochs=5': 'epochs=1', "train(recipe, source='synthetic'": "train(recipe, limit=200, source='synthetic'"},
    '08_hub': {'limit=600': 'limit=100'},
    '09_report': {'limit=2000, num_workers=0': 'limit=400', "('short', 3), ('longer', 6)": "('short', 1), ('longer', 2)"},
    'guides/06_in_fastais_words': {'(.3, .1, seed': '(.05, .02, seed', 'num_it=50': 'num_it=10', 'fine_tune(3': 'fine_tune(1', 'limit=1500': 'limit=200'},
    'tutorials/02_a_first_cnn': {'limit=6_000': 'limit=500', 'lr_find()': 'lr_find(num_it=20)'},
    'tutorials/03_augmentation': {'limit=600': 'limit=64', 'valid=500': 'valid=50', 'epochs=20': 'epochs=4'},
    'tutorials/04_transfer': {'valid=200': 'valid=50', 'epochs=20': 'epochs=2', 'epochs=25': 'epochs=2', 'epochs=6': 'epochs=1', 'epochs=4)': 'epochs=1)',
                              '(3, ': '(1, ', 'image_size=96': 'image_size=32', 'seeds=3': 'seeds=2'},
    'tutorials/05_cats_and_dogs': {"/'before')": "/'before', limit=800)", "Path(mkdtemp()))": 'Path(mkdtemp()), limit=800)'},
    'tutorials/06_the_ladder': {'limit=2000': 'limit=200', 'valid=1000': 'valid=100', 'epochs=4': 'epochs=3', 'seeds=3': 'seeds=2'},
    'tutorials/07_make_it_fast': {'bs=128': 'bs=16', 'limit=1000': 'limit=100', 'seconds=1.': 'seconds=.2'},
    'tutorials/08_use_it': {'limit=12_000': 'limit=500', 'valid=2000': 'valid=200'},
}


def changed_notebooks():
    "Those that differ from origin/main, or from the last commit where there is none; nothing is known without git."
    for since in 'origin/main', 'HEAD':
        listed = subprocess.run(['git', 'diff', '--name-only', since, '--', 'nbs'], cwd=root, capture_output=True, text=True)
        if listed.returncode == 0: return {o.removeprefix('nbs/') for o in listed.stdout.splitlines()}
    return set()


changed = changed_notebooks()


# --- running

@pytest.fixture(scope='session')
def processes():
    "Each process is a fork of one in which everything is imported and nothing has run yet."
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['nbdev.test', 'cifar_fastai.all', 'cifar_fastai.cli', 'cifar_fastai.course', 'fastai.vision.all', 'optuna'])
    return context


@pytest.fixture
def problem(processes, tmp_path):
    "What is wrong with a notebook: nothing, or a text."
    def run(path, changes, **options):
        log = tmp_path / f'{path.stem}.log'
        process = processes.Process(target=execute, args=(path, changes, log), kwargs=options)
        process.start()
        process.join()
        if process.exitcode == 0: return ''
        return log.read_text(encoding='utf-8') if log.exists() else f'ended with {process.exitcode}'
    return run


@pytest.mark.parametrize('name', [o.name if o.name in changed else pytest.param(o.name, marks=pytest.mark.slow) for o in notebooks])
def test_notebook_runs(name, problem, pytestconfig):
    whole = pytestconfig.getoption('--whole') or name in changed and not pytestconfig.getoption('markexpr')
    changes = {} if whole else smaller.get(name.removesuffix('.ipynb'), {})
    stale = problem(root / 'nbs' / name, changes, compared=not name.startswith('tutorials/'))  # which show other data
    assert not stale, stale


def notebook(path, *sources):
    cells = [dict(cell_type='code', id=str(i), metadata={}, execution_count=None, outputs=[], source=source) for i, source in enumerate(sources)]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


@pytest.mark.slow
def test_what_fails_in_a_notebook_is_told(problem, tmp_path):
    path = notebook(tmp_path / 'a.ipynb', 'n = 10', '#| eval: false\n1/0', '#| cuda\n1/0', 'assert n == 3, "not smaller"')
    assert problem(path, {'10': '3'}) == ''
    said = problem(path, {})
    assert 'a.ipynb failed in the cell\n\nassert n == 3' in said and 'AssertionError: not smaller' in said
    assert problem(notebook(tmp_path / 'b.ipynb', 'import os\nos._exit(5)'), {}) == 'ended with 5'


@pytest.mark.slow
def test_the_tutorial_of_transfer_works_without_published_weights(problem):
    found = "print(len(find_weights(network, 'DEFAULT')), 'tensors for', network)"
    path = root / 'nbs/tutorials/04_transfer.ipynb'
    assert json.dumps(found)[1:-1] in path.read_text()
    few = 'print(len(few.train_ds)'
    assert few in path.read_text()
    taught = "run_dir=folder/'taught')"
    assert taught in path.read_text()
    changes = {taught: taught.replace(')', ', limit=500)'), found: "raise ConnectionError('offline')", few: f'assert len(few.train_ds) == 48\n{few}'}  # drawings, though of a part of the set
    assert problem(path, smaller['tutorials/04_transfer'] | changes, compared=False) == ''


@pytest.mark.parametrize('name', smaller)
def test_what_is_made_smaller_is_there(name):
    code = '\n'.join(''.join(o['source']) for o in json.loads(read(f'nbs/{name}.ipynb'))['cells'] if o['cell_type'] == 'code')
    assert [old for old in smaller[name] if old not in code] == []


# --- the first minutes

def first_cells(nb):
    "The first two cells with code of a tutorial or guide: the one that installs, and the one that imports"
    return [''.join(o['source']) for o in nb.cells if o['cell_type'] == 'code'][:2]


for_learners = {o.name: first_cells(o) for o in notebooks if o.name.startswith(('tutorials/', 'guides/')) and o.code}


def test_every_page_with_code_begins_with_the_same_cell():
    assert len(for_learners) > 10 and len({installs for installs, _ in for_learners.values()}) == 1


# a program that runs a cell as Jupyter does, with the package in place or without it, where %pip does what `pip` says
run_first_cell = """
import sys
from IPython.core.interactiveshell import InteractiveShell
cell, pip = sys.argv[1:]
asked = []
def install(line):
    asked.append(line)
    if pip == 'works': del sys.modules['cifar_fastai']
shell = InteractiveShell()
shell.register_magic_function(install, magic_name='pip')
if pip != 'unused': sys.modules['cifar_fastai'] = None
print(repr(shell.run_cell(cell, silent=True).error_in_exec), asked)
"""


@pytest.mark.slow
@pytest.mark.parametrize('pip, said', [
    ('unused', 'None []'), ('works', 'None [\'install -q "cifar_fastai[interpret] @ git+https://github.com/cifar-fastai/cifar_fastai"\']'),
    ('fails', "ImportError('pip could not install cifar_fastai; it says why above.")])
def test_the_first_cell_installs_what_is_missing_or_says_what_failed(pip, said, tmp_path):
    cell, _ = for_learners['tutorials/01_look_at_the_data.ipynb']
    done = subprocess.run([sys.executable, '-c', run_first_cell, cell, pip], cwd=root, capture_output=True, text=True, env={**os.environ, 'IPYTHONDIR': str(tmp_path)})
    assert said in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_the_first_cells_print_no_warning():
    "Nor does `import cifar_fastai.all`; other warnings are left alone"
    code = '\n'.join(['import warnings, cifar_fastai', *(second for name, (_, second) in for_learners.items() if name.startswith('tutorials/')),
                      'import cifar_fastai.all', 'warnings.warn("of the user", FutureWarning)'])
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == f'<string>:{len(code.splitlines())}: FutureWarning: of the user\n'


# --- saved outputs of the tutorials, which show the data variant cifar10-jpeg

@lru_cache
def variant_of(data): return describe_data(find_data(data)).variant


@pytest.mark.slow
@pytest.mark.parametrize('name', [o.name for o in notebooks if o.name.startswith('tutorials/')])
def test_saved_outputs_are_in_step(name, problem):
    "Execute a cell that is named here, and save its output"
    data = os.environ.get('CIFAR_FASTAI_DATA')
    if not data or variant_of(data) != 'cifar10-jpeg': pytest.skip('CIFAR_FASTAI_DATA is not cifar10-jpeg')
    stale = problem(root / 'nbs' / name, {}, data=data, all_cells=False)
    assert not stale, stale


@pytest.mark.slow
def test_stale_outputs_are_found(problem, tmp_path):
    cells = [('print("2,051 bytes")', '2,051 bytes', False), ('print("2,051 bytes")', '2,034 bytes', True), ('print(.43751)', '0.43750', False),
             ('print("0.4375")', '0.4355', True), ('print("/tmp/tmp12ab34cd/a")', '/tmp/tmpzy98xw76/a', False), ('print(1)', '', True),
             ('train = abs', '', False), ('n = 1', '', False), ('n = train (5)', '', False), ('print(n)', '6', False), ('n = 4', '', False), ('print(n)', '5', True)]
    path = notebook(tmp_path / 'a.ipynb', *(source for source, _, _ in cells))
    nb = json.loads(path.read_text())
    for cell, (_, text, _) in zip(nb['cells'], cells): cell['outputs'] = [dict(output_type='stream', name='stdout', text=[text])]
    path.write_text(json.dumps(nb))
    for all_cells in True, False:
        told = re.findall(r'a\.ipynb, cell (\d+):', problem(path, {}, all_cells=all_cells))
        assert told == [str(i) for i, (_, _, stale) in enumerate(cells) if stale]
