"""How well three scores tell images of a run's classes from others: `python benchmarks/outliers.py runs/small_cnn-seed0 --tiny tiny-imagenet-200-val.tgz`

The scores of a trained network: energy, maximum logit and maximum probability (see the module `outliers`). The outliers: uniform noise, drawings
of the practice set, and, if its archive is given, validation images of Tiny ImageNet, without the classes that show what CIFAR-10's classes are
(`shows_cifar10`). They are read as `predict` reads them. Each score and kind of outliers is a row of benchmarks/results/outliers.csv, with AUROC
and the share of images below the threshold, which 95% of the validation images reach. Choose a score by the rows of the validation images; those
of the test images (`--split test`) are for the end."""
import argparse
import tarfile
from io import BytesIO
from pathlib import Path

from PIL import Image

from cifar_fastai.inference import create_classifier
from cifar_fastai.outliers import builtin_outliers, ood_score, ood_table, ood_threshold
from cifar_fastai.runs import Run
from cifar_fastai.sources import test_files
from cifar_fastai.training import load_run
from side_by_side import add_row, count, gpu_name, machine, run_script

scores = ('energy', 'max_logit', 'max_probability')

shows_cifar10 = dict(  # classes of Tiny ImageNet to leave out, by the class of CIFAR-10 that their images show, or may be taken for
    airplane='n04008634',  # missiles and rockets
    automobile='n02814533 n03100240 n03670208 n04285008 n03977966 n03444034 n03891332',  # cars of five kinds; go-karts; parking meters, beside which cars stand
    bird='n01855672 n02002724 n02056570 n02058221 n02843684',  # goose, stork, penguin, albatross; birdhouses, where birds sit
    cat='n02123045 n02123394 n02124075 n02125311 n02129165',  # three breeds; cougar and lion
    deer='n02423022 n02415577',  # gazelle and bighorn sheep
    dog='n02085620 n02094433 n02099601 n02099712 n02106662 n02113799',  # six breeds
    frog='n01641577 n01644900',  # bullfrog and tailed frog
    horse='n02403003',  # oxen, which stand and pull as horses do
    ship='n03662601 n03447447 n09428293 n09332890',  # lifeboats and gondolas; coasts and lakes, where boats may be
    truck='n03796401 n04146614 n04487081 n03126707 n04465501')  # moving vans; buses of two kinds; cranes, often on a truck; tractors

def tiny_imagenet(archive):
    "Validation images of the classes that CIFAR-10 lacks, at their own size, and how many classes these are"
    left_out = set(' '.join(shows_cifar10.values()).split())
    with tarfile.open(archive) as tar:
        members = [m for m in tar if m.isfile() and '/val/' in m.name and m.name.split('/')[-2] not in left_out]
        classes = {m.name.split('/')[-2] for m in members}
        if not members: raise SystemExit(f'{archive} has no images in folders val/<wnid>/')
        return [Image.open(BytesIO(tar.extractfile(m).read())) for m in members],len(classes)

def images_of(learn, split): return [str(f) for f in (learn.dls.valid_ds.items if split == 'valid' else test_files(learn.dls.path))]

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', type=Path, help='folder of a run')
    parser.add_argument('--tiny', type=Path, help="archive of Tiny ImageNet's validation images, val/<wnid>/*")
    parser.add_argument('--images', type=count, default=2000, help='how many of noise and of drawings (%(default)s)')
    parser.add_argument('--split', choices=['valid', 'test'], default='valid', help='images of the data set (%(default)s); the threshold is always of the validation images')
    args = parser.parse_args()
    learn = load_run(args.run)
    classifier,info = create_classifier(learn),Run(args.run).info
    outliers = dict(builtin_outliers(args.images, learn.recipe.image_size))
    if args.tiny:
        images,n_classes = tiny_imagenet(args.tiny)
        outliers[f'Tiny ImageNet, {n_classes} classes'] = images
    logits = {name: classifier.logits(images) for name,images in (dict(valid=images_of(learn, 'valid')) | {args.split: images_of(learn, args.split)} | outliers).items()}
    device = str(learn.dls.device)
    about = dict(recipe=learn.recipe.name, seed=info['seed'], variant=info['data']['variant'], split=args.split)
    for kind in scores:
        values = {name: ood_score(o, kind).numpy() for name,o in logits.items()}
        threshold = ood_threshold(values['valid'])
        table = ood_table(values[args.split], {name: values[name] for name in outliers}, threshold, args.split).to_dict('records')
        for row in table[1:]:
            figures = dict(n=len(values[args.split]), outliers=row['images'], n_outliers=row['n'], auroc=round(row['auroc'], 4), threshold=round(threshold, 4),
                           images_below=round(table[0]['below'], 4), outliers_below=round(row['below'], 4))
            add_row('outliers', dict(score=kind, **about, **figures, device=device, gpu=gpu_name(device), **machine(),
                                     command=f'python benchmarks/outliers.py RUN --images {args.images} --split {args.split}' + ' --tiny ARCHIVE'*bool(args.tiny)),
                    instead_of=('score', 'recipe', 'seed', 'variant', 'split', 'outliers'))
            print()

if __name__ == '__main__': run_script(main)
