"""An engine whose process dies, or runs out of memory, on structures of certain lengths."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from mpnn.flat import Flat
from mpnn.optimizations.reference import ReferenceEngine

KILLS, EXHAUSTS, WAITS = 13, 17, 19
"""Residues of a structure that kills its process, needs too much memory, takes half a minute."""


class FatalEngine(ReferenceEngine):
    """The reference for all other structures."""

    def encode(self, flat: Flat) -> Any:
        """As the reference, unless the structure has a fatal length."""
        if flat.size == KILLS:
            os.kill(os.getpid(), signal.SIGKILL)
        if flat.size == EXHAUSTS:
            raise MemoryError
        if flat.size == WAITS:
            time.sleep(30)
        return super().encode(flat)
