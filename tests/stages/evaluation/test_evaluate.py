"""evaluate(): a network's scores are those of its argmax at label size; it leaves the network as it was."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data_cache.errors import UserError
from data_cache.metrics import METRICS
from data_cache.sample import IGNORE_INDEX, PackedBatch
from data_cache.unpacking import unpack
from stages.evaluation.evaluate import evaluate
from stages.evaluation.metrics import SegCounts
from stages.evaluation.tiling import TiledNetwork
from stages.networks.interface import Outputs

NAMES = ("background", "ball", "box")
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


class TinyNetwork(nn.Module):
    """Two 1×1 convolutions under one batch norm; logits at a fraction of the input's size."""

    def __init__(self, shrink: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.seg_head = nn.Conv2d(3, 3, 1)
        self.depth_head = nn.Conv2d(3, 1, 1)
        self.shrink = shrink

    def forward(self, images, *, seg=True, depth=True):
        features = F.avg_pool2d(self.norm(images), self.shrink)
        return Outputs(self.seg_head(features) if seg else None, self.depth_head(features)[:, 0] if depth else None)


@pytest.fixture
def network() -> TinyNetwork:
    torch.manual_seed(0)
    return TinyNetwork()


def make_batches(sizes=((2, 16, 20), (1, 16, 20)), *, with_depth=True) -> list[PackedBatch]:
    draw = torch.Generator().manual_seed(1)
    batches = []
    for number, size in enumerate(sizes):
        labels = torch.randint(3, size, generator=draw, dtype=torch.uint8)
        labels[:, :2] = IGNORE_INDEX
        depth = torch.rand(size, generator=draw).where(torch.rand(size, generator=draw) < 0.9, torch.nan)
        ids = tuple(f"image-{number}-{index}" for index in range(size[0]))
        images = torch.randint(256, (size[0], 3, *size[1:]), generator=draw, dtype=torch.uint8)
        batches.append(PackedBatch(ids, images, labels, depth if with_depth else None))
    return batches


def run(network, batches, **options):
    return evaluate(network, batches, **{"normalisation": HALF, "num_classes": 3, "class_names": NAMES, **options})


def normalise(batch):
    return unpack(batch, HALF, torch.device("cpu")).images


VOID = make_batches()[0]._replace(seg_labels=torch.full((2, 16, 20), IGNORE_INDEX, dtype=torch.uint8))


def test_scores_are_those_of_the_argmax(network):
    batches = make_batches(((2, 16, 20), (1, 9, 12)))
    counts = SegCounts(3, background=0)
    with torch.no_grad():
        for batch in batches:
            counts.update(network.eval()(normalise(batch)).seg_logits.argmax(1), batch.seg_labels)
    handed = []
    evaluation = run(network, batches, with_depth=True, on_predictions=lambda *found: handed.append(found))
    for batch, (given, predictions, depth) in zip(batches, handed, strict=True):
        assert given is batch and predictions.shape == depth.shape == batch.seg_labels.shape
        assert predictions.dtype == torch.uint8
    assert evaluation.confusion == counts.confusion.tolist()
    assert {name: evaluation.metrics[name] for name in counts.compute()} == counts.compute()
    assert evaluation.metrics_paper == counts.compute("fp")
    assert tuple(evaluation.metrics) == tuple(METRICS), "what is computed is what is declared, in that order"
    assert evaluation.images == 3
    assert [row.name for row in evaluation.per_class] == list(NAMES)


@pytest.fixture
def one_thread():
    """Several threads add a batch up in another order than a single image, which moves float32 sums by 4e-7."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_batch_size_changes_no_score(network, one_thread):
    batches = make_batches(((4, 16, 20),))
    singles = [
        PackedBatch((batch.image_ids[i],), *(field[i : i + 1] for field in batch[1:4]))
        for batch in batches
        for i in range(4)
    ]
    assert run(network, singles, with_depth=True).metrics == pytest.approx(
        run(network, batches, with_depth=True).metrics, abs=1e-9
    )


def test_logits_are_resized_before_the_argmax():
    network = TinyNetwork(shrink=4).eval()
    batch = make_batches(((2, 16, 20),), with_depth=False)[0]
    labels = F.interpolate(batch.seg_labels.unsqueeze(1).float(), (33, 41)).squeeze(1).byte()
    with torch.no_grad():
        logits = F.interpolate(network(normalise(batch)).seg_logits, (33, 41), mode="bilinear")
    counts = SegCounts(3)
    counts.update(logits.argmax(1), labels)
    assert run(network, [batch._replace(seg_labels=labels)]).confusion == counts.confusion.tolist()


def test_exported_segmentation_only_module_scores_like_the_network(network):
    class Exported(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, images):
            return self.network(images, depth=False).seg_logits

    batches = make_batches()
    whole, exported = run(network, batches), run(Exported(), batches)
    assert whole.metrics == exported.metrics
    network.eval()  # a plain function hides its modules, so nobody else can
    assert run(lambda images: exported_logits(network, images), batches).metrics == whole.metrics


def exported_logits(network, images):
    return network(images).seg_logits


def test_compiled_style_wrappers_are_called_with_branches(network):
    calls = []

    def record(images, *, seg=True, depth=True):
        calls.append((seg, depth))
        return network(images, seg=seg, depth=depth)

    run(record, make_batches())
    assert calls == [(True, False)] * 2


@pytest.mark.parametrize("fails", [False, True])
def test_each_module_keeps_its_mode(network, fails):
    network.train()
    network.norm.eval()  # a frozen part
    state = {name: value.clone() for name, value in network.state_dict().items()}
    if fails:
        with pytest.raises(UserError):
            run(network, [make_batches(with_depth=False)[0]], with_depth=True)
    else:
        run(network, make_batches())
    assert network.training and network.seg_head.training and not network.norm.training
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_bfloat16_gives_nearly_the_same(network):
    exact, fast = (run(network, make_batches(), precision=precision).metrics for precision in ("float32", "bfloat16"))
    assert fast["pixel_acc"] == pytest.approx(exact["pixel_acc"], abs=0.02)


def test_json_form_survives_a_round_trip(network):
    facts = run(network, make_batches()).to_json()
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["per_class"][0]["name"] == "background"


@pytest.mark.parametrize(
    ("batches", "options", "match"),
    [
        ([], {}, "the split has no image"),
        ([VOID], {}, "none of the 2 images has a labelled pixel"),
        (make_batches(), {"num_classes": 2, "class_names": NAMES[:2]}, "data has 2 classes"),
        (make_batches(with_depth=False), {"with_depth": True}, "no depth for image 'image-0-0'"),
    ],
    ids=["no image", "no label", "other classes", "no depth"],
)
def test_what_cannot_be_scored_is_refused(network, batches, options, match):
    with pytest.raises(UserError, match=match):
        run(network, batches, **options)


def test_depth_of_a_stripped_network_is_refused(network):
    with pytest.raises(UserError, match="no depth branch"):
        run(lambda images: exported_logits(network, images), make_batches(), with_depth=True)


def test_an_image_that_the_network_refuses_is_named():
    def choosy(images, *, seg=True, depth=True):
        raise UserError(f"images of {images.shape[-2]}x{images.shape[-1]} px are too small")

    with pytest.raises(UserError, match="image image-0-0: images of 1x1 px are too small"):
        run(choosy, make_batches(((1, 1, 1),)))


@pytest.mark.parametrize(("tile", "remedy"), [(None, "--tile 512"), (64, "smaller tiles than --tile 64")])
def test_too_little_memory_is_said_with_what_was_too_much(network, tile, remedy):
    def exhaust(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    network.norm.register_forward_hook(exhaust)
    evaluated = network if tile is None else TiledNetwork(network, tile=tile, margin=0)
    said = rf"cpu has too little memory to evaluate 2 images of 96x128 px at once in float32; .*size to 1 .*{remedy}"
    with pytest.raises(UserError, match=said):
        run(evaluated, make_batches(((2, 96, 128),)))


def test_broken_weights_are_named_with_the_image(network):
    batches = make_batches()
    for batch in batches:
        batch.images[:, 0, 0, 0] = 0
    batches[1].images[0, 0, 0, 0] = 255

    def overflow(images):
        return exported_logits(network, images).where(images[:, :1, :1, :1] < 1, torch.inf)

    with pytest.raises(UserError, match="segmentation logits are not finite for image-1-0"):
        run(overflow, batches)
