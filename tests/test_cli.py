"""The command line of the wheel."""

import io
import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tconvjax import cli
from tconvjax.cli import _images
from tconvjax.cli import _pictures as pictures


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_measure_says_what_noise_gives(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(16, 16, 1)))
    arguments = ("measure", tmp_path, "--period", 2, "--period", 4, "--reference", tmp_path)
    status, out, _ = run(capsys, *arguments, "--json", "--picture", tmp_path / "spectrum.png")
    assert status == 0
    ((result),) = json.loads(out)["sizes"]
    assert result["noise"]["phase_mean_fraction_2"]["mean"] == pytest.approx(3 / 255, rel=0.2)
    assert result["metrics"].keys() - result["noise"].keys() == {"log_spectral_distance"}
    assert result["metrics"]["log_spectral_distance"] == 0
    above = [n for n, v in result["noise"].items() if result["metrics"][n] > v["upper"]]
    assert len(above) <= 5  # of 19, which depend on one another
    with Image.open(tmp_path / "spectrum.png") as picture:
        assert min(picture.size) > 300
    text = run(capsys, "measure", tmp_path / "0.npy", "--period", 2)[1]
    assert "1 image of 16 x 16" in text
    assert "band_contrast_diagonal_2" in text


def test_what_can_be_measured_is(capsys, tmp_path):
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    np.save(tmp_path / "small.npy", np.ones((3, 3)))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    Image.new("L", (32, 32)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    status, out, err = run(capsys, "measure", tmp_path)
    assert status == 2
    assert "1 image of 16 x 16" in out
    problems = err.splitlines()
    assert len(problems) == 3
    for name in ("cut.png: cannot be read", "pickled.npy: cannot be read", "images of 3 x 3"):
        assert any(name in problem for problem in problems)


@pytest.mark.parametrize("missing", ["empty", "nowhere.png"])
def test_a_bad_path_loses_none_of_the_others(missing, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    status, out, err = run(capsys, "measure", tmp_path / missing, tmp_path / "good.npy")
    assert status == 2
    assert "1 image of 16 x 16" in out
    assert missing in err
    assert err.count("\n") == 1


def test_a_size_that_fails_loses_none_of_the_others(capsys, tmp_path, monkeypatch):
    for n in (16, 32):
        np.save(tmp_path / f"{n}.npy", np.random.default_rng(0).normal(size=(n, n)))
    null = cli.measure.metrics.null

    def exhausted(metric, images, **options):
        if images.shape[1] == 16:
            raise MemoryError
        return null(metric, images, **options)

    monkeypatch.setattr(cli.measure.metrics, "null", exhausted)
    status, out, err = run(capsys, "measure", tmp_path)
    assert (status, err) == (2, "tconvjax measure: images of 16 x 16 pixels: MemoryError\n")
    assert "1 image of 32 x 32" in out


@pytest.mark.slow
def test_only_files_of_a_folder_are_its_images(capsys, tmp_path):
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    (tmp_path / "folder.png").mkdir()
    assert run(capsys, "measure", tmp_path)[::2] == (0, "")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "loop.png").symlink_to("loop.png")
    status, out, err = run(capsys, "measure", tmp_path)
    assert status == 2
    assert "1 image of 16 x 16" in out
    assert err.splitlines() == [
        f"tconvjax measure: {tmp_path / 'loop.png'}: cannot be read: there is no such file",
        f"tconvjax measure: {tmp_path / 'pipe.npy'}: cannot be read: it is not a file",
    ]


@pytest.mark.slow
def test_a_size_without_reference_is_named(capsys, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "gray.npy", rng.normal(size=(16, 16)))
    np.save(tmp_path / "color.npy", rng.normal(size=(16, 16, 3)))
    arguments = ("measure", tmp_path, "--reference", tmp_path / "gray.npy", "--json")
    status, out, err = run(capsys, *arguments)
    assert status == 2
    gray, color = (entry["metrics"] for entry in json.loads(out)["sizes"])
    assert gray.keys() - color.keys() == {"log_spectral_distance"}
    assert "images of 16 x 16 pixels: --reference must hold some of their size" in err
    assert err.count("\n") == 1


def metrics_of(capsys, *arguments):
    status, out, err = run(capsys, "measure", *arguments, "--json")
    assert (status, err) == (0, "")
    (result,) = json.loads(out)["sizes"]
    return result["images"], result["metrics"]


def test_a_period_given_twice_counts_once(capsys, tmp_path, monkeypatch):
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    circled = []
    monkeypatch.setattr(pictures, "spectrum", lambda *arguments: circled.append(arguments[2]))
    metrics_of(capsys, tmp_path, "--period", 2, "--period", 2, "--picture", tmp_path / "a.png")
    assert circled == [(2,)]


def gray_palette(values):
    image = Image.fromarray(values).convert("P")
    image.putpalette([level for v in range(256) for level in (v, v, v)])
    return image


def with_alpha(values, mode):
    image = Image.fromarray(values).convert(mode)
    image.putalpha(Image.fromarray(values[::-1]))
    return image


@pytest.mark.parametrize(
    ("kind", "channels", "save"),
    [
        ("16 bits.png", 1, lambda v: Image.fromarray(v.astype(np.uint16) * 257)),
        ("palette.png", 3, gray_palette),
        ("gray and alpha.png", 1, lambda v: with_alpha(v, "LA")),
        ("color and alpha.png", 3, lambda v: with_alpha(v, "RGBA")),
        ("1 bit.png", 1, lambda v: Image.fromarray(v > 127)),
        ("bool.npy", 1, lambda v: v > 127),
        ("int8.npy", 1, lambda v: (v // 2).astype(np.int8)),
        ("uint16.npy", 1, lambda v: v.astype(">u2") * 257),
        ("float.npy", 1, lambda v: v / 255),
    ],
)
def test_one_image_is_the_same_in_every_kind_of_file(kind, channels, save, tmp_path):
    two = kind in ("1 bit.png", "bool.npy", "int8.npy")  # black and white alone
    values = np.random.default_rng(0).integers(0, 2 if two else 256, (5, 7)) * (255 if two else 1)
    values = values.astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "8 bits ☃.png")
    saved = save(values)
    saved.save(tmp_path / kind) if kind.endswith("png") else np.save(tmp_path / kind, saved)
    plain, other = (_images.read(tmp_path / name) for name in ("8 bits ☃.png", kind))
    np.testing.assert_allclose(plain[..., 0], values / 255, rtol=1e-7)
    np.testing.assert_allclose(other, plain.repeat(channels, -1), rtol=1e-7)


@pytest.mark.slow
def test_eight_and_sixteen_bits_measure_the_same(capsys, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (16, 16))
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "8.png")
    Image.fromarray((257 * values).astype(np.uint16)).save(tmp_path / "16.png")
    count, found = metrics_of(capsys, tmp_path, "--reference", tmp_path / "16.png")
    assert (count, found["log_spectral_distance"]) == (2, pytest.approx(0, abs=1e-4))


def test_wide_integers_are_numbers_like_floats(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7))
    for dtype in (int, np.int32):
        np.save(tmp_path / "wide.npy", values.astype(dtype))
        np.testing.assert_array_equal(_images.read(tmp_path / "wide.npy")[..., 0], values)


def test_sixteen_bits_of_older_pillows_are_sixteen_bits(tmp_path, monkeypatch):
    values = np.random.default_rng(0).integers(0, 1 << 16, (5, 7)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    new = _images.read(tmp_path / "deep.png")
    wide = Image.fromarray(values.astype(np.int32))
    assert wide.mode == "I"
    monkeypatch.setattr(Image, "open", lambda _, formats: wide)  # noqa: ARG005
    np.testing.assert_array_equal(_images.read(tmp_path / "deep.png"), new)
    np.testing.assert_allclose(new[..., 0], values / 65535, rtol=1e-7)


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
        ("a.png", '--picture needs matplotlib. Run: pip install "tconvjax[plot]"\n'),
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
    monkeypatch.setattr(_images, "read", None)
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
    assert "8 -> 8" in out or "1 image of 16 x 16" in out
    assert Path("a.png").read_text() == "old"


@pytest.mark.refuses
@pytest.mark.usefixtures("good")
def test_images_need_pillow_and_arrays_do_not(capsys, monkeypatch):
    Image.new("L", (16, 16)).save("a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    status, out, err = run(capsys, "measure", "a.png")
    needs = 'a.png: reading images needs pillow. Run: pip install "tconvjax[png]"'
    assert (status, out, err) == (2, "", f"tconvjax measure: {needs}\n")
    assert run(capsys, "measure", "good.npy")[0] == 0


@pytest.mark.refuses
@pytest.mark.usefixtures("good")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--fail-above", "pmf=1"), "METRIC must be one of"),
        (("--fail-above", "phase_mean_fraction_3=1"), "got 'phase_mean_fraction_3'"),
        (("--fail-above", "log_spectral_distance=1"), "got 'log_spectral_distance'"),
        (("--period", 1), "--period must be at least 2"),
        (("--period", -2), "--period must be at least 2"),
        (("--period", 10**9), "and at most 64; got 1000000000"),
    ],
)
def test_options_of_measure_are_refused_before_a_file_is_read(
    arguments, message, capsys, monkeypatch
):
    monkeypatch.setattr(_images, "read", None)
    status, out, err = run(capsys, "measure", "good.npy", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.usefixtures("good")
def test_limits_know_every_metric_that_is_measured(capsys):
    arguments = ("good.npy", "--reference", "good.npy", "--period", 3, "--period", 2)
    names = metrics_of(capsys, *arguments)[1]
    limits = [part for name in names for part in ("--fail-above", f"{name}=1000")]
    assert metrics_of(capsys, *arguments, *limits)[1] == names


def test_a_console_without_shades_is_no_error(monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    assert cli.main(["explain", "--kernel", "3", "3"]) == 0
    assert b"s(n - 1) + d(k - 1) + 1 - low - high = 1?7" in console.buffer.getvalue()


@pytest.mark.parametrize("arguments", [("explain", "--kernel", "3"), ("--version",)])
def test_a_reader_that_has_left_ends_the_command_without_a_word(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "tconvjax.cli", *arguments],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={n: v for n, v in os.environ.items() if n != "PYTHONUNBUFFERED"},
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


MODEL = """
import sys

import jax
from flax import nnx

class Decoder(nnx.Module):
    def __init__(self):
        self.up = nnx.ConvTranspose(4, 3, (3, 3), strides=2, rngs=nnx.Rngs(0))
        self.down = nnx.Conv(3, 3, (1, 1), strides=2, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.down(nnx.relu(self.up(x)))

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

def up(x):
    return jax.lax.conv_transpose(x, KERNEL, (2, 2), "SAME")

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


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_audit(capsys):
    image = ("--input", "1,8,8,4")
    status, out, _ = run(capsys, "audit", "my_model:decoder", *image)
    assert status == 1
    assert (
        "high    up.kernel  my_model.py:13\n  transposed convolution, kernel 3x3, stride 2x2" in out
    )
    assert "1 found: 1 high" in out
    image = (*image, "--gradients")
    status, out, _ = run(capsys, "audit", "my_model:decoder", *image, "--json")
    first, second = json.loads(out)["findings"]
    assert (first["kernel_size"], first["severity"], first["line"]) == ([3, 3], "high", 13)
    assert second["overlap_ratio"] is None  # infinite, which JSON cannot say
    assert run(capsys, "audit", "my_model:clean", *image)[:2] == (0, "clean\n")
    assert run(capsys, "audit", "my_model:two", *image, "--input", "2:int32")[0] == 0
    assert run(capsys, "audit", "my_model:holes", *image)[0] == 1


@pytest.mark.slow
@pytest.mark.usefixtures("model")
def test_a_model_runs_on_pictures(capsys, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", rng.uniform(size=(16, 16, 4)).astype("f"))
    pictures = ("--image", "a.npy", "b.npy")
    status, out, _ = run(capsys, "audit", "my_model:up", *pictures, "--run", "--json")
    (found,) = json.loads(out)["findings"]
    assert (status, found["input_shape"]) == (1, [2, 16, 16, 4])
    assert found["measured"]["share"] > 0.1
    assert found["measured"]["rms"] > 0
    assert run(capsys, "audit", "my_model:up", *pictures)[0] == 1
    np.save(tmp_path / "b.npy", rng.uniform(size=(16, 15, 4)))
    _, _, err = run(capsys, "audit", "my_model:up", *pictures)
    assert "--image: pictures must be of one size; got (16, 16, 4), (16, 15, 4)" in err
    _, _, err = run(capsys, "audit", "my_model:up", "--run", "--input", "1,8,8,4")
    assert "--run needs numbers: give --image PICTURE" in err
    assert "give --input SHAPE or --image PICTURE" in run(capsys, "audit", "my_model:up")[2]


@pytest.mark.usefixtures("model")
def test_audit_for_machines(capsys):
    arguments = ("audit", "my_model:decoder", "--input", "1,8,8,4", "--gradients", "--format")
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
def test_an_interrupt_ends_the_command_without_a_word(capsys):
    assert run(capsys, "audit", "my_model:interrupted", "--input", "1") == (130, "", "imported\n")


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
        (("explain", "--kernel", 3, "--stride", 10**9), "must be at most 65536; got 8000000000"),
        (("explain", "--kernel", 10**5, 10**5), "--kernel and --dilation span must be at most"),
        (("explain", "--kernel", 3, "--dilation", 10**400), "kernel_dilation must be at most"),
        (("explain", "--kernel", 3, "--dilation", 10**9), "--dilation span must be at most"),
        (("explain", "--kernel", 3, "--padding", -(10**12)), "padding must be at most 2147483647"),
        (("explain", "--kernel", 3, "--padding", -(10**6)), "--padding must be at most 65536"),
        (
            ("explain", "--kernel", 3, "--stride", 40000, 40000, "--input", 1),
            "the product of --stride must be at most 65536; got 1600000000",
        ),
        (("measure", "empty.npy"), "empty.npy: cannot be read"),
        (("measure", "huge.npy"), "huge.npy: holds pixels that are not finite"),
        (("measure", "complex.npy"), "must be real numbers"),
        (("measure", "tiny.npy"), "images of 4 x 4 pixels"),
        (("measure", "good.npy", "--fail-above", "phase_mean_fraction_2=nan"), "finite number"),
        (("measure", "nowhere.png"), "nowhere.png"),
        (("measure", "."), "holds no image"),
        (("measure", "bad.png"), "bad.png"),
        (
            ("measure", "squared.npy"),
            "squared.npy: holds pixels that are not finite in float32, or",
        ),
        (("measure", "none.npy"), "at least 1 number"),
        (("measure", "good.npy", "--period", 16), "images of 16 x 16 pixels: "),
        (("measure", "nan.npy"), "not finite"),
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
        np.save(tmp_path / "squared.npy", np.full((8, 8), 1e25))
        np.save(tmp_path / "none.npy", np.ones((0, 8)))
        np.save(tmp_path / "complex.npy", np.full((8, 8), 1j))
        np.save(tmp_path / "tiny.npy", np.arange(16.0).reshape(4, 4))
        (tmp_path / "empty.npy").write_bytes(b"")
        np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "name", ["a.png", "a.webp", "a.bmp", "a.tiff", "a.npy", "picture", "a.txt"]
)
def test_files_are_what_they_hold_whatever_their_names(name, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (5, 7)).astype(np.uint8)
    kinds = [{"webp": "WEBP", "bmp": "BMP", "tiff": "TIFF"}.get(name[2:], "PNG"), "npy"]
    for kind in kinds:
        with (tmp_path / name).open("wb") as file:
            if kind == "npy":
                np.save(file, values)
            else:
                Image.fromarray(values).save(file, kind, lossless=True)
        found = _images.read(tmp_path / name)
        np.testing.assert_allclose(
            found[..., 0], values / 255, atol=0.02 if kind == "WEBP" else 1e-6
        )


@pytest.mark.refuses
def test_what_the_memory_does_not_hold_is_refused_before_any_work(capsys, tmp_path, monkeypatch):
    np.save(tmp_path / "good.npy", np.zeros((16, 16), "f"))
    monkeypatch.setattr(cli.measure, "_free", lambda: 16 * 16 * 4 * 19)
    monkeypatch.setattr(cli.measure, "_metrics", None)
    status, out, err = run(capsys, "measure", tmp_path)
    assert (status, out) == (2, "")
    assert "images of 16 x 16 pixels: measuring them takes about 0.0 GB" in err
    monkeypatch.undo()
    assert 1 << 20 < cli.measure._free() < 1 << 50


@pytest.mark.refuses
def test_other_formats_and_several_images_are_refused_and_names_are_escaped(capsys, tmp_path):
    gray = Image.new("L", (8, 8))
    bad = tmp_path / "a\x1b[31m\nb\u202e.png"
    gray.save(bad, "GIF")
    frames = [Image.new("L", (8, 8), v) for v in (0, 255)]
    frames[0].save(tmp_path / "two.tiff", save_all=True, append_images=frames[1:])
    status, out, err = run(capsys, "measure", tmp_path)
    assert (status, out) == (2, "")
    assert err.count("\n") == 2
    assert (
        r"a\x1b[31m\nb\u202e.png: cannot be read: it is none of PNG, JPEG, WEBP, BMP, TIFF" in err
    )
    assert "two.tiff: cannot be read: it holds 2 images" in err


@pytest.mark.refuses
def test_an_array_that_is_too_large_never_fills_the_memory(capsys, tmp_path):
    np.lib.format.open_memmap(tmp_path / "sparse.npy", "w+", np.uint8, (1 << 15, 1 << 14))
    tracemalloc.start()
    status, _, err = run(capsys, "measure", tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (status, peak < 1 << 24) == (2, True)
    assert "at most 268435456; got shape (32768, 16384, 1)" in err


def test_bad_arguments_are_one_line_too(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["explain", "--kernel", "three"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
