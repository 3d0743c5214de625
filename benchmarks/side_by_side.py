"""Shared by the benchmarks: command lines, comparisons in which each side runs in its own process, in turns, and rows of results with their
machine, versions and commit. README.md describes the columns; a `~` in front of a commit means that it was derived afterwards."""
import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch

from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.files import atomic_file
from cifar_fastai.registry import UnknownNameError
from cifar_fastai.runs import hardware, versions

results = Path(__file__).parent/'results'

def count(text):
    "A whole number from 1 up, for argparse"
    n = int(text)
    if n < 1: raise argparse.ArgumentTypeError(f'{n} is too small: at least 1')
    return n

def run_script(main):
    "Call `main`; wrong names and paths exit with one line, and so does a side that failed and has said why"
    try: main()
    except (UnknownNameError, FileNotFoundError) as e: raise SystemExit(f'{Path(sys.argv[0]).name}: {e}') from None
    except subprocess.CalledProcessError as e: raise SystemExit(e.returncode) from None

def in_turns(script, args, sides, runs=3):
    "`script` once for each side and run, `script ARGS SIDE`, whose last line is JSON -> {side: [what it printed]}"
    measured = {side: [] for side in sides}
    for _ in range(runs):
        for side in sides:
            out = subprocess.run([sys.executable, script, *args, side], check=True, stdout=subprocess.PIPE, text=True).stdout
            measured[side].append(json.loads(out.splitlines()[-1]))
    return measured

def medians(measured, *keys):
    "{side}_{key}: the median over the runs"
    return {f'{side}_{key}': round(statistics.median(o[key] for o in runs), 2) for key in keys for side, runs in measured.items()}

def gpu_name(device): return torch.cuda.get_device_name(device) if device.startswith('cuda') else ''

def machine(run=None):
    "What the numbers depend on besides the code: of this process, or from the run.json of a run"
    about,installed = (run['hardware'],run['versions']) if run else (hardware(),versions())
    return {k: about.get(k, '') for k in ('cpu', 'instructions', 'cores', 'threads')} | {k: installed[k] for k in ('python', 'torch', 'fastai', 'cifar_fastai')}

def git(*args):
    "What git says about this repository; an empty string outside a checkout"
    root = Path(__file__).parents[1]
    if not (root/'.git').exists(): return ''
    utc = os.environ | dict(TZ='UTC')
    return subprocess.run(['git', *args], cwd=root, env=utc, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout.strip()

head = git('rev-parse', 'HEAD')  # when this process started, as its code
edited = bool(git('diff', '--name-only', 'HEAD', '--', 'cifar_fastai', 'benchmarks/*.py'))

def commit(started=None):
    "The columns `commit` and `committed` of a row: of this checkout, or, for a run that started before its last commit, of the commit before that run"
    found = git('rev-list', '-1', f'--before={started}', head) if started and head else head
    if not found: return dict(commit='', committed='')
    name,committed = git('log', '-1', '--abbrev=9', '--date=format-local:%Y-%m-%dT%H:%M:%S+0000', '--format=%h %cd', found).split()
    if found != head: return dict(commit=f'~{name}', committed=committed)
    return dict(commit=name + '+'*edited, committed=committed)

def check_machine(runs, device):
    "Refuse runs of an earlier call on another machine or with other versions, since their row would name these: {folder: run.json}"
    for folder,run in runs.items():
        made,here = dict(device=run['device'], gpu=run['hardware']['gpu'], **machine(run)),dict(device=device, gpu=hardware()['gpu'], **machine())
        if other := [f'{k} {made[k]}, not {here[k]}' for k in here if made[k] != here[k]]:
            raise SystemExit(f'{folder} was not made here: {"; ".join(other)}. Choose another --out, or remove it.')

def read_images(recipe, path):
    "Decode all images that the recipe trains and validates on, if they are cached, so that later loaders find them"
    for dl in cifar10_dataloaders(path, bs=recipe.bs, valid=recipe.valid, image_size=recipe.image_size, device='cpu').loaders:
        if cache := getattr(dl.dataset, 'cache', None): cache.take(range(cache.n))  # larger images are read in every epoch

def kind_of_machine(device):
    "The columns that tell machines of different speed apart; rows of a GPU do not depend on the CPU beside it"
    return ('device', 'instructions', 'cores', 'threads') if device == 'cpu' else ('device', 'gpu')

def cpu_seconds():
    "CPU seconds of this process and of children that have ended"
    return sum(os.times()[:4])

def write_rows(path, rows):
    "Write a CSV file atomically; if a row has columns that the first lacks, its order of columns counts"
    columns = list(rows[0])
    for new in map(list, rows):
        if not set(new) <= set(columns): columns = [*new, *(k for k in columns if k not in new)]
    with atomic_file(path) as part, part.open('w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, columns, restval='', lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)

def read_rows(path): return list(csv.DictReader(path.open(newline='', encoding='utf-8'))) if path.exists() else []

def add_row(name, row, instead_of=()):
    "Add a row to benchmarks/results/NAME.csv, replacing those with the same values in the columns `instead_of`, and print it"
    path = results/f'{name}.csv'
    row = row | {k: v for k,v in commit().items() if k not in row}
    like_it = lambda r: instead_of and all(r.get(k) == str(row[k]) for k in instead_of)
    write_rows(path, [*(r for r in read_rows(path) if not like_it(r)), row])
    print('\n'.join(f'{k:20} {v}' for k,v in row.items()))
