"""Settings are checked when made, known by dotted names, and varied without a surprise."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dftrack.config import (
    INCIDENTAL,
    Config,
    DataConfig,
    ModelConfig,
    TrainConfig,
    Value,
    flatten,
    nearest,
    parse,
    setting_types,
    vary,
)
from dftrack.errors import SettingError


def test_the_baseline_is_the_published_one() -> None:
    flat = flatten(Config())
    published: dict[str, Value] = {
        "model.kernel_size": 3,
        "model.dropout": 0.5,
        "train.batch_size": 32,
        "train.epochs": 10,
        "train.optimizer": "adam",
        "train.learning_rate": 1e-4,
        "train.weight_decay": 0.0,
        "train.augmentation": "none",
    }
    assert {name: flat[name] for name in published} == published


def test_flatten_names_every_setting_once_in_the_order_of_definition() -> None:
    names = list(flatten(Config()))
    assert names == list(setting_types()), "what is recorded and what can be set are not the same names"
    assert [name.partition(".")[0] for name in names] == sorted(
        (name.partition(".")[0] for name in names), key=["data", "model", "train"].index
    )
    assert names[0] == "data.source" and names.index("model.kernel_size") < names.index("model.dropout")


def test_no_two_sections_share_a_setting_s_name() -> None:
    keys = [name.partition(".")[2] for name in setting_types()]
    assert len(keys) == len(set(keys)), "the nearest name is found by the last part: it must be unique"


def test_the_incidental_settings_exist() -> None:
    assert set(setting_types()) >= INCIDENTAL, f"unknown: {INCIDENTAL - set(setting_types())}"


def test_settings_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.kernel_size = 5  # type: ignore[misc]


def test_vary_changes_only_what_is_named_and_leaves_the_original() -> None:
    before = Config()
    after = vary(before, {"model.kernel_size": 5, "train.learning_rate": 1e-3})
    changed = {name for name, value in flatten(after).items() if value != flatten(before)[name]}
    assert changed == {"model.kernel_size", "train.learning_rate"}
    assert before == Config()
    assert vary(before, {}) == before


def test_vary_checks_a_section_s_changes_together_and_in_any_order() -> None:
    changes = {"train.epochs": 2, "model.dropout": 0.1, "train.seed": 7}
    assert vary(Config(), changes) == vary(Config(), dict(reversed(changes.items())))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.epochs", "3", 3),
        ("train.learning_rate", "1e-3", 1e-3),
        ("train.learning_rate", "1", 1.0),
        ("train.learning_rate", 1, 1.0),
        ("train.optimizer", "sgd", "sgd"),
        ("data.image_size", "64", 64),
        ("data.image_size", "none", None),
        ("data.image_size", "None", None),
        ("data.image_size", "", None),
        ("data.image_size", None, None),
        ("data.source", "none", "none"),
        ("data.source", "12", "12"),
    ],
)
def test_a_string_is_read_as_the_setting_s_type(name: str, text: Value, value: Value) -> None:
    got = flatten(vary(Config(), {name: text}))[name]
    assert got == value and type(got) is type(value), f"{name}={text!r} became {got!r}"


@given(st.floats(min_value=1e-30, max_value=1e30), st.integers(0, 2**31 - 1), st.integers(8, 1024))
def test_every_setting_survives_the_way_through_text(rate: float, seed: int, size: int) -> None:
    config = vary(Config(), {"train.learning_rate": rate, "train.seed": seed, "data.image_size": size})
    assert vary(Config(), {name: str(value) for name, value in flatten(config).items()}) == config


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("data.image_size", 7, "data.image_size must be at least 8 pixels, got 7"),
        ("data.image_size", 1025, "data.image_size must be at most 1024 pixels, got 1025"),
        ("data.source", "", "data.source must name a data set, got ''"),
        ("model.kernel_size", 4, "model.kernel_size must be odd and from 1 to 15, got 4"),
        ("model.kernel_size", -3, "model.kernel_size must be odd and from 1 to 15, got -3"),
        ("model.kernel_size", 17, "model.kernel_size must be odd and from 1 to 15, got 17"),
        ("model.dropout", 1.0, "model.dropout must be in [0, 1), got 1.0"),
        ("model.dropout", -0.1, "model.dropout must be in [0, 1), got -0.1"),
        ("model.dropout", "nan", "model.dropout must be in [0, 1), got nan"),
        ("train.epochs", 0, "train.epochs must be at least 1, got 0"),
        ("train.batch_size", 1, "train.batch_size must be from 2 to 65536, got 1"),
        ("train.learning_rate", 0, "train.learning_rate must be a positive number, got 0.0"),
        ("train.learning_rate", "inf", "train.learning_rate must be a positive number, got inf"),
        ("train.weight_decay", -1e-9, "train.weight_decay must be 0 or more, got -1e-09"),
        ("train.seed", -1, "train.seed must be from 0 to 2147483647, got -1"),
        ("train.seed", 2**31, "train.seed must be from 0 to 2147483647, got 2147483648"),
        ("train.checkpoint_seconds", "nan", "train.checkpoint_seconds must be 0 or more, got nan"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_name_rule_and_value(name: str, value: Value, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        vary(Config(), {name: value})
    assert caught.value.message == words
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.image_size", 8),
        ("data.image_size", 1024),
        ("model.kernel_size", 1),
        ("model.kernel_size", 15),
        ("model.dropout", 0),
        ("model.dropout", 0.999),
        ("train.epochs", 1),
        ("train.batch_size", 2),
        ("train.seed", 2**31 - 1),
        ("train.checkpoint_seconds", 0),
    ],
)
def test_a_value_on_its_bound_is_accepted(name: str, value: Value) -> None:
    assert flatten(vary(Config(), {name: value}))[name] == value


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("train.epochs", "three", "train.epochs must be a whole number, got 'three'"),
        ("train.epochs", "3.5", "train.epochs must be a whole number, got '3.5'"),
        ("train.epochs", 3.0, "train.epochs must be a whole number, got 3.0"),
        ("train.epochs", True, "train.epochs must be a whole number, got True"),
        ("train.epochs", None, "train.epochs must be a whole number, got None"),
        ("train.learning_rate", "fast", "train.learning_rate must be a number, got 'fast'"),
        ("train.learning_rate", True, "train.learning_rate must be a number, got True"),
        ("data.image_size", "big", "data.image_size must be a whole number or none, got 'big'"),
        ("data.source", 3, "data.source must be text, got 3"),
        ("train.optimizer", "adamm", "train.optimizer must be one of adam, adamw, sgd, got 'adamm'"),
        ("train.device", "gpu", "train.device must be one of auto, cpu, cuda, got 'gpu'"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_name_rule_and_value(name: str, value: Value, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        vary(Config(), {name: value})
    assert caught.value.message == words


@pytest.mark.parametrize(
    ("section", "value"),
    [
        (TrainConfig, {"optimizer": "adamm"}),
        (TrainConfig, {"precision": "fp8"}),
        (TrainConfig, {"epochs": 2.5}),
        (TrainConfig, {"learning_rate": "1e-3"}),
        (ModelConfig, {"kernel_size": 3.0}),
        (ModelConfig, {"dropout": None}),
        (DataConfig, {"image_size": "96"}),
    ],
)
def test_types_are_checked_when_a_section_is_made_in_python_too(section: Any, value: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(value))):
        section(**value)


def test_a_whole_number_given_for_a_float_is_stored_as_a_float() -> None:
    made = TrainConfig(learning_rate=1)
    assert type(made.learning_rate) is float, "1 and 1.0 would be recorded as two different settings"


@pytest.mark.parametrize(("text", "value"), [("true", True), ("No", False), ("1", True), ("off", False), ("ja", "ja")])
def test_a_yes_or_no_setting_would_be_read_from_words(text: str, value: Value) -> None:
    assert parse(bool, text) is value or parse(bool, text) == value


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("train.learning_rat", "train.learning_rate"),
        ("learning_rate", "train.learning_rate"),
        ("model.learning_rate", "train.learning_rate"),
        ("lr", "train.learning_rate"),
        ("train.lr", "train.learning_rate"),
        ("train.wd", "train.weight_decay"),
        ("kernel", "model.kernel_size"),
        ("model.drop_out", "model.dropout"),
        ("train.optimiser", "train.optimizer"),
        ("data.image-size", "data.image_size"),
        ("TRAIN.EPOCHS", "train.epochs"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_right_one(wrong: str, right: str) -> None:
    with pytest.raises(SettingError) as caught:
        vary(Config(), {wrong: "1"})
    assert caught.value.message == f"there is no setting {wrong!r}"
    assert caught.value.hint == f"did you mean {right}?"


@pytest.mark.parametrize("wrong", ["zzz", "", ".", "train.", "train", "a.b.c"])
def test_a_name_like_no_other_is_refused_with_the_list_of_all(wrong: str) -> None:
    with pytest.raises(SettingError) as caught:
        vary(Config(), {wrong: "1"})
    assert caught.value.hint.startswith("known settings: data.source, data.image_size, data.leaks, model.kernel_size")


@pytest.mark.parametrize("name", list(setting_types()))
def test_every_setting_is_found_without_its_section(name: str) -> None:
    assert nearest(name.partition(".")[2], setting_types()) == name


@given(st.text())
def test_no_name_however_odd_brings_anything_but_a_setting_error(name: str) -> None:
    if name not in setting_types():
        with pytest.raises(SettingError):
            vary(Config(), {name: "1"})


@given(
    st.sampled_from(list(setting_types())), st.one_of(st.text(), st.integers(), st.floats(), st.booleans(), st.none())
)
def test_no_value_however_odd_brings_anything_but_a_setting_error(name: str, value: Value) -> None:
    try:
        varied = vary(Config(), {name: value})
    except SettingError as error:
        assert error.message.startswith(name), f"{error.message!r} does not say which setting"
    else:
        assert vary(varied, {}) == varied
