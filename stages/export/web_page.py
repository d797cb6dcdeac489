"""A static page that runs model-embedded.onnx in a browser: a photo or the camera in, the labels over it out."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from data_cache.errors import UserError
from data_cache.files import write_json
from data_cache.outputs import hold_result, replace_folder
from data_cache.records import Record, read_record
from stages.export.formats import EMBEDDED_FILE
from stages.export.preprocess import read_preprocess
from stages.export.proof_file import Sha256, check_files, find_damaged, hash_files

PAGE_FILE = "model.json"
SOURCES = Path(__file__).parent / "web"
PACKAGE, PACKAGE_VERSION = "onnxruntime-web", "1.30.0"
NPM_PACK = f"npm pack {PACKAGE}@{PACKAGE_VERSION}"


class _RuntimeFile(NamedTuple):
    packed: str
    """Where it lies in the package."""
    sha512: str


RUNTIME_FILES = {
    "onnxruntime-web.js": _RuntimeFile(
        "dist/ort.wasm.bundle.min.mjs",
        "d4a705f0258065eaad4dcbcb80a3ed38c5c86e459e87ef8b0c24290e143901157"
        "11c02f554d2f9aebd0e23e3314db98d200365744fc0feaf8ee2048a81232359",
    ),
    "onnxruntime-web.wasm": _RuntimeFile(
        "dist/ort-wasm-simd-threaded.wasm",
        "1adeded62203219fcf5c484cfce5657aa5875689b490423f86cf1ca1dd1cad77"
        "15f630c6337f41db71ee42794e3a00ce0b7c78939a71220b5d83368bf6ea7730",
    ),
}
"""Name in the page's folder → what of the package it is; servers know .js better than .mjs."""

WebRuntime = Mapping[str, bytes]
"""Name in the page's folder → content."""


class WebPage(Record):
    """model.json: what the page must know of the model, and what it consists of."""

    format: int = 1
    name: str
    file: str
    bytes: int
    enters: str
    """How images enter, in words."""
    runtime: str
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    files: dict[str, Sha256]


def read_web_runtime(given: Path | None, info: Callable[[str], None]) -> WebRuntime:
    """Return ONNX Runtime Web: of a folder, of node_modules in the current one, or fetched by npm.

    Args:
        given: the package's folder, or one with node_modules; None looks into the current folder, then asks npm.
        info: takes a line on what is being done.

    Raises:
        UserError: it is nowhere, cannot be fetched, or is not what was published.
    """
    places = [*([given] if given else []), (given or Path()) / "node_modules" / PACKAGE]
    found = next((place for place in places if (place / "package.json").is_file()), None)
    if found is not None:
        return _check_runtime({name: _read(found / file.packed) for name, file in RUNTIME_FILES.items()}, str(found))
    if given is not None:
        raise UserError(
            f"--web-runtime {given} holds no npm package {PACKAGE}; give the folder that 'npm install "
            f"{PACKAGE}@{PACKAGE_VERSION}' was run in, or the unpacked archive of '{NPM_PACK}'"
        )
    return _fetch_runtime(info)


def write_web_page(
    out: Path,
    export: Path,
    runtime: WebRuntime,
    *,
    name: str,
    overwrite: bool = False,
    on_wait: Callable[[str], None] = lambda _: None,
) -> list[Path]:
    """Write the page of an export into a folder, which appears complete or not at all.

    Args:
        out: the folder; what else lies there stays.
        export: folder with model-embedded.onnx.
        runtime: of ``read_web_runtime``.
        name: of the model, for the title.
        overwrite: whether a page that was changed since it was written may be replaced.
        on_wait: takes a line on who is waited for.

    Returns:
        The files.

    Raises:
        UserError: the export's file is not the proven one, or something else lies where the page belongs.
    """
    check_files(export, (EMBEDDED_FILE,))
    preprocess = read_preprocess(export)
    sources = sorted(SOURCES.iterdir())
    names = [PAGE_FILE, EMBEDDED_FILE, *runtime, *(path.name for path in sources)]
    with hold_result(out, list_page_files, on_wait) as place:
        if (changed := _find_changed(place)) and not overwrite:
            raise UserError(
                f"{', '.join(changed)} in {out} is missing or was changed since the page was written; name another "
                "folder, or add --overwrite to replace it"
            )
        with replace_folder(place, names, list_page_files) as folder:
            for path in (*sources, export / EMBEDDED_FILE):
                shutil.copyfile(path, folder / path.name)
            for file, content in runtime.items():
                (folder / file).write_bytes(content)
            page = WebPage(
                name=name,
                file=EMBEDDED_FILE,
                bytes=(folder / EMBEDDED_FILE).stat().st_size,
                enters=str(preprocess.rule),
                runtime=PACKAGE_VERSION,
                class_names=preprocess.class_names,
                palette=preprocess.palette,
                files=hash_files(folder),
            )
            write_json(folder / PAGE_FILE, page.model_dump(mode="json"))
    return [out / file for file in sorted(names)]


def list_page_files(folder: Path) -> list[str]:
    """Return the names of files of a page that was written there, model.json last; [] where none was."""
    page = _read_page(folder)
    return [] if page is None else [*(name for name in page.files if (folder / name).is_file()), PAGE_FILE]


def _find_changed(folder: Path) -> list[str]:
    page = _read_page(folder)
    return [] if page is None else find_damaged(folder, page.files)


def _read_page(folder: Path) -> WebPage | None:
    try:
        return read_record(folder / PAGE_FILE, WebPage, "")
    except UserError:
        return None


def _fetch_runtime(info: Callable[[str], None]) -> WebRuntime:
    """Have npm fetch the package's archive, and read the files out of it."""
    remedy = (
        f"where there is a network run '{NPM_PACK}', unpack the archive, and give its folder with --web-runtime DIR"
    )
    npm = shutil.which("npm")
    if npm is None:
        raise UserError(
            f"the page needs the npm package {PACKAGE} {PACKAGE_VERSION}, and there is no npm here to fetch it; "
            f"install npm (of Node.js), or {remedy}"
        )
    info(f"fetching {PACKAGE} {PACKAGE_VERSION} with npm")
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, *NPM_PACK.split()[1:], "--pack-destination", folder, "--ignore-scripts", "--prefer-offline"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
            said = done.stderr.strip().splitlines() if done.returncode else []
        except (OSError, subprocess.TimeoutExpired) as problem:
            said = [str(problem)]
        archives = list(Path(folder).glob("*.tgz"))
        if not archives:
            raise UserError(f"npm could not fetch {PACKAGE} {PACKAGE_VERSION} ({_pick(said)}); {remedy}")
        try:
            with tarfile.open(archives[0]) as archive:
                members = {name: archive.extractfile(f"package/{file.packed}") for name, file in RUNTIME_FILES.items()}
                content = {name: member.read() if member else b"" for name, member in members.items()}
        except (tarfile.TarError, KeyError, OSError, EOFError) as problem:
            raise UserError(f"the archive that npm fetched cannot be read ({problem}); {remedy}") from problem
    return _check_runtime(content, f"what npm fetched as {PACKAGE} {PACKAGE_VERSION}")


def _pick(said: Iterable[str]) -> str:
    lines = [line for line in said if "warn" not in line]
    return lines[0] if lines else "it wrote no archive"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        reason = problem.strerror or problem
        raise UserError(
            f"cannot read {path} ({reason}); give the whole package {PACKAGE} {PACKAGE_VERSION}"
        ) from problem


def _check_runtime(content: WebRuntime, where: str) -> WebRuntime:
    for name, found in content.items():
        if hashlib.sha512(found).hexdigest() != RUNTIME_FILES[name].sha512:
            raise UserError(
                f"{RUNTIME_FILES[name].packed} of {where} is not that of version {PACKAGE_VERSION}, or was altered; "
                f"get that one with: npm install {PACKAGE}@{PACKAGE_VERSION}"
            )
    return content
