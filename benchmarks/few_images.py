"""Accuracy from few labeled images, from scratch and from ImageNet weights: `python benchmarks/few_images.py`

Trains on 10, 25, 100 and 500 images of each class: two networks from scratch; a new head on the frozen body of EfficientNet-Lite0, at 128
pixels; and the same with all layers fine-tuned after that. Each seed draws other training images and other 500 validation images. Each
run is evaluated on the test images once and gets a row in benchmarks/results/few_images.csv. The same call again continues where it was
stopped. `--choose` trains with seed 100 instead and reads no test images: it is for choosing epochs and learning rates, and writes no row."""
import argparse
from pathlib import Path

from cifar_fastai.experiments import run_grid
from cifar_fastai.recipes import Stage, get_recipe
from cifar_fastai.runs import Run
from side_by_side import add_row, commit, count, machine, run_script

def from_scratch(name, n):
    "One of our networks, trained until the loss on so few images is low"
    epochs = {10: 60, 25: 60, 100: 40, 500: 20}[n]
    return get_recipe(name).change(name=f'{name} from scratch', valid=500, bs=25, stages=Stage(epochs=epochs, lr=2e-3), augment='flip_crop',
                                   label_smoothing=.1, optimizer='adamw', wd=.05, mixed_precision=False)

def pretrained(name, *stages): return get_recipe('finetune').change(name=name, valid=500, bs=25, wd=.1, stages=stages)

head_alone = Stage(epochs=30, lr=3e-3, freeze_to='head', bn='frozen', augment='none') # each image passes through the body once

def frozen(n): return pretrained('frozen', head_alone)

def fine_tuned(n):
    "The head first, then all layers"
    epochs = {10: 10, 25: 10, 100: 5, 500: 3}[n]
    return pretrained('fine-tuned', head_alone, Stage(epochs=epochs, lr=(2e-4, 2e-3), bn='frozen', augment='flip_crop'))

def recipes(n): return [from_scratch('tiny_cnn', n), from_scratch('small_cnn', n), frozen(n), fine_tuned(n)]

def add(found, n):
    "A row for each finished run, instead of an earlier one of its seed"
    for row in found.itertuples():
        run = Run.open(row.run)
        about,data = run.info,run.info['data']
        add_row('few_images', dict(
            images_a_class=n, recipe=run.recipe.name, model=run.recipe.model, weights=run.recipe.weights,
            image_size=run.recipe.image_size, epochs=about['epochs'], seed=about['seed'], variant=data['variant'], n_train=data['n_train'],
            n_valid=data['n_valid'], n_test=data['n_test'], valid_accuracy=row.valid_accuracy, test_accuracy=row.test_accuracy,
            train_seconds=about['seconds'], device=about['device'], gpu=(about['hardware']['gpu'] or '')*about['device'].startswith('cuda'), **machine(about),
            started=about['started'],
            command='python benchmarks/few_images.py', **commit(about['started'])), instead_of=('images_a_class', 'recipe', 'seed', 'variant'))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, nargs='+', default=[25, 10, 100, 500], choices=[10, 25, 100, 500], metavar='N',
                        help='of each class: 10, 25, 100 or 500 (default: all)')
    parser.add_argument('--recipes', nargs='+', metavar='NAME', help="some of them: 'frozen', 'fine-tuned', 'tiny_cnn from scratch', ...")
    parser.add_argument('--seeds', type=count, default=3, metavar='N', help='seeds 0 to N-1 (default: 3)')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--out', default='runs/few_images', metavar='FOLDER', help='of the run folders (default: runs/few_images)')
    parser.add_argument('--choose', action='store_true', help='validation images only, with a seed that has no row')
    args = parser.parse_args()
    for n in args.images:
        chosen = [r for r in recipes(n) if not args.recipes or r.name in args.recipes]
        seeds,out = ([100],f'choose-{n}') if args.choose else (args.seeds,str(n))
        found = run_grid(chosen, seeds, Path(args.out)/out, source=args.data, limit=10*n, test=not args.choose)
        print(found[['run', 'status', 'valid_accuracy', 'test_accuracy', 'seconds', 'error']].to_string(index=False))
        if not args.choose: add(found[found.status == 'finished'], n)

if __name__ == '__main__': run_script(main)
