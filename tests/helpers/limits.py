"""Limits of what this process may have, so that it lacks something as on a machine that is full."""

import os
import resource
from contextlib import contextmanager


@contextmanager
def no_more_open_files():
    """Lets this process open no file while the block runs."""
    lowest = os.dup(0)
    os.close(lowest)
    with _limited(resource.RLIMIT_NOFILE, lowest):
        yield


@contextmanager
def files_of_at_most(size):
    """Lets this process write no file of more bytes while the block runs."""
    with _limited(resource.RLIMIT_FSIZE, size):
        yield


@contextmanager
def _limited(kind, value):
    soft, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
