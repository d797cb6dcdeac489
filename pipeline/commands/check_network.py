"""`pipeline check-network`: does a network keep the contract, and if not, what is missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.session import Result, Session


@click.command("check-network")
@click.argument("name", metavar="NETWORK")
@click.pass_obj
def check_network(session: Session, name: str) -> None:
    """Hold a network against the contract of networks and say what is missing.

    NETWORK is a name of `pipeline networks`, or package.module:Class of your own. What it declares as small_options is
    tried, else its defaults.
    """
    session.show(try_network(name))


def try_network(name: str) -> Result:
    """Hold a network against every law of the contract.

    Returns:
        ``network``, ``file``, ``options`` [{option: default}], ``tried`` (options it was built with), ``laws``
        [{``law``, ``problem``}], ``problems``, ``parameters``, ``copied``, ``notes``.

    Raises:
        UserError: it cannot be imported or built.
    """
    from rich.console import Group
    from rich.text import Text

    from pipeline.console import count, plain_table
    from pipeline.experiment.facts import try_copies
    from pipeline.session import Result
    from stages.networks import count_parameters, find_network, load_network, network_options
    from stages.networks.contract import LAWS, Subject, state_law, try_laws

    tried = [dict(options) for options in load_network(name).small_options]
    found: dict[str, str | None] = {}
    for options in tried:
        for law, problem in try_laws(name, options).items():
            found[law] = found.get(law) or problem
    problems = [f"{law}: {problem}" for law, problem in found.items() if problem]
    notes, copied, parameters, plugin = [], None, None, find_network(name)
    if not problems:
        network = Subject(name, tried[0]).fresh
        parameters, copies = count_parameters(network), try_copies(network)
        copied = {copy: tried_copy["tensors"] for copy, tried_copy in copies.items()}
        notes = [f"{copy}: {tried_copy['problem']}" for copy, tried_copy in copies.items() if tried_copy["problem"]]
    options_of_it = {option: str(value) for option, value in network_options(name).items()}
    facts = {
        "network": name,
        "file": None if plugin is None else str(plugin.find_file()),
        "options": options_of_it,
        "tried": tried,
        "laws": [{"law": law, "problem": problem} for law, problem in found.items()],
        "problems": problems,
        "parameters": parameters,
        "copied": copied,
        "notes": notes,
    }
    rows = [[_describe(found, state_law(law)), state_law(law)] for law in LAWS]
    words = " ".join(f"{option}={value}" for option, value in options_of_it.items())
    lines = [f"options: {words or 'none'}", *(f"note: {note}" for note in notes), *(f"problem: {p}" for p in problems)]
    if problems:
        lines.append(f"{count(len(problems), 'problem')}; the contract with reasons: CONTRIBUTING.md, a network")
    else:
        lines.append(f"no problems; {parameters:,} parameters under {tried[0] or 'its defaults'}; try it with:")
        lines.append(f"pipeline run --network {name} --schedule depth-first --copy-weights")
    return Result(facts, Group(plain_table(name, ["kept", "law"], rows), *map(Text, lines)), failed=bool(problems))


def _describe(found: dict[str, str | None], law: str) -> str:
    return "not tried" if law not in found else "no" if found[law] else "yes"
