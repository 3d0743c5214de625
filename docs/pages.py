"Pages that no notebook makes: the course, the modules, what is written for GitHub; and in what order all of them come"
import csv, re
from pathlib import Path
from string import Template


modules = {  # part of the reference: modules
    'Data': 'data sources augmentation images caching synthetic archives formats downloads limits',
    'Models and recipes': 'models recipes weights optimizers registry',
    'Training': 'training finetuning callbacks checkpoints tracking runs processes experiments tuning summaries',
    'Evaluation and interpretation': 'evaluation metrics interpretation probing robustness outliers report',
    'Use': 'cli main inference exporting hub app all',
    'Tools': 'course exercises grading plotting terminal files errors'}

words = {  # heading: what readers type who look for what is below it; the more alike, the higher it comes
    'Your own images': 'my own images; my own data; custom data set; image folder; ImageFolder',
    'Your own network': 'my own network; my own model; custom model',
    'Labels in a table': 'csv; dataframe',
    'Data sets by name': 'CIFAR-100; Hugging Face; parquet; Kaggle; Keras; torchvision; CIFAR-10.1; CIFAR-10-C; CIFAR-10N; noisy labels',
    'tracking': 'TensorBoard; Weights & Biases; wandb; MLflow; experiment tracking; logging',
    'Platforms and devices': 'GPU; CUDA; MPS; Colab; Windows; macOS',
    'Several GPUs': 'multi-GPU; distributed; DataParallel',
    'Install without CUDA': 'CPU only; install',
    'Working offline': 'offline; proxy; no internet; download',
    'Where weights come from': 'pretrained weights; pretrained model; checkpoint',
    'Can I resume an interrupted run?': 'resume; resume training; continue training; interrupted',
    'How do I fix an "out of memory" error?': 'out of memory; OOM; memory error',
    'What do I do if the loss is nan?': 'nan; loss is nan',
    'inference': 'save a model; deploy; predict',
    'exporting': 'export; export a model; ONNX; ONNX Runtime; int8; quantization; deploy',
    'hub': 'Hugging Face; model card; publish a model; share a model; upload',
    'outliers': 'out-of-distribution; OOD; anomaly detection; unknown class; none of these',
    'app': 'web app; demo; gradio; upload; browser; Docker; serve; calibrated probabilities',
    'experiments': 'grid search; hyperparameters; cross-validation',
    'tuning': 'hyperparameter search; hyperparameter optimization; Optuna; pruning; sweep',
    'How do I find good settings for my data?': 'hyperparameters; find a learning rate; lr_find'}

def findable(text):
    "Below a heading, the words by which the search finds it as well"
    def index(m): return f'{m[0]}\n\n```{{index}} ! {found}\n```' if (found := words.get(m[1], '').replace('; ', ', ! ')) else m[0]
    return re.sub(r'^#+ (.+)$', index, text, flags=re.M)

def md_cell(text): return dict(cell_type='markdown', metadata={}, source=text)

def outside_fences(f, text):
    "Apply `f` to the parts of markdown `text` that are not fenced code"
    return ''.join(o if o.startswith('```') else f(o) for o in re.split(r'(^```.*?^```[ \t]*$)', text, flags=re.M | re.S))

def about(nb):
    "Title and description of a staged notebook"
    meta = nb['metadata']['myst']['html_meta']
    return meta['property=og:title'], meta['description']

def project_pages(cfg):
    "What is written for GitHub: links within the repository lead there"
    at = f'{cfg.git_url}/blob/{cfg.branch}/'
    for name in ('CHANGELOG', 'CONTRIBUTING'):
        text = (cfg.config_path / f'{name}.md').read_text(encoding='utf-8')
        yield name.lower(), outside_fences(lambda s: re.sub(r'\]\((?![a-z]+:|#)', f']({at}', s), text)

def lesson(page, nb, seconds):
    "A part of the page of the course: a tutorial, and what its introduction promises"
    title,description = about(nb)
    text = [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'markdown']
    exercises = sum(o.count('**Exercise ') for o in text)
    promises = re.findall(r'^- (.+?)[;.]?$', '\n'.join(text[1:4]), re.M)
    takes = f'{seconds:.0f} seconds' if seconds < 60 else f'{seconds/60:.1f} minutes'
    after = 'After it you can\n\n' + '\n'.join(f'- {o}' for o in promises) if promises else ''
    return f'### {title}\n\n[{description}]({Path(page).name}.ipynb). {exercises} exercises; the cells run for {takes}. {after}'

def course_page(cfg, tutorials):
    "Who the course is for, what it needs, and its tutorials: {notebook: (page, staged)}"
    with open(cfg.config_path / 'benchmarks/results/tutorials.csv', newline='', encoding='utf-8') as f:
        measured = [r for r in csv.DictReader(f) if r['variant'] != 'synthetic']
    seconds = {r['tutorial']: float(r['seconds']) for r in measured}
    lessons = [lesson(page, nb, seconds[Path(src).stem]) for src, (page, nb) in tutorials.items()]
    gib = max(float(r['mib']) for r in measured)/1024
    text = Template((cfg.config_path / 'docs/course.md').read_text(encoding='utf-8'))
    return text.substitute(tutorials='\n\n'.join(lessons), exercises=sum(o.count('**Exercise ') for _,nb in tutorials.values() for o in map(str, nb['cells'])),
                           minutes=f'{sum(seconds.values())/60:.0f}', memory=f'{gib:.0f}', git_url=cfg.git_url)

def modules_page(staged):
    "All modules, in order of use"
    parts = [f'## {part}\n\n' + '\n'.join(f'- [`{o}`]({o}.ipynb): {about(staged[o])[1].rstrip(".")}' for o in names.split()) for part, names in modules.items()]
    return '# Modules\n\n{.lead}\nThe reference, in order of use\n\n' + '\n\n'.join(parts)

def nav(names):
    "The hidden toctrees that make the left nav; `names`: {notebook: page}"
    def within(folder): return [page for src, page in names.items() if Path(src).parent.as_posix() == folder]
    listed = ' '.join(modules.values()).split()
    apart = set(listed) ^ {page for src, page in names.items() if src[0].isdigit()}
    if apart: raise ValueError(f'docs/pages.py puts every module in one part of the reference; not so {sorted(apart)}')
    parts = {'Tutorials': ['The course <tutorials/index>', *within('tutorials')], 'Guides': within('guides'),
             'Results': [o for o in within('.') if o not in ('index', *listed)], 'Reference': ['Overview <modules>'],
             **{part: names.split() for part, names in modules.items()}, 'Project': ['changelog', 'contributing']}
    return md_cell('\n\n'.join(f'```{{toctree}}\n:hidden:\n:caption: {part}\n\n' + '\n'.join(pages) + '\n```' for part, pages in parts.items()))
