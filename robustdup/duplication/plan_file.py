"""A plan as a file: safetensors with the index arrays, and how the plan was made in its header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robustdup.duplication.near_copies import parse_near
from robustdup.duplication.plan import FORMAT, DuplicationPlan
from robustdup.errors import UserError
from robustdup.records import atomic_path

PLAN_FILE = "plan.safetensors"


def plan_header(plan: DuplicationPlan) -> dict[str, Any]:
    """Return all of a plan but its entries, ready for JSON."""
    return {
        "format": FORMAT,
        "hash": plan.hash,
        "n_source": plan.n_source,
        "scheme": plan.scheme,
        "mode": plan.mode,
        "seed": plan.seed,
        "near": plan.near.text if plan.near is not None else None,
        "options": plan.options,
    }


def save_plan(plan: DuplicationPlan, path: Path) -> None:
    """Write a plan to a file, or to `plan.safetensors` in a folder that exists. Raises RunError where that fails."""
    from safetensors.torch import save_file

    parts = {"source_index": plan.source_index, "copy": plan.copy}
    if plan.labels is not None:
        parts["labels"] = plan.labels
    with atomic_path(path / PLAN_FILE if path.is_dir() else path) as temporary:
        save_file(parts, temporary, metadata={"plan": json.dumps(plan_header(plan), sort_keys=True)})


def load_plan(place: Path) -> DuplicationPlan:
    """Return the plan in a file, or in a folder that `robustdup data duplicate` wrote. Raises UserError.

    A plan whose content is not what its hash says is refused.
    """
    from safetensors import SafetensorError, safe_open

    path = place / PLAN_FILE if place.is_dir() else place
    if not path.is_file():
        raise UserError(f"There is no plan at {str(place)!r}: give a file, or a folder that holds {PLAN_FILE}.")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["plan"])
            parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header["format"] != FORMAT:
            raise UserError(
                f"{str(path)!r} is a plan of the format {header['format']!r}; this version reads {FORMAT!r}."
            )
        plan = DuplicationPlan(
            source_index=parts["source_index"], copy=parts["copy"], n_source=header["n_source"],
            labels=parts.get("labels"), near=parse_near(header["near"], header["seed"]) if header["near"] else None,
            scheme=header["scheme"], mode=header["mode"], seed=header["seed"], options=header["options"],
        )  # fmt: skip
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{str(path)!r} is not a plan of duplication: {error}.") from None
    if plan.hash != header["hash"]:
        raise UserError(f"The plan {str(path)!r} was changed after it was written: its hash differs.")
    return plan
