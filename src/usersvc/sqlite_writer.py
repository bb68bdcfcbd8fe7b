"""One thread that writes to SQLite: it takes every write that waits into one transaction and commits once.

SQLite has one writer at a time, and a durable commit costs a flush of the disk whether it holds one write or a hundred.
While one transaction is being flushed the next writes queue up, so the group is as large as the load asks for and a
lone write waits for nobody.

- Each job runs in a savepoint: a job that fails takes nothing of the others with it.
- Nobody is answered before the commit. If the commit fails, each job of the group is tried alone once.
- A job whose caller has gone is dropped if it has not begun; once begun it is finished and its answer thrown away.
- Another process may hold the lock. It is asked for again until the last caller has gone; callers bring deadlines.
  `usersvc.sqlite_turn` keeps busy processes from passing one another over.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from usersvc.sqlite_schema import failure, is_broken, is_busy
from usersvc.sqlite_turn import Turn
from usersvc.store import StoreUnavailable

_log = logging.getLogger("usersvc.sqlite")

T = TypeVar("T")
Task = Callable[[sqlite3.Connection], Any]

GROUP = 256  # jobs: bounds how long the first of a group waits for the last, some 15 ms
PATIENCE = 0.1  # seconds that a turn is waited for before it is done without


@dataclass(slots=True, eq=False)
class _Job:
    task: Task
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: Exception | None = None

    def settle(self) -> None:
        """Answer the caller, in the caller's loop."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Writer:
    """Runs tasks on the one connection that writes. `connect` is called in the writer's own thread.

    `_jobs` is the only state that two threads share; the rest belongs to the thread.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection], turn: Turn) -> None:
        self._connect = connect
        self._turn = turn
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._connection: sqlite3.Connection | None = None
        self._trouble = ""
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="usersvc-writer", daemon=True)
        self._thread.start()

    async def do(self, task: Callable[[sqlite3.Connection], T]) -> T:
        """Run a task in a transaction and return its result once that is durable; raise what the task raised."""
        if self._closed:
            raise StoreUnavailable("the store is closed")
        loop = asyncio.get_running_loop()
        job = _Job(task, loop, loop.create_future())
        self._jobs.put(job)
        result: T = await job.future
        return result

    async def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._closed = True  # in the loop's thread, as in `do`: nothing is queued behind the end
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        ending = False
        while not ending:
            jobs, ending = self._take(block=True)
            try:
                more = self._together(jobs)
                ending = ending or more
            except Exception as e:
                _log.exception("a group of writes failed for a reason that is not known")
                for job in jobs:
                    job.error = job.error or StoreUnavailable(type(e).__name__)
                self._drop()
            _settle(jobs)
        self._drop()
        self._turn.close()

    def _take(self, *, block: bool, room: int = GROUP) -> tuple[list[_Job], bool]:
        """Return the jobs that wait, and whether the end was asked for."""
        jobs: list[_Job] = []
        try:
            while len(jobs) < room:
                job = self._jobs.get(block=block and not jobs)
                if job is None:
                    return jobs, True
                jobs.append(job)
        except queue.Empty:
            pass
        return jobs, False

    def _together(self, jobs: list[_Job]) -> bool:
        """Run jobs in one transaction, with those that come while the lock is waited for; return whether to end."""
        ending = False
        try:
            connection = self._begin(jobs)
            if connection is None:
                return ending
            more, ending = self._take(block=False, room=GROUP - len(jobs))
            jobs += more
            self._try(connection, jobs)
        except sqlite3.Error as e:
            self._undo(e)
            if len(jobs) == 1:
                jobs[0].error = failure(e)
            else:
                # One of them spoils it for all: alone, the others succeed.
                for job in jobs:
                    self._together_alone(job)
        return ending

    def _together_alone(self, job: _Job) -> None:
        job.result = job.error = None
        try:
            connection = self._begin([job])
            if connection is not None:
                self._try(connection, [job])
        except sqlite3.Error as e:
            self._undo(e)
            job.error = failure(e)

    def _begin(self, jobs: list[_Job]) -> sqlite3.Connection | None:
        """Take the lock; return None if every caller went away before it was free."""
        tries = 0
        self._turn.take(PATIENCE)
        try:
            while any(not job.future.cancelled() for job in jobs):
                try:
                    if self._connection is None:
                        self._connection = self._connect()
                    self._connection.execute("BEGIN IMMEDIATE")
                except sqlite3.Error as e:
                    if not is_busy(e):
                        raise
                    self._turn.pause(tries)
                    tries += 1
                else:
                    return self._connection
            return None
        finally:
            self._turn.give_back()

    def _try(self, connection: sqlite3.Connection, jobs: Iterable[_Job]) -> None:
        for job in jobs:
            if not job.future.cancelled():
                _run_in_savepoint(connection, job)
        connection.execute("COMMIT")
        self._note("")

    def _undo(self, error: sqlite3.Error) -> None:
        self._note(str(failure(error)))
        if self._connection is not None and not is_broken(error):
            try:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                return
            except sqlite3.Error:
                pass
        self._drop()

    def _note(self, trouble: str) -> None:
        """Log a trouble when it begins, changes and ends, not at each of the thousand writes that meet it."""
        if trouble and trouble != self._trouble:
            _log.warning("writes fail: %s", trouble)
        elif self._trouble and not trouble:
            _log.info("writes succeed again")
        self._trouble = trouble

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _run_in_savepoint(connection: sqlite3.Connection, job: _Job) -> None:
    connection.execute("SAVEPOINT job")
    try:
        job.result = job.task(connection)
    except sqlite3.Error as e:
        # Where SQLite has rolled everything back by itself (disk full), the whole group has failed.
        if not connection.in_transaction:
            raise
        job.error = failure(e)
        connection.execute("ROLLBACK TO job")
    except Exception as e:
        job.error = e
        connection.execute("ROLLBACK TO job")
    connection.execute("RELEASE job")


def _settle(jobs: list[_Job]) -> None:
    """Answer every caller; callers of one loop with one wake-up."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, of_loop in by_loop.items():
        try:
            loop.call_soon_threadsafe(_settle_all, of_loop)
        except RuntimeError:  # the loop was closed: nobody waits any more
            _log.debug("the answers of %d writes came too late", len(of_loop))


def _settle_all(jobs: list[_Job]) -> None:
    for job in jobs:
        job.settle()
