"""The table against the installed foolbox: no class missing, no option wrong, nothing imported to list it."""

import importlib.util
import inspect
import re
import subprocess
import sys

import pytest
import robustdup_foolbox
from robustdup_foolbox.table import ENTRIES

from robustdup import Registry, UserError, how_to_install

BY_NAME = {entry.name: entry for entry in ENTRIES}


def registered() -> Registry:
    registry = Registry()
    robustdup_foolbox.register(registry)
    return registry


def exported():
    from foolbox import attacks

    return {
        name: value
        for name, value in vars(attacks).items()
        if inspect.isclass(value) and issubclass(value, attacks.Attack) and not inspect.isabstract(value)
    }


def test_every_exported_class_and_alias_is_in_the_table_and_nothing_else():
    classes = {name for name, value in exported().items() if value.__name__ == name}
    assert set(BY_NAME) == classes
    assert len(ENTRIES) == len(classes) == 58
    aliases = {(name, value.__name__) for name, value in exported().items() if value.__name__ != name}
    assert {(alias, entry.name) for entry in ENTRIES for alias in entry.aliases} == aliases
    assert {f"foolbox:{name}" for name in classes} == set(registered().attacks)
    for alias, name in aliases:
        assert alias in registered().attacks[f"foolbox:{name}"].description
        assert registered().get_attack(f"foolbox:{alias}").name == f"foolbox:{name}"
        assert [stage.attack for stage in registered().stages(f"foolbox:{alias}")] == [f"foolbox:{name}"]


@pytest.mark.parametrize("name", BY_NAME)
def test_options_and_defaults_are_the_constructors(name):
    entry, parameters = BY_NAME[name], dict(inspect.signature(exported()[name]).parameters)
    for left_out in entry.left_out:
        del parameters[left_out]  # a KeyError here: the table leaves out what is not there
    assert list(entry.options) == list(parameters)
    for option, parameter in parameters.items():
        if option in entry.own_defaults:
            assert parameter.default is parameter.empty
        else:
            assert entry.options[option] == parameter.default, option
    shown = registered().attacks[f"foolbox:{name}"].defaults
    assert shown == dict(entry.options)


@pytest.mark.parametrize("name", BY_NAME)
def test_kind_and_norm_follow_the_class(name):
    from foolbox.attacks.base import FixedEpsilonAttack, FlexibleDistanceMinimizationAttack, MinimizationAttack

    entry, kind = BY_NAME[name], exported()[name]
    if name in ("InversionAttack", "SpatialAttack"):
        assert entry.kind == "unbounded"  # neither knows eps nor minimises
    else:
        assert entry.kind == ("bounded" if issubclass(kind, FixedEpsilonAttack) else "minimum-norm")
        assert issubclass(kind, FixedEpsilonAttack | MinimizationAttack)
    if issubclass(kind, FlexibleDistanceMinimizationAttack) or name in ("SpatialAttack", "HopSkipJumpAttack"):
        assert len(entry.norms) > 1
    else:
        power = kind.distance.fget(None).p if isinstance(kind.distance, property) else kind.distance.p
        assert entry.norms[0] == {0: "L0", 1: "L1", 2: "L2"}.get(power, "Linf")


def test_listing_imports_neither_foolbox_nor_eagerpy():
    code = (
        "import sys, robustdup, robustdup_foolbox; registry = robustdup.Registry(); robustdup_foolbox.register(registry);"
        "assert len(registry.attacks) == 58; assert not {'foolbox', 'eagerpy', 'numba'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_foolbox_every_attack_is_listed_with_the_reason(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "foolbox" else real(name, *a))
    registry = registered()
    assert len(registry.attacks) == 58
    assert not any(spec.available for spec in registry.attacks.values())
    with pytest.raises(UserError, match=re.escape(f"foolbox is not installed: {how_to_install('robustdup[foolbox]')}")):
        registry.get_attack("foolbox:DDNAttack")


def test_brendel_bethge_follows_numba(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "numba" else real(name, *a))
    unavailable = {name for name, spec in registered().attacks.items() if not spec.available}
    assert unavailable == {f"foolbox:{norm}BrendelBethgeAttack" for norm in ("L0", "L1", "L2", "Linfinity")}
    with pytest.raises(UserError, match=re.escape(how_to_install("numba"))):
        registered().get_attack("foolbox:L2BrendelBethgeAttack")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: real("json"))
    assert all(spec.available for spec in registered().attacks.values())


def test_a_wrong_option_is_refused_with_the_right_one():
    spec = registered().attacks["foolbox:EADAttack"]
    with pytest.raises(UserError, match="initial_stepsize"):
        spec.check_options({"inital_stepsize": 0.1})
    with pytest.raises(UserError, match="EN"):
        spec.check_options({"decision_rule": "L2"})
    assert spec.check_options({"decision_rule": "L1", "steps": 5}) == {"decision_rule": "L1", "steps": 5}
