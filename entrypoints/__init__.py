"""Holds the entry points of ``MLproject``: one thin script each, run as ``python -m entrypoints.<name>``."""
