"""A picture in which every optimizer can be found, and nothing that did not happen."""

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from msvag_optax import compare
from tests.compare.outcomes import outcome

PNG = b"\x89PNG\r\n\x1a\n"


def results(experiment: compare.Experiment, names) -> list[compare.Outcome]:
    """Made-up runs that all end at nearly the same place, which is hard on labels."""
    generator = np.random.default_rng(0)
    rates = np.array([1e-3, 1e-2, 1e-1])
    steps = np.array([0, 5, 10])
    keys = {panel.metric.key for panel in experiment.panels} | {experiment.columns[0].key}
    return [
        outcome(name, rates=rates)._replace(
            steps=steps,
            history={key: generator.uniform(0.5, 0.52, (3, 2, 3)) for key in keys},
        )
        for name in names
    ]


@pytest.mark.parametrize(
    ("ending", "beginning"), [(".png", PNG), (".PNG", PNG), (".pdf", b"%PDF-"), (".svg", b"<?xml")]
)
def test_a_picture_has_the_format_of_its_ending(ending, beginning):
    experiment = compare.EXPERIMENTS["noisy-quadratic"]
    figure = compare.draw([outcome()], experiment, "a title")
    assert compare.render(figure, ending).startswith(beginning)


def test_adamw_says_where_it_does_not_decay():
    for name, optimizer in compare.OPTIMIZERS.items():
        for decay, suffix in ((0.0, " (no decay)"), (0.01, "")):
            label = optimizer.label(name, compare.Settings(100, 0.999, decay))
            assert label == name + (suffix if "adamw" in name else "")
            figure = compare.draw([outcome(label)], compare.EXPERIMENTS["noisy-quadratic"], "title")
            (line,) = [
                line for line in figure.axes[0].lines if line.get_color() == optimizer.colour
            ]
            assert line.get_linestyle() == ("--" if optimizer.baseline else "-")


def labels(ax) -> list[Text]:
    return [text for text in ax.texts if text.get_text().partition("  ")[0] in compare.OPTIMIZERS]


@pytest.mark.parametrize("problem", compare.EXPERIMENTS)
def test_every_optimizer_has_a_name_and_a_rate_in_the_picture_and_no_two_overlap(problem):
    experiment = compare.EXPERIMENTS[problem]
    found = results(experiment, compare.OPTIMIZERS)
    figure = compare.draw(found, experiment, "a title")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert len(figure.axes) == len(experiment.panels)

    expected = {
        "steps": {f"{o.name}  {o.rates[o.best(experiment.columns[0].key)]:g}" for o in found},
        "rates": {o.name for o in found},
    }
    for ax, panel in zip(figure.axes, experiment.panels, strict=True):
        names = labels(ax)
        assert {text.get_text() for text in names} == expected[panel.against]
        # Of the words alone: an annotation's own extent includes the line that leads to it.
        boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in names]
        inside = figure.bbox
        for index, box in enumerate(boxes):
            assert inside.x0 <= box.x0 < box.x1 <= inside.x1
            assert inside.y0 <= box.y0 < box.y1 <= inside.y1
            assert not any(box.overlaps(other) for other in boxes[:index])


def test_what_is_drawn_is_the_mean_by_which_the_table_ranks():
    experiment = compare.EXPERIMENTS["noisy-quadratic"]
    losses = [[0.1, 0.9], [0.1, 0.9], [0.7, 0.9]]  # the median is 0.1, the mean 0.3
    figure = compare.draw([outcome(losses=losses)], experiment, "a title")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata()[-1], 0.3)
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [0.3, 0.9])


def test_digits_show_test_accuracy():
    experiment = compare.EXPERIMENTS["digits"]
    figure = compare.draw(results(experiment, ["msvag"]), experiment, "a title")
    assert "test accuracy" in [ax.get_ylabel() for ax in figure.axes]
    assert len(figure.axes) == 3


def test_lines_that_end_in_the_same_place_are_drawn_side_by_side():
    experiment = compare.EXPERIMENTS["reddi-online"]
    names = ["msvag", "svag", "adam", "amsgrad"]
    ends = dict.fromkeys(names, 1.0) | {"amsgrad": -1.0}
    rates, keys = np.array([0.1, 1.0]), ("x", "average loss")
    found = [
        outcome(name, rates=rates)._replace(
            history={key: np.array([[[0.0] * 2], [[ends[name]] * 2]]) for key in keys}
        )
        for name in names
    ]
    figure = compare.draw(found, experiment, "a title")
    FigureCanvasAgg(figure).draw()
    lines = {tuple(to_rgb(line.get_color())): line for line in figure.axes[0].lines}
    heights = {}
    for name in names:
        line = lines[to_rgb(compare.OPTIMIZERS[name].colour)]
        heights[name] = line.get_transform().transform(line.get_xydata()[-1])[1]
    points = figure.dpi / 72
    together = sorted(heights[name] for name in names[:3])
    np.testing.assert_allclose(np.diff(together), 2 * points, rtol=1e-3)
    # What ends alone stays where it is.
    line = lines[to_rgb(compare.OPTIMIZERS["amsgrad"].colour)]
    exact = figure.axes[0].transData.transform((0, -1.0))[1]
    np.testing.assert_allclose(heights["amsgrad"], exact, atol=1e-6)


def test_lines_that_leave_the_panel_stay_where_they_are():
    experiment = compare.EXPERIMENTS["noisy-quadratic"]
    found = [outcome(name, losses=[[0.1, 1e4]]) for name in ("adam", "msvag", "svag")]
    ax = compare.draw(found, experiment, "a title").axes[1]
    for line in ax.lines:
        np.testing.assert_allclose(
            line.get_transform().transform((0.1, 0.1)), ax.transData.transform((0.1, 0.1))
        )


def contrast_on_white(colour: str) -> float:
    """As the Web Content Accessibility Guidelines count it."""
    return 1.05 / (float(linear(colour) @ np.array([0.2126, 0.7152, 0.0722])) + 0.05)


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(light: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB, in which equal distances look about equally large."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = np.cbrt(to_xyz @ light.clip(1e-4, 1) / to_xyz.sum(axis=1))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


# What is left of colours without the pigment of long, or of middle, wavelengths: Machado, Oliveira
# and Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009).
SIGHTS = {
    "usual": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
}


@pytest.mark.parametrize("sight", SIGHTS)
def test_colours_can_be_read_and_tell_the_optimizers_apart(sight):
    colours = [optimizer.colour for optimizer in compare.OPTIMIZERS.values()]
    assert min(map(contrast_on_white, colours)) >= 3
    seen = [lab(SIGHTS[sight] @ linear(colour)) for colour in colours]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest >= 15  # six times what can just be told apart


def test_what_diverged_leaves_a_gap():
    experiment = compare.EXPERIMENTS["noisy-quadratic"]
    losses = [[0.1, np.nan, 0.2], [0.1, 0.3, 0.2]]
    figure = compare.draw([outcome(losses=losses, rates=[1, 2, 3])], experiment, "a title")
    drawn = figure.axes[1].lines[0].get_ydata()
    np.testing.assert_array_equal(np.isfinite(drawn), [True, False, True])
    assert compare.render(figure).startswith(PNG)


def test_a_picture_in_which_all_diverged_can_still_be_drawn():
    experiment = compare.EXPERIMENTS["noisy-quadratic"]
    nothing = outcome(losses=np.full((2, 3), np.nan), rates=[1, 2, 3])
    figure = compare.draw([nothing], experiment, "a title")
    assert [ax.texts[0].get_text() for ax in figure.axes] == ["every run diverged"] * 2
    assert compare.render(figure).startswith(PNG)
