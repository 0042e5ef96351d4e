"""How a command is stopped: SIGINT and SIGTERM take effect where everything is saved, a second one at once.

Every file of a run folder is whole at any moment, so that SIGKILL, too, costs no more than the chunk that is under way.
"""

import multiprocessing
import os
import signal
import sys
from types import FrameType

import jax
import numpy as np
from jax.experimental import multihost_utils
from rich.console import Console

_received = 0  # the signal that came; handlers know no better place than a module


class Stopped(BaseException):
    """Ends a command where everything is saved.

    Attributes:
      signum: the signal that caused it.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


def on_signals(console: Console, *, worker: bool = False) -> None:
    """Makes SIGINT and SIGTERM end this process at the next `check`, a second one at once with status 130 and 143.

    Args:
      console: whose cursor a progress bar may hide.
      worker: a process of a sweep, which gets the signals from its first process.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        global _received
        del frame
        again, _received = _received, signum
        if worker:  # a terminal signals the whole group, so that this is perhaps the same one
            return
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL if again else signum)
        if again:
            console.show_cursor()
            os._exit(128 + signum)
        text = "stopping where everything is saved; once more stops at once"
        print(f"\n{text}", file=sys.stderr, flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def check() -> None:
    """Ends the command if a signal came; several processes of one run end together.

    Raises:
      Stopped: if so.
    """
    received = _received
    if jax.process_count() > 1:
        received = int(multihost_utils.process_allgather(np.int32(received)).max())
    if received:
        raise Stopped(received)
