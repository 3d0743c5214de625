"""How long the tutorials take: `python benchmarks/tutorials.py`

Each notebook is executed from top to bottom in a process of its own, as `nbdev-test` does it, without the cell that installs. A row for each
goes to benchmarks/results/tutorials.csv: seconds, the processor's seconds, and the peak of the process's memory. Rows of the same notebook,
data and device are replaced."""
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
from side_by_side import add_row, in_turns, machine

notebooks = Path(__file__).parents[1]/'nbs'/'tutorials'

def time_notebook(path):
    "Execute it here"
    start = time.perf_counter()
    passed,_ = test_nb(path)
    if not passed: raise SystemExit(f'{path} failed')
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return dict(seconds=round(time.perf_counter() - start, 1), cpu_seconds=round(sum(u.ru_utime + u.ru_stime for u in used), 1), mib=round(used[0].ru_maxrss/1024))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('pattern', nargs='?', default='*', help="of the notebooks' names (default: all)")
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('side', nargs='?', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side: return print(json.dumps(time_notebook(notebooks/f'{args.side}.ipynb')))
    if args.data: os.environ['CIFAR_FASTAI_DATA'] = str(Path(args.data).resolve())
    info,device = describe_data(find_data()),'cuda' if torch.cuda.is_available() else 'cpu'
    names = sorted(p.stem for p in notebooks.glob(f'{args.pattern}.ipynb'))
    if not names: raise SystemExit(f'{notebooks} has no notebook whose name fits {args.pattern!r}')
    for name in names:
        taken = in_turns(__file__, [args.pattern], [name], runs=1)[name][0]
        add_row('tutorials', dict(
            tutorial=name, **taken, variant=info.variant, device=device, gpu=torch.cuda.get_device_name() if device == 'cuda' else '', **machine(),
            command=shlex.join(['python', 'benchmarks/tutorials.py', *sys.argv[1:]])), instead_of=('tutorial', 'variant', 'device', 'gpu'))

if __name__ == '__main__': main()
