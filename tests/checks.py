"Every check of the project, one after the other, each with its time; names choose: `python tests/checks.py notebooks pytest`."
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

root = Path(__file__).resolve().parent.parent
tools = Path(sys.executable).parent
cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def run(*command, cwd=root, **env):
    "Whether `command` succeeds; the programs of this environment come first."
    path = os.pathsep.join([str(tools), os.environ.get('PATH', '')])
    return subprocess.call(command, cwd=cwd, env={**os.environ, 'PATH': path, **env}) == 0


def sources(project):
    "The notebooks and the library of `project`: {name: content}."
    files = [o for pattern in ('nbs/**/*.ipynb', 'cifar_fastai/**/*.py') for o in project.glob(pattern)]
    return {o.relative_to(project).as_posix(): o.read_bytes() for o in files if '.ipynb_checkpoints' not in o.parts}


def changed_by_nbdev(project=root):
    "The files that exporting and cleaning all notebooks would change, make or leave without a notebook, found in a copy."
    before = sources(project)
    with TemporaryDirectory() as tmp:
        copy = Path(tmp)
        kept = {name: content for name, content in before.items() if name.startswith('nbs/') or name.endswith('/__init__.py')}
        for name, content in {**kept, 'pyproject.toml': (project / 'pyproject.toml').read_bytes()}.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes(content)
        if not all(run(o, cwd=copy) for o in ('nbdev-export', 'nbdev-clean')):
            raise RuntimeError('nbdev-export or nbdev-clean failed: see above')
        after = sources(copy)
    return sorted(o for o in before.keys() | after.keys() if before.get(o) != after.get(o))


def notebooks():
    "The library is what the notebooks export, and the notebooks are clean"
    changed = changed_by_nbdev()
    for name in changed:
        print(f'{name} is not clean: run nbdev-clean' if name.startswith('nbs/') else
              f'{name} is not what the notebooks export: run nbdev-export')
    return not changed


def nbdev_test():
    "The notebooks run, on the practice set"
    workers = min(cpus, 8)
    return run('nbdev-test', '--flags', 'slow', '--n-workers', str(workers), '--timing', MPLBACKEND='agg',
               CIFAR_FASTAI_DATA='synthetic', OMP_NUM_THREADS=str(cpus // workers))


def readme():
    "README.md is what nbs/index.ipynb makes"
    return run(sys.executable, 'docs/readme.py', '--check')


def pytest():
    "The tests"
    has_gpu = Path('/dev/nvidia0').exists()
    return run(sys.executable, '-m', 'pytest', '--durations=10', *['-m', 'not network'] * has_gpu)


checks = {'notebooks': notebooks, 'nbdev-test': nbdev_test, 'readme': readme, 'pytest': pytest}


def main(names):
    if unknown := set(names) - set(checks):
        sys.exit(f'Unknown check {sorted(unknown)[0]!r}. There are {", ".join(checks)}.')
    failed = []
    for name in names or checks:
        print(f'\n=== {name}: {checks[name].__doc__}', flush=True)
        start = time.time()
        if not checks[name]():
            failed.append(name)
        if name != 'pytest':  # which ends with a line of its own
            print(f'=== {name} {"FAILED" if name in failed else "passed"} in {time.time() - start:.0f} s', flush=True)
    if failed:
        sys.exit(f'=== FAILED: {", ".join(failed)}')


if __name__ == '__main__':
    main(sys.argv[1:])
