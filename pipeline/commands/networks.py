"""`pipeline networks`: every network with its options, parameters and copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.session import Result, Session

LISTED_CLASSES = 21
"""Number of classes that parameters are listed for: PASCAL VOC's, as in the papers' counts."""


@click.command()
@click.pass_obj
def networks(session: Session) -> None:
    """List networks with their options and parameters."""
    session.show(list_networks())


def list_networks() -> Result:
    """List the networks with their papers, parameters, what copies between their decoders, and options."""
    from rich.console import Group
    from rich.text import Text

    from data_cache.plugins import list_installed
    from pipeline.console import plain_table
    from pipeline.session import Result
    from stages.networks import NETWORKS

    facts = [_describe_network(name) for name in NETWORKS]
    columns = ["name", "paper", "what", "parameters", "with depth", "copied"]
    keys = ("name", "paper", "summary", "parameters", "parameters_with_depth", "copied")
    rows = [[fact[key] for key in keys] for fact in facts]
    options = [[fact["name"], ", ".join(fact["options"])] for fact in facts]
    title = f"Networks (parameters for {LISTED_CLASSES} classes; tensors that a copy carries from decoder to decoder)"
    tables = (plain_table(title, columns, rows), Text(), plain_table("Their options", ["name", "options"], options))
    installed = {name: f"{each.module}:{each.attribute}" for name, each in list_installed("network").items()}
    lines = [Text(f"installed: {name} is {place}; see pipeline check-network") for name, place in installed.items()]
    return Result({"networks": facts, "installed": installed}, Group(*tables, *lines))


def _describe_network(name: str) -> dict[str, Any]:
    """Return the facts of a network at its defaults, built without memory for its weights."""
    import torch

    from data_cache.errors import UserError
    from stages.networks import NETWORKS, build_without_weights, count_parameters, network_options
    from stages.networks.parts import DEPTH_BRANCH, Part
    from stages.training.transfer import plan_copy

    def build(**options: Any) -> Any:
        with torch.device("meta"):
            return build_without_weights(name, LISTED_CLASSES, **options)

    def count_copied(network: Any) -> int:
        try:
            return len(plan_copy(network, Part.DEPTH_DECODER, Part.SEG_DECODER).copied)
        except UserError:
            return 0

    form, network = NETWORKS[name].copyable_form, build()
    return {
        "name": name,
        "paper": NETWORKS[name].paper,
        "summary": NETWORKS[name].summary,
        "parameters": sum(count_parameters(each) for part, each in network.parts().items() if part not in DEPTH_BRANCH),
        "parameters_with_depth": count_parameters(network),
        "copied": count_copied(network),
        "copied_with": {**form, "copied": count_copied(build(**form))} if form else None,
        "options": {option: str(value) for option, value in network_options(name).items()},
    }
