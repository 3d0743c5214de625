"Runs evaluated on test sets that others published: CIFAR-10.1 and CIFAR-10-C, as arrays."
import shutil

import numpy as np
import pytest
from PIL import Image

from cifar_fastai import formats, sources
from cifar_fastai.cli import main
from cifar_fastai.data import array_loader, labeled_dataloaders
from cifar_fastai.evaluation import evaluate
from cifar_fastai.robustness import evaluate_corruptions
from cifar_fastai.runs import Run
from cifar_fastai.synthetic import cifar10_classes
from cifar_fastai.training import load_run_for, train
from small_runs import tiny


@pytest.fixture(scope='module')
def run_dir(practice, tmp_path_factory):
    return train(tiny.shorten(1), source=practice, run_dir=tmp_path_factory.mktemp('runs')/'run', num_workers=0).run_dir


def arrays_of(practice):
    "The test images of the practice set, in another order than that of their files"
    files = sources.test_files(practice)[::-1]
    return np.stack([np.array(Image.open(f)) for f in files]), np.array([cifar10_classes.index(f.parent.name) for f in files]), files


@pytest.fixture
def corrupted(practice, tmp_path):
    "Files like CIFAR-10-C: the images, and darker ones"
    folder = tmp_path/'CIFAR-10-C'
    folder.mkdir()
    images, labels, _ = arrays_of(practice)
    np.save(folder/'labels.npy', np.tile(labels, 5).astype(np.uint8))
    for name, step in (('fog', 0), ('snow', 15)): np.save(folder/f'{name}.npy', np.concatenate([np.clip(images, 40 + step*i, 255) for i in range(5)]))
    return folder


def test_arrays_are_evaluated_as_their_files(run_dir, practice, tmp_path):
    images, labels, files = arrays_of(practice)
    for name, a in (('data', images), ('labels', labels)): np.save(tmp_path/f'new_{name}.npy', a)
    arrays = formats.read_arrays(tmp_path/'new_data.npy', tmp_path/'new_labels.npy', cifar10_classes)
    said = evaluate(load_run_for(run_dir, arrays, num_workers=0))
    wanted = evaluate(load_run_for(run_dir, practice/'test', num_workers=0))
    order = [wanted.files.index(f.relative_to(wanted.root).as_posix()) for f in files]
    assert np.array_equal(said.targets, wanted.targets[order]) and np.allclose(said.probs, wanted.probs[order], atol=1e-5) and not said.trained_on
    converted = evaluate(load_run_for(run_dir, tmp_path, num_workers=0))
    assert converted.accuracy == said.accuracy and converted.variant.startswith('new-') and converted.open_image(0).size == (32, 32)


@pytest.mark.parametrize('size, gray', [(32, True), (48, False)])
def test_arrays_are_resized_and_made_gray(practice, tmp_path, size, gray):
    images, labels, files = arrays_of(practice)
    for name, a in (('data', images), ('labels', labels)): np.save(tmp_path/f'new_{name}.npy', a)
    arrays = formats.read_arrays(tmp_path/'new_data.npy', tmp_path/'new_labels.npy', cifar10_classes)
    options = dict(bs=50, image_size=size, gray=gray, num_workers=0, device='cpu')
    x = labeled_dataloaders(arrays, cifar10_classes, **options).valid.one_batch()[0]
    wanted = labeled_dataloaders(practice/'test', cifar10_classes, **options)
    names = [wanted.valid_ds.items.index(f) for f in files]
    assert x.shape == (50, 1 if gray else 3, size, size) and (x - wanted.valid.one_batch()[0][names]).abs().max() < 1e-5
    with pytest.raises(ValueError, match='may have images of airplane, .* but the network knows cat, dog'): labeled_dataloaders(arrays, ['cat', 'dog'])


def test_corruptions_and_severities(run_dir, corrupted):
    table = evaluate_corruptions(run_dir, corrupted, num_workers=0)
    assert [(r.corruption, r.level, r.n) for r in table.itertuples()] == [(name, i, 50) for name in ('fog', 'snow') for i in range(1, 6)]
    fog = table[table.corruption == 'fog'].accuracy
    assert fog.nunique() == 1 and table.accuracy[5] == fog[0]
    learn = load_run_for(run_dir, (arrays := formats.read_arrays(corrupted/'snow.npy', corrupted/'labels.npy', cifar10_classes)).part(0, 5), num_workers=0)
    assert evaluate(learn, array_loader(learn.dls, arrays.part(4, 5))).accuracy == table.accuracy[9]
    some = evaluate_corruptions(run_dir, corrupted, 'snow', levels=5, num_workers=0)
    assert some.accuracy.tolist() == [table.accuracy[9]]


def test_the_command_prints_and_keeps_them(run_dir, corrupted, capsys):
    assert main(['evaluate', str(run_dir), '--data', str(corrupted), '--workers', '0']) == 0
    out = capsys.readouterr().out
    assert 'accuracy by severity, on 50 images each' in out and [line.split()[0] for line in out.splitlines() if line.startswith((' fog', 'fog', 'snow', 'mean'))] == ['fog', 'snow', 'mean']
    kept = Run(run_dir).metrics['test on CIFAR-10-C']
    assert kept['n'] == 500 and list(kept['corruptions']) == ['fog', 'snow'] and len(kept['corruptions']['fog']) == 5
    assert main(['evaluate', str(run_dir), '--data', str(corrupted), '--split', 'valid']) == 2 and 'leave out --split and --tta' in capsys.readouterr().err
    assert main(['runs', str(run_dir)]) == 0


def test_other_files_of_the_same_name_are_kept_apart(run_dir, corrupted, tmp_path, monkeypatch):
    other = shutil.copytree(corrupted, tmp_path/'other'/'CIFAR-10-C')
    np.save(other/'fog.npy', np.zeros_like(np.load(other/'fog.npy')))
    monkeypatch.chdir(other)
    for folder in str(corrupted), '.', str(corrupted): assert main(['evaluate', str(run_dir), '--data', folder, '--workers', '0']) == 0
    metrics = Run(run_dir).metrics
    first,second = metrics['test on CIFAR-10-C'],metrics['test on CIFAR-10-C 2']
    assert first['corruptions']['fog'] != second['corruptions']['fog'] and sum('CIFAR-10-C' in name for name in metrics) == 2


def test_the_command_with_new_test_images(run_dir, practice, tmp_path, capsys):
    images, labels, _ = arrays_of(practice)
    for name, a in (('data', images), ('labels', labels)): np.save(tmp_path/f'cifar10.1_v6_{name}.npy', a)
    assert main(['evaluate', str(run_dir), '--data', str(tmp_path), '--workers', '0']) == 0
    assert 'on 50 images' in capsys.readouterr().out and any(name.startswith('test on cifar10.1_v6-') for name in Run(run_dir).metrics)


@pytest.mark.parametrize('change, error, text', [
    (lambda f: (f/'labels.npy').unlink(), FileNotFoundError, 'must be labels.npy and a .npy file for each'), (lambda f: np.save(f/'labels.npy', np.zeros(250)), ValueError, 'Labels must be'),
    (lambda f: np.save(f/'labels.npy', np.zeros(249, int)), ValueError, 'labels.npy has 249 labels, and fog.npy 250 images'), (lambda f: np.save(f/'labels.npy', np.full(250, 99)), ValueError, 'the label 99'),
    (lambda f: [np.save(f/name, np.load(f/name)[:-1]) for name in ('labels.npy', 'fog.npy', 'snow.npy')], ValueError, '249 images, which is not 5 times'),
    (lambda f: np.save(f/'snow.npy', np.zeros((250, 32, 32), np.uint8)), ValueError, 'snow.npy has the shape')])
def test_wrong_files_of_corruptions(run_dir, corrupted, change, error, text):
    change(corrupted)
    with pytest.raises(error, match=text): evaluate_corruptions(run_dir, corrupted)


def test_an_unknown_corruption(run_dir, corrupted):
    with pytest.raises(ValueError, match="no corruption 'rain'. It has: fog, snow"): evaluate_corruptions(run_dir, corrupted, ['rain'])
    with pytest.raises(ValueError, match='at least one corruption, got none'): evaluate_corruptions(run_dir, corrupted, [])


def test_corruptions_of_cifar100(tmp_path, monkeypatch):
    "Labels are numbers of the hundred classes of the run"
    from cifar_fastai.files import read_json, write_json
    from small_sets import tiny_set
    data = tiny_set(tmp_path/'set', classes=[f'class_{i:02}' for i in range(20)])
    learn = train(tiny.shorten(1), source=data, run_dir=tmp_path/'run', num_workers=0)
    folder = tmp_path/'CIFAR-100-C'
    folder.mkdir()
    np.save(folder/'labels.npy', np.tile(np.arange(20), 5))
    np.save(folder/'fog.npy', np.zeros((100, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match='the label 10, expected 0 to 9'): evaluate_corruptions(learn.run_dir, folder)
    info = read_json(file := Run(learn.run_dir).info_file)
    write_json(file, info | dict(data=info['data'] | dict(variant='cifar100')))
    assert evaluate_corruptions(learn.run_dir, folder, num_workers=0).n.tolist() == [20]*5
