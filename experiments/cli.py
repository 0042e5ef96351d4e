"""Command line: `python -m experiments run CONFIG [--set key=VALUE]`, `sweep`, `results`, `report` and `list`."""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Commands import their modules themselves: a missing extra is then one clear line, and --help is quick.
if TYPE_CHECKING:
    from jax.sharding import Mesh
    from rich.console import Console

    from experiments.launch import Cluster, Points

CONFIGS = Path(__file__).parent.parent / "configs"
Parser = argparse.ArgumentParser


class Failure(Exception):
    """Ends a command with a message and an exit status."""

    def __init__(self, message: str, status: int = 2) -> None:
        super().__init__(message)
        self.status = status


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0 done, 1 a run that cannot go on, 2 bad input.

    SIGINT and SIGTERM end it with 130 and 143 once everything is saved; the same command continues.
    """
    parser = Parser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_run, _add_sweep, _add_results, _add_report, _add_list):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        from experiments import comparison, config, forecast, launch, reading, results  # noqa: F401
    except ImportError as error:
        return _fail(
            f'a package is missing: {error.name}. Run: pip install "tconvjax[experiments,data]"', 2
        )
    try:
        for argument in sys.argv[1:] if arguments is None else arguments:
            no_text = reading.why_no_text(argument)
            _refuse(no_text and f"command line: {no_text}")
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except Failure as failure:
        return _fail(str(failure), failure.status)
    except config.ConfigError as error:
        return _fail(str(error), 2)


def _fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


def _refuse(*errors: str) -> None:
    """Ends the command if there are errors; those that are empty count as none."""
    found = [error for error in errors if error]
    if found:
        raise Failure("\n".join(found))


def _add_run(commands: Any) -> None:
    parser = commands.add_parser("run", help="run a config, or continue it where it stopped")
    _add_options_of_a_config(parser)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from experiments import config, engine, forecast, launch

    resolved = config.load(options.config, options.set, quick=options.quick)
    _check_folder("--out", options.out)
    if options.print_config:
        return _print(config.describe(resolved))
    points: Points = [({}, resolved)]
    mesh = _mesh(options, points)
    with _working(options) as console:
        _check_data(points, [options.config], options.out, console)
        if options.dry_run:
            forecast.show(points, options.out, console, mesh, 1)
        else:
            launch.run(resolved, options.out, console, mesh, options.loggers)
            engine.clear_programs()
    return 0


def _add_sweep(commands: Any) -> None:
    parser = commands.add_parser("sweep", help="run every point of a sweep that is not complete")
    _add_options_of_a_config(parser)
    parser.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="an axis beside those of the file",
    )
    parser.add_argument(
        "--jobs", type=int, help="processes side by side (1), or jobs of a cluster (its own limit)"
    )
    parser.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        help="send every point as a job of Slurm; local: as a process, all at once, to try it",
    )
    parser.add_argument(
        "--cluster-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what a job gets: timeout_min, mem_gb, gpus_per_node, slurm_partition, .. of submitit",
    )
    parser.set_defaults(run=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    from experiments import config, forecast, launch

    points = config.load_sweep(options.config, options.set, options.sweep, quick=options.quick)
    settings = config.keywords("--cluster-set", options.cluster_set)
    to = launch.Cluster(options.cluster, settings, options.mesh) if options.cluster else None
    _check_folder("--out", options.out)
    if options.print_config:
        return _print([{"settings": at, "config": config.describe(c)} for at, c in points])
    _check_jobs(options, to)
    mesh = _mesh(options, points, to)
    with _working(options, to) as console:
        _check_data(points, [options.config] * len(points), options.out, console)
        if options.dry_run:
            forecast.show(points, options.out, console, mesh, options.jobs or 1)
            return 0
        where: dict[str, Any] = {"jobs": options.jobs, "mesh": mesh, "to": to}
        done = launch.sweep(points, options.out, console, loggers=options.loggers, **where)
    return int(not done)


def _check_jobs(options: argparse.Namespace, to: "Cluster | None") -> None:
    """Ends a sweep whose processes or jobs cannot be as many, or where they should be."""
    jobs: int | None = options.jobs
    if jobs is not None and jobs < 1:
        raise Failure(f"--jobs: must be at least 1, got {jobs}")
    if to is None:
        if options.cluster_set:
            raise Failure("--cluster-set: says what jobs of a cluster get; add --cluster slurm")
        if (jobs or 1) > 1 and (options.mesh or options.distributed):
            raise Failure("--jobs: processes side by side need a device each; leave out --mesh")
        return
    if to.name == "local" and jobs is not None:
        raise Failure("--jobs: --cluster local starts all jobs at once; leave it out")
    if options.distributed:
        raise Failure("--distributed: the jobs of a cluster join by themselves; leave it out")


def _add_results(commands: Any) -> None:
    parser = commands.add_parser(
        "results", help="run what is not complete, and write RESULTS.md with a page for each"
    )
    parser.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="TOML files")
    parser.add_argument("--quick", action="store_true", help="apply the files' [quick] tables")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of run folders")
    parser.add_argument("--page", type=Path, default=Path("RESULTS.md"), help="(RESULTS.md)")
    parser.add_argument("--dry-run", action="store_true", help="print runs and time, and stop")
    parser.set_defaults(run=_results, mesh="", distributed="", loggers=[])


def _results(options: argparse.Namespace) -> int:
    from experiments import config, engine, forecast, launch, records, results

    configs = [config.load(path, quick=options.quick) for path in options.configs]
    points: Points = [({}, resolved) for resolved in configs]
    _refuse(*results.errors(configs, options.configs, options.page))
    _check_folder("--out", options.out)
    _check_folder("--page", options.page.parent)
    if options.page.is_dir():
        raise Failure(f"--page {options.page}: is a folder. Name a file")
    mesh = _mesh(options, points)
    with _working(options) as console:
        _check_data(points, options.configs, options.out, console)
        if options.dry_run:
            forecast.show(points, options.out, console, mesh, 1)
            return 0
        folders = []
        for resolved in configs:
            folders.append(launch.run(resolved, options.out, console, mesh))
            engine.clear_programs()
        runs = [records.read_complete(folder) for folder in folders]
        for line in results.write(runs, options.page):
            console.print(line, style="yellow", markup=False)
        console.print(f"results {options.page}")
    return 0


def _add_report(commands: Any) -> None:
    parser = commands.add_parser("report", help="write the page of a run anew, or compare several")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a run or sweep")
    parser.add_argument("--out", type=Path, metavar="FILE.html", help="the page")
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from experiments import comparison, reading, records

    try:
        print(f"report {comparison.write(options.folders, options.out)}")
    except records.RunError as error:
        raise Failure(str(error)) from None
    except OSError as error:  # of names that no file may have
        raise Failure(f"report: {reading.short(str(error))}") from None
    return 0


def _add_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="list the configs and their questions")
    parser.set_defaults(run=_list)


def _list(options: argparse.Namespace) -> int:
    from experiments import config

    del options
    for path in sorted(CONFIGS.glob("*.toml")):
        try:
            print(f"{path.name:28}{config.load_sweep(path)[0][1].question}")
        except config.ConfigError as error:
            print(f"{path.name:28}invalid: {error.errors[0]}")
    return 0


def _add_options_of_a_config(parser: Parser) -> None:
    """Adds what `run` and `sweep` have in common."""
    parser.add_argument("config", type=Path, help="TOML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key of the file",
    )
    parser.add_argument(
        "--quick", action="store_true", help="apply the file's [quick] table: a smoke run"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs"), help="folder of run folders (runs)"
    )
    parser.add_argument(
        "--mesh",
        default="",
        metavar="seeds=N,data=M",
        help="train on N x M devices: seeds side by side, batches in parts (one device)",
    )
    parser.add_argument(
        "--distributed",
        default="",
        metavar="auto|ADDRESS:PORT,COUNT,RANK",
        help="be one of several processes of the same run; auto: as Slurm, Open MPI or a TPU says",
    )
    parser.add_argument(
        "--tensorboard",
        action="append_const",
        const="tensorboard",
        default=[],
        dest="loggers",
        help="write event files of TensorBoard into the run's folder, anew each time",
    )
    parser.add_argument(
        "--logger",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        dest="loggers",
        help="tell what is recorded to what a function of yours returns; see docs/experiments.md",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print what is resolved and stop"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print runs, parameters and time, and stop"
    )


def _check_folder(option: str, place: Path) -> None:
    """Ends the command if a folder can neither be there nor be made."""
    from experiments import reading

    in_the_way = reading.why_no_folder(place)
    if in_the_way:
        raise Failure(f"{option} {reading.short(str(place))}: {in_the_way}")


def _print(value: Any) -> int:
    print(json.dumps(value, indent=2, ensure_ascii=False))
    return 0


def _mesh(
    options: argparse.Namespace, points: "Points", to: "Cluster | None" = None
) -> "Mesh | None":
    """Returns the mesh of this process, joined with the others of the run, once it and the loggers can be used."""
    from experiments import launch, meshes

    _refuse(*launch.logger_errors(points, options.loggers))
    try:
        shape = meshes.shape_of(options.mesh) if options.mesh else None
        if to is None:
            meshes.join(options.distributed)
        mesh = meshes.mesh_of(options.mesh) if to is None else None
    except ValueError as error:
        raise Failure(str(error)) from None
    _refuse(*([] if shape is None else launch.mesh_errors(points, shape)))
    return mesh


def _check_data(points: "Points", paths: Sequence[Path], out: Path, console: "Console") -> None:
    """Ends the command if the data of a config cannot be used."""
    from experiments import launch

    with console.status("reading data"):
        wrong = [
            f"{path}: {error}"
            for path, point in zip(paths, points, strict=True)
            for error in launch.check([point], out)
        ]
    _refuse(*dict.fromkeys(wrong))


@contextlib.contextmanager
def _working(options: argparse.Namespace, to: "Cluster | None" = None) -> Iterator["Console"]:
    """Yields the console of a command that works, and ends the command in one line if the work cannot go on."""
    from jax.errors import JaxRuntimeError
    from rich.console import Console

    from experiments import cluster, loggers, meshes, records, stopping

    console = Console(width=None if sys.stdout.isatty() else 120, quiet=not meshes.is_leader())
    stopping.on_signals(console)
    try:
        yield console
    except records.RunError as error:
        raise Failure(str(error), 1) from None
    except OSError as error:
        text = f"{options.out}: {error}. What was saved stays; the same command continues."
        raise Failure(text, 1) from None
    except stopping.Stopped as stopped:
        slurm = to is not None and to.name == "slurm"
        left = "the jobs go on; once they are over, " if slurm else ""
        text = f"stopped; {left}the same command continues"
        raise Failure(text, 128 + stopped.signum) from None
    except (cluster.Refused, loggers.LoggerError, ImportError) as error:
        raise Failure(str(error)) from None
    except (MemoryError, JaxRuntimeError) as error:
        if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = "does not fit in memory; what was saved stays. Make sizes, batches or seeds smaller."
        raise Failure(f"{options.command}: {text}", 1) from None
