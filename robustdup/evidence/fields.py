"""Which class each field of a bundle is in: rechecked here, consistent with what was, or only stated.

What is only stated is what is left: a field that nothing compares can be in no other class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

# Rows of samples.parquet: `clean` are those on clean images, `kept` those whose example the bundle holds, `others` the rest.
_WHO = ("position", "index", "label", "image_sha256")
_JUDGED = ("outcome", "prediction", "margin", "correct_share")
_PLACE = ("eps", "attack", "stage", "min_distance")
_FIXED = ("distance", "violation", "forward_passes", "backward_passes")
MANIFEST_FIELDS = ("format", "command", "data", "weights", "files", "sha256")
EXAMPLE_FIELDS = ("images", "labels", "index")


def sample_fields(*, random: bool) -> dict[str, list[str]]:
    """Return the class of each field of samples, examples and manifest; `random`: the model answers at random."""
    clean = [f"samples[clean].{name}" for name in _JUDGED]
    kept = [f"samples[kept].{name}" for name in (*_JUDGED, "distance")]
    stated = [f"samples[others].{name}" for name in ("prediction", "margin", "distance")]
    stated += [
        f"samples[{kind}].{name}" for kind in ("kept", "others") for name in ("forward_passes", "backward_passes")
    ]
    consistent = [f"samples.{name}" for name in _PLACE]
    consistent += [f"samples[clean].{name}" for name in _FIXED]
    consistent += [f"samples[{kind}].violation" for kind in ("kept", "others")]
    consistent += [f"samples[others].{name}" for name in ("outcome", "correct_share")]
    consistent += [f"manifest.{name}" for name in MANIFEST_FIELDS]
    rechecked = [f"samples.{name}" for name in _WHO] + [f"examples.{name}" for name in EXAMPLE_FIELDS]
    if random:
        stated += clean + kept
    else:
        rechecked += clean + kept
    return {"rechecked": rechecked, "consistent": consistent, "only_stated": stated}


def fields_of(
    record: Mapping[str, Any], rechecked: Sequence[str], derived: Sequence[str], samples: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
    """Put every field of a bundle into exactly one class.

    Args:
        record: the record as plain data.
        rechecked: its fields that were compared with what is seen here, as `record.n` or `record.attacks[].n_broken`.
        derived: its fields that were compared with what follows.
        samples: the same of the other files: see `sample_fields`.
    """
    classes: dict[str, list[str]] = {"rechecked": [], "consistent": [], "only_stated": []}
    seen, follows = set(rechecked), set(derived)
    for field in dict.fromkeys(leaves(record)):
        prefixes = _prefixes(field)
        kind = "rechecked" if seen & prefixes else "consistent" if follows & prefixes else "only_stated"
        classes[kind].append(field)
    return {kind: [*fields, *samples[kind]] for kind, fields in classes.items()}


def leaves(content: Any, place: str = "record") -> Iterator[str]:
    """Walk the fields of plain data that hold no others; members of a list share one name: record.attacks[].name."""
    if isinstance(content, Mapping) and content:
        for name, value in content.items():
            yield from leaves(value, f"{place}.{name}")
    elif isinstance(content, list | tuple) and content and isinstance(content[0], Mapping):
        for value in content:
            yield from leaves(value, f"{place}[]")
    else:
        yield place


def _prefixes(field: str) -> set[str]:
    """Return a field and all that hold it: record.data.n, record.data, record."""
    return {field, *(field[:end] for end, letter in enumerate(field) if letter in ".[")} - {"record"}
