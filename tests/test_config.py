"""Configuration: defaults, YAML, overrides, and what is said of mistakes."""

import shlex

import pytest

from robustdup import UserError
from robustdup.config import (
    DuplicateConfig,
    EvalConfig,
    TrainConfig,
    build,
    parse_attacks,
    parse_value,
    recipe_path,
    recipes,
    rerun_command,
)
from tests.raising import raises


def test_values_go_over_overrides_over_the_file_over_defaults(tmp_path):
    file = tmp_path / "eval.yaml"
    file.write_text("eps: 4/255\nn: 10\nseed: 1\noptions:\n  pgd:\n    steps: 5\n")
    config = build(
        EvalConfig, file, ["n=20", "seed=2", "options.pgd.restarts=3", "options.fgsm.loss=margin"], {"seed": 3}
    )
    assert (config.eps, config.n, config.seed, config.norm) == ("4/255", 20, 3, "Linf")
    assert config.options == {"pgd": {"steps": 5, "restarts": 3}, "fgsm": {"loss": "margin"}}


def test_numbers_and_lists_become_text_where_text_is_meant():
    config = build(EvalConfig, overrides=["eps=0.5", "attacks=[fgsm, pgd]"])
    assert (config.eps, config.attacks) == ("0.5", "fgsm,pgd")


def test_an_empty_file_is_a_mistake(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    with raises("bad-file", UserError, "empty"):
        build(EvalConfig, tmp_path / "empty.yaml")


@pytest.mark.parametrize(
    ("override", "code", "named"),
    [
        ("esp=3", "unknown-configuration-key", ("'esp'", "'eps'")),
        ("batchsize=3", "unknown-configuration-key", ("'batch_size'",)),
        ("n=0", "bad-value", ("'n'", "greater than or equal to 1", "got 0")),
        ("n=many", "bad-value", ("'n'", "got 'many'")),
        ("mode=train", "bad-value", ("'mode'",)),
        ("nonsense", "bad-option", ("KEY=VALUE",)),
        ("n.x.y=1", "bad-value", ("'n'",)),
    ],
)
def test_mistakes_are_named(override, code, named):
    with raises(code, UserError, *named):
        build(EvalConfig, overrides=[override])


def test_a_mistake_inside_a_setting_keeps_its_code_and_its_words():
    with raises("unknown-value", UserError, "'unifrom'", "'uniform'"):
        build(TrainConfig, overrides=["duplicate.scheme=unifrom"])


def test_a_dose_without_a_scheme_asks_for_one():
    with raises("bad-option", UserError, "dose needs a scheme: scheme=NAME", "uniform, class_skewed"):
        build(TrainConfig, overrides=["duplicate.dose=0.2"])
    with raises("bad-option", UserError, "classes needs a scheme", "one of class_skewed."):
        build(TrainConfig, overrides=["duplicate.classes=[3]"])
    assert build(DuplicateConfig, overrides=["dose=0.2"]).scheme == "uniform"


def test_a_nested_key_of_a_plain_value_is_refused():
    with raises("bad-option", UserError, "'seed'"):
        build(EvalConfig, overrides=["seed=1", "seed.x=2"])


@pytest.mark.parametrize("text", ["a: [", "- a\n- b"])
def test_files_that_are_not_configurations(tmp_path, text):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with raises("bad-file", UserError, str(file)):
        build(EvalConfig, file)


def test_a_missing_file_is_named(tmp_path):
    with raises("missing-file", UserError, "none.yaml"):
        build(EvalConfig, tmp_path / "none.yaml")


def test_a_recipe_is_a_file_by_name():
    assert build(EvalConfig, "digits") == build(EvalConfig, "eval/digits") == EvalConfig()
    assert build(TrainConfig, "cifar10-small-cpu") == build(TrainConfig, recipe_path("train/cifar10-small-cpu"))


def test_recipes_are_listed_and_found_by_name():
    assert {name.partition("/")[0] for name in recipes()} == {"eval", "train", "study"}
    assert recipes("eval") == [name for name in recipes() if name.startswith("eval/")]
    assert all(recipe_path(name).is_file() for name in recipes())
    assert recipe_path("quickstart") == recipe_path("study/quickstart") == recipe_path("quickstart", "study")
    with raises("unknown-recipe", UserError, "study/quickstart"):
        recipe_path("study/quickstrat")
    with raises("bad-value", UserError, "study/cifar10-small-cpu", "train/cifar10-small-cpu"):
        recipe_path("cifar10-small-cpu")
    with raises("missing-file", UserError, "eval/digits"):
        build(EvalConfig, "quickstart")


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("1e-3", 0.001), ("true", True), ("8/255", "8/255"), ("[1, 2]", [1, 2]), ("", None)]
)
def test_values_are_yaml(text, value):
    assert parse_value(text) == value


def test_attacks_with_options():
    parsed = parse_attacks(" fgsm, pgd( steps=40,restarts = 2 ),art:X(sizes=[1, 2], rate=1e-2) ")
    assert parsed == [
        ("fgsm", {}), ("pgd", {"steps": 40, "restarts": 2}), ("art:X", {"sizes": [1, 2], "rate": 0.01}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "code", "named"),
    [
        ("", "no-attack", "--attacks"),
        (" , ", "no-attack", "--attacks"),
        ("pgd(40)", "bad-value", "'40'"),
        ("pgd(steps=4", "bad-value", "'pgd(steps=4'"),
    ],
)
def test_attacks_that_cannot_be_read(text, code, named):
    with raises(code, UserError, named):
        parse_attacks(text)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        (EvalConfig, {}, []),
        (EvalConfig, {"n": 200}, []),  # what the digits take by themselves
        (EvalConfig, {"n": 200, "attacks": "fast"}, ["n=200", "attacks=fast"]),
        (EvalConfig, {"attacks": "fast"}, ["attacks=fast"]),
        (EvalConfig, {"data": "cifar10", "eps": "0.15", "n": 200}, ["data=cifar10", "n=200", "eps=0.15"]),
        (EvalConfig, {"data": "cifar10", "eps": "8/255"}, ["data=cifar10"]),
        (EvalConfig, {"norm": "L2", "eps": "0.15"}, ["norm=L2", "eps=0.15"]),
        (EvalConfig, {"options": {"pgd": {"steps": 5}}, "plugin": ["a b.py"]}, None),
        (TrainConfig, {}, []),
        (TrainConfig, {"data": "cifar10"}, ["data=cifar10"]),
        (TrainConfig, {"data": "cifar10", "lr": 0.005, "epochs": 20}, ["data=cifar10", "lr=0.005", "epochs=20.0"]),
        (TrainConfig, {"epochs": 10, "augment": "crop-flip"}, None),
        (
            TrainConfig,
            {"steps": 7, "duplicate": {"scheme": "uniform", "dose": 0.5}},
            ["steps=7", "duplicate.scheme=uniform", "duplicate.dose=0.5"],
        ),
        (
            TrainConfig,
            {"duplicate": {"scheme": "class_skewed", "classes": ["cat", "dog"], "near": "flip", "dose": 0.3}},
            None,
        ),
    ],
)
def test_the_command_of_a_configuration_gives_it_again(kind, given, words):
    """Defaults depend on each other: a value that is one default may have to be said where another is changed."""
    config = build(kind, values={**given, "out": "runs/here"})
    program, command, *found = shlex.split(rerun_command("eval", config))
    assert (program, command) == ("robustdup", "eval")
    assert build(kind, overrides=found, values={"out": "runs/here"}) == config
    if words is not None:
        assert sorted(found) == sorted(words)
