"""An entry of the API reference, from an object's source: its signature, its docstring, and what each parameter or field means.

nbdev resolves types, which makes them long, and loses the comments of `**kwargs` and of a class's fields; here all is as it is written."""
import ast, inspect, io, re, textwrap, tokenize
from enum import Enum
from functools import cached_property

from fastcore.xtras import is_namedtuple

width = 78  # characters of code that a page has room for
_re_value = re.compile(r"(?<![\w`'])('(?:[^\s'`]+(?: [^\s'`]+){0,3})?')(?![\w`'])")  # 'train', in a comment: a value, and no word in quotes

def definition(obj):
    "Lines of its source, and the number of the first"
    obj = getattr(obj, 'fget', None) or getattr(obj, 'func', obj)  # of a property, cached or not
    return inspect.getsourcelines(inspect.unwrap(obj))

def first_line(obj): return definition(obj)[1]

class Source:
    "The definition of a function or class, with its comments"
    def __init__(self, obj):
        self.text = textwrap.dedent(''.join(definition(obj)[0]))
        self.tree = ast.parse(self.text).body[0]
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        self.comments = {t.start[0]: t.string.lstrip('# ').strip() for t in tokens if t.type == tokenize.COMMENT}

    def code(self, node):
        "As it is written, in one line"
        return ' '.join(ast.get_source_segment(self.text, node).split()) if node else ''

    @cached_property
    def params(self):
        "(name, type, default, comment) of each parameter; a comment is that of the last parameter on its line"
        a = self.tree.args
        plain = [*a.posonlyargs, *a.args]
        defaults = [None]*(len(plain) - len(a.defaults)) + a.defaults
        found = [(p.arg, p, d) for p,d in zip(plain, defaults)]
        if a.vararg: found.append((f'*{a.vararg.arg}', a.vararg, None))
        found += [(p.arg, p, d) for p,d in zip(a.kwonlyargs, a.kw_defaults)]
        if a.kwarg: found.append((f'**{a.kwarg.arg}', a.kwarg, None))
        last = {p.lineno: name for name,p,_ in found}
        return [(name, self.code(p.annotation), self.code(d), self.comments.get(p.lineno, '') if last[p.lineno] == name else '')
                for name,p,d in found if name not in ('self', 'cls')]

    @property
    def keyword_only(self): return {o.arg for o in self.tree.args.kwonlyargs} if not self.tree.args.vararg else set()

    @property
    def returns(self):
        "Type and comment"
        node = self.tree.returns
        if node is None: return '', ''
        taken = {p.lineno for p in ast.walk(self.tree.args) if isinstance(p, ast.arg)}
        return self.code(node).strip('\'"'), '' if node.end_lineno in taken else self.comments.get(node.end_lineno, '')

    @property
    def fields(self):
        "As `params`, of a dataclass or named tuple"
        return [(o.target.id, self.code(o.annotation), self.code(o.value), self.comments.get(o.end_lineno, ''))
                for o in self.tree.body if isinstance(o, ast.AnnAssign) and not o.target.id.startswith('_')]

def signature(name, params, keyword_only=(), returns=''):
    "How it is called, in lines that fit a page"
    words = [n + (f'={d}' if d else '') for n,_,d,_ in params]
    star = next((i for i,p in enumerate(params) if p[0] in keyword_only), None)
    if star is not None: words.insert(star, '*')
    end = ')' + (f' -> {returns}' if returns not in ('', 'None') else '')
    line = f'{name}({", ".join(words)}{end}'
    if len(line) <= width: return line
    return f'{name}(\n' + textwrap.fill(', '.join(words), width, initial_indent='    ', subsequent_indent='    ', break_long_words=False, break_on_hyphens=False) + f'\n{end}'

def prose(text):
    "Markdown for a comment or docstring, in which `code` is the only mark"
    parts = re.split(r'(`[^`]*`)', _re_value.sub(r'`\1`', text))
    return ''.join(o if o.startswith('`') else o.replace('*', r'\*').replace('<', '&lt;') for o in parts)

def table(rows):
    "Two columns: what it is called, with type and default, and what it means"
    code = lambda s: f'`{s}`'
    if not any(meaning for *_,meaning in rows): return ''
    cells = [(code(name + (f': {type}' if type and name else type) + (f' = {default}' if default else '')), prose(meaning)) for name,type,default,meaning in rows]
    return '{.api}\n| | |\n| --- | --- |\n' + '\n'.join('| ' + ' | '.join(c.replace('|', r'\|') for c in row) + ' |' for row in cells)

def entry(obj, name):
    "Markdown: signature, docstring, and a table"
    if isinstance(obj, type): return class_entry(obj, name)
    doc,source = inspect.getdoc(obj) or '',Source(obj)
    returned,meaning = source.returns
    if isinstance(obj, (property, cached_property)): head,rows = f'{name}{f": {returned}" if returned else ""}  # property',[]
    else: head,rows = signature(name, source.params, source.keyword_only, returned),source.params
    if meaning: rows = [*rows, ('', f'-> {returned}', '', meaning)]
    return join(head, doc, table(rows))

def class_entry(cls, name):
    "Of a class: what it takes, if it says so itself"
    source,bases = Source(cls),[b.__name__ for b in cls.__bases__ if b not in (object, tuple)]
    head = f'class {name}({", ".join(bases)})' if bases else ''
    if issubclass(cls, Enum): rows = []
    elif hasattr(cls, '__dataclass_fields__') or is_namedtuple(cls): rows = source.fields
    elif inspect.isfunction(init := vars(cls).get('__init__')):
        rows = Source(init).params
        head = f'class {signature(name, rows, Source(init).keyword_only)}' + (f'  # a {", ".join(bases)}' if bases else '')
    else: rows = []
    return join(head, inspect.getdoc(cls) if cls.__doc__ and not cls.__doc__.startswith(f'{cls.__name__}(') else '', table(rows))

def join(head, doc, rows): return '\n\n'.join(filter(None, [head and f'```python\n{head}\n```', prose(doc), rows]))
