"""How long recipes take on this machine, side by side: `python benchmarks/epochs.py`

A full run of a reference project's recipe takes up to an hour, and machines differ, so one call compares recipes by the time of their
epochs. Each recipe is trained on part of the images, one epoch of every stage, in turns with the others, three times, and the times are
multiplied by the number of epochs. Training and validation are timed separately and scaled to the images of the full recipe. The reference to
beat is `airbench94_sgd`: airbench's network with its own settings, 9.9 epochs, batch size 1,024 and 32-bit floats, in our Learner. Each
recipe gets a row in benchmarks/results/epochs.csv with the median, minimum and maximum seconds of a full run. It replaces an older row of
such a machine."""
import argparse
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from fastai.callback.core import Callback

from cifar_fastai.sources import describe_data, find_data
from cifar_fastai.recipes import get_recipe
from cifar_fastai.callbacks import training_precision
from cifar_fastai.training import reuse_memory, train
from reproduce import matching, seconds_per_image
from side_by_side import add_row, count, gpu_name, kind_of_machine, machine, read_images, run_script
from steps import wait

reference = 'three_block_cnn', 'plain_cnn', 'wide_cnn', 'residual_cnn', *(f'ladder_{n}' for n in (0, 1, 2, 3, 4, 7))
ours = 'tiny_cnn', 'small_cnn_quick', 'small_cnn', 'airbench94_long', 'small_cnn_one_cycle'
airbench94_sgd = get_recipe('speedrun_94').change( # airbench's learning rates are for a sum of losses, these for their mean; the shape of the schedule is fastai's
    name='airbench94_sgd', bs=1024, optimizer='sgd', lr=1.5, bias_lr_mult=64., wd=1.33e-3, moms=(.85, .85, .85), pct_start=.23, div=5., div_final=14., lookahead=5,
    mixed_precision=False, compile=False)
peer_epochs = 9.9

class Clock(Callback):
    "For each fit of one epoch: seconds per image in training, and in the validation after it"
    order = 90 # after all others
    def __init__(self): self.fits = []
    def _begin(self): self.n,self.start = 0,self._now()
    def _end(self, what): self.fits[-1].setdefault(what, (self._now() - self.start)/self.n)
    def _now(self):
        wait(str(self.dls.device))
        return time.perf_counter()
    def before_train(self):
        self.fits.append({})
        self._begin()
    def after_train(self): self._end('train')
    def before_validate(self): self._begin()
    def after_validate(self): self._end('valid')
    def after_batch(self): self.n += len(self.yb[0])

def numbers(recipe, data):
    "Numbers of images that the full recipe trains and validates on"
    valid = recipe.valid if isinstance(recipe.valid, int) else data.n_test if recipe.valid == 'test' else round(recipe.valid*data.n_train)
    return data.n_train - (0 if recipe.valid == 'test' else valid), valid

def part(recipe, data, device, seconds):
    "How many images a stage of the recipe trains on in so many seconds: whole batches, at least eight"
    batches = max(8, round(seconds/seconds_per_image(recipe, len(data.classes), device, recipe.bs)/recipe.bs))
    return min(batches*recipe.bs, int(.8*data.n_train))

def seconds_of_epochs(recipe, data, device, limit):
    "Seconds per epoch of each stage of the full recipe"
    n_train,n_valid = numbers(recipe, data)
    with tempfile.TemporaryDirectory() as folder:
        train(recipe.shorten(1).change(valid=max(limit//5, len(data.classes))), source=data.path, run_dir=Path(folder)/'run', limit=limit, device=device, cbs=[clock := Clock()])
    return [n_train*o['train'] + n_valid*o['valid'] for o in clock.fits]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipes', nargs='*', help='names, or patterns (default: recipes of the reference projects that train from scratch, our own, and airbench94_sgd)')
    parser.add_argument('--seconds', type=float, default=6., metavar='S', help='of training in each stage, about (default: 6)')
    parser.add_argument('--runs', type=count, default=3, metavar='N', help='turns (default: 3)')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    data = describe_data(find_data(args.data))
    if args.device == 'cpu': reuse_memory()  # as training does
    recipes = [get_recipe(n) for n in matching(args.recipes or [*reference, *ours])] + [airbench94_sgd]*(not args.recipes)
    limits = [part(r, data, args.device, args.seconds) for r in recipes]
    measured = {r.name: [] for r in recipes}
    for r in recipes: read_images(r, data.path)
    for r,limit in zip(recipes, limits): seconds_of_epochs(r, data, args.device, min(limit, 4*r.bs))  # kernels are chosen
    for _ in range(args.runs):
        for r,limit in zip(recipes, limits): measured[r.name].append(seconds_of_epochs(r, data, args.device, limit))
    for r,limit in zip(recipes, limits):
        share = peer_epochs/r.epochs if r is airbench94_sgd else 1
        whole = [share*sum(s.epochs*seconds for s,seconds in zip(r.stages, run)) for run in measured[r.name]]
        n_train,n_valid = numbers(r, data)
        add_row('epochs', dict(recipe=r.name, variant=data.variant, epochs=share*r.epochs, seconds_median=round(statistics.median(whole), 1),
                               seconds_least=round(min(whole), 1), seconds_most=round(max(whole), 1), runs=args.runs, n_train=n_train, n_valid=n_valid,
                               images_timed=limit, bs=r.bs, device=args.device, precision=training_precision(r, args.device),
                               gpu=gpu_name(args.device), **machine(),
                               command=shlex.join(['python', 'benchmarks/epochs.py', *sys.argv[1:]])), instead_of=('recipe', 'variant', *kind_of_machine(args.device)))

if __name__ == '__main__': run_script(main)
