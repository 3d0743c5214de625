"The site, built from the notebooks and looked at in a browser: every page, on a phone and on a desk"
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urljoin, urlparse

import pytest

from cifar_fastai.course import exercises
from test_project import cfg, project_files, root

base = f'{cfg.doc_baseurl}/'  # where the site is, at its host


class Page(HTMLParser):
    "What a page refers to, and what can be referred to in it"
    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.pictures = [], set(), []
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if 'id' in attrs: self.ids.add(attrs['id'])
        if tag == 'a' and attrs.get('href'): self.links.append(attrs['href'])
        if tag == 'img': self.pictures.append((attrs.get('src', ''), attrs.get('alt')))


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The site, built from a copy of the project, in which nothing is left of an earlier one"
    tmp = tmp_path_factory.mktemp('site') / 'project'
    for name in project_files():
        (tmp / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, tmp / name)
    done = subprocess.run([sys.executable, 'docs/build_site.py'], cwd=tmp, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(tmp)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return tmp / '_site/html'


@pytest.fixture(scope='module')
def pages(site): return {o.relative_to(site).as_posix(): Page(o) for o in sorted(site.rglob('*.html')) if '_static' not in o.parts}


@pytest.fixture(scope='module')
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        "As GitHub Pages does: the site is below its name, and 404.html is at every address without a page"
        def log_message(self, *args): pass
        def translate_path(self, path):
            file = super().translate_path(path.removeprefix(cfg.doc_baseurl))
            return str(site / '404.html') if file.endswith('.html') and not os.path.exists(file) else file
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}{base}'
    server.shutdown()


def test_every_notebook_has_a_page(pages):
    names = [re.sub(r'(^|/)\d+_', r'\1', o.removeprefix('nbs/').removesuffix('.ipynb')) + '.html' for o in project_files() if o.startswith('nbs/') and o.endswith('.ipynb')]
    assert len(names) > 20 and not set(names) - set(pages)
    assert {'changelog.html', 'contributing.html', 'search.html'} <= set(pages)


def test_links_and_anchors_lead_somewhere(pages, site):
    broken = []
    for name, page in pages.items():
        for link in page.links:
            url = urlparse(urljoin(name, link))
            if url.scheme or url.netloc: continue
            path = unquote(url.path).removeprefix(base) or name
            if not (site / path).is_file(): broken.append((name, link))
            elif url.fragment and path in pages and unquote(url.fragment) not in pages[path].ids: broken.append((name, link))
    assert broken == []


def test_docstrings_of_modules_lead_to_a_text(site):
    start = 'Docs: https://cifar-fastai.github.io/cifar_fastai/'
    for module in root.glob('cifar_fastai/[a-z]*.py'):
        said = next(line for line in module.read_text(encoding='utf-8').splitlines() if line.startswith(start))
        text = (site / said.removeprefix(start).removesuffix('"""')).read_text(encoding='utf-8')
        assert text.startswith(f'# {module.stem}\n') and not re.search(r'\]\((?!https:)[^)]*\.ipynb', text)


def test_solutions_of_exercises_are_folded_away(site):
    for number in exercises().exercise:
        name, = [o.stem for o in (root / 'nbs/tutorials').glob(f'0{number[0]}_*.ipynb')]
        text = (site / f'tutorials/{name[3:]}.html').read_text(encoding='utf-8')
        folded = re.search(rf'<details class="solution">\s*<summary>Solution of {re.escape(number)}</summary>(.*?)</details>', text, re.S)
        assert folded and 'check' in folded[1] and 'highlight' in folded[1], number
    assert 'class="solution"' not in (site / 'course.html').read_text(encoding='utf-8')


def test_parameters_are_no_links(site):
    rows = re.findall(r'<tr[^>]*>\s*<td><p>(.*?)</p></td>', (site / 'models.html').read_text(encoding='utf-8'), re.S)
    assert len(rows) > 50 and not [r for r in rows if '<a ' in r]


def test_pictures_are_there_and_have_a_text(pages, site):
    poor = [(name, src, alt) for name, page in pages.items() for src, alt in page.pictures
            if not src.startswith('data:') and not (site / unquote(urljoin(name, src)).removeprefix(base)).is_file() or not (alt or '').strip() or (alt or '').startswith('_images') or '../_images' in (alt or '')]
    assert poor == []


cut_off = """() => [...document.querySelectorAll('.bd-article *')].filter(o => o.clientWidth && o.scrollWidth > o.clientWidth + 1
    && ['auto', 'scroll', 'hidden'].includes(getComputedStyle(o).overflowX)).map(o => `${o.tagName} ${o.scrollWidth} > ${o.clientWidth}: ${o.innerText.slice(0, 80)}`)"""


def test_every_page_in_a_browser(tab, pages, address):
    page, requests, errors = tab(1280)
    wide, widths = [], [1280, 390]
    for name in pages:
        page.goto(address + name)
        for width in widths:
            page.set_viewport_size(dict(width=width, height=900))
            if page.evaluate('document.documentElement.scrollWidth > window.innerWidth'): wide.append(f'{name} at {width}')
            if width == 1280: wide += [f'{name}: {cut}' for cut in page.evaluate(cut_off)]
        widths.reverse()  # so that the next page begins as wide as this one ends
    assert errors == [] and wide == []
    assert [o for o in requests if not o.startswith((address, 'data:'))] == [], 'asked somebody else'


def test_tables_look_alike(site, pages):
    tables = [(name, attrs) for name in pages if name != 'genindex.html' for attrs in re.findall(r'<table([^>]*)>', (site / name).read_text(encoding='utf-8'))]
    assert len(tables) > 100 and [o for o in tables if not re.search(r'class="(?:[^"]* )?(?:api|table|dataframe)[ "]', o[1])] == []
    models = (site / 'models.html').read_text(encoding='utf-8')
    assert re.search(r'<table class="dataframe[^>]*>(?:(?!</table>).)*ladder_7', models, re.S), 'one that pandas styled'


def test_names_and_ranges_in_tables(site):
    text = (site / 'benchmarks.html').read_text(encoding='utf-8')
    assert '>small_cnn_<wbr>one_cycle<' in text and '>small_cnn<' in text, 'long names break once, short ones never'
    ranges = re.findall(r'<td>[\d.]+%?(.)to(.)[\d.]+%</td>', text)
    assert ranges and {o for pair in ranges for o in pair} == {'\N{NARROW NO-BREAK SPACE}'}


def test_a_phone_shows_letters_and_signatures(tab, address):
    page, _, errors = tab(390)
    page.goto(address + 'tuning.html')
    assert page.query_selector('.tag_wide img').bounding_box()['width'] > 500, 'four charts beside each other'
    signatures = page.query_selector_all('.source-link + div pre')
    assert len(signatures) > 5 and not any(o.evaluate('o => o.scrollWidth > o.clientWidth') for o in signatures)
    lines = '[...document.querySelectorAll("p .pre")].filter(o => o.textContent.length < 33 && o.getClientRects().length > 1).map(o => o.textContent)'
    assert page.evaluate(lines) == [] and errors == [], 'code is not broken after a hyphen'


def test_dark_is_dark(tab, address):
    page, _, errors = tab(1280, 'dark')
    page.goto(address)
    red, green, blue = map(int, re.findall(r'\d+', page.evaluate('getComputedStyle(document.body).backgroundColor'))[:3])
    assert red + green + blue < 200 and errors == []


def search(tab, address, asked):
    "Addresses of what is found, in order"
    page, requests, errors = tab(1280)
    page.goto(f'{address}search.html?q={asked}')
    page.wait_for_function("document.querySelector('#search-results .search-summary, #search-results p')?.textContent.match(/found|finished/i)", timeout=20_000)
    assert errors == [] and not [o for o in requests if not o.startswith((address, 'data:'))]
    return [o.get_attribute('href') for o in page.query_selector_all('#search-results li > a')]


@pytest.mark.parametrize('asked, found', [('orthogonalize', 'optimizers.html'), ('most_confused', 'evaluation.html'), ('Exercise', 'tutorials/')])
def test_search_finds(tab, address, asked, found):
    assert any(found in o for o in search(tab, address, asked))


@pytest.mark.parametrize('asked, first', [('my own images', 'guides/your_own_images.html'), ('resume', 'guides/questions.html'), ('export', 'exporting.html'),
                                          ('GPU', 'guides/where_it_runs.html'), ('train', 'training.html#train'),
                                          ('overfitting', 'guides/glossary.html#overfitting')])
def test_search_puts_first_what_explains(tab, address, asked, first):
    assert search(tab, address, asked)[0].startswith(first)


def test_a_page_has_nav_contents_and_buttons(tab, address):
    page, _, _ = tab(1280)
    page.goto(address + 'tutorials/make_it_fast.html')
    nav = page.inner_text('.bd-sidebar-primary')
    assert '7. Make it fast' in nav and all(o in nav for o in ('Tutorials', 'Guides', 'Results', 'Reference', 'Project')) and nav.index('Tutorials') < nav.index('Reference')
    assert 'First measure' in page.inner_text('.bd-sidebar-secondary')
    assert {o.inner_text() for o in page.query_selector_all('.page-links a')} == {'Open in Colab', 'Notebook on GitHub'}
    assert page.query_selector('button.copybtn') and page.query_selector('.theme-switch-button')


def test_a_report_in_a_page_follows_the_sites_scheme(tab, address):
    page, _, errors = tab(1280)
    page.goto(address + 'report.html')
    frame, seen = page.query_selector('iframe[srcdoc]').content_frame(), {}
    for theme in ('dark', 'light'):
        page.click('.theme-switch-button')
        page.click(f'.theme-change-button[data-mode={theme}]')
        frame.wait_for_function('theme => document.documentElement.style.colorScheme === theme', arg=theme)
        seen[theme] = frame.evaluate('getComputedStyle(document.body).backgroundColor')
    assert seen == {'light': 'rgb(255, 255, 255)', 'dark': 'rgb(20, 24, 29)'} and errors == []


def test_reference_tells_what_the_source_tells(site):
    page = {o: (site / f'{o}.html').read_text(encoding='utf-8') for o in ('experiments', 'recipes', 'models', 'callbacks')}
    words = {o: re.sub(r'\s+', ' ', re.sub(r'<[^>]+>', '', text)) for o, text in page.items()}
    assert 'a list of values, or one' in words['experiments'], 'a comment of **kwargs'
    assert 'height and width of the network' in words['recipes'], "a comment of a dataclass's field"
    assert 'images: Tensor (N, C, H, W), normalized' in words['models'], 'a comment of a method shown by hand'
    assert page['models'].index('id="small_cnn"') < page['models'].index('id="medium_cnn"') < page['models'].index('id="airbench94"'), 'in the order of the source'
    assert 'H / 2**len(widths)' in words['models'], 'stars that are no markdown'
    assert 'class PlainTensors(Callback)' in words['callbacks'] and 'after_create' not in words['callbacks'], 'nothing that is inherited'
    assert not any('__main__' in o.read_text(encoding='utf-8') for o in site.glob('*.html') if o.stem != 'main')


def test_colab_opens_only_notebooks_that_install_what_they_need(site):
    def has(page): return 'colab.research.google.com' in (site / page).read_text(encoding='utf-8')
    assert has('tutorials/a_first_cnn.html') and not has('benchmarks.html') and not has('models.html')


@pytest.mark.parametrize('button, entry', [('.secondary-toggle', 'dialog a[href="#one-cycle"]')])
def test_contents_of_a_phone_close_when_an_entry_is_chosen(tab, address, button, entry):
    page, _, errors = tab(390)
    page.goto(address + 'tutorials/a_first_cnn.html')
    for leave in (lambda: page.click(entry), lambda: page.keyboard.press('Escape')):
        page.click(button)
        page.wait_for_selector('dialog[open]')
        leave()
        page.wait_for_selector('dialog[open]', state='detached')
        page.wait_for_function(f"document.activeElement === document.querySelector('{button}')", timeout=10_000)
    assert errors == [] and page.url.endswith('#one-cycle')


def test_a_wrong_address_shows_where_to_go_on(tab, address):
    page, requests, errors = tab(1280)
    page.goto(address + 'guides/of/old/nothing.html')
    assert page.inner_text('h1').startswith('Page not found') and page.query_selector('.bd-sidebar-primary').bounding_box()['width'] < 400, 'with its style'
    page.click('article a[href$="tutorials/index.html"]')
    assert page.inner_text('h1').startswith('The course') and errors == []


def test_sitemap_and_cards_name_pages_that_exist(site, pages):
    listed = re.findall(rf'<loc>{re.escape(cfg.doc_url)}(.*?)</loc>', (site / 'sitemap.xml').read_text(encoding='utf-8'))
    assert set(listed) == set(pages) - {'404.html', 'genindex.html', 'search.html'}
    for name in 'index.html', 'data.html', 'tutorials/use_it.html':
        card = {a or b: c for c, a, b in re.findall(r'<meta content="(.*?)" (?:property="og:(.*?)"|name="(twitter.*?)")', (site / name).read_text(encoding='utf-8'))}
        assert card['url'] == cfg.doc_url + name and card['title'] and card['description'] and card['twitter:card']
        assert (site / card['image'].removeprefix(cfg.doc_url)).stat().st_size < 60_000


def test_an_exercise_is_one_box(tab, address):
    page, _, _ = tab(1280)
    page.goto(address + 'tutorials/augmentation.html')
    for task in page.query_selector_all('div.exercise.container'):
        parts = [task]
        while not (parts[-1].get_attribute('class') or '').startswith('solution'): parts.append(parts[-1].evaluate_handle('o => o.nextElementSibling').as_element())
        boxes = [o.bounding_box() for o in parts]
        assert len(boxes) > 2 and all(abs(a['y'] + a['height'] - b['y']) < 1.5 and a['width'] == b['width'] for a, b in zip(boxes, boxes[1:])), 'without gaps'
    assert len(page.query_selector_all('div.exercise.container')) == sum(o.startswith('3.') for o in exercises().exercise)


def test_tests_and_what_was_not_run_are_folded(site):
    data, tables = ((site / f'{o}.html').read_text(encoding='utf-8') for o in ('data', 'reproduction'))
    assert data.count('tag_test') > 5 and not re.search(r'tag_test(?!.{0,200}<details)', data, re.S)
    assert 'not run</td>' not in tables and re.search(r'<details><summary>\d+ not run</summary>', tables)


def test_pages_of_the_course_and_the_modules(site, pages):
    course = re.sub('<[^>]+>', '', (site / 'tutorials/index.html').read_text(encoding='utf-8'))
    assert [re.search(rf'{n}\. .*?exercises; the cells run for [\d.]+ (?:seconds|minutes)', course, re.S) is not None for n in range(1, 9)] == [True]*8 and 'After it you can' in course
    assert {f'{o.stem}.html' for o in root.glob('cifar_fastai/[a-z]*.py')} <= set(pages['modules.html'].links)
    assert f'{cfg.title} {cfg.version}' in (site / 'index.html').read_text(encoding='utf-8')
