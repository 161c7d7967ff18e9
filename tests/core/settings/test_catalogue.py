from clipgen_core.recipes import Recipe, named
from clipgen_core.schema import Frozen
from clipgen_core.settings.catalogue import meaning, settings_of

SETTINGS = {setting.name: setting for setting in settings_of(named("demo"))}


def test_every_setting_says_what_it_means_in_sentences() -> None:
    for name, setting in SETTINGS.items():
        assert len(setting.meaning) >= 15 and setting.meaning.endswith("."), name
        assert setting.meaning[0] == "`" or setting.meaning[0].isupper(), name
        assert "\n" not in setting.meaning


def groups(config: type[Frozen]) -> list[type[Frozen]]:
    """A config's class and those of its nested configs."""
    nested = [f.annotation for f in config.model_fields.values() if isinstance(f.annotation, type)]
    return [config, *(group for one in nested if issubclass(one, Frozen) for group in groups(one))]


def test_every_group_of_settings_says_what_it_is() -> None:
    for group in groups(Recipe):
        assert all(meaning(field) for field in group.model_fields.values()), group


def test_names_are_those_of_the_nested_fields() -> None:
    assert SETTINGS["vqgan.model.quantizer.codebook_size"].value == 256
    assert SETTINGS["vqgan.train.steps"].value == named("demo").vqgan.train.steps
    assert "vqgan.train" not in SETTINGS
    assert {name.partition(".")[0] for name in SETTINGS} == set(Recipe.model_fields)


def test_a_name_without_its_stage_is_never_mistaken_for_a_stage() -> None:
    """`clipgen train-stage STAGE --set` takes names with and without the stage."""
    assert not {name.split(".")[1] for name in SETTINGS} & set(Recipe.model_fields)
