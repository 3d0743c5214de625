"""What each trick of a fast recipe adds: `python benchmarks/ablations.py small_cnn --seeds 2`

Trains the recipe with several numbers of epochs, and at its own number without each of its tricks. Accuracies are on a tenth of the
training images, held out for validation; the test images are not read. Each variant gets a row in benchmarks/results/ablations.csv: means
over the seeds of accuracy, with and without test-time augmentation, and of CPU seconds. The same call again continues where it was
stopped, and two calls at a time share the work."""
import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path

import torch
from torch import nn

from cifar_fastai.sources import describe_data, find_data
from cifar_fastai.evaluation import evaluate
from cifar_fastai.experiments import run_grid
from cifar_fastai.models import create_model, list_models, register_model
from cifar_fastai.recipes import get_recipe
from cifar_fastai.runs import Run
from cifar_fastai.training import load_run, reuse_memory
from side_by_side import check_machine, commit, count, gpu_name, machine, read_rows, results, run_script, write_rows

def small_cnn_trained_stem(n_out=10, in_channels=3, image_size=32):
    "`small_cnn` with a trained first layer instead of the whitening one"
    model = create_model('small_cnn', n_out, in_channels, image_size)
    model.body.stem = nn.Sequential(nn.Conv2d(in_channels, len(model.body.stem.filters), 2, bias=False), nn.ReLU(inplace=True))
    return model

def small_cnn_random_filters(n_out=10, in_channels=3, image_size=32):
    "`small_cnn` with PyTorch's initialization of filters instead of partial identities"
    model = create_model('small_cnn', n_out, in_channels, image_size)
    for m in model.modules():
        if isinstance(m, nn.Conv2d): m.reset_parameters()
    return model

as_small_cnn = get_recipe('small_cnn_one_cycle')
tricks = dict( # changes that remove each
    whitening=dict(model='small_cnn_trained_stem'), identities=dict(model='small_cnn_random_filters'),
    muon=dict(optimizer='sgd', lr=as_small_cnn.stages[0].lr, wd=as_small_cnn.wd, moms=as_small_cnn.stages[0].moms),
    growing_images=dict(progressive_resizing=()), alternating_flips=dict(augment='flip_crop'), averaging=dict(lookahead=0), label_smoothing=dict(label_smoothing=0.), bfloat16=dict(mixed_precision=False))

def variants(recipe, epochs):
    "{(trick left out, epochs): recipe}; the two in the network can be left out of `small_cnn` only"
    whole = {('', n): recipe.change(name=f'{recipe.name}_{n}_epochs', epochs=n) for n in epochs}
    left_out = {name: change for name,change in tricks.items() if recipe.model == 'small_cnn' or 'model' not in change}
    if 'alternating_flips' in left_out: left_out['alternating_flips'] = dict(augment=recipe.augment.removeprefix('alternating_'))
    without = {(name, recipe.epochs): recipe.change(name=f'{recipe.name}_without_{name}', **change) for name,change in left_out.items()}
    return whole | {k: r for k,r in without.items() if r != recipe.change(name=r.name)}

def with_tta(folder, tta, **options):
    "Accuracy on the validation images; kept in the run folder"
    path = Path(folder)/f'valid_{tta}.json'
    if not path.exists(): path.write_text(json.dumps(evaluate(load_run(folder, **options), 'valid', tta=tta).to_dict()) + '\n', encoding='utf-8')
    return json.loads(path.read_text(encoding='utf-8'))['accuracy']

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipe', help='one with a single stage')
    parser.add_argument('--seeds', type=count, default=2, metavar='N', help='seeds 0 to N-1 (default: 2)')
    parser.add_argument('--epochs', type=count, nargs='+', metavar='N', help='numbers of epochs of the full recipe (default: 2, and up to its own)')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--limit', type=count, metavar='N', help='train on so many images only')
    parser.add_argument('--out', default='runs/ablations', metavar='FOLDER', help='of the run folders (default: runs/ablations)')
    parser.add_argument('--tta', default='flip', metavar='NAME', help='test-time augmentation (default: flip)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    recipe,data = get_recipe(args.recipe).change(valid=.1),describe_data(find_data(args.data))
    if args.device == 'cpu': reuse_memory()  # as training does
    for f in (small_cnn_trained_stem, small_cnn_random_filters):
        if f.__name__ not in list_models(): register_model(f)
    asked = variants(recipe, sorted({*(args.epochs or range(2, recipe.epochs)), recipe.epochs}))
    options = dict(source=data.path, device=args.device)
    runs = run_grid(list(asked.values()), args.seeds, args.out, limit=args.limit, **options)
    rows = []
    for (name,epochs),variant in asked.items():
        mine = runs[(runs.recipe == variant.name) & (runs.status == 'finished')]
        if mine.empty: continue
        made = {f: Run(f).info for f in mine.run}
        check_machine(made, args.device)
        tta = [with_tta(f, args.tta, **options) for f in mine.run]
        rows.append(dict(recipe=recipe.name, without=name, epochs=epochs, seeds=len(mine), accuracy=round(mine.valid_accuracy.mean(), 5),
                         accuracy_lowest=mine.valid_accuracy.min(), accuracy_highest=mine.valid_accuracy.max(), tta=args.tta, tta_accuracy=round(statistics.mean(tta), 5),
                         cpu_seconds=round(statistics.mean(run['cpu_seconds'] for run in made.values()), 1), limit=args.limit or '', variant=data.variant, device=args.device,
                         gpu=gpu_name(args.device), **machine(),
                         command=shlex.join(['python', 'benchmarks/ablations.py', *sys.argv[1:]]), **commit(min(run['started'] for run in made.values()))))
    path = results/'ablations.csv'
    if not rows: raise SystemExit(f'No run of {recipe.name} was finished.')
    kind = 'recipe', 'variant', 'device', 'limit'
    write_rows(path, [r for r in read_rows(path) if any(r[k] != str(rows[0][k]) for k in kind)] + rows)
    print('\n'.join(f'{r["without"] or "as it is":20}{r["epochs"]:3} epochs  {100*r["accuracy"]:.2f}  {100*r["tta_accuracy"]:.2f} ({args.tta})  {r["cpu_seconds"]:7.1f} s' for r in rows))

if __name__ == '__main__': run_script(main)
