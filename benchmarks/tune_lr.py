"""Does a search find a better learning rate than a recipe has? `python benchmarks/tune_lr.py --seeds 5`

Searches between a quarter and four times the recipe's rate (`tune`, with seed 0), and then trains the recipe with its own rate and with the
best one found, with seeds that the search did not use. A tenth of the training images is held out for validation; the test images are not
read. The row in benchmarks/results/tune_lr.csv has both means, and the mean difference of two runs with the same seed, with its 95%
interval. The same call again continues where it was stopped, and two calls at a time share the work."""
import argparse
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t

from cifar_fastai.experiments import run_grid
from cifar_fastai.recipes import Recipe, get_recipe
from cifar_fastai.runs import Run
from cifar_fastai.sources import describe_data, find_data
from cifar_fastai.tuning import tune
from side_by_side import add_row, check_machine, commit, count, gpu_name, machine, run_script

def interval(differences):
    "Mean and 95% interval (Student's t); the interval of a single difference has no ends"
    mean,n = float(np.mean(differences)),len(differences)
    if n < 2: return mean,float('nan'),float('nan')
    half = float(t.ppf(.975, n - 1)*np.std(differences, ddof=1)/np.sqrt(n))
    return mean,mean - half,mean + half

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipe', nargs='?', default='small_cnn', help='one with a single stage (default: small_cnn)')
    parser.add_argument('--trials', type=count, default=20, metavar='N', help='of the search (default: 20)')
    parser.add_argument('--seeds', type=count, default=5, metavar='N', help='seeds 1 to N of the comparison (default: 5)')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--limit', type=count, metavar='N', help='train on so many images only')
    parser.add_argument('--out', default='runs/tune_lr', metavar='FOLDER', help='of the run folders (default: runs/tune_lr)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    recipe,data,out = get_recipe(args.recipe).change(valid=.1),describe_data(find_data(args.data)),Path(args.out)
    options = dict(source=data.path, limit=args.limit, device=args.device)
    lr = recipe.stages[0].lr
    trials = tune(recipe, dict(lr=f'{lr/4:g}..{lr*4:g} log'), args.trials, out/'search', **options)
    best = Recipe.from_json((out/'search'/'best.json').read_text(encoding='utf-8')).stages[0].lr
    runs = run_grid(recipe, list(range(1, args.seeds + 1)), out/'compared', lr=[lr, best] if best != lr else lr, **options)
    if set(runs.status) != {'finished'}: raise SystemExit(runs[['run', 'status', 'error']].to_string(index=False))
    made = {f: Run(f).info for f in runs.run}
    check_machine(made, args.device)
    own,found = (runs[np.isclose(runs.lr, rate)].set_index('seed').valid_accuracy for rate in (lr, best))
    mean,low,high = interval((found - own).to_numpy())
    add_row('tune_lr', dict(
        recipe=recipe.name, trials=len(trials), pruned=int((trials.status == 'pruned').sum()), own_lr=lr, best_lr=float(f'{best:.4g}'), seeds=args.seeds,
        own_accuracy=round(own.mean(), 5), best_accuracy=round(found.mean(), 5), difference=round(mean, 5), low=round(low, 5), high=round(high, 5),
        limit=args.limit or '', variant=data.variant, device=args.device, gpu=gpu_name(args.device), **machine(),
        command=shlex.join(['python', 'benchmarks/tune_lr.py', *sys.argv[1:]]), **commit(min(run['started'] for run in made.values()))),
        instead_of=('recipe', 'variant', 'device', 'limit'))

if __name__ == '__main__': run_script(main)
