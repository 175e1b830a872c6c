"""How long requests took, of counts in buckets: `cell.bucket` says which is a duration's."""

from __future__ import annotations

from fulgate.processes.cell import LOWEST, STEPS

__all__ = ["bucket_limit", "percentile"]


def bucket_limit(number: int) -> float:
    """Give the duration, in seconds, at which a bucket ends and the next one begins."""
    octave, step = divmod(number + 1, STEPS)
    return float((0.5 + step / (2 * STEPS)) * 2.0 ** (LOWEST + 1 + octave))


def percentile(counts: list[int], share: float) -> float:
    """Give the duration, in seconds, within which this share of the requests ended; 0 for none.

    `counts` has a number for each bucket, in all or as the difference of two looks; `share` is
    0.99 for the 99th percentile. Within a bucket, durations are taken to be evenly spread.
    """
    wanted = share * sum(counts)
    if wanted <= 0:
        return 0.0
    for number, count in enumerate(counts):
        if count and wanted <= count:
            low = bucket_limit(number - 1) if number else 0.0
            return low + (bucket_limit(number) - low) * wanted / count
        wanted -= count
    return bucket_limit(len(counts) - 1)
