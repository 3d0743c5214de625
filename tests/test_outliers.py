"Scores by hand and by scikit-learn, a threshold on validation images, and what becomes of both in runs, classifiers, files and reports."
import json
import re
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from cifar_fastai import report
from cifar_fastai.evaluation import compare, evaluate, list_tta, load_evaluation, make_view, tta_views
from cifar_fastai.files import read_json, write_json
from cifar_fastai.inference import create_classifier, load_classifier, save_classifier
from cifar_fastai.outliers import auroc, builtin_outliers, noise_images, ood_score, ood_table, ood_threshold, plot_ood_scores, practice_drawings
from cifar_fastai.recipes import Recipe, Stage
from cifar_fastai.runs import Run
from cifar_fastai.training import load_run, train

tiny = Recipe(name='tiny', model='ladder_0', stages=Stage(epochs=1, lr=3e-3), bs=32)


@pytest.fixture(scope='module')
def learn(practice, tmp_path_factory):
    "A learner after a few steps, and its run folder. Tests only read it."
    return train(tiny, source=practice, run_dir=tmp_path_factory.mktemp('run')/'tiny', num_workers=0, device='cpu')


@pytest.fixture(scope='module')
def valid(learn): return evaluate(learn, 'valid')


@pytest.fixture
def run(learn, tmp_path):
    "A copy of the run folder, to change"
    import shutil
    return Run(shutil.copytree(learn.run_dir, tmp_path/'copy'))


# ---------------------------------------------------------------------------------------------------- figures

@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize('classes', [2, 10])
def test_scores_by_hand(classes, dtype):
    logits = (5*torch.randn(50, classes, generator=torch.manual_seed(0))).to(dtype)
    plain = logits.double().numpy()
    by_hand = dict(energy=np.log(np.exp(plain).sum(1)), max_logit=plain.max(1), max_probability=(np.exp(plain)/np.exp(plain).sum(1, keepdims=True)).max(1))
    for kind, wanted in by_hand.items():
        score = ood_score(logits, kind)
        assert score.dtype == torch.float32
        np.testing.assert_allclose(score, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="Unknown score 'entropy'. Allowed: 'energy', 'max_logit', 'max_probability'"): ood_score(logits, 'entropy')


@pytest.mark.parametrize('n', [1, 7, 20, 1000])
@pytest.mark.parametrize('share', [.5, .95, .951, 1])
def test_a_share_reaches_the_threshold_and_no_higher_one(n, share):
    for values in (np.random.default_rng(n).normal(size=n).astype(np.float32), np.zeros(n), np.arange(n)[::-1] % 5):
        threshold = ood_threshold(values, share)
        assert (values >= threshold).mean() >= share and threshold in values
        higher = values[values > threshold]
        if len(higher): assert (values >= higher.min()).mean() < share


@pytest.mark.parametrize('share', [0, 1.1, -1])
def test_no_such_share(share):
    with pytest.raises(ValueError, match=f'share must be above 0 and at most 1, got {share}'): ood_threshold([1., 2.], share)
    with pytest.raises(ValueError, match='at least one image'): ood_threshold([])


def test_auroc_counts_pairs():
    rng = np.random.default_rng(0)
    known, outliers = rng.integers(0, 9, 40), rng.integers(-2, 7, 30)
    pairs = known[:, None] - outliers
    assert auroc(known, outliers) == pytest.approx((pairs > 0).mean() + (pairs == 0).mean()/2)
    with pytest.raises(ValueError, match='needs scores of both kinds, got 40 and 0'): auroc(known, [])


def test_built_in_outliers():
    for images in builtin_outliers(12, 24).values(): assert images.shape == (12, 24, 24, 3) and images.dtype == np.uint8 and len(np.unique(images, axis=0)) == 12
    for make in noise_images, practice_drawings:
        assert (make(3, 16) == make(3, 16)).all() and (make(3, 16) != make(3, 16, seed=1)).any()
    assert abs(noise_images(50).mean() - 127.5) < 1


def test_table_and_plot():
    known, outliers = np.arange(100.), dict(near=np.arange(50.), far=np.full(20, -5.))
    table = ood_table(known, outliers, 5., 'test images')
    pd.testing.assert_frame_equal(table, pd.DataFrame(dict(images=['test images', 'near', 'far'], n=[100, 50, 20], below=[.05, .1, 1.],
                                                           auroc=[np.nan, auroc(known, outliers['near']), 1.])))
    own = plt.subplots()[1]
    ax = plot_ood_scores(known, outliers, 5., 'test images', own)
    assert ax is own and 'score' in ax.get_xlabel() and '%' in ax.get_ylabel()
    assert [t.get_text() for t in ax.get_legend().texts] == ['test images', 'near', 'far', 'threshold (5.00)']
    for patch, scores in zip(ax.patches, (known, *outliers.values())):  # each reaches from its lowest score to its highest
        values, edges, _ = patch.get_data()
        assert values.max() == 100 and values[0] > 0 < values[-1] and edges[0] <= min(scores) <= max(scores) <= edges[-1]
    plt.close('all')


# ---------------------------------------------------------------------------------------------------- evaluations

def logits_by_hand(learn, split, view='image'):
    parts = []
    with torch.no_grad():
        for x, *_ in learn.dls.loaders[1]: parts.append(learn.model.eval()(make_view(x.as_subclass(torch.Tensor), view)))
    return torch.cat(parts)


@pytest.mark.parametrize('tta', ['', 'flip', 'flip_shift'])
def test_the_score_is_the_mean_over_the_views(learn, tta):
    wanted = sum(weight*torch.logsumexp(logits_by_hand(learn, 'valid', view), 1) for view, weight in tta_views(tta).items())
    result = evaluate(learn, 'valid', tta=tta)
    np.testing.assert_allclose(result.ood_scores, wanted, atol=1e-4)
    assert result.ood_scores.dtype == np.float32 and not result.ood_scores.flags.writeable
    assert ('ood_threshold' in result.to_dict()) == (not tta)


def test_the_score_of_random_views_is_there_too(practice, tmp_path):
    learn = train(tiny.change(augment='flip_crop'), source=practice, limit=60, run_dir=tmp_path/'run', num_workers=0, device='cpu')
    scores = {tta: evaluate(learn, 'test', tta=tta).ood_scores for tta in list_tta()}
    assert all(len(o) == 50 and np.isfinite(o).all() for o in scores.values()) and (scores['fastai'] != scores['']).any()


def test_temperature_and_order_leave_the_score(valid):
    assert (valid.with_temperature(2.).ood_scores == valid.ood_scores).all()
    order = np.random.default_rng(0).permutation(len(valid))
    arrays = {name: getattr(valid, name)[order] for name in ('probs', 'targets', 'losses', 'logsumexp')}
    mixed = replace(valid, files=[valid.files[i] for i in order], **arrays)
    assert (compare(valid, mixed).after.ood_scores == valid.ood_scores).all()


def test_files_keep_the_score_and_older_ones_have_none(valid, tmp_path):
    again = load_evaluation(valid.save(tmp_path/'new.npz'))
    assert (again.ood_scores == valid.ood_scores).all() and again.ood_threshold() == valid.ood_threshold()
    with np.load(tmp_path/'new.npz') as saved: arrays = {name: saved[name] for name in saved if name != 'logsumexp'}
    np.savez_compressed(tmp_path/'old.npz', **arrays)
    old = load_evaluation(tmp_path/'old.npz')
    assert old.logsumexp is None and old.accuracy == valid.accuracy and 'ood_threshold' not in old.to_dict()
    assert compare(old, valid).change == 0 and load_evaluation(old.save(tmp_path/'again.npz')).logsumexp is None
    with pytest.raises(ValueError, match='saved by an older version, which kept no scores. Evaluate again'): old.ood_scores
    for damage in (arrays['losses'][1:], np.full(len(valid), np.nan), np.array(['x']*len(valid))):
        np.savez_compressed(tmp_path/'bad.npz', logsumexp=damage, **arrays)
        with pytest.raises(ValueError, match='bad.npz is not a saved Evaluation, or is damaged'): load_evaluation(tmp_path/'bad.npz')


@pytest.mark.parametrize('split', ['train', 'test'])
def test_a_threshold_is_chosen_on_validation_images(valid, split):
    assert (valid.ood_scores >= valid.ood_threshold()).mean() >= .95 > (valid.ood_scores > valid.ood_threshold()).mean()
    with pytest.raises(ValueError, match=f'chosen on validation images, got the {split} images'): replace(valid, split=split).ood_threshold()


# ---------------------------------------------------------------------------------------------------- runs and classifiers

def test_training_keeps_the_threshold(learn, valid):
    kept = Run(learn.run_dir).metrics['valid']
    assert list(kept) == ['loss', 'accuracy', 'n', 'ood_threshold'] and kept['ood_threshold'] == pytest.approx(valid.ood_threshold(), abs=1e-5)
    assert len(learn.metrics) == 1 and len(learn.recorder.values[-1]) == 3  # as before


def test_answers_below_the_threshold_are_marked(learn, valid, practice):
    classifier = load_classifier(learn.run_dir, 'cpu')
    threshold = Run(learn.run_dir).metrics['valid']['ood_threshold']
    assert classifier.info.ood_threshold == threshold
    said = classifier.predict([practice/f for f in valid.files])
    np.testing.assert_allclose([o.score for o in said], valid.ood_scores, atol=1e-4)
    assert [o.none_of_these for o in said] == [o.score < threshold for o in said]
    one = dict(classifier.iter_predictions([practice/valid.files[0]]))[practice/valid.files[0]]
    assert one.score == pytest.approx(said[0].score, abs=1e-5) and str(replace(one, none_of_these=True)) == f'{one}, none of these?'
    np.testing.assert_allclose(classifier.logits([practice/valid.files[0]]).softmax(1), classifier.probabilities(practice/valid.files[0]))
    assert classifier.logits([]).shape == (0, 10)


def test_a_saved_classifier_keeps_the_threshold(learn, tmp_path):
    threshold = Run(learn.run_dir).metrics['valid']['ood_threshold']
    save_classifier(learn, tmp_path/'saved')
    assert read_json(tmp_path/'saved'/'classifier.json')['ood_threshold'] == threshold == load_classifier(tmp_path/'saved', 'cpu').info.ood_threshold
    assert create_classifier(learn).info == load_classifier(tmp_path/'saved', 'cpu').info
    older = read_json(tmp_path/'saved'/'classifier.json')
    del older['ood_threshold']
    write_json(tmp_path/'saved'/'classifier.json', older)
    said = load_classifier(tmp_path/'saved', 'cpu').predict(Image.new('RGB', (32, 32)))
    assert said.none_of_these is None and np.isfinite(said.score) and 'none' not in str(said)
    for damage in ('3', [1], float('nan')):
        (tmp_path/'saved'/'classifier.json').write_text(json.dumps(older | dict(ood_threshold=damage)))
        with pytest.raises(ValueError, match='classifier.json is damaged'): load_classifier(tmp_path/'saved', 'cpu')


@pytest.mark.parametrize('content', ['{', '{}', '{"valid": {"loss": 1}}', '{"valid": {"ood_threshold": "x"}}', '{"valid": []}', '[]', None])
def test_a_run_without_a_threshold_answers_without_it(run, content):
    if content is None: run.metrics_file.unlink()
    else: run.metrics_file.write_text(content)
    info = run.info
    if 'checksums' in info: write_json(run.info_file, info | dict(checksums={}))
    assert load_classifier(run.folder, 'cpu').predict(Image.new('RGB', (32, 32))).none_of_these is None


def test_other_weights_have_no_threshold(run):
    learn = load_run(run.folder, num_workers=0, device='cpu')
    assert create_classifier(learn).info.ood_threshold is not None
    with torch.no_grad(): next(learn.model.parameters()).add_(.1)
    assert create_classifier(learn).info.ood_threshold is None
    del learn.run_dir
    assert create_classifier(learn).info.ood_threshold is None


@pytest.mark.parametrize('mode, names', [('L', ['a', 'b', 'c']), ('RGB', ['a', 'b'])])
def test_gray_images_and_two_classes(mode, names, tmp_path):
    for split, n in (('train', 12), ('test', 3)):
        for k, name in enumerate(names):
            for i in range(n):
                path = tmp_path/'set'/split/name/f'{i}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.uint8(np.random.default_rng([k, i]).integers(60*k, 60*k + 80, (32, 32)))).convert(mode).save(path)
    learn = train(tiny.change(bs=4), source=tmp_path/'set', run_dir=tmp_path/'run', num_workers=0, device='cpu')
    valid = evaluate(learn, 'valid')
    assert Run(learn.run_dir).metrics['valid']['ood_threshold'] == pytest.approx(valid.ood_threshold(), abs=1e-5)
    classifier = load_classifier(learn.run_dir, 'cpu')
    said = classifier.predict([tmp_path/'set'/f for f in valid.files])
    np.testing.assert_allclose([o.score for o in said], valid.ood_scores, atol=1e-4)
    assert len(classifier.predict(list(noise_images(3)))) == 3


# ---------------------------------------------------------------------------------------------------- the report

def page_of(run_dir, learn, result, valid): return report._Page(Run(run_dir), learn, result, valid)


def test_the_report_shows_scores_and_the_threshold(learn, valid):
    html = report._sections['outliers'].write(page_of(learn.run_dir, learn, evaluate(learn, 'test'), valid))
    cells = [re.sub('<[^>]*>', '', o) for o in re.findall('<td[^>]*>(.*?)</td>', html)]
    scores = create_classifier(learn).logits(noise_images(200)).logsumexp(1).numpy()
    test = evaluate(learn, 'test').ood_scores
    below = lambda o: f'{100*(o < valid.ood_threshold()).mean():.1f}'
    assert cells == ['test images', '50', below(test), '\N{EN DASH}', 'noise', '200', below(scores), f'{100*auroc(test, scores):.1f}']
    assert f'threshold ({valid.ood_threshold():.2f})' in html and 'practice drawings' not in html  # which this network knows


def test_drawings_are_outliers_for_other_networks(learn, valid, monkeypatch):
    page = page_of(learn.run_dir, learn, valid, valid)
    page.info['data'] = page.info['data'] | dict(variant='cifar10')
    assert list(report._outliers_for(page)) == ['noise', 'practice drawings']


def test_the_section_says_why_it_is_left_out(learn, valid):
    old = replace(valid, logsumexp=None)
    write = report._sections['outliers'].write
    with pytest.raises(report._Skip, match='validation images was saved by an older version.*cifar-fastai evaluate .* --split valid'): write(page_of(learn.run_dir, learn, old, old))
    with pytest.raises(report._Skip, match='needs validation images'): write(page_of(learn.run_dir, learn, valid, None))
