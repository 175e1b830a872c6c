"""The status: what scoreboards say, as text, JSON and OpenMetrics, and whether all is well."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import parse_qs

from fulgate.errors import ConfigError
from fulgate.exchange import Reply
from fulgate.processes.latency import bucket_limit, percentile
from fulgate.processes.notes import ERROR, SLOW, Note
from fulgate.processes.page import PAGE
from fulgate.processes.scoreboard import (
    BUSY,
    READY,
    STARTING,
    STOPPING,
    Scoreboard,
    ThreadScore,
    Totals,
    WorkerScore,
)

__all__ = ["Status", "health", "open_metrics", "text_of"]

LATE: Final = 15.0  # seconds without a word of a worker, after which it counts as dead
WORKER_STATES: Final = {STARTING: "starting", READY: "ready", STOPPING: "stopping"}
THREAD_STATES: Final = {1: "idle", 2: "busy", 3: "open"}
# The buckets that OpenMetrics gets: from half a millisecond to a minute, exact powers of two.
BOUNDS: Final = tuple(2.0**power for power in range(-11, 7))

Document = dict[str, Any]


class Status:
    """Answers from the scoreboards of the pools, by name."""

    def __init__(self, version: str, pools: Callable[[], Mapping[str, Scoreboard]]) -> None:
        self._version = version
        self._pools = pools

    def boards(self) -> Mapping[str, Scoreboard]:
        """Give the scoreboards that it tells of, by the names of the pools."""
        return self._pools()

    def document(self, full: bool = True) -> Document:
        """Give all that is known, for JSON; `full` lists workers and threads."""
        now = time.monotonic()
        return {
            "version": self._version,
            "time": round(time.time(), 3),
            "pools": [_pool(name, board, now, full) for name, board in self._pools().items()],
        }

    def answer(self, path: str, query: str, accept: str = "") -> Reply:
        """Answer a request for a path: /ping, /health, /metrics, / (the page) or another (text).

        `query` is as PHP-FPM's: json, html, openmetrics, full.
        """
        asked = set(parse_qs(query, keep_blank_values=True))
        if path.endswith("/ping"):
            return _plain("200 OK", "pong")
        if path.endswith("/health"):
            word, well = health(self.document())
            return _plain("200 OK" if well else "503 Service Unavailable", word)
        if path.endswith("/metrics") or "openmetrics" in asked:
            return self._metrics()
        full = "full" in asked
        if "json" in asked:
            text = json.dumps(self.document(full), separators=(",", ":"))
            return Reply("200 OK", "application/json", text.encode())
        if "html" in asked or (path.endswith("/") and "text" not in asked):
            return Reply("200 OK", "text/html; charset=utf-8", PAGE)
        return _plain("200 OK", text_of(self.document(full)))

    def _metrics(self) -> Reply:
        try:
            text, kind = open_metrics(self.document())
        except ConfigError as error:
            return _plain("501 Not Implemented", str(error))
        return Reply("200 OK", kind, text)


def _plain(status: str, text: str) -> Reply:
    return Reply(status, "text/plain; charset=utf-8", text.rstrip("\n").encode() + b"\n")


def _pool(name: str, board: Scoreboard, now: float, full: bool) -> Document:
    score, workers, totals = board.pool(), board.workers(), board.totals()
    started = score.started or min((worker.started for worker in workers), default=now)
    limits = [worker.queue_limit for worker in workers if worker.queue_limit is not None]
    found: Document = {
        "name": name,
        "uptime": round(now - started, 3),
        "generation": score.generation,
        "spawned": score.spawned,
        "died": score.died,
        "killed": score.killed,
        "recycled": score.recycled,
        "max_workers_reached": score.reached,
        "workers": _count(WORKER_STATES, (worker.state for worker in workers)),
        "threads": {
            "idle": sum(worker.idle for worker in workers),
            "busy": sum(worker.busy for worker in workers),
        },
        "connections": sum(worker.connections for worker in workers),
        "queued": sum(worker.queued for worker in workers),
        "queue_limit": max(limits, default=None),
        "queue_most": totals.queue_most,
        "rss": sum(worker.rss for worker in workers),
        "heard": round(min((now - worker.heard for worker in workers), default=0.0), 3),
        "totals": _totals(totals),
        "slow": _slow(workers, now),
        "recent_slow": [_note(note) for note in board.recent(SLOW)],
        "recent_errors": [_note(note) for note in board.recent(ERROR)],
    }
    found["health"] = _health(found, bool(score.rests))
    if full:
        found["processes"] = [_worker(worker, now) for worker in workers]
    return found


def _count(names: Mapping[int, str], states: Iterable[int]) -> dict[str, int]:
    found = dict.fromkeys(names.values(), 0)
    for state in states:
        if state in names:
            found[names[state]] += 1
    return found


def _totals(totals: Totals) -> Document:
    latency = [[n, count] for n, count in enumerate(totals.latency) if count]
    return {
        "requests": totals.requests,
        "answers": dict(zip(("1xx", "2xx", "3xx", "4xx", "5xx"), totals.answers, strict=True)),
        "errors": totals.errors,
        "aborted": totals.aborted,
        "broken": totals.broken,
        "refused": totals.refused,
        "queue_full": totals.queue_full,
        "dropped": totals.dropped,
        "accepted": totals.accepted,
        "received": totals.received,
        "sent": totals.sent,
        "busy": round(totals.busy, 6),
        "cpu": round(totals.cpu, 6),
        "latency": latency,
        "p50": round(percentile(list(totals.latency), 0.50), 6),
        "p95": round(percentile(list(totals.latency), 0.95), 6),
        "p99": round(percentile(list(totals.latency), 0.99), 6),
    }


def _slow(workers: list[WorkerScore], now: float) -> list[Document]:
    """The requests that run longest, of those that run for a tenth of a second and more."""
    found = [
        {"pid": worker.pid, **_thread(thread, now)}
        for worker in workers
        for thread in worker.threads
        if thread.state == BUSY and now - thread.since >= 0.1
    ]
    return sorted(found, key=lambda one: -float(one["for"]))[:10]


def _note(note: Note) -> Document:
    return {
        "time": round(note.time, 3),
        "seconds": round(note.seconds, 3),
        "pid": note.pid,
        "line": note.line,
        "id": note.id,
        "what": note.what,
    }


def _worker(worker: WorkerScore, now: float) -> Document:
    return {
        "slot": worker.slot,
        "pid": worker.pid,
        "generation": worker.generation,
        "state": WORKER_STATES.get(worker.state, "?"),
        "uptime": round(now - worker.started, 3),
        "heard": round(now - worker.heard, 3),
        "rss": worker.rss,
        "cpu": round(worker.cpu, 3),
        "connections": worker.connections,
        "queued": worker.queued,
        "queue_limit": worker.queue_limit,
        "queue_most": worker.totals.queue_most,
        "queue_full": worker.totals.queue_full,
        "busy": worker.busy,
        "capacity": worker.capacity or len(worker.threads),
        "requests": worker.totals.requests,
        "errors": worker.totals.errors,
        "threads": [_thread(thread, now) for thread in worker.threads],
    }


def _thread(thread: ThreadScore, now: float) -> Document:
    return {
        "number": thread.number + 1,
        "state": THREAD_STATES.get(thread.state, "?"),
        "for": round(max(now - thread.since, 0.0), 3),
        "requests": thread.totals.requests,
        "line": thread.line,
        "id": thread.id,
    }


def _health(pool: Document, rests: bool) -> str:
    workers = pool["workers"]
    if not workers["ready"]:
        return "starting" if workers["starting"] else "ok" if rests else "dead"
    if pool["heard"] > LATE:
        return "dead"
    return "busy" if pool["threads"]["busy"] and not pool["threads"]["idle"] else "ok"


def health(document: Document) -> tuple[str, bool]:
    """Say how the pools are, in the word for the worst of them, and whether that is well.

    "ok", also of an ondemand pool that rests; "busy", when all threads run requests, which is no
    reason to kill anybody; "starting"; "dead", when no worker of a pool is there, or none was heard
    of for LATE seconds.
    """
    words = {pool["health"] for pool in document["pools"]} or {"dead"}
    word = next(word for word in ("dead", "starting", "busy", "ok") if word in words)
    return word, word in ("ok", "busy")


def text_of(document: Document) -> str:
    """Give it as lines of "name: value", PHP-FPM's names where they mean the same."""
    lines: list[str] = []
    for pool in document["pools"]:
        totals, workers, threads = pool["totals"], pool["workers"], pool["threads"]
        pairs: dict[str, Any] = {
            "pool": pool["name"],
            "health": pool["health"],
            "start since": int(pool["uptime"]),
            "accepted conn": totals["accepted"],
            "listen queue": pool["queued"],
            "max listen queue": pool["queue_most"],
            "listen queue len": _limit(pool["queue_limit"]),
            "listen queue full": totals["queue_full"],
            "connections": pool["connections"],
            "workers": ", ".join(f"{count} {state}" for state, count in workers.items()),
            "total processes": sum(workers.values()),
            "idle threads": threads["idle"],
            "active threads": threads["busy"],
            "max children reached": pool["max_workers_reached"],
            "generation": pool["generation"],
            "recycled": pool["recycled"],
            "died": pool["died"],
            "requests": totals["requests"],
            "errors": totals["errors"],
            "aborted": totals["aborted"],
            "refused": totals["refused"],
            "latency": ", ".join(f"{p} {_ms(totals[p])}" for p in ("p50", "p95", "p99")),
            "memory": pool["rss"],
        }
        lines += [f"{name + ':':<22}{value}" for name, value in pairs.items()]
        for worker in pool.get("processes", ()):
            lines += ["", *_full(worker)]
        if "processes" in pool:
            lines += ["", *_recent("slow", pool["recent_slow"])]
            lines += _recent("error", pool["recent_errors"])
        lines.append("")
    return "\n".join(lines)


def _full(worker: Document) -> list[str]:
    lines = ["*" * 24]
    for name in ("pid", "state", "generation", "requests", "errors", "connections", "rss", "cpu"):
        lines.append(f"{name + ':':<22}{worker[name]}")
    most, limit = worker["queue_most"], _limit(worker["queue_limit"])
    queue = f"{worker['queued']}, at most {most} of {limit}, {worker['queue_full']} times full"
    lines.append(f"{'queue:':<22}{queue}")
    lines.append(f"{'start since:':<22}{int(worker['uptime'])}")
    for thread in worker["threads"]:
        line = _printable(thread["line"]) or "-"
        lines.append(
            f"thread {thread['number']:>3}  {thread['state']:<5}{thread['for']:>12.3f} s"
            f"{thread['requests']:>10}  {line}"
        )
    return lines


def _recent(name: str, notes: list[Document]) -> list[str]:
    return [
        f"{name:<6} {time.strftime('%Y-%m-%d %H:%M:%S %z', time.localtime(note['time']))}"
        f"  {note['seconds']:.3f} s  {note['pid']}  {_printable(note['line']) or '-'}"
        f"  {_printable(note['what'])}"
        for note in notes
    ]


def _limit(number: int | None) -> str:
    return "no limit" if number is None else str(number)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


def _printable(line: str) -> str:
    return "".join(char if " " <= char <= "~" else f"\\x{ord(char):02x}" for char in line)


def open_metrics(document: Document) -> tuple[bytes, str]:
    """Give it as OpenMetrics, with the content type; ConfigError without prometheus_client."""
    try:
        from prometheus_client import CollectorRegistry
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            Metric,
        )
        from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
    except ImportError as error:
        raise ConfigError("OpenMetrics needs prometheus_client: install fulgate[status]") from error

    class Collector:
        def collect(self) -> Iterable[Metric]:
            for name, text, key in _COUNTERS:
                counter = CounterMetricFamily(f"fulgate_{name}", text, labels=["pool"])
                for pool in document["pools"]:
                    counter.add_metric([pool["name"]], _find(pool, key))
                yield counter
            for name, text, key in _GAUGES:
                gauge = GaugeMetricFamily(f"fulgate_{name}", text, labels=["pool"])
                for pool in document["pools"]:
                    if (value := _find(pool, key)) is not None:
                        gauge.add_metric([pool["name"]], value)
                yield gauge
            for name, text, key in _BY_STATE:
                labels = ["pool", "class" if key == "totals.answers" else "state"]
                kind = CounterMetricFamily if key == "totals.answers" else GaugeMetricFamily
                family = kind(f"fulgate_{name}", text, labels=labels)
                for pool in document["pools"]:
                    for state, value in _find(pool, key).items():
                        family.add_metric([pool["name"], state], value)
                yield family
            histogram = HistogramMetricFamily(
                "fulgate_request_duration_seconds", "Duration of requests.", labels=["pool"]
            )
            for pool in document["pools"]:
                buckets = _buckets(pool["totals"]["latency"])
                histogram.add_metric([pool["name"]], buckets, sum_value=None)
            yield histogram

    registry = CollectorRegistry()
    registry.register(Collector())
    generate: Callable[[CollectorRegistry], bytes] = generate_latest
    return generate(registry), CONTENT_TYPE_LATEST


def _find(pool: Document, key: str) -> Any:
    found: Any = pool
    for part in key.split("."):
        found = found[part]
    return found


def _buckets(latency: list[list[int]]) -> list[tuple[str, float]]:
    """Cumulated counts. Each bound is one of the scoreboard's, so that nothing is estimated."""
    found: list[tuple[str, float]] = []
    for bound in BOUNDS:
        found.append((str(bound), sum(count for n, count in latency if bucket_limit(n) <= bound)))
    return [*found, ("+Inf", sum(count for _, count in latency))]


_COUNTERS = (
    ("requests", "Requests that the application answered.", "totals.requests"),
    ("errors", "Answers 5xx, and broken ones.", "totals.errors"),
    ("aborted", "Requests that the web server gave up.", "totals.aborted"),
    ("broken", "Answers that began and did not end.", "totals.broken"),
    ("refused", "Requests that the server answered itself.", "totals.refused"),
    ("queue_full", "Requests that found the queue full, of the refused.", "totals.queue_full"),
    ("connections_accepted", "Connections accepted.", "totals.accepted"),
    ("received_bytes", "Bytes of requests' bodies.", "totals.received"),
    ("sent_bytes", "Bytes of answers' bodies.", "totals.sent"),
    ("busy_seconds", "Time that threads spent in the application.", "totals.busy"),
    ("cpu_seconds", "CPU time of the processes.", "totals.cpu"),
    ("workers_died", "Workers that ended without being told.", "died"),
    ("workers_recycled", "Workers replaced for age, memory or requests.", "recycled"),
    ("max_workers_reached", "How often all workers there may be were busy.", "max_workers_reached"),
)
_GAUGES = (
    ("connections", "Connections that are open.", "connections"),
    ("queue", "Requests that wait for a thread.", "queued"),
    ("queue_limit", "How many may wait in one worker.", "queue_limit"),
    ("queue_most", "The most that have waited in one worker.", "queue_most"),
    ("memory_bytes", "Resident memory of the workers.", "rss"),
    ("uptime_seconds", "Time since the start.", "uptime"),
    ("generation", "Grows with each reload.", "generation"),
)
_BY_STATE = (
    ("workers", "Workers by state.", "workers"),
    ("threads", "Threads by state.", "threads"),
    ("answers", "Answers by class of status.", "totals.answers"),
)
