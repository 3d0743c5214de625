"Archives from strangers: whatever is wrong with one is said in a line, and nothing of it stays."
import errno
import gzip
import os
import random
import shutil
import struct
import tarfile
import zipfile
from io import BytesIO
from pathlib import Path, PurePosixPath

import pytest

from cifar_fastai import archives
from cifar_fastai.archives import unpack_archive
from small_sets import pack, special, tgz, tiny_set

posix = pytest.mark.skipif(os.name != 'posix', reason='named pipes, or names that other systems do not allow')


def refused(file, text, member=None):
    "Unpacking fails with a one-line error that names the archive, and the member; and leaves nothing behind"
    before = sorted(file.parent.iterdir())
    with pytest.raises(ValueError, match=text) as e: unpack_archive(file, file.parent/'to')
    message = str(e.value)
    assert message.startswith(str(file)) and '\n' not in message and message.endswith('.') and len(message) < 600
    if member is not None: assert repr(member) in message
    assert sorted(file.parent.iterdir()) == before
    return message


def contents(folder): return {str(p.relative_to(folder)): p.is_file() and p.read_bytes() for p in Path(folder).rglob('*')}


def header(name, size, kind=b'0', mtime=b''):
    "A tar header, checksum included; `size` and `mtime` are its bytes"
    h = bytearray(512)
    for start, field in {0: name, 100: b'0000644', 124: size, 136: mtime, 148: b' ' * 8, 156: kind, 257: b'ustar\x0000'}.items():
        h[start:start+len(field)] = field
    h[148:156] = b'%06o\0 ' % sum(h)
    return bytes(h)


def octal(n): return b'%011o\0' % n
def base256(n): return b'\x80' + n.to_bytes(11, 'big') if n >= 0 else (n + 256**12).to_bytes(12, 'big')
def padded(content): return content + bytes(-len(content) % 512)
def block(name, content, kind=b'0', **kwargs): return header(name, octal(len(content)), kind, **kwargs) + padded(content)


def fields(**values):
    "The content of a pax header: each record begins with its own length"
    text = b''
    for key, value in values.items():
        rest = b' %s=%s\n' % (key.replace('_', '.').encode(), value)
        n = len(rest)
        while len(b'%d' % n) + len(rest) != n: n += 1
        text += b'%d' % n + rest
    return text


def tar_of(file, *blocks):
    content = b''.join(blocks) + bytes(1024)
    file.write_bytes(gzip.compress(content, mtime=0) if file.suffix == '.tgz' else content)
    return file


def zip_of(file, *members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file, 'w', method) as z:
        for name, content in members: z.writestr(name, content)
    return file


def patched(file, local, central, value):
    "Change a two-byte field of the first member, in its local and its central header"
    content = bytearray(file.read_bytes())
    for start, offset in ((content.find(b'PK\3\4'), local), (content.find(b'PK\1\2'), central)):
        content[start+offset:start+offset+2] = struct.pack('<H', value)
    file.write_bytes(content)
    return file


# --- good ones

@pytest.mark.parametrize('kind', ['gztar', 'bztar', 'xztar', 'tar', 'zip'])
def test_archives_of_all_kinds(tmp_path, kind):
    folder = tmp_path/'pets'
    for name in ('train/cat/1.png', 'train/dog/' + 'long'*40 + '.png', 'test/cat/café.png'):
        (folder/name).parent.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes(name.encode()*1000)
    (folder/'empty').mkdir()
    file = Path(shutil.make_archive(tmp_path/'a', kind, folder))  # which has a member ./
    assert contents(unpack_archive(file, tmp_path/'to')) == contents(folder)
    (tmp_path/'there').mkdir()
    assert contents(unpack_archive(str(file), str(tmp_path/'there'))) == contents(folder)


@pytest.mark.parametrize('format', [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_formats(tmp_path, format):
    long = 'train/' + 'c'*60 + '/' + 'x'*80 + '.png'
    with tarfile.open(tmp_path/'a.tar', 'w', format=format, pax_headers={'comment': 'of all members'}) as tar:
        for name in (long, 'train/cat/1.png'):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, BytesIO(b'abc'))
    found = contents(unpack_archive(tmp_path/'a.tar', tmp_path/'to'))
    assert {k: v for k, v in found.items() if v} == {long: b'abc', 'train/cat/1.png': b'abc'}


@pytest.mark.parametrize('name', ['a', './a', 'a/', './a/b/', 'a.b/-c/d_e', 'a..b', 'c/.hidden', './.x', 'a//b', 'a/./b', 'é', 'x'*255 + '/' + 'y'*255])
def test_paths_are_those_of_pathlib(name): assert archives._path(name, False) == str(PurePosixPath(name))

def test_the_later_of_two_members_of_one_name_counts(tmp_path):
    "A tar that was appended to"
    tgz(tmp_path/'a.tgz', [('train/cat/1.png', b'old'), ('train/cat/1.png', b'new')])
    assert (unpack_archive(tmp_path/'a.tgz', tmp_path/'to')/'train/cat/1.png').read_bytes() == b'new'


@pytest.mark.parametrize('mtime', [base256(2**80), base256(-2**80), b'77777777777\0'])
def test_absurd_dates_do_not_matter(tmp_path, mtime):
    tar_of(tmp_path/'a.tgz', block(b'a', fields(mtime=b'1e999'), b'x'), block(b'1.png', b'x', mtime=mtime))
    assert contents(unpack_archive(tmp_path/'a.tgz', tmp_path/'to')) == {'1.png': b'x'}


def test_folder_must_be_empty(tmp_path):
    tgz(tmp_path/'a.tgz', [('train/cat/1.png', b'x')])
    (tmp_path/'to').mkdir()
    (tmp_path/'to'/'mine').write_text('x')
    with pytest.raises(FileExistsError, match='not empty'): unpack_archive(tmp_path/'a.tgz', tmp_path/'to')
    assert contents(tmp_path/'to') == {'mine': b'x'}


# --- damage

@pytest.mark.parametrize('kind', ['gztar', 'bztar', 'xztar', 'tar', 'zip'])
@pytest.mark.parametrize('share', [0, .01, .2, .7])
def test_archive_cut_short(tmp_path, kind, share):
    file = pack(tiny_set(tmp_path/'pets'), kind)
    content = file.read_bytes()
    file.write_bytes(content[:int(len(content)*share)])
    refused(file, 'is not a complete .*archive .*download it again')


def test_tar_cut_between_two_members(tmp_path):
    file = tgz(tmp_path/'a.tar', [('train/cat/1.png', b'x'*512), ('train/cat/2.png', b'y'*512)], 'w')
    file.write_bytes(file.read_bytes()[:1024])
    refused(file, 'end-of-archive marker')


def test_damaged_header_is_not_the_end_of_a_tar(tmp_path):
    file = tar_of(tmp_path/'a.tar', block(b'1.png', b'x'), block(b'2.png', b'y'))
    content = bytearray(file.read_bytes())
    content[1024] ^= 1  # the name of the second
    file.write_bytes(content)
    refused(file, 'not a complete .*bad header at byte 1,024')


def test_gzip_with_a_wrong_sum(tmp_path):
    file = pack(tiny_set(tmp_path/'pets'), 'gztar')
    content = bytearray(file.read_bytes())
    content[-6] ^= 1
    file.write_bytes(content)
    refused(file, 'not a complete')


@pytest.mark.parametrize('content', [b'', b'hello', b'\x89PNG' + bytes(600), bytes(2000)])
def test_no_archive(tmp_path, content):
    (tmp_path/'a.tgz').write_bytes(content)
    refused(tmp_path/'a.tgz', 'is (not a complete|an empty)')


def test_zip_with_a_wrong_sum(tmp_path):
    file = zip_of(tmp_path/'a.zip', ('train/cat/1.png', 'content'), method=zipfile.ZIP_STORED)
    file.write_bytes(file.read_bytes().replace(b'content', b'contend'))
    refused(file, 'is damaged', 'train/cat/1.png')


@pytest.mark.parametrize('size, text', [(10, 'is damaged: Bad CRC-32'), (500, r'is damaged|holds fewer than the 500 bytes')])
def test_zip_with_a_wrong_size(tmp_path, size, text):
    refused(patched(zip_of(tmp_path/'a.zip', ('1.png', b'x'*400)), 22, 24, size), text, '1.png')


# --- members that are refused

unsafe = ['../evil.png', 'train\\..\\..\\evil.png', '\\evil.png', '/evil.png', 'train/../../evil.png', 'C:/evil.png', 'C:evil.png', '..\\evil.png', '\\\\host\\evil.png',
          special(tarfile.SYMTYPE), special(tarfile.LNKTYPE), special(tarfile.CHRTYPE), special(tarfile.FIFOTYPE)]

@pytest.mark.parametrize('member', unsafe, ids=lambda o: o if isinstance(o, str) else f'member of type {o.type.decode()}')
def test_unsafe_tar(tmp_path, member):
    file = tgz(tmp_path/'a.tgz', [('train/cat/1.png', b'x'), (member, b'evil'), ('train/cat/2.png', b'x')])
    refused(file, 'was not unpacked: its member .* Do not trust this archive', getattr(member, 'name', member))
    assert not list(tmp_path.rglob('evil*'))


@pytest.mark.parametrize('name', [m for m in unsafe if isinstance(m, str)])
def test_unsafe_zip(tmp_path, name):
    refused(zip_of(tmp_path/'a.zip', ('train/cat/1.png', 'x'), (name, 'evil')), 'was not unpacked: its member .*Do not trust')
    assert not list(tmp_path.rglob('evil*'))


@pytest.mark.parametrize('kind', [0o120777, 0o010644, 0o060644], ids=['link', 'pipe', 'device'])
def test_link_or_device_in_zip(tmp_path, kind):
    member = zipfile.ZipInfo('train/cat/link.png')
    member.create_system, member.external_attr = 3, kind << 16
    refused(zip_of(tmp_path/'a.zip', (member, '/etc/passwd')), 'is a link or a device', 'train/cat/link.png')


@pytest.mark.parametrize('method, name', [(9, 'deflate64'), (12, 'bzip2'), (14, 'LZMA'), (99, 'AES encryption'), (77, 'number 77')])
def test_compression_methods(tmp_path, method, name):
    file = patched(zip_of(tmp_path/'a.zip', ('train/cat/1.png', b'x'*400)), 8, 10, method)
    refused(file, f'not supported: {name}. Unpack it with another program, .*and pass the folder', 'train/cat/1.png')


def test_newer_zip(tmp_path):
    refused(patched(zip_of(tmp_path/'a.zip', ('1.png', b'x')), 4, 6, 110), 'Python cannot read it .zip file version 11.0.. Unpack it with')


def test_encrypted_zip(tmp_path):
    file = patched(zip_of(tmp_path/'a.zip', ('train/cat/1.png', 'x')), 6, 8, 1)
    refused(file, r'a.zip is encrypted. Unpack it with its password, and pass the folder\.$')


@pytest.mark.parametrize('order', [1, -1])
@pytest.mark.parametrize('kind', ['zip', 'tgz'])
def test_file_where_a_folder_should_be(tmp_path, kind, order):
    members = [('train', b'x'), ('train/cat/a.png', b'x')][::order]
    file = (zip_of if kind == 'zip' else lambda f, *m: tgz(f, m))(tmp_path/f'a.{kind}', *members)
    refused(file, 'is both a file and a folder', 'train')


@pytest.mark.parametrize('name', ['.', './.'])
def test_file_without_a_name(tmp_path, name):
    refused(zip_of(tmp_path/'a.zip', (name, 'x')), 'is a file without a name', name)
    refused(tar_of(tmp_path/'a.tgz', block(name.encode(), b'x')), 'is a file without a name', name)


def test_empty_name(tmp_path):
    refused(tar_of(tmp_path/'a.tgz', block(b'', b'x')), 'is a file without a name', '')


def test_folder_with_a_content(tmp_path): refused(zip_of(tmp_path/'a.zip', ('./', 'x')), 'is a folder with a content')


def test_archive_of_nothing_but_its_folder(tmp_path): refused(zip_of(tmp_path/'a.zip', ('./', '')), 'is an empty archive')


def test_nul_in_a_name(tmp_path):
    refused(tar_of(tmp_path/'a.tgz', block(b'p', fields(path=b'a\0b.png'), b'x'), block(b'1.png', b'x')), 'NUL character', 'a\0b.png')
    file = zip_of(tmp_path/'a.zip', ('a!b.png', 'x'))
    file.write_bytes(file.read_bytes().replace(b'a!b', b'a\0b'))
    refused(file, 'NUL character', 'a\0b.png')


@pytest.mark.parametrize('name, text', [('x'*256, 'name of more than 255 bytes'), ('\u00e9'*128, 'name of more than 255 bytes'),
                                        ('a/'*513 + 'b', 'path of more than 1,024 bytes')])
def test_long_names(tmp_path, name, text):
    refused(tgz(tmp_path/'a.tgz', [(name, b'x')]), text)
    refused(zip_of(tmp_path/'a.zip', (name, b'x')), text)


def test_name_that_this_system_does_not_allow(tmp_path, monkeypatch):
    "Such as `Cat` and `cat`, one a file and one a folder, where they are the same"
    monkeypatch.setattr(archives, '_enter', lambda known, path, is_folder: known.setdefault(path, is_folder))
    refused(tgz(tmp_path/'a.tgz', [('train', b'x'), ('train/cat/1.png', b'x')]), 'cannot be written here', 'train/cat/1.png')


# --- headers that lie

@pytest.mark.parametrize('size', [b'\xff'*10 + b'\xfe\0', base256(-1), base256(-2**60)])
@pytest.mark.parametrize('kind', [b'0', b'5', b'L', b'x', b'g'])
def test_negative_size(tmp_path, size, kind):
    "Which sent `tarfile` back to a header that it had read"
    file = tar_of(tmp_path/'a.tar', block(b'a', b''), header(b'b', size, kind), block(b'c', b''))
    refused(file, 'has a negative size', 'b')


@pytest.mark.parametrize('size', [b'-512', b'-1024', b'-1', b'x', b''])
def test_negative_size_among_the_attributes(tmp_path, size):
    refused(tar_of(tmp_path/'a.tar', block(b'a', b''), block(b'p', fields(size=size), b'x'), block(b'b', b'')), 'has an impossible size', 'p')


@pytest.mark.parametrize('kind', [b'L', b'K', b'x', b'g', b'X'])
def test_long_header_is_not_read(tmp_path, monkeypatch, kind):
    asked, read = [], gzip.GzipFile.read
    monkeypatch.setattr(gzip.GzipFile, 'read', lambda self, size=-1: asked.append(size) or read(self, size))
    file = tar_of(tmp_path/'a.tgz', block(b'first', b''), header(b'././@LongLink', octal(3*2**29), kind) + bytes(2**17), block(b'a', b''))
    refused(file, '1,610,612,736 bytes, more than the 65,536 allowed', '././@LongLink')
    assert asked and 0 < min(asked) and max(asked) <= 2**17


def test_many_headers_of_one_member(tmp_path):
    headers = [block(b'h', b'name\0', b'L')]*9
    assert unpack_archive(tar_of(tmp_path/'some.tgz', *headers[1:], block(b'1.png', b'')), tmp_path/'some')
    refused(tar_of(tmp_path/'a.tgz', *headers*200, block(b'1.png', b'')), 'has more than 8 headers', 'h')


def test_many_attributes_of_all_members(tmp_path):
    refused(tar_of(tmp_path/'a.tgz', *(block(b'g', fields(**{f'a{i}': b'x'}), b'g') + block(b'%d' % i, b'') for i in range(200))),
            'follows more than 100 attributes', '100')


@pytest.mark.parametrize('attributes', [dict(GNU_sparse_map=b'0,1', GNU_sparse_size=b'9999999'), dict(GNU_sparse_size=b'9999999', GNU_sparse_numblocks=b'0'),
                                        dict(GNU_sparse_major=b'1', GNU_sparse_minor=b'0', GNU_sparse_realsize=b'9999999')])
def test_sparse_members(tmp_path, attributes):
    refused(tar_of(tmp_path/'a.tgz', block(b'p', fields(**attributes), b'x'), block(b'1.png', b'1\n0\n1\n')), 'is a sparse file', '1.png')


def test_old_sparse_member(tmp_path):
    refused(tar_of(tmp_path/'a.tgz', header(b'1.png', octal(0), b'S')), 'is a sparse file', '1.png')


@pytest.mark.parametrize('attributes', [b'9'*5000 + b' a=b\n', b'0 a=b\n', b'5 a\n', b'7 a=b\n', b'5 a=b\n', b'x', b'5 aaa'*1000 + b'=\n', b'-6 a=b\n'])
def test_attributes_that_cannot_be_read(tmp_path, attributes):
    refused(tar_of(tmp_path/'a.tgz', block(b'p', attributes, b'x'), block(b'1.png', b'')), 'has attributes that cannot be read', 'p')


def test_long_numbers_among_attributes(tmp_path):
    "In which `tarfile` searches for minutes"
    refused(tar_of(tmp_path/'a.tgz', block(b'p', fields(a=b'9'*60_000), b'x'), block(b'1.png', b'')), 'number of more than 1,000 digits', 'p')


def test_attributes_of_any_bytes(tmp_path):
    tar_of(tmp_path/'a.tgz', block(b'p', fields(a=b'b\n=c\n', comment=b'9'*500, mtime=b'nan', size=b'0'), b'x'), block(b'1.png', b''))
    assert contents(unpack_archive(tmp_path/'a.tgz', tmp_path/'to')) == {'1.png': b''}


@pytest.mark.parametrize('kind', ['bztar', 'xztar', 'gztar'])
def test_damaged_middle(tmp_path, kind):
    file = pack(tiny_set(tmp_path/'pets'), kind)
    content = bytearray(file.read_bytes())
    for i in range(len(content)//2, len(content)//2 + 50): content[i] ^= 255
    file.write_bytes(content)
    refused(file, '(is not a complete |was not unpacked).*download it again')


# --- more than fits

@pytest.fixture
def small_disk(monkeypatch): monkeypatch.setattr(archives, '_free_bytes', lambda folder: 10**6)


@pytest.mark.parametrize('kind', ['zip', 'tgz'])
def test_bombs(tmp_path, small_disk, monkeypatch, kind):
    monkeypatch.setattr(archives, '_copy', None)  # nothing is unpacked, to see how much it is
    file, members = tmp_path/f'a.{kind}', [(f'train/cat/{i}.png', bytes(10**6//4)) for i in range(4)]
    if kind == 'zip': zip_of(file, *members)
    else: tgz(file, members)
    assert file.stat().st_size < 10_000
    refused(file, r'members up to .* take 1\.0 MB, and only 1\.0 MB are free', 'train/cat/3.png')


def test_stated_sizes_count(tmp_path, small_disk):
    refused(tar_of(tmp_path/'a.tgz', header(b'1.png', base256(10**15))), r'take 1,000,000,000\.0 MB', '1.png')


@pytest.mark.parametrize('names', [[f'{i}' for i in range(300)], ['a/'*300]])
def test_small_files_and_folders_take_a_block_each(tmp_path, small_disk, names):
    refused(tgz(tmp_path/'a.tgz', [(name, b'') for name in names]), r'only 1\.0 MB are free')


def test_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, 'max_members', 10)
    assert unpack_archive(tgz(tmp_path/'some.tgz', [(f'{i}', b'') for i in range(10)]), tmp_path/'some')
    refused(tgz(tmp_path/'a.tgz', [(f'{i}', b'') for i in range(11)]), 'has more than 10 members')
    refused(zip_of(tmp_path/'a.zip', ('a/b/c/d/e/f/g/h/i/j/k', b'')), 'has more than 10 members')


def test_free_space_is_that_of_the_folder_above(tmp_path):
    assert 0 < archives._free_bytes(tmp_path/'not'/'yet') <= shutil.disk_usage(tmp_path).total


@pytest.mark.parametrize('given', [5, 7])
def test_another_number_of_bytes_than_stated(given):
    member, written = archives._Member('1.png', False, False, 6, lambda: BytesIO(bytes(given))), []
    with pytest.raises(ValueError, match=f"its member '1.png' holds {'fewer' if given < 6 else 'more'} than the 6 bytes it states"):
        archives._copy(member, written.append)
    assert sum(map(len, written)) <= 6


def test_full_disk_remains_a_full_disk(tmp_path, monkeypatch):
    "And what was written until then is removed"
    file = tgz(tmp_path/'a.tgz', [('train/cat/1.png', b'x'), ('train/cat/2.png', b'x')])
    write, before = archives._write, list(tmp_path.iterdir())
    def full(member, folder):
        if '2' in member.name: raise OSError(errno.ENOSPC, 'No space left on device')
        write(member, folder)
    monkeypatch.setattr(archives, '_write', full)
    with pytest.raises(OSError, match='No space left'): unpack_archive(file, tmp_path/'to')
    assert list(tmp_path.iterdir()) == before


# --- what is no file

@posix
def test_named_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path/'a.tgz')
    refused(tmp_path/'a.tgz', 'is not a regular file')


def test_folder_is_no_archive(tmp_path):
    (tmp_path/'a.tgz').mkdir()
    refused(tmp_path/'a.tgz', 'is not a regular file')


def test_missing_archive(tmp_path):
    with pytest.raises(FileNotFoundError): unpack_archive(tmp_path/'a.tgz', tmp_path/'to')


# --- chance

def mutated(content, rng):
    "Some bytes changed, removed, doubled or cut off"
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 5])):
        i, n = rng.randrange(len(content)), rng.choice([1, 1, 4, 40])
        change = rng.choice(['bit', 'byte', 'bytes', 'remove', 'double', 'cut'])
        if change == 'bit': content[i] ^= 1 << rng.randrange(8)
        elif change == 'byte': content[i] = rng.choice([0, 255, 128, 127, rng.randrange(256)])
        elif change == 'bytes': content[i:i+n] = rng.randbytes(len(content[i:i+n]))
        elif change == 'remove' and i: del content[i:i+n]
        elif change == 'double': content[i:i] = content[i:i+n]
        elif i: del content[i:]
    return content


def tar_with_sums(content, rng):
    "A mutation of a field of a header, with a new checksum, so that the field is read"
    content = bytearray(content)
    start = rng.choice([i for i in range(0, len(content), 512) if content[i+257:i+262] == b'ustar'])
    i = start + rng.choice([0, 50, 99, *range(124, 136), 136, 156, 157, 345, 386, 482, 483])
    content[i:i+4] = rng.choice([rng.randbytes(4), b'\xff'*4, b'\x80\0\0\0', b'7777', b'LLLL', b'SSSS', b'xxxx', bytes(4)])
    content[start+148:start+156] = b' ' * 8
    content[start+148:start+156] = b'%06o\0 ' % sum(content[start:start+512])
    return content


@pytest.mark.parametrize('kind', ['tar', 'tgz', 'zip', 'headers'])
def test_mutations_are_refused_or_unpacked_right(tmp_path, kind):
    "A tar has no checksum of contents and long names: there the files are counted, and with new checksums not even that"
    members = [('train/cat/1.png', b'abc'*50), ('train/' + 'dog'*50 + '/2.png', random.Random(0).randbytes(700)), ('test/cat/3.png', b'')]
    file = tmp_path/f'a.{kind}'
    (zip_of if kind == 'zip' else lambda f, *m: tgz(f, m, 'w:gz' if kind == 'tgz' else 'w'))(file, *members)
    content, want = file.read_bytes(), contents(unpack_archive(file, tmp_path/'want'))
    n_refused = 0
    for seed in range(200):
        file.write_bytes((tar_with_sums if kind == 'headers' else mutated)(content, random.Random(seed)))
        to = tmp_path/f'{seed}'
        try: found = contents(unpack_archive(file, to))
        except ValueError as e:
            assert str(e).startswith(f'{file} ') and '\n' not in str(e) and not to.exists(), (seed, e)
            n_refused += 1
        else:
            if kind == 'tar': assert sum(v is not False for v in found.values()) == 3, seed
            elif kind != 'headers': assert found == want, seed
            shutil.rmtree(to)
    assert n_refused > 20 and sorted(p.name for p in tmp_path.iterdir()) == [file.name, 'want']
