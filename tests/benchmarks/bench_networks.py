"""Speed of the network and its export against their rivals: python -m tests.benchmarks.bench_networks.

Every pair is timed in turns in one process and the fastest runs are compared: what other programs on the machine add is
never negative, so the fastest of many runs is the least disturbed one.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn

from stages.export import onnx_file
from stages.export.job import ExportJob
from stages.networks import build_network, segmentation_only, strip_depth
from stages.networks.interface import Network

CLASSES = 21
CASES = (("resnet18", (96, 128)), ("resnet50", (256, 256)))
STRIPPED_BUDGET, ONNX_BUDGET, SEG_PHASE_BUDGET = (0.98, 1.02), 0.40, 1.02


def main(arguments: list[str] | None = None) -> None:
    """Print each comparison with its budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="timed runs of each side")
    runs = parser.parse_args(arguments).runs
    print(
        f"U-Net, {CLASSES} classes, {torch.get_num_threads()} threads, torch {torch.__version__}, best of {runs} runs"
    )
    for encoder, size in CASES:
        torch.manual_seed(0)
        dual = build_network("unet", CLASSES, encoder=encoder, encoder_weights="none")
        print(f"{encoder}, {size[0]}x{size[1]}")
        bench_stripped(dual, encoder, size, runs)
        bench_onnx(dual, size, runs)
        bench_seg_phase(dual, encoder, size, runs)


@torch.no_grad()
def bench_stripped(dual: Network, encoder: str, size: tuple[int, int], runs: int) -> None:
    """Latency of the stripped network against smp's own model."""
    stripped = segmentation_only(strip_depth(dual)).eval()
    plain = smp.Unet(encoder, encoder_weights=None, classes=CLASSES).eval()
    images = torch.randn(1, 3, *size)
    ours_s, theirs_s = time_in_turns(lambda: stripped(images), lambda: plain(images), runs)
    low, high = STRIPPED_BUDGET
    print(f"  stripped / smp.Unet latency: {ours_s / theirs_s:.3f} (budget {low} to {high}; {ours_s * 1e3:.1f} ms)")


@torch.no_grad()
def bench_onnx(dual: Network, size: tuple[int, int], runs: int) -> None:
    """Latency of the written ONNX file in onnxruntime against the stripped network in eager PyTorch."""
    stripped = strip_depth(dual)
    assert isinstance(stripped, nn.Module)
    eager = segmentation_only(stripped.eval()).eval()
    images = torch.randn(1, 3, *size)
    with tempfile.TemporaryDirectory() as folder:
        onnx_file.write(ExportJob(stripped, Path(folder), size, dynamic=False, opset=20))
        onnx = onnx_file.open_folder(Path(folder))
        onnx_s, eager_s = time_in_turns(lambda: onnx(images), lambda: eager(images), runs)
    print(f"  ONNX float32 / eager latency: {onnx_s / eager_s:.3f} (budget {ONNX_BUDGET}; {onnx_s * 1e3:.1f} ms)")


def bench_seg_phase(dual: Network, encoder: str, size: tuple[int, int], runs: int) -> None:
    """Segmentation step on the network with two decoders against the same step on one that has a single decoder."""
    torch.manual_seed(0)
    single = build_network("unet", CLASSES, with_depth=False, encoder=encoder, encoder_weights="none")
    images = torch.randn(4, 3, *size)
    labels = torch.randint(CLASSES, (4, *size))
    dual_s, single_s = time_in_turns(make_step(dual, images, labels), make_step(single, images, labels), runs)
    ratio = dual_s / single_s
    print(f"  seg step, dual / single-decoder network: {ratio:.3f} (budget {SEG_PHASE_BUDGET}; {dual_s * 1e3:.0f} ms)")


def make_step(network: Network, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """Return one float32 step of a segmentation phase: only its parts are trained, the depth branch is not run."""
    assert isinstance(network, nn.Module)
    network.train()
    trained = [weight for name, weight in network.named_parameters() if not name.startswith("depth_")]
    optimiser = torch.optim.Adam(trained, lr=1e-4)

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(network(images, depth=False).seg_logits, labels).backward()
        optimiser.step()

    return step


def time_in_turns(first: Callable[[], object], second: Callable[[], object], runs: int) -> tuple[float, float]:
    """Return the fewest seconds of each, after two runs that are not timed."""
    fastest_s = [float("inf"), float("inf")]
    for run in range(runs + 2):
        for index, action in enumerate((first, second)):
            started_at = time.perf_counter()
            action()
            if run >= 2:
                fastest_s[index] = min(fastest_s[index], time.perf_counter() - started_at)
    return fastest_s[0], fastest_s[1]


if __name__ == "__main__":
    main()
