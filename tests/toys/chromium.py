"""Drive headless Chromium through its debugging protocol: enough to open a page, watch it, click and ask."""

import asyncio
import itertools
import shutil
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip
_LIMIT_S = 60.0


def find_chromium() -> str | None:
    """The browser's program, if one is installed."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Page:
    """An open page; `complaints` are its console errors, exceptions and refused loads, `requests` what it asked for."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.numbers = itertools.count(1)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.loaded = False

    async def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its result."""
        number = next(self.numbers)
        await self.socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._receive()
            if message.get("id") == number:
                assert "error" not in message, message
                return dict(message["result"])

    async def _receive(self) -> dict[str, Any]:
        message: dict[str, Any] = await self.socket.receive_json(timeout=_LIMIT_S)
        event, details = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown":
            self.complaints.append(str(details["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and details["type"] in ("error", "warning"):
            self.complaints.append(str(details["args"]))
        elif event == "Log.entryAdded" and details["entry"]["level"] in ("error", "warning"):
            self.complaints.append(details["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Page.loadEventFired":
            self.loaded = True
        return message

    async def open(self, file: Path) -> None:
        """Go to a file and wait until it has loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=file.as_uri())
        while not self.loaded:
            await self._receive()

    async def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = await self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def click(self, selector: str) -> None:
        """Press the mouse in the middle of an element."""
        box = await self.ask(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const b = e.getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind, button in (("mouseMoved", "none"), ("mousePressed", "left"), ("mouseReleased", "left")):
            await self.send("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button=button, clickCount=1)


def drive(file: Path, profile: Path, script: Callable[[Page], Awaitable[None]], width: int = 1200) -> Page:
    """Open a file in a fresh browser of some width, run a script on the page, and end the browser."""
    program = find_chromium()
    assert program is not None
    profile.mkdir()
    command = [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return asyncio.run(_drive(_wait_for_port(profile / "DevToolsActivePort"), file, script, width))
    finally:
        browser.terminate()
        browser.wait(timeout=_LIMIT_S)


def _wait_for_port(file: Path) -> int:
    """The browser writes the port once it listens."""
    deadline = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline:
        if file.exists() and file.read_text().strip():
            return int(file.read_text().split()[0])
        time.sleep(0.05)
    raise TimeoutError(f"Chromium did not start within {_LIMIT_S:g} s")


async def _drive(port: int, file: Path, script: Callable[[Page], Awaitable[None]], width: int) -> Page:
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
            targets = await response.json()
        address = next(target["webSocketDebuggerUrl"] for target in targets if target["type"] == "page")
        async with session.ws_connect(address, max_msg_size=0) as socket:
            page = Page(socket)
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            await page.send("Emulation.setDeviceMetricsOverride", **size)
            await page.open(file)
            await script(page)
            return page
