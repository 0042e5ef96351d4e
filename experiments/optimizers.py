"""How parameters follow gradients: Adam with a schedule, clipping and an average of the parameters."""

from dataclasses import dataclass, field
from typing import Any, Literal

import optax

from experiments.training import traced


@dataclass(frozen=True)
class Optimization:
    """Options that those of a task inherit."""

    batch_size: int = field(default=16, metadata={"minimum": 1})
    learning_rate: float = field(default=1e-3, metadata=traced(minimum=0.0))  # the highest
    b1: float = field(default=0.9, metadata=traced(minimum=0.0, below=1.0))  # Adam's
    b2: float = field(default=0.999, metadata=traced(minimum=0.0, below=1.0))
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up; to 0
    # Part of the steps in which the learning rate rises to its highest.
    warmup: float = field(default=0.0, metadata={"minimum": 0.0, "below": 1.0})
    # Largest norm of all gradients together; 0 leaves them as they are.
    gradient_clip: float = field(default=0.0, metadata={"minimum": 0.0})
    # Weight of the past in the average of the parameters that is evaluated; 0: the last ones are.
    ema: float = field(default=0.0, metadata={"minimum": 0.0, "below": 1.0})


def adam(options: Optimization, steps: int) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of a training of so many steps."""
    clip, rate = options.gradient_clip, relative_rate(options, steps)
    return optax.chain(
        optax.clip_by_global_norm(clip) if clip else optax.identity(),
        optax.scale_by_adam(options.b1, options.b2),
        optax.scale_by_schedule(rate) if rate else optax.identity(),
        optax.scale(-options.learning_rate),
    )


def relative_rate(options: Optimization, steps: int) -> optax.Schedule | None:
    """Returns the learning rate of every step, relative to the highest; None if it is that in all."""
    rising = round(options.warmup * steps)
    if not rising and options.schedule == "constant":
        return None
    rise = optax.linear_schedule(1 / (rising + 1), 1.0, rising)
    fall = {
        "constant": lambda: optax.constant_schedule(1.0),
        "linear": lambda: optax.linear_schedule(1.0, 0.0, steps - rising),
        "cosine": lambda: optax.cosine_decay_schedule(1.0, steps - rising),
    }[options.schedule]
    return optax.join_schedules([rise, fall()], [rising])


def averaged(options: Optimization, average: Any, params: Any) -> Any:
    """Returns the average of parameters after one more step, themselves without `ema`."""
    if not options.ema:
        return params
    return optax.incremental_update(params, average, 1 - options.ema)
