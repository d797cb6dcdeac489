"""`pipeline runs`: look after finished runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pipeline.session import Result, Session
    from stages.comparison.record import RunRecord


@click.group(invoke_without_command=True)
@click.pass_context
def runs(ctx: click.Context) -> None:
    """Look after finished runs: list, show, rm, open. A RUN is named by its folder or any beginning of name or id."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command)


@runs.command("list")
@click.pass_obj
def list_command(session: Session) -> None:
    """List finished runs, the newest last."""
    session.show(list_runs(session))


@runs.command("show")
@click.argument("run")
@click.pass_obj
def show_command(session: Session, run: str) -> None:
    """Tell what RUN is, what it scored, and what it holds on the disk."""
    session.show(show_run(session, run))


@runs.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="RUN…")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def rm_command(session: Session, names: Sequence[str], yes: bool) -> None:
    """Remove runs, with those of their trained phases that nothing else rests on."""
    session.show(remove_runs(session, names, yes=yes))


@runs.command("open")
@click.argument("run")
@click.pass_obj
def open_command(session: Session, run: str) -> None:
    """Open the folder of RUN on this desktop, and print where it is."""
    folder = session.workspace.find_run(run).absolute()
    if not session.console.json_mode and sys.stdout.isatty():
        click.launch(str(folder))
    from pipeline.session import Result

    session.show(Result({"runs": [{"run": folder.name, "folder": str(folder)}]}, str(folder)))


def list_runs(session: Session) -> Result:
    """List finished runs.

    Returns:
        ``runs``: list of ``run``, ``row``, ``seed``, ``dataset``, ``network``, ``differs`` (settings in which runs of
        one row differ), ``miou_macro``, ``steps``, ``started_at``, ``folder``; ``notes`` on those that cannot be read.
    """
    from data_cache.errors import UserError
    from pipeline.console import plain_table
    from pipeline.session import Result
    from stages.comparison.record import RunRecord

    found, notes = list[RunRecord](), []
    for folder in session.workspace.finished_runs():
        try:
            found.append(RunRecord.from_json(folder))
        except UserError as problem:
            notes.append(f"run {folder.name} is left out: {problem}")
    rows = [_describe(record, found) for record in found]
    columns = ("id", "row", "seed", "dataset", "network", "differs", "mIoU", "steps", "asked for")
    keys = ("id", "row", "seed", "dataset", "network", "differs", "miou_macro", "steps", "started_at")
    shown = [name for name, key in zip(columns, keys, strict=True) if any(row[key] not in ("", None) for row in rows)]
    chosen = [key for name, key in zip(columns, keys, strict=True) if name in shown]
    cells = [[f"{row[key]:.3f}" if key == "miou_macro" else row[key] for key in chosen] for row in rows]
    for note in notes:
        session.console.info(note)
    text: Any = plain_table(f"Runs in {session.workspace.runs}", list(shown), cells)
    return Result({"runs": rows, "notes": notes}, text if rows else f"no finished run in {session.workspace.runs}")


def _describe(record: RunRecord, found: Sequence[RunRecord]) -> dict[str, Any]:
    from data_cache.metrics import HEADLINE
    from stages.comparison.rows import differing_words

    assert record.folder is not None, "it was read from there"
    alike = [other for other in found if (other.name, other.network) == (record.name, record.network)]
    return {
        "run": record.folder.name,
        "id": record.folder.name.rpartition("-")[2],
        "row": record.name,
        "seed": record.seed,
        "dataset": record.dataset,
        "network": record.network,
        "differs": ", ".join(differing_words(record, alike)),
        "miou_macro": record.metrics.get(HEADLINE),
        "steps": record.total_steps,
        "started_at": record.started_at,
        "folder": str(record.folder),
    }


def show_run(session: Session, reference: str) -> Result:
    """Tell what a run is.

    Returns:
        ``runs``: one, with its ``phases``, ``metrics``, ``command``, ``selection``, ``bytes`` and what of it is
        ``shared``.
    """
    from data_cache.files import format_bytes, read_json
    from pipeline.console import count, plain_table
    from pipeline.experiment.kept_runs import plan_removal
    from pipeline.session import Result
    from stages.comparison.record import RUN_FILE, RunRecord

    folder = session.workspace.find_run(reference)
    record, facts = RunRecord.from_json(folder), read_json(folder / RUN_FILE)
    removal = plan_removal(session.workspace, folder)
    told = _describe(record, [record]) | {
        "split": record.split,
        "phases": [{"name": phase.name, "steps": phase.steps, "seconds": phase.elapsed_s} for phase in record.phases],
        "metrics": dict(record.metrics),
        "selection": facts.get("selection", "last"),
        "selected_on": facts.get("selected_on"),
        "command": record.command,
        "bytes": removal.bytes,
        "shared": removal.kept,
    }
    phases = ", ".join(f"{phase.name} {phase.steps} steps {phase.elapsed_s:.0f} s" for phase in record.phases)
    scores = ", ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())
    weights = f"the {told['selection']}"
    if chosen := told["selected_on"]:
        where = "held out of" if chosen["held_out"] else "of"
        weights += f", chosen on {count(chosen['images'], 'image')} {where} {chosen['split']}"
    rows = [
        ["row", f"{record.name}, seed {record.seed}, {record.network}"],
        ["data", f"{record.place}, scored on {record.split}"],
        ["phases", phases],
        ["weights", weights],
        ["scores", scores],
        ["disk", f"{format_bytes(removal.bytes)} of its own; {len(removal.kept)} phases are needed by others, too"],
        ["command", record.command or "-"],
        ["folder", str(folder)],
    ]
    return Result({"runs": [told]}, plain_table(folder.name, ["", ""], rows))


def remove_runs(session: Session, references: Sequence[str], *, yes: bool) -> Result:
    """Remove runs, one after another.

    Returns:
        ``runs``: list of ``run``, ``freed_bytes``, ``removed`` and ``kept`` phases; ``freed_bytes`` of all.

    Raises:
        UserError: nobody can be asked, or another process works on one.
    """
    from data_cache.errors import UserError
    from data_cache.files import format_bytes
    from pipeline.experiment.kept_runs import plan_removal, remove_run
    from pipeline.session import Result

    folders = list(dict.fromkeys(session.workspace.find_run(reference) for reference in references))
    if not yes and (session.console.json_mode or not sys.stdin.isatty()):
        names = ", ".join(folder.name for folder in folders)
        raise UserError(f"runs rm would remove {names} for good, and there is nobody to ask; say --yes to do so")
    gone: list[dict[str, Any]] = []
    for folder in folders:
        plan = plan_removal(session.workspace, folder)
        question = f"remove {folder.name} with {len(plan.nodes)} trained phases ({format_bytes(plan.bytes)})?"
        if not yes and not click.confirm(question, err=True):
            continue
        freed = remove_run(plan, session.workspace)
        removed = [path.name for path in plan.nodes]
        gone.append({"run": folder.name, "freed_bytes": freed, "removed": removed, "kept": plan.kept})
    whole = sum(each["freed_bytes"] for each in gone)
    lines = [f"removed {each['run']}: {format_bytes(each['freed_bytes'])} freed" for each in gone]
    lines += [f"  phase {name} stays: {why}" for each in gone for name, why in each["kept"].items()]
    lines.append(f"{format_bytes(whole)} freed")
    return Result({"runs": gone, "freed_bytes": whole}, "\n".join(lines))
