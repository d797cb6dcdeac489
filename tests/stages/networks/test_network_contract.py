"""What every network promises. A new network joins by one entry in SMALL_OPTIONS."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_cache.errors import UserError
from stages.networks import NETWORKS, build_network, count_parameters, segmentation_only, strip_depth
from stages.networks.interface import Network, Normalisation, Outputs
from stages.networks.parts import DEPTH_BRANCH, SEG_BRANCH, Part
from stages.networks.smp_architectures import ARCHITECTURES
from stages.training.freezing import check_parts_exist
from stages.training.schedule import CopyWeights
from stages.training.schedules import PAPER_ROWS, resolve_schedule
from stages.training.transfer import copy_part

pytestmark = pytest.mark.filterwarnings("ignore:PSPNet's pyramid")

NUM_CLASSES = 4
SMALL_CHANNELS = {"fpn": 64, "pan": 8, "upernet": 16, "segformer": 16, "deeplabv3": 16, "deeplabv3plus": 16}
SMALL_ENCODER = {"encoder": "tu-resnet10t", "encoder_weights": "none"}


def small_smp_options(architecture: str) -> dict:
    stages = isinstance(ARCHITECTURES[architecture].channels, tuple)
    channels = [16, 16, 8, 8, 8] if stages else SMALL_CHANNELS.get(architecture)
    return {"architecture": architecture, "decoder_channels": channels, **SMALL_ENCODER}


SMALL_OPTIONS: dict[str, list[dict]] = {
    "unet": [small_smp_options(architecture) for architecture in ARCHITECTURES],
    "unet-classic": [{"width": 8}],
    "unet-valid": [{"width": 8}],
    "fcn32s": [{"width": 8, "fc_width": 16, "encoder_weights": "none"}],
    "fcn16s": [{"width": 8, "fc_width": 16, "encoder_weights": "none"}],
    "fcn8s": [
        {"width": 8, "fc_width": 16, "encoder_weights": "none"},
        {"width": 8, "fc_width": 16, "encoder_weights": "none", "padding": "caffe", "depth_branch": "full"},
        {"width": 8, "encoder_weights": "none", "head": "pool5"},
    ],
    "conv-vgg": [{"width": 8, "fc_width": 16, "encoder_weights": "none"}],
    "segnet": [{"width": 8, "encoder_weights": "none"}],
    "pspnet": [{"encoder": "resnet18", "decoder_channels": 16, "encoder_weights": "none", "aux": True}],
    "deeplabv3plus": [{"width": 8, "low_level_width": 4, **SMALL_ENCODER}],
    "deeplabv3plus-mff": [{"width": 8, "share_aspp": True, "encoder": "resnet18", "encoder_weights": "none"}],
    "bisenet": [{"width": 16, **SMALL_ENCODER}],
    "bisenet-mff": [{"width": 16, **SMALL_ENCODER}],
    "dcsa-resnet": [
        {"reduction": 8, "output_stride": 16, **SMALL_ENCODER},
        {"reduction": 8, "decoder": "unet", "decoder_channels": [16, 16, 8, 8, 8], **SMALL_ENCODER},
    ],
}
"""Name → options under which the network is small enough for a test, one set per kind worth testing."""

NOTHING_TO_COPY = [
    ("fcn32s", "light"), ("fcn16s", "light"), ("fcn8s", "light"), ("dcsa-resnet", "none"),
]  # fmt: skip
"""Networks whose decoders are as wide as the classes or not there, by ``depth_branch`` or ``decoder``."""

CASES = [(name, options) for name, all_options in SMALL_OPTIONS.items() for options in all_options]


def build(name: str, options: dict, **others) -> Network:
    torch.manual_seed(0)
    return build_network(name, NUM_CLASSES, **{**options, **others})


def case_name(case: tuple[str, dict]) -> str:
    name, options = case
    return f"{name}-{options['architecture']}" if "architecture" in options else name


@pytest.fixture(scope="module", params=CASES, ids=case_name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def fresh_network(case):
    return build(*case)


@pytest.fixture
def network(fresh_network):
    return fresh_network.eval()


def draw_images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def count_leaf_calls(network: nn.Module, module: nn.Module, **asked: bool) -> Counter:
    """Run the network once and count the calls of every leaf inside one of its modules."""
    calls: Counter = Counter()
    hooks = [
        leaf.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, leaf in module.named_modules()
        if not any(leaf.children())
    ]
    with torch.no_grad():
        network(draw_images(1, 64, 64), **asked)
    for hook in hooks:
        hook.remove()
    return calls


def test_every_network_has_small_options():
    assert set(SMALL_OPTIONS) == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_papers_network_takes_any_size_and_every_weight_learns(name):
    """At the default options, which are the papers' except for the weights."""
    options = {} if name.startswith("unet-") else {"encoder_weights": "none"}
    with torch.device("meta"):
        network = build_network(name, 21, **options)
    for side_px in (600, 513, 500, 400, 200):
        outputs = network(torch.empty(2, 3, side_px, side_px, device="meta"))
        assert outputs.seg_logits.shape == (2, 21, side_px, side_px)
        assert outputs.depth.shape == (2, side_px, side_px)
        assert all(logits.shape == (2, 21, side_px, side_px) for logits in outputs.aux_seg_logits)
    total = outputs.seg_logits.sum() + outputs.depth.sum() + sum(logits.sum() for logits in outputs.aux_seg_logits)
    gradients = torch.autograd.grad(total, list(network.parameters()), allow_unused=True)
    assert all(gradient is not None for gradient in gradients)


def test_it_is_a_network_that_remembers_its_spec(case, network):
    name, options = case
    assert isinstance(network, Network)
    assert network.num_classes == NUM_CLASSES
    assert network.spec.name == name
    assert network.spec.options.items() >= options.items()


def test_parts_cover_all_weights_without_overlap(network):
    parts = network.parts()
    assert list(parts) == list(Part)
    for kind in ("named_parameters", "named_buffers"):
        in_parts = Counter(id(tensor) for part in parts.values() for _, tensor in getattr(part, kind)())
        everything = {id(tensor) for _, tensor in getattr(network, kind)()}
        assert set(in_parts) == everything
        assert max(in_parts.values(), default=1) == 1


def test_every_part_is_a_direct_attribute(network):
    children = set(network.children())
    assert children >= set(network.parts().values())


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (100, 70)], ids=str)
def test_outputs_have_the_size_of_the_images(network, size):
    with torch.no_grad():
        outputs = network(draw_images(1, *size))
    assert outputs.seg_logits.shape == (1, NUM_CLASSES, *size)
    assert outputs.depth.shape == (1, *size)
    assert outputs.seg_logits.isfinite().all()
    assert outputs.depth.isfinite().all()


@pytest.mark.parametrize("asked", ["seg", "depth"])
def test_what_is_not_asked_for_is_not_computed(network, asked):
    other, branch = ("depth", DEPTH_BRANCH) if asked == "seg" else ("seg", SEG_BRANCH)
    for part, module in network.parts().items():
        if part in branch:
            assert not count_leaf_calls(network, module, **{other: False}), part
    with torch.no_grad():
        outputs = network(draw_images(1, 64, 64), **{other: False})
    assert (outputs.seg_logits is None) == (other == "seg")
    assert (outputs.depth is None) == (other == "depth")


def test_the_encoder_runs_once_for_both_branches(network):
    encoder = network.parts()[Part.ENCODER]
    both = count_leaf_calls(network, encoder)
    assert both
    assert both == count_leaf_calls(network, encoder, depth=False)


def test_a_branch_is_the_same_whether_or_not_the_other_runs(network):
    images = draw_images(1, 64, 80)
    with torch.no_grad():
        both = network(images)
        assert torch.equal(both.seg_logits, network(images, depth=False).seg_logits)
        assert torch.equal(both.depth, network(images, seg=False).depth)


def test_return_type_does_not_depend_on_training_mode(fresh_network):
    network = copy.deepcopy(fresh_network)
    for training in (True, False):
        network.train(training)
        with torch.no_grad():
            outputs = network(draw_images(2, 64, 64))
        assert type(outputs) is Outputs
        assert outputs.seg_logits.shape == (2, NUM_CLASSES, 64, 64)
        assert outputs.depth.shape == (2, 64, 64)
        assert bool(outputs.aux_seg_logits) == (training and network.aux_weight > 0)


def test_a_fresh_network_sends_gradient_into_every_weight(fresh_network):
    network = copy.deepcopy(fresh_network).train()
    outputs = network(draw_images(2, 64, 96))
    labels = torch.randint(NUM_CLASSES, (2, 64, 96), generator=torch.Generator().manual_seed(2))
    loss = F.cross_entropy(outputs.seg_logits, labels) + F.mse_loss(outputs.depth, torch.rand(2, 64, 96))
    for aux_seg_logits in outputs.aux_seg_logits:
        loss = loss + network.aux_weight * F.cross_entropy(aux_seg_logits, labels)
    loss.backward()
    unreached = [name for name, weight in network.named_parameters() if weight.requires_grad and weight.grad is None]
    assert not unreached
    for part, module in network.parts().items():
        gradients = [weight.grad.abs().max() for weight in module.parameters() if weight.grad is not None]
        # A part may be a place without weights: there is no decoder in DCSA.
        assert not any(True for _ in module.parameters()) or max(gradients) > 0, part


def test_a_single_image_of_the_smallest_side_trains_or_the_remedy_is_named(fresh_network):
    network = copy.deepcopy(fresh_network).train()
    side_px = network.smallest_input_px
    try:
        outputs = network(draw_images(1, side_px, side_px))
    except UserError as error:
        assert "set batch_size to at least 2" in str(error)
        assert network(draw_images(2, side_px, side_px)).depth.shape == (2, side_px, side_px)
    else:
        assert outputs.seg_logits.shape == (1, NUM_CLASSES, side_px, side_px)


@pytest.mark.parametrize("row", PAPER_ROWS)
def test_every_row_of_the_paper_finds_what_it_trains_and_copies(fresh_network, row):
    network = copy.deepcopy(fresh_network)
    options = network.spec.options
    bare = (network.spec.name, options.get("depth_branch", options.get("decoder"))) in NOTHING_TO_COPY
    for step in resolve_schedule(row).steps:
        if not isinstance(step, CopyWeights):
            check_parts_exist(network, step.trains)
        elif bare:
            with pytest.raises(UserError, match="has nothing to copy"):
                copy_part(network, step.source, step.target)
        else:
            report = copy_part(network, step.source, step.target)
            source, target = (network.parts()[part].state_dict() for part in (step.source, step.target))
            assert set(report.skipped) <= network.uncopied
            assert {*report.copied, *report.skipped} == set(source) == set(target)
            assert all(torch.equal(source[name], target[name]) for name in report.copied)


def test_stripping_leaves_the_logits_bit_equal(network):
    stripped = strip_depth(network)
    assert list(stripped.parts()) == [Part.ENCODER, Part.SEG_DECODER, Part.SEG_HEAD]
    for size in ((64, 64), (71, 90)):
        images = draw_images(2, *size)
        with torch.no_grad():
            expected = network(images).seg_logits
            assert torch.equal(stripped(images).seg_logits, expected)
            assert torch.equal(segmentation_only(stripped)(images), expected)
            assert stripped(images).depth is None


def test_stripped_state_is_the_full_one_without_the_depth_parts(network):
    full = network.state_dict()
    depth = {f"{(part.name or '').lower()}." for part in Part if part in DEPTH_BRANCH}
    expected = [name for name in full if not name.startswith(tuple(depth))]
    stripped = strip_depth(network)
    assert list(stripped.state_dict()) == expected
    assert count_parameters(stripped) < count_parameters(network)


def test_stripping_keeps_what_images_are_normalised_by(fresh_network):
    """Weights may bring their own statistics, and a stripped network is built without asking for any."""
    network = copy.deepcopy(fresh_network)
    network.normalisation = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert strip_depth(network).normalisation == network.normalisation


def test_stripping_shares_no_memory_and_keeps_the_random_state(network):
    before = torch.get_rng_state()
    stripped = strip_depth(network)
    assert torch.equal(torch.get_rng_state(), before)
    pointers = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert not pointers & {tensor.data_ptr() for tensor in stripped.state_dict().values() if tensor.numel()}


def test_weights_depend_only_on_the_seed(case, fresh_network):
    torch.manual_seed(9)
    torch.rand(3)
    again = build(*case)
    fresh = fresh_network.parts()
    for part, module in again.parts().items():
        for name, weight in module.named_parameters():
            assert torch.equal(weight, dict(fresh[part].named_parameters())[name]), (part, name)


def test_segmentation_half_starts_equal_with_and_without_depth(case, fresh_network):
    single = dict(build(*case, with_depth=False).named_parameters())
    full = dict(fresh_network.named_parameters())
    assert all(torch.equal(weight, full[name]) for name, weight in single.items())


def test_a_decoder_copy_fits_except_for_the_declared_names(network):
    """Names may be relative to the decoder or names of the whole state dict; all of them exist."""
    parts = network.parts()
    states = {part: parts[part].state_dict() for part in (Part.SEG_DECODER, Part.DEPTH_DECODER)}
    known = set()
    for part, state in states.items():
        other = states[Part.DEPTH_DECODER if part is Part.SEG_DECODER else Part.SEG_DECODER]
        for name, tensor in state.items():
            names = {name, f"{(part.name or '').lower()}.{name}"}
            known |= names
            if not names & network.uncopied:
                assert name in other, f"{name} of {part} has nothing to copy to and is not declared"
                assert other[name].shape == tensor.shape, f"{name} is of another shape and not declared"
    assert network.uncopied <= known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": 5}, "encoder must be text, found 5"),
        ({"encoder_depth": "deep"}, "encoder_depth must be a whole number, found 'deep'"),
        ({"encoder_depth": True}, "encoder_depth must be a whole number"),
        ({"decoder_channels": "wide"}, "decoder_channels must be a whole number or a list of whole numbers"),
        ({"with_depth": "no"}, "with_depth must be a truth value"),
        ({"encoder": 5, "output_stride": 1.5}, "encoder must .*; output_stride must be a whole number"),
    ],
    ids=str,
)
def test_an_option_of_another_kind_is_named(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_network("unet", NUM_CLASSES, **{**SMALL_ENCODER, **options})
