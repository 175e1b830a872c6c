"""What the cases send and what has to come back, by Autobahn's numbers (517 of them).

The numbers, and what they stand for, are those of the Autobahn Testsuite; the rules are RFC 6455
and RFC 7692. Where it sends more than shows the rule (a thousand messages, 4 MiB in fragments of
64 bytes), there is less of the same here: `limits` and `several` say how much.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tests.autobahn.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    close,
    frame,
)


@dataclass(frozen=True)
class Closed:
    """The server closes with one of these codes (None: a close frame without), then ends."""

    codes: tuple[int | None, ...]


@dataclass(frozen=True)
class Case:
    """Bytes are sent, each in a write of its own; a `Frame`, and `Closed`, have to come."""

    number: str
    what: str
    steps: tuple[bytes | Frame | Closed, ...]
    echoes: bool = False  # whether frames of data come before the end is the server's to choose


@dataclass(frozen=True)
class Bulk:
    """Messages that are sent, each when the one before has come back.

    They are of `size` bytes, in fragments of `fragment` and in writes of `chop`; 0 is all in one.
    With `offers`, permessage-deflate is agreed on. `material` names what they are made of.
    """

    number: str
    what: str
    size: int
    text: bool = True
    count: int = 1
    fragment: int = 0
    chop: int = 0
    offers: tuple[str, ...] = ()
    material: str = "words"


BYE = (close(), Closed((1000,)))
WRONG = Closed((1002,))  # the protocol is broken
NO_UTF8 = Closed((1007,))
HELLO = b"Hello, Fulgate!"


def chops(data: bytes, size: int = 1) -> tuple[bytes, ...]:
    return tuple(data[at : at + size] for at in range(0, len(data), size))


def framing() -> Iterator[Case]:
    sizes = (0, 125, 126, 127, 128, 65535, 65536)
    for group, opcode, byte in ((1, TEXT, b"*"), (2, BINARY, b"\xfe")):
        for n, size in enumerate(sizes, 1):
            data = byte * size
            steps = (frame(opcode, data), Frame(opcode, data), *BYE)
            yield Case(f"1.{group}.{n}", f"a message of {size} bytes", steps)
        data = byte * 65536
        cut = chops(frame(opcode, data), 997)
        what = "65,536 bytes in writes of 997"
        yield Case(f"1.{group}.8", what, (*cut, Frame(opcode, data), *BYE))


def pings() -> Iterator[Case]:
    def ping(number: int, what: str, data: bytes, cut: int = 0) -> Case:
        sent = frame(PING, data)
        return Case(f"2.{number}", what, (*chops(sent, cut or len(sent)), Frame(PONG, data), *BYE))

    yield ping(1, "a ping without payload", b"")
    yield ping(2, "a ping with text", HELLO)
    yield ping(3, "a ping with what is no text", bytes.fromhex("00fffefdfcfb00ff"))
    yield ping(4, "a ping of 125 bytes", b"\xfe" * 125)
    yield Case("2.5", "a ping of 126 bytes", (frame(PING, b"\xfe" * 126), WRONG))
    yield ping(6, "a ping of 125 bytes, byte by byte", b"\xfe" * 125, 1)
    yield Case("2.7", "a pong nobody asked for", (frame(PONG), *BYE))
    yield Case("2.8", "the same with payload", (frame(PONG, b"unasked"), *BYE))
    both = (frame(PONG, b"unasked"), frame(PING, b"asked"), Frame(PONG, b"asked"), *BYE)
    yield Case("2.9", "a pong nobody asked for, then a ping", both)
    payloads = [b"ping %d" % n for n in range(10)]
    sent = tuple(frame(PING, data) for data in payloads)
    answers = tuple(Frame(PONG, data) for data in payloads)
    yield Case("2.10", "ten pings in a row", (*sent, *answers, *BYE))
    yield Case("2.11", "ten pings, byte by byte", (*chops(b"".join(sent)), *answers, *BYE))


def after_a_message(number: str, what: str, wrong: bytes, cut: str) -> Case:
    """A message that is echoed, then the wrong frame and a ping that is not answered.

    `cut` is "message", "frames" or "bytes": what is written at once.
    """
    frames = (frame(TEXT, HELLO), wrong, frame(PING))
    sent: tuple[bytes, ...] = frames
    if cut == "message":
        sent = (b"".join(frames),)
    elif cut == "bytes":
        sent = chops(b"".join(frames))
    return Case(number, what, (*sent, Frame(TEXT, HELLO), WRONG))


def reserved_bits() -> Iterator[Case]:
    yield Case("3.1", "text with RSV 1", (frame(TEXT, HELLO, rsv=1), WRONG))
    for n, rsv, cut in ((2, 2, "message"), (3, 3, "frames"), (4, 4, "bytes")):
        wrong = frame(TEXT, HELLO, rsv=rsv)
        yield after_a_message(f"3.{n}", f"text with RSV {rsv} after text, {cut}", wrong, cut)
    yield Case("3.5", "binary with RSV 5", (frame(BINARY, b"\0\xff\xfe", rsv=5), WRONG))
    yield Case("3.6", "a ping with RSV 6", (frame(PING, HELLO, rsv=6), WRONG))
    yield Case("3.7", "a close with RSV 7", (frame(CLOSE, b"\x03\xe8", rsv=7), WRONG))


def opcodes() -> Iterator[Case]:
    for group, first in ((1, 3), (2, 11)):
        what = "an opcode of data" if group == 1 else "a control opcode"
        name = f"4.{group}."
        yield Case(name + "1", f"{what} that is not defined", (frame(first), WRONG))
        yield Case(name + "2", "the same with payload", (frame(first + 1, b"what?"), WRONG))
        for n, cut, data in ((2, "message", b""), (3, "frames", b"what?"), (4, "bytes", b"what?")):
            what = f"opcode {first + n} after text, {cut}"
            yield after_a_message(f"{name}{n + 1}", what, frame(first + n, data), cut)


def cuts(first: int, what: str, frames: list[bytes], *expected: Frame | Closed) -> list[Case]:
    """The same frames in one write, in a write each, and byte by byte."""
    whole = b"".join(frames)
    ways = ((whole,), tuple(frames), chops(whole))
    names = ("in one write", "in a write each", "byte by byte")
    return [Case(f"5.{first + n}", f"{what}, {names[n]}", (*ways[n], *expected)) for n in range(3)]


def fragments() -> Iterator[Case]:
    pieces = [frame(TEXT, b"frag", fin=False), frame(CONTINUATION, b"ments")]
    whole = Frame(TEXT, b"fragments")
    for n, opcode, what in ((1, PING, "ping"), (2, PONG, "pong")):
        sent = (frame(opcode, b"frag", fin=False), frame(CONTINUATION, b"ments"))
        yield Case(f"5.{n}", f"a {what} in two fragments", (*sent, WRONG))
    for case in cuts(3, "text in two fragments", pieces, whole):
        yield Case(case.number, case.what, (*case.steps, *BYE))
    between = [pieces[0], frame(PING, b"between"), pieces[1]]
    for case in cuts(6, "a ping between two", between, Frame(PONG, b"between"), whole):
        yield Case(case.number, case.what, (*case.steps, *BYE))
    for first, fin in ((9, True), (12, False)):
        nothing = [frame(CONTINUATION, b"of what?", fin=fin), frame(TEXT, HELLO)]
        yield from cuts(first, f"a continuation of nothing, FIN {fin:d}", nothing, WRONG)
    late = b"".join([*pieces, frame(CONTINUATION, b"late", fin=False), frame(TEXT, HELLO)])
    yield Case("5.15", "a continuation behind the end", (late, whole, WRONG))
    for n, fin in ((16, False), (17, True)):
        nothing = [frame(CONTINUATION, b"of what?", fin=fin), *pieces]
        what = f"a continuation of nothing before text in two, twice, FIN {fin:d}"
        yield Case(f"5.{n}", what, (*nothing, *nothing, WRONG))
    doubled = frame(TEXT, b"frag", fin=False) + frame(TEXT, b"ments")
    yield Case("5.18", "two first fragments", (doubled, WRONG))
    yield long_message(19, False)
    yield long_message(20, True)


def long_message(number: int, one_by_one: bool) -> Case:
    """Pings amid a message are answered at once, not when it has ended."""
    data = [b"piece %d;" % n for n in range(5)]
    frames = fragmented(TEXT, *data)
    before = [*frames[:2], frame(PING, b"one")]
    after = [*frames[2:4], frame(PING, b"two")]
    if not one_by_one:
        before, after = [b"".join(before)], [b"".join(after)]
    answers = (Frame(PONG, b"one"), Frame(PONG, b"two"))
    end = (frames[4], Frame(TEXT, b"".join(data)), *BYE)
    what = "five fragments and two pings" + (", in a write each" if one_by_one else "")
    return Case(f"5.{number}", what, (*before, answers[0], *after, answers[1], *end))


GREEK = "\u03ba\u1f79\u03c3\u03bc\u03b5".encode()  # of two and three bytes each
UMLAUTS = "Hello-\u00b5@\u00df\u00f6\u00e4\u00fc\u00e0\u00e1-UTF-8!!".encode()


def fragmented(opcode: int, *data: bytes) -> tuple[bytes, ...]:
    last = len(data) - 1
    return tuple(
        frame(CONTINUATION if n else opcode, piece, fin=n == last) for n, piece in enumerate(data)
    )


def utf8_in_fragments() -> Iterator[Case]:
    def valid(number: str, what: str, *data: bytes) -> Case:
        return Case(number, what, (*fragmented(TEXT, *data), Frame(TEXT, b"".join(data)), *BYE))

    yield valid("6.1.1", "empty text", b"")
    yield valid("6.1.2", "three empty fragments", b"", b"", b"")
    yield valid("6.1.3", "text between empty fragments", b"", b"middle", b"")
    yield valid("6.2.1", "text that is UTF-8", UMLAUTS)
    yield valid("6.2.2", "cut between characters", UMLAUTS[:12], UMLAUTS[12:])
    yield valid("6.2.3", "fragments of a byte", *chops(UMLAUTS))
    yield valid("6.2.4", "fragments of a byte, no ASCII", *chops(GREEK))
    wrong = GREEK + b"\xed\xa0\x80" + b"more"
    yield Case("6.3.1", "no UTF-8", (frame(TEXT, wrong), NO_UTF8))
    yield Case(
        "6.3.2", "no UTF-8, fragments of a byte", (*fragmented(TEXT, *chops(wrong)), NO_UTF8)
    )
    # What makes it wrong is the 13th byte; the server must not wait for what comes after it.
    wrong = GREEK + b"\xf4\x90\x80\x80" + b"more"
    asked = (frame(PING), Frame(PONG))
    for n, (start, stop) in enumerate(((11, 15), (12, 13)), 1):
        pieces = fragmented(TEXT, wrong[:start], wrong[start:stop], wrong[stop:])
        what = "wrong in the second of three fragments, which is the last that is sent"
        yield Case(f"6.4.{n}", what, (pieces[0], *asked, pieces[1], NO_UTF8))
        whole = frame(TEXT, wrong)
        head = len(whole) - len(wrong)
        parts = (whole[: head + start], whole[head + start : head + stop])
        what = "the same in writes of one frame"
        yield Case(f"6.4.{n + 2}", what, (*parts, NO_UTF8))


def lonely() -> list[bytes]:
    """Each first byte of a sequence with a space behind it."""
    ranges = ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))
    return [b"".join(bytes([c, 0x20]) for c in range(first, last)) for first, last in ranges]


def encoded(*points: int) -> list[bytes]:
    return [chr(point).encode() for point in points]


def hexed(*texts: str) -> list[bytes]:
    return [bytes.fromhex(text) for text in texts]


INCOMPLETE = hexed(
    "c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "fbbfbfbf",
    "fdbfbfbfbf",
)  # fmt: skip
SURROGATES = hexed("eda080", "edadbf", "edae80", "edafbf", "edb080", "edbe80", "edbfbf")

# Group: what it is, and the texts, which are in the order of their numbers. Whether one is UTF-8
# Python knows as well as RFC 3629, section 4: `bytes.decode` is strict.
UTF8: dict[int, tuple[str, list[bytes]]] = {
    5: (
        "UTF-8",
        [*(b"hello%sworld" % c for c in encoded(0x24, 0xA2, 0x20AC, 0x24B62)), GREEK],
    ),
    6: ("the beginning of a text", [GREEK[:n] for n in range(1, len(GREEK) + 1)]),
    7: ("the first of its length", encoded(0, 0x80, 0x800, 0x10000)),
    8: ("the first of five and six bytes", hexed("f888808080", "fc8480808080")),
    9: ("the last of its length", encoded(0x7F, 0x7FF, 0xFFFF, 0x10FFFF)),
    10: ("the last of four, five, six bytes", hexed("f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf")),
    11: ("boundaries", [*encoded(0xD7FF, 0xE000, 0xFFFD, 0x10FFFF), b"\xf4\x90\x80\x80"]),
    12: (
        "continuation bytes alone",
        [b"\x80", b"\xbf", *(b"\x80\xbf\x80\xbf\x80\xbf"[:n] for n in range(2, 7)),
         bytes(range(0x80, 0xBF))],
    ),
    13: ("first bytes alone", lonely()),
    14: ("the last byte is missing", INCOMPLETE),
    15: ("all of these in a row", [b"".join(INCOMPLETE)]),
    16: ("impossible bytes", hexed("fe", "ff", "fefeffff")),
    17: ("too long for ASCII", hexed("c0af", "e080af", "f08080af", "f8808080af", "fc80808080af")),
    18: ("too long, at most", hexed("c1bf", "e09fbf", "f08fbfbf", "f887bfbfbf", "fc83bfbfbfbf")),
    19: ("too long for NUL", hexed("c080", "e08080", "f0808080", "f880808080", "fc8080808080")),
    20: ("surrogates", SURROGATES),
    21: (
        "surrogates in pairs",
        [high + low for high in SURROGATES[:4] for low in (SURROGATES[4], SURROGATES[6])],
    ),
    22: (
        "no characters, but UTF-8",
        encoded(*(plane << 16 | low for plane in range(17) for low in (0xFFFE, 0xFFFF))),
    ),
    23: ("specials", encoded(*range(0xFFF9, 0x10000))),
}  # fmt: skip


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def utf8() -> Iterator[Case]:
    for group, (what, texts) in UTF8.items():
        for n, data in enumerate(texts, 1):
            expected = (Frame(TEXT, data), *BYE) if is_utf8(data) else (NO_UTF8,)
            yield Case(f"6.{group}.{n}", f"{what}: {data.hex()}", (frame(TEXT, data), *expected))


GOOD_CODES = (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999)
BAD_CODES = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)


def closing() -> Iterator[Case]:
    end = Closed((1000,))
    yield Case("7.1.1", "text, then a close", (frame(TEXT, HELLO), Frame(TEXT, HELLO), *BYE))
    yield Case("7.1.2", "two closes", (close() + frame(CLOSE), end))
    yield Case("7.1.3", "a ping after the close", (close() + frame(PING), end))
    yield Case("7.1.4", "text after the close", (close() + frame(TEXT, HELLO), end))
    pieces = fragmented(TEXT, b"frag", b"ments")
    yield Case("7.1.5", "a close amid a message", (pieces[0] + close() + pieces[1], end))
    sent = (frame(TEXT, b"*" * 262144), frame(TEXT, HELLO), close(), frame(PING))
    yield Case("7.1.6", "256 KB, text, close and ping in a row", (*sent, end), echoes=True)
    yield Case("7.3.1", "a close without a code", (close(None), Closed((None, 1000))))
    yield Case("7.3.2", "a close of one byte", (frame(CLOSE, b"a"), WRONG))
    yield Case("7.3.3", "a close of two bytes", BYE)
    yield Case("7.3.4", "a close with a reason", (close(1000, HELLO), end))
    yield Case("7.3.5", "the longest reason", (close(1000, b"*" * 123), end))
    yield Case("7.3.6", "a reason of one byte more", (close(1000, b"*" * 124), WRONG))
    wrong = close(1000, GREEK + b"\xed\xa0\x80" + b"more")
    yield Case("7.5.1", "a reason that is no UTF-8", (wrong, Closed((1002, 1007))))
    for n, code in enumerate(GOOD_CODES, 1):
        yield Case(f"7.7.{n}", f"code {code}", (close(code), Closed((1000, code))))
    for n, code in enumerate(BAD_CODES, 1):
        yield Case(f"7.9.{n}", f"code {code}, which nobody may send", (close(code), WRONG))
    for n, code in enumerate((5000, 65535), 1):
        what = f"code {code}, of which nothing is said"
        yield Case(f"7.13.{n}", what, (close(code), Closed((1000, code, 1002))))


K = 1024
M = K * K


def limits() -> Iterator[Bulk]:
    for group, is_text in ((1, True), (2, False)):
        for n, size in enumerate((64 * K, 256 * K, M, 4 * M, 8 * M, 16 * M), 1):
            yield Bulk(f"9.{group}.{n}", "a large message", size, is_text)
    for group, is_text in ((3, True), (4, False)):
        for n in range(9):
            fragment = 64 << 2 * n
            size = min(4 * M, 2048 * fragment)  # Autobahn's are of 4 MiB
            yield Bulk(f"9.{group}.{n + 1}", "fragments", size, is_text, fragment=fragment)
    for group, is_text in ((5, True), (6, False)):
        for n in range(6):
            chop = 64 << n
            size = min(M, 2048 * chop)  # Autobahn's are of 1 MiB
            yield Bulk(f"9.{group}.{n + 1}", "small writes", size, is_text, chop=chop)
    for group, is_text in ((7, True), (8, False)):
        for n, size in enumerate((0, 16, 64, 256, K, 4 * K), 1):
            # Autobahn's are a thousand
            yield Bulk(f"9.{group}.{n}", "many messages", size, is_text, count=100)


# Of messages, and of the fragments that they are sent in.
COMPRESSED = (
    *((size, 0) for size in (16, 64, 256, K, 4 * K, 8 * K, 16 * K, 32 * K, 64 * K, 128 * K)),
    *((size, 256) for size in (8 * K, 16 * K, 32 * K, 64 * K, 128 * K)),
    *((128 * K, fragment) for fragment in (K, 4 * K, 32 * K)),
)
MATERIALS = {"json": True, "html": True, "document": False, "bitmap": False, "verse": False}

# What the client may do itself, and beside it what it asks of the server.
OFFER = "permessage-deflate; client_no_context_takeover; client_max_window_bits"
NO_TAKEOVER = "; server_no_context_takeover"
NINE, FIFTEEN = "; server_max_window_bits=9", "; server_max_window_bits=15"
OFFERS = (
    (OFFER,),
    (OFFER + NO_TAKEOVER,),
    (OFFER + NINE,),
    (OFFER + FIFTEEN,),
    (OFFER + NO_TAKEOVER + NINE,),
    (OFFER + NO_TAKEOVER + FIFTEEN,),
    (OFFER + NO_TAKEOVER + NINE, OFFER + NO_TAKEOVER, OFFER),
)


def several(size: int) -> int:
    """How many messages, of which Autobahn has a thousand."""
    return max(3, min(50, 128 * K // size))


def compression() -> Iterator[Bulk]:
    for group, (material, is_text) in enumerate(MATERIALS.items(), 1):
        for n, (size, fragment) in enumerate(COMPRESSED, 1):
            yield Bulk(
                f"12.{group}.{n}", f"compressed {material}", size, is_text, several(size),
                fragment, offers=(OFFER,), material=material,
            )  # fmt: skip
    for group, offers in enumerate(OFFERS, 1):
        for n, (size, fragment) in enumerate(COMPRESSED, 1):
            yield Bulk(
                f"13.{group}.{n}", "compressed as is offered", size, True, several(size),
                fragment, offers=offers, material="json",
            )  # fmt: skip


CASES: list[Case] = [
    *framing(),
    *pings(),
    *reserved_bits(),
    *opcodes(),
    *fragments(),
    *utf8_in_fragments(),
    *utf8(),
    *closing(),
]
BULKS: list[Bulk] = [
    *limits(),
    Bulk("10.1.1", "65,536 bytes in fragments of 1,300", 65536, fragment=1300),
    *compression(),
]
