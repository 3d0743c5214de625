"""The published networks give what they give in Keras: same weights, same outputs, block by block.

keras_reference.py ran them in Keras and wrote data/keras_reference.npz; Keras itself is not needed here. Computed in 64 bits, as
what is recorded was, differences are those of the networks alone. Where PyTorch and Keras do differ, in the moving variance of
BatchNorm, a test states by how much. How Keras trains is compared in test_keras_training.py."""
import json
from functools import lru_cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import keras_reference as ref
from cifar_fastai.models import count_parameters, create_model
from cifar_fastai.recipes import get_recipe
from cifar_fastai.training import optimizer_function

pytestmark = pytest.mark.slow

recorded = dict(np.load(ref.path))
about = json.loads(str(recorded.pop('about')))
each_network = pytest.mark.parametrize('name', ref.parameters)
l2 = dict(residual_cnn=1e-4, ladder_7=.01)
images = torch.from_numpy(ref.images().transpose(0, 3, 1, 2).copy())
labels = torch.from_numpy(ref.labels())


# --- from Keras' names and layouts to ours

def blocks(model): return list(getattr(model.body, 'stages', model.body))

def layers(model):
    "{name in Keras: module} of all modules with weights"
    found = {}
    def add(name, kind, named): found.update({f'{name}{i}': m for i,m in enumerate((m for m in named if isinstance(m, kind)), 1)})
    for b,block in enumerate(blocks(model), 1):
        shortcuts = {n: m for n,m in block.named_children() if n.startswith('from_')}
        found.update({f'block{b}_{n}': m for n,m in shortcuts.items()})
        add(f'block{b}_conv', nn.Conv2d, (m for m in block.modules() if m not in shortcuts.values()))
        add(f'block{b}_norm', nn.BatchNorm2d, block.modules())
    add('dense', nn.Linear, model.head)
    return found

def tensors(module):
    "{Keras' name: tensor} of a module with weights"
    if not isinstance(module, nn.BatchNorm2d): return dict(kernel=module.weight, bias=module.bias)
    return dict(gamma=module.weight, beta=module.bias, moving_mean=module.running_mean, moving_variance=module.running_var)

def all_tensors(model): return {f'{n}/{kind}': t for n,m in layers(model).items() for kind,t in tensors(m).items()}

def to_torch(w, flat_channels=None):
    "Weights in PyTorch's layout: (H, W, in, out) becomes (out, in, H, W); rows of a dense layer on flattened maps become channel first"
    if w.ndim == 1: return w
    if w.ndim == 4: return w.transpose(3, 2, 0, 1)
    if flat_channels is None: return w.T
    side = int((len(w) / flat_channels)**.5)
    return w.reshape(side, side, flat_channels, -1).transpose(3, 2, 0, 1).reshape(w.shape[1], -1)

@lru_cache(maxsize=1)
def drawn(name):
    "The weights that Keras had: {layer/kind: array in Keras' layout}"
    return {k: ref.draw(f'{name}/{k}', shape) for k,shape in about[name]['weights'].items()}

def copied(name, dtype=torch.float64):
    "Our network with Keras' weights, and without dropout, as Keras ran it"
    model = create_model(name, keras=True).to(dtype)
    ours,channels = all_tensors(model),about[name]['weights'][f'block{len(blocks(model))}_norm1/gamma'][0]
    assert ours.keys() == drawn(name).keys()
    for k,w in drawn(name).items():
        w = torch.from_numpy(np.ascontiguousarray(to_torch(w, channels if k == 'dense1/kernel' else None)))
        assert ours[k].shape == w.shape, k
        ours[k].data.copy_(w)
    for m in model.modules():
        if isinstance(m, nn.Dropout): m.p = 0.
    return model

def batch(model): return images.to(next(model.parameters()).dtype)

def outputs(model):
    "{name: array in Keras' layout} of blocks, scores and probabilities"
    found = {}
    def keep(i, out): found[f'block{i}'] = (out[0] if isinstance(out, tuple) else out).detach().permute(0, 2, 3, 1).numpy()
    hooks = [m.register_forward_hook(lambda m,x,out,i=i: keep(i, out)) for i,m in enumerate(blocks(model), 1)]
    scores = model(batch(model))
    for h in hooks: h.remove()
    found |= dict(scores=scores.detach().numpy(), probabilities=scores.softmax(1).detach().numpy())
    return {k: ref.sample(v) for k,v in found.items()}

def of(name, what): return {k.removeprefix(f'{name}/{what}/'): v for k,v in recorded.items() if k.startswith(f'{name}/{what}/')}

def differences(ours, keras):
    "{name: largest absolute difference}"
    assert ours.keys() == keras.keys()
    return {k: float(np.abs(ours[k] - keras[k]).max()) for k in keras}

def l2_term(model, rate): return rate * sum(m.weight.square().sum() for n,m in layers(model).items() if '_conv' in n)

def total_loss(name, model): return F.cross_entropy(model(batch(model)), labels) + l2_term(model, l2.get(name, 0.))


# --- same architecture

@each_network
def test_parameters_and_dropout(name):
    model,keras = create_model(name),about[name]
    n = count_parameters(model)
    assert (n.total, n.trainable) == (keras['parameters'], keras['trainable']) and n.total == ref.parameters[name]
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == keras['dropout']

@each_network
def test_batch_norm_constants(name):
    norms = [m for m in create_model(name, keras=True).modules() if isinstance(m, nn.BatchNorm2d)]
    (eps,momentum), = about[name]['norm']
    assert (eps, momentum) == (1e-3, .99)
    assert all((m.eps, m.momentum) == (eps, pytest.approx(1 - momentum)) for m in norms)

@each_network
def test_initialization(name):
    "Glorot's bound is as tight for ours as for the weights that Keras drew; all else begins as in Keras"
    torch.manual_seed(0)
    ours = all_tensors(create_model(name, keras=True))
    for k,(largest,std) in about[name]['initial_kernels'].items():
        shape,w = about[name]['weights'][k],ours[k].detach()
        bound = (6 / (np.prod(shape[:-1]) + np.prod(shape[:-2])*shape[-1]))**.5
        for got in (largest, w.abs().max().item()): assert bound*(1 - 15/w.numel()) < got <= bound*1.000001, k
        for got in (std, w.std().item()): assert got == pytest.approx(bound / 3**.5, rel=3 / w.numel()**.5), k
    for k,value in about[name]['initial_others'].items(): assert (ours[k] == value).all(), k


# --- same outputs

@each_network
@pytest.mark.parametrize('mode', ['inference', 'training'])
@pytest.mark.parametrize('dtype,limit', [(torch.float32, 1e-4), (torch.float64, 2e-6)], ids=str)
@torch.no_grad()
def test_outputs(name, mode, dtype, limit):
    "Of each block, and of the whole; BatchNorm with moving statistics, and with the batch's"
    worst = differences(outputs(copied(name, dtype).train(mode == 'training')), of(name, mode))
    assert max(worst.values()) < limit, worst

@each_network
def test_loss_and_gradients(name):
    model,keras = copied(name).train(),about[name]
    loss = total_loss(name, model)
    assert loss.item() == pytest.approx(keras['loss'], rel=1e-6)
    assert l2_term(model, l2.get(name, 0.)).item() == pytest.approx(keras['l2'], rel=1e-6)
    loss.backward()
    norms = {k: t.grad.norm().item() for k,t in all_tensors(model).items() if 'moving' not in k}
    assert norms == {k: pytest.approx(v, rel=1e-5, abs=1e-9) for k,v in keras['gradients'].items()}


# --- where PyTorch and Keras differ

@each_network
@torch.no_grad()
def test_moving_statistics(name):
    """After a training step the means are Keras'. The variances are those of Keras 2, which like PyTorch divides by n - 1.
    Keras 3 divides by n, so that what it adds to them, one percent of the batch's variance, is smaller by one n-th."""
    model = copied(name).train()
    ours,_ = all_tensors(model),model(batch(model))
    keras_3,keras_2,before = of(name, 'moving'),of(name, 'moving_keras_2'),drawn(name)
    for k,keras in keras_3.items():
        got,pixels = ours[k].numpy(),len(images) * (64 >> int(k[len('block')]))**2
        if 'mean' in k: np.testing.assert_allclose(got, keras, rtol=2e-7, atol=1e-9)
        else:
            np.testing.assert_allclose(got, keras_2[k], rtol=2e-6)
            np.testing.assert_allclose(got - (got - .99*before[k])/pixels, keras, rtol=2e-7)

def rounded_betas(i, lr=1e-4):
    "The learning rate of step `i`, from 1, with which our Adam makes Keras' step: Keras rounds its betas to 32 bits, which shortens steps by 6 millionths"
    correction = lambda beta: (1 - float(np.float32(beta))**i) / (1 - beta**i)
    return float(np.float32(lr)) * correction(.999)**.5 / correction(.9)

def losses_after_steps(name, n, lr):
    "The loss after each of `n` steps with our Adam, at the learning rate `lr(i)` in step `i`"
    model = copied(name).train()
    opt = optimizer_function(get_recipe('wide_cnn'))(list(model.parameters()), lr=1e-4, wd=0.)
    for i in range(n + 1):
        loss = total_loss(name, model)
        if i: yield loss.item()
        opt.zero_grad()
        loss.backward()
        opt.set_hypers(lr=lr(i + 1))
        opt.step()

@pytest.mark.parametrize('name,n', [('wide_cnn', 3), ('ladder_3', 3), ('ladder_7', 1)])
def test_steps_of_adam(name, n):
    keras = about[name]['losses_after_steps'][:n]
    assert list(losses_after_steps(name, n, rounded_betas)) == pytest.approx(keras, rel=1e-6)
    assert list(losses_after_steps(name, n, lambda i: 1e-4)) == pytest.approx(keras, rel=2e-5)


# --- would a change be noticed?

def norm_first(model):
    "BatchNorm before ReLU where it came after, and the other way round"
    for m in model.modules():
        if isinstance(m, nn.Sequential) and len(m) == 3 and {type(o) for o in m} == {nn.Conv2d, nn.BatchNorm2d, nn.ReLU}: m[1],m[2] = m[2],m[1]

def torch_eps(model):
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d): m.eps = 1e-5

def no_image(model): nn.init.zeros_(model.body.stages[-1].from_image.weight)

def no_previous(model): model.body.stages[2].from_previous = None

def relu_after_add(model): model.body.stages[1].norm = nn.Sequential(nn.ReLU(), model.body.stages[1].norm)

def max_for_average(model): model.head[0] = nn.AdaptiveMaxPool2d(1)

def height_for_width(model):
    "Flatten the maps column by column"
    model.head[0] = nn.Sequential(Transpose(), nn.Flatten())

class Transpose(nn.Module):
    def forward(self, x): return x.transpose(2, 3)

@pytest.mark.parametrize('name,change', [
    ('three_block_cnn', norm_first), ('wide_cnn', norm_first), ('ladder_7', norm_first), ('wide_cnn', torch_eps), ('ladder_7', torch_eps),
    ('residual_cnn', torch_eps), ('residual_cnn', no_image), ('residual_cnn', no_previous), ('residual_cnn', relu_after_add),
    ('ladder_7', max_for_average), ('three_block_cnn', height_for_width)])
@torch.no_grad()
def test_changes_are_noticed(name, change):
    model = copied(name).eval()
    change(model)
    assert differences(outputs(model), of(name, 'inference'))['scores'] > 1e-3
