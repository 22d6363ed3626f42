"""Synchronous successive halving: who trains on, who is out. Pure: it looks at curves and answers.

All trials train for one epoch, 9 of 30 for three, 5 for six, 3 to the end of ten:
30 x 1 + 9 x 2 + 5 x 3 + 3 x 4 = 75 of 300 epochs (`studies/default.toml`). A trial pauses at each rung with its
checkpoint and trains on from there if it is promoted: no epoch is trained twice. The outcome is that of a barrier at
each rung, but nobody waits longer than needed: a trial that is among the best whatever the others will do goes on at
once, and one that can no longer be is ended at once, so that no more checkpoints are kept than there are seats.

Early values mislead where a setting decides how fast a network learns at first and not how well in the end, as the
learning rate does. So the seats behind the first rung can be spread over the range of one setting: it is cut into as
many equal parts as there are seats, and a trial competes with those of its own part first. Seats of parts that nobody
is in go to the best of the others. At later rungs all compete with all.

The baseline has a seat of its own wherever there are two or more: it reaches the end and the winner is never worse than
it on the validation split. Its seat is one of the 9, of the 5 and of the 3, so this costs no epoch (training it on as
an extra one would cost up to 9 and break the bound of a quarter, 75 of 300).

Source: Jamieson and Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization".
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

Status = Literal["running", "paused", "complete", "pruned", "failed"]


@dataclass(frozen=True, slots=True)
class Halving:
    """The shape of the plan."""

    rungs: tuple[int, ...] = ()  # epochs, ascending, up to the end; (): the end divided by eta, again and again
    eta: int = 3  # one trial in so many of those at a rung goes on, where no `shares` are given
    shares: tuple[Fraction, ...] = ()  # of all trials, how many go on from each rung but the last; falling
    keep_baseline: bool = True  # whether the baseline has a seat of its own
    spread_over: str = ""  # the setting over whose range the seats behind the first rung are spread; "": none


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one trial has come."""

    number: int
    status: Status
    stop: int  # the epoch up to which it may train, or might have: one of the rungs
    curve: Mapping[int, float]  # epoch, from 1 -> value
    place: float = 0.0  # where it lies in the range that seats are spread over, 0 to 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What follows from the standings."""

    promote: tuple[tuple[int, int], ...]  # (number of a paused trial, the rung it may train up to), most urgent first
    prune: tuple[int, ...]  # numbers of paused trials that are out


@dataclass(frozen=True, slots=True)
class Contest:
    """The rules of one study, as `plan` needs them."""

    rungs: tuple[int, ...]
    shares: tuple[Fraction, ...]  # of all trials, how many go on from each rung but the last
    total: int  # trials there will be
    maximize: bool = True
    protected: frozenset[int] = frozenset()  # trials with a seat of their own wherever there are two or more
    spread: bool = False  # whether the seats behind the first rung are spread over the trials' places

    def seats(self, rung: int) -> int:
        """How many trials go on from the rung with this index: 2/5 of 30 trials are 12; at least 1."""
        return max(1, int(self.total * self.shares[rung]))


def rungs_of(halving: Halving, epochs: int) -> tuple[int, ...]:
    """The rungs for trials of so many epochs: the given ones below the end, or the end divided by eta repeatedly.

    Where shares belong to them the last one moves with the end: there is no share for one more.
    """
    if halving.rungs:
        given = halving.rungs[:-1] if halving.shares else halving.rungs
        return (*(rung for rung in given if rung < epochs), epochs)
    rungs = [epochs]
    power = halving.eta
    while epochs // power >= 1:
        if epochs // power < rungs[0]:
            rungs.insert(0, epochs // power)
        power *= halving.eta
    return tuple(rungs)


def contest_of(
    halving: Halving | None,
    epochs: int,
    total: int,
    *,
    maximize: bool = True,
    protected: frozenset[int] = frozenset(),
) -> Contest:
    """The rules for so many trials of so many epochs. None: all of them train to the end."""
    if halving is None:
        return Contest((epochs,), (), total, maximize, protected)
    rungs = rungs_of(halving, epochs)
    shares = halving.shares or tuple(Fraction(1, halving.eta**power) for power in range(1, len(rungs)))
    return Contest(rungs, shares[: len(rungs) - 1], total, maximize, protected, bool(halving.spread_over))


def cost(contest: Contest) -> int:
    """Epochs the plan trains if no trial fails: never more for a total that is reached in several steps."""
    epochs = contest.total * contest.rungs[0]
    for index in range(len(contest.rungs) - 1):
        epochs += contest.seats(index) * (contest.rungs[index + 1] - contest.rungs[index])
    return epochs


def plan(standings: Sequence[Standing], contest: Contest) -> Plan:
    """Who goes on and who is out, given how far everybody has come.

    Seats once given stay given: if `total` is raised later, the new trials compete for the seats that it adds. A trial
    that failed keeps its seat, since its rivals have already been ended. Ties go to the lower number.
    """
    promote: list[tuple[int, int]] = []
    prune: list[int] = []
    unknown = max(0, contest.total - len(standings))  # trials that may still come to the rung
    for index, rung in enumerate(contest.rungs[:-1]):
        seats = contest.seats(index)
        free = seats - sum(s.stop > rung for s in standings)
        waiting = [s for s in standings if s.status == "paused" and s.stop == rung]
        unknown += sum(s.status == "running" and s.stop == rung for s in standings)
        coming = unknown + len(waiting)
        own = contest.protected & {s.number for s in standings} if seats >= 2 else frozenset()
        sure = [s for s in waiting if s.number in own][: max(0, free)]
        settled = {s.number for s in standings if s.status in ("complete", "pruned", "failed") or s.stop > rung}
        reserved = len(own - settled)  # sure ones, and ones still on their way
        rivals = sorted((s for s in waiting if s not in sure), key=lambda s: _rank(s, rung, contest))
        open_seats = max(0, free - reserved)
        still_unknown = unknown - (reserved - len(sure))  # the ones on their way to a seat of their own are no rivals
        certain = max(0, open_seats - still_unknown)
        if contest.spread and index == 0:
            seated = [s for s in standings if s.stop > rung or s.number in own - settled]
            rivals = _spread(rivals, seated, seats)
            certain = 0 if still_unknown else open_seats  # one more can throw the first of a part back among the others
        going = sure + rivals[:certain]
        prune += [s.number for s in rivals[open_seats:]]
        promote += [(s.number, contest.rungs[index + 1]) for s in going]
        unknown = min(max(0, free), coming)
    promote.sort(key=lambda promotion: -promotion[1])  # stable: the deepest first, then the best
    return Plan(tuple(promote), tuple(sorted(prune)))


def _rank(standing: Standing, rung: int, contest: Contest) -> tuple[float, int]:
    value = standing.curve[rung]
    return (-value if contest.maximize else value, standing.number)


def _spread(rivals: Sequence[Standing], seated: Sequence[Standing], parts: int) -> list[Standing]:
    """`rivals`, best first, so that the best of each part of the range comes before all that are not; of a part that
    one of `seated` has, there is no first.
    """
    taken = {_part(s, parts) for s in seated}
    firsts: list[Standing] = []
    others: list[Standing] = []
    for rival in rivals:
        (others if _part(rival, parts) in taken else firsts).append(rival)
        taken.add(_part(rival, parts))
    return firsts + others


def _part(standing: Standing, parts: int) -> int:
    return min(parts - 1, int(standing.place * parts))


@dataclass(frozen=True, slots=True)
class Replay:
    """What the plan would have done with trials whose whole curves are known."""

    winner: int  # index into the curves
    value: float  # its value after the last epoch
    best: float  # the best value any curve ends with: what a full search finds
    epochs: int  # trained by the plan
    full_epochs: int  # trained by a full search


def replay(
    curves: Sequence[Sequence[float]],
    halving: Halving,
    seed: int | None = None,
    *,
    maximize: bool = True,
    places: Sequence[float] = (),
) -> Replay:
    """Simulate the plan on recorded curves: one value per epoch, all of the same length.

    places: of the trials, in the order of their curves; needed where the plan spreads its seats.

    seed: None takes the curves in their order, the first one being the baseline; a seed draws as many of them with
    replacement, in random order (a bootstrap: how the plan does on another sample of trials), without a protected one.
    """
    length = len(curves[0])
    assert all(len(curve) == length for curve in curves), "curves of different lengths cannot be compared"
    order = list(range(len(curves))) if seed is None else random.Random(seed).choices(range(len(curves)), k=len(curves))
    protected = frozenset({0} if seed is None and halving.keep_baseline else ())
    assert places or not halving.spread_over, "a plan that spreads its seats has to know the places"
    contest = contest_of(halving, length, len(order), maximize=maximize, protected=protected)
    standings: dict[int, Standing] = {}

    def train(number: int, stop: int) -> None:
        curve = {epoch: curves[order[number]][epoch - 1] for epoch in range(1, stop + 1)}
        place = places[order[number]] if places else 0.0
        standings[number] = Standing(number, "complete" if stop == length else "paused", stop, curve, place)

    for number in range(len(order)):
        train(number, contest.rungs[0])
    while (step := plan(list(standings.values()), contest)).promote or step.prune:
        for number in step.prune:
            out = standings[number]
            standings[number] = replace(out, status="pruned")
        for number, stop in step.promote:
            train(number, stop)
    ended = [s for s in standings.values() if s.status == "complete"]
    winner = min(ended, key=lambda s: ((-1 if maximize else 1) * s.curve[length], s.number))
    finals = [curves[index][-1] for index in order]
    return Replay(
        winner=order[winner.number],
        value=winner.curve[length],
        best=max(finals) if maximize else min(finals),
        epochs=sum(len(s.curve) for s in standings.values()),
        full_epochs=length * len(order),
    )
