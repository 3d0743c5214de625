"One page that holds everything, says what the figures say, and reads well in a browser."
import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from fastai.learner import Learner
from PIL import Image
import torch

from cifar_fastai import report
from cifar_fastai.evaluation import Evaluation, compare, evaluate, load_evaluation
from cifar_fastai.files import write_json
from cifar_fastai.recipes import Recipe, Stage
from cifar_fastai.report import write_report
from cifar_fastai.runs import Run
from cifar_fastai.training import load_run, train


@pytest.fixture(scope='module')
def runs(practice, tmp_path_factory):
    "Two learners, the second trained longer, whose runs were evaluated on the test images"
    folder, made = tmp_path_factory.mktemp('runs'), []
    for name, epochs in (('short', 1), ('longer <b>', 3)):
        recipe = Recipe(name='quick', model='ladder_3', stages=Stage(epochs=epochs, lr=.01), bs=64)
        learn = train(recipe, source=practice, limit=1000, run_dir=folder/name, num_workers=0, device='cpu')
        test = evaluate(learn, 'test')
        test.save(learn.run_dir/'test.npz')
        (learn.run_dir/'metrics.json').write_text(json.dumps(dict(test=test.to_dict())))
        made.append(learn)
    return made


@pytest.fixture(scope='module')
def page(runs): return write_report(runs[1], against=runs[0])


@pytest.fixture(scope='module')
def text(page): return page.read_text(encoding='utf-8')


def without_checksums(folder): write_json(folder/'run.json', Run(folder).info | dict(checksums={}))
def shown(text): return re.sub(r'\s+', ' ', re.sub('<[^>]*>', ' ', text))
def section(text, name): return re.search(f'<section id="{name}">(.*?)</section>', text, re.S)[1]
def rows(html): return [[re.sub('<[^>]*>', '', cell) for cell in re.findall('<td[^>]*>(.*?)</td>', row)] for row in re.findall('<tr>(.*?)</tr>', html)][1:]


every_section = ['summary', 'curves', 'classes', 'confusion', 'confused', 'sure', 'attention', 'calibration', 'coverage', 'labels', 'robustness', 'outliers',
                 'features', 'changes', 'how', 'left-out']  # no image of the practice set is there twice


# ---------------------------------------------------------------------------------------------------- what it says

def test_every_section_is_there_and_linked(page, text):
    assert page.name == 'report.html' and re.findall('<section id="(.*?)">', text) == re.findall('<li><a href="#(.*?)">', text) == every_section


def test_one_file_is_all(page, text):
    assert page.stat().st_size < 5_000_000
    assert not re.search(r'(src|href)="(?!data:|#)', text) and '@import' not in text and not re.search(r'url\((?!#|"#|data:)', text)


def test_every_picture_has_words(text):
    images = re.findall('<img [^>]*>', text)
    assert len(images) > 50 and all(re.search('alt="[^"]{10,}"', o) for o in images)
    charts = re.findall('<div class="scroll" role="img" aria-label="([^"]*)">', text)
    assert len(charts) >= 9 and all(len(o) > 20 for o in charts) and text.count('<svg') == len(charts)
    ids = re.findall(' id="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_figures_are_those_of_the_run(runs, text):
    result, about = load_evaluation(runs[1].run_dir/'test.npz'), json.loads((runs[1].run_dir/'run.json').read_text())
    summary = shown(section(text, 'summary'))
    low, high = result.accuracy_interval()
    assert f'{result.accuracy:.2%}' in summary and f'{low:.1%} to {high:.1%}' in summary and f"{sum(about['parameters'].values()):,} parameters" in summary
    expected = [[o['class'], str(o['n']), f"{100*o['precision']:.1f}", f"{100*o['recall']:.1f}", f"{100*o['f1']:.1f}", f"{100*o['f1_low']:.1f} to {100*o['f1_high']:.1f}"]
                for o in result.per_class(.95).to_dict('records')]
    assert [[o[0], o[1], o[2], o[4], o[6], o[7]] for o in rows(section(text, 'classes'))] == expected
    assert f'loss {result.losses.max():.2f}' in section(text, 'sure') and section(text, 'confusion').count('<svg') == 2
    assert [(a, b, int(n)) for a, b, n in rows(section(text, 'confusion'))] == result.most_confused()[:15]
    assert f'final accuracy {pd.read_csv(runs[1].run_dir/"history.csv").accuracy.iloc[-1]:.1%}' in section(text, 'curves')


def test_the_comparison_is_that_of_the_runs(runs, text):
    before, after = (load_evaluation(o.run_dir/'test.npz') for o in runs)
    said = shown(section(text, 'changes'))
    assert f'accuracy {after.accuracy:.2%}, before {before.accuracy:.2%}' in said
    assert f'{(after.correct & ~before.correct).sum():,} images fixed, {(before.correct & ~after.correct).sum():,} broken' in said
    first = compare(before, after).per_class().iloc[0]
    assert f'{100*first.low:+.1f} to {100*first.high:+.1f}'.replace('-', '\N{MINUS SIGN}') in rows(section(text, 'changes'))[0]


def test_names_are_text_and_not_markup(text): assert 'longer &lt;b&gt;' in text and 'longer <b>' not in text


def test_passes_are_not_made_again(runs, page, monkeypatch):
    "Of the split and the validation images nothing is evaluated whose file lies there"
    seen = []
    monkeypatch.setattr(report, 'evaluate', lambda *args, **kwargs: seen.append(args))
    monkeypatch.setattr(report, '_sections', {'summary': report._sections['summary']})
    write_report(runs[1], path=runs[1].run_dir/'again.html')
    assert not seen


def test_a_learner_that_was_trained_further_is_seen_as_it_is(runs, monkeypatch, tmp_path):
    folder = shutil.copytree(runs[1].run_dir, tmp_path/'run')
    learn = load_run(folder, num_workers=0, device='cpu')
    monkeypatch.setattr(report, '_sections', {'summary': report._sections['summary']})
    kept = {p.name: p.read_bytes() for p in folder.glob('*.npz')}
    with torch.no_grad(): next(learn.model.parameters()).neg_()
    seen, real = [], report.evaluate
    monkeypatch.setattr(report, 'evaluate', lambda learn, split: seen.append(real(learn, split)) or seen[-1])
    text = write_report(learn, path=tmp_path/'after.html').read_text(encoding='utf-8')
    assert [o.split for o in seen] == ['test', 'valid'] and f'{seen[0].accuracy:.2%}' in text
    assert {p.name: p.read_bytes() for p in folder.glob('*.npz')} == kept


def test_other_data_are_evaluated_anew(runs, practice, monkeypatch, tmp_path):
    seen, real = [], report.evaluate
    monkeypatch.setattr(report, 'evaluate', lambda learn, split: seen.append(split) or real(learn, split))
    monkeypatch.setattr(report, '_sections', {'summary': report._sections['summary']})
    kept = (runs[1].run_dir/'test.npz').read_bytes()
    write_report(runs[1].run_dir, path=tmp_path/'other.html', source=practice)
    assert seen == ['test', 'valid'] and (runs[1].run_dir/'test.npz').read_bytes() == kept


def test_an_evaluation_of_other_images_of_the_same_names_is_refused(runs, tmp_path):
    folder = shutil.copytree(runs[1].run_dir, tmp_path/'run')
    replace(load_evaluation(folder/'test.npz'), fingerprint='0'*16).save(folder/'test.npz')
    with pytest.raises(ValueError, match='test.npz is an evaluation of other images than those in'): write_report(folder)


@pytest.mark.slow
def test_test_images_are_read_only_if_they_were(practice, tmp_path):
    learn = train(Recipe(name='quick', model='ladder_0', stages=Stage(epochs=1, lr=.01), bs=64), source=practice, limit=300, run_dir=tmp_path/'run', num_workers=0)
    text = write_report(learn).read_text(encoding='utf-8')
    assert 'validation images' in text and not (tmp_path/'run'/'test.npz').exists() and (tmp_path/'run'/'valid.npz').exists()
    assert 'no temperature was fitted' in shown(section(text, 'calibration'))


# ---------------------------------------------------------------------------------------------------- what is missing

def written(name, page):
    "The HTML of a section, or the reason why there is none"
    try: return report._sections[name].write(page)
    except (report._Skip, ValueError) as e: return str(e)


def body(runs, name, **changes):
    result = replace(load_evaluation(runs[1].run_dir/'test.npz'), **changes)
    return written(name, report._Page(Run(runs[1].run_dir), runs[1], result, None))


@pytest.mark.parametrize('name, package', [('attention', 'captum'), ('labels', 'cleanlab')])
def test_a_missing_package_costs_one_section(runs, monkeypatch, name, package):
    monkeypatch.setattr(report, 'find_spec', lambda o: None)
    assert body(runs, name) == f'Needs {package}: pip install "cifar_fastai[interpret] @ git+https://github.com/cifar-fastai/cifar_fastai"'


def test_a_section_without_anything_to_show_is_named_in_the_last_one(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(report, 'find_spec', lambda o: None)
    monkeypatch.setattr(report, '_most_compared', 10)
    text = write_report(runs[1], path=tmp_path/'report.html').read_text(encoding='utf-8')
    *filled, last = re.findall('<section id="(.*?)">', text)
    assert filled == [o for o in every_section if o not in ('attention', 'labels', 'changes', last)] and last == 'left-out'
    assert all(re.search('<svg|<table|<img|<dl', section(text, o)) for o in filled)
    assert [shown(o).partition(':')[0] for o in re.findall('<li>(.*?)</li>', section(text, last))] == ['Grad-CAM', 'Possible label errors', 'Duplicates']


@pytest.mark.parametrize('name', ['confused', 'sure', 'attention'])
def test_missing_images_cost_no_more_than_their_sections(runs, name): assert 'The image files were not found.' in body(runs, name, root='/nowhere')


def test_duplicates_are_told(runs, practice, tmp_path, monkeypatch):
    copied = shutil.copytree(practice, tmp_path/'set')
    learn = SimpleNamespace(dls=SimpleNamespace(path=copied))
    def section(): return written('duplicates', report._Page(Run(runs[1].run_dir), learn, None, None))
    assert 'No image occurs more than once.' in section()
    cat = next((copied/'train'/'cat').iterdir())
    shutil.copy(cat, copied/'test'/'dog'/'copy.png')
    assert 'in train and test' in section() and f'train/cat/{cat.name} = test/dog/copy.png' in section()
    learn.dls.path = tmp_path
    assert section() == ''  # it is no data set, so nothing is said of it
    learn.dls.path = copied
    monkeypatch.setattr(report, '_most_compared', 10)
    assert '`cifar-fastai data SOURCE --verify` does' in section()


def test_a_model_that_is_always_right(runs):
    result = load_evaluation(runs[1].run_dir/'test.npz')
    perfect = dict(probs=pd.get_dummies(pd.Categorical(result.targets, range(10))).to_numpy(float), losses=result.losses*0)
    assert 'classified correctly' in body(runs, 'confusion', **perfect) and 'classified correctly' in body(runs, 'confused', **perfect)
    for name in ('summary', 'classes', 'sure'): assert re.search('<svg|<table|<img|<dl', body(runs, name, **perfect)), name
    for name in ('calibration', 'coverage', 'labels'): assert body(runs, name, **perfect)
    assert 'classified correctly' in body(runs, 'attention', **perfect)
    page = report._Page(Run(runs[1].run_dir), runs[1], replace(result, **perfect), evaluate(runs[1], 'valid'))
    assert 'already reaches every target accuracy' in report._coverage(page) and 'needs separate validation images' in body(runs, 'coverage', **perfect)


def test_a_section_that_cannot_be_costs_no_other(runs, monkeypatch, tmp_path):
    monkeypatch.setattr(report, 'features', lambda *args, **kwargs: np.ones((5, 3), np.float32))
    monkeypatch.setattr(report, '_sections', {name: report._sections[name] for name in ('classes', 'features')})
    text = write_report(runs[1], path=tmp_path/'report.html').read_text(encoding='utf-8')
    assert 'All images have the same features' in section(text, 'left-out') and len(rows(section(text, 'classes'))) == 10


def test_a_run_that_was_stopped_early(runs, tmp_path):
    folder = shutil.copytree(runs[0].run_dir, tmp_path/'copy')
    header = (folder/'history.csv').read_text().splitlines()[0]
    (folder/'history.csv').write_text(header + '\n')
    without_checksums(folder)
    page = report._Page(Run(folder), runs[0], load_evaluation(folder/'test.npz'), None)
    assert 'before the end of the first epoch' in written('curves', page)


def test_a_run_that_was_validated_on_the_test_images(runs, tmp_path):
    folder = shutil.copytree(runs[0].run_dir, tmp_path/'copy')
    (folder/'recipe.json').write_text(json.dumps(json.loads((folder/'recipe.json').read_text()) | dict(valid='test')))
    without_checksums(folder)
    result = load_evaluation(folder/'test.npz')
    page = report._Page(Run(folder), runs[0], result, replace(result, split='valid'))
    said = {name: written(name, page) for name in ('summary', 'calibration', 'coverage')}
    assert 'optimistic estimate' in said['summary'] and 'validation accuracy' not in said['summary']
    assert 'no temperature was fitted' in said['calibration'] and 'no thresholds' in said['coverage']


def test_an_evaluation_of_other_images_is_not_taken_for_the_runs(runs, tmp_path):
    folder = shutil.copytree(runs[0].run_dir, tmp_path/'copy')
    result = load_evaluation(folder/'test.npz')
    replace(result, files=[f'x{o}' for o in result.files]).save(folder/'test.npz')
    with pytest.raises(ValueError, match='test.npz is an evaluation of other images'): write_report(folder)


def test_a_comparison_reads_the_test_images_only_if_both_runs_did(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(report, '_sections', {'changes': report._sections['changes']})
    folder = shutil.copytree(runs[0].run_dir, tmp_path/'copy')
    for name in ('metrics.json', 'test.npz'): (folder/name).unlink()
    assert 'validation images' in write_report(runs[1], against=folder, path=tmp_path/'a.html').read_text(encoding='utf-8')
    assert not (folder/'test.npz').exists()


def test_large_photographs_become_small(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (800, 600, 3), dtype=np.uint8))
    assert len(report._as_data(noise)) < 15_000 and report._as_data(noise).startswith('data:image/jpeg')
    assert report._as_data(Image.new('RGB', (32, 32))).startswith('data:image/png')


def test_bad_requests(runs, tmp_path):
    with pytest.raises(FileNotFoundError, match='Folder .*nowhere does not exist'): write_report(runs[1], path=tmp_path/'nowhere'/'a.html')
    with pytest.raises(ValueError, match="Unknown split 'train'"): write_report(runs[1], split='train')
    for given in (dict(source='synthetic'), dict(device='cpu')):
        with pytest.raises(ValueError, match='source and device need a run folder'): write_report(runs[1], **given)
    with pytest.raises((ValueError, FileNotFoundError), match='nowhere'): write_report(tmp_path/'nowhere')
    with pytest.raises(ValueError, match='has no run folder'): write_report(Learner(runs[1].dls, runs[1].model, loss_func=runs[1].loss_func))


def test_an_interrupted_report_leaves_the_old_one(runs, page, monkeypatch):
    before = page.read_bytes()
    def stop(*args): raise KeyboardInterrupt
    monkeypatch.setattr(report, '_render', stop)
    with pytest.raises(KeyboardInterrupt): write_report(runs[1])
    assert page.read_bytes() == before and not list(page.parent.glob('*.part'))


def test_damaged_evaluation_is_named(runs, tmp_path):
    folder = shutil.copytree(runs[0].run_dir, tmp_path/'copy')
    (folder/'test.npz').write_bytes(b'PK')
    with pytest.raises(ValueError, match='test.npz is not a saved Evaluation'): write_report(folder)


@pytest.mark.parametrize('name', ['history.csv', 'metrics.json'])
@pytest.mark.parametrize('damage', ['flipped', 'cut', 'binary'])
def test_a_damaged_file_costs_no_more_than_its_section(runs, name, damage, tmp_path, monkeypatch):
    monkeypatch.setattr(report, '_sections', {k: report._sections[k] for k in ('curves', 'classes')})
    folder = shutil.copytree(runs[0].run_dir, tmp_path/'copy')
    data = (folder/name).read_bytes()
    damaged = dict(flipped=data[:9] + bytes([data[9] ^ 1]) + data[10:], cut=data[:len(data)//2], binary=b'\xff\0'*50)[damage]
    (folder/name).write_bytes(damaged)
    text = write_report(folder, split='test').read_text(encoding='utf-8')
    assert ('left-out' in text) == (name == 'history.csv') == ('history.csv is damaged' in section(text, 'left-out' if 'left-out' in text else 'curves')) and len(rows(section(text, 'classes'))) == 10
    assert (folder/name).read_bytes() == damaged


@pytest.mark.parametrize('name', ['run.json', 'recipe.json', 'model.safetensors'])
def test_what_a_report_cannot_do_without_is_named(runs, name, tmp_path):
    folder = shutil.copytree(runs[0].run_dir, tmp_path/'copy')
    data = bytearray((folder/name).read_bytes())
    data[len(data)//2] ^= 1
    (folder/name).write_bytes(data)
    with pytest.raises(ValueError, match=f'{name} is damaged'): write_report(folder)
    assert not (folder/'report.html').exists()


# ---------------------------------------------------------------------------------------------------- in a browser

@pytest.fixture
def opened(tab, page):
    def open_page(width, scheme='light'):
        opened = tab(width, scheme)
        opened[0].goto(page.as_uri())
        return opened
    return open_page


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [390, 1280])
def test_page_in_a_browser(opened, page, width, scheme):
    tab, requests, errors = opened(width, scheme)
    assert [o for o in requests if not o.startswith('data:')] == [page.as_uri()] and errors == []
    assert tab.evaluate('document.documentElement.scrollWidth') <= width
    assert tab.locator('section').count() == len(every_section)
    for name in every_section: assert tab.locator(f'#{name}').bounding_box()['height'] > 60
    assert tab.evaluate("Promise.all([...document.images].map(o => o.decode().then(() => o.naturalWidth > 0))).then(o => o.length > 50 && o.every(Boolean))")
    assert not re.search('#(000000|444444|0b0c0d)', tab.locator('#robustness').inner_html())  # would be lost in the dark
    ground, ink = tab.evaluate("(o => [o.backgroundColor, o.color])(getComputedStyle(document.body))")
    brightness = lambda color: sum(map(int, re.findall(r'\d+', color)[:3]))
    assert (brightness(ground) > brightness(ink)) == (scheme == 'light')
    assert tab.evaluate("getComputedStyle(document.querySelector('#classes svg text')).fill") == ink


def test_columns_sort_both_ways(opened):
    tab, _, errors = opened(1280)
    cells = lambda i: tab.locator(f'#classes tbody tr td:nth-child({i})').all_inner_texts()
    tab.get_by_role('button', name='f1 %').click()
    scores = list(map(float, cells(7)))
    assert scores == sorted(scores) and len(scores) == 10
    tab.get_by_role('button', name='f1 %').click()
    assert list(map(float, cells(7))) == scores[::-1]
    tab.locator('#classes thead button', has_text='class').click()
    assert cells(1) == sorted(cells(1)) and errors == []
    assert tab.locator('#classes th[aria-sort=ascending]').count() == 1


def test_links_lead_to_sections(opened):
    tab, _, _ = opened(390)
    tab.locator('nav a', has_text='Calibration').click()
    assert abs(tab.locator('#calibration h2').bounding_box()['y']) < 200

def test_an_accuracy_that_cannot_be_had_has_no_threshold():
    probs, targets = np.tile([1., 0.], (100, 1)), np.repeat([0, 1], [95, 5])
    said = Evaluation(probs, targets, np.where(targets, 69., 0), [f'#{i}' for i in range(100)], ['a', 'b'], split='valid')
    row = report._selective(said, said, .99)
    assert np.isnan(row['confidence threshold']) and row['coverage'] == 0 and np.isnan(row['accuracy'])
    assert report._selective(said, said, .95)['accuracy'] == .95

def test_pictures_on_a_page_stay_as_they_are():
    for mode in 'RGB', 'RGBA', 'P':
        image = Image.new(mode, (224, 200))
        assert 'data:image/jpeg' in report.tiles([image], [['x']], ['x'])
        assert image.size == (224, 200) and image.mode == mode
