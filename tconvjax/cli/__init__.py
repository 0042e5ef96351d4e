"""Command line: `explain` predicts from a layer's integers, `measure` looks at images, `audit` at programs.

Exit status: 0 fine; 1 artifacts found by `audit`, or a limit of `measure --fail-above` exceeded; 2 bad input, one line
each.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from tconvjax.cli import audit, explain, measure

COMMANDS = {"explain": explain, "measure": measure, "audit": audit}


class _Parser(argparse.ArgumentParser):
    """Answers bad arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status."""
    parser = _Parser(prog="tconvjax", description="Learned upsampling, understood.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        command.add_arguments(
            commands.add_parser(name, help=command.HELP, description=command.DESCRIPTION)
        )
    options = parser.parse_args(arguments)
    try:
        return COMMANDS[options.command].run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"tconvjax {options.command}: {error}", file=sys.stderr)
        return 2
