"""Many tasks on anything with the interface of `concurrent.futures`: processes here, or a cluster.

A bounded number of tasks is in flight, so memory stays flat however many there are. Nothing is lost
and nothing done twice when a worker dies: the task that was the cause is found and reported, the
others are done again.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, Generic, TypeVar

from mpnn.errors import InputError

Task = TypeVar("Task")
Outcome = TypeVar("Outcome")

IN_FLIGHT = 3
"""Tasks in flight for each worker: one in work, and others at hand when it ends."""

WATCH = 1.0  # seconds between looks for the parent


class WorkersLostError(Exception):
    """Workers died; `tasks` were in flight."""

    def __init__(self, tasks: list[Any]) -> None:
        super().__init__(f"{len(tasks)} tasks lost their workers")
        self.tasks = tasks


class Work(Generic[Task, Outcome]):
    """What is done with each task.

    Args:
        perform: a function of a module, so that it can be named to another process.
        lost: makes the outcome of a task whose worker died because of it.
        in_order: yield outcomes in the order of tasks instead of as they come.
    """

    def __init__(
        self,
        perform: Callable[[Task], Outcome],
        lost: Callable[[Task], Outcome],
        in_order: bool = False,
    ) -> None:
        self.perform, self.lost, self.in_order = perform, lost, in_order

    def on(
        self, executor: Executor, tasks: Iterator[Task], in_flight: int
    ) -> Iterator[tuple[Task, Outcome]]:
        """Tasks with their outcomes, by an executor of the caller's.

        Raises:
            WorkersLostError: the executor's processes died.
            InputError: it cannot take tasks, or has dropped some.
        """
        pending: dict[Future[Outcome], Task] = {}
        try:
            yield from self._flow(executor, tasks, in_flight, pending)
        finally:
            for future in pending:
                future.cancel()

    def _flow(
        self,
        executor: Executor,
        tasks: Iterator[Task],
        in_flight: int,
        pending: dict[Future[Outcome], Task],
    ) -> Iterator[tuple[Task, Outcome]]:
        while True:
            while len(pending) < in_flight and (task := next(tasks, None)) is not None:
                pending[self._submitted(executor, task, pending)] = task
            if not pending:
                return
            for future in self._finished(pending):
                yield pending[future], self._outcome(future, pending)
                del pending[future]

    def _submitted(
        self, executor: Executor, task: Task, pending: dict[Future[Outcome], Task]
    ) -> Future[Outcome]:
        try:
            return executor.submit(self.perform, task)
        except BrokenExecutor as error:
            raise WorkersLostError([*pending.values(), task]) from error
        except Exception as error:  # whatever a cluster says when it is gone
            raise _gone(error) from error

    def _finished(self, pending: dict[Future[Outcome], Task]) -> list[Future[Outcome]]:
        awaited = [next(iter(pending))] if self.in_order else list(pending)
        return list(wait(awaited, return_when=FIRST_COMPLETED).done)

    def _outcome(self, future: Future[Outcome], pending: dict[Future[Outcome], Task]) -> Outcome:
        try:
            return future.result()
        except BrokenExecutor as error:
            raise WorkersLostError(list(pending.values())) from error
        except (CancelledError, OSError) as error:
            raise _gone(error) from error
        except Exception as error:
            if type(error).__name__ == "KilledWorker":  # Dask tried it on several workers
                return self.lost(pending[future])
            raise

    def side_by_side(self, tasks: Iterator[Task], workers: int) -> Iterator[tuple[Task, Outcome]]:
        """Tasks with their outcomes, by processes of this machine with one thread each.

        Where a process dies, the tasks in flight are repeated one by one, each in a process of its
        own, which shows whose fault it was.
        """
        while True:
            try:
                with processes(workers) as pool:
                    yield from self._flow(pool, tasks, IN_FLIGHT * workers, {})
                return
            except WorkersLostError as error:
                for task in error.tasks:
                    yield task, self._alone(task)

    def _alone(self, task: Task) -> Outcome:
        try:
            with processes(1) as pool:
                return next(self._flow(pool, iter([task]), 1, {}))[1]
        except WorkersLostError:
            return self.lost(task)


def _gone(error: BaseException) -> InputError:
    return InputError(
        f"the workers cannot be reached any more ({type(error).__name__}: {error}); start them and "
        "run the command again, which resumes"
    )


@contextmanager
def processes(workers: int) -> Iterator[Executor]:
    """A pool of processes that end with this one, however it ends."""
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(),)
    )
    try:
        yield pool
        pool.shutdown()
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.kill()
        pool.shutdown(wait=False)  # a pool that is broken must set all futures: cancel none
        raise


def _begin(parent: int) -> None:
    """Prepares a worker: one thread, and neither Ctrl-C nor the end of its parent leaves it."""
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def dask(address: str) -> Iterator[tuple[Executor, int]]:
    """The executor of a Dask cluster, and how many tasks to have in flight.

    Args:
        address: of its scheduler, such as tcp://host:8786, or a scheduler file.

    Raises:
        InputError: Dask is not installed, or no scheduler answers.
    """
    try:
        import distributed
    except ImportError as error:
        raise InputError("--dask needs Dask; pip install 'mpnn[dask]'") from error
    is_file = address.endswith(".json")
    try:
        make: Any = distributed.Client
        client = make(**({"scheduler_file": address} if is_file else {"address": address}))
    except (OSError, ValueError) as error:
        raise InputError(
            f"--dask {address}: no scheduler answers ({error}); name one, such as "
            "tcp://host:8786, or the file that `dask scheduler --scheduler-file` writes"
        ) from error
    try:
        workers = sum(client.nthreads().values())
        yield client.get_executor(pure=False), IN_FLIGHT * max(1, workers)
    finally:
        client.close(timeout=5)
