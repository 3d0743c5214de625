"""How speed and memory scale with the batch size and the number of images: `python benchmarks/scaling.py small_cnn_one_cycle`

Each size runs in its own process, in turns, three times. Batch sizes: training steps, on images in memory. Numbers of images: the loader
alone, on data sets that repeat the same files; the seconds until its first batch are with an empty cache on disk (the first run) and with a
filled one (the others). Each size gets a row in benchmarks/results/scaling.csv: medians of images per second, of those seconds, and of the
peak memory of the process, or of the accelerator, in MiB."""
import argparse
import json
import os
import random
import resource
import shlex
import statistics
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import torch

from cifar_fastai.sources import describe_data, find_data, train_files
from cifar_fastai.recipes import get_recipe
from loaders import rate
from side_by_side import add_row, count, gpu_name, in_turns, machine, medians, run_script
import steps

def peak(device):
    if device.startswith('cuda'): return torch.cuda.max_memory_allocated(device)/2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def measure(args, kind, n):
    "Training in batches of `n` images, or the loader of `n` images"
    recipe,args.bs,start = get_recipe(args.recipe),n if kind == 'bs' else None,time.perf_counter()
    if kind == 'bs':
        args.steps = max(4, args.per_side//n)
        return dict(images_per_second=1e3*n/steps.time_learner(args, recipe)['ms'], mib=peak(args.device))
    dls = steps.dataloaders(args, recipe)
    dls.train.one_batch()
    return dict(first_batch_seconds=time.perf_counter() - start, images_per_second=rate(dls.train, args.seconds), mib=peak(args.device))

def lay_out(path, n, folder):
    "A data set of `n` training images: links to those of `path` in a random order, again and again"
    files = train_files(path)
    random.Random(0).shuffle(files)  # a part has all classes too
    for i,f in enumerate(islice(cycle(files), n)):
        link = folder/f.relative_to(path).with_name(f'{f.stem}_{i}{f.suffix}')
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f.absolute())
    return folder

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipe')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--bs', type=count, nargs='*', default=[32, 128, 512, 2048], metavar='N', help='default: 32 128 512 2048')
    parser.add_argument('--images', type=count, nargs='*', default=[12500, 25000, 50000, 200000], metavar='N', help='default: 12500 25000 50000 200000')
    parser.add_argument('--per-side', type=count, default=4096, metavar='N', help='images to train on, in four steps at least (default: 4096)')
    parser.add_argument('--seconds', type=float, default=5, help='of the loader, at least (default: 5)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('side', nargs='?', help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    if args.side: return print(json.dumps(measure(args, args.side.split(':')[0], int(args.side.split(':')[1]))))
    info,recipe = describe_data(find_data(args.data)),get_recipe(args.recipe)
    options = [recipe.name, '--device', args.device, '--per-side', f'{args.per_side}', '--seconds', f'{args.seconds}']
    measured = in_turns(__file__, [*options, '--data', str(info.path)], [f'bs:{n}' for n in args.bs])
    with tempfile.TemporaryDirectory() as folder:
        os.environ['CIFAR_FASTAI_HOME'] = f'{folder}/cache'
        for n in args.images: measured |= in_turns(__file__, [*options, '--data', str(lay_out(info.path, n, Path(folder)/f'{n}'))], [f'images:{n}'])
    for side,runs in measured.items():
        kind,n = side.split(':')
        figures = medians({side: runs}, 'images_per_second', 'mib').values()
        waits = [round(o['first_batch_seconds'], 2) for o in runs if kind == 'images']
        add_row('scaling', dict(
            recipe=recipe.name, what='training' if kind == 'bs' else 'loader', bs=n if kind == 'bs' else recipe.bs, images=n if kind == 'images' else '', **dict(zip(('images_per_second', 'mib'), figures)),
            first_batch_cold_seconds=waits[0] if waits else '', first_batch_warm_seconds=statistics.median(waits[1:] or waits) if waits else '', runs=len(runs),
            variant=info.variant, device=args.device, gpu=gpu_name(args.device), **machine(),
            command=shlex.join(['python', 'benchmarks/scaling.py', *sys.argv[1:]])))

if __name__ == '__main__': run_script(main)
