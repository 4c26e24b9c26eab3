"""Configuration keys are checked, typed and named the same everywhere."""

import dataclasses
import json
import typing

import pytest

from kmura import config
from kmura.errors import InputError


def test_every_recipe_loads_and_opens_with_its_command():
    assert {"baseline", "demo"} <= set(config.recipe_names())
    for name in config.recipe_names():
        config.load_config(name)
        header = (config.RECIPES / f"{name}.toml").read_text().split("\n\n")[0]
        assert header.startswith("#") and "Command:" in header and "easured" in header


def test_settings_lie_over_the_recipe_and_the_last_one_wins():
    found = config.load_config("baseline", ["train.epochs=7", "train.epochs=3", "model.backbone=densenet_mini"])
    assert (found.train.epochs, found.model.backbone, found.train.batch_size) == (3, "densenet_mini", 16)


def test_a_configuration_survives_json():
    found = config.load_config("baseline", ["augment.area_scale=[0.5, 1]", "train.learning_rate=3e-5"])
    assert config.config_from_tables(json.loads(json.dumps(config.config_json(found)))) == found


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epoch=3", "unknown key train.epoch in settings; did you mean train.epochs?"),
        ("trian.epochs=3", "unknown key trian in settings; did you mean train?"),
        ("train.epochs=many", "train.epochs is 'many'; a value of type int is needed"),
        ("train.epochs=2.5", "train.epochs is 2.5; a value of type int is needed"),
        ("train.epochs=true", "train.epochs is True"),
        ("train.epochs=0", "train.epochs is 0; 1 or more is needed"),
        ("train.learning_rate=nan", "train.learning_rate is nan; allowed is"),
        ("data.resize=sqash", "data.resize is 'sqash'; allowed: squash, pad; did you mean squash?"),
        ("augment.area_scale=[1]", "a list of 2 values is needed"),
        ("augment.area_scale=[1.2, 0.8]", "give 0 < low <= high"),
        ("epochs=3", "names no stage"),
        ("train.epochs", "has no value"),
    ],
)
def test_a_wrong_setting_says_what_is_right(setting, message):
    with pytest.raises(InputError) as raised:
        config.load_config("baseline", [setting])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_a_whole_number_serves_as_a_fraction():
    assert config.load_config(settings=["model.dropout=0"]).model.dropout == 0.0


def test_an_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(InputError, match="no recipe 'basline'.*baseline.*did you mean baseline"):
        config.load_config("basline")


def test_a_recipe_of_bad_toml_is_named(tmp_path):
    (tmp_path / "mine.toml").write_text("[train\n")
    with pytest.raises(InputError, match="mine.toml is not valid TOML"):
        config.load_config(str(tmp_path / "mine.toml"))


def test_differences_name_the_keys():
    one, other = config.load_config("baseline"), config.load_config("baseline", ["train.seed=5"])
    assert config.differences(one, other) == ["train.seed: 0 -> 5"]


@pytest.mark.parametrize("stage", [*typing.get_type_hints(config.Config).values(), config.RecordsConfig])
def test_every_key_is_documented(stage):
    for field in dataclasses.fields(stage):
        assert field.name in stage.__doc__
