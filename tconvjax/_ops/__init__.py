"""Operators on images: convolutions, resizing, shuffles, pooling and fixed filters."""
