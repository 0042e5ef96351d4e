"""The parts of `tconvjax.analysis` below the reader of programs."""
