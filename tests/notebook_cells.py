"""Cells of notebooks: what their code says, and running those that nbdev-test would.

A process that runs a notebook imports nothing else of the tests."""
import ast
import os
import re
import sys
from pathlib import Path

from execnb.shell import CaptureShell
from nbdev.test import nb_test_cells

root = Path(__file__).resolve().parent.parent
imports = ast.Import, ast.ImportFrom
functions = ast.FunctionDef, ast.AsyncFunctionDef


class Cell:
    "The code of a cell, without what is no Python, and its directives."
    def __init__(self, source):
        self.directives = {m[1]: m[2].strip() for m in re.finditer(r'^#\|\s*([\w-]+):?(.*)$', source, re.M)}
        self.exported = bool(self.directives.keys() & {'export', 'exports', 'exporti'})
        python = '' if source.lstrip().startswith('%%') else re.sub(r'^(\s*)[%!].*$', r'\1pass', source, flags=re.M)
        self.tree = ast.parse(python)


# --- saved outputs

# A cell with one of these words trains, reads a run folder, measures time, or shows the machine, so that it shows something else each time.
not_again = re.compile(r'\b(fit|fit_one_cycle|fine_tune|lr_find|find_lr|lr-find|run_grid|tune|backward|clock|seconds|versions|show_doc)\b|(?<![.\w])train[ (]|\bruns/')


def saved_text(outputs):
    "What outputs show, as words, without the names of temporary folders and digests"
    data = [o.get('text') or o.get('data', {}) for o in outputs if o.get('name') != 'stderr']
    texts = [o.get('text/html') or o.get('text/markdown') or o.get('text/plain', '') if isinstance(o, dict) else o for o in data]
    words = re.sub(r'<style.*?</style>|<[^>]*>', ' ', '\n'.join(''.join(o) for o in texts), flags=re.S)
    return ' '.join(re.sub(r'\btmp\w{8}\b|(?<![.\w])[0-9a-f]{8,}\b', '...', words).split())


def says_the_same(saved, new):
    "Whether two texts differ in nothing but the last digit of decimal fractions, which depends on the processor"
    pattern = r'(\d+\.\d+(?:e-?\d+)?)'
    a, b = re.split(pattern, saved), re.split(pattern, new)
    def close(x, y): return abs(float(x) - float(y)) <= max(1.5*10**-len(x.partition('.')[2]), 1e-4*abs(float(x)))
    return a[::2] == b[::2] and all(map(close, a[1::2], b[1::2]))


def names_made_and_used(cell):
    "The variables, functions and classes that a cell makes, and the names that it uses"
    nodes = list(ast.walk(cell.tree))
    names = [o for o in nodes if isinstance(o, ast.Name)]
    made = {o.id for o in names if isinstance(o.ctx, ast.Store)} | {o.name for o in nodes if isinstance(o, (*functions, ast.ClassDef))}
    return made, {o.id for o in names if isinstance(o.ctx, ast.Load)}


# --- running

def execute(path, changes, log, data='synthetic', compared=True, all_cells=True):
    """Run the cells that nbdev-test would, with `changes` of their code; without `all_cells` only those that show the same each time.
    What fails is told in `log`, or else, if `compared`, which cells show something else than what is saved."""
    os.environ['CIFAR_FASTAI_DATA'] = data
    os.environ.pop('COLUMNS', None)  # the width of a table
    os.chdir(path.parent)
    sys.path.insert(0, str(root))
    shell, differ, stale = CaptureShell(path, mpl_format='png'), set(), []  # names that are something else each time; texts
    for cell in nb_test_cells(path, ['cuda', 'network']):
        source = cell.source
        for old, new in changes.items(): source = source.replace(old, new)
        parsed = Cell(source)
        made, used = names_made_and_used(parsed)
        only_imports = all(isinstance(o, imports) for o in parsed.tree.body)
        differs = source != cell.source or used & differ or not (parsed.exported or only_imports) and not_again.search(re.sub(r'#.*', '', source))
        differ = differ | made if differs else differ - made
        if differs and not all_cells: continue
        new = saved_text(shell.run(source))
        if shell.exc:
            log.write_text(f'{path.name} failed in the cell\n\n{source}\n\n{shell.prettytb()}', encoding='utf-8')
            sys.exit(1)
        saved = saved_text(cell.outputs)
        if compared and not differs and not says_the_same(saved, new):
            stale.append(f'{path.name}, cell {cell.id}:\n{source}\n\nsaved: {saved[:2000]}\n\nnew:   {new[:2000]}')
    log.write_text('\n\n'.join(stale), encoding='utf-8')
    sys.exit(bool(stale))
