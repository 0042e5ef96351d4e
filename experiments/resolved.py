"""What every resolved config has: a question, the source of its claims, and a name for exactly these values."""

import hashlib
import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Resolved:
    """The run-level keys of every config; fields without a default must be in the file."""

    name: str
    question: str  # what the run answers, for the report
    source: str  # who claims it
    task: str  # 'benchmark', or as `experiments.tasks.find` takes it

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name the resolved config."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]
