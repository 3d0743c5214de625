"""A row in benchmarks/results/training.csv for each run folder: `python benchmarks/record_run.py runs/small_cnn-seed0 ...`

The run must have been evaluated on the test split (`cifar-fastai evaluate RUN`), unless it is a shortened one. If it was also evaluated
with test-time augmentation, the row has both; `evaluate RUN --split train` adds the accuracy on the training images, without augmentation and
dropout. The results of each stage go to stages.csv, and each epoch of a full run goes to curves.csv;
`recipe`, `seed` and `started` join them with training.csv, which has the commit. If a run already has rows, they are replaced in place."""
import argparse
from pathlib import Path


from cifar_fastai.recipes import get_recipe, list_recipes
from cifar_fastai.runs import Run
from side_by_side import commit, read_rows, results, run_script, write_rows

def read(folder):
    "What a run folder says: run.json, recipe.json, metrics.json"
    found = Run.open(folder)
    run,recipe,metrics = found.info,found.choices,found.metrics
    if run['status'] != 'finished': raise SystemExit(f'{folder}: not finished')
    if recipe['name'].endswith('_short'): return run,recipe,metrics
    if run['data']['limit']: raise SystemExit(f'{folder}: trained on {run["data"]["limit"]} images only, and its row would be taken for one of the whole recipe')
    epochs = [sum(s['epochs'] for s in recipe['stages']),get_recipe(recipe['name']).epochs if recipe['name'] in list_recipes() else None]
    if epochs[1] not in (None, epochs[0]): raise SystemExit(f'{folder}: {epochs[0]} epochs, but the recipe {recipe["name"]} has {epochs[1]}. Give it another name')
    if 'test' not in metrics: raise SystemExit(f'{folder}: not evaluated on the test split')
    return run,recipe,metrics

def training_row(folder):
    "What one run folder says, in one line"
    run,recipe,metrics = read(folder)
    data,versions,hardware,test = run['data'],run['versions'],run['hardware'],metrics.get('test', {})
    tta = next((m for name,m in metrics.items() if name == f'test {m.get("tta")}'), {})
    return dict(recipe=recipe['name'], model=recipe['model'], variant=data['variant'], n_train=data['n_train'], n_valid=data['n_valid'],
                n_test=test.get('n', ''), seed=run['seed'], epochs=run['epochs'], train_seconds=run['seconds'], cpu_seconds=run.get('cpu_seconds', ''),
                valid_accuracy=metrics['valid']['accuracy'], test_accuracy=test.get('accuracy', ''), test_loss=test.get('loss', ''),
                tta=tta.get('tta', ''), tta_accuracy=tta.get('accuracy', ''), tta_seconds=tta.get('seconds', ''),
                train_accuracy=round(metrics['train']['accuracy'], 4) if 'train' in metrics else '',
                weights=Path(recipe['weights']).name, image_size=recipe['image_size'],
                parameters=sum(run['parameters'].values()), device=run['device'], precision=run.get('precision', 'fp32'), cpu=hardware['cpu'],
                instructions=hardware.get('instructions', ''), cores=hardware['cores'], threads=hardware['threads'], gpu=hardware['gpu'] or '', python=versions['python'], torch=versions['torch'],
                fastai=versions['fastai'], cifar_fastai=versions['cifar_fastai'], started=run['started'], command=run['command'], **commit(run['started']))

def recalls(folder, epoch):
    "{recall_cat: share of the cats among the validation images that were found}, of CIFAR-10's classes; an older run has none"
    run = Run(folder)
    if not run.recalls_file.exists() or not run.info['data']['variant'].startswith('cifar10'): return {}
    row = run.recalls.set_index('epoch').loc[int(epoch)].drop('stage')
    return {f'recall_{name}': f'{share:.4f}' for name,share in row.items()}

def stage_rows(folder):
    "The results of each stage: the training results of its first and last epoch, and the validation results of the last"
    run,recipe,_ = read(folder)
    for stage,epochs in Run(folder).history.groupby('stage'):
        last = epochs.iloc[-1]
        yield dict(recipe=recipe['name'], variant=run['data']['variant'], weights=Path(recipe['weights']).name, image_size=recipe['image_size'],
                   seed=run['seed'], started=run['started'], stage=stage, epochs=len(epochs),
                   first_train_loss=epochs.train_loss.iloc[0], train_loss=last.train_loss, train_accuracy=last.get('train_accuracy', ''),
                   valid_loss=last.valid_loss, valid_accuracy=last.accuracy, **recalls(folder, last.epoch))

def curve_rows(folder):
    "Each epoch of a run: seconds since the start, losses and accuracy"
    run,recipe,_ = read(folder)
    if recipe['name'].endswith('_short'): return
    for epoch in Run(folder).history.itertuples():
        yield dict(recipe=recipe['name'], variant=run['data']['variant'], weights=Path(recipe['weights']).name, image_size=recipe['image_size'],
                   seed=run['seed'], started=run['started'], epoch=epoch.epoch, seconds=epoch.seconds, train_loss=epoch.train_loss,
                   train_accuracy=getattr(epoch, 'train_accuracy', ''), valid_loss=epoch.valid_loss, valid_accuracy=epoch.accuracy)

def add(path, rows):
    "Put rows into a CSV file, replacing its rows of the same runs but keeping their commit"
    groups,new = {},{}
    for known,several in ((groups, read_rows(path)), (new, rows)):
        for r in several: known.setdefault((r['recipe'], str(r['seed']), r['started']), []).append(r)
    for run in groups.keys() & new.keys():
        for r in new[run]: r.update({k: v for k in ('commit', 'committed') if (v := groups[run][0].get(k)) and k in r})
    if new: write_rows(path, [r for group in (groups | new).values() for r in group])

def record(*folders):
    folders = [Path(f) for f in folders]
    add(results/'training.csv', [training_row(f) for f in folders])
    add(results/'stages.csv', [row for f in folders for row in stage_rows(f)])
    add(results/'curves.csv', [row for f in folders for row in curve_rows(f)])

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder of a run')
    record(*parser.parse_args().runs)

if __name__ == '__main__': run_script(main)
