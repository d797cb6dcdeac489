"""Every network takes every schedule: where a copy would carry nothing, its decoders get something to copy."""

from __future__ import annotations

import pytest
import torch

from data_cache.errors import UserError
from pipeline.experiment.config import load_config
from pipeline.experiment.expand import choose_copyable_forms, list_rows
from pipeline.experiment.plan import Row
from stages.networks import NETWORKS, build_without_weights
from stages.training.schedule import Part
from stages.training.transfer import plan_copy

COPYABLE_FORMS = {name: dict(entry.copyable_form) for name, entry in NETWORKS.items() if entry.copyable_form}


def rows_of_schedules(network: str, **options: object) -> list[Row]:
    options = {f"network.{key}": value for key, value in options.items()}
    return list_rows(load_config("scenes-small", {"network.name": network, **options}), "schedules", (0,))


@pytest.mark.parametrize("network", COPYABLE_FORMS)
def test_all_rows_of_a_table_that_copies_get_one_form(network):
    told = []
    rows = choose_copyable_forms(rows_of_schedules(network), told.append)
    (form,) = {tuple((key, row.config.network.options[key]) for key in COPYABLE_FORMS[network]) for row in rows}
    assert dict(form) == COPYABLE_FORMS[network]
    assert len(told) == 1 and told[0].startswith(f"{network}: ")


@pytest.mark.parametrize("network", COPYABLE_FORMS)
def test_the_form_is_what_the_network_itself_names_as_remedy(network):
    (option, value), *more = COPYABLE_FORMS[network].items()
    with torch.device("meta"):
        plain, copyable = (build_without_weights(network, 3, **options) for options in ({}, {option: value}))
    with pytest.raises(UserError, match=f'set {option} = "{value}", or'):
        plan_copy(plain, Part.SEG_DECODER, Part.DEPTH_DECODER)
    assert plan_copy(copyable, Part.SEG_DECODER, Part.DEPTH_DECODER).copied and not more


@pytest.mark.parametrize("network", sorted(set(NETWORKS) - set(COPYABLE_FORMS)))
def test_other_networks_stay_as_they_are(network):
    rows, told = rows_of_schedules(network), []
    assert choose_copyable_forms(rows, told.append) == rows
    assert told == []


def test_without_a_copy_nothing_changes():
    rows = [row for row in rows_of_schedules("fcn8s") if "+copy" not in row.name]
    assert choose_copyable_forms(rows, print) == rows


def test_what_a_recipe_says_itself_stays():
    rows = choose_copyable_forms(rows_of_schedules("fcn8s", depth_branch="light"), print)
    assert {row.config.network.options["depth_branch"] for row in rows} == {"light"}


def test_a_row_without_depth_branch_stays_as_it_is():
    config = load_config("scenes-small", {"network.name": "fcn8s"})
    single = config.changed({"schedule": {"name": "seg-only"}, "network.with_depth": False})
    both, alone = (Row("row", each, each.build_schedule()) for each in (config, single))
    rows = choose_copyable_forms([both, alone], print)
    assert rows[1] == alone
    assert rows[0].config.network.options["depth_branch"] == "full"


@pytest.mark.parametrize("network", COPYABLE_FORMS)
def test_the_plan_of_all_schedules_holds(call, network):
    call("pseudo-depth", "--recipe", "scenes-small", "--set", "data.options={counts={train=8,val=2,test=2}}")
    words = ("--recipe", "scenes-small", "--set", "data.options={counts={train=8,val=2,test=2}}", "--network", network)
    answer = call("plan", "schedules", "--seeds", "0", *words)
    assert (answer.status, answer.json["nodes"]) == (0, 24)
    assert "or a copy would carry nothing" in answer.stderr
