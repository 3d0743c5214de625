"""A row of benchmarks/results/training.csv for each run folder: `python benchmarks/record_run.py runs/small_cnn-seed0 ...`

The run must have been evaluated on the test split (`cifar-fastai evaluate RUN`). A run that has a row already is left alone."""
import csv
import json
import sys
from pathlib import Path

results = Path(__file__).parent/'results'/'training.csv'

def row(folder):
    "What one run folder says, in one line"
    read = lambda name: json.loads((folder/name).read_text(encoding='utf-8'))
    run,recipe,metrics = read('run.json'),read('recipe.json'),read('metrics.json')
    if run['status'] != 'finished' or 'test' not in metrics: raise SystemExit(f'{folder}: not finished, or not evaluated on the test split')
    data,versions,hardware = run['data'],run['versions'],run['hardware']
    return dict(recipe=recipe['name'], model=recipe['model'], variant=data['variant'], n_train=data['n_train'], n_valid=data['n_valid'],
                n_test=metrics['test']['n'], seed=run['seed'], epochs=run['epochs'], train_seconds=run['seconds'],
                valid_accuracy=metrics['valid']['accuracy'], test_accuracy=metrics['test']['accuracy'], test_loss=metrics['test']['loss'],
                parameters=sum(run['parameters'].values()), device=run['device'], cpu=hardware['cpu'], cores=hardware['cores'], gpu=hardware['gpu'] or '',
                python=versions['python'], torch=versions['torch'], fastai=versions['fastai'], cifar_fastai=versions['cifar_fastai'],
                started=run['started'], command=run['command'])

def main(*folders):
    rows = list(csv.DictReader(results.open(newline='', encoding='utf-8'))) if results.exists() else []
    for new in map(row, map(Path, folders)):
        if not any(r['started'] == new['started'] and r['recipe'] == new['recipe'] for r in rows): rows.append(new)
    with results.open('w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, list(rows[0]), lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)

if __name__ == '__main__': main(*sys.argv[1:])
