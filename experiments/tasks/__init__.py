"""What can be trained. A new task is one file and one line in `TASKS`."""

from experiments.tasks import (
    blur_ladder,
    equivariance,
    gan,
    initialization,
    inverse,
    multigrid,
    superposition,
    tones,
)
from experiments.training import Kind

TASKS: dict[str, Kind] = {
    "blur_ladder": blur_ladder.KIND,
    "equivariance": equivariance.KIND,
    "gan": gan.KIND,
    "initialization": initialization.KIND,
    "inverse": inverse.KIND,
    "multigrid": multigrid.KIND,
    "superposition": superposition.KIND,
    "tones": tones.KIND,
}
