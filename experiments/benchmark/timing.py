"""Times that can be compared: every subject once per round, in balanced order, ratios paired by round.

What else the machine does meets neighbors in a round alike, so a ratio is steadier than its two times. A sample lasts
several calls where one is short, and follows calls that do not count, so that caches and threads are the subject's
own. What still reaches over from one subject to the next (threads of OpenMP wait awake for a while) meets all of them,
as in the rounds everyone follows everyone else about equally often (Williams 1949, doi:10.1071/CH9490149).
"""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.claims import Interval, interval

SAMPLE_S = 0.005  # a sample lasts this long at least
UNTIMED_S = 0.1  # samples of shorter calls are taken twice, and the first does not count

Clock = Callable[[], float]


class Subject(NamedTuple):
    """Something to time."""

    name: str
    call: Callable[[], Any]  # starts it
    wait: Callable[[Any], Any]  # returns when the result of the last call is there


def on_jax(name: str, call: Callable[[], Any]) -> Subject:
    """Returns a subject whose calls return arrays of JAX.

    A CPU would run independent calls beside each other, so each is awaited; an accelerator runs them one after another,
    and the last alone is awaited.
    """
    if jax.default_backend() == "cpu":
        return Subject(name, lambda: jax.block_until_ready(call()), jax.block_until_ready)
    return Subject(name, call, jax.block_until_ready)


class Plan(NamedTuple):
    """How often a subject is timed."""

    inner: int  # calls per sample
    rounds: int  # samples


class Samples(NamedTuple):
    """Seconds per call, one entry per round; a slow subject takes part in the first rounds only."""

    inner: int
    seconds: tuple[float, ...]


def plan(seconds: float, rounds: int, budget_s: float) -> Plan:
    """Returns how often to time what takes `seconds` per call: at least once, else within the budget."""
    inner = max(1, math.ceil(SAMPLE_S / max(seconds, 1e-9)))
    return Plan(inner, min(rounds, max(1, math.floor(budget_s / (inner * max(seconds, 1e-9))))))


def warm_up(subject: Subject, budget_s: float, clock: Clock = time.perf_counter) -> float:
    """Calls a subject until its times are those of a running program, and returns seconds per call."""
    seconds = sample(subject, 1, clock)
    if seconds < budget_s / 2:
        seconds = min(sample(subject, 1, clock) for _ in range(2))
    return seconds


def sample(subject: Subject, inner: int, clock: Clock = time.perf_counter) -> float:
    """Returns seconds per call over `inner` calls."""
    start = clock()
    for _ in range(inner):
        out = subject.call()
    subject.wait(out)
    return (clock() - start) / inner


def interleaved(
    subjects: Sequence[Subject],
    rounds: int,
    budget_s: float,
    clock: Clock = time.perf_counter,
) -> dict[str, Samples]:
    """Times all subjects in rounds, whose orders follow one another as in `turns`.

    Args:
      subjects: with different names.
      rounds: each times every subject once.
      budget_s: seconds of samples per subject; one sample is taken whatever it lasts.
      clock: in seconds.
    """
    found: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    with _without_garbage_collection():
        expected = {s.name: warm_up(s, budget_s, clock) for s in subjects}
        plans = {name: plan(seconds, rounds, budget_s) for name, seconds in expected.items()}
        for index in range(rounds):
            for subject in (subjects[turn] for turn in turns(len(subjects), index)):
                inner, times = plans[subject.name]
                if index >= times:
                    continue
                if expected[subject.name] < UNTIMED_S:
                    sample(subject, inner, clock)
                found[subject.name].append(sample(subject, inner, clock))
    return {name: Samples(plans[name].inner, tuple(found[name])) for name in found}


def turns(count: int, index: int) -> list[int]:
    """Returns the order of `count` subjects in round `index`.

    Over `count` rounds, twice as many if it is odd, everyone follows everyone else equally often.
    """
    zigzag = [turn // 2 if turn % 2 == 0 else count - 1 - turn // 2 for turn in range(count)]
    order = [(turn + index) % count for turn in zigzag]
    return order[::-1] if count % 2 and index // count % 2 else order


def ratio(times: Sequence[float], reference: Sequence[float]) -> Interval:
    """Returns the geometric mean of `times / reference` and its 95 % interval, paired over the rounds that both have.

    The interval is Student's of the logarithm.
    """
    rounds = min(len(times), len(reference))
    logs = np.log(np.asarray(times[:rounds])) - np.log(np.asarray(reference[:rounds]))
    return Interval(*(float(np.exp(value)) for value in interval(logs)))


def geometric_mean(values: Sequence[float]) -> float:
    """Returns the geometric mean of positive numbers; nan of none."""
    return float(np.exp(np.mean(np.log(values)))) if len(values) else math.nan


def milliseconds(samples: Mapping[str, Samples], name: str) -> dict[str, Any]:
    """Returns the times of one subject as JSON values."""
    times = [1e3 * s for s in samples[name].seconds]
    return {
        "min_ms": min(times),
        "median_ms": float(np.median(times)),
        "times_ms": times,
        "inner": samples[name].inner,
    }


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Keeps the collector from running inside a sample."""
    gc.collect()
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
