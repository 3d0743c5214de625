"""The choices of the recipes of published projects, each beside its source: `results/choices.csv`, which is written by hand.

Columns: `recipes`, name patterns; `choice`, a field (`stages[0].epochs` is one of the first stage) or a fact in words; `source`, what
the project says, empty if it does not say; `ours`; and `why`, if ours is not the source's. `tests/test_choices.py` compares `ours`
with the recipes, and fails when a recipe makes a choice that is not in the table."""
import csv
import re
from ast import literal_eval
from pathlib import Path

from cifar_fastai.recipes import get_recipe, list_recipes

table = Path(__file__).resolve().parent/'results'/'choices.csv'

def recipes_as_published():
    "The recipes of published projects, without those of ours for their networks"
    return [r for r in map(get_recipe, list_recipes()) if re.fullmatch(r'reference project \d', r.source)]

def value(text):
    "What a cell says: a Python literal, or else the text itself"
    try: found = literal_eval(text)
    except (ValueError, SyntaxError): return text
    return tuple(sorted(found.items())) if isinstance(found, dict) else found # as recipes have class weights

def compared(row):
    "'same', 'different', or 'not given' in the source"
    if not row['source']: return 'not given'
    return 'same' if value(row['source']) == value(row['ours']) else 'different'

def choices():
    "The rows of the table, with the names of their recipes, and whether ours is the source's"
    known = {r.name for r in recipes_as_published()}
    with table.open(newline='') as f:
        for row in csv.DictReader(f):
            names = [name for pattern in row['recipes'].split() for name in list_recipes(pattern) if name in known]
            yield row | dict(names=names, compared=compared(row))
