"README.md is made from nbs/index.ipynb by docs/readme.py."
import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from nbdev.config import get_config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'docs'))

from readme import differences, on_disk, readme

picture = base64.b64encode(b'png').decode()


def code(source, *outputs):
    return dict(cell_type='code', source=source, outputs=list(outputs))


def made(*cells):
    return readme(dict(cells=list(cells)), get_config())


def text(*cells):
    return made(*cells)['README.md'].decode()


def test_title_and_subtitle():
    assert text(dict(cell_type='raw', source='---\ntitle: pack\ndescription: A course\n---')) == '# pack\n\n> A course\n'


def test_links_to_notebooks_are_relative_but_not_in_code():
    assert text(dict(cell_type='markdown', source='[d](03_data.ipynb#x)\n\n```\n[d](03_data.ipynb)\n```')) == (
        '[d](nbs/03_data.ipynb)\n\n```\n[d](03_data.ipynb)\n```\n')


@pytest.mark.parametrize('target, relative', [
    ('{doc_url}training.html#create_learner', 'nbs/05_training.ipynb'), ('{doc_url}tutorials/transfer.html', 'nbs/tutorials/04_transfer.ipynb'),
    ('{git_url}/tree/main/benchmarks/results', 'benchmarks/results'), ('https://docs.fast.ai/learner.html#learner', 'https://docs.fast.ai/learner.html#learner')])
def test_links_to_the_site_and_the_repository_are_relative(target, relative):
    cfg = get_config()
    target = target.format(doc_url=cfg.doc_url, git_url=cfg.git_url)
    assert text(dict(cell_type='markdown', source=f'[a]({target})')) == f'[a]({relative})\n'


@pytest.mark.parametrize('cell, expected', [
    (code('#| echo: false\nf()', dict(text=['a\n', 'b\n'])), '    a\n    b\n'),
    (code('#| output: false\nf()', dict(text='a')), '```python\nf()\n```\n'),
    (code('f()', dict(name='stderr', text='progress')), '```python\nf()\n```\n'),
    (code('f()', dict(data={'text/html': '<style>x</style>\n<b>1</b>', 'text/plain': '1'})), '```python\nf()\n```\n\n<b>1</b>\n'),
    (code('#| echo: false\nf()', dict(data={'text/markdown': '**1**', 'text/html': '<b>1</b>'})), '**1**\n')])
def test_code_and_outputs(cell, expected):
    assert text(cell) == expected


def test_pictures_are_files():
    files = made(code('#| echo: false\n#| fig-alt: "A cat"\nf()', dict(data={'image/png': picture}), dict(data={'image/png': picture})))
    assert files.pop('README.md').decode() == '![A cat](docs/images/index-1.png)\n\n![A cat](docs/images/index-2.png)\n'
    assert files == {f'docs/images/index-{i}.png': b'png' for i in (1, 2)}


def test_differences_are_told(tmp_path):
    new = made(code('f()', dict(data={'image/png': picture})))
    for name, content in {**new, 'docs/images/index-9.png': b'old', 'docs/images/logo.png': b'kept'}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert [o.split()[0] for o in differences(on_disk(tmp_path, new), new)] == ['docs/images/index-9.png']
    (tmp_path / 'README.md').write_text('# old\n')
    assert '-# old' in list(differences(on_disk(tmp_path, new), new))
    assert not list(differences(new, new))


def test_readme_is_what_the_index_makes():
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, 'docs/readme.py', '--check'], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_first_screen():
    "What shows in a terminal of 80 x 40 characters: a sentence, the results, how to begin, a figure"
    screen = ''
    for line in (Path(__file__).resolve().parent.parent / 'README.md').read_text(encoding='utf-8').splitlines():
        screen += f'{line}\n'
        if sum(max(1, -(-len(o) // 80)) for o in screen.splitlines()) >= 40: break
    assert re.search(r'minutes on two CPU cores', screen)
    for part in ('| [small_cnn]', 'cifar-fastai train ', 'cifar-fastai predict ', '![Six'): assert part in screen, part
