"Files and folders: whole or not at all, whoever is killed, comes second, or finds the disk full."
import errno
import multiprocessing
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from cifar_fastai import files
from cifar_fastai.files import (DiskError, atomic_file, atomic_folder, atomic_write, cache_folder, copy_new, file_digest, is_part, locked, make_once, parse_json,
                                read_json, user_folder, write_json, writing)

forks = pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='needs fork')


def leftovers(folder): return [p for p in (folder/'.unfinished').glob('*') if p.is_dir()]
def names(folder): return sorted(p.name for p in folder.iterdir())


# --- files

@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError(errno.ENOSPC, 'No space left on device')])
def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path, error):
    path = atomic_write(tmp_path/'runs'/'a.csv', 'old')
    with pytest.raises((KeyboardInterrupt, OSError)), atomic_file(path) as part:
        part.write_text('half of the ne')
        raise error
    assert path.read_text() == 'old' and names(path.parent) == ['a.csv']


@forks
def test_a_process_that_is_killed_leaves_the_old_file(tmp_path):
    path = atomic_write(tmp_path/'a.csv', 'old')
    def die():
        with atomic_file(path) as part:
            part.write_text('half of the ne')
            os.kill(os.getpid(), signal.SIGKILL)
    process = multiprocessing.get_context('fork').Process(target=die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and path.read_text() == 'old'
    assert len(names(tmp_path)) == 2
    assert atomic_write(tmp_path/'b.csv', 'new').read_text() == 'new' and names(tmp_path) == ['a.csv', 'b.csv']


@pytest.mark.parametrize('owner', ['{machine}-{mine}', '00000000-{gone}'])
def test_what_may_still_be_written_stays_for_a_day(tmp_path, owner):
    "That of a process which runs, and of one on another machine"
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    owner = owner.format(machine=files._machine(), mine=os.getpid(), gone=gone.pid)
    left = tmp_path/f'.a.csv.{owner}-12345678.part'
    left.mkdir()
    (left/'new.csv').touch()
    atomic_write(tmp_path/'a.csv', 'new')
    assert left.exists()
    os.utime(left, (time.time() - 25*60*60,)*2)
    atomic_write(tmp_path/'b.csv', 'new')
    assert names(tmp_path) == ['a.csv', 'b.csv']


def test_what_a_library_writes_beside_its_file_is_taken_away(tmp_path):
    "safetensors writes to a temporary file of its own first"
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path/'decoded'/'a.safetensors') as part:
        part.with_name('.tmp1234').touch()
        raise KeyboardInterrupt
    with atomic_file(tmp_path/'decoded'/'a.safetensors') as part: part.with_name('.tmp1234').touch()
    assert names(tmp_path/'decoded') == ['a.safetensors']


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path, monkeypatch):
    def full(self, *args, **kwargs): raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))
    monkeypatch.setattr(files.Path, 'mkdir', lambda self, *args, **kwargs: full(self) if is_part(self) else None)
    with pytest.raises(OSError) as e: atomic_write(tmp_path/'a.csv', 'new')
    assert e.value.filename == str(tmp_path/'a.csv')


def test_what_another_file_left_stays(tmp_path):
    other = tmp_path/'.a.csv2.12345678.part'
    other.touch()
    os.utime(other, (0, 0))
    atomic_write(tmp_path/'a.csv', 'new')
    assert other.exists()


@pytest.mark.skipif(os.name == 'nt', reason='no modes')
@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_modes_are_as_the_umask_says(tmp_path, umask, mode):
    "safetensors writes files that only their owner can read"
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path/'model.safetensors') as part:
            part.unlink()
            os.close(os.open(part, os.O_CREAT | os.O_WRONLY, 0o600))
    finally: os.umask(before)
    assert stat.S_IMODE((tmp_path/'model.safetensors').stat().st_mode) == mode


def test_two_threads_write_one_file(tmp_path):
    texts, done = [str(i)*100_000 for i in range(4)], []
    def write(text):
        for _ in range(20): atomic_write(tmp_path/'a', text)
        done.append(text)
    threads = [threading.Thread(target=write, args=[text]) for text in texts]
    for t in threads: t.start()
    while any(t.is_alive() for t in threads):
        if (tmp_path/'a').exists(): assert (tmp_path/'a').read_text() in texts
    assert sorted(done) == texts and (tmp_path/'a').read_text() in texts and names(tmp_path) == ['a']


def test_text_is_written_as_it_is(tmp_path):
    assert atomic_write(tmp_path/'a', 'ä\r\nb\n').read_bytes() == 'ä\r\nb\n'.encode()
    assert atomic_write(tmp_path/'a', b'\xff\x00').read_bytes() == b'\xff\x00'


# --- folders

def test_a_folder_that_breaks_off_is_not_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path/'deep'/'a') as part:
        (part/'x').touch()
        raise KeyboardInterrupt
    assert not names(tmp_path/'deep')


def test_an_empty_folder_gives_way_and_a_full_one_stays(tmp_path):
    (tmp_path/'a').mkdir()
    with atomic_folder(tmp_path/'a') as part: (part/'x').touch()
    assert names(tmp_path/'a') == ['x']
    with pytest.raises(OSError), atomic_folder(tmp_path/'a') as part: (part/'y').touch()
    assert names(tmp_path/'a') == ['x'] and names(tmp_path) == ['a']


# --- JSON

@pytest.mark.parametrize('text, why', [('{"a": 1', 'Expecting'), ('[1, 2]', 'holds a value of type list, expected a JSON object'), ('', 'Expecting value'), (b'\xff{}', "can't decode")])
def test_damaged_json_is_named(tmp_path, text, why):
    path = atomic_write(tmp_path/'run.json', text)
    with pytest.raises(ValueError, match=f'run.json is damaged: .*{why}'): read_json(path)


def test_json_that_cannot_be_written_leaves_the_old_file(tmp_path):
    path = write_json(tmp_path/'run.json', dict(name='Ä', n=1))
    assert read_json(path) == dict(name='Ä', n=1)
    with pytest.raises(TypeError): write_json(path, dict(n=object()))
    with pytest.raises(ValueError, match='run.json was not written: Out of range float'): write_json(path, dict(loss=float('nan')))
    assert read_json(path) == dict(name='Ä', n=1)
    with pytest.raises(FileNotFoundError, match='run2.json does not exist'): read_json(tmp_path/'run2.json')


# --- locks

def test_a_lock_is_waited_for(tmp_path):
    order, held, asked = [], threading.Event(), threading.Event()
    def first():
        with locked(tmp_path/'a.lock'):
            held.set()
            asked.wait(60)
            order.append('first ends')
    def busy():
        order.append('second waits')
        asked.set()
    thread = threading.Thread(target=first)
    thread.start()
    held.wait()
    with locked(tmp_path/'a.lock', busy): order.append('second has it')
    thread.join()
    assert order == ['second waits', 'first ends', 'second has it']


def test_a_lock_is_held_by_one_and_leaves_no_file(tmp_path):
    "Though its file is removed while others wait for it"
    held, most = [], []
    def work():
        for _ in range(20):
            with locked(tmp_path/'a.lock'):
                held.append(1)
                most.append(len(held))
                time.sleep(.001)
                held.pop()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert len(most) == 80 and set(most) == {1} and not list(tmp_path.iterdir())


@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_disk_errors_say_what_to_do(number):
    with pytest.raises(DiskError, match='cannot write here. Free some disk space, or set SOME_HOME') as e, writing('here', 'SOME_HOME'): raise OSError(number, 'no')
    assert e.value.errno == number


def test_other_errors_stay_as_they_are():
    error = ConnectionResetError(errno.ECONNRESET, 'reset')
    with pytest.raises(ConnectionResetError) as e, writing('here', 'SOME_HOME'): raise error
    assert e.value is error


# --- made once

def make_slowly(log, source):
    def make(work):
        with open(log, 'a') as f: f.write('made\n')
        time.sleep(.3)
        return shutil.copytree(source, work/'new')
    return make


@forks
def test_two_processes_at_once(tmp_path, practice):
    context, log = multiprocessing.get_context('fork'), tmp_path/'log'
    target, barrier = tmp_path/'cache'/'set', context.Barrier(3)
    def run():
        barrier.wait()
        make_once(target, make_slowly(log, practice), quiet=True)
        os._exit(0 if len(list(target.glob('train/*/*'))) == 200 else 1)
    processes = [context.Process(target=run) for _ in range(3)]
    for p in processes: p.start()
    for p in processes: p.join(60)
    assert [p.exitcode for p in processes] == [0, 0, 0]
    assert log.read_text() == 'made\n' and not leftovers(target.parent)


def test_the_second_to_finish_uses_the_firsts(tmp_path, practice):
    target = tmp_path/'cache'/'set'
    def overtaken(work):
        shutil.copytree(practice, target)
        return shutil.copytree(practice, work/'new')
    assert make_once(target, overtaken) == target
    assert len(list(target.glob('train/*/*'))) == 200 and not leftovers(target.parent)


@forks
def test_killed_in_the_middle(tmp_path, practice):
    target = tmp_path/'cache'/'set'
    def die(work):
        shutil.copytree(practice/'test', work/'new'/'train')
        os.kill(os.getpid(), signal.SIGKILL)
    process = multiprocessing.get_context('fork').Process(target=make_once, args=(target, die))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not target.exists() and leftovers(target.parent)
    make_once(target, lambda work: shutil.copytree(practice, work/'new'))
    assert len(list(target.glob('train/*/*'))) == 200 and not leftovers(target.parent)


def test_the_next_to_make_something_sweeps(tmp_path):
    unfinished = tmp_path/'cache'/'.unfinished'
    for name in ('gone', 'busy'):
        (unfinished/name/'new').mkdir(parents=True)
        (unfinished/f'{name}.lock').touch()
    with locked(unfinished/'busy.lock'): make_once(tmp_path/'cache'/'set', lambda work: work)
    assert leftovers(tmp_path/'cache') == [unfinished/'busy']
    make_once(tmp_path/'cache'/'set', lambda work: work) # which is there already
    assert not leftovers(tmp_path/'cache')
    assert not list(unfinished.iterdir())


@pytest.mark.parametrize('error', [KeyboardInterrupt, ValueError('bad')])
def test_interrupted_leaves_nothing(tmp_path, error):
    def make(work):
        (work/'new').mkdir()
        raise error
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ValueError): make_once(tmp_path/'cache'/'set', make)
    assert not (tmp_path/'cache'/'set').exists() and not leftovers(tmp_path/'cache')


# --- the cache folder

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have other folders')
@pytest.mark.parametrize('variables, folder', [
    (dict(), '.cache/cifar_fastai'),
    (dict(XDG_CACHE_HOME='{home}/caches'), 'caches/cifar_fastai'),
    (dict(XDG_CACHE_HOME=''), '.cache/cifar_fastai'),
    (dict(XDG_CACHE_HOME='{home}/caches', CIFAR_FASTAI_HOME=''), 'caches/cifar_fastai'),
    (dict(XDG_CACHE_HOME='{home}/caches', CIFAR_FASTAI_HOME='~/ours'), 'ours')])
def test_the_cache_is_where_the_system_keeps_caches(variables, folder, tmp_path, monkeypatch):
    for name in 'XDG_CACHE_HOME', 'CIFAR_FASTAI_HOME': monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    for name, value in variables.items(): monkeypatch.setenv(name, value.format(home=tmp_path))
    assert cache_folder() == tmp_path/folder and not list(tmp_path.iterdir())
    assert cache_folder('~/here') == tmp_path/'here'


def test_an_old_cache_is_used_until_there_is_a_new_one(tmp_path, monkeypatch):
    monkeypatch.delenv('CIFAR_FASTAI_HOME', raising=False)
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'caches'))
    old, new = tmp_path/'.cache'/'cifar_fastai', tmp_path/'caches'/'cifar_fastai'
    old.mkdir(parents=True)
    assert cache_folder() == old
    new.mkdir(parents=True)
    assert cache_folder() == new


homeless = """
import os, pwd
def no_such(uid): raise KeyError(uid)
pwd.getpwuid = no_such
for name in 'HOME', 'XDG_CACHE_HOME', 'CIFAR_FASTAI_HOME': os.environ.pop(name, None)
"""

@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have other folders')
def test_a_user_without_a_home_has_a_temporary_folder(tmp_path):
    code = homeless + """
from platformdirs import user_data_path
from cifar_fastai.files import cache_folder, user_folder
print(cache_folder())
print(user_folder(user_data_path, '~/.a'))
os.environ['CIFAR_FASTAI_HOME'] = '/ours'
print(cache_folder(), cache_folder('/here'))
"""
    said = subprocess.check_output([sys.executable, '-c', code], text=True, cwd=tmp_path, env=os.environ | dict(TMPDIR=str(tmp_path)))
    place = f'{tmp_path}/cifar_fastai-{os.getuid()}'
    assert said.split() == [place, place, '/ours', '/here']


def test_digests(tmp_path):
    path = atomic_write(tmp_path/'a', b'abc')
    assert file_digest(path, 'md5') == '900150983cd24fb0d6963f7d28e17f72'  # RFC 1321
    assert file_digest(path) == 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'  # FIPS 180
    long = atomic_write(tmp_path/'b', b'abc' + bytes(2**20))
    assert file_digest(long, 'md5', first=3) == '900150983cd24fb0d6963f7d28e17f72' != file_digest(long, 'md5')


def test_a_home_that_may_not_be_read(monkeypatch, tmp_path):
    "As in a container that runs as another user"
    home,real = tmp_path/'home',dict(stat=os.stat, mkdir=os.mkdir)
    def refuse(name):
        def call(path, *args, **kwargs):
            if str(path).startswith(str(home)): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return real[name](path, *args, **kwargs)
        monkeypatch.setattr(os, name, call)
    monkeypatch.delenv('CIFAR_FASTAI_HOME', raising=False)
    for name in real: refuse(name)
    assert user_folder(lambda name: home/'usual', home/'former') == home/'usual'
    with pytest.raises(DiskError, match='set CIFAR_FASTAI_HOME to a writable folder'): make_once(home/'usual'/'a', lambda work: work)


@pytest.mark.parametrize('text', ['['*100_000, '{"a":'*100_000, '{"a": 1e999}', '{"a": %s}' % ('9'*5000), '{"a": %s}' % ('9'*30), '{"a": NaN}',
                                  '{"a": -Infinity}', '{"a": 1, "a": 2}', b'\xff{}', b'\xef\xbb\xbf{}', '{}'.encode('utf-16'), b'', b'[]', 'null', '3'])
def test_json_that_is_damaged_is_one_error(text):
    with pytest.raises(ValueError, match='^x.json is damaged'): parse_json(text, 'x.json')


def test_json_keeps_the_largest_seed(): assert parse_json(b'{"a": [-18446744073709551615, 1e308]}', 'x') == dict(a=[-2**64 + 1, 1e308])


# --- copies

@pytest.mark.parametrize('links', [True, False])
def test_copies_overwrite_nothing(tmp_path, monkeypatch, links):
    def refuse(*args): raise OSError(errno.EPERM, 'Operation not permitted')
    if not links: monkeypatch.setattr(os, 'link', refuse)
    for name,text in (('a', 'one'), ('b', 'two'), ('c', 'one')):
        (tmp_path/name).mkdir()
        (tmp_path/name/'x.tar.gz').write_text(text)
    copies = [copy_new(tmp_path/name/'x.tar.gz', tmp_path/'new') for name in 'abcb']
    assert [c.name for c in copies] == ['x.tar.gz', 'x.tar-2.gz', 'x.tar.gz', 'x.tar-2.gz']
    assert [c.read_text() for c in copies] == ['one', 'two', 'one', 'two'] and len(list((tmp_path/'new').iterdir())) == 2


@forks
def test_a_copy_whose_process_is_killed_takes_no_name(tmp_path, monkeypatch):
    (tmp_path/'x.png').write_text('one')
    def killed(file, part):
        part.write_text('o')
        os.kill(os.getpid(), signal.SIGKILL)
    with monkeypatch.context() as m:
        m.setattr(files.shutil, 'copy2', killed)
        process = multiprocessing.get_context('fork').Process(target=copy_new, args=(tmp_path/'x.png', tmp_path/'new'))
        process.start()
        process.join(60)
    assert process.exitcode == -signal.SIGKILL and copy_new(tmp_path/'x.png', tmp_path/'new').read_text() == 'one'
    assert names(tmp_path/'new') == ['x.png']


@pytest.mark.skipif(hasattr(os, 'getuid') and os.getuid() == 0, reason='for whom nothing is read-only')
def test_a_file_that_is_read_only_is_copied(tmp_path):
    (tmp_path/'x').write_text('one')
    (tmp_path/'x').chmod(0o444)
    assert os.access(copy_new(tmp_path/'x', tmp_path/'new'), os.W_OK)


def test_a_copy_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    (tmp_path/'x').write_text('one')
    monkeypatch.setattr(files.shutil, 'copy2', lambda *args: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'): copy_new(tmp_path/'x', tmp_path/'new')
    assert not list((tmp_path/'new').iterdir())
