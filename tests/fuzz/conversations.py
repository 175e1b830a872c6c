"""What a web server may send to an application, and what it may not; and how the bytes come."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

from hypothesis import strategies as st

from tests.fuzz.fed import VALUES
from tests.model import ABORT_REQUEST, BEGIN_REQUEST, GET_VALUES, PARAMS, STDIN
from tests.raw import pair, record

Segments = list[bytes]  # all that is complete is answered after each of them
Cut = Callable[[bytes], Iterable[bytes]]


ids = st.sampled_from([1, 2, 3, 255, 256, 65535])
texts = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([b"CONTENT_LENGTH", b"5", b"-1", b"", b"x" * 127, b"y" * 128, b"z" * 300]),
)
paddings = st.sampled_from([0, 0, 0, 1, 7, 8, 255])
kinds = st.integers(0, 255) | st.integers(1, 12)


Part = tuple[int, int, bytes, int]  # a record's kind, id, content and padding


@st.composite
def pieces(draw: st.DrawFn, kind: int, id: int, data: bytes) -> list[Part]:
    """A stream in records, cut anywhere, with its end."""
    places = draw(st.lists(st.integers(0, len(data)), max_size=4))
    cuts = itertools.pairwise(sorted({0, len(data), *places}))
    parts = [data[start:stop] for start, stop in cuts]
    return [(kind, id, part, draw(paddings)) for part in [*parts, b""]]


@st.composite
def requests(draw: st.DrawFn) -> list[Part]:
    """The records of one request, or of the first part of one."""
    id = draw(ids)
    role = draw(st.sampled_from([1, 1, 1, 1, 1, 2, 3, 0, 257, 65535]))
    block = b"".join([pair(*one) for one in draw(st.lists(st.tuples(texts, texts), max_size=5))])
    flags = draw(st.sampled_from([0, 1, 1, 255, 254]))
    content = role.to_bytes(2, "big") + bytes([flags]) + draw(st.binary(min_size=5, max_size=5))
    parts = [(BEGIN_REQUEST, id, content, draw(paddings))]
    parts += draw(pieces(PARAMS, id, block))
    parts += draw(pieces(STDIN, id, draw(st.binary(max_size=30))))
    if draw(st.integers(0, 3)) == 0:
        place = draw(st.integers(1, len(parts)))
        parts[place:] = [(ABORT_REQUEST, id, b"", draw(paddings))]
    elif draw(st.integers(0, 5)) == 0:
        parts = parts[: draw(st.integers(1, len(parts)))]
    return parts


@st.composite
def others(draw: st.DrawFn) -> list[Part]:
    """A management record, or one that may be for no request."""
    padding = draw(paddings)
    if draw(st.booleans()):
        names = draw(st.lists(st.sampled_from([*VALUES, "FCGI_OTHER", ""]), max_size=4))
        return [(GET_VALUES, 0, b"".join([pair(n.encode(), b"") for n in names]), padding)]
    kind = draw(kinds.filter(lambda k: k not in (BEGIN_REQUEST, PARAMS, STDIN, GET_VALUES)))
    return [(kind, draw(st.sampled_from([0, 4, 1, 2])), draw(st.binary(max_size=9)), padding)]


@st.composite
def conversations(draw: st.DrawFn) -> list[list[Part]]:
    """Requests that interleave, with other records between them."""
    found = []
    for _ in range(draw(st.integers(1, 3))):
        parts = draw(st.lists(requests() | others(), min_size=1, max_size=3))
        turns = [n for n, part in enumerate(parts) for _ in part]
        order = draw(st.permutations(turns)) if draw(st.booleans()) else turns
        left = [iter(part) for part in parts]
        found.append([next(left[n]) for n in order])
    return found


def encode(conversation: list[list[Part]]) -> Segments:
    return [b"".join([record(*part) for part in segment]) for segment in conversation]


@st.composite
def disordered(draw: st.DrawFn) -> Segments:
    """Records that are lost, that come twice or elsewhere, or with more or less in them."""
    conversation = draw(conversations())
    for _ in range(draw(st.integers(1, 2))):
        segment = draw(st.sampled_from(conversation))
        if segment:
            at = draw(st.integers(0, len(segment) - 1))
            kind, id, content, padding = segment[at]
            how = draw(st.sampled_from(["lost", "twice", "again", "empty", "short", "long"]))
            if how == "lost":
                del segment[at]
            elif how == "twice":
                segment.insert(at, segment[at])
            elif how == "again":
                segment.insert(draw(st.integers(at, len(segment))), segment[at])
            elif how == "empty":
                segment.insert(at + 1, (kind, id, b"", padding))
            elif how == "short":
                segment[at] = (kind, id, content[: draw(st.integers(0, len(content)))], padding)
            else:
                segment[at] = (kind, id, content + draw(st.binary(max_size=5)), padding)
    return encode(conversation)


@st.composite
def damaged(draw: st.DrawFn) -> Segments:
    """A few bytes changed, lost or added."""
    found = encode(draw(conversations()))
    for _ in range(draw(st.integers(1, 2))):
        n = draw(st.integers(0, len(found) - 1))
        data = found[n]
        at = draw(st.integers(0, len(data)))
        upto = at + draw(st.sampled_from([0, 1, 1, 2, 8, 16]))
        found[n] = data[:at] + draw(st.binary(max_size=9)) + data[upto:]
    return found


# How the bytes come


def whole(data: bytes) -> Iterable[bytes]:
    return [data] if data else []


def byte_by_byte(data: bytes) -> Iterable[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    """Cut each segment at random, the same way whenever it is the same segment."""
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=10))

    def cut(data: bytes) -> Iterator[bytes]:
        at = 0
        for size in itertools.cycle(sizes):
            if at >= len(data):
                return
            yield data[at : at + size]
            at += size

    return cut
