"""`dftrack runs`: what the store's file says is what MLflow says, and it comes without loading MLflow."""

import csv
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from dftrack.conditions import Condition
from dftrack.errors import SettingError, StoreError
from dftrack.listing import Listing, Query, Recorded, find_runs, known_names, open_source
from dftrack.run_index import KINDS, RunIndex, database_of, open_index, undefined_names
from dftrack.tracking import RunRecord, Tracker, open_tracker

INFINITY = 1.7976931348623157e308  # as MLflow stores it


@pytest.fixture(scope="module")
def recorded(template_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven runs of all fates, one of them deleted, in the order one to seven."""
    store = tmp_path_factory.mktemp("recorded") / "store"
    store.mkdir()
    shutil.copy2(template_store / "mlflow.db", store / "mlflow.db")
    tracker = open_tracker(store)
    fates = ("FINISHED", "FINISHED", "KILLED", "FAILED", "", "FINISHED", "FINISHED")
    for number, status in enumerate(fates, start=1):
        run = tracker.start_run(
            f"run {number}",
            key=f"key {number}",
            settings={"train.learning_rate": 10.0**-number, "train.seed": number, "train.optimizer": "adam"},
            tags={"dftrack.kind": "trial" if number % 2 else "baseline", "user": "me", "note": "a 'quoted' \"word\""},
        )
        run.log_epoch(1, {"val/roc_auc": 0.5 + number / 20, "train/loss": 1 / number})
        if number == 6:
            run.log_epoch(2, {"val/roc_auc": None, "train/loss": 0.1})
        run.log_metrics({"test-dev/roc_auc": None if number == 2 else 0.9 - number / 20})
        if status:
            run.finish(status, end="pruned" if status == "KILLED" else "")
        if number == 7:
            tracker.delete_run(run.run_id)
    _set_times(store)
    return store


def _set_times(store: Path) -> None:
    """A minute between starts: within one millisecond the order would be that of random ids."""
    with closing(sqlite3.connect(store / "mlflow.db")) as raw:
        for number in range(1, 8):
            start = 1_700_000_000_000 + 60_000 * number
            raw.execute(
                "update runs set start_time = ?, end_time = ? where name = ?", (start, start + 1500, f"run {number}")
            )
        for name, value, is_nan in (("odd/nan", 0.0, 1), ("odd/inf", INFINITY, 0), ("odd/-inf", -INFINITY, 0)):
            raw.execute(
                "insert into latest_metrics (key, value, timestamp, step, is_nan, run_uuid) "
                "select ?, ?, 1, 0, ?, run_uuid from runs where name = 'run 1'",
                (name, value, is_nan),
            )
        raw.commit()


def asked(store: Path, **query: object) -> Listing:
    with open_source(store) as source:
        return find_runs(source, Query(**query))


def named(store: Path, **query: object) -> list[str]:
    return [str(row[0]).removeprefix("run ") for row in asked(store, columns=["name"], **query).rows]


def where(*texts: str) -> list[Condition]:
    return [Condition.read(text) for text in texts]


def test_the_file_and_mlflow_give_the_same_runs_settings_metrics_and_tags(recorded: Path) -> None:
    records: list[RunRecord] = open_tracker(recorded).runs()
    with open_source(recorded) as index:
        assert isinstance(index, RunIndex)
        lines = index.lines()
        assert [line.run_id for line in lines] == [run.run_id for run in records]
        for line, run in zip(lines, records, strict=True):
            assert (line.name, line.status) == (run.name, run.status)
            assert (line.start_time, line.end_time) == (run.start_time, run.end_time)
        through = Recorded(records)
        for kind in KINDS:
            names = through.names(kind)
            assert set(names) <= set(index.names(kind)) and len(names) > 2
            for name in names:
                mine = {run: value for run, value in index.values(kind, name).items() if run in set(through._runs)}
                assert str(sorted(mine.items())) == str(sorted(through.values(kind, name).items())), name


def test_filters_order_and_columns_are_the_same_through_mlflow(recorded: Path) -> None:
    through = Recorded(open_tracker(recorded).runs())
    for query in (
        Query(),
        Query(where=where("train.learning_rate<1e-2"), sort=["-test-dev/roc_auc"]),
        Query(kinds=["trial"], statuses=["pruned", "FINISHED"], sort=["train/loss"], limit=2),
        Query(columns=["run_id", "test-dev/roc_auc", "seconds", "user"]),
    ):
        with open_source(recorded) as index:
            assert str(find_runs(index, query)) == str(find_runs(through, query)), query


def test_deleted_runs_and_other_experiments_are_left_out(recorded: Path) -> None:
    open_tracker(recorded, "another").start_run("stranger", key="x", settings={}, tags={}).finish("FINISHED")
    assert named(recorded) == ["6", "5", "4", "3", "2", "1"]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["train.learning_rate<1e-3"], "654"),
        (["train.learning_rate>=0.001", "train.seed!=2"], "31"),
        (["test-dev/roc_auc>=0.75"], "31"),
        (["test-dev/roc_auc=undefined"], "2"),
        (["test-dev/roc_auc!=0.85"], "6543"),
        (["val/roc_auc = undefined"], "6"),
        (["odd/nan=nan"], "1"),
        (["odd/inf>1e300"], "1"),
        (["odd/inf<1e300"], ""),
        (["train.optimizer==adam", "kind=baseline"], "642"),
        (["dftrack.kind=baseline", "status=FINISHED"], "62"),
        (["name~RUN 5"], "5"),
        (['note="a \'quoted\' "word""'], "654321"),
        (["seconds<2"], "64321"),
        (["started>=2023-11-14", "started<2023-11-16"], "654321"),
        (["started>=2023"], "654321"),
        (["started<2023"], ""),
        (["started>2023-11-01", "started<=2023-11"], "654321"),
        (["ended=2023"], "64321"),
        (["ended!=2023-11"], ""),
        (["started~-11-"], "654321"),
        (["train.optimizer<3"], ""),
        (["end=pruned"], "3"),
    ],
)
def test_conditions_choose_runs(recorded: Path, conditions: list[str], expected: str) -> None:
    conditions = [text.replace("note", "mlflow.note.content") for text in conditions]
    assert "".join(named(recorded, where=where(*conditions))) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (["-test-dev/roc_auc"], "134562"),
        (["test-dev/roc_auc"], "654312"),
        (["train.learning_rate"], "654321"),
        (["-odd/inf"], "654321"),
        (["kind", "-train.seed"], "642531"),
    ],
)
def test_runs_are_sorted_and_what_has_no_number_comes_last(recorded: Path, order: list[str], expected: str) -> None:
    assert "".join(named(recorded, sort=order)) == expected


def test_kinds_statuses_and_limits(recorded: Path) -> None:
    assert named(recorded, kinds=["trial"]) == ["5", "3", "1"]
    assert named(recorded, statuses=["running", "pruned"]) == ["5", "3"]
    assert named(recorded, limit=2) == ["6", "5"]
    nothing = asked(recorded, kinds=["basline"])
    assert (nothing.found, nothing.kinds) == (0, ("baseline", "trial"))
    assert asked(recorded, limit=2).found == 6
    with pytest.raises(SettingError, match="--limit must be 0"):
        asked(recorded, limit=-1)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("train.lr", "train.learning_rate"),
        ("roc_auc", "test-dev/roc_auc or val/roc_auc"),
        ("test-dev/auc", "test-dev/roc_auc"),
        ("dftrack.knd", "dftrack.kind"),
        ("statsu", "status"),
        ("zzz", "dftrack runs --names"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_right_one(recorded: Path, name: str, meant: str) -> None:
    for query in ({"sort": [f"-{name}"]}, {"columns": [name]}, {"where": where(f"{name}>0")}):
        with pytest.raises(SettingError) as caught:
            asked(recorded, **query)
        assert repr(name) in caught.value.message and meant in caught.value.hint, caught.value.hint


def test_a_status_that_does_not_exist_is_refused(recorded: Path) -> None:
    with pytest.raises(SettingError) as caught:
        asked(recorded, statuses=["finishd"])
    assert caught.value.hint == "did you mean FINISHED?"


@pytest.mark.parametrize("text", ["", "train.seed", "=3", "train.seed=", "<"])
def test_a_condition_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--where wants NAME"):
        Condition.read(text)


@pytest.mark.parametrize("value", ["yesterday", "20231114", "2023-11-14T22:15Z", "14.11.2023"])
def test_a_time_that_is_none_is_refused_instead_of_fitting_no_run(recorded: Path, value: str) -> None:
    with pytest.raises(SettingError, match="--where started wants a time") as caught:
        named(recorded, where=where(f"started>={value}"))
    assert "2026-03-01" in caught.value.hint


def test_the_minutes_of_a_time_may_stand_behind_a_t(recorded: Path) -> None:
    [clock] = asked(recorded, columns=["started"], where=where("name=run 4")).rows[0]
    minute = str(clock)[:16]
    for text in (minute, minute.replace(" ", "T")):
        assert named(recorded, where=where(f"started>={text}")) == ["6", "5", "4"], text


def test_a_setting_that_no_run_recorded_may_still_be_asked_for(recorded: Path) -> None:
    assert named(recorded, where=where("model.dropout>0")) == []
    assert asked(recorded, columns=["model.dropout"], limit=1).rows == ((None,),)


def test_names_in_the_undefined_tag_are_read_with_their_epochs() -> None:
    assert undefined_names("a@2, a@10, b, c@d") == {"a": 10, "b": 0, "c@d": 0}


def run_dftrack(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dftrack", "runs", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200", **environment}
    )


def test_the_command_gives_a_table_json_and_csv(recorded: Path) -> None:
    said = run_dftrack("--store", recorded, "--sort", "-test-dev/roc_auc", "--where", "train.seed<4")
    assert said.returncode == 0, said.stderr
    rows = [line for line in said.stdout.splitlines() if "run " in line]
    assert [row.split("run ")[1][0] for row in rows] == ["1", "3", "2"] and "undefined" in rows[2]
    assert said.stderr == "3 of 6 runs\n"
    result = json.loads(run_dftrack("--store", recorded, "--json", "--columns", "odd/nan,odd/inf", "--limit", 0).stdout)
    assert [list(run.values())[1:] for run in result["runs"]][-2:] == [[None, None], ["nan", "inf"]]
    assert (result["found"], result["columns"]) == (6, ["odd/nan", "odd/inf"])
    rows = list(csv.DictReader(io.StringIO(run_dftrack("--store", recorded, "--csv").stdout)))
    assert [row["name"] for row in rows] == [f"run {number}" for number in (6, 5, 4, 3, 2, 1)]
    assert float(rows[0]["test-dev/roc_auc"]) == 0.9 - 6 / 20 and len(rows[0]["run_id"]) == 32
    names = json.loads(run_dftrack("--store", recorded, "--names", "--json").stdout)
    assert "train.seed" in names["setting"] and "odd/inf" in names["metric"] and "dftrack.end" in names["tag"]
    rows = list(csv.DictReader(io.StringIO(run_dftrack("--store", recorded, "--names", "--csv").stdout)))
    assert rows == [{"kind": kind, "name": name} for kind, of_kind in names.items() for name in of_kind]


def test_mistakes_have_exit_codes(recorded: Path, tmp_path: Path) -> None:
    for code, words in (
        (2, ("--store", recorded, "--where", "train.lr<3")),
        (2, ("--store", recorded, "--csv", "--json")),
        (4, ("--store", tmp_path)),
    ):
        said = run_dftrack(*words)
        assert said.returncode == code and said.stderr.startswith("error:"), said.stderr


def test_neither_the_list_nor_its_errors_load_a_heavy_library(recorded: Path) -> None:
    code = (
        "import sys\nfrom dftrack.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('heavy:', *sorted({m.partition('.')[0] for m in sys.modules} & "
        "{'mlflow', 'torch', 'numpy', 'sqlalchemy', 'optuna', 'sklearn', 'pandas'}))"
    )
    for words in (["--csv"], ["--where", "nonsense<3"], []):
        command = [sys.executable, "-c", code, "runs", "--store", str(recorded), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.stdout.splitlines()[-1] == "heavy:", done.stdout + done.stderr


def test_a_file_is_only_read(recorded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "store"
    copy.mkdir()
    with closing(sqlite3.connect(recorded / "mlflow.db")) as raw, closing(sqlite3.connect(copy / "mlflow.db")) as other:
        raw.backup(other)
    before = (copy / "mlflow.db").read_bytes()
    assert len(named(copy)) == 6
    assert (copy / "mlflow.db").read_bytes() == before
    with open_index(copy / "mlflow.db") as index:
        assert index is not None
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            index._raw.execute("delete from runs")


def test_a_run_that_is_written_meanwhile_is_seen(store: Path) -> None:
    tracker = open_tracker(store)
    assert asked(store).all == 0
    run = tracker.start_run("one", key="one", settings={"train.seed": 1}, tags={})
    run.log_epoch(1, {"val/roc_auc": 0.5})  # lies in the write-ahead log
    assert asked(store, columns=["val/roc_auc"]).rows == ((0.5,),)


def test_a_file_of_another_schema_is_left_to_mlflow(recorded: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as raw:
        raw.execute("create table runs (run_uuid text)")
    with open_index(tmp_path / "mlflow.db") as index:
        assert index is None
    with pytest.raises(StoreError, match="not an MLflow database"), open_source(tmp_path):
        pass
    (tmp_path / "mlflow.db").write_bytes(b"nonsense" * 500)
    with pytest.raises(StoreError, match="not a database"), open_source(tmp_path):
        pass


def test_other_stores_are_asked_through_the_tracker(
    recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{recorded}/mlflow.db")
    assert database_of(tmp_path) == (recorded / "mlflow.db").resolve()
    assert len(named(tmp_path)) == 6
    expected: Tracker = open_tracker(recorded)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert database_of(tmp_path) is None
    monkeypatch.setattr("dftrack.tracking.open_tracker", lambda store: expected)
    with open_source(tmp_path) as source:
        assert isinstance(source, Recorded)
        assert known_names(source)["setting"] == ["train.learning_rate", "train.optimizer", "train.seed"]
