"""The laws of the loop: exactly the trained parts move, nothing else does, and nothing bad is ever stepped."""

import itertools
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_network import NUM_CLASSES, batches_from, build_toy, make_batch

from data_cache.errors import UserError
from data_cache.sample import IGNORE_INDEX, PackedBatch
from stages.networks import build_network
from stages.networks.memory_layout import choose_memory_format
from stages.networks.parts import DEPTH_BRANCH, SEG_BRANCH, Part
from stages.training import interruption
from stages.training.interruption import Interrupted, StopFlag, stop_on_signals
from stages.training.loop import train_phase
from stages.training.metrics_log import MetricsLog
from stages.training.schedule import CopyWeights, Phase
from stages.training.schedules import DEPTH, JOINT, SEG
from stages.training.settings import LossSettings, ScheduleSettings, TrainingSettings
from stages.training.transfer import copy_part

PHASES = (
    SEG,
    DEPTH,
    JOINT,
    Phase("heads", trains=Part.SEG_HEAD | Part.DEPTH_HEAD, seg=1.0, depth=1.0),
    Phase("encoder", trains=Part.ENCODER, depth=1.0),
    Phase("probe", trains=Part.SEG_DECODER | Part.SEG_HEAD, seg=1.0),
)
EVERY_STEP = 1e-9
"""Minutes between checkpoints that have always passed."""


def train(network, phase, batches=batches_from, steps=3, losses=None, key="a training", dtype="float32", **options):
    """Train with settings among the options by their names."""
    settings = {"lr": 0.01} | {name: options.pop(name) for name in set(options) & set(TrainingSettings.model_fields)}
    return train_phase(
        network, phase, batches, total_steps=steps, key=key, dtype=dtype,
        settings=TrainingSettings(**settings), losses=losses or LossSettings(), device=torch.device("cpu"),
        **{"seed": 7} | options,
    )  # fmt: skip


def snapshot(network):
    return {
        part: {name: value.clone() for name, value in module.state_dict().items()}
        for part, module in network.parts().items()
    }


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def assert_same_network(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def learning_tensors(module):
    """Names of what a training must move: parameters, and the statistics of batch-norm layers."""
    return [name for name, _ in itertools.chain(module.named_parameters(), module.named_buffers())]


@pytest.mark.parametrize("phase", PHASES, ids=str)
def test_phase_moves_exactly_the_parts_it_trains(phase):
    network = build_toy()
    before = snapshot(network)
    train(network, phase)
    for part, module in network.parts().items():
        now = module.state_dict()
        moved = {name for name in now if not torch.equal(now[name], before[part][name])}
        assert moved == (set(learning_tensors(module)) if part in phase.trains else set()), part


@pytest.mark.parametrize("name", ["depth-first+copy", "seg-first-direct+copy"])
def test_law_holds_along_a_whole_schedule(name):
    network = build_toy()
    for step in ScheduleSettings(name=name).build(LossSettings()).steps:
        before = snapshot(network)
        if isinstance(step, CopyWeights):
            copy_part(network, step.source, step.target)
            expected = step.target
        else:
            train(network, step)
            expected = step.trains
        after = snapshot(network)
        assert {part for part in after if not same(after[part], before[part])} == set(expected)


@pytest.mark.parametrize("phase", [SEG, DEPTH, JOINT], ids=str)
def test_law_holds_for_the_real_unet(phase):
    torch.manual_seed(0)
    network = build_network("unet", 4, encoder="resnet18", encoder_weights="none")
    before = snapshot(network)
    train(network, phase, lambda step: (make_batch(t, side=64) for t in itertools.count(step)), steps=1)
    after = snapshot(network)
    assert {part for part in after if not same(after[part], before[part])} == set(phase.trains)


@pytest.mark.parametrize("phase", [SEG, DEPTH, JOINT], ids=str)
def test_branch_that_is_not_asked_for_is_not_run(phase):
    network = build_toy()
    train(network, phase, steps=3)
    assert network.runs == {"seg": 3 * phase.needs_seg, "depth": 3 * phase.needs_depth}


def test_frozen_encoder_keeps_weights_and_statistics():
    network = build_toy()
    before = snapshot(network)
    train(network, SEG, encoder_policy="freeze")
    after = snapshot(network)
    assert {part for part in after if not same(after[part], before[part])} == {Part.SEG_DECODER, Part.SEG_HEAD}


def test_images_without_masks_leave_no_trace_in_the_segmentation_branch():
    """Neither by its losses nor by its batch norm, here where the encoder through which they could is frozen."""

    def batches(first_step, *, pool_is_black):
        for batch in batches_from(first_step, size=5):
            batch.seg_labels[2:] = IGNORE_INDEX
            if pool_is_black:
                batch.images[2:] = 0
            yield batch._replace(num_labelled=2)

    phase = Phase("branches", SEG_BRANCH | DEPTH_BRANCH, seg=1.0, depth=1.0, images="all")
    networks = [build_toy(dropout=0.0), build_toy(dropout=0.0)]
    for network, is_black in zip(networks, (False, True), strict=True):
        train(network, phase, partial(batches, pool_is_black=is_black))
    one, other = map(snapshot, networks)
    moved = {part for part in one if not same(one[part], other[part])}
    assert moved == {Part.DEPTH_DECODER, Part.DEPTH_HEAD}


def test_evaluation_between_steps_changes_nothing():
    undisturbed, disturbed = build_toy(), build_toy()

    def evaluate(report):
        disturbed.eval()
        disturbed(make_batch(99).images.float())
        torch.rand(3)
        disturbed.train()  # as careless code does, frozen parts included

    train(undisturbed, SEG)
    train(disturbed, SEG, on_step=evaluate)
    assert_same_network(undisturbed, disturbed)


def test_equal_arguments_give_equal_bits_whatever_the_random_state_before():
    first, second, other = build_toy(), build_toy(), build_toy()
    train(first, JOINT)
    torch.manual_seed(12345)
    train(second, JOINT)
    train(other, JOINT, seed=8)
    assert_same_network(first, second)
    assert not torch.equal(first.seg_head.weight, other.seg_head.weight)  # dropout differs


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_both_types_learn_and_are_deterministic(dtype):
    networks = [build_toy(), build_toy()]
    reports = []
    for network in networks:
        train(network, JOINT, steps=30, dtype=dtype, on_step=reports.append)
    assert_same_network(*networks)
    assert reports[29].total < 0.7 * reports[0].total
    assert networks[0].seg_head.weight.dtype == torch.float32


@pytest.mark.parametrize(
    "losses",
    [
        LossSettings(weighting="uncertainty"),
        LossSettings(
            seg="cross-entropy", class_weights=(0.5, 1.0, 2.0, 0.1), depth="ssi", weighting="dwa", dwa_window=1
        ),
    ],
    ids=str,
)
def test_parts_of_a_batch_make_the_step_of_the_whole(losses):
    """But for batch norm, which is taken out here; parts differ in how much of them is labelled, and valid."""

    def batches(first_step, *, parts):
        for batch in batches_from(first_step, size=8):
            for row in range(8):
                batch.seg_labels[row, : 2 * row] = IGNORE_INDEX
                batch.inverse_depth[row, :, row:] = torch.nan
            for rows in torch.arange(8).chunk(parts):
                ids = tuple(batch.image_ids[row] for row in rows)
                yield PackedBatch(ids, *(None if each is None else each[rows] for each in batch.tensors))

    networks, told = [], []
    for parts in (1, 2):
        network = build_toy(aux=True, dropout=0.0)
        network.encoder[1] = network.seg_decoder[1] = network.depth_decoder[1] = nn.Identity()
        train(
            network, JOINT, partial(batches, parts=parts), losses=losses, accumulate=parts, optimizer="sgd",
            clip_norm=1.0, on_step=told.append,
        )  # fmt: skip
        networks.append(network.state_dict())
    for name, value in networks[0].items():
        torch.testing.assert_close(networks[1][name], value, rtol=1e-5, atol=1e-6, msg=name)
    for whole, parted in zip(told[:3], told[3:], strict=True):
        assert (parted.step, parted.images, parted.lr) == (whole.step, 8, whole.lr)
        assert parted.raw == pytest.approx(whole.raw, rel=1e-5) and parted.total == pytest.approx(whole.total, rel=1e-5)


def test_auxiliary_logits_are_trained_with_their_weight():
    reports = []
    train(build_toy(aux=True), SEG, steps=1, on_step=reports.append)
    assert reports[0].weighted["aux"] == pytest.approx(0.4 * reports[0].raw["aux"], rel=1e-6)
    assert reports[0].total == pytest.approx(reports[0].raw["seg"] + reports[0].weighted["aux"], rel=1e-6)


def test_phase_rate_overrides_the_recipe_rate():
    reports = []
    train(build_toy(), Phase("seg", SEG.trains, seg=1.0, lr=0.5), steps=1, on_step=reports.append)
    assert reports[0].lr == 0.5


@pytest.mark.parametrize("weighting", ["fixed", "uncertainty", "dwa"])
def test_shares_add_up(weighting):
    summary = train(build_toy(), JOINT, steps=6, losses=LossSettings(weighting=weighting, dwa_window=2))
    assert sum(summary.shares.values()) == pytest.approx(1)
    assert set(summary.losses) == {"seg", "depth"}
    assert (summary.steps, summary.resumed_from) == (6, 0)
    assert summary.images_per_second > 0


def test_averaged_weights_are_what_the_phase_hands_on():
    plain, averaged = build_toy(), build_toy()
    first = snapshot(plain)[Part.SEG_HEAD]["weight"]
    train(plain, SEG, steps=1)
    train(averaged, SEG, steps=1, ema_decay=0.999)
    decay = 1 / 2  # min(0.999, 1 - 1/(t + 1)) after the first step
    expected = decay * first + (1 - decay) * plain.seg_head.weight
    torch.testing.assert_close(averaged.seg_head.weight, expected)
    assert same(snapshot(plain)[Part.DEPTH_HEAD], snapshot(averaged)[Part.DEPTH_HEAD])


@pytest.mark.slow  # half a minute of C++ compilation
def test_compiled_network_learns_the_same():
    eager, compiled = build_toy(dropout=0.0), build_toy(dropout=0.0)
    # plain descent: Adam would blow the rounding of zero gradients up to full steps
    options = {"steps": 2, "optimizer": "sgd", "lr": 0.1}
    train(eager, SEG, **options)
    train(compiled, SEG, compile=True, **options)
    for (name, first), second in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4, msg=name)


def test_after_a_phase_no_gradient_takes_memory():
    network = build_toy()
    train(network, JOINT)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_compiling_without_a_compiler_is_explained(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"--compile on a CPU needs a C\+\+ compiler"):
        train(build_toy(), SEG, compile=True)


def spoiled_from(step):
    """Batches of which the second has depth without end."""
    for t in itertools.count(step):
        batch = make_batch(t)
        if t == 1:
            batch.inverse_depth[1, 5, 5] = torch.inf
        yield batch


def test_non_finite_loss_stops_before_the_update_and_leaves_no_trace():
    """Batch-norm statistics are those before the step, too, although the forward pass has moved them."""
    network, reference = build_toy(), build_toy()
    train(reference, JOINT, steps=1)
    with pytest.raises(UserError) as caught:
        train(network, JOINT, spoiled_from, steps=3)
    message = str(caught.value)
    assert "loss term 'depth' is inf" in message
    assert "phase 'joint', step 2 of 3, images image-1-0, image-1-1" in message
    assert_same_network(network, reference)


class SteepHead(nn.Module):
    """Finite forward, infinite gradient: the derivative of sqrt at 0."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features):
        return self.head(features) + (0.0 * self.head.weight.sum()).abs().sqrt()


def test_non_finite_gradient_stops_before_the_update():
    network = build_toy()
    network.depth_head = SteepHead(network.depth_head)
    before = snapshot(network)
    with pytest.raises(UserError, match=r"the gradient is nan \(in depth-head.head.weight.*phase 'depth', step 1 of 3"):
        train(network, DEPTH)
    after = snapshot(network)
    assert all(same(after[part], before[part]) for part in after)


def test_all_void_batch_leaves_no_trace_but_decay_and_statistics():
    network = build_toy()
    void = make_batch(0)
    void.seg_labels.fill_(255)
    before = [value.detach().clone() for value in network.parameters()]
    summary = train(network, SEG, lambda _step: itertools.repeat(void), steps=2)
    assert summary.losses == {"seg": 0.0}
    assert summary.shares == {"seg": 0.0}
    assert all(torch.equal(value, old) for value, old in zip(network.parameters(), before, strict=True))


def test_label_beyond_the_classes_is_explained():
    batch = make_batch(0)
    batch.seg_labels[0, 5, 5] = NUM_CLASSES
    batch.seg_labels[1, 5, 5] = 254
    said = r"2 pixels have labels beyond the network's classes 0 to 3 in phase 'seg', step 2 of 3, images image-0-0"
    network, reference = build_toy(), build_toy()
    train(reference, SEG, steps=1)
    with pytest.raises(UserError, match=said):
        train(network, SEG, lambda _step: iter([make_batch(0), batch, make_batch(2)]))
    assert_same_network(network, reference)


def test_depth_phase_on_a_network_without_depth_is_explained():
    with pytest.raises(UserError, match="this network has no depth-decoder, depth-head"):
        train(build_toy(with_depth=False), JOINT)


def test_too_little_memory_is_said_with_what_was_too_much():
    def exhaust(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network = build_toy()
    network.encoder.register_forward_hook(exhaust)
    said = r"2 images of 128x128 px in float32 \(phase 'joint'\); lower --batch-size to 1, or .*crop=\[64,64\], or --p"
    with pytest.raises(UserError, match=said):
        train(network, JOINT, lambda _step: iter([make_batch(0, side=128)]))


def test_a_phase_without_steps_is_explained():
    with pytest.raises(UserError, match="total_steps 0 must be at least 1"):
        train(build_toy(), SEG, steps=0)


def test_too_few_batches_are_a_bug_not_a_short_phase():
    with pytest.raises(RuntimeError, match="ended before the phase"):
        train(build_toy(), SEG, lambda _step: iter([make_batch(0), make_batch(1)]))


def test_checkpoints_are_written_by_time(tmp_path):
    found = {minutes: [] for minutes in (EVERY_STEP, 5.0)}
    for minutes, seen in found.items():
        folder = tmp_path / str(minutes)

        def look(report, folder=folder, seen=seen):
            seen.append([path.name for path in folder.glob("*")])

        train(build_toy(), SEG, checkpoint_folder=folder, checkpoint_minutes=minutes, on_step=look)
    assert found == {EVERY_STEP: [[], ["step-00000001"], ["step-00000002"]], 5.0: [[], [], []]}


def interrupt(network, phase, folder, *, after, **options):
    """Train into the folder and stop after a step."""
    stop = StopFlag()

    def batches_until_stop(first_step):
        for step, batch in enumerate(batches_from(first_step), first_step + 1):
            if step == after:
                stop.set()
            yield batch

    with pytest.raises(Interrupted, match=rf"phase '{phase}' after {after} of \d steps; the state is in"):
        train(network, phase, batches_until_stop, checkpoint_folder=folder, stop=stop, **options)


@pytest.mark.parametrize(
    ("optimizer", "weighting", "dtype"),
    [("adam", "uncertainty", "float32"), ("sgd", "dwa", "bfloat16"), ("adamw", "fixed", "float16")],
)
def test_stop_saves_the_state_and_a_second_call_ends_as_if_undisturbed(tmp_path, optimizer, weighting, dtype):
    """Same bits of weights and their average, same bytes of the log, though the stop comes between two lines."""
    reference, resumed = build_toy(), build_toy(seed=3)  # other weights: all must come from the state
    options = {
        "steps": 8, "optimizer": optimizer, "losses": LossSettings(weighting=weighting, dwa_window=2), "dtype": dtype,
        "lr_schedule": "poly", "clip_norm": 0.3, "ema_decay": 0.9, "weight_decay": 1e-3, "log_every": 3,
    }  # fmt: skip
    whole, parts, state = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl", tmp_path / "state"
    with MetricsLog(whole, log_every=3) as log:
        train(reference, JOINT, log=log, **options)
    with MetricsLog(parts, log_every=3) as log:
        interrupt(build_toy(), JOINT, state, after=5, log=log, **options)
    with MetricsLog(parts, log_every=3) as log:
        assert train(resumed, JOINT, checkpoint_folder=state, log=log, **options).resumed_from == 5
    assert_same_network(resumed, reference)
    assert parts.read_bytes() == whole.read_bytes()


def test_reports_reach_the_listener_in_order_and_none_is_missing(tmp_path):
    """Also those before a checkpoint, which presumes that the log has them."""
    told = []
    for minutes in (EVERY_STEP, 5.0):
        reports = []
        train(build_toy(), SEG, steps=7, log_every=3, checkpoint_folder=tmp_path / str(minutes),
              checkpoint_minutes=minutes, on_step=reports.append)  # fmt: skip
        told.append(reports)
    assert [report.step for report in told[0]] == [1, 2, 3, 4, 5, 6, 7]
    assert told[0] == told[1]


def test_a_training_goes_on_under_another_name_of_its_phase(tmp_path):
    """What is continued is told by the key alone; weights and log are those of a training that always had the name."""
    renamed, reference, resumed = Phase("seg-2", SEG.trains, seg=1.0), build_toy(), build_toy()
    with MetricsLog(tmp_path / "undisturbed.jsonl", log_every=1) as log:
        train(reference, renamed, steps=4, log=log)
    with MetricsLog(tmp_path / "resumed.jsonl", log_every=1) as log:
        interrupt(build_toy(), SEG, tmp_path / "state", after=2, steps=4, log=log)
    with MetricsLog(tmp_path / "resumed.jsonl", log_every=1) as log:
        assert train(resumed, renamed, steps=4, checkpoint_folder=tmp_path / "state", log=log).resumed_from == 2
    assert_same_network(resumed, reference)
    assert (tmp_path / "resumed.jsonl").read_bytes() == (tmp_path / "undisturbed.jsonl").read_bytes()


def test_dying_loader_workers_count_as_a_stop_only_when_one_was_asked_for():
    def dying(step, stop):
        yield make_batch(0)
        stop.set()
        raise RuntimeError("DataLoader worker exited unexpectedly")

    stop = StopFlag()
    with pytest.raises(Interrupted):
        train(build_toy(), SEG, lambda step: dying(step, stop), stop=stop)
    with pytest.raises(RuntimeError, match="worker exited"):
        train(build_toy(), SEG, lambda step: dying(step, StopFlag()), stop=StopFlag())


SIGNALLED = """
import signal, sys
from stages.training import interruption
number = signal.Signals[sys.argv[1]]
outside = signal.signal(number, signal.default_int_handler)
interruption._ECHO_S = 3600.0  # a busy machine may pause for longer than an echo takes
with interruption.stop_on_signals() as stop:
    assert not stop.is_set()
    signal.raise_signal(number)
    signal.raise_signal(number)
    assert stop.is_set()
    interruption._ECHO_S = 0.0
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        print("interrupted")
assert signal.getsignal(number) is signal.default_int_handler
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_first_signal_sets_the_flag_second_interrupts_unless_an_echo_and_handlers_come_back(name):
    """In a process of its own: signals are the process's, and this one is the test runner's."""
    done = subprocess.run([sys.executable, "-c", SIGNALLED, name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_a_training_in_another_thread_hears_no_signals_and_runs():
    before = [signal.getsignal(number) for number in interruption._SIGNALS]

    def enter():
        with stop_on_signals() as stop:
            return stop.is_set(), [signal.getsignal(number) for number in interruption._SIGNALS]

    with ThreadPoolExecutor() as pool:
        assert pool.submit(enter).result() == (False, before)


def test_log_holds_every_nth_and_the_last_step(tmp_path):
    with MetricsLog(tmp_path / "run" / "metrics.jsonl", log_every=2) as log:
        train(build_toy(), JOINT, steps=5, log=log)
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [(line["phase"], line["step"]) for line in lines] == [("joint", 2), ("joint", 4), ("joint", 5)]
    assert set(lines[0]) == {"phase", "step", "total", "raw", "weighted", "share", "lr", "grad_norm", "mean"}
    assert lines[0]["weighted"]["depth"] == pytest.approx(0.15 * lines[0]["raw"]["depth"], rel=1e-6)
    assert lines[0]["total"] == pytest.approx(sum(lines[0]["weighted"].values()), rel=1e-6)


BROKEN_IN_CHANNELS_LAST = """
import torch
from test_loop import train
from toy_network import make_batch
from data_cache.sample import PackedBatch
from stages.networks import build_network
from stages.training.schedules import JOINT

small = {"encoder_weights": "none", "decoder_channels": [8, 8, 8, 8, 8]}
network = build_network("unet", 3, encoder="mobileone_s0", **small)
images = torch.randint(0, 256, (2, 96, 128, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
labels = torch.randint(0, 3, (2, 96, 128), dtype=torch.uint8)
batch = PackedBatch(("a", "b"), images, labels, torch.rand(2, 96, 128).half())
train(network, JOINT, lambda first: iter([batch] * (2 - first)), steps=2)
print("trained", all(bool(value.isfinite().all()) for value in network.state_dict().values()))
"""


@pytest.mark.slow
def test_an_encoder_that_channels_last_memory_breaks_is_trained_in_another():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    stem = nn.Conv2d(3, 48, kernel_size=1, stride=2)
    assert choose_memory_format(build_toy(), cpu) == choose_memory_format(stem, gpu) == torch.channels_last
    assert choose_memory_format(stem, cpu) == torch.contiguous_format
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_IN_CHANNELS_LAST], capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"MALLOC_CHECK_": "3", "PYTHONPATH": path},
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (0, "trained True"), done.stderr
