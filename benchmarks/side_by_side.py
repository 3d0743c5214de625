"""What the benchmarks share that compare two ways of doing the same: each side in a process of its own, in turns, and a row of medians."""
import csv
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from cifar_fastai.training import hardware, versions

results = Path(__file__).parent/'results'

def in_turns(script, args, sides, runs=3):
    "`script` once for each side and run, `script ARGS SIDE`, whose last line is JSON -> {side: [what it printed]}"
    measured = {side: [] for side in sides}
    for _ in range(runs):
        for side in sides:
            out = subprocess.run([sys.executable, script, *args, side], check=True, capture_output=True, text=True).stdout
            measured[side].append(json.loads(out.splitlines()[-1]))
    return measured

def medians(measured, *keys):
    "{side}_{key}: the median of a figure over the runs"
    return {f'{side}_{key}': round(statistics.median(o[key] for o in runs), 2) for key in keys for side, runs in measured.items()}

def machine():
    "What the figures depend on, besides the code"
    about,installed = hardware(),versions()
    return {k: about[k] for k in ('cpu', 'instructions', 'cores', 'threads')} | {k: installed[k] for k in ('python', 'torch', 'fastai', 'cifar_fastai')}

def kind_of_machine(device):
    "The columns in which rows of machines as quick as each other are alike; a GPU's rows don't depend on the processor beside it"
    return ('device', 'instructions') if device == 'cpu' else ('device', 'gpu')

def cpu_seconds():
    "Of this process, and of children that have ended"
    return sum(os.times()[:4])

def write_rows(path, rows):
    "A CSV file, written whole or not at all; if the last row has columns that the others lack, its order counts"
    part,known,new = path.with_name(f'{path.name}.part'),list(rows[0]),list(rows[-1])
    columns = known if set(new) <= set(known) else [*new, *(k for k in known if k not in new)]
    with part.open('w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, columns, restval='', lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)

def read_rows(path): return list(csv.DictReader(path.open(newline='', encoding='utf-8'))) if path.exists() else []

def add_row(name, row, instead_of=()):
    "Add a row to benchmarks/results/NAME.csv, in the place of those that are like it in the columns `instead_of`, and show it"
    path = results/f'{name}.csv'
    like_it = lambda r: instead_of and all(r.get(k) == str(row[k]) for k in instead_of)
    write_rows(path, [*(r for r in read_rows(path) if not like_it(r)), row])
    print('\n'.join(f'{k:20} {v}' for k,v in row.items()))
