"""Manners that hold for every public function."""

import inspect
import subprocess
import sys

from cases import each

import tconvjax
from tconvjax import analysis, initializers, interop, metrics

PUBLIC = sorted(
    {
        f
        for module in (tconvjax, analysis, initializers, metrics)
        for name, f in vars(module).items()
        if inspect.isfunction(f) and f.__module__.startswith("tconvjax") and name[0] != "_"
    },
    key=lambda f: f.__name__,
)


CONVERTERS = [getattr(interop, f"{way}_{peer}") for way, peer in (
    ("from", "torch"), ("to", "torch"), ("from", "onnx"), ("to", "onnx"),
    ("from", "keras"), ("from", "flax"),
)]  # fmt: skip


@each("function", [*PUBLIC, *CONVERTERS])  # converters speak their peer's words
def test_documented_with_a_doctest_and_its_sections(function):
    text = function.__doc__
    for section in ("Args:", "Returns:", "Example:", ">>> "):
        assert section in text, f"{function.__name__} has no {section}"
    for parameter in inspect.signature(function).parameters.values():
        name = str(parameter).split(":")[0].split("=")[0]  # with the stars of *args
        assert f"      {name}: " in text, f"{function.__name__} does not explain {name}"


@each("function", PUBLIC)
def test_names_are_the_glossary(function):
    banned = {"rng", "weight", "weights", "filters", "stride", "dilation", "groups", "output_size"}
    assert not banned & set(inspect.signature(function).parameters)


FACTORS = {"scale", "strides", "up", "down"}
ARRAYS = {"x", "kernel", "kernels", "offsets", "indices", "filter", "input_shape", "spatial_shape"}
OPERATORS = [f for f in PUBLIC if f.__module__.startswith("tconvjax._ops")]


@each("function", OPERATORS)
def test_arrays_come_first_then_factors_and_options_by_keyword(function):
    """`resize(x, 2)`-like calls read alike everywhere: what is enlarged, by how much, how."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p.name for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    arrays = [name for name in positional if name in ARRAYS or name == "kernel_size"]
    assert positional == arrays + [p.name for p in parameters if p.name in FACTORS]


def test_import_is_light():
    code = "import sys, tconvjax; print({'flax', 'optax', 'orbax', 'matplotlib'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
