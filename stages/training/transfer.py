"""Copy one decoder's state onto the other: the step between two phases of the `+copy` rows."""

from __future__ import annotations

import json
from dataclasses import dataclass

import torch
from torch import Tensor

from data_cache.errors import UserError
from stages.networks.interface import Network
from stages.networks.parts import Part
from stages.training.freezing import check_parts_exist


@dataclass(frozen=True)
class CopyReport:
    """What a copy did; names are relative to the part."""

    copied: tuple[str, ...]
    skipped: tuple[str, ...]
    """Names the network declares as depending on the task."""


def plan_copy(network: Network, source: Part, target: Part) -> CopyReport:
    """Return what ``copy_part`` would copy and skip, changing nothing; raises what it raises."""
    check_parts_exist(network, source | target)
    given, wanted = _states(network, source, target)
    declared = _uncopied(network, source, given) | _uncopied(network, target, wanted)
    skipped = sorted((given.keys() | wanted.keys()) & declared)
    copied = [name for name in given if name in wanted and name not in declared]
    what = f"{source.names()[0]} -> {target.names()[0]}"
    problems = [f"{name} is only in {source.names()[0]}" for name in given.keys() - wanted.keys() - declared]
    problems += [f"{name} is only in {target.names()[0]}" for name in wanted.keys() - given.keys() - declared]
    problems += [
        f"{name} is {tuple(given[name].shape)} in the source and {tuple(wanted[name].shape)} in the target"
        for name in copied
        if given[name].shape != wanted[name].shape
    ]
    if problems:
        raise UserError(
            f"cannot copy {what}: {'; '.join(sorted(problems))}. Only what a network declares in `uncopied` may "
            "differ; build both decoders alike or run the schedule without --copy-weights"
        )
    if not copied:
        found = (
            f"all {len(skipped)} tensors of these decoders depend on the task" if skipped else "there are no weights"
        )
        raise UserError(
            f"copy {what} has nothing to copy: {found}; {_name_remedy(network)}run the schedule without --copy-weights"
        )
    return CopyReport(tuple(copied), tuple(skipped))


def copy_part(network: Network, source: Part, target: Part) -> CopyReport:
    """Copy every tensor of a part, batch-norm statistics and counters included, onto another part; values, no aliases.

    Args:
        network: its ``uncopied`` names are skipped; they may be relative to the part or names of the whole state dict.
        source: a single part, usually a decoder.
        target: a single part of the same structure.

    Raises:
        UserError: an undeclared tensor is missing on one side or has another shape, or nothing is left to copy.
            The network is then unchanged.

    Source: the pseudo-depth paper, table 3, column "copy weights".
    """
    report = plan_copy(network, source, target)
    given, wanted = _states(network, source, target)
    with torch.no_grad():
        for name in report.copied:
            wanted[name].copy_(given[name])
    return report


def _states(network: Network, source: Part, target: Part) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    parts = network.parts()
    return parts[source].state_dict(), parts[target].state_dict()


def _uncopied(network: Network, part: Part, state: dict[str, Tensor]) -> set[str]:
    prefix = next(name for name, child in network.named_children() if child is network.parts()[part])
    return {name for name in state if name in network.uncopied or f"{prefix}.{name}" in network.uncopied}


def _name_remedy(network: Network) -> str:
    """Name the options that would give the decoders something to copy, where they are not set already."""
    form = network.copyable_form if network.copyable_form_helps else {}
    missing = [f"{key} = {json.dumps(value)}" for key, value in form.items() if network.spec.options[key] != value]
    return f"set {' and '.join(missing)}, or " if missing else ""
