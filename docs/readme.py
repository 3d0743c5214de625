"""README.md from nbs/index.ipynb, as nbdev-readme would make it, but without Quarto: `python docs/readme.py [--check]`.

Pictures go to docs/images. README.md names them by relative paths, which GitHub shows; setup.py makes them absolute for package indexes."""
import base64, difflib, json, re, sys

import yaml
from nbdev.config import get_config
from nbdev.readme_filter import doc_link
from nbdev.serve import proc_nbs

from build_site import outside_fences

images = 'docs/images/index-{}.png'

def options(source):
    "The `#| name: value` lines of a cell, and its code without them"
    found = dict(re.findall(r'^#\|\s*([\w-]+)\s*:\s*(.*?)\s*$', source, re.M))
    return found, re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()

def markdown(source, doc_url):
    "Point links to notebooks at the site"
    link = lambda m: f']({doc_link(m[1], doc_url)})'
    return outside_fences(lambda text: re.sub(r'\]\(([^)\s]+)\)', link, text), source)

def shown(output, alt, pictures):
    "Markdown that shows one output of a cell; a picture is added to `pictures`, by file name"
    data = output.get('data', {})
    if output.get('name') == 'stderr': return ''
    if 'image/png' in data:
        name = images.format(len(pictures) + 1)
        pictures[name] = base64.b64decode(''.join(data['image/png']))
        return f'![{alt}]({name})'
    if 'text/markdown' in data: return ''.join(data['text/markdown'])
    if 'text/html' in data: return re.sub(r'<style.*?</style>\s*', '', ''.join(data['text/html']), flags=re.S)
    return '\n'.join(f'    {line}'.rstrip() for line in ''.join(data.get('text/plain', output.get('text', ''))).rstrip().split('\n'))

def code(cell, source, pictures):
    "The parts that show a code cell and its outputs"
    opts, source = options(source)
    if source and opts.get('echo') != 'false': yield f'```python\n{source}\n```'
    if opts.get('output') == 'false': return
    for output in cell.get('outputs', []): yield shown(output, opts.get('fig-alt', '').strip('"\''), pictures)

def readme(nb, doc_url):
    "The files made from a notebook that nbdev has processed: {name: content}"
    parts, pictures = [], {}
    for cell in nb['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'raw' and source.startswith('---'):
            front = yaml.safe_load(source.split('---')[1])
            parts += [f'# {front["title"]}', f'> {front["description"]}' if front.get('description') else '']
        elif cell['cell_type'] == 'markdown': parts.append(markdown(source, doc_url))
        elif cell['cell_type'] == 'code': parts += code(cell, source, pictures)
    text = '\n\n'.join(filter(None, (o.strip('\n') for o in parts))) + '\n'
    return {'README.md': text.encode(), **pictures}

def on_disk(root, names):
    "The present content of the files `names` and of any picture made before: {name: content}"
    files = {root / o for o in names} | set(root.glob(images.format('*')))
    return {o.relative_to(root).as_posix(): o.read_bytes() for o in files if o.exists()}

def differences(old, new):
    "Lines that say how files `old` differ from `new`"
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) == new.get(name): continue
        yield f'{name} is not what nbs/index.ipynb makes: run make docs, or python docs/readme.py'
        if name.endswith('.md'):
            lines = [o.get(name, b'').decode().splitlines() for o in (old, new)]
            yield from list(difflib.unified_diff(*lines, name, 'made anew', n=0, lineterm=''))[:20]

def main(check=False):
    cfg = get_config()
    proc = proc_nbs(force=True, file_glob=cfg.readme_nb, n_workers=1)
    new = readme(json.loads((proc / cfg.readme_nb).read_text(encoding='utf-8')), cfg.doc_url)
    old = on_disk(cfg.config_path, new)
    if check: return '\n'.join(differences(old, new)) or 0
    for name in old.keys() - new.keys(): (cfg.config_path / name).unlink()
    for name, content in new.items():
        (cfg.config_path / name).parent.mkdir(exist_ok=True)
        (cfg.config_path / name).write_bytes(content)

if __name__ == '__main__': sys.exit(main('--check' in sys.argv[1:]))
