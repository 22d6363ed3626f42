"""Which model is the released one: a run is promoted when it earns it, and a promotion can be taken back."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from filelock import FileLock, Timeout

from dftrack import gates, logged_model
from dftrack.candidate import Candidate, look_at, look_at_champion
from dftrack.data.folder import Progress
from dftrack.errors import PromotionRefused, SettingError, StoreError, require
from dftrack.gates import Gate, Limits
from dftrack.hearing import judge
from dftrack.learning import metrics
from dftrack.registered import Registered, Version
from dftrack.resolving import ALIAS, MODEL, Resolved, resolve_model, version_problems
from dftrack.runtime import user_name
from dftrack.tracking import Tracker

__all__ = ["ALIAS", "MODEL", "Promotion", "Request", "Resolved", "Rollback", "promote", "resolve_model", "rollback"]

# Tags of a version.
PROMOTION = "dftrack.promotion"  # pending, done
ROLLBACK = "dftrack.rollback"  # pending or done: to which version, when, by whom
REPLACES = "dftrack.replaces"  # the number of the version that the alias pointed at before, "none" if there was none
TARGET = "dftrack.alias"  # for which it was made
LOCK_SECONDS = 1800.0  # a champion may have to be judged again on many pictures
NAMES = re.compile(r"[A-Za-z0-9][\w .-]{0,99}")
ALIASES = re.compile(r"[A-Za-z0-9][\w-]{0,99}")  # MLflow takes no others, and says so only when it is to move one
RESERVED = re.compile(r"latest|v\d+", re.IGNORECASE)  # MLflow's own


# ---- promoting


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody wants to release, and on which terms."""

    run: str  # its id, or the beginning of it
    model: str = MODEL
    alias: str = ALIAS
    limits: Limits = field(default_factory=Limits)
    override: str = ""  # why a gate that fails is to be passed over; "": it is not
    explain: bool = False  # only show the gates

    def __post_init__(self) -> None:
        _check_names(self.model, self.alias)
        require(
            not self.override or bool(self.override.strip()),
            "--override wants the reason in words",
            'for example --override "the old model fails on the new camera"',
        )


@dataclass(frozen=True, slots=True)
class Promotion:
    """What became of a request."""

    outcome: Literal["promoted", "refused", "already", "allowed"]  # allowed: --explain, and nothing stands against it
    run_id: str
    model: str
    alias: str
    gates: tuple[Gate, ...]
    version: int | None  # the one made; for "already" the one it is
    previous: int | None  # that the alias pointed at before

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {
            "outcome": self.outcome,
            "run_id": self.run_id,
            "model": self.model,
            "alias": self.alias,
            "version": self.version,
            "previous": self.previous,
            "gates": [
                {"name": gate.name, "wanted": gate.wanted, "found": gate.found, "passed": gate.passed}
                for gate in self.gates
            ],
        }

    def refusal(self) -> PromotionRefused:
        """What to tell somebody whose run was refused."""
        failed = [gate for gate in self.gates if gate.passed is False]
        names = "; ".join(f"{gate.name}: {gate.found}" for gate in failed)
        firm = any(gate.firm for gate in failed)
        hint = "its files cannot be used: train it again" if firm else '--override "reason" passes over this, on record'
        return PromotionRefused(
            f"run {self.run_id[:12]} does not become {self.model}@{self.alias}: {names}", f"no alias was moved; {hint}"
        )


def promote(
    tracker: Tracker, request: Request, progress: Progress | None = None, say: Callable[[str], None] = lambda text: None
) -> Promotion:
    """Judge a run by every gate; if they let it pass, make a version of its model and let the alias point at it.

    One promotion or rollback in a store at a time: a second one waits (`say` is told), then meets the new champion.
    The alias moves in one step. A version made by a promotion that died before that step is removed by the next one.
    Raises StoreError without such a run, or if the store fails; a refusal is no error here: see `Promotion.refusal`.
    """
    if request.explain:
        return _judged(tracker, request, progress)[0]
    with _alone(tracker, say):
        registered = tracker.registered(request.model)
        _mend(registered)
        found, ours = _judged(tracker, request, progress)
        if found.outcome in ("refused", "already"):
            return found
        if registered.aliases().get(request.alias) != found.previous:
            raise _moved(request.model, request.alias)
        version = registered.create(
            ours.record.run_id,
            key=f"{ours.record.run_id}-{request.alias}-{uuid.uuid4().hex}",
            tags=_tags(request, ours, found),
        )
        if registered.aliases().get(request.alias) != found.previous:  # by another machine on the same server
            registered.delete(version.number)
            raise _moved(request.model, request.alias)
        registered.set_alias(request.alias, version.number)
        registered.set_tags(version.number, {PROMOTION: "done"})
        return Promotion(
            "promoted", found.run_id, found.model, found.alias, found.gates, version.number, found.previous
        )


def _judged(tracker: Tracker, request: Request, progress: Progress | None) -> tuple[Promotion, Candidate]:
    ours = look_at(tracker, request.run)
    champion = look_at_champion(tracker, request.model, request.alias)
    run_id, previous = ours.record.run_id, champion.version.number if champion else None
    if champion is not None and champion.version.run_id == run_id:
        if problems := version_problems(tracker, champion.version):
            changed = (gates.files_whole(problems),)
            return Promotion("refused", run_id, request.model, request.alias, changed, None, previous), ours
        return Promotion("already", run_id, request.model, request.alias, (), previous, previous), ours
    found = tuple(judge(tracker, ours, champion, request.limits, progress))
    passes = gates.allowed(found) or (
        bool(request.override) and not any(gate.firm and gate.passed is False for gate in found)
    )
    outcome: Literal["allowed", "refused"] = "allowed" if passes else "refused"
    return Promotion(outcome, run_id, request.model, request.alias, found, None, previous), ours


def _tags(request: Request, ours: Candidate, found: Promotion) -> dict[str, str]:
    """What a version tells of itself."""
    aucs = {split: metrics.summarise(p.scores, p.labels)["roc_auc"] for split, p in ours.tests().items()}
    tags = {
        PROMOTION: "pending",
        TARGET: request.alias,
        REPLACES: "none" if found.previous is None else str(found.previous),
        "dftrack.run": found.run_id,
        "dftrack.data_digest": ours.digest or "unknown",
        "dftrack.threshold": f"{ours.threshold:g}",
        "dftrack.promoted_by": user_name(),
        "dftrack.promoted_at": _now(),
        "dftrack.gates": json.dumps({gate.name: _outcome(gate) for gate in found.gates}),
        "dftrack.report": f"runs:/{found.run_id}/report/evaluation.html",
    }
    if ours.content:
        tags[logged_model.CONTENT_TAG] = ours.content
    tags |= {f"dftrack.auc.{split}": f"{auc:.4f}" for split, auc in aucs.items() if auc is not None}
    if failed := [gate.name for gate in found.gates if gate.passed is False]:
        tags |= {"dftrack.override": request.override, "dftrack.overridden": ", ".join(failed)}
    return tags


def _outcome(gate: Gate) -> str:
    return "not judged" if gate.passed is None else "passed" if gate.passed else "failed"


# ---- rolling back


@dataclass(frozen=True, slots=True)
class Rollback:
    """An alias that points again at the version it pointed at before."""

    model: str
    alias: str
    left: int  # the version it pointed at
    version: int  # the version it points at now
    run_id: str  # of that version


def rollback(
    tracker: Tracker, model: str = MODEL, alias: str = ALIAS, say: Callable[[str], None] = lambda text: None
) -> Rollback:
    """Let `alias` point again at the version that the present one replaced. Repeated, it goes back one more each time.

    Raises PromotionRefused if there is nothing to go back to, or what is there cannot be used.
    """
    _check_names(model, alias)
    with _alone(tracker, say):
        registered = tracker.registered(model)
        _mend(registered)
        present = registered.at(alias)
        if present is None:
            raise PromotionRefused(f"{model}@{alias} points at no version", "dftrack promote RUN makes one")
        before = _before(registered, present, alias)
        if problems := version_problems(tracker, before):
            raise PromotionRefused(
                f"{before}, which was there before, cannot be used: {problems[0]}", "promote another run instead"
            )
        if registered.aliases().get(alias) != present.number:
            raise _moved(model, alias)
        words = f"to version {before.number}, {_now()}, by {user_name()}"
        registered.set_tags(present.number, {ROLLBACK: f"pending: {words}"})
        registered.set_alias(alias, before.number)
        registered.set_tags(present.number, {ROLLBACK: f"done: {words}"})
        return Rollback(model, alias, present.number, before.number, before.run_id)


def _before(registered: Registered, present: Version, alias: str) -> Version:
    replaced = present.tags.get(REPLACES, "")
    if (made_for := present.tags.get(TARGET, alias)) != alias:
        raise PromotionRefused(
            f"nobody knows what {alias} was before {present}: that version was promoted as {made_for}",
            "promote another run instead",
        )
    if replaced == "none":
        raise PromotionRefused(f"there is nothing before {present}: it was the first", "promote another run instead")
    if not replaced.isdecimal():
        raise PromotionRefused(
            f"nobody knows what was before {present}: it was not promoted by dftrack", "promote another run instead"
        )
    before = registered.number(int(replaced))
    if before is None:
        raise PromotionRefused(
            f"{present.name}/{replaced}, which {present} replaced, has been deleted", "promote another run instead"
        )
    return before


# ---- both


def _moved(model: str, alias: str) -> StoreError:
    return StoreError(f"{model}@{alias} was moved by somebody else meanwhile", "run the command again")


def _mend(registered: Registered) -> None:
    """Finish, or take back, what a promotion or a rollback that died left behind. Only for who holds the lock."""
    for version in registered.versions():
        if version.tags.get(PROMOTION) == "pending":
            if version.aliases:  # it died after the alias was moved
                registered.set_tags(version.number, {PROMOTION: "done"})
            else:
                registered.delete(version.number)
        if (words := version.tags.get(ROLLBACK, "")).startswith("pending: "):
            stayed = version.tags.get(TARGET) in version.aliases
            word = "not done" if stayed else "done"
            registered.set_tags(version.number, {ROLLBACK: f"{word}: {words.removeprefix('pending: ')}"})


@contextmanager
def _alone(tracker: Tracker, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the registry of this store alone; the kernel frees the lock of a process that dies."""
    lock = FileLock(tracker.store.folder / "promotion.lock")
    try:
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            say("another promotion is going on: waiting for its end")
            lock.acquire(timeout=LOCK_SECONDS)
    except Timeout as error:
        raise StoreError(f"another promotion has been going on for {LOCK_SECONDS:.0f} s", "is it stuck?") from error
    except OSError as error:
        raise StoreError(f"cannot lock {tracker.store.folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _check_names(model: str, alias: str) -> None:
    if not NAMES.fullmatch(model):
        raise SettingError(f"--model {model!r} is not a name", "letters, digits, and - _ . inside, at most 100")
    if not ALIASES.fullmatch(alias):
        raise SettingError(f"--alias {alias!r} is not a name", "letters, digits, and - _ inside, at most 100")
    if RESERVED.fullmatch(alias):
        raise SettingError(f"--alias {alias!r} is a name that MLflow keeps for itself", "for example champion")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
