"""Which changed copies of an image `find_duplicates` finds: `python benchmarks/near_copies.py`

For each kind of change, 1,000 random training images and their changed copies are looked through with one threshold `near`; the copies that
are in a group with their image were found. And on the whole data set: how many groups there are, with how many images, how many test images
are in a group with a training image, and how many groups have equal pixels. Each of these is a row of benchmarks/results/near_copies.csv."""
import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image, ImageEnhance

from cifar_fastai.sources import describe_data, find_data, find_duplicates, train_files
from side_by_side import add_row, count, machine, run_script

def shifted(image, right, down):
    "Moved by some pixels; the edge is repeated"
    pixels = np.pad(np.asarray(image), ((down, 0), (right, 0), (0, 0)), 'edge')
    return Image.fromarray(pixels[:image.height, :image.width])

def noisy(image, std=5):
    noise = np.random.default_rng(0).normal(0, std, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).round().clip(0, 255).astype(np.uint8))

changes = {'JPEG of quality 20': lambda image: image,
           'half the size': lambda image: image.resize((image.width//2, image.height//2), Image.Resampling.BILINEAR),
           'darker (.7 times)': lambda image: ImageEnhance.Brightness(image).enhance(.7),
           'brighter (1.2 times)': lambda image: ImageEnhance.Brightness(image).enhance(1.2),
           'half the contrast': lambda image: ImageEnhance.Contrast(image).enhance(.5),
           'noise (standard deviation 5 of 255)': noisy,
           'shifted by a pixel in one direction': lambda image: shifted(image, 1, 0),
           'shifted by a pixel in both directions': lambda image: shifted(image, 1, 1),
           'cropped by two pixels on each side, enlarged': lambda image: image.crop((2, 2, image.width - 2, image.height - 2)).resize(image.size, Image.Resampling.BILINEAR),
           'shifted by two pixels in both directions': lambda image: shifted(image, 2, 2)}

def found_copies(files, change, near):
    "How many changed copies of image files are in a group with their file"
    with TemporaryDirectory() as folder:
        copies = {}
        for i,file in enumerate(files):
            jpeg = change.startswith('JPEG')
            copies[Path(folder)/f'{i}.{"jpg" if jpeg else "png"}'] = file
            changes[change](Image.open(file).convert('RGB')).save(list(copies)[-1], **dict(quality=20) if jpeg else {})
        groups = [set(g.files) for g in find_duplicates([*files, *copies], near)]
        return sum(any({copy, file} <= group for group in groups) for copy,file in copies.items())

def in_data(path, near):
    "Groups of the whole data set: {what: number}"
    groups = find_duplicates(path, near)
    between = [g for g in groups if len(g.splits) > 1]
    return {'groups': len(groups), 'images in groups': sum(len(g.files) for g in groups),
            'test images in a group with a training image': sum(f.is_relative_to(path/'test') for g in between for f in g.files),
            'groups with equal pixels': len(find_duplicates(path))}

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', help='folder or archive (default: whatever find_data finds)')
    parser.add_argument('--near', type=float, default=.95, help='the threshold (%(default)s)')
    parser.add_argument('--images', type=count, default=1000, help='how many images are copied (%(default)s)')
    args = parser.parse_args()
    info = describe_data(find_data(args.data))
    files = train_files(info.path)
    some = [files[i] for i in np.random.default_rng(0).permutation(len(files))[:args.images]]
    about = dict(variant=info.variant, **machine(), command=f'python benchmarks/near_copies.py --near {args.near:g} --images {args.images}')
    def add(what, found, n): add_row('near_copies', dict(what=what, near=args.near, found=found, n=n, **about), instead_of=('what', 'near', 'variant'))
    for change in changes: add(change, found_copies(some, change, args.near), len(some))
    for what,number in in_data(info.path, args.near).items(): add(what, number, info.n_train + info.n_test)

if __name__ == '__main__': run_script(main)
