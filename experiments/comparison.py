"""The command `report`: the page of one run anew, or one page that compares several."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import launch, pictures, reading, records, report
from experiments.records import NoRun, Run, RunError


def write(
    folders: Sequence[Path], out: Path | None = None, print_line: Callable[[str], None] = print
) -> Path:
    """Writes a page about the folders of complete runs, and returns its place.

    Args:
      folders: of runs, or of sweeps, each in place of those of its points that are complete. One run has its own page
        and pictures made anew; several are compared. Beside a complete run what holds none is left out: files, other
        folders, benchmarks and runs that are not complete, so that `runs/*` can be given.
      out: the page, else report.html in the folder of the one run, comparison.html in the folder of the one sweep or
        in the folder that several lie in.
      print_line: gets a line for each picture that cannot be drawn, and for whatever is left out.

    Raises:
      RunError: with everything that is wrong, one line each; nothing is written.
    """
    errors: list[str] = []
    if out is not None and out.suffix != ".html":
        errors.append(f"--out: expected the name of a page, which ends in .html; got {out}.")
    several = len(folders) > 1 or _is_sweep(folders[0])
    parents = {folder.resolve().parent for folder in folders}
    if out is None and len(parents) > 1:
        errors.append("the folders do not lie side by side. Name the page with --out FILE.html.")
    runs, left_out = _read(folders, errors)
    if errors:
        raise RunError("\n".join(errors))
    place = folders[0] if len(folders) == 1 else folders[0].resolve().parent
    page = out or place / ("comparison.html" if several else "report.html")
    try:
        for line in left_out:
            print_line(f"left out: {line}")
        if several:
            compare(runs, page, left_out)
        else:
            for line in report.write(runs[0], out):
                print_line(line)
    except RunError:
        raise
    except OSError as error:
        raise RunError(f"{page}: cannot be written: {error}.") from None
    except Exception as error:  # of records that no run writes
        raise RunError(f"{page}: cannot be made: {pictures.reason(error)}.") from error
    return page


def compare(runs: Sequence[Run], page: Path, left_out: Sequence[str] = ()) -> None:
    """Writes one page about several runs: what differs, verdicts, curves, samples, metrics.

    Args:
      runs: complete.
      page: the file.
      left_out: lines about runs that are not there.
    """
    differing = differences(runs)
    labels = [str(i) for i in range(1, len(runs) + 1)]
    text = (
        report.templates()
        .get_template("comparison.html")
        .render(
            runs=dict(zip(labels, runs, strict=True)),
            questions=list(dict.fromkeys(run.config["question"] for run in runs)),
            left_out=left_out,
            differing=differing,
            verdicts=verdicts(runs),
            curves=pictures.of_runs(runs, _names(labels, differing)),
            samples={
                label: {n: report.small_pictures(run, f"{n}-{run.steps[-1]}") for n in run.names}
                for label, run in zip(labels, runs, strict=True)
                if run.illustrated
            },
            metrics=metrics(runs),
        )
    )
    records.write_bytes(page, text.encode())


def differences(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Returns the dotted keys of config and environment that differ, with the value in each run.

    What all variants of each run share is a key of `options`, as in a config file.
    """
    flat = [dict(_flat(table)) for table in _tables(runs)]
    keys = dict.fromkeys(key for table in flat for key in table)
    rows = {key: [table.get(key, "-") for table in flat] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def verdicts(runs: Sequence[Run]) -> list[tuple[dict[str, Any], list[dict[str, Any] | None]]]:
    """Returns each claim with the verdict of every run, None where a run does not state it."""
    what = ("claim", "metric", "relation", "source")
    stated = [{tuple(c[key] for key in what): c for c in run.summary["claims"]} for run in runs]
    claims = dict.fromkeys(claim for of_run in stated for claim in of_run)
    return [
        (dict(zip(what, claim, strict=True)), [of_run.get(claim) for of_run in stated])
        for claim in claims
    ]


def metrics(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Returns the metrics after training as metric -> variant or 'real' -> text for each run."""
    table: dict[str, dict[str, list[str]]] = {}
    for metric in dict.fromkeys(metric for run in runs for metric in run.measured):
        rows = table.setdefault(metric, {})
        for name in dict.fromkeys(name for run in runs for name in run.names):
            found = [run.summary["variants"].get(name, {}).get("final", {}) for run in runs]
            rows[name] = [
                report.format_interval(at[metric]) if metric in at else "-" for at in found
            ]
        if any(run.summary["real"] for run in runs):
            rows["real"] = [report.format_number(run.summary["real"].get(metric)) for run in runs]
    return table


def _read(folders: Sequence[Path], errors: list[str]) -> tuple[list[Run], list[str]]:
    """Returns the runs, and why others are left out; where something is wrong, or no run is left, that is an error."""
    runs: dict[Path, Run] = {}
    named: set[Path] = set()
    points: dict[Path, str] = {}  # of sweeps -> why one is not complete
    lines, wrong = [], bool(errors)
    sweeps = {folder for folder in folders if _is_sweep(folder)}

    def add(path: Path) -> None:
        if path.resolve() not in runs:
            runs[path.resolve()] = records.read_complete(path)

    for folder in sorted(folders, key=lambda folder: folder not in sweeps):
        try:
            if folder.resolve() in named:
                raise RunError(f"{folder}: is named twice.")
            named.add(folder.resolve())
            if folder not in sweeps:
                if not points.get(folder.resolve()):
                    add(folder)
                continue
            own = _points(folder)
            points |= own
            complete = [path for path, why_not in own.items() if not why_not]
            if not complete:
                raise NoRun(f"{folder}: no point of the sweep is complete.")
            for path in complete:
                add(path)
        except NoRun as error:
            lines.append(str(error))
        except RunError as error:
            lines.append(str(error))
            wrong = True
    if wrong or not runs:
        errors += lines
    return list(runs.values()), [*filter(None, points.values()), *lines]


def _is_sweep(folder: Path) -> bool:
    return (folder / "summary.json").exists() and not (folder / "config.json").exists()


def _points(folder: Path) -> dict[Path, str]:
    """Returns the folders of a sweep's points, resolved, each with why it is not complete, '' if it is."""
    path = folder / "summary.json"
    summary = records.read_versioned(path, launch.SCHEMA, {})
    if "points" not in summary:
        raise RunError(f"{path}: is not the summary of a sweep.")
    wrong = reading.misfit(summary, {"points": [{"folder": str, "status": str, "message": str}]})
    if wrong:
        raise RunError(f"{path}: cannot be read: {wrong}.")
    points = {}
    for point in summary["points"]:
        at = (folder.resolve().parent / point["folder"]).resolve()
        done = point["status"] == "complete" or (at / "summary.json").exists()  # by now
        points[at] = "" if done else f"{point['folder']}: {point['status']}: {point['message']}"
    return points


def _tables(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Yields config and environment of each run, options that the variants of every run share in one table."""
    of_runs = [
        {variant["name"]: variant["options"] for variant in run.config["variants"]} for run in runs
    ]
    own = {
        key
        for variants in of_runs
        for options in variants.values()
        for key in options
        if any(other.get(key) != options[key] for other in variants.values())
    }
    for run, variants in zip(runs, of_runs, strict=True):
        shared = next(iter(variants.values()))
        yield {
            **{k: v for k, v in run.config.items() if k not in ("variants", "claims")},
            "options": {key: value for key, value in shared.items() if key not in own},
            "variant": {
                name: {key: value for key, value in options.items() if key in own}
                for name, options in variants.items()
            },
            "environment": {k: v for k, v in run.environment.items() if k != "command"},
        }


def _flat(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Yields dotted keys and their values as JSON."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", json.dumps(value, ensure_ascii=False)


def _names(labels: Sequence[str], differing: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns labels for a legend, with the settings where they are few."""
    rows = [
        [f"{key.removeprefix('options.')} = {value}" for value in row]
        for key, row in differing.items()
        if not key.startswith(("environment.", "name", "question", "source"))
    ]
    if len(rows) > 2:
        rows = []
    return [", ".join(texts) for texts in zip([f"run {n}" for n in labels], *rows, strict=True)]
