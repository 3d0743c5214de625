"Sphinx settings, which `docs/build_site.py` uses. Names, links and version come from where the project states them."
import re
import sys
from importlib.metadata import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from nbdev.config import get_config
from sphinx.domains.python import ObjectEntry
from sphinx.util import logging

cfg = get_config()
project, author, release = cfg.title, metadata(cfg.lib_name)['Author'], cfg.version
copyright = f'%Y, {author}'  # Sphinx fills in the year

extensions = ['myst_nb', 'sphinx_copybutton']
root_doc = 'index'
suppress_warnings = ['myst.header']        # a `show_doc` heading is an H3, even right under the H1
exclude_patterns = ['**.ipynb_checkpoints']
nb_execution_mode = 'off'                 # the outputs are those saved in the notebooks
nb_ipywidgets_js = {}                     # else widget pages load require.js from a CDN
nb_merge_streams = True
nb_code_prompt_show, nb_code_prompt_hide = 'Show the code', 'Hide the code'
nb_render_markdown_format = 'myst'         # the default knows no tables
myst_enable_extensions = ['dollarmath', 'amsmath', 'attrs_inline', 'attrs_block', 'colon_fence', 'deflist', 'smartquotes']
myst_heading_anchors = 4
myst_heading_slug_func = 'conf.slug'
copybutton_exclude = '.linenos, .gp, .go'
html_math_renderer = 'mathml'             # no MathJax: nothing is loaded from a CDN

html_theme = 'sphinx_book_theme'
html_title = cfg.title
html_static_path = ['_static']
html_favicon = '_static/favicon.svg'
html_css_files = ['site.css']
html_js_files = ['site.js']
html_search_scorer = str(Path(__file__).parent / 'scorer.js')
html_baseurl = cfg.doc_url
html_copy_source = False
html_show_sourcelink = False
html_last_updated_fmt = None
html_context = dict(default_mode='auto')    # light or dark, as the reader's system says
html_theme_options = dict(
    repository_url=cfg.git_url, repository_branch=cfg.branch, path_to_docs='nbs', repository_provider='github',
    use_repository_button=True, use_issues_button=True, use_download_button=False, use_fullscreen_button=False,
    logo=dict(text=f'{cfg.title} {cfg.version}'), home_page_in_toc=True, navbar_persistent=[], show_toc_level=2, show_navbar_depth=2)

def slug(title):
    "The anchor Quarto would give a heading: `Meter.add` -> `meter.add`, which is what nbdev's index points at"
    return re.sub(r'[^\w\s.-]', '', title.lower()).strip().replace(' ', '-')

def add_anchors(app, doctree):
    "docutils turns `moving_avg` into `moving-avg`; give each heading nbdev's anchor as well"
    for sec in doctree.findall(nodes.section):
        s = sec.get('slug')
        if s and s not in sec['ids']: sec['ids'].append(s)

def list_symbols(app, env):
    "Put what nbdev exported in Sphinx's index of Python names: search finds it, and other projects can link to it"
    from importlib import import_module
    syms = import_module(f'{cfg.lib_path.name}._modidx').d['syms']
    py = env.get_domain('py')
    for mod, objs in syms.items():
        for full, (html, _) in objs.items():
            page, _, anchor = html.partition('#')
            doc, name = page.removesuffix('.html'), full.removeprefix(mod + '.')
            if doc not in env.found_docs or name.split('.')[-1].startswith('_'): continue
            kind = 'method' if '.' in name else 'class' if name[0].isupper() else 'function'
            if any(anchor in s['ids'] for s in env.get_doctree(doc).findall(nodes.section)): py.objects[full] = ObjectEntry(doc, anchor, kind, False)

def mathml(self, node, display):
    try: self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=display))
    except MathError as e:
        logging.getLogger(__name__).warning('cannot typeset %r: %s', node.astext(), e, location=node)
        self.body.append(f'<code>{self.encode(node.astext())}</code>')
    raise nodes.SkipNode

def title_of_home(app, pagename, templatename, context, doctree):
    if pagename == root_doc: context['title'] = cfg.description

def setup(app):
    app.add_html_math_renderer('mathml', (lambda s, n: mathml(s, n, False), None), (lambda s, n: mathml(s, n, True), None))
    app.connect('doctree-read', add_anchors)
    app.connect('env-updated', list_symbols)
    app.connect('html-page-context', title_of_home)
