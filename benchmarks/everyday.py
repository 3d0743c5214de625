"""How long do everyday tasks take, from a new process to the result? `python benchmarks/everyday.py ARCHIVE`

Each task twice, in a new process and in turns: with this package, and as people write it with fastai alone: import, list networks, the first
batch with an empty and with a warm cache, the first step of a training, classify five images, evaluate a network on the test images. The
last two have the same `tiny_cnn`, which the script trains first; the first step is of `small_cnn`, and with fastai alone of its `xresnet18`.
Rows go to benchmarks/results/everyday.csv: medians of wall and CPU time."""
import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageDataLoaders

from cifar_fastai.recipes import get_recipe
from cifar_fastai.sources import describe_data, find_data, image_files
from cifar_fastai.training import train
from side_by_side import add_row, count, cpu_seconds, machine, run_script

cli = 'import sys; from cifar_fastai.cli import main; sys.exit(main({}))'
stop = '''
import os
from fastai.callback.core import Callback
class Stop(Callback):
    def after_batch(self): os._exit(0)
'''
tasks = {  # name -> with this package, with fastai alone; names in braces are filled in, and files are in the working folder
    'import': (
        'import cifar_fastai.training',
        'from fastai.vision.all import *'),
    'list the networks': (
        cli.format('["models"]'),
        'import torchvision; print(torchvision.models.list_models())'),
    'first batch, cold': (
        'from cifar_fastai.data import cifar10_dataloaders; cifar10_dataloaders({archive!r}).one_batch()',
        "import tarfile; from fastai.vision.all import *; tarfile.open({archive!r}).extractall('unpacked', filter='data'); "
        "ImageDataLoaders.from_folder(get_image_files('unpacked')[0].parents[2], train='train', valid='test').one_batch()"),
    'first batch, warm': (
        'from cifar_fastai.data import cifar10_dataloaders; cifar10_dataloaders({folder!r}).one_batch()',
        "from fastai.vision.all import *; ImageDataLoaders.from_folder({folder!r}, train='train', valid='test').one_batch()"),
    'first step of a training': (
        stop + "from cifar_fastai.training import train; train('small_cnn_one_cycle', source={folder!r}, run_dir='new', cbs=[Stop()])",
        stop + "from fastai.vision.all import *; "
        "Learner(ImageDataLoaders.from_folder({folder!r}, train='train', valid='test'), xresnet18(n_out=10)).fit_one_cycle(1, cbs=Stop())"),
    'classify five images': (
        cli.format('["predict", "run", *{images!r}]'),
        "from fastai.vision.all import *; learn = load_learner('learner.pkl'); [print(learn.predict(file)) for file in {images!r}]"),
    'evaluate on the test images': (
        cli.format('["evaluate", "run"]'),
        "from fastai.vision.all import *; learn = load_learner('learner.pkl'); "
        "print(learn.validate(dl=learn.dls.test_dl(get_image_files({folder!r} + '/test'), with_labels=True)))"),
}

def prepare(folder, data):
    "A run, and the same network as fastai exports it, in `folder`"
    learn = train(get_recipe('tiny_cnn').change(valid=.1), source=data, limit=2000, run_dir=folder/'run')
    dls = ImageDataLoaders.from_folder(data, train='train', valid='test', batch_tfms=Normalize.from_stats(*imagenet_stats))
    Learner(dls, learn.model.cpu(), metrics=accuracy).export(folder/'learner.pkl')

def measure(code, folder, cold):
    "Wall and CPU seconds of a new process; `cold` with an empty cache"
    for made in 'unpacked', 'caches', 'new': shutil.rmtree(folder/made, ignore_errors=True)
    env = os.environ | dict(CIFAR_FASTAI_HOME=str(folder/'caches')) if cold else None
    begin,cpu = time.perf_counter(),cpu_seconds()
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin, cpu_seconds() - cpu

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('archive', type=Path, help='of CIFAR-10 as class folders, .tgz')
    parser.add_argument('--tasks', nargs='+', choices=tasks, default=list(tasks), metavar='NAME', help=f'some of: {", ".join(tasks)}')
    parser.add_argument('--turns', type=count, default=5, metavar='N', help='measurements of each side (default: %(default)s)')
    args = parser.parse_args()
    data = describe_data(find_data(args.archive))
    with TemporaryDirectory() as folder:
        folder = Path(folder)
        prepare(folder, data.path)
        files = image_files(data.path/'test')
        five = [str(f) for f in files[::max(1, len(files)//5)][:5]]
        values = dict(archive=str(args.archive.absolute()), folder=str(data.path), images=five)
        for task in args.tasks:
            codes = [code.format(**values) for code in tasks[task]]
            for code in codes: measure(code, folder, False) # what it reads is then in memory
            took = [[measure(code, folder, 'cold' in task) for code in codes] for _ in range(args.turns)]
            row = {}
            for i,side in enumerate(('ours', 'fastai')):
                wall,cpu = zip(*(turn[i] for turn in took))
                row |= {f'{side}_seconds': round(median(wall), 2), f'{side}_least': round(min(wall), 2), f'{side}_most': round(max(wall), 2),
                        f'{side}_cpu_seconds': round(median(cpu), 2)}
            ratio = median(theirs[0]/ours[0] for ours,theirs in took)
            add_row('everyday', dict(
                task=task, **row, ratio=round(ratio, 2), turns=args.turns, variant=data.variant, device='cpu', **machine(),
                command=f'python benchmarks/everyday.py ARCHIVE --turns {args.turns}'), instead_of=('task', 'instructions', 'threads'))
            print()

if __name__ == '__main__': run_script(main)
