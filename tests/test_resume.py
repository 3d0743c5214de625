"A run that was stopped at any moment goes on to the end that it would have had"
import errno
import json
import os
import random
import shutil
import signal
import time
import warnings
from collections import Counter, defaultdict, deque
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import Learner  # noqa: F401  with lr_find
from fastai.callback.training import GradientAccumulation, GradientClip
from torch import nn

from cifar_fastai import callbacks, checkpoints, cli, data, runs, terminal, training
from cifar_fastai.experiments import run_grid
from cifar_fastai.recipes import Head, Stage
from cifar_fastai.runs import Run
from cifar_fastai.training import train
from forks import forked
from small_runs import At, kinds, small


class Copies(Callback):
    "Copy the run folder as it is after some batches: what a process that is killed there leaves"
    order = 2_000_000 # after the checkpoint
    def __init__(self, *places): self.places = places # of stage, epoch and batch

    def after_batch(self):
        if not self.training: return
        place = self.checkpoints.stage,self.epoch,self.iter
        if place in self.places: shutil.copytree(self.run_dir, self.run_dir.parent/'-'.join(map(str, place)))


def weights_of(folder): return {k: v.tolist() for k,v in Run.open(folder).read_weights().items()}

def end_of(learn):
    "Everything that a run ends with, except times"
    run = Run.open(learn.run_dir)
    assert run.status == 'finished' and not run.checkpoints_folder.exists()
    tables = [t.drop(columns='seconds', errors='ignore').to_csv() for t in (run.history, run.recalls)]
    recorded = [list(map(list, learn.recorder.values)), *(getattr(learn.recorder, name) for name in ('losses', 'lrs', 'iters'))]
    return dict(weights=weights_of(run.folder), tables=tables, metrics=run.metrics, recorded=recorded,
                files=sorted(f.name for f in run.folder.iterdir()))


def check_all_copies(go, recipe, *places, make_cbs=list, **kwargs):
    go = partial(go, checkpoint_minutes=0, **kwargs)
    whole = end_of(go(recipe, name='whole', cbs=[Copies(*places), *make_cbs()]))
    for place in places:
        learn = go(name='-'.join(map(str, place)), resume=True, cbs=make_cbs())
        assert end_of(learn) == whole, place
    return learn


@pytest.fixture
def go(practice, tmp_path):
    def go(recipe=None, name='run', resume=False, **kwargs):
        place = dict(resume=tmp_path/name) if resume else dict(run_dir=tmp_path/name, limit=96)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'lr_scheduler')
            warnings.filterwarnings('ignore', r'.* was begun with cbs=\[(Copies|Stop)')
            return train(recipe, source=None if resume else practice, **place, **kwargs)
    return go


@pytest.mark.parametrize('name', kinds)
@pytest.mark.slow
def test_every_kind_of_recipe_ends_the_same(go, name):
    recipe,places = kinds[name]
    check_all_copies(go, recipe, *places)


@pytest.mark.slow
def test_kept_features_end_the_same(go, practice):
    "They are computed in the batches of the first epochs, also if the last ones of an epoch were left out then"
    recipe = small.change(model='mobilenet_v3_small', head=Head(lin_ftrs=()), groups=('head',), bs=20, augment='none', stages=(
        Stage(epochs=3, lr=1e-2, freeze_to='head', bn='frozen'), Stage(epochs=1, lr=1e-3, augment='flip_crop')))
    places = [(1, 0, 2), (1, 2, 1), (2, 0, 1)]
    check_all_copies(go, recipe, *places)


class Noticing(Callback):
    "A user's own callback, with numbers, a tensor and a list"
    def __init__(self): self.n,self.mean,self.seen = 0,None,[]
    def after_batch(self):
        if not self.training: return
        self.n += 1
        loss = self.loss.detach().clone()
        self.mean = loss if self.mean is None else torch.lerp(self.mean, loss, .1)
        self.seen.append(float(loss))


@pytest.mark.slow
def test_callbacks_go_on_where_they_were(go):
    "MixUp draws the same shares, gradients that wait for their step are kept, and a callback of the user's has its numbers"
    noticing = []
    def make_cbs(): return [MixUp(.4), GradientAccumulation(40), noticing.append(Noticing()) or noticing[-1]]
    check_all_copies(go, small, (1, 0, 2), (1, 1, 3), make_cbs=make_cbs)
    assert len(noticing) == 3 and {(cb.n, float(cb.mean), *cb.seen) for cb in noticing} == {(12, float(noticing[0].mean), *noticing[0].seen)}


@pytest.mark.slow
def test_worker_processes_draw_the_same_images(go): check_all_copies(go, small, (1, 0, 3), (1, 1, 2), num_workers=2)


@pytest.mark.slow
def test_a_run_can_be_stopped_again_and_again(go, tmp_path):
    whole = end_of(go(small, name='whole', checkpoint_minutes=0))
    places = [(0, 1), (0, 4), (1, 0), (1, 5)]
    class Stop(Callback):
        order = 2_000_000 # after the checkpoint
        def after_batch(self):
            if self.training and places and (self.epoch, self.iter) == places[0]:
                del places[0]
                raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): go(small, cbs=[Stop()], checkpoint_minutes=0)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt): go(resume=True, cbs=[Stop()], checkpoint_minutes=0)
        assert Run.open(tmp_path/'run').status == 'interrupted'
    learn = go(resume=True)
    assert end_of(learn) == whole and not places
    resumed = Run.open(tmp_path/'run').info['resumed']
    assert [r['epochs'] for r in resumed] == [0, 0, 1, 1] and Run.open(tmp_path/'run').history.seconds.is_monotonic_increasing


class Hoarder(Callback):
    "Keeps what a user's callbacks keep"
    n = 0 # of the class, until it changes

    def __init__(self):
        self.counts,self.by_epoch,self.last,self.epochs = Counter(), defaultdict(list), deque(maxlen=3), set()
        self.total,self.big = np.zeros(2), 10**30
        self.draws = random.Random(1), np.random.default_rng(1), torch.Generator().manual_seed(1)
        self.python,self.numpy,self.torch = self.draws
        self.one = self.another = torch.zeros(1) # two by and by
        self.drawn = 0.
        self.state = False # and text by and by

    def before_fit(self):
        self.mean_weights = deepcopy(self.learn.model)
        weight = next(self.learn.model.parameters())
        self.parts = weight[1:],weight.data.flatten()[2:] # views of the network's memory
        self.own = nn.Parameter(torch.ones(2))
        self.unsaved = [torch.eye(2).to_sparse(), torch.ones(1, dtype=torch.complex64)]
        self.circle = [self.learn]
        self.circle.append(self.circle)

    @torch.no_grad()
    def after_batch(self):
        if not self.training: return
        self.n += 1
        self.state = f'{self.n} batches'
        self.counts[self.iter] += 1
        self.by_epoch[self.epoch].append(self.iter)
        self.last.append(self.iter)
        self.epochs.add(self.epoch)
        self.total += self.n
        self.own += 1
        self.another = self.another + 1
        self.drawn += self.python.random() + self.numpy.random() + float(torch.rand(1, generator=self.torch))
        for mean,p in zip(self.mean_weights.parameters(), self.learn.model.parameters()): mean.lerp_(p, .1)

    def kept(self):
        means = [p.tolist() for p in self.mean_weights.parameters()]
        return (self.n, self.state, self.counts, self.by_epoch, self.last, self.epochs, self.total.tolist(), self.big, self.one.item(),
                self.another.item(), self.own.tolist(), self.drawn, means, type(self.counts), type(self.by_epoch), self.last.maxlen)


@pytest.mark.slow
def test_whatever_callbacks_keep(go):
    made = []
    def make_cbs(): return [made.append(Hoarder()) or made[-1], GradientClip(1.), GradientClip(.5)]
    check_all_copies(go, small, (1, 1, 3), make_cbs=make_cbs)
    whole,resumed = made
    assert whole.kept() == resumed.kept() and resumed.n == 12


class Unfreezing(Callback):
    "Train the first layer from the second epoch on"
    def before_fit(self): self.learn.model.get_parameter(self.first()).requires_grad_(False)
    def before_epoch(self):
        if self.epoch == 1: self.learn.model.get_parameter(self.first()).requires_grad_(True)
    def first(self): return next(name for name,_ in self.learn.model.named_parameters())


@pytest.mark.slow
def test_what_learns_by_now(go):
    check_all_copies(go, small.change(stages=Stage(epochs=3, lr=1e-2)), (1, 2, 1), make_cbs=lambda: [Unfreezing()])


@pytest.mark.slow
def test_a_search_for_a_learning_rate_within_a_training_leaves_no_checkpoint(go, monkeypatch):
    class Searching(Callback):
        def before_fit(self):
            if not hasattr(self.learn, 'lr_finder'): self.learn.lr_find(num_it=3, show_plot=False)
    places = []
    monkeypatch.setattr(Run, 'add_checkpoint', lambda self, state, tensors: places.append((state['epoch'], state['batch'])))
    go(small, cbs=[Searching()], checkpoint_minutes=0)
    assert places[:3] == [(0, 1), (0, 2), (0, 3)]


@pytest.mark.slow
def test_callbacks_that_are_not_given_again_are_named(go, stopped, tmp_path):
    with pytest.warns(UserWarning, match=r'begun with cbs=\[Copies\]'): train(resume=stopped)


# --- checkpoints

@pytest.fixture
def stopped(go, tmp_path):
    "A run that was killed in its second epoch"
    go(small, name='whole', cbs=[Copies((1, 1, 3))], checkpoint_minutes=0)
    return (tmp_path/'1-1-3').rename(tmp_path/'run')


@pytest.mark.slow
def test_a_damaged_checkpoint_falls_back_to_the_one_before(go, stopped, tmp_path):
    newest = Run(stopped).checkpoints()[-1].with_suffix('.safetensors')
    content = bytearray(newest.read_bytes())
    content[len(content)//2] ^= 1
    newest.write_bytes(content)
    with pytest.warns(UserWarning, match='cannot be used .*checksum'): learn = go(resume=True)
    assert end_of(learn)['weights'] == weights_of(tmp_path/'whole')


@pytest.mark.slow
def test_without_any_checkpoint_it_begins_anew(go, stopped, tmp_path):
    for file in Run(stopped).checkpoints(): file.write_text('{}')
    with pytest.warns(UserWarning, match='cannot be used'): learn = go(resume=True)
    assert end_of(learn)['weights'] == weights_of(tmp_path/'whole')
    assert list(Run.open(stopped).history.epoch) == [1, 2]


@pytest.mark.slow
def test_two_checkpoints_are_kept_and_none_of_a_finished_run(go, stopped, tmp_path):
    assert len(Run(stopped).checkpoints()) == 2 and len(list((stopped/'checkpoints').iterdir())) == 4
    assert not (tmp_path/'whole'/'checkpoints').exists()


@pytest.mark.slow
def test_a_disk_that_is_full_does_not_stop_a_training(go, monkeypatch):
    def full(*args): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Run, 'add_checkpoint', full)
    with pytest.warns(UserWarning, match='No checkpoint could be written .*No space left'): learn = go(small, checkpoint_minutes=0)
    assert Run(learn.run_dir).status == 'finished'


@pytest.mark.slow
def test_short_epochs_have_few_checkpoints(go, monkeypatch):
    "Writing may take a hundredth of the time"
    written = []
    def add(self, state, tensors): written.append(time.sleep(.1))
    monkeypatch.setattr(Run, 'add_checkpoint', add)
    go(small.change(stages=Stage(epochs=8, lr=1e-2)))
    assert len(written) <= 2


def edit(file, change):
    content = json.loads(file.read_text())
    content.pop('content_checksum')
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize('change', [lambda c: c.pop('state'), lambda c: c.pop('tensors'), lambda c: c['state'].pop('at_epoch'), lambda c: c.update(state=[])])
def test_a_checkpoint_of_another_format_falls_back(stopped, change):
    newest = Run(stopped).checkpoints()[-1]
    edit(newest, change)
    (newest.parent/'notes.json').write_text('mine')
    with pytest.warns(UserWarning, match=f'{newest.name} cannot be used .* goes on from the one before'):
        state,_ = Run(stopped).read_checkpoint(checkpoints.Checkpoints.needed)
    assert state['batch'] == 3


@pytest.mark.slow
def test_a_checkpoint_of_another_network_is_refused(go, stopped):
    for file in Run(stopped).checkpoints():
        edit(file, lambda c: c['state']['model']['dict'][0].__setitem__(1, dict(c['state']['model']['dict'][1][1])))
    with pytest.raises(ValueError, match='do not fit its network and optimizer, or are damaged .*Remove .*checkpoints: the run then begins anew'): go(resume=True)


@pytest.mark.slow
def test_a_history_that_lacks_epochs_is_refused_before_anything_changes(go, stopped):
    history = stopped/'history.csv'
    header = history.read_text().splitlines()[0]
    before = (stopped/'run.json').read_text()
    for damage in (history.unlink, lambda: history.write_text(header), lambda: history.write_bytes(b'\xff\x00,\n"')):
        damage()
        with pytest.raises(ValueError, match='history.csv is damaged: it has 0 of the first 1 epochs'): go(resume=True)
        assert (stopped/'run.json').read_text() == before
    Run(stopped).remove_checkpoints()
    assert Run.open(go(resume=True).run_dir).history.epoch.tolist() == [1, 2]


class Tied(nn.Module):
    "Two layers that share their weight, and buffers of other kinds"
    def __init__(self):
        super().__init__()
        self.one,self.two = nn.Linear(3072, 10),nn.Linear(3072, 10)
        self.two.weight = self.one.weight
        self.register_buffer('steps', torch.tensor(3))
        self.register_buffer('nothing', torch.empty(0))

    def forward(self, x): return self.one(x.flatten(1)) + self.two(x.flatten(1))


def test_networks_with_tied_weights(practice, tmp_path):
    dls = data.cifar10_dataloaders(practice, bs=16)
    def learner():
        learn = training.create_learner(small, dls, model=Tied())
        learn.create_opt()
        learn.train_iter,learn.pct_train = 0,0.
        return learn
    before,after,run,tensors = learner(),learner(),Run(tmp_path),{}
    before.model.steps += 1
    before.model.one.weight.grad = torch.zeros(10, 3072) # which decays weights; None does not
    run.add_checkpoint(checkpoints.learner_state(before, before.model, tensors), tensors)
    checkpoints.set_learner_state(after, after.model, *run.read_checkpoint())
    assert all(a.equal(b) for a,b in zip(before.model.state_dict().values(), after.model.state_dict().values()))
    assert after.model.one.weight is after.model.two.weight and after.model.one.weight.grad is not None and after.model.one.bias.grad is None


@pytest.mark.parametrize('value', [object(), [object()], torch.eye(2).to_sparse(), torch.ones(1, dtype=torch.complex64), torch.ones(1, device='meta'),
                                   np.array(['a', None]), np.array('2026-11-30', 'datetime64'), np.ma.array([1]), 1j])
def test_what_is_no_data_is_refused(value):
    with pytest.raises(TypeError): checkpoints.pack(dict(a=value), {})


@pytest.mark.parametrize('value', [2**63, -10**30, [2**70]*12, [1, True, None]*5, {1, 'a'}, deque([1, 2]), [float('-inf')]*12, {(1, 2): [{}]}, [], [[]]*12])
def test_values_come_back(value):
    tensors = {}
    packed = json.loads(json.dumps(checkpoints.pack(value, tensors)))
    again = checkpoints.unpack(packed, tensors)
    assert again == value and type(again) is type(value)


@pytest.mark.parametrize('array', [np.arange(12.).reshape(3, 4).T, np.array(5, 'uint8'), np.zeros((2, 0), 'float16'), np.array([2**64 - 1]*20, 'uint64'),
                                   np.array([True, False]), np.full(20, np.nan, '>f4')])
def test_arrays_come_back(array):
    tensors = {}
    packed = json.loads(json.dumps(checkpoints.pack(array, tensors)))
    again = checkpoints.unpack(packed, tensors)
    assert (again.dtype, again.shape) == (array.dtype, array.shape) and np.array_equal(again, array, equal_nan=array.dtype.kind == 'f')


def test_nothing_is_packed_twice():
    t = torch.ones(3)
    tensors = {}
    packed = checkpoints.pack([t, t[:2], (1, .5, float('nan')), {'a': None}], tensors)
    assert json.loads(json.dumps(packed)) == packed
    one,two,numbers,rest = checkpoints.unpack(packed, tensors)
    assert one.equal(t) and two.equal(t[:2]) and numbers[:2] == (1, .5) and numbers[2] != numbers[2] and rest == {'a': None}


# --- what changed, and what is finished

def test_a_finished_run_says_so(go):
    learn = go(small)
    with pytest.raises(ValueError, match='finished'): go(resume=True)
    with pytest.raises(ValueError, match='leave out recipe, seed, run_dir and limit'): train(small, resume=learn.run_dir)


@pytest.mark.slow
def test_what_changed_is_said_and_refused(go, stopped, monkeypatch):
    recipe = json.loads((stopped/'recipe.json').read_text())
    recipe['stages'][0]['lr'] = .5
    (stopped/'recipe.json').write_text(json.dumps(recipe))
    versions = runs.versions()
    monkeypatch.setattr(training, 'versions', lambda: versions | dict(torch='1.0'))
    with pytest.raises(ValueError, match=r"recipe's stages 1 lr was 0\.01 and is 0\.5; torch was '.*' and is '1\.0'.*--force"): go(resume=True)
    with pytest.warns(UserWarning, match='would not end as it would have'): learn = go(resume=True, force=True)
    assert Run.open(learn.run_dir).status == 'finished'


@pytest.mark.slow
def test_an_epoch_that_the_recipe_no_longer_has(go, stopped):
    "Nothing of the checkpoint would be restored, and a network without training saved as finished"
    file,recipe = stopped/'recipe.json',json.loads((stopped/'recipe.json').read_text())
    recipe['stages'][0]['epochs'] = 1
    file.write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match='stopped in epoch 2 of stage 1, and its recipe has no such epoch any more: the epochs of its stages are 1. Undo'):
        go(resume=True, force=True)
    assert Run(stopped).status == 'training' and len(Run(stopped).checkpoints()) == 2


@pytest.mark.slow
def test_a_recipe_that_is_edited_while_it_trains(go, tmp_path):
    "A checkpoint says what was trained; a file that is half written stops nothing"
    text = []
    def edit_recipe(learn):
        file = learn.run_dir/'recipe.json'
        text.append(file.read_text())
        file.write_text('{')
    go(small, cbs=[Copies((1, 1, 3)), At(edit_recipe, 1, 1)], checkpoint_minutes=0)
    recipe = json.loads(text[0])
    recipe['stages'][0]['lr'] = .5
    (tmp_path/'1-1-3'/'recipe.json').write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match=r"recipe's stages 1 lr was 0\.01 and is 0\.5"): go(name='1-1-3', resume=True)


@pytest.mark.slow
def test_what_was_made_from_the_weights_before_is_removed(go, stopped, tmp_path):
    run = Run(stopped)
    for name in 'valid','test flip': run.add_metrics(name, dict(accuracy=.1, accuracy_interval=[0, .2]))
    made = [run.evaluation_file('valid'), run.evaluation_file('test flip'), *(stopped/name for name in (
        'confusion_matrix-test-flip.png', 'report.html', 'model.onnx', 'model-int8.onnx', 'model.pt2'))]
    (stopped/'classifier').mkdir()
    made.append(stopped/'classifier'/'classifier.json')
    for file in *made, stopped/'features.npz', stopped/'mine.onnx': file.touch()
    assert end_of(go(resume=True))['metrics'] == Run(tmp_path/'whole').metrics
    assert [f.name for f in made if f.exists()] == [] and (stopped/'features.npz').exists() and (stopped/'mine.onnx').exists()


@pytest.mark.slow
def test_other_data_are_refused(go, stopped, practice, tmp_path):
    other = shutil.copytree(practice, tmp_path/'other')
    next(data.train_files(other)[0].parent.iterdir()).unlink()
    with pytest.raises(ValueError, match='fingerprint of the data was'): train(resume=stopped, source=other)


@pytest.mark.slow
def test_moved_data_are_found_again(stopped, practice, tmp_path):
    other = shutil.copytree(practice, tmp_path/'other')
    info = json.loads((stopped/'run.json').read_text())
    del info['content_checksum']
    info['data'] |= dict(path=str(tmp_path/'gone'), variant='mine')
    (stopped/'run.json').write_text(json.dumps(info))
    with pytest.raises(FileNotFoundError, match='its new place|their new place'): train(resume=stopped)
    learn = train(resume=stopped, source=other)
    assert end_of(learn)['weights'] == weights_of(tmp_path/'whole')


@pytest.mark.slow
def test_a_run_that_is_being_trained_is_left_alone(go, stopped):
    with Run(stopped).alone(), pytest.raises(BlockingIOError, match='trained by another process') as e: go(resume=True)
    text,code = terminal.describe_error(e.value)
    assert text.endswith('Wait for it, or stop it first.') and code == 1
    assert Run(stopped).status == 'training' and not Run(stopped).is_training()


def test_a_copy_on_a_read_only_disk_is_not_in_training(tmp_path, monkeypatch):
    (tmp_path/'.training.lock').touch()
    def refuse(*args, **kwargs): raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    monkeypatch.setattr(runs.FileLock, 'acquire', refuse)
    assert not Run(tmp_path).is_training()


@pytest.mark.slow
def test_another_process_may_finish_a_run_meanwhile(go, stopped, monkeypatch):
    @contextmanager
    def alone(run):
        edit(run.info_file, lambda info: info.update(status='finished'))
        yield
    monkeypatch.setattr(Run, 'alone', alone)
    (stopped/'model.safetensors').write_text('finished')
    with pytest.raises(ValueError, match='finished'): go(resume=True)
    assert (stopped/'model.safetensors').read_text() == 'finished'
    assert not (stopped/'checkpoints').exists() and not (stopped/'.training.lock').exists() # nor does anything pile up


@pytest.mark.slow
@pytest.mark.parametrize('status', ['training', 'interrupted', 'failed'])
def test_a_grid_goes_on_with_a_run_that_was_stopped(stopped, practice, tmp_path, status):
    runs.write_json(stopped/'run.json', Run(stopped).info | dict(status=status))
    (tmp_path/'grid').mkdir()
    run = Run(stopped.rename(tmp_path/'grid'/'tiny-seed0'))
    [row] = run_grid(small, 1, tmp_path/'grid', source=practice, limit=96).itertuples()
    assert row.status == 'finished' and len(run.info['resumed']) == 1 and not (tmp_path/'grid'/'unfinished').exists()
    assert weights_of(run.folder) == weights_of(tmp_path/'whole')


# --- stopped by a signal

class Signals(Callback):
    "Send a signal to this process once, in a batch of an epoch"
    def __init__(self, number, epoch, batch, training=True, n=1): self.number,self.at,self.n = number,(epoch, batch, training),n
    def before_batch(self):
        while self.n and (self.epoch, self.iter, self.training) == self.at:
            self.n -= 1
            signal.raise_signal(self.number)


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.parametrize('name, at, place', [('SIGINT', (0, 3), (0, 4)), ('SIGTERM', (1, 5), (1, 6)), ('SIGINT', (0, 1, False), (1, 0))])
@pytest.mark.slow
def test_a_signal_waits_for_the_end_of_a_batch(go, tmp_path, interruptible, name, at, place):
    whole = end_of(go(small, name='whole'))
    number = getattr(signal, name)
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt if name == 'SIGINT' else SystemExit): go(small, cbs=[Signals(number, *at)])
    run = Run.open(tmp_path/'run')
    state,_ = run.read_checkpoint()
    assert signal.getsignal(number) is handler and (state['epoch'], state['batch']) == place
    assert run.status == 'interrupted' and run.weights_file.exists() and end_of(go(resume=True)) == whole


@pytest.mark.slow
def test_a_second_signal_does_not_wait(go, tmp_path, interruptible):
    with pytest.raises(KeyboardInterrupt): go(small, cbs=[Signals(signal.SIGINT, 0, 3, n=2)])
    assert Run.open(tmp_path/'run').status == 'interrupted' and not Run(tmp_path/'run').checkpoints()


@pytest.mark.slow
def test_a_signal_in_the_last_validation_is_too_late(go, tmp_path, interruptible):
    with pytest.raises(KeyboardInterrupt): go(small, cbs=[Signals(signal.SIGINT, 1, 0, training=False)])
    run = Run.open(tmp_path/'run')
    assert run.status == 'finished' and run.metrics['valid']['n'] and not run.checkpoints_folder.exists()
def test_force_alone_is_a_mistake(capsys):
    assert cli.main(['train', '--force']) == 2
    assert capsys.readouterr().err == 'Error: --force is for --resume only.\n'


def stop_there(learn): raise KeyboardInterrupt

def test_a_run_of_more_gpus_goes_on(go, monkeypatch):
    n = torch.cuda.device_count()
    states = checkpoints.get_random_states
    with monkeypatch.context() as m:
        m.setattr(checkpoints, 'get_random_states', lambda: states() | dict(torch_cuda_state=[torch.zeros(16, dtype=torch.uint8)]*(n + 2)))
        with pytest.raises(KeyboardInterrupt): go(small, cbs=[At(stop_there, 1, 2)], checkpoint_minutes=0)
    def refuse(states): assert len(states) == n
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', refuse)
    assert Run.open(go(resume=True).run_dir).status == 'finished'

def test_another_precision_is_told(go, monkeypatch):
    monkeypatch.setattr(callbacks, 'has_avx512_bf16', lambda: True)
    with pytest.raises(KeyboardInterrupt): go(small.change(mixed_precision=True), device='cpu', cbs=[At(stop_there, 1, 2)], checkpoint_minutes=0)
    monkeypatch.setattr(callbacks, 'has_avx512_bf16', lambda: False)
    with pytest.raises(ValueError, match="precision was 'bf16' and is 'fp32'"): go(resume=True, device='cpu')
    with pytest.warns(UserWarning, match='precision was'): learn = go(resume=True, device='cpu', force=True)
    assert [r['precision'] for r in Run.open(learn.run_dir).info['resumed']] == ['fp32']


# --- killed

@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.slow
def test_killed_and_resumed(go, practice, tmp_path):
    whole = end_of(go(small, name='whole', checkpoint_minutes=0))
    process = forked(partial(train, small, source=practice, run_dir=tmp_path/'run', limit=96, checkpoint_minutes=0))
    while not len(Run(tmp_path/'run').checkpoints()) > 1:
        assert process.is_alive()
        time.sleep(.01)
    process.kill()
    process.join()
    run = Run.open(tmp_path/'run')
    assert run.status == 'training' and not run.is_training()
    assert end_of(go(resume=True)) == whole
