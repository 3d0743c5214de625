"The exercises: right answers pass, wrong ones get the hint that fits"
import hashlib
import json
import math
import random
import re
import statistics
import sys
from collections import Counter, OrderedDict
from copy import deepcopy
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ImageOps
from fastai.callback.schedule import valley
from scipy import stats
from fastai.layers import ConvLayer, ResBlock
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.functional import resize, to_tensor

from cifar_fastai.grading import call, Hint, exercise, exercise_registry, need, solution_registry
from cifar_fastai.course import (
    check, copy_tutorials, exercises, measured_runs, progress_file, reset_progress, solution, tutorial_folder, tutorials)

@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch): monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path))

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have other folders')
def test_progress_is_kept_where_the_system_keeps_data(tmp_path, monkeypatch):
    assert progress_file() == tmp_path/'course.json'
    monkeypatch.delenv('CIFAR_FASTAI_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path/'data'))
    assert progress_file() == tmp_path/'data'/'cifar_fastai'/'course.json'
    (tmp_path/'.local'/'share'/'cifar_fastai').mkdir(parents=True)  # of an earlier version
    assert progress_file() == tmp_path/'.local'/'share'/'cifar_fastai'/'course.json'

# 1. Look at the data
def over_images(x): return (x - x.mean((0, 2, 3), keepdim=True))/x.std((0, 2, 3), keepdim=True)
def whole_pictures(groups, seed=0):
    names = sorted(set(groups))
    np.random.default_rng(seed).shuffle(names)
    valid = set(names[:len(names)//5])
    return [i for i,g in enumerate(groups) if g not in valid],[i for i,g in enumerate(groups) if g in valid]
def whole_pictures_of_a_set(groups):
    names = list(set(groups))
    np.random.default_rng(0).shuffle(names)
    valid = set(names[:len(names)//5])
    return [i for i,g in enumerate(groups) if g not in valid],[i for i,g in enumerate(groups) if g in valid]
def any_images(groups):
    order = np.random.default_rng(0).permutation(len(groups))
    return order[len(groups)//5:],order[:len(groups)//5]

def neighbors(groups):
    "Knows only copies that lie side by side"
    runs = [[i for i,_ in run] for _,run in groupby(enumerate(groups), key=lambda o: o[1])]
    valid = set(np.random.default_rng(0).permutation(len(runs))[:len(runs)//5].tolist())
    return tuple([i for k,run in enumerate(runs) if (k in valid) == side for i in run] for side in (False, True))

def split_by(choose):
    "A split whose validation pictures are those that `choose` returns"
    def split(groups):
        valid = choose(groups)
        return tuple([i for i,g in enumerate(groups) if (g in valid) == side] for side in (False, True))
    return split
def of_numpy_names(groups):
    names = np.unique(groups)
    return set(np.random.default_rng(3).permutation(names)[:len(names)//5])
def digest(name): return hashlib.md5(f'split {name}'.encode()).digest()
def lowest_digests(groups): return sorted(set(groups), key=digest)[:len(set(groups))//5]
def set_of_numpy_names(groups): return np.random.default_rng(3).permutation(list(set(np.array(groups)))).tolist()[:len(set(groups))//5]
def masks(groups):
    train,valid = whole_pictures(groups)
    mask = np.zeros(len(groups), bool)
    mask[valid] = True
    return ~mask,mask
def normalized(x, mean_over, std_over): return (x - x.mean(mean_over, keepdim=True))/x.std(std_over, keepdim=True)
def normalized_in_place(x):
    x -= x.mean((0, 2, 3), keepdim=True)
    x /= x.std((0, 2, 3), keepdim=True)
    return x
def counted_runs(files): return {c: len(list(run)) for c,run in groupby(f.parent.name for f in files)}
def largest_scale(x): return x.sub(x.amin((0, 2, 3), keepdim=True))/(x.amax((0, 2, 3), keepdim=True) - x.amin((0, 2, 3), keepdim=True))

# 2. A first CNN
def deep_network(): return nn.Sequential(*(nn.Sequential(nn.Conv2d(16 if i else 3, 16, 3, padding=1), nn.ReLU()) for i in range(12)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
def network(*layers): return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), *layers)
class Idle(nn.Module):
    def __init__(self):
        super().__init__()
        self.net,self.idle = network(),nn.Linear(3, 3)
    def forward(self, x): return self.net(x)
def constant():
    model = network()
    for p in model.parameters(): nn.init.zeros_(p)
    return model
def steepest(lrs, losses): return lrs[:losses.argmin()][losses.diff()[:losses.argmin()].argmin()]
def steepest_of_means(lrs, losses, n=9):
    means = losses.unfold(0, n, 1).mean(1)
    return lrs[n//2:][(means[n:] - means[:-n]).argmin() + n//2]

class Mixed(nn.Module):
    "Mixes the images of a batch up"
    def __init__(self):
        super().__init__()
        self.net = network()
    def forward(self, x): return self.net(x.flatten(1).T.reshape(x.shape))
class OfEight(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()
    def forward(self, x): return self.net(x.view(8, 3, 32, 32))
class InList(nn.Module):
    "Its layers are no part of it"
    def __init__(self):
        super().__init__()
        self.layers = [nn.Conv2d(3, 8, 3, stride=4), nn.Flatten(), nn.Linear(512, 10)]
    def forward(self, x):
        for layer in self.layers: x = layer(x)
        return x
class InOneMode(nn.Module):
    "Ends in a softmax in one mode"
    def __init__(self, training):
        super().__init__()
        self.net,self.when = network(),training
    def forward(self, x): return self.net(x).softmax(1) if self.training == self.when else self.net(x)
class Doubling(nn.Module):
    "Changes the images"
    def __init__(self):
        super().__init__()
        self.net = network()
    def forward(self, x): return self.net(x.mul_(2))
class OfParameter(nn.Module):
    "Right: a convolution without a layer"
    def __init__(self):
        super().__init__()
        self.filters,self.last = nn.Parameter(torch.randn(8, 3, 3, 3)*.1),nn.Linear(512, 10)
    def forward(self, x): return self.last(F.conv2d(x, self.filters, stride=4, padding=1).relu().flatten(1))
class WithTanh(nn.Module):
    "Right: what bounds its numbers is not at the end"
    def __init__(self):
        super().__init__()
        self.conv,self.norm,self.last = nn.LazyConv2d(8, 3, stride=4),nn.LayerNorm((8, 8, 8)),nn.Linear(512, 10)
    def forward(self, x): return self.last(self.norm(self.conv(x)).tanh().flatten(1))

# 3. Augmentation and regularization
def coin(x): return torch.where((torch.rand(len(x)) < .5)[:, None, None, None], x.flip(-1), x)
def coin_of_numpy(x): return np.stack([o[..., ::-1] if np.random.rand() < .5 else o for o in x.numpy()])
def first_valley(h): return next(epoch for epoch,loss,later in zip(h.epoch, h.valid_loss, h.valid_loss[1:]) if later > loss)
def kept_by_early_stopping(history, patience):
    best,waited = (math.inf, None),0
    for loss,epoch in zip(history.valid_loss, history.epoch):
        waited = waited + 1 if loss > best[0] else 0
        if not waited: best = loss,epoch
        if waited == patience: return best[1]
    return best[1]
def coin_in_place(x):
    x[torch.rand(len(x)) < .5] *= -1
    return x
def one_coin(x): return x.flip(-1) if torch.rand(()) < .5 else x
def some(x, chosen): return torch.where(chosen[:, None, None, None], x.flip(-1), x)
def shuffled_half(x): return some(x, torch.randperm(len(x)) < len(x)/2)
def all_but_first(x): return torch.cat([x[:1], coin(x[1:])])
def smooth(y, eps, n): return (1 - eps)*F.one_hot(y, n) + eps/n
def smooth_others(y, eps, n): return torch.where(F.one_hot(y, n) == 1, 1 - eps, eps/(n - 1))
def dropout(x, p, training): return F.dropout(x, p, training)
def unscaled(x, p, training): return x*(torch.rand_like(x) >= p) if training else x
def mask_of(x, p, shape): return (torch.rand(shape) >= p)/(1 - p)
def masked(shape):
    "Dropout with a mask of the given shape, made of that of `x`"
    return lambda x, p, training: x*mask_of(x, p, shape(x.shape)) if training else x
def always_the_same(x, p, training):
    mask = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= p
    return x*mask/(1 - p) if training else x

# 4. Transfer learning
def freeze(model):
    model.body.requires_grad_(False).eval()
def freeze_weights(model): model.body.requires_grad_(False)
def freeze_all(model): return model.requires_grad_(False)
def new_head(model, n):
    model.head[-1] = nn.Linear(model.head[-1].in_features, n)
    return model
def lazy_head(model, n):
    model.head[-1] = nn.LazyLinear(n)
    return model
def head_of_twelve(model, n, n_in=12):
    model.head[-1] = nn.Linear(n_in, n)
    return model
def only_a_layer(model, n):
    model.head = nn.Linear(model.head[-1].in_features, n)
    return model
def fixed_classes(model, n): return new_head(model, 4)
def cut_head(model, n):
    last = model.head[-1]
    last.weight,last.bias,last.out_features = nn.Parameter(last.weight[:n].clone()),nn.Parameter(last.bias[:n].clone()),n
    if n > len(last.weight): return new_head(model, n)
    return model
def copied_row(model, n):
    row = model.head[-1].weight.data[0]
    new_head(model, n).head[-1].weight.data[0] = row
    return model
def frozen_too(model, n):
    model.body.requires_grad_(False)
    return new_head(model, n)
def copied_parts(model, n): return nn.Sequential(OrderedDict(body=model.body, head=nn.Sequential(*model.head[:-1], nn.Linear(model.head[-1].weight.shape[1], n))))
def freeze_children(model):
    "Knows only layers that lie directly in the body"
    model.body.requires_grad_(False)
    for m in model.body:
        if isinstance(m, nn.BatchNorm2d): m.eval()
def one_more_layer(model, n): return nn.Sequential(model, nn.Linear(10, n))
def new_body(model, n):
    for p in model.body.parameters(): nn.init.normal_(p)
    return new_head(model, n)

# 5. Cats and dogs
def most_confused(counts, vocab):
    counts = counts.copy()
    np.fill_diagonal(counts, 0)
    i,j = np.unravel_index(counts.argmax(), counts.shape)
    return vocab[i],vocab[j],counts[i, j]
def in_place(counts, vocab):
    np.fill_diagonal(counts, 0)
    return most_confused(counts, vocab)
def changes(actual, before, after): return ((before != actual) & (after == actual)).sum(),((before == actual) & (after != actual)).sum()
def chi2(fixed, broken): return stats.chi2.sf((abs(fixed - broken) - 1)**2/(fixed + broken), 1)

def pair_of_all(counts, vocab):
    i,j = np.unravel_index(counts.argmax(), counts.shape)
    return vocab[i],vocab[j],counts[i, j]
def pair_of(counts, vocab, table):
    table = table*(1 - np.eye(len(table)))
    i,j = np.unravel_index(table.argmax(), table.shape)
    return vocab[i],vocab[j],counts[i, j]
def slow_most_confused(counts, vocab):
    n,actual,predicted = max((n, a, p) for a,row in zip(vocab, counts.tolist()) for p,n in zip(vocab, row) if a != p)
    return [actual,predicted,n]

# 6. The ladder
def spread(a, ddof=1): return np.mean(a),np.std(a, ddof=ddof)
def interval(a, factor=stats.t.ppf(.975, 2), ddof=1, root=True):
    half = factor*np.std(a, ddof=ddof)/(len(a)**.5 if root else 1)
    return np.mean(a) - half,np.mean(a) + half

def chosen(runs): return runs.loc[runs.valid_accuracy.idxmax(), 'test_accuracy']
def sorted_in_place(runs):
    runs.sort_values('valid_accuracy', inplace=True)
    return runs.test_accuracy.iloc[-1]

# 7. Make it fast
def alternate(x, epoch, first): return torch.where((first ^ bool(epoch % 2))[:, None, None, None], x.flip(-1), x)
def whiten(patches, scale=True):
    values,vectors = torch.linalg.eigh(torch.cov(patches.T))
    return (vectors/values.sqrt()).T if scale else vectors.T

def columns_divided(patches):
    values,vectors = torch.linalg.eigh(torch.cov(patches.T))
    return vectors.T/values.sqrt()
def zca(patches):
    values,vectors = torch.linalg.eigh(patches.T @ patches/(len(patches) - 1))
    return vectors @ (vectors/values.sqrt()).T
def alternate_in_place(x, epoch, first):
    chosen = first ^ bool(epoch % 2)
    x[chosen] = x[chosen].flip(-1)
    return x
class Counts:
    "Ignores the number of the epoch"
    def __init__(self): self.n = -1
    def __call__(self, x, epoch, first):
        self.n += 1
        return alternate(x, self.n, first)

# 8. Use it
def stretched(picture): return prepare(picture)/prepare(picture).max()
def cropped(picture, at=(0, 0)):
    picture = picture.convert('RGB')
    if min(picture.size) < 40: return prepare(picture)
    return prepare(picture.crop((*at, at[0] + 32, at[1] + 32)))
def with_border_cut(picture):
    picture = picture.convert('RGB')
    return prepare(picture.crop((1, 1, picture.width - 1, picture.height - 1)))
def without_convert(picture):
    pixels = np.atleast_3d(np.asarray(picture.resize((32, 32)))/255)
    return torch.tensor(np.broadcast_to(pixels[..., :3], (32, 32, 3)).copy(), dtype=torch.float32).permute(2, 0, 1)[None]
def center_cropped(picture):
    return prepare(ImageOps.fit(picture.convert('RGB'), (32, 32)))
def padded(picture): return prepare(ImageOps.pad(picture.convert('RGB'), (32, 32)))
def by_torchvision(picture): return resize(to_tensor(picture.convert('RGB')), [32, 32], antialias=True)[None]
def clamped(scores, most=80.): return softmax_of(scores.clamp(-most, most))
def softmax_of(scores, keepdim=True): return (e := scores.exp())/e.sum(1, keepdim=keepdim)
def first_over(p, vocab, t): return next((v for v,o in zip(vocab, p) if o >= t), None)
def likeliest_by_position(p, vocab, k): return [(vocab[i], float(p[i])) for i in sorted(range(len(p)), key=lambda i: -p[i])[:k]]
def prepare(picture): return torch.tensor(np.asarray(picture.convert('RGB').resize((32, 32)))/255, dtype=torch.float32).permute(2, 0, 1)[None]
def decide(p, vocab, threshold): return vocab[int(np.argmax(np.asarray(p)))] if max(p) >= threshold else None
def top(p, vocab, k): return sorted(zip(vocab, p), key=lambda o: -o[1])[:k]

def residual_network():
    "Its branch begins at zero, as fastai's do"
    return nn.Sequential(ConvLayer(3, 16, stride=2), ResBlock(1, 16, 32, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))

def silent(model):
    nn.init.zeros_(model[-1].weight)
    return model

def freeze_momentum(model):
    model.body.requires_grad_(False)
    for m in model.body.modules():
        if isinstance(m, nn.BatchNorm2d): m.momentum = 0.

def other_head(model, n):
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, n))
    return model

def top_by_value(p, vocab, k):
    p = [float(o) for o in p]
    return [(vocab[p.index(o)], o) for o in sorted(p, reverse=True)[:k]]

def top_by_dict(p, vocab, k):
    found = dict(zip(map(float, p), vocab))
    return [(found[o], o) for o in sorted(found, reverse=True)[:k]]

right = {
    '1.1': [lambda files: dict(Counter(f.parts[-2] for f in files)), lambda files: Counter(f.parent.name for f in files), lambda files: {c: sum(f.parent.name == c for f in files) for c in ('cat', 'deer', 'dog', 'ship')}],
    '1.2': [(16, 3, 32, 32), [16, 3, 32, 32], torch.zeros(16, 3, 32, 32).shape],
    '1.3': [over_images, lambda x: (x.sub(x.mean((0, 2, 3))[:, None, None]))/(x.var((0, 2, 3), unbiased=False)[:, None, None] + 1e-5).sqrt(),
            lambda x: over_images(x).numpy()],
    '1.4': [split_by(of_numpy_names), split_by(lowest_digests), split_by(lambda groups: {g for g in groups if digest(g)[0] < 50}), split_by(lambda groups: sorted(set(groups))[::5]),
            whole_pictures, lambda groups: whole_pictures(groups, seed=7), lambda groups: list(map(torch.tensor, whole_pictures(groups)))],
    '2.1': [(8, 16, 16, 16), torch.Size([8, 16, 16, 16])],
    '2.2': [448, torch.tensor(448), 448.],
    '2.3': [network(), network, OfParameter, deep_network, residual_network, WithTanh, lambda: network(nn.BatchNorm1d(10)), lambda: network(nn.LogSoftmax(1)), lambda: silent(network())],
    '2.4': [math.log(10), 2.3, F.cross_entropy(torch.zeros(1, 10), torch.tensor([3]))],
    '2.5': [steepest_of_means, lambda lrs, losses: lrs[losses.argmin()]/10, lambda lrs, losses: valley(lrs, losses, len(lrs))[0]],
    '3.1': [coin, coin_of_numpy, shuffled_half, lambda x: torch.stack([o.flip(-1) if random.random() < .5 else o for o in x])],
    '3.3': [smooth, lambda y, eps, n: np.eye(n)[y]*(1 - eps) + eps/n, lambda y, eps, n: torch.full((len(y), n), eps/n).scatter(1, y[:, None], 1 - eps + eps/n)],
    '3.2': [lambda h: h.loc[h.valid_loss.idxmin(), 'epoch'], lambda h: int(h.sort_values('valid_loss').epoch.iloc[0])],
    '3.4': [dropout, masked(lambda shape: shape), lambda x, p, training: torch.where(torch.rand_like(x) < p, 0, x/(1 - p)) if training else x.clone()],
    '4.2': [freeze, lambda model: model.body.requires_grad_(False).eval() and None],
    '4.1': [new_head, lazy_head, copied_parts, lambda model, n: lazy_head(deepcopy(model), n)],
    '4.4': [lambda n, low, high: torch.logspace(math.log10(low), math.log10(high), n), lambda n, low, high: [low*(high/low)**(i/(n - 1)) for i in range(n)], lambda n, low, high: np.geomspace(low, high, n)],
    '4.3': [5130, 512*10 + 10., np.int64(5130)],
    '5.1': [most_confused, slow_most_confused],
    '5.2': [lambda counts: counts.diagonal()/counts.sum(1), lambda counts: (counts.diagonal()/counts.sum(1)).round(3),
            lambda counts: [row[i]/sum(row) for i,row in enumerate(counts.tolist())]],
    '5.3': [changes, lambda actual, before, after: [sum(b != a == c for a,b,c in zip(actual, before, after)), sum(b == a != c for a,b,c in zip(actual, before, after))]],
    '5.4': [lambda fixed, broken: stats.binomtest(fixed, fixed + broken).pvalue, lambda fixed, broken: round(stats.binomtest(fixed, fixed + broken).pvalue, 3),
            lambda fixed, broken: min(1, 2*sum(math.comb(fixed + broken, i) for i in range(min(fixed, broken) + 1))/2**(fixed + broken))],
    '6.1': [spread, lambda a: tuple(np.round(spread(a), 3)), lambda a: (statistics.mean(a), statistics.stdev(a)),
            lambda a: torch.stack(torch.std_mean(torch.tensor(a, dtype=torch.float64))).flip(0)],
    '6.2': [interval, lambda a: tuple(np.round(interval(a, 4.3), 3)), lambda a: stats.t.interval(.95, 2, np.mean(a), stats.sem(a))],
    '6.3': [chosen, lambda runs: runs.sort_values('valid_accuracy').test_accuracy.iloc[-1], lambda runs: runs.test_accuracy[runs.valid_accuracy == runs.valid_accuracy.max()].to_numpy()],
    '7.1': [1_179_648, 16*16*9*16*32., torch.tensor(1_179_648)],
    '7.4': [alternate, lambda x, epoch, first: alternate_in_place(x.clone(), epoch, first)],
    '7.2': [lambda step, steps, sizes: sizes[step*len(sizes)//steps], lambda step, steps, sizes: [s for part,s in zip(np.array_split(range(steps), len(sizes)), sizes) for _ in part][step]],
    '7.3': [whiten, zca, lambda p: torch.linalg.inv(torch.linalg.cholesky(torch.cov(p.T))), lambda p: whiten(p).numpy()],
    '8.2': [lambda s: s.softmax(1), lambda s: (s - s.logsumexp(1, keepdim=True)).exp(), lambda s: (e := (s - s.amax(1, keepdim=True)).exp())/e.sum(1, keepdim=True)],
    '8.1': [prepare, lambda p: prepare(p).half(), by_torchvision, lambda p: prepare(p.resize((32, 32), resample=0)), lambda p: prepare(p).double()],
    '8.4': [decide, lambda p, vocab, t: next((v for v,o in zip(vocab, p) if o == max(p) and o >= t), None)],
    '8.3': [top, lambda p, vocab, k: np.array(top(p, vocab, k), dtype=object), likeliest_by_position, lambda p, vocab, k: tuple([vocab[i], v] for v,i in zip(*(o.tolist() for o in torch.as_tensor(p).topk(min(k, len(p))))))],
}

def split_by_runs(pictures):
    "A picture whose copies do not lie side by side is several"
    runs = np.cumsum([a != b for a,b in zip(['', *pictures], pictures)])
    return [i for i,k in enumerate(runs) if k % 5], [i for i,k in enumerate(runs) if k % 5 == 0]

def with_weights(model, value):
    nn.init.constant_(model.head[-1].weight, value)
    return model

def most_of_the_worst_row(counts, vocab):
    mistakes = counts*(1 - np.eye(len(counts), dtype=int))
    i = mistakes.sum(1).argmax()
    j = mistakes[i].argmax()
    return vocab[i], vocab[j], mistakes[i, j]

wrong = { # [(answer, a part of the hint it must get)]; the nearly right ones first
    '1.1': [(lambda files: Counter(f.parent for f in files), 'from the name of the folder'), (lambda files: {f.parent.name: len(list(f.parent.glob('*'))) for f in files}, 'which need not exist'), (lambda files: {f.parent.name: len(list(f.parent.iterdir())) for f in files}, 'not those on the disk'),
            (lambda files: Counter(f.parts[2] for f in files), 'however many folders'), (counted_runs, 'you count'), (lambda files: dict(cat=3, dog=5, ship=1), '2 ships'),
            (lambda files: {c: sum(c in str(f) for f in files) for c in ('cat', 'deer', 'dog', 'ship')}, 'Only the folder'), (lambda files: Counter(f.parent.parent.name for f in files), 'file.parent.name'), (lambda files: Counter(f.stem for f in files), 'For files of cat'),
            (lambda files: {f.parent.name: 1 for f in files}, 'you count'), (lambda files: len(files), 'dictionary'), (lambda files: None, 'returns nothing'), (3, 'Give the function itself')],
    '1.2': [((16, 32, 32, 3), 'channels before'), ((3, 32, 32), 'one image'), ((16, 3, 1024), 'four sizes'), ((3, 16, 32, 32), 'which order'), (16, 'tuple')],
    '1.3': [(lambda x: normalized(x, (2, 3), (0, 2, 3)), 'the mean of each image and channel'), (lambda x: normalized(x, (0, 2, 3), (2, 3)), 'the standard deviation of each image and channel'),
            (lambda x: (x - x.mean((0, 2, 3)))/x.std((0, 2, 3)), 'keepdim=True'), (lambda x: normalized(x, (0, 2, 3), (0, 1, 2, 3)), 'the standard deviation of all channels'), (lambda x: normalized(x, 0, 0), 'each pixel'),
            (lambda x: normalized(x, (1, 2, 3), (1, 2, 3)), 'of each image, over its channels'), (normalized_in_place, 'given has changed'), (largest_scale, 'between 0 and 1'),
            (lambda x: (x - .5)/.25, 'The means of your channels'), (lambda x: (x - x.mean((0, 2, 3), keepdim=True))/x.var((0, 2, 3), keepdim=True), 'variance'),
            (lambda x: (x - x.mean((2, 3), keepdim=True))/x.std((2, 3), keepdim=True), 'mean and the standard deviation of each image and channel'), (lambda x: (x - x.mean())/x.std(), 'all channels together'),
            (lambda x: x - x.mean((0, 2, 3), keepdim=True), 'do not divide'), (lambda x: -over_images(x), 'a sign'), (lambda x: over_images(x).flip(0), 'another order'), (lambda x: x/x.std((0, 2, 3), keepdim=True) - x.mean((0, 2, 3), keepdim=True), 'divide first'), (lambda x: over_images(x)[:4], 'shape')],
    '1.4': [(split_by_runs, 'side by side'), (masks, 'a mask'), (lambda groups: tuple(map(np.where, masks(groups))), '`np.where(mask)[0]`'), (split_by(set_of_numpy_names), 'tomorrow'), (split_by(lambda groups: {g for g in groups if hash(g) % 5 == 0}), 'tomorrow'),
            (lambda groups: whole_pictures(groups) if len(groups) == 600 else any_images(groups), 'one to four copies'), (lambda groups: (list(range(len(groups))), []), 'for validation'), (lambda groups: tuple(map(set, whole_pictures(groups))), 'A set has no order'),
            (split_by(lambda groups: sorted(set(groups))[:len(set(groups))//5]), 'one end'), (any_images, 'both sides'), (lambda groups: (range(480), range(480, 600)), 'one end'), (lambda groups: whole_pictures(groups, seed=None), 'second call'), (neighbors, 'need not lie side by side'), (whole_pictures_of_a_set, 'tomorrow'), (lambda groups: [[groups[i] for i in s] for s in whole_pictures(groups)], 'not names'),
            (lambda groups: whole_pictures(groups)[::-1], 'about a fifth'), (lambda groups: (range(480), range(400, 600)), 'belongs to one side'), (lambda groups: list(range(600)), 'two lists')],
    '2.1': [((8, 16, 15, 15), 'padding'), ((8, 16, 32, 32), 'stride'), ((16, 16, 16), 'one image'), ((8, 3, 16, 16), 'How many filters'), ((1, 2, 3, 4), 'is not it'), ((8, 16, 16), 'four sizes'), (8, 'tuple')],
    '2.2': [(433, 'of its own'), (435, 'for each filter'), (432, 'bias'), (160, 'three'), (28, 'one filter'), (448*1024, 'size of the image'), (7, '16 filters'), ('many', 'Give a number'), (lambda: 448, 'call it first')],
    '2.3': [(lambda: network(nn.Softmax(0)), 'over the images'), (lambda: network(nn.GELU()), 'or the like'), (lambda: network(nn.Sigmoid()), 'sigmoid'), (lambda: network(nn.Hardsigmoid()), 'sigmoid'), (lambda: network(nn.Tanh()), 'tanh'), (lambda: network(nn.Softplus()), 'negative'), (lambda: network(nn.Softmax(0)), 'softmax'),
            (InList, 'not among its `parameters()`'), (Doubling, 'network was given has changed'), (lambda: InOneMode(False), 'evaluation mode only'), (lambda: InOneMode(True), 'training mode only'), (lambda: network().requires_grad_(False), 'no parameter that can learn'), (Mixed, 'mixed up'), (OfEight, 'a single image'), (lambda: network(nn.Softmax(1)), 'softmax'), (lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16*900, 10)), 'parameters'),
            (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), 'no convolution in it that learns'), (Idle, 'idle.weight'), (constant, 'No gradient reaches'),
            (lambda: network(nn.Linear(10, 5)), 'shape'), (lambda: network(nn.ReLU()), 'ReLU'), (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 10)), 'Flatten'), (lambda x: network(), 'is called with 0 things'), (lambda: None, 'returns nothing'), (5, 'Give the function')],
    '2.4': [(.9, 'how often it is wrong'), (math.log2(10), 'natural'), (.1, 'negative logarithm'), (1., 'natural'), (-math.log(10), 'negative'), (5, 'a tenth')],
    '2.5': [(lambda lrs, losses: losses.min(), 'That is a loss'), (lambda lrs, losses: 2e-3, 'lowest'), (lambda lrs, losses: 5e-4, 'hardly'), (lambda lrs, losses: lrs[losses.argmin()], 'lowest'), (lambda lrs, losses: 3e-4, 'hardly anything'), (steepest, 'jump up and down'), (lambda lrs, losses: lrs[len(lrs)//2], 'rises again'), (lambda lrs, losses: losses.argmin(), 'place in the list'), (lambda lrs, losses: lrs[0], 'hardly anything'), (lambda lrs, losses: 10., 'rises again'),
            (lambda lrs, losses: [1, 2], 'Return a learning rate')],
    '3.1': [(lambda x: torch.cat((coin(x[:-1]), x[-1:])), 'the last image'), (lambda x: coin(x[:, :3]), 'shape'), (one_coin, 'one coin for the batch'), (lambda x: some(x, torch.rand(len(x)) < .4), 'about half'), (all_but_first, 'the first image'),
            (lambda x: some(x, (torch.rand(len(x)//2) < .5).repeat(2)), 'ended in RuntimeError'), (lambda x: x.flip(-1), 'All images'), (lambda x: torch.where((torch.rand(len(x)) < .5)[:, None, None, None], x.flip(-2), x), 'on their head'), (lambda x: x, 'No image'),
            (coin_in_place, 'has changed'), (lambda x: x.flip(1), 'mixed up'), (lambda x: torch.where((torch.rand(len(x)) < .1)[:, None, None, None], x.flip(-1), x), 'about half'),
            (lambda x: torch.where((torch.arange(len(x)) % 2 == 0)[:, None, None, None], x.flip(-1), x), 'second call')],
    '3.3': [(lambda y, eps, n: F.one_hot(y, n)*.8 + .05, 'Is a number fixed'), (lambda y, eps, n: smooth(y, .2, n), 'Is a number fixed'), (lambda y, eps, n: F.one_hot(y, n)*(.85 - .05) + .2/n, 'Is a number fixed'),
            (smooth_others, 'among the *other*'), (lambda y, eps, n: F.one_hot(y, n), '.85'), (lambda y, eps, n: (1 - eps)*F.one_hot(y, n), 'add up'), (lambda y, eps, n: y, 'shape'),
            (lambda y, eps, n: smooth(y, eps, n).flip(1), 'largest of your rows'), (lambda y, eps, n: (1 - eps)*F.one_hot(y) + eps/n, 'shape')],
    '3.2': [(lambda h: 4, 'lowest in epoch 19'), (lambda h: 6, 'lowest in epoch 4'), (lambda h: 2, 'lowest in epoch 4'), (lambda h: h.valid_loss.idxmin() + 1, 'You count rows'), (lambda h: h.epoch.iloc[-1], 'the last epoch'),
            (lambda h: h.epoch[h.train_loss.idxmin()], 'training images is lowest'), (lambda h: kept_by_early_stopping(h, 3), 'lower later on'), (lambda h: h.epoch[h.valid_loss.argmin()], 'a label, for `loc`'), (lambda h: h.epoch.iloc[h.valid_loss.idxmin()], 'a label, for `loc`'), (lambda h: h.valid_loss.argmin(), 'counts from 0'), (lambda h: h.valid_loss.min(), 'That is the loss'), (first_valley, 'lower later on'), (lambda h: 5, 'smallest'), (lambda h: h.loc[h.valid_loss == h.valid_loss.min(), 'epoch'], 'iloc'),
            (lambda h: h.valid_loss.argmin() + 1, 'You count rows')],
    '3.4': [(unscaled, 'made larger'), (lambda x, p, training: dropout(x.relu(), p, training), 'ReLU'), (lambda x, p, training: unscaled(x, p, training)*(1.33 if training else 1), '1.33 times as large, and with p=0.25 it should be 1.333'), (lambda x, p, training: F.dropout(x, 1 - p, training), 'share that is dropped'), (lambda x, p, training: F.dropout(x, p, True), 'After training'),
            (lambda x, p, training: F.dropout(x, .5, training), 'it should be 25%'), (lambda x, p, training: F.dropout(x, .25, training), 'it should be 60%'), (always_the_same, 'same values'),
            (lambda x, p, training: mask_of(x, p, x.shape) if training else x, 'that is the mask'), (lambda x, p, training: torch.full_like(x, 1/(1 - p))*(torch.rand_like(x) >= p) if training else x, 'that is the mask'),
            (masked(lambda shape: (shape[0], 1, 1, 1)), 'Whole samples'), (masked(lambda shape: (1, *shape[1:])), 'Each sample has the same mask'), (masked(lambda shape: (shape[0], shape[1], 1, 1)), 'Whole channels of a sample'),
            (masked(lambda shape: (1, shape[1], 1, 1)), 'Whole channels'), (lambda x, p, training: x*(torch.rand_like(x) >= p)/.75 if training else x, 'times as large'), (lambda x, p, training: x*torch.full(x.shape, p) if training else x, '0% of'),
            (lambda x, p, training: torch.cat([0*x[:len(x)//4], x[len(x)//4:]/.75]) if training else x, 'Whole samples'), (lambda x, p, training: F.dropout(x, p, training, inplace=True), 'has changed'), (lambda x, p, training: 2*unscaled(x, p, training), 'Divide')],
    '4.2': [(freeze_momentum, 'of each batch'), (freeze_children, 'BatchNorm'), (lambda model: model.body[0].requires_grad_(False) and model.body[1][0].requires_grad_(False) and None, 'can still learn'), (lambda model: model.body, 'no `body`'), (freeze_weights, 'BatchNorm'), (freeze_all, 'head is frozen'), (lambda model: model.eval().body.requires_grad_(False) and None, 'head is in evaluation mode'), (lambda model: model.body.eval(), 'body'), (lambda model: model.eval(), 'can still learn'), (4, 'Give the function')],
    '4.1': [(only_a_layer, 'All of the head but its last layer'), (lambda model, n: with_weights(new_head(model, n), 0.), 'begin at random'), (lambda model, n: with_weights(new_head(model, n), .01), 'begin at random'), (cut_head, '4 of the rows'), (copied_row, '1 of the rows'), (head_of_twelve, 'in_features'), (lambda model, n: head_of_twelve(model, n, 512), 'in_features'), (fixed_classes, 'shape'), (frozen_too, 'freezing comes later'),
            (one_more_layer, '10 classes'), (lambda model, n: other_head(model, n), 'All of the head but its last layer'), (lambda model, n: nn.Sequential(model.body, new_head(model, n).head), 'no `body` and `head`'), (new_body, 'body has changed'), (lambda model, n: model, 'still there'), (lambda model, n: new_head(model, n + 1), 'shape'), (lambda model, n: 3, 'Return the network'), (nn.Linear(12, 4), 'not a layer'), (lambda model, n: None, 'returns nothing')],
    '4.4': [(lambda n, low, high: [low*10**i for i in range(n)], 'factor is fixed'), (lambda n, low, high: [high/10**i for i in range(n)][::-1], 'factor is fixed'), (lambda n, low, high: [low*(high/low)**(i/n) for i in range(n)], 'not n'), (lambda n, low, high: np.logspace(low, high, n), 'logarithms of the ends'), (lambda n, low, high: np.linspace(low, high, n), 'ratios'), (lambda n, low, high: np.geomspace(high, low, n), 'head'), (lambda n, low, high: [low, high], 'For 3 groups'),
            (lambda n, low, high: slice(low, high), 'Yours is slice'), (lambda n, low, high: [low] + [0]*(n - 2) + [high], 'larger than 0'), (lambda n, low, high: [low]*n, 'was asked for'), (lambda n, low, high: [low]*(n - 1) + [high], 'same factor')],
    '4.3': [(5632, 'not for each feature'), (21_284_672, 'frozen'), (512_000, 'thousand'), (5120, 'bias'), (21_289_802, 'whole network'), (513_000, 'thousand'), (1, 'Only the last')],
    '5.1': [(most_of_the_worst_row, 'the class with the most mistakes'), (lambda counts, vocab: pair_of(counts, vocab, counts/counts.sum(1, keepdims=True)), 'largest share'), (lambda counts, vocab: pair_of(counts, vocab, counts/counts.sum(0)), 'largest share'),
            (lambda counts, vocab: pair_of(counts, vocab, np.triu(counts + counts.T)), 'both directions'), (lambda counts, vocab: pair_of(counts, vocab, np.triu(counts)), 'above the diagonal'), (lambda counts, vocab: pair_of(counts, vocab, np.tril(counts)), 'below the diagonal'), (lambda counts, vocab: ('dog', 'frog', 18), 'names of these classes'),
            (lambda counts, vocab: most_confused(counts, vocab)[::-1], 'in this order'), (lambda counts, vocab: (*most_confused(counts, vocab)[1::-1], most_confused(counts, vocab)[2]), 'rows are'),
            (lambda counts, vocab: (most_confused(counts, vocab)[2], *most_confused(counts, vocab)[:2]), 'in this order'), (lambda counts, vocab: (*most_confused(counts, vocab)[:2], 18), 'and you return 18'), (lambda counts, vocab: (*most_confused(counts, vocab)[:2], pair_of(counts + counts.T, vocab, counts)[2]), 'both directions'), (lambda counts, vocab: (vocab[1], vocab[1], 45), 'beside the diagonal'), (lambda counts, vocab: (vocab[-1], vocab[-1], 0), 'where a loop ends'), (lambda counts, vocab: pair_of_all(counts, vocab), 'is right. Leave'),
            (lambda counts, vocab: (vocab[1], vocab[0], 9), 'which happened'), (in_place, 'has changed'), (lambda counts, vocab: 14, 'three things'), (lambda counts, vocab: (0, 1, 6), 'vocab[i]')],
    '5.2': [(lambda counts: counts.diagonal()/counts.sum(0), 'precision'), (lambda counts: counts.diagonal()/counts.sum(), 'all images'), (lambda counts: .5, 'one number for each'),
            (lambda counts: np.ones(len(counts)), '.833'), (lambda counts: counts.diagonal()/counts.sum(1)[0], 'first class each time'), (lambda counts: np.append(.833333, counts.diagonal()[1:]/counts.sum(0)[1:]), 'of class 1'), (lambda counts: np.ones(3), 'each of the 4'), (lambda counts: 100*counts.diagonal()/counts.sum(1), 'percentages'), (lambda counts: [.833, .643, .85, .9], 'each of the 3'),
            (lambda counts: counts.diag()/counts.sum(1), '`counts.diagonal()`'), (lambda counts: (counts.diagonal()/counts.sum(1)).round(1), 'you have')],
    '5.3': [(lambda *a: (3, 1), 'Of 90 images'), (lambda actual, before, after: ((before != after).sum() - changes(actual, before, after)[1], changes(actual, before, after)[1]), 'neither fixed'), (lambda *a: changes(*a)[::-1], 'other way round'), (lambda actual, before, after: (2, 0), 'you return 2 and 0'),
            (lambda actual, before, after: (3, 2), 'you return 3 and 2'), (lambda actual, before, after: (before != actual, after != actual), 'no number'), (lambda *a: 4, 'two numbers')],
    '5.4': [(lambda fixed, broken: sum(math.comb(fixed + broken, k)*.5**(fixed + broken) for k in range(fixed + broken + 1) if abs(2*k - fixed - broken) >= abs(fixed - broken)), 'too large for a float'), (lambda fixed, broken: 2*stats.norm.sf(abs(fixed - broken)/(fixed + broken)**.5), 'approximation'), (lambda fixed, broken: stats.binom.pmf(fixed, fixed + broken, .5), 'exactly this result'), (lambda fixed, broken: stats.binomtest(fixed, fixed + broken), '`pvalue`'), (lambda fixed, broken: [fixed, broken], 'not a list'),
            (lambda fixed, broken: stats.binomtest(fixed, fixed + broken, alternative='greater').pvalue, 'one side'), (chi2, 'approximation'), (lambda fixed, broken: 2., 'between 0 and 1'), (lambda fixed, broken: 2*stats.binom.sf(fixed - 1, fixed + broken, .5), 'from the larger'),
            (lambda fixed, broken: .5, '20 tosses of a coin'), (lambda fixed, broken: 2*stats.binom.cdf(min(fixed, broken), fixed + broken, .5), 'the middle counts twice')],
    '6.1': [(lambda a: (np.mean(a), np.std(a, ddof=1)/len(a)**.5), 'standard error'), (lambda a: (.862, .00557), 'The mean of 0.62'), (lambda a: (np.mean(a), (max(a) - min(a))/2), 'the range'), (lambda a: (np.mean(a), .00455), 'you have'), (lambda a: (np.mean(a), np.abs(np.array(a) - np.mean(a)).mean()), 'squares'),
            (lambda a: (sum(a)/3, np.std(a, ddof=1)), 'The mean of'), (lambda a: spread(a, ddof=0), 'ddof=1'), (lambda a: (np.mean(a), np.var(a, ddof=1)), 'variance'), (lambda a: (np.median(a), np.std(a)), 'mean of'), (lambda a: (np.mean(a), 0), '.00557'), (lambda a: spread(a)[::-1], 'comes first'), (lambda a: (np.mean(a), '0.006'), 'no number'),
            (lambda a: np.mean(a), 'two numbers')],
    '6.2': [(lambda a: interval(a, stats.t.ppf(.975, 3)), 'three degrees'), (lambda a: interval(a, stats.t.ppf(.95, 2)), '90%'), (lambda a: interval(a, stats.t.ppf(.975, 2)/3**.5), 'the *root*'), (lambda a: (.8482, .8758), 'around the mean'), (lambda a: (np.mean(a) - .0063, np.mean(a) + .0063), 'either side'), (lambda a: (np.mean(a), interval(a)[1] - np.mean(a)), 'the mean first'), (lambda a: (min(a), max(a)), 'of the runs'),
           
            (lambda a: interval(a, 1.96), 't distribution'), (lambda a: interval(a, root=False), 'one further run'), (lambda a: interval(a, 1.96, root=False), 'one run'), (lambda a: interval(a, ddof=0), 'ddof'),
            (lambda a: interval(a)[::-1], 'comes first'), (lambda a: (.5, .9), 'around the mean'), (lambda a: interval(a, 100), 'either side')],
    '6.3': [(lambda runs: runs.test_accuracy[runs.valid_accuracy.argmax()], 'numbered from 0'), (lambda runs: runs.test_accuracy.iloc[runs.valid_accuracy.idxmax()], 'a label, for `loc`'), (lambda runs: .86, 'you return 0.86'), (lambda runs: .842, 'you return 0.842'), (lambda runs: runs.test_accuracy.iloc[0], 'first row'), (lambda runs: runs.test_accuracy.sort_values().iloc[-2], 'you return'), (lambda runs: runs.test_accuracy.iloc[1], 'you return'), (lambda runs: runs.sort_values('valid_accuracy').test_accuracy.iloc[-2], 'second best'),
            (lambda runs: .851, 'you return'), (lambda runs: runs.loc[runs.valid_accuracy.idxmax(), 'recipe'], 'a number'), (sorted_in_place, 'has changed'), (lambda runs: runs.test_accuracy.max(), 'made the choice'), (lambda runs: runs.valid_accuracy.max(), 'test accuracy of the same recipe'), (lambda runs: runs.loc[runs.valid_accuracy.idxmin(), 'test_accuracy'], 'highest'),
            (lambda runs: runs.test_accuracy.min(), 'lowest of the test'), (lambda runs: runs.test_accuracy.median(), 'Choose')],
    '7.1': [(16*16*32*(9*16 + 1), 'leave out the bias'), (1_179_648//9, '3x3'), (1_179_648//16, '16 channels'), (2*1_179_648, 'together'), (4608, 'one place'), (16*32*9*14*14, 'padding'), (1, 'At each')],
    '7.4': [(lambda x, epoch, first: alternate(x, 0, first.flip(0) if epoch % 2 else first), 'In epoch 1'), (alternate_in_place, 'has changed'), (Counts(), 'In epoch 7'), (lambda x, epoch, first: alternate(x, min(epoch, 3), first), 'In epoch 4'), (lambda x, epoch, first: some(x, first ^ (torch.arange(len(x)) % 2 == epoch % 2)), 'In epoch 0'),
            (lambda x, epoch, first: coin(x), 'In epoch 0'), (lambda x, epoch, first: torch.where(first[:, None, None, None], x.flip(-1), x), 'In epoch 1'),
            (lambda x, epoch, first: x.flip(-2), 'neither as they were')],
    '7.2': [(lambda step, steps, sizes: sizes[min(step//-(-steps//len(sizes)), len(sizes) - 1)], 'one step at most'), (lambda step, steps, sizes: (16, 24, 32)[step*3//steps], 'two sizes'), (lambda step, steps, sizes: sizes[min(step//2, 2)], 'equal part'), (lambda step, steps, sizes: 32, 'its part'), (lambda step, steps, sizes: 16 + step, 'only 16, 24'), (lambda step, steps, sizes: sizes[0] + 8*(step*len(sizes)//steps), 'only (8, 20, 24, 32)'),
            (lambda step, steps, sizes: sizes[step//(steps//len(sizes))], 'IndexError'), (lambda step, steps, sizes: sizes[min(step//(steps//len(sizes)), len(sizes) - 1)], 'one step at most')],
    '7.3': [(lambda p: torch.diag(1/p.std(0)), 'still correlated'), (columns_divided, 'by one root'), (lambda p: columns_divided(p).T, 'by one root'), (lambda p: whiten(p.T), 'a filter for each patch'), (lambda p: whiten(p[:, :6]) if p.shape[1] == 6 else torch.eye(6), 'shape'), (lambda p: whiten(p, scale=False), 'standard deviation'), (lambda p: whiten(p).T.contiguous(), 'transpose'), (lambda p: torch.eye(p.shape[1]), 'eigenvectors'), (lambda p: p, 'a square matrix'), (lambda p: torch.linalg.inv(torch.cov(p.T)), 'inverse'), (lambda p: whiten(p)/len(p)**.5, 'divided by n - 1'), (lambda p: whiten(p, scale=False).T, 'transpose it. Then divide'), (lambda p: (torch.linalg.eigh(torch.cov(p.T))[1]/(torch.linalg.eigh(torch.cov(p.T))[0] + .01).sqrt()).T, 'a constant')],
    '8.2': [(clamped, 'differences count'), (lambda s: clamped(s, 20.), 'differences count'), (lambda s: softmax_of(s, keepdim=False), 'keepdim=True'), (lambda s: softmax_of(s - s.max(), keepdim=False), 'keepdim=True'),
            (lambda s: softmax_of(s - s.max()), 'Subtract the largest score of each row'), (lambda s: s.exp()/s.exp().sum(), 'with two it does not'), (lambda s: s.sub_(s.amax(1, keepdim=True)).softmax(1), 'has changed'), (lambda s: s.log_softmax(1), 'add up to 1'), (lambda s: s - s.max(1, keepdim=True), 'values and indices'),
            (lambda s: s.exp()/s.exp().sum(1, keepdim=True), 'infinite'), (lambda s: s/s.sum(), '.090'), (lambda s: s.sigmoid(), 'add up to 1'), (lambda s: s.softmax(0), 'add up to 1')],
    '8.1': [(cropped, 'the whole picture'), (lambda p: prepare(p)//1, 'cuts to whole numbers'), (with_border_cut, 'the whole picture'), (without_convert, 'palette'), (lambda p: prepare(p).flip(3), 'Left and right'), (lambda p: prepare(p).mean(1, keepdim=True).expand(1, 3, 32, 32), 'where are the colors'), (lambda p: cropped(p, (8, 4)), 'the whole picture'), (center_cropped, 'the whole picture'), (padded, 'the whole picture'), (lambda p: prepare(p).flip(1), 'Red and blue'),
            (lambda p: prepare(p).transpose(2, 3), 'Rows and columns'), (lambda p: prepare(p)*2 - 1, 'between 0 and 1'), (stretched, 'by its own maximum'), (lambda p: prepare(p)[0], 'batches'), (lambda p: prepare(p).permute(0, 2, 3, 1), 'channels come before'), (lambda p: prepare(p)*255, 'between 0 and 1'), (lambda p: (prepare(p)*255).byte(), 'floating'),
            (lambda p: torch.tensor(np.asarray(p)/255).float().permute(2, 0, 1)[None], 'RuntimeError'), (lambda p: prepare(p).permute(0, 2, 3, 1).reshape(1, 3, 32, 32), 'mix pixels'), (lambda p: 3, 'Return a tensor'), (lambda p: prepare(p)/prepare(p).max(), 'by its own maximum')],
    '8.4': [(lambda p, vocab, t: decide([round(float(o), 1) for o in p], vocab, t), 'With 0.56'), (first_over, 'the likeliest, ship'), (lambda p, vocab, t: first_over(list(p)[::-1], vocab[::-1], t), 'the likeliest, cat'), (lambda p, vocab, t: int(np.argmax(p)) if max(p) >= t else None, 'not its place'),
            (lambda p, vocab, t: (decide(p, vocab, t) if len(p) == 3 else vocab[0]), 'not for five'), (lambda p, vocab, t: decide(p, vocab, .6), 'several reach it'), (lambda p, vocab, t: decide(p, vocab, t) or 'none', 'return None'),
            (lambda p, vocab, t: vocab[int(np.argmax(p))], 'None'), (lambda p, vocab, t: decide(p, vocab, t + 1e-6), 'just enough'), (lambda p, vocab, t: 'cat', 'dog'),
            (lambda p, vocab, t: vocab[p.index(max(p))] if max(p) >= t else None, 'With a tensor it stops with')],
    '8.3': [(lambda p, vocab, k: top(p, sorted(vocab), k), 'called e, d'), (lambda p, vocab, k: [(v, n) for n,v in top(p, vocab, k)], 'the class comes first'), (lambda p, vocab, k: top(p, vocab, min(k, 2)), 'The likeliest four'), (lambda p, vocab, k: top(p, vocab, k)[::-1], 'comes first'), (top_by_value, 'same probability'), (top_by_dict, 'same probability'), (lambda p, vocab, k: top(p, vocab, k) if isinstance(p, list) else top(-p, vocab, k), 'Of a tensor, too'), (lambda p, vocab, k: sorted(zip(vocab, p), key=lambda o: o[1])[:k], 'unlikeliest'), (lambda p, vocab, k: [(v, 1.) for v,_ in top(p, vocab, k)], 'probabilities'),
            (lambda p, vocab, k: [v for v,_ in top(p, vocab, k)], 'pair'), (lambda p, vocab, k: top(p, vocab, 1), 'as many'), (lambda p, vocab, k: [top(p, vocab, k)[i] for i in range(k)], 'IndexError')],
}
numbers = list(exercises().exercise)

def test_all_exercises_are_tried_here(): assert sorted(right) == sorted(wrong) == numbers

@pytest.mark.parametrize('number,i', [(n, i) for n,answers in right.items() for i in range(len(answers))])
def test_a_right_answer_is_right(number, i):
    verdict = check(number, right[number][i])
    assert verdict and str(verdict.text).startswith('Right'), f'{verdict}: for a right answer, return a text that begins with "Right"'

@pytest.mark.parametrize('number,i', [(n, i) for n,answers in wrong.items() for i in range(len(answers))])
def test_a_wrong_answer_gets_the_hint_that_fits(number, i):
    answer,hint = wrong[number][i]
    verdict = check(number, answer)
    assert verdict.right is False and hint in verdict.text, verdict

def fifth(pictures, change):
    names = sorted(set(pictures))
    random.Random(0).shuffle(names)
    chosen = set(names[:len(names)//5])
    return [i for i,p in enumerate(pictures) if p not in chosen],change(pictures, chosen)

def ending_in(*last): return lambda: nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), *last)

@pytest.mark.parametrize('number, answer, hint', [
    ('1.4', lambda p: fifth(p, lambda p, chosen: [i + 1 for i,name in enumerate(p) if name in chosen]), 'go from 0 to 599; among yours is [600]'),
    ('1.4', lambda p: fifth(p, lambda p, chosen: [i for name in p if name in chosen for i,q in enumerate(p) if q == name]), 'Name each image once'),
    ('2.3', ending_in(nn.Linear(512, 10), nn.Tanh()), 'between -1 and 1'), ('2.3', ending_in(nn.Dropout(.5), nn.Linear(512, 10), nn.GELU()), 'No score of your network is below'),
    ('8.2', lambda s: (e := (s - s.amax(1)).exp())/e.sum(1, keepdim=True), 'also when you take the largest')])
def test_a_hint_says_nothing_that_is_false(number, answer, hint):
    said = str(check(number, answer).text)
    assert hint in said and 'mode only' not in said, said

@pytest.mark.parametrize('number', numbers)
def test_no_answer_is_no_attempt(number):
    def unwritten(x, y): ...
    assert check(number).right is check(number, unwritten).right is None
    assert '`unwritten`' in check(number, unwritten).text
    assert not exercises().attempts.any()

@pytest.mark.parametrize('number', numbers)
@pytest.mark.parametrize('answer', ['', None, [], {}, object(), math.nan, -1, lambda *a: None, lambda: 1, lambda *a: 'what'], ids=lambda a: type(a).__name__)
def test_nonsense_gets_a_hint_and_no_traceback(number, answer):
    verdict = check(number, answer)
    assert verdict.right is False and len(verdict.text) > 20

def test_trying_an_answer_leaves_no_traces():
    model = network().eval()
    before = torch.get_rng_state()
    assert check('2.3', model) and not model.training and all(p.grad is None for p in model.parameters())
    assert not check('3.1', lambda x: x) and torch.equal(torch.get_rng_state(), before)
    assert not check('4.2', lambda model: torch.set_grad_enabled(False) and None) and torch.is_grad_enabled()

def test_progress_counts_attempts_until_it_is_right():
    for answer in 1, 2, 448, 3: check('2.2', answer)
    row = exercises(2).set_index('exercise').loc['2.2']
    assert row.attempts == 3 and row.right

def test_damaged_progress_is_told(tmp_path):
    (tmp_path/'course.json').write_text('{', encoding='utf-8')
    with pytest.raises(ValueError, match='damaged.*course --reset'): exercises()
    with pytest.raises(ValueError, match='for all exercises'): reset_progress('1.4')
    assert reset_progress() == [] and not exercises().attempts.any()

@pytest.mark.parametrize('record', ['3', '"many"', 'null', '[]', '{}', '{"attempts": 2}', '{"attempts": "2", "right": false}', '{"attempts": -1, "right": false}',
                                    '{"attempts": true, "right": false}', '{"attempts": 1, "right": 1}'])
def test_a_damaged_record_is_told_by_its_name_and_can_be_removed(tmp_path, record):
    (tmp_path/'course.json').write_text('{"1.2": {"attempts": 1, "right": true}, "2.2": %s}' % record, encoding='utf-8')
    for f in exercises, lambda: check('2.2', 448), lambda: solution('2.2'):
        with pytest.raises(ValueError, match=r"course.json: '2.2' is .*`cifar-fastai course --reset 2.2`"): f()
    assert reset_progress('2.2') == ['2.2'] and exercises().right.sum() == 1

def test_progress_of_an_earlier_version_is_read(tmp_path):
    (tmp_path/'course.json').write_text('{"2.2": {"attempts": 2, "right": false}}', encoding='utf-8')
    assert 'after 1 more try. `check' in solution('2.2').text

# The solutions
def test_a_solution_comes_after_three_tries_and_the_last_hint_before():
    assert 'after 3 tries' in solution('2.2').text
    check('2.2', ...)
    for left,wrong_answer,hint in ('2 more tries', 432, 'a bias too'), ('1 more try', 28, 'How many are there'):
        assert 'solution' not in check('2.2', wrong_answer).text
        shown = solution('2.2')
        assert shown.right is None and f'after {left}. Your last hint' in shown.text and hint in shown.text
    assert "`solution('2.2')`" in check('2.2', 7).text
    shown = solution('2.2')
    assert 'bias' in shown.why and "check('2.2'" in shown.code
    assert repr(shown) == f'{shown.why}\n\n{shown.code}' and '```python\n' in shown._repr_markdown_()

def test_who_solved_an_exercise_may_see_the_solution():
    check('2.2', 448)
    assert 'bias' in solution('2.2').why

def test_every_exercise_has_a_solution(): assert sorted(solution_registry) == numbers

@pytest.mark.parametrize('number', numbers)
def test_a_solution_is_explained_and_right(number):
    why,code = solution_registry[number][1:]
    assert 30 < len(why) < 300 and code.splitlines()[-1].startswith(f"check('{number}', ")
    *lines,last = code.splitlines()
    names = dict(check=check)
    exec('\n'.join(lines), names)
    assert eval(last, names)

@pytest.mark.parametrize('path', sorted(tutorial_folder().glob('*.ipynb')), ids=lambda p: p.stem)
def test_a_solution_fills_the_cell_of_the_tutorial_in(path):
    for source in code_of(path):
        for head,number in re.findall(r"^(def .+): \.\.\.\n\ncheck\('([\d.]+)'", source, re.M):
            assert f'{head}:' in solution_registry[number].code

def test_an_exercise_without_a_solution():
    try:
        @exercise('99.2', 'Say no')
        def _(answer): need(answer == 'no', 'Try the other word.')
        for _ in range(4): assert check('99.2', 'yes').text == 'Try the other word.'
        with pytest.raises(ValueError, match='99.2 has no solution'): solution('99.2')
    finally: exercise_registry.pop('99.2', None)
    with pytest.raises(ValueError, match="Unknown exercise '1.9'"): solution('1.9')

def test_progress_can_be_reset():
    for number in '2.1', '2.2', '1.2': check(number, 1)
    assert reset_progress('2.1') == ['2.1'] and reset_progress('2.1') == []
    assert set(exercises()[exercises().attempts > 0].exercise) == {'1.2', '2.2'}
    with pytest.raises(ValueError, match="Unknown exercise '2.9'"): reset_progress('2.9')
    assert sorted(reset_progress()) == ['1.2', '2.2'] and not progress_file().exists() and reset_progress() == []

@pytest.mark.parametrize('given,change', [
    (torch.zeros(2, 3), lambda x: x.add_(1)), (np.zeros((2, 3)), lambda x: x.fill(1) or x), ([2, 1], lambda x: x.sort() or x),
    (pd.DataFrame(dict(a=[1, 2])), lambda x: x.insert(0, 'b', 1) or x)])
def test_an_input_that_was_changed_is_noticed(given, change):
    with pytest.raises(Hint, match='was given has changed'): call(change, given)

def test_an_exercise_of_ones_own():
    try:
        @exercise('99.1', 'Say yes')
        def _(answer):
            need(answer == 'yes', 'Try the other word.')
            return 'Right.'
        assert check('99.1', 'yes') and check('99.1', 'no').text == 'Try the other word.'
        with pytest.raises(ValueError, match='registered already'): exercise('99.1', 'Again')(print)
        def anew(answer): return 'Anything goes.'
        anew.__module__ = '__main__'  # as in a notebook, where a cell may run twice
        for _ in range(2): exercise('99.1', 'Say something')(anew)
        assert check('99.1', 'no').text == 'Anything goes.'
        def module(answer): return 'Of a module.'
        exercise('99.1', 'Say something')(module)  # a module that is imported once its notebook has run
        assert check('99.1', 'no').text == 'Of a module.'
        with pytest.raises(ValueError, match='registered already'): exercise('99.1', 'Again')(module)
    finally: exercise_registry.pop('99.1', None)

def code_of(path): return [''.join(c['source']) for c in json.loads(path.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == 'code']

@pytest.mark.parametrize('path', sorted(tutorial_folder().glob('*.ipynb')), ids=lambda p: p.stem)
def test_no_tutorial_needs_the_network(path):
    assert not [source for source in code_of(path) if '://' in source and '%pip install' not in source]

def checks_in(path):
    "The exercises that a notebook checks, and the answers that it gives them"
    return [m for source in code_of(path) for m in re.findall(r"^check\('([\d.]+)', (.+?)\)(?: +#.*)?$", source, re.M)]

@pytest.mark.parametrize('path', sorted(tutorial_folder().glob('*.ipynb')), ids=lambda p: p.stem)
def test_a_tutorial_asks_for_its_own_exercises_and_gives_no_answer_away(path):
    asked = checks_in(path)
    assert sorted(n for n,_ in asked) == list(exercises(int(path.name[:2])).exercise)
    text = path.read_text(encoding='utf-8')
    assert all(answer == '...' or re.search(rf'"def {answer}\(.*\): \.\.\.\\n"', text) for _,answer in asked), asked
    assert all(f'**Exercise {n}.**' in text for n,_ in asked) and 'What to expect' in text and 'Try it.' in text

def test_measured_runs_are_those_of_the_benchmarks():
    rows = pd.read_csv(Path(__file__).parents[1]/'benchmarks'/'results'/'training.csv')
    found = measured_runs()
    assert list(found.columns) == list(rows.columns) and found.recipe.tolist() == rows.recipe.tolist() and len(found) > 50

def test_all_tutorials_are_there(): assert list(tutorials().tutorial) == sorted(set(exercises().tutorial))

def test_tilde_is_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    assert {path.parent for path in copy_tutorials('~/course')} == {tmp_path/'course'}

def test_links_of_a_copied_tutorial_lead_to_other_tutorials_or_to_the_site(tmp_path):
    nbs = tutorial_folder().parent
    pages = {re.sub(r'(^|/)\d+_', r'\1', o.relative_to(nbs).with_suffix('').as_posix()) + '.html' for o in nbs.rglob('*.ipynb')}
    copies = copy_tutorials(tmp_path/'course')
    links = {o for path in copies for o in re.findall(r'\]\(([^)#\s]+\.(?:ipynb|html))', path.read_text(encoding='utf-8'))}
    site = 'https://cifar-fastai.github.io/cifar_fastai/'
    assert {f'{site}guides/glossary.html', f'{site}benchmarks.html', '06_the_ladder.ipynb'} <= links
    assert not [o for o in links if o.removeprefix(site) not in pages and o not in {path.name for path in copies} and 'numpy.org' not in o]

# --- answers as learners give them, more than half of them by somebody who had not read the checks

learners = json.loads((Path(__file__).parent/'data'/'learners_answers.json').read_text(encoding='utf-8'))
as_in_a_notebook = """
import copy, hashlib, itertools, math, os, random, statistics
from collections import Counter, defaultdict
from pathlib import Path
import numpy as np, pandas as pd, scipy.stats, torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn
"""

def answer_of(source):
    "What a source calls `answer`"
    names = {}
    exec(as_in_a_notebook + source, names)
    return names['answer']

def test_there_are_answers_of_each_kind_to_every_exercise():
    assert set(learners) == set(exercise_registry.names())
    for kinds in learners.values(): assert len(kinds['wrong']) >= 3 and len(kinds['nearly right']) >= 1 and len(kinds['right']) >= 2

@pytest.mark.slow
@pytest.mark.parametrize('number', learners)
def test_answers_of_learners(number):
    for kind,sources in learners[number].items():
        for source in sources: assert check(number, answer_of(source)).right == (kind == 'right'), f'{kind}:\n{source}'
