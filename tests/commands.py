"""Commands of the experiments, each in a process of its own that need not import JAX first.

One process for all has imported everything and started nothing; every command is a fork of it.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["experiments.__main__", "experiments.engine", "experiments.launch"]
)


class Command:
    """A command that runs: `python -m experiments ARGUMENTS`."""

    def __init__(self, arguments, cwd=None):
        self._folder = tempfile.TemporaryDirectory(prefix="tconvjax-command-")
        self._said = [Path(self._folder.name) / name for name in ("stdout", "stderr")]
        given = [*map(str, arguments)], str(cwd or Path.cwd()), [*map(str, self._said)]
        self._process = _CONTEXT.Process(target=_main, args=given)
        self._process.start()

    def poll(self):
        """Returns the exit status, or None while the command runs."""
        return self._process.exitcode

    def kill(self, how):
        """Sends a signal."""
        os.kill(self._process.pid, how)

    def wait(self, seconds=300):
        """Returns `returncode`, `stdout` and `stderr`, once; a command that does not end in time is killed."""
        self._process.join(seconds)
        if self.poll() is None:
            self.kill(signal.SIGKILL)
            self._process.join()
        stdout, stderr = (p.read_text() if p.exists() else "" for p in self._said)
        self._folder.cleanup()
        return SimpleNamespace(returncode=self.poll(), stdout=stdout, stderr=stderr)


def run(arguments, cwd=None):
    """Returns what a command says and its status, once it has ended."""
    return Command(arguments, cwd).wait()


def until(what, command=None, seconds=180):
    """Waits for something that is not nothing, and returns it, while a command runs."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert command is None or command.poll() is None, "it has ended"
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def _main(arguments, cwd, said):
    for number, path in enumerate(said, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.chdir(cwd)
    sys.path.insert(0, cwd)  # as `python -m` does
    sys.argv = ["experiments", *arguments]
    from experiments.__main__ import main

    sys.exit(main(arguments))
