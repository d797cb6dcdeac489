"""Adaptive pooling that an exporter can carry to other image sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ShapeSafeAdaptiveAvgPool2d(nn.Module):
    """Adaptive average pooling as two matrix products, equal to ``nn.AdaptiveAvgPool2d`` up to rounding.

    The exporter unrolls adaptive pooling into the bins of the traced size; at another size the file then fails or,
    worse, answers wrongly (seen with torch 2.15). Averaging matrices built from the shape stay right at every size.
    """

    def __init__(self, output_size: tuple[int, int]) -> None:
        super().__init__()
        self.output_size = output_size

    def forward(self, features: Tensor) -> Tensor:
        """Return (B, C, h, w) averages of the bins of (B, C, H, W)."""
        rows, columns = self.output_size
        average_rows = _build_averaging_matrix(rows, features.shape[-2], features)
        average_columns = _build_averaging_matrix(columns, features.shape[-1], features)
        return average_rows @ features @ average_columns.transpose(0, 1)


def _build_averaging_matrix(num_bins: int, size: int, like: Tensor) -> Tensor:
    """Return (num_bins, size); row i averages floor(i·size/n) … ceil((i+1)·size/n) - 1, as torch's bins do."""
    bins = torch.arange(num_bins, device=like.device)
    start = bins * size // num_bins
    end = ((bins + 1) * size + num_bins - 1) // num_bins
    position = torch.arange(size, device=like.device)
    inside = (position >= start[:, None]) & (position < end[:, None])
    return inside.to(like.dtype) / (end - start)[:, None].to(like.dtype)


def replace_adaptive_pooling(module: nn.Module) -> nn.Module:
    """Replace in place every adaptive average pooling to more than one bin; to one bin it is a plain mean and safe."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            size = child.output_size
            rows, columns = size if isinstance(size, tuple) else (size, size)
            if rows and columns and rows * columns > 1:
                setattr(module, name, ShapeSafeAdaptiveAvgPool2d((rows, columns)))
        else:
            replace_adaptive_pooling(child)
    return module
