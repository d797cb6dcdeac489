"""Tiles: equal to the whole where nothing beyond the margin is seen, closer to it the wider the margin."""

from __future__ import annotations

import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from data_cache.errors import UserError
from data_cache.sample import PackedBatch
from stages.evaluation.evaluate import evaluate
from stages.evaluation.tiling import TiledNetwork, predict, predict_tiles
from stages.evaluation.views import choose_views
from stages.networks import build_network
from stages.networks.framing import mirror_pad
from stages.networks.interface import Network, Outputs


def random_images(height: int, width: int, batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def pack(images: torch.Tensor) -> torch.Tensor:
    return images.mul(40).add(128).clamp(0, 255).byte()


def stitch(network, images: torch.Tensor, *, tile: int, margin: int, depth: bool = False) -> Outputs:
    """What the tiles hold, put together; every pixel comes from exactly one."""
    height, width = images.shape[-2:]
    covered = torch.zeros(height, width, dtype=torch.int64)
    logits, estimated = None, torch.empty(images.shape[0], height, width, dtype=images.dtype)
    for piece in predict_tiles(network, images, tile, margin, depth=depth):
        found = piece.outputs.seg_logits
        logits = found.new_empty(*found.shape[:2], height, width) if logits is None else logits
        logits[..., piece.rows, piece.columns] = found
        if depth:
            estimated[..., piece.rows, piece.columns] = piece.outputs.depth
        covered[piece.rows, piece.columns] += 1
    assert (covered > 0).all()
    return Outputs(logits, estimated if depth else None)


def convolve(layers: int, dilation: int = 1) -> nn.Module:
    """A stack of 3×3 convolutions of receptive radius ``layers * dilation``, the border mirrored as tiles have it."""
    torch.manual_seed(0)

    class Convolutions(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(
                *[nn.Conv2d(3 if n == 0 else 6, 6, 3, dilation=dilation) for n in range(layers)]
            )

        def forward(self, images):
            return self.layers(mirror_pad(images, *[layers * dilation] * 4))

    return Convolutions()


@pytest.fixture(scope="module")
def unet_valid():
    torch.manual_seed(0)
    return build_network("unet-valid", 4, width=2).eval()


@pytest.mark.parametrize("size", [(128, 160), (65, 201), (97, 70), (20, 300)])
def test_equals_the_whole_when_the_margin_covers_the_receptive_radius(size):
    network, images = convolve(layers=3), random_images(*size, batch=2)
    tiled = stitch(network, images, tile=64, margin=32).seg_logits
    torch.testing.assert_close(tiled, network(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(200, 170), (64, 64), (75, 331)])
@pytest.mark.parametrize("margin", [0, 92, 100])
def test_unet_valid_in_tiles_equals_the_whole_image(unet_valid, size, margin):
    images = random_images(*size)
    with torch.no_grad():
        whole = unet_valid(images)
    tiled = stitch(unet_valid, images, tile=80, margin=margin, depth=True)
    # rtol, because several threads add the larger values up in another order; in double precision it is 1e-12
    torch.testing.assert_close(tiled.seg_logits, whole.seg_logits, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(tiled.depth, whole.depth, atol=1e-6, rtol=1e-6)


def test_wider_margins_bring_a_padded_network_closer():
    torch.manual_seed(0)
    network = build_network("unet-classic", 4, width=4).eval()
    images = random_images(256, 256)
    with torch.no_grad():
        whole = network(images, depth=False).seg_logits

    def differ(margin):
        tiled = stitch(network, images, tile=64, margin=margin).seg_logits
        centre = (..., slice(128, 192), slice(128, 192))  # a tile whose window ends inside the image
        return (tiled - whole)[centre].abs().mean().item()

    differences = [differ(margin) for margin in (0, 16, 32, 64)]
    assert differences == sorted(differences, reverse=True)
    assert differences[-1] < 0.1 * differences[0]


@pytest.mark.parametrize(
    ("size", "tile", "margin"), [((70, 230), 64, 32), ((70, 230), 96, 32), ((3, 5), 64, 64), ((1, 70), 64, 64)], ids=str
)
def test_every_pixel_lands_in_its_place(size, tile, margin):
    """Images smaller than the margin are mirrored again."""
    images = random_images(*size, batch=2)
    assert torch.equal(stitch(lambda windows: windows, images, tile=tile, margin=margin).seg_logits, images)


def test_windows_start_on_the_pooling_grid():
    images = random_images(100, 140)

    def pool(windows):
        return F.interpolate(F.avg_pool2d(windows, 32), scale_factor=32.0)

    padded = mirror_pad(images, 0, 28, 0, 20)
    expected = pool(padded)[..., :100, :140]
    torch.testing.assert_close(stitch(pool, images, tile=64, margin=32).seg_logits, expected)


@pytest.mark.parametrize("size", [(200, 170), (20, 75)], ids=str)
def test_labels_in_tiles_are_those_of_the_whole_where_the_margin_suffices(size):
    torch.manual_seed(0)
    network = build_network("unet-valid", 4, width=2).double().eval()  # float32 may round near ties either way
    images = random_images(*size, batch=2).double()
    with torch.no_grad():
        whole = network(images)
    tiled = predict(TiledNetwork(network, tile=80, margin=92), images, size, depth=True)
    assert torch.equal(tiled.seg_labels, whole.seg_logits.argmax(1).to(torch.uint8))
    torch.testing.assert_close(tiled.depth, whole.depth.float())


def test_windows_go_over_into_one_another_without_a_step():
    """Windows that agree nowhere: each says its own number everywhere."""
    numbers = iter(range(100))
    images = random_images(200, 330)

    def disagree(windows):
        return torch.full_like(windows[:, :1], next(numbers))

    found = stitch(disagree, images, tile=64, margin=64).seg_logits[0, 0]
    columns = len({int(value) for value in found[0].tolist() if value == int(value)})
    assert columns == 6 and found.unique().numel() > 100
    assert torch.allclose(found[10, 64 - 16 : 64 + 16], (torch.arange(32) + 0.5) / 32)
    assert (found[:, 1:] - found[:, :-1]).abs().max() <= 1 / 32 + 1e-6
    assert (found[1:] - found[:-1]).abs().max() <= columns / 32 + 1e-5


def test_the_mean_over_views_is_taken_in_every_tile():
    """A pointwise network sees the same in every view but for the seams of resizing; mirroring has none."""
    network, images = nn.Conv2d(3, 4, 1).eval(), random_images(100, 130)
    views = choose_views("flip")
    with torch.no_grad():
        expected = network(images).log_softmax(1)
    for piece in predict_tiles(network, images, 64, 32, views=views):
        torch.testing.assert_close(piece.outputs.seg_logits, expected[..., piece.rows, piece.columns])


def test_networks_without_padding_take_no_other_views_of_tiles(unet_valid):
    with pytest.raises(UserError, match="no padding, so --tta cannot show it tiles in other views"):
        next(predict_tiles(unet_valid, random_images(64, 64), 64, 0, views=choose_views("flip")))


class Classes(Network):
    """Many classes from one pointwise layer: its logits are by far the largest tensor."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.seg_head = nn.Conv2d(3, num_classes, 1)

    def forward(self, images, *, seg=True, depth=True, seg_rows=None):  # noqa: ARG002
        return Outputs(self.seg_head(images), None)


class LargestTensor(TorchDispatchMode):
    """Remembers the bytes of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        self.bytes = max(
            [self.bytes, *(value.nbytes for value in tree_leaves(made) if isinstance(value, torch.Tensor))]
        )
        return made


def measure_largest_tensor(num_classes: int, side_px: int, *, tiles: bool) -> int:
    network, images = Classes(num_classes), random_images(side_px, side_px)
    with LargestTensor() as largest, torch.no_grad():
        predict(TiledNetwork(network, tile=64, margin=0) if tiles else network, images, (side_px, side_px))
    return largest.bytes


def test_memory_is_bounded_by_the_tiles_and_not_by_classes_times_image():
    window = 100 * 64 * 64 * 4
    for side_px in (128, 256):
        assert measure_largest_tensor(100, side_px, tiles=True) == window
        assert measure_largest_tensor(100, side_px, tiles=False) == 100 * side_px**2 * 4
    assert measure_largest_tensor(2, 640, tiles=True) == 3 * 640**2 * 4  # nothing beyond a copy of the image


def test_blending_keeps_no_more_than_a_window_and_the_bands_of_a_row():
    """Live logits, that is; the image itself is bytes until a window is cut."""
    classes, tile, margin, width = 100, 64, 64, 512
    alive: list[weakref.ref] = []

    def network(windows):
        logits = windows[:, :1].repeat(1, classes, 1, 1)
        alive.append(weakref.ref(logits))
        return logits

    ramp = tile // 4
    for height in (128, 512):
        images = torch.zeros(1, 3, height, width, dtype=torch.uint8)
        with LargestTensor() as largest, torch.inference_mode():
            predict(
                TiledNetwork(network, tile=tile, margin=margin), images, (height, width), prepare=lambda cut: cut / 255
            )
            assert sum(each() is not None for each in alive) <= 1
        assert largest.bytes <= max(classes * (tile + 2 * margin) ** 2 * 4, 3 * (height + 192) * (width + 192))
        assert largest.bytes < classes * (2 * ramp) * width * 4 * 3


def test_an_evaluation_takes_a_tiled_network(unet_valid):
    labels = torch.randint(0, 4, (1, 100, 130), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    batch = PackedBatch(("a",), pack(random_images(100, 130)), labels)
    names = {"normalisation": HALF, "num_classes": 4, "class_names": "abcd"}
    tiled = evaluate(TiledNetwork(unet_valid, tile=64, margin=92), [batch], **names)
    assert tiled.confusion == evaluate(unet_valid, [batch], **names).confusion
    resized = batch._replace(images=pack(random_images(80, 90)))
    with pytest.raises(UserError, match="images, which are 80x90 px, but labels of 100x130 px are wanted"):
        evaluate(TiledNetwork(unet_valid, tile=64, margin=92), [resized], **names)


def test_an_evaluation_in_tiles_refuses_what_no_argmax_shows(unet_valid):
    images = torch.zeros(1, 3, 100, 130, dtype=torch.uint8)
    images[..., -1, -1] = 255  # one tile only

    def network(windows):
        logits = unet_valid(windows, depth=False).seg_logits
        return logits.where(windows[:, :1] < 1, torch.nan)

    with pytest.raises(UserError, match="segmentation logits are not finite for a;"):
        evaluate(
            TiledNetwork(network, tile=64, margin=96),
            [PackedBatch(("a",), images, images[:, 0])],
            normalisation=HALF,
            num_classes=4,
            class_names="abcd",
        )


def test_networks_with_global_pooling_are_warned_about_and_no_others(unet_valid):
    network = build_network("pspnet", 2, encoder="resnet18", encoder_weights="none", decoder_channels=4).eval()
    with pytest.warns(UserWarning, match="PspNet pools over its whole input"):
        stitch(network, random_images(64, 64), tile=64, margin=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stitch(unet_valid, random_images(64, 64), tile=64, margin=0)


@pytest.mark.parametrize(
    ("tile", "margin", "match"),
    [(500, 64, "use 480 or 512"), (512, 40, "--margin 40 .* use 32 or 64"), (32, 0, "use 64 or 96"), (64, -1, "-1")],
)
def test_sizes_off_the_grid_are_refused_with_the_nearest(tile, margin, match):
    with pytest.raises(UserError, match=match):
        TiledNetwork(lambda windows: windows, tile=tile, margin=margin)


def test_a_network_that_takes_any_margin_asks_only_for_one_of_at_least_0(unet_valid):
    TiledNetwork(unet_valid, tile=64, margin=7)
    with pytest.raises(UserError, match="--margin -3 must be at least 0"):
        TiledNetwork(unet_valid, tile=64, margin=-3)


def test_a_margin_beyond_the_image_costs_no_memory():
    sizes = []

    def network(windows):
        sizes.append(tuple(windows.shape[-2:]))
        return windows

    images = random_images(70, 130)
    assert torch.equal(stitch(network, images, tile=64, margin=32_000).seg_logits, images)
    assert set(sizes) == {(64 + 2 * 96, 64 + 2 * 160)}
