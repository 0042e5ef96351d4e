"""The command line of the wheel."""

import json

import numpy as np
import pytest
from PIL import Image

from tconvjax import cli


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
