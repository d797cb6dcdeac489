"""The page in a headless Chromium: quiet, loads nothing, fits a phone, and its tables sort."""

from __future__ import annotations

import fcntl
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_cache.metrics import HEADLINE
from stages.comparison.identity import Identity
from stages.comparison.pictures import Illustrations, Picture, Strip
from stages.comparison.record import ClassRecord, PhaseRecord, RunRecord
from stages.comparison.report import write_report
from stages.comparison.table import build_table

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LOUD = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}
FAILED = "Network.loadingFailed"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here"),
]


class Browser:
    """A page of Chromium, spoken to through its pipe of the DevTools protocol: no socket, no further package."""

    def __init__(self, profile: Path, *words: str) -> None:
        theirs_in, self._write = os.pipe()
        self._read, theirs_out = os.pipe()
        # The ends that Chromium expects as 3 and 4 must not lie there before they are put there.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]

        def place_ends() -> None:
            for number, end in zip((3, 4), ends, strict=True):
                os.dup2(end, number, inheritable=True)

        words = (
            *words,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        )
        self._process = subprocess.Popen(
            [str(CHROMIUM), *words, "about:blank"],
            preexec_fn=place_ends,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (theirs_in, theirs_out, *ends):
            os.close(end)
        self._rest, self._count, self._session = b"", 0, None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Return what Chromium answers; what it tells in between is kept in ``events``."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._rest:
                found = os.read(self._read, 1 << 20)
                assert found, "Chromium is gone"
                self._rest += found
            line, _, self._rest = self._rest.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, code: str) -> Any:
        """Return the value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def open(self, page: Path | str, *, width: int, scheme: str = "light") -> None:
        """Show a page at a width, in a colour scheme."""
        self.events.clear()
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while self.evaluate("document.readyState") != "complete":
            time.sleep(0.02)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page with everything that may grow too wide: long names, many classes, many phases, pictures."""
    folder = tmp_path_factory.mktemp("page")
    names = {
        "seg-only": 0.4,
        "depth-first+copy": 0.61,
        "depth-first+copy@shuffled": 0.42,
        "<b onload=alert(1)>" * 4: 0.5,
    }
    classes = tuple(ClassRecord(f"class-{n}-of-many", n / 24, 0.5, 100) for n in range(24))
    runs = []
    for name, score in names.items():
        phases = tuple(PhaseRecord(f"phase-{n}-with-a-name", 10, 1.0) for n in range(4))
        lines = [{"phase": phase.name, "step": 10, "raw": {"seg": 0.5, "depth": 0.01}} for phase in phases]
        place = folder / str(len(runs))
        place.mkdir()
        (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        identity = Identity("d", "v", "s" if "depth" in name else None, {"device": "cpu"}, 1, {})
        runs += [
            RunRecord(
                name, seed, "unet", "scenes", "demo", {HEADLINE: score + seed / 100, "depth_mse": 0.01}, phases, 40,
                classes, folder=place, command=f"pipeline run --workdir /{'long' * 40}", identity=identity,
                confusion=tuple(tuple(int(a == b) for a in range(24)) for b in range(24)),
            )
            for seed in range(3)
        ]  # fmt: skip
    stream = io.BytesIO()
    Image.new("RGB", (320, 200)).save(stream, format="JPEG")
    picture = Picture("where they differ", stream.getvalue())
    shown = Illustrations(
        (Strip("worst: " + "long-id" * 12, (picture,) * 7),), "Of seed 0.", (), (picture,) * 3, "Maps."
    )
    return write_report(build_table(runs), folder / "r.html", illustrations=shown)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_is_quiet_loads_nothing_and_fits(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    told = {event["method"] for event in browser.events}
    assert not told & {*LOUD, FAILED}, browser.events
    asked = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in asked} == {"file", "data"} and asked.count(page.as_uri()) == 1


def test_what_is_wider_than_a_phone_scrolls_by_itself_and_shows_that(browser: Browser, page: Path) -> None:
    browser.open(page, width=390)
    wide = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)"
    assert browser.evaluate(f"{wide}.length") >= 2
    assert browser.evaluate(f"{wide}.every(box => getComputedStyle(box).backgroundImage.includes('radial-gradient'))")


def test_text_is_nowhere_smaller_than_a_reader_needs(browser: Browser, page: Path) -> None:
    """Text of charts once shrank with them: at 390 px it had 4 px."""
    browser.open(page, width=390)
    sizes = "[...document.querySelectorAll('main *')].filter(e => e.childNodes.length && e.textContent.trim())"
    assert browser.evaluate(f"Math.min(...{sizes}.map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 10
    assert browser.evaluate("document.querySelectorAll('svg text').length") == 0


def test_colours_follow_the_scheme(browser: Browser, page: Path) -> None:
    shown = []
    for scheme in ("light", "dark"):
        browser.open(page, width=1280, scheme=scheme)
        shown.append(browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert shown == ["rgb(255, 255, 255)", "rgb(20, 24, 30)"]


def test_a_heading_sorts_its_table_by_number_and_again_the_other_way(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    table = "document.querySelector('table.sortable')"
    column = f"[...{table}.tBodies[0].rows].map(row => parseFloat(row.cells[{{}}].textContent))"
    head = f"[...{table}.tHead.rows[0].cells]"
    at = browser.evaluate(f"{head}.findIndex(cell => cell.classList.contains('headline'))")
    browser.evaluate(f"{head}[{at}].querySelector('button').click()")
    falling = browser.evaluate(column.format(at))
    assert falling == sorted(falling, reverse=True) and browser.evaluate(f"{head}[{at}].ariaSort") == "descending"
    browser.evaluate(f"{head}[{at}].querySelector('button').click()")
    assert browser.evaluate(column.format(at)) == falling[::-1]
    browser.evaluate(f"{head}[0].querySelector('button').click()")
    names = browser.evaluate(f"[...{table}.tBodies[0].rows].map(row => row.cells[0].textContent)")
    assert names == sorted(names, reverse=True) and browser.evaluate(f"{head}[{at}].ariaSort") is None
