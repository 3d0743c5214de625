"Two models on the same images: what changed, whether it is real, and the published case of cats against dogs."
from dataclasses import replace

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from cifar_fastai.evaluation import Evaluation, compare

cifar10 = ['airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck']


def make(targets, predictions, vocab=cifar10, **kwargs):
    targets, predictions = np.array(targets), np.array(predictions)
    probs = np.full((len(targets), len(vocab)), .01)
    probs[range(len(targets)), predictions] = 1 - .01*(len(vocab) - 1)
    losses = -np.log(probs[range(len(targets)), targets])
    return Evaluation(probs, targets, losses, [f'test/{i:05}.png' for i in range(len(targets))], vocab, **kwargs)


@pytest.fixture(scope='module')
def pair():
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 10, 3000)
    guess = lambda accuracy: np.where(rng.random(3000) < accuracy, targets, rng.integers(0, 10, 3000))
    return make(targets, guess(.8)), make(targets, guess(.83))


def test_counts_and_test_over_all_images(pair):
    before, after = pair
    change = compare(before, after)
    assert set(change.fixed) == {i for i in range(3000) if after.correct[i] and not before.correct[i]}
    assert set(change.broken) == {i for i in range(3000) if before.correct[i] and not after.correct[i]}
    assert change.change == pytest.approx(after.accuracy - before.accuracy)
    b, c = len(change.fixed), len(change.broken)
    assert change.p_value == pytest.approx(mcnemar([[0, b], [c, 0]], exact=True).pvalue)
    low, high = change.interval()
    assert low < change.change < high and change.interval(.5)[0] > low


def test_class_by_class(pair):
    before, after = pair
    change, table = compare(before, after), compare(before, after).per_class()
    assert list(table['class']) == cifar10 and table.fixed.sum() == len(change.fixed) and table.broken.sum() == len(change.broken)
    for i, row in enumerate(table.itertuples()):
        here = before.targets == i
        fixed, broken = (after.correct & ~before.correct & here).sum(), (before.correct & ~after.correct & here).sum()
        assert (row.n, row.fixed, row.broken) == (here.sum(), fixed, broken)
        assert (row.before, row.after) == pytest.approx((before.correct[here].mean(), after.correct[here].mean()))
        assert row.p_value == pytest.approx(mcnemar([[0, fixed], [broken, 0]], exact=True).pvalue)
        assert row.change == pytest.approx(row.after - row.before) and row.low < row.change < row.high
    np.testing.assert_allclose(table.p_corrected, multipletests(table.p_value, method='holm')[1])


def test_pair_by_pair(pair):
    before, after = pair
    changes = compare(before, after).confusion_changes()
    a, b = before.confusion_matrix(), after.confusion_matrix()
    shown = {(o.actual, o.predicted): (o.before, o.after, o.change) for o in changes.itertuples()}
    expected = {(cifar10[i], cifar10[j]): (a[i, j], b[i, j], b[i, j] - a[i, j]) for i in range(10) for j in range(10) if i != j and a[i, j] != b[i, j]}
    assert shown == expected and changes.change.abs().is_monotonic_decreasing
    assert (compare(before, after).confusion_changes(5).change.abs() >= 5).all()


def test_a_pair_that_trades_places_is_no_change():
    "Nothing of 50 cats taken for dogs before and 50 others after speaks for either model"
    targets = np.full(200, 3)
    before, after = make(targets, np.where(np.arange(200) < 50, 5, 3)), make(targets, np.where(np.arange(200) >= 150, 5, 3))
    change = compare(before, after)
    assert change.p_value == 1 and not len(change.confusion_changes())
    assert len(change.fixed) == len(change.broken) == 50


def test_outcomes_of_each_image(pair):
    change = compare(*pair)
    table = change.to_frame()
    assert table.index[table.outcome == 'fixed'].tolist() == change.fixed.tolist()
    assert table.index[table.outcome == 'broken'].tolist() == change.broken.tolist()
    assert (table.outcome == 'right').sum() == (pair[0].correct & pair[1].correct).sum()


def test_other_order_of_the_same_images(pair):
    before, after = pair
    order = np.random.default_rng(1).permutation(len(after))
    shuffled = replace(after, files=[after.files[i] for i in order], probs=after.probs[order], targets=after.targets[order], losses=after.losses[order])
    assert compare(before, shuffled).to_frame().equals(compare(before, after).to_frame())


# ---------------------------------------------------------------------------------------------------- a published case

def of_class(actual, right, **taken_for):
    "Predictions for a thousand images of a class: so many right, so many taken for another, the rest for frogs"
    predictions = [actual]*right + [name for name, count in taken_for.items() for _ in range(count)]
    return predictions + ['frog']*(1000 - len(predictions))


def cats_and_dogs(cat, cat_for_dog, dog, dog_for_cat):
    number = cifar10.index
    predictions = of_class('cat', cat, dog=cat_for_dog) + of_class('dog', dog, cat=dog_for_cat)
    return make([number('cat')]*1000 + [number('dog')]*1000, [number(name) for name in predictions])


def test_cats_improved_at_the_cost_of_dogs():
    "Reference project 1 before and after its last stage, as published: what its author could not see"
    before, after = cats_and_dogs(656, 108, 796, 68), cats_and_dogs(741, 88, 786, 114)
    change = compare(before, after)
    table = change.per_class().set_index('class')
    assert table.loc['cat', ['before', 'after']].tolist() == [.656, .741] and table.loc['dog', ['before', 'after']].tolist() == [.796, .786]
    assert table.loc['cat', 'change'] == pytest.approx(.085) and table.loc['cat', 'p_corrected'] < .001 and table.loc['cat', 'low'] > 0
    assert table.loc['dog', 'change'] == pytest.approx(-.01)
    pairs = change.confusion_changes().set_index(['actual', 'predicted'])
    assert pairs.loc[('dog', 'cat'), ['before', 'after', 'change']].tolist() == [68, 114, 46] and pairs.loc[('dog', 'cat'), 'p_value'] < .001
    assert pairs.loc[('cat', 'dog'), ['before', 'after', 'change']].tolist() == [108, 88, -20]
    assert after.per_class().set_index('class').precision['cat'] < before.per_class().set_index('class').precision['cat']


def test_classes_without_images_do_not_change():
    table = compare(cats_and_dogs(656, 108, 796, 68), cats_and_dogs(741, 88, 786, 114)).per_class().set_index('class')
    assert table.loc['ship', ['n', 'before', 'after', 'change', 'p_value']].tolist() == [0, 0, 0, 0, 1]
    assert table.loc['ship', ['low', 'high']].tolist() == pytest.approx([-1, 1])


# ---------------------------------------------------------------------------------------------------- bad input

def test_different_images_are_refused(pair):
    before, after = pair
    renamed = replace(after, files=['valid/x.png', *after.files[1:]])
    with pytest.raises(ValueError, match='same images.*1 of the first are not in the second, such as test/00000.png'): compare(before, renamed)
    fewer = make(after.targets[:10], after.predictions[:10])
    with pytest.raises(ValueError, match='the first has 3,000, the second 10'): compare(before, fewer)
    with pytest.raises(ValueError, match='the first has 10, the second 3,000'): compare(fewer, before)


def test_other_labels_and_classes_are_refused(pair):
    before, after = pair
    moved = (after.targets + (np.arange(3000) == 7)) % 10
    with pytest.raises(ValueError, match='1 images have different labels.*test/00007.png'): compare(before, replace(after, targets=moved))
    with pytest.raises(ValueError, match='different classes'): compare(before, replace(after, vocab=[*cifar10[:-1], 'lorry']))
    with pytest.raises(TypeError, match='two Evaluations, got str'): compare(before, 'runs/b')


def test_other_data_and_images_named_twice_are_refused(pair):
    before, after = pair
    with pytest.raises(ValueError, match='different data, cifar10 and cifar10-jpeg'): compare(replace(before, variant='cifar10'), replace(after, variant='cifar10-jpeg'))
    with pytest.raises(ValueError, match='different images with the same file names, in a and b'):
        compare(replace(before, fingerprint='12', root='a'), replace(after, fingerprint='13', root='b'))
    assert len(compare(before, replace(after, fingerprint='13'))) == len(compare(replace(before, fingerprint='13'), replace(after, fingerprint='13'))) == 3000
    twice = [after.files[0], *after.files[:-1]]
    with pytest.raises(ValueError, match='has the same image twice'): compare(before, replace(after, files=twice))
    with pytest.raises(ValueError, match='has the same image twice'): compare(replace(before, files=twice), after)


def test_it_reads_well(pair):
    change = compare(*pair)
    assert '3,000 images: accuracy' in repr(change) and f'{len(change.fixed)} fixed' in repr(change)
    assert '<table' in change._repr_html_()


def test_an_absent_class_corrects_nothing(pair):
    fewer = [make(o.targets[o.targets < 9], o.predictions[o.targets < 9]) for o in pair]
    table = compare(*fewer).per_class()
    assert table.n[9] == 0 and table.p_corrected[9] == 1
    np.testing.assert_allclose(table.p_corrected[:9], multipletests(table.p_value[:9], method='holm')[1])
