"Small data sets that tests write: folders, archives, the authors' batch files."
import hashlib
import io
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image



def picture(seed=0, size=(32, 32), mode='RGB'):
    "Random pixels as a PIL image; `size` is height and width"
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def tiny_set(folder, n_train=4, n_test=2, classes=('cat', 'dog'), ending='.png', **kwargs):
    "Write a data set of random images"
    for split, n in (('train', n_train), ('test', n_test)):
        for k, c in enumerate(classes):
            (folder/split/c).mkdir(parents=True)
            for i in range(n): picture(100*k + i, **kwargs).save(folder/split/c/f'{i:04}{ending}')
    return folder


def tgz(file, members, mode='w:gz'):
    "Write a tar of (name or TarInfo, content)"
    with tarfile.open(file, mode) as tar:
        for member, content in members:
            member = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            if member.isfile(): member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file


def special(kind, name='train/cat/link.png', target='/etc/passwd'):
    "A tar member that is no file"
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def pack(folder, kind):
    "Put a folder in an archive beside it"
    return Path(shutil.make_archive(folder.parent/f'{folder.name}-{kind}', kind, folder.parent, folder.name))


def tiny_batches(folder, n=3):
    "Write cifar-10-batches-py with two classes; returns the md5s"
    folder.mkdir(parents=True)
    content = {'batches.meta': dict(label_names=['cat', 'dog'])}
    for i, name in enumerate(('data_batch_1', 'data_batch_2', 'test_batch')):
        pixels = np.random.default_rng(i).integers(0, 256, (n, 3072), dtype=np.uint8)
        content[name] = dict(data=pixels, labels=[(i + j) % 2 for j in range(n)])
    for name, c in content.items(): (folder/name).write_bytes(pickle.dumps(c, protocol=4))
    return {name: hashlib.md5((folder/name).read_bytes()).hexdigest() for name in content}


def names(files): return sorted('/'.join(f.parts[-3:]) for f in files)


def leftovers(cache): return [p for p in (cache/'.unfinished').glob('*') if p.is_dir()] if cache.exists() else []
