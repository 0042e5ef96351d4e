"""What people read of a run: a terminal table and one self-contained HTML page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import pictures, records

FRAMES = 13  # most steps that the slider goes through


def write(run: records.Run, page: Path | None = None) -> list[str]:
    """Draws the pictures of a run and writes its page.

    Args:
      run: with all of its evaluations.
      page: a file for the page alone; else pictures and report.html go into the run's folder.

    Returns:
      A line for each picture that cannot be drawn; the page has it, too.

    Raises:
      RunError: if a file of the run is damaged.
    """
    figures, failed = pictures.of_run(run)
    frames: dict[int, dict[str, Any]] = {}
    real: dict[str, Any] = {}
    try:
        if run.illustrated:
            real = small_pictures(run, "real")
            frames = {
                step: {n: small_pictures(run, f"{n}-{step}") for n in run.names}
                for step in shown_steps(run.steps)
            }
    except records.RunError:
        raise
    except Exception as error:
        failed.append(f"samples along training: cannot be drawn: {pictures.reason(error)}")
    text = (
        templates()
        .get_template("report.html")
        .render(
            config=run.config,
            resolved=json.dumps(run.config, indent=2, ensure_ascii=False),
            summary=run.summary,
            environment=run.environment,
            figures=figures,
            failed=failed,
            frames=frames,
            real=real,
            panels=run.kind.panels,
            titles=titles_of(run.summary),
            head=head_of(run.summary),
            tables={step: rows_of(run.summary, step) for step in titles_of(run.summary)},
        )
    )
    if page is None:
        for name, content in figures.items():
            records.write_bytes(run.folder / name, content)
    records.write_bytes(page or run.folder / "report.html", text.encode())
    return failed


def shown_steps(steps: range) -> list[int]:
    """Returns at most `FRAMES` of the steps: the first, the last and others evenly between."""
    return [steps[round(i)] for i in np.linspace(0, len(steps) - 1, min(len(steps), FRAMES))]


def small_pictures(run: records.Run, name: str) -> dict[str, dict[str, Any]]:
    """Returns samples of the first seed and the mean spectrum of `<variant>-<step>` or `real`, as `src` and `width`."""
    arrays = run.arrays(name)
    samples, power = arrays["samples"], arrays["spectrum"]
    if name != "real":
        samples, power = samples[0], power.mean(0)
    images = {"samples": pictures.grid(samples), "spectrum": pictures.spectrum(power)}
    return {
        kind: {"src": pictures.data_uri(pictures.png(image)), "width": image.width}
        for kind, image in images.items()
    }


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Prints metrics by variant, and the claims with their verdicts."""
    for step, title in titles_of(summary).items():
        first, *columns = zip(head_of(summary), *rows_of(summary, step), strict=True)
        for part in _side_by_side(first, columns, console.width):
            table = Table(
                title=title.lower(), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1)
            )
            for i, (name, *_) in enumerate(part):
                table.add_column(name, justify="right" if i else "left", no_wrap=True)
            for cells in zip(*(column[1:] for column in part), strict=True):
                table.add_row(*cells)
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


def _side_by_side(
    first: tuple[str, ...], columns: Sequence[tuple[str, ...]], width: int
) -> list[list[tuple[str, ...]]]:
    """Divides columns among tables that fit into a width, each with the first column; titles are texts of theirs."""
    needs = lambda column: max(map(len, column)) + 3
    tables: list[list[tuple[str, ...]]] = [[first]]
    left = width - needs(first)
    for column in columns:
        if left < needs(column) and len(tables[-1]) > 1:
            tables.append([first])
            left = width - needs(first)
        tables[-1].append(column)
        left -= needs(column)
    return tables


def titles_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Returns what the first and the last evaluation are called; the only one of a task that measures."""
    if all("init" not in at for at in summary["variants"].values()):
        return {"final": "Measured"}
    if any(summary["parameters"].values()):
        return {"init": "Before training", "final": "After training"}
    return {"init": "At the start", "final": "At the end"}


def head_of(summary: Mapping[str, Any]) -> list[str]:
    """Returns the column titles of a table of metrics: variants, or metrics where there are more variants."""
    names, metrics = _names(summary)
    return ["variant", *metrics] if len(names) > len(metrics) else ["metric", *names]


def rows_of(summary: Mapping[str, Any], step: str) -> list[list[str]]:
    """Returns the rows that go with `head_of`, at step 'init' or 'final'."""
    names, metrics = _names(summary)

    def cell(name: str, metric: str) -> str:
        if name == "real":
            return format_number(summary["real"].get(metric))
        at = summary["variants"][name][step]
        return format_interval(at[metric]) if metric in at else "-"

    if len(names) > len(metrics):
        return [[name, *(cell(name, metric) for metric in metrics)] for name in names]
    return [[metric, *(cell(name, metric) for name in names)] for metric in metrics]


def _names(summary: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Returns the variants, and 'real' where there are real data, and the metrics."""
    variants = summary["variants"]
    metrics = dict.fromkeys(metric for at in variants.values() for metric in at["final"])
    return [*variants, *(["real"] if summary["real"] else [])], list(metrics)


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


def templates(*, escape: bool = True) -> jinja2.Environment:
    """Returns the templates, strict, with our formats of numbers as filters.

    Args:
      escape: for HTML.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=escape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = pictures.data_uri
    environment.filters["number"] = format_number
    environment.filters["interval"] = format_interval
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    return environment
