"""The plugin door: names, options, files, decorators, entry points, and plugins that fail."""

import importlib.metadata
import textwrap
from typing import Literal

import pytest

import robustdup
from robustdup import AttackSpec, Registry, Stage, Unavailable, UserError, load_plugins
from robustdup.errors import how_to_install
from robustdup.plugins import loading
from tests.raising import raises


def step(model, images, labels, threat, *, rng, steps: int = 10, rate: float = 0.1, far: bool = False, kind="a"):
    """Do something."""
    return images


def spec(name="mine", **fields):
    return AttackSpec(**{"name": name, "function": step, "norms": ("Linf",), **fields})


def test_a_name_is_given_once_across_attacks_and_ensembles():
    registry = Registry()
    registry.add_attack(spec("one"))
    registry.add_ensemble("two", [Stage("one")])
    registry.add_loss("ce", step)
    for again in (
        lambda: registry.add_attack(spec("one")), lambda: registry.add_attack(spec("two")),
        lambda: registry.add_ensemble("one", []), lambda: registry.add_loss("ce", step),
    ):  # fmt: skip
        with raises("taken-name"):
            again()
    assert list(registry.attacks) == ["one"]


def test_the_source_is_the_prefix_or_the_plugin():
    registry = Registry()
    registry.run_plugin("lab", "lab", "1", lambda: lambda r: [r.add_attack(spec("plain")), r.add_attack(spec("art:X"))])
    assert (registry.attacks["plain"].source, registry.attacks["art:X"].source) == ("lab", "art")


@pytest.mark.parametrize("error", [ImportError("no torch2"), UserError("said so"), SystemExit(3), ValueError("x")])
def test_a_failing_plugin_is_rolled_back_and_harms_no_other(error):
    def broken(registry):
        registry.add_attack(spec("half"))
        registry.add_loss("half", step)
        raise error

    registry = Registry()
    registry.run_plugin("good", "good", "1", lambda: lambda r: r.add_attack(spec("before")))
    registry.run_plugin("bad", "bad", "2", lambda: broken)
    registry.run_plugin("late", "late", "3", lambda: lambda r: r.add_attack(spec("after")))
    assert list(registry.attacks) == ["before", "after"]
    assert not registry.losses
    assert [status.ok for status in registry.plugins] == [True, False, True]
    assert str(error) in registry.plugins[1].reason
    with raises("unknown-attack", UserError, "Plugins that did not load: bad ("):
        registry.get_attack("nothing")


def test_ctrl_c_is_not_swallowed():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Registry().run_plugin("x", "x", "1", interrupted)


def test_options_are_checked_and_take_the_type_of_their_default():
    checked = spec().check_options({"steps": 20.0, "rate": 1, "far": True})
    assert checked == {"steps": 20, "rate": 1.0, "far": True}
    assert (type(checked["steps"]), type(checked["rate"])) == (int, float)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"step": 1}, "unknown-option", "Unknown option of attack 'mine': 'step'. Did you mean 'steps'"),
        ({"steps": 1.5}, "bad-option", "'steps' of attack 'mine' must be a whole number such as 10, got 1.5"),
        ({"steps": True}, "bad-option", "a whole number"),
        ({"rate": "fast"}, "bad-option", "a number such as 0.1, got 'fast'"),
        ({"far": 1}, "bad-option", "true or false, got 1"),
        ({"rng": 1}, "unknown-option", "rng"),
    ],
)
def test_wrong_options_are_explained(options, code, message):
    with raises(code, UserError, message):
        spec().check_options(options)


def test_literal_and_required_options():
    def chosen(model, images, labels, threat, *, rng, mode: Literal["up", "down"] = "up", surrogate):
        return images

    mine = spec(function=chosen)
    assert mine.check_options({"mode": "down", "surrogate": "x"})["mode"] == "down"
    with raises("unknown-value", UserError, "'upp'. Did you mean 'up'"):
        mine.check_options({"mode": "upp", "surrogate": "x"})
    with raises("missing-option", UserError, "'surrogate'"):
        mine.check_options({})


@pytest.mark.parametrize(
    ("fields", "code", "names"),
    [
        ({"kind": "bound"}, "unknown-kind", "'bound'. Did you mean 'bounded'"),
        ({"knowledge": "whitebox"}, "unknown-knowledge", "'white-box'"),
        ({"batching": "pools"}, "unknown-batching", "'pool'"),
        ({"norms": "Linf"}, "bad-spec", "norms"),
        ({"norms": ("L3",)}, "bad-spec", "L3"),
        ({"function": None}, "bad-spec", "no function"),
        ({"available": False}, "bad-spec", "reason"),
        ({"function": lambda model, images, labels, threat: images}, "bad-spec", "'rng'"),
    ],
)
def test_specs_that_cannot_be_are_refused(fields, code, names):
    with raises(code, UserError, names):
        spec(**fields)


def test_cost_is_a_pair_or_a_function_of_the_options():
    assert spec(cost=(3, 2)).passes({"steps": 9}) == (3, 2)
    assert spec(cost=lambda options: (options["steps"], 0)).passes() == (10, 0)
    assert spec().passes() is None


def test_unavailable_and_unknown_attacks_say_why():
    registry = Registry()
    registry.add_attack(spec("art:Boundary", function=None, available=False, reason="needs numba"))
    with raises("unavailable", Unavailable, "art:Boundary", "needs numba"):
        registry.get_attack("art:Boundary")
    with raises("unknown-attack", UserError, "'art:Boundary'"):
        registry.get_attack("boundary")


def test_ensembles_become_stages_and_take_no_options():
    registry = Registry()
    registry.add_attack(spec("one"))
    registry.add_ensemble("both", [Stage("one"), Stage("one", {"steps": 3}, take=0.5)])
    assert [stage.take for stage in registry.stages("both")] == [1.0, 0.5]
    assert registry.stages("one", {"steps": 4}) == (Stage("one", {"steps": 4}),)
    with raises("bad-option", UserError, "'both'"):
        registry.stages("both", {"steps": 4})


def write(tmp_path, text, name="mine.py"):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return path


def test_a_file_of_decorated_functions_is_a_plugin(tmp_path):
    path = write(tmp_path, """
        from robustdup import register_attack

        @register_attack("centre", norms=["L2"], batching="pool", cost=(1, 0), quick={"steps": 2})
        def centre(model, images, labels, threat, *, rng, steps: int = 5):
            '''Walk to grey.

            More text.'''
            return images
    """)  # fmt: skip
    found = load_plugins([path]).attacks["centre"]
    assert (found.source, found.description, found.quick) == ("mine", "Walk to grey.", {"steps": 2})
    assert found.defaults == {"steps": 5}


def test_a_file_with_register_is_a_plugin_and_registers_nothing_twice(tmp_path):
    path = write(tmp_path, """
        import robustdup

        @robustdup.register_attack("a", norms=["L2"])
        def a(model, images, labels, threat, *, rng):
            return images

        def register(registry):
            registry.add_attack(a)
            registry.add_loss("zero", lambda logits, labels: logits[:, 0] * 0)
    """)  # fmt: skip
    registry = load_plugins([path])
    assert registry.plugins[-1].ok
    assert {"a", "pgd"} <= set(registry.attacks)
    assert "zero" in registry.losses


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("import nothing_like_this", "No module named 'nothing_like_this'"),
        ("x = 1", "neither a function register"),
        ("def register(registry:", "SyntaxError"),
        (
            "from robustdup import register_attack\n@register_attack('pgd', norms=['L2'])\ndef f(*, rng): ...",
            "already taken",
        ),
    ],
)
def test_a_file_that_fails_is_reported_with_its_reason(tmp_path, text, reason):
    registry = load_plugins([write(tmp_path, text)])
    assert reason in registry.plugins[-1].reason
    assert not registry.plugins[-1].ok
    assert registry.attacks["pgd"].source == "native"


def test_a_missing_file_is_reported(tmp_path):
    assert "there is no file" in load_plugins([tmp_path / "no.py"]).plugins[-1].reason


def test_entry_points_are_the_same_door(monkeypatch):
    class Point:
        name, dist = "stranger", None

        def __init__(self, load):
            self.load = load

    points = importlib.metadata.entry_points(group="robustdup.plugins")
    stranger = Point(lambda: lambda registry: registry.add_attack(spec("theirs")))
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [stranger, *points])
    monkeypatch.setattr(loading, "_installed", loading._installed.__wrapped__)  # as a new process looks
    registry = load_plugins()
    assert registry.attacks["theirs"].source == "stranger"
    assert registry.attacks["fgsm"].source == "native"  # built-ins first, whatever the order
    assert [status.name for status in registry.plugins][:3] == [
        "native-attacks",
        "native-data",
        "native-models",
    ]


def test_an_undecorated_function_is_not_an_attack():
    with raises("bad-spec", UserError, "@robustdup.register_attack"):
        Registry().add_attack(step)


def test_public_names_exist():
    for name in robustdup.__all__:
        assert getattr(robustdup, name) is not None


def test_what_a_plugin_of_ours_would_show_is_named_where_it_is_not_installed():
    with raises("plugin-not-installed", Unavailable, how_to_install("robustdup[corruptions]")):
        Registry().get_threat("corruptions(kinds=[fog])")
    assert Registry().get_threat("Linf 8/255 + L2 0.5") is Registry().get_threat(None) is None


@pytest.mark.parametrize(
    ("attack", "option", "ours"),
    [
        ("pgd", "alpha", "step_size"), ("pgd", "n_iter", "steps"), ("apgd-ce", "iters", "steps"), ("pgd", "nb_iter", "steps"),
        ("square", "n_queries", "queries"), ("apgd-ce", "n_restarts", "restarts"), ("pgd", "epsilon", "--eps"),
    ],
)  # fmt: skip
def test_words_of_other_toolkits_are_named(attack, option, ours):
    with raises("unknown-option", UserError, repr(option), ours):
        load_plugins().get_attack(attack).check_options({option: 2})
