"""What a load generator counts, and how the counts of several become one. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Self

__all__ = ["Counts", "Histogram"]

SHIFT: Final = 10  # a narrow bucket is 2**10 ns, about a microsecond, wide
NARROW: Final = 65536  # narrow buckets; beyond them, at 67 ms, a bucket is 1/128 of its value wide


class Histogram:
    """Times in nanoseconds, counted in buckets of a microsecond, and of 0.8 % beyond 67 ms."""

    def __init__(self) -> None:
        self.narrow = [0] * NARROW  # the load generator's loop counts here by itself
        self.wide: dict[int, int] = {}  # the lower bound of a bucket: its count
        self.top = 0  # the greatest of those that are in `wide`

    def add(self, ns: int) -> None:
        """Count one time."""
        bucket = ns >> SHIFT
        if bucket < NARROW:
            self.narrow[max(bucket, 0)] += 1
            return
        shift = ns.bit_length() - 8
        low = ns >> shift << shift
        self.wide[low] = self.wide.get(low, 0) + 1
        self.top = max(self.top, ns)

    def buckets(self) -> Iterator[tuple[int, int, int]]:
        """Give lower bound, upper bound and count of each bucket that has any, in order."""
        for bucket, count in enumerate(self.narrow):
            if count:
                yield bucket << SHIFT, (bucket + 1) << SHIFT, count
        for low in sorted(self.wide):
            yield low, min(low + (1 << low.bit_length() - 8), self.top), self.wide[low]

    @property
    def count(self) -> int:
        return sum(self.narrow) + sum(self.wide.values())

    @property
    def mean(self) -> float:
        """The mean in nanoseconds, 0 when there is none."""
        total = sum((low + high) / 2 * count for low, high, count in self.buckets())
        return total / (self.count or 1)

    @property
    def max(self) -> int:
        """The greatest, rounded up to its bucket's end."""
        return max((high for _, high, _ in self.buckets()), default=0)

    def percentiles(self, *wanted: float) -> list[float]:
        """Give the times in nanoseconds that these shares, in per cent, of all are within."""
        count = self.count
        found: list[float] = []
        seen = 0
        for low, high, here in self.buckets():
            seen += here
            while len(found) < len(wanted) and seen >= wanted[len(found)] / 100 * count:
                found.append((low + high) / 2)
        return found + [0.0] * (len(wanted) - len(found))

    def merge(self, other: Self) -> None:
        """Add the counts of another."""
        for low, high, count in other.buckets():
            if low < NARROW << SHIFT:
                self.narrow[low >> SHIFT] += count
            else:
                self.wide[low] = self.wide.get(low, 0) + count
                self.top = max(self.top, high)

    def as_list(self) -> list[list[int]]:
        """Give lower bound, upper bound and count of each bucket, for JSON."""
        return [list(bucket) for bucket in self.buckets()]

    @classmethod
    def of(cls, buckets: list[list[int]]) -> Self:
        """Make one of what `as_list` gave."""
        made = cls()
        for low, high, count in buckets:
            if low < NARROW << SHIFT:
                made.narrow[low >> SHIFT] = count
            else:
                made.wide[low] = count
                made.top = max(made.top, high)
        return made


@dataclass
class Counts:
    """What one load generator saw. Times are in nanoseconds, unless a name says seconds."""

    seconds: float = 0.0
    answered: int = 0  # whole answers, whatever their status
    received: int = 0  # bytes of them, records and all
    connects: int = 0  # connections that were made
    reconnects: int = 0  # of these: in place of one that was closed after an answer
    queue_full: int = 0  # times that a connection waited because the accept queue was full
    never_served: int = 0  # connections that got no answer at all
    in_flight: int = 0  # requests without an answer at the end
    unsent: int = 0  # requests that were due, and for which no connection was free
    oldest: int = 0  # how long the oldest of those two kinds has waited
    cpu_seconds: float = 0.0  # of the load generator
    cpu_share: float = 0.0  # the same, of the time that passed: the greatest of all processes
    starved_share: float = 0.0  # of that time it waited for a core
    statuses: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)  # of each error, what it said first
    latency: Histogram = field(default_factory=Histogram)
    service: Histogram = field(default_factory=Histogram)  # with a rate: from the sending
    late: Histogram = field(default_factory=Histogram)  # with a rate: sent after it was due
    fatal: str = ""  # why there was no use in going on

    SUMS = ("answered", "received", "connects", "reconnects", "queue_full", "never_served",
            "in_flight", "unsent", "cpu_seconds")  # fmt: skip
    GREATEST = ("seconds", "oldest", "cpu_share", "starved_share")
    HISTOGRAMS = ("latency", "service", "late")

    def error(self, kind: str, message: str) -> None:
        """Count an error."""
        self.errors[kind] = self.errors.get(kind, 0) + 1
        self.examples.setdefault(kind, message)

    def merge(self, other: Counts) -> None:
        """Add what another load generator, which ran at the same time, saw."""
        for name in self.SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in self.GREATEST:
            setattr(self, name, max(getattr(self, name), getattr(other, name)))
        for name in self.HISTOGRAMS:
            getattr(self, name).merge(getattr(other, name))
        for name in ("statuses", "errors"):
            counts: dict[str, int] = getattr(self, name)
            for key, count in getattr(other, name).items():
                counts[key] = counts.get(key, 0) + count
        self.examples = {**other.examples, **self.examples}
        self.fatal = self.fatal or other.fatal

    def as_dict(self) -> dict[str, Any]:
        """Give all of it for JSON."""
        return {
            name: value.as_list() if isinstance(value, Histogram) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def of(cls, found: dict[str, Any]) -> Counts:
        """Make one of what `as_dict` gave."""
        made = {name: Histogram.of(found[name]) for name in cls.HISTOGRAMS}
        return cls(**{**found, **made})
