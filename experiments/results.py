"""The command `results`: several experiments, run where they are not complete, as pages of Markdown.

One page is an index with a row for each experiment; each experiment has a page of its own in `docs/results` beside it.
Everything comes out of run folders: answers, tables, verdicts, pictures, machine and date. Claims that are not
supported stand among the others.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import pictures, records, report
from experiments.benchmark.config import Benchmark
from experiments.config import Config
from experiments.records import Run
from experiments.tasks import TASKS

PLACE = "docs/results"  # of the pages of experiments, from the folder of the index
VERDICTS = ("supported", "undecided", "not supported")
# What shows a run best, by name of the file and in order; the last one is for all.
PICTURES = {
    "overview.png": "Samples and mean power spectra, before training and after",
    "panels.png": "",  # the task says what
    "measured.png": "Metrics by variant, a dot per seed",
    "curves.png": "Metrics along the steps, mean over seeds with 95 % intervals",
}


def errors(configs: Sequence[Config | Benchmark], paths: Sequence[Path], page: Path) -> list[str]:
    """Returns why these configs cannot share an index."""
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
    """Writes the index, and a page for each run with its pictures into `docs/results` beside the index.

    Args:
      runs: complete, in the order of the index.
      page: file of the index; GitHub shows it.

    Returns:
      A line for each picture that cannot be drawn.
    """
    folder, failed, entries = page.parent / PLACE, [], []
    names = {run.config["name"] for run in runs} | {file.stem for file in folder.glob("*.md")}
    templates = report.templates(escape=False)
    for run in runs:
        name, other = run.config["name"], twin(run.config["name"], names)
        shown, lines = _draw(run, folder)
        failed += lines
        text = templates.get_template("result.md").render(
            run=run,
            answer=answer(run.summary["claims"]),
            index=f"../../{page.name}",
            twin=other,
            pictures=shown,
            tables={
                title: {
                    "head": report.head_of(run.summary),
                    "rows": report.rows_of(run.summary, step),
                }
                for step, title in report.titles_of(run.summary).items()
            },
        )
        records.write_bytes(folder / f"{name}.md", text.encode())
        entries.append(
            {
                "run": run,
                "name": name,
                "address": f"{PLACE}/{name}.md",
                "twin": other and {**other, "address": f"{PLACE}/{other['address']}"},
                "answer": answer(run.summary["claims"]),
            }
        )
    text = templates.get_template("results.md").render(entries=entries)
    records.write_bytes(page, text.encode())
    return failed


def _draw(run: Run, folder: Path) -> tuple[list[dict[str, str]], list[str]]:
    """Writes the pictures that show a run best, and returns them; and a line for each that cannot be drawn."""
    shown = []
    drawn, failed = pictures.of_run(run)
    for name, content in drawn.items():
        if name in PICTURES:
            address = f"{run.config['name']}_{name}"
            records.write_bytes(folder / address, content)
            caption = PICTURES[name] or TASKS[run.config["task"]].panels
            shown.append({"address": address, "caption": caption})
    return shown, failed


def twin(name: str, names: Collection[str]) -> dict[str, str] | None:
    """Returns a link to the page of the same experiment at the other size, if it is among `names`."""
    small = name.removesuffix("_gpu")
    other, label = (f"{name}_gpu", "on a GPU") if small == name else (small, "on a CPU")
    return {"address": f"{other}.md", "label": label} if other in names else None


def count(claims: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Returns how many claims have each verdict."""
    found = Counter(claim["verdict"] for claim in claims)
    return {verdict: found[verdict] for verdict in VERDICTS}


def answer(claims: Sequence[Mapping[str, Any]]) -> str:
    """Returns in a sentence how many claims have each verdict, and which claims are not supported."""
    counts = count(claims)
    supported, undecided, others = (counts[verdict] for verdict in VERDICTS)
    if supported == len(claims):
        return f"All {supported} claims are supported." if claims else "No claim is stated."
    parts = [f"{supported} of {len(claims)} claims are supported"]
    if undecided:
        parts.append(f"{undecided} undecided")
    if not others:
        return f"{', '.join(parts)}, none not supported."
    lost = [f"“{claim['claim']}”" for claim in claims if claim["verdict"] == VERDICTS[-1]]
    return f"{', '.join(parts)}, {others} not supported: {'; '.join(lost)}."
