"""The harness tells medians, spreads and misses as they are."""

from __future__ import annotations

import pytest

from tests.benchmarks.harness import Goal, Line, Spread, Turns, alternate


def test_every_side_has_its_turn_and_the_order_changes() -> None:
    calls: list[str] = []
    turns = alternate([lambda: calls.append("a"), lambda: calls.append("b")], passes=2)
    assert "".join(calls) == "ab" + "ba" + "ab"  # a warm-up turn, then two that count
    assert [len(times) for times in turns.of_side] == [2, 2]


def test_a_ratio_is_taken_turn_by_turn_so_that_what_slows_both_cancels() -> None:
    slow_turns = Turns(((1.0, 10.0, 2.0, 1.0), (2.0, 20.0, 4.0, 2.0)))
    assert slow_turns.ratio(0, 1) == Spread(0.5, 0.5, 0.5)


def test_spread_is_median_and_quartiles() -> None:
    assert Spread.of([4.0, 1.0, 3.0, 2.0, 5.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


@pytest.mark.parametrize(
    ("goal", "value", "missed"),
    [
        (Goal(at_least=0.95), 0.95, ""),
        (Goal(at_least=2.0), 1.0, "missed by 50%"),
        (Goal(at_most=1.03), 1.03, ""),
        (Goal(at_most=0.5), 0.75, "missed by 50%"),
        (Goal(0.98, 1.02), 0.49, "missed by 50%"),
        (Goal(0.98, 1.02), 1.0, ""),
        (Goal(at_most=1.0), 1.002, "missed by 0.2%"),
    ],
    ids=str,
)
def test_a_goal_says_by_how_much_it_is_missed_and_why(goal: Goal, value: float, missed: str) -> None:
    told = Line("what", Spread.of([value]), goal, why="it is slow").to_json()
    assert (told["missed"], told["why"], told["met"]) == (missed, "it is slow" if missed else "", not missed)
