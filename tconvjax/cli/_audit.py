"""`tconvjax audit`: finds what makes checkerboards in a program. No other command imports the user's code."""

import argparse
import importlib
import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jax
import numpy as np

from tconvjax._program import SEVERITIES, Cost, Finding, audit
from tconvjax._version import __version__
from tconvjax.cli import _images as reading
from tconvjax.cli._errors import one_line, printable

HELP = "operations of a program that make checkerboards"
DESCRIPTION = (
    "Traces a callable and lists what makes checkerboards in it. Imports the module MODULE, which runs its top level: "
    "audit only code that you trust. The model itself runs with --run alone."
)
LEVELS = {"high": "error", "medium": "warning", "low": "note", "none": "none"}
COMMANDS = {"high": "error", "medium": "warning", "low": "notice", "none": "notice"}
ESCAPED = {ord("%"): "%25", ord("\r"): "%0D", ord("\n"): "%0A"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of the command."""
    parser.add_argument(
        "target",
        metavar="MODULE:CALLABLE",
        help="function or model to import, also from the current folder; CALLABLE may have dots",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE[:DTYPE]",
        help="shape of an argument, such as 1,64 or 8:int32 (float32); once for each argument",
    )
    parser.add_argument(
        "--image",
        nargs="+",
        type=Path,
        default=[],
        metavar="PICTURE",
        help="pictures or folders, of one size: an argument (images, height, width, channels) in [0, 1]",
    )
    parser.add_argument(
        "--run",
        action="store_true",
        help="run the model on the pictures, and measure what each finding does",
    )
    parser.add_argument(
        "--gradients",
        action="store_true",
        help="also judge gradients of strided convolutions and pools",
    )
    parser.add_argument("--all", action="store_true", help="also list what is clean")
    parser.add_argument(
        "--fail-on",
        choices=SEVERITIES[1:],
        default="low",
        help="exit 1 for findings from this severity on (low)",
    )
    parser.add_argument(
        "--format",
        choices=WRITERS,
        default="text",
        help="text, json, sarif 2.1.0, or github: annotations of a workflow (text)",
    )
    parser.add_argument(
        "--json", action="store_const", const="json", dest="format", help="--format json"
    )


def run(options: argparse.Namespace) -> int:
    """Audits a callable; returns the exit status."""
    if not options.input and not options.image:
        raise ValueError(
            "audit needs an argument of the callable: give --input SHAPE or --image PICTURE."
        )
    if options.run and options.input:
        raise ValueError("--run needs numbers: give --image PICTURE in place of --input SHAPE.")
    inputs = [*_pictures(options.image), *map(_shape, options.input)]
    fn = _imported(options.target)
    with _user_code(f"{options.target}: cannot be traced"):
        findings = audit(
            fn, *inputs, run=options.run, gradients=options.gradients, everything=options.all
        )
    print(WRITERS[options.format](findings))
    worst = SEVERITIES.index(options.fail_on)
    return int(any(SEVERITIES.index(f.severity) >= worst for f in findings))


def _shape(text: str) -> jax.ShapeDtypeStruct:
    sizes, _, dtype = text.partition(":")
    try:
        shape = tuple(int(n) for n in sizes.split(",")) if sizes else ()
        if any(n < 0 for n in shape):
            raise ValueError
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype or "float32"))
    except (ValueError, TypeError):
        raise ValueError(
            f"--input must be sizes with commas between them and, after a colon, a dtype, such as 1,28,28,1:float32; "
            f"got {text!r}."
        ) from None


def _pictures(paths: Sequence[Path]) -> list[np.ndarray]:
    """Returns pictures of one size as an argument, or none."""
    images = [reading.read(file) for path in paths for file in reading.files(path)]
    shapes = dict.fromkeys(image.shape for image in images)
    if len(shapes) > 1:
        raise ValueError(
            f"--image: pictures must be of one size; got {', '.join(map(str, shapes))}. Cut them to one size."
        )
    return [np.stack(images)] if images else []


def _imported(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    if not module or not name:
        raise ValueError(f"MODULE:CALLABLE must name a module and what is in it; got {target!r}.")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    with _user_code(f"{target}: cannot be imported"):
        value: Any = attrgetter(name)(importlib.import_module(module))
    if not callable(value) or isinstance(value, type):
        raise ValueError(
            f"{target}: must be a function or a model that is called with arrays; got a "
            f"{'class' if isinstance(value, type) else type(value).__name__}. Name an instance or a function."
        )
    return value


@contextmanager
def _user_code(problem: str) -> Iterator[None]:
    """Runs the user's code: its output goes to stderr, and an exception becomes one line."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit among them
        parts = dict.fromkeys([problem, type(error).__name__, one_line(error)])  # each once
        raise ValueError(": ".join(parts)) from None


# Formats.


def _text(findings: Sequence[Finding]) -> str:
    blocks = []
    for f in findings:
        message = textwrap.fill(
            printable(f.message.replace("\n", " ")),
            112,
            initial_indent="  ",
            subsequent_indent="  ",
            break_long_words=False,
        )
        blocks.append(
            f"{f.severity:7} {printable(_place(f))}\n{message}\n  {'; '.join(_numbers(f))}"
        )
    worst = [s for s in SEVERITIES[::-1] if any(f.severity == s for f in findings)]
    counts = (f"{sum(f.severity == s for f in findings)} {s}" for s in worst)
    return "\n".join([*blocks, f"{len(findings)} found: {', '.join(counts)}" if worst else "clean"])


def _numbers(f: Finding) -> list[str]:
    by = lambda sizes: "x".join(f"{n:g}" for n in sizes)
    numbers = [f"{by(f.input_shape)} -> {by(f.output_shape)}", f"period {by(f.period)}"]
    if f.harmonic_share is not None:
        numbers.append(f"harmonic share {f.harmonic_share:.3f}, weights {f.weights}")
    if f.variance_ratio != 1:
        numbers.append(f"variance ratio {f.variance_ratio:.3g}")
    if any(f.center_shift):
        numbers.append(f"center shift {by(f.center_shift)}")
    if f.cost and f.remedy_cost and f.severity != "none":
        numbers.append(f"instead {_cost(f.cost, f.remedy_cost)}")
    return numbers


def _cost(now: Cost, then: Cost) -> str:
    pairs = (("FLOPs", now.flops, then.flops), ("parameters", now.parameters, then.parameters))
    ratios = (f"{name} x{b / a:.2f}" for name, a, b in pairs if a)
    seen = "x".join(map(str, now.receptive_field)), "x".join(map(str, then.receptive_field))
    return f"{', '.join(ratios)}, receptive field {seen[0]} -> {seen[1]}"


def _as_json(findings: Sequence[Finding]) -> str:
    def finite(value: Any) -> Any:
        return None if isinstance(value, float) and not isfinite(value) else value

    def record(finding: Finding) -> dict[str, Any]:
        costs = ("cost", finding.cost), ("remedy_cost", finding.remedy_cost)
        return {
            **{name: finite(value) for name, value in asdict(finding).items()},
            **{name: cost and cost._asdict() for name, cost in costs},
            "measured": finding.measured and finding.measured._asdict(),
        }

    records = list(map(record, findings))
    return json.dumps({"schema": 1, "findings": records}, indent=2)


def _as_sarif(findings: Sequence[Finding]) -> str:
    """Returns Static Analysis Results Interchange Format 2.1.0."""
    results = [
        {
            "ruleId": f.kind,
            "level": LEVELS[f.severity],
            "message": {"text": f.message},
            "locations": [
                {
                    "physicalLocation": {
                        "artifactLocation": {"uri": quote(os.fsencode(_relative(f.file)))},
                        "region": {"startLine": f.line},
                    }
                }
            ]
            if f.file
            else [],
        }
        for f in findings
    ]
    rules = [{"id": kind} for kind in sorted({f.kind for f in findings})]
    driver = {"name": "tconvjax", "version": __version__, "rules": rules}
    schema = "https://json.schemastore.org/sarif-2.1.0.json"
    run = {"tool": {"driver": driver}, "results": results}
    return json.dumps({"$schema": schema, "version": "2.1.0", "runs": [run]}, indent=2)


def _as_annotations(findings: Sequence[Finding]) -> str:
    """Returns commands of a GitHub workflow."""
    lines = []
    for f in findings:
        text = _lines_kept(f.message).translate(ESCAPED)
        file = _lines_kept(_relative(f.file)).translate(
            ESCAPED | {ord(":"): "%3A", ord(","): "%2C"}
        )
        place = f"file={file},line={f.line}," if f.file else ""
        lines.append(f"::{COMMANDS[f.severity]} {place}title={f.kind}::{text}")
    return "\n".join(lines)


def _lines_kept(text: str) -> str:
    """Escapes control characters except line breaks, which GitHub's commands escape as %0A and %0D."""
    return "".join(c if c in "\r\n" else printable(c) for c in text)


def _place(f: Finding) -> str:
    where = f"{_relative(f.file)}:{f.line}" if f.file else "(no line)"
    layer = f"{f.layer}  " if f.layer else ""
    return f"{layer}{where}{f', {f.count} times' if f.count > 1 else ''}"


def _relative(file: str) -> str:
    """Returns the path, relative to the current folder if it lies inside."""
    path = Path(file)
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else file


WRITERS: dict[str, Callable[[Sequence[Finding]], str]] = {
    "text": _text,
    "json": _as_json,
    "sarif": _as_sarif,
    "github": _as_annotations,
}
