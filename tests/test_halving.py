"""Successive halving: who goes on, who is out, and what it costs."""

import dataclasses
import json
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dftrack.study.definition import find_study_file
from dftrack.study.file import read_study
from dftrack.study.halving import Contest, Halving, Standing, contest_of, cost, plan, replay, rungs_of

RUNGS = (1, 3, 10)
THIRDS = (Fraction(1, 3), Fraction(1, 9))
CONTEST = Contest(RUNGS, THIRDS, 30)


def paused(number: int, value: float, stop: int = 1) -> Standing:
    return Standing(number, "paused", stop, {stop: value})


def test_thirty_trials_cost_seventy_five_of_three_hundred_epochs() -> None:
    contest = read_study(find_study_file("default")).contest(30)
    assert [contest.seats(index) for index in range(3)] == [9, 5, 3]
    assert cost(contest) == 75 == 300 / 4
    assert cost(CONTEST) == 71, "by thirds"


@pytest.mark.parametrize("study", ["default", "rich"])
def test_from_ten_trials_on_the_plan_costs_at_most_a_quarter(study: str) -> None:
    definition = read_study(find_study_file(study))
    assert all(cost(definition.contest(total)) <= total * definition.epochs / 4 for total in range(10, 500))


def test_without_pruning_every_trial_costs_all_its_epochs() -> None:
    assert cost(contest_of(None, 10, 30)) == 300


def test_thirds_are_taken_where_no_shares_are_given() -> None:
    assert contest_of(Halving(), 27, 30) == Contest((1, 3, 9, 27), (*THIRDS, Fraction(1, 27)), 30)
    fifth = (Fraction(1, 5),)
    assert contest_of(Halving(rungs=(2, 4), shares=fifth), 4, 30) == Contest((2, 4), fifth, 30)


def placed(number: int, value: float, place: float, status: str = "paused", stop: int = 1) -> Standing:
    return Standing(number, status, stop, {stop: value}, place)


SPREAD = Contest((1, 10), (Fraction(1, 2),), 6, spread=True)  # three seats, one for each third of the range


def test_seats_that_are_spread_go_to_the_best_of_each_part_however_low() -> None:
    crowd = [placed(n, 0.9 - n / 100, 0.1) for n in range(4)]
    step = plan([*crowd, placed(4, 0.5, 0.5), placed(5, 0.4, 1.0)], SPREAD)
    assert step.promote == ((0, 10), (4, 10), (5, 10)) and step.prune == (1, 2, 3)
    assert plan([*crowd, placed(4, 0.5, 0.5), placed(5, 0.4, 0.4)], SPREAD).promote == ((0, 10), (4, 10), (1, 10)), (
        "the seat of a part that nobody is in goes to the best of the others"
    )
    everywhere = dataclasses.replace(SPREAD, spread=False)
    assert plan([*crowd, placed(4, 0.5, 0.5), placed(5, 0.4, 1.0)], everywhere).promote == ((0, 10), (1, 10), (2, 10))
    later = dataclasses.replace(SPREAD, rungs=(1, 3, 10), shares=(Fraction(1, 1), Fraction(1, 2)))
    deep = [placed(n, s.curve[1], s.place, stop=3) for n, s in enumerate([*crowd, placed(4, 0.5, 0.5)])]
    assert [number for number, _ in plan([*deep, placed(5, 0.4, 1.0, stop=3)], later).promote] == [0, 1, 2]


def test_a_protected_trial_takes_the_seat_of_its_part() -> None:
    contest = dataclasses.replace(SPREAD, protected=frozenset({0}))
    rivals = [placed(1, 0.9, 0.1), placed(2, 0.8, 0.5), placed(3, 0.3, 0.5), placed(4, 0.2, 0.9), placed(5, 0.1, 0.9)]
    for status in ("paused", "running"):  # what it will have does not matter
        step = plan([placed(0, 0.0, 0.2, status), *rivals], contest)
        assert step.promote[-2:] == ((2, 10), (4, 10)) and step.prune == (1, 3, 5)


def test_nobody_takes_a_spread_seat_while_a_better_one_of_its_part_may_come() -> None:
    standings = [placed(0, 0.9, 0.1), placed(1, 0.8, 0.5), placed(2, 0.7, 0.9), placed(3, 0.6, 0.1)]
    assert plan([*standings, placed(4, 0.1, 0.3, "running")], SPREAD).promote == ()
    assert plan([*standings, placed(4, 0.1, 0.3, "running")], SPREAD).prune == (3,), "three are before it already"


@pytest.mark.parametrize(
    ("epochs", "rungs"),
    [(10, (1, 3, 10)), (27, (1, 3, 9, 27)), (3, (1, 3)), (2, (2,)), (1, (1,)), (100, (1, 3, 11, 33, 100))],
)
def test_rungs_follow_from_the_epochs(epochs: int, rungs: tuple[int, ...]) -> None:
    assert rungs_of(Halving(), epochs) == rungs


def test_nobody_goes_on_while_enough_others_may_still_be_better() -> None:
    standings = [paused(n, n / 100) for n in range(10)]
    assert plan(standings, CONTEST).promote == ()
    assert plan(standings, CONTEST).prune == ()


def test_who_can_no_longer_be_among_the_best_is_ended_at_once() -> None:
    standings = [paused(n, n / 100) for n in range(12)]
    assert plan(standings, CONTEST).prune == (0, 1), "ten better ones exist for ten seats"


def test_who_is_among_the_best_whatever_comes_goes_on_at_once() -> None:
    standings = [paused(n, n / 100) for n in range(24)]  # 6 are still to come, for 10 seats
    assert [number for number, _ in plan(standings, CONTEST).promote] == [23, 22, 21, 20]


def test_ties_go_to_the_lower_number() -> None:
    step = plan([paused(n, 0.5) for n in range(30)], CONTEST)
    assert [number for number, _ in step.promote] == list(range(10))
    assert step.prune == tuple(range(10, 30))


def test_a_lower_value_is_better_where_the_study_minimizes() -> None:
    step = plan([paused(n, n / 100) for n in range(30)], dataclasses.replace(CONTEST, maximize=False))
    assert [number for number, _ in step.promote] == list(range(10))


def test_the_baseline_has_a_seat_of_its_own_and_takes_it_at_once() -> None:
    contest = dataclasses.replace(CONTEST, protected=frozenset({0}))
    step = plan([paused(n, n / 100) for n in range(30)], contest)
    assert step.promote[0] == (0, 3)
    assert len(step.promote) == 10, "its seat is one of the ten: it costs no epoch"
    assert plan([paused(0, 0.0)], contest).promote == ((0, 3),)


def test_the_baseline_competes_where_there_is_one_seat_only() -> None:
    contest = Contest(RUNGS, THIRDS, 5, protected=frozenset({0}))
    step = plan([paused(n, n / 100) for n in range(5)], contest)
    assert step.promote == ((4, 3),), "otherwise five trials would train nothing but the baseline"


def test_the_deepest_promotion_is_the_most_urgent() -> None:
    contest = Contest((1, 3, 10), (Fraction(1, 2), Fraction(1, 4)), 4)
    deep = [paused(0, 0.9, stop=3), paused(1, 0.8, stop=3)]
    step = plan([*deep, Standing(2, "pruned", 1, {1: 0.1}), Standing(3, "failed", 1, {})], contest)
    assert step.promote == ((0, 10),)
    assert step.prune == (1,)


def run(
    values: list[list[float]], contest: Contest, seed: int, *, failing: float = 0.0, workers: int = 1
) -> list[Standing]:
    """Play a study: `workers` jobs at a time, ending in random order; `failing`: the chance that a job fails.

    Where a trial lies in the range is the last of its values.
    """
    rng = random.Random(seed)
    standings: dict[int, Standing] = {}
    running: list[int] = []
    while True:
        step = plan(list(standings.values()), contest)
        for number in step.prune:
            assert standings[number].status == "paused", "only a paused trial can be overtaken"
            standings[number] = dataclasses.replace(standings[number], status="pruned")
        while len(running) < workers:
            if len(standings) < contest.total:
                number, stop = len(standings), contest.rungs[0]
            elif promote := plan(list(standings.values()), contest).promote:
                number, stop = promote[0]
            else:
                break
            curve = standings[number].curve if number in standings else {}
            standings[number] = Standing(number, "running", stop, curve, values[number][-1])
            running.append(number)
        if not running:
            return list(standings.values())
        number = running.pop(rng.randrange(len(running)))
        trial = standings[number]
        if rng.random() < failing:
            standings[number] = dataclasses.replace(trial, status="failed")
            continue
        curve = {epoch: values[number][epoch - 1] for epoch in range(1, trial.stop + 1)}
        status = "complete" if trial.stop == contest.rungs[-1] else "paused"
        standings[number] = Standing(number, status, trial.stop, curve, trial.place)
        kept = sum(s.status == "paused" for s in standings.values())
        assert kept <= contest.total * contest.shares[0] + workers + 1, f"{kept} checkpoints are kept"


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 40),
    seed=st.integers(0, 10**6),
    workers=st.integers(1, 8),
    protect=st.booleans(),
    spread=st.booleans(),
    failing=st.sampled_from([0.0, 0.0, 0.3, 1.0]),
    shape=st.sampled_from([(RUNGS, THIRDS), ((1, 2, 5, 10), (Fraction("0.4"), Fraction("0.2"), Fraction("0.1")))]),
)
def test_every_study_ends_within_its_budget(
    total: int,
    seed: int,
    workers: int,
    protect: bool,
    spread: bool,
    failing: float,
    shape: tuple[tuple[int, ...], tuple[Fraction, ...]],
) -> None:
    rungs, shares = shape
    rng = random.Random(seed)
    values = [[rng.randrange(5) / 5 for _ in range(10)] for _ in range(total)]
    contest = Contest(rungs, shares, total, maximize=True, protected=frozenset({0} if protect else ()), spread=spread)
    ended = run(values, contest, seed, failing=failing, workers=workers)
    assert len(ended) == total
    assert all(s.status in ("complete", "pruned", "failed") for s in ended), "a trial was left behind"
    assert sum(max(s.curve, default=0) for s in ended) <= cost(contest)
    if failing == 0.0:
        assert sum(s.status == "complete" for s in ended) == contest.seats(len(rungs) - 2)
        if protect and contest.seats(len(rungs) - 2) >= 2:
            assert ended[0].status == "complete", "the baseline must reach the end"


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), workers=st.integers(2, 8), spread=st.booleans())
def test_the_outcome_does_not_depend_on_how_many_work_or_who_is_first(seed: int, workers: int, spread: bool) -> None:
    rng = random.Random(seed)
    values = [[rng.randrange(5) / 5 for _ in range(9)] + [rng.random() ** 2] for _ in range(30)]
    contest = dataclasses.replace(CONTEST, protected=frozenset({0}), spread=spread)
    alone = {s.number: s for s in run(values, contest, 0)}
    together = {s.number: s for s in run(values, contest, seed, workers=workers)}
    assert together == alone


def test_a_longer_study_shares_out_the_seats_that_it_adds() -> None:
    values = [[n / 100] * 10 for n in range(60)]
    first = run(values[:30], CONTEST, 0)
    contest = dataclasses.replace(CONTEST, total=60)
    standings = first + [paused(n, n / 100) for n in range(30, 60)]
    step = plan(standings, contest)
    assert [number for number, _ in step.promote] == list(range(59, 49, -1)), "20 seats, 10 of them taken"
    assert set(step.prune) == set(range(30, 50))


def test_a_replay_finds_the_winner_for_a_quarter_of_the_epochs() -> None:
    curves = [[0.5 + n / 100 - 0.3 / epoch for epoch in range(1, 11)] for n in range(30)]
    random.Random(0).shuffle(curves)
    result = replay(curves, Halving())
    assert (result.epochs, result.full_epochs) == (71, 300)
    assert result.value == result.best == max(curve[-1] for curve in curves)
    assert replay(curves, Halving(), 1) == replay(curves, Halving(), 1), "the same seed must give the same"
    assert replay([[-v for v in c] for c in curves], Halving(), maximize=False).value == -result.value


def test_a_replay_loses_to_a_late_bloomer_and_says_so() -> None:
    early = [[0.6] * 10 for _ in range(29)]
    late = [0.1] * 9 + [0.99]
    result = replay([*early, late], Halving())
    assert result.value == 0.6
    assert result.best == 0.99


def lost(curves: str, halving: Halving, studies: int = 300) -> float:
    """Mean val AUC, in points, that a winner ends below the best there was: simulated studies of recorded trials."""
    file = Path(__file__).parents[1] / "benchmarks" / f"curves-{curves}.json"
    trials = json.loads(file.read_text())["trials"]
    study = read_study(find_study_file("default"))
    places = [study.place(trial["parameters"]) for trial in trials]
    found = []
    for seed in range(studies):
        drawn = [0, *random.Random(seed).choices(range(1, len(trials)), k=29)]
        curves_drawn = [trials[index]["curve"] for index in drawn]
        found.append(replay(curves_drawn, halving, places=[places[index] for index in drawn]))
    return 100 * sum(one.best - one.value for one in found) / studies


def test_the_default_plan_loses_less_where_the_best_learn_slowly_at_first_and_no_more_elsewhere() -> None:
    default = read_study(find_study_file("default")).pruning
    assert default is not None
    plain = dataclasses.replace(default, spread_over="")
    for slow in ("random-1", "tpe-1"):  # the best there begin like the worst (docs/performance.md)
        assert lost(slow, default) < lost(slow, plain) / 2
    for other in ("random", "tpe"):
        assert lost(other, default) <= lost(other, plain) + 0.1
