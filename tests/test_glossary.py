"""The terms of the course: each is bold where a tutorial explains it first, with a link to its entry in the glossary, which links back."""
import json
import re

import pytest

from test_project import expect_none, root


def text_of(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    return '\n\n'.join(''.join(o['source']) for o in cells if o['cell_type'] == 'markdown')


def slug(title): return re.sub(r'[^\w -]', '', title.lower()).replace(' ', '-')


def sections(text):
    "{anchor: text} of the headings of a page; '' is what comes before its first section."
    parts = re.split(r'^#+ (.+)$', text, flags=re.M)
    return {'': re.split('^## ', text, flags=re.M)[0], **{slug(title): part for title, part in zip(parts[1::2], parts[2::2])}}


pages = {o.stem: text_of(o) for o in sorted((root / 'nbs/tutorials').glob('[0-9]*.ipynb'))}
entries = {anchor: text for anchor, text in sections(text_of(root / 'nbs/guides/08_glossary.ipynb')).items() if anchor not in ('', 'glossary')}


def terms(text):
    "The anchors of the terms in bold."
    return re.findall(r'\*\*\[[^]]+\]\(\.\./guides/08_glossary\.ipynb#([\w-]+)\)\*\*', text)


def term_problems(pages, entries):
    "A word in bold is a term with an entry, once in the course; what ends with a point, such as **Try it.**, is a heading."
    seen = {}
    for name, text in pages.items():
        yield from (f'{name}: **{word}** has no link to the glossary' for word in re.findall(r'\*\*([^*]+)\*\*', text)
                    if not word.endswith('.') and not terms(f'**{word}**'))
        for term in terms(text):
            if term not in entries: yield f'{name}: {term} is not in the glossary'
            if term in seen: yield f'{name}: {term} is bold already in {seen[term]}'
            seen[term] = name


def entry_problems(pages, entries):
    "An entry has at most two sentences, and a link to a section of a tutorial where its term is bold."
    for term, text in entries.items():
        *said, link = text.strip().split('\n\n')
        if len(re.findall(r'\.(?=\s|$)', ' '.join(said))) > 2: yield f'{term}: more than two sentences'
        m = re.fullmatch(r'\[[^]]+\]\(\.\./tutorials/(\w+)\.ipynb#?([\w-]*)\)', link)
        if not m: yield f'{term}: its last paragraph is no link to a tutorial'
        elif m[2] not in sections(pages.get(m[1], '')): yield f'{term}: no section {m[2]} in {m[1]}'
        elif term not in terms(sections(pages.get(m[1], ''))[m[2]]): yield f'{term}: not in bold in {m[1]} #{m[2]}'


def test_every_term_has_an_entry(): expect_none(term_problems(pages, entries))

def test_every_entry_leads_to_where_its_term_is_bold(): expect_none(entry_problems(pages, entries))


def test_entries_are_in_order():
    assert len(entries) > 40 and list(entries) == sorted(entries)


bold = '**[learning rates](../guides/08_glossary.ipynb#learning-rate)**'
back = 'The size of a step.\n\n[One](../tutorials/01_one.ipynb#a-step)'


@pytest.mark.parametrize('page, entry, problem', [
    (f'# One\n\n## A step\n\n{bold} **Try it.**', back, ''),
    (f'# One\n\n## A step\n\n{bold} **epoch**', back, '**epoch** has no link'),
    (f'# One\n\n## A step\n\n{bold} {bold}', back, 'bold already in'),
    (f'# One\n\n## A step\n\n{bold.replace("rate)", "rates)")}', back, 'learning-rates is not in the glossary'),
    (f'# One\n\n## Steps\n\n{bold}', back, 'no section a-step'),
    (f'# One\n\n{bold}\n\n## A step', back, 'not in bold'),
    (f'# One\n\n## A step\n\n{bold}', back.replace('#a-step', ''), 'not in bold'),
    (f'# One\n\n{bold}\n\n## A step', back.replace('#a-step', ''), ''),
    (f'# One\n\n## A step\n\n{bold}', back.replace('[One]', 'See [One]'), 'no link to a tutorial'),
    (f'# One\n\n## A step\n\n{bold}', 'One. Two. Three.\n\n' + back, 'more than two sentences')])
def test_the_glossary_is_checked(page, entry, problem):
    pages, entries = {'01_one': page}, {'learning-rate': entry}
    found = [*term_problems(pages, entries), *entry_problems(pages, entries)]
    assert any(problem in o for o in found) if problem else found == []
