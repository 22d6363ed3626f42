"""Study files: what is read, and that every refusal names the line."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dftrack.config import SEEDS, Config, flatten
from dftrack.errors import SettingError
from dftrack.study.definition import find_study_file
from dftrack.study.file import parse_study, read_study
from dftrack.study.finals import unused_seeds
from dftrack.study.fingerprint import differences, fingerprint
from dftrack.study.halving import cost
from dftrack.study.space import Choice, Float, Int, points, size
from dftrack.study.toml_lines import parse_toml

SPACE = "[space]\nmodel.dropout = { low = 0.0, high = 0.7 }\n"
STUDIES = Path(__file__).parents[1] / "studies"


def test_the_default_study_is_the_promised_one() -> None:
    study = read_study(STUDIES / "default.toml")
    assert study.space == {
        "train.learning_rate": Float(1e-5, 1e-2, log=True),
        "model.dropout": Float(0.0, 0.7),
        "model.kernel_size": Choice((3, 5, 7)),
    }
    assert (study.metric, study.direction, study.trials, study.rungs) == ("val/roc_auc", "maximize", 30, (1, 3, 6, 10))
    baseline = flatten(Config())
    assert study.enqueue == ({name: baseline[name] for name in study.space},), "trial 0 must be the baseline"
    assert study.protects_baseline


@pytest.mark.parametrize("file", sorted(STUDIES.glob("*.toml")), ids=lambda file: file.stem)
def test_every_study_that_comes_with_dftrack_is_sound(file: Path) -> None:
    study = read_study(file)
    assert study.name == file.stem, "a study is found by its file's name: the two should agree"
    assert pickle.loads(pickle.dumps(study)) == study, "workers get the study through a pipe"
    for point in study.enqueue:
        study.config(point)


def test_the_grid_has_as_many_points_as_its_file_says() -> None:
    study = read_study(STUDIES / "grid.toml")
    assert size(study.space) == study.trials == len(list(points(study.space)))


@pytest.mark.parametrize(("seed", "others"), [(0, [1, 2, 3]), (SEEDS - 2, [SEEDS - 1, 0, 1])])
def test_the_final_trainings_have_seeds_that_the_search_did_not_use(seed: int, others: list[int]) -> None:
    """Also where the search's own is the last one there is: it must not fail after the whole search."""
    study = parse_study(SPACE).revised({"train.seed": seed})
    assert unused_seeds(study) == others
    for other in others:
        study.config({"train.seed": other})


# Text, the line of the culprit, words of the message, words of the hint.
REFUSED = {
    "unknown key": ("metrik = 'val/roc_auc'\n" + SPACE, 1, "unknown key 'metrik'", "did you mean metric?"),
    "unknown setting": (
        "\n[space]\n# a\nmodel.kernel = [3, 5]\n",
        4,
        "there is no setting 'model.kernel'",
        "model.kernel_size",
    ),
    "setting without section": (
        "[space]\nlearning_rate = [1.0, 2.0]\n",
        2,
        "no setting 'learning_rate'",
        "train.learning_rate",
    ),
    "unknown part of a range": (
        "[space]\nmodel.dropout = { low = 0.0, hihg = 0.5 }\n",
        2,
        "unknown key 'hihg'",
        "did you mean high?",
    ),
    "range without end": ("[space]\nmodel.dropout = { low = 0.0 }\n", 2, "the range of model.dropout has no high", ""),
    "empty range": ("[space]\nmodel.dropout = { low = 0.5, high = 0.5 }\n", 2, "empty: low is 0.5, high is 0.5", ""),
    "reversed range": ("[space]\nmodel.dropout = { low = 0.5, high = 0.1 }\n", 2, "is empty", ""),
    "even kernel": ("[space]\nmodel.kernel_size = [3, 4]\n", 2, "must be odd and from 1 to 15, got 4", "padded"),
    "even kernel in a range": ("[space]\nmodel.kernel_size = { low = 3, high = 7 }\n", 2, "got 4", ""),
    "value out of range": ("[space]\nmodel.dropout = { low = 0.0, high = 1.0 }\n", 2, "[0, 1), got 1.0", ""),
    "log from zero": (
        "[space]\ntrain.weight_decay = { low = 0, high = 1, log = true }\n",
        2,
        "logarithm from 0",
        "above 0",
    ),
    "log and step": (
        "[space]\nmodel.dropout = { low = 0.1, high = 0.5, log = true, step = 0.1 }\n",
        2,
        "exclude each other",
        "",
    ),
    "step that misses the end": (
        "[space]\nmodel.dropout = { low = 0.0, high = 0.5, step = 0.2 }\n",
        2,
        "do not lead from 0.0 to 0.5",
        "0.4",
    ),
    "fraction of a whole": ("[space]\ntrain.batch_size = { low = 2.5, high = 8 }\n", 2, "whole number, got 2.5", ""),
    "text for a number": ("[space]\nmodel.dropout = ['0.5', 0.1]\n", 2, "must be a number, got '0.5'", ""),
    "infinite": ("[space]\ntrain.learning_rate = { low = 0.1, high = inf }\n", 2, "finite number, got inf", ""),
    "range of words": ("[space]\ntrain.optimizer = { low = 1, high = 2 }\n", 2, "has no order", "list the choices"),
    "unknown word": ("[space]\ntrain.optimizer = ['adam', 'adma']\n", 2, "one of adam, adamw, sgd, got 'adma'", ""),
    "same choice twice": ("[space]\nmodel.kernel_size = [3, 5, 3]\n", 2, "the choice 3 twice", ""),
    "single choice": ("[space]\nmodel.kernel_size = [3]\n", 2, "only the choice 3", "[base]"),
    "fixed value": ("[space]\nmodel.kernel_size = 3\n", 2, "one value: nothing to search", "low ="),
    "list in a list": ("[space]\nmodel.kernel_size = [[3], [5]]\n", 2, "must be one value, got [3]", ""),
    "nothing to search": ("name = 'a'\n", 1, "nothing to search", "[space]"),
    "same setting twice": ('[space]\nmodel.dropout = [0.1, 0.2]\n"model.dropout" = [0.1, 0.2]\n', 3, "given twice", ""),
    "same key twice": (
        "[space]\nmodel.dropout = [0.1, 0.2]\nmodel.dropout = [0.3, 0.4]\n",
        3,
        "not valid TOML",
        "toml.io",
    ),
    "searched and set": ("[base]\nmodel.dropout = 0.1\n" + SPACE, 4, "set in [base] as well", ""),
    "data": ("[space]\ndata.source = ['a', 'b']\n", 2, "data.source cannot be searched", ""),
    "leaks": ('[space]\ndata.leaks = ["leave-out", "allow"]\n', 2, "data.leaks cannot be searched: it decides", ""),
    "epochs": ("[space]\ntrain.epochs = [3, 10]\n", 2, "train.epochs cannot be searched: it decides", ""),
    "seed": ("[space]\ntrain.seed = { low = 0, high = 99 }\n", 2, "luckiest seed", ""),
    "device": ("[space]\ntrain.device = ['cpu', 'cuda']\n", 2, "train.device cannot be searched", ""),
    "image too small": ("[space]\ndata.image_size = [4, 64]\n", 2, "at least 8 pixels, got 4", "halves"),
    "base no run could have": ("[base]\ntrain.batch_size = 1\n" + SPACE, 2, "from 2 to 65536, got 1", ""),
    "unknown base": ("[base]\ntrain.epoch = 1\n" + SPACE, 2, "no setting 'train.epoch'", "train.epochs"),
    "test split": (
        "metric = 'test-dev/roc_auc'\n" + SPACE,
        1,
        "got 'test-dev/roc_auc'",
        "may not look at a test split",
    ),
    "wrong way": ("metric = 'val/loss'\ndirection = 'maximize'\n" + SPACE, 2, "better the lower", ""),
    "no trials": ("trials = 0\n" + SPACE, 1, "trials must be a whole number from 1 on, got 0", ""),
    "trials as text": ("trials = 'many'\n" + SPACE, 1, "got 'many'", ""),
    "unknown sampler": ("sampler = 'tpee'\n" + SPACE, 1, "one of tpe, random, grid", "did you mean tpe?"),
    "grid without end": ("sampler = 'grid'\n" + SPACE, 3, "a grid needs finite values for model.dropout", "step"),
    "name with a slash": ("name = '../x'\n" + SPACE, 1, "name must be", ""),
    "baseline outside": (
        "enqueue = 'baseline'\n[space]\nmodel.dropout = [0.1, 0.2]\n",
        1,
        "model.dropout = 0.5 is outside",
        "",
    ),
    "point outside": (SPACE + "[[enqueue]]\nmodel.dropout = 0.9\n", 3, "model.dropout = 0.9 is outside", "widen"),
    "point not searched": (
        SPACE + "[[enqueue]]\ntrain.batch_size = 8\n",
        4,
        "train.batch_size is not searched",
        "[base]",
    ),
    "point twice": (SPACE + "[[enqueue]]\nmodel.dropout = 0.2\n[[enqueue]]\nmodel.dropout = 0.2\n", 5, "twice", ""),
    "spread over what is not searched": (
        SPACE + '[pruning]\nspread_over = "model.dropou"\n',
        4,
        "spread_over must be one of",
        "did you mean model.dropout?",
    ),
    "rungs not ascending": (SPACE + "[pruning]\nrungs = [3, 1, 10]\n", 4, "ascending epochs", ""),
    "rungs off the end": (
        SPACE + "[pruning]\nrungs = [1, 3]\n",
        4,
        "must be the last epoch (10), got 3",
        "train.epochs",
    ),
    "eta of one": (SPACE + "[pruning]\neta = 1\n", 4, "from 2 on, got 1", ""),
    "shares without rungs": (
        SPACE + "[pruning]\nshares = [0.3]\n",
        4,
        "there are 1 shares for 0 rungs",
        "for each rung but the last",
    ),
    "too few shares": (SPACE + "[pruning]\nrungs = [1, 3, 10]\nshares = [0.3]\n", 5, "1 shares for 3 rungs", ""),
    "shares that do not fall": (
        SPACE + "[pruning]\nrungs = [1, 3, 10]\nshares = [0.3, 0.3]\n",
        5,
        "shares must fall",
        "",
    ),
    "a share of one": (SPACE + "[pruning]\nrungs = [1, 10]\nshares = [1]\n", 5, "between 0 and 1", ""),
    "shares and eta": (
        SPACE + "[pruning]\neta = 3\nrungs = [1, 10]\nshares = [0.3]\n",
        6,
        "say the same in two ways",
        "",
    ),
    "eta without pruning": (SPACE + "[pruning]\nkind = 'none'\neta = 3\n", 5, "means nothing without pruning", ""),
    "unknown pruning": (SPACE + "[pruning]\nkind = 'hyperband'\n", 4, "one of halving, none", ""),
    "no TOML": ("name = \n" + SPACE, 1, "not valid TOML", ""),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_study_that_cannot_work_is_refused_with_its_line(case: str) -> None:
    text, line, message, hint = REFUSED[case]
    with pytest.raises(SettingError) as caught:
        parse_study(text, "my.toml")
    assert caught.value.message.startswith(f"my.toml:{line}: "), f"wrong place: {caught.value.message}"
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_combination_that_no_run_could_have_is_refused_though_each_value_is_fine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dftrack.config import vary as real
    from dftrack.study import file

    def vary(config, changes):  # type: ignore[no-untyped-def]
        if changes.get("model.dropout") == 0.7 and changes.get("train.batch_size") == 64:
            raise SettingError("too much of both")
        return real(config, changes)

    monkeypatch.setattr(file, "vary", vary)
    with pytest.raises(SettingError, match=r"my.toml:1: no run could have model.dropout = 0.7, train.batch_size = 64"):
        parse_study(SPACE + "train.batch_size = [32, 64]\n", "my.toml")


def test_settings_can_be_written_dotted_quoted_or_as_tables() -> None:
    dotted = parse_study("[space]\nmodel.dropout = [0.1, 0.2]")
    quoted = parse_study('[space]\n"model.dropout" = [0.1, 0.2]')
    nested = parse_study("[space.model]\ndropout = [0.1, 0.2]")
    assert dotted.space == quoted.space == nested.space


def test_lines_are_found_past_multiline_values_and_comments() -> None:
    text = 'a = """\nb = 1\n[c]\n"""\nd = [ # [\n  "]", 1,\n]\n[e] # f\n"g.h" = 1\n[[i]]\nj = 1\n[[i]]\nj = 2\n'
    file = parse_toml(text, "x")
    found = {path: line for path, line in file.lines.items() if path[0] != "i"}
    assert found == {("a",): 1, ("d",): 5, ("e",): 8, ("e", "g.h"): 9}
    assert (file.lines["i", "0", "j"], file.lines["i", "1", "j"]) == (11, 13)


def test_a_missing_a_binary_and_an_unknown_study_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.toml").write_bytes(b"name = '\xff'")
    with pytest.raises(SettingError, match="not a text file in UTF-8"):
        read_study(tmp_path / "bad.toml")
    with pytest.raises(SettingError, match="cannot read"):
        read_study(tmp_path / "none.toml")
    with pytest.raises(SettingError, match="no study file"):
        find_study_file(str(tmp_path / "none.toml"))
    monkeypatch.chdir(tmp_path)
    assert read_study(find_study_file("default")).name == "default", "its own studies are found from any folder"
    with pytest.raises(SettingError, match="no study named 'defualt'"):
        find_study_file("defualt")


def test_epochs_from_the_command_line_move_the_last_rung() -> None:
    study = read_study(STUDIES / "default.toml")
    assert study.revised({"train.epochs": 5}).rungs == (1, 3, 5)
    assert study.revised({"train.epochs": 3}).rungs == (1, 3)
    assert study.revised({"train.epochs": 1}).rungs == (1,)
    for longer in (11, 20):
        contest = study.revised({"train.epochs": longer}).contest(30)
        assert contest.rungs == (1, 3, 6, longer) and len(contest.shares) == 3
        assert cost(contest) <= 30 * longer / 4
    with pytest.raises(SettingError, match="is searched by the study"):
        study.revised({"model.dropout": 0.1})


@given(low=st.integers(1, 50), count=st.integers(1, 30), step=st.integers(1, 5))
def test_a_range_contains_exactly_its_values(low: int, count: int, step: int) -> None:
    whole = Int(low, low + count * step, step=step)
    assert len(whole.values() or ()) == count + 1
    real = Float(low / 10, low / 10 + count * step / 100, step=step / 100)
    values = real.values()
    assert values is not None and len(values) in (count, count + 1)
    assert [real.nearest(low / 10 + step / 100 * index) for index in range(len(values))] == list(values)
    assert (real.nearest(0.0), real.nearest(99.0)) == (values[0], values[-1])
    assert all(real.contains(value) for value in values) and all(whole.contains(v) for v in whole.values() or ())
    assert not whole.contains(low - 1) and not whole.contains(low + count * step + 1) and not whole.contains(True)


# The fingerprint


def test_the_fingerprint_knows_what_matters_and_ignores_what_does_not() -> None:
    text = (STUDIES / "default.toml").read_text()
    study = parse_study(text)
    same = parse_study(text.replace("trials = 30", "trials = 60").replace("final_seeds = 3", "final_seeds = 0"))
    mark = fingerprint(study, "abc")
    assert mark.digest == fingerprint(same, "abc").digest, "a study may be made longer"
    assert (
        mark.digest == fingerprint(study.revised({"data.source": "/elsewhere", "train.device": "cuda"}), "abc").digest
    )
    others = {
        "data": fingerprint(study, "abd"),
        "space": fingerprint(parse_study(text.replace("0.7", "0.6")), "abc"),
        "metric": fingerprint(parse_study(text.replace("roc_auc", "accuracy")), "abc"),
        "setting": fingerprint(study.revised({"train.batch_size": 64}), "abc"),
        "code": fingerprint(study, "abc", {"torch": "2.15"}),
        "pruning": fingerprint(parse_study(text.replace("0.1667, 0.1]", "0.1667, 0.15]")), "abc"),
    }
    for name, other in others.items():
        assert other.digest != mark.digest, f"a change of {name} must be noticed"
        assert len(differences(mark.values, other.values)) == 1, differences(mark.values, other.values)


def test_the_default_study_spreads_its_first_seats_over_the_learning_rate_and_the_fingerprint_says_so() -> None:
    text = (STUDIES / "default.toml").read_text()
    study = parse_study(text)
    assert study.contest(30).spread
    places = [study.place({"train.learning_rate": rate, "model.dropout": 0.1}) for rate in (1e-5, 1e-3, 1e-2)]
    assert places == pytest.approx([0.0, 2 / 3, 1.0]), "on the logarithm, as it is drawn"
    assert study.place({}) == 0.0, "of a trial that a script made with other settings"
    assert fingerprint(study, "abc").values["pruning"].endswith("spread over train.learning_rate")
    plain = parse_study(text.replace("spread_over = ", "# "))
    assert not plain.contest(30).spread and plain.place({"train.learning_rate": 1e-3}) == 0.0
    assert fingerprint(plain, "abc").values["pruning"].endswith("of 10 epochs")


def test_places_are_even_over_a_range_and_over_choices() -> None:
    assert [Float(0.0, 0.8).place(value) for value in (0.0, 0.2, 0.8, 1.0)] == [0.0, 0.25, 1.0, 1.0]
    assert [Int(1, 100, log=True).place(value) for value in (1, 10, 100)] == pytest.approx([0.0, 0.5, 1.0])
    assert [Choice(("adam", "sgd")).place(value) for value in ("adam", "sgd")] == [0.0, 0.5]
    assert Float(0.5, 0.5).place(0.5) == 0.0


def test_differences_are_told_in_plain_lines() -> None:
    text = (STUDIES / "default.toml").read_text()
    old = fingerprint(parse_study(text), "abc").values
    new = fingerprint(
        parse_study(
            text.replace("high = 0.7", "high = 0.6")
            .replace("model.kernel_size", "train.batch_size")
            .replace("[3, 5, 7]", "[32, 64]")
        ),
        "abc",
    ).values
    lines = differences(old, new)
    assert "space model.dropout: was 0 to 0.7, is 0 to 0.6" in lines
    assert "space train.batch_size: new, one of 32, 64" in lines
    assert "space model.kernel_size: no longer, was one of 3, 5, 7" in lines
