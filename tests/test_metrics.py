"Intervals, paired tests and calibration, against statsmodels, published figures, simulations and cases worked out by hand."
import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from cifar_fastai.metrics import (apply_temperature, calibration_error, coverage_curve, f1_interval, fit_temperature, holm, mcnemar_exact,
                                  paired_interval, reliability, wilson_interval)


# ---------------------------------------------------------------------------------------------------- proportions

def test_wilson_interval_as_published():
    # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
    for successes, n, low, high in ((81, 263, .2553, .3662), (15, 148, .0624, .1605), (0, 20, 0, .1611), (1, 29, .0061, .1718)):
        assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize('confidence', [.5, .95, .999])
def test_wilson_interval_agrees_with_statsmodels(confidence):
    successes, n = np.array([0, 1, 5, 10, 870, 8700]), np.array([1, 1, 9, 10, 1000, 10_000])
    expected = proportion_confint(successes, n, 1 - confidence, method='wilson')
    np.testing.assert_allclose(wilson_interval(successes, n, confidence), expected, atol=1e-12)


def test_no_images_say_nothing():
    assert wilson_interval(0, 0) == pytest.approx((0, 1)) and f1_interval(0, 0) == pytest.approx((0, 1))


def test_f1_interval_covers_the_true_f1():
    "A class of 1,000 images, three quarters of them found, and 250 expected false alarms among 9,000 others: 95% of the intervals hold .75"
    rng = np.random.default_rng(0)
    right, false = rng.binomial(1000, .75, 4000), rng.binomial(9000, 250/9000, 4000)
    low, high = f1_interval(right, 1000 - right + false)
    assert .94 < ((low <= .75) & (.75 <= high)).mean() < .97


# ---------------------------------------------------------------------------------------------------- pairs

def test_mcnemar_agrees_with_statsmodels():
    pairs = [(0, 0), (0, 1), (5, 0), (7, 1), (20, 10), (10, 20), (15, 15), (550, 450)]
    expected = [mcnemar([[0, b], [c, 0]], exact=True).pvalue for b, c in pairs]
    np.testing.assert_allclose(mcnemar_exact(*np.array(pairs).T), expected, atol=1e-12)
    assert mcnemar_exact(0, 0) == 1


def test_paired_interval_by_hand():
    # a change of 1 fixed and 7 broken among 21: (2/23, 8/23), difference -6/23, standard error .126274
    assert paired_interval(1, 7, 21) == pytest.approx((-6/23 - 1.959964*.1262726, -6/23 + 1.959964*.1262726), abs=1e-5)


@pytest.mark.parametrize('up, down, n', [(.05, .04, 1000), (.02, .02, 100), (.1, .03, 10_000)])  # wider than need be where few images change
def test_paired_interval_covers_the_true_difference(up, down, n):
    fixed, broken, _ = np.random.default_rng(0).multinomial(n, [up, down, 1 - up - down], 4000).T
    low, high = paired_interval(fixed, broken, n)
    assert .94 < ((low <= up - down) & (up - down <= high)).mean() < (.96 if n*up > 10 else 1)
    narrow = paired_interval(fixed, broken, n, .5)
    assert (narrow[0] > low).all() and (narrow[1] < high).all()


def test_paired_interval_stays_within_bounds(): assert paired_interval(0, 0, 0) == (-1, 1)


@pytest.mark.slow
def test_holm_agrees_with_statsmodels():
    for p in ([.04], [.01, .02, .03, .04], [.5, .01, .5, .001], [1, 1, 0]):
        np.testing.assert_allclose(holm(p), multipletests(p, method='holm')[1], atol=1e-12)


# ---------------------------------------------------------------------------------------------------- calibration

@pytest.fixture(scope='module')
def logits(): return np.random.default_rng(1).normal(size=(4000, 10)) * 2


@pytest.fixture(scope='module')
def targets(logits):
    rng = np.random.default_rng(2)
    return np.array([rng.choice(10, p=p) for p in softmax(logits, 1)])


def test_calibration_error_of_known_cases():
    sure = np.full(100, .75)
    assert calibration_error(reliability(sure, np.arange(100) < 75)) == pytest.approx(0)
    assert calibration_error(reliability(sure, np.arange(100) < 25)) == pytest.approx(.5)
    # two bins, 30 images off by .1 and 10 by .4
    confidence = np.repeat([.6, .9], [30, 10])
    correct = np.r_[np.arange(30) < 15, np.arange(10) < 5]
    assert calibration_error(reliability(confidence, correct, 10)) == pytest.approx(.75*.1 + .25*.4)


def test_calibration_error_agrees_with_a_loop(logits, targets):
    probs = softmax(3*logits, 1)
    confidence, correct = probs.max(1), probs.argmax(1) == targets
    for n_bins in (1, 7, 15):
        expected = 0
        for i in range(n_bins):
            inside = (confidence > i/n_bins) & (confidence <= (i + 1)/n_bins)
            if inside.any(): expected += inside.mean()*abs(confidence[inside].mean() - correct[inside].mean())
        assert calibration_error(reliability(confidence, correct, n_bins)) == pytest.approx(expected, abs=1e-9)


def test_reliability_bins_hold_their_upper_end():
    table = reliability(np.array([0, .5, .500001, 1]), np.ones(4), 2)
    assert table[['low', 'high', 'n']].values.tolist() == [[0, .5, 2], [.5, 1, 2]]


def test_reliability_leaves_out_empty_bins_and_counts_all(logits, targets):
    table = reliability(softmax(9*logits, 1).max(1), np.ones(len(logits)), 40)
    assert (table.n > 0).all() and table.n.sum() == len(logits)
    assert ((table.low <= table.confidence + 1e-12) & (table.confidence <= table.high + 1e-12)).all()


@pytest.mark.parametrize('factor', [.2, 1, 3])
def test_temperature_is_where_the_loss_is_least(logits, targets, factor):
    loss = lambda t: -log_softmax(factor*logits/t, 1)[range(len(targets)), targets].mean()
    expected = minimize_scalar(loss, bounds=(.05, 20), method='bounded', options=dict(xatol=1e-9)).x
    assert fit_temperature(factor*logits, targets) == pytest.approx(expected, rel=1e-4) == pytest.approx(factor, rel=.1)
    assert fit_temperature(log_softmax(factor*logits, 1), targets) == pytest.approx(expected, rel=1e-4)


def test_temperature_stays_within_bounds(logits):
    assert fit_temperature(logits, logits.argmax(1)) == .05  # all right: the surer, the better
    assert fit_temperature(logits, logits.argmin(1)) == 20


def test_temperature_of_probabilities_that_were_rounded_to_0():
    rng = np.random.default_rng(0)
    logits, targets = 60*rng.normal(size=(500, 4)), rng.integers(0, 4, 500)
    with np.errstate(divide='ignore'): rounded = np.log(softmax(logits, 1).astype(np.float32))
    floored = np.maximum(logits - logits.max(1, keepdims=True), np.log(1e-45))
    assert np.isneginf(rounded).any() and fit_temperature(rounded, targets) == pytest.approx(fit_temperature(floored, targets), rel=.1)


def test_applied_temperature_divides_logits(logits):
    np.testing.assert_allclose(apply_temperature(logits, 2.5), log_softmax(logits/2.5, 1), atol=1e-12)
    for bad in (0, -1, float('nan')):
        with pytest.raises(ValueError, match='above 0'): apply_temperature(logits, bad)


def test_coverage_agrees_with_a_loop():
    rng = np.random.default_rng(0)
    confidence, correct = rng.integers(1, 10, 200)/10, rng.random(200) < .7
    curve = coverage_curve(confidence, correct)
    assert curve.threshold.is_monotonic_decreasing and len(curve) == len(set(confidence))
    for row in curve.itertuples():
        answered = confidence >= row.threshold
        assert (row.coverage, row.accuracy) == pytest.approx((answered.mean(), correct[answered].mean()))


# ---------------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize('call, said', [
    (lambda: wilson_interval(1, 2, 1), 'between 0 and 1, got 1'), (lambda: wilson_interval(3, 2), 'failures must be a number of images, 0 or more'),
    (lambda: mcnemar_exact(-1, 2), 'fixed must be a number of images, 0 or more'), (lambda: paired_interval(2, 2, 3), 'unchanged must be a number of images, 0 or more'),
    (lambda: reliability(np.ones(2), np.ones(2), 0), 'at least 1, got 0')])
def test_bad_input_is_named(call, said):
    with pytest.raises(ValueError, match=said): call()


def test_a_probability_of_zero_counts_as_the_smallest_float():
    "Of a right and a wrong answer, both sure: the likeliest temperature is that of the floor"
    logits = np.array([[0, -np.inf]]*4)
    floor = np.log(np.finfo(np.float32).tiny)
    assert fit_temperature(logits, [0, 0, 0, 1]) == pytest.approx(fit_temperature(np.array([[0, floor]]*4), [0, 0, 0, 1]))
    assert fit_temperature(np.array([[0, floor/20]]*4), [0, 0, 0, 1]) == pytest.approx(-floor/20/np.log(3), rel=1e-3)
