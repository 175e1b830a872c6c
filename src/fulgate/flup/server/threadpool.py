"""flup.server.threadpool: a pool of threads that are started when there is work."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from typing import Protocol

__all__ = ["Job", "ThreadPool"]

log = logging.getLogger("fulgate")


class Job(Protocol):
    """What the pool runs."""

    def run(self) -> object: ...


class ThreadPool:
    """Runs jobs in at most `maxThreads` threads, and keeps up to `maxSpare` idle ones.

    At least `minSpare` wait for work once there has been any, as far as `maxThreads` allows. No
    thread is started before the first job: a pool that was made before a fork works after it.
    """

    def __init__(self, minSpare: int = 1, maxSpare: int = 5, maxThreads: int = sys.maxsize) -> None:
        self._minSpare = minSpare
        self._maxSpare = maxSpare
        self._maxThreads = max(1, maxThreads)
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Condition()
        self._workQueue: deque[Job] = deque()
        self._idleCount = 0  # threads that wait, less the jobs that wait for them
        self._threads: list[threading.Thread] = []
        self._stop = False

    def addJob(self, job: Job, allowQueuing: bool = True) -> bool:
        """Run `job.run()` in a thread. Returns False if that would have to wait and may not.

        With `allowQueuing` it may wait until a thread is free.
        """
        if self._pid != os.getpid():
            self._reset()  # the threads stayed in the process that forked
        with self._lock:
            if self._stop:
                return False
            wanted = max(1, self._minSpare)
            while self._idleCount < wanted and len(self._threads) < self._maxThreads:
                if not self._start_new_thread():
                    break
            if self._idleCount <= 0 and not (allowQueuing and self._threads):
                return False
            self._idleCount -= 1
            self._workQueue.append(job)
            self._lock.notify()
            return True

    def shutdown(self) -> None:
        """Let the queued jobs run, then end all threads, and wait for them."""
        if self._pid != os.getpid():
            return
        with self._lock:
            self._stop = True
            self._lock.notify_all()
            threads = self._threads[:]
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join()

    def _start_new_thread(self) -> bool:
        thread = threading.Thread(target=self._worker, name="fulgate-pool", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more
            log.warning("cannot start another thread: %s", error)
            return False
        self._threads.append(thread)
        self._idleCount += 1
        return True

    def _worker(self) -> None:
        while True:
            with self._lock:
                while not self._workQueue and not self._stop:
                    self._lock.wait()
                if not self._workQueue:
                    break
                job = self._workQueue.popleft()
            try:
                job.run()
            except BaseException:  # SystemExit too: it ends the job, not the thread
                log.exception("a job in the thread pool raised")
            with self._lock:
                if self._idleCount >= self._maxSpare and not self._workQueue:
                    self._threads.remove(threading.current_thread())
                    return
                self._idleCount += 1


# Programs replace the class in this module, and may do so before anything else is imported.
OWN_POOL = ThreadPool
