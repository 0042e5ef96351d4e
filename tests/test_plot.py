"""Figures: what they show, and that they draw into given axes."""

import io
import sys

import numpy as np
import pytest
from cases import each
from matplotlib import pyplot
from matplotlib.figure import Figure

from tconvjax import analysis, plot

BOARD = np.indices((32, 32)).sum(0) % 2
LAYERS = [analysis.Layer(4, 2, 1), analysis.Layer(3, transpose=False)]
NOISE = np.random.default_rng(0).normal(size=(4, 32, 32, 1))
DRAWN = {
    "spectrum": lambda ax: plot.spectrum(NOISE, [2, 4], ax=ax),
    "overlap_map": lambda ax: plot.overlap_map((5, 5), 3, 2, ax=ax),
    "overlap_map of a signal": lambda ax: plot.overlap_map((5,), 3, 2, ax=ax),
    "overlap_map of a volume": lambda ax: plot.overlap_map((5, 4, 3), 3, 2, ax=ax),
    "phase_gains": lambda ax: plot.phase_gains(np.ones((3, 3, 2, 4)), 2, ax=ax),
    "phase_gains of a signal": lambda ax: plot.phase_gains(np.ones((5, 2, 4)), 3, ax=ax),
    "center_map": lambda ax: plot.center_map(3, 2, ax=ax),
    "receptive_field": lambda ax: plot.receptive_field((8,), LAYERS, ax=ax),
    "repair": lambda ax: plot.repair(NOISE + BOARD[..., None], NOISE, ax=ax),
}


@pytest.fixture(autouse=True)
def without_screen():
    pyplot.switch_backend("agg")
    pyplot.close("all")  # a page of docs, run before by the same worker, may have left one
    yield
    pyplot.close("all")


@each("name", DRAWN)
def test_figures_are_drawn_into_axes_and_saved_in_any_format(name):
    ax = Figure().add_subplot()
    assert DRAWN[name](ax) is ax
    assert ax.get_title()
    assert ax.get_xlabel()
    for kind in ("png", "svg", "pdf"):
        file = io.BytesIO()
        ax.figure.savefig(file, format=kind)
        assert len(file.getvalue()) > 1000
    assert not pyplot.get_fignums()


def test_a_new_figure_is_one_of_pyplot():
    ax = plot.spectrum(BOARD)
    assert pyplot.get_fignums() == [ax.figure.number]


def test_a_checkerboard_is_bright_in_the_corner_of_the_spectrum():
    picture = plot.spectrum(BOARD, [2]).images[0].get_array()
    assert picture.shape == (33, 33)
    assert picture.argmax() in {0, 32, 33 * 32, 33 * 33 - 1}
    assert picture.max() == pytest.approx(0, abs=0.1)


def test_a_given_power_is_drawn_over_its_total():
    power = np.fft.fftshift(np.abs(np.fft.fft2(BOARD - 0.5)) ** 2)
    power[16, 16] = power.max() * 3
    ax = plot.spectrum(power, power=True, limits=(-60, -1), ax=Figure().add_subplot())
    image = ax.images[0]
    picture = image.get_array()
    assert picture.shape == (33, 33)
    np.testing.assert_allclose(picture[[0, 0, -1, -1], [0, -1, 0, -1]], 10 * np.log10(1 / 4))
    assert picture[16, 16] == pytest.approx(10 * np.log10(3 / 4))
    assert picture[3, 3] == pytest.approx(-60)
    assert image.get_clim() == (-60, -1)
    assert len(ax.figure.axes) == 1  # no color bar
    with pytest.raises(ValueError, match=r"^spectrum: power must be .* got shape \(1, 4, 4\)\.$"):
        plot.spectrum(np.ones((1, 4, 4)), power=True)


def test_overlap_is_that_of_analysis():
    options = {"padding": ((1, 0), (2, 1)), "output_padding": 1, "kernel_dilation": 2}
    ax = plot.overlap_map((6, 5), (3, 2), (2, 3), **options)
    want = analysis.overlap_map((6, 5), (3, 2), (2, 3), **options)
    np.testing.assert_array_equal(ax.images[0].get_array(), want)
    assert ax.get_title().endswith(f": {want.min()} to {want.max()} taps")
    bars = plot.overlap_map((6,), 3, 2).patches
    np.testing.assert_array_equal([b.get_height() for b in bars], analysis.overlap_map((6,), 3, 2))


def test_input_centers_are_those_of_analysis():
    centers = analysis.center_map((5, 5), 3, -10)
    across, down = plot.overlap_map((4, 4), 5, 3, padding=-10).lines[0].get_data()
    want = centers.scale[0] * np.arange(4) + centers.offset[0]
    np.testing.assert_allclose(sorted(set(across)), want)
    np.testing.assert_allclose(sorted(set(down)), want)


def test_even_phases_have_equal_gains():
    even = plot.phase_gains(analysis.balance(np.random.default_rng(0).normal(size=(4, 4, 3, 5)), 2), 2)  # fmt: skip
    np.testing.assert_allclose(even.images[0].get_array(), 1, atol=1e-5)
    gains = plot.phase_gains(np.ones((3, 3, 1, 1)), 2).images[0].get_array()
    np.testing.assert_allclose(gains, np.array([[4, 2], [2, 1]]) / 2.25, rtol=1e-6)
    alternating = plot.phase_gains(np.array([1.0, -1.0]).reshape(2, 1, 1), 2)
    assert alternating.get_title() == "gains -1.00 to 1.00 of the largest"


def test_fields_are_those_of_analysis():
    (field,) = analysis.receptive_field((8,), LAYERS)
    bars = plot.receptive_field((8,), LAYERS).patches[: len(field)]
    np.testing.assert_array_equal([b.get_y() + 0.5 for b in bars], field[:, 0])
    np.testing.assert_array_equal([b.get_height() for b in bars], field[:, 1] - field[:, 0])


@each("axis", (0, 1))
def test_a_repair_is_shown_along_the_axis_of_the_pattern(axis):
    stripes = np.indices((32, 32))[axis] % 2
    title = plot.repair(NOISE + 5 * stripes[..., None], NOISE).get_title()
    name = ("along the height", "along the width")[axis]
    assert title.startswith(f"period 2, {name}: -")
    worse = plot.repair(NOISE, NOISE + 5 * stripes[..., None]).get_title()
    assert worse.startswith(f"period 2, {name}: +")


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plot.spectrum(np.ones(8)), "spectrum: images must be"),
        (lambda: plot.spectrum(BOARD, [1]), "spectrum: periods must be up to 4 integers >= 2"),
        (lambda: plot.spectrum(BOARD, [2, 3, 4, 5, 6]), "spectrum: periods must be up to 4"),
        (lambda: plot.phase_gains(np.ones((2, 2, 2, 1, 1)), 2), "phase_gains: kernel must have one or two"),
        (lambda: plot.center_map(3, 2, axis=1), "center_map: axis must be at least 0 and below 1"),
        (lambda: plot.receptive_field((8,), LAYERS, axis=1), "receptive_field: axis must be"),
        (lambda: plot.repair(BOARD, NOISE), "repair: before and after must have one shape"),
        (lambda: plot.repair(BOARD, BOARD, 1), "repair: period must be at least 2"),
        (lambda: plot.repair(BOARD, BOARD, 17), "repair: images must have at least two periods"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert str(caught.value).startswith(message)
    assert not pyplot.get_fignums()


@pytest.mark.refuses
def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'pip install "tconvjax\[plot\]"'):
        plot.spectrum(BOARD)
