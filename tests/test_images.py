"Pixel values that images of unusual kinds are read with."
import io
import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile, TiffImagePlugin, features

from cifar_fastai.cli import main
from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.images import ColorImage, GrayImage, UnreadableImageError, bit_depth, image_pixels, plain_image, read_image, read_size
from cifar_fastai.sources import describe_data, fingerprint
from small_sets import tiny_set


def gray(file): return np.asarray(read_image(file, channels=1)).tolist()


def deep(*values, dtype=np.uint16): return Image.fromarray(np.array([values], dtype))


# --- values of 10, 12 and 14 bits

@pytest.mark.parametrize('ending', ['.png', '.tif'])
@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
def test_bits_in_use_are_scaled_to_the_whole_range(tmp_path, bits, ending):
    white = 2**bits - 1
    deep(0, white//4, white//2, white).save(file := tmp_path/f'deep{ending}')
    assert gray(file) == [[0, round(white//4*255/white), round(white//2*255/white), 255]]
    assert (image_pixels(file, (1, 4), 1)*255).round().flatten().tolist() == gray(file)[0]
    assert bit_depth(file) == bits


@pytest.mark.parametrize('dtype', [np.int32, np.float32])
@pytest.mark.parametrize('bits', [10, 12, 14])
def test_bits_in_files_of_32_bits(tmp_path, bits, dtype):
    deep(0, 2**(bits - 1), 2**bits - 1, dtype=dtype).save(file := tmp_path/'deep.tif')
    assert gray(file) == [[0, 128, 255]] and bit_depth(file) is None


def test_a_value_above_a_depth_needs_the_next():
    assert np.asarray(plain_image(deep(0, 4096), 1)).tolist() == [[0, 64]]
    assert np.asarray(plain_image(deep(0, 16384), 1)).tolist() == [[0, 64]]


@pytest.mark.parametrize('most, want', [(None, 249), (4095, 249), (16383, 62), (65535, 16)])
def test_a_tiff_that_names_its_largest_value_is_believed(tmp_path, most, want):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if most:
        tags[281] = most
        tags.tagtype[281] = 3
    deep(0, 4000).save(file := tmp_path/'deep.tif', tiffinfo=tags)
    assert gray(file) == [[0, want]]


def test_a_tiff_of_12_bits_a_value(tmp_path):
    "Two values of 12 bits in three bytes; as dark as 10 bits, which the file denies"
    packed = bytes([0x0, 0x10, 0x0, 0x20, 0x03, 0x0])  # 1, 0, 512, 768
    header = [(256, 4, 1, 4), (257, 4, 1, 1), (258, 3, 1, 12), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 6)]
    entries = b''.join(tag.to_bytes(2, 'little') + kind.to_bytes(2, 'little') + n.to_bytes(4, 'little') + value.to_bytes(4, 'little') for tag,kind,n,value in header)
    content = b'II*\0' + (14).to_bytes(4, 'little') + packed + len(header).to_bytes(2, 'little') + entries + bytes(4)
    (file := tmp_path/'twelve.tif').write_bytes(content)
    with Image.open(file) as image: values = np.asarray(image)[0]
    assert values.max() < 1024 and bit_depth(file) == 12
    assert gray(file) == [np.round(values*(255/4095)).tolist()]


@pytest.mark.parametrize('white', [1023, 4095, 65535])
def test_what_pillow_has_scaled_is_not_scaled_again(white):
    "A portable graymap names its white"
    content = b'P5 3 1 %d\n' % white + np.array([0, white//20, white//10], '>u2').tobytes()
    with Image.open(io.BytesIO(content)) as image: assert np.asarray(plain_image(image, 1)).tolist() == [[0, 13, 25]]


@pytest.mark.parametrize('verify', [False, True])
def test_depths_that_differ_are_told(tmp_path, verify, recwarn):
    folder = tiny_set(tmp_path/'set', n_train=70)
    files = sorted((folder/'train').rglob('*.png'))
    for f in files: Image.fromarray(np.full((32, 32), 4000, np.uint16)).save(f)
    describe_data(folder, verify)
    assert not [w for w in recwarn if 'depths' in str(w.message)]
    Image.fromarray(np.full((32, 32), 900, np.uint16)).save(files[0])
    told = r'different depths: 10 bits \(1 of 1?\d\d\), 12 bits \(\d+ of 1?\d\d\). .* convert all to 8 bits with one scale'
    with pytest.warns(UserWarning, match=told): describe_data(folder, verify)


# --- photos of phones

def colors(file): return [read_image(file).getpixel(p) for p in ((8, 8), (40, 8), (8, 40))]


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path):
    "Upright, and under a wrong ending too"
    pillow_heif = pytest.importorskip('pillow_heif')
    photo = Image.new('RGB', (64, 48), 'red')
    photo.paste('blue', (0, 0, 32, 24))
    stored = pillow_heif.from_pillow(photo)
    stored.save(tmp_path/'a.heic', quality=95)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored.info['exif'] = exif.tobytes()
    stored.save(tmp_path/'b.heic', quality=95)
    shutil.copy(tmp_path/'a.heic', tmp_path/'c.jpg')
    red, blue = (254, 0, 0), (0, 0, 254)
    for name, size, shown in ('a.heic', (64, 48), [blue, red, red]), ('b.heic', (48, 64), [red, blue, red]), ('c.jpg', (64, 48), [blue, red, red]):
        assert read_image(tmp_path/name).size == size and read_size(tmp_path/name) == size[::-1]
        assert np.abs(np.subtract(colors(tmp_path/name), shown)).max() < 4
    folder = tiny_set(tmp_path/'set')
    for f in list(folder.rglob('*.png')): shutil.copy(tmp_path/'a.heic', f.with_suffix('.HEIC'))
    info = describe_data(folder, verify=True)
    assert (info.n_train, info.n_test, info.unreadable) == (16, 8, ())


@pytest.fixture
def heic(tmp_path, monkeypatch):
    "The first bytes of a photo of a phone, on a machine without pillow-heif"
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    (file := tmp_path/'photo.heic').write_bytes(b'\0\0\0\x18ftypheic\0\0\0\0mif1heic' + bytes(1000))
    return file


def test_heic_without_pillow_heif_says_what_to_install(heic, tmp_path, capsys):
    what = r'HEIC needs the package pillow-heif: `pip install .cifar_fastai\[heic\] @ git\+https://github.com/cifar-fastai/cifar_fastai.`'
    with pytest.raises(UnreadableImageError, match=what): read_image(heic)
    with pytest.raises(ValueError, match=what): ColorImage.create(heic)
    with pytest.raises(OSError, match=what): Image.open(heic)
    folder = tiny_set(tmp_path/'set')
    shutil.copy(heic, folder/'train'/'cat')
    with pytest.raises(ValueError, match=what): cifar10_dataloaders(folder, valid=2)
    for options in [], ['--verify']:
        assert main(['data', str(folder), *options]) == 1
        assert re.search(what, capsys.readouterr().err)


@pytest.mark.parametrize('ending', ['.avif', '.webp'])
def test_pillow_reads_the_other_formats_of_phones_and_browsers(tmp_path, ending, monkeypatch):
    if not features.check(ending[1:]): pytest.skip(f'this Pillow was built without {ending[1:]}')
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)
    Image.new('RGB', (64, 48), 'red').save(file := tmp_path/f'photo{ending}')
    assert np.abs(np.subtract(colors(file), (255, 0, 0))).max() < 4
    if ending == '.avif':
        file.write_bytes(file.read_bytes().replace(b'ftypavif', b'ftypmif1'))  # the brand of the container, which HEIC has too
        assert np.abs(np.subtract(colors(file), (255, 0, 0))).max() < 4


# --- what is opened at all

finish = 20  # seconds


def in_time(f, *args):
    "What `f` returns or raises; a thread that waits for a pipe is left behind"
    pool = ThreadPoolExecutor(1)
    try: return pool.submit(f, *args).result(finish)
    finally: pool.shutdown(wait=False)


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(file := tmp_path/'pipe.png')
    yield file
    with suppress(OSError): os.close(os.open(file, os.O_WRONLY | os.O_NONBLOCK))  # lets go whoever waits


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='named pipes')
def test_a_pipe_is_not_waited_for(pipe):
    assert in_time(read_size, pipe) is None and in_time(bit_depth, pipe) is None
    for f in (read_image, ColorImage.create):
        with pytest.raises(ValueError, match='pipe.png.*is not a regular file'): in_time(f, pipe)
    assert len(in_time(fingerprint, [pipe])) == 16


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='named pipes')
def test_a_pipe_in_a_data_set_is_named(tmp_path):
    folder = tiny_set(tmp_path/'set')
    pipe = folder/'train'/'cat'/'zz.png'
    os.mkfifo(pipe)
    assert in_time(describe_data, folder).unreadable == (pipe,)
    with pytest.raises(ValueError, match='zz.png cannot be read as an image .is not a regular file'): in_time(cifar10_dataloaders, folder)


@pytest.mark.parametrize('cls', [ColorImage, GrayImage])
@pytest.mark.parametrize('kind', ['turned', 'transparent', '16 bits'])
def test_the_content_of_a_file_gives_what_the_file_gives(tmp_path, cls, kind):
    file, image = tmp_path/f'a.{"jpg" if kind == "turned" else "png"}', Image.linear_gradient('L').resize((9, 6))
    exif = Image.Exif()
    exif[0x0112] = 6
    if kind == 'turned': image.convert('RGB').save(file, exif=exif)
    elif kind == 'transparent': Image.merge('RGBA', [image]*4).save(file)
    else: Image.fromarray(np.arange(54, dtype=np.uint16).reshape(6, 9)*1000).save(file)
    assert np.array_equal(cls.create(file.read_bytes()), cls.create(file))


def test_arrays_and_bytes_that_are_no_plain_images():
    assert ColorImage.create(np.zeros((4, 4, 4), np.uint8)).mode == 'RGB'
    with pytest.raises(ValueError, match='^This bytes cannot be read'): ColorImage.create(b'no image')


def test_postscript_starts_no_program(tmp_path, monkeypatch):
    (tmp_path/'e.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n')
    def start(*args, **kwargs): raise AssertionError('a program was started')
    monkeypatch.setattr(EpsImagePlugin, 'Ghostscript', start)
    with pytest.raises(UnreadableImageError, match='is not an image'): read_image(tmp_path/'e.png')
    assert read_size(tmp_path/'e.png') is None
    with pytest.raises(ValueError, match='is not an image'): ColorImage.create(tmp_path/'e.png')


def test_a_name_does_not_decide_the_format(tmp_path):
    for kind in ('JPEG', 'GIF', 'WEBP', 'TIFF', 'BMP'):
        Image.new('RGB', (6, 4), 'red').save(tmp_path/'x.png', kind)
        assert read_size(tmp_path/'x.png') == (4, 6)


def test_the_limit_on_pixels_is_a_setting(tmp_path, monkeypatch):
    Image.new('L', (30, 20)).save(file := tmp_path/'large.png')
    monkeypatch.setenv('CIFAR_FASTAI_MAX_PIXELS', '599')
    with pytest.raises(UnreadableImageError, match='30x20 = 600 pixels, the limit is 599.*CIFAR_FASTAI_MAX_PIXELS'): read_image(file)
    with pytest.raises(ValueError, match='600 pixels'): ColorImage.create(file)
    assert read_size(file) is None
    monkeypatch.setenv('CIFAR_FASTAI_MAX_PIXELS', '600')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)  # Pillow's own goes up with ours
    assert read_image(file).size == (30, 20) and read_size(file) == (20, 30)
    monkeypatch.setenv('CIFAR_FASTAI_MAX_PIXELS', '1e9')
    with pytest.raises(ValueError, match="CIFAR_FASTAI_MAX_PIXELS is '1e9': use a whole number"): read_image(file)


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new('1', (8193, 8192)).save(file := tmp_path/'bomb.png')
    def load(*args): raise AssertionError('it is decoded')
    monkeypatch.setattr(ImageFile.ImageFile, 'load', load)
    with pytest.raises(UnreadableImageError, match='is too large'): read_image(file)


def test_a_jpeg_counts_as_it_is_decoded(tmp_path, monkeypatch):
    Image.new('L', (5000, 4000)).save(file := tmp_path/'photo.jpg')
    monkeypatch.setenv('CIFAR_FASTAI_MAX_PIXELS', '1000000')
    assert read_image(file, (32, 32)).width < 1000
    with pytest.raises(UnreadableImageError, match='is too large'): read_image(file)


def test_verifying_and_training_agree_on_what_can_be_read(tmp_path):
    folder = tiny_set(tmp_path/'set')
    bad = folder/'train'/'cat'/'n.tiff'
    Image.fromarray(np.full((32, 32), np.nan, np.float32)).save(bad)
    assert describe_data(folder, verify=True).unreadable == (bad,)
    with pytest.raises(ValueError, match='n.tiff.*no numbers'): ColorImage.create(bad)
