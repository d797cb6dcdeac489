"""The folder's own predict.py: alone with a runtime, it labels image files as the project does."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from data_cache.images import read_image
from data_cache.size_rule import ORIGINAL, fixed_size
from stages.evaluation.predict import Segmenter
from stages.export.card import CardFacts
from stages.export.export import export_network
from stages.export.job import ProofImage
from stages.networks import build_network, strip_depth

NAMES, PALETTE = ("sky", "ground", "ball"), ((10, 0, 0), (90, 60, 30), (250, 0, 0))
NEEDED = ("onnxruntime", "numpy", "numpy.libs", "PIL", "pillow.libs")
"""What lies on the path of the process that runs the script; no other package does."""


def draw(height, width, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def write_images(folder: Path) -> list[Path]:
    """Images of unlike sizes, shapes and kinds, one of them lying on its side."""
    lying = Image.Exif()
    lying[ExifTags.Base.Orientation] = 6
    alpha = Image.fromarray(draw(75, 90, 1)).convert("RGBA")
    alpha.putalpha(Image.fromarray(draw(75, 90, 2)[..., 0]))
    images = {
        "plain.png": (Image.fromarray(draw(97, 131, 3)), {}),
        "lying.jpg": (Image.fromarray(draw(80, 140, 4)), {"exif": lying, "quality": 95}),
        "tiny.png": (Image.fromarray(draw(20, 70, 5)), {}),
        "alpha.png": (alpha, {}),
        "palette.gif": (Image.fromarray(draw(70, 90, 6)).quantize(32), {}),
        "deep.png": (Image.fromarray(draw(70, 90, 7)[..., 0].astype(np.uint16) * 257), {}),
        "cmyk.jpg": (Image.fromarray(draw(70, 90, 8)).convert("CMYK"), {}),
    }
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [folder / name for name in images]


def link_packages(folder: Path) -> Path:
    folder.mkdir()
    for name in NEEDED:
        package = find_spec(name.partition(".")[0] if name[-5:] != ".libs" else "PIL")
        place = Path(package.origin).parents[1] / name
        if place.exists():
            (folder / name).symlink_to(place)
    return folder


@pytest.mark.parametrize("rule", [ORIGINAL, fixed_size((64, 96))], ids=["original", "fixed"])
@pytest.mark.slow
def test_alone_with_a_runtime_it_labels_as_the_project_does(tmp_path, rule):
    torch.manual_seed(0)
    small = {"encoder": "tu-resnet10t", "encoder_weights": "none", "decoder_channels": [16, 16, 8, 8, 8]}
    network = build_network("unet", len(NAMES), **small).eval()
    samples = [ProofImage("a", draw(90, 121)), ProofImage("b", draw(70, 100, 9))]
    report = export_network(
        network,
        tmp_path / "model",
        input_size=(64, 96),
        class_names=NAMES,
        palette=PALETTE,
        card_facts=CardFacts("run", "scenes", "seg-only"),
        formats=("onnx",),
        dynamic=rule == ORIGINAL,
        samples=samples,
        latency_repeats=1,
    )
    assert report.proof["predict_py"] == {"model": "model.onnx", "images": 2, "argmax_agreement": 1.0}
    images = write_images(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    packages = link_packages(tmp_path / "packages")
    script = (
        f"import sys, runpy; sys.path.append({str(packages)!r}); sys.argv = sys.argv[1:]\n"
        "import importlib.util\n"
        "assert not [name for name in ('torch', 'stages', 'data_cache', 'onnx') if importlib.util.find_spec(name)]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    words = [report.out / "predict.py", *images, tmp_path / "broken.png", "--out", tmp_path / "out"]
    command = [sys.executable, "-I", "-S", "-c", script, *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and f"not predicted: {tmp_path / 'broken.png'}" in done.stderr, done.stderr

    segmenter = Segmenter(strip_depth(network), network.normalisation, size_rule=rule)
    for image in images:
        expected = segmenter.segment(read_image(image).pixels).labels
        with Image.open(tmp_path / "out/labels" / f"{image.stem}.png") as label_map:
            found = np.array(label_map)
            assert label_map.getpalette()[:9] == [channel for colour in PALETTE for channel in colour]
        assert found.shape == expected.shape and (found == expected).mean() >= 0.999, image
    assert json.loads((report.out / "preprocess.json").read_text())["size_rule"]["kind"] == rule.kind
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 1 and "--overwrite" in again.stderr
