"""Control conditions: they tell what duplication does from what comes along with it. Each turns the settings of a cell.

A condition takes the settings of a cell with copies (`duplicate` filled in) and its dose, and returns its own, or None where
it says nothing that another cell does not say. Without copies, all conditions are the same cell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from robustdup.errors import UserError

Settings = dict[str, Any]
EXTRA_DATA = "extra-data"
EXTRA_SETTINGS = ("extra_data", "extra_share", "extra_split", "extra_labels")


@dataclass(frozen=True)
class ControlCondition:
    """What a condition does to the settings of a cell, and what it is for."""

    turn: Callable[[Settings, float], Settings | None]
    text: str


def _copies(settings: Settings, dose: float) -> Settings:
    return settings


def _control(name: str) -> Callable[[Settings, float], Settings]:
    def turn(settings: Settings, dose: float) -> Settings:
        plan = {key: value for key, value in settings["duplicate"].items() if key != "near"}
        return {**settings, "duplicate": {**plan, "control": name}}

    return turn


def _as_weights(settings: Settings, dose: float) -> Settings | None:
    return None if settings["duplicate"].get("near") else {**settings, "as_weights": True}


def _more_epochs(settings: Settings, dose: float) -> Settings | None:
    if settings.get("epochs") is None or settings["duplicate"].get("mode", "append") != "append":
        return None
    return {**settings, "duplicate": {}, "epochs": settings["epochs"] / (1 - dose)}


def _extra_data(settings: Settings, dose: float) -> Settings:
    if settings.get("extra_data") is None:
        raise UserError(
            f"The control condition {EXTRA_DATA!r} trains on other images in place of the copies: name them in base, as in "
            "base: {extra_data: generated.npz}.",
            code="missing-option",
        )
    return {**settings, "duplicate": {}, "extra_share": dose}


def without_extra_data(settings: Settings) -> Settings:
    """Return settings without extra training data."""
    return {key: value for key, value in settings.items() if key not in EXTRA_SETTINGS}


def _same_draw(settings: Settings, dose: float) -> Settings:
    return {**settings, "share_augmentation": True}


CONDITIONS = {
    "copies": ControlCondition(_copies, "duplicates as they are"),
    "prior-matched": ControlCondition(
        _control("class_prior"), "no copies, but the class shares of the duplicated set, made by leaving images out"
    ),
    "matched": ControlCondition(
        _control("matched"),
        "no copies, but the class shares of the duplicated set and as many distinct images (mode replace)",
    ),
    "as-weights": ControlCondition(_as_weights, "no copies, but the loss weights that equal them in expectation"),
    "fewer-unique": ControlCondition(
        _control("fewer_unique"), "no copies, only the images that are left where copies replace others at equal size"
    ),
    "more-epochs": ControlCondition(
        _more_epochs, "no copies, but as many more epochs as the copies would cost (budgets in epochs, mode append)"
    ),
    EXTRA_DATA: ControlCondition(
        _extra_data, "no copies, but the same share of each batch from base.extra_data, such as generated images"
    ),
    "same-draw": ControlCondition(_same_draw, "all copies of an image share its augmentation draw"),
}


def apply_condition(name: str, settings: Settings, dose: float) -> Settings | None:
    """Return the settings of a condition; None where it does not differ from another cell. Raises UserError."""
    if name not in CONDITIONS:
        from robustdup.errors import unknown

        raise unknown("control condition", name, CONDITIONS)
    if name != "copies" and not settings.get("duplicate"):
        raise UserError(
            f"The control condition {name!r} stands in for copies, but there is neither a scheme nor a dose.",
            code="bad-option",
        )
    return CONDITIONS[name].turn(settings, dose)
