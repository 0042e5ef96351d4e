"""`python -m tconvjax`: the command line."""

import sys

from tconvjax.cli import main

sys.exit(main())
