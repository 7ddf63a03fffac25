"""Tiles of work on the cores of one machine, each thread with buffers of its own.

Why not the threads inside each matmul: they meet at a barrier after every operation, some
50 µs long here, so one core that is taken away for a moment stalls the other thousands of times a
second. Tiles meet once per pass. Buffers are kept because fresh memory costs a page fault for
every 4 KiB, several times what is then computed in it.
"""

from __future__ import annotations

import collections
import ctypes
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")
Item = TypeVar("Item")


class Buffers(threading.local):
    """Named scratch tensors of one thread; a name's storage grows and is never given back."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.storage: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """An uninitialized tensor of `shape`, valid until the next `get` of the same name."""
        size = math.prod(shape)
        held = self.storage.get(name)
        if held is None or held.numel() < size:
            held = torch.empty(size, device=self.device, dtype=self.dtype)
            self.storage[name] = held
        return held[:size].view(shape)


class BufferPool:
    """Buffers for results that outlive a call; reused once the result is garbage-collected."""

    def __init__(self) -> None:
        self.free: list[Tensor] = []

    def take(self, like: Tensor, *shape: int) -> Tensor:
        """An uninitialized tensor of `shape`, of the type and on the device of `like`."""
        size = math.prod(shape)
        held = self.free.pop() if self.free else like.new_empty(0)
        if held.numel() < size:
            held = like.new_empty(size)
        return held[:size].view(shape)

    def until_collected(self, owner: object, tensor: Tensor) -> None:
        """Reuses the memory of `tensor` once `owner` is garbage-collected."""
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        weakref.finalize(owner, self._release, tensor.as_strided((size,), (1,), 0))

    def _release(self, memory: Tensor) -> None:
        self.free[:] = [memory]  # the last alone, so that what is kept stays bounded


class Workers:
    """A main thread and its helpers: `run` enters the main thread, `map` distributes tiles.

    On the CPU every thread computes alone (one intra-op thread) with denormals flushed, which
    exp(−z²) makes in plenty and which would slow a matmul twentyfold. On other devices the
    caller's thread does all the work and the device is parallel by itself.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self.tiled = device.type == "cpu"  # elsewhere one launch over everything is best
        self.size = threads if self.tiled else 1
        self._start()

    def _start(self) -> None:
        self._process = os.getpid()
        self._main = _pool(1) if self.tiled else None
        self._helpers = _pool(self.size - 1) if self.size > 1 else None

    def run(self, work: Callable[[], T]) -> T:
        """Runs `work` on the main thread, without gradients, and returns its result."""
        if self._process != os.getpid():  # forked: threads exist in the parent alone
            self._start()
        return (
            _inference(work) if self._main is None else self._main.submit(_inference, work).result()
        )

    def map(self, work: Callable[[Item], None], items: Iterable[Item]) -> None:
        """Calls `work` on every item, on all threads; call from inside `run`.

        Where one call fails the remaining ones are not started, and none is running when its error
        is raised.
        """
        left = iter(list(items))  # taking the next item of a list is atomic

        def share() -> None:
            try:
                for item in left:
                    work(item)
            finally:
                collections.deque(left, maxlen=0)  # no item is left for any thread

        shares = [
            self._helpers.submit(_inference, share)
            for _ in range(self.size - 1)
            if self._helpers is not None
        ]
        try:
            share()
        finally:
            errors = [other.exception() for other in shares]  # blocks, at less cost than `wait`
        for error in filter(None, errors):
            raise error


def _inference(work: Callable[[], T]) -> T:
    with torch.inference_mode():
        return work()


def flush_denormals() -> None:
    """Counts denormal numbers as zero from here on, in this thread and those it starts."""
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # looked up before: numpy warns where it finds denormals flushed
    torch.set_flush_denormal(True)


def denormals_are_flushed() -> bool:
    """Whether this thread counts denormal numbers as zero."""
    return not (torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 2).item()


USER_INTERACTIVE = 0x21
"""`QOS_CLASS_USER_INTERACTIVE` of macOS."""


def ask_for_performance_cores() -> None:
    """Gives this thread a class on macOS: one without may be put on efficiency cores."""
    if sys.platform == "darwin":
        ctypes.CDLL(None).pthread_set_qos_class_self_np(USER_INTERACTIVE, 0)


def _alone() -> None:
    ask_for_performance_cores()
    torch.set_num_threads(1)
    flush_denormals()


def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "mpnn", _alone)
