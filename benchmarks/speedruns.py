"""Speed recipes, each over seeds: `python benchmarks/speedruns.py 'speedrun_*' --seeds 3`

What happens only once in a process (images read, kernels chosen or compiled, memory taken) is done in a first short run, which is timed
apart. Each run goes to benchmarks/results/training.csv, as those of reproduce.py do; and each recipe to speedruns.csv: mean and standard
deviation of its test accuracies, plain and with test-time augmentation, seconds of training and of that evaluation, and which part of the
training the loader alone would take, in the place of an older row of such a machine. With `--epochs 4`, `speedrun` is called
`speedrun_4_epochs`: its schedule, its image sizes included, is drawn together. The same call again goes on where it was stopped."""
import argparse
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from cifar_fastai.sources import describe_data, find_data
from cifar_fastai.evaluation import tta_views
from cifar_fastai.recipes import get_recipe
from cifar_fastai.runs import Run
from cifar_fastai.training import reuse_memory, train
from loaders import rate
from reproduce import matching, run
from side_by_side import add_row, check_machine, count, gpu_name, kind_of_machine, machine, read_images, run_script

def warm_up(recipe, data, device):
    "Seconds of reading the images and of a run of a few steps, and images per second of its loader"
    start = time.perf_counter()
    read_images(recipe, data.path)
    with tempfile.TemporaryDirectory() as folder:
        learn = train(recipe.shorten(1), source=data.path, run_dir=Path(folder)/'run', limit=4*recipe.bs, device=device)
    seconds = time.perf_counter() - start
    return seconds,rate(learn.dls.train, 1.)

def figures(name, values):
    "Mean and standard deviation"
    return {f'{name}_mean': round(statistics.mean(values), 6), f'{name}_std': round(statistics.stdev(values), 6) if len(values) > 1 else ''}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipes', nargs='+', help="names, or patterns such as 'speedrun_*'")
    parser.add_argument('--seeds', type=count, default=10, metavar='N', help='seeds 0 to N-1 (default: 10)')
    parser.add_argument('--epochs', type=count, metavar='N', help='instead of those of the recipe')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--out', default='runs/speedruns', metavar='FOLDER', help='of the run folders (default: runs/speedruns)')
    parser.add_argument('--tta', default='flip_shift', metavar='NAME', help='test-time augmentation (default: flip_shift)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    data = describe_data(find_data(args.data))
    if not data.n_test: raise SystemExit(f'{data.path} has no test images to evaluate speed recipes on.')
    tta_views(args.tta)  # a wrong name is told now
    if args.device == 'cpu': reuse_memory()  # as training does
    for name in matching(args.recipes):
        recipe = get_recipe(name)
        if args.epochs: recipe = recipe.change(name=f'{name}_{args.epochs}_epochs', epochs=args.epochs)
        once,loader = warm_up(recipe, data, args.device)
        folders = run(recipe, args.seeds, args.out, data, args.device, args.tta).run
        if not len(folders): continue  # what went wrong stands in the table above
        done = [dict(run=Run(folder).info, metrics=Run(folder).metrics) for folder in folders]
        check_machine({folder: o['run'] for folder,o in zip(folders, done)}, args.device)
        seconds = [o['run']['seconds'] for o in done]
        seen = done[0]['run']['epochs']*done[0]['run']['data']['n_train']
        add_row('speedruns', dict(
            recipe=recipe.name, variant=data.variant, seeds=len(done), **figures('accuracy', [o['metrics']['test']['accuracy'] for o in done]),
            tta=args.tta, **figures('tta_accuracy', [o['metrics'][f'test {args.tta}']['accuracy'] for o in done]),
            seconds_median=statistics.median(seconds), seconds_fastest=min(seconds), seconds_slowest=max(seconds),
            tta_seconds=statistics.median(o['metrics'][f'test {args.tta}']['seconds'] for o in done), warm_up_seconds=round(once, 1),
            epochs=recipe.epochs, images_per_second=round(seen/statistics.median(seconds)), loader_share=round(seen/loader/statistics.median(seconds), 4),
            device=args.device, precision=done[0]['run']['precision'], gpu=gpu_name(args.device), **machine(),
            command=shlex.join(['python', 'benchmarks/speedruns.py', *sys.argv[1:]])), instead_of=('recipe', 'variant', *kind_of_machine(args.device)))

if __name__ == '__main__': run_script(main)
