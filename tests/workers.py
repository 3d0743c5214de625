"""Search a small space with two workers, one of which is killed again and again, and count what is there in the end:
`python tests/workers.py --trials 28 --kills 10 --storage postgresql+psycopg://postgres@localhost/postgres`"""
import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1')  # processes are forked, which threads do not survive

import optuna
import optuna.samplers

from cifar_fastai import tuning
from cifar_fastai.runs import Run
from cifar_fastai.synthetic import make_synthetic
from small_runs import tiny

tuning._beat = 1  # seconds
quick = tiny.change(model='ladder_0', augment='none', bs=16)
space = dict(lr='1e-4..1e-1 log', optimizer='sgd,adamw')

def worker(args, tmp): # -> its process
    "Search in a process of its own, which notes when it begins, and each training that it completes"
    pid = os.fork()
    if pid: return pid
    train,take = tuning.train,tuning.work
    def noted_train(*a, **kw):
        learn = train(*a, **kw)
        with (tmp/'trained').open('a') as f: f.write(f'{learn.run_dir.name}\n')
        return learn
    def noted_work(*a, **kw):
        (tmp/f'began-{os.getpid()}').touch()
        take(*a, **kw)
    tuning.train,tuning.work = noted_train,noted_work
    code = 1
    try:
        with (tmp/'log').open('a') as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            tuning.tune(quick, space, args.trials, tmp/args.name, args.storage, prune=False, source=tmp/'practice', limit=60, num_workers=0)
        code = 0
    except BaseException: traceback.print_exc()
    finally: os._exit(code)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--trials', type=int, default=28, metavar='N')
    parser.add_argument('--kills', type=int, default=10, metavar='N')
    parser.add_argument('--storage', metavar='URL', help='a database (default: a file)')
    parser.add_argument('--name', default='study', help='of the study in the database (default: study)')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    optuna.samplers.TPESampler() # imports what each worker would have to import
    optuna.storages.RDBStorage('sqlite://') # likewise
    with tempfile.TemporaryDirectory() as tmp:
        print(json.dumps(search(Path(tmp), args, chance)))

def search(tmp, args, chance): # -> counts
    make_synthetic(tmp/'practice', n_train=20, n_test=5)
    steady = worker(args, tmp)
    for _ in range(args.kills):
        victim = worker(args, tmp)
        while not (tmp/f'began-{victim}').exists(): time.sleep(.01)
        time.sleep(chance.uniform(0, 2))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
    codes = [os.waitpid(pid, 0)[1] for pid in (worker(args, tmp), steady)]
    if any(codes): print((tmp/'log').read_text()[-3000:], file=sys.stderr)
    study = optuna.load_study(study_name=args.name, storage=args.storage or f'sqlite:///{tmp}/{args.name}/study.db')
    done = {t.user_attrs['run']: t for t in study.trials if t.state.name == 'COMPLETE'}
    runs = {name: Run.open(tmp/args.name/name) for name in done}
    right = [name for name,run in runs.items() if run.status == 'finished' and run.metrics['valid']['accuracy'] == done[name].value
             and len(run.history) == quick.epochs and not run.checkpoints()]
    trained = Counter((tmp/'trained').read_text().split())
    files = sorted(f.name for f in (tmp/args.name).iterdir() if f.name not in runs)
    return dict(finished=len(right), names=len(set(right) & {f'trial-{i:03}' for i in range(args.trials)}), twice=sum(n > 1 for n in trained.values()),
                completed=sum(t.state.name == 'COMPLETE' for t in study.trials), lost=sum(t.state.name not in ('COMPLETE', 'FAIL') for t in study.trials),
                taken_up=len(study.trials) - len(done), resumed=sum('resumed' in run.info for run in runs.values()), codes=codes, files=files)

if __name__ == '__main__': sys.exit(main())
