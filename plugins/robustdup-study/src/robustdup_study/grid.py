"""The cells of a study: the product of the factors minus exclusions, each under the hash of all that it computes.

Runs name factors and seed; cells are what has to be trained and evaluated. Several runs may share a cell: without copies,
all schemes, modes and control conditions are one training.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from robustdup.config import BUDGETS, DuplicationOptions, TrainConfig, parse_call, validate
from robustdup.errors import UserError, nearest, unknown
from robustdup.plugins import Registry
from robustdup.plugins.options import keywords
from robustdup_study.conditions import CONDITIONS, EXTRA_DATA, EXTRA_SETTINGS, apply_condition, without_extra_data
from robustdup_study.publications import dose_factors
from robustdup_study.recipe import Level, StudyConfig, label, settings

SEMANTICS = 1  # rises when the same configuration comes to mean another computation
MANY = 10_000  # cells that a person has probably not meant

PLAN_FACTORS = ("scheme", "dose", "mode", "near")
SPECIAL = (*PLAN_FACTORS, "budget", "condition", "extra")
# Settings that came later, with their defaults: where they have those, cells keep their keys.
_NEWER = {
    "normalize": None, "accumulate": 1, "deterministic": False, "nesterov": True, "new_head": False, "freeze": None,
    "extra_share": 0.7, "extra_labels": None, "eps_schedule": None, "steps_schedule": None, "transforms": None, "mix": None,
}  # fmt: skip
# What does not change what is computed, or is told by the fingerprint of the data.
_ELSEWHERE = {
    "out", "plugin", "device", "loader_workers", "track", "checkpoint_every", "threads", "in_memory", "allow_pickle",
    "data", "split", "test_split", "test_data", "extra_data", "extra_split", "data_config", "revision", "image_column",
    "label_column", "resize", "crop", "grey",
}  # fmt: skip

Fingerprint = Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Cell:
    """One thing to run: its key, its settings as they are run, and the canonical form that the key is the hash of."""

    key: str
    settings: dict[str, Any]
    canonical: dict[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """A run: the factors' levels by name, the seed, and the cell that holds the result."""

    factors: dict[str, Any]
    seed: int
    key: str


@dataclass
class Grid:
    """The runs of a study and its cells by key, in the order in which they are run: seed by seed."""

    runs: list[PlannedRun] = field(default_factory=list)
    cells: dict[str, Cell] = field(default_factory=dict)


def count_runs(config: StudyConfig) -> int:
    """Return how many runs the product has, before exclusions: without making it."""
    return math.prod(len(levels) for levels in config.factors.values()) * len(config.seed_list)


def check_size(config: StudyConfig, *, yes: bool, most: int = MANY) -> None:
    """Raise UserError for a grid of more than `most` cells, unless that was said to be meant."""
    count = count_runs(config)
    if count > most and not yes:
        product = " × ".join(f"{len(levels)} {name}" for name, levels in config.factors.items())
        raise UserError(
            f"This recipe has {count:,} cells ({product} × {len(config.seed_list)} seeds). "
            "Leave levels out, or say --yes if you mean it.",
            code="too-many-cells",
        )


def combinations(config: StudyConfig) -> Iterator[dict[str, Level]]:
    """Yield the levels of each combination of factors that is not excluded."""
    for levels in itertools.product(*config.factors.values()):
        combination = dict(zip(config.factors, levels, strict=True))
        if not any(_excluded(combination, wanted) for wanted in config.exclude):
            yield combination


def _excluded(combination: Mapping[str, Level], wanted: Mapping[str, Any]) -> bool:
    return bool(wanted) and all(
        str(label(combination[name])) in {str(v) for v in (value if isinstance(value, list) else [value])}
        for name, value in wanted.items()
    )


def build_grid(
    config: StudyConfig, registry: Registry, fingerprint: Fingerprint,
    check: Callable[[TrainConfig], object] = lambda _: None,
) -> Grid:  # fmt: skip
    """Return the runs and cells of a recipe for robustdup's own training.

    `fingerprint(settings)` tells the data of a cell apart from other data; `check(config)` refuses what cannot be trained,
    before anything runs. Raises UserError that names the combination.
    """
    check_factors(config, registry)
    prints: dict[str, str] = {}
    made = [(combination, _content(config, combination)) for combination in combinations(config)]
    prepared = []
    for combination, content in made:
        if content is None:
            continue
        factors = {name: label(level) for name, level in combination.items()}
        train = _validated({**content, "seed": config.seed_list[0]}, factors)
        _named(factors, check, validate(TrainConfig, train))
        place = _text({key: train.get(key) for key in sorted(_ELSEWHERE)})
        if place not in prints:
            prints[place] = fingerprint(train)
        prepared.append((factors, train, canonical_form(train, prints[place], registry)))
    grid = Grid()
    for seed in config.seed_list:
        for factors, train, form in prepared:
            canonical = {**form, "train": {**form["train"], "seed": seed}, "measure": config.measure}
            key = hash_of(canonical)
            grid.cells.setdefault(key, Cell(key, {**train, "seed": seed}, canonical))
            grid.runs.append(PlannedRun(factors, seed, key))
    if not grid.runs:
        raise UserError("No cell is left: the exclusions name every combination of the factors.", code="no-cells")
    return grid


def check_factors(config: StudyConfig, registry: Registry) -> None:
    """Refuse factors that nothing takes, control conditions and settings that there are not, with the nearest right spelling."""
    special = (*SPECIAL, *dose_factors())
    fields = set(TrainConfig.model_fields) - {"duplicate", "seed"}
    plan = {f"duplicate.{name}" for name in DuplicationOptions.model_fields}
    for name, levels in config.factors.items():
        if name in special or name in fields or name in plan or all(isinstance(level, dict) for level in levels):
            continue
        if name == "seed":
            raise UserError("Seeds are no factor: write seeds: 5, or seeds: [0, 1, 2].", code="bad-factor")
        takes = [spec.name for spec in registry.objectives.values() if name in keywords(spec.function)]
        if takes:
            raise UserError(
                f"{name!r} is an option of the objective {takes[0]}, not a setting of its own: write it in the levels of "
                f"objective, as in objective: [{', '.join(f'{takes[0]}({name}={label(level)})' for level in levels[:2])}].",
                code="bad-factor",
            )
        near = nearest(name, [*special, *fields, *plan])
        raise UserError(
            f"Nothing takes the factor {name!r}: it is neither a setting of training nor an option of any objective."
            + (f" Did you mean {near!r}?" if near else "")
            + f" Factors: {', '.join(special)}, objective, model, data, and any setting of robustdup train.",
            code="unknown-factor",
        )
    for level in config.factors.get("condition", []):
        if label(level) not in CONDITIONS:
            raise unknown("control condition", str(label(level)), CONDITIONS)
    for key in config.base:
        if key not in TrainConfig.model_fields:
            raise unknown("key of base:", key, TrainConfig.model_fields)
    if "seed" in config.base:
        raise UserError("The seed of a cell comes from seeds: leave it out of base.", code="bad-factor")


def _content(config: StudyConfig, combination: Mapping[str, Level]) -> dict[str, Any] | None:
    """Return the settings of a combination without its seed; None where the control condition says nothing of its own there."""
    content: dict[str, Any] = {**config.base}
    plan: dict[str, Any] = dict(content.pop("duplicate", {}))
    for name, level in combination.items():
        if name not in ("condition", "budget"):
            _set(name, level, content, plan)
    dose = _dose(combination, plan)
    bare = dose == 0
    conditions = [label(level) for level in config.factors.get("condition", [])]
    if EXTRA_DATA in conditions and (bare or label(combination["condition"]) != EXTRA_DATA):
        content = without_extra_data(content)
    if "budget" in combination:
        level = combination["budget"]
        chosen = config.baseline_budget if bare and config.baseline_budget is not None else str(label(level))
        given = config.budgets.get(chosen) or settings(level)
        for key in (*BUDGETS, "schedule_steps"):
            content.pop(key, None)
        content.update(given)
    if bare:
        content.pop("as_weights", None)
        content.pop("share_augmentation", None)
        return content
    content["duplicate"] = plan
    if "condition" in combination:
        turned = apply_condition(str(label(combination["condition"])), content, dose or 0.0)
        return None if turned is None else {key: value for key, value in turned.items() if key != "duplicate" or value}
    return content


def _set(name: str, level: Level, content: dict[str, Any], plan: dict[str, Any]) -> None:
    """Put a level's settings where they belong: into the duplication plan or beside it."""
    if name == "extra":
        _set_extra(level, content)
    elif isinstance(level, dict):
        for key, value in settings(level).items():
            prefix, dot, rest = key.partition(".")
            if prefix == "duplicate" and dot:
                plan[rest] = value
            elif name in PLAN_FACTORS and key in DuplicationOptions.model_fields:
                plan[key] = value
            else:
                content[key] = value
        if name == "scheme" and "scheme" not in level and "duplicate.scheme" not in level:
            plan["scheme"] = level["name"]
    elif name in dose_factors():
        plan[name] = level
    elif name in PLAN_FACTORS or name.startswith("duplicate."):
        key = name.removeprefix("duplicate.")
        if key == "near" and level in ("none", "exact", False):
            plan.pop("near", None)
        else:
            plan[key] = level
    else:
        content[name] = level


def _set_extra(level: Level, content: dict[str, Any]) -> None:
    """Put a level of the factor extra into the settings: a share of base.extra_data, 0 or none for none, or a mapping."""
    if isinstance(level, dict):
        given = {f"extra_{key.removeprefix('extra_')}": value for key, value in settings(level).items()}
        if not set(given) <= set(EXTRA_SETTINGS):
            raise UserError(
                f"A level of the factor extra sets data, share, split, labels; got {', '.join(settings(level))}.",
                code="bad-factor",
            )
        if given:
            content.update(given)
            return
    elif level not in ("none", 0) and level is not False:
        content["extra_share"] = level
        if content.get("extra_data") is None:
            raise UserError(
                f"The factor extra has the level {level}, but there is no extra data: name it in base, as in base: "
                "{extra_data: generated.npz}, or in the level: {name: …, data: generated.npz, share: 0.5}.",
                code="missing-option",
            )
        return
    for key in EXTRA_SETTINGS:
        content.pop(key, None)


def _dose(combination: Mapping[str, Level], plan: dict[str, Any]) -> float | None:
    """Return the dose of a combination, 0 for none; None where the plan states it in another way.

    The factor of a publication is turned into what the plan takes.
    """
    for name, factor in dose_factors().items():
        if name in plan:
            settings, share = factor.plan(plan.pop(name), plan)
            plan.update(settings)
            return float(share)
    scheme = plan.get("scheme", "none")
    if scheme == "none":
        if plan.get("dose"):
            raise UserError(
                "A dose needs a scheme: add the factor scheme, or base: {duplicate: {scheme: uniform}}.",
                code="bad-value",
            )
        return 0.0
    dose = plan.get("dose")
    if isinstance(dose, bool) or not isinstance(dose, int | float | None):
        raise UserError(f"dose is a share from 0 to below 1, got {dose!r}.", code="bad-value")
    if dose is None and "condition" in combination and label(combination["condition"]) == "more-epochs":
        raise UserError(
            "The control condition 'more-epochs' needs the factor dose, to know how many epochs the copies cost.",
            code="bad-value",
        )
    return None if dose is None else float(dose)


def _validated(content: dict[str, Any], factors: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with every default filled in; errors name the combination."""
    # A cell computes the same wherever it runs: its precision does not hang on the machine unless the recipe says so.
    content = {"precision": "fp32", **content}
    train: TrainConfig = _named(factors, lambda given: validate(TrainConfig, given), content)
    full = train.model_dump(mode="json")
    full["duplicate"] = train.duplicate.model_dump(mode="json", exclude_unset=True)
    return full


def _named(factors: Mapping[str, Any], call: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return call(argument)
    except UserError as error:
        where = ", ".join(f"{name} {value}" for name, value in factors.items())
        raise type(error)(f"Cell ({where}): {error}", code=error.code) from None


def canonical_form(train: Mapping[str, Any], data: str, registry: Registry) -> dict[str, Any]:
    """Return what a cell computes and nothing else: options of calls filled in, data by fingerprint, no device, no paths."""
    content = {key: value for key, value in train.items() if key not in _ELSEWHERE}
    content = {key: value for key, value in content.items() if key not in _NEWER or value != _NEWER[key]}
    content["duplicate"] = DuplicationOptions.model_validate(train["duplicate"]).canonical()
    name, options = parse_call(train["objective"], "objective")
    if name in registry.objectives:
        spec = registry.objectives[name]
        content["objective"] = [name, _filled(spec.function, spec.check_options(options))]
        if not spec.attacks:  # then the inner attack is never called
            content["attack"] = content["inner_bn"] = None
    for key in ("attack", "validation_attack"):
        if content[key] is None:
            continue
        name, options = parse_call(train[key], "attack")
        if name in registry.attacks:
            attack_spec = registry.attacks[name]
            content[key] = [name, {**attack_spec.defaults, **attack_spec.check_options(options)}]
    return {"semantics": SEMANTICS, "data": data, "train": content}


def _filled(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    known = keywords(function, besides=("attack", "rng", "module"))
    return {**{key: p.default for key, p in known.items() if p.default is not p.empty}, **options}


def _text(content: Any) -> str:
    return json.dumps(content, sort_keys=True, default=str, separators=(",", ":"))


def hash_of(canonical: Mapping[str, Any]) -> str:
    """Return the key of a cell: 16 hex digits of the SHA-256 of its canonical form."""
    return hashlib.sha256(_text(canonical).encode()).hexdigest()[:16]
