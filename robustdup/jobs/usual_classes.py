"""Classes of data that have names, where the outputs of the model have none: what well-known orders of classes say of them.

Folders of CIFAR-10's classes come in the order of their letters, "bird" before "plane"; models of CIFAR-10 answer in its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from robustdup.data.layouts.binaries import CIFAR10
from robustdup.data.shifts import synsets
from robustdup.errors import Unavailable
from robustdup.models.class_names import ClassMatch, places_of

IMAGENET = 1000
ORDERS = {
    "CIFAR-10": CIFAR10,
    "STL-10": ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"),
    "Fashion-MNIST": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip
Right = Callable[[tuple[int, ...]], float]


def by_usual_order(data_names: Sequence[str], outputs: int, right: Right) -> ClassMatch:
    """Compare named classes of the data with the outputs of a model that has no names for them.

    WordNet ids are ImageNet's classes, whose outputs are known. Of other well-known sets the order is likely, not certain:
    where it is another than the data's and some images say that it fits better, that is a doubt.

    Args:
        data_names: a name for each class of the data.
        outputs: number of the model's outputs.
        right: the share of some images that are classified correctly with the outputs in an order.
    """
    if not data_names:
        return ClassMatch()
    if outputs == IMAGENET and all(re.match(r"n\d{8}\b", name) for name in data_names):
        return _of_imagenet(data_names)
    for name, usual in ORDERS.items():
        order = _order(usual, data_names) if outputs == len(usual) else None
        as_numbered = tuple(range(outputs))
        if order is None or order == as_numbered:
            continue
        before, after = right(as_numbered), right(order)
        if after > before:
            ours, theirs = (", ".join(names[:3]) for names in (data_names, usual))
            return ClassMatch(
                note=f"The data's classes are those of {name} in another order ({ours}, …), and the model has no names for its "
                f"outputs. As they are numbered {before:.0%} of some images are right, in {name}'s own order ({theirs}, …) "
                f"{after:.0%}: if the model answers in that, all accuracies here are wrong. Give the model an attribute "
                "class_names, or number the folders.",
                doubtful=True,
            )
    if 1 < len(data_names) < outputs:
        count = len(data_names)
        return ClassMatch(
            note=f"The data have {count} classes, the model {outputs} outputs without names: they are compared by number."
        )
    return ClassMatch()


def _of_imagenet(data_names: Sequence[str]) -> ClassMatch:
    try:
        whole = synsets("imagenet")
    except Unavailable as error:
        return ClassMatch(
            note=f"The data's {len(data_names)} classes are WordNet ids, and which outputs they are is not known: {error}",
            doubtful=len(data_names) < IMAGENET,
        )
    order = _order(whole, [name[:9] for name in data_names])
    if order is None:
        return ClassMatch(note="Some of the data's WordNet ids are not ImageNet's thousand classes.", doubtful=True)
    if order == tuple(range(IMAGENET)):
        return ClassMatch()
    return ClassMatch(
        order, f"The data's {len(data_names)} classes are mapped to ImageNet's outputs by their WordNet ids."
    )


def _order(usual: Sequence[str], data_names: Sequence[str]) -> tuple[int, ...] | None:
    """Return the outputs in the order of the data's classes, others after them; None where not all are known."""
    known = [place for place in places_of(usual, data_names)[0] if place is not None]
    if len(known) < len(data_names):
        return None
    return (*known, *(output for output in range(len(usual)) if output not in set(known)))
