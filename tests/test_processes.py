"Several processes train one network as one process would with the whole batches"
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.data.core import Datasets
from fastcore.foundation import working_directory
from torch import nn
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from cifar_fastai import cli, data, training
from cifar_fastai.caching import ShuffleDL
from cifar_fastai.errors import NonFiniteLossError
from cifar_fastai.evaluation import evaluate
from cifar_fastai.models import OffsetNorm
from cifar_fastai.processes import (
    ProcessLostError, combined, differ_by_rank, first_one_first, from_first, gathered, is_first_process, join_processes, n_processes, process_rank,
    share_size, shares, synchronized)
from cifar_fastai.recipes import Stage
from cifar_fastai.runs import Run
from cifar_fastai.synthetic import cifar10_classes
from cifar_fastai.training import create_learner, load_run, train
from forks import forked
from small_runs import small

plain = small.change(model='tiny_cnn', augment='none') # nothing is random in its batches


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def begin(rank, n, port, folder, f, args): # in a process of its own
    "What `torchrun` prepares"
    os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1) # others cannot be used in a process that was forked
    said = open(folder/f'{rank}.txt', 'w', buffering=1)
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    sys.stdout = sys.stderr = said
    code = 0
    try: torch.save(f(*args), folder/f'{rank}.pt')
    except BaseException as e:
        traceback.print_exc()
        torch.save(e, folder/f'{rank}.error')
        code = 1
    said.flush()
    until = time.monotonic() + 2 # the first one holds what they meet at, which `torchrun` has in a process of its own
    while rank == 0 and time.monotonic() < until and not all(any(folder.glob(f'{i}.[pe]*')) for i in range(n)): time.sleep(.02)
    os._exit(code)


@pytest.fixture
def together(tmp_path):
    "Call a function in several processes; what each returned, or its error; None if it was killed"
    def together(n, f, *args, timeout=300):
        folder = tmp_path/f'together-{len(list(tmp_path.iterdir()))}'
        folder.mkdir()
        context,port = multiprocessing.get_context('fork'),free_port()
        processes = [context.Process(target=begin, args=(rank, n, port, folder, f, args)) for rank in range(n)]
        for p in processes: p.start()
        until = time.monotonic() + timeout
        for p in processes: p.join(max(0, until - time.monotonic()))
        hanging = [i for i,p in enumerate(processes) if p.is_alive()]
        for p in processes: p.kill()
        together.said = [(folder/f'{i}.txt').read_text() for i in range(n)]
        assert not hanging, f'{hanging} did not end: {together.said}'
        def result(i):
            for kind in ('pt', 'error'):
                if (folder/f'{i}.{kind}').exists(): return torch.load(folder/f'{i}.{kind}', weights_only=False)
        return [result(i) for i in range(n)]
    return together


def fine(results):
    for r in results: assert not isinstance(r, BaseException) and r is not None, repr(r)
    return results


# --- what they know of each other

def talk():
    join_processes('cpu')
    r = process_rank()
    t = torch.tensor([r, 2. - r])
    order = []
    with first_one_first(): order.append(time.time())
    torch.manual_seed(0)
    differ_by_rank('epoch 1')
    return dict(n=n_processes(), rank=r, first=from_first(f'folder of {r}'), all=gathered(r*10), sum=combined(t).tolist(), mean=combined(t, 'mean').tolist(),
                least=combined(t, 'min').tolist(), t=t.tolist(), order=order[0], random=torch.rand(()).item())


def test_processes_know_each_other(together):
    found = fine(together(3, talk))
    assert [(f['n'], f['rank']) for f in found] == [(3, 0), (3, 1), (3, 2)]
    for f in found:
        assert (f['first'], f['all'], f['t']) == ('folder of 0', [0, 10, 20], [f['rank'], 2. - f['rank']])
        assert (f['sum'], f['mean'], f['least']) == ([3, 3], [1, 1], [0, 0])
    assert found[0]['order'] < min(found[1]['order'], found[2]['order'])
    torch.manual_seed(0)
    assert found[0]['random'] == torch.rand(()).item() and len({f['random'] for f in found}) == 3


@pytest.mark.parametrize('env, device, words', [
    (dict(WORLD_SIZE='2'), 'cuda:1', "one GPU for all processes. Use 'cuda'"), ({}, 'cuda:1', None), (dict(WORLD_SIZE='1'), None, None)])
def test_joining_is_for_processes_that_were_started_together(monkeypatch, env, device, words):
    for name,value in env.items(): monkeypatch.setenv(name, value)
    if words:
        with pytest.raises(ValueError, match=words): join_processes(device)
    else: assert join_processes(device) is None and n_processes() == 1


@pytest.mark.parametrize('rank, n, first', [('1', '2', False), ('0', '2', True), ('1', '', True), ('1', '1', True), ('', '2', True), ('x', '2', True)])
def test_who_is_the_first_process(monkeypatch, rank, n, first):
    "Of several that torchrun started; a RANK of something else means nothing"
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setenv('WORLD_SIZE', n)
    assert is_first_process() == cli._is_first() == first


# --- shares

@pytest.mark.parametrize('processes', [1, 2, 3, 5])
@pytest.mark.parametrize('n', [1, 4, 6, 7, 23])
def test_every_image_is_in_one_share(n, processes):
    for bs in (1, 4, 6):
        parts = [shares(list(range(n)), bs, rank, processes) for rank in range(processes)]
        assert sorted(sum(parts, [])) == list(range(n))
        padded = [shares(list(range(n)), bs, rank, processes, pad=True) for rank in range(processes)]
        assert all(set(a) <= set(b) and len(b) >= -(-n//bs) for a,b in zip(parts, padded))
        assert [share_size(n, rank, processes) for rank in range(processes)] == [len(shares(list(range(n)), n, rank, processes)) for rank in range(processes)]


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('drop_last', [False, True])
def test_loaders_divide_their_batches(workers, drop_last):
    "The same order in each, and the batches of one loader in all together"
    def loader(rank):
        dl = ShuffleDL(Datasets(list(range(23))), bs=6, shuffle=True, drop_last=drop_last, num_workers=workers)
        dl.rng.seed(3)
        return dl
    whole = [sorted(b[0].tolist()) for b in loader(0)]
    parts = []
    for rank in range(3):
        dl = loader(rank)
        with dl.dividing(rank, 3):
            assert dl.bs == 2 and len(dl) == len(whole)
            batches = [b[0].tolist() for b in dl]
            assert [dl.share_sizes(i)[0] for i in range(len(batches))] == list(map(len, batches))
            assert [dl.share_sizes(i)[1] for i in range(len(whole))] == list(map(len, whole))
        assert dl.bs == 6 and len(dl) == len(whole)
        parts.append(batches)
    assert [sorted(sum(shared, [])) for shared in zip(*parts)] == whole and len(whole) == (3 if drop_last else 4)


def test_a_process_without_a_share_gets_an_image():
    dl = ShuffleDL(Datasets(list(range(13))), bs=6, num_workers=0)
    with dl.dividing(0, 3, pad=True): assert [b[0].tolist() for b in dl] == [[0, 1], [6, 7], [12]] and dl.share_sizes(2) == (0, 1)
    with dl.dividing(2, 3, pad=True): assert [b[0].tolist() for b in dl] == [[4, 5], [10, 11], [12]] and dl.share_sizes(2) == (1, 1)
    with dl.dividing(0, 3): assert [b[0].tolist() for b in dl] == [[0, 1], [6, 7]]


# --- BatchNorm

def layers():
    torch.manual_seed(0)
    return [nn.BatchNorm1d(4), nn.BatchNorm2d(4, momentum=None), nn.BatchNorm2d(4, affine=False), OffsetNorm(4), nn.BatchNorm2d(4, track_running_stats=False)]


def normalize(xs, lost): # -> what each layer made of the share of this process
    join_processes('cpu')
    r,n = process_rank(),n_processes()
    found = []
    for layer,x in zip(layers(), xs):
        mine = x[r*len(x)//n:(r + 1)*len(x)//n].clone().requires_grad_()
        if n > 1:
            with synchronized(layer): y = layer(mine)
        else: y = layer(mine)
        (y**3).sum().backward()
        grads = [combined(p.grad) for p in layer.parameters()]
        found.append(dict(y=y.detach(), x=mine.grad, grads=grads, buffers=dict(layer.named_buffers()), own='forward' in vars(layer)))
    return found


def test_batchnorm_of_all_shares(together):
    "Outputs, gradients and running statistics are those of one process"
    xs = [torch.randn(7, 4, *([] if isinstance(layer, nn.BatchNorm1d) else [3, 2]))*3 + 10 for layer in layers()]
    whole = normalize(xs, None)
    for one,*parts in zip(whole, *fine(together(3, normalize, xs, None))):
        for name in ('y', 'x'): torch.testing.assert_close(torch.cat([p[name] for p in parts]), one[name], rtol=1e-4, atol=1e-5)
        for p in parts:
            assert not p['own']
            for a,b in zip(p['grads'], one['grads'], strict=True): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
            for name,b in one['buffers'].items(): torch.testing.assert_close(p['buffers'][name], b, rtol=1e-5, atol=1e-6)


def test_batchnorm_in_evaluation_mode_is_left_alone():
    bn = nn.BatchNorm2d(3).eval()
    x = torch.randn(2, 3, 4, 4)
    with synchronized(bn): assert bn(x).equal(nn.BatchNorm2d(3).eval()(x)) and not bn.num_batches_tracked


# --- training

class Gradients(Callback):
    "Keep the gradients of the first step"
    def before_step(self):
        if not hasattr(self.learn, 'first_gradients'): self.learn.first_gradients = {n: p.grad.clone() for n,p in self.model.named_parameters() if p.grad is not None}


class Double(Callback):
    "64 bits, or a sum in another order puts a value on the other side of a ReLU now and then"
    order = -1
    def before_fit(self): self.model.double()
    def before_batch(self): self.learn.xb = (self.x.double(),)
    def after_loss(self): self.learn.loss = self.loss.float()


def go(recipe, practice, folder, cbs=(), **kwargs):
    kwargs = dict(limit=96, device='cpu') | kwargs
    source,place = (None, dict(resume=folder)) if kwargs.pop('resume', False) else (practice, dict(run_dir=folder))
    if 'resume' in place: del kwargs['limit']
    learn = train(None if source is None else recipe, source=source, **place, cbs=[*cbs, Gradients(), Double()], **kwargs)
    weights = {k: v.clone().cpu() for k,v in learn.model.state_dict().items()}
    grads = {k: v.cpu() for k,v in learn.first_gradients.items()}
    return dict(weights=weights, grads=grads, folder=str(learn.run_dir), values=[list(map(float, v)) for v in learn.recorder.values],
                losses=[float(x) for x in learn.recorder.losses], lrs=learn.recorder.lrs, n=n_processes(), forwards='forward' in vars(learn.model))


def close(a, b, rtol, atol, what):
    for name in a: torch.testing.assert_close(a[name].float(), b[name].float(), rtol=rtol, atol=atol, msg=lambda m: f'{what} {name}: {m}')


several = {
    'one cycle': plain, 'incomplete batch': plain.change(bs=10, keras=True, optimizer='adam', stages=Stage(epochs=2, lr=1e-3, schedule='constant')),
    'class weights': plain.change(stages=Stage(epochs=2, lr=3e-3, class_weights={'cat': 3.}), label_smoothing=.1, bs=10, keras=True, l2=1e-3, optimizer='adam'),
    'batches without a weight': plain.change(bs=4, stages=Stage(epochs=1, lr=3e-3, class_weights={c: 0. for c in cifar10_classes if c != 'cat'})),
    'weighted mean': plain.change(stages=Stage(epochs=2, lr=3e-3, class_weights={'cat': 3., 'dog': 0.})),
    'stages': plain.change(stages=(Stage(epochs=2, lr=3e-3, keep_best='valid_loss'), Stage(epochs=1, lr=1e-3, discard=True),
                                   Stage(epochs=3, lr=1e-3, schedule='reduce_on_plateau', plateau_patience=1, early_stopping=2))),
    'muon': plain.change(optimizer='muon', stages=Stage(epochs=1, lr=1e-2, lookahead=2, progressive_resizing=(16, 32), grad_clip=1.))}


two_gpus = pytest.param('cuda', marks=[pytest.mark.cuda, pytest.mark.skipif(torch.cuda.device_count() < 2, reason='there are no two GPUs')])

@pytest.mark.parametrize('device', ['cpu', two_gpus])
@pytest.mark.parametrize('kind', several)
@pytest.mark.slow
def test_two_processes_are_one(practice, tmp_path, together, kind, device):
    "Gradients of the first step to a millionth of the largest, losses and accuracies of all epochs, and the weights in the end"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    options = dict(limit=64, device=device)
    try: one = go(several[kind], practice, tmp_path/'one', **options)
    finally: torch.set_num_threads(threads)
    two,other = fine(together(2, partial(go, **options), several[kind], practice, tmp_path/'two'))
    assert two['n'] == 2
    for name,g in one['grads'].items(): torch.testing.assert_close(two['grads'][name], g, rtol=0, atol=1e-6*float(g.abs().max()) + 1e-9)
    close(two['weights'], other['weights'], 0, 0, 'between processes,')
    close(two['weights'], one['weights'], 1e-4, 1e-5, 'weights')
    assert two['lrs'] == one['lrs']
    np.testing.assert_allclose(two['losses'], one['losses'], rtol=1e-5)
    np.testing.assert_allclose(two['values'], one['values'], rtol=1e-5)
    runs = [Run.open(r['folder']) for r in (one, two)]
    tables = [(r.history.drop(columns='seconds'), r.recalls) for r in runs]
    for a,b in zip(*tables): np.testing.assert_allclose(a, b, rtol=1e-5)
    assert sorted(f.name for f in runs[0].folder.iterdir()) == sorted(f.name for f in runs[1].folder.iterdir())
    assert (runs[1].info['processes'], runs[1].info['sync_bn']) == (2, True) and 'processes' not in runs[0].info


@pytest.mark.slow
def test_batchnorm_of_each_share_by_choice(practice, tmp_path, together):
    recipe = plain.change(stages=Stage(epochs=1, lr=3e-3))
    with_all,_ = fine(together(2, go, recipe, practice, tmp_path/'all'))
    apart,other = fine(together(2, partial(go, sync_bn=False), recipe, practice, tmp_path/'apart'))
    assert Run.open(apart['folder']).info['sync_bn'] is False
    assert any(not v.equal(apart['weights'][k]) for k,v in with_all['weights'].items())
    close({k: v for k,v in apart['weights'].items() if 'running' not in k}, other['weights'], 0, 0, 'between processes,')


class Pixels(Callback):
    "The first images of each epoch, as they are after augmentation"
    def before_batch(self):
        if self.training and self.iter == 0: self.learn.seen = [*getattr(self.learn, 'seen', []), self.x.clone()]


def augmented(practice, folder):
    learn = train(small.change(model='tiny_cnn', augment='flip_crop'), source=practice, run_dir=folder, limit=32, device='cpu', cbs=[Pixels()])
    return dict(seen=learn.seen, weights={k: v.clone() for k,v in learn.model.state_dict().items()})


@pytest.mark.slow
def test_augmentation_differs_and_repeats(practice, tmp_path, together, monkeypatch):
    "Between processes, also of one image; and the same seed gives the same weights"
    first,again = (fine(together(2, augmented, practice, tmp_path/name)) for name in ('first', 'again'))
    for a,b in zip(first, again):
        assert all(x.equal(y) for x,y in zip(a['seen'], b['seen'])) and all(v.equal(b['weights'][k]) for k,v in a['weights'].items())
    monkeypatch.setattr(ShuffleDL, 'shuffle_fn', lambda self, idxs: [0]*len(idxs)) # the processes inherit that
    one,two = fine(together(2, augmented, practice, tmp_path/'one image'))
    assert not one['seen'][0].equal(two['seen'][0]) and not two['seen'][0].equal(two['seen'][1])


@pytest.mark.slow
def test_validation_images_count_once(practice, tmp_path, together):
    "Also if they cannot be divided equally"
    found = fine(together(3, go, plain.change(bs=9, valid=25, stages=Stage(epochs=1, lr=3e-3)), practice, tmp_path/'run'))
    run = Run.open(found[0]['folder'])
    result = evaluate(load_run(run.folder), 'valid')
    assert run.metrics['valid'] == dict(loss=pytest.approx(result.loss, abs=2e-5), accuracy=pytest.approx(result.accuracy, abs=1e-6), n=25,
                                        ood_threshold=pytest.approx(result.ood_threshold(), abs=1e-4))
    assert run.history.accuracy.iloc[-1] == pytest.approx(result.accuracy, abs=1e-6)
    assert len({str(f['values']) for f in found}) == 1


@pytest.mark.slow
def test_only_the_first_one_writes_and_prints(practice, tmp_path, together):
    def f():
        with working_directory(tmp_path): return go(plain, practice, None)
    first,other = fine(together(2, f))
    assert [p.name for p in (tmp_path/'runs').iterdir()] == ['tiny-seed0'] and first['folder'] == other['folder'] == 'runs/tiny-seed0'
    assert 'accuracy' in together.said[0] and together.said[1] == ''


def test_batches_must_be_divisible(practice, tmp_path, together):
    for e in together(3, go, plain, practice, tmp_path/'run'): assert isinstance(e, ValueError) and 'batch size 16 cannot be divided equally among 3' in str(e)
    assert not (tmp_path/'run').exists()


def test_all_stop_when_a_loss_is_nan(practice, tmp_path, together):
    "In the same batch, though only one of them has seen a bad image"
    class Bad(Callback):
        def before_batch(self):
            if process_rank() and self.training and self.iter == 3: self.learn.xb = (self.x*float('nan'),)
    errors = together(2, go, plain, practice, tmp_path/'run', [Bad()])
    assert [type(e) for e in errors] == [NonFiniteLossError]*2 and all('batch 4 of 6' in str(e) for e in errors)
    assert Run.open(tmp_path/'run').status == 'failed'


# --- images in memory

def where_images_are(practice, keep=10):
    data._worth_keeping = keep
    join_processes('cpu')
    from cifar_fastai.training import _prepare
    learn = _prepare(plain, 0, practice, [], None, device='cpu')
    cache = learn.dls.train_ds.cache
    address = cache.parts[0].rows.data_ptr()
    def holds(line): return int(line.split('-')[0], 16) <= address < int(line.split()[0].split('-')[1], 16)
    mapped = next(line for line in Path('/proc/self/maps').read_text().splitlines() if holds(line))
    return dict(file=str(cache.file), mapped=mapped, left=cache.left, sum=int(cache.parts[0].rows.sum()))


@pytest.mark.skipif(not Path('/proc/self/maps').exists(), reason='no /proc')
def test_images_in_memory_are_shared(practice, together, tmp_path, monkeypatch):
    "They are the file's pages, which the system keeps once"
    monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path/'home'))
    for _ in range(2): # where there is no file yet, and where there is
        found = fine(together(2, where_images_are, practice))
        for f in found: assert f['mapped'].endswith(f['file']) and f['left'] == 0
        assert found[0]['sum'] == found[1]['sum'] > 0


# --- processes that end

class Die(Callback):
    "End a process at the beginning of a batch"
    def __init__(self, rank, epoch, batch, how): self.rank,self.at,self.how = rank,(epoch, batch),how
    def before_batch(self):
        if self.training and process_rank() == self.rank and (self.epoch, self.iter) == self.at: self.how()


def kill(): os.kill(os.getpid(), signal.SIGKILL)
def interrupt(): os.kill(os.getpid(), signal.SIGINT)
def fail(): raise MemoryError('no more')


@pytest.mark.slow
def test_a_run_whose_process_was_killed_goes_on(practice, tmp_path, together):
    "With as many processes, or more, or fewer, to the end that it would have had"
    recipe = plain.change(bs=12, stages=Stage(epochs=3, lr=3e-3))
    whole,_ = fine(together(2, partial(go, limit=48), recipe, practice, tmp_path/'whole'))
    started = time.monotonic()
    first,killed = together(2, partial(go, limit=48, checkpoint_minutes=0), recipe, practice, tmp_path/'run', [Die(1, 1, 2, kill)])
    assert killed is None and isinstance(first, ProcessLostError) and time.monotonic() - started < 60
    run = Run.open(tmp_path/'run')
    assert run.status == 'failed' and 'Another process' in run.info['error'] and run.checkpoints()
    for processes in (1, 2, 3):
        folder = shutil.copytree(tmp_path/'run', tmp_path/f'by-{processes}')
        found = fine(together(processes, partial(go, resume=True), None, None, folder))
        assert len(found) == found[0]['n'] == processes
        close(found[0]['weights'], whole['weights'], 1e-4, 1e-5, 'weights')
        np.testing.assert_allclose(found[0]['values'], whole['values'], rtol=1e-5)
        assert Run.open(folder).status == 'finished' and list(Run.open(folder).history.epoch) == [1, 2, 3]


@pytest.mark.slow
def test_the_others_end_quietly_with_the_first_one(practice, tmp_path, together):
    first,other = together(2, go, plain, practice, tmp_path/'run', [Die(0, 1, 3, fail)])
    assert isinstance(first, MemoryError) and isinstance(other, SystemExit) and other.code == 1
    assert Run.open(tmp_path/'run').status == 'failed'


@pytest.mark.slow
def test_ctrl_c_keeps_a_checkpoint(practice, tmp_path, together, interruptible):
    "The others get it too, and leave the decision to the first one"
    first,other = together(2, go, plain, practice, tmp_path/'run', [Die(0, 1, 3, interrupt), Die(1, 1, 2, interrupt)])
    assert isinstance(first, KeyboardInterrupt) and isinstance(other, SystemExit)
    run = Run.open(tmp_path/'run')
    assert run.status == 'interrupted' and json.loads(run.checkpoints()[-1].read_text())['state']['batch'] == 4
    fine(together(2, partial(go, resume=True), None, None, tmp_path/'run'))
    assert Run.open(tmp_path/'run').status == 'finished'


# --- as people start them

def torchrun(n, *args): return [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={n}', *map(str, args)]


@pytest.mark.slow
def test_torchrun(practice, tmp_path, together):
    recipe = tmp_path/'plain.json'
    recipe.write_text(plain.to_json())
    out = subprocess.run(torchrun(2, '-m', 'cifar_fastai', 'train', '--recipe', recipe, '--data', practice, '--out', tmp_path/'run', '--device', 'cpu'),
                         capture_output=True, text=True, timeout=300, env=os.environ | dict(OMP_NUM_THREADS='1'))
    assert out.returncode == 0, out.stderr
    assert out.stdout.count('plain') == 0 and out.stdout.count('1/2') == 1 and out.stdout.count('run folder') == 1
    assert out.stderr.count('Error') == 0 and (tmp_path/'run'/'report.html').exists()
    assert together(2, cli.main, ['train', '--resume', str(tmp_path/'run'), '--device', 'cpu']) == [2, 2]
    assert together.said[0].count('is finished, so there is nothing to resume') == 1 and 'resume' not in together.said[1]


def torchrun_of(f, *args):
    "What `torchrun` does with a script, with a function in forks of this process"
    os.environ['OMP_NUM_THREADS'] = '1'
    elastic_launch(LaunchConfig(1, 1, 2, run_id='forks', rdzv_backend='c10d', rdzv_endpoint='localhost:0', max_restarts=0, start_method='fork'), f)(*args)


def one_dies(busy, there, args):
    "Train by the command line in one of two processes; the second one dies once the first one is somewhere"
    signal.signal(signal.SIGTERM, signal.SIG_DFL) # as in a new program, not as where it was forked
    save,create = Run.save_weights,training.create_learner
    def wait(): time.sleep(2) # `torchrun` looks ten times a second
    def meet(then):
        if os.environ['RANK'] == '0':
            there.touch()
            return then()
        while not there.exists(): time.sleep(.01)
        os.kill(os.getpid(), signal.SIGKILL)
    class Die(Callback):
        order = 999_999 # after what the processes do together, and before `Checkpoints`
        def after_batch(self):
            if self.training and (self.epoch, self.iter) == (1, 1) and busy == 'after a batch': meet(wait)
        def before_batch(self):
            if not self.training or (self.epoch, self.iter) != (1, 2): return
            if busy == 'learn.one_batch': meet(wait)
            elif busy == 'Run.save_weights':
                Run.save_weights = lambda self, model: (wait(), save(self, model))
                meet(lambda: None)
    training.create_learner = lambda *args, cbs=None, **kwargs: create(*args, cbs=[*cbs, Die()], **kwargs)
    sys.exit(cli.main(args))


@pytest.mark.slow
@pytest.mark.parametrize('busy, status, said', [
    ('after a batch', 'interrupted', 'Stopped. Saved in'), # it cannot know yet that the other one is gone
    ('learn.one_batch', 'failed', 'Another process of this training ended'),
    ('Run.save_weights', 'failed', 'Another process of this training ended')])
def test_a_dying_worker_ends_torchrun(practice, tmp_path, busy, status, said):
    "In seconds, with one message and the command to go on, whatever the first process does when `torchrun` tells it to end"
    recipe,err = tmp_path/'plain.json',tmp_path/'err'
    recipe.write_text(plain.change(stages=Stage(epochs=30, lr=1e-3)).to_json())
    args = ['train', '--recipe', recipe, '--data', practice, '--out', tmp_path/'run', '--device', 'cpu', '--checkpoint-minutes', '0']
    process = forked(torchrun_of, one_dies, busy, tmp_path/'there', list(map(str, args)), err=err)
    process.join(200)
    if process.is_alive(): os.killpg(process.pid, signal.SIGKILL)
    assert process.exitcode == 1, err.read_text()
    assert err.read_text().count(said) == 1 and f'cifar-fastai train --resume {tmp_path}/run' in err.read_text(), err.read_text()
    run = Run.open(tmp_path/'run')
    assert run.status == status and run.info['error'].startswith('ProcessLostError' if status == 'failed' else 'Terminated') and run.checkpoints()


def in_fastais_context(practice):
    pytest.importorskip('fastai.distributed')
    from fastai.distributed import distrib_ctx  # noqa: F401
    join_processes('cpu')
    torch.manual_seed(0)
    dls = data.cifar10_dataloaders(practice, bs=16, augment='none', device='cpu', seed=0)
    learn = create_learner(plain, dls)
    with learn.distrib_ctx(), learn.no_bar(): learn.fit_one_cycle(1, 3e-3)
    return dict(weights={k: v.clone() for k,v in learn.model.state_dict().items()}, values=list(map(float, learn.recorder.values[-1])))


@pytest.mark.slow
def test_fastais_own_context(practice, together):
    pytest.importorskip('accelerate')
    one,two = fine(together(2, in_fastais_context, practice))
    close(one['weights'], two['weights'], 0, 0, 'between processes,')
    assert one['values'] == two['values'] and len(one['values']) == 3


def test_other_loaders_are_refused(practice):
    from fastai.data.core import DataLoaders, TfmdDL
    dls = data.cifar10_dataloaders(practice, bs=16, augment='none', device='cpu')
    others = DataLoaders(*[dl.new(cls=TfmdDL) for dl in dls.loaders])
    others.vocab,others.c = dls.vocab,dls.c
    learn = create_learner(plain, others)
    learn.to_distributed()
    with learn.no_bar(), pytest.raises(TypeError, match='cannot share the batches of a TfmdDL. Use the loaders of cifar10_dataloaders'): learn.fit(1)
    learn.detach_distributed()
