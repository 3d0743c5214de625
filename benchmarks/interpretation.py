"""Five questions that both can answer, asked of fastai's interpretation class and of an `Evaluation`: `python benchmarks/interpretation.py runs/small_cnn-seed0`

Accuracy, confusion matrix, most confused pairs, a report of each class and the top losses of the test images, whose pixels are in memory
already. Each side runs in a process of its own, in turns, three times. A row goes to benchmarks/results/interpretation.csv: medians of the
seconds, passes of the network over the images, and by how many MiB the peak of the process's memory grew."""
import csv
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path

from fastai.interpret import ClassificationInterpretation

from cifar_fastai.data import test_dataloader
from cifar_fastai.evaluation import evaluate
from cifar_fastai.training import load_run

results = Path(__file__).parent/'results'/'interpretation.csv'

def ask_fastai(learn, dl):
    "Five questions, to fastai"
    said = ClassificationInterpretation.from_learner(learn, dl=dl)
    matrix = said.confusion_matrix()
    pairs = said.most_confused(min_val=5)
    with redirect_stdout(io.StringIO()): said.print_classification_report()
    said.top_losses(9)
    return matrix.tolist(),sorted((str(a), str(b), int(n)) for a, b, n in pairs)

def ask_evaluation(learn, dl):
    "The same, to an Evaluation"
    said = evaluate(learn, dl)
    pairs = said.most_confused(min_count=5)
    said.accuracy,said.per_class(.95),said.top_losses(9)
    return said.confusion_matrix().tolist(),sorted(pairs)

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def measure(ask, run):
    "Ask once, in this process"
    learn = load_run(run)
    dl = test_dataloader(learn.dls)
    for _ in dl: pass  # reads the images
    images = []
    learn.model.register_forward_hook(lambda model, args, out: images.append(len(out)))
    before,start = peak(),time.perf_counter()
    with learn.no_bar(): said = ask(learn, dl)
    return dict(seconds=time.perf_counter() - start, passes=sum(images)/len(dl.dataset), mib=peak() - before, said=said)

def in_own_process(side, run):
    out = subprocess.run([sys.executable, __file__, run, side], check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])

def row(run):
    "Both sides in turns, and what they ran on"
    measured = {side: [] for side in sides}
    for _ in range(3):
        for side in sides: measured[side].append(in_own_process(side, run))
    said = [o['said'] for runs in measured.values() for o in runs]
    if any(o != said[0] for o in said): raise SystemExit('The two do not agree.')
    about,recipe = (json.loads((Path(run)/name).read_text(encoding='utf-8')) for name in ('run.json', 'recipe.json'))
    median = lambda side, key: statistics.median(o[key] for o in measured[side])
    figures = {f'{side}_{key}': round(median(side, key), 2) for key in ('seconds', 'passes', 'mib') for side in sides}
    return dict(recipe=recipe['name'], variant=about['data']['variant'], n_test=about['data']['n_test'], **figures,
                ratio=round(median('fastai', 'seconds')/median('evaluation', 'seconds'), 2), runs=3, device=about['device'], cpu=about['hardware']['cpu'],
                cores=about['hardware']['cores'], **{k: about['versions'][k] for k in ('python', 'torch', 'fastai', 'cifar_fastai')},
                command=f'python benchmarks/interpretation.py {run}')

def main(run, side=None):
    if side: return print(json.dumps(measure(sides[side], run)))
    new = row(run)
    rows = list(csv.DictReader(results.open(newline='', encoding='utf-8'))) if results.exists() else []
    with results.open('w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, list(new), lineterminator='\n')
        writer.writeheader()
        writer.writerows([*rows, new])
    print('\n'.join(f'{k:20} {v}' for k,v in new.items()))

sides = dict(fastai=ask_fastai, evaluation=ask_evaluation)
if __name__ == '__main__': main(*sys.argv[1:])
