"""A config of every task, small: a run that was stopped and continued says bitwise what an undisturbed one says."""

import io
import json
from dataclasses import fields, replace

import pytest
from cases import each
from folders import CHECKERBOARD
from rich.console import Console

from experiments import config, engine, records, report, stopping
from experiments.tasks import TASKS
from experiments.training import Trains

pytestmark = pytest.mark.usefixtures("promotion")

# Other configs of a task differ in sizes and options; a run of each takes up to two minutes.
CONFIGS = [{"gan": "checkerboard"}.get(task, task) for task in sorted(TASKS)]
SMALL = {"levels": 1, "samples": 6, "batch_size": 2, "features": 4, "size": 48, "latent": 4}
DATA = {"shapes": {"count": 64}, "photos": {"size": 24}}


def tiny(name):
    """Returns a config with two of its variants, two seeds and two steps; others are left out."""
    resolved = config.load(CHECKERBOARD.with_name(f"{name}.toml"), quick=True)
    task = TASKS[resolved.task]
    for_steps = {"steps": 2, "chunk_steps": 1} if isinstance(task, Trains) else {}
    variants = []
    for variant in resolved.variants[:2]:
        own = vars(variant.options)
        small = {n: min(own[n], SMALL[n]) for n in SMALL if isinstance(own.get(n), int)}
        small |= {
            f.name: (4,) * len(own[f.name])
            for f in fields(variant.options)
            if f.name in ("generator_features", "discriminator_features")
        }
        variants.append(replace(variant, options=replace(variant.options, **small)))
    return replace(
        resolved,
        **for_steps,
        seeds=(0, 1),
        classifier_steps=min(2, resolved.classifier_steps),
        data=resolved.data | DATA.get(resolved.data.get("source"), {}),
        variants=tuple(variants),
        claims=(),
    )


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs a config without drawing, perhaps to the n-th moment at which a signal would stop it."""
    monkeypatch.setattr(report, "write", lambda run: [])  # noqa: ARG005

    def start(resolved, out, stop_at=None):
        left = stop_at or -1

        def check():
            nonlocal left
            left -= 1
            if left == 0:
                raise stopping.Stopped(15)

        monkeypatch.setattr(stopping, "check", check)
        console = Console(quiet=True)
        if stop_at is None:
            return engine.run(resolved, tmp_path / out, console)
        with pytest.raises(stopping.Stopped):
            engine.run(resolved, tmp_path / out, console)
        (folder,) = (tmp_path / out).iterdir()
        return folder

    return start


def result(folder):
    """Returns what must not depend on interruptions."""
    summary = records.read_json(folder / "summary.json")
    summary.pop("minutes", None)  # of a run in one sitting
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    order = lambda line: (line["variant"], line["step"], line["seed"])
    return summary, sorted(map(json.loads, lines), key=order)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(CHECKERBOARD.parent.glob("*.toml")), ids=lambda p: p.stem)
def test_every_config_goes_with_its_data(path):
    if path.stem == "benchmark":
        return
    few = ["data.count=256"] if "count" in config.load(path).data else []  # enough to be checked
    assert not engine.check(config.load(path, few))


@pytest.mark.slow
@each("name", CONFIGS)
def test_a_run_that_was_stopped_says_what_an_undisturbed_one_says(name, run):
    resolved = tiny(name)
    stopped = run(resolved, "stopped", stop_at=3 if isinstance(TASKS[resolved.task], Trains) else 2)
    first = resolved.variants[0].name
    saved = {path.name for path in (stopped / "checkpoints" / first).glob("[0-9]*")}
    assert saved == ({"0", "1"} if isinstance(TASKS[resolved.task], Trains) else {"0"})
    assert not (stopped / "summary.json").exists()
    assert run(resolved, "stopped") == stopped
    straight = run(resolved, "straight")
    assert result(stopped) == result(straight)
    engine.clear_programs()


@pytest.mark.slow
@each("damaged", (0, 2, 7))  # lines: of steps 0 to 3, two seeds each
def test_an_evaluation_whose_line_is_damaged_is_made_again(damaged, run):
    resolved = replace(tiny("inverse"), steps=4)
    resolved = replace(resolved, variants=resolved.variants[:1])
    folder = run(resolved, "damaged", stop_at=5)  # after step 3
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 8
    lines[damaged] = lines[damaged][:20]
    path.write_text("\n".join(lines) + "\n")
    run(resolved, "damaged")
    assert result(folder) == result(run(resolved, "straight"))


@pytest.mark.slow
def test_a_complete_run_without_a_page_says_how_to_get_it(run, tmp_path):
    resolved = tiny("inverse")
    folder = run(resolved, "out")
    assert not (folder / "report.html").exists()
    console = Console(record=True, width=400, file=io.StringIO())
    engine.run(resolved, tmp_path / "out", console)
    said = console.export_text()
    assert "complete already; nothing to train" in said
    assert f"To make its page: python -m experiments report {folder}" in said


@pytest.mark.slow
def test_a_page_that_fails_is_a_line_of_a_complete_run(run, monkeypatch, tmp_path):
    resolved = tiny("inverse")

    def fail(*_):
        raise OSError(28, "No space left on device")

    folder = run(resolved, "out")
    (folder / "summary.json").unlink()
    monkeypatch.setattr(report, "write", fail)
    console = Console(record=True, width=400, file=io.StringIO())
    assert engine.run(resolved, tmp_path / "out", console) == folder
    assert (folder / "summary.json").exists()
    line = f"{folder / 'report.html'}: cannot be made: OSError: [Errno 28] No space left on device."
    assert line in console.export_text()
