"What happens during training, besides steps: losses, precision, schedules, and stops."
import math
import warnings
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from fastai.callback.core import Callback, CancelEpochException, CancelTrainException, CancelValidException
from fastai.callback.fp16 import MixedPrecision
from fastai.torch_core import set_seed
from safetensors.torch import load_file

from cifar_fastai import callbacks, training
from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.evaluation import evaluate
from cifar_fastai.recipes import Recipe, Stage
from cifar_fastai.callbacks import training_precision
from cifar_fastai.errors import NonFiniteLossError
from cifar_fastai.training import create_learner, fit_stage, train
from small_runs import At, history, history_of, read, tiny


def test_no_cut_raises_a_rate(practice):
    recipe = tiny.change(groups=('head',), optimizer='sgd', stages=Stage(epochs=4, lr=(1e-6, 1e-4), schedule='reduce_on_plateau', plateau_patience=1, min_lr=1e-5))
    learn = create_learner(recipe, cifar10_dataloaders(practice, bs=32, num_workers=0))
    for p in learn.model.parameters(): p.data.zero_()  # nothing gets better
    with learn.no_bar(), learn.no_logging(): fit_stage(learn, recipe.stages[0])
    rates = [h['lr'] for h in learn.opt.hypers]
    assert rates[0] == 1e-6 and 1e-5 <= rates[1] < 1e-4

class Watch(Callback):
    "What `f` gives at the end of each batch"
    order = 70
    def __init__(self, f): self.f,self.seen = f,[]
    def after_batch(self): self.seen.append(self.f(self))

@pytest.mark.slow
def test_training_images_grow_and_validation_images_are_whole(go):
    watch = Watch(lambda cb: (cb.training, cb.xb[0].shape[-1]))
    learn = go(tiny.change(model='small_cnn', bs=60, progressive_resizing=(16, 24, 32)), cbs=[watch])
    assert [side for training,side in watch.seen if training] == [16, 16, 24, 24, 32, 32]
    assert {side for training,side in watch.seen if not training} == {32} and learn.recipe.stages[0].progressive_resizing == (16, 24, 32)

def test_weights_go_on_from_their_running_mean(go):
    "Two steps apart, and after the last one; the mean keeps decay**2 (t/T)^3 of itself"
    where = lambda cb: torch.cat([p.detach().flatten() for p in cb.model.parameters()]).clone()
    n_all = 10
    class Before(Watch):
        order = -10
        def before_train(self): self.begin = getattr(self, 'begin', None) if self.epoch else where(self)
    before,after = Before(lambda cb: (cb.training, where(cb))),Watch(lambda cb: (cb.training, where(cb)))
    go(tiny.change(lookahead=2), cbs=[before, after])
    mean = before.begin
    for n,((_,stepped),(_,result)) in enumerate([(b, a) for b,a in zip(before.seen, after.seen) if b[0]], 1):
        if n % 2: assert torch.equal(result, stepped)
        else:
            keep = .95**2*(n/n_all)**3
            mean = keep*mean + (1 - keep)*stepped
            assert torch.allclose(result, mean, atol=1e-6) and not torch.allclose(result, stepped, atol=1e-6)

def test_the_last_step_is_averaged_whatever_its_number(go):
    class Calls(callbacks.Lookahead):
        seen = []
        def after_batch(self):
            before = [t.clone() for t in self.now]
            super().after_batch()
            if not all(map(torch.equal, before, self.now)): self.seen.append(self.train_iter)
    go(cbs=[Calls(4)])
    assert Calls.seen == [4, 8, 10]

@pytest.mark.slow
def test_the_model_is_compiled_as_one_graph_for_training_batches(go):
    calls,graphs = [],[]
    def backend(graph, inputs):
        graphs.append(graph)
        def compiled(*args):
            calls.append(torch.is_grad_enabled())
            return graph(*args)
        return compiled
    plain,learn = go(name='plain'),go(name='compiled', cbs=[callbacks.CompileModel(backend=backend)])
    assert len(graphs) == 1 # of the whole network, for all epochs
    assert calls == [True]*2*len(learn.dls.train)
    assert history(learn).train_loss.tolist() == pytest.approx(history(plain).train_loss.tolist(), abs=1e-4)
    n,weights = len(calls),load_file(learn.run_dir/'model.safetensors')
    learn.model.eval()(torch.zeros(1, 3, 32, 32))
    assert len(calls) == n and weights.keys() == plain.model.state_dict().keys()

@pytest.mark.parametrize('device, hardware, wanted', [('cpu', True, 'bf16'), ('cpu', False, 'fp32'), ('cuda', True, 'bf16'), ('cuda:1', False, 'fp16'), ('mps', True, 'fp32')])
def test_16_bits_where_the_hardware_multiplies_them(device, hardware, wanted, monkeypatch):
    monkeypatch.setattr('torch.cpu.get_capabilities', lambda: dict(avx512_bf16=hardware), raising=False)
    monkeypatch.setattr('torch.cuda.is_bf16_supported', lambda including_emulation: hardware and not including_emulation)
    asked = tiny.change(mixed_precision=True)
    assert (training_precision(tiny, device), training_precision(asked, device)) == ('fp32', wanted)
    kind = None if wanted == 'fp32' else callbacks.BFloat16OnCPU if device == 'cpu' else callbacks.MixedPrecisionOnCUDA
    assert [type(cb) for cb in training._recipe_cbs(asked, SimpleNamespace(device=device)) if isinstance(cb, (MixedPrecision, callbacks.BFloat16OnCPU))] == [kind]*(kind is not None)

class Dtypes(Callback):
    "Of what a layer, the loss and the optimizer see"
    order = MixedPrecision.order + 1
    def __init__(self): self.seen = dict(layer=set(), pred=set(), grad=set())
    def before_fit(self):
        self.hook = self.model.head[-1].register_forward_hook(lambda m, args, out: self.seen['layer'].add(out.dtype))
    def after_pred(self): self.seen['pred'].add(self.pred.dtype)
    def before_step(self): self.seen['grad'] |= {p.grad.dtype for p in self.model.parameters()}
    def after_fit(self): self.hook.remove()

@pytest.mark.slow
def test_bfloat16_on_the_cpu_is_the_networks_alone(practice, monkeypatch, tmp_path):
    monkeypatch.setattr('torch.cpu.get_capabilities', lambda: dict(avx512_bf16=True), raising=False)
    learn = train(tiny.change(mixed_precision=True), source=practice, run_dir=tmp_path/'run', num_workers=0, cbs=[dtypes := Dtypes()])
    assert dtypes.seen == dict(layer={torch.bfloat16}, pred={torch.float32}, grad={torch.float32})
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32} == {learn.model(torch.zeros(1, 3, 32, 32)).dtype}
    assert read(tmp_path/'run', 'run.json')['precision'] == 'bf16'
    again = train(learn.recipe, source=practice, run_dir=tmp_path/'again', num_workers=0)
    assert all(torch.equal(v, again.model.state_dict()[k]) for k,v in learn.model.state_dict().items())

@pytest.mark.slow
def test_bfloat16_on_the_cpu_keeps_a_forward_of_the_instances_own(practice, monkeypatch, tmp_path):
    monkeypatch.setattr('torch.cpu.get_capabilities', lambda: dict(avx512_bf16=True), raising=False)
    learn,calls = create_learner(tiny.change(mixed_precision=True), cifar10_dataloaders(practice, bs=32), path=tmp_path),[]
    plain = learn.model.forward
    def counted(x):
        calls.append(torch.is_autocast_enabled('cpu'))
        return plain(x)
    learn.model.forward = counted
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    n_batches = len(learn.dls.train) + len(learn.dls.valid)
    assert calls == [True]*n_batches and n_batches > 2 and learn.model.forward is counted

@pytest.mark.slow
def test_an_interruption_within_the_network_leaves_no_bfloat16(practice, monkeypatch, tmp_path):
    "Autocast that is not left goes on for the whole process, with weights that are cached and not renewed"
    set_seed(0)
    monkeypatch.setattr('torch.cpu.get_capabilities', lambda: dict(avx512_bf16=True), raising=False)
    learn,calls = create_learner(tiny.change(mixed_precision=True), cifar10_dataloaders(practice, bs=32), path=tmp_path),[]
    def interrupt(m, args):
        calls.append(torch.is_autocast_enabled('cpu'))
        if len(calls) == 3: raise KeyboardInterrupt
    hook = learn.model.head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    assert calls == [True]*3 and not torch.is_autocast_enabled('cpu') and 'forward' not in vars(learn.model)
    hook.remove()
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-2)
        first = learn.recorder.losses[0]
        learn.fit(3, 1e-2)
    assert learn.recorder.losses[-1] < .9*first

class AutocastOfTheCPU(callbacks.MixedPrecisionOnCUDA):
    "What is done on CUDA, where there is none"
    def before_fit(self):
        super().before_fit()
        self.autocast = torch.autocast('cpu', torch.bfloat16)

@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize('doing', [lambda learn: learn.fit(1, 1e-3), lambda learn: evaluate(learn, 'valid')], ids=['fit', 'evaluate'])
@pytest.mark.slow
def test_a_batch_that_fails_leaves_autocast(practice, tmp_path, doing, error):
    learn = create_learner(tiny, cifar10_dataloaders(practice, bs=32), path=tmp_path, cbs=[AutocastOfTheCPU('bf16')])
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    def fail(m, args):
        assert torch.is_autocast_enabled('cpu')
        raise error('no memory')
    hook = learn.model.head.register_forward_pre_hook(fail)
    with pytest.raises(error, match='no memory'), learn.no_bar(), learn.no_logging(): doing(learn)
    hook.remove()
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    assert depth == 1 and not torch.is_autocast_enabled('cpu')

@pytest.mark.slow
def test_epochs_are_counted_over_the_stages_for_alternating_flips(practice, tmp_path):
    class Seen(Callback):
        epochs = []
        def before_batch(self):
            if self.training: self.epochs += [t.epoch for t in self.dls.train.after_batch.fs if hasattr(t, 'alternate')]
    stages = [Stage(epochs=2, lr=1e-3), Stage(epochs=1, lr=1e-3, augment='alternating_flip_crop_2')]
    recipe = Recipe(name='flips', model='ladder_0', stages=stages, augment='alternating_flip_crop', bs=90)
    learn = create_learner(recipe, cifar10_dataloaders(practice, bs=90, augment=recipe.augment), path=tmp_path)
    with learn.no_bar(), learn.no_logging(): learn.lr_find(num_it=4, show_plot=False)
    with learn.no_bar(), learn.no_logging(), learn.added_cbs(Seen()):
        for stage in stages: fit_stage(learn, stage)
    assert Seen.epochs == [0, 0, 1, 1, 2, 2]

def test_non_finite_loss_stops_and_keeps_what_was_written(go, tmp_path):
    def spoil(learn): torch.nn.init.constant_(learn.model.head[-1].weight, math.nan)
    with pytest.raises(NonFiniteLossError, match=r'became nan in epoch 2 of 2, batch 3 of \d+, at learning rate'): go(cbs=[At(spoil, 1, 2)])
    run = read(tmp_path/'run', 'run.json')
    assert run['status'] == 'failed' and 'epoch 2 of 2, batch 3' in run['error']
    assert len(pd.read_csv(tmp_path/'run'/'history.csv')) == 1

@pytest.fixture
def accelerator(monkeypatch):
    "The processor, treated as one treats a device that works through a queue; when the losses were looked at"
    looked, look = [], callbacks.StopOnNonFiniteLoss._look
    monkeypatch.setattr(callbacks, '_works_behind', lambda device: True)
    monkeypatch.setattr(callbacks.StopOnNonFiniteLoss, '_look', lambda self: looked.append(self.train_iter) or look(self))
    return looked

@pytest.mark.slow
def test_losses_are_fetched_once_an_epoch(go, accelerator, monkeypatch):
    class Seen(Callback):
        order = 60
        def __init__(self): self.last,self.epochs = [],[]
        def after_batch(self):
            if self.training: self.last.append(type(self.recorder.losses[-1]))
        def after_train(self): self.epochs.append(list(self.recorder.losses))
    behind,plain = Seen(),Seen()
    learn = go(name='behind', cbs=[behind])
    assert accelerator == [5, 10], 'once an epoch'
    monkeypatch.setattr(callbacks, '_works_behind', lambda device: False)
    other = go(name='plain', cbs=[plain])
    assert [len(e) for e in behind.epochs] == [5, 10] and {type(l) for l in behind.epochs[-1]} == {float}
    assert behind.epochs[-1] == pytest.approx(plain.epochs[-1], rel=1e-5) and history(learn).train_loss.equals(history(other).train_loss)
    assert all(issubclass(t, torch.Tensor) for t in behind.last) and set(plain.last) == {float}
    assert len(accelerator) == 2

@pytest.mark.parametrize('epoch, batch, every', [(0, 0, 50), (1, 2, 50), (1, 2, 2), (1, 1, 1)])
@pytest.mark.slow
def test_a_loss_that_is_no_number_is_found_behind_the_queue(go, accelerator, epoch, batch, every):
    def spoil(learn): torch.nn.init.constant_(learn.model.head[-1].weight, math.nan)
    with pytest.raises(NonFiniteLossError, match=rf'became nan or infinite in epoch {epoch+1} of 2, batch {batch+1} of \d+, at learning rate \d'):
        go(cbs=[At(spoil, epoch, batch), callbacks.StopOnNonFiniteLoss(every)])

def test_mixed_precision_is_left_before_training_stops():
    "or all that the process computes later would be in 16-bit floats"
    assert callbacks.StopOnNonFiniteLoss.order > MixedPrecision.order

def test_losses_of_a_canceled_fit_are_fetched_too(practice, accelerator, tmp_path):
    from fastai.callback.core import CancelFitException
    def cancel(learn): raise CancelFitException
    learn = create_learner(tiny, cifar10_dataloaders(practice, bs=32), path=tmp_path, cbs=[At(cancel, 1, 2)])
    with learn.no_bar(), learn.no_logging(), warnings.catch_warnings():
        warnings.simplefilter('error')  # fastai warns of what its callbacks set
        learn.fit(3, 1e-3)
        assert len(learn.recorder.losses) == 7 and {type(l) for l in learn.recorder.losses} == {float}
        learn.validate()
        learn.fit(1, 1e-3)

class SkipValidation(Callback):
    order = -100
    def __init__(self, epochs): self.epochs = epochs
    def before_validate(self):
        if getattr(self, 'n_trained', 0) in self.epochs: raise CancelValidException
    def before_train(self): self.n_trained = getattr(self, 'n_trained', 0) + 1
    def after_fit(self): self.n_trained = 9

def test_epochs_whose_validation_was_canceled_have_empty_cells(go, tmp_path):
    go(tiny.change(epochs=3), cbs=[SkipValidation([1, 3])])
    h = history_of(tmp_path/'run')
    assert h.train_loss.notna().all() and h.valid_loss.isna().tolist() == h.accuracy.isna().tolist() == [True, False, True]
    assert pd.read_csv(tmp_path/'run'/'recalls.csv').epoch.tolist() == [2]

def test_epochs_whose_training_was_canceled_keep_their_columns(go, tmp_path):
    "Though fastai leaves the training loss out; and the best weights are the best"
    class Half(Callback):
        def after_batch(self):
            if self.training and self.iter == 1: raise CancelTrainException
    learn = go(tiny.change(epochs=3, keep_best='accuracy'), cbs=[Half()])
    h = history_of(tmp_path/'run')
    assert [list(map(float, v)) for v in learn.recorder.values] == [pytest.approx(row, abs=1e-5) for row in h[['train_loss', 'valid_loss', 'accuracy']].to_numpy().tolist()]
    assert h.accuracy.between(0, 1).all() and (h.train_loss > 1).all()
    assert read(tmp_path/'run', 'metrics.json')['valid']['accuracy'] == pytest.approx(h.accuracy.max(), abs=1e-6)

def test_epochs_that_were_canceled_have_empty_cells(go, tmp_path):
    class Cancel(Callback):
        order = -100
        def before_train(self):
            if self.epoch < 2: raise CancelEpochException
    go(tiny.change(epochs=3), cbs=[Cancel()])
    h = history_of(tmp_path/'run')
    columns = ['train_loss', 'train_accuracy', 'valid_loss', 'accuracy']
    assert h[columns].isna().all(axis=1).tolist() == [True, True, False] and h[columns].notna().all(axis=1).tolist() == [False, False, True]
    assert pd.read_csv(tmp_path/'run'/'recalls.csv').epoch.tolist() == [3]

def test_a_canceled_last_validation_is_told(go, tmp_path):
    with pytest.raises(ValueError, match='canceled the validation after the last epoch .* Its weights are saved'): go(cbs=[SkipValidation([9])])
    assert (tmp_path/'run'/'model.safetensors').exists() and not (tmp_path/'run'/'metrics.json').exists()

@pytest.mark.parametrize('keep_best', ['', 'valid_loss', 'accuracy'])
def test_a_last_step_that_spoils_the_network_is_told(go, tmp_path, keep_best):
    class Spoil(Callback):
        def after_train(self): torch.nn.init.constant_(self.model.head[-1].weight, math.nan)
    with pytest.raises(NonFiniteLossError, match='The validation loss is nan after epoch 1 of 1, at learning rate'): go(tiny.change(epochs=1, keep_best=keep_best), cbs=[Spoil()])
    assert read(tmp_path/'run', 'run.json')['status'] == 'failed' and len(history_of(tmp_path/'run')) == 1
    assert sorted(p.name for p in (tmp_path/'run').iterdir()) == ['history.csv', 'model.safetensors', 'recalls.csv', 'recipe.json', 'run.json']

def test_a_last_step_that_spoils_the_network_does_no_harm_where_better_weights_return(go, tmp_path):
    class Spoil(Callback):
        def after_train(self):
            if self.epoch == 1: torch.nn.init.constant_(self.model.head[-1].weight, math.nan)
    go(tiny.change(keep_best='accuracy'), cbs=[Spoil()])
    assert read(tmp_path/'run', 'run.json')['status'] == 'finished' and math.isfinite(read(tmp_path/'run', 'metrics.json')['valid']['loss'])
