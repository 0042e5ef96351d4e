"""Claims as data: what a config expects, and the verdict of the run on it.

A relation is `LEFT < RIGHT at STEP`, `LEFT > RIGHT at STEP` or `LEFT = RIGHT +- TOLERANCE at STEP`, where LEFT is a
variant, RIGHT is a variant, `real` (the same metric on real data) or a number, optionally `FACTOR * RIGHT` and
`RIGHT + OFFSET`, and STEP is `init` or `final`; a task that only measures has no `at STEP`. For all variants
together, `rank correlation with METRIC < NUMBER at STEP` (or `>`) is about whether two metrics order them alike.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

LONGEST = 500  # characters of a relation
_UNSIGNED = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_STEP = r"(?:\s+at\s+(?P<step>init|final))?"
_RELATION = re.compile(
    rf"(?P<left>\w+)\s*(?P<sign>[<>=])\s*(?:(?P<factor>{_UNSIGNED})\s*\*\s*)?(?P<right>[+-]?{_UNSIGNED}|\w+)"
    rf"(?:\s*(?P<offset>[+-]\s*{_UNSIGNED}))?(?:\s*(?:\+-|±)\s*(?P<tolerance>{_UNSIGNED}))?"
    rf"{_STEP}"
)
_CORRELATION = re.compile(
    rf"rank correlation with (?P<other>\w+)\s*(?P<sign>[<>])\s*(?P<right>[+-]?{_UNSIGNED}){_STEP}"
)


class Interval(NamedTuple):
    """Mean over seeds and its 95 % Student interval; nan limits for a single seed."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Claim:
    """What is expected of one metric, and its source."""

    claim: str  # in words
    metric: str
    relation: str  # see the module
    source: str

    def names(self, variants: Sequence[str]) -> set[str]:
        """Returns what a valid relation compares, 'real' and numbers among it.

        Args:
          variants: the names of all.
        """
        _, match = _parse(self.relation)
        return set(variants) if match is None else {match["left"], match["right"]}

    @property
    def metrics(self) -> tuple[str, ...]:
        """Returns the metrics of a valid relation."""
        together, _ = _parse(self.relation)
        return (self.metric,) if together is None else (self.metric, together["other"])

    def errors(
        self, variants: Sequence[str], *, real: bool = True, trains: bool = True
    ) -> list[str]:
        """Returns what is wrong with the relation.

        Args:
          variants: their names.
          real: whether there are real data.
          trains: whether there is a first and a last step.
        """
        if len(self.relation) > LONGEST:
            return [f"expected at most {LONGEST} characters; got {len(self.relation)}"]
        together, pair = _parse(self.relation)
        match = together or pair
        numbers = re.findall(_UNSIGNED, self.relation) if match else []
        if not all(math.isfinite(float(number)) for number in numbers):
            return [f"expected numbers that 64 bits can hold; got {self.relation!r}"]
        if together and (together["step"] is not None) == trains:
            few = f"orders {len(variants)} variants; it takes at least 3"
            return [few] if len(variants) < 3 else []
        if match is None or (match["step"] is not None) != trains:
            form = "VARIANT < [FACTOR *] RIGHT [+ OFFSET]" + " at init|final" * trains
            choices = "(or '>', or '= .. +- TOLERANCE') with RIGHT a variant, 'real' or a number"
            return [f"expected '{form}' {choices}; got {self.relation!r}"]
        if (match["sign"] == "=") != (match["tolerance"] is not None):
            return [f"'=' and only '=' goes with '+- TOLERANCE'; got {self.relation!r}"]
        left, right = match["left"], match["right"]
        errors = []
        if left not in variants:
            errors.append(
                f"unknown variant {left!r}; expected one of {', '.join(map(repr, variants))}"
            )
        if not _is_number(right) and right not in (*variants, "real"):
            errors.append(
                f"unknown name {right!r}; expected a number, 'real' or one of {', '.join(map(repr, variants))}"
            )
        if right == "real" and not real:
            errors.append("compares with 'real' data, of which the task has none")
        if left == right:
            errors.append(f"compares {left!r} with itself")
        return errors


def judge(
    claim: Claim,
    values: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    real: Mapping[str, float],
) -> dict[str, Any]:
    """Returns the verdict of a claim as a JSON table.

    Seeds are paired: the differences between the left side and the right side, seed by seed, have a mean and a 95 %
    Student interval. The claim is *supported* if the whole interval lies on the claimed side of 0, *not supported* if
    it lies on the other, else *undecided*; a single seed decides nothing. For an equality the whole interval must lie
    within the tolerance, or beyond it. (A percentile bootstrap over half a dozen seeds covers far less than its name
    promises.)

    Args:
      claim: valid, see `Claim.errors`.
      values: `values[variant][step][metric]` is one number per seed, step 'init' or 'final'; a task that only
        measures has 'final' alone.
      real: the same metrics on real data.
    """
    together, pair = _parse(claim.relation)
    match = together or pair
    assert match is not None
    step = match["step"] or "final"

    def side(name: str) -> np.ndarray | float:
        if name == "real":
            return real[claim.metric]
        if _is_number(name):
            return float(name)
        return np.asarray(values[name][step][claim.metric], np.float64)

    if together:
        one, other = (
            np.array([values[name][step][metric] for name in values]) for metric in claim.metrics
        )
        found = [stats.spearmanr(*pair).statistic for pair in zip(one.T, other.T, strict=True)]
        margin = np.array(found) - float(match["right"])
    else:
        right = float(match["factor"] or 1) * side(match["right"])
        right = right + float((match["offset"] or "0").replace(" ", ""))
        margin = np.atleast_1d(side(match["left"]) - right)
    if match["sign"] == "<":
        margin = -margin
    wins = interval(margin)
    if match["sign"] == "=":
        wins = _within(wins, float(match["tolerance"]))
    verdict = "supported" if wins.low > 0 else "not supported" if wins.high < 0 else "undecided"
    return {
        "claim": claim.claim,
        "metric": claim.metric,
        "relation": claim.relation,
        "source": claim.source,
        "verdict": verdict,
        "margin": wins._asdict(),  # by how much the claimed side wins; supported if low > 0
        "seeds": len(margin),
    }


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Returns mean and 95 % Student interval of one number per seed."""
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half)


def _within(difference: Interval, tolerance: float) -> Interval:
    """Returns how far an interval of differences lies within a tolerance on both sides of 0."""
    mean, low, high = difference
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    farthest = max(abs(low), abs(high))
    return Interval(tolerance - abs(mean), tolerance - farthest, tolerance - nearest)


def _parse(relation: str) -> tuple[re.Match[str] | None, re.Match[str] | None]:
    """Returns the match of a relation of all variants together, and that of one between two sides; none if too long."""
    text = relation.strip() if len(relation) <= LONGEST else ""
    return _CORRELATION.fullmatch(text), _RELATION.fullmatch(text)


def _is_number(text: str) -> bool:
    return re.fullmatch(rf"[+-]?{_UNSIGNED}", text) is not None
