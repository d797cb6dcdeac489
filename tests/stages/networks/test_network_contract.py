"""What every network promises: the laws of ``stages/networks/contract.py``, and what lies in other rooms."""

import copy

import pytest
import torch
from small_networks import (
    CASES,
    IN_FULL,
    NETWORKS_OR_UNET,
    NUM_CLASSES,
    SMALL_ENCODER,
    case_name,
    small_smp_options,
)

from data_cache.errors import UserError
from stages.networks import build_network, count_parameters, segmentation_only, strip_depth
from stages.networks.contract import LAWS, Subject, any_size_works_and_every_weight_learns
from stages.networks.interface import Network
from stages.networks.parts import Part
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
def subject(request):
    return Subject(*request.param)


def draw_images(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "law", [law for law in LAWS if law is not any_size_works_and_every_weight_learns], ids=lambda law: law.__name__
)
def test_every_network_keeps_every_law(subject, law):
    law(subject)


@pytest.mark.parametrize("name", NETWORKS_OR_UNET)
def test_the_papers_network_takes_any_size_and_every_weight_learns(name):
    """At the default options, which are the papers' except for the weights."""
    any_size_works_and_every_weight_learns(Subject(name, {}))


def test_it_remembers_its_spec(subject):
    assert subject.fresh.spec.name == subject.name
    assert subject.fresh.spec.options.items() >= subject.options.items()


@pytest.mark.parametrize("source", [Part.SEG_DECODER, Part.DEPTH_DECODER], ids=str)
def test_a_copy_carries_the_whole_decoder_but_for_declared_names(subject, source):
    network = subject.training
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


def test_stripping_exports_plain_logits_and_draws_nothing(subject):
    before, images = torch.get_rng_state(), draw_images(2, 64, 64)
    stripped = strip_depth(subject.trained)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        assert torch.equal(segmentation_only(stripped)(images), subject.trained(images).seg_logits)
    assert count_parameters(stripped) < count_parameters(subject.trained)


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
