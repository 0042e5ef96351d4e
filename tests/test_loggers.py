"""Loggers: that they are told what the folder holds, once, however often a run was stopped."""

import io
import json
import os
import shutil
import struct
import subprocess
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from folders import CHECKERBOARD, TINY, make_run, tiny
from PIL import Image
from rich.console import Console

from experiments import engine, pictures, records
from experiments.__main__ import main
from experiments.loggers import LoggerError, open_loggers
from experiments.tasks import gan

proto = pytest.importorskip("tensorboardX.proto.event_pb2")
masked_crc = pytest.importorskip("tensorboardX.record_writer").masked_crc32c

QUIET = Console(quiet=True)


def events(folder):
    """Reads the event files of one folder: records of length, its checksum, an event, its checksum."""
    found = []
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length, crc = struct.unpack_from("<QI", data, at)
            assert crc == masked_crc(data[at : at + 8])
            event = data[at + 12 : at + 12 + length]
            assert struct.unpack_from("<I", data, at + 12 + length) == (masked_crc(event),)
            found.append(proto.Event.FromString(event))
            at += 16 + length
    return found


def values(folder):
    """Yields (step, seconds, value) in the order of the files."""
    return [(e.step, e.wall_time, v) for e in events(folder) for v in e.summary.value]


def text(folder, tag):
    (found,) = (v for _, _, v in values(folder) if v.tag == f"{tag}/text_summary")
    return found.tensor.string_val[0].decode()


def shown(folder):
    """Returns the scalars as lines of metrics.jsonl, in order, each step as often as it is there."""
    lines = []
    for place in (folder / "tensorboard").iterdir():
        variant, _, seed = place.name.rpartition("-")
        for event in events(place) if place.is_dir() else ():
            scalars = [v for v in event.summary.value if v.HasField("simple_value")]
            if scalars:
                line = {"variant": variant, "step": event.step, "seed": int(seed)}
                lines.append(line | {v.tag: v.simple_value for v in scalars})
    return lines


def same(lines, others):
    """Compares lines in any order; numbers of TensorBoard are float32."""
    order = lambda line: (line["variant"], line["seed"], line["step"])
    assert sorted(map(order, lines)) == sorted(map(order, others))
    for line, other in zip(sorted(lines, key=order), sorted(others, key=order), strict=True):
        assert line.keys() == other.keys()
        numbers = [[line[name] for name in line if name != "variant"] for line in (line, other)]
        np.testing.assert_allclose(*numbers, rtol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A complete run, shown twice."""
    resolved = tiny()
    folder = make_run(tmp_path_factory.mktemp("run"), resolved)
    os.utime(folder / "evaluations" / "none-2.npz", (0, 1e9))
    for _ in range(2):
        engine.run(resolved, folder.parent, QUIET, loggers=["tensorboard"])
    return folder


# TensorBoard.


def test_tensorboard_shows_every_metric_once(folder):
    lines = records.read_metrics(folder)
    assert len(lines) == 2 * 2 * 4
    same(shown(folder), lines)
    place = folder / "tensorboard" / "none-0"
    assert {t for step, t, _ in values(place) if step == 2} == {1e9}  # when it was measured
    assert sum(e.file_version == "brain.Event:2" for e in events(place)) == 1


def test_tensorboard_shows_the_pictures_of_the_page(folder):
    arrays = records.read_arrays(folder / "evaluations" / "last_two-4.npz")
    images = {
        v.tag: np.asarray(Image.open(io.BytesIO(v.image.encoded_image_string)))
        for step, _, v in values(folder / "tensorboard" / "last_two-1")
        if step == 4 and v.HasField("image")
    }
    assert images.keys() == {"samples", "spectrum"}
    expected = np.asarray(pictures.grid(arrays["samples"][1]))
    np.testing.assert_array_equal(images["samples"], np.stack([expected] * 3, -1))
    expected = pictures.spectrum(arrays["spectrum"][1]).convert("RGB")
    np.testing.assert_array_equal(images["spectrum"], np.asarray(expected))


def test_tensorboard_shows_config_and_claims(folder):
    place = folder / "tensorboard"
    config = text(place, "config").removeprefix("```json\n").removesuffix("\n```")
    assert json.loads(config) == records.read_json(folder / "config.json")
    (claim,) = records.read_json(folder / "summary.json")["claims"]
    row = text(place, "claims").splitlines()[2].split(" | ")
    assert row[:2] == [claim["verdict"], "c"]
    assert row[2] == "phase_mean_fraction_2: last_two > none at init"


def test_steps_that_were_rolled_back_are_not_shown(folder, tmp_path):
    copy, config = shutil.copytree(folder, tmp_path / "run"), tiny()
    lines = records.read_metrics(copy)
    with open_loggers(["tensorboard"], copy, config) as told:
        told.log(lines)
    kept = records.forget_metrics_after(copy, "none", 2)
    assert [line["step"] for line in kept] == [0, 0, 2, 2]
    with open_loggers(["tensorboard"], copy, config) as told:
        told.log(kept)
        same(shown(copy), kept)  # and not only at the end
        later = [line | {"generator_loss": 7.0} for line in lines if line["step"] == 4]
        told.log(later)
    same(shown(copy), kept + later)
    with pytest.raises(StopIteration):  # it was not complete
        next(v for _, _, v in values(copy / "tensorboard") if "claims" in v.tag)


@pytest.mark.slow
def test_points_that_run_in_other_processes_are_shown(tmp_path):
    folders = [make_run(tmp_path, tiny(f"options.latent={size}")) for size in (4, 5)]
    settings = [*TINY, "--sweep=options.latent=4,5", f"--out={tmp_path}"]
    command = ["sweep", str(CHECKERBOARD), *settings, "--jobs=2", "--tensorboard"]
    done = subprocess.run([sys.executable, "-m", "experiments", *command], check=False)
    assert done.returncode == 0
    for folder in folders:
        same(shown(folder), records.read_metrics(folder))


# Any logger.


@pytest.fixture
def mine(monkeypatch):
    """A module of the user, whose loggers note what they hear."""
    heard = []

    class Noting:
        fails = ""

        def __init__(self, folder, config):
            heard.append((folder.name, config["name"]))

        def log_metrics(self, *line):
            heard.append(line)
            if self.fails == "log_metrics":
                raise KeyError("my\nkey")
            if line[2] == module.stops_at:
                raise OSError("full")

        def finalize(self, summary):
            heard.append(summary and summary["name"])
            if self.fails:
                raise ValueError("my end")

    def locked_out(*_):
        raise SystemExit("log in\nfirst")

    module = SimpleNamespace(
        stops_at=-1, Noting=Noting, number=3, heard=heard,
        Failing=type("Failing", (Noting,), {"fails": "log_metrics"}),
        FailingLate=type("FailingLate", (Noting,), {"fails": "finalize"}),
        locked_out=locked_out, nothing=lambda *_: None,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "mine", module)
    return module


def test_a_logger_is_told_the_lines_and_the_summary(folder, mine):
    engine.run(tiny(), folder.parent, QUIET, loggers=["mine:Noting", "mine:Noting"])
    (name, *_), *lines, summary = mine.heard
    assert name == folder.name
    told = [{"variant": v, "step": n, "seed": s, **metrics} for v, s, n, metrics in lines]
    assert told == records.read_metrics(folder)
    assert summary == "checkerboard"


@pytest.fixture
def untrained(monkeypatch):
    """The engine with programs that count and need no compiler."""
    rng = np.random.default_rng(0)
    images, power = rng.uniform(-1, 1, (16, 32, 32, 1)), rng.uniform(0.5, 2, (32, 32))
    setting = SimpleNamespace(
        images=images, arrays={"samples": images, "spectrum": power},
        real=dict.fromkeys(gan.METRICS, 1.0), notes={},
    )  # fmt: skip

    def init(_, seeds):
        return jnp.arange(len(seeds), dtype=float)

    def advance(_, __, state, ___, ____):
        return state + 10, {"generator_loss": jnp.stack([state, state + 5], 1)}

    def evaluate(_, __, state, ___):
        arrays = {"samples": [images] * len(state), "spectrum": [power] * len(state)}
        metrics = {name: state + i for i, name in enumerate(gan.METRICS)}
        return metrics, {name: np.stack(array) for name, array in arrays.items()}

    monkeypatch.setattr(engine, "setting_of", lambda _: setting)
    monkeypatch.setattr(engine, "count_parameters", lambda *_: {})
    monkeypatch.setattr(engine.report, "write", lambda _: None)
    monkeypatch.setattr(engine, "side_by_side", lambda *_: (init, advance, evaluate, None))


@pytest.mark.usefixtures("promotion", "untrained")
def test_a_run_that_stopped_tells_on_and_takes_nothing_back(mine, tmp_path):
    alone, names = tiny("variant=[{name='none'}]", "expect=[]"), ["tensorboard", "mine:Noting"]
    mine.stops_at = 2
    with pytest.raises(records.RunError, match="full"):
        engine.run(alone, tmp_path, QUIET, loggers=names)
    assert [line[2] for line in mine.heard[1:-1]] == [0, 0, 2]
    (folder,) = tmp_path.iterdir()
    assert (folder / "checkpoints" / "none" / "2").is_dir()  # what was told is saved
    # As if it had died after the next step was recorded, before its checkpoint was there.
    lost = records.read_metrics(folder)[-1] | {"step": 4, "generator_loss": 1e9}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(lost) + "\n")
    mine.heard.clear()
    mine.stops_at = -1
    engine.run(alone, tmp_path, QUIET, loggers=names)
    lines = records.read_metrics(folder)
    assert len(lines) == 2 * 4
    same(shown(folder), lines)
    assert [{"variant": v, "step": n, "seed": s, **m} for v, s, n, m in mine.heard[1:-1]] == lines
    straight = engine.run(alone, tmp_path / "straight", QUIET)
    summary, expected = (records.read_json(f / "summary.json") for f in (folder, straight))
    assert expected.pop("minutes") >= 0  # which a run in two sittings does not say
    assert summary == expected


@pytest.mark.refuses
def test_a_logger_that_fails_ends_the_run_and_says_so(folder, mine):
    for name, message, end in (
        ("Failing", r"log_metrics failed: KeyError: 'my\\nkey'\. What was saved stays", None),
        ("FailingLate", r"finalize failed: my end\. What was saved stays", "checkerboard"),
    ):
        with pytest.raises(records.RunError, match=f"--logger mine:{name}: {message}"):
            engine.run(tiny(), folder.parent, QUIET, loggers=[f"mine:{name}"])
        assert mine.heard[-1] == end
    assert mine.heard.count(None) == 1


def test_every_logger_hears_the_end_though_one_fails(folder, mine):
    names = ["mine:FailingLate", "mine:Noting"]
    with pytest.raises(records.RunError, match=r"mine:FailingLate: finalize failed"):
        engine.run(tiny(), folder.parent, QUIET, loggers=names)
    assert mine.heard[-2:] == ["checkerboard"] * 2


def test_a_damaged_file_is_named_by_tensorboard(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / folder.name)
    (copy / "evaluations" / "none-4.npz").write_bytes(b"")
    with pytest.raises(records.RunError, match=r"^\S+none-4\.npz: cannot be read"):
        engine.run(tiny(), tmp_path, QUIET, loggers=["tensorboard"])


WRONG = {
    "wandb": "expected 'tensorboard' or 'module:function', got 'wandb'",
    "nowhere:f": "module 'nowhere' cannot be imported: ModuleNotFoundError: No module named",
    "mine:noting": "module 'mine' has no 'noting'; did you mean 'nothing'?",
    "mine:number": "mine:number must be a function that returns a logger; got 3",
}


@each("name", WRONG)
@pytest.mark.refuses
def test_wrong_loggers_are_refused_before_any_work(name, mine, tmp_path, capsys):
    del mine
    status = main(["run", str(CHECKERBOARD), f"--logger={name}", f"--out={tmp_path}"])
    said = capsys.readouterr().err
    assert status == 2
    assert said.startswith("--logger")
    assert WRONG[name] in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.refuses
@each("name, message", [
    ("locked_out", "SystemExit: log in first"),
    ("nothing", "must return an object with log_metrics and finalize; got None"),
])  # fmt: skip
def test_loggers_that_cannot_be_made_are_refused_before_training(name, message, mine, tmp_path):
    expected = f"^--logger mine:{name}: {message}$"
    with pytest.raises(LoggerError, match=expected):
        engine.run(tiny(), tmp_path, QUIET, loggers=["mine:Noting", f"mine:{name}"])
    (folder,) = tmp_path.iterdir()
    assert [p.name for p in folder.iterdir() if p.name[0] != "."] == ["config.json"]
    assert mine.heard[-1] is None  # the other one ends


@pytest.mark.refuses
def test_tensorboard_without_its_package_names_the_extra(monkeypatch, tmp_path, capsys):
    monkeypatch.delitem(sys.modules, "experiments.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    assert main(["run", str(CHECKERBOARD), "--tensorboard", f"--out={tmp_path}"]) == 2
    assert capsys.readouterr().err == (
        '--tensorboard: a package is missing: tensorboardX. Run: pip install "tconvjax[tensorboard]"\n'
    )
    benchmark = str(CHECKERBOARD.with_name("benchmark.toml"))
    assert main(["run", benchmark, "--logger=json:loads", f"--out={tmp_path}"]) == 2
    assert "a benchmark has no metrics along training" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
