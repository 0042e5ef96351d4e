"""What people read: pictures, a terminal table and one self-contained HTML page."""

import base64
import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import claims, records
from experiments.config import Config, describe
from experiments.tasks import TASKS

COLORS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
)  # Okabe & Ito, told apart by everybody
LOG_SCALE = ("phase_mean_fraction", "frechet")
PICTURES = {
    "samples.png": "Generated digits of the first seed before and after training, with the same latents; real digits "
    "at the right.",
    "spectrum.png": "Mean power spectra over generated images and seeds in dB, zero frequency in the middle, one color "
    "scale. Isolated peaks halfway and at the edge of an axis are patterns of period 4 and 2.",
    "curves.png": "Metrics along training, mean over seeds with 95 % intervals (of the logarithm where the axis is "
    "logarithmic); dashed: real digits.",
}


def write(config: Config, folder: Path, summary: Mapping[str, Any], setting: Any) -> None:
    """Draws the pictures and writes report.html into a run folder.

    Args:
      config: of the run.
      folder: with metrics.jsonl and evaluations.
      summary: as in summary.json.
      setting: with `real_images` `(n, height, width, 1)` and `real_spectrum`.
    """
    names = [variant.name for variant in config.variants]
    first, last = (
        {n: records.read_arrays(folder / "evaluations" / f"{n}-{step}.npz") for n in names}
        for step in (0, config.steps)
    )
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        width = 2.6 * (len(names) + 1)
        samples, spectra, curves, overview = (
            Figure(figsize=(width, height), layout="constrained") for height in (5.6, 5.4, 6, 11)
        )
        draw_samples(samples, first, last, setting.real_images)
        draw_spectra(spectra, first, last, setting.real_spectrum)
        collected = records.collect(folder, config.seeds)
        draw_curves(curves, collected, names, summary["real"], TASKS[config.task].curves)
        upper, lower = overview.subfigures(2, 1, squeeze=False).ravel()
        draw_samples(upper, first, last, setting.real_images)
        draw_spectra(lower, first, last, setting.real_spectrum)
        for figure, name in ((samples, "samples"), (spectra, "spectrum"), (curves, "curves")):
            save_figure(figure, folder / f"{name}.png")
        save_figure(overview, folder / "overview.png")
    page = (
        templates()
        .get_template("report.html")
        .render(
            config=config,
            resolved=json.dumps(describe(config), indent=2, ensure_ascii=False),
            summary=summary,
            environment=records.read_json(folder / "environment.json"),
            pictures=[(data_uri(folder / name), caption) for name, caption in PICTURES.items()],
        )
    )
    records.write_bytes(folder / "report.html", page.encode())


def draw_samples(
    figure: FigureBase,
    first: Mapping[str, Mapping[str, np.ndarray]],
    last: Mapping[str, Mapping[str, np.ndarray]],
    real: np.ndarray,
) -> None:
    """Draws a grid of samples: rows before and after training, a column per variant, real digits last."""
    columns = [*first, "real"]
    axes = figure.subplots(2, len(columns), squeeze=False)
    for column, name in enumerate(columns):
        for row, (arrays, title) in enumerate(
            ((first, "before training"), (last, "after training"))
        ):
            axis = axes[row, column]
            axis.set_axis_off()
            if name == "real":
                if row == 0:
                    continue
                images, title = real, "held-out digits"
            else:
                images = arrays[name]["samples"][0]
            axis.imshow(
                _tile(images[:16], 4), cmap="gray", vmin=-1, vmax=1, interpolation="nearest"
            )
            axis.set_title(f"{name}\n{title}", fontsize=9)


def draw_spectra(
    figure: FigureBase,
    first: Mapping[str, Mapping[str, np.ndarray]],
    last: Mapping[str, Mapping[str, np.ndarray]],
    real: np.ndarray,
) -> None:
    """Draws mean spectra in dB under their total power: rows before and after training."""
    columns = [*first, "real"]
    axes = figure.subplots(2, len(columns), squeeze=False)
    picture = None
    for column, name in enumerate(columns):
        for row, (arrays, title) in enumerate(
            ((first, "before training"), (last, "after training"))
        ):
            axis = axes[row, column]
            if name == "real" and row == 0:
                axis.set_axis_off()
                continue
            power = real if name == "real" else arrays[name]["spectrum"].mean(0)
            decibel = 10 * np.log10(np.maximum(power / power.sum(), 1e-12))
            # The bins of an even size start at -1/2 and end one bin before 1/2; centers go to their frequencies.
            low, high = -0.5 - 0.5 / len(power), 0.5 - 0.5 / len(power)
            extent = (low, high, high, low)
            picture = axis.imshow(
                decibel, vmin=-60, vmax=-10, extent=extent, interpolation="nearest"
            )
            axis.set_title(f"{name}\n{'held-out digits' if name == 'real' else title}", fontsize=9)
            ticks, labels = (-0.5, -0.25, 0, 0.25), ("1/2", "1/4", "0", "1/4")
            axis.set_xticks(ticks, labels)
            axis.set_yticks(ticks, labels)
    if picture is not None:
        figure.colorbar(picture, ax=axes, label="power per bin, dB of the total", shrink=0.8)
    figure.supxlabel("frequency, cycles per pixel", fontsize=9)


def draw_curves(
    figure: FigureBase,
    collected: records.Metrics,
    names: Sequence[str],
    real: Mapping[str, float],
    titles: Mapping[str, str],
) -> None:
    """Draws curves over training, mean and 95 % interval over seeds."""
    axes = figure.subplots(-(-len(titles) // 2), 2, squeeze=False).ravel()
    for axis, (metric, title) in zip(axes, titles.items(), strict=False):
        log = metric.startswith(LOG_SCALE)
        for name, color in zip(names, cycle(COLORS), strict=False):
            steps = sorted(collected[name])
            values = np.array([collected[name][step][metric] for step in steps])  # (steps, seeds)
            _band(axis, steps, values, color, name, log=log)
        axis.axhline(real[metric], color="0.4", linestyle="--", linewidth=1, label="real digits")
        if log:
            axis.set_yscale("log")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("training step")
    axes[0].legend(frameon=False, fontsize=8)


def _band(
    axis: Axes, steps: Sequence[int], values: np.ndarray, color: str, name: str, *, log: bool
) -> None:
    """Draws mean and interval; on a logarithmic axis those of the logarithm, so that the band stays positive."""
    shown = np.log(np.maximum(values, 1e-9)) if log else values
    back = np.exp if log else np.asarray
    mean, low, high = (back(v) for v in np.array([claims.interval(row) for row in shown]).T)
    axis.plot(steps, mean, color=color, label=name)
    axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Prints metrics by variant, and the claims with their verdicts."""
    for step, title in (("init", "before training"), ("final", "after training")):
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
        table.add_column("metric", no_wrap=True)
        for name in summary["variants"]:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("real", justify="right")
        for metric, real in summary["real"].items():
            row = [format_interval(v[step][metric]) for v in summary["variants"].values()]
            table.add_row(metric, *row, format_number(real))
        console.print(table)
    console.print("mean ± half-width of the 95 % interval over seeds", style="dim")
    colors = {"supported": "green", "not supported": "red", "undecided": "yellow"}
    for entry in summary["claims"]:
        verdict = entry["verdict"]
        relation = (
            f"{entry['metric']}: {entry['relation']}; margin {format_interval(entry['margin'])}"
        )
        console.print(
            Text(f"{verdict:14}", colors[verdict]), Text(f"{entry['claim']} ({relation})")
        )


def format_number(value: float | None) -> str:
    """Three significant digits, no exponent for what metrics usually are."""
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.3g}" if abs(value) < 1e-3 else f"{value:#.3g}".rstrip(".")


def format_interval(entry: Mapping[str, float | None]) -> str:
    """`mean ± half-width` of an interval over seeds."""
    mean, low, high = (entry[key] for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None or not np.isfinite(low):
        return format_number(mean)
    half = (high - low) / 2
    return (
        f"{format_number(mean)} ± {half:.0f}"
        if half >= 10
        else f"{format_number(mean)} ± {half:.2g}"
    )


def _tile(images: np.ndarray, columns: int) -> np.ndarray:
    """Puts `(n, height, width, 1)` on a grid with gaps."""
    missing = -len(images) % columns
    padded = np.pad(images[..., 0], ((0, missing), (1, 1), (1, 1)), constant_values=1)
    rows = [
        np.concatenate(list(padded[i : i + columns]), 1) for i in range(0, len(padded), columns)
    ]
    return np.concatenate(rows, 0)


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a picture, whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    temporary.replace(path)


def data_uri(path: Path) -> str:
    """Returns a picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def templates() -> jinja2.Environment:
    """Returns the templates, strict, with our formats of numbers as filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = format_number
    environment.filters["interval"] = format_interval
    return environment
