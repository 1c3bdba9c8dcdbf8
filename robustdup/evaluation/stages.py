"""From the names of attacks to stages: found in the registry, their options checked, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from robustdup.attacks.ensembles import RAND, RAND_EOT
from robustdup.errors import UserError, unknown
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.draws import USUAL, USUAL_EOT, Draws
from robustdup.plugins import AttackSpec, Registry, Stage
from robustdup.projections import COUNTS
from robustdup.threat import ThreatModel

AS_PUBLISHED = ("auto", "fp32", "tf32")  # precisions of attacks in which published AutoAttack figures were computed
# What looks for the nearest adversarial image where nothing else does: those that find most per pass in
# benchmarks.minimum_norm.
NEAREST = dict.fromkeys(COUNTS, ("sigma-zero", "fmn"))
NEAREST_ELSEWHERE = ("superdeepfool", "fmn")
LEAST_TAKEN = 0.05  # of the samples: on fewer a further attack is not worth its start
DRAWS_CALLED = ("eot", "eot_iter", "n_eot", "eot_samples")  # how attacks call the draws that they average over


@dataclass(frozen=True)
class NativeOptions:
    """Options of every native attack that takes them, unless they were written with the attack itself.

    `eot` holds for attacks that average over no draws themselves, too, where the model answers at random.
    """

    loss: str | None = None
    eot: int = 1


def plan_stages(
    attacks: Iterable[tuple[str, Mapping[str, Any]]], registry: Registry, threat: ThreatModel, *,
    native: NativeOptions = NativeOptions(), precision: str = "fp32", min_distance: bool = False, union: bool = False,
) -> tuple[list[PlannedStage], list[str]]:  # fmt: skip
    """Return the stages of attacks and ensembles, in order, and what a reader should know of the choice.

    Args:
        attacks: names with the options that were written with them.
        registry: where attacks, ensembles and losses are found.
        threat: the threat model; stages that do not know its norm are left out of an ensemble.
        native: the loss and the EOT draws for native attacks.
        precision: of the attack copy, as asked for.
        min_distance: whether minimum-norm attacks search to the end.
        union: whether the threat model is one ball of a union: then an attack that does not know its norm is left out.

    Raises:
        UserError: for what is unknown, and for what does not work together.
    """
    attacks = list(attacks)
    stages: list[PlannedStage] = []
    notes: list[str] = []
    for name, written in attacks:
        if name.startswith("autoattack") and precision not in AS_PUBLISHED:
            raise UserError(
                f"{name!r} means fp32 (or TF32, as torch computes convolutions by default on a GPU), not {precision}: low "
                "precision changes which steps are taken. Use --attacks fast, or --precision auto.",
                code="bad-option",
            )
        members = registry.stages(name, dict(written))
        for stage in members:
            spec = registry.get_attack(stage.attack)
            if stage.norms and threat.norm not in stage.norms:
                continue
            if threat.norm in spec.norms or spec.kind == "unbounded":
                stages.append(_planned(stage, spec, registry, native, written))
            elif union and len(members) == 1:
                notes.append(f"{name} does not know {threat.norm} and was left out there.")
            elif len(members) > 1:
                notes.append(f"{stage.attack} of {name} does not know {threat.norm} and was left out.")
            else:
                raise _other_norm(spec, registry, threat.norm)
    named = ",".join(name for name, _ in attacks)
    if not stages:
        able = _able(registry, threat.norm)
        raise UserError(
            f"No stage of {named!r} works in {threat.norm}. Write --attacks fast, or attacks for {threat.norm}: {able}.",
            code="no-stage",
        )
    if min_distance:
        stages = _minimising(stages, registry, native, notes, threat.norm)
    _check_native(stages, native, named)
    return stages, notes


def for_model(
    stages: Sequence[PlannedStage], *, randomized: bool, draws: Draws = USUAL
) -> tuple[list[PlannedStage], list[str]]:  # fmt: skip
    """Return the stages as a model needs them, and what a reader should know of it.

    Where the model answers at random, attacks average over draws: native ones by their option `eot`, others since they get
    the mean of several answers in place of each answer.
    """
    if not randomized:
        return [replace(stage, draws=1) for stage in stages], []
    fitted = [_averaging(stage, draws) for stage in stages]
    affordable = _affordable(fitted, draws)
    spread = (
        "" if draws.error is None else f"; the error of a mean margin is about {draws.error:.0%} of the usual margin"
    )
    kinds: dict[str, list[str]] = {}
    for before, after in zip(stages, fitted, strict=True):
        if after.draws > 1:
            sentence = f"got the mean of {after.draws} draws for each answer{spread} (--eot)."
        elif "eot" in after.options and "eot" not in before.options:
            averaged = "gradients" if after.spec.knowledge == "white-box" else "answers"
            sentence = f"averaged {averaged} over {after.options['eot']} draws{spread} (--eot)."
        elif _own_draws(after) == 1:
            sentence = (
                "looked at single draws, and may have stopped at a lucky one. What they left is judged by fresh draws; what "
                "they missed is not known."
            )
        else:
            continue
        kinds.setdefault(sentence, []).append(after.spec.name)
    names = {sentence: ", ".join(dict.fromkeys(attacks)) for sentence, attacks in kinds.items()}
    return affordable, [f"The model answers at random: {listed} {sentence}" for sentence, listed in names.items()]


def _averaging(stage: PlannedStage, draws: Draws) -> PlannedStage:
    """Let an attack average over draws, unless it was told how many, or averages over as many by itself."""
    chosen = any(name in stage.options for name in DRAWS_CALLED)
    if chosen or stage.spec.knowledge == "transfer" or _own_draws(stage) >= draws.eot:
        return replace(stage, draws=1)
    few = stage.spec.knowledge != "white-box" or stage.when != "always"  # queries are many, and so are further attacks
    wanted = min(draws.eot, USUAL_EOT) if few else draws.eot
    eot = stage.draws if stage.draws > 1 else wanted
    if stage.spec.source != "native" or "eot" not in stage.spec.parameters:
        return replace(stage, draws=eot)
    switch = {"eot": eot}
    options, call_options = {**stage.options, **switch}, {**stage.call_options, **switch}
    return replace(stage, options=options, call_options=call_options, draws=1)


def _affordable(stages: Sequence[PlannedStage], draws: Draws) -> list[PlannedStage]:
    """Return the stages of which those that wait for masked gradients take no more than AutoAttack's passes on such models.

    Each draw costs as much as a whole model that repeats itself. So they take the samples nearest to the boundary, as many as the
    passes that the stages before them leave of AutoAttack's, version for randomised models, are enough for.
    """
    from robustdup.attacks.apgd import apgd_cost  # here, so that a run of one attack imports no other

    forward, backward = apgd_cost({"steps": 100, "restarts": 1, "larger_eps": False, "eot": max(RAND_EOT, draws.eot)})
    left, affordable = len(RAND) * (forward + backward), []
    for stage in stages:
        cost, take = sum(stage.passes or (0.0,)), stage.take
        if stage.when != "always" and cost:
            take = min(take, left / cost)
            if take < LEAST_TAKEN:
                continue
        left -= take * cost
        affordable.append(replace(stage, take=take))
    return affordable


def _own_draws(stage: PlannedStage) -> int:
    """Return over how many draws an attack averages by itself."""
    options = {**stage.spec.defaults, **stage.options}
    return max(1, *(int(value) for name in DRAWS_CALLED if type(value := options.get(name, 1)) is int))


def _other_norm(spec: AttackSpec, registry: Registry, norm: str) -> UserError:
    return UserError(
        f"Attack {spec.name!r} works in {', '.join(spec.norms)}, not in {norm}. "
        f"Attacks for {norm}: {_able(registry, norm)}.",
        code="other-norm",
    )


def _able(registry: Registry, norm: str) -> str:
    """Name some attacks that know a norm, robustdup's own first, and how to see all."""
    able = [other for other in registry.attacks.values() if norm in other.norms and other.available]
    names = [spec.name for spec in sorted(able, key=lambda spec: (":" in spec.name, spec.name)) if spec.name != "noise"]
    return f"{', '.join(names[:8])}, … (robustdup attacks list --norm {norm})"


def _planned(
    stage: Stage, spec: AttackSpec, registry: Registry, native: NativeOptions, written: Mapping[str, Any]
) -> PlannedStage:
    """Check the options of a stage; general ones go to native attacks, where none were written with them."""
    options = dict(stage.options)
    if spec.source == "native":
        # Draws of one answer are the same where a model repeats itself, which is not known yet: queries wait for `for_model`.
        general = {"loss": native.loss, "eot": native.eot if native.eot > 1 and spec.knowledge == "white-box" else None}
        options |= {
            name: value
            for name, value in general.items()
            if value is not None and name in spec.parameters and name not in written
        }
    options = spec.check_options(options)
    call_options = dict(options)
    if spec.source == "native" and isinstance(options.get("loss"), str):
        if options["loss"] not in registry.losses:
            raise unknown("loss", options["loss"], registry.losses)
        call_options["loss"] = registry.losses[options["loss"]].function
    averages = spec.knowledge == "white-box" and any(name in spec.parameters for name in DRAWS_CALLED)
    draws = 1 if averages or spec.knowledge == "transfer" else native.eot
    return PlannedStage(spec, options, call_options, stage.take, stage.when, draws=draws)


def _minimising(
    stages: Sequence[PlannedStage], registry: Registry, native: NativeOptions, notes: list[str], norm: str
) -> list[PlannedStage]:
    """Let minimum-norm attacks search to the end; where there is none, add native ones that are strong in the norm."""
    stages = list(stages)
    if not any(stage.spec.kind == "minimum-norm" and stage.when == "always" for stage in stages):
        names = NEAREST.get(norm, NEAREST_ELSEWHERE)
        notes.append(
            f"min_distance: {' and '.join(names)} were added, since none of the attacks is sure to look for the nearest "
            "adversarial image."
        )
        stages += [_planned(Stage(name), registry.get_attack(name), registry, native, {}) for name in names]
    switch = {"stop_within_eps": False}
    return [
        replace(stage, options={**stage.options, **switch}, call_options={**stage.call_options, **switch})
        if "stop_within_eps" in stage.spec.parameters
        else stage
        for stage in stages
    ]


def _check_native(stages: Sequence[PlannedStage], native: NativeOptions, named: str) -> None:
    """Raise UserError where an option for native attacks finds none that takes it."""
    if native.loss is not None and not any("loss" in stage.options for stage in stages):
        raise UserError(
            f"--loss is for native gradient attacks such as pgd; none of {named!r} takes it.", code="bad-option"
        )
    if native.eot > 1 and not any("eot" in stage.options or stage.draws > 1 for stage in stages):
        raise UserError(f"--eot is for attacks that ask the model; {named!r} has none.", code="bad-option")
