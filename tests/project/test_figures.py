"""Every figure is where it is shown, and shows what the words beside it say."""

import functools
import importlib
import itertools
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.style import context
from matplotlib.text import Text
from PIL import Image

import msvag_optax as mo
from docs import figures
from docs.figures import adamw, dissection, msvag, overview
from docs.figures.__main__ import main
from msvag_optax.compare.picture import STYLE
from msvag_optax.problems.reddi import PERIOD

SMALL: dict[str, dict[str, Any]] = {
    "overview": {"periods": 5_000, "steps": 100, "seeds": 1},
    "choosing": {},
    "msvag": {"steps": 500, "seeds": 2},
    "expectigrad": {"intervals": (1, 10, 100), "visits": 10},
    "novograd": {"steps": 150},
    "amsgrad": {"periods": 5_000},
    "adamw": {"steps": 1_000, "copies": 100},
    "dissection": {"points": 41},
}


ROOT = figures.FOLDER.parents[1]
SHOWN = [(name, page) for name, pages in figures.PAGES.items() for page in pages]
WHITE = (255, 255, 255)


@functools.cache
def computed(name: str) -> Any:
    """What a small run of the figure has found."""
    return importlib.import_module(f"docs.figures.{name}").compute(**SMALL[name])


def contrast(colour: Any) -> float:
    """Of a colour on white, as the Web Content Accessibility Guidelines count it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return 1.05 / (float(linear @ np.array([0.2126, 0.7152, 0.0722])) + 0.05)


@pytest.mark.parametrize("name", figures.PAGES)
def test_a_figure_is_kept_on_white_and_small(name):
    picture = figures.FOLDER / f"{name}.png"
    assert picture.stat().st_size <= 150_000
    image = Image.open(picture).convert("RGB")
    assert image.width == 1_600
    assert {image.getpixel((x, y)) for x in (0, 1_599) for y in (0, image.height - 1)} == {WHITE}


@pytest.mark.parametrize(("name", "page"), SHOWN)
def test_a_figure_is_shown_with_words_that_say_what_is_seen(name, page):
    shown = re.findall(r"^!\[([^\]]+)\]\((\S+)\)$", (ROOT / page).read_text(), re.MULTILINE)
    there = {((ROOT / page).parent / link).resolve(): alt for alt, link in shown}
    assert 60 <= len(there[figures.FOLDER / f"{name}.png"]) <= 600


def test_no_picture_is_kept_that_is_not_drawn_here():
    kept = {path.stem for path in figures.FOLDER.glob("*.png")}
    assert kept == set(figures.PAGES) == set(SMALL)


@pytest.mark.parametrize("name", figures.PAGES)
def test_a_figure_can_be_drawn_and_its_words_read(name):
    with context(STYLE):
        figure = importlib.import_module(f"docs.figures.{name}").draw(computed(name))
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    renderer = canvas.get_renderer()
    for ax in figure.axes:
        texts = [text for text in ax.texts if text.get_text()]
        assert texts  # names in every panel
        boxes = [Text.get_window_extent(text, renderer) for text in texts]
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other)
        colours = [line.get_color() for line in ax.lines] + [text.get_color() for text in texts]
        assert min(map(contrast, colours)) >= 3


def test_the_command_draws_what_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("docs.figures.__main__.FOLDER", tmp_path / "docs" / "figures")
    (tmp_path / "docs" / "figures").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["figures", "choosing"])
    main()
    assert capsys.readouterr().out.startswith("docs/figures/choosing.png: ")
    (picture,) = (tmp_path / "docs" / "figures").iterdir()
    assert picture.name == "choosing.png"
    with Image.open(picture) as image:
        assert image.width == 1_600
    monkeypatch.setattr("sys.argv", ["figures", "chosing"])
    with pytest.raises(SystemExit):
        main()
    assert "there is no figure 'chosing'; choose from overview, " in capsys.readouterr().err


# What the words beside each figure claim.


def test_adam_walks_the_wrong_way_and_each_optimizer_has_its_rate():
    data = computed("overview")
    assert data.walks["adam"][-1] == 1
    assert data.walks["amsgrad"][-1] < -0.95
    assert data.walks["expectigrad"][-1] < -0.95
    best = {
        name: overview.RATES[np.argmin(loss.mean(axis=0))] for name, loss in data.losses.items()
    }
    assert best["adam"] < best["sgd"] < best["msvag"]


@pytest.mark.slow
def test_the_rates_that_the_overview_names():
    losses = overview.compute(periods=1).losses
    best = {name: overview.RATES[np.argmin(loss.mean(axis=0))] for name, loss in losses.items()}
    assert best == {"adam": 0.01, "novograd": 0.03, "sgd": 0.1, "msvag": 1.0}


def test_the_diagram_counts_bytes_and_names_what_the_page_links():
    answers = computed("choosing")
    for answer, sizes in answers:
        expected = {"novograd": [4], "amsgrad or expectigrad": [12, 12]}.get(answer.advice, [8])
        if "adagrad" in answer.advice:
            expected = [4, 8]
        # Besides, a layer has its norm, and the whole tree its counters.
        np.testing.assert_allclose(sizes, expected, atol=1e-3)
    linked = "".join(
        f"{(ROOT / 'docs' / link).read_text()}"
        for link in re.findall(
            r"\]\((optimizers/\w+\.md)\)", (ROOT / "docs/choosing.md").read_text()
        )
    )
    names = {word for answer, _ in answers for word in re.findall(r"\w+", answer.advice)}
    ours = {name for name in names if hasattr(mo, name)}
    assert ours == {"bert_adamw", "novograd", "amsgrad", "expectigrad", "msvag", "adamw"}
    assert all(f"mo.{name}(" in linked for name in ours)


def test_noise_shortens_the_step_and_large_rates_cost_less():
    data = computed("msvag")
    for name, half in (("msvag", 0.23), ("svag", 1.0)):
        factor = data.factors[name]
        assert np.all(np.diff(factor) > 0)
        assert factor[0] < 0.01
        assert factor[-1] > 0.98
        np.testing.assert_allclose(np.interp(0.5, factor, data.ratios), half, rtol=0.02)
    means = {name: loss.mean(axis=0) for name, loss in data.losses.items()}
    lowest = [mean.min() for mean in means.values()]
    assert max(lowest) < 1.25 * min(lowest)
    large = np.array(msvag.RATES) > 0.1
    assert np.all((means["msvag"] < means["momentum_sgd"]) == large)


def test_expectigrad_forgets_nothing_and_counts_what_is_used():
    divisors, intervals, ways = computed("expectigrad")
    adam, ours = divisors["adam"][-PERIOD:], divisors["expectigrad"][-PERIOD:]
    np.testing.assert_allclose(adam.min() / adam.max(), 0.6, atol=0.02)
    np.testing.assert_allclose(ours[-1], 101, atol=1)
    assert np.ptp(ours) < np.ptp(divisors["expectigrad"][PERIOD : 2 * PERIOD]) / 3
    np.testing.assert_allclose(ways["counted"], 1, rtol=0.01)
    for name in ("adam", "uncounted"):
        np.testing.assert_allclose(ways[name], np.sqrt(intervals), rtol=0.1)


def test_novograds_steps_are_as_long_in_every_layer():
    found = computed("novograd")
    lasting = {
        name: {leaf: np.median(length[len(length) // 2 :]) for leaf, length in leaves.items()}
        for name, leaves in found.items()
    }
    assert all(len(leaves) == 6 for leaves in lasting.values())
    spread = {name: max(m.values()) / min(m.values()) for name, m in lasting.items()}
    assert spread["novograd"] < 3
    assert spread["gradient"] > 6
    assert spread["adam"] > 15


def test_amsgrad_walks_to_the_optimum_in_every_dialect():
    walks = computed("amsgrad")
    steps = {name: np.argmax(np.abs(walk) > 0.98) * PERIOD for name, walk in walks.items()}
    assert walks["adam"][-1] == 1
    assert steps["adam"] < 20_000
    assert walks["amsgrad"][-1] < -0.98
    np.testing.assert_allclose(steps["amsgrad"], 420_000, rtol=0.01)
    np.testing.assert_allclose(walks["uncorrected"], walks["amsgrad"], atol=0.02)
    np.testing.assert_allclose(
        np.diff(walks["amsgrad"][2_000:3_000]).mean() / np.diff(walks["optax"][2_000:3_000]).mean(),
        8,
        rtol=0.1,
    )


def test_decoupled_decay_does_not_know_the_gradients_size():
    means = computed("adamw")
    small, middle, large = means["l2"][-1]
    assert small < middle < large
    assert large > 3 * small
    steps = np.arange(len(means["decoupled"]))
    expected = np.tile((1 - adamw.RATE * adamw.DECAY) ** steps[:, None], 3)
    np.testing.assert_allclose(means["decoupled"], expected, atol=0.03)


def test_adaptation_is_what_noise_changes():
    steps = computed("dissection")
    mean = np.linspace(-2, 2, 41)
    for noise in dissection.NOISES:
        np.testing.assert_allclose(steps["momentum_sgd"][noise], mean, atol=1e-6)
        signs = steps["m_ssd"][noise][np.abs(mean) > 0.05]
        np.testing.assert_array_equal(signs, np.sign(mean[np.abs(mean) > 0.05]))
    for name, limit in (("msvag", "momentum_sgd"), ("adam", "m_ssd")):
        np.testing.assert_allclose(steps[name][0.0], steps[limit][0.0], atol=1e-6)
        none, some, much = (np.abs(steps[name][noise][mean > 0.05]) for noise in dissection.NOISES)
        assert np.all(none > some)
        assert np.all(some > much)
