"""The same five questions for fastai's interpretation class and for an `Evaluation`: `python benchmarks/interpretation.py runs/small_cnn-seed0`

Accuracy, confusion matrix, most confused pairs, a report of each class and the top losses of the test images, which are already in memory.
A third side is the full page of `write_report`, which answers these five and a dozen more (Grad-CAM, corruptions, features, calibration on
the validation images) and reads its images itself. A fourth side is all numbers and tables of an Evaluation and of a comparison, after the
pass. Each side runs in its own process, in turns, three times. A row in benchmarks/results/interpretation.csv has medians of the seconds,
of the passes of the network over the images, and of the growth of the process's peak memory in MiB."""
import argparse
import io
import json
import resource
import shutil
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import cleanlab.filter, cleanlab.rank  # noqa: F401  label_errors imports them at its first call, which is none of what is timed
from fastai.interpret import ClassificationInterpretation

from cifar_fastai.data import test_dataloader
from cifar_fastai.evaluation import compare, evaluate
from cifar_fastai.report import write_report
from cifar_fastai.runs import Run
from cifar_fastai.training import load_run
from side_by_side import add_row, in_turns, machine, medians, run_script

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

def write_page(learn, dl):
    "All questions, as a page, from a run folder without evaluations"
    with tempfile.TemporaryDirectory() as folder:
        learn.run_dir = shutil.copytree(learn.run_dir, Path(folder)/'run', ignore=shutil.ignore_patterns('*.npz'))
        write_report(learn, split='test')

def count_everything(result, other):
    "Every number and table"
    result.to_dict(),result.top_losses(),result.most_confused(),result.to_frame(),result._repr_html_(),result.per_class(.95)
    result.confused(*result.vocab[:2]),result.most_confident(),result.least_confident(),result.reliability(),result.coverage_at(.9),result.label_errors()
    result.with_temperature(replace(result, split='valid').fit_temperature())
    change = compare(other, result)
    change.per_class(),change.confusion_changes(),change.to_frame(),change._repr_html_()

sides = dict(fastai=ask_fastai, evaluation=ask_evaluation, report=write_page, tables=count_everything)

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024

def measure(run, side):
    "Ask once, in this process"
    learn = load_run(run)
    dl = test_dataloader(learn.dls)
    for _ in dl: pass  # reads the images
    images = []
    learn.model.register_forward_hook(lambda model, args, out: images.append(len(out)))
    about = (evaluate(learn, dl),evaluate(learn, dl, tta='flip')) if side == 'tables' else (learn,dl)
    images.clear()
    before,start = peak(),time.perf_counter()
    with learn.no_bar(): said = sides[side](*about)
    return dict(seconds=time.perf_counter() - start, passes=sum(images)/len(dl.dataset), mib=peak() - before, said=said)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', help='folder of a run')
    parser.add_argument('side', nargs='?', help=argparse.SUPPRESS)
    run,side = vars(parser.parse_args()).values()
    if side: return print(json.dumps(measure(run, side)))
    measured = in_turns(__file__, [run], sides)
    said = [o['said'] for side in ('fastai', 'evaluation') for o in measured[side]]
    if any(o != said[0] for o in said): raise SystemExit('The two do not agree.')
    about,recipe = Run.open(run).info,Run(run).recipe
    figures = medians(measured, 'seconds', 'passes', 'mib')
    add_row('interpretation', dict(
        recipe=recipe.name, variant=about['data']['variant'], n_test=about['data']['n_test'], **figures,
        ratio=round(figures['fastai_seconds']/figures['evaluation_seconds'], 2), runs=3, device=about['device'], **machine(),
        command=f'python benchmarks/interpretation.py {run}'))

if __name__ == '__main__': run_script(main)
