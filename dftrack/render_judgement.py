"""What became of recorded or printed numbers -> the terminal."""

from collections.abc import Mapping

from dftrack.render import number, say, show_table
from dftrack.verification import Published, Verification

TOO_FEW = "too few numbers to check anything"


def show_verification(found: Verification) -> None:
    """What does not follow, each with both numbers; then the counts and what could not be looked at."""
    if found.faults:
        rows = [(claim.name, number(claim.logged, 6), number(claim.computed, 6)) for claim in found.faults]
        show_table("Logged numbers that do not follow", ["metric", "logged", "from the predictions"], rows)
    if found.contradictions:
        show_table("Numbers that contradict each other", ["why"], [(why,) for why in found.contradictions])
    counts = {verdict: sum(claim.verdict == verdict for claim in found.claims) for verdict in _VERDICTS}
    totals = [(_VERDICTS[verdict], str(count)) for verdict, count in counts.items()]
    show_table(f"run {found.run_id}", ["logged numbers", ""], totals)


_VERDICTS = {
    "follows": "follow from the stored predictions",
    "differs": "do not follow",
    "nothing to show it": "are of a split whose predictions are not there",
    "not to be derived": "rest on more than the predictions: not looked at",
}


def show_published(table: Published) -> None:
    """Whether a printed table can be one classifier's, and why not; then the rounding that was assumed."""
    if table.contradictions:
        show_table("This cannot be one classifier's", ["why"], [(why,) for why in table.contradictions])
    elif not table.checked:
        show_table("", ["verdict"], [(f"{TOO_FEW.capitalize()}.",)])
    else:
        share = table.share_fake
        implied = f", and it implies {share.value:.1%} fakes ({share.low:.1%} to {share.high:.1%})" if share else ""
        show_table("", ["verdict"], [(f"This can be one classifier's{implied}.",)])
    say(f"note: {_rounding(table.digits)}; --digits changes that")


def verdict(table: Published) -> str:
    """In a few words."""
    if table.contradictions:
        return "cannot be one classifier's"
    return "can be one classifier's" if table.checked else TOO_FEW


def _rounding(digits: Mapping[str, int]) -> str:
    """In words, how exactly each number was taken."""
    counts = set(digits.values())
    if len(counts) == 1:
        [count] = counts
        return f"taken as rounded to {count} digit{'' if count == 1 else 's'} after the point"
    said = ", ".join(f"{name} {count}" for name, count in digits.items())
    return f"digits after the point that each was taken as rounded to: {said}"
