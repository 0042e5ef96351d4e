"""What can be trained. A new task is one file and one line in `TASKS`."""

from experiments.tasks import gan, multigrid
from experiments.training import Kind

TASKS: dict[str, Kind] = {"gan": gan.KIND, "multigrid": multigrid.KIND}
