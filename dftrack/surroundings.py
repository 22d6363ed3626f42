"""What has changed around a recorded run: its settings, the code, the libraries, the machine, and what each may do."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dftrack.config import Config, flatten
from dftrack.redaction import scrub
from dftrack.runtime import difference_from, provenance
from dftrack.tracking import RunRecord, Tracker

DIFF = "provenance/uncommitted.diff.txt"
DECIDING = ("dftrack/learning/", "dftrack/data/", "dftrack/experiment.py", "dftrack/recording.py", "dftrack/runtime.py")
MEANING = {
    "train.seed": "other initial weights, another order of the data and other dropout",
    "run.threads": "sums are split among threads, so the last digits differ and grow",
    "run.device": "other kernels add in another order",
    "run.precision": "numbers are rounded otherwise",
    "train.compile": "other kernels, and another draw of dropout",
    "train.batch_size": "other batches, another number of steps",
    "data.image_size": "other pixels",
    "data.source": "read from elsewhere; the digest says whether they are the same pictures",
    "version.torch": "its kernels may compute the last digits otherwise",
    "version.numba": "may compile the same walk over the maps otherwise",
    "version.pillow": "may decode a picture otherwise",
    "version.simplejpeg": "may decode a picture otherwise",
    "version.numpy": "may order or sum otherwise",
    "machine.processor": "another processor may use other kernels",
    "machine.gpu": "another card may use other kernels",
}
IDLE = ("machine.host", "machine.memory_gib", "machine.threads")  # says nothing, or is said by run.threads
FILE = re.compile(r"^diff --git a/(.+?) b/", re.MULTILINE)

Kind = Literal["setting", "code", "version", "machine", "data"]


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was so when the run was recorded and is otherwise now."""

    kind: Kind
    name: str
    before: str
    after: str
    meaning: str = ""  # what it may do to the numbers

    def __str__(self) -> str:
        text = f"{self.name} {self.before} -> {self.after}" if self.before or self.after else self.name
        return f"{text}: {self.meaning}" if self.meaning else text


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Everything that differs, and the code's own difference as text."""

    changes: tuple[Change, ...]
    diff: str  # of the code, from what the run was trained with to what is here; "" if it is the same or unknown


def surroundings(tracker: Tracker, run: RunRecord, config: Config, resolved: Mapping[str, object]) -> Surroundings:
    """Compare what `run` recorded with `config`, with `resolved` (run.device, ...) and with this process."""
    changes = list(_settings(run.settings, {**flatten(config), **resolved}))
    now = provenance()
    code, diff = _code(tracker, run)
    changes += code
    for kind, prefix, here in (("version", "version.", now.versions), ("machine", "machine.", now.machine)):
        for name in sorted({tag for tag in run.tags if tag.startswith(prefix)} | {f"{prefix}{name}" for name in here}):
            before, after = run.tags.get(name), here.get(name.removeprefix(prefix))
            if name not in IDLE and before != after and before is not None:
                changes.append(Change(kind, name, before, after or "not there", MEANING.get(name, "")))  # type: ignore[arg-type]
    return Surroundings(tuple(changes), diff)


def _settings(before: Mapping[str, str], after: Mapping[str, object]) -> Sequence[Change]:
    return [
        Change("setting", name, before[name], scrub(str(value)), MEANING.get(name, ""))
        for name, value in after.items()
        if name in before and before[name] != scrub(str(value))
    ]


def _code(tracker: Tracker, run: RunRecord) -> tuple[list[Change], str]:
    """The files that differ between the code of the run (commit and uncommitted changes) and the code here."""
    commit = run.tags.get("mlflow.source.git.commit", "")
    if not commit:
        return [Change("code", "code", "", "", "the run recorded no commit, so nobody can tell whether it changed")], ""
    here = difference_from(commit)
    if here is None:
        return [Change("code", f"commit {commit[:12]}", "", "", "it is not in this repository: compare by hand")], ""
    then = ""
    if run.tags.get("dftrack.uncommitted") == "yes":
        then = tracker.download(run.run_id, DIFF).read_text(errors="replace")
    before, after = _by_file(then), _by_file(scrub(here))
    files = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
    files = [name for name in files if name.startswith("dftrack/")]
    if not files:
        return [], ""
    deciding = [name for name in files if name.startswith(DECIDING)]
    what = f"{len(files)} files of dftrack" if len(files) > 1 else files[0]
    meaning = f"{', '.join(deciding)} may decide numbers" if deciding else "none of them decides numbers"
    diff = "\n".join(f"# {name}, then:\n{before.get(name, '')}\n# now:\n{after.get(name, '')}" for name in files)
    return [Change("code", f"code since {commit[:12]}", "", "", f"{what} differ; {meaning}")], diff


def _by_file(diff: str) -> dict[str, str]:
    """Name -> what a git diff says of that file, without the hashes of its content."""
    parts = re.split(r"^(?=diff --git )", diff, flags=re.MULTILINE)
    return {
        found[1]: re.sub(r"^index .*\n", "", part, flags=re.MULTILINE).rstrip()
        for part in parts
        if (found := FILE.match(part))
    }
