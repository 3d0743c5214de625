"One pass over the images, figures that agree with scikit-learn and fastai, and a learner left as it was."
import json
import random
import tarfile
from dataclasses import FrozenInstanceError
from math import ceil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixUp
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.data.transforms import RandomSplitter
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.torch_core import set_seed
from fastai.vision.augment import RandTransform
from fastai.vision.core import TensorImage
from fastai.vision.data import ImageBlock
from scipy.special import log_softmax
from sklearn import metrics as skm
from statsmodels.stats.proportion import proportion_confint
from torch import nn
from torch.utils.data import TensorDataset

from cifar_fastai import data, sources  # not their names: pytest would take `test_files` for a test
from cifar_fastai.evaluation import Evaluation, evaluate, list_tta, load_evaluation, make_view, tta_views
from cifar_fastai.training import create_learner
import small_learner


# ---------------------------------------------------------------------------------------------------- helpers

def learner_of(practice, result, labels, model):
    "One whose images are tensors"
    images = torch.from_numpy(small_learner.normalized(small_learner.pixels(practice)))
    dl = DataLoader(TensorDataset(images, torch.from_numpy(labels)), bs=10)
    dls = DataLoaders(dl, dl, path=practice)
    dls.vocab = result.vocab
    return small_learner.make_learner(dls, model)


def fake(n=500, n_classes=10, seed=0, targets=None, predictions=None, **kwargs):
    "An Evaluation of random probabilities, or of given predictions"
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, n_classes, n) if targets is None else np.array(targets)
    logits = rng.normal(size=(len(targets), n_classes))
    logits[range(len(targets)), targets if predictions is None else predictions] += 1.5 if predictions is None else 9
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    fields = dict(probs=probs, targets=targets, losses=-np.log(probs[range(len(targets)), targets]),
                  files=[f'test/{i:04}.png' for i in range(len(targets))], vocab=[f'class {i}' for i in range(n_classes)])
    return Evaluation(**fields | kwargs)


def network(n_out=10):
    "A small network whose answers depend on the mode it is in"
    return nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                         nn.Dropout(.5), nn.Linear(32, n_out))


@pytest.fixture(scope='module')
def dls(practice): return data.cifar10_dataloaders(practice, bs=16, num_workers=0, device='cpu')


def make_learner(dls, fit=True, **kwargs):
    set_seed(0)
    learn = Learner(dls, network(len(dls.vocab)), loss_func=CrossEntropyLossFlat(), metrics=accuracy, **kwargs)
    if fit:
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    return learn


@pytest.fixture(scope='module')
def learn(dls): return make_learner(dls)


class Passes:
    "Counts the batches and images that a model sees"
    def __init__(self, model): self.model, self.sizes, self.modes = model, [], []
    def seen(self, model, args, output):
        self.sizes.append(len(output))
        self.modes.append(any(m.training for m in model.modules()))
    def __enter__(self):
        self.hook = self.model.register_forward_hook(self.seen)
        return self
    def __exit__(self, *args): self.hook.remove()


# ---------------------------------------------------------------------------------------------------- figures of merit

cases = dict(random=fake(), many_classes=fake(2000, 37), two_classes=fake(30, 2),
             absent_class=fake(targets=[0, 0, 1, 1], predictions=[0, 1, 1, 2], n_classes=4),
             never_predicted=fake(targets=[0, 1, 2, 2], predictions=[0, 0, 0, 0], n_classes=3),
             all_right=fake(targets=[0, 1, 2], predictions=[0, 1, 2], n_classes=3),
             all_wrong=fake(targets=[0, 1, 2], predictions=[1, 2, 0], n_classes=3),
             one_right=fake(targets=[2], predictions=[2], n_classes=3), one_wrong=fake(targets=[2], predictions=[0], n_classes=3))


@pytest.fixture(params=cases, name='case')
def _case(request): return cases[request.param]


def test_accuracy_and_loss_agree_with_scikit_learn(case):
    probs = case.probs / case.probs.sum(1, keepdims=True, dtype=np.float64)
    assert case.accuracy == skm.accuracy_score(case.targets, case.predictions)
    assert case.loss == pytest.approx(skm.log_loss(case.targets, probs, labels=range(len(case.vocab))), abs=1e-6)


@pytest.mark.parametrize('normalize', [False, True])
def test_confusion_matrix_agrees_with_scikit_learn(case, normalize):
    labels = range(len(case.vocab))
    expected = skm.confusion_matrix(case.targets, case.predictions, labels=labels, normalize='true' if normalize else None)
    np.testing.assert_allclose(case.confusion_matrix(normalize), expected, rtol=1e-12)


def test_per_class_agrees_with_scikit_learn(case):
    labels = range(len(case.vocab))
    expected = skm.precision_recall_fscore_support(case.targets, case.predictions, labels=labels, zero_division=0)
    table = case.per_class()
    assert list(table.columns) == ['class', 'n', 'precision', 'recall', 'f1'] and list(table['class']) == case.vocab
    for column, values in zip(('precision', 'recall', 'f1', 'n'), expected): np.testing.assert_allclose(table[column], values, rtol=1e-12)


def test_most_confused_are_the_largest_mistakes(case):
    counts = skm.confusion_matrix(case.targets, case.predictions, labels=range(len(case.vocab)))
    expected = {(a, b): counts[i, j] for i, a in enumerate(case.vocab) for j, b in enumerate(case.vocab) if i != j and counts[i, j]}
    pairs = case.most_confused()
    assert {(a, b): n for a, b, n in pairs} == expected
    assert [n for *_, n in pairs] == sorted(expected.values(), reverse=True)
    assert case.most_confused(min_count=3) == [o for o in pairs if o[2] >= 3]
    assert all(type(n) is int for *_, n in pairs)


def test_top_losses_are_the_highest(case):
    k = min(5, len(case))
    top = case.top_losses(k)
    assert list(top.columns) == ['file', 'actual', 'predicted', 'loss', 'probability']
    np.testing.assert_array_equal(top.loss, np.sort(case.losses)[::-1][:k])
    for i, row in top.iterrows():
        assert row.file == case.files[i] and row.actual == case.vocab[case.targets[i]]
        assert row.predicted == case.vocab[case.predictions[i]] and row.probability == case.probs[i].max()
    assert len(case.top_losses(10**6)) == len(case)


def test_frame_keeps_the_order(case):
    frame = case.to_frame()
    assert list(frame.file) == case.files and np.array_equal(frame.loss, case.losses)
    assert (frame.actual == frame.predicted).mean() == case.accuracy


def test_interval_holds_the_accuracy_and_narrows(case):
    low, high = case.accuracy_interval()
    assert 0 <= low <= case.accuracy <= high <= 1
    narrow_low, narrow_high = case.accuracy_interval(.5)
    assert low <= narrow_low <= narrow_high <= high


@pytest.mark.parametrize('confidence', [0, 1, 95, -1])
def test_confidence_is_a_proportion(confidence):
    with pytest.raises(ValueError, match='between 0 and 1'): fake().accuracy_interval(confidence)


def test_figures_do_not_depend_on_the_order_of_images():
    a, order = fake(), np.random.default_rng(1).permutation(500)
    b = Evaluation(a.probs[order], a.targets[order], a.losses[order], [a.files[i] for i in order], a.vocab)
    assert a.accuracy == b.accuracy and a.loss == pytest.approx(b.loss, rel=1e-12)
    assert a.most_confused() == b.most_confused() and a.per_class().equals(b.per_class())
    assert list(a.top_losses(20).file) == list(b.top_losses(20).file)


def test_dict_is_json_ready(case):
    figures = json.loads(json.dumps(case.to_dict(), allow_nan=False))
    assert figures['accuracy'] == case.accuracy and figures['n'] == len(case) and figures['loss'] == case.loss
    assert np.array_equal(figures['confusion_matrix'], case.confusion_matrix())
    assert pd.DataFrame(figures['per_class']).equals(case.per_class())


def test_summaries_are_readable():
    result = fake(variant='cifar10', vocab=['<b>&', *'bcdefghij'])
    assert 'cifar10 test: 500 images' in repr(result) and f'{result.accuracy:.2%}' in repr(result)
    page = result._repr_html_()
    assert '&lt;b&gt;&amp;' in page and '<b>' not in page and 'precision' in page
    assert 'most confused' not in repr(cases['all_right'])


def test_bounds_of_each_class_agree_with_statsmodels(case):
    table, counts = case.per_class(.9), case.confusion_matrix()
    right = counts.diagonal()
    for name, n in (('precision', counts.sum(0)), ('recall', counts.sum(1))):
        has = n > 0
        low, high = proportion_confint(right[has], n[has], .1, method='wilson')
        np.testing.assert_allclose(table[f'{name}_low'][has], low, atol=1e-12)
        np.testing.assert_allclose(table[f'{name}_high'][has], high, atol=1e-12)
        assert (table[f'{name}_low'][~has] == 0).all() and (table[f'{name}_high'][~has] == 1).all()
    assert (table.f1_low <= table.f1 + 1e-12).all() and (table.f1 <= table.f1_high + 1e-12).all()
    assert table[case.per_class().columns].equals(case.per_class())


def test_images_of_two_classes_both_ways():
    result = fake(2000, 4, vocab=['cat', 'dog', 'frog', 'ship'])
    table = result.confused('cat', 'dog')
    counts = {(a, b): n for a, b, n in result.most_confused()}
    assert len(table) == counts['cat', 'dog'] + counts['dog', 'cat'] > 20
    assert table.groupby(['actual', 'predicted']).size().to_dict() == {pair: counts[pair] for pair in (('cat', 'dog'), ('dog', 'cat'))}
    for i, row in table.iterrows():
        assert (row.file, row['P(cat)'], row['P(dog)'], row.loss) == (result.files[i], result.probs[i, 0], result.probs[i, 1], result.losses[i])
    assert all(group.loss.is_monotonic_decreasing for _, group in table.groupby('actual'))
    assert set(result.confused('dog', 'cat').index) == set(table.index) and result.confused('dog', 'cat').actual.iloc[0] == 'dog'


@pytest.mark.parametrize('correct', [None, True, False])
def test_most_and_least_sure(correct):
    result = fake()
    fits = np.ones(len(result), bool) if correct is None else (result.predictions == result.targets) == correct
    expected = np.sort(result.probs.max(1)[fits])
    np.testing.assert_array_equal(result.least_confident(7, correct).probability, expected[:7])
    np.testing.assert_array_equal(result.most_confident(7, correct).probability, expected[::-1][:7])
    assert fits[result.most_confident(7, correct).index].all() and len(result.most_confident(10**6, correct)) == fits.sum()


def test_temperature_changes_how_sure_but_not_of_what():
    result = fake(split='valid')
    t = result.fit_temperature()
    cooled = result.with_temperature(t)
    np.testing.assert_allclose(np.log(cooled.probs), log_softmax(np.log(result.probs)/t, 1), atol=1e-4)
    np.testing.assert_allclose(cooled.losses, -np.log(cooled.probs[range(500), result.targets]), atol=1e-5)
    assert (cooled.predictions == result.predictions).all() and cooled.loss < result.loss
    assert cooled.temperature == t and f'temperature {t:.2f}' in repr(cooled)
    assert cooled.with_temperature(1/t).loss == pytest.approx(result.loss, rel=1e-5)
    assert cooled.fit_temperature() == pytest.approx(1, abs=1e-3)
    assert result.with_temperature(2).with_temperature(3).temperature == 6


def test_temperature_leaves_ties_alone():
    probs = np.full((30, 10), .1, np.float32)
    targets = np.arange(30) % 10
    result = Evaluation(probs, targets, -np.log(np.float64(probs[:, 0])), [f'{i}.png' for i in range(30)], list('abcdefghij'), 'valid')
    for t in 1., .7, 2.: assert result.with_temperature(t).accuracy == result.accuracy == .1


def test_temperature_keeps_losses_that_probabilities_cannot_hold():
    "A float32 probability ends at 1e-45; the loss of an image that is surely wrong does not"
    result = Evaluation([[1, 0]], [1], [500.], ['a.png'], ['cat', 'dog'], 'valid')
    assert result.with_temperature(2).losses[0] == pytest.approx(250) and result.with_temperature(1).losses[0] == pytest.approx(500)


@pytest.mark.parametrize('split', ['train', 'test'])
def test_temperature_is_fitted_on_validation_images(split):
    with pytest.raises(ValueError, match=f'fitted on validation images, got the {split} images'): fake(split=split).fit_temperature()


def test_coverage_for_an_accuracy():
    result = fake()
    curve = result.coverage_curve()
    coverage, threshold = result.coverage_at(.8)
    answered = result.confidence >= threshold
    assert answered.mean() == coverage and result.correct[answered].mean() >= .8
    assert all(o.accuracy < .8 for o in curve.itertuples() if o.coverage > coverage)
    assert cases['all_wrong'].coverage_at(.5) == (0, 1) and cases['all_right'].coverage_at(1)[0] == 1
    with pytest.raises(ValueError, match='between 0 and 1, got 90'): result.coverage_at(90)


def planted(n=2000, n_wrong=120, n_classes=5, signal=2.5, seed=0):
    "An Evaluation by the exact probabilities of noisy images (89% right), of which some have a wrong label; and which"
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, n_classes, n)
    images = signal*np.eye(n_classes)[truth] + rng.normal(size=(n, n_classes))
    wrong = rng.permutation(n) < n_wrong
    return fake_from(signal*images, np.where(wrong, (truth + rng.integers(1, n_classes, n)) % n_classes, truth)), wrong


def fake_from(logits, targets, **kwargs):
    logs = log_softmax(logits, 1)
    return Evaluation(np.exp(logs), targets, -logs[range(len(logs)), targets], [f'{i}.png' for i in range(len(logs))],
                      list('abcdefghij')[:logs.shape[1]], **kwargs)


def test_planted_label_errors_are_found():
    "Of 120 wrong labels, 85% are found, and they are 69% of the candidates (cleanlab's default candidates: 85% and 55%)"
    precision, recall = [], []
    for seed in range(3):
        result, wrong = planted(seed=seed)
        found = result.label_errors()
        hits = wrong[found.index]
        precision.append(hits.mean())
        recall.append(hits.sum()/wrong.sum())
        assert found.quality.is_monotonic_increasing and (found.actual != found.predicted).all()
        label = result.probs[found.index, result.targets[found.index]]
        np.testing.assert_allclose(found.quality, label/result.confidence[found.index], rtol=1e-5)
        assert hits[:len(hits)//2].mean() > .9 > hits[len(hits)//2:].mean()
    assert np.mean(precision) > .65 and np.mean(recall) > .8


def test_as_many_candidates_as_cleanlab_estimates():
    "Those with the lowest ratio of the label's probability to the prediction's, but none that the model agrees with"
    pytest.importorskip('cleanlab')
    from cleanlab.filter import find_label_issues
    for seed in range(3):
        result, _ = planted(n_wrong=20*seed, seed=seed)
        probs = np.float64(result.probs)
        n = find_label_issues(result.targets, probs/probs.sum(1, keepdims=True), filter_by='low_self_confidence', n_jobs=1).sum()
        lowest = np.argsort(result.probs[range(2000), result.targets]/result.confidence, kind='stable')[:n]
        assert list(result.label_errors().index) == [i for i in lowest if not result.correct[i]]


def test_no_candidate_has_the_label_that_is_predicted():
    "Of a model that hardly knows, the lowest probabilities are still those of the predicted class"
    result = fake_from(np.random.default_rng(0).normal(0, .3, (300, 10)), np.arange(300) % 10)
    found = result.label_errors()
    assert (found.actual != found.predicted).all()


# ---------------------------------------------------------------------------------------------------- trained on

def test_labels_of_training_images_are_not_judged(learn):
    "Whatever the loader they come in; the same images of a network that was not trained on them are"
    train = learn.dls.train_ds.items
    test = sources.test_files(learn.dls.path)
    some_of_them = data.image_loader(learn.dls, [*test, train[0]])
    assert [evaluate(learn, o).trained_on for o in ('train', 'valid', 'test', some_of_them)] == [True, False, False, True]
    assert not evaluate(learn, data.image_loader(learn.dls, test)).trained_on
    with pytest.raises(ValueError, match=r'some of these are its training images.*out_of_fold\(recipe\)'):
        evaluate(learn, some_of_them).label_errors()


def test_relative_names_of_training_images(learn, monkeypatch):
    monkeypatch.chdir(learn.dls.path)
    files = [str(f.relative_to(learn.dls.path)) for f in learn.dls.train_ds.items[:3]]
    assert evaluate(learn, learn.dls.test_dl(files, with_labels=True)).trained_on


def test_saved_evaluations_know_what_was_trained_on(tmp_path):
    logits = np.eye(3)
    for kwargs, expected in ((dict(split='train'), True), (dict(split='valid'), False), (dict(split='train', trained_on=False), False)):
        result = fake_from(logits, np.arange(3), **kwargs)
        assert result.trained_on == load_evaluation(result.save(tmp_path/'a.npz')).trained_on == expected


def test_label_errors_with_a_class_absent():
    found = cases['absent_class'].label_errors()
    assert set(found.index) <= {1, 3}


# ---------------------------------------------------------------------------------------------------- files

def test_saved_and_loaded_again(case, tmp_path):
    path = case.save(tmp_path/'new folder'/'a.npz')
    again = load_evaluation(path)
    assert all(np.array_equal(getattr(again, o), getattr(case, o)) for o in ('probs', 'targets', 'losses'))
    assert again.to_dict() == case.to_dict() and again.files == case.files and again.root == case.root
    assert [o.name for o in path.parent.iterdir()] == ['a.npz']


def test_saved_file_is_small_and_holds_no_pickle(tmp_path):
    path = fake(10_000, files=[f'test/automobile/{i:04}.png' for i in range(10_000)]).save(tmp_path/'a.npz')
    assert path.stat().st_size < 1_000_000
    with np.load(path, allow_pickle=False) as saved: assert all(saved[name].dtype != object for name in saved)


def test_everything_is_kept(tmp_path):
    result = fake(split='valid', variant='cifar10-jpeg', root='/data', tta='flip', temperature=1.5, vocab=['Ente', 'é', *'cdefghij'])
    again = load_evaluation(result.save(tmp_path/'a.npz'))
    assert {name: getattr(again, name) for name in ('split', 'variant', 'root', 'tta', 'temperature', 'vocab')} == \
        dict(split='valid', variant='cifar10-jpeg', root='/data', tta='flip', temperature=1.5, vocab=['Ente', 'é', *'cdefghij'])


def truncated(path): path.write_bytes(path.read_bytes()[:-200])
def flipped(path):
    data = bytearray(path.read_bytes())
    data[len(data)//2] ^= 255
    path.write_bytes(data)
def empty(path): path.write_bytes(b'')
def other_arrays(path): np.savez(path, a=np.ones(3))
def not_json(path): np.savez(path, about=np.zeros(3, np.uint8), probs=np.ones((1, 1)), targets=[0], losses=[0.])
def pickled(path): np.savez(path, about=np.array([{}], dtype=object))
def later_format(path): np.savez(path, about=np.frombuffer(b'{"format": "cifar_fastai evaluation 9"}', np.uint8))
def mismatched(path): np.savez(path, about=np.frombuffer(b'{"format": "cifar_fastai evaluation 1", "files": ["a"], "vocab": ["x"]}', np.uint8),
                               probs=np.ones((2, 1)), targets=[0, 0], losses=[0., 0.])
def text(path): path.write_text('accuracy 0.9')


@pytest.mark.parametrize('damage', [truncated, flipped, empty, other_arrays, not_json, pickled, later_format, mismatched, text])
def test_damaged_files_are_refused(tmp_path, damage):
    path = fake().save(tmp_path/'a.npz')
    damage(path)
    with pytest.raises(ValueError, match='a.npz is not a saved Evaluation, or is damaged'): load_evaluation(path)


def test_paths_that_cannot_be(tmp_path):
    with pytest.raises(FileNotFoundError, match='No file .*b.npz'): load_evaluation(tmp_path/'b.npz')
    with pytest.raises(ValueError, match="end in .npz, got 'a.json'"): fake().save(tmp_path/'a.json')


def test_no_damage_goes_by_another_name(tmp_path):
    "Wherever a byte is wrong: the same evaluation, or a clear error"
    path = fake(30).save(tmp_path/'a.npz')
    whole, same = path.read_bytes(), load_evaluation(path)
    for i in range(0, len(whole), 7):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 255]) + whole[i + 1:])
        try: assert np.array_equal(load_evaluation(path).probs, same.probs)
        except ValueError as e: assert 'a.npz is not a saved Evaluation, or is damaged' in str(e)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = fake().save(tmp_path/'a.npz')
    before = path.read_bytes()
    def full(*args, **kwargs): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(np, 'savez_compressed', full)
    with pytest.raises(OSError, match='No space'): fake(seed=1).save(path)
    assert path.read_bytes() == before and [o.name for o in tmp_path.iterdir()] == ['a.npz']


# ---------------------------------------------------------------------------------------------------- what an Evaluation refuses

nan, inf = float('nan'), float('inf')


@pytest.mark.parametrize('wrong, message', [
    (dict(probs=np.zeros((0, 2)), targets=[], losses=[], files=[]), 'at least one image'),
    (dict(targets=[0]), 'one row per image'),
    (dict(files=['a.png']), 'one row per image'),
    (dict(losses=[1.]), 'one row per image'),
    (dict(vocab=['cat', 'dog', 'frog']), 'shape .2, 2., but vocab has 3 classes'),
    (dict(vocab=['cat', 'cat']), 'duplicate class'),
    (dict(probs=[.5, .5]), 'shape .2,.'),
    (dict(probs=[[.5, .5], [nan, .5]]), r'1 of 2 images have NaN.*b\.png'),
    (dict(probs=[[inf, 0], [.5, .5]]), r'NaN or infinite.*a\.png'),
    (dict(losses=[.1, nan]), r'NaN.*b\.png'),
    (dict(probs=[[2., -1], [.5, .5]]), 'logits'),
    (dict(probs=[[.5, .1], [.5, .5]]), 'sum to 1'),
    (dict(targets=[0, 2]), '0 to 1'),
    (dict(targets=[-1, 0]), '0 to 1'),
    (dict(targets=[[0, 1], [1, 0]]), 'one class number per image'),
])
def test_bad_fields_are_refused(wrong, message):
    good = dict(probs=[[.9, .1], [.2, .8]], targets=[0, 0], losses=[.1, 1.6], files=['a.png', 'b.png'], vocab=['cat', 'dog'])
    assert len(Evaluation(**good)) == 2
    with pytest.raises(ValueError, match=message): Evaluation(**good | wrong)


def test_an_evaluation_cannot_be_changed():
    probs = np.array([[.9, .1]])
    result = Evaluation(probs, [0], [.1], ['a.png'], ['cat', 'dog'])
    probs[:] = 0
    assert result.probs[0, 0] == np.float32(.9) and result.probs.dtype == np.float32 and result.targets.dtype == np.int64
    with pytest.raises(ValueError, match='read-only'): result.probs[0, 0] = 0
    with pytest.raises(FrozenInstanceError): result.split = 'train'
    result.confusion_matrix()[0, 0] = 7
    assert result.confusion_matrix()[0, 0] == 1


@pytest.mark.parametrize('k', [0, -1])
def test_top_losses_need_a_positive_k(k):
    with pytest.raises(ValueError, match='at least 1'): fake().top_losses(k)


# ---------------------------------------------------------------------------------------------------- one pass

@pytest.mark.parametrize('bs', [None, 7, 1000])
@pytest.mark.parametrize('split, n', [('test', 50), ('valid', 20), ('train', 180)])
def test_each_batch_is_seen_once(learn, split, n, bs):
    with Passes(learn.model) as passes: result = evaluate(learn, split, bs)
    assert len(result) == sum(passes.sizes) == n and len(passes.sizes) == ceil(n / (bs or 16))
    assert not any(passes.modes)


def test_answers_are_those_of_the_model(learn):
    result = evaluate(learn)
    learn.model.eval()
    with torch.no_grad(): logits, targets = (torch.cat(o) for o in zip(*[(learn.model(x.as_subclass(torch.Tensor)), y.as_subclass(torch.Tensor))
                                                                       for x, y in data.test_dataloader(learn.dls)]))
    np.testing.assert_allclose(result.probs, logits.softmax(1), atol=1e-6)
    np.testing.assert_array_equal(result.targets, targets)
    np.testing.assert_allclose(result.losses, nn.functional.cross_entropy(logits, targets, reduction='none'), atol=1e-5)


def test_images_come_in_listing_order_under_their_names(learn):
    root = learn.dls.path
    for split, files in (('test', sources.test_files(root)), ('train', learn.dls.train.items), ('valid', learn.dls.valid.items)):
        result = evaluate(learn, split)
        assert result.files == [o.relative_to(root).as_posix() for o in files]
        assert [result.vocab[t] for t in result.targets] == [o.parent.name for o in files]
        assert (result.split, result.variant, result.vocab) == (split, learn.dls.data_info.variant, list(learn.dls.vocab))
        assert (root / result.files[0]).is_file() and result.root == root.as_posix()


def test_loss_is_plain_whatever_the_training_loss(dls):
    learn = make_learner(dls, fit=False)
    plain = evaluate(learn)
    learn.loss_func = CrossEntropyLossFlat(label_smoothing=.3, weight=torch.arange(1., 11))
    np.testing.assert_array_equal(evaluate(learn).losses, plain.losses)


def test_no_augmentation_and_no_chance(practice):
    noise = data.cifar10_dataloaders(practice, bs=16, num_workers=0, device='cpu', augment='aug_transforms')
    none = data.cifar10_dataloaders(practice, bs=16, num_workers=0, device='cpu', augment='none')
    learn = make_learner(noise, fit=False)
    a, b = evaluate(learn, 'train'), evaluate(learn, noise.train)
    np.testing.assert_array_equal(a.probs, b.probs)
    learn.dls = none
    c = evaluate(learn, 'train')
    np.testing.assert_allclose(a.probs, c.probs, atol=1e-6)
    assert a.files == b.files == c.files


def test_batch_size_and_workers_change_nothing(learn, practice):
    a = evaluate(learn)
    np.testing.assert_allclose(a.probs, evaluate(learn, bs=3).probs, atol=1e-6)
    workers = data.test_dataloader(learn.dls).new(num_workers=1)
    b = evaluate(learn, workers)
    np.testing.assert_allclose(a.probs, b.probs, atol=1e-6)
    assert a.files == b.files


def test_shuffled_and_short_loaders_are_put_in_order(learn):
    files = sources.test_files(learn.dls.path)
    shuffled = learn.dls.test_dl(files, with_labels=True, shuffle=True, drop_last=True)
    result = evaluate(learn, shuffled)
    assert result.files == evaluate(learn).files and result.split == 'custom'
    assert [evaluate(learn, o).split for o in learn.dls.loaders[:2]] == ['train', 'valid']  # what is asked of validation images only is not asked of these
    np.testing.assert_allclose(result.probs, evaluate(learn).probs, atol=1e-6)
    assert shuffled.shuffle and shuffled.drop_last


# ---------------------------------------------------------------------------------------------------- the learner stays as it was

def state(learn):
    "What evaluate must not touch"
    return dict(modes=[m.training for m in learn.model.modules()], cbs=[id(o) for o in learn.cbs], training=learn.training,
                homes=[o.learn is learn for o in learn.cbs], recorder=[list(o) for o in learn.recorder.values], lrs=list(learn.recorder.lrs),
                loaders=[id(o) for o in learn.dls.loaders], loss_func=learn.loss_func, opt=learn.opt, logger=learn.logger, bar=learn.create_mbar,
                attributes=set(vars(learn)), split=[o.dataset.split_idx for o in learn.dls.loaders], chance=chance())


def chance(): return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize('split', ['test', 'valid', 'train'])
def test_learner_is_untouched(dls, split):
    learn = make_learner(dls)
    learn.model.train()
    learn.model[1].eval()  # a frozen BatchNorm
    weights = {k: v.clone() for k, v in learn.model.state_dict().items()}
    before = state(learn)
    evaluate(learn, split)
    assert state(learn) == before and before['recorder'] and learn.model.training and not learn.model[1].training
    assert all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())
    assert all(p.grad is None or not p.grad.any() for p in learn.model.parameters())


def test_learner_is_untouched_after_an_error(dls):
    learn = make_learner(dls)
    learn.model.train()
    before = state(learn)
    def fail(*args): raise RuntimeError('out of memory')
    hook = learn.model[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='out of memory'): evaluate(learn)
    hook.remove()
    assert state(learn) == before


def test_evaluating_between_epochs_does_not_change_training(practice):
    def weights(evaluates):
        set_seed(0)
        learn = make_learner(data.cifar10_dataloaders(practice, bs=32, num_workers=0, device='cpu'))
        if evaluates: evaluate(learn, 'valid')
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
        return learn.model.state_dict()
    a, b = weights(False), weights(True)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_learner_can_be_trained_after_it_was_evaluated(dls):
    learn = make_learner(dls, fit=False)
    evaluate(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-2)
    assert len(learn.recorder.values) == 1


# ---------------------------------------------------------------------------------------------------- several views

def by_hand(learn, views):
    "The mean of probabilities over (weight, function of a batch), written out"
    learn.model.eval()
    with torch.no_grad():
        return torch.cat([sum(w * learn.model(view(x.as_subclass(torch.Tensor))).double().softmax(1) for w, view in views)
                          for x, _ in data.test_dataloader(learn.dls)]).numpy()


def mirror(x): return torch.flip(x, (3,))
def down_right(x): return nn.functional.pad(x, (1, 1, 1, 1), 'reflect')[:, :, 0:32, 0:32]
def up_left(x): return nn.functional.pad(x, (1, 1, 1, 1), 'reflect')[:, :, 2:34, 2:34]


views = {'': [(1, lambda x: x)], 'flip': [(.5, lambda x: x), (.5, mirror)],
         'flip_shift': [(.25, lambda x: x), (.25, mirror)] + [(.125, lambda x, f=f, g=g: g(f(x))) for f in (down_right, up_left)
                                                              for g in (lambda x: x, mirror)]}


@pytest.mark.parametrize('tta', views)
def test_views_are_averaged_as_by_hand(learn, tta):
    result, expected = evaluate(learn, tta=tta), by_hand(learn, views[tta])
    np.testing.assert_allclose(result.probs, expected, atol=1e-6)
    np.testing.assert_allclose(result.losses, -np.log(expected[range(50), result.targets]), atol=1e-5)
    assert result.loss == pytest.approx(skm.log_loss(result.targets, expected, labels=range(10)), abs=1e-6)
    assert (result.tta, result.files, result.split) == (tta, evaluate(learn).files, 'test')
    if tta: assert np.abs(result.probs - evaluate(learn).probs).max() > 1e-4


@pytest.mark.parametrize('tta, n', [('', 1), ('flip', 2), ('flip_shift', 6), ('fastai', 5)])
def test_images_are_read_once_and_seen_in_each_view(learn, monkeypatch, tta, n):
    loader, read = data.test_dataloader(learn.dls), []
    do_batch = data.TfmdDL.do_batch
    monkeypatch.setattr(data.TfmdDL, 'do_batch', lambda self, b: read.append(len(b)) or do_batch(self, b))
    with Passes(learn.model) as passes: result = evaluate(learn, loader, tta=tta)
    assert sum(passes.sizes) == n * 50 and not any(passes.modes) and len(result) == 50
    assert sum(read) == (250 if tta == 'fastai' else 50)
    assert len(tta_views(tta)) == n and sum(tta_views(tta).values()) == 1


@pytest.mark.parametrize('tta', list_tta())
@pytest.mark.slow
def test_tta_is_repeatable_and_leaves_the_learner_as_it_was(dls, tta):
    learn = make_learner(dls)
    learn.model.train()
    learn.model[1].eval()
    transforms = [[id(t) for t in dl.after_batch.fs] for dl in dls.loaders]
    before, weights = state(learn), {k: v.clone() for k, v in learn.model.state_dict().items()}
    for split in ('test', 'valid', 'train'):
        first = evaluate(learn, split, tta=tta)
        torch.rand(7), random.random()
        np.testing.assert_array_equal(first.probs, evaluate(learn, split, tta=tta).probs)
        np.testing.assert_allclose(first.probs, evaluate(learn, split, bs=50, tta=tta).probs, atol=1e-6 if tta != 'fastai' else 1)
    after = state(learn)
    assert {k: v for k, v in after.items() if k != 'chance'} == {k: v for k, v in before.items() if k != 'chance'}
    chances = chance()
    evaluate(learn, tta=tta)
    assert chance() == chances and [[id(t) for t in dl.after_batch.fs] for dl in dls.loaders] == transforms
    assert all(torch.equal(v, weights[k]) for k, v in learn.model.state_dict().items())


def test_learner_is_untouched_when_a_random_pass_fails(dls):
    learn = make_learner(dls)
    before, seen = state(learn), []
    def fail(*args):
        seen.append(1)
        if len(seen) > 6: raise RuntimeError('out of memory')
    hook = learn.model[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match='out of memory'): evaluate(learn, 'valid', tta='fastai')
    hook.remove()
    assert state(learn) == before


class Mirror(RandTransform):
    "An augmentation without chance"
    split_idx = 0
    def encodes(self, x: TensorImage): return x.flip(3)


def test_fastais_tta_is_fastais(practice):
    dls = data.cifar10_dataloaders(practice, bs=16, device='cpu', augment=[Mirror()])
    learn = make_learner(dls)
    result = evaluate(learn, tta='fastai')
    with learn.no_bar(), learn.no_logging(): expected, targets = learn.tta(dl=data.test_dataloader(dls))
    np.testing.assert_allclose(result.probs, expected, atol=1e-6)
    np.testing.assert_allclose(result.probs, by_hand(learn, [(.25, lambda x: x), (.75, mirror)]), atol=1e-6)
    np.testing.assert_array_equal(result.targets, targets)


def test_fastais_tta_follows_the_training_loader(practice):
    learn = make_learner(data.cifar10_dataloaders(practice, bs=16, device='cpu', augment='flip_crop'), fit=False)
    learn.dls = data.set_augmentation(learn.dls, [Mirror()])
    np.testing.assert_allclose(evaluate(learn, tta='fastai').probs, by_hand(learn, [(.25, lambda x: x), (.75, mirror)]), atol=1e-6)
    learn.dls = data.set_augmentation(learn.dls, 'none')
    with pytest.raises(ValueError, match="trained without any. Use tta='flip'"): evaluate(learn, tta='fastai')


def test_fastais_tta_needs_fastais_loader(learn):
    items = [(torch.zeros(3, 32, 32), torch.tensor(1))] * 4
    assert evaluate(learn, DataLoader(items, bs=2), tta='flip').tta == 'flip'
    with pytest.raises(ValueError, match="tta='fastai' needs a DataLoader of fastai's data blocks"): evaluate(learn, DataLoader(items, bs=2), tta='fastai')


@pytest.mark.parametrize('size, pixels', [((32, 32), (1, 1)), ((64, 64), (2, 2)), ((224, 224), (7, 7)), ((16, 16), (1, 1)), ((32, 96), (1, 3))])
def test_views_move_by_a_32nd_of_the_side(size, pixels):
    x, (dy, dx) = torch.rand(2, 3, *size), pixels
    there, back = make_view(x, 'down-right'), make_view(x, 'up-left')
    assert torch.equal(there[..., dy:, dx:], x[..., :-dy, :-dx]) and torch.equal(back[..., :-dy, :-dx], x[..., dy:, dx:])
    assert torch.equal(there[..., :dy, dx:], x[..., 1:dy + 1, :-dx].flip(-2)) and there.shape == x.shape
    assert torch.equal(make_view(x, 'image'), x)
    for view in ('up-left', 'down-right'): assert torch.equal(make_view(x, f'{view}, mirrored'), make_view(x, view).flip(3))


def test_views_go_through_callbacks(dls):
    learn = make_learner(dls, cbs=[Darken()])
    np.testing.assert_allclose(evaluate(learn, tta='flip_shift').probs, evaluate(learn).probs, atol=1e-6)
    learn = make_learner(dls, fit=False, cbs=[BF16OnCPU()])
    half = evaluate(learn, tta='flip')
    learn.remove_cb(BF16OnCPU)
    np.testing.assert_allclose(half.probs, evaluate(learn, tta='flip').probs, atol=.02)


def test_a_view_that_is_sure_and_wrong_leaves_a_finite_loss(dls):
    learn = make_learner(dls, fit=False)
    with torch.no_grad(): learn.model[-1].weight.mul_(1e6)
    for tta in list_tta(): assert np.isfinite(evaluate(learn, tta=tta).losses).all()


@pytest.mark.parametrize('tta', list_tta())
def test_views_are_named_in_print_and_json(tta):
    result = fake(tta=tta)
    assert json.loads(json.dumps(result.to_dict()))['tta'] == tta
    assert (f'mean of {len(tta_views(tta))} views (tta {tta})' in repr(result)) == bool(tta) == ('mean of' in result._repr_html_())
    assert 'mean (tta ten crops)' in repr(fake(tta='ten crops'))


@pytest.mark.parametrize('tta', ['flop', None, 'Flip', 2])
def test_unknown_tta_is_refused(learn, tta):
    with Passes(learn.model) as passes, pytest.raises(ValueError, match="Unknown tta .*Allowed: '' .none., 'flip', 'flip_shift', 'fastai'"):
        evaluate(learn, tta=tta)
    assert not passes.sizes
    with pytest.raises(ValueError, match="Unknown view 'upside down'"): make_view(torch.rand(1, 3, 8, 8), 'upside down')


# ---------------------------------------------------------------------------------------------------- fastai's callbacks

class Darken(Callback):
    "Shapes both the input and the output, and counts"
    def __init__(self): self.n = 0
    def before_fit(self): self.n = 100
    def before_batch(self):
        self.n += 1
        self.learn.xb = (self.x * 0,)
    def after_pred(self): self.learn.pred = self.pred * 2


class BF16OnCPU(MixedPrecision):
    def before_fit(self): self.autocast = torch.autocast('cpu', torch.bfloat16)
    def after_fit(self): self.autocast = None


def test_callbacks_that_shape_inference_are_honored_and_left_alone(dls):
    learn = make_learner(dls, cbs=[Darken()])
    learn.darken.n = 0
    result = evaluate(learn)
    learn.model.eval()
    expected = (2 * learn.model(torch.zeros(1, 3, 32, 32))).softmax(1).detach()
    np.testing.assert_allclose(result.probs, expected.expand(50, -1), atol=1e-6)
    assert learn.darken.n == 0 and learn.darken.learn is learn


def test_mixed_precision_is_honored(dls):
    learn, types = make_learner(dls, fit=False), []
    plain = evaluate(learn)
    learn.add_cb(BF16OnCPU())
    hook = learn.model[-1].register_forward_hook(lambda m, args, out: types.append(out.dtype))
    result = evaluate(learn)
    hook.remove()
    assert set(types) == {torch.bfloat16} and not torch.is_autocast_enabled('cpu')
    np.testing.assert_allclose(result.probs, plain.probs, atol=.02)
    assert not np.array_equal(result.probs, plain.probs)


def test_channels_last_is_honored(dls):
    learn, formats = make_learner(dls, fit=False), []
    plain = evaluate(learn)
    learn.add_cb(ChannelsLast())
    hook = learn.model[0].register_forward_hook(lambda m, args, out: formats.append(out.is_contiguous(memory_format=torch.channels_last)))
    result = evaluate(learn)
    hook.remove()
    assert all(formats)
    np.testing.assert_allclose(result.probs, plain.probs, atol=1e-5)


def test_callbacks_of_training_are_not_called(dls):
    class Noisy(Callback):
        def after_epoch(self): raise AssertionError
        before_fit = before_validate = after_validate = after_batch = after_loss = after_epoch
    learn = make_learner(dls, fit=False)
    plain = evaluate(learn)
    learn.add_cbs([Noisy(), MixUp(.4)])
    np.testing.assert_array_equal(evaluate(learn).probs, plain.probs)


def test_learner_of_a_recipe(practice):
    dls = data.cifar10_dataloaders(practice, bs=25, num_workers=0, device='cpu')
    learn = create_learner('small_cnn_one_cycle', dls)
    with Passes(learn.model) as passes: result = evaluate(learn)
    assert len(passes.sizes) == 2 and len(result) == 50 and result.probs.shape == (50, 10)


# ---------------------------------------------------------------------------------------------------- fastai agrees

def test_fastai_interpretation_agrees(dls):
    learn = make_learner(dls)
    result = evaluate(learn, 'valid')
    with learn.no_bar():
        theirs = ClassificationInterpretation.from_learner(learn)
        assert np.array_equal(result.confusion_matrix(), theirs.confusion_matrix())
        assert result.most_confused() == [(a, b, int(n)) for a, b, n in theirs.most_confused()]
        assert result.most_confused(2) == [(a, b, int(n)) for a, b, n in theirs.most_confused(2)]
        losses, positions, items = theirs.top_losses(5, items=True)
    top = result.top_losses(5)
    np.testing.assert_allclose(top.loss, losses, atol=1e-5)
    assert list(top.index) == positions.tolist() and list(top.file) == [o.relative_to(dls.path).as_posix() for o in items]


def test_fastai_validate_agrees(dls):
    learn = make_learner(dls)
    result = evaluate(learn, 'valid')
    with learn.no_bar(), learn.no_logging(): loss, acc = learn.validate()
    assert result.loss == pytest.approx(loss, abs=1e-5) and result.accuracy == pytest.approx(acc, abs=1e-6)


# ---------------------------------------------------------------------------------------------------- other data, bad requests

def test_table_of_items(practice):
    files = sources.test_files(practice)
    table = pd.DataFrame(dict(file=files, label=[o.parent.name for o in files]))
    block = DataBlock((ImageBlock, CategoryBlock), get_x=lambda r: r['file'], get_y=lambda r: r['label'], splitter=RandomSplitter(.2, 0))
    dls = block.dataloaders(table, path=practice, bs=16, num_workers=0, device='cpu')
    for split, n in (('train', 40), ('valid', 10)):
        result = evaluate(make_learner(dls, fit=False), split)
        assert result.files == [f'#{i}' for i in range(n)] and result.variant == practice.name


def test_dataset_of_tensors(learn):
    items = [(torch.randn(3, 32, 32), i % 10) for i in range(11)]
    result = evaluate(learn, DataLoader(items, bs=4, shuffle=True))
    assert result.targets.tolist() == [i % 10 for i in range(11)] and result.files[-1] == '#10'


def test_evaluations_know_their_images(learn, practice, tmp_path):
    files = sources.test_files(practice)
    said = evaluate(learn)
    assert said.fingerprint == sources.fingerprint(files) == load_evaluation(said.save(tmp_path/'test.npz')).fingerprint
    assert evaluate(learn, learn.dls.test_dl([str(f) for f in files], with_labels=True)).fingerprint == said.fingerprint
    assert evaluate(learn, DataLoader([(torch.randn(3, 32, 32), 0)]*3, bs=2)).fingerprint == ''


def test_images_outside_the_data_folder_keep_their_path(learn, tmp_path):
    (tmp_path / 'cat').mkdir()
    file = tmp_path / 'cat' / 'tom.png'
    file.write_bytes(sources.test_files(learn.dls.path)[0].read_bytes())
    assert evaluate(learn, learn.dls.test_dl([file], with_labels=True)).files == [file.as_posix()]


def test_bad_requests(learn):
    dls = learn.dls
    with pytest.raises(ValueError, match="Unknown split 'tset'. Allowed: 'test', 'valid', 'train'"): evaluate(learn, 'tset')
    with pytest.raises(ValueError, match='bs .* at least 1, got 0'): evaluate(learn, bs=0)
    with pytest.raises(TypeError, match='got str. Load .*load_run'): evaluate('runs/small_cnn')
    with pytest.raises(TypeError, match='torch.utils.data.*fastai.data.load.DataLoader'):
        evaluate(learn, torch.utils.data.DataLoader([(torch.randn(3, 32, 32), 0)]))
    with pytest.raises(ValueError, match='one label per image, this DataLoader gives 0.*with_labels=True'):
        evaluate(learn, dls.test_dl(sources.test_files(dls.path)))
    with pytest.raises(ValueError, match='no images'): evaluate(learn, DataLoader([], bs=4))


def test_missing_splits(learn, practice, tmp_path):
    only_train = Learner(DataLoaders(learn.dls.train, path=practice, device='cpu'), learn.model, loss_func=learn.loss_func)
    with pytest.raises(ValueError, match='no valid split'): evaluate(only_train, 'valid')
    assert len(evaluate(only_train, 'train')) == 180
    (tmp_path / 'train').symlink_to(practice / 'train')
    learn = make_learner(data.cifar10_dataloaders(tmp_path, num_workers=0, device='cpu'), fit=False)
    with pytest.raises(FileNotFoundError, match="no test folder.*split 'valid'"): evaluate(learn)
    assert len(evaluate(learn, 'valid')) == 20


def test_model_and_data_must_fit(learn, practice, tmp_path):
    with pytest.raises(ValueError, match=r'returns \(7,\) logits per image, but vocab has 10'):
        evaluate(Learner(learn.dls, network(7), loss_func=learn.loss_func))
    for split in ('train', 'test'):
        for name in ('cat', 'dog'):
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / name).symlink_to(practice / split / name)
    pets = data.cifar10_dataloaders(tmp_path, num_workers=0, device='cpu')
    with pytest.raises(ValueError, match=r"the images have \['cat', 'dog'\]"): evaluate(learn, pets.valid)


def test_a_diverged_model_is_named(dls):
    learn = make_learner(dls, fit=False)
    nn.init.constant_(learn.model[-1].bias, nan)
    with pytest.raises(ValueError, match='50 of 50 images have NaN.*test/airplane'): evaluate(learn)


def test_no_loss_is_minus_zero():
    result = Evaluation([[1, 0]], [0], [-0.], ['a.png'], ['cat', 'dog'], 'valid')
    assert f'{result.losses[0]:.2f}' == f'{result.with_temperature(.5).losses[0]:.2f}' == '0.00'


def test_label_errors_need_two_classes():
    result = Evaluation([[.9, .1], [.2, .8]], [1, 1], [2.3, .2], ['a.png', 'b.png'], ['cat', 'dog'], 'valid')
    with pytest.raises(ValueError, match="All of these images are labeled 'dog'"): result.label_errors()


def test_mutated_evaluations_are_read_or_refused(tmp_path):
    "The checksums of the archive find what the checks of values cannot"
    dice, path = random.Random(0), Path(__file__).parent/'data'/'before_runs.tgz'
    with tarfile.open(path) as packed: right = packed.extractfile('evaluation.npz').read()
    file = tmp_path/'a.npz'
    file.write_bytes(right)
    expected = load_evaluation(file)
    for _ in range(200):
        data = bytearray(right)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        if dice.random() < .3: del data[dice.randrange(len(data)):]
        file.write_bytes(data)
        try: found = load_evaluation(file)
        except ValueError as e: assert 'a.npz is not a saved Evaluation, or is damaged' in str(e)
        else: assert np.array_equal(found.probs, expected.probs) and found.files == expected.files


# ---------------------------------------------------------------------------------------------------- labels and models of other kinds

@pytest.mark.parametrize('kind', [lambda y: y.reshape(-1, 1).astype(np.uint8), lambda y: y.astype(np.int32)])
def test_labels_that_training_takes_are_taken(practice, learn, result, kind):
    wanted = evaluate(learner_of(practice, result, result.targets, learn.model), 'valid')
    found = evaluate(learner_of(practice, result, kind(result.targets), learn.model), 'valid')
    assert np.array_equal(found.targets, wanted.targets) and np.array_equal(found.losses, wanted.losses)


@pytest.mark.parametrize('labels', [lambda y: y + 1, lambda y: y/1., lambda y: np.eye(10, dtype=int)[y]])
def test_labels_that_are_no_class_numbers(practice, learn, result, labels):
    with pytest.raises(ValueError, match='one class number per image, 0 to 9, got torch'): evaluate(learner_of(practice, result, labels(result.targets), learn.model), 'valid')


class TwoOutputs(nn.Conv2d):
    def forward(self, x): return super().forward(x).mean((2, 3)), x


@pytest.mark.parametrize('model, got', [(nn.Sequential(nn.Conv2d(3, 1, 32), nn.Flatten(0)), r'\(10,\)'), (TwoOutputs(3, 10, 3), 'tuple')])
def test_models_that_return_no_logits(practice, result, model, got):
    with pytest.raises(ValueError, match=f'needs a model that returns logits .*, this one returns {got}'): evaluate(learner_of(practice, result, result.targets, model), 'valid')


def test_tilde_is_the_home_directory(result, tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.chdir(tmp_path)
    result.save('~/a.npz')
    assert (tmp_path/'a.npz').is_file() and not Path('~').exists() and load_evaluation('~/a.npz').accuracy == result.accuracy
