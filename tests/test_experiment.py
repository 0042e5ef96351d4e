"""A whole run, small: what it writes, how it stops, how it goes on."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import chex
import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from flax import nnx
from folders import CHECKERBOARD, SMALL, SUPERRESOLUTION, TINY, small, tiny
from jax.tree_util import Partial
from PIL import Image
from rich.console import Console

from experiments import checkpoints, comparison, config, engine, records, stopping
from experiments.__main__ import main
from experiments.data import table
from experiments.fields import energy_by_phase
from experiments.tasks import gan
from experiments.training import (
    Length,
    first_nonfinite,
    make_train,
    side_by_side,
    structure,
    traced_options,
)
from tconvjax import metrics

pytestmark = pytest.mark.usefixtures("promotion")


def arguments(out, *more):
    return ["run", str(SUPERRESOLUTION), *SMALL, "--out", str(out), *more]


def command(out, *more):
    return [sys.executable, "-m", "experiments", *arguments(out, *more)]


def run(out, *more):
    return commands.run(arguments(out, *more))


def comparable(folder):
    """What must not depend on interruptions."""
    summary = records.read_json(folder / "summary.json")
    summary.pop("minutes", None)  # of a run in one sitting
    return summary, (folder / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    done = run(out)
    assert done.returncode == 0, done.stderr
    (folder,) = out.iterdir()
    return folder, done.stdout


@pytest.mark.slow
def test_a_run_of_generators_leaves_everything_behind(tmp_path):
    done = commands.run(["run", CHECKERBOARD, *TINY, "--out", tmp_path])
    assert done.returncode == 0, done.stderr
    (folder,), printed = tmp_path.iterdir(), done.stdout
    summary = records.read_json(folder / "summary.json")
    assert summary["schema"] == 1
    assert list(summary["variants"]) == ["last_two", "none"]
    found = set(gan.METRICS) - gan.lacking(gan.Options())
    for variant in summary["variants"].values():
        for step in ("init", "final"):
            for metric in found:
                entry = variant[step][metric]
                assert entry["low"] <= entry["mean"] <= entry["high"]
                assert entry["seeds"] == 2
    assert set(summary["real"]) == {name for name in found if not name.startswith("layer_")}
    assert {c["verdict"] for c in summary["claims"]} <= {"supported", "not supported", "undecided"}
    # The prediction of the layers' integers, seen in images of random weights: far above resize-convolution.
    for period in (2, 4):
        at = {
            n: v["init"][f"phase_mean_fraction_{period}"]["mean"]
            for n, v in summary["variants"].items()
        }
        assert at["last_two"] > 10 * at["none"]
    lines = records.read_metrics(folder)
    assert len(lines) == 2 * 2 * 4  # variants, seeds, evaluations
    for name in ("samples", "spectrum", "curves", "overview"):
        with Image.open(folder / f"{name}.png") as image:
            assert np.asarray(image).std() > 10
    assert "phase_mean_fraction_2" in printed
    assert re.search(r"^(supported|undecided|not supported) +c ", printed, re.MULTILINE)


@pytest.mark.slow
def test_a_lost_page_is_made_anew_from_the_folder(straight, tmp_path):
    folder, _ = straight
    comparison.write([folder], tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == (folder / "report.html").read_bytes()


@pytest.mark.slow
def test_a_finished_run_is_shown_again_not_trained_again(straight):
    folder, _ = straight
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.json*")}
    done = run(folder.parent)
    assert done.returncode == 0
    assert "complete already" in done.stdout
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*.json*")}


@pytest.mark.slow
def test_a_run_stopped_in_every_way_continues_to_the_same_result(straight, tmp_path):
    statuses = {}
    for how, checkpoint in (
        (signal.SIGINT, "painted/0"),
        (signal.SIGTERM, "painted/4"),
        (signal.SIGKILL, "resized/2"),
    ):
        process = commands.Command(arguments(tmp_path))
        found = f"*/checkpoints/{checkpoint}"
        commands.until(lambda found=found: list(tmp_path.glob(found)), process)
        process.kill(how)
        statuses[how] = process.wait(60).returncode
        (folder,) = tmp_path.iterdir()
        assert not (folder / "summary.json").exists()
    assert statuses == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert comparable(folder) == comparable(straight[0])


KILLED = """
import json, os, signal, sys
from experiments import engine  # here, for all children
from experiments.__main__ import main

folder, deaths = sys.argv[1], json.loads(sys.argv[2])
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}

for part, left in deaths:
    def kill(event, arguments):
        global left
        if event in EVENTS and str(arguments[0]).startswith(folder) and part in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        sys.addaudithook(kill)
        os._exit(main(sys.argv[3:]))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != -signal.SIGKILL:
        sys.exit(f"{part} {left}: {status}")
"""
LIMITED = """
import resource, signal, sys
from experiments.__main__ import main

size = int(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
sys.exit(main(sys.argv[2:]))
"""
# What a process touches at the moment of its death, and for which time.
DEATHS = [
    (".lock", 1), ("config.json", 1), (".environment.json.tmp", 2), ("checkpoints", 1),
    (".resized-0.npz", 1), (".resized-0.npz", 2), ("metrics.jsonl", 3), ("orbax-checkpoint-tmp", 1),
    ("_METADATA", 2), ("commit_success", 1), ("orbax-checkpoint-tmp", 20), ("", 25), ("", 40),
    ("resized/2.orbax", 3), (".resized-4.npz", 2), ("resized/4.orbax", 12), (".resized-6.npz", 2),
    (".summary.json.tmp", 1), (".summary.json.tmp", 2), (".samples.png", 2),
]  # fmt: skip


ALONE = ["--set=variant=[{name='resized'}]", "--set=expect=[]"]


@pytest.fixture(scope="module")
def one_variant(tmp_path_factory):
    out = tmp_path_factory.mktemp("one")
    assert run(out, *ALONE).returncode == 0
    (folder,) = out.iterdir()
    return folder


@pytest.mark.slow
def test_a_run_killed_at_twenty_moments_continues_to_the_same_result(one_variant, tmp_path):
    given = [str(tmp_path), json.dumps(DEATHS), *arguments(tmp_path, *ALONE)]
    dying = [sys.executable, "-c", KILLED, *given]
    killed = subprocess.run(dying, capture_output=True, text=True, check=False)
    assert killed.returncode == 0, killed.stderr
    done = run(tmp_path, *ALONE)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert comparable(folder) == comparable(one_variant)


@pytest.mark.slow
def test_full_disks_and_damaged_checkpoints_cost_nothing_that_was_saved(tmp_path):
    wide = [*ALONE, "--set=options.features=32"]  # a checkpoint is larger than an evaluation
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run(whole, *wide).returncode == 0
    for size, what in ((500, str(out)), (250_000, "checkpoints/resized: a checkpoint")):
        given = [sys.executable, "-c", LIMITED, str(size), *arguments(out, *wide)]
        done = subprocess.run(given, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        (message,) = [line for line in done.stderr.splitlines() if "jax" not in line]
        assert re.search(f"{what}.*File too large.* the same command continues", message)
    assert run(out, *wide).returncode == 0
    (folder,), (undisturbed,) = out.iterdir(), whole.iterdir()
    (folder / "summary.json").unlink()
    newest = folder / "checkpoints" / "resized" / "6"
    for part in newest.glob("state/**/d/*"):
        os.truncate(part, part.stat().st_size // 2)
    damaged = run(out, *wide)
    assert damaged.returncode == 1
    assert re.search(
        r"checkpoints/resized/6: this checkpoint cannot be read\. Delete", damaged.stderr
    )
    shutil.rmtree(newest)
    assert run(out, *wide).returncode == 0
    assert comparable(folder) == comparable(undisturbed)


@pytest.mark.slow
def test_a_dry_run_counts_and_writes_nothing(one_variant, tmp_path, capsys):
    assert main([*arguments(tmp_path, *ALONE), "--dry-run"]) == 0
    said = capsys.readouterr().out
    # 25 x 3 x 4 + 4, 9 x 4 x 4 + 4, 9 x 4 x 3 + 3.
    assert re.search(r"resized +2 +6 +model 563 +\d+\.\d", said)
    assert re.search(r"points 1, runs 2, minutes \d+\.\d", said)
    assert not list(tmp_path.iterdir())
    assert main([*arguments(one_variant.parent, *ALONE), "--dry-run"]) == 0
    assert re.search(
        r"resized .* complete +\n.*\npoints 1, runs 2, minutes 0\.0", capsys.readouterr().out
    )


def close(folder, other):
    """Compares the metrics of two runs, up to the rounding of their few steps."""
    lines, others = map(records.read_metrics, (folder, other))
    assert len(lines) == len(others) > 0
    for line, same in zip(lines, others, strict=True):
        assert list(line) == list(same)
        np.testing.assert_array_equal(*[[r[k] for k in ("variant", "step")] for r in (line, same)])
        numbers = [[v for v in r.values() if isinstance(v, float)] for r in (line, same)]
        np.testing.assert_allclose(*numbers, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_mesh_of_devices_gives_what_one_gives(straight, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "8")  # which JAX reads when it is imported
    given = command(tmp_path, "--mesh=seeds=2,data=2", "--set=data.in_memory=false")
    done = subprocess.run(given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.iterdir()
    assert records.read_json(folder / "environment.json")["mesh"] == {"seeds": 2, "data": 2}
    close(folder, straight[0])


@pytest.mark.slow
def test_a_set_that_does_not_fit_gives_what_one_in_memory_gives(straight, tmp_path, monkeypatch):
    """One step at a time, stopped and continued, with the images of these steps alone on the device."""
    resolved, console = small("data.in_memory=false"), Console(quiet=True)
    shapes, make = [], table.table_of
    monkeypatch.setattr(table, "LIMIT", 1)  # byte of images; a step is done all the same

    def table_of(*given):
        shapes.append(make(*given).images.shape)
        return make(*given)

    monkeypatch.setattr(engine, "table_of", table_of)
    asked = iter([None, None, stopping.Stopped(2)])

    def check():
        if (error := next(asked, None)) is not None:
            raise error

    monkeypatch.setattr(stopping, "check", check)
    with pytest.raises(stopping.Stopped):
        engine.run(resolved, tmp_path, console)
    folder = engine.run(resolved, tmp_path, console)
    assert set(shapes) == {(2 * 2, 24, 24, 3)}  # seeds, batch
    assert 2 * 6 <= len(shapes) <= 2 * 6 + 2  # variants, steps; read once more by the stopped one
    close(folder, straight[0])


@pytest.mark.slow
def test_two_processes_stop_together_and_one_goes_on(straight, tmp_path):
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    streamed = "--set=data.in_memory=false"
    both = [
        subprocess.Popen(
            command(tmp_path, streamed, "--mesh=seeds=2", f"--distributed={address},2,{rank}"),
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    commands.until(lambda: list(tmp_path.glob("*/checkpoints/painted/0")), both[0])
    os.kill(both[1].pid, signal.SIGTERM)
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [143, 143], said
    (folder,) = tmp_path.iterdir()
    assert records.read_json(folder / "environment.json")["processes"] == 2
    assert not (folder / "summary.json").exists()
    done = run(tmp_path, streamed)
    assert done.returncode == 0, done.stderr
    close(folder, straight[0])  # nothing is there twice


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mesh=4"], "expected 'seeds=N,data=M'"),
        (["--mesh=seeds=0"], "expected 'seeds=N,data=M'"),
        (["--mesh=seed=2"], "expected 'seeds=N,data=M'"),
        (["--mesh=seeds=3,data=3"], "asks for 9 devices; there are 8"),
        (["--mesh=seeds=3"], "seeds=3 must divide .* painted with 2 seeds are 2"),
        (["--mesh=data=3"], "data=3 must divide batch_size; for painted it is 2"),
        (["--distributed=me"], "expected 'auto' or 'ADDRESS:PORT,COUNT,RANK', got 'me'"),
    ],
)
def test_devices_that_cannot_be_used_are_refused(options, message, tmp_path, capsys):
    assert main(arguments(tmp_path, *options)) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_what_it_had(tmp_path):
    done = run(tmp_path, "--set=options.learning_rate=1e30")
    assert done.returncode == 1
    assert re.search(
        r"variant painted, seed \d: \w+ is not finite at step \d; stopped\. Kept", done.stderr
    )
    assert "Traceback" not in done.stderr
    (folder,) = tmp_path.iterdir()
    assert [line["step"] for line in records.read_metrics(folder)] == [0, 0]
    assert not (folder / "summary.json").exists()


def test_accelerators_do_not_round_what_is_multiplied(tmp_path, monkeypatch):
    """TF32 left 3e-8 of a constant's energy on patterns that theory excludes, and made silence audible."""
    seen = []

    def stop(config):  # noqa: ARG001
        seen.append(jax.config.jax_default_matmul_precision)
        raise records.RunError("far enough")

    monkeypatch.setattr(engine, "setting_of", stop)
    with pytest.raises(records.RunError, match="far enough"):
        engine.run(tiny(), tmp_path, Console(quiet=True))
    assert seen == ["highest"]


def test_folders_of_others_are_refused(tmp_path):
    resolved = config.load(CHECKERBOARD, quick=True)
    with records.open_folder(tmp_path, resolved) as folder:
        with (
            pytest.raises(records.RunError, match="another process"),
            records.open_folder(tmp_path, resolved),
        ):
            pass
        written = folder / "config.json"
    with records.open_folder(tmp_path, resolved):  # continued
        pass
    written.write_text(written.read_text().replace('"steps": 10', '"steps": 30'))
    with (
        pytest.raises(records.RunError, match="another config"),
        records.open_folder(tmp_path, resolved),
    ):
        pass
    written.unlink()
    (folder / "precious.txt").write_text("mine")
    with (
        pytest.raises(records.RunError, match=r"precious\.txt"),
        records.open_folder(tmp_path, resolved),
    ):
        pass
    assert (folder / "precious.txt").read_text() == "mine"
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(records.RunError, match="--out"), records.open_folder(blocked, resolved):
        pass


def test_the_commit_is_that_of_the_project(tmp_path, monkeypatch):
    project, unknown = tmp_path / "project", (None, None)
    (project / "within").mkdir(parents=True)
    assert records.commit(project) == unknown

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(project), *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    assert records.commit(project) == unknown  # of which there is none
    (project / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "--message=first")
    git("tag", "-a", "v1-rc", "--message=not the name")
    found = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(tmp_path))  # of another repository, as in a hook
    (project / "runs").mkdir()
    (project / "runs" / "untracked").write_text("")
    assert records.commit(project) == (found, False)
    (project / "file").write_text("2")
    assert records.commit(project) == (found, True)
    assert records.commit(project / "within") == unknown
    monkeypatch.setenv("PATH", "")
    assert records.commit(project) == unknown
    written = records.environment()
    assert (written["commit"], written["uncommitted_changes"]) == unknown


def test_metrics_survive_a_line_cut_off(tmp_path):
    records.append_metrics(tmp_path, "a", 0, (0, 1), {"m": np.array([1.0, np.nan])})
    records.append_metrics(tmp_path, "a", 2, (0, 1), {"m": np.array([2.0, 3.0])})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"variant": "a", "st')
    collected = records.collect(tmp_path, (0, 1))
    assert np.isnan(collected["a"][0]["m"][1])
    records.forget_metrics_after(tmp_path, "a", 0)
    text = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in text.splitlines()] == [0, 0]


@pytest.fixture
def task():
    options = gan.Options(
        upsamplers=("resize_conv", "conv_transpose", "conv_transpose"),
        generator_features=(4, 4, 4),
        discriminator_features=(4, 4, 4),
        batch_size=4,
        samples=8,
    )
    images = jax.random.uniform(jax.random.key(0), (16, 32, 32, 1), minval=-1)
    extract = Partial(lambda x: x[:, 8, :4, 0])
    setting = gan.Setting(
        images=images,
        extract=extract,
        held_out=images[:8],
        real_features=images[:8, 8, :4, 0],
        rings=metrics.radial_spectrum(images),
        real={},
        arrays={"samples": np.asarray(images)},
        notes={},
    )
    return options, setting


@pytest.mark.slow
@pytest.mark.optimized  # without, programs for one run and for several round differently
def test_runs_side_by_side_in_chunks_equal_one_run_step_by_step(task):
    """Of two seeds and two learning rates, in one program."""
    options, setting = task
    other = replace(options, learning_rate=1e-3, gamma=0.3)
    assert structure(options) == structure(other)
    assert structure(options) != structure(replace(options, latent=3))
    length = Length(4, chunk_steps=2)
    init, advance, evaluate, _ = side_by_side(gan.make_task, structure(options), length)
    assert side_by_side(gan.make_task, structure(other), length)[0] is init  # compiled once
    keys = jnp.stack([jax.random.key(seed) for seed in (5, 3, 3, 5)])
    traced = traced_options([options, options, other, other])
    states, at_once, neighbourless = (init(setting, of) for of in (keys, keys, keys[3:]))
    vmapped = side_by_side(gan.make_task, structure(options), length, vmapped=True).advance
    own = jax.tree.map(lambda values: values[3:], traced)
    for first in (0, 2):
        states, log = advance(setting, traced, states, keys, first)
        at_once, log_at_once = vmapped(setting, traced, at_once, keys, first)
        neighbourless, _ = advance(setting, own, neighbourless, keys[3:], first)
    chex.assert_trees_all_equal(jax.tree.map(lambda a: a[3:], states), neighbourless)
    alone = gan.make_task(other, setting, 4)
    key = jax.random.key(5)
    state = alone.init(jax.random.fold_in(key, 0))
    step = jax.jit(alone.step)
    for i in range(4):
        state, scalars = step(state, jax.random.fold_in(jax.random.fold_in(key, 1), i))
    for name, value in scalars.items():
        for found in (log, log_at_once):
            np.testing.assert_allclose(found[name][3, -1], value, rtol=1e-3, atol=1e-5)
    scalars, arrays = evaluate(setting, traced, states, keys)
    assert arrays["samples"].shape == (4, 8, 32, 32, 1)
    assert {values.shape for values in scalars.values()} == {(4,)}
    assert set(scalars) == set(gan.METRICS) - gan.lacking(options)

    def same(many, one):
        # The bias of the only logit falls out of a loss of differences: its gradient is rounding, which Adam
        # scales up to whole steps.
        if one.shape != (1,):
            np.testing.assert_allclose(many[3], one, rtol=1e-2, atol=1e-3)

    jax.tree.map(same, states, state)
    jax.tree.map(same, at_once, state)
    whole, logs = jax.jit(make_train(alone, length))(key)
    assert {values.shape for values in logs.values()} == {(4,)}
    jax.tree.map(same, states, whole)


@pytest.mark.slow
def test_checkpoints_hold_the_state_bitwise(task, tmp_path):
    options, setting = task
    state = gan.make_task(options, setting, 4).init(jax.random.key(0))
    with checkpoints.open_checkpoints(tmp_path / "a") as store:
        assert checkpoints.load_latest(store, state) is None
        for step in (0, 2, 4):
            checkpoints.save(
                store, step, jax.tree.map(lambda a, s=step: a + jnp.asarray(s, a.dtype), state)
            )
    with checkpoints.open_checkpoints(tmp_path / "a") as store:
        step, loaded = checkpoints.load_latest(store, state)
    assert step == 4
    saved = jax.tree.map(lambda a: a + jnp.asarray(4, a.dtype), state)
    chex.assert_trees_all_equal(saved, loaded)
    chex.assert_trees_all_equal_shapes_and_dtypes(saved, loaded)


def test_losses_are_those_of_the_paper():
    """R3GAN with a discriminator whose logits and gradients are known: D(x) = sum of a·x², gradient 2·a·x."""
    real, fake = np.random.default_rng(0).normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    judge = lambda x: 0.1 * jnp.sum(x**2, (1, 2, 3))
    logits = [0.1 * (x.astype(float) ** 2).sum((1, 2, 3)) for x in (real, fake)]
    penalties = sum((0.04 * x.astype(float) ** 2).sum((1, 2, 3)).mean() for x in (real, fake))
    margin = logits[0] - logits[1]
    loss, mean = gan.discriminator_loss(judge, real, fake, 3.0)
    np.testing.assert_allclose(loss, np.log1p(np.exp(-margin)).mean() + 1.5 * penalties, rtol=1e-5)
    np.testing.assert_allclose(mean, margin.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        gan.generator_loss(judge, real, fake), np.log1p(np.exp(margin)).mean(), rtol=1e-5
    )


@pytest.mark.slow
@each(("kernel_size", "ratio"), [(3, 4.0), (5, 9 / 4)])
def test_uneven_layers_start_with_the_energies_of_their_taps(kernel_size, ratio):
    """In dB, between the phases with most and with fewest taps; of wide layers, so that one draw is enough."""
    kinds = ("conv_transpose", "resize_conv")
    options = gan.Options(
        upsamplers=kinds, kernel_size=kernel_size, generator_features=(64, 64), latent=8
    )
    generator = gan.Generator(replace(options, generator_features=(64, 64)), 64, nnx.Rngs(0))
    z = jax.random.normal(jax.random.key(1), (16, 8))
    judge = lambda x: (x * jax.random.normal(jax.random.key(2), x.shape)).sum((1, 2, 3))
    found = gan.layer_metrics(options, generator, judge, z, jax.random.key(3))
    assert abs(found["layer_1_imbalance"] - 10 * np.log10(ratio)) < 0.8
    assert abs(found["layer_2_imbalance"]) < 0.5
    assert abs(found["layer_2_gradient_imbalance"]) < 0.5  # of a judge without strides
    assert found["layer_1_harmonic_share"] > 0.5
    assert found["layer_2_harmonic_share"] < 1e-9


def test_layers_of_equally_many_taps_have_no_imbalance():
    assert gan.ends_of(3) == ((0, 0), (1, 1))
    assert gan.ends_of(5) == ((1, 1), (0, 0))
    assert gan.ends_of(4) is None
    lacking = gan.lacking(gan.Options(kernel_size=4))
    assert "layer_1_imbalance" in lacking
    assert "layer_1_harmonic_share" not in lacking
    assert "layer_4_harmonic_share" in lacking  # of three layers


def test_a_strided_discriminator_sees_some_pixels_more_often():
    options = gan.Options(discriminator="conv", discriminator_features=(32, 32, 32))
    judge = gan.Discriminator(options, 1, nnx.Rngs(0))
    images = jax.random.normal(jax.random.key(0), (32, 32, 32, 1))
    gradient = jax.grad(lambda x: judge(x).sum())(images)
    energies = energy_by_phase(gradient, margin=4)
    assert 2 < energies[0, 0] / energies[1, 1] < 8  # 4 of independent weights
    neutral = gan.Discriminator(gan.Options(discriminator_features=(32, 32, 32)), 1, nnx.Rngs(0))
    energies = energy_by_phase(jax.grad(lambda x: neutral(x).sum())(images), margin=4)
    assert 0.7 < energies[0, 0] / energies[1, 1] < 1.4


def test_energy_by_phase_is_that_of_the_subgrids():
    images = jax.random.normal(jax.random.key(0), (3, 12, 16, 5))
    inner = np.asarray(images)[:, 2:-2, 2:-2]
    want = [[(inner[:, y::2, x::2] ** 2).mean() for x in (0, 1)] for y in (0, 1)]
    np.testing.assert_allclose(energy_by_phase(images, margin=2), want, rtol=1e-5)


def test_regularizers_of_spectra_are_what_the_paper_and_its_code_say():
    """The distances are 0 of equal spectra and grow; what was released scales the gradient of the loss alone."""
    p, q = jnp.array([4.0, 2.0, 1.0]), jnp.array([8.0, 2.0, 4.0])
    assert gan.in_decibel(p, p) == gan.cross_entropy(p, p) == 0
    np.testing.assert_allclose(
        gan.in_decibel(q, p), (10 * np.log10([1, 4])) @ (10 * np.log10([1, 4])) / 2, rtol=1e-5
    )
    a, b = np.array([0.25, 0.5]), np.array([0.5, 0.25])  # over ring 0
    entropy = lambda y, x: -(y * np.log(x) + (1 - y) * np.log(1 - x)).mean()
    want = entropy(b, a) - entropy(b, b)
    np.testing.assert_allclose(gan.cross_entropy(q, p), want, rtol=1e-5)


def test_first_nonfinite_names_the_earliest():
    log = {
        "a": jnp.array([[0.0, 1.0, jnp.nan], [0.0, 0.0, 0.0]]),
        "b": jnp.array([[0.0, 1.0, 0.0], [0.0, jnp.inf, 0.0]]),
    }
    assert first_nonfinite(log) == (1, 1, "b")
    assert first_nonfinite({"a": jnp.zeros((2, 3))}) is None
