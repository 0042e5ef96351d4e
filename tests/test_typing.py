"""What a type checker knows: a user's program, and the blocks of the README and the pages."""

import re
from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api")
ROOT = Path(__file__).parent.parent

SWAPPED = """
import jax
from flax import linen as nn, nnx

import tconvjax
from tconvjax import linen as tln, nnx as tnn


class Decoder(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up = tnn.ConvTranspose(8, 3, (4, 4), 2, padding=1, rngs=rngs)
        self.smooth = tnn.ResizeConv(3, 3, (3, 3), 2, method="linear", rngs=rngs)
        self.shuffled = tnn.SubpixelConv(3, 3, (3, 3), 2, order="DCR", rngs=rngs)
        self.out = tnn.Conv(3, 3, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(self.shuffled(self.smooth(self.up(x, output_shape=(32, 32)))))


class Twin(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return tln.ConvTranspose(3, (4, 4), 2)(x)


layer = Decoder(nnx.Rngs(0)).up
kernel: jax.Array = layer.kernel[...]
bias: jax.Array | None = None if layer.bias is None else layer.bias[...]
integers: tuple[tuple[int, ...], ...] = (layer.strides, layer.kernel_size, layer.kernel_dilation)
pairs: tuple[tuple[int, int], ...] | str = layer.padding
scale: tuple[int, ...] = tnn.ResizeConv(3, 3, (3, 3), 2, rngs=nnx.Rngs(0)).scale
image: jax.Array = tconvjax.resize_conv(kernel, kernel, 2)
by_package: tconvjax.nnx.Conv
"""
WRONG = """
from flax import nnx

from tconvjax import nnx as tnn

layer = tnn.ConvTranspose(8, 3, (4, 4), 2, rngs=nnx.Rngs(0))
layer.stride
tnn.Conv(8, 3, (3, 3), paddings=1, rngs=nnx.Rngs(0))
tnn.ResizeConv(8, 3, (3, 3), 2, method="bilinear", rngs=nnx.Rngs(0))
"""


def checked(tmp_path, text, *options):
    program = tmp_path / "program.py"
    program.write_text(text)
    report, error, status = api.run(
        [*options, "--config-file=", f"--cache-dir={ROOT / '.mypy_cache'}", str(program)]
    )
    assert not error
    return status, report


def test_a_program_that_swaps_the_layers_passes_the_strictest_check(tmp_path):
    status, report = checked(tmp_path, SWAPPED, "--strict")
    assert status == 0, report


def test_what_is_wrong_is_found(tmp_path):
    _, report = checked(tmp_path, WRONG, "--strict")
    assert re.findall(r'has no attribute "stride"|argument "paddings"|incompatible type', report) == [
        'has no attribute "stride"', 'argument "paddings"', "incompatible type"
    ]  # fmt: skip


def test_the_blocks_of_the_pages_pass(tmp_path):
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        lines = re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", page.read_text(), re.MULTILINE)
        if lines:
            status, report = checked(
                tmp_path, "\n".join(lines) + "\n", "--disable-error-code=no-redef"
            )
            assert status == 0, f"{page.name}:\n{report}"
