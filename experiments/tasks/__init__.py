"""What can be measured and trained. A new task is one file and one line in `TASKS`, or a user's `module:function`."""

from dataclasses import is_dataclass

from experiments import plugins
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
from experiments.training import Kind, Measures, Trains

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


def find(name: str) -> Kind:
    """Returns a task, and keeps one of a user in `TASKS`, so that its programs are compiled once.

    Args:
      name: a key of `TASKS`, or `module:function`, a function without arguments that returns a `Measures` or `Trains`.

    Raises:
      ValueError: if there is none.
    """
    if name not in TASKS:
        make = plugins.find(name, "a task")
        try:
            kind = make()
        except (Exception, SystemExit) as error:  # the user's code runs
            raise ValueError(f"{name}: {plugins.one_line(error)}") from None
        if not isinstance(kind, Measures | Trains):
            kinds = "a Measures or a Trains of experiments.training"
            raise ValueError(f"{name} must return {kinds}; got {kind!r}")
        if not (isinstance(kind.options, type) and is_dataclass(kind.options)):
            raise ValueError(f"{name}: options must be a frozen dataclass; got {kind.options!r}")
        TASKS[name] = kind
    return TASKS[name]
