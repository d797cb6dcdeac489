"""Every network in every installed format, from images of any size: equal to the network, or refused with why."""

from importlib.util import find_spec
from itertools import groupby

import pytest
import torch
from small_networks import CASES, NUM_CLASSES, SMALL_ENCODER, case_name

from data_cache.size_rule import ORIGINAL, fixed_size
from stages.export import pt2_file
from stages.export.formats import EXPORT_FORMATS
from stages.export.job import CannotExport, ExportJob
from stages.networks import build_network, segmentation_only, strip_depth
from tests.stages.export.test_quantisation import SIZE, draw, export

FLOAT = ("onnx", "openvino")
FIRST = {next(cases) for _, cases in groupby(range(len(CASES)), lambda place: CASES[place][0])}
"""Of each network the first set of options is exported in every format; the others differ in what float graphs are
made of, and these alone are written."""
REFUSED = {
    "dcsa-resnet": {"openvino": "OpenVINO has no rule for the operator DeformConv"},
    "deeplabv3plus": {"pt2": "cannot be exported as pt2 for images of any size: .*ceil"},
}
"""Network → format that cannot carry it to any size → what it says."""
PT2_AT_ANY_SIZE = ("unet", "unet-classic", "fcn32s")
"""Of the others, but for DeepLabV3+ and DCSA on an encoder that rounds up, too; opening those takes many seconds."""
SAMPLE_SIZES = {"segnet": (256, 384)}
"""Parts cut from a smaller image are enlarged, and where the last digit of a number decides between two positions of a
pooled maximum, other programs than Pillow move a patch of labels: 2 to 6 % of those of an image of 64 px."""
INSTALLED = tuple(
    name
    for name, row in EXPORT_FORMATS.items()
    if name != "executorch" and (not row.requires or all(map(find_spec, row.requires.packages)))
)
"""ExecuTorch, which no test installs, has a test of its own."""


def build(name, options):
    """Return a network in which nothing is practically 0, which would agree whatever it is made of."""
    torch.manual_seed(0)
    if options.get("encoder") == "resnet18":  # twice as deep, of the same layers
        options = options | SMALL_ENCODER
    network = build_network(name, NUM_CLASSES, **options).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter, weight in network.named_parameters():
            if "offsets" in parameter or not parameter.startswith("encoder."):
                weight.add_(0.05 * torch.randn(weight.shape))
    return network


def mark_place(place):
    """Return a parameter; the first is the U-Net, and all the others take many minutes."""
    return pytest.param(place, id=case_name(CASES[place]), marks=pytest.mark.exhaustive if place else pytest.mark.slow)


@pytest.mark.parametrize("place", list(map(mark_place, range(len(CASES)))))
@pytest.mark.filterwarnings("ignore:PSPNet's pyramid")
def test_every_network_ships_in_every_installed_format(place, tmp_path):
    """Parity at odd sizes, in batches and on images is what an export itself proves, from folded batch norm."""
    name, options = CASES[place]
    network, refused = build(name, options), REFUSED.get(name, {})
    wanted = INSTALLED if place in FIRST else FLOAT
    fixed = ["pt2"] if "pt2" in wanted and name not in PT2_AT_ANY_SIZE else []
    formats = [each for each in wanted if not each.startswith((*refused, *fixed))]
    stripped, folder = strip_depth(network).eval(), tmp_path / "out"
    if place in FIRST:
        report = export(
            network, folder, SAMPLE_SIZES.get(name, SIZE), formats=formats, max_drop=1.0, dynamic=True, fold=True,
            calibration=lambda _: iter(draw(2).split(1)),
        )  # fmt: skip
        assert report.proof["max_abs_difference"]["stripped_vs_full"] == 0
        for each in formats:
            assert set(EXPORT_FORMATS[each].files) <= set(report.files)
            assert report.proof["formats"][each]["images"]
        left = report.proof["batch_norm"]["left"]
        assert all("aux" in norm for norm in left), "every batch norm that runs has a convolution of its own before it"
    else:
        folder.mkdir()
        for each in formats:
            EXPORT_FORMATS[each].load().write(ExportJob(stripped, folder, SIZE, ORIGINAL, 20, {}))

    images = torch.randn(2, 3, 97, 66)
    with torch.no_grad():
        expected = segmentation_only(stripped)(images)
    assert (expected.max() - expected.min()).item() > 1e-3
    for each in set(FLOAT) & set(formats):
        answered = EXPORT_FORMATS[each].load().open_folder(folder)(images)
        torch.testing.assert_close(answered, expected, rtol=0, atol=1e-4 * max(1.0, expected.abs().max().item()))
    if fixed:
        pt2_file.write(ExportJob(stripped, folder, SIZE, fixed_size(SIZE), 20, {}))
        images = draw(1)
        with torch.no_grad():
            torch.testing.assert_close(pt2_file.open_folder(folder)(images), segmentation_only(stripped)(images))
    for each, reason in refused.items() if place in FIRST else ():
        with pytest.raises(CannotExport, match=reason):
            EXPORT_FORMATS[each].load().write(ExportJob(stripped, folder, SIZE, ORIGINAL, 20, {}))
