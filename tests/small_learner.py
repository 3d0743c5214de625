"A small learner to ask, and its images as plain arrays."
import numpy as np
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import set_seed
from PIL import Image
from torch import nn

from cifar_fastai import data, sources


def loaders(practice, **kwargs): return data.cifar10_dataloaders(practice, **dict(bs=16, num_workers=0, device='cpu') | kwargs)


def make_learner(dls, model, **kwargs): return Learner(dls, model, loss_func=CrossEntropyLossFlat(), **kwargs)


def network():
    "Its answers depend on the mode it is in; its ReLU works in place"
    set_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Dropout(.5), nn.Linear(32, 10))


def pixels(practice, files=None):
    "Images as floats from 0 to 1, read by PIL alone: (N, 3, H, W)"
    files = sources.test_files(practice) if files is None else files
    return np.stack([np.array(Image.open(f)).transpose(2, 0, 1) for f in files]).astype(np.float32) / 255


def normalized(images):
    mean, std = (np.array(o, dtype=np.float32)[:, None, None] for o in data.cifar10_stats)
    return (images - mean) / std


def fitted_learner(dls):
    "One epoch is enough for its answers to differ"
    learn = make_learner(dls, network(), cbs=ChannelsLast())
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn


class Images(torch.utils.data.Dataset):
    "Images that are no files"
    def __init__(self, images, targets): self.images, self.targets = torch.from_numpy(images), targets
    def __len__(self): return len(self.images)
    def __getitem__(self, i): return self.images[i], int(self.targets[i])


def tensor_loaders(practice, result):
    "Loaders of plain tensors, the images of `result`"
    dl = DataLoader(Images(normalized(pixels(practice)), result.targets), bs=10)
    dls = DataLoaders(dl, dl, path=practice)
    dls.vocab = result.vocab
    return dls
