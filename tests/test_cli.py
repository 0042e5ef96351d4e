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

import tconvjax
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


def test_explain_takes_a_padding_for_each_axis_and_end(capsys):
    causal = ("--kernel", 16, "--stride", 8, "--padding", "0,8", "--input", 20)
    assert "output size   20 -> 160" in run(capsys, "explain", *causal)[1]
    volume = ("--kernel", 3, 4, 4, "--stride", 1, 2, 2, "--padding", 0, 1, 1, "--input", 8)
    assert "8 x 8 x 8 -> 10 x 16 x 16" in run(capsys, "explain", *volume)[1]
    both = ("--kernel", 3, "--stride", 2, "--padding", "0,1", "1", "--json")
    assert json.loads(run(capsys, "explain", *both)[1])["forward_padding"] == [[0, 1], [1, 1]]


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
    monkeypatch.setattr(pictures, "save", lambda figure, _: drawn.append(figure.axes[0]))
    image = ("--kernel", 3, 3, "--stride", 2, 3, "--input", 5000, "--picture", tmp_path / "a.png")
    assert run(capsys, "explain", *image)[0] == 0
    (axes,) = drawn
    assert axes.images[0].get_array().shape == (64, 64)
    assert axes.get_title() == "kernel 3 x 3, stride 2 x 3: 1 to 2 taps, first 64 pixels"
    across, down = axes.lines[0].get_data()
    assert (len(set(across)), len(set(down))) == (21, 32)  # 64 pixels, one in three and in two


def test_input_centers_are_drawn_where_inputs_are(capsys, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "save", lambda figure, _: drawn.append(figure.axes[0]))
    layer = ("--kernel", 5, "--stride", 3, "--padding=-10", "--input", 4)
    assert run(capsys, "explain", *layer, "--picture", tmp_path / "a.png")[0] == 0
    assert list(drawn[0].lines[0].get_xdata()) == [12, 15, 18, 21]


NOISE = np.random.default_rng(0).normal(128, 4, (64, 80))
BOARD = NOISE + 4 * (np.indices((64, 80)).sum(0) % 2)


def test_measure(capsys, tmp_path):
    Image.fromarray(NOISE.astype(np.uint8)).save(tmp_path / "noise.png")
    Image.fromarray(BOARD.astype(np.uint8)).save(tmp_path / "board.png")
    status, out, err = run(capsys, "measure", tmp_path / "board.png")
    assert (status, err) == (0, "")
    assert out.startswith("A pattern of period 2 (board), ")
    assert "noise has that with probability" in out
    status, out, _ = run(capsys, "measure", tmp_path / "noise.png", "--fail-on", "pattern")
    assert (status, out.startswith("No pattern: ")) == (0, True)
    assert run(capsys, "measure", tmp_path / "board.png", "--fail-on", "pattern")[0] == 1
    status, out, _ = run(capsys, "measure", tmp_path, "--each", "--picture", tmp_path / "a.svg")
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[3:]] == [
        ["2", "images"],
        [str(tmp_path / "board.png")[-38:].rjust(40, "."), "pattern"],
        [str(tmp_path / "noise.png")[-38:].rjust(40, "."), "clean"],
    ]
    assert "<svg" in (tmp_path / "a.svg").read_text()


def test_measure_in_json_is_the_dictionary_of_the_function(capsys, tmp_path):
    np.save(tmp_path / "a.npy", BOARD.astype(np.uint8))
    found = metrics_of(capsys, tmp_path, "--period", 2, "--period", 3)
    want = tconvjax.measure(BOARD.astype(np.uint8), periods=[2, 3]).as_dict()
    assert found["images"][0].pop("path") == found.pop("path") == str(tmp_path / "a.npy")
    want.pop("path")
    want["images"][0].pop("path")
    assert found == want


def test_a_reference_is_measured_and_shown(capsys, tmp_path):
    for i, name in enumerate(("real", "made")):
        (tmp_path / name).mkdir()
        board = BOARD if i else np.random.default_rng(1).normal(128, 4, (3, 64, 64, 1))
        np.save(tmp_path / name / "a.npy", board.astype(np.uint8))
    status, out, _ = run(capsys, "measure", tmp_path / "made", "--reference", tmp_path / "real")
    assert (status, out.splitlines()[-1].split()[:3]) == (0, ["reference,", "3", "clean"])
    status, out, _ = run(capsys, "measure", tmp_path / "made", "--reference", tmp_path / "made")
    assert "A pattern" not in out


def test_sheets_are_cut(capsys, tmp_path):
    random = np.random.default_rng(0)
    page = np.concatenate([random.normal(128 + 40 * i, 4, (64, 64)) for i in range(3)], 1)
    np.save(tmp_path / "a.npy", page.astype(np.uint8))
    for tile in ((64,), (64, 64)):
        found = metrics_of(capsys, tmp_path, "--tile", *tile)
        assert (found["tile"], len(found["images"])) == ([64, 64], 3)
    assert "3 tiles of 64 x 64" in run(capsys, "measure", tmp_path, "--tile", 64)[1]


def test_undecided_fails_where_it_is_asked_for(capsys, tmp_path):
    np.save(tmp_path / "small.npy", NOISE[:8, :8])
    assert run(capsys, "measure", tmp_path, "--fail-on", "pattern")[0] == 0
    assert run(capsys, "measure", tmp_path, "--fail-on", "undecided")[0] == 1


def test_batches_folders_of_folders_signals_and_volumes(capsys, tmp_path):
    random = np.random.default_rng(0)
    np.save(tmp_path / "batch.npy", random.random((3, 32, 32, 3), "f"))
    np.savez(tmp_path / "two.npz", a=random.random((32, 32), "f"), b=random.random((2, 32, 32, 1)))
    np.save(tmp_path / "signal.npy", random.random(4096, "f"))
    np.save(tmp_path / "volume.npy", random.random((16, 16, 16), "f"))
    (tmp_path / "classes" / "a").mkdir(parents=True)
    Image.new("L", (32, 32)).save(tmp_path / "classes" / "a" / "1.png")
    count = lambda name: len(metrics_of(capsys, tmp_path / name)["images"])
    assert [count(n) for n in ("batch.npy", "two.npz", "signal.npy", "classes")] == [3, 3, 1, 1]
    status, out, err = run(capsys, "measure", tmp_path / "volume.npy")
    assert (status, out) == (2, "")
    assert "volume.npy: pixels must be" in err
    assert "a volume as (1, depth, height, width, 1)" in err
    status, _, err = run(capsys, "measure", tmp_path / "batch.npy", tmp_path / "signal.npy")
    assert status == 2
    assert "signal.npy: must have 2 axes of space, as the first; got 1." in err


def test_what_can_be_measured_is(capsys, tmp_path):
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    np.save(tmp_path / "small.npy", np.ones((3, 3)))
    np.save(tmp_path / "pickled.npy", np.array([{}], dtype=object))
    Image.new("L", (32, 32)).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    status, out, err = run(capsys, "measure", tmp_path)
    assert status == 2
    assert "2 images" in out
    problems = err.splitlines()
    assert len(problems) == 2
    for name in ("cut.png: cannot be read", "pickled.npy: cannot be read"):
        assert any(name in problem for problem in problems)


@pytest.mark.parametrize("missing", ["empty", "nowhere.png"])
def test_a_bad_path_loses_none_of_the_others(missing, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    status, out, err = run(capsys, "measure", tmp_path / missing, tmp_path / "good.npy")
    assert status == 2
    assert "good.npy  undecided" in out
    assert missing in err
    assert err.count("\n") == 1


def test_only_files_of_a_folder_are_its_images(capsys, tmp_path):
    np.save(tmp_path / "good.npy", np.random.default_rng(0).normal(size=(16, 16)))
    (tmp_path / "folder.png").mkdir()
    assert run(capsys, "measure", tmp_path)[::2] == (0, "")
    os.mkfifo(tmp_path / "pipe.npy")
    (tmp_path / "loop.png").symlink_to("loop.png")
    status, out, err = run(capsys, "measure", tmp_path)
    assert status == 2
    assert "good.npy  undecided" in out
    assert err.splitlines() == [
        f"tconvjax measure: {tmp_path / 'loop.png'}: cannot be read: there is no such file",
        f"tconvjax measure: {tmp_path / 'pipe.npy'}: cannot be read: it is not a file",
    ]


def metrics_of(capsys, *arguments):
    status, out, err = run(capsys, "measure", *arguments, "--json")
    assert (status, err) == (0, "")
    return json.loads(out)


def test_a_period_given_twice_counts_once(capsys, tmp_path):
    np.save(tmp_path / "good.npy", NOISE)
    once = metrics_of(capsys, tmp_path, "--period", 2)
    assert metrics_of(capsys, tmp_path, "--period", 2, "--period", 2) == once


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


def test_eight_and_sixteen_bits_measure_the_same(capsys, tmp_path):
    values = BOARD.astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "8.png")
    Image.fromarray(values.astype(np.uint16) * 257).save(tmp_path / "16.png")
    eight, sixteen = metrics_of(capsys, tmp_path)["images"]
    assert eight["amplitude"] == pytest.approx(sixteen["amplitude"], rel=1e-6)


def test_transparent_pixels_of_a_file_do_not_count(capsys, tmp_path):
    picture = Image.fromarray(np.where(np.arange(80) < 40, NOISE, BOARD).astype(np.uint8))
    assert measured_verdict(capsys, picture, tmp_path / "a.png") == "pattern"
    picture.putalpha(
        Image.fromarray(np.where(np.arange(80) < 40, 255, np.zeros((64, 1))).astype(np.uint8))
    )
    assert measured_verdict(capsys, picture, tmp_path / "a.png") != "pattern"


def measured_verdict(capsys, picture, path):
    picture.save(path)
    return metrics_of(capsys, path)["verdict"]


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
        ("a.txt", "--picture must end in one of "),
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
    assert "8 -> 8" in out or "Undecided: " in out
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
        (("--tile", 1), "--tile must be one or two integers >= 16; got [1]"),
        (("--tile", 16, 17, 18), "--tile must be one or two integers >= 16; got [16, 17, 18]"),
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


@pytest.mark.refuses
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("explain", "--kernel", 3, "--stride", 0), "strides must be at least 1"),
        (
            ("explain", "--kernel", 3, "--padding", "FULL"),
            "--padding must be SAME, SAME_LOWER, VALID, or pixels",
        ),
        (("explain", "--kernel", 3, "--padding=--1"), "--padding must be SAME"),
        (("explain", "--kernel", 3, "--padding", "1,2,3"), "got '1,2,3'"),
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
        (("measure", "complex.npy"), "must be real numbers"),
        (("measure", "nowhere.png"), "nowhere.png"),
        (("measure", "."), "holds no image"),
        (("measure", "bad.png"), "bad.png"),
        (("measure", "none.npy"), "at least 1 number"),
        (("measure", "nan.npy"), "nan.npy: pixels must be finite"),
        (
            ("measure", "good.npy", "--tile", 17),
            "tconvjax measure: tile must be at most the height",
        ),
        (("measure", "good.npy", "--reference", "nowhere"), "nowhere: cannot be read"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_two(
    arguments, message, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    if arguments[1] != ".":
        (tmp_path / "bad.png").write_bytes(b"not a picture")
        np.save(tmp_path / "nan.npy", np.full((8, 8), np.nan))
        np.save(tmp_path / "none.npy", np.ones((0, 8)))
        np.save(tmp_path / "complex.npy", np.full((8, 8), 1j))
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
    monkeypatch.setattr(cli.measure, "_free", lambda: 16 * 16 * 8 * 39)
    monkeypatch.setattr(cli.measure, "measured", lambda *_, **__: None)
    status, out, err = run(capsys, "measure", tmp_path)
    assert (status, out) == (2, "")
    assert "good.npy: measuring it takes about 0.0 GB" in err
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
    assert "at most 268435456; got shape (32768, 16384)" in err


def test_bad_arguments_are_one_line_too(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["explain", "--kernel", "three"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
