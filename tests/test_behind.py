"""Checkpoints written behind: training goes on, the file holds the moment it was asked for, and nothing goes unnoticed.

Copies of CPU tensors stand for those of a card (tests/test_card.py has one), a writer that stands still for a disk.
"""

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Lock

import pytest
import torch

from dftrack.errors import StoreError
from dftrack.files import write_aside
from dftrack.learning import checkpoint
from dftrack.learning.behind import Behind
from dftrack.learning.checkpoint import Checkpoints
from dftrack.learning.snapshot import Room, Snapshot, look_at
from dftrack.learning.training import NonFiniteError, State
from tests.test_checkpoint import fresh, go_on, same_bits

real_wait = futures.wait
PATIENCE = 60.0  # seconds; a test that waits so long has failed


class SlowDisk:
    """Writes only when `free`: once somebody waits for it, or the test says so."""

    def __init__(self) -> None:
        self.begun, self.free = Event(), Event()
        self.waited = self.at_once = self.most = self.written = 0
        self._counting = Lock()

    @contextmanager
    def write_aside(self, path: Path) -> Iterator[Path]:
        with self._counting:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
        with write_aside(path) as aside:
            aside.write_bytes(b"half of it")
            self.begun.set()
            assert self.free.wait(PATIENCE), "nobody waited for the writer"
            yield aside
        with self._counting:
            self.at_once -= 1
            self.written += 1

    def wait(self, work: Iterable[futures.Future[None]]) -> object:
        self.waited += 1
        self.free.set()
        done, _ = real_wait(work, PATIENCE)
        assert done, "it never ends"
        return done

    def hold(self) -> None:
        self.begun.clear()
        self.free.clear()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    disk = SlowDisk()
    monkeypatch.setattr(checkpoint, "write_aside", disk.write_aside)
    monkeypatch.setattr("dftrack.learning.behind.futures.wait", disk.wait)
    yield disk
    disk.free.set()


def begun(folder: Path, state: State, disk: SlowDisk | None = None) -> Checkpoints:
    """Checkpoints with room for the state. With a disk, one of it is being written."""
    checkpoints = Checkpoints(folder, every_seconds=0, behind=True)
    assert not checkpoints.save_if_due(state), "the first time only makes room"
    settle(checkpoints)
    if disk:
        disk.hold()
        assert checkpoints.save_if_due(state)
        assert disk.begun.wait(PATIENCE)
        disk.waited = 0
    return checkpoints


def settle(checkpoints: Checkpoints) -> None:
    checkpoints._writer.wait()  # leaving the block would give the second state's memory back, too


def listed(folder: Path) -> list[str]:
    return [entry["file"] for entry in json.loads((folder / "checkpoints.json").read_text())]


def restored(folder: Path) -> State:
    state = fresh()
    assert Checkpoints(folder, every_seconds=0).restore(state)
    return state


def test_training_goes_on_while_the_state_of_that_moment_is_written(tmp_path: Path, disk: SlowDisk) -> None:
    state = go_on(fresh(), stop_after=3)
    random = torch.get_rng_state()
    checkpoints = begun(tmp_path, state, disk)
    torch.manual_seed(99)
    go_on(state, stop_after=3)
    assert (state.epoch, state.step, len(state.history)) == (2, 1, 1) and disk.written == 0
    settle(checkpoints)
    wanted = go_on(fresh(), stop_after=3)
    found = restored(tmp_path)
    assert torch.equal(torch.get_rng_state(), random)
    assert same_bits(found, wanted), "steps that came after it are in it"
    assert (found.epoch, found.step, found.history) == (1, 3, [])
    assert torch.equal(found.scores, wanted.scores) and torch.equal(found.loss_sum, wanted.loss_sum)


def test_nothing_is_read_before_the_card_has_copied_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Room.copy

    def queued(room: Room, now: Snapshot) -> Snapshot:
        copied = real(room, now)
        meant = {name: value.clone() for name, value in copied.tensors.items()}
        for value in copied.tensors.values():
            value.fill_(math.nan if value.is_floating_point() else 0)
        return replace(copied, arrive=lambda: [copied.tensors[name].copy_(value) for name, value in meant.items()])

    monkeypatch.setattr(Room, "copy", queued)
    state = go_on(fresh(), stop_after=3)
    checkpoints = begun(tmp_path, state)
    assert checkpoints.save_if_due(state)
    settle(checkpoints)
    assert same_bits(restored(tmp_path), state)


def test_a_file_written_behind_is_the_one_that_is_written_at_once(tmp_path: Path) -> None:
    state = go_on(fresh(), stop_after=7)
    settled = begun(tmp_path / "behind", state)
    assert settled.save_if_due(state)
    settle(settled)
    Checkpoints(tmp_path / "at once", every_seconds=0).save(state)
    (name,) = listed(tmp_path / "behind")
    assert (tmp_path / "behind" / name).read_bytes() == (tmp_path / "at once" / name).read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_killed_anywhere_goes_on_from_what_was_written_behind_to_the_same_bits(
    tmp_path: Path, precision: str
) -> None:
    undisturbed = go_on(fresh(precision=precision))
    state = fresh(precision=precision)
    checkpoints = Checkpoints(tmp_path, every_seconds=0, behind=True)
    for event in range(1, 10):
        go_on(state, stop_after=1)
        saved = checkpoints.save_if_due(state)
        settle(checkpoints)
        if event > 1:
            assert saved
            torch.rand(event)  # the new process stands elsewhere in the global generator
            resumed = fresh(precision=precision)
            assert Checkpoints(tmp_path, every_seconds=0).restore(resumed)
            assert (resumed.epoch, resumed.step) == (state.epoch, state.step)
            assert same_bits(go_on(resumed), undisturbed), f"resuming after event {event} ended elsewhere"
    assert same_bits(go_on(state), undisturbed), "writing behind disturbed the training"


def test_never_are_two_written_at_once_nor_is_one_put_aside_for_later(tmp_path: Path, disk: SlowDisk) -> None:
    state = go_on(fresh(), stop_after=1)
    checkpoints = begun(tmp_path, state, disk)
    for _ in range(3):
        go_on(state, stop_after=1)
        assert not checkpoints.save_if_due(state), "it is not due while another is being written"
    settle(checkpoints)
    assert (disk.most, disk.written) == (1, 1)
    assert checkpoints.save_if_due(state)
    settle(checkpoints)
    assert (disk.most, disk.written) == (1, 2)
    assert listed(tmp_path) == ["epoch-00001-step-0000001.safetensors", "epoch-00001-step-0000004.safetensors"]


def test_a_cards_copying_counts_though_the_call_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = go_on(fresh(), stop_after=1)
    checkpoints = begun(tmp_path, state)
    checkpoints._every = 0.001
    monkeypatch.setattr("dftrack.learning.checkpoint.time.monotonic", lambda: 1e9)
    assert checkpoints.save_if_due(state)
    assert checkpoints._next == 1e9 + 1.25, "25 ms of copying are 2 % of 1.25 s"
    settle(checkpoints)


def test_a_kill_while_one_is_written_leaves_the_older_one(tmp_path: Path, disk: SlowDisk) -> None:
    state = go_on(fresh(), stop_after=1)
    checkpoints = Checkpoints(tmp_path, every_seconds=0)
    disk.free.set()
    checkpoints.save(state)
    checkpoints = begun(tmp_path, go_on(state, stop_after=1), disk)
    assert len(list(tmp_path.glob(".epoch*"))) == 1, "it is half written"
    assert restored(tmp_path).step == 1, "what is not whole was used"
    settle(checkpoints)
    assert restored(tmp_path).step == 2


def test_who_asks_for_a_save_has_both_on_disk(tmp_path: Path, disk: SlowDisk) -> None:
    state = go_on(fresh(), stop_after=1)
    checkpoints = begun(tmp_path, state, disk)
    checkpoints.save(go_on(state, stop_after=1))
    assert (disk.waited, disk.most, disk.written) == (1, 1, 2)
    assert restored(tmp_path).step == 2
    assert listed(tmp_path) == ["epoch-00001-step-0000001.safetensors", "epoch-00001-step-0000002.safetensors"]


def test_nothing_is_written_any_more_where_checkpoints_were_removed(tmp_path: Path, disk: SlowDisk) -> None:
    checkpoints = begun(tmp_path, go_on(fresh(), stop_after=1), disk)
    checkpoints.remove()
    assert (disk.waited, disk.written) == (1, 1), "it was removed while the thread wrote"
    assert list(tmp_path.iterdir()) == []


def test_who_goes_back_gets_the_one_that_was_being_written(tmp_path: Path, disk: SlowDisk) -> None:
    state = go_on(fresh(), stop_after=2)
    checkpoints = begun(tmp_path, state, disk)
    again = fresh()
    assert checkpoints.restore(again) and again.step == 2


def test_leaving_a_training_by_an_error_waits_for_the_writer_too(tmp_path: Path, disk: SlowDisk) -> None:
    checkpoints = begun(tmp_path, go_on(fresh(), stop_after=2), disk)
    with pytest.raises(MemoryError), checkpoints:
        raise MemoryError
    assert disk.written == 1 and restored(tmp_path).step == 2


@pytest.mark.parametrize("asked", ["save_if_due", "not due yet", "save", "the end", "remove", "restore"])
@pytest.mark.parametrize("kind", [StoreError, NonFiniteError])
def test_what_goes_wrong_behind_is_raised_by_what_is_asked_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], asked: str
) -> None:
    state = go_on(fresh(), stop_after=1)
    Checkpoints(tmp_path, every_seconds=0).save(state)
    checkpoints = begun(tmp_path, go_on(state, stop_after=1))

    def full(_tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    kept = state.model.fc2.weight.detach().clone()
    with monkeypatch.context() as patch:
        if kind is StoreError:
            patch.setattr(checkpoint, "save_file", full)
        else:
            with torch.no_grad():
                state.model.fc2.weight[0, 0] = math.nan
        assert checkpoints.save_if_due(state)
        futures.wait([checkpoints._writer._work])
    with torch.no_grad():
        state.model.fc2.weight.copy_(kept)
    checkpoints._next = math.inf if asked == "not due yet" else 0.0
    words = r"No space left" if kind is StoreError else r"fc2\.weight are not finite after epoch 1, step 2"
    with pytest.raises(kind, match=words):
        match asked:
            case "save":
                checkpoints.save(state)
            case "the end":
                settle(checkpoints)
            case "remove":
                checkpoints.remove()
            case "restore":
                checkpoints.restore(fresh())
            case _:
                checkpoints.save_if_due(state)
    assert listed(tmp_path) == ["epoch-00001-step-0000001.safetensors"], "what failed is listed"
    assert not list(tmp_path.glob(".*"))
    settle(checkpoints)  # it is told once
    checkpoints.save(state)
    assert restored(tmp_path).step == 2


def test_an_impatient_ctrl_c_does_not_leave_the_thread_behind() -> None:
    writer, free, done = Behind(), Event(), []

    def work() -> None:
        assert free.wait(PATIENCE)
        done.append("work")
        raise StoreError("no space")

    def press(_work: object) -> None:
        free.set()
        raise KeyboardInterrupt

    writer.begin(work)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dftrack.learning.behind.futures.wait", press)
        with pytest.raises(KeyboardInterrupt):
            writer.wait()
    assert done == ["work"] and not writer.busy, "it went on while the work did"
    with pytest.raises(StoreError):
        writer.wait()  # what went wrong is not lost by it
    writer.wait()


def test_python_does_not_end_before_the_work_does(tmp_path: Path) -> None:
    script = """
import sys, time
from pathlib import Path
from dftrack.learning.behind import Behind
def work():
    time.sleep(0.5)
    Path(sys.argv[1]).write_text("all of it")
Behind().begin(work)
sys.exit(3)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "written")]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (3, "")
    assert (tmp_path / "written").read_text() == "all of it", "the thread was cut off"


def test_the_scalers_numbers_are_those_of_the_moment_and_go_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lie on the card. On a CPU no training has a scaler, so one is put in by hand."""
    monkeypatch.setattr(checkpoint, "set_precision", lambda state, precision: None)
    state = go_on(fresh(), stop_after=1)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=77)
    state.scaler.scale(torch.ones(()))
    state.scaler._growth_tracker.fill_(5)
    wanted = state.scaler.state_dict()
    numbers = {name for name in look_at(state).tensors if name.startswith("scaler.")}
    assert numbers == {"scaler.scale", "scaler._growth_tracker"}, "reading one here waits for the card"
    checkpoints = begun(tmp_path, state)
    assert checkpoints.save_if_due(state)
    state.scaler.update(new_scale=2.0)
    settle(checkpoints)
    again = fresh()
    again.scaler = torch.amp.GradScaler("cpu")
    assert checkpoints.restore(again)
    again.scaler.scale(torch.ones(()))
    assert again.scaler.state_dict() == wanted


def test_room_made_for_another_state_is_not_used() -> None:
    room, state = Room(), fresh()
    room.make(look_at(state))
    assert room.fits(look_at(state))
    go_on(state, stop_after=1)
    assert not room.fits(look_at(state)), "the optimizer has moments now"
    room.make(look_at(state))
    assert room.fits(look_at(state)) and not room.fits(look_at(go_on(fresh(kernel=5), stop_after=1)))
