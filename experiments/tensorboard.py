"""What TensorBoard shows of a run: a view of its folder, made anew by every command with --tensorboard.

<run folder>/tensorboard/
  events.*                     config and claims
  <variant>-<seed>/events.*    metrics, samples and spectra by step
"""

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX import summary as values_of
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from experiments import pictures, records, report


class TensorBoard:
    """A logger, see `experiments.loggers`.

    It writes in this thread, which raises what fails; the queue of tensorboardX's SummaryWriter would wait for ever.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = folder, config
        self._place = folder / "tensorboard"
        if self._place.exists():
            shutil.rmtree(self._place)
        self._files = contextlib.ExitStack()
        self._writers: dict[str, EventsWriter] = {}
        self._arrays = functools.lru_cache(maxsize=1)(records.read_arrays)  # seeds share a file
        text = json.dumps(config, indent=2, ensure_ascii=False)
        self._write("", 0, time.time(), [values_of.text("config", f"```json\n{text}\n```")])

    def log_metrics(
        self, variant: str, seed: int, step: int, metrics: Mapping[str, float], /
    ) -> None:
        """Writes metrics, samples and the spectrum of a step, at the time of its evaluation."""
        found = [values_of.scalar(name, value) for name, value in metrics.items()]
        seconds = time.time()
        if self._config["data"]:
            path = self._folder / "evaluations" / f"{variant}-{step}.npz"
            arrays, index = self._arrays(path), self._config["seeds"].index(seed)
            samples, spectrum = (arrays[name][index] for name in ("samples", "spectrum"))
            found += [
                _image("samples", pictures.grid(samples)),
                _image("spectrum", pictures.spectrum(spectrum)),
            ]
            seconds = path.stat().st_mtime
        self._write(f"{variant}-{seed}", step, seconds, found)

    def finalize(self, summary: Mapping[str, Any] | None, /) -> None:
        """Writes the claims, if they are judged, and closes all files."""
        with self._files:
            if summary is not None:
                text = values_of.text("claims", _table(summary["claims"]))
                self._write("", self._config["steps"], time.time(), [text])

    def _write(self, name: str, step: int, seconds: float, found: Sequence[Summary]) -> None:
        if name not in self._writers:
            (self._place / name).mkdir(parents=True)
            self._writers[name] = EventsWriter(str(self._place / name / "events"))
            self._files.callback(self._writers[name].close)
            # A TensorBoard that is watching drops what it has read of the files that were here.
            start = SessionLog(status=SessionLog.START)
            self._writers[name].write_event(Event(step=0, wall_time=seconds, session_log=start))
        together = Summary(value=[value for one in found for value in one.value])
        self._writers[name].write_event(Event(step=step, wall_time=seconds, summary=together))
        self._writers[name].flush()


def _image(tag: str, picture: Image.Image) -> Summary:
    return values_of.image(tag, np.asarray(picture.convert("RGB")), dataformats="HWC")


def _table(claims: Sequence[Mapping[str, Any]]) -> str:
    """Returns claims as a table in Markdown."""
    rows = [
        ("verdict", "claim", "metric and relation", "margin ± 95 %"),
        ("---",) * 4,
        *(
            (c["verdict"], c["claim"], f"{c['metric']}: {c['relation']}", report.format_interval(c["margin"]))
            for c in claims
        ),
    ]  # fmt: skip
    return "\n".join(" | ".join(cell.replace("|", "\\|") for cell in row) for row in rows)
