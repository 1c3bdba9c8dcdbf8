"""Recipes become cells: what is shared, what is left out, what the key depends on, and what is refused with which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from robustdup_study.grid import build_grid, check_size, count_runs
from robustdup_study.recipe import load_recipe

from robustdup.errors import UserError
from robustdup.plugins import load_plugins
from tests.raising import raises

RECIPES = sorted((Path(__file__).parents[3] / "configs" / "study").glob("*.yaml"))


@pytest.fixture(scope="module")
def registry():
    return load_plugins()


def recipe(**content):
    return load_recipe(None, [], {"base": {"duplicate": {"scheme": "uniform"}}, "seeds": 2, **content})


def grid(registry, data="d", **content):
    return build_grid(recipe(**content), registry, lambda train: data)


def test_cells_are_the_product_and_dose_0_is_shared(registry):
    made = grid(
        registry, factors={"objective": ["standard", "pgd_at"], "scheme": ["uniform", "power_law"], "dose": [0, 0.5]}
    )
    assert len(made.runs) == 2 * 2 * 2 * 2
    assert len(made.cells) == 2 * (2 + 4)  # for each seed: two baselines, four with copies
    zero = {line.key for line in made.runs if line.factors["dose"] == 0 and line.seed == 1}
    assert len(zero) == 2
    for line in made.runs:
        settings = made.cells[line.key].settings
        assert settings["seed"] == line.seed
        assert settings["objective"] == line.factors["objective"]
        assert settings["duplicate"].get("dose", 0) == line.factors["dose"]


def test_exclusions_take_combinations_out(registry):
    factors = {"objective": ["standard", "pgd_at", "trades"], "dose": [0, 0.5]}
    made = grid(registry, factors=factors, exclude=[{"objective": ["standard", "trades"], "dose": 0.5}])
    assert {(line.factors["objective"], line.factors["dose"]) for line in made.runs} == {
        ("standard", 0), ("pgd_at", 0), ("trades", 0), ("pgd_at", 0.5),
    }  # fmt: skip
    with raises("no-cells", UserError, "exclusions"):
        grid(registry, factors={"dose": [0]}, exclude=[{"dose": 0}])


def test_budgets_replace_each_other_and_share_their_baseline(registry):
    content = {
        "factors": {"dose": [0, 0.5], "budget": ["epochs", "steps"]},
        "budgets": {"epochs": {"epochs": 3}, "steps": {"steps": 40, "schedule_steps": 50}},
    }
    assert len(grid(registry, **content).cells) == 2 * 4
    shared = grid(registry, **content, baseline_budget="epochs")
    assert len(shared.cells) == 2 * 3
    steps = next(line for line in shared.runs if line.factors == {"dose": 0.5, "budget": "steps"})
    settings = shared.cells[steps.key].settings
    assert (settings["steps"], settings["epochs"], settings["schedule_steps"]) == (40, None, 50)
    zero = next(line for line in shared.runs if line.factors == {"dose": 0, "budget": "steps"})
    assert shared.cells[zero.key].settings["epochs"] == 3


def test_arms_turn_the_settings_and_are_one_cell_without_copies(registry):
    arms = ["copies", "prior-matched", "as-weights", "fewer-unique", "more-epochs", "same-draw"]
    made = grid(
        registry, factors={"dose": [0, 0.5], "condition": arms}, base={"epochs": 4, "duplicate": {"scheme": "uniform"}}, seeds=[7]
    )  # fmt: skip
    assert len(made.cells) == 1 + len(arms)
    settings = {
        line.factors["condition"]: made.cells[line.key].settings for line in made.runs if line.factors["dose"] == 0.5
    }
    assert settings["prior-matched"]["duplicate"]["control"] == "class_prior"
    assert settings["fewer-unique"]["duplicate"]["control"] == "fewer_unique"
    assert settings["as-weights"]["as_weights"] is True
    assert settings["same-draw"]["share_augmentation"] is True
    assert (settings["more-epochs"]["epochs"], settings["more-epochs"]["duplicate"]) == (8.0, {})
    # more epochs say nothing new where steps are fixed
    steps = grid(
        registry, factors={"dose": [0, 0.5], "condition": arms}, base={"steps": 9, "duplicate": {"scheme": "uniform"}}, seeds=[7]
    )  # fmt: skip
    assert not [line for line in steps.runs if line.factors == {"dose": 0.5, "condition": "more-epochs"}]


def test_levels_may_set_several_things(registry):
    made = grid(
        registry,
        base={},
        factors={
            "part": [
                {"name": "plain", "objective": "standard"},
                {"name": "awp", "objective": "pgd_at", "update": "awp"},
            ],
            "scheme": [{"name": "skewed", "scheme": "class_skewed", "classes": ["3"], "copies": 2}],
            "dose": [0.25],
        },
        seeds=1,
    )
    found = made.cells[next(line.key for line in made.runs if line.factors["part"] == "awp")].settings
    assert (found["objective"], found["update"]) == ("pgd_at", "awp")
    assert found["duplicate"] == {"scheme": "class_skewed", "classes": ["3"], "copies": 2, "dose": 0.25}


def test_percent_is_the_published_number_of_each_arm(registry):
    made = grid(
        registry, base={}, seeds=1, analysis={"dose": "percent"},
        factors={"scheme": ["whole_set", "uniform"], "percent": [0, 5, 60]},
    )  # fmt: skip
    found = {tuple(line.factors.values()): made.cells[line.key].settings["duplicate"] for line in made.runs}
    assert found["whole_set", 60] == {"scheme": "whole_set", "paper_p": 60}
    assert found["uniform", 60] == {"scheme": "uniform", "paper_r": 0.6}
    assert found["whole_set", 0] == found["uniform", 0] == {}
    assert found["whole_set", 5] == {}  # 5 // 10 copies are none


def test_the_key_holds_what_is_computed_and_neither_device_nor_paths(registry):
    def key(data="d", **base):
        return next(iter(grid(registry, data, base=base, factors={"objective": ["trades"]}, seeds=1).cells))

    plain = key()
    assert key(device="cuda", threads=3, out="/elsewhere", data="d") == plain  # the data's fingerprint is the same
    assert key(lr=0.005) == plain  # the default
    assert key("other data") != plain
    for change in ({"precision": "bf16"}, {"lr": 0.2}, {"batch_size": 32}, {"epochs": 3}, {"test_n": 10}):
        assert key(**change) != plain

    def objective(text):
        return next(iter(grid(registry, base={}, factors={"objective": [text]}, seeds=1).cells))

    assert objective("trades") == objective("trades(beta=6)") != objective("trades(beta=1)")
    assert objective("standard") != objective("pgd_at")


def test_an_inner_attack_that_is_not_called_is_not_in_the_key(registry):
    factors = {"objective": ["standard", "pgd_at"], "attack": ["pgd(steps=3)", "pgd(steps=5)"]}
    assert len(grid(registry, base={}, factors=factors, seeds=1).cells) == 3


@pytest.mark.parametrize(
    ("content", "code", "names"),
    [
        ({"factors": {"beta": [1, 6]}}, "bad-factor", ["'beta'", "trades", "objective: [trades(beta=1)"]),
        ({"factors": {"objectiv": ["standard"]}}, "unknown-factor", ["'objectiv'", "Did you mean 'objective'"]),
        ({"factors": {"seed": [1]}}, "bad-factor", ["seeds: 5"]),
        ({"factors": {"condition": ["copies", "as-weight"]}}, "unknown-control-condition", ["'as-weight'", "'as-weights'"]),
        ({"base": {"learning_rate": 0.1}}, "unknown-key", ["base", "'learning_rate'"]),
        ({"base": {"seed": 3}}, "bad-factor", ["seeds", "base"]),
        ({"base": {}, "factors": {"dose": [0, 0.5]}}, "bad-value", ["scheme", "duplicate"]),
        ({"factors": {"budget": ["fixed"]}}, "unknown-budget", ["'fixed'"]),
        ({"factors": {"dose": [0, 0]}}, "bad-value", ["'dose'", "twice"]),
        ({"factors": {"dose": []}}, "bad-value", ["'dose'", "no levels"]),
        ({"factors": {"dose": [0, 0.5]}, "exclude": [{"doses": 0}]}, "unknown-factor", ["exclusion 1", "'doses'"]),
        ({"factors": {"dose": [0, 0.5]}, "exclude": [{"dose": 0.4}]}, "unknown-level", ["'dose'", "exclusion 1", "'0.4'"]),
        ({"factors": {"dose": [0]}, "analysis": {"contrasts": ["scheme"]}}, "unknown-factor", ["analysis.contrasts"]),
        ({"analysis": {"margins": {"clean_accuracy": -1}}}, "bad-value", ["above 0"]),
        ({"analysis": {"marginz": {}}}, "bad-value", ["marginz"]),
        ({"seeds": 0}, "bad-value", ["seed"]),
        ({"seeds": [1, 1]}, "bad-value", ["seeds", "different"]),
        ({"name": "../elsewhere"}, "bad-value", ["'../elsewhere'"]),
        ({"protocol": "as-publish"}, "unknown-protocol", ["'as-published'"]),
        ({"facters": {}}, "unknown-configuration-key", ["Did you mean 'factors'"]),
    ],
)  # fmt: skip
def test_mistakes_are_named(registry, content, code, names):
    with raises(code, UserError, *names):
        grid(registry, **content)


def test_a_mistake_in_a_cell_names_the_cell(registry):
    with pytest.raises(UserError, match=r"Cell \(dose 50\): .*from 0 to below 1"):
        grid(registry, factors={"dose": [0, 50]})


def test_a_cell_that_cannot_be_trained_is_refused_before_anything_runs(registry):
    from robustdup.jobs.training import check

    config = recipe(base={}, factors={"objective": ["standard", "traids"]})
    with raises("unknown-objective", UserError, "Cell (objective traids)", "'traids'", "'trades'"):
        build_grid(config, registry, lambda train: "d", lambda train: check(train, registry))


@pytest.mark.timing
def test_a_million_cells_are_counted_at_once_and_refused(within):
    config = recipe(factors={"dose": [i / 1000 for i in range(1000)], "lr": [i + 1 for i in range(500)]})
    with within(1):
        assert count_runs(config) == 1_000_000
        with raises("too-many-cells", UserError, "1,000,000 cells (1000 dose × 500 lr × 2 seeds)", "--yes"):
            check_size(config, yes=False)
        check_size(config, yes=True)


TOOLKITS = ("torchattacks", "art", "foolbox")


def _has(registry, prefix):
    return any(name.startswith(f"{prefix}:") for name in registry.attacks)


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipes_of_the_repository_are_valid(file, registry, monkeypatch):
    from robustdup_study import cell as study
    from robustdup_study.paper_2504_00638.protocol import paper_grid

    from robustdup.jobs.training import check

    config = load_recipe(file, [])
    missing = {prefix for prefix in TOOLKITS if f"{prefix}:" in file.read_text() and not _has(registry, prefix)}
    if missing:
        pytest.skip(f"no plugin here brings {', '.join(sorted(missing))}")
    if config.protocol == "as-published":
        monkeypatch.setattr(study, "data_fingerprint", lambda *_: "d")
        made = paper_grid(config)
        # All doses of the standard arm are one cell.
        levels = {name: len(found) for name, found in config.factors.items()}
        adversarial = levels["percent"] * levels.get("clamp", 1)
        standard = int("standard" in config.factors.get("arm", ["standard"]))
        assert len(made.cells) == (standard + adversarial) * len(config.seed_list)
    else:
        made = build_grid(config, registry, lambda train: "d", lambda train: check(train, registry))
    assert len(made.cells) >= 2
    for wanted in config.analysis.primary:  # every primary comparison names lines that there are
        keys = {key: value for key, value in wanted.items() if key in config.factors}
        assert any(
            all(line.factors.get(k) in (v if isinstance(v, list) else [v]) for k, v in keys.items())
            for line in made.runs
        )


def test_there_are_recipes():
    assert {"quickstart", "paper-as-published", "paper-repaired", "paper-extended", "cifar10-small-cpu"} <= {
        file.stem for file in RECIPES
    }


def test_recipes_that_say_arm_and_beside_are_read_with_a_note(registry):
    def cells(condition):
        return {
            "factors": {"dose": [0, 0.5], condition: ["copies", "as-weights"]},
            "exclude": [{condition: "as-weights", "dose": 0.5}],
            "base": {"epochs": 4, "duplicate": {"scheme": "uniform"}},
            "analysis": {"contrasts": [condition], "primary": [{"contrast": condition}]},
        }

    with pytest.warns(FutureWarning, match="'arm' is now called 'condition'"):
        old = load_recipe(None, [], cells("arm"))
    assert old == load_recipe(None, [], cells("condition"))
    with pytest.warns(FutureWarning, match="'beside' is now called 'compare_with'"):
        old = load_recipe(None, ["beside=[studies/other]"])
    assert (old.compare_with, old.beside) == (["studies/other"], [])
    published = load_recipe(None, [], {"protocol": "as-published", "factors": {"arm": ["standard"]}})
    assert list(published.factors) == ["arm"]


def test_cells_that_were_trained_before_an_option_came_keep_their_keys(registry):
    """A new option of training that is not named in `_NEWER` makes all published cells missing."""
    made = grid(registry, seeds=1, factors={"objective": ["standard", "trades"], "dose": [0.5]})
    assert list(made.cells) == ["e2a231ec4f097fd7", "764e504fc7aed52c"]


def extra_file(folder, value=0.5, n=40):
    """Write n images of 8x8 pixels with labels 0 to 9 as a person would keep generated ones."""
    path = folder / "generated.npz"
    images = np.random.default_rng(0).uniform(0, value, (n, 8, 8, 1))
    np.savez(path, image=(255 * images).astype(np.uint8), label=np.arange(n) % 10)
    return path


def test_extra_data_stands_in_for_copies_in_its_own_condition_only(registry):
    made = grid(
        registry,
        base={"extra_data": "generated.npz", "duplicate": {"scheme": "uniform"}},
        factors={"dose": [0, 0.25], "condition": ["copies", "extra-data"]},
        seeds=1,
    )
    assert len(made.cells) == 3  # without copies there is no extra data either
    settings = {(r.factors["dose"], r.factors["condition"]): made.cells[r.key].settings for r in made.runs}
    beside = settings[0.25, "extra-data"]
    assert (beside["extra_data"], beside["extra_share"], beside["duplicate"]) == ("generated.npz", 0.25, {})
    assert settings[0.25, "copies"]["extra_data"] is None
    assert settings[0, "extra-data"]["extra_data"] is None
    with raises("missing-option", UserError, "extra_data"):
        grid(registry, factors={"scheme": ["uniform"], "dose": [0.25], "condition": ["extra-data"]})


def test_extra_data_is_a_factor_beside_the_dose(registry):
    levels = [0, 0.3, {"name": "other", "data": "other.npz", "share": 0.5, "labels": "builtin:digits-robust"}]
    base = {"extra_data": "generated.npz", "extra_split": "train", "duplicate": {"scheme": "uniform"}}
    made = grid(registry, base=base, factors={"extra": levels, "dose": [0, 0.5]}, seeds=1)
    assert len(made.cells) == 6
    found = {r.factors["extra"]: made.cells[r.key].settings for r in made.runs if r.factors["dose"] == 0.5}
    assert (found[0]["extra_data"], found[0]["extra_split"]) == (None, None)
    assert (found[0.3]["extra_data"], found[0.3]["extra_share"]) == ("generated.npz", 0.3)
    assert (found["other"]["extra_data"], found["other"]["extra_labels"]) == ("other.npz", "builtin:digits-robust")
    with raises("missing-option", UserError, "no extra data"):
        grid(registry, factors={"extra": [0, 0.3]})
    with raises("bad-factor", UserError, "sets data"):
        grid(registry, factors={"extra": [{"name": "a", "date": "x"}]})


def test_the_key_of_a_cell_hangs_on_the_extra_images_and_not_on_their_path(tmp_path):
    from robustdup_study.cell import training_grid
    from robustdup_study.recipe import StudyConfig

    def key(path):
        base = {"data": "builtin:digits", "extra_data": str(path), "extra_share": 0.5, "epochs": 1, "batch_size": 64}
        config = StudyConfig.model_validate({"base": base, "factors": {"objective": ["standard"]}, "seeds": 1})
        return training_grid(config).runs[0].key

    first, moved, other = (tmp_path / name for name in ("first", "moved", "other"))
    for folder in (first, moved, other):
        folder.mkdir()
    same = key(extra_file(first))
    assert key(extra_file(moved)) == same
    assert key(extra_file(other, value=0.9)) != same
