"""How many wrong labels `label_errors` finds: `python benchmarks/label_noise.py`

Makes 300 of 5,000 labels wrong, so that they are known, and looks for them twice: among validation images, for one network that was trained
on the others, whose labels are right; and among training images by `out_of_fold`, whose networks are trained on the wrong labels too. The
noise `uniform` takes any other class, `pairs` the class that is most like it (cat and dog, deer and horse). For each seed of the noise and
each way of choosing candidates, `label_errors` and those of cleanlab, benchmarks/results/label_noise.csv gets a row: precision and recall
of the candidates; precision of the first 300 and 100 in the order of the score; average precision of this order; accuracy on the labels
that are right. The test images are not read. The same call again continues where it was stopped."""
import argparse
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.metrics import average_precision_score

from cifar_fastai.evaluation import evaluate, load_evaluation
from cifar_fastai.experiments import out_of_fold, run_grid
from cifar_fastai.recipes import get_recipe
from cifar_fastai.runs import Run
from cifar_fastai.sources import class_of, describe_data, find_data, train_files
from cifar_fastai.training import load_run
from side_by_side import check_machine, commit, count, gpu_name, machine, read_rows, results, run_script, write_rows

alike = [('airplane', 'bird'), ('automobile', 'truck'), ('cat', 'dog'), ('deer', 'horse')]
other_of = {a: b for pair in alike for a,b in (pair, pair[::-1])}

def plant(labels, n, noise, seed):
    "The labels, of which `n` are wrong, and which are"
    rng = np.random.default_rng(seed)
    labels = np.array(labels)
    vocab = sorted(set(labels))
    candidates = np.flatnonzero([noise == 'uniform' or label in other_of for label in labels])
    wrong = rng.choice(candidates, n, replace=False)
    given = labels.copy()
    for i in wrong: given[i] = other_of[labels[i]] if noise == 'pairs' else rng.choice([c for c in vocab if c != labels[i]])
    return given,given != labels

def with_wrong_labels(result, n, noise, seed):
    "The evaluation with wrong labels, and which are wrong"
    given,wrong = plant([result.vocab[t] for t in result.targets], n, noise, seed)
    targets = np.searchsorted(result.vocab, given)
    losses = -np.log(np.maximum(result.probs[range(len(targets)), targets], 1e-38))
    return replace(result, targets=targets, losses=losses),wrong

def write_wrong_labels(source, folder, n_images, n, noise, seed):
    "A data set of some of the training images, with wrong labels; a file's name begins with its true class"
    if folder.exists(): return folder
    rng = np.random.default_rng(seed)
    files = train_files(source)
    labels = np.array([class_of(f) for f in files])
    share = n_images//len(set(labels))
    chosen = np.concatenate([np.sort(rng.choice(np.flatnonzero(labels == c), share, replace=False)) for c in sorted(set(labels))])
    given,_ = plant(labels[chosen], n, noise, seed)
    part = folder.with_name('data.part')
    shutil.rmtree(part, ignore_errors=True)
    for i,label in zip(chosen, given):
        (part/'train'/label).mkdir(parents=True, exist_ok=True)
        shutil.copy(files[i], part/'train'/label/f'{labels[i]}-{files[i].name}')
    return part.rename(folder)

by_cleanlab = [  # filter_by, score to order by
    ('prune_by_noise_rate', 'self_confidence'), ('prune_by_class', 'self_confidence'), ('both', 'self_confidence'),
    ('confident_learning', 'confidence_weighted_entropy'), ('low_self_confidence', 'self_confidence'), ('low_normalized_margin', 'normalized_margin')]

def ways(result):
    "Candidates (positions) and the score of every image, low for a wrong label, by (filter, score)"
    targets,probs = result.targets,result.probs/result.probs.sum(1, keepdims=True)
    own = probs[range(len(probs)), targets]
    yield 'label_errors','quality',result.label_errors().index,own/probs.max(1)
    for filter_by,method in by_cleanlab:
        found = np.flatnonzero(find_label_issues(targets, probs, filter_by=filter_by, n_jobs=1))
        yield filter_by,method,found,get_label_quality_scores(targets, probs, method=method)

def scores(found, quality, wrong):
    n = int(wrong.sum())
    order = np.argsort(quality, kind='stable')
    return dict(candidates=len(found), precision=round(wrong[found].mean(), 4), recall=round(wrong[found].sum()/n, 4),
                precision_first=round(wrong[order[:n]].mean(), 4), precision_first_100=round(wrong[order[:100]].mean(), 4),
                average_precision=round(average_precision_score(wrong, -quality), 4))

def validation(args, noise, seed):
    "The evaluation of wrongly labeled validation images, which are wrong, and the run"
    recipe = get_recipe('tiny_cnn').change(name='tiny_cnn_2_epochs', epochs=2, valid=.1)
    folder = args.out/'validation'
    train_it = run_grid(recipe, [0], folder, args.data, device=args.device)
    run = Run(train_it.run[0])
    file = run.evaluation_file('valid')
    if not file.exists(): evaluate(load_run(run.folder, args.data, device=args.device), 'valid').save(file)
    return *with_wrong_labels(load_evaluation(file), args.wrong, noise, seed),run

def training(args, noise, seed):
    "The evaluation of wrongly labeled training images by `out_of_fold`, which are wrong, and the run of the first fold"
    recipe = get_recipe('tiny_cnn').change(name=f'tiny_cnn_{args.epochs}_epochs', epochs=args.epochs)
    folder = args.out/f'{noise}-{seed}'
    data = write_wrong_labels(find_data(args.data), folder/'data', args.images, args.wrong, noise, seed)
    result = out_of_fold(recipe, args.folds, seed, folder/'folds', data, device=args.device)
    wrong = np.array([Path(f).name.split('-')[0] != class_of(f) for f in result.files])
    return result,wrong,Run(folder/'folds'/f'{recipe.name}-valid=fold1of{args.folds}-seed{seed}')

def rows_of(args, images, noise, seed):
    "A row for each way of looking"
    result,wrong,run = dict(validation=validation, training=training)[images](args, noise, seed)
    info = run.info
    check_machine({run.folder: info}, args.device)
    about = dict(images=images, noise=noise, seed=seed, recipe=run.recipe.name, folds=args.folds if images == 'training' else '', n_images=len(result),
                 n_wrong=int(wrong.sum()), accuracy=round(result.correct[~wrong].mean(), 4))  # on the labels that are right
    made = dict(variant=describe_data(find_data(args.data)).variant, split='valid' if images == 'validation' else 'train', device=args.device, gpu=gpu_name(args.device), **machine(info),
                command=shlex.join(['python', 'benchmarks/label_noise.py', *sys.argv[1:]]), **commit(info['started']))
    for filter_by,method,found,quality in ways(result): yield about | dict(candidates_by=filter_by, order_by=method, **scores(found, quality, wrong)) | made

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', metavar='SOURCE', help='folder or archive; default: as `cifar-fastai train` finds it')
    parser.add_argument('--images', type=count, default=5000, metavar='N', help='images to look at (default: 5000)')
    parser.add_argument('--wrong', type=count, default=300, metavar='N', help='wrong labels among them (default: 300)')
    parser.add_argument('--seeds', type=count, default=3, metavar='N', help='seeds 0 to N-1 (default: 3)')
    parser.add_argument('--noise', nargs='+', default=['uniform', 'pairs'], choices=['uniform', 'pairs'], help='default: both')
    parser.add_argument('--folds', type=count, default=5, metavar='N', help='of the training images (default: 5)')
    parser.add_argument('--epochs', type=count, default=6, metavar='N', help='for each fold (default: 6)')
    parser.add_argument('--out', type=Path, default=Path('runs/label_noise'), metavar='FOLDER', help='of the run folders (default: runs/label_noise)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    asked = [(images, noise, seed) for images in ('validation', 'training') for noise in args.noise for seed in range(args.seeds)]
    rows = [row for one in asked for row in rows_of(args, *one)]
    path = results/'label_noise.csv'
    kind = 'images', 'noise', 'recipe', 'variant', 'device', 'n_images', 'n_wrong', 'folds', 'seed', 'candidates_by'
    made = {tuple(str(r[k]) for k in kind) for r in rows}
    write_rows(path, [*(r for r in read_rows(path) if tuple(r[k] for k in kind) not in made), *rows])
    for r in rows: print(*(f'{r[k]:>20}' for k in ('images', 'noise', 'seed', 'accuracy', 'candidates_by', 'candidates', 'precision', 'recall', 'precision_first', 'average_precision')))

if __name__ == '__main__': run_script(main)
