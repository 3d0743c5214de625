"""What checkpoints cost a training: `python benchmarks/checkpoints.py small_cnn --epochs 3`

Trains a recipe for some epochs, and adds a row to benchmarks/results/checkpoints.csv: how many checkpoints it wrote, how long that took
as a share of the training, and by how many MiB memory grew meanwhile, next to the size of the weights and the optimizer's state."""
import argparse
import statistics
import tempfile
import time
from pathlib import Path

from cifar_fastai import training
from cifar_fastai.checkpoints import Checkpoints
from cifar_fastai.recipes import get_recipe
from side_by_side import add_row, count, machine, run_script

def memory(name): # -> MiB
    "What Linux says about this process's memory"
    line = next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(name + ':'))
    return int(line.split()[1])/1024

class Measured(Checkpoints):
    "Checkpoints that are timed"
    milliseconds,grown,mib = [],[],[]

    def write(self, batch):
        Path('/proc/self/clear_refs').write_text('5') # begin anew with the peak
        before,start = memory('VmRSS'),time.perf_counter()
        super().write(batch)
        self.milliseconds.append(1e3*(time.perf_counter() - start))
        self.grown.append(memory('VmHWM') - before)
        self.mib.append(sum(f.stat().st_size for f in self.target.checkpoints_folder.iterdir())/2**20/len(self.target.checkpoints()))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('recipe')
    parser.add_argument('--epochs', type=count, default=3, metavar='N')
    parser.add_argument('--data', metavar='SOURCE')
    args = parser.parse_args()
    training.Checkpoints = Measured
    recipe = get_recipe(args.recipe).shorten(args.epochs)
    with tempfile.TemporaryDirectory() as tmp:
        start = time.perf_counter()
        learn = training.train(recipe, source=args.data, run_dir=Path(tmp)/'run')
        seconds = time.perf_counter() - start
        mib = (Path(tmp)/'run'/'model.safetensors').stat().st_size/2**20
    milliseconds = Measured.milliseconds
    if not milliseconds: raise SystemExit('The training took too little time for a checkpoint: train more epochs.')
    figures = dict(epochs=args.epochs, checkpoints=len(milliseconds), ms=round(statistics.median(milliseconds), 1),
                   share=round(sum(milliseconds)/1e3/seconds, 5), grown_mib=round(max(Measured.grown), 1), checkpoint_mib=round(max(Measured.mib), 1),
                   weights_mib=round(mib, 1), seconds=round(seconds, 1), variant=learn.dls.data_info.variant)
    add_row('checkpoints', dict(recipe=args.recipe, **figures, **machine(), command=f'python benchmarks/checkpoints.py {args.recipe} --epochs {args.epochs}'))

if __name__ == '__main__': run_script(main)
