"""The table against the installed package: no class missing, every option real, nothing imported early."""

import importlib.metadata
import importlib.util
import inspect
import subprocess
import sys

import pytest
from robustdup_torchattacks import adapter, register
from robustdup_torchattacks.table import ROWS

from robustdup import Registry, UserError, how_to_install

FROM_ELSEWHERE = {"self", "model", "eps", "max_epsilon", "norm", "seed", "verbose", "n_classes"}


def installed_classes():
    import torchattacks
    from torchattacks.attack import Attack

    return {
        name: value
        for name, value in vars(torchattacks).items()
        if inspect.isclass(value) and issubclass(value, Attack) and value is not Attack
    }


def test_every_attack_class_of_torchattacks_has_a_row():
    import torchattacks

    names = set(installed_classes())
    assert set(torchattacks.__all__) <= names
    assert len(names) == 39
    assert {row.name for row in ROWS} == names
    assert len(ROWS) == len(names)


@pytest.mark.parametrize("row", [row for row in ROWS if row.build != "multi_attack"], ids=lambda row: row.name)
def test_options_are_those_of_the_constructor(row):
    parameters = inspect.signature(installed_classes()[row.name].__init__).parameters
    real = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in FROM_ELSEWHERE | {"trainloader", "attack_class", "kwargs"}
    }
    forwarded = {"alpha"} if row.name == "LGV" else set()  # for its BIM
    assert {**row.options} == {name: default for name, default in real.items() if name not in row.steps}
    assert set(row.steps) - forwarded <= set(real)
    assert not set(row.own) & set(real)
    assert row.eps is None or row.eps in parameters or row.name == "LGV"
    assert row.takes_norm == ("norm" in parameters)
    assert row.takes_seed == ("seed" in parameters)
    assert row.takes_classes == ("n_classes" in parameters)


@pytest.mark.parametrize(("name", "option", "eps"), [
    ("PGD", "alpha", 8 / 255), ("FFGSM", "alpha", 8 / 255), ("BIM", "alpha", 8 / 255), ("Jitter", "alpha", 8 / 255),
    ("VMIFGSM", "alpha", 8 / 255), ("PGDRS", "alpha", 8 / 255), ("PGDL2", "alpha", 1.0), ("PGDRSL2", "alpha", 1.0),
])  # fmt: skip
def test_steps_that_follow_eps_equal_torchattacks_at_its_own_eps(name, option, eps):
    row = next(row for row in ROWS if row.name == name)
    own = inspect.signature(installed_classes()[name].__init__).parameters[option].default
    assert row.steps[option][1](eps, row.options) == pytest.approx(own)
    assert row.steps[option][1](2 * eps, row.options) == pytest.approx(2 * own)


def test_specs_show_real_options_and_check_them(registry):
    pgd = registry.attacks["torchattacks:PGD"]
    assert pgd.defaults == {"steps": 10, "random_start": True, "alpha": None}
    assert "alpha = eps / 4" in pgd.description
    with pytest.raises(UserError, match="Did you mean 'steps'"):
        pgd.check_options({"step": 3})
    with pytest.raises(UserError, match="margin"):
        registry.attacks["torchattacks:UPGD"].check_options({"loss": "margn"})
    assert registry.attacks["torchattacks:CW"].check_options({"c": 0.5}) == {"c": 0.5}


def test_registration_imports_neither_torchattacks_nor_torch():
    code = (
        "import sys, robustdup_torchattacks as p; from robustdup import Registry; r = Registry(); p.register(r); "
        "assert len(r.attacks) == 39; print([m for m in ('torch', 'torchattacks') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_without_torchattacks_all_are_listed_with_the_reason(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "torchattacks" else find(name, *a)
    )
    registry = Registry()
    register(registry)
    assert len(registry.attacks) == 39
    for spec in registry.attacks.values():
        assert not spec.available
        assert how_to_install("--no-deps", "torchattacks==3.5.1") in spec.reason
    with pytest.raises(UserError, match="cannot run here: torchattacks is not installed"):
        registry.get_attack("torchattacks:PGD")


def test_another_version_is_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.9")
    assert adapter.missing() == "torchattacks 9.9 is installed, and this table is of 3.5.1"


def test_what_is_not_the_reference_says_so(registry):
    for name in ("AutoAttack", "APGD", "APGDT", "FAB"):
        assert "Not the reference" in registry.attacks[f"torchattacks:{name}"].warning
        assert name not in registry.attacks
    assert "UnboundLocalError" in registry.attacks["torchattacks:FAB"].description
    assert all(spec.url.startswith("https://") for spec in registry.attacks.values())
