"Training: same seed same result, run folders that tell the truth, and nothing lost when something goes wrong"
import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.callback.tracker import EarlyStoppingCallback, ReduceLROnPlateau, SaveModelCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import get_image_files
from fastai.vision.augment import aug_transforms
from fastai.vision.data import ImageDataLoaders
from safetensors.torch import load_file, save_file

from cifar_fastai import callbacks, models, runs, training
from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.errors import NonFiniteLossError
from cifar_fastai.evaluation import evaluate
from cifar_fastai.files import write_json
from cifar_fastai.sources import count_classes
from cifar_fastai.models import create_model, register_model
from cifar_fastai.recipes import Head, Recipe, Stage, get_recipe
from cifar_fastai.runs import Run, create_run_dir
from cifar_fastai.training import create_learner, find_lr, fit_stage, fit_stem, load_run, train
from small_runs import At, history, history_of, overfitting, read, tiny

# The result depends on the seed and on nothing else

@pytest.mark.parametrize('name', ['small_cnn', 'ladder_4'])
@pytest.mark.slow
def test_same_seed_same_result_bit_for_bit(go, name):
    recipe = get_recipe('small_cnn_one_cycle', model=name, epochs=2, bs=32)
    a,b,c = [go(recipe, name=n, seed=s) for n,s in [('a', 3), ('b', 3), ('c', 4)]]
    weights = [load_file(l.run_dir/'model.safetensors') for l in (a, b, c)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    assert not all(torch.equal(weights[0][k], weights[2][k]) for k in weights[0])
    columns = ['train_loss', 'valid_loss', 'accuracy', 'lr']
    assert history(a)[columns].equals(history(b)[columns])

@pytest.mark.slow
def test_result_does_not_depend_on_workers(go, practice, tmp_path):
    a = go(name='a')
    b = train(tiny, source=practice, run_dir=tmp_path/'b', num_workers=2)
    wa,wb = load_file(a.run_dir/'model.safetensors'),load_file(b.run_dir/'model.safetensors')
    assert all(torch.equal(wa[k], wb[k]) for k in wa)

# The run folder

def test_run_folder(go):
    learn = go(seed=7)
    assert {p.name for p in learn.run_dir.iterdir()} == {'recipe.json', 'run.json', 'history.csv', 'recalls.csv', 'metrics.json', 'model.safetensors'}
    run,h,metrics = read(learn.run_dir, 'run.json'),history(learn),read(learn.run_dir, 'metrics.json')
    assert list(h.columns) == ['stage', 'epoch', 'train_loss', 'train_accuracy', 'valid_loss', 'accuracy', 'lr', 'seconds']
    assert list(h.epoch) == [1, 2] and h.seconds.is_monotonic_increasing
    assert (run['status'], run['seed'], run['epochs'], run['device']) == ('finished', 7, 2, 'cpu')
    assert 0 < run['cpu_seconds'] and 0 < run['seconds']
    assert run['command'] and run['versions']['torch'] == torch.__version__.split('+')[0] and run['hardware']['cpu'] and run['hardware']['cores'] >= 1
    assert run['data']['n_train'] + run['data']['n_valid'] == 200 and run['data']['classes'] == list(learn.dls.vocab)
    assert metrics['valid']['accuracy'] == pytest.approx(h.accuracy.iloc[-1], abs=1e-6)
    assert metrics['valid']['n'] == run['data']['n_valid']

@pytest.mark.parametrize('argv, command', [
    (['/usr/bin/cifar-fastai', 'train', '--data', 'my images'], "cifar-fastai train --data 'my images'"),
    (['bench/run.py', '--seeds', '3'], 'python bench/run.py --seeds 3'),
    (['{cwd}/bench/run.py'], 'python bench/run.py'),
    (['/elsewhere/run.py'], 'python run.py')])
def test_command_of_a_run(tmp_path, monkeypatch, argv, command):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', [a.format(cwd=tmp_path) for a in argv])
    assert runs.command() == command

@pytest.mark.slow
def test_recipe_in_the_folder_repeats_the_run(go):
    a = go(get_recipe('small_cnn_one_cycle', epochs=1, bs=32), name='a')
    b = go(Recipe.from_json((a.run_dir/'recipe.json').read_text()), name='b')
    assert history(a).valid_loss.equals(history(b).valid_loss)

def test_default_folders_never_collide(tmp_path):
    made = [create_run_dir(tiny, 0, tmp_path/'runs') for _ in range(3)]
    assert [p.name for p in made] == ['tiny-seed0', 'tiny-seed0-2', 'tiny-seed0-3']

def test_stages_count_on(go):
    learn = go(tiny.change(stages=(Stage(epochs=2, lr=1e-2), Stage(epochs=1, lr=1e-4, schedule='constant'))))
    h = history(learn)
    assert list(h.stage) == [1, 1, 2] and list(h.epoch) == [1, 2, 3] and h.lr.iloc[-1] == pytest.approx(1e-4)

def test_training_needs_no_test_images(practice, tmp_path):
    data = tmp_path/'data'
    shutil.copytree(practice, data)
    shutil.rmtree(data/'test')
    learn = train(tiny.change(epochs=1), source=data, run_dir=tmp_path/'run', num_workers=0)
    assert 'test' not in read(learn.run_dir, 'metrics.json')

class Predictions(Callback):
    "Every prediction of training, as made"
    def __init__(self): self.right = []
    def before_train(self): self.right.append([])
    def after_pred(self):
        if self.training: self.right[-1] += (self.pred.argmax(1) == self.y).tolist()

def test_training_accuracy_and_recalls_of_each_epoch(go, practice):
    learn = go(overfitting.change(epochs=3), cbs=[seen := Predictions()])
    assert history(learn).train_accuracy.tolist() == pytest.approx([np.mean(right) for right in seen.right], abs=1e-6)
    recalls,result = Run(learn.run_dir).recalls,evaluate(learn, split='valid')
    assert list(recalls.columns) == ['stage', 'epoch', *learn.dls.vocab] and list(recalls.epoch) == [1, 2, 3]
    expected = [(result.predictions == result.targets)[result.targets == c].mean() for c in range(10)]
    assert recalls.iloc[-1, 2:].tolist() == pytest.approx(expected, abs=1e-6) and len(set(expected)) > 1

# Stages do what they say

class Optimizers(Callback):
    "The optimizer of each fit, and how many steps it had made"
    def __init__(self): self.found = []
    def before_batch(self):
        if not self.training or self.iter or self.epoch: return
        states = [s.get('step', 0) for s in self.opt.state.values()]
        self.found.append((self.opt, [cb.__name__ for cb in self.opt.cbs][-1], max(states, default=0)))

def test_a_stage_with_another_optimizer(go):
    def stage(**kwargs): return Stage(epochs=1, lr=1e-3, schedule='constant', **kwargs)
    recipe = tiny.change(stages=(stage(), stage(), stage(optimizer='rmsprop'), stage(), stage()), optimizer='adam', keras=True)
    learn = go(recipe, cbs=[seen := Optimizers()])
    n = len(learn.dls.train)
    assert [(name, steps) for _,name,steps in seen.found] == [
        ('keras_adam_steps', 0), ('keras_adam_steps', n), ('rmsprop_steps', 0), ('keras_adam_steps', 0), ('keras_adam_steps', n)]

@pytest.mark.parametrize('keras', [False, True])
def test_keras_keeps_the_last_batch(go, keras):
    learn = go(tiny.change(keras=keras, bs=50)) # of 180 images
    assert len(learn.recorder.losses) == 2*(4 if keras else 3)


@pytest.mark.slow
def test_early_stopping_brings_the_best_weights_back(go):
    learn = go(overfitting.change(stages=Stage(epochs=40, lr=3e-3, schedule='constant', early_stopping=2)))
    h,metrics = history(learn),read(learn.run_dir, 'metrics.json')
    assert len(h) < 40 and len(h) - h.valid_loss.idxmin() - 1 == 2
    assert metrics['valid']['loss'] == pytest.approx(h.valid_loss.min(), abs=1e-4)
    assert not list(learn.run_dir.glob('*.pth'))

@pytest.mark.slow
def test_plateau_cuts_the_rate(go):
    stage = Stage(epochs=20, lr=3e-3, schedule='reduce_on_plateau', plateau_patience=1, plateau_factor=.1, min_lr=1e-4)
    h = history(go(overfitting.change(stages=stage)))
    assert set(h.lr) <= {3e-3, 3e-4, 1e-4} and h.lr.min() < 3e-3

def test_one_cycle_uses_what_the_stage_says(practice):
    learn = create_learner(tiny, cifar10_dataloaders(practice, bs=32, num_workers=0))
    with learn.no_bar(), learn.no_logging(): fit_stage(learn, Stage(epochs=2, lr=.1, div=10, div_final=100, pct_start=.5, moms=(.9, .8, .9)))
    lrs = learn.recorder.hps['lr']
    assert max(lrs) == pytest.approx(.1, rel=.05) and lrs[0] == pytest.approx(.01, rel=.3) and lrs[-1] < .02
    moms = learn.recorder.hps['mom']
    assert moms[0] == pytest.approx(.9, abs=.01) and min(moms) == pytest.approx(.8, abs=.01) and moms[-1] == pytest.approx(.9, abs=.02)

@pytest.mark.parametrize('model, sizes, message', [('ladder_0', (24, 32), 'ladder_0 does not accept images of 24x24'), ('small_cnn', (2, 32), 'small_cnn does not accept images of 2x2')])
def test_sizes_that_a_network_does_not_take_are_refused_at_once(practice, model, sizes, message):
    stages = [Stage(epochs=5, lr=1e-2), Stage(epochs=1, lr=1e-2, progressive_resizing=sizes)]
    with pytest.raises(ValueError, match=message): create_learner(tiny.change(model=model, stages=stages), cifar10_dataloaders(practice, bs=60))

@pytest.mark.parametrize('size, sizes, refused', [(32, (), 32), (224, (96, 224), 96)])
def test_sizes_that_a_published_network_does_not_take_are_refused_at_once(practice, size, sizes, refused):
    "timm's checks are assertions"
    recipe = tiny.change(model='timm/vit_tiny_patch16_224', image_size=size, stages=Stage(epochs=1, lr=1e-2, progressive_resizing=sizes))
    with pytest.raises(ValueError, match=f'vit_tiny_patch16_224 does not accept images of {refused}x{refused}. Change `image_size`, or'):
        create_learner(recipe, cifar10_dataloaders(practice, bs=60, image_size=size))

def test_label_smoothing_reaches_the_loss(practice):
    dls = cifar10_dataloaders(practice, bs=32, num_workers=0)
    x,y = torch.tensor([[2., 0, 0, 0, 0, 0, 0, 0, 0, 0]]),torch.tensor([0])
    for eps in (0., .2):
        learn = create_learner(tiny.change(label_smoothing=eps), dls)
        plain = learn.loss_func
        losses = []
        class Compare(Callback):
            def after_loss(self): losses.append((self.training, self.loss.item(), self.loss_func(x, y).item()))
        with learn.added_cbs(Compare()), learn.no_bar(), learn.no_logging(): learn.fit(1)
        expected = {t: torch.nn.functional.cross_entropy(x, y, label_smoothing=eps*t).item() for t in (True, False)}
        assert {t for t,*_ in losses} == {True, False} and learn.loss_func is plain
        for in_training,_,loss in losses: assert loss == pytest.approx(expected[in_training], rel=1e-5)

@pytest.mark.slow
def test_one_loss_everywhere(practice, tmp_path):
    "The last epoch, metrics.json, `evaluate` and `validate` have the same number, with label smoothing and L2 too"
    learn = train(tiny.change(label_smoothing=.2, l2=.01), source=practice, run_dir=tmp_path/'run', num_workers=0)
    run = Run.open(learn.run_dir)
    loss = evaluate(learn, 'valid').loss
    with learn.no_bar(), learn.no_logging(): validated = learn.validate()[0]
    assert [run.history.valid_loss.iloc[-1], run.metrics['valid']['loss'], validated] == pytest.approx([loss]*3, rel=1e-4)

def stages(*epochs): return [Stage(epochs=n, lr=1e-2, schedule='constant') for n in epochs]

@pytest.mark.slow
def test_the_recorder_has_the_whole_training(practice, tmp_path):
    learn = train(tiny.change(stages=stages(2, 1)), source=practice, run_dir=tmp_path/'run', num_workers=0)
    history,n = Run.open(learn.run_dir).history,len(learn.dls.train)
    again = load_run(learn.run_dir)
    for r in (learn.recorder, again.recorder):
        assert len(r.losses) == len(r.lrs) == 3*n and r.iters == [n, 2*n, 3*n] and set(r.lrs) == {1e-2}
        assert np.allclose(np.array(r.values), history[['train_loss', 'valid_loss', 'accuracy']], atol=1e-6)
        assert r.losses[n-1::n] == pytest.approx(list(history.train_loss), abs=1e-6)
        lines = r.plot_loss(ax=plt.figure().gca()).lines
        assert [len(l.get_xdata()) for l in lines] == [3*n - 5, 3]
    again.recorder.plot_sched()
    assert list(again.final_record) == pytest.approx(list(learn.final_record), abs=1e-6)
    plt.close('all')
    with again.no_bar(), again.no_logging(): again.fit(1, 0.)
    assert len(again.recorder.values) == 1

@pytest.mark.slow
def test_a_damaged_history_is_said(practice, tmp_path):
    train(tiny.change(stages=stages(1)), source=practice, run_dir=tmp_path/'run', num_workers=0)
    (tmp_path/'run'/'history.csv').write_text('')
    with pytest.warns(UserWarning, match='history.csv cannot be read, so learn.recorder is empty'): load_run(tmp_path/'run')

@pytest.mark.slow
def test_a_loaded_run_is_ready_to_use(practice, tmp_path):
    learn = train(tiny, source=practice, run_dir=tmp_path/'run', num_workers=0)
    again = load_run(learn.run_dir).model
    assert not any(m.training for m in learn.model.modules()) and not any(m.training for m in again.modules())

def own_dataloaders(practice):
    "The same images in every form of DataLoaders"
    files = get_image_files(practice/'train')[:80]
    labels = [f.parent.name for f in files]
    table = pd.DataFrame(dict(file=map(str, files), label=labels))
    table.to_csv(practice.parent/'labels.csv', index=False)
    folder = torchvision.datasets.ImageFolder(practice/'train', transform=torchvision.transforms.ToTensor())
    some = torch.utils.data.Subset(folder, range(0, len(folder), 5))
    def named(dls):
        dls.c,dls.vocab = len(folder.classes),folder.classes
        return dls
    kw = dict(bs=16, num_workers=0)
    root,name = Path(practice.anchor),str((practice.parent/'labels.csv').relative_to(practice.anchor))
    yield 'table', ImageDataLoaders.from_df(table, root, **kw)
    yield 'csv', ImageDataLoaders.from_csv(root, name, batch_tfms=aug_transforms(), **kw)
    yield 'folder', ImageDataLoaders.from_folder(practice, valid='test', **kw)
    yield 'lists', ImageDataLoaders.from_lists(practice, list(map(str, files)), labels, **kw)
    yield 'torchvision', named(DataLoaders(DataLoader(some, shuffle=True, **kw), DataLoader(some, **kw)))
    yield 'from_dsets', named(DataLoaders.from_dsets(some, some, device='cpu', **kw))
    yield 'pytorch', named(DataLoaders(*[torch.utils.data.DataLoader(some, 16, shuffle=s) for s in (True, False)]))

@pytest.mark.slow
def test_dataloaders_of_every_kind(practice):
    for kind,dls in own_dataloaders(practice):
        for recipe in ('ladder_0', 'tiny_cnn'):
            learn = create_learner(recipe, dls)
            with learn.no_bar(), learn.no_logging():
                learn.fit_one_cycle(1, 1e-2)
                loss,acc = learn.validate()
            found = evaluate(learn, 'valid')
            assert (found.loss, found.accuracy) == pytest.approx((loss, acc), rel=1e-4), (kind, recipe)

def test_stems_of_the_same_images_are_the_same(practice):
    "Whether our data set lists them, a table, or torchvision; augmentation is left out"
    ours = cifar10_dataloaders(practice, bs=16, augment='flip_crop', stats=None, num_workers=0)
    files = list(ours.train.items)
    table = pd.DataFrame(dict(file=[str(f) for f in files for _ in (0, 1)], label=[f.parent.name for f in files for _ in (0, 1)], valid=[False, True]*len(files)))
    tables = ImageDataLoaders.from_df(table, Path(practice.anchor), valid_col='valid', bs=16, num_workers=0)
    folder = torchvision.datasets.ImageFolder(practice/'train', transform=torchvision.transforms.ToTensor())
    place = {path: i for i, (path, _) in enumerate(folder.samples)}
    some = torch.utils.data.Subset(folder, [place[str(f)] for f in files])
    dsets = DataLoaders.from_dsets(some, some, bs=16, device='cpu', num_workers=0)
    def filters(dls): return fit_stem(create_model('tiny_cnn'), dls).state_dict()['body.stem.filters']
    first = filters(ours)
    assert first.std() > 0
    for dls in (tables, dsets): torch.testing.assert_close(filters(dls), first)

def test_dataloaders_without_classes_are_refused(practice):
    folder = torchvision.datasets.ImageFolder(practice/'train', transform=torchvision.transforms.ToTensor())
    dls = DataLoaders.from_dsets(folder, folder, bs=16, device='cpu')
    with pytest.raises(ValueError, match='Set dls.vocab to their names, and dls.c to their number'): create_learner('tiny_cnn', dls)

@pytest.fixture
def table(practice):
    files = get_image_files(practice/'train')
    return pd.DataFrame(dict(file=[str(f.relative_to(practice)) for f in files], label=[f.parent.name for f in files]))

@pytest.mark.parametrize('labels, options, says', [
    (lambda label: '', {}, "only one class, '', so there is nothing to tell apart"),
    (lambda label: f'{label} animal', dict(label_delim=' '), 'have several labels each, but recipes are for one label'),
    (lambda label: label, dict(valid_pct=0), 'There are no validation images'),
])
def test_data_of_which_no_classifier_can_be_made(practice, table, labels, options, says):
    dls = ImageDataLoaders.from_df(table.assign(label=table.label.map(labels)), practice, bs=8, num_workers=0, device='cpu', **options)
    with pytest.raises(ValueError, match=says): create_learner('ladder_0', dls)

def test_no_full_batch_is_no_training(practice, table):
    dls = ImageDataLoaders.from_df(table, practice, bs=1000, num_workers=0, device='cpu')
    with pytest.raises(ValueError, match=r'There is no batch to train on: a batch is larger than the \d+ .* Use a smaller bs'):
        create_learner('ladder_0', dls)

@pytest.mark.parametrize('callback', [EarlyStoppingCallback, SaveModelCallback, ReduceLROnPlateau])
def test_a_monitor_that_is_not_measured_is_named(practice, callback):
    learn = create_learner('ladder_0', cifar10_dataloaders(practice, bs=32, num_workers=0))
    says = f"{callback.__name__} monitors 'val_loss', which is not measured. Measured are: train_loss, valid_loss, accuracy."
    with learn.no_bar(), learn.no_logging(), pytest.raises(ValueError, match=says): learn.fit(1, cbs=callback('val_loss'))

def test_weight_decay_spares_biases_and_norms(practice):
    "With a gradient of zero, decay alone moves a weight; it must not move biases and norms"
    learn = create_learner(tiny.change(optimizer='sgd', wd=.5), cifar10_dataloaders(practice, bs=32, num_workers=0))
    learn.create_opt()
    learn.opt.set_hypers(wd=learn.wd, lr=.1)
    for m in learn.model.modules():
        if isinstance(m, torch.nn.BatchNorm2d): torch.nn.init.constant_(m.bias, 1.)
    before = {k: v.clone() for k,v in learn.model.named_parameters()}
    for p in learn.model.parameters(): p.grad = torch.zeros_like(p)
    learn.opt.step()
    for k,v in learn.model.named_parameters():
        assert torch.equal(v, before[k]) == (v.ndim == 1), k

# Speed

def test_a_callback_is_asked_at_the_events_that_it_has_and_no_others(go, monkeypatch):
    asked,heard,call = [],[],Callback.__call__
    class Some(Callback):
        def before_batch(self): heard.append('before_batch')
    class All(Callback):
        def __call__(self, event_name): heard.append(event_name)
    late = Some()
    late.after_step = lambda: heard.append('after_step')
    def noted(self, event_name):
        if isinstance(self, Some): asked.append(event_name)
        return call(self, event_name)
    monkeypatch.setattr(Callback, '__call__', noted)
    learn = go(cbs=[Some(), All(), late])
    assert set(asked) == {'before_batch', 'after_step', 'after_fit'}
    assert heard.count('before_batch') == 3*heard.count('after_pred') and heard.count('after_step') == 2*2*len(learn.dls.train)
    with pytest.raises(Exception, match='missing after_lunch'): learn('after_lunch')

@pytest.mark.parametrize('device, wanted', [('cpu', False), ('cuda', True)])
def test_a_recipe_compiles_on_cuda_only(device, wanted):
    cbs = training._recipe_cbs(tiny.change(compile=True), SimpleNamespace(device=device))
    assert any(isinstance(cb, callbacks.CompileModel) for cb in cbs) == wanted

@pytest.mark.parametrize('able, wanted', [(True, 'AVX512-BF16'), (False, 'AVX512')])
def test_processors_of_one_name_are_told_apart(able, wanted, monkeypatch):
    monkeypatch.setattr('torch.backends.cpu.get_cpu_capability', lambda: 'AVX512')
    monkeypatch.setattr('torch.cpu.get_capabilities', lambda: dict(avx512_bf16=able), raising=False)
    assert runs.hardware()['instructions'] == wanted

@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='the setting is one of glibc')
@pytest.mark.slow
def test_memory_of_freed_tensors_is_used_again():
    "The system gives no fresh pages for a tensor that is as large as the one just freed, and the user's own setting is left alone"
    code = '''if 1:
        import os, resource, torch
        from cifar_fastai.training import reuse_memory
        def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        def of_ten_tensors():
            for _ in range(3): torch.zeros(2**24)
            before = faults()
            for _ in range(10): torch.zeros(2**24)
            return faults() - before
        os.environ['MALLOC_ARENA_MAX'] = '2'
        print(reuse_memory(), of_ten_tensors())
        del os.environ['MALLOC_ARENA_MAX']
        print(reuse_memory(), of_ten_tensors())'''
    clean = {k: v for k,v in os.environ.items() if not k.startswith('MALLOC_')}
    left,fresh,reused,few = subprocess.check_output([sys.executable, '-c', code], env=clean, text=True).split()
    assert (left, reused) == ('False', 'True') and int(few) < 100 and int(fresh) > 10_000  # 10 times 64 MiB are 163,840 pages, or 320 huge ones

# Learners for hands-on work

@pytest.mark.slow
def test_learner_is_fastais(practice):
    learn = create_learner('small_cnn_one_cycle', cifar10_dataloaders(practice, bs=32, num_workers=0))
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(1, .05)
        assert learn.lr_find(num_it=5, show_plot=False).valley > 0
        preds,targets = learn.get_preds()
    assert preds.shape == (20, 10) and preds.sum(1).allclose(torch.ones(20), atol=1e-5) and len(targets) == 20

def test_gray_images_get_a_gray_network(practice):
    learn = create_learner('small_cnn_one_cycle', cifar10_dataloaders(practice, bs=32, num_workers=0, gray=True, stats='unit'))
    assert learn.model.body.stem.filters.shape[1] == 1
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01)

def test_other_image_sizes(practice):
    dls = cifar10_dataloaders(practice, bs=32, num_workers=0, image_size=48)
    with pytest.raises(ValueError, match=r'is for images of 32x32, but these are 48x48'): create_learner(tiny, dls)
    learn = create_learner(tiny.change(image_size=48), dls)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, .01)

# When something goes wrong

@pytest.mark.parametrize('later, message', [(dict(augment='flip_corp'), "Did you mean 'flip_crop'"), (dict(class_weights=dict(tiger=2)), "names 'tiger', but the classes are")])
def test_a_wrong_later_stage_is_refused_before_the_first(go, tmp_path, later, message):
    with pytest.raises(ValueError, match=message): go(tiny.change(stages=(Stage(epochs=1, lr=1e-2), Stage(epochs=1, lr=1e-2, **later))))
    assert not (tmp_path/'run').exists()

def test_ctrl_c_keeps_history_and_weights(go, tmp_path):
    def stop(learn): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): go(cbs=[At(stop, 1, 1)])
    assert read(tmp_path/'run', 'run.json')['status'] == 'interrupted'
    assert len(pd.read_csv(tmp_path/'run'/'history.csv')) == 1
    assert load_file(tmp_path/'run'/'model.safetensors')
    assert load_run(tmp_path/'run', num_workers=0).recipe == tiny

def test_ctrl_c_while_weights_are_written(go, tmp_path, monkeypatch):
    real,calls = runs.save_file,[]
    def save_file(state, path):
        calls.append(path)
        if len(calls) == 1: raise KeyboardInterrupt
        real(state, path)
    monkeypatch.setattr(runs, 'save_file', save_file)
    with pytest.raises(KeyboardInterrupt): go()
    assert read(tmp_path/'run', 'run.json')['status'] == 'interrupted' and load_file(tmp_path/'run'/'model.safetensors')

def test_weights_that_cannot_be_read_are_no_run_that_goes_on(go, tmp_path, monkeypatch):
    def fail(run, model): raise RuntimeError('device-side assert')
    monkeypatch.setattr(Run, 'save_weights', fail)
    def stop(learn): raise ArithmeticError('first')
    with pytest.raises(RuntimeError, match='device-side') as e: go(cbs=[At(stop, 1)])
    assert isinstance(e.value.__context__, ArithmeticError)
    assert (said := read(tmp_path/'run', 'run.json'))['status'] == 'failed' and said['error'].startswith('ArithmeticError: ')

def test_where_the_weights_are_is_said_last(go, tmp_path, monkeypatch):
    "when run.json cannot be written either"
    real = runs.save_file
    def save_file(state, path):
        if not str(path).startswith(str(tmp_path/'run')): return real(state, path)
        monkeypatch.setattr(runs, 'write_json', full)
        full()
    def full(*args): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(runs, 'save_file', save_file)
    monkeypatch.setattr(runs.tempfile, 'mkdtemp', lambda prefix: str(tmp_path))
    with pytest.raises(OSError, match='The weights were saved in '): go()
    assert load_file(tmp_path/'model.safetensors')

def test_weights_that_layers_share(practice, tmp_path, monkeypatch):
    def twins(n_out=10, in_channels=3, image_size=32):
        conv = torch.nn.Conv2d(in_channels, in_channels, 3, padding=1)
        return torch.nn.Sequential(OrderedDict(body=torch.nn.Sequential(conv, torch.nn.ReLU(), conv), head=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_channels*image_size**2, n_out))))
    register_model(twins)
    try:
        learn = train(tiny.change(model='twins'), source=practice, run_dir=tmp_path/'run', num_workers=0)
        again = load_run(tmp_path/'run', num_workers=0).model
    finally: del models._models['twins']
    assert again.body[0] is again.body[2] and torch.equal(again.body[0].weight, learn.model.body[0].weight)

def test_a_file_of_the_users_own_survives_a_stage(practice, tmp_path):
    learn = create_learner(tiny, cifar10_dataloaders(practice, bs=32), path=tmp_path)
    learn.save('best')
    with learn.no_bar(), learn.no_logging(): fit_stage(learn, Stage(epochs=1, lr=1e-3, keep_best='accuracy'))
    assert [f.name for f in tmp_path.iterdir()] == ['best.pth']

def test_an_interruption_leaves_the_plain_loss(practice, tmp_path):
    def stop(learn): raise KeyboardInterrupt
    learn = create_learner(tiny, cifar10_dataloaders(practice, bs=32), path=tmp_path, cbs=[At(stop, 0, 1)])
    plain = learn.loss_func
    with pytest.raises(KeyboardInterrupt), learn.no_bar(), learn.no_logging(): fit_stage(learn, Stage(epochs=1, lr=1e-3, class_weights={learn.dls.vocab[0]: 2.}))
    assert learn.loss_func is plain

def test_the_validation_loss_is_plain_after_an_interruption(practice):
    def stop(learn): raise KeyboardInterrupt
    learn = create_learner(tiny.change(label_smoothing=.2), cifar10_dataloaders(practice, bs=32, num_workers=0), cbs=[At(stop, 0, 1), MixUp(.4)])
    plain = learn.loss_func
    with learn.no_bar(), learn.no_logging():
        with pytest.raises(KeyboardInterrupt): learn.fit(1, 1e-3)
        assert learn.loss_func is plain and learn.validate()[0] == pytest.approx(evaluate(learn, 'valid').loss, rel=1e-5)

def test_folder_that_holds_something_is_refused(go, tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'thesis.txt').write_text('precious')
    with pytest.raises(FileExistsError, match='not an empty folder. Nothing was written'): go()
    assert [p.name for p in (tmp_path/'run').iterdir()] == ['thesis.txt']

def test_folder_that_cannot_be_made(go, tmp_path):
    (tmp_path/'file').write_text('')
    with pytest.raises(OSError, match='file'): go(name='file/run')

def test_full_disk_keeps_the_weights_elsewhere(go, tmp_path, monkeypatch):
    kept = tmp_path/'elsewhere'
    kept.mkdir()
    real = runs.save_file
    def save_file(state, path):
        if str(path).startswith(str(tmp_path/'run')): raise OSError(errno.ENOSPC, 'No space left on device')
        real(state, path)
    monkeypatch.setattr(runs, 'save_file', save_file)
    monkeypatch.setattr(runs.tempfile, 'mkdtemp', lambda prefix: str(kept))
    with pytest.raises(OSError, match=r'No space left.*The weights were saved in .*elsewhere'): go()
    assert load_file(kept/'model.safetensors') and len(pd.read_csv(tmp_path/'run'/'history.csv')) == 2

def test_unknown_recipe(go):
    with pytest.raises(ValueError, match="Did you mean 'small_cnn'"): go('small_cn')

# A run comes back

def test_load_run(go):
    a = go(name='a')
    b = load_run(a.run_dir, num_workers=0)
    with a.no_bar(), a.no_logging(), b.no_bar(), b.no_logging():
        pa,pb = a.get_preds()[0],b.get_preds()[0]
    assert torch.allclose(pa, pb, atol=1e-6) and b.run_dir == a.run_dir

def test_load_run_has_the_augmentation_that_training_ended_with(go):
    recipe = Recipe(name='two', model='ladder_0', stages=[Stage(epochs=1, lr=1e-3), Stage(epochs=1, lr=1e-3, augment='cutout')], augment='none', bs=32)
    a = go(recipe)
    kinds = [[type(t).__name__ for t in learn.dls.train.after_batch.fs] for learn in (a, load_run(a.run_dir, num_workers=0))]
    assert kinds[0] == kinds[1] and 'Cutout' in kinds[0]

def test_load_run_warns_of_images_that_changed(practice, tmp_path):
    mine = shutil.copytree(practice, tmp_path/'mine')
    folder = train(tiny, source=mine, limit=50, run_dir=tmp_path/'run', num_workers=0).run_dir
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        load_run(folder, num_workers=0)
        next((mine/'test').rglob('*.png')).unlink()  # which it was not trained on
        load_run(folder, num_workers=0)
        next((mine/'train').rglob('*.png')).unlink()
        load_run(folder, source=mine, num_workers=0)  # the caller says so
        with pytest.raises(UserWarning, match=r'was trained on other images .* may contain these validation images'): load_run(folder, num_workers=0)
        run = Run(folder).info
        del run['data']['fingerprint']
        write_json(folder/'run.json', run)
        load_run(folder, num_workers=0)

def test_load_run_says_what_is_wrong(go, tmp_path, practice):
    folder = go().run_dir
    with pytest.raises(FileNotFoundError, match='is not a run folder: it has no run.json'): load_run(tmp_path)
    (folder/'model.safetensors').write_bytes((folder/'model.safetensors').read_bytes()[:1000])
    with pytest.raises(ValueError, match='its checksum is not the one in run.json'): load_run(folder, num_workers=0)
    (folder/'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='model.safetensors is not there'): load_run(folder, num_workers=0)
    other = tmp_path/'other'
    shutil.copytree(practice, other)
    for part in ('train', 'test'): (other/part/'truck').rename(other/part/'lorry')
    with pytest.raises(ValueError, match='was trained on the classes'): load_run(folder, source=other, num_workers=0)
    (folder/'recipe.json').write_text('{"name": ')
    with pytest.raises(ValueError, match='recipe.json is damaged'): load_run(folder, num_workers=0)

@pytest.mark.parametrize('n_images', [50, 100, 120, 1000])
def test_the_stem_sees_evenly_spaced_images(practice, monkeypatch, n_images):
    seen,loader = [],training.loader_at
    monkeypatch.setattr(training, 'loader_at', lambda dl, at, **kwargs: seen.extend(dl.items[i] for i in at) or loader(dl, at, **kwargs))
    training.fit_stem(models.create_model('tiny_cnn'), cifar10_dataloaders(practice, bs=32, num_workers=0), n_images)
    counts = count_classes(seen)
    assert len(seen) == len(set(seen)) == min(n_images, 180) and len(counts) == 10 and max(counts.values()) - min(counts.values()) <= 1

def test_whitening_stem_is_fitted_to_the_training_images(practice):
    dls = cifar10_dataloaders(practice, bs=32)
    a,b = create_learner('small_cnn_one_cycle', dls),create_learner('small_cnn_one_cycle', dls)
    assert torch.equal(a.model.body.stem.filters, b.model.body.stem.filters)  # computed, not drawn
    items = dls.train.items
    x = dls.test_dl(items, bs=len(items)).one_batch()[0].as_subclass(torch.Tensor)
    out = torch.nn.functional.conv2d(x, a.model.body.stem.filters[:12]).transpose(0, 1).flatten(1)
    covariance = out @ out.T / out.shape[1]
    assert (covariance - covariance.diagonal().diag()).abs().max() < .01 and .9 < covariance.diagonal().max() < 1.001

def test_a_stem_that_comes_with_weights_stays_as_it_is(practice, tmp_path):
    recipe = get_recipe('small_cnn_one_cycle', bs=32)
    given = create_learner(recipe, cifar10_dataloaders(practice, bs=32)).model
    with torch.no_grad(): given.body.stem.filters.neg_()  # as other images might have given
    save_file({k: v.contiguous() for k,v in given.state_dict().items()}, tmp_path/'w.safetensors')
    learn = create_learner(recipe.change(weights=str(tmp_path/'w.safetensors')), cifar10_dataloaders(practice, bs=32, seed=1))
    assert torch.equal(learn.model.body.stem.filters, given.body.stem.filters)

def test_norms_of_any_kind_are_spared_from_weight_decay(practice):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.GroupNorm(2, 8), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, 10))
    learn = create_learner(tiny, cifar10_dataloaders(practice, bs=32), model=model)
    learn.create_opt()
    decayed = {name for name,p in model.named_parameters() if learn.opt.state[p].get('do_wd', True)}
    assert decayed == {'0.weight', '4.weight'}

@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError])
def test_the_best_weights_return_where_training_breaks_off(go, tmp_path, error):
    best = {}
    class Worse(Callback):
        order = 70  # after what keeps the best
        def before_epoch(self):
            if self.epoch == 2: raise error('stop')
        def after_epoch(self):
            if self.epoch == 0: best.update({k: v.clone() for k,v in self.model.state_dict().items()})
            for p in self.model.parameters(): p.data.zero_()
    with pytest.raises(error): go(tiny.change(epochs=5, early_stopping=3), cbs=[Worse()])
    kept = load_file(tmp_path/'run'/'model.safetensors')
    assert kept.keys() == best.keys() and all(torch.equal(v, best[k]) for k,v in kept.items())
    assert not list((tmp_path/'run').glob('best-*')) and len(history_of(tmp_path/'run')) == 2

def test_disk_full_in_mid_training_keeps_the_weights(go, tmp_path):
    def fill_disk(learn):
        def fail(row): raise OSError(errno.ENOSPC, 'No space left on device')
        learn.history_writer.target.add_epoch = fail
    with pytest.raises(OSError, match='No space left'): go(cbs=[At(fill_disk, 1)])
    assert load_file(tmp_path/'run'/'model.safetensors')
    assert read(tmp_path/'run', 'run.json')['status'] == 'failed' and len(pd.read_csv(tmp_path/'run'/'history.csv')) == 1

@pytest.mark.parametrize('tracker', [SaveModelCallback, EarlyStoppingCallback, ReduceLROnPlateau])
@pytest.mark.slow
def test_trackers_of_accuracy_do_not_look_at_the_final_validation(tracker, practice, tmp_path):
    looked = []
    class Watched(tracker):
        def after_epoch(self):
            looked.append(float(self.recorder.values[-1][self.idx]))
            super().after_epoch()
    learn = train(tiny, source=practice, run_dir=tmp_path/'run', num_workers=0, device='cpu', cbs=[Watched(monitor='accuracy')])
    assert json.loads((learn.run_dir/'run.json').read_text())['status'] == 'finished' and any(isinstance(cb, tracker) for cb in learn.cbs)
    assert looked == pytest.approx(pd.read_csv(learn.run_dir/'history.csv').accuracy.tolist(), abs=1e-6)

def test_the_stem_sees_fewer_of_large_images(practice):
    dls = cifar10_dataloaders(practice, bs=32, num_workers=0)
    seen, real = [], training.loader_at
    with pytest.MonkeyPatch.context() as m:
        m.setattr(training, 'loader_at', lambda dl, at, **kwargs: seen.append(len(at)) or real(dl, at, **kwargs))
        training.fit_stem(create_model('small_cnn'), dls)
        training.fit_stem(create_model('small_cnn'), dls, n_pixels=32*32*50)
    assert seen == [180, 51]

@pytest.mark.parametrize('head', [None, Head()])
def test_a_batch_of_one_is_refused_before_a_run_folder_is_made(practice, tmp_path, head):
    recipe = Recipe(name='my', model='resnet18', head=head, stages=Stage(epochs=1, lr=.01), bs=1)
    with pytest.raises(ValueError, match='only one image in this batch. Use a batch size of at least 2'):
        train(recipe, source=practice, run_dir=tmp_path/'run')
    assert not (tmp_path/'run').exists()

def test_a_last_batch_of_one_is_explained(practice):
    folder = torchvision.datasets.ImageFolder(practice/'train', transform=torchvision.transforms.ToTensor())
    loaders = [torch.utils.data.DataLoader(torch.utils.data.Subset(folder, range(9)), 8) for _ in range(2)]
    dls = DataLoaders(*loaders)
    dls.c,dls.vocab = len(folder.classes),folder.classes
    learn = create_learner(Recipe(name='my', model='resnet18', stages=Stage(epochs=1, lr=.01)), dls)
    with pytest.raises(ValueError, match='and drop_last=True in loaders of your own'), learn.no_bar(), learn.no_logging(): learn.fit(1)

# A learning rate for a recipe

searched = tiny.change(bs=16)
search_stages = dict(
    frozen=searched.change(stages=(Stage(epochs=3, lr=(None, 1e-2), freeze_to='head', bn='frozen', early_stopping=2), Stage(epochs=1, lr=1e-3)), groups=('head',)),
    keras=searched.change(stages=(Stage(epochs=2, lr=1e-3, schedule='reduce_on_plateau', class_weights={'cat': 3.}, augment='flip_crop', discard=True),),
                      optimizer='adam', keras=True),
    other_optimizer=searched.change(stages=(Stage(epochs=1, lr=1e-2, optimizer='rmsprop', lookahead=5),)))

@pytest.mark.slow
@pytest.mark.parametrize('name', search_stages)
def test_a_search_for_a_rate_trains_as_the_first_stage(name, practice, monkeypatch, tmp_path):
    "The frozen body stays, class weights and optimizer are those of the stage, and nothing is left"
    monkeypatch.chdir(tmp_path)
    seen = {}
    class Look(Callback):
        def after_step(self):
            seen['weights'] = dict(getattr(self.learn.training_loss, 'class_weights', {}))
            seen['body'] = any(p.requires_grad for p in self.learn.model.body.parameters())
            seen['lr'] = {h['lr'] for h in self.opt.hypers}
    prepare = training._prepare
    def prepared(*args, **kwargs):
        learn = prepare(*args, **kwargs)
        learn.add_cb(Look())
        return learn
    monkeypatch.setattr(training, '_prepare', prepared)
    recipe = search_stages[name]
    found = find_lr(recipe, source=practice, num_workers=0)
    assert list(found.suggestions) == ['valley', 'slide', 'minimum', 'steep'] and found.recipe == recipe
    assert 40 <= len(found.lrs) == len(found.losses) <= 100 and np.isfinite(found.losses).all() and found.lrs[0] == pytest.approx(1e-7)
    assert seen['weights'] == dict(recipe.stages[0].class_weights) and seen['body'] == (name != 'frozen') and len(seen['lr']) == 1
    assert not list(tmp_path.iterdir())

@pytest.mark.slow
def test_a_search_is_the_same_with_the_same_seed(practice):
    a,b,c = (find_lr(tiny.change(model='ladder_0', bs=8), seed, practice, limit=64, num_workers=0) for seed in (1, 1, 2))
    assert a.losses == b.losses != c.losses

def test_a_search_that_ends_too_early_says_why(practice, monkeypatch):
    "A network that is damaged gives no finite loss at all; one that explodes at once, too few"
    build = training.build_model
    def damaged(*args, **kwargs):
        model = build(*args, **kwargs)
        torch.nn.init.constant_(list(model.parameters())[-1], float('nan'))
        return model
    monkeypatch.setattr(training, 'build_model', damaged)
    with pytest.raises(NonFiniteLossError, match='nan or infinite from the first batch on, so no learning rate can be found: check for corrupted images'):
        find_lr(tiny, source=practice, num_workers=0)
    monkeypatch.setattr(training, 'build_model', build)
    search = training._search
    monkeypatch.setattr(training, '_search', lambda *args: search(*args, end_lr=1e30))
    with pytest.raises(NonFiniteLossError, match='batches already, at learning rate .* too early'): find_lr(tiny.change(optimizer='sgd'), source=practice, num_workers=0)
