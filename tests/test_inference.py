"Saving, loading, and asking about images of every kind"
import copy
import errno
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import get_image_files, parent_label
from fastai.learner import Learner
from fastai.vision.augment import Resize
from fastai.vision.core import PILImage
from fastai.vision.data import ImageBlock
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file

from cifar_fastai import data, images, inference, sources  # not their names: pytest would take `test_files` for a test
from cifar_fastai.evaluation import evaluate
from cifar_fastai.files import read_json, write_json
from cifar_fastai.images import UnreadableImageError, image_pixels, plain_image, read_image
from cifar_fastai.inference import Prediction, load_classifier, save_classifier
from cifar_fastai.models import create_model, register_model
from cifar_fastai.recipes import Recipe, Stage
from cifar_fastai.runs import Run
from cifar_fastai.training import create_learner, load_run, train

tiny = Recipe(name='tiny', model='ladder_0', stages=Stage(epochs=1, lr=3e-3), bs=32)


def picture(seed=0, size=(32, 32), mode='RGB'):
    "Smooth random colors as a PIL image; `size` is height and width"
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture(scope='module')
def learn(practice, tmp_path_factory):
    "A learner after a few steps, and its run folder"
    return train(tiny, source=practice, run_dir=tmp_path_factory.mktemp('run')/'tiny', num_workers=0, device='cpu')


@pytest.fixture(scope='module')
def saved(learn, tmp_path_factory):
    "The folder of that learner as a classifier. Tests only read it."
    return save_classifier(learn, tmp_path_factory.mktemp('saved')/'tiny')


@pytest.fixture(scope='module')
def classifier(saved): return load_classifier(saved, device='cpu')


@pytest.fixture
def damaged(saved, tmp_path):
    "A copy of the folder, to be spoilt"
    return shutil.copytree(saved, tmp_path/'copy')


def answers(learn, files):
    "What fastai says about files"
    with learn.no_bar(): return learn.get_preds(dl=learn.dls.test_dl(files))[0]


def close(a, b): torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------- the Learner's answers

def test_answers_are_those_of_get_preds_predict_and_evaluate(learn, classifier, practice):
    files = sources.test_files(practice)
    ours = classifier.probabilities(files)
    close(ours, answers(learn, files))
    close(ours, torch.tensor(evaluate(learn, 'test').probs))
    with learn.no_bar(): label,_,probs = learn.predict(files[7])
    said = classifier.predict(files[7])
    assert said.label == label and list(said.probabilities) == list(learn.dls.vocab) == list(classifier.vocab)
    close(torch.tensor(list(said.probabilities.values())), probs)
    assert ours.std(0).max() > 1e-3  # not all alike


def small_set(folder, sizes=((32, 32),), mode='RGB', ending='.png'):
    "A data set of pictures whose sizes go round"
    for split,n in (('train', 8), ('test', 4)):
        for k,c in enumerate(('cat', 'dog', 'eel')):
            (folder/split/c).mkdir(parents=True)
            for i in range(n): picture(100*k + i, sizes[i % len(sizes)], mode).save(folder/split/c/f'{i}{ending}')
    return folder


cases = dict(
    small_cnn=(dict(model='small_cnn'), {}, {}),
    keras=(dict(model='wide_cnn', keras=True, stats='unit'), {}, {}),
    own_stats=(dict(stats=((.1, .2, .3), (.4, .5, .6))), {}, {}),
    enlarged=(dict(image_size=48), {}, {}),
    shrunk=(dict(image_size=16), {}, {}),
    not_square=(dict(image_size=24), dict(sizes=((20, 28),)), {}),
    all_sizes=(dict(image_size=24), dict(sizes=((20, 28), (40, 24), (24, 24))), {}),
    jpeg=({}, dict(ending='.jpg'), {}),
    gray_files=({}, dict(mode='L'), {}),
    palette_files=({}, dict(mode='P'), {}),
    cmyk_files=({}, dict(mode='CMYK', ending='.tif'), {}),
    gray=({}, dict(mode='L'), dict(gray=True)),
    gray_from_color=(dict(stats='unit'), {}, dict(gray=True)),
    gray_from_palette=({}, dict(mode='P'), dict(gray=True)),
)

@pytest.mark.parametrize('case', cases)
@pytest.mark.slow
def test_answers_are_the_learners_whatever_the_recipe(case, tmp_path):
    recipe,files,kwargs = cases[case]
    recipe = tiny.change(**recipe)
    folder = small_set(tmp_path/'set', **files)
    dls = data.cifar10_dataloaders(folder, bs=8, num_workers=0, device='cpu', valid=.25, stats=recipe.stats,
                                   image_size=recipe.image_size, **kwargs)
    learn = create_learner(recipe, dls)
    with learn.no_bar(), learn.no_logging(): learn.fit(1)
    save_classifier(learn, tmp_path/'saved')
    wanted = answers(learn, files := sources.test_files(folder))
    shutil.rmtree(folder/'train')
    close(load_classifier(tmp_path/'saved', 'cpu').probabilities(files), wanted)


@pytest.mark.parametrize('size', [(1, 1), (5, 50), (64, 64), (123, 457), (600, 700), (2000, 1)])
@pytest.mark.parametrize('ending', ['.png', '.jpg'])
def test_images_of_other_sizes_go_the_learners_way(learn, classifier, tmp_path, size, ending):
    picture(1, size).save(file := tmp_path/f'photo{ending}')
    close(classifier.probabilities(file), answers(learn, [file]))


def test_a_run_folder_is_a_classifier(learn, classifier, practice, tmp_path):
    files = sources.test_files(practice)
    run = shutil.copytree(learn.run_dir, tmp_path/'run')
    for name in ('history.csv', 'metrics.json'): (run/name).unlink()
    theirs = load_classifier(run, device='cpu')
    assert torch.equal(theirs.probabilities(files), classifier.probabilities(files))
    assert theirs.info.variant == classifier.info.variant == learn.dls.data_info.variant and theirs.vocab == classifier.vocab


@pytest.mark.parametrize('said,size', [({}, (32, 32)), (dict(size=[20, 28]), (20, 28)), (dict(size=None), (48, 48))])
def test_a_run_folder_says_at_which_size_images_are_read(said, size, learn, tmp_path):
    run = shutil.copytree(learn.run_dir, tmp_path/'run')
    change_json(run, data=read_json(run/'run.json')['data'] | said, checksums={}, name='run.json')
    (run/'recipe.json').write_text(tiny.change(image_size=48).to_json())
    info = inference._run_info(Run(run))
    assert (info.item_size, info.image_size, info.channels) == (size, 48, 3)


def test_a_run_comes_back_and_is_saved(learn, classifier, practice, tmp_path):
    again = load_run(learn.run_dir, num_workers=0, device='cpu')
    theirs = load_classifier(save_classifier(again, tmp_path/'saved'), device='cpu')
    assert torch.equal(theirs.probabilities(files := sources.test_files(practice)), classifier.probabilities(files))


def test_batches_do_not_matter(classifier, practice):
    files = sources.test_files(practice)[:10]
    close(classifier.probabilities(files, bs=3), classifier.probabilities(files, bs=64))
    assert [p.label for p in classifier.predict(files, bs=1)] == [p.label for p in classifier.predict(files)]


# ------------------------------------------------------------------------------------------- a Prediction

def test_prediction(classifier, practice):
    said = classifier.predict(sources.test_files(practice)[0])
    assert said.probability == said.probabilities[said.label] == max(said.probabilities.values())
    assert abs(sum(said.probabilities.values()) - 1) < 1e-5
    assert said.top(1) == [(said.label, said.probability)] and len(said.top(4)) == 4 and len(said.top(99)) == 10
    assert [p for _,p in said.top(10)] == sorted(said.probabilities.values(), reverse=True)
    assert pickle.loads(pickle.dumps(said)) == said and hash(copy.copy(said)) == hash(said)
    with pytest.raises(FrozenInstanceError): said.label = 'dog'


def test_prediction_in_words():
    said = Prediction('dog', .25, dict(cat=.2, dog=.25))
    assert str(said) == 'dog (25.0%)' and repr(said) == "Prediction(label='dog', probability=0.25)"


def test_classifier_in_words(classifier):
    assert repr(classifier) == 'Classifier(ladder_0, 10 classes, 32x32 color, trained on synthetic, on cpu)'


# ------------------------------------------------------------------------------------------- what it takes

def test_one_image_in_every_form(classifier, practice):
    file = sources.test_files(practice)[3]
    image = Image.open(file)
    array = np.array(image)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    wanted = classifier.predict(file)
    opaque = np.dstack([array, np.full((32, 32), 255, np.uint8)])
    forms = [str(file), file, image, PILImage.create(file), array, np.asfortranarray(array), array[::-1][::-1], opaque, tensor, tensor.contiguous(),
             data.TensorImage(tensor), (array/255).astype(np.float32), array/255, tensor/255, (tensor/255).double(), (opaque/255), (tensor/255).requires_grad_()]
    for form in forms:
        said = classifier.predict(form)
        assert isinstance(said, Prediction) and said.label == wanted.label
        close(torch.tensor(list(said.probabilities.values())), torch.tensor(list(wanted.probabilities.values())))
    assert array.flags.writeable and image.mode == 'RGB' and type(image).__name__ == 'PngImageFile'


def test_gray_in_every_form(classifier):
    array = np.array(picture(mode='L'))
    tensor = torch.from_numpy(array)
    wanted = classifier.probabilities(picture(mode='L'))
    for form in (array, array[..., None], tensor, tensor[None], array/255, tensor[None]/255, np.dstack([array]*3), picture(mode='L').convert('LA')):
        close(classifier.probabilities(form), wanted)


def test_many_images_in_every_form(classifier, practice):
    files = sources.test_files(practice)[:5]
    arrays = np.stack([np.array(Image.open(f)) for f in files])
    tensors = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    wanted = classifier.probabilities(files)
    mixed = [str(files[0]), Image.open(files[1]), arrays[2], tensors[3], tensors[4]/255]
    for form in (files, tuple(files), iter(files), (f for f in files), arrays, list(arrays), tensors, tensors/255, arrays/255, list(tensors), mixed):
        said = classifier.predict(form)
        assert isinstance(said, list) and len(said) == 5
        close(torch.tensor([list(p.probabilities.values()) for p in said]), wanted)
    assert classifier.predict([]) == [] and classifier.predict(np.zeros((0, 32, 32, 3), np.uint8)) == []
    assert len(classifier.predict(files[:1])) == 1 and len(classifier.predict(arrays[:1])) == 1


@pytest.mark.parametrize('form,message', [
    (torch.zeros(3, 32, 32, dtype=torch.int64), 'A tensor of int64 is no image: give uint8'),
    (np.zeros((32, 32, 3), bool), 'An array of bool is no image'),
    (np.zeros((32, 32), np.uint16), 'uint16'),
    (torch.full((3, 32, 32), float('nan')), 'nan or infinite'),
    (np.full((32, 32, 3), np.inf), 'nan or infinite'),
    (torch.full((3, 32, 32), 1.5), 'from 0 to 1, got 1.5 to 1.5'),
    (torch.full((3, 32, 32), -.5), 'do not normalize'),
    (np.zeros((3, 32, 32), np.uint8), r'An array of shape \(3, 32, 32\) is no image'),
    (torch.zeros(32, 32, 3), r'A tensor of shape \(32, 32, 3\) is no image'),
    (torch.zeros(2, 32, 32), r'A tensor of shape \(2, 32, 32\)'),
    (torch.zeros(2, 3, 3, 32, 32), r'A tensor of shape \(3, 3, 32, 32\)'),
    (torch.zeros(3, 0, 32), 'shape'), (np.zeros(5, np.uint8), 'shape'), (torch.tensor(1.), 'shape'),
    (Image.new('RGB', (0, 5)), 'the image: .*no pixels: 0x5'),
])
def test_what_is_no_image_is_refused(classifier, form, message):
    with pytest.raises(ValueError, match=message): classifier.predict(form)
    if torch.is_tensor(form) and form.ndim == 3:
        with pytest.raises(ValueError): classifier.predict([torch.zeros(3, 32, 32), form])


@pytest.mark.parametrize('form', [None, 7, b'bytes', {'a': 1}, {'a'}, [[.5]], [None]])
def test_what_is_of_no_known_type_is_refused(classifier, form):
    with pytest.raises(TypeError, match='is no image: give a path, a PIL image, an array or a tensor'): classifier.predict(form)


def test_bs_must_be_positive(classifier):
    with pytest.raises(ValueError, match='bs .* at least 1, got 0'): classifier.predict([], bs=0)
    with pytest.raises(ValueError, match='bs .* at least 1, got -1'): list(classifier.iter_predictions([], bs=-1))


# ------------------------------------------------------------------------------------------- odd but legal images

def test_images_of_the_networks_size_are_not_touched():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    for form in (pixels, Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)):
        assert torch.equal(image_pixels(form)*255, torch.from_numpy(pixels).permute(2, 0, 1).float())


def shades(*values): return np.tile(np.array(values), (2, 1))

def transparent_palette():
    image = Image.fromarray(np.uint8(shades(0, 1, 2))).convert('P')
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    image.info['transparency'] = 0
    return image

white,red,blue = (255,)*3,(255, 0, 0),(0, 0, 255)
odd = {  # image, what it must become
    'bilevel': (Image.fromarray(shades(False, True)), [(0,)*3, white]),
    'gray': (Image.fromarray(np.uint8(shades(0, 100, 255))), [(0,)*3, (100,)*3, white]),
    'gray+alpha': (Image.fromarray(np.uint8(np.dstack([shades(0, 100, 7), shades(255, 255, 0)]))), [(0,)*3, (100,)*3, white]),
    'color+alpha': (Image.fromarray(np.uint8([[(255, 0, 0, 255), (0, 0, 0, 0), (0, 0, 0, 51)]]*2)), [red, white, (204,)*3]),
    'premultiplied': (Image.new('RGBA', (2, 2), red).convert('RGBa'), [red, red]),
    'premultiplied gray': (Image.new('LA', (2, 2), (9, 255)).convert('La'), [(9,)*3]*2),
    'palette': (transparent_palette().copy().convert('RGB').convert('P', palette=Image.Palette.ADAPTIVE), None),
    'transparent palette': (transparent_palette(), [white, red, blue]),
    '16-bit': (Image.fromarray(np.uint16(shades(0, 257*100, 65535))), [(0,)*3, (100,)*3, white]),
    '16-bit big-endian': (Image.frombytes('I;16B', (3, 2), shades(0, 257*100, 65535).astype('>u2').tobytes()), [(0,)*3, (100,)*3, white]),
    '32-bit of 16': (Image.fromarray(np.int32(shades(0, 257*100, 65535))), [(0,)*3, (100,)*3, white]),
    '32-bit of 8': (Image.fromarray(np.int32(shades(0, 100, 255))), [(0,)*3, (100,)*3, white]),
    '32-bit of any': (Image.fromarray(np.int32(shades(-10**6, 0, 10**6))), [(0,)*3, (128,)*3, white]),
    '32-bit of one': (Image.fromarray(np.int32(shades(-5, -5))), [(0,)*3, (0,)*3]),
    'floats to 1': (Image.fromarray(np.float32(shades(0, .4, 1))), [(0,)*3, (102,)*3, white]),
    'floats a little over 1': (Image.fromarray(np.float32(shades(-.013, .4, 1.026))), [(0,)*3, (102,)*3, white]),
    'floats to 255': (Image.fromarray(np.float32(shades(0, 100, 255))), [(0,)*3, (100,)*3, white]),
    'floats of any': (Image.fromarray(np.float32(shades(-1, 0, 1))), [(0,)*3, (128,)*3, white]),
    'CMYK': (Image.new('CMYK', (2, 2), (0, 255, 255, 0)), [red, red]),
    'YCbCr': (Image.new('YCbCr', (2, 2), (128, 128, 128)), [(128,)*3]*2),
    'HSV': (Image.new('HSV', (2, 2), (0, 255, 255)), [red, red]),
}

@pytest.mark.parametrize('kind', odd)
def test_odd_images_become_what_they_show(kind, classifier):
    image,wanted = odd[kind]
    before = (image.mode, image.tobytes())
    plain = plain_image(image)
    assert plain.mode == 'RGB' and plain_image(image, channels=1).mode == 'L'
    if wanted: assert [plain.getpixel((x, 0)) for x in range(plain.width)] == wanted
    assert isinstance(classifier.predict(image), Prediction)
    assert (image.mode, image.tobytes()) == before


formats = [('1', '.png'), ('L', '.png'), ('LA', '.png'), ('P', '.png'), ('RGBA', '.png'), ('I;16', '.png'), ('L', '.jpg'), ('CMYK', '.jpg'),
           ('F', '.tif'), ('I', '.tif'), ('I;16', '.tif'), ('CMYK', '.tif'), ('1', '.tif'), ('P', '.gif'), ('P', '.bmp'), ('RGBA', '.webp'), ('RGB', '.ppm'), ('RGB', '.tga')]

@pytest.mark.parametrize('mode,ending', formats)
def test_files_of_every_mode_show_the_same_picture(mode, ending, tmp_path):
    gray = picture(2, (40, 60), 'L')
    image = Image.fromarray(np.asarray(gray, np.uint16)*257) if mode == 'I;16' else gray.convert(mode)
    image.save(tmp_path/f'odd{ending}')
    found = np.asarray(read_image(tmp_path/f'odd{ending}', channels=1), float)
    assert found.shape == (40, 60)
    assert abs(found - np.asarray(gray, float)).mean() < (128 if mode == '1' else 8)
    assert found.std() > 20


@pytest.mark.parametrize('orientation', range(1, 9))
def test_photos_are_turned_upright(orientation, tmp_path):
    upright = picture(3, (48, 80))
    undo = {2: 'FLIP_LEFT_RIGHT', 3: 'ROTATE_180', 4: 'FLIP_TOP_BOTTOM', 5: 'TRANSPOSE', 6: 'ROTATE_90', 7: 'TRANSVERSE', 8: 'ROTATE_270'}
    stored = upright.transpose(Image.Transpose[undo[orientation]]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for ending,kwargs in (('.jpg', dict(quality=95)), ('.png', {}), ('.webp', dict(lossless=True))):
        stored.save(tmp_path/f'photo{ending}', exif=exif, **kwargs)
        found = read_image(tmp_path/f'photo{ending}')
        assert found.size == upright.size
        assert abs(np.asarray(found, float) - np.asarray(upright, float)).mean() < 4


@pytest.mark.parametrize('gray', [False, True])
@pytest.mark.parametrize('in_memory', [True, False])
def test_training_reads_files_as_a_classifier_does(in_memory, gray, tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    kinds = [(picture(2, (40, 40)).convert('RGB') if mode == 'RGB' else picture(2, (40, 40), 'L').convert(mode), ending, {}) for mode,ending in formats if mode != 'I;16' and ending != '.tga']
    kinds += [(Image.fromarray(np.asarray(picture(2, (40, 40), 'L'), np.uint16)*257), '.png', {}), (glass := picture(3, (40, 40), 'RGBA'), '.png', {}), (picture(4, (40, 40)), '.jpg', dict(exif=exif))]
    glass.putalpha(picture(5, (40, 40), 'L'))
    for folder in 'train/cat', 'train/dog', 'test/cat', 'test/dog':
        (tmp_path/folder).mkdir(parents=True)
        for i,(image,ending,options) in enumerate(kinds): image.save(tmp_path/folder/f'{i}{ending}', **options)
    dls = data.cifar10_dataloaders(tmp_path, bs=7, valid=.5, augment='none', stats=None, in_memory=in_memory, num_workers=0, gray=gray, device='cpu')
    for dl in dls.valid, data.test_dataloader(dls):
        batches = torch.cat([b[0].as_subclass(torch.Tensor) for b in dl])
        for x,file in zip(batches, dl.dataset.items, strict=True): assert torch.equal(x, image_pixels(file, (40, 40), 1 if gray else 3)), file
    assert len(batches) == 2*len(kinds)
    x, = (b[0].as_subclass(torch.Tensor) for b in dls.test_dl([image for image,_,_ in kinds], bs=len(kinds)))
    for pixels,(image,_,_) in zip(x, kinds, strict=True): assert torch.equal(pixels, image_pixels(image, (40, 40), 1 if gray else 3))


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize('exif', [b'Exif\0\0garbage', b'Exif\0\0II*\0\xff\xff\xff\xff', b'Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0'])
def test_damaged_exif_does_not_spoil_a_photo(exif, tmp_path):
    picture(4).save(file := tmp_path/'photo.jpg', exif=exif)
    assert np.array_equal(read_image(file), np.asarray(Image.open(file)))


@pytest.mark.parametrize('ending', ['.gif', '.webp', '.png'])
def test_of_an_animation_the_first_frame_counts(ending, tmp_path):
    frames = [Image.new('RGB', (32, 32), c) for c in (red, blue)]
    frames[0].save(file := tmp_path/f'film{ending}', save_all=True, append_images=frames[1:], **(dict(lossless=True) if ending == '.webp' else {}))
    assert Image.open(file).n_frames == 2
    assert read_image(file).getpixel((9, 9)) == red


def test_a_huge_jpeg_is_decoded_at_a_fraction(tmp_path, monkeypatch):
    monkeypatch.setattr(images, '_huge', 1_000_000)
    picture(5, (1000, 1400)).save(file := tmp_path/'photo.jpg', quality=95)
    assert read_image(file).size == (1400, 1000)
    assert read_image(file, (32, 32)).size == (700, 500)  # half is still more than 8 times of what is needed
    monkeypatch.undo()
    whole = image_pixels(file)
    monkeypatch.setattr(images, '_huge', 1_000_000)
    assert (image_pixels(file) - whole).abs().max() < .02


def test_sizes_that_pillow_warns_of_work_and_bombs_are_named(tmp_path, monkeypatch, classifier):
    picture(6, (100, 100)).save(file := tmp_path/'big.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 6000)
    with pytest.warns(Image.DecompressionBombWarning): assert classifier.predict(file)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4000)
    with pytest.raises(UnreadableImageError, match=r'big.png: is too large \(.*\). Make it smaller, or raise the limit: CIFAR_FASTAI_MAX_PIXELS'): classifier.predict(file)


# ------------------------------------------------------------------------------------------- unreadable files

def spoil(folder, kind):
    "Make something that is no whole image"
    file = folder/f'{kind}.png'
    if kind == 'empty': file.touch()
    if kind == 'text': file.write_text('not an image')
    if kind == 'folder': file.mkdir()
    if kind == 'zeros': file.write_bytes(bytes(5000))
    if kind == 'pipe': os.mkfifo(file)
    if kind == 'loop': file.symlink_to(file)
    if kind == 'nul': return folder/'a\0b.png'
    if kind == 'noise': file.write_bytes(b'\x89PNG\r\n\x1a\n' + random.Random(0).randbytes(2000))
    if kind.startswith('cut'):
        file = folder/f'cut.{kind[4:]}'
        picture(7, (90, 90)).save(file)
        file.write_bytes(file.read_bytes()[:len(file.read_bytes())//2])
    if kind == 'nan': Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(file := folder/'nan.tif')
    return file

reasons = dict(missing='no such file', empty=r'is empty \(0 bytes\)', text='is not an image', folder='is a folder', zeros='is not an image', noise='',
               pipe='is not a regular file', nul='no such file|null', cut_png='cannot be decoded', cut_jpg='cannot be decoded: .*truncated', cut_gif='',
               cut_webp='', cut_tif='', cut_bmp='cannot be decoded', nan='values that are no numbers')

@pytest.mark.parametrize('kind', reasons)
def test_unreadable_files_are_named_in_one_line(kind, tmp_path, classifier):
    file = spoil(tmp_path, kind)
    for form in (file, str(file), [file]):
        with pytest.raises(UnreadableImageError) as e: classifier.predict(form)
        assert isinstance(e.value, ValueError) and str(e.value).isprintable()
        assert str(e.value).startswith((str(file), repr(str(file)))) and str(e.value) == f'{e.value.name}: {e.value.reason}'
        assert e.match(reasons[kind])
    copied = pickle.loads(pickle.dumps(e.value))
    assert str(copied) == str(e.value) and copied.reason == e.value.reason


def test_a_link_to_itself_is_no_crash(tmp_path, classifier):
    with pytest.raises(UnreadableImageError): classifier.predict(spoil(tmp_path, 'loop'))


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() == 0, reason='root reads everything')
def test_a_file_that_may_not_be_read(tmp_path, classifier):
    picture().save(file := tmp_path/'secret.png')
    file.chmod(0)
    with pytest.raises(UnreadableImageError, match='Permission denied'): classifier.predict(file)


def test_a_name_with_a_line_break_stays_one_line(tmp_path, classifier):
    with pytest.raises(UnreadableImageError, match=r'two\\nlines.png'): classifier.predict(tmp_path/'two\nlines.png')


def test_a_pil_image_of_a_cut_file(tmp_path, classifier):
    file = spoil(tmp_path, 'cut_jpg')
    with Image.open(file) as image, pytest.raises(UnreadableImageError, match='cut.jpg: cannot be decoded: .*truncated'): classifier.predict(image)


@pytest.mark.parametrize('bs', [1, 3, 64])
def test_iter_predictions_goes_on(tmp_path, classifier, practice, bs):
    good = sources.test_files(practice)[:4]
    bad = [spoil(tmp_path, kind) for kind in ('missing', 'empty', 'text', 'folder', 'cut_jpg')]
    paths = [bad[0], good[0], bad[1], bad[2], bad[3], good[1], str(good[2]), good[3], bad[4]]
    found = list(classifier.iter_predictions(iter(paths), bs=bs))
    assert [p for p,_ in found] == paths
    for path,said in found: assert isinstance(said, UnreadableImageError if Path(path) in bad else Prediction)
    wanted = classifier.predict(good)
    assert [said.label for _,said in found if isinstance(said, Prediction)] == [w.label for w in wanted]
    close(torch.tensor([said.probability for _,said in found if isinstance(said, Prediction)]), torch.tensor([w.probability for w in wanted]))


def test_iter_predictions_is_lazy_and_takes_one_path(classifier, practice):
    file,asked = sources.test_files(practice)[0],[]
    def paths():
        for i in range(100):
            asked.append(i)
            yield file
    next(classifier.iter_predictions(paths(), bs=5))
    assert len(asked) == 15 # two batches are read ahead
    assert [p for p,_ in classifier.iter_predictions(str(file))] == [str(file)]
    assert list(classifier.iter_predictions([])) == []


# ------------------------------------------------------------------------------------------- the folder

def test_what_is_in_the_folder(saved, learn):
    names = sorted(p.name for p in saved.iterdir())
    assert len(names) == 2 and names[0] == 'classifier.json' and names[1].endswith('.safetensors')
    weights = (saved/names[1]).read_bytes()
    n = int.from_bytes(weights[:8], 'little')
    header = json.loads(weights[8:8+n])
    assert header.pop('__metadata__', {}).keys() <= {'format'} and header.keys() == learn.model.state_dict().keys()
    assert len(weights) == 8 + n + 4*sum(t.numel() for t in learn.model.state_dict().values())
    d = json.loads((saved/'classifier.json').read_text())
    assert Recipe.from_json(json.dumps(d['recipe'])) == tiny
    assert d['vocab'] == list(learn.dls.vocab) and (d['mean'], d['std']) == tuple(map(list, data.cifar10_stats))
    assert (d['image_size'], d['item_size'], d['channels'], d['variant'], d['weights']) == (32, [32, 32], 3, 'synthetic', names[1])
    assert {'python', 'torch', 'fastai', 'cifar_fastai'} <= d['versions'].keys()


def test_nothing_is_pickled(learn, practice, tmp_path, monkeypatch):
    def never(*args, **kwargs): raise AssertionError('pickle was used')
    for owner,name in ((pickle, 'load'), (pickle, 'loads'), (pickle, 'dump'), (pickle, 'dumps'), (torch, 'load'), (torch, 'save')): monkeypatch.setattr(owner, name, never)
    assert load_classifier(save_classifier(learn, tmp_path/'saved')).predict(sources.test_files(practice)[0])


@pytest.mark.slow
def test_a_fresh_process_without_data(saved, learn, classifier, practice, tmp_path):
    "No data set is looked for, no DataLoaders built, nothing written"
    home = tmp_path/'home'
    home.mkdir()
    shutil.copy(file := sources.test_files(practice)[11], tmp_path/'picture.png')
    code = '''if True:
        import json, sys
        from fastai.data.core import DataLoaders
        def never(*args, **kwargs): raise AssertionError('DataLoaders were built')
        DataLoaders.__init__ = never
        import cifar_fastai.data, cifar_fastai.sources
        cifar_fastai.data.find_data = cifar_fastai.sources.find_data = never
        from cifar_fastai.inference import load_classifier
        print(json.dumps([load_classifier(f, device='cpu').predict('picture.png').probabilities for f in sys.argv[1:]]))'''
    env = {k: v for k,v in os.environ.items() if k != 'CIFAR_FASTAI_DATA'} | dict(CIFAR_FASTAI_HOME=str(home), FASTAI_HOME=str(home))
    run = shutil.copytree(learn.run_dir, tmp_path/'run')
    change_json(run, data=read_json(run/'run.json')['data'] | dict(path=str(tmp_path/'gone')), name='run.json')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code, saved, run], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for found in json.loads(done.stdout): assert found == pytest.approx(classifier.predict(file).probabilities, abs=1e-6)
    assert [p for p in home.rglob('*') if p.is_file() and p.name != 'config.ini'] == []  # which fastai writes


def test_saving_again_gives_the_same_files(learn, saved, tmp_path):
    again = save_classifier(learn, tmp_path/'deep'/'down')
    assert again == tmp_path/'deep'/'down'
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in saved.iterdir()}


def other(learn):
    "The same learner with other weights"
    changed = create_learner(tiny, learn.dls)
    for p in changed.model.parameters(): p.data.mul_(1.5)
    return changed


def test_a_classifier_is_replaced_and_what_else_is_there_stays(learn, damaged, practice):
    (damaged/'README.md').write_text('mine')
    before = load_classifier(damaged, 'cpu')
    save_classifier(changed := other(learn), damaged)
    assert len(list(damaged.glob('*.safetensors'))) == 1 and (damaged/'README.md').read_text() == 'mine' and len(list(damaged.iterdir())) == 3
    files = sources.test_files(practice)
    close(load_classifier(damaged, 'cpu').probabilities(files), answers(changed, files))
    assert (before.probabilities(files) - load_classifier(damaged, 'cpu').probabilities(files)).abs().max() > 1e-3


@pytest.mark.parametrize('when', [0, 1])
def test_replacing_is_whole_or_not_at_all(when, learn, damaged, saved, practice, monkeypatch):
    "The disk is full at the weights, or at the JSON"
    write,written = inference.Path.write_bytes,[]
    def full(self, content):
        written.append(self)
        if len(written) <= when: return write(self, content)
        write(self, content[:10])
        raise OSError(errno.ENOSPC, 'No space left on device', str(self))
    monkeypatch.setattr(inference.Path, 'write_bytes', full)
    with pytest.raises(OSError, match='No space left'): save_classifier(other(learn), damaged)
    monkeypatch.undo()
    files = sources.test_files(practice)
    assert torch.equal(load_classifier(damaged, 'cpu').probabilities(files), load_classifier(saved, 'cpu').probabilities(files))
    assert not list(damaged.glob('*.part')) + list(damaged.glob('.*'))
    save_classifier(other(learn), damaged)
    assert len(list(damaged.iterdir())) == 2


def test_an_interrupted_first_save_is_no_obstacle(learn, tmp_path):
    (tmp_path/'model-00000000.safetensors').write_bytes(b'half')
    (tmp_path/'.classifier.json-1.part').write_bytes(b'half')
    save_classifier(learn, tmp_path)
    assert load_classifier(tmp_path) and len(list(tmp_path.glob('model-*'))) == 1


@pytest.mark.parametrize('name,content', [('notes.txt', 'mine'), ('classifier.json', '{"mine": 1}'), ('classifier.json', 'damaged'), ('model.safetensors', 'mine')])
def test_other_folders_are_not_written(learn, tmp_path, name, content):
    (tmp_path/name).write_text(content)
    with pytest.raises(FileExistsError, match='is not a classifier folder. Nothing was written'): save_classifier(learn, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path/name).read_text() == content


def test_a_run_folder_or_a_file_is_not_written(learn, tmp_path):
    before = sorted(learn.run_dir.iterdir())
    with pytest.raises(FileExistsError): save_classifier(learn, learn.run_dir)
    assert sorted(learn.run_dir.iterdir()) == before
    (file := tmp_path/'file').write_text('')
    with pytest.raises(FileExistsError): save_classifier(learn, file)
    with pytest.raises(OSError): save_classifier(learn, file/'below')


# ------------------------------------------------------------------------------------------- what cannot be saved

def test_only_learners_with_a_recipe_are_saved(learn, tmp_path):
    with pytest.raises(TypeError, match='needs a fastai Learner, got Linear'): save_classifier(torch.nn.Linear(1, 1), tmp_path/'a')
    bare = Learner(learn.dls, learn.model, loss_func=learn.loss_func)
    with pytest.raises(ValueError, match='has no recipe'): save_classifier(bare, tmp_path/'a')
    assert not (tmp_path/'a').exists()


def test_another_network_than_the_recipes_is_not_saved(learn, tmp_path):
    strange = create_learner(tiny, learn.dls, model=create_model('ladder_2'))
    with pytest.raises(ValueError, match="does not hold the weights of 'ladder_0'"): save_classifier(strange, tmp_path/'a')
    twin = create_learner(tiny, learn.dls, model=torch.nn.Sequential())  # same names and shapes, another function
    twin.model.add_module('body', copy.deepcopy(learn.model.body))
    twin.model.add_module('head', copy.deepcopy(learn.model.head))
    twin.model.add_module('sharpen', torch.nn.Tanh())
    with pytest.raises(ValueError, match='would predict differently'): save_classifier(twin, tmp_path/'a')
    assert not (tmp_path/'a').exists()


def test_transforms_of_another_kind_are_not_saved(practice, tmp_path):
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, item_tfms=Resize(32))
    learn = create_learner(tiny, block.dataloaders(practice, bs=8, num_workers=0, device='cpu'))
    with pytest.raises(ValueError, match='go through Resize'): save_classifier(learn, tmp_path/'a')
    class Darken(inference.FixedSize.__mro__[1]):
        order = 200
        def encodes(self, x: data.TensorImage): return x/2
    block = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, batch_tfms=Darken())
    learn = create_learner(tiny, block.dataloaders(practice, bs=8, num_workers=0, device='cpu'))
    with pytest.raises(ValueError, match='would predict differently'): save_classifier(learn, tmp_path/'a')


def test_weights_that_diverged_are_not_saved(learn, tmp_path):
    (changed := other(learn)).model.head[-1].bias.data[3] = float('nan')
    with pytest.raises(ValueError, match='head.* has NaN or infinite values. The training diverged'): save_classifier(changed, tmp_path/'a')


def test_saving_and_loading_leave_the_program_as_it_was(learn, tmp_path, saved):
    learn.model.train()
    learn.model.body.eval()
    modes,weights = [m.training for m in learn.model.modules()],copy.deepcopy(learn.model.state_dict())
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    wanted = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    save_classifier(learn, tmp_path/'saved')
    load_classifier(saved)
    assert (torch.rand(1), np.random.rand(), random.random()) == wanted
    assert modes == [m.training for m in learn.model.modules()] and all(torch.equal(v, weights[k]) for k,v in learn.model.state_dict().items())
    assert all(p.requires_grad for p in learn.model.parameters()) and torch.is_grad_enabled()


# ------------------------------------------------------------------------------------------- damaged and foreign folders

def change_json(folder, name='classifier.json', **changes):
    "Change entries of a JSON file; None removes one"
    d = read_json(folder/name) | changes
    write_json(folder/name, {k: v for k,v in d.items() if v is not None})


def change_weights(folder, change):
    "Change the tensors of a classifier, with the right checksum"
    file, = folder.glob('*.safetensors')
    save_file(change(load_file(file)), file)
    change_json(folder, sha256=inference.hashlib.sha256(file.read_bytes()).hexdigest())


def with_recipe(folder, **changes): change_json(folder, recipe=json.loads((folder/'classifier.json').read_text())['recipe'] | changes)

def weights_of(folder): return next(folder.glob('*.safetensors'))

damages = {
    'json broken': (lambda f: (f/'classifier.json').write_text('{"format": '), ValueError, 'classifier.json is damaged'),
    'json empty': (lambda f: (f/'classifier.json').write_text(''), ValueError, 'classifier.json is damaged'),
    'json binary': (lambda f: (f/'classifier.json').write_bytes(bytes(range(256))), ValueError, 'classifier.json is damaged'),
    'json a list': (lambda f: (f/'classifier.json').write_text('[1]'), ValueError, 'damaged: .* of type list'),
    'json of something else': (lambda f: (f/'classifier.json').write_text('{"model_type": "bert"}'), ValueError, 'was not written by save_classifier'),
    'json newer': (lambda f: change_json(f, format_version=2), ValueError, r'newer cifar_fastai \(format 2; this one reads 1\). Upgrade'),
    'json missing': (lambda f: (f/'classifier.json').unlink(), FileNotFoundError, 'is not a classifier or run folder: it has no classifier.json'),
    'all missing': (lambda f: [p.unlink() for p in f.iterdir()], FileNotFoundError, 'is not a classifier'),
    'no vocab': (lambda f: change_json(f, vocab=None), ValueError, "lacks 'vocab'"),
    'no recipe': (lambda f: change_json(f, recipe=None), ValueError, "lacks 'recipe'"),
    'no weights named': (lambda f: change_json(f, weights=None), ValueError, "lacks 'weights'"),
    'recipe newer': (lambda f: with_recipe(f, mixup=.2), ValueError, "mixup"),
    'recipe not one': (lambda f: change_json(f, recipe=[1]), ValueError, 'damaged or was not written by cifar_fastai'),
    'unknown network': (lambda f: with_recipe(f, model='mine'), ValueError, "Unknown model 'mine'.*register"),
    'vocab short': (lambda f: change_json(f, vocab=list('abc')), ValueError, r'for 3 classes.*should be \(3, 32\) and is \(10, 32\)'),
    'vocab doubled': (lambda f: change_json(f, vocab=['a']*10), ValueError, 'different names'),
    'vocab of numbers': (lambda f: change_json(f, vocab=list(range(10))), ValueError, 'different names'),
    'vocab empty': (lambda f: change_json(f, vocab=[]), ValueError, 'different names'),
    'std zero': (lambda f: change_json(f, std=[1, 1, 0]), ValueError, 'std above 0'),
    'mean short': (lambda f: change_json(f, mean=[.5]), ValueError, 'one number for each of 3 channels'),
    'mean in words': (lambda f: change_json(f, mean=['a', 'b', 'c']), ValueError, 'one number for each of 3 channels'),
    'mean nan': (lambda f: (f/'classifier.json').write_text((f/'classifier.json').read_text().replace('"mean": [', '"mean": [NaN,')), ValueError, 'NaN is not a finite number'),
    'image of 8000 pixels': (lambda f: change_json(f, image_size=8000), ValueError, 'at most 4096 pixels a side'),
    'channels': (lambda f: change_json(f, channels=1, mean=[.5], std=[.5]), ValueError, '1 channels.*should be'),
    'size': (lambda f: change_json(f, image_size=0), ValueError, 'whole numbers'),
    'other size': (lambda f: change_json(f, image_size=64), ValueError, '64x64 pixels.*should be'),
    'item size': (lambda f: change_json(f, item_size=[32]), ValueError, 'whole numbers'),
    'weights missing': (lambda f: weights_of(f).unlink(), FileNotFoundError, 'does not exist'),
    'weights empty': (lambda f: weights_of(f).write_bytes(b''), ValueError, 'checksum'),
    'weights cut': (lambda f: os.truncate(weights_of(f), 1000), ValueError, 'safetensors is damaged .*checksum'),
    'weights flipped': (lambda f: weights_of(f).write_bytes(weights_of(f).read_bytes()[:-1] + b'?'), ValueError, 'checksum'),
    'weights elsewhere': (lambda f: change_json(f, weights='../x.safetensors'), ValueError, "without a folder, got '../x.safetensors'"),
    'weights of another network': (lambda f: change_weights(f, lambda s: create_model('ladder_2').state_dict()), ValueError, "does not hold the weights of 'ladder_0'"),
    'weights too few': (lambda f: change_weights(f, lambda s: dict(list(s.items())[1:])), ValueError, 'is missing'),
    'weights too many': (lambda f: change_weights(f, lambda s: s | dict(extra=torch.zeros(1))), ValueError, 'extra is not part of the network'),
    'weights nan': (lambda f: change_weights(f, lambda s: {k: v*float('nan') for k,v in s.items()}), ValueError, 'The training diverged'),
}

def test_a_network_whose_numbers_overflow_predicts_nothing(damaged):
    change_weights(damaged, lambda s: {k: v*1e30 if v.is_floating_point() else v for k,v in s.items()})
    classifier = load_classifier(damaged, 'cpu')
    for predict in classifier.predict, classifier.probabilities, lambda image: list(classifier.iter_predictions([image])):
        with pytest.raises(ValueError, match='NaN or infinite.*the training diverged'): predict(picture())

@pytest.mark.parametrize('damage', damages)
def test_damaged_folders_are_named_in_one_line(damage, damaged):
    spoil,kind,message = damages[damage]
    spoil(damaged)
    with pytest.raises(kind, match=message) as e: load_classifier(damaged)
    assert str(damaged) in str(e.value) and '\n' not in str(e.value)


@pytest.mark.parametrize('folder', ['run', 'classifier'])
def test_mutated_folders_answer_rightly_or_not_at_all(folder, learn, saved, classifier, practice, tmp_path):
    "Flipped bits and cut files, each of 200 in one file of the folder"
    folder = shutil.copytree(learn.run_dir if folder == 'run' else saved, tmp_path/folder)
    picture = sources.test_files(practice)[0]
    right,dice,refused = classifier.predict(picture),Random(0),0
    files = sorted(f for f in folder.iterdir() if f.name in ('run.json', 'recipe.json', 'classifier.json') or f.suffix == '.safetensors')
    for k in range(200):
        file = files[k % len(files)]
        content = file.read_bytes()
        data = bytearray(content)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        if k % 5 == 0: del data[dice.randrange(len(data)):]
        file.write_bytes(data)
        try: found = load_classifier(folder, device='cpu').predict(picture)
        except (ValueError, FileNotFoundError) as e:
            assert str(folder) in str(e)
            refused += 1
        else: assert (found.label, found.probabilities) == (right.label, right.probabilities), (file, bytes(data))
        file.write_bytes(content)
    assert refused > 190


run_damages = {
    'recipe missing': (lambda f: (f/'recipe.json').unlink(), FileNotFoundError, 'not a run folder: it has no recipe.json'),
    'recipe broken': (lambda f: (f/'recipe.json').write_text('{'), ValueError, 'recipe.json is damaged'),
    'recipe foreign': (lambda f: (f/'recipe.json').write_text('{"a": 1}'), ValueError, 'recipe.json is damaged or not the file that this run wrote'),
    'run broken': (lambda f: (f/'run.json').write_text('{'), ValueError, 'run.json is damaged'),
    'run foreign': (lambda f: (f/'run.json').write_text('{"id": 1}'), ValueError, "run.json is damaged: it lacks 'data'"),
    'run missing': (lambda f: (f/'run.json').unlink(), FileNotFoundError, 'is not a classifier'),
    'weights missing': (lambda f: (f/'model.safetensors').unlink(), FileNotFoundError, 'model.safetensors is not there'),
    'weights cut': (lambda f: os.truncate(f/'model.safetensors', 1000), ValueError, 'model.safetensors is damaged .*checksum'),
    'weights pickled': (lambda f: (f/'model.safetensors').write_bytes(pickle.dumps(dict(a=1))), ValueError, 'checksum'),
}

@pytest.mark.parametrize('damage', run_damages)
def test_damaged_runs_are_named_in_one_line(damage, learn, tmp_path):
    spoil,kind,message = run_damages[damage]
    spoil(run := shutil.copytree(learn.run_dir, tmp_path/'run'))
    with pytest.raises(kind, match=message) as e: load_classifier(run)
    assert str(run) in str(e.value) and '\n' not in str(e.value)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match='No such folder: .*nowhere'): load_classifier(tmp_path/'nowhere')
    (file := tmp_path/'file').write_text('')
    with pytest.raises(NotADirectoryError, match='is a file. Pass a folder'): load_classifier(file)


# ------------------------------------------------------------------------------------------- devices and threads

@pytest.mark.parametrize('device', ['gpu', 'cuda:99', 7.5])
def test_devices_that_are_not_there(saved, device):
    with pytest.raises(ValueError, match="is not available here .*'cpu' always is"): load_classifier(saved, device=device)


def test_device_is_kept(saved):
    for device in ('cpu', torch.device('cpu')): assert load_classifier(saved, device=device).device == torch.device('cpu')


def test_the_network_is_for_answers_only(classifier):
    assert not any(m.training for m in classifier.model.modules()) and not any(p.requires_grad for p in classifier.model.parameters())
    probs = classifier.probabilities(picture())
    assert not probs.requires_grad and not probs.is_inference()


def test_files_are_read_ahead_but_not_all(classifier, practice, monkeypatch):
    "In order, however long each takes, and no more of them than two batches ahead"
    files = sources.test_files(practice)
    asked = []
    def paths():
        for n in range(100):
            asked.append(n)
            yield files[n % len(files)] if n % 7 else f'missing-{n}.png'
    before = inference._pixels
    def slow(classifier, path):
        time.sleep(.02*(str(path)[-5] in '13579'))
        return before(classifier, path)
    monkeypatch.setattr(inference, '_pixels', slow)
    predictions = classifier.iter_predictions(paths(), bs=4)
    wanted = classifier.predict(files)
    for n,(path,said) in zip(range(60), predictions):
        assert len(asked) <= n + 3*4 + 1
        if n % 7: assert path == files[n % len(files)] and said.label == wanted[n % len(files)].label
        else: assert isinstance(said, UnreadableImageError) and f'missing-{n}.png' in str(said)
    predictions.close() # and the rest is not read


def test_threads_may_ask_at_once(classifier, practice):
    files = sources.test_files(practice)
    wanted = [classifier.predict(f) for f in files]
    with ThreadPoolExecutor(4) as pool: found = list(pool.map(classifier.predict, files))
    assert [f.label for f in found] == [w.label for w in wanted]
    assert [f.probability for f in found] == pytest.approx([w.probability for w in wanted], abs=1e-6)


def test_networks_of_ones_own(practice, tmp_path, monkeypatch):
    monkeypatch.setattr('cifar_fastai.models._models', copy.copy(create_model.__globals__['_models']))
    @register_model
    def my_linear(n_out=10, in_channels=3, image_size=32): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(in_channels*image_size**2, n_out))
    dls = data.cifar10_dataloaders(practice, bs=32, num_workers=0, device='cpu')
    learn = create_learner(tiny.change(model='my_linear'), dls)
    files = sources.test_files(practice)[:8]
    close(load_classifier(save_classifier(learn, tmp_path/'mine'), 'cpu').probabilities(files), answers(learn, files))


@pytest.mark.cuda
def test_on_a_gpu(saved, classifier, practice):
    files = sources.test_files(practice)
    gpu = load_classifier(saved, device='cuda')
    torch.testing.assert_close(gpu.probabilities(files), classifier.probabilities(files), rtol=0, atol=1e-3)
    assert gpu.predict(files[0]).label == classifier.predict(files[0]).label


def test_floats_with_transparency_lie_on_white_too():
    a = np.full((32, 32, 4), (1, 0, 0, .2), np.float32)
    for x in (a, np.uint8(a*255 + .5)):
        assert (image_pixels(x) - torch.tensor([1, .8, .8])[:, None, None]).abs().max() < .005


@pytest.mark.parametrize('color, gray', [((1, 0, 0), .299), ((0, 1, 0), .587), ((0, 0, 1), .114)])
def test_floats_become_gray_as_images_do(color, gray):
    a = np.full((32, 32, 3), color, np.float32)
    for x in (a, np.uint8(a*255)): assert (image_pixels(x, channels=1) - gray).abs().max() < .005


@pytest.mark.parametrize('channels', [1, 3])
def test_cielab(channels, tmp_path):
    Image.merge('LAB', [Image.new('L', (8, 8), v) for v in (128, 128, 128)]).save(tmp_path/'lab.tif')
    image = read_image(tmp_path/'lab.tif', channels=channels)
    assert image.mode == ('L' if channels == 1 else 'RGB') and 100 < np.asarray(image).mean() < 140


@pytest.mark.parametrize('k', [0, -1])
def test_top_of_no_classes(k):
    with pytest.raises(ValueError, match=f'at least 1, got {k}'): Prediction('cat', .9, dict(cat=.9, dog=.1)).top(k)


def test_tilde_is_the_home_directory(saved, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    shutil.copytree(saved, tmp_path/'mine')
    picture().save(tmp_path/'a.png')
    classifier = load_classifier('~/mine', device='cpu')
    assert classifier.predict('~/a.png') == classifier.predict(tmp_path/'a.png')
