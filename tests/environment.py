"""Makes .venv, with the package and all its tools: the first step of every make target; instant if nothing changed.

.venv is made anew if the Python, the folder or VERSIONS changed, and filled again if UV_TORCH_BACKEND or a file that lists
requirements changed. This script uses only the standard library and old syntax, so that an old Python prints a message
rather than a SyntaxError.

UV_TORCH_BACKEND (cpu, auto, cu128 ...) chooses the build of PyTorch, as for uv. If it is not set, a Linux machine without a GPU
gets the CPU build, 4 GB smaller, if PyTorch's own index can be reached.

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


def has_gpu():
    "Whether this machine has the driver of an NVIDIA or AMD GPU, or Windows' in WSL."
    return any(os.path.exists(o) for o in ('/dev/nvidiactl', '/dev/kfd', '/dev/dxg')) or bool(shutil.which('nvidia-smi'))


def torch_backend(uv):
    "The build of PyTorch to ask uv for, '' for the default one."
    if 'UV_TORCH_BACKEND' in os.environ:
        return os.environ['UV_TORCH_BACKEND']
    if not sys.platform.startswith('linux') or has_gpu():
        return ''
    env = dict(os.environ, UV_HTTP_TIMEOUT='5', UV_HTTP_RETRIES='0')
    ask = [str(uv), 'pip', 'compile', '--quiet', '--no-deps', '--no-cache', '--torch-backend', 'cpu', '-']
    reached = subprocess.run(ask, input=b'torch', env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    return 'cpu' if reached else ''


def check_space(gigabytes):
    "Stop with a message if .venv would not fit."
    free = shutil.disk_usage(str(root)).free / 1e9
    if free < gigabytes:
        sys.exit(f'.venv needs {gigabytes} GB, and {root} has {free:.1f} GB free. Free some space; '
                 'without a GPU, UV_TORCH_BACKEND=cpu needs 3 GB.')


def fill(wanted):
    "Install the package, its tools and what both need into .venv: by uv, which is quick, or by pip if there is no uv."
    start = time.time()
    # This variable's folder may hold a build of torch for the CPU alone, with which torchvision's usual build does not work.
    env = {k: v for k, v in os.environ.items() if k != 'PIP_FIND_LINKS'}
    run = lambda *args: subprocess.call([str(o) for o in args], cwd=root, env=env)
    python = venv / 'bin/python'
    pip = python, '-m', 'pip', '--disable-pip-version-check', 'install', '--quiet'
    has_uv = run(*pip, '-c', 'constraints.txt', 'uv') == 0
    if not has_uv and wanted != 'tested':
        sys.exit(f'uv finds the {wanted} versions, and could not be installed: see above.')
    backend = torch_backend(venv / 'bin/uv') if has_uv else ''
    size = 3 if backend == 'cpu' else 7
    check_space(size)
    build = "PyTorch's CPU build" if backend == 'cpu' else 'PyTorch'
    print(f'Installing into .venv: about {size} GB with {build}; some minutes the first time', flush=True)
    install = (venv / 'bin/uv', 'pip', 'install', '--quiet', '--compile-bytecode', '--python', python) if has_uv else pip  # pip compiles unasked
    install_all = lambda backend: run(*install, *(['--torch-backend', backend] if backend else []), *versions[wanted], '-e', '.[dev,interpret,heic,weights,parquet,track,tune,export,app]')
    failed = install_all(backend)
    if failed and backend and 'UV_TORCH_BACKEND' not in os.environ:
        print("Trying again with PyTorch's default build", flush=True)
        failed = install_all('')
    if failed:
        sys.exit('Could not install the requirements in settings.ini and constraints.txt: the message above says why. Without a '
                 'connection, point UV_INDEX_URL or UV_FIND_LINKS at packages that you have.')
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
    made_for = f'{wanted} {os.environ.get("UV_TORCH_BACKEND", "")} {digest()}'
    if not fits() or stamp.exists() and stamp.read_text().split()[0] != wanted:
        make()
    if not stamp.exists() or stamp.read_text() != made_for:
        fill(wanted)
        install_hooks()
        stamp.write_text(made_for)


if __name__ == '__main__':
    main(*sys.argv[1:])
