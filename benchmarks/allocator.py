"""What a learner gains from keeping freed memory for the next step: `python benchmarks/allocator.py small_cnn_one_cycle ladder_0 ladder_2`

Runs training steps of a recipe's network on random images, on the CPU, with and without `training.reuse_memory`. Each side runs in its own
process, in turns, three times. Each recipe gets a row in benchmarks/results/allocator.csv: median milliseconds per step, and median peak
memory of the process in MiB."""
import argparse
import json
import os
import resource
import statistics
import time

import torch
from torch.nn.functional import cross_entropy

from cifar_fastai.recipes import get_recipe
from cifar_fastai.training import build_model, optimizer_function, reuse_memory
from side_by_side import add_row, in_turns, machine, medians, run_script

sides = 'given_back','reused'

def measure(name, side, steps=20):
    "The median of some steps, in this process"
    if side == 'reused' and not reuse_memory(): raise SystemExit('This allocator cannot be told to keep freed memory.')
    recipe = get_recipe(name)
    model = build_model(recipe, 10, pretrained=False).to(memory_format=torch.channels_last).train()
    opt = optimizer_function(recipe)([list(model.parameters())], lr=1e-3)
    x = torch.randn(recipe.bs, 3, recipe.image_size, recipe.image_size).to(memory_format=torch.channels_last)
    y = torch.randint(10, (recipe.bs,))
    def step():
        start = time.perf_counter()
        cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()
        return 1e3*(time.perf_counter() - start)
    for _ in range(3): step()
    return dict(ms=statistics.median(step() for _ in range(steps)), mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipes', nargs='+', metavar='RECIPE')
    args = parser.parse_args().recipes
    if args[-1] in sides: return print(json.dumps(measure(*args)))
    if any(k.startswith('MALLOC_') for k in os.environ): raise SystemExit('Unset the MALLOC_... variables first: they are what is measured here.')
    for name in args:
        figures = medians(in_turns(__file__, [name], sides), 'ms', 'mib')
        ratio = round(figures['given_back_ms']/figures['reused_ms'], 2)
        add_row('allocator', dict(recipe=name, bs=get_recipe(name).bs, **figures, ratio=ratio, runs=3, **machine(), command=f'python benchmarks/allocator.py {name}'))

if __name__ == '__main__': run_script(main)
