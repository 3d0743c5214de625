"""The baseline: one of our networks, trained with fastai's own parts only: `python benchmarks/plain_fastai.py small_cnn --epochs 9`

Worker processes read the images from files in every epoch, with reflection padding, random crop and flip. The random split, the optimizer
and `fit_one_cycle` are fastai's. Whitening filters are fitted as in a recipe, since they are part of the network. The run is recorded in
benchmarks/results/training.csv and curves.csv as plain_fastai, for comparison with the recipe of the same network. The test images are not
read."""
import argparse
import time

from fastai.callback.core import Callback
from fastai.callback.schedule import Learner
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import Normalize, RandomSplitter, get_image_files, parent_label
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import CropPad, Flip, PadMode, RandomCrop
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageBlock

from cifar_fastai.data import default_workers
from cifar_fastai.sources import describe_data, find_data
from cifar_fastai.models import count_parameters, create_model
from cifar_fastai.runs import hardware, versions
from cifar_fastai.training import fit_stem
import record_run
import side_by_side

class Curve(Callback):
    "Seconds, losses and accuracy of each epoch"
    order = 51 # after fastai's Recorder
    def before_fit(self): self.start,self.epochs = time.perf_counter(),[]
    def after_epoch(self):
        train_loss,valid_loss,acc = self.recorder.values[-1]
        self.epochs.append(dict(epoch=self.epoch + 1, seconds=round(time.perf_counter() - self.start, 1), train_loss=round(train_loss, 6),
                                valid_loss=round(valid_loss, 6), valid_accuracy=round(acc, 6)))

def dataloaders(path, bs, workers, size):
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(.1),
                      item_tfms=[CropPad(size + size//4, pad_mode=PadMode.Reflection), RandomCrop(size)], batch_tfms=[Flip(), Normalize.from_stats(*imagenet_stats)])
    return block.dataloaders(path/'train', bs=bs, num_workers=workers)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('model', help='one of `cifar-fastai models`')
    parser.add_argument('--epochs', type=side_by_side.count, default=9, metavar='N')
    parser.add_argument('--lr', type=float, default=3e-3, metavar='X', help="the maximum learning rate of the cycle; fastai's optimizer is AdamW (default: 0.003)")
    parser.add_argument('--bs', type=side_by_side.count, default=64, metavar='N', help="fastai's default is 64")
    parser.add_argument('--workers', type=int, metavar='N', help='default: one for each core')
    parser.add_argument('--seed', type=int, default=0, metavar='N')
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    args = parser.parse_args()
    info = describe_data(find_data(args.data))
    workers = default_workers(info.n_train) if args.workers is None else args.workers
    set_seed(args.seed)
    dls = dataloaders(info.path, args.bs, workers, info.size[0])
    model = fit_stem(create_model(args.model, dls.c, image_size=info.size[0]), dls)
    learn = Learner(dls, model, metrics=accuracy, cbs=(curve := Curve()))
    started,cpu_start = time.strftime('%Y-%m-%dT%H:%M:%S%z'),side_by_side.cpu_seconds()
    with learn.no_bar(): learn.fit_one_cycle(args.epochs, args.lr)
    about = dict(recipe='plain_fastai', variant=info.variant, image_size=info.size[0], seed=args.seed, started=started)
    machine,installed,last = hardware(),versions(),curve.epochs[-1]
    record_run.add(side_by_side.results/'curves.csv', [about | o for o in curve.epochs])
    record_run.add(side_by_side.results/'training.csv', [about | dict(
        model=args.model, n_train=len(dls.train_ds), n_valid=len(dls.valid_ds), epochs=args.epochs, train_seconds=last['seconds'], cpu_seconds=round(side_by_side.cpu_seconds() - cpu_start, 1),
        valid_accuracy=last['valid_accuracy'], parameters=count_parameters(learn.model).total, device=str(dls.device), precision='fp32',
        **{k: machine[k] for k in ('cpu', 'instructions', 'cores', 'threads', 'gpu')}, **{k: installed[k] for k in ('python', 'torch', 'fastai', 'cifar_fastai')},
        command=f'python benchmarks/plain_fastai.py {args.model} --epochs {args.epochs} --lr {args.lr} --bs {args.bs} --workers {workers} --seed {args.seed}', **side_by_side.commit())])

if __name__ == '__main__': side_by_side.run_script(main)
