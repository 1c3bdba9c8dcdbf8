"""The table against the installed adv-lib: no function missing, no option wrong, nothing imported to list it."""

import importlib.util
import inspect
import re
import subprocess
import sys

import pytest
import robustdup_advlib
from robustdup_advlib.adapter import load
from robustdup_advlib.table import ENTRIES, ascii_name

from robustdup import Registry, UserError, how_to_install

BY_NAME = {entry.name: entry for entry in ENTRIES}


def registered() -> Registry:
    registry = Registry()
    robustdup_advlib.register(registry)
    return registry


def test_every_attack_on_classifiers_is_in_the_table_and_nothing_else():
    load(ENTRIES[0])
    attacks = importlib.import_module("adv_lib.attacks")
    exported = {name for name, value in vars(attacks).items() if inspect.isfunction(value)}
    assert set(BY_NAME) == exported | {"minimal_apgd"}
    assert len(ENTRIES) == 20
    assert set(registered().attacks) == {f"advlib:{name}" for name in BY_NAME}


@pytest.mark.parametrize("name", BY_NAME)
def test_options_and_defaults_are_the_functions(name):
    entry = BY_NAME[name]
    parameters = {ascii_name(key): p for key, p in inspect.signature(load(entry)).parameters.items()}
    for given in ("model", "labels", "images" if name == "perc_al" else "inputs", *entry.left_out):
        del parameters[given]  # a KeyError here: the table leaves out what is not there
    for filled in (entry.norm, entry.eps):
        parameters.pop(ascii_name(filled), None)
    assert list(entry.options) == list(parameters)
    for option, parameter in parameters.items():
        assert option in entry.own_defaults or entry.options[option] == parameter.default, option
    assert registered().attacks[f"advlib:{name}"].defaults == dict(entry.options)


def test_listing_imports_nothing_of_adv_lib():
    code = (
        "import sys, robustdup, robustdup_advlib; registry = robustdup.Registry(); robustdup_advlib.register(registry);"
        "assert len(registry.attacks) == 20; assert not {'adv_lib', 'visdom', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_stand_in_for_visdom_stays_behind():
    load(ENTRIES[0])
    assert importlib.util.find_spec("visdom") is not None or "visdom" not in sys.modules


def test_without_adv_lib_every_attack_is_listed_with_the_reason(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "adv_lib" else real(name, *a))
    registry = registered()
    assert len(registry.attacks) == 20
    assert not any(spec.available for spec in registry.attacks.values())
    command = how_to_install("--no-deps", "adv-lib>=0.2.8,<0.3")
    with pytest.raises(UserError, match=re.escape(f"adv-lib is not installed: {command}")):
        registry.get_attack("advlib:ddn")


def test_a_wrong_option_is_refused_with_the_right_one():
    spec = registered().attacks["advlib:alma"]
    with pytest.raises(UserError, match="rho_init"):
        spec.check_options({"rho_int": 0.1})
    with pytest.raises(UserError, match="dlr"):
        registered().attacks["advlib:apgd"].check_options({"loss_function": "cw"})
