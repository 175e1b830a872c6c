"""Count a request's instructions in user space. usage: instructions.py [WORKLOAD [PEER [COUNT]]]

By `valgrind --tool=callgrind`, which other programs on the machine do not disturb: two runs differ
by a hundredth. It gives the sum, and those of the compiled functions that take most, with all that
they call. The sum has the control thread in it, which ticks the more often the longer it takes;
so compare functions, such as `Wire___ready` and `Threads____run`, which together are a request.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from install import prepare
from peers import BUILD, PEERS, Peer
from running import Running
from workloads import WORKLOADS, Workload

REQUESTS = 2000
CONNECTIONS = 4
ROW = re.compile(r"\s*([\d,]+) \([ \d.]+%\)\s+\S*?:?(CPyDef_\w+)")


def load(workload: Workload, path: Path, requests: int) -> None:
    options = [f"--requests={requests}", f"--connections={CONNECTIONS}", f"--path={workload.path}"]
    options += [f"--body={workload.body}", *([] if workload.keep else ["--close"])]
    subprocess.run([BUILD / "load", *options, f"unix:{path}"], check=True, capture_output=True)


def measure(peer: Peer, workload: Workload, out: Path) -> str:
    """Give what callgrind_annotate says of so many requests, once the server is warm."""
    valgrind = ["valgrind", "--tool=callgrind", "--instr-atstart=no"]

    def command(path: Path) -> list[str]:
        return [*valgrind, f"--callgrind-out-file={out}", *peer.command(path), "--threads", "1"]

    with Running(replace(peer, command=command), out.with_name("sock")) as server:
        load(workload, server.path, REQUESTS // 4)
        for switch, requests in (("on", REQUESTS), ("off", 0)):
            control = ["callgrind_control", f"--instr={switch}", str(server.process.pid)]
            subprocess.run(control, check=True, capture_output=True)
            if requests:
                load(workload, server.path, requests)
        server.process.terminate()
        server.process.wait(30)
    annotate = ["callgrind_annotate", "--inclusive=yes", "--threshold=100", str(out)]
    return subprocess.run(annotate, check=True, capture_output=True, text=True).stdout


def main() -> None:
    name, peer, functions = [
        *sys.argv[1:],
        *["hello", "fulgate-compiled", "40"][len(sys.argv) - 1 :],
    ]
    if failed := prepare([PEERS[peer]]):
        raise SystemExit(next(iter(failed.values())))
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        text = measure(PEERS[peer], WORKLOADS[name], Path(folder) / "callgrind.out")
    total = re.search(r"([\d,]+) .*PROGRAM TOTALS", text)
    if total is None:
        raise SystemExit("callgrind counted nothing")
    print(f"{int(total[1].replace(',', '')) / REQUESTS:10,.0f} in all")
    rows = [found for line in text.splitlines() if (found := ROW.match(line))]
    for row in rows[: int(functions)]:
        print(f"{int(row[1].replace(',', '')) / REQUESTS:10,.0f} {row[2].removeprefix('CPyDef_')}")


if __name__ == "__main__":
    main()
