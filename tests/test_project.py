"""The rules of the project: which module may use which, how notebooks and exported code are written, what no file holds.

A rule is a function that returns a list of what breaks it: it is tried on the project, and on a bad example it must find."""
import ast
import html
import json
import os
import re
import subprocess
import sys
import threading
import time
import tokenize
from fnmatch import fnmatch
from functools import lru_cache
from io import StringIO
from pathlib import Path

import pytest
from nbdev.config import get_config

from cifar_fastai.course import exercises, tutorials
from cifar_fastai.models import list_models
from cifar_fastai.recipes import list_recipes
from conftest import turn
from notebook_cells import Cell, functions, imports, root

cfg = get_config(root)
package = cfg.lib_name
tools = Path(sys.executable).parent


def read(path):
    return (root / path).read_text(encoding='utf-8')


def expect_none(problems):
    problems = list(problems)
    assert not problems, '\n'.join(['', *problems])


def sources(project):
    "The notebooks and the library of `project`: {name: content}."
    files = [o for pattern in ('nbs/**/*.ipynb', 'cifar_fastai/**/*.py') for o in project.glob(pattern)]
    return {o.relative_to(project).as_posix(): o.read_bytes() for o in files if '.ipynb_checkpoints' not in o.parts}


# --- the notebooks

class Notebook:
    "A notebook's cells, and what nbdev's directives say of them."
    def __init__(self, path, cells=None):
        self.path = Path(path)
        self.cells = json.loads(read(path))['cells'] if cells is None else cells
        self.name = self.path.relative_to('nbs').as_posix()
        self.code = [Cell(''.join(o['source'])) for o in self.cells if o['cell_type'] == 'code']
        self.layer = int(m[0]) if (m := re.match(r'\d+(?=_)', self.name)) else None  # tutorials and the index have none
        self.module = next((o.directives['default_exp'] for o in self.code if 'default_exp' in o.directives), None)

    def __repr__(self):
        return self.name


notebooks = [Notebook(o) for o in sorted(sources(root)) if o.endswith('.ipynb')]
of_modules = [o for o in notebooks if o.module]
layers = {o.module: o.layer for o in of_modules}
modules = sorted(o for o in sources(root) if o.endswith('.py') and Path(o).stem not in ('__init__', '_modidx'))


def form_problems(nb):
    "A notebook begins with a title and a subtitle, and nothing else, which the site would drop; one with a number says which module it exports."
    first = ''.join(nb.cells[0]['source']) if nb.cells else ''
    if not re.fullmatch(r'# \S.*\n+> \S.*\n*', first):
        yield f'{nb}: its first cell is no "# title" with a "> subtitle" under it, and nothing else'
    if nb.layer is not None and nb.module is None:
        yield f'{nb}: no #| default_exp'


def import_cell_problems(nb):
    "A cell that imports does nothing else: nbdev runs such cells when it makes the docs, where the rest would fail or take long."
    for cell in nb.code:
        if cell.directives.get('eval') == 'false':
            continue
        nodes = cell.tree.body if cell.exported else ast.walk(cell.tree)
        if any(isinstance(o, imports) for o in nodes) and not all(isinstance(o, imports) for o in cell.tree.body):
            yield f'{nb}: a cell imports and does more:\n{ast.unparse(cell.tree)}'


def cell(source, cell_type='code'):
    return dict(cell_type=cell_type, source=source)


@pytest.mark.parametrize('nb', notebooks, ids=repr)
def test_notebook_form(nb):
    expect_none(form_problems(nb))


@pytest.mark.parametrize('cells', [[], [cell('# data', 'markdown'), cell('#| default_exp data')],
                                   [cell('# data\n\n> Where images come from', 'markdown'), cell('1 + 1')],
                                   [cell('# data\n\n> Where images come from\n\nMore.', 'markdown'), cell('#| default_exp data')]])
def test_notebook_form_is_checked(cells):
    assert list(form_problems(Notebook('nbs/03_data.ipynb', cells)))


@pytest.mark.parametrize('nb', notebooks, ids=repr)
def test_import_cells_are_pure(nb):
    expect_none(import_cell_problems(nb))


@pytest.mark.parametrize('source, pure', [
    ('import os\nx = 1', False), ('def f():\n    import os', False), ('#| export\nimport os\nx = 1', False),
    ('import os\nfrom sys import path', True), ('#| export\ndef f():\n    import os', True), ('x = 1', True),
    ('%matplotlib inline\nx = 1', True)])
def test_import_cells_are_checked(source, pure):
    assert bool(list(import_cell_problems(Notebook('nbs/03_data.ipynb', [cell(source)])))) != pure


def test_every_module_has_one_notebook():
    assert sorted(layers) == sorted(o.module for o in of_modules), 'two notebooks export the same module'
    assert sorted(f'{package}/{o.replace(".", "/")}.py' for o in layers) == modules


# --- the layers

def used_modules(tree):
    "The modules of the package that some code imports, wherever it does."
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used |= {o.name.removeprefix(package + '.') for o in node.names if o.name.startswith(package + '.')}
        elif isinstance(node, ast.ImportFrom):
            name = f'{package}.{node.module or ""}'.rstrip('.') if node.level else node.module
            if name == package:
                used |= {o.name for o in node.names} & layers.keys()
            elif name.startswith(package + '.'):
                used.add(name.removeprefix(package + '.'))
    return used


def layer_problems(who, layer, tree):
    "A module and its notebook import only modules with a lower number."
    for used in sorted(used_modules(tree)):
        if used not in layers:
            yield f'{who} imports {used}, which no notebook exports'
        elif layers[used] >= layer:
            yield f'{who}, layer {layer}, imports {used}, layer {layers[used]}'


@pytest.mark.parametrize('nb', of_modules, ids=repr)
def test_layers(nb):
    module = f'{package}/{nb.module.replace(".", "/")}.py'
    expect_none(layer_problems(module, nb.layer, ast.parse(read(module))))
    for cell in nb.code:  # a notebook may import the module that it makes
        expect_none(o for o in layer_problems(nb, nb.layer, cell.tree) if f'imports {nb.module}, ' not in o)


@pytest.mark.parametrize('source', ['from .{} import x', 'from {p}.{} import x', 'import {p}.{}', 'from . import {}',
                                    'from {p} import {}', 'def f():\n    from .{} import x'])
def test_layers_are_checked(source):
    lowest, highest = min(layers, key=layers.get), max(layers, key=layers.get)
    problems = lambda name, layer: list(layer_problems('it', layer, ast.parse(source.format(name, p=package))))
    assert problems(highest, layers[lowest]) and problems(highest, layers[highest])
    assert not problems(lowest, layers[highest])


def private_problems(who, tree):
    "No private name crosses modules: what two of them need is public in the lower one."
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or '').startswith(package)):
            yield from (f'{who} imports {o.name}' for o in node.names if o.name.startswith('_') and not o.name.endswith('__'))
        elif isinstance(node, ast.Attribute) and node.attr.startswith('_') and not node.attr.endswith('__'):
            if isinstance(node.value, ast.Name) and node.value.id in layers: yield f'{who} uses {node.value.id}.{node.attr}'


run_files = {'recipe.json', 'run.json', 'history.csv', 'recalls.csv', 'metrics.json'}


def file_problems(who, tree):
    "One module writes files whole and parses JSON, and one knows the files of a run."
    module = who.partition('/')[2].removesuffix('.py')
    for node in ast.walk(tree):
        said = ast.unparse(node.func) if isinstance(node, ast.Call) else ''
        if module != 'files' and said in ('os.replace', 'os.rename', 'json.load', 'json.loads'):
            yield f'{who} calls {said}: files has atomic_write, read_json and parse_json'
        elif module != 'files' and said.endswith('.replace') and len(node.args) + len(node.keywords) == 1 and not node.keywords:
            yield f'{who} calls {said}: files has atomic_file'
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if module != 'files' and node.value.endswith('.part'): yield f'{who} writes beside its target: files has atomic_file'
            if module != 'runs' and node.value in run_files: yield f'{who} opens {node.value}: runs has Run'


@pytest.mark.parametrize('rule', [private_problems, file_problems])
@pytest.mark.parametrize('module', modules)
def test_what_two_modules_need_is_in_a_third(module, rule):
    expect_none(rule(module, ast.parse(read(module))))


@pytest.mark.parametrize('rule, source', [
    (private_problems, 'from .data import _sizes'), (private_problems, f'from {package}.data import _sizes'),
    (private_problems, 'def f():\n    from . import data\n    data._sizes()'),
    (file_problems, 'os.replace(a, b)'), (file_problems, 'part.replace(path)'), (file_problems, 'json.loads(path.read_text())'),
    (file_problems, 'part = path.with_name("a" + ".part")'), (file_problems, 'part = f"{name}.part"'), (file_problems, 'folder/"run.json"')])
def test_what_two_modules_need_is_checked(rule, source):
    assert list(rule(f'{package}/it.py', ast.parse(source)))


@pytest.mark.parametrize('source', ['text.replace("a", "b")', 'replace(stage, epochs=1)', 'self._sizes', 'from .data import sizes', 'json.dumps({})',
                                    'print("it is in run.json, say")', 'from . import __version__'])
def test_what_is_allowed(source):
    assert not [*private_problems(f'{package}/it.py', ast.parse(source)), *file_problems(f'{package}/it.py', ast.parse(source))]


@pytest.mark.parametrize('module', ['files', 'synthetic', 'recipes', 'cli'])
def test_imports_no_torch(module):
    code = f'import sys, {package}.{module}; print(sorted({{"torch", "fastai"}} & sys.modules.keys()))'
    assert subprocess.check_output([sys.executable, '-c', code], cwd=root, text=True).strip() == '[]'


# --- exported code

@lru_cache
def comment_lines(source):
    "The numbers of the lines that have a comment."
    return {o.start[0] for o in tokenize.generate_tokens(StringIO(source).readline) if o.type == tokenize.COMMENT}


def arguments(function):
    "The parameters whose meaning a reader has to be told: not self, cls, *args and **kwargs."
    args = function.args.posonlyargs + function.args.args + function.args.kwonlyargs
    return [o for o in args if o.arg not in ('self', 'cls') and not o.arg.startswith('_')]


def public(source):
    "What a module exports: (name, node) of its functions and classes."
    tree = ast.parse(source)
    names = next((ast.literal_eval(o.value) for o in tree.body
                  if isinstance(o, ast.Assign) and getattr(o.targets[0], 'id', '') == '__all__'), [])
    return [(o.name, o) for o in tree.body if isinstance(o, (*functions, ast.ClassDef)) and o.name in names]


def docment_problems(source):
    "Exported functions and classes have a docstring, and their parameters an annotation or a comment."
    for name, node in public(source):
        if not ast.get_docstring(node):
            yield f'{name} has no docstring'
        made = [node] if isinstance(node, functions) else [o for o in node.body if getattr(o, 'name', '') == '__init__']
        yield from (f'{name}: parameter {arg.arg} has no annotation and no comment' for function in made
                    for arg in arguments(function) if not arg.annotation and arg.lineno not in comment_lines(source))


def star_problems(source):
    "No star imports."
    return [ast.unparse(o) for o in ast.walk(ast.parse(source)) if isinstance(o, ast.ImportFrom) and o.names[0].name == '*']


def header_problems(source):
    "Modules are made by nbdev, and say from which notebook."
    m = re.search(r'^# AUTOGENERATED! DO NOT EDIT! File to edit: \.\./(nbs/\S+\.ipynb)\.$', source, re.M)
    if not m or not (root / m[1]).exists():
        yield 'not exported from a notebook'


rules = [docment_problems, star_problems, header_problems]


@pytest.mark.parametrize('rule', rules)
@pytest.mark.parametrize('module', modules)
def test_exported_code(module, rule):
    expect_none(rule(read(module)))


@pytest.mark.parametrize('rule, source', [
    (docment_problems, '__all__ = ["f"]\ndef f(): return 1'),
    (docment_problems, '__all__ = ["f"]\ndef f(x):\n    "Do it."'),
    (docment_problems, '__all__ = ["A"]\nclass A:\n    "It."\n    def __init__(self, x): self.x = x'),
    (star_problems, 'from os import *'),
    (star_problems, 'def f():\n    if 1: from .data import *'),
    (header_problems, 'x = 1'),
    (header_problems, '# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/99_none.ipynb.')])
def test_exported_code_is_checked(rule, source):
    assert list(rule(source))


@pytest.mark.parametrize('source', ['def f(x): return x', '__all__ = ["f"]\ndef f(\n    x, # pixels\n    y:int=1,\n    **kwargs):\n    "Do it."'])
def test_docments_may_be_comments(source):
    assert not list(docment_problems(source))


# --- all files

def tracked():
    "The files that git tracks or would take in."
    listed = subprocess.check_output(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=root, stderr=subprocess.DEVNULL)
    return [root / o for o in listed.decode().split('\0') if o]


def not_ignored():
    "The files that no pattern of .gitignore holds, for a copy without git."
    patterns = ['.git', *(o.rstrip('/') for o in read('.gitignore').splitlines() if o and not o.startswith('#'))]
    ignored = lambda path: any(fnmatch('/' + path.relative_to(root).as_posix() if o[0] == '/' else path.name, o) for o in patterns)
    for folder, folders, files in os.walk(root):
        folders[:] = [o for o in folders if not ignored(Path(folder) / o)]
        yield from (Path(folder) / o for o in files if not ignored(Path(folder) / o))


@lru_cache
def project_files():
    "The names of the project's files."
    try:
        files = tracked()
    except (OSError, subprocess.CalledProcessError):
        files = not_ignored()
    return sorted(o.relative_to(root).as_posix() for o in files if o.is_file())


# put together here, so that this file does not hold what it looks for
package_hosts = [*(f'{a}.{b}' for a, b in [('pypi', 'org'), ('pythonhosted', 'org'), ('pytorch', 'org/whl'), ('anaconda', 'org'),
                                           ('astral', 'sh'), ('deb.debian', 'org')])]
machine_paths = [f'/{o}/' for o in ('work', 'root', 'home', 'Users')]
forbidden = re.compile('|'.join([*map(re.escape, package_hosts), *(rf'(?<![\w.)}}-]){o}' for o in machine_paths)]))
beside = '/'.join(['shared', 'data'])


def machine_problems(text):
    "Nothing names the host of a package registry, or a folder of one machine."
    return [text[max(0, m.start() - 40):m.end() + 40] for m in forbidden.finditer(text)]


def test_files_are_found_without_git():
    assert sorted(o.relative_to(root).as_posix() for o in not_ignored()) == project_files()


def test_no_file_is_large():
    sizes = {o: (root / o).stat().st_size for o in project_files()}
    expect_none(f'{name} has {size:,} bytes' for name, size in sizes.items() if size > 1_500_000)


def test_no_file_is_tied_to_a_machine():
    texts = {o: (root / o).read_bytes().decode('utf-8', 'replace') for o in project_files()}
    expect_none(f'{name}: ...{problem}... Take it out; in a notebook, clear the output of that cell.' for name, text in texts.items() for problem in machine_problems(text))
    assert [name for name, text in texts.items() if beside in text] == ['.ci/run']


@pytest.mark.parametrize('text, fine', [
    (f'see https://{package_hosts[0]}/simple', False), (f'open({machine_paths[0]!r})', False), (f'"{machine_paths[2]}me/data"', False),
    (f'https://example.com{machine_paths[2]}page', True), (f'at{machine_paths[1]}of', True), ('a/b/c', True)])
def test_machine_paths_are_checked(text, fine):
    assert bool(machine_problems(text)) != fine


def test_flags_of_nbdev_are_markers(pytestconfig):
    markers = {o.partition(':')[0] for o in pytestconfig.getini('markers')}
    assert set(cfg.tst_flags.split()) < markers


def test_ruff_finds_nothing():
    done = subprocess.run([tools / 'ruff', 'check', '--no-cache', '.'], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_test_that_wants_to_be_alone_is(tmp_path):
    fcntl = pytest.importorskip('fcntl')
    order, may_end = [], threading.Event()

    def run(name, alone):
        with turn(tmp_path, alone):
            order.append(f'{name} begins')
            may_end.wait()
            order.append(f'{name} ends')

    def until(condition):
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end
            time.sleep(.01)

    def is_taken():  # the place of the next one: by `alone`, which waits for `a`
        with open(tmp_path / 'next', 'w') as file:
            try: fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError: return True

    threads = [threading.Thread(target=run, args=o) for o in [('a', False), ('alone', True), ('b', False)]]
    for thread, has_begun in zip(threads, [lambda: order == ['a begins'], is_taken, lambda: True]):
        thread.start()
        until(has_begun)
    assert order == ['a begins']
    may_end.set()
    for thread in threads: thread.join()
    assert order == ['a begins', 'a ends', 'alone begins', 'alone ends', 'b begins', 'b ends']


# --- what is made of the notebooks

def changed_by_nbdev(project, copy):
    "The files that exporting and cleaning all notebooks would change, make or leave without a notebook, found in the folder `copy`."
    before = sources(project)
    kept = {name: content for name, content in before.items() if name.startswith('nbs/') or name.endswith('/__init__.py')}
    for name, content in {**kept, 'pyproject.toml': (project / 'pyproject.toml').read_bytes()}.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(content)
    for command in 'nbdev-export', 'nbdev-clean':
        subprocess.run([tools / command], cwd=copy, check=True)
    after = sources(copy)
    return sorted(o for o in before.keys() | after.keys() if before.get(o) != after.get(o))


def test_the_library_is_what_the_notebooks_export_and_they_are_clean(tmp_path):
    assert changed_by_nbdev(root, tmp_path) == [], 'run nbdev-export and nbdev-clean'


def test_stale_files_are_found(tmp_path):
    nb = dict(cells=[dict(cell_type='code', execution_count=7, id='a', metadata={}, outputs=[], source='#| default_exp one\n'),
                     dict(cell_type='code', execution_count=None, id='b', metadata={}, outputs=[], source='#| export\nx = 1')],
              metadata={}, nbformat=4, nbformat_minor=5)
    files = {'pyproject.toml': '[project]\nname = "tiny"\n[tool.nbdev]\nlib_path = "cifar_fastai"\n',
             'nbs/00_one.ipynb': json.dumps(nb), 'cifar_fastai/__init__.py': '__version__ = "1"\n', 'cifar_fastai/gone.py': 'y = 1\n'}
    for name, text in files.items():
        (tmp_path / 'project' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'project' / name).write_text(text)
    assert changed_by_nbdev(tmp_path / 'project', tmp_path / 'copy') == ['cifar_fastai/_modidx.py', 'cifar_fastai/gone.py', 'cifar_fastai/one.py', 'nbs/00_one.ipynb']
    assert {o: (tmp_path / 'project' / o).read_text() for o in files} == files


def shown(notebook, source):
    "What the cell of a notebook that has `source` in it shows, as saved"
    cells = json.loads((root / 'nbs' / f'{notebook}.ipynb').read_text(encoding='utf-8'))['cells']
    found = [o for o in cells if o['cell_type'] == 'code' and source in ''.join(o['source'])]
    assert len(found) == 1, f'{len(found)} cells of {notebook} have {source!r} in them'
    texts = [o.get('text') or o.get('data', {}).get('text/html') or o.get('data', {}).get('text/markdown') or o.get('data', {}).get('text/plain', '') for o in found[0]['outputs']]
    return html.unescape('\n'.join(''.join(o) for o in texts))


@pytest.mark.parametrize('notebook, source, names', [
    ('10_cli', "shell('recipes');", [o for o in list_recipes() if not o.startswith('ladder_')]),  # as they are before any test registers one
    ('10_cli', "shell('course');", [*exercises().title, *tutorials().title]),
    ('01_models', 'costs = model_table()', list_models()),
    ('01_recipes', 'by_purpose = recipes_by_purpose()', list_recipes()),
    ('07_probing', 'for name in list_models()', list_models()),
    *(('08_exercises', f'e.tutorial == {n}]', list(exercises(n).title)) for n in range(1, len(tutorials()) + 1)),
    ('09_course', "tutorials().set_index('tutorial')", list(tutorials().about)),
], ids=lambda o: o if isinstance(o, str) else '')
def test_saved_lists_are_whole(notebook, source, names):
    "A notebook that was not executed since a name was added shows a list without it"
    text = shown(notebook, source)
    missing = [o for o in names if not re.search(rf'(?<!\w){re.escape(o)}(?!\w)', text)]
    assert not missing, f'nbs/{notebook}.ipynb shows an old list, without {missing}. Run nbdev-export, execute the cell with {source!r}, and save its output.'
