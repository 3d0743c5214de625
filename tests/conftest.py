"What several test files use: a small practice set, a pyplot that must be left alone, a web server on this machine, and a browser."
import os
import shutil
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

os.environ.setdefault('MPLBACKEND', 'Agg')

import pytest

from cifar_fastai.synthetic import make_synthetic


@pytest.fixture(scope='session')
def practice(tmp_path_factory):
    "A practice set with 20 training and 5 test images a class. Tests only read it."
    return make_synthetic(tmp_path_factory.mktemp('data')/'practice', n_train=20, n_test=5)


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
        content, n_sent = answer if isinstance(answer, tuple) else (answer, len(answer))
        self.send_response(200)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        self.wfile.write(content[:n_sent])
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
    returns the address. An answer is the content, a status code, or (content, n): the connection drops after n bytes.
    `server.asked` lists the paths that were asked for."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    with serving(Handler) as server:
        server.answers, server.asked = {}, []

        def answer(path, *answers):
            server.answers[path] = list(answers)
            return f'http://127.0.0.1:{server.server_port}{path}'

        server.answer = answer
        yield server


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
