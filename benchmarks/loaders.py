"""Images per second of the loaders, without training: `python benchmarks/loaders.py`

fastai's file pipeline, which decodes each image again in every epoch, with and without two worker processes, and images in memory with
each augmentation. Each runs in its own process, in turns, three times. One-time work of a loader (reading, starting workers) does not
count. Each gets a row in benchmarks/results/loaders.csv: the median, minimum and maximum, and the ratio to the file pipeline with two
workers."""
import argparse
import json
import shlex
import statistics
import sys
import time

import torch

from cifar_fastai.augmentation import list_augmentations
from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.sources import describe_data, find_data
from side_by_side import add_row, count, gpu_name, in_turns, machine, run_script

def rate(dl, seconds):
    "Images per second, over whole epochs"
    if len(dl) < 2: raise SystemExit(f'{dl.n} images are too few for batches of {dl.bs}: an epoch must have two at least. Choose a smaller --bs.')
    images,took = 0,0.
    while took < seconds:
        batches = iter(dl)
        start,n = None,0
        for x,_ in batches:
            if start is None: start = time.perf_counter() # the first batch waits for workers to start
            else: n += len(x)
        if str(dl.device).startswith('cuda'): torch.cuda.synchronize(dl.device)
        images,took = images + n,took + time.perf_counter() - start
    return images/took

def measure(args, workers, augment):
    "One loader, in this process"
    in_memory = workers == 'memory'
    dls = cifar10_dataloaders(args.data, bs=args.bs, augment=augment, in_memory=in_memory, num_workers=0 if in_memory else int(workers), device=args.device)
    if in_memory:
        for dl in dls:
            for _ in dl: pass # reads what is not cached yet
        dls.train.one_batch()
    return rate(dls.train, args.seconds)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--bs', type=count, default=512, help='images in a batch (default: 512)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--seconds', type=float, default=5, help='minimum time of each measurement (default: 5)')
    parser.add_argument('--augment', nargs='+', choices=list_augmentations(), default=list_augmentations(), metavar='NAME', help='default: all')
    parser.add_argument('side', nargs='?', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side: return print(json.dumps(measure(args, *args.side.split(':'))))
    path = find_data(args.data)
    options = ['--data', str(path), '--bs', f'{args.bs}', '--device', args.device, '--seconds', f'{args.seconds}']
    sides = ['0:flip_crop', '2:flip_crop', *(f'memory:{a}' for a in args.augment)]
    measured = in_turns(__file__, options, sides)
    files = statistics.median(measured['2:flip_crop'])
    for side in sides:
        workers,augment = side.split(':')
        rates = sorted(measured[side])
        add_row('loaders', dict(
            images='memory' if workers == 'memory' else 'files', workers='' if workers == 'memory' else workers, augment=augment,
            **{f'{name}_images_per_second': round(r) for name,r in zip(('median', 'slowest', 'fastest'), (statistics.median(rates), rates[0], rates[-1]))},
            ratio=round(statistics.median(rates)/files, 2), bs=args.bs, runs=len(rates), variant=describe_data(path).variant, device=args.device,
            gpu=gpu_name(args.device), **machine(), command=shlex.join(['python', 'benchmarks/loaders.py', *sys.argv[1:]])))

if __name__ == '__main__': run_script(main)
