"""From a recipe to the rows of a table: which runs are asked for, nothing left to be resolved. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from data_cache.errors import UserError
from data_cache.settings import parse_share
from pipeline.experiment.artifacts import open_own_pool, open_split
from pipeline.experiment.config import RunConfig, content_hash
from pipeline.experiment.facts import gather_facts, inspect_network, resolve_class_weights
from pipeline.experiment.plan import Plan, Row, plan_runs
from pipeline.experiment.reading import DataFacts
from pipeline.experiment.tables import Measure, TrainingSize, check_row_changes, find_table, table_rows
from pipeline.experiment.transfer import apply_transfer
from pipeline.session import Session
from stages.comparison.row_name import name_control
from stages.networks import find_copyable_form, find_network
from stages.networks.precision import resolve_dtype
from stages.training.schedule import CopyWeights
from stages.training.settings import LossSettings


def expand_rows(
    config: RunConfig, table: str | None, seeds: tuple[int, ...] | None, session: Session, device: str
) -> list[Row]:
    """Return the rows of a table, or the one row that the recipe itself is.

    Transfer modes are spelled out, class weights become numbers, precision becomes that of the device: what is "auto"
    is resolved here, before anything is hashed.

    Args:
        table: name of a table; None is the recipe's own schedule.
        seeds: of every row; None is the one that the recipe or an override names, else the table's own.
        device: where it will be trained, for example ``cuda:1``.

    Raises:
        UserError: a row asks for what there is not.
    """
    sizes: dict[str, TrainingSize] = {}

    def measure(config: RunConfig) -> TrainingSize:
        key = content_hash(config.data.model_dump(include={"dataset", "root", "options"}), 16)
        if key not in sizes:
            pool = open_own_pool(config.changed({"data.unlabelled": "pool"}), session.workspace)
            sizes[key] = TrainingSize(len(open_split(config, session.workspace, "train")), len(pool) if pool else 0)
        return sizes[key]

    rows = choose_copyable_forms(list_rows(config, table, seeds, measure), session.console.info)
    known: dict[str, tuple[float, ...] | None] = {}  # rows and seeds of the same data have the same weights

    def resolve(row: Row) -> Row:
        config = row.config
        weights, dtype = config.loss.class_weights, resolve_dtype(config.training.precision, device)
        key = content_hash([_name_data(config), weights], 16)
        if key not in known:
            known[key] = resolve_class_weights(config, session)
        resolved = config.changed({"loss.class_weights": known[key], "training.precision": dtype})
        return row._replace(config=resolved, class_weights=weights if isinstance(weights, str) else None)

    return [resolve(row) for row in rows]


def list_rows(
    config: RunConfig, table: str | None, seeds: tuple[int, ...] | None, measure: Measure | None = None
) -> list[Row]:
    """Return the rows asked for, with transfer modes spelled out; arguments as in ``expand_rows``, ``table_rows``."""
    if table is not None:
        found = find_table(table)
        own = None if "seed" in config.model_fields_set else found.seeds  # set, be it to 0: asked for
        rows = table_rows(found, config, seeds or own or (config.seed,), measure)
    else:
        weights = (config.loss.joint_seg, config.loss.joint_depth)
        if config.schedule.own and weights != (LossSettings().joint_seg, LossSettings().joint_depth):
            raise UserError(
                "loss.joint_seg and loss.joint_depth are of named schedules; the steps of schedule "
                f"{config.schedule.name!r} have weights of their own: change those, or choose another --schedule"
            )
        check_row_changes(config)
        rows = [(name_row(config), config.changed({"seed": seed})) for seed in seeds or (config.seed,)]
    for _, changed in rows:
        find_network(changed.network.name)
    return [Row(name, apply_transfer(changed), changed.build_schedule()) for name, changed in rows]


def name_row(config: RunConfig) -> str:
    """Return what the row of a recipe's own schedule is called: its name, and which control it learns, if any."""
    schedule, source = config.build_schedule(), config.depth.source
    return name_control(schedule.name, source) if schedule.reads_depth and source != "teacher" else schedule.name


def _name_data(config: RunConfig) -> dict[str, Any]:
    """Return what settings say about which images are read, with the seed and the teacher where these choose some."""
    asked = {"dataset", "root", "options", "labelled_fraction", "labelled_by", "unlabelled"}
    share = parse_share(config.data.labelled_fraction)
    seed = config.seed if share != 1 else None
    teacher = config.depth.model_dump() if share not in (None, 1) and config.data.labelled_by != "random" else None
    chooses = config.evaluation.split if config.training.chooses else None  # of the images, some may be kept for that
    return {**config.data.model_dump(include=asked), "seed": seed, "teacher": teacher, "chooses beside": chooses}


def choose_copyable_forms(rows: Iterable[Row], inform: Callable[[str], object]) -> list[Row]:
    """Return the rows with the ``copyable_form`` of every network that any of them copies in, and say so.

    All rows of a network get the same form, those that copy nothing, too: only so they can be compared, and share what
    they begin with. What a recipe sets itself stays, and rows without a depth branch stay as they are.
    """
    rows = list(rows)
    copying = {row.config.network.name for row in rows if any(isinstance(s, CopyWeights) for s in row.schedule.steps)}
    chosen = {name: find_copyable_form(name) for name in copying}
    changed, notes = [], set()
    for row in rows:
        network = row.config.network.name
        options = {"with_depth": True, **row.config.network.options}
        form = chosen.get(network, {}) if options["with_depth"] else {}
        missing = {f"network.{key}": value for key, value in form.items() if key not in options}
        changed.append(row._replace(config=row.config.changed(missing)) if missing else row)
        notes |= {f"{network}: {key}={value}, or a copy would carry nothing" for key, value in missing.items()}
    for line in sorted(notes):
        inform(line)
    return changed


def make_plan(rows: Iterable[Row], session: Session, *, reuse: bool) -> Plan:
    """Look at the data of every row and lay out the trainings.

    Raises:
        UserError: a network cannot be built, or a copy cannot be done: told before any training.
    """
    known: dict[str, DataFacts] = {}
    classes: dict[str, int] = {}

    def find_facts(row: Row) -> DataFacts:
        phases, needs_depth = row.schedule.phases, row.schedule.reads_depth
        data = [_name_data(row.config), row.config.evaluation.split]
        of_data = content_hash(data, 16)
        if of_data not in classes:
            classes[of_data] = len(open_split(row.config, session.workspace, "train").classes)
        inspect_network(row.config.network, classes[of_data], session.workspace)  # before labels are asked for
        read = sorted({(phase.needs_seg, phase.needs_depth, phase.reads_depth, phase.reads) for phase in phases})
        depth, share = row.config.depth.model_dump() if needs_depth else None, row.config.training.unlabelled_share
        key = content_hash([data, depth, read, share > 0], 16)
        if key not in known:
            known[key] = gather_facts(row.config, session, phases)
        return known[key]

    plan = plan_runs(rows, find_facts, reuse=reuse)
    for run in plan.runs:
        network = inspect_network(run.config.network, run.facts.num_classes, session.workspace)
        network.check_smallest(run.facts.smallest if run.config.evaluation.size == "original" else None)
        for copy in (copy for node in run.nodes for copy in node.copies):
            network.count_copied(copy)
    for note in plan.notes:
        session.console.info(f"note: {note}")
    return plan
