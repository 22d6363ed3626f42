"""A training done again -> the terminal: what differs before it, and the verdict after it."""

from dftrack.render import say, show_table
from dftrack.rerun import Rebuilt, Verdict


def say_rebuilt(rebuilt: Rebuilt) -> None:
    """What is about to be trained and what differs from the recorded run, on standard error."""
    run = rebuilt.run
    say(f"again     run {run.run_id[:12]} ({run.name}), threads: {rebuilt.threads}")
    for change in rebuilt.changes:
        say(f"differs   {change.kind}: {change}")
    for note in rebuilt.notes:
        say(f"note      {note}")
    if not rebuilt.changes:
        say("differs   nothing that was recorded: settings, data, code, versions and machine are the same")


def show_verdict(verdict: Verdict) -> None:
    """A table of what was compared, and the verdict, on standard output."""
    found = verdict.likeness
    rows = [("the same", text) for text in found.equal] + [("not the same", text) for text in found.unequal]
    rows += [("differs", f"{change.kind}: {change}") for change in verdict.changes]
    rows += [("judged by", found.method)] if found.method else []
    rows += [("note", text) for text in (*verdict.notes, *found.notes)]
    show_table(f"Run {verdict.run_id[:12]} against run {verdict.of[:12]}: {found.word}", ["", ""], rows)
