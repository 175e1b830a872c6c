"""A real browser, without a window: Chromium, spoken to over two pipes (DevTools Protocol)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds


class Browser:
    """One page of a Chromium that runs."""

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        self._rest = b""
        self._number = 0
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol, and give its result."""
        self._number += 1
        said = {"id": self._number, "method": method, "params": params, **self._session}
        os.write(self._writer, json.dumps(said).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            *messages, self._rest = self._rest.split(b"\0")
            for message in map(json.loads, messages):
                if message.get("id") == self._number:
                    assert "error" not in message, message
                    result: dict[str, Any] = message["result"]
                    return result
            left = end - time.monotonic()
            assert left > 0, "the browser does not answer"
            assert select.select([self._reader], [], [], left)[0], "the browser does not answer"
            data = os.read(self._reader, 1 << 16)
            assert data, "the browser has ended"
            self._rest += data

    def open(self, url: str, width: int, height: int, mobile: bool = False) -> None:
        """Open a page in a window of this size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=2 if mobile else 1, mobile=mobile,
        )  # fmt: skip
        self.call("Page.navigate", url=url)
        end = time.monotonic() + PATIENCE
        while not self.value(f"location.href == {url!r} && document.readyState == 'complete'"):
            assert time.monotonic() < end, "the page does not load"
            time.sleep(0.05)

    def value(self, expression: str) -> Any:
        """Give the value of an expression of JavaScript, in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Save what the page looks like, all of it, as PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(program: str, folder: Path) -> Iterator[Browser]:
    """Run Chromium, with its profile in a folder."""
    theirs_in, writer = os.pipe()
    reader, theirs_out = os.pipe()
    # DevTools wants the descriptors 3 and 4. Theirs are moved away first, being perhaps just these.
    script = f'exec 8<&{theirs_in} 9>&{theirs_out}; exec "$@" 3<&8 4>&9 8<&- 9>&-'
    command = [
        program, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--remote-debugging-pipe", f"--user-data-dir={folder}/profile",
    ]  # fmt: skip
    with (folder / "browser.log").open("w") as said:
        process = subprocess.Popen(
            ["bash", "-c", script, "-", *command],
            pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        found = Browser(reader, writer)
        yield found
        found._session = {}
        with contextlib.suppress(AssertionError, OSError):
            found.call("Browser.close")
    finally:
        os.close(writer)
        os.close(reader)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)
