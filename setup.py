"Reads settings.ini for everything that pyproject.toml calls dynamic."
from configparser import ConfigParser
from pathlib import Path
import re

from setuptools import find_packages, setup

here = Path(__file__).parent
read = lambda name: (here / name).read_text(encoding='utf-8')
found = lambda pattern, text: re.search(pattern, text, re.M)[1]

ini = ConfigParser(delimiters=['='])
ini.read_string(read('settings.ini'))
cfg = ini['DEFAULT']
lines = lambda key: cfg[key].strip().splitlines()

packages = find_packages(here)
lib, = [o for o in packages if '.' not in o]  # the only package in this folder
extras = {key.removesuffix('_requirements'): lines(key) for key in cfg if key.endswith('_requirements')}
extras['course'] += extras['interpret']  # the tutorials end with a report, which has a section for each of these packages
extras['app'] += extras['interpret']  # for heatmaps
repository = found(r'^Repository *= *"(.+)"', read('pyproject.toml'))

def absolute(m):
    "A relative link or image of README.md as an address, since a package index cannot follow it"
    return f'{m[1]}{repository}/{"raw" if m[1].startswith("!") else "blob"}/HEAD/'

setup(
    version=found(r'^__version__ *= *[\'"](.+)[\'"]', read(f'{lib}/__init__.py')),
    long_description=re.sub(r'(!?\[[^]]*\]\()(?!\w+:|#)', absolute, read('README.md')),
    long_description_content_type='text/markdown',
    license_expression=cfg['license'],
    author=cfg['author'],
    author_email=cfg['author_email'],
    keywords=cfg['keywords'].split(),
    classifiers=lines('classifiers'),
    packages=[*packages, f'{lib}.tutorials', f'{lib}.results'],
    package_dir={f'{lib}.tutorials': 'nbs/tutorials', f'{lib}.results': 'benchmarks/results'},  # the notebooks travel with the package, and what they quote
    package_data={lib: ['py.typed'], f'{lib}.tutorials': ['*.ipynb'], f'{lib}.results': ['training.csv']},
    install_requires=lines('requirements'),
    extras_require=extras,
    entry_points={'console_scripts': lines('console_scripts'), 'nbdev': [f'{lib}={lib}._modidx:d']},
)
