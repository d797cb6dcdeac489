"""What a deployed network costs: stripped against smp's own, ONNX against eager PyTorch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
from torch import nn

from data_cache.size_rule import fixed_size
from stages.export import onnx_file
from stages.export.job import ExportJob
from stages.networks import build_network, segmentation_only, strip_depth
from tests.benchmarks.harness import Goal, Line, Turns, alternate

CLASSES = 21
CASES = (("resnet18", (96, 128), 60), ("resnet50", (256, 256), 12))
"""Encoder, image size, passes."""
WHY_ONNX = "large convolutions are bound by arithmetic, which eager PyTorch's kernels do nearly as fast"


def lines(*, small: bool) -> Iterator[Line]:
    """Yield the lines of this bench."""
    for encoder, size, passes in CASES[:1] if small else CASES:
        turns = time_networks(encoder, size, 2 if small else passes)
        case = f"U-Net {encoder}, {size[0]}×{size[1]}"
        times = [f"{1e3 * turns.seconds(side):.1f} ms" for side in range(3)]
        yield Line(
            f"stripped / smp.Unet latency ({case})", turns.ratio(0, 1), Goal(at_most=1.02), f"{times[0]} and {times[1]}"
        )
        yield Line(
            f"ONNX float32 / eager latency ({case})", turns.ratio(2, 0), Goal(at_most=0.40),
            f"{times[2]} and {times[0]}", WHY_ONNX,
        )  # fmt: skip


@torch.no_grad()
def time_networks(encoder: str, size: tuple[int, int], passes: int) -> Turns:
    """Time, for one image, the stripped network, smp's own, and the written ONNX file in onnxruntime."""
    torch.manual_seed(0)
    stripped = strip_depth(build_network("unet", CLASSES, encoder=encoder, encoder_weights="none"))
    assert isinstance(stripped, nn.Module)
    ours = segmentation_only(stripped.eval()).eval()
    theirs = smp.Unet(encoder, encoder_weights=None, classes=CLASSES).eval()
    images = torch.randn(1, 3, *size)
    with tempfile.TemporaryDirectory() as folder:
        onnx_file.write(ExportJob(stripped, Path(folder), size, fixed_size(size), 20, {}))
        onnx = onnx_file.open_folder(Path(folder))
        return alternate([lambda: ours(images), lambda: theirs(images), lambda: onnx(images)], passes, warm_up=2)
