"""Command line: `python -m experiments run CONFIG [--set key=VALUE] [--quick] [--out DIR]`, and `list`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).parent.parent / "configs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0 done, 1 a run that cannot go on, 2 bad input.

    SIGINT and SIGTERM end it with 130 and 143; the same command continues.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a config, or continue it where it stopped")
    run.add_argument("config", type=Path, help="TOML file")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the file",
    )
    run.add_argument(
        "--quick", action="store_true", help="apply the file's [quick] table: a smoke run"
    )
    run.add_argument("--out", type=Path, default=Path("runs"), help="folder of run folders (runs)")
    run.add_argument(
        "--print-config", action="store_true", help="print the resolved config and stop"
    )
    commands.add_parser("list", help="list the configs and their questions")
    options = parser.parse_args(arguments)
    try:
        # Imported here, so that a missing extra is one clear line.
        from rich.console import Console

        from experiments import config, engine, records
        from experiments.benchmark import run as benchmark_run
        from experiments.benchmark.config import Benchmark
    except ImportError as error:
        return _fail(
            f'a package is missing: {error.name}. Run: pip install "tconvjax[experiments,data]"', 2
        )
    if options.command == "list":
        for path in sorted(CONFIGS.glob("*.toml")):
            try:
                print(f"{path.name:28}{config.load(path).question}")
            except config.ConfigError as error:
                print(f"{path.name:28}invalid: {error.errors[0]}")
        return 0
    try:
        resolved = config.load(options.config, options.set, quick=options.quick)
    except config.ConfigError as error:
        return _fail(str(error), 2)
    if options.print_config:
        print(json.dumps(config.describe(resolved), indent=2, ensure_ascii=False))
        return 0
    console = Console() if sys.stdout.isatty() else Console(width=120)
    engine.stop_at_once_on_signals(console)
    try:
        if isinstance(resolved, Benchmark):
            benchmark_run.run(resolved, options.out, console)
        else:
            engine.run(resolved, options.out, console)
    except records.RunError as error:
        return _fail(str(error), 1)
    except ImportError as error:
        return _fail(str(error), 2)
    return 0


def _fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
