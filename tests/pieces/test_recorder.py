"""What is recorded during training, and drawn after it."""

import struct
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tensorboardX.proto import event_pb2

import msvag_optax as mo
from msvag_optax.compare import noise_map
from tests.pieces.test_batch_variance import EXAMPLES, PARAMS, sample

GRADIENT, EXTRA = sample()
TX = optax.chain(mo.watch_noise(mo.exponential(0.9)), optax.sgd(0.1))


def events(folder):
    """What is in an event file: records of a length, its checksum, an event, and its checksum."""
    (file,) = folder.iterdir()
    content, scalars, texts, place = file.read_bytes(), {}, {}, 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        event = event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
        place += 12 + length + 4
        for value in event.summary.value:
            if value.HasField("tensor"):
                texts[value.tag] = value.tensor.string_val[0].decode()
            else:
                scalars.setdefault(value.tag, {})[event.step] = value.simple_value
    return scalars, texts


def train(recorder, loop):
    """Six steps of one batch, recorded outside of `jit`, inside of it, or in a scan."""

    def step(state, count):
        return TX.update(GRADIENT, state, PARAMS, **EXTRA)[1]

    def recorded(state, count):
        state = step(state, count)
        recorder.record(count, state)
        return state, None

    state = TX.init(PARAMS)
    if loop == "scan":
        return jax.jit(lambda state: jax.lax.scan(recorded, state, jnp.arange(6))[0])(state)
    inside, outside = jax.jit(recorded), jax.jit(step)
    for count in range(6):
        if loop == "jit":
            state, _ = inside(state, count)
        else:
            state = outside(state, count)
            recorder.record(count, state)
    return state


@pytest.mark.parametrize("loop", ["eager", "jit", "scan"])
def test_readings_are_recorded_by_layer(tmp_path, loop):
    with mo.NoiseRecorder(tmp_path, every=2) as recorder:
        state = train(recorder, loop)
    scalars, texts = events(tmp_path)
    (source,) = texts.values()
    assert source == "within steps"
    ratios = mo.signal_to_noise(state)
    scale = mo.noise_scale(state)
    expected = {
        "signal_to_noise/b": ratios["b"],
        "signal_to_noise/w": ratios["w"],
        "noise_scale/batches": scale,
        "noise_scale/examples": 12 * scale,
    }
    assert scalars.keys() == expected.keys()
    for tag, curve in scalars.items():
        assert sorted(curve) == [0, 2, 4]
        np.testing.assert_allclose(curve[4], expected[tag], rtol=1e-5)


def test_where_there_is_no_reading_there_is_a_gap(tmp_path):
    tx = mo.watch_moments(mo.arithmetic())
    state = tx.init(jnp.zeros(2))
    with mo.NoiseRecorder(tmp_path) as recorder:
        for count, gradient in enumerate(([1.0, 2.0], [2.0, 1.0], [-9.0, -9.0])):
            _, state = tx.update(jnp.asarray(gradient), state)
            recorder.record(count, state)
    scalars, texts = events(tmp_path)
    assert sorted(scalars["noise_scale/batches"]) == [1]
    assert sorted(scalars["signal_to_noise/params"]) == [1, 2]
    assert "noise_scale/examples" not in scalars
    assert [*texts.values()] == ["over steps"]


def test_stacked_layers_have_curves_of_their_own(tmp_path):
    stacked = mo.watch_noise(mo.exponential(0.9), stacked=["^w"])
    _, state = stacked.update(GRADIENT, stacked.init(PARAMS), **EXTRA)
    with mo.NoiseRecorder(tmp_path) as recorder:
        recorder.record(0, state)
    scalars, _ = events(tmp_path)
    assert {"signal_to_noise/w/0", "signal_to_noise/w/2", "signal_to_noise/b"} < scalars.keys()


def test_a_recorder_that_is_closed_or_cannot_be_made_says_so(tmp_path, monkeypatch):
    recorder = mo.NoiseRecorder(tmp_path)
    recorder.close()
    recorder.close()
    with pytest.raises(ValueError, match="recorder is closed"):
        recorder.record(0, TX.init(PARAMS))
    with pytest.raises(ValueError, match="`every` must be an integer >= 1, got 0"):
        mo.NoiseRecorder(tmp_path, every=0)
    folder: Any = 3
    with pytest.raises(TypeError, match="`folder` must be a path, got 3"):
        mo.NoiseRecorder(folder)
    with mo.NoiseRecorder(tmp_path) as recorder:
        with pytest.raises(ValueError, match="see `watch_noise`"):
            recorder.record(np.array(0), optax.adam(0.1).init(PARAMS))
        with pytest.raises(TypeError, match=r"`step` must be an integer >= 0, got 1\.5"):
            recorder.record(1.5, TX.init(PARAMS))
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"pip install 'msvag_optax\[tensorboard\]'"):
        mo.NoiseRecorder(tmp_path)


def test_nothing_is_imported_by_those_who_record_nothing():
    program = "import sys, msvag_optax; print('tensorboardX' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"


def test_the_map_has_a_row_for_each_layer_and_grey_without_signal():
    ratios = {"w": jnp.asarray([[1.0, 0.1], [0.5, 0.0], [0.2, jnp.nan]]), "b": jnp.ones(3)}
    figure = noise_map(ratios, [10, 20, 40], title="A network")
    axes, bar = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "w/0", "w/1"]
    assert axes.get_title(loc="left") == "A network"
    assert bar.get_ylabel() == "signal-to-noise ratio"
    shown = axes.collections[0].get_array()
    np.testing.assert_allclose(shown[1], [1.0, 0.5, 0.2], rtol=1e-6)
    np.testing.assert_array_equal(shown.mask[2], [False, True, True])
    assert axes.get_xlim() == (10, 40)
    with pytest.raises(ValueError, match=r"ratios of 'b' must have shape \(2,\) or \(2, layers\)"):
        noise_map(ratios, [10, 20])


def test_a_map_without_any_signal_is_grey_and_one_without_layers_refused():
    figure = noise_map({"w": jnp.asarray([0.0, jnp.nan])}, [10, 20])
    figure.canvas.draw()
    assert figure.axes[0].collections[0].get_array().mask.all()
    with pytest.raises(ValueError, match=r"`ratios` must have a layer or more, got \{\}"):
        noise_map({}, [10, 20])


def test_examples_are_what_the_map_takes():
    """The log of a scan goes into it as it is."""

    def step(state, examples):
        gradient, extra = sample(examples)
        state = TX.update(gradient, state, PARAMS, **extra)[1]
        return state, mo.signal_to_noise(state)

    halves = jax.tree.map(lambda g: g.reshape(2, 6, *g.shape[1:]), EXAMPLES)
    _, ratios = jax.lax.scan(step, TX.init(PARAMS), halves)
    assert noise_map(ratios, [1, 2]).axes
