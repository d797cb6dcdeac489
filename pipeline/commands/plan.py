"""`pipeline plan`: what a run or a table would do, without doing it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from pipeline.options import GivenPath, RecipeCommand, device_option, no_reuse_option, overwrite_option, seeds_option

if TYPE_CHECKING:
    from pipeline.experiment.config import RunConfig
    from pipeline.experiment.facts import NetworkFacts
    from pipeline.experiment.plan import Node, Plan
    from pipeline.session import Result, Session
    from stages.training.schedule import CopyWeights


_GIVEN = "pipeline.commands.plan.given"
"""Under which the context's ``meta`` holds what was said on the command line."""


class _PlanCommand(RecipeCommand):
    """Remembers what was said, for a script to say it again."""

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command's function."""
        ctx.meta[_GIVEN] = list(_list_given(ctx, self.get_params(ctx)))
        return super().invoke(ctx)


def _list_given(ctx: click.Context, parameters: Iterable[click.Parameter]) -> Iterator[str]:
    """Yield what was said on the command line, in the words of ``table``."""
    for parameter in parameters:
        option, value = parameter.opts[0], ctx.params.get(parameter.name or "")
        given = ctx.get_parameter_source(parameter.name or "") is click.core.ParameterSource.COMMANDLINE
        if not given or option in ("--slurm", "--gpus", "--overwrite", "--measure"):
            continue
        if isinstance(parameter, click.Argument):
            yield str(value)
        elif isinstance(parameter, click.Option) and parameter.is_flag:
            yield option if value else parameter.secondary_opts[0]
        elif option == "--seed":
            yield from ("--set", f"seed={value}")
        elif isinstance(value, tuple) and not parameter.multiple:
            yield from (option, ",".join(map(str, value)))
        else:
            yield from (
                word for each in (value if isinstance(value, tuple) else (value,)) for word in (option, str(each))
            )


@click.command(cls=_PlanCommand)
@click.argument("name", required=False)
@seeds_option
@no_reuse_option
@device_option
@click.option("--slurm", type=GivenPath(), metavar="FILE", help="Write a SLURM job script that trains the table.")
@click.option("--gpus", type=click.IntRange(1, 1024), help="Processes, and GPUs, of that script.")
@overwrite_option
@click.option("--measure", is_flag=True, help="Do a few steps of every phase, and say how long training takes here.")
@click.pass_obj
def plan(
    session: Session,
    config: RunConfig,
    name: str | None,
    seeds: tuple[int, ...] | None,
    no_reuse: bool,
    device: str,
    slurm: Path | None,
    gpus: int | None,
    overwrite: bool,
    measure: bool,
) -> None:
    """Print what a run, or the table NAME, would do; trains nothing."""
    given = click.get_current_context().meta[_GIVEN]
    script = _check_script(slurm, gpus, name, overwrite)
    result = preview_plan(config, session, name, seeds, device, reuse=not no_reuse, measure=measure)
    session.show(write_job_script(script, result, given, session) if script else result)


class JobScript(NamedTuple):
    """What a person wants of a job script."""

    file: Path
    table: str
    gpus: int
    overwrite: bool


def _check_script(file: Path | None, gpus: int | None, table: str | None, overwrite: bool) -> JobScript | None:
    from data_cache.errors import UserError
    from data_cache.outputs import check_page

    if file is None:
        if gpus is not None or overwrite:
            raise UserError("--gpus and --overwrite are about a job script; add --slurm FILE, or drop them")
        return None
    if table is None or gpus is None:
        raise UserError(
            f"--slurm {file} needs a table and the number of processes: pipeline plan schedules --slurm {file} --gpus 8"
        )
    check_page(file, overwrite=overwrite, option="--slurm", example="jobs.sh")
    return JobScript(file, table, gpus, overwrite)


def write_job_script(script: JobScript, plan: Result, words: Sequence[str], session: Session) -> Result:
    """Write a SLURM job script; return the plan with ``slurm``, its path.

    Args:
        words: what was said on the command line.
    """
    from rich.console import Group
    from rich.text import Text

    from data_cache.outputs import write_page
    from pipeline.experiment.slurm import write_script
    from pipeline.session import Result

    text = write_script(script.table, words, script.gpus, session.workspace)
    write_page(text, script.file, overwrite=script.overwrite, on_wait=session.console.info)
    line = f"\n{script.gpus} processes train it with: sbatch {shlex.quote(str(script.file))}"
    return Result(plan.json | {"slurm": str(script.file)}, Group(plan.text, Text(line)))


def preview_plan(
    config: RunConfig,
    session: Session,
    table: str | None,
    seeds: tuple[int, ...] | None,
    device: str,
    *,
    reuse: bool,
    measure: bool = False,
) -> Result:
    """Describe nodes, parts, batch-norm, copies, steps and disk; train nothing.

    Args:
        measure: whether a few steps are done, to tell ``minutes``, of each phase and of all that are to be trained.

    Returns:
        ``nodes`` (distinct trainings), ``unshared``, ``phases``, ``runs``, ``notes``, ``disk_bytes`` (weights),
        ``disk_peak_bytes`` (with training states), ``disk_free_bytes``.
    """
    from rich.console import Group

    from pipeline.experiment.devices import find_device
    from pipeline.experiment.expand import expand_rows, make_plan
    from pipeline.experiment.space import measure_disk_need
    from pipeline.session import Result

    plan = make_plan(expand_rows(config, table, seeds, session, find_device(device)), session, reuse=reuse)
    phases = [_describe(node, session) for node in plan.nodes.values()]
    to_train = [phase for phase in phases if not phase["done"]]
    disk = measure_disk_need(plan, session)
    facts = {
        "nodes": len(phases),
        "to_train": len(to_train),
        "unshared": plan.without_reuse,
        "phases": phases,
        "runs": [{"row": run.row, "seed": run.config.seed, "name": run.name, "steps": run.steps} for run in plan.runs],
        "notes": [*plan.notes, *([] if disk.peak <= disk.free else ["too little disk space: a run would not begin"])],
        "disk_bytes": disk.weights,
        "disk_peak_bytes": disk.peak,
        "disk_free_bytes": disk.free,
    }
    if measure:
        _add_minutes(facts, plan, session, device)
    return Result(facts, Group(*_render(plan, facts)))


def _add_minutes(facts: dict[str, Any], plan: Plan, session: Session, device: str) -> None:
    from pipeline.experiment.devices import choose_device
    from pipeline.experiment.measuring import estimate_seconds

    missing = {phase["key"] for phase in facts["phases"] if not phase["done"]}
    nodes = [node for node in plan.nodes.values() if node.folder in missing]
    seconds = estimate_seconds(nodes, session, choose_device(device))
    for phase in facts["phases"]:
        phase["minutes"] = round(seconds.get(phase["key"], 0.0) / 60, 3)
    facts["minutes"] = round(sum(seconds.values()) / 60, 3)


def _describe(node: Node, session: Session) -> dict[str, Any]:
    from pipeline.experiment.facts import inspect_network
    from stages.training.encoder_policy import find_encoder_lr_factor, parts_to_train, trains_fresh_only
    from stages.training.schedule import ENCODER, EVERYTHING

    network = inspect_network(node.config.network, node.facts.num_classes, session.workspace)
    parts = network.parts
    policy = node.config.training.encoder_policy
    trains = parts_to_train(policy, node.phase)
    trained, frozen = list(trains.names()), [name for name in (EVERYTHING & ~trains).names() if name in parts]
    if network.fresh and trains_fresh_only(policy, node.phase):
        trained.insert(0, "encoder (fresh modules only)")
        frozen[0] = "encoder (pretrained modules)"
    return {
        "name": node.phase.name,
        "key": node.folder,
        "parent": node.parent,
        "done": session.workspace.node(node.folder).finished,
        "seed": node.config.seed,
        "network": node.config.network.label,
        "trains": trained,
        "frozen": frozen,
        "batch_norm": _describe_batch_norm(node),
        "losses": node.config.loss.describe(node.phase),
        "seg": node.phase.seg,
        "depth": node.phase.depth,
        "steps": node.steps,
        "images_seen": node.images_seen,
        "lr": node.lr,
        "encoder_lr_factor": find_encoder_lr_factor(policy, node.phase) if ENCODER & trains else 0.0,
        "copies": [_describe_copy(copy, network) for copy in node.copies],
        "bytes": sum(count["bytes"] for count in parts.values()),
    }


def _describe_copy(copy: CopyWeights, network: NetworkFacts) -> dict[str, Any]:
    source, target = copy.source.names()[0], copy.target.names()[0]
    return {"from": source, "to": target, "tensors": network.count_copied(copy)}


def _describe_batch_norm(node: Node) -> str:
    from stages.training.encoder_policy import trains_fresh_only

    policy = node.config.training.encoder_policy
    if trains_fresh_only(policy, node.phase):
        return f"statistics move in trained modules; those of the pretrained encoder are frozen (policy {policy})"
    return "statistics move in trained parts and are frozen elsewhere"


def _count_seen(phases: Iterable[dict[str, int]]) -> str:
    """Say how many images phases read with their masks, and how many without."""
    from stages.comparison.record import add_images

    return " + ".join(f"{number} {name}" for name, number in add_images(phases).items() if number)


def _name_trained(phase: dict[str, Any]) -> str:
    """Name the parts that learn, and how gently the encoder does."""
    gently = f" (rate x{phase['encoder_lr_factor']:g})" if phase["encoder_lr_factor"] not in (0.0, 1.0) else ""
    return " ".join(f"{name}{gently if name == 'encoder' else ''}" for name in phase["trains"])


def _render(plan: Plan, facts: dict[str, Any]) -> Iterable[Any]:
    from rich.text import Text

    from data_cache.files import format_bytes
    from pipeline.console import format_duration, plain_table

    trainings = [
        {
            "phase": phase["name"],
            "network": phase["network"],
            "seed": phase["seed"],
            "trains": _name_trained(phase),
            "losses": phase["losses"],
            "steps": phase["steps"],
            "images seen": _count_seen([phase["images_seen"]]),
            **({"time": format_duration(60 * phase["minutes"])} if "minutes" in phase else {}),
            "copied before": ", ".join(map("{from} -> {to} ({tensors} tensors)".format_map, phase["copies"])) or "-",
            "key": phase["key"],
            "state": "trained" if phase["done"] else "to train",
        }
        for phase in facts["phases"]
    ]
    several = len({training["network"] for training in trainings}) > 1
    columns = [name for name in trainings[0] if several or name != "network"]
    rows = [[training[name] for name in columns] for training in trainings]
    yield plain_table("Trainings", columns, rows)
    yield Text()
    runs = [
        [run.row, run.config.seed, run.steps, _count_seen(node.images_seen for node in run.nodes)] for run in plan.runs
    ]
    yield plain_table("Runs", ["row", "seed", "steps", "images seen"], runs)
    fits = facts["disk_peak_bytes"] <= facts["disk_free_bytes"]
    yield Text(
        f"\n{facts['nodes']} distinct trainings ({facts['unshared']} if every run trained its own), "
        f"{facts['to_train']} still to train; weights need {format_bytes(facts['disk_bytes'])}, with training states "
        f"{format_bytes(facts['disk_peak_bytes'])}; {format_bytes(facts['disk_free_bytes'])} are free"
        f"{'' if fits else ', which is too little: a run would not begin'}.\n"
        "Batch-norm statistics move only in the parts that a phase trains."
        + (
            f"\nTraining takes about {format_duration(60 * facts['minutes'])} here, one phase after another, by a few "
            "measured steps of each kind; scoring is not in it."
            if "minutes" in facts
            else ""
        )
    )
