"""Networks whose plain form has nothing to copy between its decoders get something where a schedule copies."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.experiment.config import RunConfig
from stages.networks import NETWORKS
from stages.training.schedule import CopyWeights


def choose_copyable_forms(
    rows: list[tuple[str, RunConfig]], say: Callable[[str], object]
) -> list[tuple[str, RunConfig]]:
    """Return the rows with the ``copyable_form`` of every network that any of them copies in, and say so.

    All rows of a network get the same form, those that copy nothing, too: only so they can be compared, and share what
    they begin with. What a recipe sets itself stays, and rows without a depth branch stay as they are.
    """
    copying = {config.network.name for _, config in rows if _copies(config)}
    chosen = {name: NETWORKS[name].copyable_form for name in copying}
    changed, told = [], set()
    for row, config in rows:
        network = config.network.name
        options = {"with_depth": True, **config.network.options}
        form = chosen.get(network, {}) if options["with_depth"] else {}
        missing = {f"network.{key}": value for key, value in form.items() if key not in options}
        changed.append((row, config.changed(missing) if missing else config))
        told |= {f"{network}: {key}={value}, or a copy would carry nothing" for key, value in missing.items()}
    for line in sorted(told):
        say(line)
    return changed


def _copies(config: RunConfig) -> bool:
    return any(isinstance(step, CopyWeights) for step in config.build_schedule().steps)
