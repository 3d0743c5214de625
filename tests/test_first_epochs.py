"""The first epoch of three recipes, on practice images, gives the numbers that it gave before: training loss, validation loss and accuracy.
Processors round differently, so each kind has its own numbers."""
import pytest
import torch
from fastai.callback.core import Callback, CancelFitException

from cifar_fastai.recipes import get_recipe
from cifar_fastai.runs import hardware

first_epochs = {  # training loss, validation loss, validation accuracy
    'AMD EPYC, AVX2': dict(small_cnn=[2.31574, 2.26658, .1], small_cnn_one_cycle=[2.29577, 2.19915, .216667], plain_cnn=[3.74861, 2.19097, .3]),
    'Intel(R) Xeon(R) Processor @ 2.80GHz, AVX512': dict(
        small_cnn=[2.31574, 2.26658, .1], small_cnn_one_cycle=[2.29577, 2.19915, .216667], plain_cnn=[3.74861, 2.19097, .3]),
}
tolerances = dict(small_cnn=1e-4, small_cnn_one_cycle=1e-4, plain_cnn=3e-4)  # above what the order of sums changes, below what 1% of the learning rate does


class FirstEpoch(Callback):
    "Stop after one epoch of the whole recipe's schedule, and keep its numbers."
    order = 90  # after fastai's Recorder
    numbers = None
    def after_epoch(self):
        if self.numbers: return  # `train` validates once more in the end
        self.numbers = list(self.recorder.values[-1])
        raise CancelFitException


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize('name', tolerances)
def test_the_first_epoch_is_as_before(name, go, one_thread):
    processor = f'{hardware()["cpu"]}, {hardware()["instructions"]}'
    recipe = get_recipe(name, bs=32, valid=.3, mixed_precision=False)
    go(recipe, seed=0, device='cpu', cbs=[first := FirstEpoch()])
    stored = first_epochs.get(processor, {}).get(name)
    found = [float(f'{o:.6g}') for o in first.numbers]
    if stored is None: pytest.skip(f'no numbers for {name} on {processor}: this machine gives {found}')
    assert found == pytest.approx(stored, rel=tolerances[name]), (
        f'The numbers of {name} changed: {found} instead of {stored}. If that was intended, add a line to benchmarks/results/changes.csv, '
        'measure the rows again (make benchmarks), and update the numbers in this file.')
