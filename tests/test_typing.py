"""What a type checker knows: a user's program, and the blocks of the README and the pages."""

import re
from pathlib import Path

import pytest

api = pytest.importorskip("mypy.api", reason="mypy comes with the extra dev")
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


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Returns the errors of each program, by its name, under the strict settings and with the cache of `make lint`."""
    folder = tmp_path_factory.mktemp("programs")
    programs = {"swapped": SWAPPED, "wrong": WRONG}
    for page in PAGES:
        lines = re.findall(r"^(?:>>>|\.\.\.) ?(.*)$", page.read_text(), re.MULTILINE)
        if lines:
            anew = "# mypy: disable-error-code=no-redef"  # a block may import what another has
            programs[page.stem.lower()] = "\n".join([anew, *lines, ""])
    for name, text in programs.items():
        (folder / f"{name}.py").write_text(text)
    settings = [
        f"--config-file={ROOT / 'pyproject.toml'}",
        f"--cache-dir={ROOT / '.mypy_cache'}",
    ]
    report, error, _ = api.run([*settings, *(str(folder / f"{name}.py") for name in programs)])
    assert not error
    return {name: re.findall(rf"/{name}\.py:\d+: error: (.*)", report) for name in programs}


def test_a_program_that_swaps_the_layers_passes_the_strictest_check(reports):
    assert reports["swapped"] == []


def test_every_fault_of_a_program_is_found(reports):
    faults = ('has no attribute "stride"', 'argument "paddings"', "incompatible type")
    assert len(reports["wrong"]) == len(faults)
    for fault, message in zip(faults, reports["wrong"], strict=True):
        assert fault in message


def test_the_blocks_of_the_pages_pass(reports):
    of_pages = {
        name: errors for name, errors in reports.items() if name not in {"swapped", "wrong"}
    }
    assert "readme" in of_pages
    assert not any(of_pages.values()), of_pages
