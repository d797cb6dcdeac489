"""The page of sliders in a headless Chromium: quiet, loads nothing, fits a phone, moves by keys and by pointer."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from data_cache.outputs import write_page
from stages.comparison.sliders import LEAST_SHARE, Slide, build_sliders
from tests.stages.comparison.test_page_in_browser import CHROMIUM, FAILED, LOUD, Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here"),
]
COLOURS = {f"class-{n}-of-many": (10 * n, 200 - 5 * n, 90) for n in range(24)} | {"<b onload=alert(1)>": (1, 2, 3)}
FIRST = "document.querySelector('.compare input')"
AT = "document.querySelector('.compare').style.getPropertyValue('--at')"


def picture(colour: tuple[int, int, int], size: tuple[int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, format="PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shares = dict.fromkeys(COLOURS, 0.0) | {"class-3-of-many": 1 - LEAST_SHARE / 2, "class-4-of-many": LEAST_SHARE / 2}
    slides = [
        Slide(name, "640 × 400 px", picture((200, 0, 0), size), picture((0, 0, 200), size), shares)
        for name, size in (("street.jpg", (640, 400)), ("long-name" * 20 + '"<i>.png', (300, 700)))
    ]
    built = build_sliders(
        slides, title="What a model sees", facts=f"Model /{'long' * 40}.", colours=COLOURS,
        failures=["image <b>x</b>.png cannot be read"],
    )  # fmt: skip
    out = tmp_path_factory.mktemp("page") / "sliders.html"
    write_page(built, out, overwrite=False)
    return out


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1280, "dark")])
def test_page_is_quiet_loads_nothing_and_fits(browser: Browser, page: Path, width: int, scheme: str) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    assert browser.evaluate("document.images.length") == 4
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert not {event["method"] for event in browser.events} & {*LOUD, FAILED}, browser.events
    sizes = "[...document.querySelectorAll('main *')].filter(e => e.childNodes.length && e.textContent.trim())"
    assert browser.evaluate(f"Math.min(...{sizes}.map(e => parseFloat(getComputedStyle(e).fontSize)))") >= 10
    colour = "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 30)"
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == colour
    shown = browser.evaluate("[...document.querySelectorAll('figure .legend')].map(list => list.innerText)")
    assert all("class-3-of-many" in text and "class-4-of-many" not in text for text in shown)
    assert "<b onload=alert(1)>" in browser.evaluate("document.querySelector('header .legend').innerText")


def test_a_slider_moves_by_keys_and_by_pointer_over_the_very_pixels(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    assert browser.evaluate(AT) == "50%"
    browser.evaluate(f"{FIRST}.focus()")
    key = {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39}
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, **key)
    assert browser.evaluate(AT) == "51%" and browser.evaluate(f"{FIRST}.ariaValueText") == "51 percent photograph"
    assert browser.evaluate("getComputedStyle(document.querySelector('.compare')).outlineStyle") == "solid"
    box = browser.evaluate(
        f"(({{left, top, width, height}}) => [left, top, width, height])({FIRST}.getBoundingClientRect())"
    )
    place = {"x": box[0] + box[2] * 0.25, "y": box[1] + box[3] / 4, "button": "left", "clickCount": 1}
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, **place)
    at = float(browser.evaluate(AT).rstrip("%"))
    assert at == pytest.approx(25, abs=2)
    clip = {"x": box[0], "y": place["y"], "width": box[2], "height": 1, "scale": 1}
    shot = Image.open(io.BytesIO(base64.b64decode(browser.call("Page.captureScreenshot", clip=clip)["data"]))).convert(
        "RGB"
    )
    seen = [shot.getpixel((round(shot.width * (at + away) / 100), 0)) for away in (-4, 4)]
    assert seen == [(200, 0, 0), (0, 0, 200)], "photograph on the left, classes on the right"
