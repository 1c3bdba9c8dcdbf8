"""What a user may say about duplication: the schemes, which keys each of them takes, and how the dose is stated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator, model_validator

from robustdup.config.base import Config
from robustdup.config.fields import DATA_DETAILS, DatasetFields
from robustdup.errors import UserError, unknown

Scheme = Literal[
    "none", "uniform", "class_skewed", "power_law", "single", "whole_set", "hardest", "easiest", "conflicting", "leak"
]  # fmt: skip
Mode = Literal["append", "replace"]
Control = Literal["none", "fewer_unique", "class_prior", "matched"]

_CHOSEN = ("dose", "fraction", "copies")
TAKES: dict[str, tuple[str, ...]] = {
    "none": (),
    "uniform": (*_CHOSEN, "paper_r"),
    "class_skewed": (*_CHOSEN, "classes", "skew"),
    "power_law": ("dose", "exponent"),
    "single": ("dose", "copies", "row"),
    "whole_set": ("dose", "copies", "paper_p"),
    "hardest": (*_CHOSEN, "score_column"),
    "easiest": (*_CHOSEN, "score_column"),
    "conflicting": _CHOSEN,
    "leak": (*_CHOSEN, "leak_from"),
}
STEP = 1024  # exponents are multiples of 1 / STEP


class DuplicationOptions(Config):
    """How training data is duplicated. The dose is the share of training entries that are copies.

    Give either `dose`, or `fraction` (the share of source samples that are chosen), with `copies` of each chosen sample;
    the other follows and is reported. `paper_p` and `paper_r` are the numbers of a published protocol
    (https://arxiv.org/abs/2504.00638) for its two arms, which mean different things by a percentage. Raises UserError.
    """

    scheme: Scheme = Field(
        "none",
        description="Which samples are copied: uniform (any), class_skewed (some classes more than others), power_law (few "
        "samples very often), single (one sample), whole_set (all), hardest or easiest (by a score), conflicting (copies "
        "with a wrong label), leak (samples of another split), or none.",
    )
    mode: Mode = Field(
        "append", description="append: the set grows. replace: samples without copies leave, size fixed."
    )
    dose: float | None = Field(None, description="Share of training entries that are copies, from 0 to below 1.")
    fraction: float | None = Field(
        None, description="Share of the source samples that are chosen for copying, from 0 to 1; instead of dose."
    )
    copies: int | None = Field(None, description="Copies of each chosen sample, besides the original. [default: 1]")
    classes: list[str] = Field(
        default_factory=list,
        description="class_skewed: the classes that are copied, by name or number; one drawn from the seed if not given.",
    )
    skew: float = Field(
        1.0,
        description="class_skewed: from 0 (chosen samples spread over all classes in proportion) to 1 (named classes only).",
    )
    exponent: float = Field(
        1.0,
        description="power_law: copies of the sample at rank r fall as r to the power of minus this; rounded to 1/1024ths, "
        "and the rounded one is reported.",
    )
    row: int | None = Field(None, description="single: the row that is copied; drawn from the seed if not given.")
    score_column: str | None = Field(
        None, description="hardest, easiest: column with a number for each sample, the lower the harder (a margin)."
    )
    leak_from: str = Field("test", description="leak: the split whose samples are added.")
    paper_p: int | None = Field(
        None, description="whole_set: percentage of the standard arm of arXiv 2504.00638, that is p // 10 whole copies."
    )
    paper_r: float | None = Field(
        None, description="uniform: share r of its adversarial arm, that is r of the samples once more (fraction = r)."
    )
    control: Control = Field(
        "none",
        description="Instead of the plan, a set without copies to compare it with: fewer_unique (the samples that stay "
        "where copies take the places of others at equal size, whatever mode is), class_prior (the class shares of the plan, "
        "made by dropping samples) or matched (those shares, and as many distinct samples as the plan has).",
    )
    near: str | None = Field(
        None,
        description="Change every copy: flip, shift(pixels=3), crop_resize(keep=0.9), brightness(strength=0.2), "
        "contrast(strength=0.2), jpeg(quality=60), noise(std=0.02), blur(sigma=0.7); several with commas, in order.",
    )
    seed: int | None = Field(None, description="Seed of the plan; that of the run if not given.", ge=0)

    @field_validator("scheme", "mode", "control", mode="before")
    @classmethod
    def _known(cls, value: Any, info: ValidationInfo) -> Any:
        allowed = get_args({"scheme": Scheme, "mode": Mode, "control": Control}[str(info.field_name)])
        if value not in allowed:
            raise unknown(f"value of {info.field_name}:", str(value), allowed)
        return value

    @field_validator("classes", mode="before")
    @classmethod
    def _as_list(cls, value: Any) -> Any:
        if isinstance(value, str | int) and not isinstance(value, bool):
            value = str(value).split(",")
        return [str(part).strip() for part in value] if isinstance(value, list | tuple) else value

    @field_validator("exponent", mode="after")
    @classmethod
    def _in_steps(cls, exponent: float) -> float:
        """Round to a multiple of 1 / STEP, for which every platform computes the same plan; what is out of range stays."""
        if not 0 <= exponent <= 8:
            return exponent
        rounded = round(exponent * STEP) / STEP
        if rounded != exponent:
            text = f"exponent = {exponent:.6g} is used as {rounded:.10g}, in steps of 1/{STEP}: so plans are the same everywhere."
            warnings.warn(text, UserWarning, stacklevel=2)
        return rounded

    @model_validator(mode="after")
    def _check(self) -> DuplicationOptions:
        _check_keys(self)
        _check_ranges(self)
        return self

    def canonical(self) -> dict[str, Any]:
        """Return the keys that matter for this scheme, with the published protocol's numbers translated."""
        keys = [key for key in TAKES[self.scheme] if not key.startswith("paper_")]
        keys_given = {key: getattr(self, key) for key in ("scheme", "mode", "control", "near", *keys)}
        if self.control == "fewer_unique":  # it is about equal size, so that the mode says nothing
            keys_given["mode"] = "replace"
        if self.paper_p is not None:
            keys_given["copies"] = self.paper_p // 10
        if self.paper_r is not None:
            keys_given["fraction"] = self.paper_r
        if "copies" in keys_given and keys_given["copies"] is None and "fraction" in keys:
            keys_given["copies"] = 1
        return {key: value for key, value in keys_given.items() if value is not None and value != []}


def exact(value: float) -> Fraction:
    """Return the decimal number that a person wrote: 0.1 is a tenth."""
    return Fraction(repr(value))


def _check_keys(options: DuplicationOptions) -> None:
    scheme, given = options.scheme, options.model_fields_set
    for key in sorted({key for keys in TAKES.values() for key in keys}):
        default = type(options).model_fields[key].get_default(call_default_factory=True)
        if key not in TAKES[scheme] and key in given and getattr(options, key) not in (default, 0):
            if scheme == "none":
                schemes = ", ".join(name for name in TAKES if key in TAKES[name])
                raise UserError(
                    f"{key} needs a scheme: scheme=NAME, where NAME is one of {schemes}.", code="bad-option"
                )
            allowed = ", ".join(TAKES[scheme]) or "no further keys"
            raise UserError(f"scheme = {scheme} does not use {key}; it takes {allowed}.", code="bad-option")
    sizes = [key for key in ("dose", "fraction", "paper_p", "paper_r") if getattr(options, key) is not None]
    if len(sizes) > 1:
        raise UserError(
            f"Give {sizes[0]} or {sizes[1]}, not both: the one follows from the other.", code="conflicting-options"
        )
    if options.copies is not None and (options.paper_p is not None or options.paper_r is not None):
        raise UserError(
            f"{sizes[0]} already says how many copies there are: leave copies out.", code="conflicting-options"
        )
    if scheme in ("single", "whole_set"):
        if options.copies is not None and sizes:
            raise UserError(
                f"Give dose or copies for scheme = {scheme}, not both: the one follows from the other.",
                code="conflicting-options",
            )
        if options.copies is None and not sizes:
            raise UserError(f"scheme = {scheme} needs copies or dose.", code="missing-option")
    elif scheme != "none" and not sizes:
        needed = "dose or fraction" if "fraction" in TAKES[scheme] else "dose"
        raise UserError(f"scheme = {scheme} needs {needed}.", code="missing-option")
    if options.control != "none" and scheme in ("none", "leak"):
        raise UserError(
            f"control = {options.control} has nothing to compare with under scheme = {scheme}.", code="bad-option"
        )


# Key, the least and the largest value, and what it is, up to "got …".
_RANGES: tuple[tuple[str, float, float, str], ...] = (
    ("dose", 0, math.nextafter(1, 0), "is the share of training entries that are copies, from 0 to below 1;"),
    ("fraction", 0, 1, "is the share of the samples that are chosen, from 0 to 1;"),
    ("paper_r", 0, 1, "is the share of the samples that are chosen, from 0 to 1;"),
    ("copies", 1, math.inf, "must be at least 1 for each chosen sample,"),
    ("skew", 0, 1, "goes from 0 (all classes alike) to 1 (named classes only);"),
    ("exponent", 0, 8, "goes from 0 to 8,"),
    ("row", 0, math.inf, "must be 0 or above,"),
    ("paper_p", 0, 100, "is a percentage from 0 to 100 (p // 10 whole copies),"),
)


def _check_ranges(options: DuplicationOptions) -> None:
    for key, least, largest, meaning in _RANGES:
        value = getattr(options, key)
        if value is not None and not least <= value <= largest:
            hint = _percent(value) if key in ("dose", "fraction", "paper_r") else ""
            shown = value if isinstance(value, int) else f"{value:g}"
            raise UserError(f"{key} {meaning} got {shown}.{hint}", code="bad-value")


def _percent(value: float) -> str:
    return f" A percentage? Write {value / 100:g}." if 1 < value <= 100 else ""


class DuplicateConfig(DuplicationOptions, DatasetFields):
    """What `robustdup data duplicate` needs besides: which data, and which of its columns."""

    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Data": ("data", "split", "other_splits", "check_images", *DATA_DETAILS),
        "Duplication": ("scheme", "dose", "fraction", "copies", "mode", "near", "control", "seed"),
        "Of single schemes": (
            "classes", "skew", "exponent", "row", "score_column", "score_model", "allow_pickle", "leak_from", "paper_p",
            "paper_r",
        ),
    }  # fmt: skip

    scheme: Scheme = Field("uniform", description=str(DuplicationOptions.model_fields["scheme"].description))
    split: str = Field("train", description="Split that is duplicated.")
    score_model: str | None = Field(
        None, description="hardest, easiest: a model whose margin is the score, instead of score_column."
    )
    allow_pickle: bool = Field(
        False, description="Load weights that are pickles. They can run any code: only from people you trust."
    )
    check_images: bool = Field(
        True, description="Decode every image that is copied, so that those that cannot be read are counted and listed."
    )
    other_splits: bool = Field(True, description="Write the other splits too, as they are.")
