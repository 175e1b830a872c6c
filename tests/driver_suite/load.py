"""Many requests of all kinds at once."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable

from tests.driver_suite.kit import END, Environ, MakeServer, Served, Start, answer
from tests.model import ABORT_REQUEST
from tests.raw import PATIENCE, Raw, head, post, record


def test_short_requests_and_aborts_at_random(make_server: MakeServer, many: int) -> None:
    def app(environ: Environ, start: Start) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] == "POST":
            return answer(start, environ["wsgi.input"].read()[::-1])
        if environ["PATH_INFO"] == "/long":
            return answer(start, bytes(300_000))
        return answer(start, environ["PATH_INFO"].encode())

    served = make_server(app, threads=4)
    failures = list[BaseException]()

    def client(number: int) -> None:
        chance = random.Random(number)
        raw = Raw(served.address)
        try:
            for count in range(many // 16):
                raw = one_of_many(served, raw, chance, f"/{number}/{count}")
        except BaseException as error:
            failures.append(error)
        finally:
            raw.socket.close()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE * 2)
        assert not thread.is_alive(), "a client waits"
    assert not failures
    assert served.stop(PATIENCE) is True


def one_of_many(served: Served, raw: Raw, chance: random.Random, path: str) -> Raw:
    """Make one request of some kind; give the connection for the next one."""
    raw.reader.order.clear()
    kind = chance.random()
    if kind < 0.7:
        assert raw.request(path).body == path.encode()
        return raw
    if kind < 0.8:
        body = chance.randbytes(chance.choice((1, 100, 70_000)))
        assert raw.request(path, body=body).body == body[::-1]
        return raw
    if kind < 0.9:  # aborted by a record, at any point of it
        raw.expect()
        data = head(path, **post(100))
        ends = 8 + 8 + len(data) - 24, len(data)  # before the end of PARAMS, or after it
        raw.send(data[: chance.choice(ends)], record(ABORT_REQUEST, 1))
        raw.answer()
        return raw
    if kind < 0.95:
        assert raw.request(path, keep=False).body == path.encode()
        assert raw.closed()
    else:  # gone, at any point of it
        raw.expect()
        data = head("/long") + END
        raw.send(data[: chance.randrange(len(data) + 1)])
    raw.socket.close()
    return Raw(served.address)
