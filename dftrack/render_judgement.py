"""What became of recorded or printed numbers -> the terminal."""

from dftrack.render import number, show_table
from dftrack.verification import Published, Verification


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
    """Whether a printed table can be one classifier's, and why not."""
    if table.contradictions:
        show_table("This cannot be one classifier's", ["why"], [(why,) for why in table.contradictions])
        return
    share = table.share_fake
    implied = f", and it implies {share.value:.1%} fakes ({share.low:.1%} to {share.high:.1%})" if share else ""
    show_table("", ["verdict"], [(f"This can be one classifier's{implied}.",)])
