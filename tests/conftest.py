"""How tests share the processors, and what several test files use: a small practice set, a pyplot that must be left alone, a web
server on this machine, and a browser."""
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

workers = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', 1))
cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
os.environ.setdefault('MPLBACKEND', 'Agg')
if workers > 1: os.environ['OMP_NUM_THREADS'] = str(max(1, cpus // workers))  # which torch reads when it is imported

import pytest

from cifar_fastai.synthetic import make_synthetic

slow_fixtures = {'site', 'built', 'browser', 'trained', 'runs'}  # what takes seconds to make; tests that need one are slow without a mark of their own
longest = ['test_site', 'test_processes', 'test_cli', 'test_training', 'test_benchmarks', 'test_exporting', 'test_tuning', 'test_faults', 'test_resume',
           'test_finetuning', 'test_tracking', 'test_app', 'test_notebooks', 'test_callbacks', 'test_report']
unmarked_seconds = 5  # a test that takes longer and is not marked slow is named in the end


# --- which test runs when

has_gpu = Path('/dev/nvidia0').exists()


def pytest_addoption(parser):
    parser.addoption('--whole', action='store_true', help='tutorials with all their images and epochs')
    parser.addoption('--examples', type=int, help='damaged files for each reader in test_fuzz.py, others than without this option')


def pytest_configure(config):
    "One cache folder for this run, instead of the user's own, and files in the order of below."
    if 'PYTEST_XDIST_WORKER' not in os.environ:
        config.made = tempfile.TemporaryDirectory(prefix='cifar_fastai-')
        os.environ['CIFAR_FASTAI_HOME'] = config.made.name
    config.shared = Path(os.environ['CIFAR_FASTAI_HOME'])
    config.option.loadscopereorder = False  # or pytest-xdist begins with the files that have the most tests


def marked(item, name): return item.get_closest_marker(name) is not None


def pytest_itemcollected(item):
    if slow_fixtures & set(item.fixturenames): item.add_marker(pytest.mark.slow)
    if marked(item, 'cuda') and not has_gpu: item.add_marker(pytest.mark.skip('no NVIDIA GPU on this machine'))
    if marked(item, 'network') and 'network' not in item.config.option.markexpr: item.add_marker(pytest.mark.skip('downloads: -m network'))


@pytest.hookimpl(trylast=True)  # after a plugin has put them in a random order
def pytest_collection_modifyitems(items):
    "Files that take longest first, since what ends last decides how long it takes; in a file, tests that want to be alone last."
    files = sorted(dict.fromkeys(o.path for o in items), key=lambda o: longest.index(o.stem) if o.stem in longest else len(longest))
    items.sort(key=lambda o: (files.index(o.path), marked(o, 'alone'), not marked(o, 'slow')))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process gets all tests of a file, for what they share, but single notebooks. (`--dist loadgroup` would do, but pytest-xdist
    3.8 loses the groups with pytest 9.2.)"""
    from xdist.scheduler import LoadFileScheduling

    class FilesAndNotebooks(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return nodeid if 'test_notebook_runs' in nodeid else super()._split_scope(nodeid)

    return FilesAndNotebooks(config, log)


@contextmanager
def turn(folder, alone):
    "Wait until no other process runs a test that wants to be alone; if this one does, until none runs any."
    import fcntl
    with open(folder / 'next', 'w') as next_one, open(folder / 'running', 'w') as running:
        fcntl.flock(next_one, fcntl.LOCK_EX)  # kept while waiting: nobody overtakes
        fcntl.flock(running, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(next_one, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    with turn(item.config.shared, marked(item, 'alone')) if workers > 1 else nullcontext():
        return (yield)


def pytest_terminal_summary(terminalreporter):
    passed = terminalreporter.stats.get('passed', [])
    long = [o for o in passed if o.when == 'call' and o.duration > unmarked_seconds and 'slow' not in o.keywords]
    for o in sorted(long, key=lambda o: -o.duration):
        terminalreporter.write_line(f'Not marked slow, and took {o.duration:.0f} s: {o.nodeid}')


@pytest.fixture(autouse=True)
def nothing_is_left():
    "A test leaves the environment and the working folder as they were, for whichever comes next."
    before = dict(os.environ), os.getcwd()
    yield
    known = {'PYTEST_CURRENT_TEST', 'TORCH_CPP_LOG_LEVEL',  # the latter is set by the command line for its process
             'KMP_DUPLICATE_LIB_OK', 'KMP_INIT_AT_FORK', 'TORCHINDUCTOR_CACHE_DIR', 'CUDA_MODULE_LOADING'}  # and these by torch
    left = {k for k in before[0].keys() | os.environ.keys() if before[0].get(k) != os.environ.get(k)} - known
    assert not left, f'environment variables that the test changed: {sorted(left)}'
    assert os.getcwd() == before[1], 'the test changed the working folder'


# --- what tests use

@pytest.fixture(scope='session')
def practice(tmp_path_factory):
    "A practice set with 20 training and 5 test images a class. Tests only read it."
    return make_synthetic(tmp_path_factory.mktemp('data')/'practice', n_train=20, n_test=5)

@pytest.fixture
def interruptible():
    "As in a shell's foreground: its background jobs ignore Ctrl-C"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

@pytest.fixture
def go(practice, tmp_path):
    "Train on the practice set into a folder of this test's own"
    from cifar_fastai.training import train
    from small_runs import tiny
    def f(recipe=tiny, name='run', **kwargs):
        return train(recipe, source=practice, run_dir=tmp_path/name, num_workers=0, **dict(device='cpu') | kwargs)
    return f


@pytest.fixture(scope='module')
def dls(practice):
    "Loaders of the practice set that tests only read from"
    from fastai.torch_core import set_seed
    from cifar_fastai.data import cifar10_dataloaders
    set_seed(0)
    return cifar10_dataloaders(practice, bs=32, num_workers=0)


@pytest.fixture
def bare_machine(tmp_path, monkeypatch):
    "A machine with no data on it and no network. Returns its cache folder."
    from cifar_fastai import sources
    monkeypatch.delenv('CIFAR_FASTAI_DATA', raising=False)
    monkeypatch.setenv('CIFAR_FASTAI_HOME', str(tmp_path/'cache'))
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path/'fastai'))
    monkeypatch.setenv('KERAS_HOME', str(tmp_path/'keras'))
    for name in ('cifar10_archives', 'cifar100_archives'): monkeypatch.setattr(sources, name, ())
    monkeypatch.setattr(sources, 'hub_names', {})
    return tmp_path/'cache'


@pytest.fixture
def plain_pyplot(monkeypatch):
    "No figure may be shown and no setting of matplotlib changed; figures are closed"
    import matplotlib
    import matplotlib.pyplot as plt
    def refuse(*args, **kwargs): raise AssertionError('plt.show was called')
    monkeypatch.setattr(plt, 'show', refuse)
    before = dict(matplotlib.rcParams)
    yield
    plt.close('all')
    assert dict(matplotlib.rcParams) == before


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        answers = self.server.answers.get(self.path, [404])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.server.asked.append(self.path)
        if isinstance(answer, int): return self.send_error(answer)
        content, n_sent, *seconds = answer if isinstance(answer, tuple) else (answer, len(answer))
        begin = int(self.headers.get('Range', 'bytes=0-')[6:-1])
        if begin and self.server.ranges:
            self.server.begun.append(begin)
            if begin >= len(content): return self.send_error(416)
            content, n_sent = content[begin:], max(0, n_sent - begin)
        self.send_response(206 if begin and self.server.ranges else 200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[:n_sent])
        time.sleep(sum(seconds))
        self.close_connection = True

    def log_message(self, *args): pass


@contextmanager
def serving(handler):
    "A server on 127.0.0.1, while the body runs"
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    thread.start()
    try: yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def http_server(monkeypatch):
    """A server on 127.0.0.1. `server.answer('/a.tgz', *answers)` gives one answer after the other, the last one for ever, and
    returns the address. An answer is the content, a status code, or (content, n): the connection drops after n bytes;
    (content, n, seconds): some time later.
    `server.asked` lists the paths that were asked for. With `server.ranges`, it sends parts of files; `server.begun` lists where they began."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with serving(Handler) as server:
        server.answers, server.asked, server.ranges, server.begun = {}, [], False, []

        def answer(path, *answers):
            server.answers[path] = list(answers)
            return f'http://127.0.0.1:{server.server_port}{path}'

        server.answer = answer
        yield server


@pytest.fixture
def silent_server(monkeypatch):
    "The address of a server that accepts connections and never answers"
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with socket.create_server(('127.0.0.1', 0)) as server: yield f'http://127.0.0.1:{server.getsockname()[1]}'


chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


@pytest.fixture(scope='module')
def browser():
    if chromium is None: pytest.skip('no chromium on this machine')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=['--no-sandbox'])
        yield browser
        browser.close()


@pytest.fixture
def tab(browser):
    "A tab, and what it asked for and complained about"
    made = []
    def open_tab(width, scheme='light'):
        context = browser.new_context(viewport=dict(width=width, height=900), color_scheme=scheme)
        made.append(context)
        page, requests, errors = context.new_page(), [], []
        page.on('request', lambda o: requests.append(o.url))
        page.on('pageerror', lambda o: errors.append(str(o)))
        page.on('console', lambda o: errors.append(o.text) if o.type == 'error' else None)
        return page, requests, errors
    yield open_tab
    for context in made: context.close()


@pytest.fixture(scope='module')
def learn(practice):
    "A learner to ask, which tests leave as it was"
    from fastai.torch_core import set_seed
    from small_learner import fitted_learner, loaders
    set_seed(0)  # of its batches
    return fitted_learner(loaders(practice))


@pytest.fixture(scope='module')
def result(learn):
    "What it says of the test images"
    from cifar_fastai.evaluation import evaluate
    return evaluate(learn)


@pytest.fixture
def in_memory(practice, result):
    "Its images as plain tensors"
    from small_learner import tensor_loaders
    return tensor_loaders(practice, result)
