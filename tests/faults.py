"""Kill everything that writes at random moments, run the same command again, and compare what is there in the end with what one
that was not killed leaves: `python tests/faults.py --kills 200`

With --disks N, a disk is full or becomes read-only instead, N times; that mounts small file systems in memory, which only root may.
--record adds the counts to benchmarks/results/faults.csv."""
import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # processes are forked, which threads do not survive
os.environ.setdefault('MPLBACKEND', 'Agg')

from cifar_fastai import course, data, evaluation, experiments, inference, report, sources, synthetic, training, tuning
from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.runs import is_run
from small_runs import kinds, small


# --- what is killed: each function ends right if it is called again

def go_on(recipe, folder, practice):
    run = folder/'run'
    if not is_run(run): training.train(recipe, source=practice, run_dir=run, limit=96, checkpoint_minutes=0)
    else:
        try: training.train(resume=run, checkpoint_minutes=0)
        except ValueError as e:
            if 'is finished' not in str(e): raise

def grid(folder, practice): experiments.run_grid(small, 2, folder/'grid', source=practice, limit=96)

def search(folder, practice): tuning.tune(small, dict(lr='1e-3..1e-1 log'), 2, folder/'search', source=practice, limit=96)

def practice_set(folder, practice): synthetic.make_synthetic(folder/'set', n_train=10, n_test=5)

def archive(folder, practice): sources.find_data(practice.with_suffix('.tgz'))

def cache(folder, practice):
    data._worth_keeping = 0
    dls = cifar10_dataloaders(practice, bs=20)
    for dl in dls: list(dl)

def classifier(folder, practice): inference.save_classifier(training.load_run(practice.parent/'trained', practice), folder/'classifier')

def evaluated(folder, practice):
    if not (folder/'run').exists(): shutil.copytree(practice.parent/'trained', folder/'copy', dirs_exist_ok=True).rename(folder/'run')
    learn = training.load_run(folder/'run', practice)
    evaluation.evaluate(learn, 'test')
    report.write_report(learn, split='test')

def tutorials(folder, practice): course.copy_tutorials(folder/'course')

writers = dict(grid=grid, search=search, synthetic=practice_set, archive=archive, cache=cache, classifier=classifier, evaluation=evaluated, course=tutorials)
jobs = {f'train {name}': partial(go_on, recipe) for name,(recipe,_) in kinds.items()} | writers


tuning._beat = 1  # seconds, after which a worker that was killed is noticed

# --- killing

def begin(job, folder, practice): # -> its process
    "Do a job in a process of its own; what goes wrong is written to a file"
    pid = os.fork()
    if pid: return pid
    code = 1
    try:
        tempfile.tempdir = os.environ['TMPDIR'] = str(folder/'tmp')
        os.environ['CIFAR_FASTAI_HOME'] = str(folder/'home')
        for name in ('tmp', 'home'): (folder/name).mkdir(exist_ok=True)
        with open(os.devnull, 'w') as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter('ignore')
            job(folder, practice)
        code = 0
    except BaseException as e: (folder.parent/f'{folder.name}.error').write_text(f'{type(e).__name__}: {e}')
    finally: os._exit(code)

def end(pid, deadline=None): # -> exit code; None if it was killed
    "Wait for a process, and kill it at the deadline"
    while True:
        done,status = os.waitpid(pid, os.WNOHANG)
        if done: return None if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        if deadline and time.perf_counter() > deadline: os.kill(pid, signal.SIGKILL)
        time.sleep(.001)

def timed(job, folder, practice): # -> seconds
    folder.mkdir()
    started = time.perf_counter()
    if end(begin(job, folder, practice)): raise RuntimeError((folder.parent/f'{folder.name}.error').read_text())
    return time.perf_counter() - started

def content(folder): # -> name of each file -> digest of what it holds; folders too
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() if f.is_file() else '' for f in folder.rglob('*')}

def expected(job, folder, practice): # -> content, None for what differs from run to run, such as times; seconds
    seconds = timed(job, folder/'first', practice),timed(job, folder/'second', practice)
    first,second = content(folder/'first'),content(folder/'second')
    assert first.keys() == second.keys(), first.keys() ^ second.keys()
    return {name: digest if second[name] == digest else None for name,digest in first.items()},min(seconds)

def difference(wanted, folder): # -> what is wrong, '' if nothing
    found = content(folder)
    if found.keys() != wanted.keys(): return f'files differ: {sorted(found.keys() ^ wanted.keys())[:5]}'
    wrong = [name for name,digest in wanted.items() if digest and found[name] != digest]
    return f'other content: {wrong[:5]}' if wrong else ''

def killed(job, folder, practice, seconds, chance): # -> number of kills
    "Kill a job, up to three times; after the last time, two processes begin at once now and then"
    kills = 0
    for _ in range(chance.randint(1, 3)):
        pid = begin(job, folder, practice)
        kills += end(pid, time.perf_counter() + chance.uniform(0, seconds)) is None
    n_last = 2 if chance.random() < .2 else 1
    for pid in [begin(job, folder, practice) for _ in range(n_last)]: end(pid)
    return kills

def on_a_bad_disk(job, folder, practice, seconds, size, chance):
    "A disk that is full, or read-only from some moment on, and then is not"
    def mount(*options): return subprocess.run(['mount', '-t', 'tmpfs', '-o', ','.join(options), 'tmpfs', folder], stderr=subprocess.DEVNULL).returncode == 0
    full = chance.random() < .5
    if not mount(f'size={chance.randint(1, max(2, size//1024))}k' if full else 'size=1g'): raise PermissionError('Only root may mount file systems.')
    pid = begin(job, folder, practice)
    if not full:
        time.sleep(chance.uniform(0, seconds))
        while not mount('remount', 'ro') and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None: pass # a file is open
    end(pid)
    mount('remount', 'rw', 'size=1g')
    end(begin(job, folder, practice))
    kept = shutil.copytree(folder, folder.parent/'kept')
    subprocess.run(['umount', folder], check=True)
    folder.rmdir()
    kept.rename(folder)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=200, metavar='N', help='at least so many (default: 200)')
    parser.add_argument('--disks', type=int, default=0, metavar='N', help='disks that are full or read-only (default: 0)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--only', nargs='+', choices=jobs, default=list(jobs), metavar='JOB', help=f'some of {", ".join(jobs)}')
    parser.add_argument('--record', action='store_true')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp: kills,disks,wrong = work(Path(tmp), args, random.Random(args.seed))
    print(json.dumps(dict(kills=sum(kills.values()), disks=sum(disks.values()), wrong=len(wrong))))
    if args.record: record(args, kills, disks, wrong)
    return len(wrong) > 0

def record(args, kills, disks, wrong):
    sys.path.append(str(Path(__file__).parents[1]/'benchmarks'))
    from side_by_side import add_row, machine
    for name in args.only:
        add_row('faults', dict(job=name, kills=kills[name], disks=disks[name], wrong=sum(w.startswith(f'{name}:') for w in wrong), seed=args.seed,
                               **machine(), command=f'python tests/faults.py --kills {args.kills} --disks {args.disks} --seed {args.seed}'))

def work(tmp, args, chance): # -> kills and bad disks of each job, and what went wrong
    practice = tmp/'practice'
    def prepare(folder, _):
        synthetic.make_synthetic(practice, n_train=20, n_test=5)
        training.train(small, source=practice, run_dir=tmp/'trained', limit=96)
    timed(prepare, tmp/'prepare', None)
    with tarfile.open(practice.with_suffix('.tgz'), 'w:gz') as tar: tar.add(practice, 'practice')
    wanted,wrong,kills,disks = {},[],dict.fromkeys(args.only, 0),dict.fromkeys(args.only, 0)
    for name in args.only:
        (tmp/name).mkdir()
        wanted[name] = expected(jobs[name], tmp/name, practice)
    n = 0
    while sum(kills.values()) < args.kills or sum(disks.values()) < args.disks:
        name = args.only[n % len(args.only)]
        n += 1
        folder = tmp/name/str(n)
        folder.mkdir()
        left,seconds = wanted[name]
        if sum(kills.values()) < args.kills: kills[name] += killed(jobs[name], folder, practice, seconds, chance)
        else:
            on_a_bad_disk(jobs[name], folder, practice, seconds, sum(f.stat().st_size for f in (tmp/name/'first').rglob('*')), chance)
            disks[name] += 1
        problem = difference(left, folder)
        if problem:
            error = tmp/name/f'{n}.error'
            wrong.append(f'{name}: {problem}' + (f' ({error.read_text()[:300]})' if error.exists() else ''))
            print(wrong[-1], flush=True)
        shutil.rmtree(folder)
    return kills,disks,wrong

if __name__ == '__main__': sys.exit(main())
