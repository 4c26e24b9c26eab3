"""Configuration keys are validated, typed and consistently named."""

import dataclasses
import json

import pytest

from kmura import config
from kmura.config import keys, loading, names
from kmura.errors import InputError


def test_every_recipe_loads_and_begins_with_its_command():
    assert {"baseline", "demo"} <= set(config.recipe_names())
    for name in config.recipe_names():
        config.load_config(name)
        header = (config.RECIPES / f"{name}.toml").read_text().split("\n\n")[0]
        assert header.startswith("#") and "Command:" in header and "easured" in header
        assert config.recipe_summary(name).endswith("."), "the first line is a whole sentence"


def test_settings_override_the_recipe_and_the_last_setting_wins():
    loaded = config.load_config("baseline", ["train.epochs=7", "train.epochs=3", "model.backbone=densenet_mini"])
    assert (loaded.train.epochs, loaded.model.backbone, loaded.train.batch_size) == (3, "densenet_mini", 16)


def test_a_configuration_survives_json():
    loaded = config.load_config("baseline", ["augment.area_scale=[0.5, 1]", "train.learning_rate=3e-5"])
    assert config.config_from_tables(json.loads(json.dumps(config.config_json(loaded)))) == loaded


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
        ("epochs=3", "has no stage"),
        ("zzz=3", "setting 'zzz' has no stage; write stage.key=value, for example train.epochs=3"),
        ("train=3", "has no key of the stage train; write train.key=value"),
        ("train.epochs", "has no value"),
    ],
)
def test_an_invalid_setting_states_the_allowed_values(setting, message):
    with pytest.raises(InputError) as raised:
        config.load_config("baseline", [setting])
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_integer_is_accepted_as_a_float():
    assert config.load_config(settings=["model.dropout=0"]).model.dropout == 0.0


def test_an_unknown_recipe_lists_the_available_recipes():
    with pytest.raises(InputError, match="no recipe 'basline'.*baseline.*did you mean baseline"):
        config.load_config("basline")


def test_a_recipe_with_invalid_toml_is_reported(tmp_path):
    (tmp_path / "mine.toml").write_text("[train\n")
    with pytest.raises(InputError, match="mine.toml is not valid TOML"):
        config.load_config(str(tmp_path / "mine.toml"))


def test_configuration_differences_name_the_keys():
    before, after = config.load_config("baseline"), config.load_config("baseline", ["train.seed=5"])
    assert config.differences(before, after) == ["train.seed: 0 -> 5"]


STAGES = [*keys.hints(config.ClassificationConfig).values(), config.RecordsConfig]


@pytest.mark.parametrize("stage", STAGES)
def test_every_key_declares_its_meaning_in_a_sentence(stage):
    for key in keys.stage_keys("", stage):
        assert key.meaning[0].isupper() or key.meaning[0] == "'", key.name
        assert key.meaning.endswith("."), key.name


@pytest.mark.parametrize("stage", STAGES)
def test_every_default_is_an_allowed_value(stage):
    for key in keys.stage_keys("", stage):
        typed = loading._typed(key.name, key.default, keys.hints(stage)[key.name])
        assert typed == key.default and type(typed) is type(key.default), key.name


@pytest.mark.parametrize(
    ("stage", "name", "type_text", "allowed"),
    [
        (config.DataConfig, "image_size", "int", "16 or more"),
        (config.DataConfig, "resize", "str", "squash, pad"),
        (config.RecordsConfig, "channels", "int", "1, 3"),
        (config.AugmentConfig, "area_scale", "[float, float]", "0 < low <= high <= 4"),
        (config.ModelConfig, "backbone", "str", ", ".join(names.BACKBONE_NAMES)),
        (config.ModelConfig, "head_dropout", "list of float", "0 to 0.99 each"),
        (config.ModelConfig, "multi_scale", "bool", "true, false"),
        (config.CamConfig, "from_epoch", "int or none", "1 or more"),
        (config.CamConfig, "erase_q", "float", "above 0 and below 1"),
        (config.TrainConfig, "slow_factor", "float", "above 0, at most 1"),
        (config.TuneConfig, "erase_every", "[int, int]", "1 <= low <= high <= 1000000"),
    ],
)
def test_the_reference_states_type_and_allowed_values(stage, name, type_text, allowed):
    (key,) = (key for key in keys.stage_keys("", stage) if key.name == name)
    assert (key.type, key.allowed) == (type_text, allowed)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: config.RecordsConfig(quality=0), "quality is 0; allowed is 1 to 100"),
        (lambda: config.RecordsConfig(records_per_shard=0), "records_per_shard is 0; 1 or more is needed"),
        (
            lambda: config.DataConfig(resize="sqash"),
            "data.resize is 'sqash'; allowed: squash, pad; did you mean squash?",
        ),
        (lambda: config.AugmentConfig(area_scale=(0, 1)), "augment.area_scale is [0, 1]; give 0 < low <= high <= 4"),
        (lambda: config.AugmentConfig(flip=float("nan")), "augment.flip is nan; allowed is 0 to 1"),
        (lambda: config.ModelConfig(head_widths=(8, 0)), "model.head_widths is 0; 1 or more is needed"),
        (lambda: config.TrainConfig(slow_factor=0.0), "train.slow_factor is 0.0; allowed is above 0, at most 1"),
        (lambda: config.TrainConfig(slow_factor=1.5), "train.slow_factor is 1.5; allowed is above 0, at most 1"),
        (lambda: config.TrainConfig(plateau_factor=1), "train.plateau_factor is 1; allowed is above 0 and below 1"),
        (lambda: config.TrainConfig(focal_alpha=2, loss="focal"), "train.focal_alpha is 2; allowed is 0 to 1"),
        (lambda: config.TrainConfig(warmup_epochs=6), "train.warmup_epochs is 6; allowed is 0 to 5"),
        (lambda: config.TrainConfig(unfreeze="last_0_conv"), "choose all, none, last_block, last_N_conv"),
        (lambda: config.TuneConfig(erase_q=(0.0, 0.5)), "tune.erase_q is [0.0, 0.5]; give 0.01 <= low <= high <= 0.99"),
        (lambda: config.TuneConfig(weight_decay=(0.0, 0.5)), "logarithmic scale; give 0 < low"),
    ],
)
def test_a_stage_created_in_python_is_validated_too(make, message):
    with pytest.raises(InputError) as raised:
        make()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "suggestion"),
    [
        ("train.lr=1e-4", "train.learning_rate"),
        ("train.wd=0", "train.weight_decay"),
        ("train.bs=8", "train.batch_size"),
        ("train.learn_rate=1e-4", "train.learning_rate"),
        ("train.batchsize=8", "train.batch_size"),
        ("train.warmup=1", "train.warmup_epochs"),
        ("train.decay=0", "train.weight_decay"),
        ("train.patience=3", "train.plateau_patience or train.stop_patience"),
        ("train.focal=1", "train.focal_gamma, train.focal_factor or train.focal_alpha"),
        ("cam.q=0.5", "cam.erase_q"),
        ("model.epochs=3", "train.epochs"),
        ("train.dropout=0.2", "model.dropout or tune.dropout"),
        ("model.lr=1e-4", "train.learning_rate or tune.learning_rate"),
        ("optimizer.learning_rate=1e-4", "train.learning_rate or tune.learning_rate"),
        ("epochs=3", "train.epochs"),
        ("batchsize=3", "train.batch_size"),
        ("lr=3", "train.learning_rate or tune.learning_rate"),
    ],
)
def test_abbreviations_and_keys_of_other_stages_are_recognised(setting, suggestion):
    with pytest.raises(InputError) as raised:
        config.load_config("baseline", [setting])
    assert str(raised.value).endswith(f"; did you mean {suggestion}?")


def test_an_unknown_key_lists_the_keys_of_its_stage():
    with pytest.raises(InputError, match="unknown key mix.zzz in settings; known: mix.mixup_alpha, mix.cutmix_alpha, "):
        config.load_config(settings=["mix.zzz=1"])


def test_a_misplaced_key_in_a_recipe_is_reported_with_its_table(tmp_path):
    (tmp_path / "mine.toml").write_text("epochs = 3\n")
    with pytest.raises(InputError, match=r"unknown key epochs in recipe .*mine.toml; did you mean train.epochs\?"):
        config.load_config(str(tmp_path / "mine.toml"))


@dataclasses.dataclass(frozen=True)
class ContrastStage:
    """Configuration of a toy kind."""

    temperature: float = keys.key(0.1, "Temperature of the loss.", above=(0, 1))

    def __post_init__(self):
        keys.check_values(self, "contrast")


@dataclasses.dataclass(frozen=True)
class ToyBundle:
    data: config.DataConfig = config.DataConfig()
    contrast: ContrastStage = ContrastStage()


def test_another_kind_can_define_its_own_configuration():
    toy = config.load_config(None, ["contrast.temperature=0.5", "data.image_size=64"], ToyBundle)
    assert toy == ToyBundle(config.DataConfig(image_size=64), ContrastStage(0.5))
    assert config.config_from_tables(config.config_json(toy), bundle=ToyBundle) == toy
    assert config.differences(ToyBundle(), toy) == ["data.image_size: 224 -> 64", "contrast.temperature: 0.1 -> 0.5"]
    for setting, message in (
        ("train.epochs=3", "unknown key train in settings; known: data, contrast"),
        ("contrast.temperature=0", "contrast.temperature is 0.0; allowed is above 0, at most 1"),
        ("contrast.temp=1", "did you mean contrast.temperature?"),
    ):
        with pytest.raises(InputError) as raised:
            config.load_config(None, [setting], ToyBundle)
        assert message in str(raised.value)


@pytest.mark.parametrize(("old", "new"), [("tune", "val"), ("valid", "test"), ("val", "val")])
def test_split_names_of_run_version_1_are_mapped(old, new):
    tables = {"train": {"select_on": old, "epochs": 3}, "data": {}}
    mapped = config.from_run_version_1(tables)
    assert mapped == {"train": {"select_on": new, "epochs": 3}, "data": {}}
    assert tables["train"]["select_on"] == old, "the argument stays as it is"
    assert config.config_from_tables(mapped).train.select_on == new


@pytest.mark.parametrize(("old", "new"), [("tune", "val"), ("valid", "test")])
def test_a_former_split_name_in_a_setting_is_refused_with_its_new_name(old, new):
    with pytest.raises(InputError, match=f"allowed: val, test; did you mean {new}"):
        config.load_config(None, {"train.select_on": old})


def test_tables_of_run_version_1_without_the_key_are_unchanged():
    assert config.from_run_version_1({"data": {"image_size": 64}}) == {"data": {"image_size": 64}}


@pytest.mark.parametrize(
    ("number", "unfreeze", "rate", "batch", "epochs", "plateau", "stop"),
    [
        (1, "none", 1e-4, 32, 20, None, None),
        (2, "last_1_conv_only", 1e-4, 32, 20, None, None),
        (3, "all", 1e-4, 64, 150, 5, 10),
        (4, "all", 1e-5, 64, 150, 5, 10),
        (5, "all", 1e-5, 64, 150, 5, 10),
        (6, "all", 1e-5, 64, 150, 5, 10),
    ],
)
def test_the_experiments_train_with_the_published_values(number, unfreeze, rate, batch, epochs, plateau, stop):
    train = config.load_config(f"multiclass-exp{number}").train
    assert (train.unfreeze, train.learning_rate, train.batch_size, train.epochs) == (unfreeze, rate, batch, epochs)
    assert (train.plateau_patience, train.stop_patience) == (plateau, stop)
    assert (train.plateau_factor, train.plateau_min_rate) == (0.2, 1e-6)


def test_the_fundus_recipe_does_not_augment():
    augment = config.load_config("fundus").augment
    assert augment.area_scale == (1.0, 1.0)
    rest = {name: getattr(augment, name) for name in ("rotation", "shift", "shear", "flip", "brightness", "contrast")}
    assert not any(rest.values()), rest
