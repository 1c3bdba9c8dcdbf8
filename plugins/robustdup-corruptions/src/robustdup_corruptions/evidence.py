"""Rechecking a run on corruptions: its images are made again, or read, and judged, and nothing but its words is believed.

Corrupted images are a pure function of the clean ones, kind, severity and seed, so that a bundle needs to hold none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field
from torch import Tensor, nn

from robustdup.config import EvalConfig, validate
from robustdup.errors import UserError, plain
from robustdup.evidence.bundle import check_manifest, other_manifest, refused
from robustdup.evidence.derive import stated_twice
from robustdup.evidence.fields import MANIFEST_FIELDS, fields_of
from robustdup.evidence.verification import Signed
from robustdup.inflation import check_parquet
from robustdup.jobs.evaluation import given_data
from robustdup.jobs.trust import check_trust, without_demands
from robustdup.plugins import load_plugins
from robustdup.records import Accuracy
from robustdup_corruptions.record import TABLE_FILE, CorruptionRecord, load_corruption_record
from robustdup_corruptions.run import CorruptionRun, run_corruptions

# Fields of the record that are computed again, and those of them that hold for a model that answers at random, too.
SETS = (
    "n", "source", "missing", "severities", "seed", "kinds[].kind", "kinds[].family", "kinds[].severities[].severity",
    "kinds[].severities[].n", "kinds[].severities[].pixels",
)  # fmt: skip
ANSWERS = ("clean_accuracy", "corruption_accuracy", "mce", "kinds")
OF_MODEL = ("architecture", "fingerprint", "num_classes", "parameters", "class_order", "randomized", "batch_dependent")
OF_DATA = ("fingerprint", "image_shape")
OF_NAMED_DATA = (
    "class_names",
    "n_total",
    "selection",
    "split",
    "config",
)  # of data that was loaded by the name that the bundle gives
ROUNDING = 1e-4  # a margin up to which float32 may decide otherwise on another machine
LIKE = 1e-3  # by which margins may differ on another machine, absolutely or by their size
COLUMNS = ("index", "label", "kind", "severity")  # which image a row is about
JUDGED = ("prediction", "correct_share", "margin")  # what the model says of it
OTHER = ("norm", "eps", "threat")  # what a bundle says itself


class CorruptionVerification(Signed):
    """What making the corrupted images again, or reading them, and judging them says of a run on corruptions."""

    n: int = Field(description="Images of each kind and severity.")
    n_sets: int = Field(description="Kinds with severities that were judged again.")
    corruption_accuracy: Accuracy | None = Field(
        description="Mean over the fifteen kinds that were evaluated, as found here; null where none of them was."
    )
    stated: Accuracy | None = Field(description="The same, as the bundle states it.")
    randomized: bool = Field(
        default=False, description="Whether the model answers at random: then single answers are not compared."
    )
    n_other_pixels: int = Field(default=0, description="Sets whose images are others here than those that were judged.")
    n_differing: int = Field(default=0, description="Images on which the model answers otherwise here.")
    within_rounding: int = Field(default=0, description="Those of them whose margin is no more than float32 rounding.")
    notes: list[str] = Field(default_factory=list, description="What a reader should know.")

    @property
    def about(self) -> str:
        """What the model was shown."""
        return "common corruptions"

    def remarks(self) -> list[str]:
        """Return the stated accuracy, how many answers differ within rounding, and the notes."""
        stated = [] if self.stated is None else [f"{100 * self.stated.value:.2f}% is stated"]
        differ = [f"{self.within_rounding} answers differ within float32 rounding"] if self.within_rounding else []
        return [*stated, *differ, *self.notes]

    def headline(self) -> str:
        """Return what was found, in a sentence."""
        accuracy = self.corruption_accuracy
        mean = "no kind of the fifteen" if accuracy is None else f"{100 * accuracy.value:.2f}% corruption accuracy"
        return f"{mean}, judged again here on {self.n_sets} sets of {self.n} images."


def verify_corruptions(
    folder: Path, changes: Mapping[str, Any], *, trust: bool = False, model: nn.Module | None = None,
    images: Tensor | None = None, labels: Tensor | None = None,
) -> CorruptionVerification:  # fmt: skip
    """Make, or read, and judge everything again that a bundle of a run on corruptions speaks of; its hashes were checked.

    Args:
        folder: the bundle.
        changes: keys of EvalConfig that differ on this machine (data in another place, say).
        trust: whether code that the bundle names may run.
        model: replaces that of the bundle.
        images: clean images (N, C, H, W) in [0, 1] in place of the bundle's, with `labels`.
        labels: true classes (N,) int64.

    Raises:
        UserError: where it names code that the user did not, or objects in memory that were not given.
    """
    started = time.perf_counter()
    record, table = load_corruption_record(folder), _table(folder)
    stated = without_demands(record.config)
    for name in OTHER:
        if name in changes and changes[name] != stated.get(name):
            raise UserError(
                f"The bundle speaks of corruptions as it says itself. Leave out --{name}.", code="other-threat"
            )
    config = validate(EvalConfig, {**stated, **changes})
    missing = [
        name
        for name, given in (("model", model), ("data", images))
        if given is None and getattr(config, name) == "python"
    ]
    if missing:
        raise UserError(
            f"This bundle was made from objects in memory: name {' and '.join(f'--{name}' for name in missing)}, or call "
            "robustdup.verify(folder, model, images, labels).",
            code="bad-option",
        )
    check_trust(stated, origin="The bundle", own=[*changes, *(["model"] if model is not None else [])], trust=trust)
    data = None if images is None or labels is None else given_data(images, labels, config)
    result = run_corruptions(config, model=model, data=data, registry=load_plugins(config.plugin))
    problems = other_manifest(check_manifest(folder), record)
    named = data is None and "data" not in changes
    return _compared(record, table, result, problems, named=named).model_copy(
        update={"seconds": time.perf_counter() - started}
    )


def _table(folder: Path) -> pa.Table:
    try:
        check_parquet(folder / TABLE_FILE)
        with pq.ParquetFile((folder / TABLE_FILE).absolute()) as file:
            table = file.read()
    except (OSError, pa.ArrowException) as error:
        raise refused(f"{TABLE_FILE} cannot be read ({plain(error, 200)}).") from None
    if sorted(table.column_names) != sorted((*COLUMNS, *JUDGED)):
        raise refused(f"{TABLE_FILE} has other columns than a run writes.")
    for name in table.column_names:
        kind = table.schema.field(name).type
        number = pa.types.is_integer(kind) or (name in ("correct_share", "margin") and pa.types.is_floating(kind))
        if not (number if name != "kind" else pa.types.is_string(kind)) or table[name].null_count:
            raise refused(f"{TABLE_FILE} holds {kind} in the column {name!r}.")
    return table


def _compared(
    record: CorruptionRecord, table: pa.Table, result: CorruptionRun, problems: list[str], *, named: bool
) -> CorruptionVerification:
    """Say where a record and its table differ from what was found here, after the problems that are known already."""
    own, problems, notes = result.record, list(problems), []
    randomized = own.model.randomized
    if record.data.fingerprint != own.data.fingerprint:
        problems.append("The images or labels here are not those that it speaks of (fingerprints differ).")
    if record.model.fingerprint != own.model.fingerprint:
        problems.append("The weights here are not those that it speaks of (fingerprints differ).")
    seen = [f"data.{name}" for name in (*OF_DATA, *(OF_NAMED_DATA if named else ()))] + [
        f"model.{name}" for name in OF_MODEL
    ]
    names = [*SETS, *seen, *(() if randomized else ANSWERS)]
    twice = dict(stated_twice(record.config, record.model, record.data, seed=record.seed))
    problems += [twice[name] for name in ("model", "mode", "seed", "data") if name in twice]
    other = _other_pixels(record, own)
    if other:
        made = f" It made them with {record.made_with}; here: {own.made_with}." if record.source == "made" else ""
        problems.append(
            f"The images of {len(other)} sets are others here: {', '.join(other[:3])}{', …' * (len(other) > 3)}.{made}"
        )
    differing, rounding = _differing(table, result.table)
    if differing is None:
        problems.append("Its table is about other images, kinds or severities than its record.")
    elif differing > rounding and not randomized:
        problems.append(f"The model answers otherwise here on {differing - rounding} images, beyond rounding.")
    rows = max(len(result.table["index"]), 1)
    slack = 1e-9 + 2 * rounding / max(own.n, 1)
    problems += [f"{name} does not follow: stated {a}, here {b}." for name, a, b in _unlike(record, own, names, slack)]
    if randomized and differing:
        notes.append(f"The model answers at random: {differing} of {rows} answers were others here.")
    problems += _outside(record, own) if randomized else []
    classes = fields_of(
        record.model_dump(), [f"record.{name}" for name in names], [], _table_fields(randomized=randomized)
    )
    return CorruptionVerification(
        accepted=not problems, n=own.n, n_sets=len(_sets(own)), corruption_accuracy=own.corruption_accuracy,
        stated=record.corruption_accuracy, randomized=randomized, n_other_pixels=len(other), n_differing=differing or 0,
        within_rounding=rounding, problems=problems, notes=notes, rechecked=classes["rechecked"],
        consistent=classes["consistent"], only_stated=classes["only_stated"],
    )  # fmt: skip


def _table_fields(*, randomized: bool) -> dict[str, list[str]]:
    """Return the class of each column of the table, and of each field of the manifest."""
    about, answers = ([f"table.{name}" for name in names] for names in (COLUMNS, JUDGED))
    return {
        "rechecked": about if randomized else about + answers,
        "consistent": [f"manifest.{name}" for name in MANIFEST_FIELDS],
        "only_stated": answers if randomized else [],
    }


def _sets(record: CorruptionRecord) -> dict[str, str | None]:
    """Return the SHA-256 of each set's pixels, by its name."""
    return {f"{kind.kind} {part.severity}": part.pixels for kind in record.kinds for part in kind.severities}


def _other_pixels(record: CorruptionRecord, own: CorruptionRecord) -> list[str]:
    here = _sets(own)
    return [name for name, pixels in _sets(record).items() if pixels is None or here.get(name) != pixels]


def _differing(table: pa.Table, rechecked: Mapping[str, Any]) -> tuple[int | None, int]:
    """Count the images on which the answers differ, and those of them within rounding; None where the rows do not fit."""
    here = pa.table(dict(rechecked))
    if any(not np.array_equal(table[name].to_numpy(), here[name].to_numpy()) for name in COLUMNS):
        return None, 0
    differs = np.zeros(len(here), dtype=bool)
    for name in ("prediction", "correct_share"):
        differs |= table[name].to_numpy() != here[name].to_numpy()
    margin = here["margin"].to_numpy()
    finite = np.abs(margin[np.isfinite(margin)])
    usual = min(1.0, float(finite.max())) if len(finite) else 1.0  # of a model whose margins are all small, that is far
    near = np.abs(margin) <= ROUNDING * usual
    differs |= ~np.isclose(table["margin"].to_numpy(), margin, rtol=LIKE, atol=LIKE * usual, equal_nan=True)
    return int(differs.sum()), int((differs & near).sum())


def _unlike(
    record: CorruptionRecord, own: CorruptionRecord, names: Sequence[str], slack: float
) -> list[tuple[str, Any, Any]]:
    """Return (field, stated, found) of the named fields that differ by more than `slack`; pixels were compared before."""
    result = []
    for name in names:
        stated, here = (_at(each.model_dump(), name) for each in (record, own))
        if not name.endswith(("pixels", "fingerprint")) and not _close(stated, here, slack):
            result.append((name, *_first_unlike(stated, here, slack)))
    return result


def _at(content: Any, name: str) -> Any:
    """Return what stands at a place of plain data: kinds[].family is the list of all families."""
    if not name:
        return content
    if name.startswith("[]."):
        return [_at(each, name[3:]) for each in content]
    end = min(mark for mark in (name.find("."), name.find("["), len(name)) if mark >= 0)
    return _at(content[name[:end]], name[end:].removeprefix("."))


def _close(a: Any, b: Any, slack: float) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(name == "pixels" or _close(a[name], b[name], slack) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_close(x, y, slack) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= slack
    return bool(a == b)


def _first_unlike(a: Any, b: Any, slack: float) -> tuple[Any, Any]:
    """Return what of two values differs first, as small as can be shown."""
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return next(_first_unlike(x, y, slack) for x, y in zip(a, b, strict=True) if not _close(x, y, slack))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return next(
            _first_unlike(a[name], b[name], slack)
            for name in a
            if name != "pixels" and not _close(a[name], b[name], slack)
        )
    return a, b


def _outside(record: CorruptionRecord, own: CorruptionRecord) -> list[str]:
    """Say where what a model that answers at random does here lies outside the interval that is stated, or the other way."""
    stated, here = record.corruption_accuracy, own.corruption_accuracy
    if stated is None or here is None:
        return [] if stated is here else ["corruption_accuracy is stated for other kinds than are here."]
    if stated.low <= here.value <= stated.high and here.low <= stated.value <= here.high:
        return []
    return [
        f"corruption_accuracy is {here.value:.4f} here and {stated.value:.4f} in the bundle: one lies outside the "
        "interval of the other."
    ]
