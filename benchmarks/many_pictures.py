"""How long do many pictures take? `python benchmarks/many_pictures.py RUN --files FOLDER`

`Classifier.iter_predictions`, which `cifar-fastai predict` uses, against what people write with torchvision: a loop over the files, one at a
time, and a Dataset in a DataLoader. The pictures are the files of a folder, and photographs of 12 megapixels, which the script makes. Each side
runs in its own process, in turns; rows go to benchmarks/results/many_pictures.csv."""
import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar_fastai.inference import load_classifier
from cifar_fastai.runs import Run, available_cores
from side_by_side import add_row, count, in_turns, machine, run_script

def write_photographs(folder, n, different=10):
    "JPEG files of 12 megapixels: smooth colors with the noise of a camera"
    rng = np.random.default_rng(0)
    for i in range(different):
        smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((4000, 3000), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth, np.int16) + rng.normal(0, 4, (3000, 4000, 1)).astype(np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder/f'{i:04}.jpg', quality=90)
    for i in range(different, n): shutil.copy(folder/f'{i % different:04}.jpg', folder/f'{i:04}.jpg')

class Pictures(Dataset):
    "As in torchvision's tutorials"
    def __init__(self, files, info):
        self.files = files
        self.tfms = transforms.Compose([transforms.Resize(info.item_size), transforms.ToTensor(), transforms.Normalize(info.mean, info.std)])
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return self.tfms(Image.open(self.files[i]).convert('RGB'))

def by_loop(classifier, files):
    pictures = Pictures(files, classifier.info)
    for i in range(len(files)): classifier.model(pictures[i][None]).argmax(1)

def by_loader(classifier, files):
    for batch in DataLoader(Pictures(files, classifier.info), batch_size=64, num_workers=available_cores()): classifier.model(batch).argmax(1)

def by_predict(classifier, files):
    for _ in classifier.iter_predictions(files): pass

sides = dict(predict=by_predict, loop=by_loop, loader=by_loader)

def measure(run, folder, n, side):
    classifier = load_classifier(run, 'cpu')
    files = sorted(f for f in Path(folder).rglob('*') if f.is_file())[:n]
    with torch.inference_mode():
        sides[side](classifier, files[:2]) # warm
        begin = time.perf_counter()
        sides[side](classifier, files)
    print(json.dumps(dict(seconds=time.perf_counter() - begin, n=len(files))))

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='folder of a run')
    parser.add_argument('--files', type=Path, help='folder of small pictures')
    parser.add_argument('--n', type=count, default=10_000, help='how many of them (%(default)s)')
    parser.add_argument('--photographs', type=count, default=500, help='how many of 12 megapixels (%(default)s)')
    parser.add_argument('--turns', type=count, default=3, help='measurements of each side (%(default)s)')
    parser.add_argument('side', nargs='?', choices=sides, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side: return measure(args.run, args.files, args.n, args.side)
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder), args.photographs)
        for kind,where,n in ('small files', args.files, args.n), ('photographs of 12 megapixels', folder, args.photographs):
            if where is None: continue
            took = in_turns(__file__, ['--files', str(where), '--n', str(n), str(args.run)], sides, args.turns)
            medians = {side: statistics.median(o['seconds'] for o in runs) for side,runs in took.items()}
            for side,runs in took.items():
                seconds = [o['seconds'] for o in runs]
                n_files = runs[0]['n']
                add_row('many_pictures', dict(
                    pictures=kind, n=n_files, side=side, images_per_second=round(n_files/medians[side], 1), slowest_images_per_second=round(n_files/max(seconds), 1),
                    fastest_images_per_second=round(n_files/min(seconds), 1), ratio=round(medians['loop']/medians[side], 2), turns=args.turns,
                    recipe=Run(args.run).recipe.name, device='cpu', **machine(), command='python benchmarks/many_pictures.py RUN' + ' --files FOLDER'*(args.files is not None) + f' --turns {args.turns}'),
                    instead_of=('pictures', 'side', 'instructions', 'threads'))
                print()

if __name__ == '__main__': run_script(main)
