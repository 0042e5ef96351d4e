"""Loggers get what a run records: TensorBoard, and those that users name.

A logger gets a line of metrics.jsonl once the checkpoint of its step is saved, so that nothing takes the line back. If
a run continues, or is complete, the logger gets its earlier lines first. It may make its view anew, as TensorBoard's
does, or drop the steps that it knows.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from experiments import plugins
from experiments.config import describe
from experiments.records import RunError
from experiments.resolved import Resolved

TENSORBOARD = "tensorboard"


class Logger(Protocol):
    """What a function that is given the folder of a run and its resolved config, as in config.json, returns."""

    def log_metrics(
        self, variant: str, seed: int, step: int, metrics: Mapping[str, float], /
    ) -> None:
        """Takes one line of metrics.jsonl."""

    def finalize(self, summary: Mapping[str, Any] | None, /) -> None:
        """Takes the content of summary.json at the end, or None if the run stopped before."""


class LoggerError(Exception):
    """A logger that cannot be used, before anything is trained."""


class Loggers:
    """The loggers of a run, called together."""

    def __init__(self) -> None:
        self.summary: Mapping[str, Any] | None = None  # what they get at the end
        self._loggers: dict[str, Logger] = {}

    def start(self, name: str, folder: Path, config: Resolved) -> None:
        """Adds a logger.

        Raises:
          LoggerError: if it cannot be made.
        """
        make = find(name)
        try:
            logger = make(folder, describe(config))
        except (Exception, SystemExit) as error:  # the user's code runs
            raise LoggerError(f"{_flag(name)}: {plugins.one_line(error)}") from error
        for method in ("log_metrics", "finalize"):
            if not callable(getattr(logger, method, None)):
                raise LoggerError(
                    f"{_flag(name)}: must return an object with log_metrics and finalize; got {logger!r}"
                )
        self._loggers[name] = logger

    def log(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Passes lines of metrics.jsonl on.

        Raises:
          RunError: if a logger fails.
        """
        for line in lines:
            metrics = dict(line)
            at = [metrics.pop(key) for key in ("variant", "seed", "step")]
            for name in self._loggers:
                self._call(name, "log_metrics", *at, metrics)

    def finalize(self) -> None:
        """Ends every logger, with the summary if there is one.

        Raises:
          RunError: if one fails.
        """
        failed: list[RunError] = []
        for name in self._loggers:
            try:
                self._call(name, "finalize", self.summary)
            except RunError as error:
                failed.append(error)
        if failed:
            raise failed[0]

    def _call(self, name: str, method: str, *arguments: Any) -> None:
        try:
            getattr(self._loggers[name], method)(*arguments)
        except RunError:  # whose text is ours
            raise
        except (Exception, SystemExit) as error:  # the user's code runs
            raise RunError(
                f"{_flag(name)}: {method} failed: {plugins.one_line(error)}. What was saved stays; the same command "
                "continues."
            ) from error


@contextlib.contextmanager
def open_loggers(names: Sequence[str], folder: Path, config: Resolved) -> Iterator[Loggers]:
    """Yields loggers for a run, and finalizes them however it ends.

    Args:
      names: as `find` takes them.
      folder: of the run, claimed.
      config: of the run.

    Raises:
      LoggerError: if one cannot be made.
      RunError: if one fails.
    """
    loggers = Loggers()
    try:
        for name in dict.fromkeys(names):
            loggers.start(name, folder, config)
        yield loggers
    except BaseException:
        with contextlib.suppress(RunError):  # the user sees what ended the run
            loggers.finalize()
        raise
    loggers.finalize()


def find(name: str) -> Callable[[Path, Mapping[str, Any]], Logger]:
    """Returns what makes a logger.

    Args:
      name: 'tensorboard', or `module:function`, which is imported, seen from the current folder.

    Raises:
      LoggerError: if there is none, or a package is missing.
    """
    if name == TENSORBOARD:
        try:
            from experiments.tensorboard import TensorBoard
        except ImportError as error:
            raise LoggerError(
                f'{_flag(name)}: a package is missing: {error.name}. Run: pip install "tconvjax[tensorboard]"'
            ) from None
        return TensorBoard
    if not plugins.is_name(name):
        raise LoggerError(f"--logger: expected {TENSORBOARD!r} or 'module:function', got {name!r}")
    try:
        return plugins.find(name, "a logger")
    except ValueError as error:
        raise LoggerError(f"{_flag(name)}: {error}") from None


def _flag(name: str) -> str:
    return f"--{name}" if name == TENSORBOARD else f"--logger {name}"
