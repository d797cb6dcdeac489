"""Nodes are content: equal work has equal keys, and whatever changes the outcome changes the key."""

from __future__ import annotations

import subprocess
import sys

import pytest

from data_cache.errors import UserError
from pipeline.commands.plan import rows_of
from pipeline.experiment.config import RunConfig, load_config
from pipeline.experiment.plan import DataFacts, Plan, plan_runs
from pipeline.experiment.tables import TABLES, table_rows
from stages.training.schedules import CONTROLS, PAPER_ROWS

FACTS = DataFacts(num_images=400, num_classes=8, dataset_fingerprint="data", store_key="store")


def plan(*rows: str, config: RunConfig | None = None, facts: DataFacts = FACTS, reuse: bool = True) -> Plan:
    config = config or load_config("demo")
    table = {row.name: row for row in TABLES["schedules"].rows}
    return plan_runs([(row, config.changed(table[row].changes)) for row in rows], facts, reuse=reuse)


def test_the_ten_rows_share_their_beginnings() -> None:
    made = plan(*PAPER_ROWS)
    assert (len(made.nodes), made.unshared) == (15, 22)


@pytest.mark.parametrize(("overrides", "epochs"), [({}, [24, 24, 24, 48]), ({"training.epochs": 2}, [2, 2, 2, 4])])
def test_what_a_recipe_changes_for_a_row_holds_until_something_else_is_asked_for(overrides, epochs) -> None:
    rows = table_rows(TABLES["fcn8s"], load_config("scenes-small", overrides), (0,))
    assert [config.training.epochs for _, config in rows] == epochs
    assert {config.training.lr for _, config in rows} == {3e-4}


def test_a_section_asked_for_as_a_whole_holds_for_every_row() -> None:
    config = load_config("scenes-small", assignments=["training={lr=0.5, epochs=1}"])
    assert {config.training.lr for _, config in table_rows(TABLES["fcn8s"], config, (0,))} == {0.5}


def test_a_mistake_in_a_rows_changes_names_the_row() -> None:
    config = load_config("demo", {"row_changes": {"mff-exit": {"training.lrr": 0.1}}})
    with pytest.raises(UserError, match=r"(?s)table row 'mff-exit':.*'training.lrr' .did you mean 'lr'"):
        table_rows(TABLES["mff"], config, (0,))


def test_the_controls_add_one_training() -> None:
    made = plan(*PAPER_ROWS, *CONTROLS)
    assert len(made.nodes) == 16, "depth-then-seg is a beginning of depth-first"


def test_without_reuse_every_run_trains_its_own_from_the_same_random_state() -> None:
    shared, alone = plan(*PAPER_ROWS), plan(*PAPER_ROWS, reuse=False)
    assert len(alone.nodes) == 22
    keys = [[node.key for node in run.nodes] for run in shared.runs]
    assert [[node.key for node in run.nodes] for run in alone.runs] == keys


def test_seeds_share_nothing() -> None:
    rows = table_rows(TABLES["schedules"], load_config("demo"), (0, 1))
    assert len(plan_runs(rows, FACTS).nodes) == 2 * 16


@pytest.mark.parametrize(
    ("table", "seed", "seeds", "trained"),
    [
        ("fcn8s", None, None, {0, 1, 2}),
        ("fcn8s", 0, None, {0}),
        ("fcn8s", None, (5,), {5}),
        ("fcn8s", 7, (5,), {5}),
        ("mff", None, None, {0}),
        ("mff", 7, None, {7}),
        (None, 7, None, {7}),
    ],
)
def test_seeds_not_asked_for_are_those_of_the_table_or_the_recipe(table, seed, seeds, trained) -> None:
    rows = rows_of(load_config("scenes-small", {"seed": seed}), table, seeds)
    assert {config.seed for _, config in rows} == trained


def test_the_long_control_has_the_budget_of_three_phases() -> None:
    made = plan("seg-only-long", "depth-first+copy")
    assert made.runs[0].steps == made.runs[1].steps


def test_a_total_budget_gives_every_row_equal_steps() -> None:
    config = load_config("demo", {"training.budget": "total", "training.iterations": 600})
    assert {run.steps for run in plan(*PAPER_ROWS, *CONTROLS, config=config).runs} == {600}


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"training.lr": 0.01},
        {"training.epochs": 3},
        {"training.batch_size": 4},
        {"training.ema_decay": 0.9},
        {"training.precision": "float32"},
        {"loss.gamma": 1.0},
        {"data.flip": 0.1},
        {"data.crop": (64, 64)},
        {"network.encoder": "resnet34"},
    ],
    ids=str,
)
def test_what_changes_the_weights_changes_the_key(change: dict[str, object]) -> None:
    before, after = plan("seg-only"), plan("seg-only", config=load_config("demo").changed(change))
    assert before.nodes.keys() != after.nodes.keys()


@pytest.mark.parametrize(
    "change",
    [
        {"training.log_every": 3},
        {"training.checkpoint_every": 7},
        {"data.workers": 2},
        {"data.root": "elsewhere"},
        {"evaluation.split": "test"},
        {"depth.batch_size": 3},
        {"depth.target": "minmax"},
        {"loss.depth": "l1"},
        {"loss.joint_focal": 0.5},
    ],
    ids=str,
)
def test_what_leaves_a_segmentation_phase_alone_leaves_its_key(change: dict[str, object]) -> None:
    before, after = plan("seg-only"), plan("seg-only", config=load_config("demo").changed(change))
    assert before.nodes.keys() == after.nodes.keys()


@pytest.mark.parametrize(
    "change",
    [
        {"training.log_every": 3},
        {"training.checkpoint_every": 7},
        {"data.workers": 2},
        {"data.root": "elsewhere"},
        {"depth.batch_size": 3},
        {"depth.codec": "gzip"},
        {"evaluation.batch_size": 1},
    ],
    ids=str,
)
def test_what_leaves_the_result_alone_leaves_the_run_its_name(change: dict[str, object]) -> None:
    before, after = plan("joint"), plan("joint", config=load_config("demo").changed(change))
    assert before.runs[0].name == after.runs[0].name


@pytest.mark.parametrize("change", [{"evaluation.split": "test"}, {"evaluation.size": "recipe"}], ids=str)
def test_another_evaluation_is_another_run_of_the_same_nodes(change: dict[str, object]) -> None:
    before, after = plan("joint"), plan("joint", config=load_config("demo").changed(change))
    assert before.nodes.keys() == after.nodes.keys() and before.runs[0].name != after.runs[0].name


def test_a_run_folder_has_a_plain_name() -> None:
    steps = ({"phase": "x", "trains": ("encoder", "seg-branch"), "focal": 1.0},)
    config = load_config("demo").changed({"schedule": {"name": "../a b", "steps": steps}})
    (run,) = plan_runs([(config.build_schedule().name, config)], FACTS).runs
    assert "/" not in run.name and " " not in run.name and "-a-b-s0-" in run.name


def test_a_segmentation_phase_does_not_care_for_the_store() -> None:
    other = DataFacts(400, 8, "data", "another store")
    assert plan("seg-only").nodes.keys() == plan("seg-only", facts=other).nodes.keys()
    assert plan("joint").nodes.keys() != plan("joint", facts=other).nodes.keys()


def test_a_copy_is_part_of_the_path() -> None:
    with_copy, without = plan("depth-first+copy").runs[0].nodes, plan("depth-first").runs[0].nodes
    assert with_copy[0].key == without[0].key
    assert with_copy[1].key != without[1].key


def test_a_depth_phase_without_a_store_is_refused() -> None:
    with pytest.raises(UserError, match="reads depth; label first with: pipeline pseudo-depth"):
        plan("joint", facts=DataFacts(400, 8, "data", None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss.class_weights": (1.0, 2.0)}, "class_weights has 2 weights for 8 classes; give one per class"),
        ({"training.warmup_steps": 10**6}, r"phase 'seg' has \d+ steps, not more than the 1000000 of warm-up"),
        (
            {
                "training.encoder_policy": "always-freeze",
                "schedule": {"name": "own", "steps": ({"phase": "x", "trains": ("encoder",), "focal": 1.0},)},
            },
            "phase 'x' trains only the encoder, which encoder policy 'always-freeze' forbids",
        ),
    ],
    ids=["class weights", "warm-up", "frozen encoder"],
)
def test_what_a_later_phase_could_not_begin_with_is_told_before_the_first(change, message: str) -> None:
    config = load_config("demo").changed(change)
    with pytest.raises(UserError, match=message):
        plan_runs([("depth-first", config)], FACTS)


def test_class_weights_do_not_matter_where_nothing_is_segmented() -> None:
    steps = ({"phase": "x", "trains": ("encoder", "depth-branch"), "mse": 1.0},)
    changes = {"loss.class_weights": (1.0, 2.0), "schedule": {"name": "own", "steps": steps}}
    config = load_config("demo").changed(changes)
    assert len(plan_runs([("x", config)], FACTS).nodes) == 1


@pytest.mark.parametrize(
    "module", ["pipeline.experiment.plan", "pipeline.cli", "pipeline.commands.compare", "pipeline.commands.plan"]
)
def test_planning_and_comparing_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
