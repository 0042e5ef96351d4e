"""The command line of the wheel."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tconvjax import cli
from tconvjax.cli import pictures


def run(capsys, *arguments):
    status = cli.main([str(a) for a in arguments])
    return status, *capsys.readouterr()


def test_explain(capsys):
    status, out, _ = run(
        capsys,
        "explain",
        "--kernel",
        3,
        3,
        "--stride",
        2,
        "--padding",
        1,
        "--output-padding",
        1,
        "--json",
    )
    result = json.loads(out)
    assert (status, result["output"], result["tap_counts"]) == (0, [16, 16], [[4, 2], [2, 1]])
    assert (result["center_shift"], result["random_kernel_harmonic_share"]) == ([-0.5, -0.5], 0.75)
    assert result["overlap_by_axis"] == [[1, 2] * 7 + [1, 1]] * 2
    status, out, _ = run(capsys, "explain", "--kernel", 4, "--stride", 2)
    assert status == 0
    assert "8 -> 16" in out
    assert "even" in out


def test_explain_draws(capsys, tmp_path):
    arguments = ("explain", "--kernel", 3, 3, "--stride", 2, "--padding", 1, "--input", 3)
    status, out, _ = run(capsys, *arguments, "--picture", tmp_path / "overlap.png")
    assert status == 0
    for line in (
        "output size   3 x 3 -> 5 x 5",
        "  axis 1      s(n - 1) + d(k - 1) + 1 - low - high = 2·2 + 1·2 + 1 - 1 - 1 = 5",
        "taps by phase [[4, 2], [2, 1]], max/min 4/1",
        "variance      [[1.778, 0.889], [0.889, 0.444]] by phase, random kernel, mean 1",
        "taps, axis 0  1 2 1 2 1",
        "              ░░▒▒░░▒▒░░",
        "              ▒▒██▒▒██▒▒",
        "centers       axis 0: input i at output 2i + 0: 0 2 4; shift -0.5 against half-pixel alignment",
    ):
        assert line in out.splitlines()
    with Image.open(tmp_path / "overlap.png") as picture:
        assert min(picture.size) > 300
    assert run(capsys, "explain", "--kernel", 4, "--picture", tmp_path / "one.png")[0] == 0
    assert "leaves pixels empty" in run(capsys, "explain", "--kernel", 1, "--stride", 2)[1]


def test_explain_of_large_layers_is_cut(capsys, tmp_path, monkeypatch):
    _, out, _ = run(capsys, "explain", "--kernel", 3, "--stride", 4096)
    assert max(map(len, out.splitlines())) < 300
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, _: drawn.append(figure.axes[0]))
    image = ("--kernel", 3, 3, "--stride", 2, 3, "--input", 5000, "--picture", tmp_path / "a.png")
    assert run(capsys, "explain", *image)[0] == 0
    (axes,) = drawn
    assert axes.images[0].get_array().shape == (64, 64)
    assert axes.get_title() == "kernel 3 x 3, stride 2 x 3, first 64 pixels"
    across, down = axes.lines[0].get_data()
    assert (len(set(across)), len(set(down))) == (21, 32)  # 64 pixels, one in three and in two


def test_input_centers_are_drawn_where_inputs_are(capsys, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "_save", lambda figure, _: drawn.append(figure.axes[0]))
    layer = ("--kernel", 5, "--stride", 3, "--padding=-10", "--input", 4)
    assert run(capsys, "explain", *layer, "--picture", tmp_path / "a.png")[0] == 0
    assert list(drawn[0].lines[0].get_xdata()) == [12, 15, 18, 21]


def test_measure(capsys, tmp_path):
    rng = np.random.default_rng(0)
    board = np.indices((32, 40)).sum(0) % 2
    np.save(tmp_path / "noise.npy", rng.normal(size=(32, 40, 3)))
    pixels = (100 + 50 * board + 10 * rng.normal(size=board.shape)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "board.png")
    status, out, _ = run(capsys, "measure", tmp_path, "--json")
    by_channels = json.loads(out)["sizes"]
    assert status == 0
    board, noise = (entry["metrics"]["phase_mean_fraction_2"] for entry in by_channels)
    assert noise < 0.02 < 0.8 < board
    limit = ["--fail-above", "phase_mean_fraction_2=0.1"]
    assert run(capsys, "measure", tmp_path / "noise.npy", *limit)[0] == 0
    status, _, err = run(capsys, "measure", tmp_path / "board.png", *limit)
    assert status == 1
    assert "above 0.1" in err


def test_measure_says_what_noise_gives(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(32, 32, 1)))
    arguments = ("measure", tmp_path, "--period", 2, "--period", 4, "--reference", tmp_path)
    status, out, _ = run(capsys, *arguments, "--json", "--picture", tmp_path / "spectrum.png")
    assert status == 0
    ((result),) = json.loads(out)["sizes"]
    assert result["noise"]["phase_mean_fraction_2"]["mean"] == pytest.approx(3 / 1023, rel=0.2)
    assert result["metrics"].keys() - result["noise"].keys() == {"log_spectral_distance"}
    assert result["metrics"]["log_spectral_distance"] == 0
    above = [n for n, v in result["noise"].items() if result["metrics"][n] > v["upper"]]
    assert len(above) <= 5  # of 19, which depend on one another
    with Image.open(tmp_path / "spectrum.png") as picture:
        assert min(picture.size) > 300
    text = run(capsys, *arguments)[1]
    assert "4 images of 32 x 32" in text
    assert "band_contrast_diagonal_4" in text


def test_what_can_be_measured_is(capsys, tmp_path):
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    np.save(tmp_path / "small.npy", np.ones((3, 3)))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    Image.new("L", (32, 32)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    status, out, err = run(capsys, "measure", tmp_path)
    assert status == 2
    assert "1 images of 16 x 16" in out
    problems = err.splitlines()
    assert len(problems) == 3
    for name in ("cut.png: cannot be read", "pickled.npy: cannot be read", "images of 3 x 3"):
        assert any(name in problem for problem in problems)


COMMANDS = [("explain", "--kernel", 3), ("measure", "good.npy")]


@pytest.fixture
def good(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("good.npy", np.random.default_rng(0).normal(size=(16, 16)))


@pytest.mark.refuses
@pytest.mark.usefixtures("good")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("picture", "message"),
    [
        ("a.jpg", "--picture must end in .png"),
        ("nowhere/a.png", "--picture must be a file in a folder that exists"),
        ("good.npy/a.png", "--picture must be a file in a folder that exists"),
        ("folder.png", "--picture must be a file in a folder that exists"),
        ("/proc/a.png", "--picture must be a file that can be written"),
        ("a.png", "--picture needs matplotlib"),
    ],
)
def test_a_picture_is_refused_before_any_work(command, picture, message, capsys, monkeypatch):
    Path("folder.png").mkdir()
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: str(path) != "/proc" and access(path, mode)
    )
    if "matplotlib" in message:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(cli.explain, "conv_transpose_geometry", None)
    monkeypatch.setattr(cli.measure, "_read", None)
    status, out, err = run(capsys, *command, "--picture", picture)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.usefixtures("good")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_failure_to_draw_loses_nothing(command, capsys, monkeypatch):
    def fails(*_, **__):
        raise OSError("no pen")

    Path("a.png").write_text("old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fails)
    status, out, err = run(capsys, *command, "--picture", "a.png")
    assert (status, err) == (2, f"tconvjax {command[0]}: no pen\n")
    assert "8 -> 8" in out or "1 images of 16 x 16" in out
    assert Path("a.png").read_text() == "old"


def test_a_console_without_shades_is_no_error(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert cli.main(["explain", "--kernel", "3", "3"]) == 0
    assert b"s(n - 1) + d(k - 1) + 1 - low - high = 1?7" in console.buffer.getvalue()


def test_a_reader_that_has_left_is_one_line():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "tconvjax.cli", "explain", "--kernel", "3"],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={n: v for n, v in os.environ.items() if n != "PYTHONUNBUFFERED"},
    )
    os.close(writer)
    assert done.returncode == 2
    assert done.stderr == "tconvjax explain: [Errno 32] Broken pipe\n"


MODEL = """
import sys

import jax
from flax import nnx

class Decoder(nnx.Module):
    def __init__(self):
        self.up = nnx.ConvTranspose(4, 3, (3, 3), strides=2, rngs=nnx.Rngs(0))
        self.down = nnx.Conv(3, 3, (1, 1), strides=2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.down(self.up(x))

decoder = Decoder()
clean = jax.nn.relu
number = 3

def holes(x):
    return jax.lax.conv_transpose(x, jax.numpy.ones((1, 1, 4, 4)), (2, 2), "SAME")

def two(x, i):
    return x[i]

print("imported")

def prints(x):
    print("traced")
    return holes(x)

def leaves(x):
    sys.exit(0)

def interrupted(x):
    raise KeyboardInterrupt

class Mute(Exception):
    def __str__(self):
        raise RuntimeError

def mute(x):
    raise Mute

def empty(x):
    raise RuntimeError

def long(x):
    raise RuntimeError("\\n  one\\ntwo")

class Broken:
    @property
    def layer(self):
        raise RuntimeError("half built")

broken = Broken()
KERNEL = jax.numpy.ones((3, 3, 4, 4))
exec(compile("def odd(x):\\n    return jax.lax.conv_transpose(x, KERNEL, (2, 2), 'SAME')", "50%,a:b.py", "exec"))
exec(compile("def nowhere(x):\\n    return jax.lax.conv_transpose(x, KERNEL, (2, 2), 'SAME')", jax.__file__, "exec"))
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_model", None)


@pytest.mark.usefixtures("model")
def test_audit(capsys):
    image = ("--input", "1,8,8,4")
    status, out, _ = run(capsys, "audit", "my_model:decoder", *image)
    assert status == 1
    assert "high    my_model.py:13\n  transposed convolution, kernel 3x3, stride 2x2" in out
    assert "2 found: 1 high, 1 medium" in out
    status, out, _ = run(capsys, "audit", "my_model:decoder", *image, "--json")
    first, second = json.loads(out)["findings"]
    assert (first["kernel_size"], first["severity"], first["line"]) == ([3, 3], "high", 13)
    assert second["overlap_ratio"] is None  # infinite, which JSON cannot say
    assert run(capsys, "audit", "my_model:clean", *image)[:2] == (0, "clean\n")
    assert run(capsys, "audit", "my_model:two", *image, "--input", "2:int32")[0] == 0
    assert run(capsys, "audit", "my_model:holes", *image)[0] == 1


@pytest.mark.usefixtures("model")
def test_audit_for_machines(capsys):
    arguments = ("audit", "my_model:decoder", "--input", "1,8,8,4", "--format")
    _, out, _ = run(capsys, *arguments, "sarif")
    (report,) = json.loads(out)["runs"]
    places = [r["locations"][0]["physicalLocation"] for r in report["results"]]
    assert [p["artifactLocation"]["uri"] for p in places] == ["my_model.py"] * 2
    assert [p["region"]["startLine"] for p in places] == [13, 13]
    assert [r["level"] for r in report["results"]] == ["error", "warning"]
    _, out, _ = run(capsys, *arguments, "github")
    first, second = out.splitlines()
    assert first.startswith("::error file=my_model.py,line=13,title=transposed_convolution::")
    assert second.startswith("::warning ")
    assert "%25 of a constant" in first
    assert run(capsys, *arguments, "github", "--fail-on", "high")[0] == 1


@pytest.mark.refuses
@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(
    ("target", "shape", "message"),
    [
        ("my_model", "1", "must name a module and what is in it"),
        ("no_such_model:f", "1", "no_such_model:f: cannot be imported: ModuleNotFoundError"),
        ("my_model:missing", "1", "module 'my_model' has no attribute 'missing'"),
        ("my_model:broken.layer", "1", "cannot be imported: RuntimeError: half built"),
        ("my_model:leaves", "1", "cannot be traced: SystemExit: 0"),
        ("my_model:mute", "1", "cannot be traced: Mute: <exception str() failed>"),
        ("my_model:empty", "1", "cannot be traced: RuntimeError\n"),
        ("my_model:long", "1", "cannot be traced: RuntimeError: one\n"),
        ("my_model:decoder", "1,,8,4", "--input must be sizes with commas"),
        ("my_model:number", "1", "must be a function or a model"),
        ("my_model:Decoder", "1", "got a class. Name an instance"),
        ("my_model:decoder", "1,8", "cannot be traced: "),
        ("my_model:decoder", "1,a", "--input must be sizes with commas"),
        ("my_model:decoder", "1:float99", "--input must be sizes with commas"),
        ("my_model:decoder", "-1", "--input must be sizes with commas"),
    ],
)
def test_what_cannot_be_audited_is_one_line(target, shape, message, capsys):
    status, out, err = run(capsys, "audit", target, f"--input={shape}")
    assert (status, out) == (2, "")
    assert message in err
    assert err.removeprefix("imported\n").count("\n") == 1


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize("form", ["json", "sarif", "github"])
def test_what_the_model_prints_is_not_in_the_report(form, capsys):
    _, out, err = run(capsys, "audit", "my_model:prints", "--input", "1,8,8,4", "--format", form)
    assert err == "imported\ntraced\n"
    assert out.startswith("::") or json.loads(out)


@pytest.mark.usefixtures("model")
def test_an_interrupt_stays_one():
    with pytest.raises(KeyboardInterrupt):
        cli.main(["audit", "my_model:interrupted", "--input", "1"])


@pytest.mark.usefixtures("model")
def test_odd_places_are_escaped_or_left_out(capsys):
    audit = lambda name, form: run(
        capsys, "audit", f"my_model:{name}", "--input", "1,8,8,4", "--format", form
    )[1]
    places = lambda name: json.loads(audit(name, "sarif"))["runs"][0]["results"][0]["locations"]
    assert audit("odd", "github").startswith("::error file=50%25%2Ca%3Ab.py,line=2,title=")
    assert audit("nowhere", "github").startswith("::error title=")
    ((place),) = places("odd")
    assert place["physicalLocation"]["artifactLocation"]["uri"] == "50%25%2Ca%3Ab.py"
    assert places("nowhere") == []


def test_sixteen_bits_are_not_clipped(capsys, tmp_path):
    board = np.indices((32, 32)).sum(0) % 2
    Image.fromarray((30000 + 10000 * board).astype(np.uint16)).save(tmp_path / "board.png")
    _, out, _ = run(capsys, "measure", tmp_path, "--json")
    assert json.loads(out)["sizes"][0]["metrics"]["phase_mean_fraction_2"] > 0.999


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "--kernel", 3, "--stride", 0), "strides must be at least 1"),
        (("explain", "--kernel", 3, "--padding", "FULL"), "padding must be one of"),
        (("explain", "--kernel", 3, "--padding=--1"), "padding must be one of"),
        (("explain", "--kernel", 3, "--input", 10**9), "--input must be at most"),
        (("measure", "empty.npy"), "empty.npy: cannot be read"),
        (("measure", "huge.npy"), "huge.npy: holds pixels that are not finite"),
        (("measure", "complex.npy"), "must be real numbers"),
        (("measure", "tiny.npy"), "images of 4 x 4 pixels"),
        (("measure", "good.npy", "--fail-above", "phase_mean_fraction_2=nan"), "finite number"),
        (("measure", "nowhere.png"), "nowhere.png"),
        (("measure", "."), "holds no image"),
        (("measure", "bad.png"), "bad.png"),
        (("measure", "nan.npy"), "not finite"),
        (("measure", "good.npy", "--period", 1), "period must be at least 2"),
        (("measure", "good.npy", "--fail-above", "pmf=1"), "METRIC must be one of"),
        (("measure", "good.npy", "--fail-above", "x"), "expected METRIC=VALUE"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_two(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if arguments[1] != ".":
        (tmp_path / "bad.png").write_bytes(b"not a picture")
        np.save(tmp_path / "nan.npy", np.full((8, 8), np.nan))
        np.save(tmp_path / "huge.npy", np.full((8, 8), 1e300))
        np.save(tmp_path / "complex.npy", np.full((8, 8), 1j))
        np.save(tmp_path / "tiny.npy", np.arange(16.0).reshape(4, 4))
        (tmp_path / "empty.npy").write_bytes(b"")
        np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_bad_arguments_are_one_line_too(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["explain", "--kernel", "three"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
