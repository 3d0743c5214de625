"Processes that begin as a fork of this one, in which what a program imports is imported already"
import atexit
import multiprocessing
import os
import runpy
import sys
from types import SimpleNamespace

import torch


def _begin(f, args, out, err):
    os.setsid() # as a shell does for each command
    torch.set_num_threads(1) # others cannot be used in a process that was forked
    for number, name, file in (1, 'stdout', out), (2, 'stderr', err):
        stream = open(file, 'w', buffering=1, encoding='utf-8')
        os.dup2(stream.fileno(), number)
        setattr(sys, name, stream)
    sys.exit(f(*args))


def forked(f, *args, out=os.devnull, err=os.devnull):
    "Start a function as a program, whose exit code is what it returns, and which writes to two files"
    how = 'spawn' if torch.cuda.device_count() else 'fork' # CUDA does not survive a fork
    process = multiprocessing.get_context(how).Process(target=_begin, args=(f, args, out, err))
    process.start()
    atexit.register(process.kill) # or pytest would wait for it where a test failed
    return process


def _script(file, args):
    sys.argv = [str(file), *map(str, args)]
    sys.path.insert(0, str(file.parent))
    runpy.run_path(str(file), run_name='__main__')


def run_script(file, *args, folder):
    "Run a Python script to its end, with its output in a folder"
    out, err = folder / 'out', folder / 'err'
    process = forked(_script, file, args, out=out, err=err)
    process.join()
    return SimpleNamespace(returncode=process.exitcode, stdout=out.read_text(encoding='utf-8'), stderr=err.read_text(encoding='utf-8'))
