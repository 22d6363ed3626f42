"""Promotions and rollbacks killed with -9 at each step, and two at once, in children of one process.

Not a test by itself: test_registry.py runs it. Prints one JSON object. Children are forked from a process that has
imported everything; each opens the store itself.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dftrack import logged_model, registered
from dftrack.gates import Limits
from dftrack.learning.detector import Detector
from dftrack.registry import Request, promote, rollback
from dftrack.tracking import Tracker, open_tracker

LIMITS = Limits(pictures=100, ece=0.3)
CHANGES = ("create_registered_model", "create_model_version", "set_registered_model_alias", "set_model_version_tag")


def quick() -> None:
    """The model is tried in this process: a clean one takes seconds, and is tried elsewhere."""
    registered.score_apart = lambda folder, pictures: [
        verdict.score for verdict in Detector.load(folder / logged_model.FOLDER).judge(pictures)
    ]


def in_child(work: Callable[[], None]) -> int:
    """Start `work` in a child; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return child


def died(child: int) -> bool:
    """Wait for a child. Was it killed?"""
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "a child failed"
    return os.WIFSIGNALED(status)


def deadly(tracker: Tracker, step: int, *, after: bool) -> None:
    """Let the process die before or after the change number `step` to the registry."""
    client, count = tracker._client, [0]

    def wrap(name: str) -> None:
        honest = getattr(client, name)

        def call(*arguments: object, **options: object) -> object:
            count[0] += 1
            if count[0] == step and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return honest(*arguments, **options)
            finally:
                if count[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        setattr(client, name, call)

    for name in CHANGES:
        wrap(name)


def kill(store: Path, first: str, second: str) -> dict[str, object]:
    """For each step of the promotion of `second` over `first`, and of the rollback after it: cut, look, mend, look."""
    kills, champions, half, pending = 0, [], 0, 0

    def look(model: str) -> tuple[str, int]:
        """Who is the champion, how many versions are half made, how many rollbacks half told; asked by a child."""
        reader, writer = os.pipe()

        def work() -> None:
            registry = open_tracker(store).registered(model)
            present = registry.at("champion")
            tags = [version.tags for version in registry.versions()]
            open_ends = sum(tag.get("dftrack.promotion") == "pending" for tag in tags)
            open_ends += sum(tag.get("dftrack.rollback", "").startswith("pending") for tag in tags)
            os.write(writer, json.dumps([present.run_id if present else "", open_ends]).encode())

        assert not died(in_child(work))
        run_id, open_ends = json.loads(os.read(reader, 4096))
        os.close(reader)
        os.close(writer)
        return {first: "old", second: "new"}.get(run_id, run_id), open_ends

    def promoted(model: str, run: str, step: int = 0, *, after: bool = False) -> Callable[[], None]:
        def work() -> None:
            quick()
            tracker = open_tracker(store)
            deadly(tracker, step, after=after)
            found = promote(tracker, Request(run=run, model=model, limits=LIMITS))
            assert found.outcome in ("promoted", "already"), found.refusal().message

        return work

    def rolled_back(model: str, step: int = 0, *, after: bool = False) -> Callable[[], None]:
        def work() -> None:
            tracker = open_tracker(store)
            deadly(tracker, step, after=after)
            rollback(tracker, model)

        return work

    for after in (False, True):
        for action in ("promote", "rollback"):
            model = f"{action}-{after}"
            assert not died(in_child(promoted(model, first)))
            step = 1
            while True:
                if action == "rollback":
                    assert not died(in_child(promoted(model, second)))
                    hit = died(in_child(rolled_back(model, step, after=after)))
                else:
                    hit = died(in_child(promoted(model, second, step, after=after)))
                if not hit:
                    break
                kills, step = kills + 1, step + 1
                who, _ = look(model)
                champions.append(who)
                half += who not in ("old", "new")
                assert not died(in_child(promoted(model, second)))  # the next one cleans up, whoever is champion
                who, left = look(model)
                pending += left
                half += who != "new"
                if action == "promote":
                    assert not died(in_child(rolled_back(model)))
    return {"kills": kills, "champions": champions, "half": half, "pending": pending}


def race(store: Path, *runs: str) -> dict[str, object]:
    """All runs are promoted at the same moment, each in a child of its own."""
    start = time.time() + 1.5
    children, pipes = [], []
    for run in runs:
        reader, writer = os.pipe()

        def work(run: str = run, writer: int = writer) -> None:
            quick()
            tracker = open_tracker(store)
            time.sleep(max(0.0, start - time.time()))
            os.write(writer, promote(tracker, Request(run=run, limits=LIMITS)).outcome.encode())

        children.append(in_child(work))
        pipes.append((reader, writer))
    assert not any(died(child) for child in children)
    return {"outcomes": [os.read(reader, 100).decode() for reader, _ in pipes]}


if __name__ == "__main__":
    what, store, *runs = sys.argv[1:]
    print(json.dumps({"kill": kill, "race": race}[what](Path(store), *runs)))
