"Figures show the numbers of the Evaluation, go where they are told to go, and say what is wrong with a request."
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from cifar_fastai.data import cifar10_dataloaders
from cifar_fastai.evaluation import Evaluation, compare, evaluate
from cifar_fastai.interpretation import (plot_confused, plot_changed, plot_comparison, plot_confusion_changes, plot_confusion_matrix, plot_coverage,
                                         plot_history, plot_images, plot_label_errors, plot_lr_search, plot_per_class, plot_predictions, plot_reliability,
                                         plot_top_losses)
from cifar_fastai.plotting import below_100
from cifar_fastai.recipes import Recipe, Stage
from cifar_fastai.training import LRSearch


# ---------------------------------------------------------------------------------------------------- helpers

pytestmark = pytest.mark.usefixtures('plain_pyplot')


def fake(targets, predictions, vocab=('cat', 'dog', 'frog'), root='', files=None):
    "An Evaluation of given predictions, each with a probability of its own"
    n, c = len(targets), len(vocab)
    sure = np.linspace(.6, .95, n)
    probs = np.repeat((1 - sure)[:, None] / max(c - 1, 1), c, 1)
    probs[range(n), predictions] = sure if c > 1 else 1
    files = files or [f'test/{vocab[t]}/{i:04}.png' for i, t in enumerate(targets)]
    return Evaluation(probs, targets, -np.log(probs[range(n), targets]), files, vocab, root=str(root))


@pytest.fixture
def pictures(tmp_path):
    "Right and wrong answers to images that lie in a folder, each of one color: its position"
    result = fake([0, 0, 0, 1, 1, 1, 2, 2], [0, 1, 1, 1, 0, 1, 2, 0], root=tmp_path)
    for i, name in enumerate(result.files):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4), (i, 0, 0)).save(tmp_path / name)
    return result


def drawn(axes): return [int(ax.images[0].get_array()[0, 0, 0]) for ax in axes]
def titles(axes): return [ax.get_title() for ax in axes]
def cells(ax): return {tuple(map(int, reversed(t.get_position()))): t.get_text() for t in ax.texts}


def history(stages=(1, 1, 2), **kwargs):
    n = len(stages)
    return pd.DataFrame(dict(stage=stages, epoch=range(1, n + 1), train_loss=np.linspace(2, 1, n), valid_loss=np.linspace(1.8, 1.2, n),
                             accuracy=np.linspace(.4, .6, n), lr=.1, seconds=np.arange(n) * 2.) | kwargs)


# ---------------------------------------------------------------------------------------------------- confusion matrix

def test_cells_are_the_counts(pictures):
    ax = plot_confusion_matrix(pictures)
    counts = pictures.confusion_matrix()
    assert cells(ax) == {(i, j): str(n) for (i, j), n in np.ndenumerate(counts) if n}
    assert [t.get_text() for t in ax.get_xticklabels()] == [t.get_text() for t in ax.get_yticklabels()] == pictures.vocab
    assert (ax.get_xlabel(), ax.get_ylabel()) == ('predicted class', 'actual class') and '8 images' in ax.get_title()


@pytest.mark.parametrize('plot', [plot_confusion_matrix, plot_per_class, plot_top_losses, lambda e: plot_confused(e, *e.vocab[:2]), lambda e: plot_comparison(compare(e, e))])
def test_names_are_no_mathematics(plot, pictures):
    "Matplotlib takes what stands between two dollars for a formula, and stops where it is none"
    vocab = ['US$ $', 'a $x_2$ b', '$$']
    axes = np.ravel(plot(fake(pictures.targets, pictures.predictions, vocab, pictures.root, pictures.files)))
    axes[0].figure.canvas.draw()
    figure = axes[0].get_figure(root=True)
    shown = [t.get_text() for t in figure.findobj(plt.Text) if '$' in t.get_text()]
    assert shown and all(t.count('$') == t.count(r'\$') for t in shown)


@pytest.mark.parametrize('plot', [plot_confusion_matrix, plot_per_class])
def test_long_names_leave_room_for_the_plot(plot):
    names = 'a'*200, 'b'*100 + ' 1', 'b'*100 + ' 2'
    ax = plot(fake([0, 1, 2], [0, 1, 1], names))
    ax.figure.canvas.draw()
    assert ax.get_position().width > .4
    labels = [t.get_text() for t in ax.get_yticklabels()]
    assert max(map(len, labels)) == 30 and len(set(labels)) == 3


def test_color_is_for_mistakes(pictures):
    image = plot_confusion_matrix(pictures).images[0]
    assert image.get_array().mask.tolist() == np.eye(3, dtype=bool).tolist()
    assert image.get_clim() == (0, 2)


def test_normalized_cells_are_percentages(pictures):
    ax = plot_confusion_matrix(pictures, normalize=True)
    assert cells(ax)[0, 1] == '66.7' and cells(ax)[2, 2] == '50.0'
    assert '%' in ax.figure.axes[-1].get_ylabel()


@pytest.mark.parametrize('targets, predictions, vocab', [
    ([0, 1, 2], [0, 1, 2], ('cat', 'dog', 'frog')), ([0], [2], ('cat', 'dog', 'frog')), ([0], [0], ('cat',)),
    (range(40), [0] * 40, [f'class {i}' for i in range(40)])], ids=['all right', 'one image', 'one class', 'many classes'])
@pytest.mark.parametrize('normalize', [False, True])
def test_degenerate_matrices_are_drawn(targets, predictions, vocab, normalize):
    ax = plot_confusion_matrix(fake(targets, predictions, vocab), normalize)
    ax.figure.canvas.draw()
    assert len(ax.get_xticklabels()) == len(vocab) and bool(ax.texts) == (len(vocab) <= 15)


def test_dark_cells_have_light_text(pictures):
    ax = plot_confusion_matrix(pictures)
    colors = {tuple(map(int, reversed(t.get_position()))): t.get_color() for t in ax.texts}
    assert colors[0, 1] == 'white' and colors[2, 0] == colors[1, 1] == 'black'


# ---------------------------------------------------------------------------------------------------- history

def test_curves_are_the_columns():
    table = history()
    losses, acc = plot_history(table)
    for line, column in zip([*losses.lines[:2], acc.lines[0]], ['train_loss', 'valid_loss', 'accuracy']):
        assert line.get_xdata().tolist() == [1, 2, 3] and line.get_ydata().tolist() == table[column].tolist()
    assert losses.get_ylabel() == 'loss (nats per image)' and '%' in acc.get_ylabel() and losses.get_xlabel() == acc.get_xlabel() == 'epoch'
    assert [t.get_text() for t in losses.get_legend().get_texts()] == ['train (last 1.000)', 'valid (last 1.200)']
    assert [t.get_text() for t in acc.get_legend().get_texts()] == ['valid (last 60.0%)']


@pytest.mark.parametrize('train_accuracy, labels', [([.5, .6, .9], ['train (last 90.0%)', 'valid (last 60.0%)']), (np.nan, ['valid (last 60.0%)'])])
def test_training_accuracy_is_drawn(train_accuracy, labels):
    losses, acc = plot_history(history((1, 1, 1), train_accuracy=train_accuracy))
    assert [t.get_text() for t in acc.get_legend().get_texts()] == labels
    if len(labels) == 2:
        assert acc.lines[0].get_ydata().tolist() == train_accuracy
        assert [line.get_color() for line in acc.lines] == [line.get_color() for line in losses.lines]


@pytest.mark.parametrize('stages, boundaries', [((1, 1, 2), [2.5]), ((1, 2, 2, 3), [1.5, 3.5]), ((1, 1), []), ((1,), [])])
def test_stages_are_marked(stages, boundaries):
    for n_curves, ax in zip((2, 1), plot_history(history(stages))):
        assert [line.get_xdata()[0] for line in ax.lines[n_curves:]] == boundaries
        assert [t.get_text() for t in ax.texts] == [f'stage {s}' for s in sorted(set(stages)) if boundaries]


def test_history_may_lack_stages_and_end_in_nan():
    table = history((1, 1, 1), train_loss=[2, 1, np.nan]).drop(columns='stage')
    losses, acc = plot_history(table)
    losses.figure.canvas.draw()
    assert not losses.texts and len(losses.lines) == 2


def test_history_from_a_folder_or_file(tmp_path):
    history().to_csv(tmp_path / 'history.csv', index=False)
    for source in (tmp_path, str(tmp_path), tmp_path / 'history.csv'):
        assert plot_history(source)[1].lines[0].get_ydata().tolist() == pytest.approx([.4, .5, .6])


@pytest.mark.slow
def test_history_of_a_learner(practice, tmp_path):
    dls = cifar10_dataloaders(practice, bs=60, num_workers=0, device='cpu')
    learn = Learner(dls, nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 10)), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with pytest.raises(ValueError, match='no training history'): plot_history(learn)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-2)
    values = [list(o) for o in learn.recorder.values]
    losses, acc = plot_history(learn)
    assert [[*o] for o in zip(*(line.get_ydata() for line in [*losses.lines, *acc.lines]))] == values
    assert len(plot_history(evaluated(learn))[0].lines[0].get_xdata()) == 2
    with learn.no_bar(), learn.no_logging(): learn.validate()
    with pytest.raises(ValueError, match='discards it in validate'): plot_history(learn)
    history((1, 1, 1)).to_csv(tmp_path / 'history.csv', index=False)
    learn.run_dir = tmp_path
    assert len(plot_history(learn)[0].lines[0].get_xdata()) == 3


def evaluated(learn):
    evaluate(learn, 'valid')
    return learn


def test_bad_histories(tmp_path):
    with pytest.raises(FileNotFoundError, match='No history at .*history.csv.*run folder'): plot_history(tmp_path)
    with pytest.raises(FileNotFoundError, match='No history at .*nothing'): plot_history(tmp_path / 'nothing')
    with pytest.raises(ValueError, match='no column valid_loss, accuracy; it has epoch, train_loss'):
        plot_history(pd.DataFrame(dict(epoch=[1], train_loss=[1.])))
    with pytest.raises(ValueError, match='no epochs'): plot_history(history(()))


# ---------------------------------------------------------------------------------------------------- pictures

def test_top_losses_are_drawn_in_order(pictures):
    axes = plot_top_losses(pictures, k=3)
    top = pictures.top_losses(3)
    assert drawn(axes) == top.index.tolist()
    i = top.index[0]
    assert titles(axes)[0] == f'predicted cat {pictures.probs[i].max():.0%}\nactual frog {pictures.probs[i, 2]:.0%}\nloss {pictures.losses[i]:.2f}'
    assert all(ax.images[0].get_interpolation() == 'nearest' for ax in axes)


def test_tiny_probabilities_are_not_called_zero(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
    result = Evaluation([[.996, .004]], [1], [5.5], ['a.png'], ['cat', 'dog'], root=str(tmp_path))
    assert titles(plot_top_losses(result)) == ['predicted cat 100%\nactual dog <1%\nloss 5.50']


def test_right_and_wrong_half_and_half(pictures):
    right = (pictures.predictions == pictures.targets).tolist()
    axes = plot_predictions(pictures, k=4)
    assert [right[i] for i in drawn(axes)] == [True, True, False, False]
    assert [t.endswith('\ncorrect') for t in titles(axes)] == [True, True, False, False]
    assert sorted(drawn(plot_predictions(pictures, k=100))) == list(range(8))


@pytest.mark.parametrize('correct', [True, False])
def test_only_right_or_only_wrong(pictures, correct):
    expected = np.flatnonzero((pictures.predictions == pictures.targets) == correct).tolist()
    assert sorted(drawn(plot_predictions(pictures, k=100, correct=correct))) == expected
    assert set(drawn(plot_predictions(pictures, k=2, correct=correct))) < set(expected)


def test_only_a_pair(pictures):
    assert sorted(drawn(plot_predictions(pictures, pair=('cat', 'dog')))) == [1, 2]
    assert drawn(plot_predictions(pictures, pair=('dog', 'cat'))) == [4]
    assert drawn(plot_predictions(pictures, pair=('cat', 'cat'), correct=True)) == [0]


@pytest.mark.parametrize('wrong', [0, 1, 3, 7, 8])
@pytest.mark.slow
def test_k_is_kept_when_one_kind_is_rare(tmp_path, wrong):
    Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
    result = fake([0] * 8, [1] * wrong + [0] * (8 - wrong), root=tmp_path, files=['a.png'] * 8)
    for k in range(1, 10):
        rights = [t.endswith('correct') for t in titles(plot_predictions(result, k))]
        assert len(rights) == min(k, 8) and rights == sorted(rights, reverse=True)


def test_choice_follows_the_seed(pictures):
    choices = [drawn(plot_predictions(pictures, k=4, seed=s)) for s in (0, 0, 1, 2, 3)]
    assert choices[0] == choices[1] and len({tuple(o) for o in choices}) > 1


@pytest.mark.parametrize('mode', ['L', 'P', 'RGBA', 'CMYK', 'I;16'])
def test_all_kinds_of_pictures_are_drawn(tmp_path, mode):
    Image.new(mode, (5, 3)).save(tmp_path / ('a.tiff' if mode in ('CMYK', 'I;16') else 'a.png'))
    result = fake([0], [1], root=tmp_path, files=[o.name for o in tmp_path.iterdir()])
    assert plot_predictions(result)[0].images[0].get_array().shape == (3, 5, 3)


def test_root_may_be_given(pictures, tmp_path):
    moved = Evaluation(pictures.probs, pictures.targets, pictures.losses, pictures.files, pictures.vocab, root='/nowhere')
    with pytest.raises(FileNotFoundError, match='No image test/.* in /nowhere.*root='): plot_top_losses(moved)
    assert drawn(plot_top_losses(moved, root=tmp_path)) == drawn(plot_top_losses(pictures))
    nameless = Evaluation([[.9, .1]], [1], [2.3], ['#0'], ['cat', 'dog'])
    with pytest.raises(ValueError, match='does not come from a file'): plot_predictions(nameless)


@pytest.mark.parametrize('plot', [plot_top_losses, plot_predictions])
@pytest.mark.parametrize('k', [0, -3])
def test_k_must_be_positive(pictures, plot, k):
    with pytest.raises(ValueError, match=f'at least 1, got {k}'): plot(pictures, k=k)
    assert not plt.get_fignums()


def test_empty_choices_say_so(pictures, tmp_path):
    perfect = fake([0, 1], [0, 1], root=tmp_path)
    with pytest.raises(ValueError, match='no incorrect predictions among the 2 test images'): plot_predictions(perfect, correct=False)
    with pytest.raises(ValueError, match='no correct predictions'): plot_predictions(fake([0], [1]), correct=True)
    with pytest.raises(ValueError, match='no predictions of actual class frog predicted as dog'): plot_predictions(pictures, pair=('frog', 'dog'))
    with pytest.raises(ValueError, match='no correct predictions of actual class cat'): plot_predictions(pictures, correct=True, pair=('cat', 'dog'))
    assert not plt.get_fignums()


def test_bad_pairs(pictures):
    with pytest.raises(ValueError, match="Unknown class 'dgo'. Allowed: cat, dog, frog"): plot_predictions(pictures, pair=('cat', 'dgo'))
    for pair in ('cat', ('cat',), ('cat', 'dog', 'frog'), ()):
        with pytest.raises(ValueError, match='pair must be .actual class, predicted class.'): plot_predictions(pictures, pair=pair)


# ---------------------------------------------------------------------------------------------------- axes

def test_figures_go_where_they_are_told(pictures):
    "Into axes of a figure that pyplot does not know"
    fig = Figure(layout='constrained')
    grid = fig.subplots(3, 4)
    assert plot_confusion_matrix(pictures, ax=grid[0, 0]) is grid[0, 0]
    assert list(plot_history(history(), axes=grid[0, 1:3])) == list(grid[0, 1:3])
    assert list(plot_top_losses(pictures, k=3, axes=grid[1])) == list(grid[1, :3])
    assert list(plot_predictions(pictures, k=4, axes=list(grid[2]))) == list(grid[2])
    assert not grid[1, 3].images and not plt.get_fignums()
    fig.savefig('/dev/null', format='png')


def test_too_few_axes(pictures):
    axes = Figure().subplots(1, 2)
    with pytest.raises(ValueError, match='3 images need 3 axes, got 2'): plot_top_losses(pictures, k=3, axes=axes)
    assert len(plot_history(history(), axes=axes)) == 2


@pytest.mark.parametrize('k, shape', [(1, (1, 1)), (5, (1, 5)), (6, (2, 3)), (7, (2, 4))])
def test_grids_are_at_most_five_wide(pictures, k, shape):
    axes = plot_top_losses(pictures, k=k)
    grid = axes[0].get_subplotspec().get_gridspec()
    assert (grid.nrows, grid.ncols) == shape and len(axes) == k
    assert not any(ax.axison for ax in axes[0].figure.axes)


# ---------------------------------------------------------------------------------------------------- classes and pairs

def labels(ax): return [t.get_text() for t in ax.get_yticklabels()]


def test_each_class_with_its_intervals(pictures):
    ax, table = plot_per_class(pictures, .9), pictures.per_class(.9).sort_values('f1', kind='stable')
    assert labels(ax) == list(table['class']) and '90% intervals' in ax.get_xlabel()
    names = 'recall', 'precision', 'f1'
    assert tuple(bars.get_label() for bars in ax.containers) == names
    for bars, name in zip(ax.containers, names):
        np.testing.assert_allclose(np.asarray(bars.lines[0].get_xdata(), float), table[name])
        ends = np.array([np.asarray(segment, float)[:, 0] for segment in bars.lines[2][0].get_segments()])
        np.testing.assert_allclose(ends, table[[f'{name}_low', f'{name}_high']])


def test_a_class_without_images_is_not_drawn(): assert set(labels(plot_per_class(fake([0, 0, 1], [0, 1, 1])))) == {'cat', 'dog'}


def test_two_classes_both_ways(pictures):
    axes = plot_confused(pictures, 'cat', 'dog', k=3)
    above, below = [[ax for ax in row if ax.images] for row in axes]
    assert axes.shape == (2, 3) and sorted(drawn(above)) == [1, 2] and drawn(below) == [4]
    p = pictures.probs[4]
    assert below[0].get_title() == f'cat {p[0]:.0%}\ndog {p[1]:.0%}'
    assert below[0].figure.get_suptitle() == 'actual dog, predicted cat: 1'
    with pytest.raises(ValueError, match="Unknown class 'cow'. Allowed: cat, dog, frog"): plot_confused(pictures, 'cat', 'cow')
    with pytest.raises(ValueError, match='at least 1, got 0'): plot_confused(pictures, 'cat', 'dog', k=0)


def test_any_images_in_the_order_asked_for(pictures):
    assert drawn(plot_images(pictures, [5, 0, 3])) == [5, 0, 3]
    assert drawn(plot_images(pictures, pictures.most_confident(3))) == list(pictures.most_confident(3).index)
    assert drawn(plot_images(pictures, range(8), k=2)) == [0, 1]
    assert drawn(plot_images(pictures, torch.tensor([5, 0]))) == [5, 0]
    for wrong in pictures.correct, pictures.correct.tolist(), torch.tensor(pictures.correct), [1.5], pictures.files[:1]:
        with pytest.raises(ValueError, match='images must be positions'): plot_images(pictures, wrong)


@pytest.mark.parametrize('images, k, said', [([], 5, 'at least one image'), ([8], 5, 'positions from 0 to 7, got 8'), ([-1], 5, 'got -1'), ([0], 0, 'at least 1, got 0')])
def test_images_that_are_not_there(pictures, images, k, said):
    with pytest.raises(ValueError, match=said): plot_images(pictures, images, k)


def test_label_candidates_are_captioned_as_such(pictures):
    found = pictures.label_errors()
    axes = plot_label_errors(pictures)
    assert drawn(axes) == list(found.index) and len(found)
    for ax, row in zip(axes, found.itertuples()): assert ax.get_title().startswith(f'label {row.actual} ') and f'predicted {row.predicted} ' in ax.get_title()
    with pytest.raises(ValueError, match='No possible label errors'): plot_label_errors(fake([0, 1, 2]*5, [0, 1, 2]*5))


# ---------------------------------------------------------------------------------------------------- probabilities

@pytest.mark.parametrize('n_bins', [4, 15])
def test_reliability_points_are_those_of_the_table(pictures, n_bins):
    ax, table = plot_reliability(pictures, n_bins), pictures.reliability(n_bins)
    points = ax.containers[-1].lines[0]
    np.testing.assert_allclose(np.asarray(points.get_xydata(), float), table[['confidence', 'accuracy']])
    heights = [bar.get_height() for bar in ax.patches]
    np.testing.assert_allclose(np.array(heights)/max(heights), table.n/table.n.max())
    assert f'{100*pictures.calibration_error(n_bins):.1f} points' in ax.get_title() and f'in {n_bins} bins' in ax.get_xlabel() and (ax.get_xlim()[0], ax.get_ylim()[0]) == (0, 0)
    assert 'temperature 2.00' in plot_reliability(pictures.with_temperature(2)).get_title()


def test_coverage_curve_and_marks(pictures):
    ax, curve = plot_coverage(pictures, accuracies=(.6,)), pictures.coverage_curve()
    line, mark = ax.get_lines()
    np.testing.assert_allclose(line.get_xydata(), curve[['coverage', 'accuracy']])
    coverage, threshold = pictures.coverage_at(.6)
    assert mark.get_xydata().tolist() == [[coverage, .6]] and f'coverage {coverage:.0%},\nconfidence \N{GREATER-THAN OR EQUAL TO} {threshold:.0%}' in ax.texts[0].get_text()
    assert not plot_coverage(pictures, accuracies=(.1,)).texts  # all can be answered


def test_intervals_of_nearly_everything_are_not_rounded_to_it(pictures):
    assert '99.9% intervals' in plot_per_class(pictures, .999).get_xlabel()
    assert [below_100(p) for p in (.5, .996, .99998, 1.)] == ['50', '99.6', '99.998', '100'] and below_100(.99972, 1) == '99.97'


def test_marks_of_a_weak_model_do_not_lie_on_each_other():
    sure = np.linspace(.99, .55, 40)  # the first three are right, and hardly any after them
    probs, targets = np.stack([sure, 1 - sure], 1), np.where(np.arange(40) < 3, 0, 1)
    weak = Evaluation(probs, targets, -np.log(probs[range(40), targets]), [f'{i}.png' for i in range(40)], ['cat', 'dog'])
    ax = plot_coverage(weak)
    assert len(ax.texts) == len(ax.lines) - 1 == 1 and ax.texts[0].get_ha() == 'left' and '99% accuracy' in ax.texts[0].get_text()


# ---------------------------------------------------------------------------------------------------- before and after

@pytest.fixture
def change(pictures):
    "A cat is fixed, a dog and a frog broken"
    after = fake([0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 0, 0, 1, 0, 0], root=pictures.root)
    return compare(pictures, after)


def test_change_of_each_class(change):
    ax, table = plot_comparison(change), change.per_class().sort_values('change', kind='stable')
    assert labels(ax) == [f'{o[0]}  +{o[1]} \N{MINUS SIGN}{o[2]}' for o in zip(table['class'], table.fixed, table.broken)]
    points = np.concatenate([bars.lines[0].get_xydata() for bars in ax.containers])
    np.testing.assert_allclose(points[points[:, 1].argsort()][:, 0], 100*table.change)
    assert f'p = {change.p_value:.2g}' in ax.get_title() and 'percentage points' in ax.get_xlabel()


def test_change_of_each_mistake(change):
    ax = plot_confusion_changes(change)
    counts = change.after.confusion_matrix() - change.before.confusion_matrix()
    assert cells(ax) == {(i, j): f'{n:+d}'.replace('-', '\N{MINUS SIGN}') for (i, j), n in np.ndenumerate(counts) if n}
    assert ax.get_title() == '1 images fixed, 2 broken' and ax.images[0].get_clim() == (-1, 1)


def test_changed_images(change):
    fixed, = plot_changed(change)
    assert drawn([fixed]) == [1] and fixed.get_title().startswith('before dog') and '\nafter cat' in fixed.get_title()
    assert sorted(drawn(plot_changed(change, 'broken'))) == [3, 6]
    with pytest.raises(ValueError, match="Unknown outcome 'mended'. Allowed: 'fixed', 'broken'"): plot_changed(change, 'mended')
    with pytest.raises(ValueError, match='No images were fixed'): plot_changed(compare(change.before, change.before))


@pytest.mark.parametrize('plot', [plot_per_class, plot_reliability, plot_coverage])
def test_charts_go_where_they_are_told(pictures, plot):
    ax = Figure().subplots()
    assert plot(pictures, ax=ax) is ax


@pytest.mark.parametrize('plot', [plot_comparison, plot_confusion_changes])
def test_charts_of_changes_go_where_they_are_told(change, plot):
    ax = Figure().subplots()
    assert plot(change, ax=ax) is ax


def many(n, vocab, sure, seed=0, **kwargs):
    rng = np.random.default_rng(seed)
    targets, logits = rng.integers(0, len(vocab), n), rng.normal(size=(n, len(vocab)))
    logits[range(n), targets] += sure*2*rng.random(n)
    probs = np.exp(logits)/np.exp(logits).sum(1, keepdims=True)
    return Evaluation(probs, targets, -np.log(probs[range(n), targets]), kwargs.pop('files', [f'{i}.png' for i in range(n)]), vocab, **kwargs)


def boxes(texts):
    "Where texts are in their figure, in pixels"
    figure = texts[0].figure.get_figure(root=True) if hasattr(texts[0].figure, 'get_figure') else texts[0].figure
    figure.canvas.draw()
    return [t.get_window_extent(figure.canvas.get_renderer()) for t in texts], figure.bbox


@pytest.mark.parametrize('sure', [1, 1.5, 2, 2.5])
def test_words_of_a_coverage_chart_lie_apart(sure):
    ax = plot_coverage(many(5000, [f'c{i}' for i in range(10)], sure))
    found, whole = boxes([ax.title, *ax.texts])
    assert len(found) > 1 and not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i]) and all(b.x1 <= whole.x1 for b in found)
    assert max(ax.get_yticks()) <= 1


def test_a_second_coverage_curve_is_seen_whole():
    vocab = [f'c{i}' for i in range(10)]
    ax = plot_coverage(many(2000, vocab, 4))
    plot_coverage(many(2000, vocab, 1), ax=ax)
    lowest = min(line.get_ydata().min() for line in ax.lines)
    assert lowest < .5 and ax.get_ylim()[0] < lowest and lowest - .1 < min(ax.get_yticks()) <= .5


@pytest.mark.parametrize('right', [0, 1])
def test_coverage_of_equal_confidences_is_a_point(right):
    n = 50
    probs, targets = np.eye(10)[np.arange(n) % 10], (np.arange(n) + 1 - right) % 10
    ax = plot_coverage(Evaluation(probs, targets, np.zeros(n), [f'{i}.png' for i in range(n)], [f'c{i}' for i in range(10)]))
    assert ax.lines[0].get_marker() == 'o' and ax.lines[0].get_xydata().tolist() == [[1, right]] and min(ax.get_yticks()) >= -.021 and max(ax.get_yticks()) <= 1


def test_captions_of_long_names_lie_apart(pictures):
    vocab = ['american_pit_bull_terrier', 'english_cocker_spaniel', 'staffordshire_bull_terrier', 'Maine_Coon', *[f'c{i}' for i in range(6)]]
    long = many(60, vocab, 1, files=pictures.files[:1]*60, root=pictures.root)
    for axes in (plot_top_losses(long), plot_predictions(long)):
        found, whole = boxes([ax.title for ax in axes])
        assert not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i]) and all(b.x0 >= 0 and b.x1 <= whole.x1 for b in found)
    for k in (1, 5):
        axes = plot_confused(long, *vocab[:3:2], k=k)
        found, whole = boxes([row[0].figure._suptitle for row in axes])
        assert all(b.x0 >= 0 and b.x1 <= whole.x1 for b in found)
        for row in axes:
            found, whole = boxes([ax.title for ax in row])
            assert not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])


def test_title_of_a_cooled_reliability_is_whole():
    found, whole = boxes([plot_reliability(many(200, [f'c{i}' for i in range(10)], 3).with_temperature(10)).title])
    assert found[0].x0 >= 0 and found[0].x1 <= whole.x1


# ---------------------------------------------------------------------------------------------------- learning rates

@pytest.mark.parametrize('lr, schedule, rates, says', [(.01, 'one_cycle', [.01], "recipe's highest (0.01)"), ((.001, .1), 'constant', [.001, .1], 'recipe (0.001 to 0.1)'),
                                                       ((None, .002), 'constant', [.002], 'recipe (0.002)')])
def test_rates_are_marked(lr, schedule, rates, says):
    recipe = Recipe(name='a', model='ladder_0', stages=Stage(epochs=1, lr=lr, schedule=schedule))
    lrs = np.geomspace(1e-7, 10, 50)
    losses = 2 + .1*(np.log10(lrs) + 2)**2
    found = LRSearch(recipe, tuple(lrs), tuple(losses), dict(valley=1e-3, slide=1e-2, minimum=1e-4, steep=1e-5))
    own = plt.subplots()[1]
    ax = plot_lr_search(found, own)
    assert ax is own and (ax.get_xscale(), ax.get_xlabel()) == ('log', 'learning rate') and 'loss (nats' in ax.get_ylabel()
    lines = {line.get_label(): line for line in ax.lines}
    assert lines['valley (0.001)'].get_xydata().ravel() == pytest.approx([1e-3, 2.1], rel=1e-2)
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == '--'] == rates and says in lines
    low, high = ax.get_ylim()
    assert low < min(losses) and losses[0] < high
