"""What can be trained. A new task is one file and one line in `TASKS`."""

from experiments.tasks import (
    blur_ladder,
    equivariance,
    gan,
    initialization,
    input_gradients,
    inverse,
    multigrid,
    segmentation,
    superposition,
    superresolution,
    tones,
)
from experiments.training import Kind

TASKS: dict[str, Kind] = {
    "blur_ladder": blur_ladder.KIND,
    "equivariance": equivariance.KIND,
    "gan": gan.KIND,
    "initialization": initialization.KIND,
    "input_gradients": input_gradients.KIND,
    "inverse": inverse.KIND,
    "multigrid": multigrid.KIND,
    "segmentation": segmentation.KIND,
    "superposition": superposition.KIND,
    "superresolution": superresolution.KIND,
    "tones": tones.KIND,
}
