"""Files of few bits: judged by score and real images, nothing published above the limit, run by their own runtimes."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from data_cache.errors import UserError
from data_cache.size_rule import fixed_size
from stages.export.card import CardFacts, render_card
from stages.export.export import export_network
from stages.export.formats import EXPORT_FORMATS, Requirement, parse_formats
from stages.export.job import ExportJob, ProofImage
from stages.export.quantisation import judge
from stages.export.runtimes import open_openvino
from stages.export.signal_stack import read_signal_stack
from stages.networks import build_network, segmentation_only, strip_depth
from tests.stages.export.tiny_network import build_tiny, registered

SIZE = (64, 96)
CLASSES = ("sky", "ground", "ball", "box")
PALETTE = ((0, 0, 0), (90, 60, 30), (250, 0, 0), (0, 0, 250))
FACTS = CardFacts(run="tiny", dataset="scenes", schedule="seg-only")
FEW_BITS = ("onnx-fp16", "onnx-int8", "openvino", "openvino-int8")


def draw(number, seed=0, size=SIZE):
    """Draw smooth pictures, whose values lie where those of real ones do."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(number, 3, 4, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear") * 2 - 1


def agreement_with(network):
    """Return a score of functions: on how many pixels of drawn pictures they answer as the network does."""
    images, reference = draw(4, seed=1), segmentation_only(network)
    with torch.no_grad():
        expected = reference(images).argmax(1)

    def score(segment, rule=None):
        return {"miou_macro": (segment(images).argmax(1) == expected).double().mean().item()}

    return score


def export(network, out, sample_size=SIZE, **options):
    stripped = strip_depth(network).eval()
    pixels = ((draw(1, seed=2, size=sample_size) + 1) * 127.5).byte().permute(0, 2, 3, 1).numpy()
    given = {
        "formats": FEW_BITS,
        "samples": [ProofImage(str(place), image) for place, image in enumerate(pixels)],
        "calibration": lambda _: iter(draw(4).split(1)),
        "score": agreement_with(stripped),
        "max_drop": 0.2,
        "force": True,  # classes of networks that learnt nothing hang on a hair
        "dynamic": False,
        "latency_repeats": 1,
    }
    about = {"input_size": SIZE, "class_names": CLASSES, "palette": PALETTE, "card_facts": FACTS}
    return export_network(network, out, **about, **given | options)


@pytest.fixture(scope="module")
def network():
    with registered(), torch.no_grad():
        tiny = build_tiny(len(CLASSES), width=32)
        tiny.seg_head.bias -= tiny(draw(4, seed=1)).seg_logits.mean((0, 2, 3))  # or one class is everywhere
        yield tiny


@pytest.fixture(scope="module")
def report(network, tmp_path_factory):
    return export(network, tmp_path_factory.mktemp("export") / "model", dynamic=True)


def make_job(network, **options):
    stripped = strip_depth(network).eval()
    job = ExportJob(stripped, None, SIZE, fixed_size(SIZE), 20, {}, (), lambda: iter(draw(2).split(1)), lambda _: 0.4)
    return dataclasses.replace(job, **options)


@pytest.mark.slow
def test_each_file_runs_in_its_own_runtime_and_is_as_small_as_its_bits(report, network):
    images = draw(1, seed=5)
    with torch.no_grad():
        expected = segmentation_only(strip_depth(network))(images).argmax(1).numpy()
    answers = {
        name: onnxruntime.InferenceSession(report.out / name).run(["seg_logits"], {"images": images.numpy()})[0]
        for name in ("model.onnx", "model-fp16.onnx", "model-int8.onnx")
    }
    for name in ("model.xml", "model-int8.xml"):
        answers[name] = open_openvino().compile_model(report.out / name, "CPU")(images.numpy())[0]
    for name, logits in answers.items():
        assert logits.dtype == np.float32 and (logits.argmax(1) == expected).mean() > 0.9, name
    size = {path.name: path.stat().st_size for path in report.out.iterdir()}
    assert size["model-fp16.onnx"] < 0.6 * size["model.onnx"]
    assert size["model-int8.bin"] < 0.3 * size["model.bin"]
    weights = {
        name: EXPORT_FORMATS[name].load().read_metadata(report.out / EXPORT_FORMATS[name].files[0]) for name in FEW_BITS
    }
    preprocess = json.loads((report.out / "preprocess.json").read_text())
    assert all(found["class_names"] == list(CLASSES) == preprocess["class_names"] for found in weights.values())


@pytest.mark.slow
def test_the_proof_says_what_8_bits_cost(report, network):
    score = agreement_with(strip_depth(network))
    for name in ("onnx-int8", "openvino-int8"):
        facts = report.proof["formats"][name]
        found = facts["miou_macro"]
        assert found["before"] == 1.0
        assert found["after"] == pytest.approx(score(EXPORT_FORMATS[name].load().open_folder(report.out))["miou_macro"])
        assert found["drop"] == pytest.approx(1 - found["after"]) and found["drop"] <= found["max_drop"] == 0.2
        assert facts["layers"] == sum(
            isinstance(each, torch.nn.Conv2d | torch.nn.ConvTranspose2d) for each in strip_depth(network).modules()
        )
        assert "in float, " in (report.out / "README.md").read_text()


@pytest.mark.slow
def test_layers_go_back_into_float_until_the_score_holds(network, tmp_path):
    plain = export(network, tmp_path / "plain", formats=("openvino-int8",), max_drop=1.0)
    drop = plain.proof["formats"]["openvino-int8"]["miou_macro"]["drop"]
    assert plain.proof["formats"]["openvino-int8"]["layers_in_float"] == [] and drop > 0
    held = export(network, tmp_path / "held", formats=("openvino-int8",), max_drop=drop / 2)
    facts = held.proof["formats"]["openvino-int8"]
    assert facts["layers_in_float"] and facts["miou_macro"]["drop"] <= drop / 2
    assert has_signal_stack(), "the engines that took it have given back one that there is"


def has_signal_stack() -> bool:
    """Whether handlers of signals have memory to run on."""
    found = read_signal_stack()
    if found is None or found.address is None:  # another system, or the thread's own stack
        return True
    areas = (line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(begin, 16) <= found.address < int(end, 16) for begin, end in areas)


@pytest.mark.slow
def test_the_same_export_twice_gives_the_same_bytes(network, report, tmp_path):
    """OpenVINO numbers what has no name through a whole process, so those numbers go on in a second export."""
    again = export(network, tmp_path / "again", dynamic=True)
    for name in (file for row in ("onnx", *FEW_BITS) for file in EXPORT_FORMATS[row].files):
        first, second = ((each.out / name).read_bytes() for each in (report, again))
        if name.endswith(".xml"):
            first, second = (re.sub(rb"_\d+", b"_", content) for content in (first, second))
        assert first == second, name


def test_above_the_limit_nothing_is_published_unless_it_is_forced(network):
    written, is_float = lambda images: images, {"encoder.conv1": True, "head": False}
    with pytest.raises(UserError, match=r"costs 0\.1000 .* \(0\.5000 -> 0\.4000; 1 of 2 layers .*0\.05 is allowed"):
        judge("onnx-int8", make_job(network, max_drop=0.05), 0.5, written, is_float)
    facts = judge("onnx-int8", make_job(network, max_drop=0.05, force=True), 0.5, written, is_float)
    assert facts["miou_macro"]["drop"] == pytest.approx(0.1)
    sizes = [{"max_abs_difference": 1.0, "argmax_agreement": 0.9}]
    proof = {
        "networks": {},
        "table": [],
        "versions": {},
        "max_abs_difference": {"stripped_vs_full": 0.0},
        "formats": {"onnx-int8": facts | {"sizes": sizes, "images": []}},
        "input_size": SIZE,
        "size_rule": {"kind": "fixed", "input_size": SIZE, "why": ""},
    }
    colours = {"class_names": CLASSES, "palette": PALETTE, "mean": [0.5] * 3, "std": [0.5] * 3}
    preprocess = colours | {"size_rule": proof["size_rule"]}
    card = render_card(FACTS, proof, preprocess, network="unet", opens_with_smp=False)
    assert "**more than the limit of 0.05, published all the same**" in card
    assert "Left in float: 1 of 2 layers: `encoder.conv1`" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [({"calibration": lambda _: iter(())}, "there are none; add some, or leave"), ({"score": None}, "were not given")],
    ids=("no images", "no score"),
)
def test_8_bits_need_images_to_calibrate_on_and_a_score_before_anything_is_computed(
    network, tmp_path, options, message
):
    done = []
    with pytest.raises(UserError, match=f"'onnx-int8' is .*{message}"):
        export(network, tmp_path / "out", progress=done.append, **options)
    assert not done and not (tmp_path / "out").exists()


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch):
    row = EXPORT_FORMATS["openvino"]._replace(requires=Requirement("openvino", ("openvino", "no_such_package")))
    monkeypatch.setitem(EXPORT_FORMATS, "openvino", row)
    with pytest.raises(
        UserError, match=r"needs no_such_package, which is not installed; .*pip install '\.\[openvino\]'"
    ):
        parse_formats("onnx,openvino")


@pytest.mark.slow
def test_executorch_answers_as_the_network_up_to_its_largest_side(tmp_path):
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    small = {"encoder": "resnet18", "encoder_weights": "none", "decoder_channels": [16, 16, 8, 8, 8]}
    network = build_network("unet", len(CLASSES), **small).eval()
    report = export(network, tmp_path / "out", formats=("executorch",), dynamic=True)
    facts, module = report.proof["formats"]["executorch"], EXPORT_FORMATS["executorch"].load()
    assert {(case["height"], case["width"]) for case in facts["sizes"]} > {SIZE}
    assert module.read_metadata(report.out / "model.pte") == json.loads((report.out / "preprocess.json").read_text())
    with pytest.raises(UserError, match=r"takes images of up to .* label it in tiles"):
        module.open_folder(report.out)(torch.zeros(1, 3, facts["largest_side_px"] + 1, 96))
