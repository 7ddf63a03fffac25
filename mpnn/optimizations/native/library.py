"""Loads the native engine's library."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Library:
    """A loaded library."""

    handle: ctypes.CDLL


def load() -> Library:
    """Loads the library that MPNN_NATIVE_LIBRARY names.

    Raises:
        ImportError: it names none, or not a library.
    """
    path = os.environ.get("MPNN_NATIVE_LIBRARY")
    if not path:
        raise ImportError("no native library was built; set MPNN_NATIVE_LIBRARY to one")
    try:
        return Library(ctypes.CDLL(path))
    except OSError as error:
        raise ImportError(f"{path} cannot be loaded ({error})") from error
