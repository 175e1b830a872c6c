"""Several requests at once on a connection, which FastCGI calls multiplexing."""

from __future__ import annotations

import hashlib
import itertools
import random
import threading
import time
from collections.abc import Iterable

import pytest

from fulgate import Aborted
from tests.driver_suite.files import temporary
from tests.driver_suite.kit import (
    TEXT,
    Environ,
    Flag,
    Gate,
    Log,
    MakeServer,
    Start,
    answer,
    ask,
    digest,
    hello,
    pattern,
    settle,
    until,
)
from tests.model import (
    ABORT_REQUEST,
    OVERLOADED,
    PARAMS,
    REQUEST_COMPLETE,
    STDIN,
    STDOUT,
    UNKNOWN_ROLE,
)
from tests.raw import PATIENCE, Raw, begin, environ, head, pairs, post, record, stream


def whole(id: int, path: str = "/hello", keep: bool = True) -> bytes:
    return head(path, id=id, keep=keep) + record(STDIN, id)


class Reads:
    """Answers with what it read, once `open` is set; /hello is answered at once."""

    def __init__(self) -> None:
        self.open = Flag()
        self.inside = Flag()

    def __call__(self, environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/hello":
            return answer(start, b"hello\n")
        self.inside.set()
        self.open.come()
        return digest(environ, start)


@pytest.mark.statement("18")
def test_a_slow_request_does_not_hold_up_those_beside_it(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=3)
    (raw,) = gate.hold(served, 1)
    for id in (2, 3, 65_535, 2):
        assert raw.request(id=id).body == b"/hello"
    raw.expect(4)
    raw.send(whole(4, "/wait"))
    until(lambda: gate.inside == 2, "the second slow one did not start")
    assert raw.request(id=2).body == b"/hello"
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    assert raw.answer(4).body == b"/wait"
    assert raw.request().body == b"/hello"  # and now it is alone
    raw.socket.close()


@pytest.mark.statement("11")
@pytest.mark.statement("13")
def test_values_say_that_several_are_served(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=3, queue=7)
    (raw,) = gate.hold(served, 1)
    expected = {b"FCGI_MAX_REQS": b"10", b"FCGI_MPXS_CONNS": b"1"}
    assert raw.values(b"FCGI_MAX_REQS", b"FCGI_MPXS_CONNS") == expected
    assert raw.request(id=2).body == b"/hello"
    assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    raw.socket.close()


@pytest.mark.statement("7")
@pytest.mark.statement("18")
def test_records_of_several_may_come_in_any_order(make_server: MakeServer) -> None:
    served = make_server(digest, threads=4)
    chance = random.Random(7)
    with Raw(served.address) as raw:
        for _ in range(5):
            bodies = {id: chance.randbytes(chance.choice([0, 10, 70_000])) for id in range(1, 9)}
            records = {}
            for id, body in bodies.items():
                raw.expect(id)
                block = pairs(environ(**post(len(body))))
                cut = chance.choice([50, 1000, 65_535])
                records[id] = [
                    begin(id),
                    *(record(PARAMS, id, block[at : at + cut]) for at in range(0, len(block), cut)),
                    record(PARAMS, id),
                    *(record(STDIN, id, body[at : at + 900]) for at in range(0, len(body), 900)),
                    record(STDIN, id),
                ]
            out = []
            while records:
                id = chance.choice(list(records))
                out.append(records[id].pop(0))
                if not records[id]:
                    del records[id]
            data = b"".join(out)
            cut = chance.choice([len(data), 1000, 20_000])
            for at in range(0, len(data), cut):
                raw.send(data[at : at + cut])
            for id, body in bodies.items():
                assert raw.answer(id).body == hashlib.sha256(body).hexdigest().encode()


@pytest.mark.statement("18")
@pytest.mark.parametrize("known", ["begun", "asked"])
def test_a_body_that_nobody_reads_does_not_hold_up_others(
    make_server: MakeServer, known: str
) -> None:
    reads = Reads()
    served = make_server(reads, threads=3)
    bodies = {1: pattern(3_000_000), 2: pattern(1_000_001)}
    with Raw(served.address) as raw:
        raw.expect(1)
        if known == "asked":
            assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
            raw.send(head("/read", id=1, **post(len(bodies[1]))))
            reads.inside.come()
        else:
            raw.send(head("/read", id=1, **post(len(bodies[1]))))
            reads.inside.come()
            assert raw.request(id=3).body == b"hello\n"
            raw.expect(2)
            raw.send(head("/read", id=2, **post(len(bodies[2]))))
        for id in (1, 2) if known == "begun" else (1,):
            raw.send(stream(STDIN, id, bodies[id]))
        for id in (3, 4, 5):
            assert raw.request(id=id).body == b"hello\n"
        reads.open.set()
        for id in (1, 2) if known == "begun" else (1,):
            expected = hashlib.sha256(bodies[id]).hexdigest().encode()
            assert raw.answer(id).body == expected


@pytest.mark.statement("18")
def test_a_large_body_is_read_as_it_comes(make_server: MakeServer) -> None:
    gate = Gate()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        return digest(environ, start) if environ.get("CONTENT_LENGTH") else gate(environ, start)

    served = make_server(app, threads=3)
    data = pattern(2_000_000)
    with Raw(served.address) as raw:
        raw.expect(1)
        raw.send(head("/wait", id=1) + record(STDIN, 1))
        until(lambda: gate.inside, "it did not start")
        raw.expect(2)
        raw.send(head(id=2, **post(len(data))))
        for at in range(0, len(data), 200_000):
            raw.send(stream(STDIN, 2, data[at : at + 200_000], end=False))
            raw.expect(3)
            raw.send(head(id=3) + record(STDIN, 3))
            raw.answer(3)
        raw.send(record(STDIN, 2))
        assert raw.answer(2).body == hashlib.sha256(data).hexdigest().encode()
        gate.open.set()
        raw.answer(1)


@pytest.mark.statement("18")
@pytest.mark.parametrize("kind", ["pieces", "one"])
def test_a_large_answer_gives_way_to_small_ones(make_server: MakeServer, kind: str) -> None:
    size, began = 12_000_000, Flag()
    small: list[int] = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/hello":
            small.append(1)
            return answer(start, b"hello\n")
        write = start("200 OK", TEXT)
        write(b"now")
        began.set()
        if kind == "one":
            return [bytes(size)]
        return (bytes(100_000) for _ in range(size // 100_000))

    served = make_server(app, threads=4)
    with Raw(served.address) as raw:
        assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
        raw.expect(1)
        raw.send(whole(1, "/large"))
        began.come()
        for id in (2, 3, 4):
            raw.expect(id)
            raw.send(whole(id))
        # Nothing is read until then: what of the large one was written before is not much.
        until(lambda: len(small) == 3, "the small ones did not start")
        for id in (2, 3, 4):
            assert raw.answer(id).body == b"hello\n"
        assert len(raw.reader.answers[1].stdout) < 6_000_000


@pytest.mark.statement("18")
def test_two_large_answers_take_turns(make_server: MakeServer) -> None:
    started = [Flag(), Flag()]
    inside: list[int] = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        write = start("200 OK", TEXT)
        number = int(environ["PATH_INFO"][1:])
        write(b"now")
        started[number - 1].set()
        started[2 - number].come()
        inside.append(number)
        return [bytes([number]) * 2_000_000]

    served = make_server(app, threads=4)
    with Raw(served.address) as raw:
        raw.expect(1)
        raw.expect(2)
        raw.send(whole(1, "/1"), whole(2, "/2"))
        # Nothing is read until then, so that neither can have left before the other came.
        until(lambda: len(inside) == 2, "they did not start")
        first, second = raw.answer(1), raw.answer(2)
    assert first.body == b"now" + b"\1" * 2_000_000
    assert second.body == b"now" + b"\2" * 2_000_000
    ids = [one.id for one in raw.reader.order if one.kind == STDOUT and len(one.content) > 1000]
    changes = sum(a != b for a, b in itertools.pairwise(ids))
    assert changes > 10, "one waited for the other"


@pytest.mark.statement("16")
@pytest.mark.statement("18")
def test_an_abort_of_one_leaves_the_rest(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=5)
    (raw,) = gate.hold(served, 1)
    for id in (2, 3):
        raw.expect(id)
        raw.send(whole(id, "/wait"))
        until(lambda id=id: gate.inside == id, "it did not start")  # type: ignore[misc]
    raw.send(record(ABORT_REQUEST, 2))
    ended = raw.answer(2)
    assert (ended.protocol_status, ended.stdout) == (REQUEST_COMPLETE, b"")
    until(lambda: gate.raised == [Aborted], "its write did not raise")
    assert raw.request(id=2).body == b"/hello"  # its id is free again
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    assert raw.answer(3).body == b"/wait"
    assert gate.aborted == 1
    raw.socket.close()


@pytest.mark.statement("15")
def test_an_abort_beside_others_before_params_have_ended(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=3)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(begin(2), record(PARAMS, 2, pairs(environ())), record(ABORT_REQUEST, 2))
    assert not raw.answer(2).stdout
    raw.expect(2)
    raw.expect(3)
    # The same id again, and one that is aborted where it begins.
    raw.send(begin(3), record(ABORT_REQUEST, 3), whole(2))
    assert raw.answer(2).body == b"/hello"
    assert not raw.answer(3).stdout
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    assert gate.paths == ["/wait", "/hello"]
    raw.socket.close()


@pytest.mark.statement("17")
def test_an_abort_beside_others_while_the_application_reads(make_server: MakeServer) -> None:
    reading, raised = Flag(), Flag()
    gate = Gate()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "POST":
            return gate(environ, start)
        try:
            environ["wsgi.input"].read(10)
            reading.set()
            environ["wsgi.input"].read()
        except Aborted:
            raised.set()
            raise
        return answer(start)

    served = make_server(app, threads=3)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(head(id=2, **post(200_000)), record(STDIN, 2, bytes(10)))
    reading.come()
    raw.send(record(ABORT_REQUEST, 2))
    assert not raw.answer(2).stdout
    raised.come()
    raw.expect(2)
    raw.send(head(id=2, **post(200_000)), stream(STDIN, 2, bytes(200_000)))
    assert raw.answer(2).body == b"ok\n"
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    raw.socket.close()


def test_an_abort_of_an_answer_that_is_on_its_way(make_server: MakeServer) -> None:
    gate, over = Gate(), Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/large":
            yield from gate(environ, start)
            return
        start("200 OK", TEXT)
        try:
            while True:
                yield bytes(50_000)
        finally:
            over.set()

    served = make_server(app, threads=3)
    with Raw(served.address) as raw:
        assert raw.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
        raw.expect(1)
        raw.send(whole(1, "/large"))
        raw.until(1, bytes(1000))
        raw.send(record(ABORT_REQUEST, 1))
        assert raw.answer(1).protocol_status == REQUEST_COMPLETE
        over.come()
        assert raw.request(id=1).body == b"/hello"


def test_an_abort_while_a_large_piece_waits_to_be_sent(make_server: MakeServer) -> None:
    over = Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        start("200 OK", TEXT)
        try:
            if environ["PATH_INFO"] == "/large":
                yield bytes(8 << 20)  # far more than leaves while nobody reads
            yield environ["PATH_INFO"].encode()
        finally:
            over.set()

    served = make_server(app, threads=3)
    with Raw(served.address) as raw:
        raw.values(b"FCGI_MPXS_CONNS")
        answer = raw.expect(1)
        raw.send(whole(1, "/large"))
        raw.until(1, bytes(1000))
        time.sleep(0.2)  # it waits for room by now, or is about to
        raw.send(record(ABORT_REQUEST, 1))
        over.come()
        assert raw.request("/behind", id=2).body == b"/behind"  # and what else came was in order
        assert answer.ended
        assert len(answer.stdout) < 4 << 20


@pytest.mark.statement("5")
def test_ids_are_used_again_and_again(make_server: MakeServer) -> None:
    served = make_server(hello, threads=4)
    with Raw(served.address) as raw:
        for _ in range(30):
            ids = random.Random(3).sample(range(1, 65_536), 20)
            for id in ids:
                raw.expect(id)
            raw.send(b"".join(map(whole, ids)))
            for id in ids:
                assert raw.answer(id).body == b"hello\n"


@pytest.mark.statement("R4")
def test_the_id_of_one_of_several_is_not_to_be_begun_anew(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=3)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(whole(2, "/wait"))
    until(lambda: gate.inside == 2, "it did not start")
    raw.send(begin(2))
    assert raw.closed()
    raw.socket.close()
    until(lambda: gate.raised == [Aborted, Aborted], "a write did not raise")


def test_a_connection_that_is_lost_aborts_all_that_are_on_it(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=6)
    (raw,) = gate.hold(served, 1)
    for id in (2, 3, 4):
        raw.expect(id)
        raw.send(whole(id, "/wait"))
    until(lambda: gate.inside == 4, "they did not start")
    raw.send(begin(5), head("/read", id=6, **post(10)))
    raw.socket.close()
    until(lambda: gate.raised == [Aborted] * 4, "a write did not raise")
    with Raw(served.address) as other:
        assert other.request().body == b"/hello"


@pytest.mark.statement("9")
def test_without_keep_conn_of_one_it_closes_when_all_have_ended(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=4)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(whole(2, "/wait"))
    until(lambda: gate.inside == 2, "it did not start")
    raw.expect(3)
    raw.send(whole(3, keep=False))
    assert raw.answer(3).body == b"/hello"
    # Nothing may begin on it any more, and what is told so can be sent elsewhere.
    raw.expect(4)
    raw.send(whole(4))
    assert raw.answer(4).protocol_status == OVERLOADED
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    assert raw.answer(2).body == b"/wait"
    assert raw.closed()
    raw.socket.close()
    assert gate.paths.count("/hello") == 1


@pytest.mark.statement("19")
def test_no_more_requests_than_values_say(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=2, queue=1)
    (raw,) = gate.hold(served, 1)
    assert raw.values(b"FCGI_MAX_REQS") == {b"FCGI_MAX_REQS": b"3"}
    for id in (2, 3, 4):
        raw.expect(id)
    raw.send(begin(2), begin(3), begin(4))
    assert raw.answer(4).protocol_status == OVERLOADED
    raw.send(record(ABORT_REQUEST, 3))
    assert not raw.answer(3).stdout
    assert raw.request(id=4).body == b"/hello"
    gate.open.set()
    raw.answer(1)
    raw.socket.close()


@pytest.mark.statement("20")
def test_an_unknown_role_beside_others(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=2)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(begin(2, role=7))
    assert raw.answer(2).protocol_status == UNKNOWN_ROLE
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    assert raw.request().body == b"/hello"
    raw.socket.close()


@pytest.mark.statement("R5")
@pytest.mark.parametrize("says", [True, False], ids=["declared", "found"])
def test_a_body_beside_others_that_is_too_large(make_server: MakeServer, says: bool) -> None:
    gate = Gate()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/read":
            return digest(environ, start)
        return gate(environ, start)

    served = make_server(app, threads=3, limit_request_body=100_000)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    params = post(500_000) if says else {"REQUEST_METHOD": "POST"}
    raw.send(head("/read", id=2, **params), stream(STDIN, 2, bytes(500_000)))
    assert raw.answer(2).status == "413 Content Too Large"
    assert raw.request(id=3).body == b"/hello"  # the connection goes on
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    assert raw.request().body == b"/hello"
    raw.socket.close()


@pytest.mark.parametrize("says", [True, False], ids=["declared", "found"])
def test_a_refusal_leaves_a_connection_open_that_is_for_several(
    make_server: MakeServer, says: bool
) -> None:
    served = make_server(digest, threads=3, limit_request_body=100_000, limit_params_size=10_000)
    params = post(500_000) if says else {"REQUEST_METHOD": "POST"}
    with Raw(served.address) as raw:
        raw.values(b"FCGI_MPXS_CONNS")
        for id in (1, 2, 1):
            raw.expect(id)
            raw.send(head("/large", id=id, **params), stream(STDIN, id, bytes(500_000)))
            assert raw.answer(id).status == "413 Content Too Large"
        assert raw.request(id=3, X="x" * 20_000).status == "431 Request Header Fields Too Large"
        assert raw.request(id=1, body=b"ok").status == "200 OK"


@pytest.mark.statement("R6")
def test_a_request_that_does_not_arrive_costs_those_beside_it_nothing(
    make_server: MakeServer,
) -> None:
    gate = Gate()
    served = make_server(gate, threads=3, arrival_timeout=0.6)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(begin(2), record(PARAMS, 2, pairs(environ())))
    assert raw.answer(2).app_status == 1
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    assert raw.request().body == b"/hello"
    raw.socket.close()


@pytest.mark.statement("R6")
def test_a_body_beside_others_that_does_not_come(make_server: MakeServer) -> None:
    gate = Gate()
    raised = Flag()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/read":
            return gate(environ, start)
        try:
            return digest(environ, start)
        except Aborted:
            raised.set()
            raise

    served = make_server(app, threads=3, body_timeout=0.2, body_wait=0.05)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(head("/read", id=2, **post(100)), record(STDIN, 2, b"a"))
    assert raw.answer(2).status == "408 Request Timeout"
    raised.come()
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    assert raw.request().body == b"/hello"
    raw.socket.close()


def test_a_small_body_beside_others_is_waited_for(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=3, body_wait=PATIENCE)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(head(id=2, **post(10)), record(STDIN, 2, b"01234"))
    assert raw.values(b"FCGI_MPXS_CONNS")
    assert gate.paths == ["/wait"]
    raw.send(record(STDIN, 2, b"56789"), record(STDIN, 2))
    assert raw.answer(2).body == b"/hello"
    gate.open.set()
    raw.answer(1)
    raw.socket.close()


def test_an_answer_that_breaks_leaves_the_rest(make_server: MakeServer, log: Log) -> None:
    gate = Gate()

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/break":
            return gate(environ, start)
        write = start("200 OK", TEXT)
        write(b"one")
        raise ValueError("on purpose")

    served = make_server(app, threads=3)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(whole(2, "/break"))
    broken = raw.answer(2)
    assert broken.body == b"one"
    assert broken.app_status == 1
    until(log.tracebacks, "the application's error is not in the log")
    assert raw.request(id=2).body == b"/hello"
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    raw.socket.close()


@pytest.mark.statement("18")
def test_several_begin_in_one_segment(make_server: MakeServer) -> None:
    served = make_server(hello, threads=2)
    for address in (served.address, served.tcp):
        with Raw(address) as raw:
            for id in range(1, 11):
                raw.expect(id)
            raw.send(b"".join([begin(id) for id in range(1, 11)]))
            raw.send(b"".join([head(id=id)[16:] + record(STDIN, id) for id in range(10, 0, -1)]))
            for id in range(1, 11):
                assert raw.answer(id).body == b"hello\n"


def test_stop_lets_all_that_are_on_a_connection_end(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=4)
    (raw,) = gate.hold(served, 1)
    for id in (2, 3):
        raw.expect(id)
        raw.send(whole(id, "/wait"))
    until(lambda: gate.inside == 3, "they did not start")
    stopped = Flag()
    clean: list[bool] = []

    def stop() -> None:
        clean.append(served.stop())
        stopped.set()

    thread = threading.Thread(target=stop)
    thread.start()
    raw.values(b"FCGI_MPXS_CONNS")
    gate.open.set()
    for id in (1, 2, 3):
        assert raw.answer(id).body == b"/wait"
    assert raw.closed()
    raw.socket.close()
    stopped.come()
    thread.join(PATIENCE)
    assert clean == [True]


def test_the_deadline_of_stop_cuts_all_that_are_on_a_connection(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=4)
    (raw,) = gate.hold(served, 1)
    raw.expect(2)
    raw.send(whole(2, "/wait"))
    until(lambda: gate.inside == 2, "it did not start")
    assert not served.stop(0.2)
    assert raw.closed()
    raw.socket.close()
    until(lambda: gate.raised == [Aborted, Aborted], "a write did not raise")


def test_a_peer_that_does_not_read_and_goes(make_server: MakeServer) -> None:
    """Its threads are free again, and what was kept for it is gone."""
    began: list[int] = []
    raised: list[int] = []

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/hello":
            return answer(start, b"hello\n")
        write = start("200 OK", TEXT)
        began.append(1)
        try:
            for _ in range(100):
                write(bytes(100_000))
        except Aborted:
            raised.append(1)
            raise
        return []

    served = make_server(app, threads=3)
    raw = Raw(served.address)
    for id in (1, 2, 3):
        raw.expect(id)
    raw.send(*[whole(id, "/large") for id in (1, 2, 3)])
    until(lambda: len(began) == 3, "they did not start")
    time.sleep(0.1)  # they wait for room by now, or are about to
    raw.socket.close()
    until(lambda: len(raised) == 3, "a write did not raise")
    with Raw(served.address) as other:
        assert other.request().body == b"hello\n"


def test_a_file_beside_others(make_server: MakeServer) -> None:
    gate = Gate()
    data = pattern(3_000_000)

    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/large":
            return answer(start, data)
        if environ["PATH_INFO"] != "/file":
            return gate(environ, start)
        write = start("200 OK", TEXT)
        write(b"file: ")
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](temporary(data))
        return wrapped

    served = make_server(app, threads=5)
    (raw,) = gate.hold(served, 1)
    for id, path in ((2, "/file"), (3, "/file"), (4, "/large"), (5, "/file")):
        raw.expect(id)
        raw.send(whole(id, path))
    assert raw.request(id=6).body == b"/hello"
    raw.until(5, b"file: ")
    raw.send(record(ABORT_REQUEST, 5))
    for id in (2, 3):
        assert raw.answer(id).body == b"file: " + data
    assert raw.answer(4).body == data
    assert raw.answer(5).protocol_status == REQUEST_COMPLETE
    assert raw.request(id=5).body == b"/hello"
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    raw.socket.close()


def test_the_connection_of_a_request_that_waits_for_a_thread_is_heard(
    make_server: MakeServer,
) -> None:
    gate = Gate()
    served = make_server(gate, threads=1, queue=1)
    (raw,) = gate.hold(served, 1)
    queued = ask(served)
    time.sleep(0.1)  # it waits by now
    assert queued.values(b"FCGI_MPXS_CONNS") == {b"FCGI_MPXS_CONNS": b"1"}
    queued.expect(2)
    queued.send(whole(2))
    assert queued.answer(2).status == "503 Service Unavailable"
    queued.send(record(ABORT_REQUEST, 1))
    assert queued.answer(1).protocol_status == REQUEST_COMPLETE
    gate.open.set()
    assert raw.answer(1).body == b"/wait"  # nothing of that has waited for it
    assert gate.inside == 1
    raw.socket.close()
    queued.socket.close()


@pytest.mark.statement("19")
def test_503_beside_others_when_the_queue_is_full(make_server: MakeServer) -> None:
    gate = Gate()
    served = make_server(gate, threads=1, queue=1)
    (raw,) = gate.hold(served, 1)
    queued = ask(served)
    settle(queued)
    raw.expect(2)
    raw.send(whole(2))
    assert raw.answer(2).status == "503 Service Unavailable"
    gate.open.set()
    assert raw.answer(1).body == b"/wait"
    assert queued.answer().body == b"/hello"
    assert raw.request(id=2).body == b"/hello"
    raw.socket.close()
    queued.socket.close()
