"Every network: published parameter counts, shapes, gradients, bad input"
import pytest
import torch
import torchvision
from torch import nn

from cifar_fastai import models
from cifar_fastai.models import OffsetNorm, PatchWhitening, conv_blocks, count_parameters, create_model, list_models, model_table, multiply_adds, register_model
from cifar_fastai.registry import UnknownNameError

# trainable, BatchNorm statistics; together the "Total params" that Keras printed
published = dict(three_block_cnn=(2_396_330, 896), wide_cnn=(1_454_730, 896), residual_cnn=(16_998_986, 2_944),
                 ladder_0=(263_402, 0), ladder_1=(263_402, 0), ladder_2=(150_826, 0), ladder_3=(282_442, 192), ladder_4=(282_442, 192),
                 ladder_5=(3_249_994, 1_792), ladder_6=(3_249_994, 1_792), ladder_7=(1_283_914, 1_792))
published_totals = dict(three_block_cnn=2_397_226, wide_cnn=1_455_626, residual_cnn=17_001_930, ladder_0=263_402, ladder_1=263_402,
                        ladder_2=150_826, ladder_3=282_634, ladder_4=282_634, ladder_5=3_251_786, ladder_6=3_251_786, ladder_7=1_285_706)

@pytest.mark.parametrize('name', published)
def test_published_parameter_counts(name):
    n = count_parameters(create_model(name))
    assert (n.trainable, n.statistics) == published[name]
    assert n.frozen == 0 and n.total == published_totals[name]

def test_frozen_blocks_of_project_1():
    "With blocks 1 and 2 frozen: 2,330,378 trainable and 66,848 not"
    model = create_model('three_block_cnn')
    for p in model.body[:2].parameters(): p.requires_grad_(False)
    n = count_parameters(model)
    assert (n.trainable, n.frozen + n.statistics) == (2_330_378, 66_848)

@pytest.mark.parametrize('name', list_models())
@pytest.mark.parametrize('n_out,in_channels,image_size', [(10, 3, 32), (2, 1, 64), (7, 3, 48)])
def test_shapes(name, n_out, in_channels, image_size):
    model = create_model(name, n_out, in_channels, image_size).eval()
    with torch.no_grad(): out = model(torch.randn(2, in_channels, image_size, image_size))
    assert out.shape == (2, n_out)

@pytest.mark.parametrize('name', list_models())
def test_every_parameter_gets_a_gradient(name):
    torch.manual_seed(0)
    model = create_model(name)
    nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)
    assert sum(p.grad.abs().sum() > 0 for p in trained) > .8 * len(trained)

@pytest.mark.parametrize('name', list_models())
def test_memory_format_does_not_change_answers(name):
    torch.manual_seed(0)
    model,x = create_model(name).eval(),torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        a = model(x)
        b = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)

@pytest.mark.parametrize('training', [True, False])
def test_offset_norm_is_batchnorm_without_its_factor(training):
    x = torch.randn(6, 4, 5, 5)*3 + 1
    ours,theirs = OffsetNorm(4).train(training),nn.BatchNorm2d(4, eps=1e-12, momentum=.4).train(training)
    with torch.no_grad():
        for m in (ours, theirs): m.bias.copy_(torch.arange(4.))
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    assert list(ours.state_dict()) == ['bias', 'running_mean', 'running_var', 'num_batches_tracked'] and count_parameters(ours)[:] == (4, 0, 8)

def test_whitening_of_large_images_sees_all_of_them():
    "though not all of their patches at once"
    images = torch.cat([torch.randn(32, 3, 256, 256), 3*torch.randn(8, 3, 256, 256)])  # in parts of 32
    stem = PatchWhitening()
    stem.fit(images)
    out = torch.nn.functional.conv2d(images, stem.filters[:12]).transpose(0, 1).flatten(1)
    assert torch.allclose(out @ out.T/out.shape[1], torch.eye(12), atol=1e-2)

def test_a_whitening_stem_with_an_offset_is_fitted_and_trained():
    images = torch.randn(40, 3, 8, 8).cumsum(3)
    plain,offset = PatchWhitening(),PatchWhitening(bias=True, act=nn.functional.gelu)
    for stem in (plain, offset): stem.fit(images)
    with torch.no_grad(): offset.bias.fill_(.5)
    assert torch.equal(plain.filters, offset.filters) and [n for n,_ in offset.named_parameters()] == ['bias'] and not list(plain.parameters())
    torch.testing.assert_close(offset(images), nn.functional.gelu(nn.functional.conv2d(images, plain.filters) + .5))

def test_image_is_not_changed_by_inplace_layers():
    "residual_cnn carries the image through all stages"
    x = torch.randn(2, 3, 32, 32)
    before = x.clone()
    create_model('residual_cnn')(x)
    assert torch.equal(x, before)

def test_keras_defaults():
    plain,keras = create_model('ladder_3'),create_model('ladder_3', keras=True)
    norm = lambda m: next(x for x in m.modules() if isinstance(x, nn.BatchNorm2d))
    assert (norm(plain).eps, norm(plain).momentum) == (1e-5, .1)
    assert (norm(keras).eps, norm(keras).momentum) == (1e-3, .01)
    for m in keras.modules():
        if isinstance(m, (nn.Conv2d, nn.Linear)):
            fan_in,fan_out = nn.init._calculate_fan_in_and_fan_out(m.weight)
            bound = (6 / (fan_in + fan_out))**.5
            assert m.weight.abs().max() <= bound and m.weight.detach().std().item() == pytest.approx(bound / 3**.5, rel=.1)
            assert (m.bias == 0).all()

def test_multiply_adds_by_hand():
    "ladder_0: 3x3x3 weights at 32x32 for 32 filters, then two matrix products"
    model = create_model('ladder_0').train()
    assert multiply_adds(model) == 32*32*32*27 + 8192*32 + 32*10
    assert model.training
    assert multiply_adds(create_model('ladder_7', image_size=64), image_size=64) > 3.9 * multiply_adds(create_model('ladder_7'))

def test_multiply_adds_as_published():
    "By torchvision, in billions at 224 pixels"
    for name,published in (('vit_b_32', 4.41), ('resnet18', 1.81)): assert multiply_adds(torchvision.models.get_model(name), image_size=224)/1e9 == pytest.approx(published, abs=.01)
    assert torch.backends.mha.get_fastpath_enabled()

def test_unknown_model_names_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Unknown model 'wide_cn'. Did you mean 'wide_cnn'\? list_models\(\) shows all."): create_model('wide_cn')

@pytest.mark.parametrize('kwargs', [dict(n_out=0), dict(n_out=2.5), dict(in_channels=0), dict(image_size=-1), dict(image_size='32')])
def test_bad_numbers(kwargs):
    with pytest.raises(ValueError, match=f'{next(iter(kwargs))} must be a positive integer, got'): create_model('wide_cnn', **kwargs)

def test_images_too_small():
    with pytest.raises(ValueError, match='image_size 16 is too small.*at least 32'): create_model('residual_cnn', image_size=16)

def test_names_are_taken_once():
    def small_cnn(n_out, in_channels, image_size): return nn.Identity()
    with pytest.raises(ValueError, match='registered already'): register_model(small_cnn)

def test_a_notebooks_cell_runs_twice():
    names,code = list_models(),"def my_own(n_out, in_channels, image_size): return nn.Linear(n_out, {})"
    try:
        for n in (3, 4):
            exec(code.format(n), cell := dict(nn=nn, __name__='__main__'))
            register_model(cell['my_own'])
        assert create_model('my_own').out_features == 4 and list_models() == [*names, 'my_own']
    finally: models._models.pop('my_own', None)

def test_table_lists_every_model():
    table = model_table('ladder_*')
    assert list(table.index) == list_models('ladder_*') and len(table) == 8
    assert table.parameters['ladder_2'] == 150_826
    with pytest.raises(ValueError, match='residual_cnn: image_size 16 is too small'): model_table(image_size=16)

def test_blocks_halve_once_each():
    assert conv_blocks(3, (4, 5, 6))(torch.zeros(1, 3, 16, 16)).shape == (1, 6, 2, 2)
    assert conv_blocks(3, (4, 5, 6, 7), dropout=(.5, .5))(torch.zeros(1, 3, 16, 16)).shape == (1, 7, 1, 1)

def test_whitening_is_fixed_and_remembered():
    "Training leaves the filters alone, `fit` sets them, and they travel with the weights"
    torch.manual_seed(0)
    model,x = create_model('small_cnn'),torch.randn(64, 3, 32, 32).cumsum(2).cumsum(3) / 32
    stem = next(m for m in model.modules() if isinstance(m, PatchWhitening))
    assert count_parameters(stem) == (0, 0, 24*3*2*2)
    before = stem.filters.clone()
    stem.fit(x)
    assert not torch.allclose(before, stem.filters) and torch.equal(stem.filters[12:], -stem.filters[:12])
    out = nn.functional.conv2d(x, stem.filters[:12]).transpose(0, 1).flatten(1)
    covariance = out @ out.T / out.shape[1]
    assert (covariance - covariance.diagonal().diag()).abs().max() < .02 and covariance.diagonal().max() <= 1.001
    other = create_model('small_cnn')
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.body.stem.filters, stem.filters)

def test_new_filters_pass_their_input_on():
    x = torch.randn(2, 8, 8, 8)
    assert torch.allclose(models.conv_block(8, 16)[0](x)[:, :8], x, atol=1e-6)

@pytest.mark.parametrize('name, factor', [('small_cnn', 1/8), ('airbench94', 1/9)])
def test_scores_are_scaled(name, factor):
    assert [m.factor for m in create_model(name).modules() if type(m).__name__ == 'Scale'] == [factor]

def test_the_mode_of_each_layer_returns():
    model = create_model('plain_cnn')
    frozen = next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d) or isinstance(m, nn.Dropout)).eval()
    multiply_adds(model)
    assert model.training and not frozen.training

def test_a_whitened_network_needs_eight_pixels():
    with pytest.raises(ValueError, match='image_size 4 is too small.*at least 8'): create_model('small_cnn', image_size=4)
    assert create_model('small_cnn', image_size=8)

@pytest.mark.parametrize('name', ['airbench94', 'airbench95', 'airbench96'])
def test_the_smallest_images_of_airbench(name):
    with pytest.raises(ValueError, match='image_size 8 is too small: it must be at least 9'): create_model(name, image_size=8)
    assert create_model(name, image_size=9).eval()(torch.rand(2, 3, 9, 9)).shape == (2, 10)
