"""Which classes a run confuses most on the test images: `python benchmarks/confusions.py runs/small_cnn-seed0`

Writes a row of benchmarks/results/confusions.csv for each pair of an actual and a predicted class with at least --min-count images, as
`result.most_confused(min_count=50)` on the README lists them. The run must have been evaluated on the test split."""
import argparse

from record_run import read
import side_by_side
from side_by_side import commit, count, machine, read_rows, run_script, write_rows

def confusion_rows(folder, min_count):
    "The pairs of classes that a run confuses, in the order of their number"
    run,recipe,metrics = read(folder)
    about = dict(n_test=metrics['test']['n'], test_accuracy=metrics['test']['accuracy'], variant=run['data']['variant'], device=run['device'],
                 precision=run['precision'], gpu=run['hardware']['gpu'] or '', **machine(run), started=run['started'],
                 command=f'python benchmarks/confusions.py runs/{recipe["name"]}-seed{run["seed"]} --min-count {min_count}', **commit(run['started']))
    for actual,predicted,images in metrics['test']['most_confused']:
        if images >= min_count: yield dict(recipe=recipe['name'], seed=run['seed'], actual=actual, predicted=predicted, images=images, **about)

def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run', help='folder of a run')
    parser.add_argument('--min-count', type=count, default=50, help='fewest images of a pair (%(default)s)')
    args = parser.parse_args()
    rows = list(confusion_rows(args.run, args.min_count))
    if not rows: raise SystemExit(f'{args.run} confuses no pair of classes {args.min_count} times. Nothing was written.')
    path,of = side_by_side.results/'confusions.csv',('recipe', 'seed', 'variant')
    others = [r for r in read_rows(path) if any(r[k] != str(rows[0][k]) for k in of)]
    write_rows(path, [*others, *rows])
    for row in rows: print(f'{row["actual"]} as {row["predicted"]}: {row["images"]} images')

if __name__ == '__main__': run_script(main)
