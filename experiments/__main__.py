"""Command line: `python -m experiments run CONFIG [--set key=VALUE]`, `sweep`, `results`, `report` and `list`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent.parent / "configs"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit status: 0 done, 1 a run that cannot go on, 2 bad input.

    SIGINT and SIGTERM end it with 130 and 143 once everything is saved; the same command continues.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a config, or continue it where it stopped")
    sweep = commands.add_parser("sweep", help="run every point of a sweep that is not complete")
    for command in (run, sweep):
        command.add_argument("config", type=Path, help="TOML file")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override one key of the file",
        )
        command.add_argument(
            "--quick", action="store_true", help="apply the file's [quick] table: a smoke run"
        )
        command.add_argument(
            "--out", type=Path, default=Path("runs"), help="folder of run folders (runs)"
        )
        command.add_argument(
            "--mesh",
            default="",
            metavar="seeds=N,data=M",
            help="train on N x M devices: seeds side by side, batches in parts (one device)",
        )
        command.add_argument(
            "--distributed",
            default="",
            metavar="auto|ADDRESS:PORT,COUNT,RANK",
            help="be one of several processes of the same run; auto: as Slurm, Open MPI or a TPU says",
        )
        command.add_argument(
            "--tensorboard",
            action="append_const",
            const="tensorboard",
            default=[],
            dest="loggers",
            help="write event files of TensorBoard into the run's folder, anew each time",
        )
        command.add_argument(
            "--logger",
            action="append",
            default=[],
            metavar="MODULE:FUNCTION",
            dest="loggers",
            help="tell what is recorded to what a function of yours returns; see the README",
        )
        command.add_argument(
            "--print-config", action="store_true", help="print what is resolved and stop"
        )
        command.add_argument(
            "--dry-run", action="store_true", help="print runs, parameters and time, and stop"
        )
    sweep.add_argument(
        "--sweep",
        action="append",
        default=[],
        metavar="KEY=VALUE,VALUE",
        help="an axis beside those of the file",
    )
    sweep.add_argument(
        "--jobs", type=int, help="processes side by side (1), or jobs of a cluster (its own limit)"
    )
    sweep.add_argument(
        "--cluster",
        choices=("slurm", "local"),
        help="send every point as a job of Slurm; local: as a process, all at once, to try it",
    )
    sweep.add_argument(
        "--cluster-set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what a job gets: timeout_min, mem_gb, gpus_per_node, slurm_partition, .. of submitit",
    )
    together = commands.add_parser("results", help="run what is not complete, and write one page")
    together.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="TOML files")
    together.add_argument("--quick", action="store_true", help="apply the files' [quick] tables")
    together.add_argument("--out", type=Path, default=Path("runs"), help="folder of run folders")
    together.add_argument("--page", type=Path, default=Path("RESULTS.md"), help="(RESULTS.md)")
    together.add_argument("--dry-run", action="store_true", help="print runs and time, and stop")
    together.set_defaults(mesh="", distributed="", loggers=[], print_config=False)
    page = commands.add_parser("report", help="write the page of a run anew, or compare several")
    page.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="of a run or sweep")
    page.add_argument("--out", type=Path, metavar="FILE.html", help="the page")
    commands.add_parser("list", help="list the configs and their questions")
    options = parser.parse_args(arguments)
    try:
        # Imported here, so that a missing extra is one clear line.
        from jax.errors import JaxRuntimeError
        from rich.console import Console

        from experiments import (
            cluster,
            comparison,
            config,
            engine,
            forecast,
            launch,
            loggers,
            meshes,
            reading,
            records,
            results,
            stopping,
        )
    except ImportError as error:
        return _fail(
            f'a package is missing: {error.name}. Run: pip install "tconvjax[experiments,data]"', 2
        )
    for argument in sys.argv[1:] if arguments is None else arguments:
        no_text = reading.why_no_text(argument)
        if no_text:
            return _fail(f"command line: {no_text}", 2)
    if options.command == "list":
        for path in sorted(CONFIGS.glob("*.toml")):
            try:
                print(f"{path.name:28}{config.load_sweep(path)[0][1].question}")
            except config.ConfigError as error:
                print(f"{path.name:28}invalid: {error.errors[0]}")
        return 0
    if options.command == "report":
        try:
            print(f"report {comparison.write(options.folders, options.out)}")
        except records.RunError as error:
            return _fail(str(error), 2)
        except OSError as error:  # of names that no file may have
            return _fail(f"report: {reading.short(str(error))}", 2)
        return 0
    several = options.command == "sweep"
    to = None
    try:
        if several:
            points = config.load_sweep(
                options.config, options.set, options.sweep, quick=options.quick
            )
            settings = config.keywords("--cluster-set", options.cluster_set)
            if options.cluster:
                to = launch.Cluster(options.cluster, settings, options.mesh)
        elif options.command == "results":
            points = [({}, config.load(path, quick=options.quick)) for path in options.configs]
        else:
            resolved = config.load(options.config, options.set, quick=options.quick)
            points = [({}, resolved)]
    except config.ConfigError as error:
        return _fail(str(error), 2)
    paths = options.configs if options.command == "results" else [options.config] * len(points)
    if options.command == "results":
        errors = results.errors([c for _, c in points], paths, options.page)
        if errors:
            return _fail("\n".join(errors), 2)
    places = {"--out": options.out}
    if options.command == "results":
        places["--page"] = options.page.parent
        if options.page.is_dir():
            return _fail(f"--page {options.page}: is a folder. Name a file", 2)
    for option, place in places.items():
        in_the_way = reading.why_no_folder(place)
        if in_the_way:
            return _fail(f"{option} {reading.short(str(place))}: {in_the_way}", 2)
    if options.print_config:
        shown: Any = (
            [{"settings": point, "config": config.describe(c)} for point, c in points]
            if several
            else config.describe(resolved)
        )
        print(json.dumps(shown, indent=2, ensure_ascii=False))
        return 0
    jobs = options.jobs if several else None
    if jobs is not None and jobs < 1:
        return _fail(f"--jobs: must be at least 1, got {jobs}", 2)
    if to is None and several and options.cluster_set:
        return _fail("--cluster-set: says what jobs of a cluster get; add --cluster slurm", 2)
    if to is None and (jobs or 1) > 1 and (options.mesh or options.distributed):
        return _fail("--jobs: processes side by side need a device each; leave out --mesh", 2)
    if to is not None and to.name == "local" and jobs is not None:
        return _fail("--jobs: --cluster local starts all jobs at once; leave it out", 2)
    if to is not None and options.distributed:
        return _fail("--distributed: the jobs of a cluster join by themselves; leave it out", 2)
    errors = launch.logger_errors(points, options.loggers)
    if errors:
        return _fail("\n".join(errors), 2)
    try:
        shape = meshes.shape_of(options.mesh) if options.mesh else None
        if to is None:
            meshes.join(options.distributed)
        mesh = meshes.mesh_of(options.mesh) if to is None else None
    except ValueError as error:
        return _fail(str(error), 2)
    errors = [] if shape is None else launch.mesh_errors(points, shape)
    if errors:
        return _fail("\n".join(errors), 2)
    console = Console(width=None if sys.stdout.isatty() else 120, quiet=not meshes.leads())
    stopping.on_signals(console)
    try:
        with console.status("reading data"):
            wrong = [
                f"{path}: {error}"
                for path, point in zip(paths, points, strict=True)
                for error in launch.check([point], options.out)
            ]
        if wrong:
            return _fail("\n".join(dict.fromkeys(wrong)), 2)
        if options.dry_run:
            forecast.show(points, options.out, console, mesh, jobs or 1)
            return 0
        if several:
            settings = {"jobs": jobs, "mesh": mesh, "to": to, "loggers": options.loggers}
            return int(not launch.sweep(points, options.out, console, **settings))
        folders = []
        for _, resolved in points:
            folders.append(launch.run(resolved, options.out, console, mesh, options.loggers))
            engine.forget()
        if options.command == "results":
            runs = [records.read_complete(folder) for folder in folders]
            for line in results.write(runs, options.page):
                console.print(line, style="yellow", markup=False)
            console.print(f"results {options.page}")
    except cluster.Refused as error:
        return _fail(str(error), 2)
    except records.RunError as error:
        return _fail(str(error), 1)
    except OSError as error:
        text = f"{options.out}: {error}. What was saved stays; the same command continues."
        return _fail(text, 1)
    except stopping.Stopped as stopped:
        slurm = to is not None and to.name == "slurm"
        left = "the jobs go on; once they are over, " if slurm else ""
        return _fail(f"stopped; {left}the same command continues", 128 + stopped.signum)
    except (loggers.LoggerError, ImportError) as error:
        return _fail(str(error), 2)
    except (MemoryError, JaxRuntimeError) as error:
        if isinstance(error, JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        text = "does not fit in memory; what was saved stays. Make sizes, batches or seeds smaller."
        return _fail(f"{options.command}: {text}", 1)
    return 0


def _fail(message: str, status: int) -> int:
    print(message, file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
