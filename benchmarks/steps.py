"""What a training step costs, and where the time goes: `python benchmarks/steps.py small_cnn_one_cycle`

Five sides, each in its own process, in turns, three times: fastai's `Learner` from `create_learner`, with images in memory; a loop in plain
PyTorch with the same network, batches and loss, and torch's optimizer (ours where torch has none); the loader alone; the network's
convolutions alone, forward and backward, with the input sizes that they have there; and a large matrix product. Each recipe gets a row in
benchmarks/results/steps.csv: median milliseconds per step, GFLOP/s of each side (a multiplication and an addition are two), the overhead of
the Learner over the loop, and the shares of its step that the loader and the convolutions take."""
import argparse
import json
import shlex
import sys
import time
from functools import partial

import torch
from fastai.callback.core import Callback, CancelFitException, CancelValidException
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.sources import describe_data, find_data
from cifar_fastai.recipes import get_recipe
from cifar_fastai.callbacks import compile_whole, training_precision
from cifar_fastai.training import build_model, create_learner, optimizer_function, reuse_memory
from side_by_side import add_row, count, gpu_name, in_turns, machine, medians, run_script

warm_up,matrix = 5,4096

def wait(device):
    if device.startswith('cuda'): torch.cuda.synchronize(device)

def dataloaders(args, recipe):
    "With all images in memory"
    dls = cifar10_dataloaders(args.data, bs=args.bs or recipe.bs, augment=recipe.augment, stats=recipe.stats, image_size=recipe.image_size,
                              device=args.device, in_memory=True)
    dls.train_ds.cache.take(range(dls.train_ds.cache.n))
    return dls

def batches(dl):
    "Without end"
    while True: yield from dl

class Clock(Callback):
    "Stop after so many training steps, and know how long they took"
    def __init__(self, steps): self.steps,self.n = steps,0
    def before_validate(self): raise CancelValidException
    def after_batch(self):
        self.n += 1
        if self.n not in (warm_up, warm_up + self.steps): return
        wait(str(self.dls.device))
        if self.n > warm_up:
            self.ms = 1e3*(time.perf_counter() - self.start)/self.steps
            raise CancelFitException
        self.start = time.perf_counter()

def time_learner(args, recipe):
    "fastai's Learner"
    learn = create_learner(recipe, dataloaders(args, recipe), cbs=[clock := Clock(args.steps)])
    with learn.no_bar(), learn.no_logging(): learn.fit(10**6, 1e-4)
    return dict(ms=clock.ms)

optimizers = dict(sgd=partial(torch.optim.SGD, momentum=.9, nesterov=True), adam=torch.optim.Adam, adamw=torch.optim.AdamW)

def optimizer(model, recipe):
    "torch's, or our own where it has none for filters"
    if recipe.optimizer == 'muon': return optimizer_function(recipe)(list(model.parameters()), lr=1e-4, wd=recipe.wd)
    return optimizers[recipe.optimizer](model.parameters(), lr=1e-4, weight_decay=recipe.wd)

def check(recipe, device):
    "Refuse what the loop in plain PyTorch does not do"
    for name,asked in (('l2', recipe.l2), ('mixed_precision', training_precision(recipe, device) == 'fp16')):
        if asked: raise SystemExit(f'{recipe.name} has {name}={getattr(recipe, name)!r}, which the loop here has no counterpart of. Choose another recipe, such as small_cnn_one_cycle.')

def autocast(args, recipe):
    "As the recipe has it on this device"
    return torch.autocast(args.device.partition(':')[0], torch.bfloat16, enabled=training_precision(recipe, args.device) == 'bf16')

def steps_of(model, dl, recipe, autocast):
    "One training step after another, in plain PyTorch"
    opt = optimizer(model, recipe)
    for x,y in batches(dl):
        with autocast: out = model(x.as_subclass(torch.Tensor))
        loss = cross_entropy(out.float(), y.as_subclass(torch.Tensor), label_smoothing=recipe.label_smoothing)
        loss.backward()
        opt.step()
        opt.zero_grad()
        yield loss

def network(args, recipe, n_out):
    if args.device == 'cpu': reuse_memory() # as `create_learner` does
    model = build_model(recipe, n_out, pretrained=False).to(args.device, memory_format=torch.channels_last).train()
    if recipe.compile and args.device.startswith('cuda'): compile_whole(model)
    return model

def time_loop(args, recipe):
    "The same in plain PyTorch"
    dls = dataloaders(args, recipe)
    steps = steps_of(network(args, recipe, dls.c), dls.train, recipe, autocast(args, recipe))
    for _ in range(warm_up): next(steps)
    wait(args.device)
    start = time.perf_counter()
    for _ in range(args.steps): next(steps)
    wait(args.device)
    ms = 1e3*(time.perf_counter() - start)/args.steps
    with FlopCounterMode(display=False) as counter: next(steps)
    return dict(ms=ms, gflop=counter.get_total_flops()/1e9)

def time_loader(args, recipe):
    "Batches, and nothing done with them"
    loader = batches(dataloaders(args, recipe).train)
    for _ in range(warm_up): next(loader)
    wait(args.device)
    start = time.perf_counter()
    for _ in range(args.steps): next(loader)
    wait(args.device)
    return dict(ms=1e3*(time.perf_counter() - start)/args.steps)

def seen_by_convolutions(model, x):
    "Each convolution with weights to train, the shape of its input, and whether that gets a gradient"
    seen = []
    hooks = [m.register_forward_hook(lambda m, args, out: seen.append((m, args[0].shape, args[0].requires_grad)))
             for m in model.modules() if isinstance(m, nn.Conv2d)]
    model(x)
    for h in hooks: h.remove()
    return seen

def time_convolutions(args, recipe):
    "The convolutions alone"
    model,bs,dtype = network(args, recipe, 10),args.bs or recipe.bs,torch.bfloat16 if training_precision(recipe, args.device) == 'bf16' else torch.float32
    image = torch.zeros(2, 3, recipe.image_size, recipe.image_size, device=args.device)
    ms = gflop = 0
    for conv,shape,on in seen_by_convolutions(model, image):
        conv,x = conv.to(dtype),torch.randn(bs, *shape[1:], device=args.device, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_(on)
        grad,wanted = torch.randn_like(conv(x)),[t for t in (x, *conv.parameters()) if t.requires_grad]
        def step(): torch.autograd.grad(conv(x), wanted, grad)
        for _ in range(warm_up): step()
        wait(args.device)
        start = time.perf_counter()
        for _ in range(args.steps): step()
        wait(args.device)
        ms += 1e3*(time.perf_counter() - start)/args.steps
        with FlopCounterMode(display=False) as counter: conv(x).backward(grad)
        gflop += counter.get_total_flops()/1e9
    return dict(ms=ms, gflop=gflop)

def time_matrix(args, recipe):
    "A product of two square matrices, of 32-bit floats"
    a,b = torch.randn(2, matrix, matrix, device=args.device)
    a @ b
    wait(args.device)
    start = time.perf_counter()
    for _ in range(3): a @ b
    wait(args.device)
    return dict(ms=1e3*(time.perf_counter() - start)/3, gflop=2*matrix**3/1e9)

sides = dict(learner=time_learner, loop=time_loop, loader=time_loader, convolutions=time_convolutions, matrix=time_matrix)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipe')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--bs', type=count, help="images in a batch (default: the recipe's)")
    parser.add_argument('--steps', type=count, default=30, help='steps that are timed, after five that are not (default: 30)')
    parser.add_argument('--runs', type=count, default=3, metavar='N', help='turns (default: 3)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('side', nargs='?', help=argparse.SUPPRESS)
    args = parser.parse_intermixed_args()
    recipe = get_recipe(args.recipe)
    check(recipe, args.device)
    if args.side: return print(json.dumps(sides[args.side](args, recipe)))
    path,bs = find_data(args.data),args.bs or recipe.bs
    measured = in_turns(__file__, [recipe.name, '--data', str(path), '--bs', f'{bs}', '--steps', f'{args.steps}', '--device', args.device], sides, args.runs)
    ms = medians(measured, 'ms')
    gflop = {side: measured['loop' if side == 'learner' else side][0]['gflop'] for side in sides if side != 'loader'}
    add_row('steps', dict(
        recipe=recipe.name, bs=bs, **ms, **{f'{side}_gflops': round(1e3*gflop[side]/ms[f'{side}_ms']) for side in gflop},
        overhead=round(ms['learner_ms']/ms['loop_ms'] - 1, 3), loader_share=round(ms['loader_ms']/ms['learner_ms'], 3),
        convolutions_share=round(ms['convolutions_ms']/ms['learner_ms'], 3), runs=args.runs,
        steps=args.steps, variant=describe_data(path).variant, device=args.device, precision=training_precision(recipe, args.device), gpu=gpu_name(args.device),
        **machine(), command=shlex.join(['python', 'benchmarks/steps.py', *sys.argv[1:]])))

if __name__ == '__main__': run_script(main)
