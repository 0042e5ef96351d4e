"""Calls as jobs of a cluster, through submitit: an array of Slurm, or processes here to try it.

A job whose time is over, or that others displace, is queued again and calls anew, so that a call must go on with what
it has begun. Jobs outlive the command that sent them.
"""

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from experiments import stopping

Name = Literal["slurm", "local"]
# Unless the user sets them; submitit by itself ends a job after five minutes, and for good the fourth time.
DEFAULTS = {"timeout_min": 60, "slurm_max_num_timeout": 100}
LOOK, ASK = 0.5, 10.0  # seconds between two looks for results, and two at the queue of Slurm


class Refused(Exception):
    """Jobs that cannot be sent, with the reason."""


class Lost(NamedTuple):
    """What is known of a job that ended without a result."""

    message: str


def executor_of(name: Name, folder: Path, settings: Mapping[str, Any], jobs: int | None) -> Any:
    """Returns what sends jobs.

    Args:
      name: 'slurm', or 'local' for processes here, all at once.
      folder: for what submitit writes, seen by all machines.
      settings: of submitit's `AutoExecutor`, such as `timeout_min`, `gpus_per_node` and `slurm_partition`.
      jobs: of an array, that run at the same time; None leaves it to submitit.

    Raises:
      Refused: if there is no such cluster here, or no such setting.
      ImportError: if submitit is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise ImportError(
            'a package is missing: submitit. Run: pip install "tconvjax[slurm]"'
        ) from None
    parameters = {"name": folder.parent.name, **DEFAULTS}
    parameters |= ({"slurm_array_parallelism": jobs} if jobs else {}) | dict(settings)
    if name == "local" and parameters.get("tasks_per_node", 1) != 1:
        raise Refused(
            f"--cluster local: tasks_per_node must be 1, got {parameters['tasks_per_node']}"
        )
    ours = {key: value for key, value in parameters.items() if key.endswith("_max_num_timeout")}
    try:
        executor = submitit.AutoExecutor(folder, name, **ours)
        executor.update_parameters(**{k: v for k, v in parameters.items() if k not in ours})
    except (RuntimeError, NameError, ValueError, AssertionError, TypeError) as error:
        raise Refused(f"--cluster {name}: {str(error).splitlines()[0]}") from None
    return executor


def send(executor: Any, call: Callable[..., Any], *arguments: Sequence[Any]) -> list[Any]:
    """Sends a job for each place in the sequences.

    Raises:
      Refused: by the cluster.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.helpers import DelayedSubmission
    from submitit.local.local import LOCAL_REQUEUE_RETURN_CODE

    ending = LOCAL_REQUEUE_RETURN_CODE if executor.cluster == "local" else -1

    class Again:
        """A call that a job makes again after it was queued again."""

        queued = False

        def __call__(self, *given: Any) -> Any:
            result = call(*given)
            if self.queued:  # and the call has taken submitit's exit for an error of its own
                raise SystemExit(ending)
            return result

        def checkpoint(self, *given: Any) -> Any:
            self.queued = True
            return DelayedSubmission(Again(), *given)

    try:
        return list(executor.map_array(Again(), *arguments))
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        reason = (str(error).strip() or "no reason given").splitlines()[-1]
        raise Refused(f"--cluster {executor.cluster}: the jobs were refused: {reason}") from None


def results(cluster: Name, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
    """Yields the number of a job and its result, or `Lost`, as they end.

    Raises:
      Stopped: at a signal; the jobs go on.
    """
    left = dict(enumerate(jobs))
    gone: set[str] = set()  # from the queue at the look before; a result may be seen later
    last_look = time.monotonic()
    while left:
        stopping.check()
        time.sleep(LOOK)
        ended: set[str] = set()
        if time.monotonic() - last_look > ASK:
            now = _gone(cluster, list(left.values()))
            ended, gone, last_look = gone & now, now, time.monotonic()
        for i, job in list(left.items()):
            if job.paths.result_pickle.exists() or job.job_id in ended:
                del left[i]
                yield i, _result(job)


def _gone(cluster: Name, jobs: Sequence[Any]) -> set[str]:
    """Returns the jobs that neither run nor wait; none if that cannot be found out.

    The queue of Slurm is read for this: submitit reads its accounts, which small clusters do not keep.
    """
    ids = {job.job_id for job in jobs}
    if cluster == "local":
        return {job.job_id for job in jobs if job.done()}
    ids_of_arrays = ",".join(sorted({name.partition("_")[0] for name in ids}))
    command = ["squeue", "--noheader", "--array", "--format=%i", f"--jobs={ids_of_arrays}"]
    try:
        queue = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return set()
    if queue.returncode and "Invalid job id" not in queue.stderr:
        return set()
    return ids - set(queue.stdout.split())


def _result(job: Any) -> Any:
    first = job.task(0)  # of its processes, the leading one
    if job.paths.result_pickle.exists() and first.exception() is None:
        return first.result()
    return Lost(f"job {job.job_id} ended without a result; see {job.paths.stderr}")
