"""The public API from Python: light to import, silent, typed; the examples run and end with what they promise."""

from __future__ import annotations

import ast
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import pipeline

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TINY = Path(__file__).parent / "pipeline" / "tiny.toml"


def run_notebook(path: Path) -> dict[str, Any]:
    """Run the code cells one after another, as a kernel would; return their names."""
    names: dict[str, Any] = {}
    for cell in json.loads(path.read_text(encoding="utf8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{path.name}:{cell['id']}", "exec"), names)
    return names


def test_importing_it_imports_nothing_heavy_and_says_nothing() -> None:
    script = "import sys, pipeline; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = ast.literal_eval(done.stdout)
    assert not done.stderr and not {"torch", "numpy", "pydantic", "rich", "click", "h5py"} & set(loaded)


def test_every_public_function_is_documented_and_typed() -> None:
    for name in pipeline.__all__:
        public = getattr(pipeline, name)
        assert public.__doc__, name
        if not isinstance(public, type):
            arguments = ast.parse(Path(pipeline.__file__).read_text(encoding="utf8"))
            found = next(node for node in arguments.body if isinstance(node, ast.FunctionDef) and node.name == name)
            assert found.returns and all(each.annotation for each in (*found.args.args, *found.args.kwonlyargs)), name
            assert "Args:" in public.__doc__ and "Returns:" in public.__doc__, name
    assert all((ROOT / package / "py.typed").is_file() for package in ("pipeline", "stages", "data_cache"))


@pytest.mark.slow
def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """In one work directory, where the notebook finds trained what the script has trained."""
    monkeypatch.setattr(sys, "argv", ["quickstart.py", str(TINY), str(tmp_path)])
    found = runpy.run_path(str(EXAMPLES / "quickstart.py"))
    said = capfd.readouterr()
    assert not said.err and len(said.out.splitlines()) == 7, "nothing is printed but by the script itself"
    assert f"--workdir {tmp_path} export" in (found["export"].out / "README.md").read_text()
    assert found["agree"] == 1 and found["labels"].shape == found["depth"].shape == (64, 64)
    monkeypatch.setenv("PIPELINE_WORKDIR", str(tmp_path))
    monkeypatch.setenv("TOUR_RECIPE", str(TINY))
    toured = run_notebook(EXAMPLES / "tour.ipynb")
    assert toured["run"].folder == found["run"].folder and all(phase["reused"] for phase in toured["run"].phases)
    check_predictions(toured, tmp_path)
    check_records(toured, tmp_path)


def check_predictions(toured: dict[str, Any], folder: Path) -> None:
    """A file, the same pixels and the command line give the same labels; refused is what is no image."""
    model, image = pipeline.load(toured["run"]), toured["image"]
    Image.fromarray(image).save(folder / "image.png")
    of_file = model.predict(folder / "image.png")
    assert np.array_equal(of_file.labels, toured["labels"])
    assert np.array_equal(of_file.probabilities, toured["probabilities"]) and of_file.probabilities.dtype == np.uint8
    assert np.array_equal(of_file.probabilities.argmax(0)[of_file.probabilities.max(0) > 128],
                          of_file.labels[of_file.probabilities.max(0) > 128])  # fmt: skip
    assert of_file.depth is not None and of_file.depth.dtype == np.float32
    plain = model.predict(image, probabilities=False, depth=False)
    assert plain.probabilities is plain.depth is None and np.array_equal(plain.labels, of_file.labels)
    with pytest.raises(pipeline.UserError, match=r"an image is \(H, W, 3\) uint8 RGB; found \(64, 64\) int64"):
        model.predict(np.zeros((64, 64), int))
    with pytest.raises(pipeline.UserError, match="no depth branch"):
        pipeline.load(toured["alone"]).predict(image, depth=True)


def check_records(toured: dict[str, Any], folder: Path) -> None:
    """What the library writes and returns is what the command line writes and prints."""
    record = json.loads((toured["alone"].folder / "run.json").read_text())
    words = record["command"].split()
    assert words == ["pipeline", "--workdir", str(folder), "run", "--recipe", str(TINY), "--schedule", "seg-only"]
    assert record["metrics"] == toured["alone"].metrics
    assert [row["name"] for row in toured["rows"]] == ["seg-only", "depth-first+copy"]
    assert len({tuple(row) for row in toured["rows"]}) == 1, "every record has the same keys"
    assert toured["rows"][0]["miou_macro"] == toured["alone"].metrics["miou_macro"]
    assert toured["rows"][0]["miou_macro_ci95"] is None
    store = toured["store"]
    assert list(store) == list(store.image_ids) and next(iter(store)) in store and "nobody" not in store
    with pytest.raises(pipeline.UserError, match=r"there is no argument 'schedul' .did you mean 'schedule'"):
        pipeline.train(TINY, schedul="seg-only")
