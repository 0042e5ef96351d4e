"""Operators: the trilinear form, how it is lowered, and what is built on it."""
