"""Accuracy and training time of the fast recipes, over seeds: `make benchmarks`, or `python benchmarks/speedruns.py small_cnn --seeds 10`

Without names, these are the recipes of the README's table. Each run gets a row in benchmarks/results/training.csv, as with reproduce.py.
Each recipe gets a row in speedruns.csv: mean and standard deviation of its test accuracies, with and without test-time augmentation,
seconds of training and of that evaluation, and the share of the training time that the loader alone would take. It replaces an older row
of such a machine. What happens only once in a process (reading images, choosing or compiling kernels, allocating memory) happens in a
short warm-up run, which is timed separately. With `--epochs 4`, `small_cnn` becomes `small_cnn_4_epochs`, and its schedule and image sizes
are scaled to fit. The same call again continues where it was stopped, as long as the commit is the same. Other work makes the times too
long: on a machine that is not idle nothing starts, unless you give `--busy`, which the column `busy` records."""
import argparse
import os
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
from cifar_fastai.runs import Run, hardware
from cifar_fastai.training import reuse_memory, train
from loaders import rate
from reproduce import matching, run
from side_by_side import (add_row, check_machine, commit, count, gpu_name, kind_of_machine, machine, read_images, read_rows, results,
                          run_script)

of_readme = dict(cpu=('tiny_cnn', 'small_cnn_quick', 'small_cnn', 'airbench94_long', 'small_cnn_one_cycle'), cuda=('speedrun_94', 'speedrun_96'))
idle_load = .5  # load average per core up to which a machine counts as idle

def check_idle():
    "Refuse to time anything while other work is running"
    load = os.getloadavg()[0]/hardware()['cores']
    if load > idle_load: raise SystemExit(f'This machine is not idle: its load average is {load:.1f} per core, and times need one below {idle_load}. '
                                          'Wait until other work is done, or give --busy.')

def known_seconds(name, seeds, device):
    "Seconds that a recipe takes over seeds, by the last row of a machine like this one; None without such a row"
    here = dict(device=device, gpu=gpu_name(device), **machine())
    like_here = lambda r: r['recipe'] == name and all(r[k] == str(here[k]) for k in kind_of_machine(device))
    for file in ('speedruns', 'epochs'):
        for r in filter(like_here, read_rows(results/f'{file}.csv')[::-1]):
            return float(r.get('warm_up_seconds') or 0) + seeds*(float(r['seconds_median']) + float(r.get('tta_seconds') or 0))

def announce(names, seeds, device):
    "Say about how long it will take, as far as that is known"
    found = [known_seconds(name, seeds, device) for name in names]
    known = [o for o in found if o is not None]
    if known: print(f'{seeds} seeds of {len(names)} recipes take {"about" if len(known) == len(names) else "more than"} {sum(known)/60:.0f} minutes on a machine like this one.')

def warm_up(recipe, data, device):
    "Seconds of reading the images and of a run of a few steps, and images per second of its loader"
    start = time.perf_counter()
    read_images(recipe, data.path)
    with tempfile.TemporaryDirectory() as folder:
        learn = train(recipe.shorten(1), source=data.path, run_dir=Path(folder)/'run', limit=4*recipe.bs, device=device)
    seconds = time.perf_counter() - start
    return seconds,rate(learn.dls.train, 1.)

def mean_and_std(name, values):
    "Mean and standard deviation"
    return {f'{name}_mean': round(statistics.mean(values), 6), f'{name}_std': round(statistics.stdev(values), 6) if len(values) > 1 else ''}

def summary(row):
    "One line of the final table"
    accuracy = f'{100*row["accuracy_mean"]:6.2f}%' + (f' ± {100*row["accuracy_std"]:.2f}' if row['accuracy_std'] else '')
    return f'{row["recipe"]:24}{accuracy:16}{row["seconds_median"]/60:8.2f} min  {row["seeds"]} seeds, {row["commit"]}'

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipes', nargs='*', help="names, or patterns such as 'speedrun_*' (default: those of the README's table)")
    parser.add_argument('--seeds', type=count, default=3, metavar='N', help='seeds 0 to N-1 (default: 3)')
    parser.add_argument('--epochs', type=count, metavar='N', help='instead of those of the recipe')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--out', metavar='FOLDER', help='of the run folders (default: runs/speedruns-COMMIT)')
    parser.add_argument('--tta', default='flip_shift', metavar='NAME', help='test-time augmentation (default: flip_shift)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--busy', action='store_true', help='start even if the machine is not idle; the rows say so')
    args = parser.parse_args()
    names = matching(args.recipes or of_readme[args.device.partition(':')[0]])
    if not args.busy: check_idle()
    data = describe_data(find_data(args.data))
    if not data.n_test: raise SystemExit(f'{data.path} has no test images to evaluate fast recipes on.')
    tta_views(args.tta)  # refuses a wrong name now
    out = args.out or f'runs/speedruns-{commit()["commit"]}'.rstrip('-')
    if args.device == 'cpu': reuse_memory()  # as training does
    if not args.epochs: announce(names, args.seeds, args.device)
    rows = []
    for name in names:
        recipe = get_recipe(name)
        if args.epochs: recipe = recipe.change(name=f'{name}_{args.epochs}_epochs', epochs=args.epochs)
        once,loader = warm_up(recipe, data, args.device)
        folders = run(recipe, args.seeds, out, data, args.device, args.tta).run
        if not len(folders): continue  # the table above says what went wrong
        done = [dict(run=Run(folder).info, metrics=Run(folder).metrics) for folder in folders]
        check_machine({folder: o['run'] for folder,o in zip(folders, done)}, args.device)
        seconds = [o['run']['seconds'] for o in done]
        seen = done[0]['run']['epochs']*done[0]['run']['data']['n_train']
        started = min(o['run']['started'] for o in done)
        busy = any('--busy' in o['run']['command'] for o in done)
        rows.append(dict(
            recipe=recipe.name, variant=data.variant, seeds=len(done), **mean_and_std('accuracy', [o['metrics']['test']['accuracy'] for o in done]),
            tta=args.tta, **mean_and_std('tta_accuracy', [o['metrics'][f'test {args.tta}']['accuracy'] for o in done]),
            seconds_median=statistics.median(seconds), seconds_fastest=min(seconds), seconds_slowest=max(seconds),
            tta_seconds=statistics.median(o['metrics'][f'test {args.tta}']['seconds'] for o in done), warm_up_seconds=round(once, 1),
            epochs=recipe.epochs, images_per_second=round(seen/statistics.median(seconds)), loader_share=round(seen/loader/statistics.median(seconds), 4),
            device=args.device, precision=done[0]['run']['precision'], gpu=gpu_name(args.device), **machine(),
            command=shlex.join(['python', 'benchmarks/speedruns.py', *sys.argv[1:]]), busy='yes' if busy else '', started=started, **commit(started)))
        add_row('speedruns', rows[-1], instead_of=('recipe', 'variant', *kind_of_machine(args.device)))
    if rows: print('', *map(summary, rows), sep='\n')

if __name__ == '__main__': run_script(main)
