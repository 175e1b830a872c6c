"""What is asked of each server: the workloads, and which of them belong to a run."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Workload:
    """What is asked for.

    `keep`: does the web server keep its connections alive? `mix` gives paths and their share of
    the requests; `aside` paths and the number of further connections that ask for nothing else.
    `peers`: the group of peers that it is for. `only`: the ways it can go.
    """

    name: str
    text: str
    path: str = "/"
    body: int = 0
    answer: int = 12  # bytes at least; less of them is no answer
    connections: int = 32
    keep: bool = True
    mix: dict[str, float] = field(default_factory=dict)
    aside: dict[str, int] = field(default_factory=dict)
    idle: int = 0
    silent: int = 0
    churn: int = 0  # connections opened and closed at once, a second
    only: tuple[str, ...] = ("direct", "nginx")
    peers: str = "all"
    seconds: float = 0.0  # at least

    @property
    def paths(self) -> set[str]:
        return {self.path, *self.mix, *self.aside}


_DIRECT = ("direct",)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("hello", "12 bytes, 32 kept-alive connections", seconds=2.0),
        Workload("hello-256", "12 bytes, 256 kept-alive connections", connections=256, seconds=2.0),
        Workload("64k", "64 KiB response", "/64k", answer=65536),
        Workload("upload", "64 KiB request body, read by the application", "/upload", 65536),
        Workload(
            "stream",
            "1 MiB response in 16 KiB pieces from a generator",
            "/stream",
            answer=1 << 20,
        ),
        Workload("close", "12 bytes, a new connection for each request", keep=False),
        Workload("wait", "the application waits 5 ms", "/wait/5", seconds=1.5),
        Workload(
            "idle", "12 bytes, beside 4,000 idle connections that had one request each",
            idle=4000, only=_DIRECT,
        ),
        Workload(
            "churn", "12 bytes, beside 1,000 connections a second that are closed at once",
            churn=1000, only=_DIRECT,
        ),
        Workload(
            "silent", "12 bytes, beside 256 connections that send nothing",
            silent=256, only=_DIRECT,
        ),
        Workload(
            "mix", "90 % of requests 12 bytes, 10 % wait 50 ms",
            mix={"/wait/50": 0.1}, only=_DIRECT, peers="threads", seconds=2.0,
        ),
        Workload(
            "rare", "12 bytes; 0.03 % of requests wait 20 ms",
            mix={"/wait/20": 0.0003}, only=_DIRECT, peers="threads", seconds=2.0,
        ),
        Workload(
            "waiters", "12 bytes, beside 4 connections whose requests wait 50 ms",
            aside={"/wait/50": 4}, only=_DIRECT, peers="threads", seconds=2.0,
        ),
        Workload(
            "streams", "12 bytes, beside 2,000 streams of events, open and still",
            aside={"/events": 2000}, only=_DIRECT, peers="asgi", seconds=2.0,
        ),
        Workload(
            "compute", "the application computes for 3 ms and waits for 2 ms",
            "/compute/3/2", only=_DIRECT, peers="threads", seconds=2.0,
        ),
        Workload(
            "beside-python", "12 bytes, beside one request after the other of 500 ms in Python",
            aside={"/python/500": 1}, only=_DIRECT, peers="threads", seconds=3.0,
        ),
        Workload(
            "beside-c", "12 bytes, beside one request after the other of 500 ms in C, GIL released",
            aside={"/released/500": 1}, only=_DIRECT, peers="threads", seconds=3.0,
        ),
    )
}  # fmt: skip
