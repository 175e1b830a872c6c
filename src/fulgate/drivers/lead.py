"""When the leader should hand the lead on before it runs a request: a pure decision.

Handing on costs a wake-up of another thread, about 100 µs on a busy interpreter. It pays when
requests wait (for a database, a file, another server); it is waste when they only compute.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["HAND_ON_FOR", "Sample", "Waiting"]

WORTH_A_WAKE_UP: Final = 100e-6  # seconds of waiting per request
HAND_ON_FOR: Final = 0.25  # seconds; then it is measured anew
DECAY: Final = 0.5


class Sample(NamedTuple):
    """Counters of the leader's thread; seconds, but for the last."""

    wall: float  # time.perf_counter()
    cpu: float  # on a core, as the kernel's schedstat has it
    queued: float  # ready to run, and waiting for a core; from the same place
    polled: float  # in the poll
    requests: int  # served


class Waiting:
    """The leader's waiting per request, from samples at the control thread's ticks."""

    def __init__(self) -> None:
        self.per_request = 0.0
        self._last: Sample | None = None

    def forget(self) -> None:
        """The next sample is of another thread, or follows a gap."""
        self._last = None

    def hand_on(self, sample: Sample) -> bool:
        """Take a sample; does handing the lead on pay now?"""
        last, self._last = self._last, sample
        if last is None:
            return False
        requests = sample.requests - last.requests
        if requests <= 0:
            return False
        waited = (
            (sample.wall - last.wall)
            - (sample.cpu - last.cpu)
            - (sample.queued - last.queued)
            - (sample.polled - last.polled)
        )
        self.per_request += DECAY * (max(0.0, waited) / requests - self.per_request)
        return self.per_request > WORTH_A_WAKE_UP
