"Which rows were measured before a change to the numbers of their recipe, as results/changes.csv lists them"
import csv
from fnmatch import fnmatch
from pathlib import Path

results = Path(__file__).parent/'results'

def changes_since(row):
    "What changed the numbers of a row's recipe after the row's commit; a row without a commit may be older than any change"
    recipe = row.get('recipe', '')
    known = row['committed'] if isinstance(row.get('committed'), str) else ''
    with (results/'changes.csv').open(newline='', encoding='utf-8') as f:
        return [o['what'] for o in csv.DictReader(f)
                if known < o['date'] and any(fnmatch(recipe, pattern) for pattern in o['recipes'].split())]
