"""What is built and installed: wheel, sdist, metadata, requirements, and the environment that make makes."""
import ast
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
from shutil import copyfile

import pytest
import yaml
from nbdev.config import get_config
from packaging.markers import default_environment
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import environment
from test_project import project_files, read, root

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

cfg = get_config(root)
toml = tomllib.loads(read('pyproject.toml'))
project = toml['project']
ini = ConfigParser(delimiters=['='])
ini.read_string(read('settings.ini'))
settings = ini['DEFAULT']
lines = lambda key: settings[key].strip().splitlines()
extras = {key.removesuffix('_requirements'): lines(key) for key in settings if key.endswith('_requirements')}
requirements = [Requirement(o) for o in [*lines('requirements'), *(o for extra in extras.values() for o in extra)]]


def run(*args, **kwargs):
    "What a program prints; it has to succeed."
    done = subprocess.run([str(o) for o in args], capture_output=True, text=True, **kwargs)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- the wheel and the sdist

@pytest.fixture(scope='session')
def built(tmp_path_factory):
    "The sdist, and the wheel made from it, of a copy of the project: with setuptools as it is here, so that nothing is downloaded."
    tmp = tmp_path_factory.mktemp('build')
    for name in project_files():
        (tmp / 'project' / name).parent.mkdir(parents=True, exist_ok=True)
        copyfile(root / name, tmp / 'project' / name)
    run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', tmp / 'dist', tmp / 'project')
    return tmp / 'dist'


@pytest.fixture(scope='session')
def wheel(built):
    path, = built.glob('*.whl')
    return path


@pytest.fixture(scope='session')
def metadata(wheel):
    "The wheel's METADATA; reading it says what is no valid metadata."
    with zipfile.ZipFile(wheel) as z:
        text = z.read(f'{cfg.lib_name}-{cfg.version}.dist-info/METADATA').decode()
    return Metadata.from_email(text, validate=True)


@pytest.fixture(scope='session')
def installed(wheel, tmp_path_factory):
    "A folder into which the wheel was installed, alone."
    target = tmp_path_factory.mktemp('installed')
    run(sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index', '--target', target, wheel)
    return target


def test_wheel_holds_the_package_with_its_tutorials_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {o for o in project_files() if o.startswith(f'{cfg.lib_name}/')}
    tutorials = {o.replace('nbs/', f'{cfg.lib_name}/') for o in project_files() if o.startswith('nbs/tutorials/')}
    assert tutorials and {o for o in names if '.dist-info/' not in o} == modules | tutorials | {f'{cfg.lib_name}/results/training.csv'}
    assert f'{cfg.lib_name}-{cfg.version}.dist-info/licenses/LICENSE' in names
    assert wheel.name == f'{cfg.lib_name}-{cfg.version}-py3-none-any.whl'


def test_sdist_holds_what_a_build_reads(built):
    path, = built.glob('*.tar.gz')
    names = {o.partition('/')[2] for o in tarfile.open(path).getnames()}
    assert {'pyproject.toml', 'settings.ini', 'setup.py', 'README.md', 'LICENSE', f'{cfg.lib_name}/__init__.py', 'benchmarks/results/training.csv'} <= names
    assert not [o for o in names if o.startswith(('tests', 'docs', '.')) or o.startswith('nbs/') and not o.startswith('nbs/tutorials')]


def test_metadata(metadata):
    assert (metadata.name, str(metadata.version)) == (project['name'], cfg.version)
    assert metadata.summary == project['description'] == cfg.description
    assert str(metadata.requires_python) == project['requires-python']
    assert metadata.license_expression == 'Apache-2.0'
    assert metadata.project_urls == project['urls']
    assert metadata.author_email or metadata.author
    assert metadata.keywords == settings['keywords'].split() or metadata.keywords == [','.join(settings['keywords'].split())]


def test_metadata_requires_what_settings_say(metadata):
    expected = {(o.name, str(o.specifier), None) for o in map(Requirement, lines('requirements'))}
    brought = {**extras, **{extra: [*extras[extra], *extras['interpret']] for extra in ('course', 'app')}}  # for what the tutorials, a report and the app show
    expected |= {(o.name, str(o.specifier), extra) for extra in extras for o in map(Requirement, brought[extra])}
    extra_of = lambda o: next((extra for extra in extras if o.marker and f'extra == "{extra}"' in str(o.marker)), None)
    assert {(o.name, str(o.specifier), extra_of(o)) for o in metadata.requires_dist} == expected
    assert sorted(metadata.provides_extra) == sorted(extras)


def test_long_description_is_the_readme_with_links_that_work_on_an_index(metadata):
    assert metadata.description_content_type.startswith('text/markdown')
    links = re.findall(r'\[[^]]*\]\(([^)]+)\)', metadata.description)
    assert links and all(re.match('https://|#', o) for o in links)
    repository = project['urls']['Repository']
    assert re.sub(f'{repository}/(raw|blob)/HEAD/', '', metadata.description).strip() == read('README.md').strip()


def test_setup_makes_links_absolute(tmp_path):
    pytest.importorskip('setuptools', minversion='77')  # as the build takes it
    for name in ['pyproject.toml', 'settings.ini', 'setup.py', 'LICENSE', f'{cfg.lib_name}/__init__.py']:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        copyfile(root / name, tmp_path / name)
    (tmp_path / 'README.md').write_text('![a](docs/images/a.png) ![](http://b/b.png) [c](c.md) [d](#d)\n')
    text = run(sys.executable, 'setup.py', '--quiet', '--long-description', cwd=tmp_path)
    repository = project['urls']['Repository']
    assert text.strip().splitlines()[-1] == f'![a]({repository}/raw/HEAD/docs/images/a.png) ![](http://b/b.png) [c]({repository}/blob/HEAD/c.md) [d](#d)'


def test_readme_links_lead_to_files_of_the_repository():
    "So they work whether or not the site is published"
    links = re.findall(r'\[[^]]*\]\(([^)]+)\)', read('README.md'))
    relative = [o for o in links if not re.match(r'https?://|#', o)]
    assert len(relative) > 10 and not [o for o in relative if not (root / o).exists()]
    assert not [o for o in links if o.startswith(project['urls']['Documentation'])]


def test_installed_package_imports(installed):
    code = f'import {cfg.lib_name} as m; print(m.__version__, m.__file__)'
    version, file = run(sys.executable, '-c', code, cwd=installed).split()
    assert version == cfg.version and Path(file).is_relative_to(installed)


def test_installed_command_runs(installed):
    out = run(sys.executable, installed / 'bin/cifar-fastai', '--help', env={**os.environ, 'PYTHONPATH': str(installed)}, cwd=installed)
    assert 'train' in out


def test_installed_command_copies_the_tutorials(installed, tmp_path):
    env = {**os.environ, 'PYTHONPATH': str(installed), 'CIFAR_FASTAI_HOME': str(tmp_path / 'home')}
    run(sys.executable, installed / 'bin/cifar-fastai', 'course', tmp_path / 'course', env=env, cwd=installed)
    copies = {o.name: o.read_text(encoding='utf-8') for o in (tmp_path / 'course').iterdir()}
    assert set(copies) == {Path(o).name for o in project_files() if o.startswith('nbs/tutorials/')}
    assert not [o for o, text in copies.items() if re.search(r'\]\(\.\./', text)], 'a link that leads nowhere from here'


def test_installed_entry_points_resolve(installed):
    code = ('from importlib.metadata import distributions; d, = distributions(path=["."]); '
            'print(*(f"{o.group}:{o.name}:{type(o.load()).__name__}" for o in d.entry_points))')
    assert set(run(sys.executable, '-c', code, cwd=installed).split()) == {
        'console_scripts:cifar-fastai:function', f'nbdev:{cfg.lib_name}:dict'}


# --- nothing is stated twice

by_hand = [o for o in project_files() if re.fullmatch(
    r'(pyproject\.toml|settings\.ini|setup\.py|MANIFEST\.in|Makefile|docs/[^/]+\.py|\.ci/run|\.github/.*|cifar_fastai/__init__\.py)', o)]


def stated_in(pattern, texts):
    "The files, of {name: text}, in which `pattern` is found; one for each time."
    return [name for name, text in texts.items() for _ in re.findall(pattern, text, re.M)]


def twice(texts):
    "The facts that more than one place among files {name: text} states."
    facts = {'name': rf'^\W*\w+\W*[=:]\s*["\']?{cfg.lib_name}["\']?\s*,?$', 'version': rf'(?<![\d.]){re.escape(cfg.version)}(?![\d.])',
             'description': re.escape(project['description']), 'author': re.escape(settings['author']),
             'license': rf'["\'= ]{re.escape(settings["license"])}\b', **{o: re.escape(url) for o, url in project['urls'].items()},
             **{str(o): rf'(?<![\w-]){o.name}\s*[><=~!]=' for o in requirements}}
    return {fact: files for fact, pattern in facts.items() if len(files := stated_in(pattern, texts)) != 1}


def test_nothing_is_stated_twice():
    assert twice({o: read(o) for o in by_hand}) == {}
    assert not set(project) & set(project['dynamic'])


@pytest.mark.parametrize('fact, again', [('name', f'name = {cfg.lib_name}'), ('version', f"release = '{cfg.version}'"),
                                         ('description', project['description']), ('Repository', project['urls']['Repository']),
                                         (str(requirements[0]), f'    {requirements[0].name}>=1'), ('license', 'license = Apache-2.0')])
def test_what_is_stated_twice_is_found(fact, again):
    assert list(twice({**{o: read(o) for o in by_hand}, 'other': again})) == [fact]


def test_pyproject_holds_what_the_build_and_tools_read():
    assert set(toml) == {'build-system', 'project', 'tool'} and set(toml['tool']) == {'nbdev', 'pytest', 'ruff'}


# --- requirements

def test_requirements_have_lower_bounds_and_no_caps():
    assert [str(o) for o in requirements if [s.operator for s in o.specifier] != ['>=']] == []
    assert len({o.name for o in requirements}) == len(requirements)


def third_party(source, at_once=False):
    "The top-level names that some code imports (at once: when it is imported itself), without the standard library and this package."
    nodes = ast.parse(source).body if at_once else list(ast.walk(ast.parse(source)))
    names = {a.name for o in nodes if isinstance(o, ast.Import) for a in o.names}
    names |= {o.module for o in nodes if isinstance(o, ast.ImportFrom) and not o.level}
    return {o.split('.')[0] for o in names} - sys.stdlib_module_names - {cfg.lib_name}


def test_requirements_are_what_the_library_imports():
    known = packages_distributions()
    def imported(**kwargs):
        names = {o for name in project_files() if re.match(rf'{cfg.lib_name}/.*\.py$', name) for o in third_party(read(name), **kwargs)}
        return {canonicalize_name(known.get(o, [o])[0]) for o in names}
    def listed(*keys): return {canonicalize_name(Requirement(o).name) for key in keys for o in lines(key)}
    by_others = {'alembic', 'sqlalchemy', 'tensorboard', 'onnxscript'}  # MLflow, torch.utils.tensorboard and torch.onnx import them
    needed, optional = listed('requirements'), listed('interpret_requirements', 'heic_requirements', 'parquet_requirements', 'track_requirements',
                                                       'export_requirements', 'app_requirements') - by_others
    assert imported() == needed | optional and not imported(at_once=True) & optional


def pins(python):
    "What constraints.txt pins on Linux with one version of Python: {name: version}."
    here = dict(default_environment(), python_version=python, python_full_version=f'{python}.9', sys_platform='linux',
                platform_system='Linux', os_name='posix', implementation_name='cpython', platform_machine='x86_64')
    found = [Requirement(o) for o in read('constraints.txt').splitlines() if o and not o.startswith('#')]
    found = [o for o in found if not o.marker or o.marker.evaluate(here)]
    assert all([s.operator for s in o.specifier] == ['=='] for o in found)
    assert len({o.name for o in found}) == len(found)
    return {canonicalize_name(o.name): next(iter(o.specifier)).version for o in found}


pythons = yaml.safe_load(read('.github/workflows/test.yml'))['jobs']['test']['strategy']['matrix']['python']


@pytest.mark.parametrize('python', pythons)
def test_constraints_satisfy_the_requirements(python):
    pinned = pins(python)
    assert [str(o) for o in requirements if pinned.get(canonicalize_name(o.name)) not in o.specifier] == []


def test_ci_begins_with_the_oldest_python_allowed():
    assert f'>={pythons[0]}' == project['requires-python']


# --- the environment that make makes

def test_old_python_is_told():
    with pytest.raises(SystemExit, match=r'needs Python 3\.10 or newer.*is 3\.9'):
        environment.check_version((3, 9, 18))
    environment.check_version((3, 10, 0))


def test_missing_venv_module_is_told(monkeypatch):
    monkeypatch.setattr(environment.os, 'geteuid', lambda: 1000)
    with pytest.raises(SystemExit, match=r'without its venv module.*apt-get install python3\.\d+-venv'):
        environment.get_venv_module()


@pytest.mark.parametrize('chosen, gpu, reached, backend', [
    (None, False, True, 'cpu'), (None, False, False, ''), (None, True, True, ''), ('auto', False, False, 'auto'), ('', False, True, '')])
def test_build_of_pytorch(monkeypatch, chosen, gpu, reached, backend):
    monkeypatch.delenv('UV_TORCH_BACKEND', raising=False)
    if chosen is not None:
        monkeypatch.setenv('UV_TORCH_BACKEND', chosen)
    monkeypatch.setattr(environment.sys, 'platform', 'linux')
    monkeypatch.setattr(environment, 'has_gpu', lambda: gpu)
    monkeypatch.setattr(environment.subprocess, 'run', lambda *args, **kwargs: subprocess.CompletedProcess(args, 0 if reached else 1))
    assert environment.torch_backend('uv') == backend


def test_another_build_of_pytorch_fills_the_environment_again(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(environment, 'stamp', tmp_path / 'filled-for')
    monkeypatch.setattr(environment, 'fill', lambda wanted: done.append(os.environ.get('UV_TORCH_BACKEND')))
    monkeypatch.setattr(environment, 'install_hooks', lambda: None)
    monkeypatch.setattr(environment, 'fits', lambda: True)
    for backend in ('auto', 'auto', 'cpu'):
        monkeypatch.setenv('UV_TORCH_BACKEND', backend)
        environment.main()
    assert done == ['auto', 'cpu']


def test_full_disk_is_told():
    with pytest.raises(SystemExit, match=r'\.venv needs 10000000 GB, and .* has [\d.]+ GB free. Free some space'):
        environment.check_space(10**7)


def test_environment_does_nothing_when_nothing_changed(monkeypatch, tmp_path):
    done = []
    monkeypatch.setattr(environment, 'stamp', tmp_path / 'filled-for')
    monkeypatch.setattr(environment, 'make', lambda: done.append('make'))
    monkeypatch.setattr(environment, 'fill', lambda wanted: done.append(f'fill {wanted}'))
    monkeypatch.setattr(environment, 'install_hooks', lambda: None)
    monkeypatch.setattr(environment, 'fits', lambda: 'make' in done)
    for _ in range(2):
        environment.main()
        assert done == ['make', 'fill tested']
    monkeypatch.setattr(environment, 'says_what', ['LICENSE'])
    environment.main()
    assert done == ['make', 'fill tested', 'fill tested']
    for _ in range(2):
        environment.main('lowest')
        assert done[3:] == ['make', 'fill lowest']
    with pytest.raises(SystemExit, match='VERSIONS=newest is unknown. There are tested, lowest, pre-releases.'):
        environment.main('newest')


def test_environment_of_another_python_or_place_does_not_fit(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, 'venv', tmp_path / '.venv')
    assert not environment.fits()
    run(sys.executable, '-m', 'venv', '--without-pip', tmp_path / '.venv')
    (tmp_path / '.venv/bin/pip').write_text(f'#!{tmp_path}/.venv/bin/python\n')
    assert environment.fits()
    monkeypatch.setattr(environment, 'ask_python', 'print("3.9.18 /usr")')
    assert not environment.fits()
    monkeypatch.undo()
    monkeypatch.setattr(environment, 'venv', (tmp_path / '.venv').rename(tmp_path / 'moved'))
    assert not environment.fits()
