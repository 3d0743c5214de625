"Files that other programs run: the same answers as the run's, and a clear error for everything else"
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_fastai import exporting, sources
from cifar_fastai.exporting import export_run
from cifar_fastai.inference import load_classifier
from cifar_fastai.recipes import Head, Recipe, Stage
from cifar_fastai.runs import Run
from cifar_fastai.training import train
from small_sets import picture, tiny_set

for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)

tiny = Recipe(name='tiny', model='ladder_0', stages=Stage(epochs=1, lr=3e-3), bs=32)


@pytest.fixture(scope='module')
def run(practice, tmp_path_factory):
    "A run folder with its ONNX files. Tests only read it."
    folder = tmp_path_factory.mktemp('run')/'tiny'
    train(tiny.change(model='tiny_cnn', stages=Stage(epochs=4, lr=3e-3)), source=practice, run_dir=folder, num_workers=0, device='cpu')
    for options in ({}, dict(int8=True), dict(preprocessing=False)): export_run(folder, **options)
    return folder


def close(a, b, atol=1e-5): torch.testing.assert_close(a, b, rtol=0, atol=atol)


@pytest.mark.slow
def test_what_is_told(run):
    told = export_run(run, n=7)
    assert told.file == run/'model.onnx' and told.n == 7 and told.n_bytes == told.file.stat().st_size
    assert 0 <= told.difference < 1e-5 and told.accuracy == told.file_accuracy
    valid = json.loads((run/'metrics.json').read_text())['valid']
    told = export_run(run)
    assert told.n == 20 == valid['n'] and told.accuracy == pytest.approx(valid['accuracy'])


def gray(folder): return tiny_set(folder, mode='L', n_train=12)
def of_two_sizes(folder):
    tiny_set(folder, n_train=12)
    for i,file in enumerate(sorted(folder.rglob('*.png'))): picture(i, ((32, 32), (40, 50))[i % 2]).save(file)
    return folder

networks = dict(
    small=(dict(model='small_cnn'), tiny_set), keras=(dict(model='wide_cnn', keras=True, stats='unit'), tiny_set), gray=({}, gray),
    whitened=(dict(model='airbench94'), tiny_set), enlarged=(dict(image_size=48), of_two_sizes), shrunk=(dict(image_size=16), tiny_set),
    timm=(dict(model='timm/test_efficientnet', image_size=64, head=Head()), tiny_set), torchvision=(dict(model='resnet18', head=Head()), tiny_set))

@pytest.mark.slow
@pytest.mark.parametrize('case', networks)
def test_every_kind_of_network(case, tmp_path, monkeypatch):
    recipe,make = networks[case]
    train(tiny.change(**recipe), source=make(tmp_path/'set'), run_dir=tmp_path/'run', num_workers=0, device='cpu')
    files = sources.test_files(tmp_path/'set')
    wanted = load_classifier(tmp_path/'run', 'cpu').probabilities(files)
    of_module,programs = exporting._program,{}
    def program_of(module, *args): # the same one for both formats
        if type(module) not in programs: programs[type(module)] = of_module(module, *args)
        return programs[type(module)]
    monkeypatch.setattr(exporting, '_program', program_of)
    program = torch.export.load(export_run(tmp_path/'run', format='torch').file).module()
    for options in ({}, dict(preprocessing=False)): close(load_classifier(export_run(tmp_path/'run', **options).file).probabilities(files), wanted)
    n_channels = Run(tmp_path/'run').info['data']['channels']
    images = torch.zeros(3, 20, 41, n_channels, dtype=torch.uint8)
    close(program(images)[0], load_classifier(tmp_path/'run', 'cpu').probabilities(images.numpy()))


@pytest.mark.parametrize('size', [(32, 32), (1, 1), (20, 300), (600, 431)])
def test_images_of_any_size(run, size, tmp_path):
    "Pillow and the file may round a pixel differently, by 1 of 255"
    import onnxruntime
    image = picture(3, size)
    session = onnxruntime.InferenceSession(run/'model.onnx')
    found,logits = session.run(None, {'images': np.array(image)[None]})
    close(torch.tensor(found), load_classifier(run, 'cpu').probabilities(image), 1e-6 if size == (32, 32) else 5e-3)
    close(torch.tensor(logits).softmax(1), torch.tensor(found), 1e-6)


alone = '''
import sys
class Refuse:
    def find_spec(self, name, *args):
        if name.partition('.')[0] in ('torch', 'fastai', 'PIL', 'cifar_fastai', 'onnx'): raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import json, numpy, onnxruntime
session = onnxruntime.InferenceSession('model.onnx')
probabilities, = session.run(['probabilities'], {'images': numpy.load('images.npy')})
facts = session.get_modelmeta().custom_metadata_map
numpy.save('answers.npy', probabilities)
print([json.loads(facts['classes'])[k] for k in probabilities.argmax(1)])
'''

def test_without_pytorch(run, practice, tmp_path):
    files = sources.test_files(practice)
    np.save(tmp_path/'images.npy', np.stack([np.array(Image.open(f)) for f in files]))
    shutil.copy(run/'model.onnx', tmp_path)
    out = subprocess.run([sys.executable, '-c', alone], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    wanted = load_classifier(run, 'cpu')
    close(torch.from_numpy(np.load(tmp_path/'answers.npy')), wanted.probabilities(files))
    assert eval(out) == [p.label for p in wanted.predict(files)]


def test_a_file_says_what_it_is(run):
    import onnxruntime
    facts = onnxruntime.InferenceSession(run/'model.onnx').get_modelmeta().custom_metadata_map
    said = json.loads(facts['classifier.json'])
    assert said['format'] == 'cifar_fastai classifier' and said['recipe']['name'] == 'tiny' and said['variant'] == 'synthetic'
    assert said['vocab'] == json.loads(facts['classes']) == Run(run).info['data']['classes'] and len(said['mean']) == said['channels'] == 3
    classifier = load_classifier(run/'model.onnx')
    assert repr(classifier) == 'Classifier(tiny_cnn, 10 classes, 32x32 color, trained on synthetic, on cpu)'
    assert Recipe.from_json(json.dumps(said['recipe'])) == Run(run).recipe


def test_no_path_of_this_machine_is_in_a_file(run):
    export_run(run, format='torch')
    for name in ('model.onnx', 'model-int8.onnx', 'model.pt2'):
        data = (run/name).read_bytes()
        for folder in (Path(exporting.__file__).parent, Path(torch.__file__).parent, Path.home()/'x', run): assert str(folder).encode() not in data, name


def test_eight_bits(run, practice):
    files = sources.test_files(practice)
    whole,eight = (load_classifier(run/f'model{kind}.onnx').probabilities(files) for kind in ('', '-int8'))
    assert 0 < (whole - eight).abs().max() < .2
    assert (run/'model-int8.onnx').stat().st_size < .4*(run/'model.onnx').stat().st_size


def test_the_classifier_folder(run, tmp_path, practice):
    told = export_run(run, tmp_path/'folder', format='classifier')
    files = sources.test_files(practice)
    close(load_classifier(tmp_path/'folder', 'cpu').probabilities(files), load_classifier(run, 'cpu').probabilities(files))
    assert told.difference == 0 and told.n_bytes > 1000 and export_run(run, tmp_path/'folder', format='classifier').file == tmp_path/'folder'


# --- what is refused

@pytest.mark.parametrize('options, words', [
    (dict(format='tflite'), "'tflite' does not exist. Use one of onnx, torch, classifier"), (dict(format='torch', int8=True), "for the format 'onnx'"),
    (dict(format='classifier', preprocessing=False), "Use the format 'onnx' or 'torch'"), (dict(file='network'), "must end in .onnx, got 'network'")])
def test_choices(run, options, words):
    with pytest.raises(ValueError, match=words): export_run(run, **options)


def test_files_of_others_stay(run, tmp_path):
    (tmp_path/'mine.onnx').write_text('mine')
    (tmp_path/'folder.onnx').mkdir()
    for file in (tmp_path/'mine.onnx', tmp_path/'folder.onnx'):
        with pytest.raises(FileExistsError, match='is not an export of a run. Nothing was written'): export_run(run, file)
    assert (tmp_path/'mine.onnx').read_text() == 'mine'


def test_other_answers_are_not_saved(run, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, '_scores_of', lambda *args: lambda x: torch.full((len(x), 10), float('nan')))
    monkeypatch.setattr(exporting, '_onnx_bytes', lambda *args: b'') # not looked at
    with pytest.raises(ValueError, match='differs by nan.*not saved'): export_run(run, tmp_path/'model.onnx')
    assert not list(tmp_path.glob('*.onnx'))


@pytest.mark.parametrize('content, words', [(b'', 'damaged or not an ONNX file'), (b'hello', 'damaged or not an ONNX file')])
def test_damaged_files(content, words, tmp_path):
    (tmp_path/'a.onnx').write_bytes(content)
    with pytest.raises(ValueError, match=words) as e: load_classifier(tmp_path/'a.onnx')
    assert str(tmp_path) in str(e.value) and '\n' not in str(e.value)


def test_a_file_of_another_program(run, tmp_path):
    import onnx
    model = onnx.load(run/'model.onnx')
    del model.metadata_props[:]
    onnx.save(model, tmp_path/'other.onnx')
    with pytest.raises(ValueError, match='other.onnx was not written by'): load_classifier(tmp_path/'other.onnx')
    with pytest.raises(NotADirectoryError, match='model.pt2 is a file'):
        shutil.copy(run/'model.onnx', tmp_path/'model.pt2')
        load_classifier(tmp_path/'model.pt2')


def test_a_loss_by_eight_bits_is_said(run, tmp_path, monkeypatch):
    labels = exporting._validation_images(exporting.load_run(run, num_workers=0, device='cpu'), 20)[1]
    monkeypatch.setattr(exporting, '_scores_of', lambda *args: lambda x: torch.eye(10)[(labels[:len(x)] + 1) % 10])
    monkeypatch.setattr(exporting, '_onnx_bytes', lambda *args: b'') # not looked at
    with pytest.warns(UserWarning, match=r'8-bit integers cost \d+\.\d points of accuracy'): export_run(run, tmp_path/'model.onnx', int8=True)


def test_missing_packages_are_named(run, monkeypatch):
    monkeypatch.setattr(exporting, 'find_spec', lambda name: None)
    with pytest.raises(ImportError, match=r'Export to ONNX needs the package onnx: `pip install "cifar_fastai\[export\]'): export_run(run)
