"""A training step never waits for the device: it runs on tensors without values, where asking for one raises.

A GPU computes behind the host's back; each question about a number (``item()``, ``bool()``, a mask as an index) makes
the host wait for all that is under way. On torch's fake tensors such a question raises, on any machine.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
import toy_network
from small_networks import NETWORKS_OR_UNET, NUM_CLASSES, SMALL_OPTIONS
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from toy_network import build_toy

from data_cache.sample import PackedBatch
from data_cache.unpacking import unpack
from stages.networks import build_network
from stages.networks.precision import autocast
from stages.pseudo_depth.depth_losses import metric_depth_loss, relative_depth_loss
from stages.training.freezing import training_parts
from stages.training.losses import DEPTH_LOSSES, SEG_LOSSES, compute_terms, drop_misfits, upload_class_weights
from stages.training.mixing import MASKS
from stages.training.optimisation import OPTIMIZERS
from stages.training.schedule import Phase
from stages.training.schedules import DEPTH, JOINT, SEG
from stages.training.settings import REGION_LOSSES, LossSettings, TrainingSettings
from stages.training.trainer import PhaseTrainer
from stages.training.weighting import WEIGHTINGS, build_weighting

WITHOUT_WAITING = [name for name in SEG_LOSSES if name != "lovasz"]
"""The loss of Lovász waits, and says so."""
LOSSES = [
    pytest.param(
        seg, depth, tuple(WEIGHTINGS)[(row + column) % len(WEIGHTINGS)],
        marks=[] if column == row % len(DEPTH_LOSSES) else pytest.mark.exhaustive,
    )
    for row, seg in enumerate(WITHOUT_WAITING)
    for column, depth in enumerate(DEPTH_LOSSES)
]  # fmt: skip
"""Each loss beside each of the other task, and under each weighting; first of all, each beside one."""
CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
pytestmark = [
    pytest.mark.filterwarnings("ignore:PSPNet's pyramid"),
    pytest.mark.filterwarnings("ignore:CUDA is not available"),  # autocast, where there is no GPU
]


@pytest.fixture
def no_values():
    with FakeTensorMode(allow_non_fake_inputs=True):  # constants that a network holds besides weights and buffers
        yield


def choose_losses(seg, depth, weighting):
    """Return settings with class weights, which losses of regions have only beside another."""
    terms = {seg: 1.0, "cross-entropy": 0.5} if seg in REGION_LOSSES else seg
    return LossSettings(
        seg=terms, depth=depth, weighting=weighting, dwa_window=2, class_weights=(1.0, 2.0, 0.5, 1.0)
    )  # fmt: skip


def take_values(network, device=CPU):
    """Put fake tensors in the place of all weights and buffers."""
    for module in network.modules():
        for store in (module._parameters, module._buffers):
            for name, value in store.items():
                if value is not None:
                    layout = torch.channels_last if value.ndim == 4 else torch.contiguous_format
                    fake = torch.empty(value.shape, dtype=value.dtype, device=device, memory_format=layout)
                    store[name] = nn.Parameter(fake) if isinstance(value, nn.Parameter) else fake
    return network.train()


def make_batch(device=CPU, side=64):
    return PackedBatch(
        ("one", "two"),
        images=torch.empty(2, 3, side, side, dtype=torch.uint8, device=device),
        seg_labels=torch.empty(2, side, side, dtype=torch.uint8, device=device),
        inverse_depth=torch.empty(2, side, side, dtype=torch.float16, device=device),
        placed=torch.empty(2, 4, dtype=torch.int32, device=device),
        jitter=torch.empty(2, 3, device=device),
    )


def make_pool_batch(device=CPU, side=64):
    """One labelled image, and two copies of it without labels."""
    batch = make_batch(device, side)
    tensors = (tensor[:1].repeat(3, *[1] * (tensor.dim() - 1)) for tensor in batch.tensors)
    return PackedBatch(("one", "two", "three"), *tensors, num_labelled=1)


def train(network, phase, *, device=CPU, losses=None, dtype="bfloat16", steps=1, depth_loss=None, batch=None, side=64,
          **settings):  # fmt: skip
    """Do steps as ``train_phase`` does them, up to the reading of reports."""
    with training_parts(network, phase.trains):
        trainer = PhaseTrainer(
            network, phase, total_steps=9, seed=0, settings=TrainingSettings(**settings), device=device, dtype=dtype,
            losses=losses or LossSettings(), depth_loss=depth_loss,
        )  # fmt: skip
        for step in range(steps):
            trainer.train_step(step, batch or make_batch(side=side))


def stand_in_for_backward_passes(monkeypatch, network):
    """Torch's own need a GPU that is there, and so do the reports that slow steps would send."""

    def leave_gradients(_total):
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)

    monkeypatch.setattr(torch.Tensor, "backward", leave_gradients)
    monkeypatch.setattr(torch.autograd, "grad", lambda _loss, inputs, **_: tuple(map(torch.empty_like, inputs)))
    monkeypatch.setattr("time.monotonic", lambda: 0.0)


@functools.cache
def _build_once(name):
    return build_network(name, NUM_CLASSES, **SMALL_OPTIONS[name][0])


def build_small(name):
    return copy.deepcopy(_build_once(name))


@pytest.mark.parametrize("name", NETWORKS_OR_UNET)
def test_a_step_of_every_network_asks_for_no_value(name, request):
    network = build_small(name)
    request.getfixturevalue("no_values")
    train(take_values(network), JOINT, side=96 if name == "unet-valid" else 64)


@pytest.mark.parametrize("phase", [SEG, DEPTH, JOINT], ids=str)
@pytest.mark.parametrize("name", ["toy", "pspnet"])
def test_steps_of_every_kind_of_phase_ask_for_no_value(name, phase, request):
    network = build_toy(aux=True) if name == "toy" else build_small(name)
    request.getfixturevalue("no_values")
    train(take_values(network), phase)


@pytest.mark.parametrize(("seg", "depth", "weighting"), LOSSES)
@pytest.mark.usefixtures("no_values")
def test_no_loss_asks_for_a_value(seg, depth, weighting):
    losses = choose_losses(seg, depth, weighting)
    train(take_values(build_toy(aux=True)), JOINT, losses=losses, steps=3)


@pytest.mark.parametrize("depth_loss", [relative_depth_loss, metric_depth_loss])
@pytest.mark.usefixtures("no_values")
def test_no_loss_of_teachers_asks_for_a_value(depth_loss):
    train(take_values(build_toy()), DEPTH, depth_loss=depth_loss)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.usefixtures("no_values")
def test_nothing_between_gradient_and_weights_asks_for_a_value(optimizer, dtype):
    train(
        take_values(build_toy()), JOINT, steps=3, dtype=dtype, optimizer=optimizer, clip_norm=1.0, ema_decay=0.9,
        lr_schedule="poly", warmup_steps=1, weight_decay=0.1, decay_norm_and_bias=False,
    )  # fmt: skip


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("phase", [SEG, JOINT], ids=str)
@pytest.mark.parametrize("mix", MASKS)
@pytest.mark.usefixtures("no_values")
def test_mixed_images_ask_for_no_value(phase, mix, device, monkeypatch):
    network = take_values(build_toy(aux=True), device)
    if device is GPU:
        stand_in_for_backward_passes(monkeypatch, network)
    phase = Phase(phase.name, phase.trains, phase.seg, phase.depth, images="all", mix=mix)
    train(network, phase, device=device, batch=make_pool_batch(), steps=2, losses=LossSettings(balance="share"))


@pytest.mark.parametrize("device", [CPU, GPU], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.usefixtures("no_values")
def test_looking_at_gradients_and_shares_of_losses_ask_for_no_value(weighting, dtype, device, monkeypatch):
    network = take_values(build_toy(aux=True), device)
    if device is GPU:
        stand_in_for_backward_passes(monkeypatch, network)
    losses = LossSettings(weighting=weighting, balance="share", dwa_window=2)
    train(network, JOINT, device=device, dtype=dtype, losses=losses, steps=3, log_gradients_every=2)


@pytest.mark.parametrize("ask", [
    lambda maps: maps * maps.mean().item(), lambda maps: maps if maps.sum() > 0 else -maps,
    lambda maps: maps * len(maps[maps > 0]),
], ids=["item", "bool", "mask"])  # fmt: skip
@pytest.mark.usefixtures("no_values")
def test_a_step_that_asks_for_a_value_is_found(ask):
    """The law above can be broken."""
    network = take_values(build_toy())
    network.encoder.register_forward_hook(lambda _module, _inputs, maps: ask(maps))
    with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
        train(network, SEG)


def compute_losses(network, phase, device, losses, side=64):
    """Do what a step does before its backward pass, which needs a GPU that is there."""
    batch = unpack(make_batch(CPU, side), network.normalisation, device)
    labels, misfits = drop_misfits(batch.seg_labels, NUM_CLASSES)
    with autocast(device, "bfloat16"):
        outputs = network(batch.images, seg=phase.needs_seg, depth=phase.needs_depth)
    weights = upload_class_weights(losses, NUM_CLASSES, device)
    terms = compute_terms(outputs, batch._replace(seg_labels=labels), phase, losses, weights)
    weighting = build_weighting(phase, losses, network.aux_weight, device)
    total, weighted = weighting(terms)
    weighting.observe(dict(zip(weighted, torch.stack(list(terms.present().values())), strict=True)), misfits > 0)
    return total


@pytest.mark.parametrize("name", NETWORKS_OR_UNET)
def test_forward_and_losses_of_every_network_stay_on_the_gpu(name, request):
    """Tensors of two devices in one operation raise."""
    network = build_small(name)
    request.getfixturevalue("no_values")
    side = 96 if name == "unet-valid" else 64
    assert compute_losses(take_values(network, GPU), JOINT, GPU, LossSettings(), side).device == GPU


@pytest.mark.parametrize(("seg", "depth", "weighting"), LOSSES)
@pytest.mark.usefixtures("no_values")
def test_every_loss_stays_on_the_gpu(seg, depth, weighting):
    losses = choose_losses(seg, depth, weighting)
    assert compute_losses(take_values(build_toy(aux=True), GPU), JOINT, GPU, losses).device == GPU


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])  # torch 2.15 has no fake form of fused SGD
@pytest.mark.usefixtures("no_values")
def test_all_of_a_step_but_its_backward_pass_stays_on_the_gpu(monkeypatch, optimizer, weighting, dtype):
    network = take_values(build_toy(aux=True), GPU)

    stand_in_for_backward_passes(monkeypatch, network)
    train(
        network, JOINT, device=GPU, dtype=dtype, steps=3, losses=LossSettings(weighting=weighting, dwa_window=2),
        optimizer=optimizer, clip_norm=1.0, ema_decay=0.9,
    )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("optimizer", "mix"), [*zip(OPTIMIZERS, MASKS, strict=True)])
def test_a_gpu_is_not_waited_for(optimizer, mix):
    """What the laws on fake tensors say, said by the GPU itself."""
    network = build_toy(aux=True).to(GPU, memory_format=torch.channels_last)
    losses = LossSettings(
        seg="ohem", weighting="dwa", balance="share", dwa_window=2, class_weights=(1.0, 2.0, 0.5, 1.0)
    )
    batches = [
        PackedBatch(
            batch.image_ids, *(None if each is None else each.pin_memory() for each in batch.tensors), num_labelled=1
        )
        for batch in (toy_network.make_batch(step, size=4) for step in range(3))
    ]
    phase = Phase("joint", JOINT.trains, JOINT.seg, JOINT.depth, images="all", mix=mix)
    with training_parts(network, phase.trains):
        trainer = PhaseTrainer(
            network, phase, total_steps=9, seed=0, losses=losses, device=GPU, dtype="float16",
            settings=TrainingSettings(
                optimizer=optimizer, clip_norm=1.0, ema_decay=0.9, log_every=2, log_gradients_every=1
            ),
        )  # fmt: skip
        trainer.train_step(0, batches[0])  # libraries wait when they start
        torch.cuda.set_sync_debug_mode("error")
        try:
            for step in (1, 2):
                trainer.train_step(step, batches[step])
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert [report.step for report in trainer.read_reports(wait=True)] == [1, 2, 3]


@pytest.mark.usefixtures("no_values")
def test_a_tensor_left_behind_on_the_cpu_is_found():
    """The law above can be broken."""
    network = take_values(build_toy(), GPU)
    network.encoder.register_forward_hook(lambda _module, _inputs, maps: maps + torch.ones(64))
    with pytest.raises(RuntimeError, match="device"):
        compute_losses(network, SEG, GPU, LossSettings())
