"""The classes of a model and of data, compared by name: label 3 of the one need not be output 3 of the other.

Names that mean the same class are found in steps: as they stand, without regard to case and punctuation, by one of several
names ("tench, Tinca tinca"), by WordNet id, without a leading number, in the singular, by a few well-known synonyms, and without
the words around them ("class_cat", "animal/cat", "cat (3)"). Only names that stay distinct on both sides are compared in a step.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustdup.errors import UserError

SHOWN = 5  # names that a message lists
NAMED_BY = ("class_names", "classes", "label_names", "labels", "id2label", "idx_to_class", "class_to_idx", "label2id")
SETTINGS = ("meta", "metadata", "hyper_parameters", "hparams", "config", "cfg", "args", "model_args", "dataset_meta")

# Names under which data sets keep the same class: CIFAR-10 and STL-10, MNIST and SVHN, and what people call them.
SYNONYMS = {
    "plane": "airplane", "aeroplane": "airplane", "aircraft": "airplane", "car": "automobile", "auto": "automobile",
    "motorcar": "automobile", "lorry": "truck", "motorbike": "motorcycle", "bike": "bicycle", "sofa": "couch",
    "tvmonitor": "tv", "television": "tv", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "0zero": "0", "1one": "1", "2two": "2", "3three": "3", "4four": "4",
    "5five": "5", "6six": "6", "7seven": "7", "8eight": "8", "9nine": "9", "tee": "tshirttop", "tshirt": "tshirttop",
    "negative": "neg", "positive": "pos",
}  # fmt: skip


@dataclass(frozen=True)
class ClassMatch:
    """What comparing names said.

    Args:
        order: for each class that the model is to answer for, which of its outputs that is: the data's classes first, in
            their order, then its others. None where outputs stay as they are.
        note: what a reader should know; empty where the names are the same in the same order, or unknown.
        doubtful: whether the labels may mean other classes than the outputs.
    """

    order: tuple[int, ...] | None = None
    note: str = ""
    doubtful: bool = False


def match_classes(
    model_names: Sequence[str], data_names: Sequence[str], *, outputs: int, labels: Iterable[int] = ()
) -> ClassMatch:
    """Compare the names of a model's outputs with those of the data's classes.

    Args:
        model_names: a name for each output; empty where unknown.
        data_names: a name for each class of the data; empty where unknown.
        outputs: number of the model's outputs.
        labels: classes that occur among the samples.

    Returns:
        An order of outputs where the names say for certain which is which; a doubt where they share nothing.

    Raises:
        UserError: other-classes, where some names are the same, in other places, and a class that occurs is unknown to the
            model.
    """
    if len(model_names) != outputs or not _are_names(model_names) or not _are_names(data_names):
        return ClassMatch()
    numbered = [all(_is_number(name) for name in names) for names in (model_names, data_names)]
    if any(numbered) and not _same_numbers(model_names, data_names):
        return ClassMatch()  # numbers are names only where both sides have the same ones
    places, how = places_of(model_names, data_names)
    known = [place for place in places if place is not None]
    unknown = [number for number, place in enumerate(places) if place is None]
    present = set(labels) or set(range(len(data_names)))
    if not known:
        return ClassMatch(note=_nothing_shared(model_names, data_names), doubtful=True)
    in_place = all(place in (None, number) for number, place in enumerate(places))
    if not unknown:
        if in_place:
            return ClassMatch()
        order = (*known, *(each for each in range(outputs) if each not in set(known)))
        return ClassMatch(order, _mapped(model_names, data_names, places, how))
    if in_place and len(data_names) == outputs and 2 * len(known) >= len(data_names):
        pairs = ", ".join(f"{data_names[n]!r} for {model_names[n]!r}" for n in unknown[:SHOWN])
        note = f"{len(unknown)} classes have other names in the data ({pairs}); the others agree in number and name, "
        return ClassMatch(note=f"{note}so these are taken to be the same.", doubtful=True)
    if present & set(unknown):
        raise UserError(_not_the_same(model_names, data_names, unknown, len(known)), code="other-classes")
    return _with_places_for_unknown(model_names, data_names, places, how, outputs)


def _with_places_for_unknown(
    model_names: Sequence[str], data_names: Sequence[str], places: Sequence[int | None], how: str, outputs: int
) -> ClassMatch:
    """Map the classes that both know, where no sample is of another: unknown ones take outputs that are left."""
    taken = {place for place in places if place is not None}
    left = iter([each for each in range(outputs) if each not in taken])
    order = []
    for place in places:
        output = next(left, None) if place is None else place
        if output is None:  # more classes than outputs: the check of labels has the last word
            break
        order.append(output)
    order += list(left)
    missing = [data_names[n] for n, place in enumerate(places) if place is None]
    note = f"The model does not know {_listed(missing)}, of which there is no sample. "
    if order == list(range(outputs)):
        return ClassMatch(note=note.strip())
    return ClassMatch(tuple(order), note + _mapped(model_names, data_names, places, how))


def _are_names(names: Sequence[str]) -> bool:
    """Tell whether names say anything: not LABEL_0, class_1, unknown, and one for each class."""
    generic = re.compile(r"(label|class|cls|category|target|output|unknown|none)?[\s_-]*\d*", re.I)
    keys = [name.strip() for name in names]
    return bool(keys) and not all(generic.fullmatch(key) and not _is_number(key) for key in keys)


def _is_number(name: str) -> bool:
    return name.strip().isdigit()


def _same_numbers(model_names: Sequence[str], data_names: Sequence[str]) -> bool:
    """Tell whether both sides are the same numbers, as numerals, words or both ("0 - zero")."""
    theirs, ours = ({_synonym(name).lstrip("0") or "0" for name in names} for names in (model_names, data_names))
    return theirs == ours and all(name.isdigit() for name in ours)


def _plain(name: str) -> str:
    """Return the letters and digits of a name, in lower case and without accents."""
    text = unicodedata.normalize("NFKD", name).casefold()
    return "".join(letter for letter in text if letter.isalnum())


def _unnumbered(name: str) -> str:
    """Return a name without a leading number or WordNet id: "001.Albatross", "n02085620-Chihuahua", "03_cat"."""
    rest = re.sub(r"^\s*(n\d{8}|\d+)[\s._-]+(?=[^\W\d])", "", name)
    return _plain(rest)


def _singular(name: str) -> str:
    plain = _unnumbered(name)
    if plain.endswith("ies") and len(plain) > 4:
        return plain[:-3] + "y"
    return plain[:-1] if plain.endswith("s") and not plain.endswith("ss") and len(plain) > 3 else plain


def _synonym(name: str) -> str:
    plain = _plain(name)
    for key in (plain, _unnumbered(name), _singular(name)):
        if key in SYNONYMS:
            return SYNONYMS[key]
    return (plain.lstrip("0") or "0") if plain.isdigit() else _singular(name)


def _first(name: str) -> str:
    return _plain(name.split(",")[0])


def _wordnet_id(name: str) -> str:
    number = re.search(r"(?<![a-z0-9])n\d{8}(?!\d)", name)
    return number[0] if number else ""


def _core(name: str) -> str:
    """Return the last part of a path, without brackets and article: "animal/the cat (3)" is cat."""
    rest = re.sub(r"\(.*?\)|\[.*?\]", "", name).rpartition("/")[2].strip()
    return _synonym(re.sub(r"^(a|an|the)\s+", "", rest, flags=re.I))


def _without_shared_words(names: Sequence[str]) -> list[str]:
    """Return names without the words that all begin with: "class_cat", "a photo of a cat"."""
    low, high = min(names, default=""), max(names, default="")  # what these share, all do
    same = next((place for place, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), 0)
    cut = max(low.rfind(mark, 0, same) for mark in " _-/:.") + 1
    return [name[cut:] for name in names]


_STEPS: tuple[tuple[Callable[[str], str], str], ...] = (
    (lambda name: name, ""),
    (_plain, "spelt otherwise"),
    (_first, "by the first of several names"),
    (_wordnet_id, "by WordNet id"),
    (_unnumbered, "without leading numbers"),
    (_singular, "in the singular"),
    (_synonym, "by well-known synonyms"),
    (_core, "without the words around them"),
)


def places_of(model_names: Sequence[str], data_names: Sequence[str]) -> tuple[list[int | None], str]:
    """Return for each class of the data which output it is (None where no name says so), and how the names agreed.

    Names that a step finds are left out of those after it; the first step that leaves none to find ends the search.
    """
    model_names, data_names = _without_shared_words(model_names), _without_shared_words(data_names)
    places: list[int | None] = [None] * len(data_names)
    ways: list[str] = []
    for key, how in _STEPS:
        free = [n for n, place in enumerate(places) if place is None]
        outputs = [n for n in range(len(model_names)) if n not in set(places)]
        if not free:
            break
        theirs, ours = ([key(names[n]) for n in some] for names, some in ((model_names, outputs), (data_names, free)))
        for number, name in zip(free, ours, strict=True):
            if name and ours.count(name) == 1 and theirs.count(name) == 1:
                places[number] = outputs[theirs.index(name)]
                ways += [how] if how and how not in ways else []
    return places, ", ".join(ways)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:SHOWN])
    return f"{shown}, … ({len(names)})" if len(names) > SHOWN else shown


def _mapped(model_names: Sequence[str], data_names: Sequence[str], places: Sequence[int | None], how: str) -> str:
    moved = [(n, place) for n, place in enumerate(places) if place is not None and place != n]
    pairs = ", ".join(f"{data_names[n]} {n} = output {place}" for n, place in moved[:SHOWN])
    more = f", … ({len(moved)})" if len(moved) > SHOWN else ""
    left = len(model_names) - len(data_names)
    others = f" The data have {len(data_names)} of the model's {len(model_names)} classes." if left > 0 else ""
    spelt = f" Names were compared {how}." if how else ""
    return f"Model and data number their classes differently: mapped by name ({pairs}{more}).{others}{spelt}"


def _nothing_shared(model_names: Sequence[str], data_names: Sequence[str]) -> str:
    return (
        f"The classes of the model ({_listed(model_names)}) and of the data ({_listed(data_names)}) share no name; they are "
        "compared by number. If they are not in the same order, all accuracies here are wrong."
    )


def _not_the_same(model_names: Sequence[str], data_names: Sequence[str], unknown: Sequence[int], known: int) -> str:
    ours = [data_names[n] for n in unknown]
    return (
        f"Model and data have other classes: {known} names are the same, but the model does not know {_listed(ours)} of the "
        f"data; its classes are {_listed(model_names)}. Leave such samples out, give both the same names, or, if the numbers "
        "are right whatever the names say, add --class-names ignore."
    )


def names_in(content: Mapping[Any, Any]) -> list[str]:
    """Return the class names that a checkpoint or a configuration keeps under a usual key, in order; [] where it does not.

    They are looked for at the top and in what is kept beside the weights: settings, meta data.
    """
    inner = [content.get(key) for key in SETTINGS]
    for place in (content, *(each if isinstance(each, Mapping) else getattr(each, "__dict__", {}) for each in inner)):
        by_name = {str(key).lower(): value for key, value in place.items()}
        for key in NAMED_BY:
            names = _in_order(by_name.get(key))
            if names:
                return names
    return []


def _in_order(value: Any) -> list[str]:
    """Read names from a list, from {name: number} or from {number: name}; [] for anything else."""
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return list(value)
    if not isinstance(value, Mapping) or not value:
        return []
    count = len(value)
    for pairs in (value.items(), ((number, name) for name, number in value.items())):
        by_number = {_whole(number): str(name) for number, name in pairs}
        for first in (0, 1):  # those that count from 1 mean the outputs in order
            if set(by_number) == set(range(first, first + count)):
                return [by_number[number] for number in range(first, first + count)]
    return []


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
