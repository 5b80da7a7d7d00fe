"""Efficient image super-resolution, as four papers build and claim it."""

__version__ = "0.1.0"
