"""VGG16 as the fully convolutional papers use it: features, fc6 and fc7 as convolutions, and their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import timm
from timm.models import load_state_dict_from_hf
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from data_cache.errors import UserError
from stages.networks.encoder_weights import (
    build_no_connection_error,
    is_fetched,
    is_weights_file,
    match_weights,
    read_weights_file,
    resolve_smp_weights,
    write_weights_file,
)

PUBLISHED = {False: "vgg16.tv_in1k", True: "vgg16_bn.tv_in1k"}
"""timm's names of torchvision's ImageNet weights, without and with batch norm; timm publishes them as safetensors."""

WIDTH = 64  # Simonyan & Zisserman 2015, table 1, configuration D: 64-128-256-512-512
FC_WIDTH = 4096  # the same table
FC6_SIDE_PX = 7  # what the classifier saw of pool5 at ImageNet's 224 px

FULLY_CONVOLUTIONAL = ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias")
FULLY_CONNECTED = {"classifier.0": "fc6", "classifier.3": "fc7", "pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7"}
"""torchvision's and timm's names of the classifier's hidden layers, and ours."""
LAST_LAYERS = ("classifier.6", "head.fc")


def build_vgg16_features(*, width: int = WIDTH, batch_norm: bool = False, first_padding: int = 1) -> nn.Sequential:
    """Build torchvision's ``vgg16().features``, drawn by torchvision's rule.

    Args:
        width: channels of the first stage; the others keep their ratio to it. Ours: the papers have 64.
        batch_norm: whether each convolution is followed by batch norm.
        first_padding: padding of the first convolution.

    Returns:
        31 (44 with batch norm) layers named as torchvision names them.
    """
    if width < 1:
        raise UserError(f"width {width} is not possible; give at least 1 (the paper has {WIDTH})")
    channels = [layer if isinstance(layer, str) else layer * width // WIDTH or 1 for layer in cfgs["D"]]
    features = make_layers(channels, batch_norm=batch_norm)
    features[0].padding = (first_padding, first_padding)
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return features


def compute_channels(width: int) -> int:
    """Return the channels of pool4 and pool5 at that width; pool3 has half as many."""
    return 512 * width // WIDTH or 1


class FullyConvolutional(nn.Module):
    """VGG's fully connected layers as convolutions: fc6 7×7 and fc7 1×1, each with ReLU and dropout 0.5.

    Args:
        in_channels: of the map it reads.
        width: of both layers.
        padding: of fc6; 3 keeps the size, 0 loses six rows and columns.

    Source: Long et al. 2015, section 3.1.
    """

    def __init__(self, in_channels: int, width: int, *, padding: int) -> None:
        super().__init__()
        if width < 1:
            raise UserError(f"fc_width {width} is not possible; give at least 1 (the paper has {FC_WIDTH})")
        self.fc6 = nn.Conv2d(in_channels, width, FC6_SIDE_PX, padding=padding)
        self.fc7 = nn.Conv2d(width, width, 1)
        self.activate = nn.Sequential(nn.ReLU(inplace=True), nn.Dropout(0.5))
        for layer in (self.fc6, self.fc7):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, width, h, w), six pixels smaller without padding."""
        return self.activate(self.fc7(self.activate(self.fc6(features))))


def load_vgg16(features: nn.Module, copies: Sequence[FullyConvolutional], encoder_weights: str) -> None:
    """Load ImageNet or local weights into features and into every copy of fc6 and fc7.

    Args:
        features: as ``build_vgg16_features`` makes them.
        copies: modules that all start from the classifier's two hidden layers; without any, those are left out.
        encoder_weights: ``none`` (do nothing), ``imagenet``, or the path of a safetensors file that holds a VGG16 as
            torchvision, timm or ``fetch_vgg16_weights`` writes it.

    Raises:
        UserError: for weights that cannot be had or belong to another architecture.
    """
    if encoder_weights == "none":
        return
    name = PUBLISHED[any(isinstance(layer, nn.BatchNorm2d) for layer in features.modules())]
    if is_weights_file(encoder_weights):
        given = rename_vgg16(read_weights_file(Path(encoder_weights)))
    else:
        given = rename_vgg16(_download(name, encoder_weights))
    wanted = {f"features.{key}": value for key, value in features.state_dict().items()}
    wanted |= copies[0].state_dict() if copies else {}
    loaded = match_weights(name, encoder_weights, wanted, given, optional=FULLY_CONVOLUTIONAL)
    features.load_state_dict({key: loaded[f"features.{key}"] for key in features.state_dict()})
    for module in copies:
        module.load_state_dict({key: loaded[key] for key in FULLY_CONVOLUTIONAL})


def fetch_vgg16_weights(out_file: Path, *, batch_norm: bool = False) -> Path:
    """Download torchvision's ImageNet weights, fc6 and fc7 included, and write them for offline machines.

    Raises:
        UserError: without a connection.
    """
    name = PUBLISHED[batch_norm]
    if is_fetched(name, out_file):
        return out_file
    return write_weights_file(rename_vgg16(_download(name, "imagenet")), name, out_file)


def _download(name: str, encoder_weights: str) -> dict[str, Tensor]:
    resolve_smp_weights(f"tu-{name}", encoder_weights)  # raises when they cannot be had
    try:
        return load_state_dict_from_hf(timm.get_pretrained_cfg(name).hf_hub_id, weights_only=True)
    except OSError as error:
        raise build_no_connection_error(name, error) from error


def rename_vgg16(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give torchvision's and timm's classifier our names and shapes; the last layer, 1000 classes wide, is left out."""
    renamed = {}
    for key, value in weights.items():
        layer, _, kind = key.removeprefix("encoder.").rpartition(".")
        if layer in LAST_LAYERS:
            continue
        layer = FULLY_CONNECTED.get(layer, layer)
        if layer in ("fc6", "fc7") and kind == "weight" and value.ndim == 2:
            side = FC6_SIDE_PX if layer == "fc6" else 1
            value = value.unflatten(1, (-1, side, side)) if value.shape[1] % side**2 == 0 else value
        renamed[f"{layer}.{kind}"] = value
    return renamed
