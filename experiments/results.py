"""The command `results`: several experiments, run where they are not complete, on one page of Markdown.

Everything on the page comes out of run folders: tables, verdicts, pictures, machine and date. Claims that are not
supported stand among the others.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import pictures, records, report
from experiments.benchmark.config import Benchmark
from experiments.config import Config
from experiments.records import Run
from experiments.tasks import TASKS

VERDICTS = ("supported", "undecided", "not supported")
# What shows a run best, by name of the file and in order; the last one is for all.
PICTURES = {
    "overview.png": "Samples and mean power spectra, before training and after",
    "panels.png": "",  # the task says what
    "measured.png": "Metrics by variant, a dot per seed",
    "curves.png": "Metrics along the steps, mean over seeds with 95 % intervals",
}


def errors(configs: Sequence[Config | Benchmark], paths: Sequence[Path], page: Path) -> list[str]:
    """Returns why these configs cannot share a page."""
    wrong = [
        f"{path}: is a benchmark, which has a page of its own; leave it out"
        for config, path in zip(configs, paths, strict=True)
        if isinstance(config, Benchmark)
    ]
    names = Counter(config.name for config in configs)
    wrong += [
        f"results: {n} configs have the name {name!r}; give each its own"
        for name, n in names.items()
        if n > 1
    ]
    if page.suffix != ".md":
        wrong.append(f"--page: expected the name of a page, which ends in .md; got {page}")
    return wrong


def write(runs: Sequence[Run], page: Path) -> list[str]:
    """Writes the page, and the pictures it shows into `docs/results` beside it.

    Args:
      runs: complete, in the order of the page.
      page: the file; GitHub shows it.

    Returns:
      A line for each picture that cannot be drawn.
    """
    folder, failed = page.parent / "docs" / "results", []
    shown: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        shown[run.config["name"]] = []
        drawn, lines = pictures.of_run(run)
        failed += lines
        for name, content in drawn.items():
            if name in PICTURES:
                file = folder / f"{run.config['name']}_{name}"
                records.write_bytes(file, content)
                address = file.relative_to(page.parent).as_posix()
                caption = PICTURES[name] or TASKS[run.config["task"]].panels
                entry = {"address": address, "caption": caption}
                shown[run.config["name"]].append(entry)
    text = (
        report.templates(escape=False)
        .get_template("results.md")
        .render(
            runs=runs,
            pictures=shown,
            verdicts=VERDICTS,
            counts={run.config["name"]: count(run) for run in runs},
            tables={
                run.config["name"]: {
                    title: {
                        "head": report.head_of(run.summary),
                        "rows": report.rows_of(run.summary, step),
                    }
                    for step, title in report.titles_of(run.summary).items()
                }
                for run in runs
            },
        )
    )
    records.write_bytes(page, text.encode())
    return failed


def count(run: Run) -> dict[str, int]:
    """Returns how many claims of a run have each verdict."""
    found = Counter(claim["verdict"] for claim in run.summary["claims"])
    return {verdict: found[verdict] for verdict in VERDICTS}
