"""When the leader should hand the lead on before it runs a request: a pure decision.

Handing on costs a wake-up of another thread, about 100 µs on a busy interpreter. It pays when
requests wait (for a database, a file, another server); it is waste when they only compute.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["HAND_ON_FOR", "Sample", "Waiting"]

WORTH_A_WAKE_UP: Final = 100e-6  # seconds of waiting per request
# Seconds for which the lead is handed on. Then it is measured anew, by two ticks of serving in
# line; where few requests wait, the next of them has everybody wait before it is noticed.
HAND_ON_FOR: Final = 1.0
# A leader that lost its core while it held the GIL, or another thread that did, looks like one
# that waits. Noise passes; an application that waits does so at every tick.
SAMPLES_TO_BEGIN: Final = 3
SAMPLES_TO_GO_ON: Final = 1


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
        self.per_request = 0.0  # seconds, at the last sample
        self._last: Sample | None = None
        self._in_a_row = 0
        self._needed = SAMPLES_TO_BEGIN

    def forget(self) -> None:
        """The next sample is of another thread, or follows a gap."""
        self._last = None

    def hand_on(self, sample: Sample) -> bool | None:
        """Take a sample; does handing the lead on pay now? None: that cannot be told yet."""
        last, self._last = self._last, sample
        if last is None:
            return None
        waited = (
            (sample.wall - last.wall)
            - (sample.cpu - last.cpu)
            - (sample.queued - last.queued)
            - (sample.polled - last.polled)
        )
        # A request that is not over yet counts too: it may be what was waited for.
        self.per_request = max(0.0, waited) / max(1, sample.requests - last.requests)
        if self.per_request <= WORTH_A_WAKE_UP:
            self._in_a_row = 0
            self._needed = SAMPLES_TO_BEGIN
            return False
        self._in_a_row += 1
        if self._in_a_row < self._needed:
            return None
        self._needed = SAMPLES_TO_GO_ON
        return True
