"""What people read of a benchmark: tables in the terminal, one picture, one self-contained HTML page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments import records
from experiments.benchmark.config import Benchmark
from experiments.benchmark.layers import OURS, PASSES
from experiments.benchmark.summary import COLUMNS
from experiments.config import describe
from experiments.pictures import COLORS, png
from experiments.report import format_number, templates

PEERS = ("lax", "flax", "keras", "torch", "torch_channels_last")
LABELS = {
    "lax": "jax.lax",
    "flax": "Flax NNX",
    "keras": "Keras 3 on JAX",
    "torch": "torch",
    "torch_channels_last": "torch, channels last",
}
MARKERS = dict(zip(PEERS, "osDv^", strict=True))
TITLES = {"forward": "forward", "train": "forward and backward"}

Entries = Sequence[Mapping[str, Any]]


def write(
    config: Benchmark,
    folder: Path,
    results: Mapping[str, Entries],
    summary: Mapping[str, Any],
) -> None:
    """Draws the picture and writes report.html into a run folder.

    Args:
      config: of the run.
      folder: with environment.json.
      results: content of results.json and autotune.json.
      summary: content of summary.json.
    """
    pictures = []
    for dtype in config.dtypes:
        rows = [e for e in results["layers"] if e["dtype"] == dtype and e.get("ratio")]
        if rows:
            name = "benchmark.png" if dtype == config.dtypes[0] else f"benchmark-{dtype}.png"
            with mpl.rc_context({"font.size": 9}):
                content = png(draw(config, rows, dtype, summary["machine"]["processor"]))
            records.write_bytes(folder / name, content)
            pictures.append(
                (
                    content,
                    f"Time of a peer over ours in {dtype}, by layer; right of 1, ours is faster. Bars: 95 % intervals.",
                )
            )
    page = (
        templates()
        .get_template("benchmark.html")
        .render(
            config=config,
            columns=COLUMNS,
            passes=TITLES,
            resolved=json.dumps(describe(config), indent=2, ensure_ascii=False),
            results=results,
            summary=summary,
            environment=records.read_json(folder / "environment.json"),
            pictures=pictures,
        )
    )
    records.write_bytes(folder / "report.html", page.encode())


def draw(config: Benchmark, entries: Entries, dtype: str, processor: str) -> Figure:
    """Draws the ratios of all layers: a panel per pass, a row per layer, a color and marker per peer."""
    names = [layer.name for layer in config.selected]
    shown = [name for name in names if any(e["layer"] == name for e in entries)]
    figure = Figure(figsize=(10, 1.6 + 0.34 * len(shown)), layout="constrained")
    axes = figure.subplots(1, len(PASSES), sharey=True, sharex=True, squeeze=False)[0]
    for axis, direction in zip(axes, PASSES, strict=True):
        for peer, color in zip(PEERS, COLORS, strict=True):
            points = [e for e in entries if (e["pass"], e["peer"]) == (direction, peer)]
            offset = 0.13 * (PEERS.index(peer) - (len(PEERS) - 1) / 2)
            if not points:
                continue
            means = [e["ratio"]["mean"] for e in points]
            rows = [shown.index(e["layer"]) + offset for e in points]
            for e, row in zip(points, rows, strict=True):
                if e["ratio"]["low"] is not None:
                    limits = (e["ratio"]["low"], e["ratio"]["high"])
                    axis.plot(limits, (row, row), color=color, linewidth=1, alpha=0.6)
            axis.plot(
                means,
                rows,
                MARKERS[peer],
                color=color,
                markersize=5,
                label=LABELS[peer],
                markeredgewidth=0,
            )
        axis.axvline(1, color="0.3", linewidth=1)
        axis.set_xscale("log")
        axis.set_title(TITLES[direction])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.grid(axis="x", color="0.9", linewidth=0.8)
        for row in range(len(shown)):
            if row % 2:
                axis.axhspan(row - 0.5, row + 0.5, color="0.96", linewidth=0, zorder=0)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    means = [e["ratio"]["mean"] for e in entries]
    axes[0].set_xlim(min([0.8, *(0.8 * m for m in means)]), max([1.25, *(1.25 * m for m in means)]))
    axes[0].set_yticks(range(len(shown)), shown)
    axes[0].set_ylim(len(shown) - 0.5, -0.5)
    figure.supxlabel(f"time of the peer / time of tconvjax, {dtype}, {processor}", fontsize=9)
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=len(PEERS), frameon=False, fontsize=9
    )
    return figure


def line(key: Mapping[str, str], entries: Entries) -> Text:
    """Returns one line of the log: what was measured, and by how much ours is faster."""
    text = Text(f"{' '.join(key.values()):30}")
    if "face" in entries[0]:
        parts = [
            f"{e['face']} {e['chosen']} {format_number(e['chosen_over_best'])}x of {e['best']}"
            for e in entries
        ]
        return text.append("   ".join(parts))
    for direction in PASSES if "pass" in entries[0] else (None,):
        timed = [e for e in entries if e.get("pass") == direction and "min_ms" in e]
        text.append(f"  {direction or 'step'} {format_number(timed[0]['median_ms'])} ms", "bold")
        for e in timed[1:]:
            ratio = e["ratio"]["mean"]
            text.append(f" {e['peer'].replace('_channels', '')} ")
            text.append(f"{format_number(ratio)}x", "green" if ratio > 1 else "red")
    return text


def print_tables(
    results: Mapping[str, Entries], summary: Mapping[str, Any], console: Console
) -> None:
    """Prints layers, models, the choices of 'auto', and the means over families, as far as they were measured."""
    for dtype, passes in summary["layers"].items():
        for direction, found in passes.items():
            title = f"{TITLES[direction]}, {dtype}"
            entries = [
                e for e in results["layers"] if (e["dtype"], e["pass"]) == (dtype, direction)
            ]
            console.print(_layer_table(entries, f"{title}: ms of ours, others over ours"))
            console.print(_family_table(found, f"{title}: geometric means of the ratios"))
            for key, what in (
                ("slower_than_lax", "slower than lax"),
                ("surely_slower_than_lax", "of them with the whole 95 % interval"),
                ("below_torch_share", f"below {found['torch_share']} of torch's best"),
            ):
                names = found[key]
                console.print(Text(f"{len(names)} {what}: {', '.join(names) or 'none'}"))
    if results["models"]:
        console.print(_model_table(results["models"]))
    if results["autotune"]:
        console.print(_choice_table(results["autotune"]))
        found = summary["autotune"]
        console.print(
            Text(
                f"{found['slower']} of {found['faces']} choices more than 15 % slower than the best; geometric mean "
                f"{format_number(found['chosen_over_best'])}"
            )
        )
    for reason, peers in summary["skipped"].items():
        console.print(Text(f"skipped {', '.join(peers)}: {reason}", "dim"))


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))


def _ratio(entry: Mapping[str, Any] | None) -> Text:
    if entry is None or not entry.get("ratio"):
        return Text("-", "dim")
    value = entry["ratio"]["mean"]
    return Text(format_number(value), "" if value >= 1 else "red")


def _layer_table(entries: Entries, title: str) -> Table:
    table = _table(title)
    table.add_column("layer", no_wrap=True)
    peers = [p for p in PEERS if any(e["peer"] == p and "min_ms" in e for e in entries)]
    for name in ("ms", "GFLOP/s", "peak", "roofline", "compile s", *peers):
        table.add_column(name.replace("_channels", ""), justify="right")
    for ours in entries:
        if ours["peer"] != OURS:
            continue
        of = {e["peer"]: e for e in entries if e["layer"] == ours["layer"]}
        table.add_row(
            ours["layer"],
            format_number(ours["median_ms"]),
            format_number(ours["gflops"]),
            f"{ours['peak_share']:.0%}",
            f"{ours['roofline_share']:.0%}",
            format_number(ours["compile_s"]),
            *(_ratio(of.get(peer)) for peer in peers),
        )
    return table


def _family_table(found: Mapping[str, Any], title: str) -> Table:
    table = _table(title)
    table.add_column("family")
    for name in ("layers", *COLUMNS):
        table.add_column(name, justify="right")
    for family, row in found["families"].items():
        table.add_row(family, str(row["layers"]), *(format_number(row[c]) for c in COLUMNS))
    return table


def _model_table(entries: Entries) -> Table:
    table = _table("training steps")
    table.add_column("model")
    table.add_column("peer")
    for name in ("median ms", "min ms", "over ours", "compile s", "temporary MB"):
        table.add_column(name, justify="right")
    for e in entries:
        if "min_ms" in e:
            memory = e["temporary_bytes"]
            table.add_row(
                e["model"],
                e["peer"],
                format_number(e["median_ms"]),
                format_number(e["min_ms"]),
                _ratio(e),
                format_number(e["compile_s"]),
                format_number(memory / 1e6 if memory is not None else None),
            )
    return table


def _choice_table(entries: Entries) -> Table:
    table = _table("what 'auto' takes, and the best; ms")
    for name in ("layer", "face", "auto", "best"):
        table.add_column(name, no_wrap=True)
    names = list(entries[0]["median_ms"])
    for name in ("auto/best", *names):
        table.add_column(name, justify="right")
    for e in entries:
        ratio = Text(format_number(e["chosen_over_best"]), "bold red" if e["slower"] else "")
        times = [format_number(e["median_ms"].get(name)) for name in names]
        mark = " <" if e["slower"] else ""
        table.add_row(e["layer"], e["face"], e["chosen"], e["best"], ratio.append(mark), *times)
    return table
