"""How long the tutorials take: `python benchmarks/tutorials.py`

Each notebook is executed from top to bottom in a process of its own, as `nbdev-test` does it, without the cell that installs. A row for each
goes to benchmarks/results/tutorials.csv: seconds, the processor's seconds, the peak of the process's memory, and, since machines differ that
call their processor alike, the GFLOP/s of a large matrix product in 32-bit floats, measured right before. Rows of the same notebook, data
and device are replaced."""
import argparse
import json
import os
import resource
import shlex
import sys
import time
from pathlib import Path

import torch
from nbdev.test import test_nb

from cifar_fastai.data import describe_data, find_data
from side_by_side import add_row, cpu_seconds, in_turns, machine

notebooks = Path(__file__).parents[1]/'nbs'/'tutorials'

def matrix_gflops(device, n=4096):
    "The best of three"
    a,took = torch.randn(n, n, device=device),[]
    for _ in range(4): # the first one is for whatever happens only once
        start = time.perf_counter()
        (a @ a).sum().item()
        took.append(time.perf_counter() - start)
    return round(2*n**3/min(took[1:])/1e9)

def time_notebook(path, device='cpu'):
    "Execute it here"
    gflops = matrix_gflops(device)
    start,cpu_start = time.perf_counter(),cpu_seconds()
    passed,_ = test_nb(path)
    if not passed: raise SystemExit(f'{path} failed')
    return dict(seconds=round(time.perf_counter() - start, 1), cpu_seconds=round(cpu_seconds() - cpu_start, 1),
                mib=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024), matrix_gflops=gflops)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pattern', nargs='?', default='*', help="of the notebooks' names (default: all)")
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('side', nargs='?', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.data: os.environ['CIFAR_FASTAI_DATA'] = str(Path(args.data).resolve())
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    if args.side: return print(json.dumps(time_notebook(notebooks/f'{args.side}.ipynb', device)))
    info = describe_data(find_data())
    names = sorted(p.stem for p in notebooks.glob(f'{args.pattern}.ipynb'))
    if not names: raise SystemExit(f'{notebooks} has no notebook whose name fits {args.pattern!r}')
    for name in names:
        taken = in_turns(__file__, [args.pattern], [name], runs=1)[name][0]
        add_row('tutorials', dict(
            tutorial=name, **taken, variant=info.variant, device=device, gpu=torch.cuda.get_device_name() if device == 'cuda' else '', **machine(),
            command=shlex.join(['python', 'benchmarks/tutorials.py', *sys.argv[1:]])), instead_of=('tutorial', 'variant', 'device', 'gpu'))

if __name__ == '__main__': main()
