"""Makes .venv, with the package and all its tools: the first step of every make target, a moment when nothing changed.

.venv is made anew when the Python, the folder or the choice of versions is another one, and filled again when a file that
says what to install changed. Only the standard library is used, in words that old Pythons can read: who has one gets a
message, no SyntaxError.

Why not `uv sync`: its lock file (1.6 MB) names the host of one package index in more than half of its lines, so it would not do
behind a mirror; and it needs a uv that is there already, where this needs a Python only."""
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

root = Path(__file__).resolve().parent.parent
venv = root / '.venv'
stamp = venv / 'filled-for'
says_what = 'pyproject.toml', 'settings.ini', 'setup.py', 'constraints.txt', 'cifar_fastai/__init__.py'
ask_python = 'import sys; print(sys.version, sys.base_prefix)'
versions = {  # VERSIONS of make: what the installer is told
    'tested': ['-c', 'constraints.txt'],
    'lowest': ['--resolution', 'lowest-direct'],  # of each requirement in settings.ini
    'pre-releases': ['--prerelease', 'allow'],
}


def check_version(version=sys.version_info):
    "Stop with a message if this Python is older than pyproject.toml asks for."
    needs = re.search(r'^requires-python = ">=([\d.]+)"', (root / 'pyproject.toml').read_text(), re.M)[1]
    if tuple(version[:2]) < tuple(int(o) for o in needs.split('.')):
        sys.exit(f'This needs Python {needs} or newer, and {sys.executable} is {version[0]}.{version[1]}. '
                 f'Name another one: make PYTHON=python{needs} ...')


def fits():
    "Whether .venv works, and was made by this Python, in this place."
    try:
        made_by = subprocess.check_output([venv / 'bin/python', '-c', ask_python], universal_newlines=True)
        return made_by.strip() == f'{sys.version} {sys.base_prefix}' and str(venv) in (venv / 'bin/pip').read_text()
    except (OSError, subprocess.CalledProcessError):
        return False


def get_venv_module():
    "Install Debian's package of the venv module, which its python3 comes without, or say how to."
    package = f'python{sys.version_info[0]}.{sys.version_info[1]}-venv'
    if os.geteuid() or not shutil.which('apt-get'):
        sys.exit(f'{sys.executable} comes without its venv module. Install it (Debian: apt-get install {package}), then go on.')
    print(f'{sys.executable} comes without its venv module: installing {package} (3 MB) with apt-get', flush=True)
    subprocess.check_call(['apt-get', 'update', '-qq'])
    subprocess.check_call(['apt-get', 'install', '-qq', '-o=Dpkg::Use-Pty=0', '--no-install-recommends', package],
                          env=dict(os.environ, DEBIAN_FRONTEND='noninteractive'), stdout=subprocess.DEVNULL)


def make():
    "Make an empty .venv."
    if not (importlib.util.find_spec('venv') and importlib.util.find_spec('ensurepip')):
        get_venv_module()
    shutil.rmtree(venv, ignore_errors=True)
    print(f'Making .venv with Python {sys.version.split()[0]}', flush=True)
    python = getattr(sys, '_base_executable', sys.executable)  # this Python may itself run in the .venv just removed
    subprocess.check_call([python, '-m', 'venv', venv])


def installed():
    "How much is in .venv, in words."
    packages = list(venv.glob('lib/python*/site-packages/*.dist-info'))
    size = sum(o.lstat().st_size for o in venv.rglob('*'))
    return f'{len(packages)} packages, {size / 1e9:.1f} GB'


def fill(wanted):
    "Install the package, its tools and what both need into .venv: by uv, which is quick, or by pip if there is no uv."
    print('Installing into .venv: 7 GB, most of it torch; some minutes the first time', flush=True)
    start = time.time()
    # This variable's folder may hold a build of torch for the CPU alone, with which torchvision's usual build does not work.
    env = {k: v for k, v in os.environ.items() if k != 'PIP_FIND_LINKS'}
    run = lambda *args: subprocess.call([str(o) for o in args], cwd=root, env=env)
    python = venv / 'bin/python'
    pip = python, '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet'
    has_uv = run(*pip, '-c', 'constraints.txt', 'uv') == 0
    if not has_uv and wanted != 'tested':
        sys.exit(f'uv finds the {wanted} versions, and could not be installed: see above.')
    install = (venv / 'bin/uv', 'pip', 'install', '--quiet', '--compile-bytecode', '--python', python) if has_uv else pip  # pip compiles unasked
    if run(*install, *versions[wanted], '-e', '.[dev,interpret]'):
        sys.exit('Could not install what settings.ini and constraints.txt name: see above.')
    print(f'Installed {installed()}, in {time.time() - start:.0f} s', flush=True)


def install_hooks():
    "Let git run ruff and nbdev-clean before a commit, where this is a checkout and git is installed."
    if (root / '.git').exists() and shutil.which('git'):
        subprocess.call([venv / 'bin/pre-commit', 'install'], cwd=root, stdout=subprocess.DEVNULL)


def digest():
    "Of everything that decides what is installed."
    return hashlib.sha256(b'\0'.join((root / o).read_bytes() for o in says_what)).hexdigest()


def main(wanted='tested'):
    check_version()
    if wanted not in versions:
        sys.exit(f'VERSIONS={wanted} is unknown. There are {", ".join(versions)}.')
    made_for = f'{wanted} {digest()}'
    if not fits() or stamp.exists() and stamp.read_text().split()[0] != wanted:
        make()
    if not stamp.exists() or stamp.read_text() != made_for:
        fill(wanted)
        install_hooks()
        stamp.write_text(made_for)


if __name__ == '__main__':
    main(*sys.argv[1:])
