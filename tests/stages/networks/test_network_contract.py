"""What every network promises. A new network joins by one entry in ``small_networks.py``."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from small_networks import CASES, IN_FULL, NUM_CLASSES, SMALL_ENCODER, SMALL_OPTIONS, case_name, small_smp_options
from torch import nn

from data_cache.errors import UserError
from stages.networks import NETWORKS, build_network, count_parameters, network_options, segmentation_only, strip_depth
from stages.networks.interface import Network, Normalisation, Outputs
from stages.networks.parts import DEPTH_BRANCH, SEG_BRANCH, Part
from stages.networks.smp_architectures import ARCHITECTURES
from stages.training.transfer import copy_part

pytestmark = pytest.mark.filterwarnings("ignore:PSPNet's pyramid")

NOTHING_TO_COPY = [
    ("fcn32s", "light"), ("fcn16s", "light"), ("fcn8s", "light"), ("dcsa-resnet", "none"),
]  # fmt: skip
"""Networks whose decoders are as wide as the classes or not there, by ``depth_branch`` or ``decoder``."""


def build(name: str, options: dict, **others) -> Network:
    torch.manual_seed(0)
    return build_network(name, NUM_CLASSES, **{**options, **others})


@pytest.fixture(scope="module", params=CASES, ids=case_name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def fresh_network(case):
    return build(*case)


@pytest.fixture
def network(fresh_network):
    return fresh_network.eval()


@pytest.fixture(scope="module")
def trained_network(fresh_network):
    """In evaluation mode; nothing that training may change is at its first value."""
    network = copy.deepcopy(fresh_network).eval()
    network.normalisation = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))  # weights may bring their own
    for name, weight in network.named_parameters():
        if "offsets" in name:  # zero in a fresh network
            nn.init.normal_(weight, std=0.1)
    return network


@pytest.fixture(scope="module")
def stripped_network(trained_network):
    before = torch.get_rng_state()
    stripped = strip_depth(trained_network)
    assert torch.equal(torch.get_rng_state(), before)
    return stripped


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
    options = {"encoder_weights": "none"} if "encoder_weights" in network_options(name) else {}
    with torch.device("meta"):
        network = build_network(name, 21, **options)
    for side_px in (513, 200):
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


@pytest.mark.parametrize("size", [(64, 64), (65, 97)], ids=str)
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


def test_rows_left_to_the_depth_branch_never_enter_the_segmentation_branch(fresh_network):
    """Not even in training mode; everything else is as if they did."""
    network, images = copy.deepcopy(fresh_network).eval(), draw_images(3, 64, 96)
    with torch.no_grad():
        full, some = network(images), network(images, seg_rows=2)
        torch.testing.assert_close(some.seg_logits, full.seg_logits[:2], rtol=1e-4, atol=1e-4)
        assert torch.equal(some.depth, full.depth)
        seen = set()
        for part, module in network.train().parts().items():
            for leaf in module.modules() if part in SEG_BRANCH else ():
                leaf.register_forward_pre_hook(lambda _, given: seen.update(_find_batch_sizes(given)))
        outputs = network(images, seg_rows=2)
    assert seen == {2}
    assert {len(logits) for logits in (outputs.seg_logits, *outputs.aux_seg_logits)} == {2}
    assert len(outputs.depth) == 3


def _find_batch_sizes(given) -> set[int]:
    if isinstance(given, torch.Tensor):
        return {len(given)}
    return set().union(*map(_find_batch_sizes, given)) if isinstance(given, tuple | list) else set()


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


def test_images_below_the_smallest_side_are_refused_with_a_size_that_works(network):
    least = network.smallest_input_px
    assert least <= 64
    with pytest.raises(UserError, match=rf"images of {least - 1}x70 px are too small .* at least {least}x70"):
        network(draw_images(1, least - 1, 70))


@pytest.mark.parametrize("source", [Part.SEG_DECODER, Part.DEPTH_DECODER], ids=str)
def test_a_copy_carries_the_whole_decoder_but_for_declared_names(fresh_network, source):
    network = copy.deepcopy(fresh_network)
    target = Part.DEPTH_DECODER if source is Part.SEG_DECODER else Part.SEG_DECODER
    given, wanted = (network.parts()[part].state_dict() for part in (source, target))
    options = network.spec.options
    if (network.spec.name, options.get("depth_branch", options.get("decoder"))) in NOTHING_TO_COPY:
        with pytest.raises(UserError, match="has nothing to copy"):
            copy_part(network, source, target)
        return
    others = {part: copy.deepcopy(module.state_dict()) for part, module in network.parts().items() if part != target}
    report = copy_part(network, source, target)
    assert {*report.copied, *report.skipped} == set(given) == set(wanted)
    assert set(report.skipped) == network.uncopied
    assert all(torch.equal(given[name], wanted[name]) for name in report.copied)
    assert not {value.data_ptr() for value in given.values()} & {value.data_ptr() for value in wanted.values()}
    for part, before in others.items():
        assert all(torch.equal(value, before[name]) for name, value in network.parts()[part].state_dict().items())


@pytest.mark.parametrize("size", [(64, 64), (71, 90)], ids=str)
def test_stripping_leaves_the_logits_bit_equal(trained_network, stripped_network, size):
    assert list(stripped_network.parts()) == [Part.ENCODER, Part.SEG_DECODER, Part.SEG_HEAD]
    images = draw_images(2, *size)
    with torch.no_grad():
        expected = trained_network(images).seg_logits
        outputs = stripped_network(images)
        assert torch.equal(outputs.seg_logits, expected)
        assert outputs.depth is None
        assert torch.equal(segmentation_only(stripped_network)(images), expected)


def test_a_stripped_network_is_the_full_one_without_the_depth_parts(trained_network, stripped_network):
    full = trained_network.state_dict()
    depth = tuple(f"{(part.name or '').lower()}." for part in Part if part in DEPTH_BRANCH)
    assert list(stripped_network.state_dict()) == [name for name in full if not name.startswith(depth)]
    assert count_parameters(stripped_network) < count_parameters(trained_network)
    assert stripped_network.normalisation == trained_network.normalisation
    pointers = {tensor.data_ptr() for tensor in full.values()}
    assert not pointers & {tensor.data_ptr() for tensor in stripped_network.state_dict().values() if tensor.numel()}


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - set(IN_FULL)))
def test_the_other_architectures_answer_learn_and_strip(architecture):
    network = build("unet", small_smp_options(architecture))
    images = draw_images(2, 65, 97)
    outputs = network(images)
    assert outputs.seg_logits.shape == (2, NUM_CLASSES, 65, 97)
    (outputs.seg_logits.square().mean() + outputs.depth.square().mean()).backward()
    assert all(weight.grad is not None for weight in network.parameters())
    with torch.no_grad():
        assert torch.equal(strip_depth(network.eval())(images).seg_logits, network(images).seg_logits)


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
