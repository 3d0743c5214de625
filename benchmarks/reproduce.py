"""Train recipes over seeds, with one row per run in benchmarks/results/training.csv: `python benchmarks/reproduce.py 'ladder_[0-4]' wide_cnn --seeds 3`

Each finished run is evaluated on the test images once. The same call again continues where it was stopped. `--budget 5` shortens each run
to about five minutes on this machine, with every stage: fewer epochs, and if two per stage are still too many, fewer images, for
validation too. Such runs are called ..._short, record their number of images and epochs, and do not use the test images."""
import argparse
import time
from pathlib import Path

import torch

import record_run
from cifar_fastai.sources import describe_data, find_data
from cifar_fastai.evaluation import tta_views
from cifar_fastai.experiments import run_grid
from cifar_fastai.recipes import get_recipe, list_recipes
from cifar_fastai.runs import list_runs
from cifar_fastai.training import build_model, reuse_memory
from side_by_side import count, run_script

def seconds_per_image(recipe, n_out, device, bs=None):
    "How long a training step takes, for one image, in 32-bit floats: the quickest of three; without `bs`, of the recipe's batches, or of as many of its images as 256 small ones are"
    bs = bs or min(recipe.bs, max(8, 2**18//recipe.image_size**2))
    model = build_model(recipe, n_out, pretrained=False).to(device, memory_format=torch.channels_last)
    x = torch.randn(bs, 3, recipe.image_size, recipe.image_size, device=device).to(memory_format=torch.channels_last)
    def step():
        start = time.perf_counter()
        model(x).square().mean().backward()
        if device.startswith('cuda'): torch.cuda.synchronize(device)
        return time.perf_counter() - start
    step()
    return min(step() for _ in range(3))/bs

def shortened(recipe, n_images, seconds, per_image):
    "The recipe with as many epochs a stage as there is time for, and the number of images: None for all"
    epochs = max((k for k in range(2, max(s.epochs for s in recipe.stages) + 1)
                  if sum(min(s.epochs, k) for s in recipe.stages)*n_images*per_image <= seconds), default=2)
    short = recipe.shorten(epochs)
    limit = max(10*recipe.bs, int(seconds/per_image/short.epochs))
    if short.stages == recipe.stages and limit >= n_images: return recipe,None
    if limit < n_images: return short.change(valid=limit//5),limit
    return short.change(valid=.1) if short.valid == 'test' else short,None

def begun(out, name, axes):
    "What a shortened run of an earlier call was: its recipe and number of images, or None"
    for run in list_runs(out):
        if not run.folder.name.startswith(f'{name}_short'): continue
        recipe = run.recipe
        if all(getattr(recipe, k) == v for k,v in axes.items()): return recipe,run.info['data']['limit']

def run(recipe, seeds, out, data, device, tta=None, limit=None, axes=None):
    "Train a recipe over seeds, evaluate it on the test images and write the rows; return the table of runs"
    test = bool(data.n_test) and not recipe.name.endswith('_short')
    print(f'{recipe.name}: {recipe.epochs} epochs of {limit or "all"} images, {seeds} seeds')
    runs = run_grid(recipe, seeds, out, source=data.path, limit=limit, device=device, test=test and (tta or True), **(axes or {}))
    print(runs[['run', 'status', 'valid_accuracy', 'test_accuracy', 'epochs_run', 'seconds', 'error']].to_string(index=False))
    finished = runs[runs.status == 'finished']
    if data.n_test: record_run.record(*finished.run)
    return finished

def matching(patterns): return [n for p in patterns for n in list_recipes(p) or [get_recipe(p).name]]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipes', nargs='+', help="names, or patterns such as 'ladder_*'")
    parser.add_argument('--seeds', type=count, default=3, metavar='N', help='seeds 0 to N-1 (default: 3)')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--out', default='runs/reproduce', metavar='FOLDER', help='of the run folders (default: runs/reproduce)')
    parser.add_argument('--weights', metavar='NAME|FILE|RUN', help='initial weights of fine-tuned networks, instead of those of their recipe')
    parser.add_argument('--image-size', type=count, metavar='N', help='side in pixels, instead of that of the recipe')
    parser.add_argument('--tta', metavar='NAME', help='evaluate on the test images a second time, with this test-time augmentation: flip, flip_shift or fastai')
    parser.add_argument('--budget', type=float, metavar='MINUTES', help='shorten each run to about so many minutes')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    out,data = Path(args.out),describe_data(find_data(args.data))
    if args.tta: tta_views(args.tta)  # refuses a wrong name now
    if args.device == 'cpu': reuse_memory()  # as training does
    for name in matching(args.recipes):
        whole,limit = get_recipe(name),None
        axes = {k: v for k,v in dict(weights=args.weights if whole.weights else None, image_size=args.image_size).items() if v}
        recipe = whole.change(**axes)
        if args.budget:
            recipe,limit = begun(out, name, axes) or shortened(
                recipe, data.n_train, 60*args.budget, seconds_per_image(recipe, len(data.classes), args.device))
        plain = recipe.change(**{k: getattr(whole, k) for k in axes})  # so that the folders are named after what was changed
        run(plain, args.seeds, out, data, args.device, args.tta, limit, axes)

if __name__ == '__main__': run_script(main)
