"""In an environment with nothing but a runtime, an export does what the project does with it.

``CAMVID_ROOT=…`` takes a picture of CamVid instead of a drawn scene.
"""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors.torch import load_file

from data_cache.datasets import open_dataset
from data_cache.images import read_image
from data_cache.size_rule import ORIGINAL, SizeRule, fixed_size
from stages.evaluation.predict import Segmenter
from stages.export.card import CardFacts
from stages.export.export import export_network
from stages.export.formats import EMBEDDED_FILE, OPENVINO_FILE
from stages.export.job import ProofImage
from stages.networks import build_network, strip_depth
from stages.networks.interface import Network
from tests.stages.export.only import link_packages, run_only

NAMES, PALETTE = ("sky", "ground", "ball"), ((10, 0, 0), (90, 60, 30), (250, 0, 0))
RULES = {"original": ORIGINAL, "fixed": fixed_size((64, 96))}


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


@pytest.fixture(scope="module", params=RULES)
def exported(request, tiny, tmp_path_factory):
    """An export that runs in either runtime."""
    report = export_network(
        tiny,
        tmp_path_factory.mktemp("export") / "model",
        input_size=(64, 96),
        class_names=NAMES,
        palette=PALETTE,
        card_facts=CardFacts("run", "scenes", "seg-only"),
        formats=("onnx-embedded", "openvino"),
        dynamic=request.param == "original",
        samples=[ProofImage("a", draw(90, 121)), ProofImage("b", draw(70, 100, 9))],
        latency_repeats=1,
    )
    assert report.proof["predict_py"] == {"model": "model.onnx", "images": 2, "argmax_agreement": 1.0}
    return report.out, RULES[request.param]


def read_labels(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted(folder.rglob("*.png")):
        with Image.open(file) as opened:
            if opened.mode == "P" and "overlay" not in str(file):
                assert opened.getpalette()[:9] == [channel for colour in PALETTE for channel in colour]
                found[file.stem] = np.array(opened)
    return found


def predict(network: Network, rule: SizeRule, image: Path) -> np.ndarray:
    """Return the labels that `pipeline predict` writes of an image."""
    segmenter = Segmenter(strip_depth(network), network.normalisation, size_rule=rule)
    return segmenter.segment(read_image(image).pixels).labels


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.slow
def test_with_one_runtime_alone_the_folder_labels_as_predict_does(tiny, exported, runtime, tmp_path):
    (folder, rule), images = exported, write_images(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    site = link_packages(tmp_path / "site", [runtime, "numpy", "pillow"])
    script = "import runpy\nsys.argv = sys.argv[3:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    words = [folder / "predict.py", *images, tmp_path / "broken.png", "--out", tmp_path / "out"]
    done = run_only(site, script, *words, cwd=tmp_path)
    assert done.returncode == 2 and f"not predicted: {tmp_path / 'broken.png'}" in done.stderr, done.stderr
    found = read_labels(tmp_path / "out")
    assert found.keys() == {image.stem for image in images}
    for image in images:
        labels = predict(tiny, rule, image)
        assert found[image.stem].shape == labels.shape and (found[image.stem] == labels).mean() >= 0.999, image
    again = run_only(site, script, *words, cwd=tmp_path)
    assert again.returncode == 1 and "--overwrite" in again.stderr
    answered = run_card_lines(folder, runtime, site, tmp_path)
    labels = predict(tiny, rule, tmp_path / "photo.png")
    if runtime == "onnxruntime" or rule == ORIGINAL:
        assert answered.shape == labels.shape and (answered == labels).mean() >= 0.999
    else:
        assert answered.shape == (64, 96), "these lines stop at the size at which images enter"


def run_card_lines(export: Path, runtime: str, site: Path, place: Path) -> np.ndarray:
    """Return the labels by the five lines of the card of a picture that lies on its side."""
    photo = place / "photo.png"
    lying = Image.Exif()
    lying[ExifTags.Base.Orientation] = 6
    Image.fromarray(take_picture()).save(photo, exif=lying)
    file = {"onnxruntime": EMBEDDED_FILE, "openvino": OPENVINO_FILE}[runtime]
    blocks = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text(), re.DOTALL)
    lines = next(block for block in blocks if f'"{file}"' in block).replace("photo.jpg", str(photo))
    assert 4 <= len(lines.splitlines()) <= 5
    save = "Image.fromarray(labels.astype('uint8')).save(sys.argv[3])\n"
    done = run_only(site, lines + save, place / "labels.png", cwd=export)
    assert done.returncode == 0, done.stderr
    with Image.open(place / "labels.png") as labels:
        return np.array(labels)


def take_picture() -> np.ndarray:
    root = os.environ.get("CAMVID_ROOT")
    dataset = open_dataset("camvid", Path(root), "val") if root else open_dataset("scenes", None, "val")
    return dataset.read_image(0)


@pytest.mark.slow
def test_with_smp_alone_the_folder_opens(tmp_path):
    torch.manual_seed(0)
    small = {"encoder": "tu-resnet10t", "encoder_weights": "none", "decoder_channels": [16, 16, 8, 8, 8]}
    network = build_network("unet", len(NAMES), **small).eval()
    about = {"class_names": NAMES, "palette": PALETTE, "card_facts": CardFacts("run", "scenes", "seg-only")}
    folder = export_network(
        network, tmp_path / "model", input_size=(64, 96), formats=(), latency_repeats=1, **about
    ).out
    script = (
        "import torch, segmentation_models_pytorch as smp\n"
        "from safetensors.torch import save_file\n"
        "torch.set_grad_enabled(False)\n"
        "model = smp.from_pretrained(sys.argv[3]).eval()\n"
        "images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(4))\n"
        "save_file({'seg_logits': model(images).contiguous()}, sys.argv[4])\n"
    )
    site = link_packages(tmp_path / "site", ["segmentation-models-pytorch"])
    done = run_only(site, script, folder, tmp_path / "answer.safetensors", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        expected = strip_depth(network)(images).seg_logits
    torch.testing.assert_close(load_file(tmp_path / "answer.safetensors")["seg_logits"], expected, rtol=0, atol=0)
