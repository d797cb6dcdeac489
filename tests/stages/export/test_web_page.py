"""The page that runs the model, in a headless Chromium and from Python's own server: it sees what predicting sees."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_cache.errors import UserError
from data_cache.files import write_json
from data_cache.images import read_image
from data_cache.size_rule import ORIGINAL, SizeRule, fixed_size
from stages.evaluation.predict import Segmenter
from stages.export import web_page
from stages.export.preprocess import PREPROCESS_FILE
from stages.export.proof_file import PROOF_FILE, hash_files
from stages.export.web_page import RUNTIME_FILES, WebRuntime, read_web_runtime, write_web_page
from tests.stages.comparison.test_page_in_browser import CHROMIUM, FAILED, LOUD, Browser
from tests.stages.export.test_embedded_file import (
    CLASSES,
    NORMALISATION,
    PALETTE,
    build_network,
    draw,
    write_embedded,
)

EMPTY_RUNTIME = dict.fromkeys(RUNTIME_FILES, b"")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed here")
STATUS = "document.getElementById('status').textContent"
READY = "!document.getElementById('file').disabled"


def write_export(folder: Path, rule: SizeRule = ORIGINAL) -> Path:
    """Write what of an export the page is made from."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PREPROCESS_FILE, write_embedded(build_network(), rule, folder))
    same = {"before": 1, "after": 1}
    proof = {"format": 2, "export_key": "0", "files": hash_files(folder), "max_abs_difference": {}, "formats": {}}
    write_json(folder / PROOF_FILE, proof | {"parameters": same, "flops": same, "latency_ms": same | {"device": "cpu"}})
    return folder


def test_a_page_appears_whole_replaces_itself_and_spares_what_others_wrote(tmp_path: Path) -> None:
    export, out = write_export(tmp_path / "export"), tmp_path / "page"
    first = write_web_page(out, export, EMPTY_RUNTIME, name="a")
    assert sorted(out.iterdir()) == first and (out / "index.html").is_file()
    (out / "mine.txt").write_text("mine")
    write_web_page(out, export, EMPTY_RUNTIME, name="b")
    assert json.loads((out / "model.json").read_text())["name"] == "b" and (out / "mine.txt").read_text() == "mine"
    (out / "page.css").write_text("body {}")
    with pytest.raises(UserError, match=r"page\.css .* was changed since .* --overwrite"):
        write_web_page(out, export, EMPTY_RUNTIME, name="c")
    write_web_page(out, export, EMPTY_RUNTIME, name="c", overwrite=True)
    foreign = tmp_path / "site"
    foreign.mkdir()
    (foreign / "index.html").write_text("mine")
    with pytest.raises(UserError, match=r"index\.html is not of an export"):
        write_web_page(foreign, export, EMPTY_RUNTIME, name="a", overwrite=True)
    assert [path.name for path in foreign.iterdir()] == ["index.html"]
    (export / "model-embedded.onnx").write_bytes(b"another")
    with pytest.raises(UserError, match=r"not the one that proof\.json is of"):
        write_web_page(tmp_path / "other", export, EMPTY_RUNTIME, name="a")
    assert not (tmp_path / "other").exists()


def test_what_is_not_the_published_runtime_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="holds no npm package onnxruntime-web; give the folder"):
        read_web_runtime(tmp_path, print)
    package = tmp_path / "node_modules/onnxruntime-web"
    (package / "dist").mkdir(parents=True)
    (package / "package.json").write_text("{}")
    with pytest.raises(UserError, match="cannot read"):
        read_web_runtime(tmp_path, print)
    for file in RUNTIME_FILES.values():
        (package / file.packed).write_bytes(b"altered")
    for given in (tmp_path, package):
        with pytest.raises(UserError, match=r"is not that of version .*npm install onnxruntime-web@"):
            read_web_runtime(given, print)
    monkeypatch.chdir(package)
    monkeypatch.setenv("PATH", str(package))
    with pytest.raises(UserError, match="no npm here to fetch it"):
        read_web_runtime(None, print)
    (package / "npm").write_text("#!/bin/sh\necho 'npm warn old' >&2\necho 'npm error network' >&2\nexit 1\n")
    (package / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{package}:/bin:/usr/bin")
    with pytest.raises(UserError, match=r"could not fetch .*\(npm error network\); where there is a network run"):
        (package / "package.json").unlink()
        read_web_runtime(None, print)


@pytest.fixture(scope="module")
def runtime() -> WebRuntime:
    if shutil.which("npm") is None:
        pytest.skip("no npm is installed here, which fetches ONNX Runtime Web")
    try:
        return read_web_runtime(None, print)
    except UserError as problem:
        if "npm could not fetch" not in str(problem):
            raise
        pytest.skip(f"there is no network: {problem}")


@pytest.fixture(scope="module", params=[ORIGINAL, fixed_size((64, 96))], ids=str)
def served(
    request: pytest.FixtureRequest, runtime: WebRuntime, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, SizeRule]]:
    """Return the address of a page, and how images enter its model."""
    folder = tmp_path_factory.mktemp("web")
    write_web_page(folder / "page", write_export(folder / "export", request.param), runtime, name="net-" * 30)
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", folder / "page"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout is not None
    port = server.stdout.readline().split(" port ")[1].split()[0]
    yield f"http://127.0.0.1:{port}/", request.param
    server.terminate()
    server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    # Chromium draws a camera of its own, so that one is there wherever the test runs.
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    found = Browser(tmp_path_factory.mktemp("profile"), *camera)
    yield found
    found.close()


def wait(browser: Browser, condition: str) -> None:
    until = time.monotonic() + 120
    while not browser.evaluate(condition):
        assert time.monotonic() < until, (condition, browser.evaluate(STATUS), browser.events[-3:])
        time.sleep(0.05)


def choose_file(browser: Browser, file: Path) -> None:
    root = browser.call("DOM.getDocument")["root"]["nodeId"]
    node = browser.call("DOM.querySelector", nodeId=root, selector="#file")["nodeId"]
    browser.call("DOM.setFileInputFiles", files=[str(file)], nodeId=node)


def press(browser: Browser, key: str, number: int, **more: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=number, **more)


def read_labels(browser: Browser) -> np.ndarray:
    """Return the class indices of the label map that is shown."""
    height, width, text = browser.evaluate("""(() => {
        const canvas = document.getElementById("labels"), [width, height] = [canvas.width, canvas.height];
        const bytes = canvas.getContext("2d").getImageData(0, 0, width, height).data;
        return [height, width, btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""))];
    })()""")
    shown = np.frombuffer(base64.b64decode(text), np.uint8).reshape(height, width, 4)
    found = (shown[..., None, :] == np.array([(*colour, 255) for colour in PALETTE])).all(-1)
    assert found.any(-1).all(), "every pixel has a class's colour, and none is transparent"
    return found.argmax(-1)


@pytest.mark.slow
@in_browser
def test_the_page_labels_a_photo_as_predict_does(
    browser: Browser, served: tuple[str, SizeRule], tmp_path: Path
) -> None:
    page, rule = served
    photo, turned = tmp_path / "photo.jpg", Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(draw(240, 321)).save(photo, exif=turned, quality=95)
    (tmp_path / "words.jpg").write_text("no image")
    for width, scheme in ((1280, "light"), (390, "dark")):
        browser.open(page, width=width, scheme=scheme)
        wait(browser, READY)
        choose_file(browser, tmp_path / "words.jpg")
        wait(browser, f"{STATUS}.includes('words.jpg is no image that this browser can read')")
        choose_file(browser, photo)
        wait(browser, f"{STATUS} === 'Done.'")
        labels = read_labels(browser)
        segmenter = Segmenter(build_network(), NORMALISATION, size_rule=rule)
        expected = segmenter.segment(read_image(photo).pixels).labels
        assert labels.shape == expected.shape == (321, 240) and (labels == expected).mean() >= 0.99
        rows = browser.evaluate("[...document.querySelectorAll('#legend tbody tr')].map(row => row.textContent)")
        shares = [f"{name}{100 * (labels == index).mean():.1f} %" for index, name in enumerate(CLASSES)]
        assert rows == shares
        assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    told = {event["method"] for event in browser.events}
    assert not told & {*LOUD, FAILED}, browser.events
    asked = [event["params"] for event in browser.events if event["method"] == "Network.requestWillBeSent"]
    assert asked and {each["request"]["url"].startswith(page) for each in asked} == {True}


@pytest.mark.slow
@in_browser
@pytest.mark.parametrize("served", [fixed_size((64, 96))], indirect=True, ids=str)
def test_the_camera_the_slider_and_what_is_missing(browser: Browser, served: tuple[str, SizeRule]) -> None:
    page, _ = served
    browser.open(page, width=390)
    wait(browser, READY)
    browser.evaluate("document.getElementById('camera').focus()")
    press(browser, "Enter", 13, text="\r")
    wait(browser, "document.getElementById('speed').textContent.includes('frames per second')")
    browser.evaluate("document.getElementById('camera').click()")
    assert browser.evaluate(STATUS) == "The camera is off."
    browser.evaluate("document.getElementById('opacity').focus()")
    press(browser, "End", 35)
    assert browser.evaluate("document.getElementById('labels').style.opacity") == "1"
    assert browser.evaluate("document.getElementById('strength').textContent") == "100 %"
    for gone, words in (
        ("delete window.WebAssembly", "This browser has no WebAssembly"),
        ("Object.defineProperty(navigator, 'mediaDevices', {value: undefined})", "No camera can be used here"),
    ):
        added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=gone)["identifier"]
        browser.open(page, width=390)
        wait(browser, f"{READY} || {STATUS} !== 'Loading …' && {STATUS} !== 'Loading the model …'")
        browser.evaluate("document.getElementById('camera').click()")
        assert words in browser.evaluate(STATUS)
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=added)
    browser.open(web_page.SOURCES / "index.html", width=390)
    wait(browser, f"{STATUS}.includes('python -m http.server')")
