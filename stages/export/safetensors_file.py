"""config.json and model.safetensors: the weights as they are, which smp opens where it has the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from data_cache.files import write_json
from data_cache.plugins import named_by_a_file
from data_cache.records import Record, read_record
from stages.export.formats import CONFIG_FILE, WEIGHTS_FILE
from stages.export.job import ExportJob, SegmentationFunction, without_gradient
from stages.export.proof_file import EXPORT_AGAIN
from stages.networks import NetworkSpec, rebuild_network, segmentation_only
from stages.networks.interface import Network
from stages.networks.tensor_files import fill_tensors, read_tensors, save_tensors

SPEC_KEY = "_pipeline_network"
"""Where config.json keeps the network's own spec; smp leaves keys with a leading underscore alone."""

OUR_PART_OF_SMP_PART = {"encoder.": "encoder.", "decoder.": "seg_decoder.", "segmentation_head.": "seg_head."}


@runtime_checkable
class OpensWithSmp(Protocol):
    """A network whose segmentation half is a model of smp."""

    def smp_config(self) -> dict[str, Any]: ...

    def smp_state(self) -> dict[str, Tensor]: ...


def write(job: ExportJob) -> dict[str, Any]:
    """Write config.json and model.safetensors."""
    network, spec = job.network, job.network.spec.without_pretrained()
    config: dict[str, Any] = {}
    state = network.state_dict()
    if isinstance(network, OpensWithSmp):
        config, state = network.smp_config(), network.smp_state()
    config[SPEC_KEY] = {"name": spec.name, "num_classes": spec.num_classes, "options": dict(spec.options)}
    write_json(job.folder / CONFIG_FILE, config)
    save_tensors(job.folder / WEIGHTS_FILE, state, {"format": "pt"})
    return {}


def open_folder(folder: Path) -> SegmentationFunction:
    """Open the folder as a network of this project."""
    return without_gradient(segmentation_only(load_exported(folder)))


def load_exported(folder: Path) -> Network:
    """Open an export folder as a network without depth branch, in evaluation mode.

    Raises:
        UserError: when the folder is no export of this program or its files are damaged.
    """
    config = read_record(folder / CONFIG_FILE, _ConfigFile, "give a folder that 'pipeline export' has written")
    spec, path = config.spec, folder / WEIGHTS_FILE
    with torch.random.fork_rng(devices=[]), named_by_a_file():
        network = rebuild_network(NetworkSpec(spec.name, spec.num_classes, False, spec.options))
    stored = read_tensors(path, EXPORT_AGAIN)
    wanted = network.state_dict()
    if config.model_class is not None:  # smp has stages, too, that the network dropped as unused
        renamed = {_rename_from_smp(name): value for name, value in stored.items()}
        stored = {name: value for name, value in renamed.items() if name in wanted}
    fill_tensors(wanted, stored, str(path), EXPORT_AGAIN)
    return network.eval()


class _Spec(Record):
    name: str
    num_classes: int = Field(ge=1, le=65535)
    options: dict[str, Any]


class _ConfigFile(Record):
    spec: _Spec = Field(validation_alias=SPEC_KEY)
    model_class: str | None = Field(None, validation_alias="_model_class")


def _rename_from_smp(name: str) -> str:
    for theirs, ours in OUR_PART_OF_SMP_PART.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
