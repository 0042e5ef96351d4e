"""Command line: `explain` predicts from a layer's integers, `measure` looks at images, `audit` at programs.

Exit status: 0 success; 1 `audit` found artifacts, or `measure --fail-on` what it names; 2 bad input, with one line
for each fault; 130 after Ctrl-C; 141 if the reader of a pipe has ended. The last two print nothing.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from io import TextIOWrapper
from platform import python_version
from typing import Any, NoReturn

from jax.errors import JaxRuntimeError

from tconvjax._version import __version__
from tconvjax.cli import _audit as audit
from tconvjax.cli import _explain as explain
from tconvjax.cli import _measure as measure
from tconvjax.cli._errors import one_line

COMMANDS = {"explain": explain, "measure": measure, "audit": audit}


class _Version(argparse.Action):
    """Prints the versions that a bug report needs; argparse's own action folds long lines."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(_versions())
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """Reports bad arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = _Parser(prog="tconvjax", description="Explains, measures and audits upsampling.")
    parser.add_argument(
        "--version",
        action=_Version,
        nargs=0,
        help="print the versions of tconvjax, JAX, Flax and Python, and exit",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        )
    if isinstance(sys.stdout, TextIOWrapper):  # for consoles without the shades of a map
        sys.stdout.reconfigure(errors="replace")
    program = parser.prog
    try:
        try:
            options = parser.parse_args(arguments)
            program = f"{parser.prog} {options.command}"
            return COMMANDS[options.command].run(options)
        finally:
            _flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except (ValueError, TypeError, OSError, ImportError, MemoryError, JaxRuntimeError) as error:
        print(f"{program}: {one_line(error)}", file=sys.stderr)
        return 2


def _versions() -> str:
    """Returns one line of names and versions."""
    versions = {"tconvjax": __version__}
    for name in ("jax", "jaxlib", "flax"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    versions["python"] = python_version()
    return " ".join(f"{name} {version}" for name, version in versions.items())


def _flush() -> None:
    """Writes the buffered output; drops it if nobody reads it, as after `| head`.

    Python writes the buffer again when it ends: https://docs.python.org/3/library/signal.html#note-on-sigpipe.
    """
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
