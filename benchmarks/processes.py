"""What several processes gain over several threads: `python benchmarks/processes.py small_cnn_one_cycle`

Training steps with the same batches, once by one process whose threads share each layer, and once by as many processes of one thread that
share each batch, as `torchrun` starts them. Each side runs in turns, three times. Each recipe gets a row in benchmarks/results/processes.csv:
median images per second of each side, their ratio, the MiB of gradients that each process sends and receives in a step, and the memory of the
processes together, where pages that they share count once (Linux)."""
import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from cifar_fastai.processes import combined, first_one_first, is_first_process, join_processes, n_processes
from cifar_fastai.recipes import get_recipe
from cifar_fastai.runs import hardware
from cifar_fastai.sources import describe_data, find_data
from cifar_fastai.training import create_learner
from side_by_side import add_row, count, gpu_name, in_turns, machine, medians, run_script
import steps

def shared_memory():
    "MiB of this process; a page that several processes share counts in parts (PSS)"
    rollup = Path('/proc/self/smaps_rollup')
    return int(re.search(r'^Pss:\s+(\d+)', rollup.read_text(), re.M)[1])/1024 if rollup.exists() else float('nan')

def measure(args):
    "Training steps of all processes together"
    recipe = get_recipe(args.recipe)
    join_processes(args.device)
    with first_one_first():
        dls = steps.dataloaders(args, recipe)
        for dl in dls.loaders: dl.dataset.cache.share()
    learn = create_learner(recipe, dls, cbs=[clock := steps.Clock(args.steps)])
    if n_processes() > 1: learn.to_distributed(sync_bn=args.sync_bn)
    with learn.no_bar(), learn.no_logging(): learn.fit(10**6, 1e-4)
    mib = combined(torch.tensor(shared_memory(), device=dls.device)).item()
    gradients = sum(p.numel()*4 for p in learn.model.parameters() if p.requires_grad)/2**20
    return dict(images_per_second=1e3*(args.bs or recipe.bs)/clock.ms, mib=mib, gradient_mib=gradients)

def side(args, n):
    "Start the processes of a side, or be one of them"
    if 'RANK' in os.environ or n == 1:
        if n > 1: torch.set_num_threads(1)
        found = measure(args)
        if is_first_process(): print('\n' + json.dumps(found))
        return
    run = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n}', __file__, *sys.argv[1:]]
    print(subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True, env=dict(OMP_NUM_THREADS='1') | os.environ).stdout, end='')

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipe')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--processes', type=count, metavar='N', help='default: as many as a single process has threads, or GPUs')
    parser.add_argument('--bs', type=count, metavar='N', help="images in a batch of all processes (default: the recipe's)")
    parser.add_argument('--steps', type=count, default=40, metavar='N', help='default: 40')
    parser.add_argument('--no-sync-bn', dest='sync_bn', action='store_false', help="BatchNorm's statistics are of a share, not of the whole batch")
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('side', nargs='?', help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.side: return side(args, int(args.side))
    n = args.processes or (torch.cuda.device_count() if args.device == 'cuda' else hardware()['threads'])
    if n < 2: raise SystemExit(f'There is nothing to compare with one process: this machine has {n} of what a process needs. Name a number with --processes.')
    info = describe_data(find_data(args.data))
    found = in_turns(__file__, sys.argv[1:], ['1', str(n)])
    of = medians(found, 'images_per_second', 'mib')
    add_row('processes', dict(
        recipe=args.recipe, bs=args.bs or get_recipe(args.recipe).bs, processes=n, sync_bn=args.sync_bn, one_images_per_second=of['1_images_per_second'],
        all_images_per_second=of[f'{n}_images_per_second'], ratio=round(of[f'{n}_images_per_second']/of['1_images_per_second'], 3),
        gradient_mib=round(found['1'][0]['gradient_mib'], 2), one_mib=of['1_mib'], all_mib=of[f'{n}_mib'], runs=3, steps=args.steps, variant=info.variant,
        device=args.device, gpu=gpu_name(args.device), **machine(), command=shlex.join(['python', 'benchmarks/processes.py', *sys.argv[1:]])),
        instead_of=('recipe', 'bs', 'processes', 'sync_bn', 'device', 'gpu', 'cpu'))

if __name__ == '__main__': run_script(main)
