"""Experiments with tconvjax: one question, one config file, one run folder with everything in it."""
