"""What a model's answers rest on besides weights is put back too, wherever it lies; what it does not look at is left alone."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import sys
import threading
import types

import numpy as np
import torch
from torch import nn

from robustdup.evaluation.model_state import ModelState
from robustdup.models.adapt import Adaptation, adapted
from tests.evaluation.test_guard import Net, run, step
from tests.lanes import each_once

SIGN, TABLE, NUMBERS, SETTINGS = 1.0, {"sign": 1.0}, [1.0], types.ModuleType("settings")
SETTINGS.SIGN = 1.0
HISTORY = []  # of an attack: no model looks at it


def turned(logits):
    return SIGN * logits


def enclosing():
    numbers = [1.0]
    return lambda logits: numbers[0] * logits


class Global(Net):
    def forward(self, images):
        return turned(super().forward(images))


class GlobalTable(Net):
    def forward(self, images):
        return TABLE["sign"] * super().forward(images)


class GlobalList(Net):
    def forward(self, images):
        return NUMBERS[0] * super().forward(images)


class Module(Net):
    def forward(self, images):
        return SETTINGS.SIGN * super().forward(images)


class Default(Net):
    def forward(self, images, table={"sign": 1.0}):  # noqa: B006
        return table["sign"] * super().forward(images)


class Holding(Net):
    """A network whose sign lies in what one of its attributes holds."""

    def __init__(self, content, ask):
        super().__init__()
        self.content, self.ask = content, ask

    def forward(self, images):
        return self.ask(self.content) * super().forward(images)


class Calling(Net):
    def __init__(self):
        super().__init__()
        self.last = enclosing()

    def forward(self, images):
        return self.last(super().forward(images))


class Unregistered(Net):
    def __init__(self):
        super().__init__()
        self.last = [nn.Linear(2, 2, bias=False)]
        self.last[0].weight.data = torch.eye(2)

    def forward(self, images):
        return self.last[0](super().forward(images)).detach()


class Plain:
    sign = 1.0


def plain():
    content = Plain()
    content.sign = 1.0
    return content


def item(key):
    """Return (what is asked of a container, what turns its sign)."""
    return lambda held: float(held[key]), lambda model: model.content.__setitem__(key, -1.0)


def attribute(make):
    """Return (a network that asks an object for its sign, what turns it)."""
    return lambda: Holding(make(), lambda held: held.sign), lambda model: setattr(model.content, "sign", -1.0)


def in_a_dict(model):
    model.content["a"][0] = -1.0


KINDS = {
    "a global": (Global, lambda model: globals().update(SIGN=-1.0)),
    "a table of the file": (GlobalTable, lambda model: TABLE.update(sign=-1.0)),
    "a list of the file": (GlobalList, lambda model: NUMBERS.__setitem__(0, -1.0)),
    "a module of settings": (Module, lambda model: setattr(SETTINGS, "SIGN", -1.0)),
    "code of a function of the file": (
        Global,
        lambda model: setattr(turned, "__code__", (lambda logits: -logits).__code__),
    ),
    "a default": (Default, lambda model: Default.forward.__defaults__[0].update(sign=-1.0)),
    "a list": (lambda: Holding([1.0], item(0)[0]), item(0)[1]),
    "a list in a dict": (lambda: Holding({"a": [1.0]}, lambda held: held["a"][0]), in_a_dict),
    "a tensor in a dict": (lambda: Holding({"a": torch.ones(1)}, lambda held: held["a"]), in_a_dict),
    "an array": (lambda: Holding(np.ones(1, np.float32), item(0)[0]), item(0)[1]),
    "a namespace": attribute(lambda: types.SimpleNamespace(sign=1.0)),
    "arguments": attribute(lambda: argparse.Namespace(sign=1.0)),
    "an object": attribute(plain),
    "what is enclosed": (Calling, lambda model: model.last.__closure__[0].cell_contents.__setitem__(0, -1.0)),
    "code of an attribute": (Calling, lambda model: setattr(model.last, "__code__", other_code())),
    "a function with arguments": (
        lambda: Holding(functools.partial(lambda table: table["sign"], {"sign": 1.0}), lambda held: held()),
        lambda model: model.content.args[0].update(sign=-1.0),
    ),
    "weights that are not registered": (Unregistered, lambda model: model.last[0].weight.data.neg_()),
}


def other_code():
    numbers = [1.0]
    return (lambda logits: -numbers[0] * logits).__code__


def hostile(kind, change):
    """Return an attack that reaches the original, and comes back with what differs a little from what it got."""

    def evil(model, images, labels, threat, *, rng):
        for original in [thing for thing in gc.get_objects() if type(thing) is kind]:
            with contextlib.suppress(Exception):  # the networks of other tests hold other things
                change(original)
        return (images + 0.001).clamp(0, 1)

    return evil


def copyable(make):
    return make()


def not_copyable(make):
    model = make()
    model.lock = threading.Lock()
    return model


@each_once(name=KINDS, kind=[copyable, not_copyable])
def test_no_attack_breaks_more_by_what_a_model_holds(name, kind):
    make, change = KINDS[name]
    model = kind(make)
    images = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    before = model.eval()(images).clone()
    result = run(hostile(type(model), change), model)
    assert int(result.broken.sum()) == 0
    assert int(result.undecided.sum()) == 0
    assert torch.equal(model(images), before)
    change(model)  # the other side: it is what the answers rest on
    assert not torch.equal(model(images), before)
    change_back()


def change_back():
    globals().update(SIGN=1.0)
    turned.__code__ = (lambda logits: SIGN * logits).__code__
    TABLE.update(sign=1.0)
    NUMBERS[0] = SETTINGS.SIGN = 1.0
    Default.forward.__defaults__[0].update(sign=1.0)


def test_honest_attacks_may_keep_what_no_model_looks_at():
    HISTORY.clear()

    def honest(model, images, labels, threat, *, rng):
        HISTORY.append(len(images))
        sys.modules[__name__].LAST = len(images)
        return step(model, images, labels, threat, rng=rng)

    assert int(run(honest, Global(), eps="0.3").broken.sum()) == 20
    assert sum(HISTORY) >= 20
    assert LAST > 0


LAST = 0


def test_what_is_put_around_a_model_cannot_be_changed_in_place():
    model = adapted(Net().eval(), Adaptation(order=(0, 1)))

    def evil(given, images, labels, threat, *, rng):
        for thing in gc.get_objects():
            if type(thing) is Adaptation and thing.order == (0, 1):
                vars(thing)["order"] = (1, 0)
        return (images + 0.001).clamp(0, 1)

    assert int(run(evil, model).broken.sum()) == 0
    assert model.adaptation.order == (0, 1)


def test_objects_that_refuse_to_be_looked_at_and_large_ones_are_left_alone():
    class Refusing:
        def __getattribute__(self, name):
            raise RuntimeError(name)

    loop = []
    loop.append(loop)
    many = [object() for _ in range(100_000)]
    model = Holding([Refusing(), loop, many, threading.Lock(), threading.Thread(), sys], lambda held: 1.0)
    state = ModelState([model])
    many.append(1)
    state.put_back()
    assert many[-1] == 1
    assert loop[0] is loop
