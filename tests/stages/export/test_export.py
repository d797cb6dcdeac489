"""The exported folder: complete, proven, opened without this project, and never half there."""

import html
import json
import re
import resource
import subprocess
import sys

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from data_cache.errors import UserError
from data_cache.outputs import set_aside
from data_cache.size_rule import fixed_size
from stages.export import onnx_file, openvino_file, pt2_file, safetensors_file
from stages.export.card import CardFacts, LicenceLink, render_card
from stages.export.export import export_network
from stages.export.formats import EXPORT_FORMATS, Usage, describe_formats, parse_formats
from stages.export.job import CannotExport, ExportJob, ProofImage
from stages.export.safetensors_file import load_exported
from stages.networks import NETWORKS, build_network, count_parameters, strip_depth
from tests.stages.export.tiny_network import TinyNetwork, build_tiny, registered

SIZE = (64, 96)
CLASSES = ("sky", "ground", "ball")
PALETTE = ((0, 0, 0), (90, 60, 30), (250, 0, 0))
FACTS = CardFacts(
    run="unet-depth-first+copy-s0",
    dataset="scenes",
    schedule="depth-first+copy",
    steps=("depth, 3 epochs", "copy depth-decoder -> seg-decoder", "seg, 3 epochs"),
    metrics={"miou_macro": 0.61},
    split="val",
    licences=(
        LicenceLink("depth teacher", "depth-anything/Depth-Anything-V2-Base-hf", "CC-BY-NC-4.0", "abc", True),
        LicenceLink("encoder weights", "resnet10t", "unknown"),
    ),
)


def build(**options):
    torch.manual_seed(0)
    small = {"encoder": "tu-resnet10t", "encoder_weights": "none", "decoder_channels": [16, 16, 8, 8, 8]}
    return build_network("unet", len(CLASSES), **{**small, **options})


def export(network, out, **options):
    given = {"input_size": SIZE, "class_names": CLASSES, "palette": PALETTE, "card_facts": FACTS, "latency_repeats": 1}
    return export_network(network, out, **{**given, "formats": (), **options})


@pytest.fixture(scope="module")
def network():
    return build().train()


@pytest.fixture(scope="module")
def report(network, tmp_path_factory):
    """One export with ONNX, of the default kind, for all tests that only look at it."""
    return export(network, tmp_path_factory.mktemp("export") / "model", formats=("safetensors", "onnx"))


def test_the_folder_has_every_promised_file(report):
    promised = (
        "README.md", "config.json", "model.onnx", "model.safetensors", "predict.py", "preprocess.json", "proof.json",
    )  # fmt: skip
    assert report.files == promised
    assert sorted(path.name for path in report.out.iterdir()) == list(promised)
    assert [path.name for path in report.out.parent.iterdir()] == ["model"]


def test_the_proof_says_zero_and_what_was_saved(report, network):
    proof = json.loads((report.out / "proof.json").read_text())
    assert proof == report.proof
    assert proof["max_abs_difference"] == {"stripped_vs_full": 0.0, "smp_vs_stripped": 0.0}
    assert proof["parameters"] == {"before": count_parameters(network), "after": count_parameters(strip_depth(network))}
    networks = proof["networks"]
    assert 0 < networks["stripped"]["macs"] == networks["plain"]["macs"] < networks["full"]["macs"]
    assert networks["stripped"]["parameters"] == networks["plain"]["parameters"] == proof["parameters"]["after"]
    assert proof["flops"] == {"before": 2 * networks["full"]["macs"], "after": 2 * networks["stripped"]["macs"]}
    assert proof["latency_ms"]["after"] > 0
    assert proof["formats"]["safetensors"]["sizes"][0]["max_abs_difference"] == 0
    onnx = proof["formats"]["onnx"]
    assert onnx["dynamic_batch"] is True
    assert {case["batch"] for case in onnx["sizes"]} == {1, 3}
    assert all(case["max_abs_difference"] < 1e-4 and case["argmax_agreement"] > 0.999 for case in onnx["sizes"])


def test_the_trained_network_is_left_as_it_was(report, network):
    assert network.training
    assert hasattr(network, "depth_decoder")


def test_a_plain_onnx_runtime_answers_as_the_network(report, network):
    session = onnxruntime.InferenceSession(report.out / "model.onnx")
    images = torch.randn(2, 3, *SIZE)
    (seg_logits,) = session.run(["seg_logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = strip_depth(network).eval()(images).seg_logits
    torch.testing.assert_close(torch.from_numpy(seg_logits), expected, rtol=1e-4, atol=1e-4)


def test_our_loader_opens_it_bit_equal(report, network):
    reopened = load_exported(report.out)
    assert not reopened.training
    assert reopened.spec.with_depth is False
    images = torch.randn(1, 3, 71, 83)
    with torch.no_grad():
        assert torch.equal(reopened(images).seg_logits, strip_depth(network).eval()(images).seg_logits)


def test_preprocess_says_what_to_do_with_an_image(report, network):
    preprocess = json.loads((report.out / "preprocess.json").read_text())
    assert tuple(preprocess["mean"]) == network.normalisation.mean
    assert tuple(preprocess["std"]) == network.normalisation.std
    assert preprocess["class_names"] == list(CLASSES)
    assert preprocess["palette"] == [list(colour) for colour in PALETTE]
    assert preprocess["size_rule"].items() >= {"kind": "original", "input_size": None, "smallest_side_px": 64}.items()
    assert onnx_file.read_metadata(report.out / "model.onnx").items() <= preprocess.items()


def test_the_card_names_the_teacher_and_its_licence(report):
    card = (report.out / "README.md").read_text()
    assert "depth-anything/Depth-Anything-V2-Base-hf @abc | CC-BY-NC-4.0 (non-commercial)" in card
    assert "**Not for commercial use**: depth-anything/Depth-Anything-V2-Base-hf" in card
    assert "No licence statement was found for resnet10t" in card
    assert r"2. copy depth-decoder -\> seg-decoder" in card
    assert "| miou_macro | 0.6100 | mIoU: mean of TP/" in card
    assert "smp.from_pretrained" in card and 'InferenceSession("model.onnx")' in card


def test_a_format_is_one_entry_and_its_module(tmp_path, monkeypatch):
    """What is added to the table is an answer to --formats, written, proven, and on the card."""
    twin = EXPORT_FORMATS["safetensors"]._replace(
        about="the same again", files=("twin",), usage=Usage("twin", "open()")
    )
    monkeypatch.setitem(EXPORT_FORMATS, "twin", twin)
    assert parse_formats("twin, onnx,twin") == ("twin", "onnx") and "twin: the same again" in describe_formats()
    report = export(build(), tmp_path / "out", formats=("twin",))
    assert report.proof["formats"]["twin"]["sizes"][0]["max_abs_difference"] == 0
    card = (tmp_path / "out/README.md").read_text()
    assert "`twin`:\n\n```python\nimport numpy, twin\n" in card and "\nlabels = open()\n```" in card


def test_the_table_of_formats_is_read_without_torch():
    code = "import stages.export.formats, sys; assert not {'torch', 'onnxruntime', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == ""


@pytest.mark.parametrize(("text", "match"), [("onxx", r"did you mean 'onnx'"), (" ,", "no export format given")])
def test_unknown_formats_are_refused_before_anything_is_opened(text, match):
    with pytest.raises(UserError, match=match):
        parse_formats(text)


def test_names_are_text_on_the_card(report):
    name = "a|b `$x$` *y* <b>"
    links = (LicenceLink("depth teacher", name, "unknown", noncommercial=True),)
    facts = CardFacts(name, name, name, (name,), {"miou_macro": 0.5}, name, links)
    preprocess = json.loads((report.out / "preprocess.json").read_text()) | {
        "class_names": [name],
        "palette": [[0] * 3],
    }
    card = render_card(facts, report.proof, preprocess, network="unet", opens_with_smp=True)
    metadata, card = ModelCard(card).data, ModelCard(card).text
    assert metadata.eval_results[0].dataset_name == name and metadata.model_name == name
    page = html.unescape(re.sub(r"</?(strong|p|li|ol|h1|t[dh].*?)>", "", MarkdownIt().enable("table").render(card)))
    assert page.count(name) == card.count("\\*y\\*") == 10


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["unet", pytest.param("upernet", marks=pytest.mark.exhaustive)])
def test_dynamic_files_are_proven_at_four_sizes_one_of_them_odd(tmp_path, architecture):
    """UPerNet has the adaptive pooling that exporters get wrong at sizes other than the traced one; it pads inside."""
    channels = [8, 8, 8] if architecture == "unet" else 4
    network = build(decoder_channels=channels, encoder_depth=3, architecture=architecture)
    report = export(network, tmp_path / "out", formats=("onnx",), dynamic=True)
    sizes = {(case["height"], case["width"]) for case in report.proof["formats"]["onnx"]["sizes"]}
    assert len(sizes) == 4 and any(height % 2 and width % 2 for height, width in sizes)
    images = torch.randn(1, 3, 131, 77)
    with torch.no_grad():
        expected = strip_depth(network).eval()(images).seg_logits
    torch.testing.assert_close(onnx_file.open_folder(report.out)(images), expected, rtol=1e-4, atol=1e-4)


class KnowsOneWidth(TinyNetwork):
    """What an exporter can carry to one size only."""

    def forward(self, images, *, seg=True, depth=True):
        outputs = super().forward(images, seg=seg, depth=depth)
        return outputs._replace(seg_logits=outputs.seg_logits * (2.0 if images.shape[-1] == SIZE[1] else 1.0))


@pytest.fixture
def odd():
    with registered(KnowsOneWidth, "odd"):
        yield build_tiny(len(CLASSES), name="odd")


@pytest.mark.slow
def test_what_one_format_cannot_carry_to_any_size_gets_one_size_in_all(tmp_path, odd):
    network, said = odd, []
    with pytest.raises(UserError, match=r"onnx.*export for one size \(--fixed\), or leave 'onnx' out"):
        export(network, tmp_path / "any", formats=("onnx",), dynamic=True)
    image = torch.randint(0, 256, (90, 121, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    samples = [ProofImage("one", image)]
    report = export(network, tmp_path / "out", formats=("onnx",), samples=samples, progress=said.append)
    rule = report.proof["size_rule"]
    assert (rule["kind"], rule["input_size"]) == ("fixed", list(SIZE)) and "onnx" in rule["why"]
    assert any("images will be resized to 64x96 px in every format" in line for line in said)
    assert json.loads((tmp_path / "out/preprocess.json").read_text())["size_rule"]["input_size"] == list(SIZE)
    assert "They are resized to 64x96 px in every format" in (tmp_path / "out/README.md").read_text()
    for facts in report.proof["formats"].values():
        assert {(case["height"], case["width"]) for case in facts["sizes"]} == {SIZE}
        assert len(facts["images"]) > 1 and min(case["argmax_agreement"] for case in facts["images"]) > 0.999
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_operator_that_a_format_lacks_is_named(tmp_path, tiny):
    network = strip_depth(tiny).eval()
    network.seg_head.register_forward_hook(lambda _module, _given, scores: torch.special.bessel_j0(scores))
    with pytest.raises(CannotExport, match=r"'tiny' cannot be exported as onnx: .*bessel_j0.*leave 'onnx' out"):
        onnx_file.write(ExportJob(network, tmp_path, SIZE, fixed_size(SIZE), 20, {}))


@pytest.mark.parametrize("options", [{"encoder_depth": 3, "decoder_channels": [16, 8, 8]}, {"architecture": "pan"}])
def test_other_shapes_of_network_open_with_smp_too(tmp_path, options):
    report = export(build(**{"decoder_channels": None, "encoder": "resnet18", **options}), tmp_path / "out")
    assert report.proof["max_abs_difference"]["smp_vs_stripped"] == 0


def test_a_network_that_smp_does_not_have_opens_with_our_loader(tmp_path):
    torch.manual_seed(0)
    network = build_network("unet-classic", len(CLASSES), width=8)
    report = export(network, tmp_path / "out")
    assert report.proof["max_abs_difference"]["smp_vs_stripped"] is None
    assert "load_exported" in (report.out / "README.md").read_text()
    images = torch.randn(1, 3, 80, 64)
    with torch.no_grad():
        assert torch.equal(load_exported(report.out)(images).seg_logits, network.eval()(images).seg_logits)


def test_the_same_export_again_writes_nothing_and_neither_prints(tmp_path, capfd):
    first = export(build(), tmp_path / "out")
    written_at = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    again = export(build(), tmp_path / "out")
    assert capfd.readouterr().out == ""
    assert (first.reused, again.reused) == (False, True)
    assert again.files == first.files
    assert again.proof == first.proof
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == written_at


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
    def fail(job):
        (job.folder / "half.bin").write_bytes(b"half")
        raise OSError("disk")

    monkeypatch.setattr(onnx_file, "write", fail)
    with pytest.raises(OSError, match=r"disk"):
        export(build(), tmp_path / "out", formats=("onnx",))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_no_room_is_said_by_writers_in_other_languages_too(tmp_path):
    """Torch's own writer would end the process, and OpenVINO's error says no reason."""
    job = ExportJob(
        build_network("unet-classic", 3, width=8, with_depth=False), tmp_path, SIZE, fixed_size(SIZE), 20, {}
    )
    image = openvino.opset13.parameter([1, 100_000], np.float32)
    added = openvino.opset13.add(image, openvino.opset13.constant(np.ones((1, 100_000), np.float32)))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            pt2_file.write(job)
        with pytest.raises(UserError, match=r"OpenVINO cannot write model.xml in .* are free; free some space"):
            openvino_file.save(openvino.Model([added], [image]), job, "model.xml")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_answers_differently_is_not_published(tmp_path, monkeypatch):
    """A row whose file opens as something else stands for an exporter that got it wrong."""
    wrong = lambda _: lambda images: torch.zeros(len(images), 3, *SIZE)  # noqa: E731
    monkeypatch.setattr(safetensors_file, "open_folder", wrong)
    with pytest.raises(UserError, match=r"answers differently: safetensors at batch 1, 64x96 px") as refused:
        export(build(), tmp_path / "out")
    assert "dynamic" not in str(refused.value), "what was not asked for is no remedy"
    assert not list(tmp_path.iterdir())


def test_few_bits_that_answer_otherwise_too_often_are_no_matter_of_size_and_can_be_forced(tmp_path, monkeypatch):
    row = EXPORT_FORMATS["safetensors"]._replace(max_difference=None, min_agreement=1.5)
    monkeypatch.setitem(EXPORT_FORMATS, "safetensors", row)
    image, said = torch.zeros(70, 80, 3, dtype=torch.uint8).numpy(), []
    options = {"samples": [ProofImage("one", image)], "progress": said.append}
    with pytest.raises(
        UserError, match=r"answers differently: safetensors: 100.00% .* --force, or leave 'safetensors'"
    ):
        export(build(), tmp_path / "out", **options)
    assert not any("will be resized" in line for line in said) and not list(tmp_path.iterdir())
    assert export(build(), tmp_path / "out", **options, force=True).files


@pytest.mark.parametrize(
    ("name", "moved", "published"), [("segnet", 0.01, True), ("segnet", 0.05, False), ("unet", 0.01, False)]
)
@pytest.mark.slow
def test_only_where_rounding_decides_may_some_logits_be_far_off(tmp_path, monkeypatch, tiny, name, moved, published):
    """Unpooling puts a value elsewhere if rounding makes its neighbour greater; other networks have no excuse."""
    open_folder = onnx_file.open_folder

    def open_with_rounding(folder):
        segment = open_folder(folder)

        def answer(images):
            logits = segment(images).clone()
            flat = logits.view(-1)
            flat[: round(moved * flat.numel())] += 0.01 * max(1.0, flat.abs().max().item())
            return logits

        return answer

    monkeypatch.setattr(onnx_file, "open_folder", open_with_rounding)
    monkeypatch.setitem(EXPORT_FORMATS, "onnx", EXPORT_FORMATS["onnx"]._replace(min_agreement=0.9))
    monkeypatch.setattr(TinyNetwork, "rounding_outliers", NETWORKS[name].load().rounding_outliers)
    if published:
        report = export(tiny, tmp_path / "out", formats=("onnx",), dynamic=False)
        beyond = json.loads((report.out / "proof.json").read_text())["formats"]["onnx"]["sizes"][0]
        assert beyond["share_beyond_tolerance"] == pytest.approx(moved, rel=0.1)
        assert "(1.00% of them beyond the tolerance, moved by rounding)" in (report.out / "README.md").read_text()
    else:
        with pytest.raises(UserError, match="answers differently: onnx"):
            export(tiny, tmp_path / "out", formats=("onnx",), dynamic=False)


def test_an_export_killed_between_its_two_moves_is_put_back(tmp_path):
    export(build(), tmp_path / "out")
    (tmp_path / "out").rename(set_aside(tmp_path / "out"))
    assert export(build(), tmp_path / "out").reused
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": (32, 96)}, r"32x96 px; a side has 64 to 16384 px: use 64x96"),
        ({"class_names": ("a",)}, r"3 classes, but 1 names and 3 colours"),
        ({"opset": 9}, r"opset 9; possible: 18 to 23"),
    ],
    ids=str,
)
def test_impossible_arguments_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        export(build(), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())
