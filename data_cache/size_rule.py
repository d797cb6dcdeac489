"""At what size an image enters a network: part of what a model is, obeyed wherever it runs. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from data_cache.errors import UserError
from data_cache.records import Record
from data_cache.sample import SMALLEST_INPUT_PX
from data_cache.settings import LARGEST_CROP_PX, SMALLEST_CROP_PX, Size

_Side = Annotated[int, Field(ge=SMALLEST_CROP_PX, le=LARGEST_CROP_PX)]


class SizeRule(Record):
    """How an upright image becomes the network's input; the logits are resized to the image bilinearly, then argmax."""

    kind: Literal["original", "fixed"] = "original"
    """Whether images keep their own size, or are resized to one."""
    input_size: tuple[_Side, _Side] | None = None
    """(height, width) of the fixed size, px."""

    @model_validator(mode="after")
    def _check_size(self) -> SizeRule:
        if (self.kind == "fixed") != (self.input_size is not None):
            raise ValueError("a fixed size needs input_size, and the original one has none")
        return self

    def __str__(self) -> str:
        if self.input_size is None:
            return "images at their own size"
        return f"images resized to {self.input_size[0]}x{self.input_size[1]} px"

    def choose_input(self, height: int, width: int) -> Size:
        """Return the size at which an image enters; what is too small for networks is enlarged for them.

        Raises:
            UserError: it would become too long.
        """
        if self.input_size is not None:
            return self.input_size
        enlarge = max(1.0, SMALLEST_INPUT_PX / min(height, width))
        size = round(height * enlarge), round(width * enlarge)
        if enlarge > 1.0 and max(size) > LARGEST_CROP_PX:
            raise UserError(
                f"an image of {width} x {height} px is too thin: enlarged to {SMALLEST_INPUT_PX} px, which networks "
                f"need at least, it would be {max(size):,} px long; cut it, or leave it out"
            )
        return size

    def fit(self, image: NDArray[np.uint8]) -> NDArray[Any]:
        """Return an (H, W, 3) image at the size at which it enters: itself, or float32 in [0, 255] where resized.

        The filter is bilinear and antialiased. Nothing is rounded to bytes: Pillow, torch and onnxruntime agree on the
        numbers, but not on how to round them, nor Pillow's versions on which axis comes first.
        """
        height, width = self.choose_input(*image.shape[:2])
        if (height, width) == image.shape[:2]:
            return image
        channels = [Image.fromarray(image[..., channel].astype(np.float32)) for channel in range(image.shape[2])]
        resized = [each.resize((width, height), Image.Resampling.BILINEAR) for each in channels]
        return np.stack([np.asarray(each) for each in resized], axis=2)


ORIGINAL = SizeRule()


def fixed_size(size: Size) -> SizeRule:
    """Return the rule that every image is resized to (height, width)."""
    return SizeRule(kind="fixed", input_size=size)
