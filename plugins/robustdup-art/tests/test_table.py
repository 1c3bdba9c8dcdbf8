"""The table against the installed ART: no class is missing, and options and defaults are ART's own."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
from robustdup_art.entry import Entry
from robustdup_art.table import ENTRIES, UNAVAILABLE

from robustdup import Registry

MANAGED = {"estimator", "classifier", "batch_size", "verbose"}


def _art_classes() -> dict[str, type]:
    import art.attacks.evasion as evasion

    return {name: value for name, value in vars(evasion).items() if inspect.isclass(value)}


def test_no_evasion_attack_of_art_is_missing(registry: Registry) -> None:
    listed = {name.removeprefix("art:") for name in registry.attacks}
    assert set(_art_classes()) - listed == set()
    # BrendelBethgeAttack exists only where numba does.
    assert listed - set(_art_classes()) <= {"BrendelBethgeAttack"}
    assert not {entry.name for entry in ENTRIES} & set(UNAVAILABLE)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_options_are_those_of_the_installed_class(entry: Entry) -> None:
    art_class = _art_classes().get(entry.name)
    if art_class is None:
        pytest.skip(f"{entry.name} needs {entry.needs}")
    parameters = dict(list(inspect.signature(art_class.__init__).parameters.items())[1:])
    ours = {*entry.options, *entry.changed, *entry.fixed, *entry.unused}
    ours |= {name for name in (entry.eps, entry.order) if name}
    assert set(parameters) == ours | (MANAGED & set(parameters)) | (ours & MANAGED)
    assert {name: parameters[name].default for name in entry.options} == dict(entry.options)
    for name, (value, reason) in entry.changed.items():
        assert parameters[name].default != value
        assert reason
    assert set(entry.steps) <= set(entry.defaults)
    assert set(entry.choices) <= set(entry.defaults)
    assert not set(entry.extra) & set(parameters)


def test_registering_imports_neither_art_nor_torch() -> None:
    code = (
        "import sys; from robustdup import Registry; import robustdup_art; robustdup_art.register(Registry());"
        "assert not {'art', 'torch', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_attack_says_what_it_is(registry: Registry) -> None:
    for spec in registry.attacks.values():
        assert spec.url.startswith("https://"), spec.name
        if spec.available:
            assert spec.description, spec.name
            assert spec.check_options(spec.quick) == dict(spec.quick), spec.name
        else:
            assert len(spec.reason) > 20, spec.name
    for name in ("AdversarialPatchTensorFlowV2", "CarliniWagnerASR", "DPatch", "OverTheAirFlickeringPyTorch"):
        assert not registry.attacks[f"art:{name}"].available


def test_at_least_thirty_attacks_are_demonstrated(registry: Registry) -> None:
    """`test_conformance` shows each of those that are not marked as undemonstrated."""
    shown = [spec.name for spec in registry.attacks.values() if spec.available and not spec.undemonstrated]
    assert len(shown) >= 30


def test_autoattack_of_art_says_that_it_is_not_autoattack(registry: Registry) -> None:
    warning = registry.attacks["art:AutoAttack"].warning
    assert "no FAB" in warning
    assert "DeepFool" in warning


@pytest.mark.parametrize("name", ["FastGradientMethod", "ProjectedGradientDescent", "SquareAttack", "AutoAttack"])
def test_norms_in_which_art_fails_silently_are_not_offered(registry: Registry, name: str) -> None:
    assert "L1" not in registry.attacks[f"art:{name}"].norms


def test_missing_packages_are_named(registry: Registry) -> None:
    import importlib.util

    for entry in ENTRIES:
        missing = [package for package in entry.needs if importlib.util.find_spec(package) is None]
        spec = registry.attacks[f"art:{entry.name}"]
        assert spec.available == (not missing)
        assert all(package in spec.reason for package in missing)
