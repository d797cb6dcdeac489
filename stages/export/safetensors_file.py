"""config.json and model.safetensors: the weights as they are, which smp opens where it has the architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from data_cache.errors import UserError
from data_cache.files import read_json, write_json
from stages.export.formats import CONFIG_FILE, WEIGHTS_FILE
from stages.export.job import ExportJob, SegmentationFunction, without_gradient
from stages.networks import NetworkSpec, rebuild_network, segmentation_only
from stages.networks.interface import Network
from stages.networks.tensor_files import read_tensors, save_tensors

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
    config = _read_config(folder)
    spec = config[SPEC_KEY]
    with torch.random.fork_rng(devices=[]):
        network = rebuild_network(NetworkSpec(spec["name"], spec["num_classes"], False, spec["options"]))
    stored = read_tensors(folder / WEIGHTS_FILE, "export the run again")
    if "_model_class" in config:
        stored = {_rename_from_smp(name): value for name, value in stored.items()}
    wanted = network.state_dict()
    wrong = [name for name in wanted if name not in stored or stored[name].shape != wanted[name].shape]
    if wrong:
        raise UserError(
            f"{folder / WEIGHTS_FILE} does not fit {folder / CONFIG_FILE}: {len(wrong)} of {len(wanted)} tensors are "
            f"missing or of another shape, for example {', '.join(wrong[:3])}; export the run again"
        )
    network.load_state_dict({name: stored[name] for name in wanted})
    return network.eval()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    advice = "give a folder that 'pipeline export' has written"
    config = read_json(path, advice)
    if SPEC_KEY not in config:
        raise UserError(f"{path} was not written by this program: it has no {SPEC_KEY!r}; {advice}")
    return config


def _rename_from_smp(name: str) -> str:
    for theirs, ours in OUR_PART_OF_SMP_PART.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
