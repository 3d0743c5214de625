"""README.md from nbs/index.ipynb, as nbdev-readme would make it, but without Quarto: `python docs/readme.py [--check]`.

Images go to docs/images. Links to images, notebooks and folders of the repository are relative, so that they work on GitHub and in a clone,
whether or not the site is published; setup.py makes them absolute for package indexes."""
import base64, difflib, json, re, sys
from pathlib import Path

import yaml
from nbdev.config import get_config, nbpath2html
from nbdev.doclinks import nbglob
from nbdev.serve import proc_nbs

from pages import outside_fences

images = 'docs/images/index-{}.png'

def options(source):
    "The `#| name: value` lines of a cell, and its code without them"
    found = dict(re.findall(r'^#\|\s*([\w-]+)\s*:\s*(.*?)\s*$', source, re.M))
    return found, re.sub(r'^#\|.*\n?', '', source, flags=re.M).strip()

def notebooks(cfg):
    "{page of the site: notebook, or what says the same}, the paths relative to the site and to the repository"
    found = (Path(o).resolve().relative_to(cfg.nbs_path) for o in nbglob(cfg.nbs_path))
    return {nbpath2html(o).as_posix(): f'{cfg.nbs_path.name}/{o.as_posix()}' for o in found} | {'tutorials/index.html': f'{cfg.nbs_path.name}/benchmarks.ipynb'}

def markdown(source, cfg):
    "Point links to notebooks, to pages of the site and to the repository at files of the repository"
    pages,site,repository = notebooks(cfg),cfg.doc_host + cfg.doc_baseurl,f'{cfg.git_url}/tree/{cfg.branch}/'
    def link(m):
        target = m[1].split('#')[0]
        if target.startswith(repository): return f']({target.removeprefix(repository)})'
        page = target.removeprefix(site).lstrip('/')
        if target.endswith('.ipynb') and '://' not in target: return f']({cfg.nbs_path.name}/{target})'
        return f']({pages[page]})' if target.startswith(site) and page in pages else m[0]
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

def readme(nb, cfg):
    "The files made from a notebook that nbdev has processed: {name: content}"
    parts, pictures = [], {}
    for cell in nb['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'raw' and source.startswith('---'):
            front = yaml.safe_load(source.split('---')[1])
            parts += [f'# {front["title"]}', f'> {front["description"]}' if front.get('description') else '']
        elif cell['cell_type'] == 'markdown': parts.append(source)
        elif cell['cell_type'] == 'code': parts += code(cell, source, pictures)
    text = markdown('\n\n'.join(filter(None, (o.strip('\n') for o in parts))) + '\n', cfg)
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
    new = readme(json.loads((proc / cfg.readme_nb).read_text(encoding='utf-8')), cfg)
    old = on_disk(cfg.config_path, new)
    if check: return '\n'.join(differences(old, new)) or 0
    for name in old.keys() - new.keys(): (cfg.config_path / name).unlink()
    for name, content in new.items():
        (cfg.config_path / name).parent.mkdir(exist_ok=True)
        (cfg.config_path / name).write_bytes(content)

if __name__ == '__main__': sys.exit(main('--check' in sys.argv[1:]))
