"""What does a run cost to use, as PyTorch and as exported files? `python benchmarks/exports.py RUN`

The run is exported to ONNX with 32-bit floats and with 8-bit integers; PyTorch runs it with 32-bit and with 16-bit floats (bfloat16).
Each gets the same validation images as 8-bit pixels, one at a time (latency) and in batches of 64 (throughput), in turns with the others.
Rows go to benchmarks/results/exports.csv: the median over the turns, and the accuracy on these images."""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from cifar_fastai.exporting import export_run
from cifar_fastai.inference import load_classifier, to_bytes
from cifar_fastai.runs import Run
from cifar_fastai.training import load_run
from side_by_side import add_row, count, machine, run_script

def validation_images(run, n):
    "Pixels (n, C, H, W) from 0 to 1, and labels, in random order"
    dl = load_run(run, num_workers=0, device='cpu').dls.valid
    pixels,labels = zip(*[dl.do_item(i)[:2] for i in torch.randperm(len(dl.dataset), generator=torch.Generator().manual_seed(0))[:n].tolist()])
    return torch.stack([x.as_subclass(torch.Tensor) for x in pixels]).float()/255,torch.stack([y.as_subclass(torch.Tensor) for y in labels])

def seconds(classify, batches):
    begin = time.perf_counter()
    for batch in batches: classify(batch)
    return time.perf_counter() - begin

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='folder of a run')
    parser.add_argument('--images', type=count, default=2000, help='validation images (%(default)s)')
    parser.add_argument('--turns', type=count, default=5, help='measurements of each side (%(default)s)')
    args = parser.parse_args()
    pixels,labels = validation_images(args.run, args.images)
    with tempfile.TemporaryDirectory() as folder:
        files = {precision: export_run(args.run, f'{folder}/{precision}.onnx', int8=precision == 'int8') for precision in ('fp32', 'int8')}
        network = load_classifier(args.run, 'cpu')
        onnx = {precision: load_classifier(told.file).model for precision,told in files.items()}
    def pytorch(images): return network.forward(images.permute(0, 3, 1, 2).float()/255)
    def bf16(images):
        with torch.autocast('cpu', torch.bfloat16): return pytorch(images)
    sides = {('PyTorch', 'fp32'): pytorch, ('PyTorch', 'bf16'): bf16, ('ONNX Runtime', 'fp32'): onnx['fp32'], ('ONNX Runtime', 'int8'): onnx['int8']}
    images = to_bytes(pixels).contiguous()
    one,many = images[:100].split(1),images.split(64)
    took = {side: [] for side in sides}
    with torch.inference_mode():
        for classify in sides.values(): seconds(classify, many[:4])
        for _ in range(args.turns):
            for side,classify in sides.items(): took[side].append((seconds(classify, one)/len(one), seconds(classify, many)))
        right = {side: (torch.cat([classify(some) for some in many]).argmax(1) == labels).float().mean().item() for side,classify in sides.items()}
    info,weights = Run(args.run).info,Run(args.run).weights_file.stat().st_size
    for (program,precision),times in took.items():
        latencies,rounds = zip(*times)
        add_row('exports', dict(
            program=program, precision=precision, recipe=network.info.recipe.name, seed=info['seed'], variant=info['data']['variant'], split='valid', n=len(images),
            milliseconds_for_one=round(1000*statistics.median(latencies), 2), fastest_for_one=round(1000*min(latencies), 2), slowest_for_one=round(1000*max(latencies), 2),
            images_per_second=round(len(images)/statistics.median(rounds)), slowest_images_per_second=round(len(images)/max(rounds)),
            fastest_images_per_second=round(len(images)/min(rounds)), megabytes=round((weights if program == 'PyTorch' else files[precision].n_bytes)/1e6, 2),
            accuracy=round(right[program, precision], 4), bs=64, turns=args.turns, device='cpu', **machine(), command='python benchmarks/exports.py RUN'),
            instead_of=('program', 'precision', 'recipe', 'variant', 'instructions', 'threads'))
        print()

if __name__ == '__main__': run_script(main)
