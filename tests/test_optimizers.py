"Each optimizer does what its formula says, for parameters of every kind."

import itertools

import pytest
import torch

from cifar_fastai import optimizers, training
from small_runs import tiny


@pytest.mark.parametrize('shape', [(4, 30), (30, 4), (16, 16), (1, 9)])
def test_orthogonalize_keeps_directions_and_makes_them_equally_long(shape):
    u,s,v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    s = torch.logspace(0, -1.5, len(s))
    out = optimizers.orthogonalize(u @ torch.diag(s) @ v)
    inside = u.T @ out @ v.T
    assert out.shape == shape and (inside.diagonal() > .65).all() and (inside.diagonal() < 1.25).all()
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-3
    assert torch.equal(optimizers.orthogonalize(torch.zeros(shape)), torch.zeros(shape))
    several = torch.randn(3, *shape)
    assert torch.allclose(optimizers.orthogonalize(several), torch.stack([optimizers.orthogonalize(m) for m in several]), atol=1e-4)
    in_16_bits = optimizers.orthogonalize(u @ torch.diag(s) @ v, low_precision=True)
    assert in_16_bits.dtype == torch.float32 and torch.linalg.svdvals(in_16_bits).sub(1).abs().max() < .4

def test_matrices_of_several_shapes_are_made_orthogonal_together():
    several = [torch.randn(shape) for shape in ((4, 27), (16, 36), (16, 8))]
    for m,new in zip(several, optimizers.orthogonalize(optimizers._padded(several))):
        rows,columns = m.shape
        assert torch.allclose(new[:rows, :columns], optimizers.orthogonalize(m), atol=1e-4)
        assert not new[rows:].any() and not new[:, columns:].any()

def test_muon_moves_filters_its_way_and_the_rest_as_sgd():
    w,b = torch.nn.Parameter(torch.randn(8, 3, 3, 3).to(memory_format=torch.channels_last)),torch.nn.Parameter(torch.randn(8))
    other = torch.nn.Parameter(b.detach().clone())
    muon = training.optimizer_function(tiny.change(optimizer='muon', sgd_lr_mult=.5, bias_lr_mult=3.))
    opt,sgd = muon([w, b], lr=.1, mom=.8),optimizers.nesterov_sgd([other], lr=.15, mom=.8)
    for _ in range(3):
        before = w.detach().clone()
        w.grad,b.grad = torch.randn_like(w),torch.randn(8)
        other.grad = b.grad.clone()
        opt.step(); sgd.step()
        step = torch.linalg.svdvals((before - w.detach()).flatten(1))
        assert step.min() > .06 and step.max() < .13
    assert torch.allclose(b, other) and w.is_contiguous(memory_format=torch.channels_last)

def test_muon_takes_no_scale_for_a_filter():
    "ConvNeXt's layer scale is (C, 1, 1), ViT's positions are (1, N, C)"
    for shape in ((96, 1, 1), (1, 5, 4)):
        p,other = (torch.nn.Parameter(torch.full(shape, 1e-6)) for _ in range(2))
        opt,sgd = optimizers.muon([p], lr=.04, mom=.8),optimizers.nesterov_sgd([other], lr=.04, mom=.8)
        p.grad,other.grad = (torch.full(shape, 1e-3) for _ in range(2))
        opt.step(); sgd.step()
        assert torch.allclose(p, other) and p.max() < 1e-6

def test_biases_can_have_a_rate_of_their_own():
    w,b = torch.nn.Parameter(torch.zeros(3, 2)),torch.nn.Parameter(torch.zeros(3))
    opt = training.optimizer_function(tiny.change(optimizer='sgd', bias_lr_mult=4.))([w, b], lr=.1, mom=0.)
    w.grad,b.grad = torch.ones(3, 2),torch.ones(3)
    opt.step()
    assert w.tolist() == [[pytest.approx(-.1)]*2]*3 and b.tolist() == [pytest.approx(-.4)]*3

def test_a_parameter_without_a_gradient_stays_and_gradients_go():
    w,b = torch.nn.Parameter(torch.ones(3, 2)),torch.nn.Parameter(torch.ones(3))
    opt = optimizers.nesterov_sgd([w, b], lr=.1, wd=.1)
    for _ in range(2):
        w.grad = torch.ones(3, 2)
        opt.step(); opt.zero_grad()
        assert w.grad is None and torch.equal(b.detach(), torch.ones(3))
    sd = opt.state_dict()
    other = optimizers.nesterov_sgd([w, b], lr=.1, wd=.1)
    other.load_state_dict(sd)
    assert torch.equal(other.state[w]['grad_avg'], opt.state[w]['grad_avg'])

def test_an_optimizer_takes_no_closure():
    with pytest.raises(NotImplementedError, match='closure'): optimizers.nesterov_sgd([torch.nn.Parameter(torch.ones(2))], lr=.1).step(lambda: 0)

@pytest.mark.parametrize('gaps', [False, True])
@pytest.mark.parametrize('layouts', list(itertools.product([torch.contiguous_format, torch.channels_last], repeat=3)))
def test_sgd_steps_alike_whatever_the_order_in_memory(layouts, gaps):
    "PyTorch's fused kernel takes the numbers of all tensors in the order of memory"
    def kept(t): return t[:, ::2] if gaps else t
    weight,gradient,average = (torch.randn(4, 6, 3, 3).contiguous(memory_format=layout) for layout in layouts)
    ours,theirs = torch.nn.Parameter(kept(weight)),torch.nn.Parameter(kept(weight).clone())
    opt = optimizers.nesterov_sgd([ours], lr=.1, mom=.8, wd=.1)
    expected = torch.optim.SGD([theirs], lr=.1, momentum=.8, weight_decay=.1, nesterov=True, foreach=False)
    opt.state[ours]['grad_avg'],expected.state[theirs]['momentum_buffer'] = kept(average),kept(average).clone()
    for _ in range(2):
        for p in (ours, theirs): p.grad = kept(gradient).clone()
        opt.step(); expected.step()
    assert torch.allclose(ours, theirs, atol=1e-6)
