"A run that was stopped at any moment goes on to the end that it would have had"
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from functools import partial

import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.training import GradientAccumulation

from cifar_fastai import checkpoints, data, runs, training
from cifar_fastai.experiments import run_grid
from cifar_fastai.recipes import Head, Stage
from cifar_fastai.runs import Run
from cifar_fastai.training import train
from small_runs import kinds, small


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
        Stage(epochs=4, lr=1e-2, freeze_to='head', bn='frozen'), Stage(epochs=1, lr=1e-3, augment='flip_crop')))
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


def test_what_is_no_data_is_refused():
    with pytest.raises(TypeError, match='Thread|object'): checkpoints.pack(dict(a=[object()]), {})


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
    with Run(stopped).alone(), pytest.raises(BlockingIOError, match='trained by another process'): go(resume=True)
    assert Run(stopped).status == 'training' and not Run(stopped).is_training()


@pytest.mark.slow
def test_a_grid_goes_on_with_a_run_that_was_stopped(stopped, practice, tmp_path):
    (tmp_path/'grid').mkdir()
    run = Run(stopped.rename(tmp_path/'grid'/'tiny-seed0'))
    [row] = run_grid(small, 1, tmp_path/'grid', source=practice, limit=96).itertuples()
    assert row.status == 'finished' and len(run.info['resumed']) == 1 and not (tmp_path/'grid'/'unfinished').exists()
    assert weights_of(run.folder) == weights_of(tmp_path/'whole')


# --- killed

script = '''
import sys, warnings
from cifar_fastai.training import train
from cifar_fastai.recipes import Recipe
from pathlib import Path
recipe = Recipe.from_json(Path(sys.argv[1]).read_text())
print('begin', flush=True)
train(recipe, source=sys.argv[2], run_dir=sys.argv[3], limit=96, checkpoint_minutes=0)
'''


@pytest.mark.skipif(os.name == 'nt', reason='signals')
@pytest.mark.slow
def test_killed_and_resumed(go, practice, tmp_path):
    whole = end_of(go(small, name='whole', checkpoint_minutes=0))
    (tmp_path/'recipe.json').write_text(small.to_json())
    process = subprocess.Popen([sys.executable, '-c', script, tmp_path/'recipe.json', practice, tmp_path/'run'],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while not len(Run(tmp_path/'run').checkpoints()) > 1: time.sleep(.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run = Run.open(tmp_path/'run')
    assert run.status == 'training' and not run.is_training()
    assert end_of(go(resume=True)) == whole
