"""What `import tconvjax` gives: public names, a version, and modules that are imported on first use."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from cases import each

import tconvjax

LAZY = ("cli", "linen", "nnx")
ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "tconvjax").rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True
    ).stdout


def test_the_version_is_that_of_the_installed_package():
    assert tconvjax.__version__ == metadata.version("tconvjax")


def test_a_source_tree_without_metadata_has_a_version_too():
    code = """
from importlib import metadata
installed = metadata.version

def version(name):
    if name == "tconvjax":
        raise metadata.PackageNotFoundError(name)
    return installed(name)

metadata.version = version
import tconvjax
print(tconvjax.__version__)
"""
    assert python("-c", code) == "0+unknown\n"


@each("name", LAZY)
def test_modules_are_imported_on_first_use(name):
    code = f"""
import sys, tconvjax
print("tconvjax.{name}" in sys.modules, "flax" in sys.modules, "{name}" in dir(tconvjax))
print(tconvjax.{name}.__name__, tconvjax.{name} is sys.modules["tconvjax.{name}"])
"""
    assert python("-c", code) == f"False False True\ntconvjax.{name} True\n"


def test_dir_shows_the_public_names_and_no_other():
    names = dir(tconvjax)
    assert {*LAZY, "__version__", "conv_transpose", "analysis", "audit"} <= {*names}
    for name in names:
        value = getattr(tconvjax, name)
        home = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", "")
        assert name == "__version__" or (name[0] != "_" and home.startswith("tconvjax")), name


def test_other_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'tconvjax' has no attribute 'upsample'"):
        tconvjax.upsample  # noqa: B018


def test_versions_are_one_line_of_the_command_line(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")  # argparse folds at the width of the terminal
    with pytest.raises(SystemExit) as caught:
        tconvjax.cli.main(["--version"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    names = ("tconvjax", "jax", "jaxlib", "flax", "python")
    assert re.fullmatch(" ".join(rf"{name} \d\S+" for name in names) + "\n", out)
    for name in names[:-1]:
        assert f"{name} {metadata.version(name)}" in out


def test_the_package_is_the_command_line():
    assert "8 -> 16" in python("-m", "tconvjax", "explain", "--kernel", "4", "--stride", "2")


def test_the_wheel_needs_what_it_imports():
    nodes = [node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))]
    names = {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
    names |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    imported = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"tconvjax"}
    needed = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    assert needed == {"jax", "jaxlib", "numpy", "scipy", "flax"}
    # PIL is of the extra png, matplotlib of plot, safetensors of export; whoever converts a layer of Keras has it.
    assert imported - needed == {"PIL", "matplotlib", "safetensors", "keras"}


def test_extras_that_errors_name_are_there():
    texts = [path.read_text() for path in (*SOURCES, *(ROOT / "experiments").rglob("*.py"))]
    named = {
        name
        for text in texts
        for names in re.findall(r"tconvjax\[([\w,]+)\]", text)
        for name in names.split(",")
    }
    assert {"png", "plot", "export", "experiments"} <= named <= {*PROJECT["optional-dependencies"]}
