"""Runs Flax's own tests of convolutions with the layers of this library in place of Flax's.

    git clone --depth 1 --branch v0.12.8 https://github.com/google/flax
    python tests/flax_swap.py flax/tests/linen/linen_linear_test.py flax/tests/nnx/nn/conv_test.py

Where ours mean something else by design, the layers are built with Flax's meaning: integers of padding pad the dilated
image, and kernels are drawn as Flax draws them. Of 0.12.8, all 760 tests pass (20 minutes); exit status 0 then.
"""

import subprocess
import sys
from pathlib import Path

import flax.linen
import jax
import pytest
from flax import nnx

from tconvjax import linen as ours_linen
from tconvjax import nnx as ours_nnx

FLAXS = {
    "padding_convention": "dilated",
    "kernel_init": jax.nn.initializers.lecun_normal(),
}


class LinenConvTranspose(ours_linen.ConvTranspose):
    padding_convention: str = "dilated"
    kernel_init: object = FLAXS["kernel_init"]


class ConvTranspose(ours_nnx.ConvTranspose):
    def __init__(self, *args, **options):
        super().__init__(*args, **FLAXS | options)


class Outcomes:
    """Counts tests, and keeps the names of those that fail."""

    def __init__(self):
        self.passed, self.failed = 0, []

    def pytest_runtest_logreport(self, report):
        if report.when == "call" and report.passed:
            self.passed += 1
        elif report.failed:
            self.failed.append(report.nodeid)


def main(files):
    """Runs the tests of these files; returns the exit status."""
    if not files or not all(Path(file).is_file() for file in files):
        print(__doc__, file=sys.stderr)
        return 2
    if len(files) > 1:  # a file may change what the next one finds
        runs = [subprocess.run([sys.executable, __file__, file], check=False) for file in files]
        return max(run.returncode for run in runs)
    LinenConvTranspose.__name__ = "ConvTranspose"
    flax.linen.Conv, flax.linen.ConvTranspose = ours_linen.Conv, LinenConvTranspose
    nnx.Conv, nnx.ConvTranspose = ours_nnx.Conv, ConvTranspose
    outcomes = Outcomes()
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "--rootdir",
        str(Path(files[0]).parent),
    ]
    pytest.main([*options, *files], plugins=[outcomes])
    print(f"{outcomes.passed} tests of Flax pass, {len(outcomes.failed)} fail")
    return int(bool(outcomes.failed) or not outcomes.passed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
