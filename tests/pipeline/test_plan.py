"""Nodes are content: equal work has equal keys, and whatever changes the outcome changes the key."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from data_cache.errors import UserError
from data_cache.ranks import World
from pipeline.experiment.config import RunConfig, load_config
from pipeline.experiment.expand import _name_data, list_rows
from pipeline.experiment.plan import Plan, Row, plan_runs
from pipeline.experiment.reading import DataFacts
from pipeline.experiment.tables import TABLES, table_rows
from stages.training.schedules import CONTROLS, PAPER_ROWS
from tests.pipeline.drawn_facts import build_facts

FACTS = build_facts()


def as_rows(config: RunConfig) -> list[Row]:
    return list_rows(config.changed({"training.precision": "float32"}), None, None)


def plan(*rows: str, config: RunConfig | None = None, facts: DataFacts = FACTS, reuse: bool = True) -> Plan:
    config = (config or load_config("demo")).changed({"training.precision": "float32"})
    table = {row.name: row for row in TABLES["schedules"].rows}
    changed = [config.changed(table[row].changes) for row in rows]
    return plan_runs(
        [Row(row, one, one.build_schedule()) for row, one in zip(rows, changed, strict=True)], facts, reuse=reuse
    )


def test_the_ten_rows_share_their_beginnings() -> None:
    made = plan(*PAPER_ROWS)
    assert (len(made.nodes), made.without_reuse) == (15, 22)


@pytest.mark.parametrize(("overrides", "epochs"), [({}, [24, 24, 24, 48]), ({"training.epochs": 2}, [2, 2, 2, 4])])
def test_what_a_recipe_changes_for_a_row_holds_until_something_else_is_asked_for(overrides, epochs) -> None:
    rows = table_rows(TABLES["fcn8s"], load_config("scenes-small", overrides), (0,))
    assert [config.training.epochs for _, config in rows] == epochs
    assert {config.training.lr for _, config in rows} == {3e-4}


def test_a_section_asked_for_as_a_whole_holds_for_every_row() -> None:
    config = load_config("scenes-small", assignments=["training={lr=0.5, epochs=1}"])
    assert {config.training.lr for _, config in table_rows(TABLES["fcn8s"], config, (0,))} == {0.5}


def test_a_rows_changes_may_be_tables_in_tables(tmp_path: Path) -> None:
    """Without quotes TOML nests ``training.lr``; it used to put the rest of the section back to its defaults."""
    recipe = tmp_path / "own.toml"
    recipe.write_text("[training]\nepochs = 3\nbatch_size = 4\n[row_changes.seg-only]\ntraining.lr = 0.5\n")
    for overrides, lr in (({}, 0.5), ({"training.lr": 0.1}, 0.1)):
        (_, config), *_ = table_rows(TABLES["schedules"], load_config(str(recipe), overrides), (0,))
        assert (config.training.lr, config.training.epochs, config.training.batch_size) == (lr, 3, 4)


def test_epochs_asked_for_override_the_iterations_of_a_row(tmp_path: Path) -> None:
    recipe = tmp_path / "own.toml"
    recipe.write_text('[row_changes.seg-only]\n"training.iterations" = 2\n')
    (_, config), *_ = table_rows(TABLES["schedules"], load_config(str(recipe), {"training.epochs": 4}), (0,))
    assert (config.training.epochs, config.training.iterations) == (4, None)


def test_a_mistake_in_a_rows_changes_names_the_row() -> None:
    config = load_config("demo", {"row_changes": {"mff-exit": {"training.lrr": 0.1}}})
    with pytest.raises(UserError, match=r"(?s)table row 'mff-exit':.*'training.lrr' .did you mean 'lr'"):
        table_rows(TABLES["mff"], config, (0,))


def test_the_controls_add_three_trainings() -> None:
    made = plan(*PAPER_ROWS, *CONTROLS)
    assert len(made.nodes) == 18, "depth-then-seg is a beginning of depth-first, seg-seg-seg begins as seg-only"


def test_without_reuse_every_run_trains_its_own_from_the_same_random_state() -> None:
    shared, alone = plan(*PAPER_ROWS), plan(*PAPER_ROWS, reuse=False)
    assert len(alone.nodes) == 22
    keys = [[node.key for node in run.nodes] for run in shared.runs]
    assert [[node.key for node in run.nodes] for run in alone.runs] == keys


def test_seeds_share_nothing() -> None:
    rows = list_rows(load_config("demo", {"training.precision": "float32"}), "schedules", (0, 1))
    assert len(plan_runs(rows, FACTS).nodes) == 2 * 18


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
    rows = list_rows(load_config("scenes-small", {"seed": seed}), table, seeds)
    assert {row.config.seed for row in rows} == trained


def test_the_long_control_has_the_budget_of_three_phases() -> None:
    made = plan("seg-only-long", "seg-seg-seg", "depth-first+copy")
    assert len({run.steps for run in made.runs}) == 1


def test_a_total_budget_gives_every_row_equal_steps() -> None:
    config = load_config("demo", {"training.budget": "total", "training.iterations": 600})
    assert {run.steps for run in plan(*PAPER_ROWS, *CONTROLS, config=config).runs} == {600}


def test_seeds_of_phases_pair_wherever_rows_do_the_same_in_the_same_place() -> None:
    """Common random numbers: a difference between rows is not one of data order, augmentation and dropout."""
    rows = ("seg-only", "seg-first", "seg-first+copy", "depth-first", "seg-seg-seg", "joint")
    seeds = [[node.seed for node in run.nodes] for run in plan(*rows).runs]
    longest = max(seeds, key=len)
    assert all(found == longest[: len(found)] for found in seeds)
    assert len(set(longest)) == len(longest), "phases of one run do not repeat the same order"
    other = plan("joint", config=load_config("demo", {"seed": 1})).runs[0].nodes[0]
    assert other.seed not in longest


def test_a_segmentation_phase_does_not_care_for_the_store() -> None:
    other = build_facts(depth="another store")
    assert plan("seg-only").nodes.keys() == plan("seg-only", facts=other).nodes.keys()
    assert plan("joint").nodes.keys() != plan("joint", facts=other).nodes.keys()


def plan_mixed(pool: int = 9, **changes: object) -> Plan:
    config = load_config("demo", {"schedule.mix": "depth", "training.batch_size": 4} | changes)
    return plan_runs(as_rows(config), build_facts(pool=pool))


@pytest.mark.parametrize(("changes", "pool", "said"), [
    ({}, 0, r"phase 'joint' has mix 'depth', .* the data offer 0 of them; keep fewer masks \(--labelled-fraction"),
    ({}, 1, "the data offer 1 of them"),
    ({"training.unlabelled_share": 0.2}, 9, "a batch holds 1 images without masks, and mixing takes two; raise train"),
    ({"depth.target": "zscore"}, 9, "depth.target 'zscore' has other units; use robust, minmax or log, or mix by"),
], ids=str)  # fmt: skip
def test_mixing_what_cannot_be_mixed_is_refused_before_anything_is_trained(changes, pool, said) -> None:
    with pytest.raises(UserError, match=said) as caught:
        plan_mixed(pool, **{"schedule.name": "joint"}, **changes)
    assert len(str(caught.value).splitlines()) == 1


def test_mixing_in_several_processes_is_refused(monkeypatch) -> None:
    monkeypatch.setattr("data_cache.ranks._world", World(0, 2))
    with pytest.raises(UserError, match="partners would lie in different processes; train it in one process"):
        plan_mixed(**{"schedule.name": "joint"})


def test_what_is_no_sum_over_its_parts_is_not_parted(monkeypatch) -> None:
    joint = load_config("demo", {"schedule.name": "joint"})
    parted = joint.changed({"training.accumulate": 2, "loss.balance": "share"})
    with pytest.raises(UserError, match=r'accumulate = 2: loss.balance = "share" compares the losses of a whole batch'):
        plan_runs(as_rows(parted), FACTS)
    with pytest.raises(UserError, match="accumulate = 2 has mix 'depth'"):
        plan_mixed(**{"schedule.name": "joint", "training.accumulate": 2})
    regions = joint.changed({"loss.seg": {"focal": 1.0, "dice": 1.0}, "loss.class_weights": None})
    assert plan_runs(as_rows(regions), FACTS).runs
    monkeypatch.setattr("data_cache.ranks._world", World(0, 2))
    with pytest.raises(UserError, match="dice, which looks at a whole batch, of which each process has a part"):
        plan_runs(as_rows(regions), FACTS)


def test_epochs_are_counted_in_steps_of_the_optimiser() -> None:
    base = load_config("demo", {"training.epochs": 2, "training.batch_size": 4, "schedule.name": "seg-only"})
    one, two = (plan_runs(as_rows(base.changed({"training.accumulate": n})), FACTS).nodes.values() for n in (1, 2))
    (one,), (two,) = one, two
    assert (one.steps, two.steps) == (2 * 400 // 4, 2 * 400 // 8) and one.images_seen == two.images_seen


def test_how_images_are_mixed_decides_only_phases_that_mix() -> None:
    keys = [
        [node.key for node in plan_mixed(**{"schedule.name": "depth-first"}, **change).runs[0].nodes]
        for change in ({}, {"mix.margin": 0.1}, {"schedule.mix": "cut"}, {"schedule.mix": "none", "mix.margin": 0.1})
    ]
    assert len({each[0] for each in keys}) == 1
    assert len({each[1] for each in keys}) == 4


def test_a_depth_phase_does_not_care_for_masks() -> None:
    other = build_facts(masks="others")
    (before,), (after,) = plan("depth-first").runs, plan("depth-first", facts=other).runs
    assert [a.key == b.key for a, b in zip(before.nodes, after.nodes, strict=True)] == [True, False, False]


def test_without_a_pool_or_a_share_of_it_nothing_is_another_training() -> None:
    """Whatever a phase asks for; an own schedule says it, and named ones ask for all where they learn depth."""
    step = {"phase": "x", "trains": ("everything",), "seg": 1.0, "depth": 1.0}
    for steps in ((step,), ({"phase": "y", "trains": ("encoder", "depth-branch"), "depth": 1.0}, step)):
        schedules = [
            {"schedule": {"name": "own", "steps": tuple(each | {"images": images} for each in steps)}}
            for images in ("all", "labelled")
        ]
        configs = [load_config("demo", {"training.precision": "float32"}).changed(change) for change in schedules]
        keys = [[node.key for node in plan_runs(as_rows(config), FACTS).runs[0].nodes] for config in configs]
        assert keys[0] == keys[1]
    none = configs[0].changed({"training.unlabelled_share": 0.0})
    pooled = [
        [node.key for node in plan_runs(as_rows(config), build_facts(pool=50)).runs[0].nodes]
        for config in (configs[0], none, configs[1])
    ]
    assert pooled[0][0] == pooled[1][0] != pooled[2][0], "the depth phase reads the pool whatever batches mix"
    joint = [
        plan_runs(as_rows(config.changed({"schedule.steps": (step,)})), build_facts(pool=50)).runs[0].nodes[0].key
        for config in (configs[0], none, configs[1])
    ]
    assert joint[0] != joint[1]
    assert plan_runs(as_rows(none.changed({"schedule.steps": (step,)})), FACTS).runs[0].nodes[0].key == joint[1]


def test_rows_differ_by_what_their_phases_read_alone() -> None:
    """A loss that no phase uses neither retrains a row nor keeps its seeds apart."""
    other = load_config("demo", {"loss.depth": "l1", "loss.weighting": "dwa", "depth.target": "minmax"})
    for row, same in (("seg-only", True), ("depth-first", False)):
        (before,), (after,) = plan(row).runs, plan(row, config=other).runs
        assert (before.describe_settings() == after.describe_settings()) is same
        assert (before.name == after.name) is same


def test_shares_chosen_by_a_teacher_are_rows_by_what_it_chose() -> None:
    """No phase of these rows reads depth, so nothing else tells the teacher; a lot is one row over its seeds."""
    for by, same in (("random", True), ("depth-features", False)):
        config = load_config("demo", {"data.labelled_fraction": "1/8", "data.labelled_by": by})
        found = [replace(FACTS, labelled=names) for names in (("a", "b"), ("b", "c"))]
        config = config.changed({"schedule": {"name": "seg-only"}, "training.precision": "float32"})
        row = Row("seg-only", config, config.build_schedule())
        one, other = (plan_runs([row], facts).runs[0].describe_settings() for facts in found)
        assert (one == other) is same


def test_data_of_a_share_are_told_apart_by_what_chose_it() -> None:
    """Facts and class weights are looked up once for all rows of the same data."""
    for by, same in (("random", True), ("depth-features", False)):
        config = load_config("demo", {"data.labelled_fraction": "1/8", "data.labelled_by": by})
        assert (_name_data(config) == _name_data(config.changed({"depth.estimator": "x/y"}))) is same


def test_a_copy_is_part_of_the_path() -> None:
    with_copy, without = plan("depth-first+copy").runs[0].nodes, plan("depth-first").runs[0].nodes
    assert with_copy[0].key == without[0].key
    assert with_copy[1].key != without[1].key


def test_a_depth_phase_without_a_store_is_refused() -> None:
    with pytest.raises(UserError, match="reads depth; label first with: pipeline pseudo-depth"):
        plan("joint", facts=build_facts(depth=None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss.class_weights": (1.0, 2.0)}, "class_weights has 2 weights for 8 classes; give one per class"),
        ({"training.warmup_steps": 10**6}, r"phase 'seg' has \d+ steps, not more than the 1000000 of warm-up"),
        (
            {
                "training.encoder_policy": "always-freeze",
                "schedule": {"name": "own", "steps": ({"phase": "x", "trains": ("encoder",), "seg": 1.0},)},
            },
            "phase 'x' trains only the encoder, which encoder policy 'always-freeze' forbids",
        ),
    ],
    ids=["class weights", "warm-up", "frozen encoder"],
)
def test_what_a_later_phase_could_not_begin_with_is_told_before_the_first(change, message: str) -> None:
    config = load_config("demo").changed(change)
    with pytest.raises(UserError, match=message):
        plan_runs(as_rows(config), FACTS)


def test_class_weights_do_not_matter_where_nothing_is_segmented() -> None:
    steps = ({"phase": "x", "trains": ("encoder", "depth-branch"), "depth": 1.0},)
    changes = {"loss.class_weights": (1.0, 2.0), "schedule": {"name": "own", "steps": steps}}
    config = load_config("demo").changed(changes)
    assert len(plan_runs(as_rows(config), FACTS).nodes) == 1


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("pipeline.experiment.plan", "torch"), ("pipeline.commands.compare", "torch"), ("pipeline.cli", "pydantic")],
)
def test_planning_comparing_and_help_import_nothing_heavy(module: str, heavy: str) -> None:
    code = f"import sys, {module}; sys.exit('{heavy}' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
