"""How long the tutorials take, and the accuracy of their networks: `python benchmarks/tutorials.py`

Each notebook runs from top to bottom in its own process, as with `nbdev-test`, without the cell that installs. Each gets a row in
benchmarks/results/tutorials.csv: seconds, CPU seconds, and peak memory of the process. Machines with the same processor name differ, so the
row also has the GFLOP/s of a large matrix product in 32-bit floats, measured right after (before, it would make what follows
slower: OpenMP's threads then no longer wait for each other actively). Each network that a notebook trains gets a row
in tutorial_accuracies.csv: mean, minimum and maximum validation accuracy over the seeds of the notebook's own `run_grid`, or over as many
runs of a notebook without one. Rows of the same notebook, data and device are replaced, and those of notebooks that are gone are dropped."""
import argparse
import json
import os
import re
import resource
import shlex
import statistics
import sys
import time
from pathlib import Path

import torch
from execnb.shell import CaptureShell
from fastcore.foundation import working_directory
from fastcore.nbio import read_nb

from cifar_fastai.sources import describe_data, find_data
import side_by_side
from side_by_side import add_row, count, cpu_seconds, gpu_name, in_turns, machine, read_rows, run_script, write_rows

notebooks = Path(__file__).parents[1]/'nbs'/'tutorials'
grids = {'03_augmentation': 'runs', '04_transfer': 'found', '06_the_ladder': 'runs'} # the variable that holds what `run_grid` returned
networks = { # the expression that is a network's accuracy in the end
    '02_a_first_cnn': {'one cycle': 'learn.recorder.values[-1][-1]'}, '05_cats_and_dogs': {'as it is': 'result.accuracy', 'weighted': 'after.accuracy'},
    '08_use_it': {'two epochs': 'result.accuracy'}}

def matrix_gflops(device, n=4096):
    "The best of three"
    a,took = torch.randn(n, n, device=device),[]
    for _ in range(4): # the first one is for whatever happens only once
        start = time.perf_counter()
        (a @ a).sum().item()
        took.append(time.perf_counter() - start)
    return round(2*n**3/min(took[1:])/1e9)

def with_seed(source, seed): return re.sub(r'\b(seed=|set_seed\()0\b', rf'\g<1>{seed}', source)

def variables(path, seed=0):
    "What a notebook has in the end, with another seed in the place of 0"
    shell = CaptureShell(path)
    with working_directory(path.parent):
        for cell in read_nb(path).cells:
            if cell.cell_type != 'code' or re.search(r'^#\|\s*eval:\s*false', cell.source, re.M): continue
            shell.run(with_seed(cell.source, seed))
            if shell.exc: raise SystemExit(f'{path} failed at this cell: {shell.exc!r}\n{cell.source}')
    return shell.user_ns

def accuracies(name, found):
    "{network: its validation accuracies} of a notebook with these variables"
    if name in grids: return found[grids[name]].groupby('recipe', sort=False).valid_accuracy.agg(list).to_dict()
    return {what: [float(eval(expression, found))] for what,expression in networks.get(name, {}).items()}

def measure(path, seed=0, device='cpu'):
    "Execute a notebook here"
    start,cpu_start = time.perf_counter(),cpu_seconds()
    found = variables(path, seed)
    took = dict(seconds=round(time.perf_counter() - start, 1), cpu_seconds=round(cpu_seconds() - cpu_start, 1),
                mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024))
    return dict(took=took | dict(matrix_gflops=matrix_gflops(device)), accuracies=accuracies(path.stem, found))

def drop_rows_of_what_is_gone(known):
    "Rows of notebooks that are gone, and of networks that a notebook of `known` no longer has: {notebook: networks}"
    def is_gone(r): return not (notebooks/f"{r['tutorial']}.ipynb").is_file() or r.get('network', '') not in known.get(r['tutorial'], (r.get('network', ''),))
    for name in 'tutorials','tutorial_accuracies':
        path = side_by_side.results/f'{name}.csv'
        kept = [r for r in read_rows(path) if not is_gone(r)]
        if kept: write_rows(path, kept)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pattern', nargs='?', default='*', help="of the notebooks' names (default: all)")
    parser.add_argument('--seeds', type=count, default=3, metavar='N', help='seeds 0 to N-1 of a notebook that trains with one (default: 3)')
    parser.add_argument('--data', metavar='SOURCE', help="folder, archive or 'synthetic'; default: as `cifar-fastai train` finds it")
    parser.add_argument('side', nargs='?', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.data: os.environ['CIFAR_FASTAI_DATA'] = args.data if args.data == 'synthetic' else str(Path(args.data).resolve())
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if args.side:
        name,seed = args.side.split(':')
        return print('\n' + json.dumps(measure(notebooks/f'{name}.ipynb', int(seed), device)))
    info = describe_data(find_data())
    names = sorted(p.stem for p in notebooks.glob(f'{args.pattern}.ipynb'))
    if not names: raise SystemExit(f'{notebooks} has no notebook whose name fits {args.pattern!r}')
    about = dict(variant=info.variant, device=device, gpu=gpu_name(device), **machine(),
                 command=shlex.join(['python', 'benchmarks/tutorials.py', *sys.argv[1:]]))
    known = {}
    for name in names:
        sides = [f'{name}:{seed}' for seed in range(args.seeds if name in networks else 1)]
        done = [o[0] for o in in_turns(__file__, [args.pattern], sides, runs=1).values()]
        add_row('tutorials', dict(tutorial=name, **done[0]['took'], **about), instead_of=('tutorial', 'variant', 'device', 'gpu'))
        known[name] = ['', *done[0]['accuracies']]
        for network in known[name][1:]:
            each = [a for o in done for a in o['accuracies'][network]]
            add_row('tutorial_accuracies', dict(tutorial=name, network=network, seeds=len(each), mean=round(statistics.mean(each), 5), lowest=round(min(each), 5),
                                                highest=round(max(each), 5), **about), instead_of=('tutorial', 'network', 'variant', 'device', 'gpu'))
    drop_rows_of_what_is_gone(known)

if __name__ == '__main__': run_script(main)
