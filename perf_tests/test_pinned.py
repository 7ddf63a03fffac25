"""What a measuring process starts with."""

import os
import platform
import subprocess
import sys

import pytest

from mpnn.regression.process import PINNED, unpinned

FAULTS = """
import resource
from concurrent.futures import ThreadPoolExecutor

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (100 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with ThreadPoolExecutor(1) as thread:
    faults(), thread.submit(faults).result()
    print(faults(), thread.submit(faults).result())
"""
"""Prints the page faults of filling 100 MiB for the second time, here and in another thread."""


def test_unpinned_names_what_differs():
    """Only variables with another value, or none, are named."""
    assert unpinned(PINNED) == []
    assert unpinned({**PINNED, "PYTHONHASHSEED": "random"}) == ["PYTHONHASHSEED"]
    assert unpinned({}) == list(PINNED)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc reads what is pinned")
def test_large_blocks_are_not_mapped_anew():
    """Memory that was used before costs no page faults when it is used again, in any thread.

    Without the pins there are 25,600, or with huge pages 50.
    """

    def faults(environ):
        command = [sys.executable, "-c", FAULTS]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    bare = {name: value for name, value in os.environ.items() if name not in PINNED}
    assert max(faults({**bare, **PINNED})) < 20
    mapped = {**bare, "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20)}
    assert min(faults(mapped)) > 20
