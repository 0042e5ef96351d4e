"""`python -m tconvjax.cli`."""

import sys

from tconvjax.cli import main

sys.exit(main())
