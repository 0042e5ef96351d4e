"""Runs `experiments.cli` as `python -m experiments`."""

import sys

from experiments.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())
