"""A task that kills its process, quick to import."""

import os
import time

FATAL_TASKS = (5, 6, 11)


def square_or_die(task: int) -> int:
    """The square, the sooner the larger; some tasks end their process."""
    if task in FATAL_TASKS:
        os._exit(3)
    time.sleep(0.2 / task)
    return task * task
