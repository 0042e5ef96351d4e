"""Pictures of runs: figures in PNG, and small images of few pixels that a page enlarges."""

import base64
import contextlib
import functools
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.lines import Line2D
from PIL import Image

from experiments import claims, records
from tconvjax import plot

COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
)  # Okabe & Ito, told apart by everybody
DASHES = ("-", ":", "-.", "--", (0, (6, 1, 1, 1, 1, 1)))  # for more than there are colors
LOG_SCALE = ("phase_mean_fraction", "frechet", "relative_", "harmonic_share")
COLUMNS = 8  # of variants beside each other
BEFORE, AFTER = "before training", "after training"
DECIBEL = (-60, -10)  # power per bin over the total, of all spectra
TICKS = (-0.5, -0.25, 0, 0.25, 0.5), ("1/2", "1/4", "0", "1/4", "1/2")  # cycles per pixel


def of_run(run: records.Run) -> tuple[dict[str, bytes], list[str]]:
    """Returns the figures of a run by name of the file, and a line for each that cannot be drawn.

    Raises:
      RunError: if a file of the run is damaged.
    """
    drawn, failed = {}, []
    for name, draw in _figures(run).items():
        try:
            with _style():
                drawn[f"{name}.png"] = png(draw())
        except records.RunError:
            raise
        except Exception as error:  # a picture less, never a page
            failed.append(f"{run.folder / name}.png: cannot be drawn: {reason(error)}")
    return drawn, failed


def reason(error: Exception) -> str:
    """Returns the type and text of an exception, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _figures(run: records.Run) -> dict[str, Callable[[], Figure]]:
    """Returns what draws each figure that a run has."""
    ways: dict[str, Callable[[], Figure]] = {}
    if curves(run):
        ways |= {"curves" if len(run.steps) > 1 else "measured": lambda: _of_metrics(run)}
    if run.kind.panels and panels(run):
        ways |= {"panels": lambda: draw_panels(panels(run))}
    if run.illustrated:
        images = functools.cache(lambda: _of_images(run))
        for name in ("samples", "spectrum", "overview"):
            ways[name] = functools.partial(lambda name: images()[name], name)
    return ways


def _of_metrics(run: records.Run) -> Figure:
    if len(run.steps) > 1:
        figure = Figure(figsize=(11, 0.6 + 2.7 * -(-len(curves(run)) // 2)), layout="constrained")
        draw_curves(figure, run)
        return figure
    size = (3 + 2.4 * len(curves(run)), 1 + 0.17 * len(run.names))
    figure = Figure(figsize=size, layout="constrained")
    draw_measured(figure, run)
    return figure


def _of_images(run: records.Run) -> dict[str, Figure]:
    """Returns the figures of a run whose evaluations hold images."""
    columns = len(run.names) + 1
    blocks = -(-columns // COLUMNS)
    width = 2.6 * -(-columns // blocks)
    first, last = (
        {name: run.arrays(f"{name}-{step}") for name in run.names}
        for step in (run.steps[0], run.steps[-1])
    )
    real = run.arrays("real")
    samples, spectra, overview = (
        Figure(figsize=(width, height * blocks), layout="constrained") for height in (5.6, 5.4, 11)
    )
    draw_samples(samples, first, last, real["samples"])
    draw_spectra(spectra, first, last, real["spectrum"])
    upper, lower = overview.subfigures(2, 1, squeeze=False).ravel()
    draw_samples(upper, first, last, real["samples"])
    draw_spectra(lower, first, last, real["spectrum"])
    return {"samples": samples, "spectrum": spectra, "overview": overview}


def of_runs(runs: Sequence[records.Run], labels: Sequence[str]) -> bytes:
    """Returns curves of several runs, a row per metric and a column per variant, a color per run."""
    titles = {metric: title for run in runs for metric, title in curves(run).items()}
    names = list(dict.fromkeys(name for run in runs for name in run.names))
    size = (2 + 2.8 * len(names), 0.8 + 2.2 * len(titles))
    with _style():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(titles), len(names), squeeze=False, sharey="row", sharex=True)
        for row, (metric, title) in zip(axes, titles.items(), strict=True):
            row[0].set_ylabel(textwrap.fill(title, 22))
            for axis, name in zip(row, names, strict=True):
                for run, style in zip(runs, _styles(len(runs)), strict=True):
                    if name in run.names and metric in run.metrics[name][0]:
                        _band(axis, run, name, metric, style)
        for axis, name in zip(axes[0], names, strict=True):
            axis.set_title(name)
        for axis in axes[-1]:
            axis.set_xlabel("training step")
        handles = [
            Line2D([], [], color=color, linestyle=dash) for color, dash in _styles(len(runs))
        ]
        figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
        return png(figure)


def curves(run: records.Run) -> Mapping[str, str]:
    """Returns the metrics of a run that are drawn along training, with their titles."""
    return {metric: title for metric, title in run.kind.curves.items() if metric in run.measured}


def draw_samples(
    figure: FigureBase,
    first: Mapping[str, Mapping[str, np.ndarray]],
    last: Mapping[str, Mapping[str, np.ndarray]],
    real: np.ndarray,
) -> None:
    """Draws a grid of samples: rows before and after training, a column per variant, real images last."""
    for (name, title), axis in _cells(figure, list(first)).items():
        arrays = {BEFORE: first, AFTER: last}.get(title)
        images = real if arrays is None else arrays[name]["samples"][0]
        axis.imshow(grid(images), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_title(f"{textwrap.fill(name, 22)}\n{title}", fontsize=9)
        axis.set_axis_off()


def draw_spectra(
    figure: FigureBase,
    first: Mapping[str, Mapping[str, np.ndarray]],
    last: Mapping[str, Mapping[str, np.ndarray]],
    real: np.ndarray,
) -> None:
    """Draws mean spectra in dB under their total power: rows before and after training."""
    cells = _cells(figure, list(first))
    for (name, title), axis in cells.items():
        arrays = {BEFORE: first, AFTER: last}.get(title)
        power = real if arrays is None else arrays[name]["spectrum"].mean(0)
        plot.spectrum(power, power=True, limits=DECIBEL, ax=axis)
        axis.set_title(f"{textwrap.fill(name, 22)}\n{title}", fontsize=9)
        axis.set(xlabel="", ylabel="")
        axis.set_xticks(*TICKS)
        axis.set_yticks(*TICKS)
    label = "power per bin, dB of the total"
    picture = next(iter(cells.values())).images[0]
    figure.colorbar(picture, ax=list(cells.values()), label=label, shrink=0.8)
    figure.supxlabel("frequency, cycles per pixel", fontsize=9)


def _cells(figure: FigureBase, names: Sequence[str]) -> dict[tuple[str, str], Axes]:
    """Returns places for a picture of each variant before training and, under it, after, and one of real images."""
    columns = [*names, "real"]
    blocks = -(-len(columns) // COLUMNS)
    wide = -(-len(columns) // blocks)
    axes = figure.subplots(2 * blocks, wide, squeeze=False)
    cells = {}
    for i, name in enumerate(columns):
        row, column = 2 * (i // wide), i % wide
        titles = ("", "held-out images") if name == "real" else (BEFORE, AFTER)
        for axis, title in zip(axes[row : row + 2, column], titles, strict=True):
            if title:
                cells[name, title] = axis
    for axis in axes.ravel():
        axis.set_axis_off()
    for axis in cells.values():
        axis.set_axis_on()
    return cells


def draw_curves(figure: FigureBase, run: records.Run) -> None:
    """Draws curves over training, mean and 95 % interval over seeds."""
    titles = curves(run)
    axes = figure.subplots(-(-len(titles) // 2), 2, squeeze=False).ravel()
    for axis, (metric, title) in zip(axes, titles.items(), strict=False):
        for name, style in zip(run.names, _styles(len(run.names)), strict=True):
            if metric in run.metrics[name][0]:
                _band(axis, run, name, metric, style, label=name, shaded=len(run.names) <= COLUMNS)
        real = run.summary["real"].get(metric)
        if real is not None:
            axis.axhline(real, color="0.4", linestyle="--", linewidth=1, label="real images")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("training step" if any(run.summary["parameters"].values()) else "step")
    for axis in axes[len(titles) :]:
        axis.set_axis_off()
    # Many names cover the curves; an empty corner has room for them, or else the margin.
    handles, labels = axes[0].get_legend_handles_labels()
    look: dict[str, Any] = {"frameon": False, "fontsize": 8}
    if len(titles) < len(axes):
        axes[-1].legend(handles, labels, ncols=-(-len(labels) // 12), **look)
    elif len(labels) > COLUMNS:
        figure.legend(handles, labels, loc="outside lower center", ncols=6, **look)
    else:
        axes[0].legend(handles, labels, **look)


def draw_measured(figure: FigureBase, run: records.Run) -> None:
    """Draws what was measured: a column per metric, a line per variant, a dot per seed."""
    titles = curves(run)
    (axes,) = figure.subplots(1, len(titles), squeeze=False, sharey=True)
    for axis, (metric, title) in zip(axes, titles.items(), strict=True):
        for place, name in enumerate(run.names):
            values = run.metrics[name][0].get(metric, [])
            axis.plot(values, [place] * len(values), "o", color=COLORS[0], alpha=0.5, markersize=4)
        if metric.startswith(LOG_SCALE):
            axis.set_xscale("log")
        axis.set_title(textwrap.fill(title, 30), fontsize=9)
        axis.grid(axis="y", color="0.9")
    axes[0].set_yticks(range(len(run.names)), run.names)
    axes[0].set_ylim(len(run.names) - 0.5, -0.5)


def panels(run: records.Run) -> dict[str, np.ndarray]:
    """Returns the last `panel` of every variant that has one; some have nothing to draw."""
    last = {name: f"{name}-{run.steps[-1]}" for name in run.names}
    return {name: run.arrays(at)["panel"][0] for name, at in last.items() if run.has_arrays(at)}


def draw_panels(panels: Mapping[str, np.ndarray]) -> Figure:
    """Returns one picture of panels by variant, in greys from -2.5 to 2.5 deviations of each."""
    columns = min(8, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (name, panel) in zip(axes, panels.items(), strict=False):
        middle, width = panel.mean(), 2.5 * panel.std()
        limits = {"vmin": middle - width, "vmax": middle + width}
        axis.imshow(panel, cmap="gray", interpolation="nearest", **limits)
        axis.set_title(textwrap.fill(name.replace("_", " "), 16), fontsize=7)
    return figure


def _style() -> contextlib.AbstractContextManager[None]:
    return mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})


def _styles(count: int) -> list[tuple[str, Any]]:
    """Returns that many pairs of color and dashes."""
    return [(COLORS[i % len(COLORS)], DASHES[i // len(COLORS) % len(DASHES)]) for i in range(count)]


def _band(
    axis: Axes,
    run: records.Run,
    name: str,
    metric: str,
    style: tuple[str, Any],
    label: str = "",
    *,
    shaded: bool = True,
) -> None:
    """Draws the mean, and its interval if `shaded`.

    On a logarithmic axis they are those of the logarithm, so that the band stays positive.
    """
    log = metric.startswith(LOG_SCALE)
    if log:
        axis.set_yscale("log")
    values = np.array([run.metrics[name][step][metric] for step in run.steps])  # (steps, seeds)
    shown = np.log(np.maximum(values, 1e-17)) if log else values
    back = np.exp if log else np.asarray
    mean, low, high = (back(v) for v in np.array([claims.interval(row) for row in shown]).T)
    color, dash = style
    axis.plot(run.steps, mean, color=color, linestyle=dash, label=label)
    if shaded:
        axis.fill_between(run.steps, low, high, color=color, alpha=0.2, linewidth=0)


def _decibel(power: np.ndarray) -> np.ndarray:
    """Returns power per bin in dB of the total."""
    return 10 * np.log10(np.maximum(power / power.sum(), 1e-12))


def grid(images: np.ndarray) -> Image.Image:
    """Returns sixteen images in [-1, 1], grey or in color, side by side, a pixel for each of theirs."""
    pixels = (np.clip(images[:16], -1, 1) + 1) * 127.5
    gaps = ((0, -len(pixels) % 4), (1, 1), (1, 1), (0, 0))
    padded = np.pad(pixels, gaps, constant_values=255)
    rows = [np.concatenate(list(padded[i : i + 4]), 1) for i in range(0, len(padded), 4)]
    tiled = np.concatenate(rows, 0).round().astype(np.uint8)
    return Image.fromarray(tiled[..., 0] if tiled.shape[-1] == 1 else tiled)


def spectrum(power: np.ndarray) -> Image.Image:
    """Returns a mean spectrum in the grays of the figures, four pixels for each of its own."""
    low, high = DECIBEL
    level = np.clip((_decibel(power) - low) / (high - low), 0, 1) * 255
    return Image.fromarray(np.kron(level.round().astype(np.uint8), np.ones((4, 4), np.uint8)))


def png(picture: Figure | Image.Image) -> bytes:
    """Returns a picture as the content of a file."""
    file = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(file, dpi=110, format="png", metadata={"Software": None})
    else:
        picture.save(file, "png", optimize=True)
    return file.getvalue()


def data_uri(content: bytes) -> str:
    """Returns a picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(content).decode()
