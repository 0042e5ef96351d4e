"""The benchmark: what it computes from times and sizes, that peers compute the same, and whole runs; never a time."""

import itertools
import json
import re
from collections import Counter
from functools import partial
from itertools import product
from math import prod
from pathlib import Path

import jax
import numpy as np
import pytest
from cases import each
from rich.console import Console

import tconvjax
from experiments import config, launch, records
from experiments.benchmark import autotune, layers, machine, models, summary, timing
from experiments.benchmark.config import Layer

BENCHMARK = Path(__file__).parent.parent / "configs" / "benchmark.toml"
TINY = """
name = "tiny"
question = "q"
source = "s"
task = "benchmark"
mode = "layers"
rounds = 3
budget_s = 0.02
peers = ["lax", "flax"]
[[layer]]
name = "up"
model = "m"
family = "first"
kind = "conv_transpose"
batch = 2
size = [3, 4]
in_features = 2
out_features = 3
kernel_size = [3, 4]
strides = 2
[[layer]]
name = "apart"
model = "m"
family = "second"
kind = "conv_transpose"
batch = 1
size = [5]
in_features = 4
out_features = 4
kernel_size = 2
strides = 3
groups = 4
"""
HERE = {"processor": "p", "peak_gflops": {"float32": 10.0, "bfloat16": 20.0}, "bandwidth_gb_s": 4.0}


pytestmark = pytest.mark.usefixtures("promotion")


def layer(kind="conv_transpose", size=(3, 4), k=3, s=2, i=4, o=6, **more):
    return Layer("l", "m", "f", kind, 2, size, i, o, k, s, **more)


# Sizes


@each("kind", ("conv_transpose", "conv"))
def test_sizes_are_those_of_the_library_and_of_torch_for_every_kernel_and_stride(kind):
    for k, s, n in product(range(1, 8), range(1, 6), range(1, 4)):
        one = layer(kind, size=(n * s if kind == "conv" else n,), k=k, s=s)
        if s == 1 and k % 2 == 0:
            assert "must be odd where the stride is 1" in one.errors()[0]
            continue
        assert not one.errors()
        (extra,), (p,) = one.output_padding, one.pads
        assert 0 <= extra < s  # what torch allows
        want = (n,) if kind == "conv" else (n * s,)
        assert one.output_size == want
        given = autotune.layer_geometry(one)
        assert (given.small if kind == "conv" else given.big) == want
        if kind == "conv_transpose":
            args = {"strides": s, "padding": p, "output_padding": extra}
            assert tconvjax.conv_transpose_shape((n,), (k,), **args) == want


def test_useful_products_are_those_of_one_face():
    for one in config.load(BENCHMARK).layers:
        small = autotune.layer_geometry(one).small
        assert one.products == one.batch * prod(small) * prod(autotune.shapes(one)["w"])
    dcgan = layer(size=(4, 4), k=4, i=512, o=256)
    assert dcgan.products == 2 * 4 * 4 * 16 * 512 * 256
    assert dcgan.flops("train") == 3 * dcgan.flops("forward") == 6 * dcgan.products
    assert layer(k=4, groups=2).products == layer(k=4).products / 2
    # 2 · (3 · 4 · 4 + 6 · 8 · 6) values of images, 3 · 3 · 4 · 6 of the kernel
    assert layer().traffic("forward", 4) == 4 * (2 * (3 * 4 * 4 + 6 * 8 * 6) + 3 * 3 * 4 * 6)
    assert layer().traffic("train", 2) == layer().traffic("forward", 4)


# Configs


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("rounds = 3", "round = 3", "round: unknown key; did you mean 'rounds'?"),
        ("rounds = 3", "rounds = 2", "rounds: must be at least 3, got 2"),
        (
            'mode = "layers"',
            'mode = "layer"',
            "mode: unknown value 'layer'; did you mean 'layers'?",
        ),
        ('["lax", "flax"]', '["lax", "flux"]', "peers[1]: unknown value 'flux'"),
        ('["lax", "flax"]', '["lax", "lax"]', "peers: expected none twice"),
        ("budget_s = 0.02", "budget_s = 0.0", "budget_s: must be at least 0.001"),
        ("strides = 2", "stride = 2", "layer.up.stride: unknown key; did you mean 'strides'?"),
        ("strides = 2", "stride = 2", "layer.up.strides: missing"),
        ("size = [3, 4]", "size = 3", "layer.up.size: expected a list, got 3"),
        ("size = [3, 4]", "size = [3, 0]", "layer.up.size[1]: must be at least 1, got 0"),
        ("size = [3, 4]", "size = [1, 1, 1, 1]", "layer.up.size: expected one to three"),
        ("kernel_size = [3, 4]", "kernel_size = [3]", "layer.up.kernel_size: expected one entry"),
        (
            "kernel_size = [3, 4]",
            'kernel_size = "3"',
            "layer.up.kernel_size: expected int, got '3'",
        ),
        (
            "kernel_size = [3, 4]",
            "kernel_size = [3, true]",
            "kernel_size[1]: expected int, got True",
        ),
        ('kind = "conv_transpose"', 'kind = "deconv"', "layer.up.kind: unknown value 'deconv'"),
        ('kind = "conv_transpose"', 'kind = "conv"', "layer.up.size: strides must divide it"),
        ('kind = "conv_transpose"', 'kind = "subpixel_conv"', "kernel_size: must be odd"),
        ("strides = 2", 'strides = 2\nmethod = "linear"', "layer.up.method: goes with resize_conv"),
        ("groups = 4", "groups = 3", "layer.apart.groups: must divide in_features; got 3 and 4"),
        ('name = "apart"', 'name = "up"', "layer.up.name: another layer has this name"),
        ('name = "up"', "", "layer[0].name: missing"),
        ('mode = "layers"', 'only = ["down"]', "only: no [[layer]] has the name 'down'"),
        ('mode = "layers"', "layers = []", "layers: unknown key; did you mean '[[layer]]'?"),
        ('name = "tiny"', 'name = "../up"', "as it names a folder"),
        ('"benchmark"', '"benchmrk"', "task: unknown name 'benchmrk'; did you mean 'benchmark'?"),
    ],
)
def test_errors_are_named_with_their_paths(tmp_path, good, bad, message):
    assert good in TINY
    path = tmp_path / "c.toml"
    path.write_text(TINY.replace(good, bad, 1))
    with pytest.raises(config.ConfigError) as caught:
        config.load(path)
    assert message in str(caught.value), str(caught.value)


def test_settings_and_quick_change_what_is_measured():
    resolved = config.load(BENCHMARK, ["mode=autotune"], quick=True)
    assert resolved.mode == "autotune"
    assert [one.name for one in resolved.selected] == list(resolved.only)
    assert len(config.load(BENCHMARK).selected) == len(resolved.layers) > 20
    assert resolved.digest != config.load(BENCHMARK, quick=True).digest


# Times


class Fakes:
    """Subjects that take given seconds of a clock of their own, and a diary of their calls."""

    def __init__(self, **seconds):
        self.now, self.diary, self.seconds = 0.0, [], seconds
        self.subjects = [timing.Subject(n, partial(self.call, n), self.wait) for n in seconds]

    def call(self, name):
        self.diary.append(name)
        self.now += self.seconds[name]
        return name

    def wait(self, name):
        assert name == self.diary[-1]

    def clock(self):
        return self.now


@pytest.mark.parametrize("count", range(1, 8))
def test_everyone_follows_everyone_else_equally_often(count):
    rounds = [timing.turns(count, index) for index in range(count * (1 + count % 2))]
    assert all(sorted(order) == list(range(count)) for order in rounds)
    pairs = Counter(pair for order in rounds for pair in itertools.pairwise(order))
    assert len(pairs) == count * (count - 1)
    assert len(set(pairs.values())) <= 1


def test_rounds_interleave():
    fakes = Fakes(a=1.0, b=2.0, c=3.0)
    samples = timing.interleaved(fakes.subjects, 4, 100.0, fakes.clock)
    assert "".join(fakes.diary) == 3 * "a" + 3 * "b" + 3 * "c" + "acb" + "bac" + "cba" + "bca"
    for name, seconds in fakes.seconds.items():
        assert samples[name] == timing.Samples(1, (seconds,) * 4)


def test_short_calls_are_repeated_and_slow_ones_limited():
    fakes = Fakes(short=0.001, slow=6.0)
    samples = timing.interleaved(fakes.subjects, 5, 10.0, fakes.clock)
    assert samples["slow"] == timing.Samples(
        1, (6.0,)
    )  # and one call to warm up: above half of the budget
    assert fakes.diary.count("slow") == 2
    assert samples["short"].inner == 5
    np.testing.assert_allclose(samples["short"].seconds, 5 * [0.001])
    assert (
        fakes.diary.count("short") == 3 + 5 * 2 * 5
    )  # warm-up; rounds, each with calls that do not count
    assert timing.plan(1.5, 15, 3.0) == (1, 2)
    assert timing.plan(100.0, 15, 3.0) == (1, 1)
    assert timing.plan(0.001, 15, 0.03) == (5, 6)
    assert timing.plan(0.0, 15, 3.0).rounds == 15


def test_ratios_are_paired_and_geometric():
    noise = np.array([1.0, 7.0, 0.2, 3.0])  # of the rounds: takes no part
    mean, low, high = timing.ratio(2.5 * noise, noise)
    np.testing.assert_allclose((mean, low, high), 2.5)
    mean, low, high = timing.ratio([2.0, 8.0], [1.0, 1.0, 100.0])  # the last round lacks a partner
    assert mean == pytest.approx(4)
    assert np.log(high / low) / 2 == pytest.approx(
        12.7062 * np.log(2), rel=1e-4
    )  # Student's, one degree
    assert timing.ratio([3.0], [1.0])[0] == pytest.approx(3)
    assert np.isnan(timing.ratio([3.0], [1.0])[1])
    assert timing.geometric_mean([1.0, 4.0, 16.0]) == pytest.approx(4)
    assert np.isnan(timing.geometric_mean([]))


def test_the_roofline_is_the_higher_of_two_bounds():
    assert machine.roofline(2e9, 1e6, 100.0, 10.0) == pytest.approx(20)  # 2 GFLOP at 100 GFLOP/s
    assert machine.roofline(2e6, 1e9, 100.0, 10.0) == pytest.approx(100)  # 1 GB at 10 GB/s
    entry = {"dtype": "bfloat16", "min_ms": 4.0}
    got = machine.shares(entry, HERE, flops=20_000_000, traffic=8_000_000)
    assert got == pytest.approx(
        {"gflops": 5.0, "peak_share": 0.25, "roofline_ms": 2.0, "roofline_share": 0.5}
    )


def test_the_machine_is_measured():
    found = machine.measure(("float32",), product=64, copied=2**12)
    assert found["peak_gflops"]["float32"] > 0 < found["bandwidth_gb_s"]
    assert found["processor"]


def entry(name, peer, mean, direction="train", low=None, high=None):
    ratio = {"mean": mean, "low": low, "high": high}
    return {"layer": name, "dtype": "float32", "pass": direction, "peer": peer, "ratio": ratio}


def test_means_take_the_better_torch_and_leave_out_what_was_not_measured():
    entries = [
        entry("a", "lax", 8.0),
        entry("a", "torch", 3.0),
        entry("a", "torch_channels_last", 0.5, low=0.4, high=0.7),
        entry("b", "lax", 0.5, low=0.3, high=1.2),
        entry("b", "torch", 2.0),
        entry("a", "lax", 99.0, "forward"),
        {"layer": "b", "dtype": "float32", "pass": "train", "peer": "flax", "skipped": "why"},
    ]
    found = summary.ratios(entries, "float32", "train")
    assert summary.means(found, ["a", "b", "c"]) == pytest.approx(
        {"lax": 2.0, "flax": None, "keras": None, "torch_best": 1.0}
    )
    assert summary.slower(found, "lax", 1) == ["b"]
    assert summary.slower(found, "lax", 1, "high") == []  # the interval holds 1
    assert summary.slower(found, "torch_best", 0.8) == ["a"]


# Peers

LAYERS = {
    "k3 s2": layer(),
    "k2 s3": layer(k=2, s=3),
    "k25 s4, 1-D": layer(size=(5,), k=25, s=4),
    "3-D": layer(size=(2, 3, 2), k=(4, 2, 3), s=(4, 3, 1)),
    "groups": layer(k=(4, 3), groups=2),
    "depthwise": layer(i=4, o=4, groups=4),
    "conv": layer("conv", size=(6, 4), k=(5, 4)),
    "conv, groups": layer("conv", size=(6, 4), groups=2),
    "nearest": layer("resize_conv"),
    "linear": layer("resize_conv", size=(4,), method="linear", s=3),
    "bilinear": layer("resize_conv", method="linear", s=(2, 3)),
    "subpixel": layer("subpixel_conv", s=3),
}


@each("name", LAYERS)
def test_peers_compute_the_same(name):
    one = LAYERS[name]
    assert not one.errors()
    peers = ("ours", "lax", "flax", "keras", "torch", "torch_channels_last")
    ready, skipped = layers.prepare(one, "float32", peers, "train", layers.draw(one))
    assert {"ours", "lax"} <= ready.keys()
    assert ready.keys() | skipped.keys() == set(peers)
    assert "flax" in ready or one.groups > 1
    differences = layers.compare(one, "float32", "train", ready)
    assert set(differences) == ready.keys() - {"ours", "keras"}
    assert max(differences.values()) < 1e-5
    y, x_gradient, kernel_gradient = ready["ours"].outputs()
    assert y.shape == one.output_shape
    assert (x_gradient.shape, kernel_gradient.shape) == (one.input_shape, one.kernel_shape)
    (forward,) = layers.prepare(one, "float32", ("ours",), "forward", layers.draw(one))[0].values()
    np.testing.assert_allclose(forward.outputs()[0], y, rtol=1e-4, atol=1e-5)
    assert forward.compile_s > 0


def test_another_computation_is_refused():
    one = layer()
    ready, _ = layers.prepare(one, "float32", ("ours", "lax"), "train", layers.draw(one))
    y, x_gradient, kernel_gradient = ready["ours"].outputs()
    flipped = (y, x_gradient, kernel_gradient[::-1])
    ready["lax"] = layers.Prepared(ready["lax"].subject, lambda: flipped)
    with pytest.raises(records.RunError, match=r"layer l, float32, train: lax computes something"):
        layers.compare(one, "float32", "train", ready)


def test_a_missing_package_is_said(monkeypatch):
    monkeypatch.setattr(layers.importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    one = layer()
    ready, skipped = layers.prepare(
        one, "float32", ("ours", "keras", "torch"), "forward", layers.draw(one)
    )
    assert list(ready) == ["ours"]
    assert skipped == {"keras": "keras is not installed", "torch": "torch is not installed"}


SMALL = {
    "dcgan": models.Sizes(batch=2, size=8, widths=(4, 3), latent=5),
    "unet": models.Sizes(batch=2, size=8, widths=(3,)),
}
FAST = {"xla_backend_optimization_level": 0}  # compiles in half the time


@pytest.mark.slow
@each("name", SMALL)
def test_models_learn(name):
    step, operands = models.STEPS[name](models.LAYERS["ours"], SMALL[name])
    jitted = jax.jit(step, compiler_options=FAST)
    state, first = jitted(*operands)
    for _ in range(20):
        state, losses = jitted(state, *operands[1:])
    assert losses[0] < first[0]


@pytest.mark.slow
def test_models_of_all_peers_have_the_same_losses():
    name = "dcgan"
    sizes = models.Sizes(batch=2, size=4, widths=(3,), latent=5)
    entries = models.measure(name, ("lax", "flax", "torch"), rounds=3, budget_s=0.05, sizes=sizes)
    assert [e["peer"] for e in entries] == ["ours", "flax", "torch"]
    assert all("min_ms" in e or "torch" in e["skipped"] for e in entries)


@each("name", SMALL)
def test_models_of_torch_are_as_large_as_ours(name):
    pytest.importorskip("torch", reason="a peer that CI does not install")
    torch_models = pytest.importorskip(
        "experiments.benchmark.torch_models", reason="a peer that CI does not install"
    )
    count = sum(
        p.numel() for part in torch_models.networks(name, SMALL[name]) for p in part.parameters()
    )
    _, (state, *_) = models.STEPS[name](models.LAYERS["ours"], SMALL[name])
    ours = [params for params, *_ in state] if name == "dcgan" else state[0]
    assert count == sum(leaf.size for leaf in jax.tree.leaves(ours))
    losses = torch_models.prepare(name, SMALL[name], "torch").outputs()
    assert len(losses) == {"dcgan": 2, "unet": 1}[name]
    assert np.isfinite(losses).all()


# Runs


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A config of two tiny layers, a small machine, and what is measured of them."""
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    measure, of_machine, seen = layers.measure, machine.measure, []

    def counted(layer, *arguments, **options):
        seen.append(layer.name)
        return measure(layer, *arguments, **options)

    monkeypatch.setattr(layers, "measure", counted)
    monkeypatch.setattr(machine, "measure", partial(of_machine, product=64, copied=2**12))
    return path, seen


def go(path, out, *settings):
    with (out / "log.txt").open("a") as log:
        folder = launch.run(config.load(path, settings), out / "runs", Console(file=log, width=120))
    return folder, (out / "log.txt").read_text()


@pytest.mark.slow
def test_a_run_leaves_everything_behind_and_continues(tiny, tmp_path):
    path, seen = tiny
    folder, log = go(path, tmp_path)
    assert seen == ["up", "apart"]
    files = {p.name for p in folder.iterdir() if p.name[0] != "."}
    assert files == {
        "config.json",
        "environment.json",
        "machine.json",
        "results.json",
        "summary.json",
        "benchmark.png",
        "report.html",
    }
    entries = records.read_json(folder / "results.json")["layers"]
    keys = [(e["layer"], e["pass"], e["peer"]) for e in entries]
    assert sorted(keys) == sorted(
        product(("up", "apart"), ("forward", "train"), ("ours", "lax", "flax"))
    )
    for e in entries:
        if e["layer"] == "apart" and e["peer"] == "flax":
            assert e["skipped"] == "flax.nnx.ConvTranspose has no groups"
            continue
        assert 0 < e["min_ms"] <= e["median_ms"]
        assert len(e["times_ms"]) >= 1
        assert (e["ratio"] is None) == (e["peer"] == "ours")
        assert (
            0
            < e["gflops"]
            == pytest.approx(
                e["peak_share"]
                * records.read_json(folder / "machine.json")["peak_gflops"]["float32"]
            )
        )
    found = records.read_json(folder / "summary.json")["layers"]["float32"]["train"]["families"]
    assert {family: row["layers"] for family, row in found.items()} == {
        "first": 1,
        "second": 1,
        "all": 2,
    }
    up, apart = (found[family]["lax"] for family in ("first", "second"))
    assert found["all"]["lax"] == pytest.approx((up * apart) ** 0.5)
    assert found["second"]["flax"] is None
    page = (folder / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "flax.nnx.ConvTranspose has no groups" in page
    assert "geometric means" in log

    # Stopped between the layers: the second is measured, the first is not.
    before = (folder / "results.json").read_text()
    kept = [e for e in entries if e["layer"] == "up"]
    records.write_json(folder / "results.json", {"layers": kept, "models": []})
    (folder / "summary.json").unlink()
    go(path, tmp_path)
    assert seen == ["up", "apart", "apart"]
    after = records.read_json(folder / "results.json")["layers"]
    assert after[: len(kept)] == kept == json.loads(before)["layers"][: len(kept)]
    assert len(after) == len(entries)
    _, log = go(path, tmp_path)
    assert "complete already" in log
    assert seen == ["up", "apart", "apart"]


@pytest.mark.slow
def test_autotune_times_every_implementation_of_every_face(tiny, tmp_path):
    path, _ = tiny
    folder, log = go(path, tmp_path, "mode=autotune", 'only=["up"]')
    entries = records.read_json(folder / "autotune.json")
    assert [e["face"] for e in entries] == ["gather", "paint", "correlate"]
    for e in entries:
        assert e["median_ms"].keys() | e["failed"].keys() == set(autotune.NAMES)
        assert e["best"] == min(e["median_ms"], key=e["median_ms"].get)
        assert e["chosen_over_best"] >= 1
    assert "linear_transpose" not in autotune.NAMES
    assert entries[1]["result"] == [2, 6, 8, 3]  # what is painted
    assert records.read_json(folder / "summary.json")["autotune"]["faces"] == 3
    assert "what 'auto' takes" in log


def test_a_choice_is_judged_by_medians():
    samples = {
        "a": timing.Samples(1, (2.0, 2.4, 9.0)),
        "b": timing.Samples(1, (2.0, 2.0, 2.0)),
    }
    judged = autotune.judge("a", samples)
    assert (judged["best"], judged["slower"]) == ("b", True)
    assert judged["chosen_over_best"] == pytest.approx(1.2)
    assert not autotune.judge("b", samples)["slower"]
    total = autotune.regret([judged, {"slower": False, "chosen_over_best": 1.2}])
    assert total == pytest.approx({"faces": 2, "slower": 1, "chosen_over_best": 1.2})
