"""The record of an evaluation. Every field has a description, so that the schema explains itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from robustdup.records.base import Accuracy, DataInfo, Part, Threat, read_record, write_record

SCHEMA: Literal["robustdup.evaluation"] = "robustdup.evaluation"
VERSION = 3


class CurvePoint(Accuracy):
    """Robust accuracy at one eps."""

    eps: float = Field(description="Radius in pixel units of [0, 1].")
    alone: float = Field(
        description="The same by the attacks that were run at this eps only; `value` counts smaller ones too."
    )


class Distances(Part):
    """Distances to the adversarial examples that a minimum-norm attack found, in the norm of the threat model."""

    n: int = Field(description="Samples for which one was found.")
    median: float | None = Field(description="Median of their distances; null where there are none.")
    mean: float | None = Field(description="Mean of their distances; null where there are none.")


class MinDistance(Part):
    """The smallest eps at which each sample was seen to break: an upper bound of the true one, in the threat's norm."""

    n: int = Field(description="Samples; misclassified clean images count as 0.")
    n_found: int = Field(description="Samples that have a distance at all.")
    median: float | None = Field(description="Median over all samples; null where half of them have no distance.")
    mean: float | None = Field(description="Mean over the samples that have a distance.")
    curve: dict[str, float] = Field(
        description="Share of all samples left at each eps (its text): an upper bound of robust accuracy from this one run."
    )


class UnionBall(Part):
    """What became of the samples in one ball of a union over norms."""

    norm: str = Field(description="Linf, L2 or L1.")
    eps: float = Field(description="Radius in pixel units of [0, 1].")
    eps_text: str = Field(description="The radius as it was written: 8/255.")
    n_attacked: int = Field(description="Samples that were attacked in it.")
    n_broken: int = Field(description="Samples that were broken in it.")
    n_undecided: int = Field(
        default=0, description="Samples on which an attack in it failed and that none in it broke."
    )
    n_open: int = Field(
        description="Samples that were not attacked in it because another ball had broken them: what would become of them in "
        "this one alone is not known. 0 where every norm was run on all samples."
    )
    robust_accuracy: Accuracy = Field(
        description="Share of samples robust in this ball alone; open and undecided ones only in `high`."
    )
    at_most: float = Field(description="The same share if every open or undecided sample should turn out robust.")
    robust_accuracy_after: Accuracy = Field(description="Share of samples robust in this ball and all before it.")

    @property
    def name(self) -> str:
        """The ball in words: L2 0.5."""
        return f"{self.norm} {self.eps_text}"


class Escalation(Part):
    """Whether an ensemble went on to its stages for models that mask gradients, and why."""

    escalated: bool = Field(description="Whether it went on.")
    reasons: list[str] = Field(description="The signs of gradient masking, in words.")
    signs: dict[str, float] = Field(description="What was measured: shares of the samples looked at.")
    forward_passes: int = Field(description="Rows that looking cost, forward.")
    backward_passes: int = Field(description="Rows that looking cost, backward.")


class Progress(Part):
    """Where a run stands: what a live view shows."""

    eps_text: str = Field(description="The eps under attack, as it was written.")
    stage: int = Field(description="Number of the stage, from 0.")
    n_stages: int = Field(description="Stages in all.")
    attack: str = Field(description="Name of the stage's attack.")
    done: int = Field(description="Samples of this stage that are judged.")
    total: int = Field(description="Samples of this stage.")
    survivors: int = Field(description="Samples of the run that nothing has broken.")
    n: int = Field(description="Samples of the run.")
    forward_passes: int = Field(description="Rows of the last call, forward.")
    seconds: float = Field(description="Seconds of the last call.")
    message: str = Field(default="", description="What the last call had to say.")
    under_way: int = Field(default=0, description="Samples of the call that is under way; 0 between calls.")
    share: float = Field(
        default=0.0,
        description="How far that call is, by its passes, from 0 to 1; 0 where the attack's cost is unknown.",
    )
    passes: int = Field(default=0, description="Passes of that call so far, in rows, forward and backward.")


class AttackResult(Part):
    """One stage of a cascade. Passes count rows, forward and backward."""

    name: str = Field(description="Name of the attack.")
    options: dict[str, Any] = Field(default_factory=dict, description="Its options, as it ran.")
    ball: str = Field(default="", description="The ball that it worked in, where the threat model is a union: L2 0.5.")
    source: str = Field(default="native", description="Where it comes from: native, a toolkit, a plugin.")
    kind: str = Field(default="bounded", description="bounded, minimum-norm, or unbounded.")
    knowledge: str = Field(
        default="white-box", description="What it knows: white-box, score-based, decision-based, transfer."
    )
    evidence: bool = Field(
        default=True,
        description="Whether what it leaves standing says anything of the threat model: false for an attack of another one "
        "(patches, single pixels), whose projections were judged, and for one that is not known to beat noise.",
    )
    n_attacked: int = Field(description="Samples that it was run on.")
    n_broken: int = Field(description="Samples that it broke, by the referee.")
    n_undecided: int = Field(default=0, description="Samples on which it failed.")
    n_unchanged: int = Field(default=0, description="Samples whose image came back as it went in.")
    seconds: float = Field(description="Seconds of its calls.")
    forward_passes: int = Field(description="Rows forward through the attacked model.")
    backward_passes: int = Field(description="Rows backward through the attacked model.")
    padding_rows: int = Field(
        default=0, description="Rows that were computed besides, to fill micro-batches, or in vain ahead of need."
    )
    violations: int = Field(description="Samples for which something outside the threat model came back.")
    violation_kinds: dict[str, int] = Field(
        default_factory=dict, description="What they violated: not_finite, box, ball, each with its samples."
    )
    worst_excess: float = Field(default=0.0, description="How far the worst of them lay over eps.")
    rejected_claims: int = Field(
        default=0,
        description="Samples misclassified outside the threat model that hold inside it: claims that were not earned.",
    )
    robust_accuracy_after: float = Field(
        description="Share of samples left after this stage and those before it; after this one alone where attacks ran "
        "individually."
    )
    distances: Distances | None = Field(default=None, description="Of a minimum-norm attack: how far its examples lie.")
    broken_after: list[tuple[int, int]] = Field(
        default_factory=list,
        description="After how many passes per sample (forward and backward together) how many samples it had dropped as "
        "broken by then, a running total; empty for an attack that drops none.",
    )
    errors: list[str] = Field(default_factory=list, description="What its failed calls said.")
    warning: str = Field(default="", description="What a reader of this attack's results should always know.")


class ClassResult(Part):
    """Accuracy of one class; null where it has no samples."""

    label: int = Field(description="Number of the class.")
    name: str = Field(description="Name of the class.")
    n: int = Field(description="Its samples.")
    clean_accuracy: float | None = Field(description="Share classified correctly on clean images.")
    robust_accuracy: float | None = Field(description="Share classified correctly under all attacks.")


class Diagnostic(Part):
    """A sign that the number may not be what it seems."""

    code: str = Field(description="Stable word for the sign, such as zero_gradients.")
    severity: Literal["info", "warning", "serious"] = Field(description="serious: do not believe the number.")
    message: str = Field(description="What was seen.")
    advice: str = Field(description="What to do about it.")


class PassTotals(Part):
    """Rows through the original and the attacked model, by purpose."""

    clean: int = Field(default=0, description="On clean images.")
    attacks_forward: int = Field(default=0, description="Of attacks, forward.")
    attacks_backward: int = Field(default=0, description="Of attacks, backward.")
    referee: int = Field(default=0, description="Of the referee on what attacks returned.")
    diagnostics_forward: int = Field(default=0, description="Of looking for signs of gradient masking, forward.")
    diagnostics_backward: int = Field(default=0, description="Of looking for signs of gradient masking, backward.")
    padding: int = Field(default=0, description="Computed besides, to fill micro-batches, or in vain ahead of need.")


class Certification(Part):
    """Samples for which no adversarial example exists, by proof: the other side of a robust accuracy."""

    n_certified: int = Field(
        description="Samples that are classified correctly and proven to be robust; no attack ran on them."
    )
    accuracy: Accuracy = Field(description="Their share: robust accuracy is at least that.")
    methods: dict[str, int] = Field(default_factory=dict, description="How many were proven by which bound.")
    seconds: float = Field(default=0.0, description="Seconds that it took.")
    notes: list[str] = Field(default_factory=list, description="What a reader should know, such as that time was up.")


class ModelInfo(Part):
    """Which model."""

    spec: str = Field(description="How it was named.")
    architecture: str = Field(description="Name of its class.")
    fingerprint: str = Field(description="SHA-256 over the names and bytes of weights and buffers.")
    num_classes: int = Field(description="Its outputs.")
    parameters: int = Field(description="Numbers in its parameters.")
    mode: str = Field(default="eval", description="eval: put in eval mode; as-is: left as it came.")
    randomized: bool = Field(default=False, description="Whether it answers differently when asked twice.")
    judge_draws: int = Field(default=1, description="Draws by which the referee judges an example.")
    batch_dependent: bool = Field(
        default=False, description="Whether its answer to an image changes with the other images in a batch."
    )
    judged_in_batches_of: int | None = Field(
        default=None, description="Images in a batch, in the order of the data, of a model whose answers depend on it."
    )
    attack_model: str | None = Field(default=None, description="How the attacked model was named, where it is another.")
    attack_model_fingerprint: str | None = Field(default=None, description="Its fingerprint.")
    class_order: list[int] | None = Field(
        default=None,
        description="Which output of the model is the data's class 0, 1, …, where their names say another order.",
    )

    @property
    def name(self) -> str:
        """What to call the model: its spec, or its class where it was given in Python and has no spec."""
        return self.architecture if self.spec == "python" else self.spec

    @property
    def wavering(self) -> bool:
        """Whether it does not repeat itself: it answers at random, or by who shares a batch."""
        return self.randomized or self.batch_dependent


class Environment(Part):
    """Where it ran, and in which precision each part computed."""

    device: str = Field(description="Device of torch.")
    device_name: str = Field(description="Name of the hardware.")
    threads: int = Field(description="CPU threads of a process.")
    python: str = Field(description="Version of Python.")
    platform: str = Field(description="Operating system.")
    attack_precision: str = Field(default="fp32", description="Precision of the copy that native attacks ran on.")
    judge_precision: str = Field(default="fp32", description="Precision of the referee.")
    tf32: bool = Field(default=False, description="Whether that copy multiplied in TF32.")
    micro_batch: int = Field(description="Rows in a padded model call.")
    batch_size: int = Field(description="Samples in a call of an attack, where its results depend on it.")
    workers: int = Field(default=1, description="Processes that shared the samples.")
    runner: str = Field(default="local", description="Where they were: local, or ray.")
    folded: int = Field(default=0, description="BatchNorm layers folded into convolutions in the attack copy.")
    channels_last: bool = Field(default=False, description="Whether the attack copy keeps its channels last in memory.")
    compiled: str = Field(default="off", description="How the attack copy was compiled.")


class EvaluationRecord(Part):
    """The result of `robustdup eval`."""

    schema_name: Literal["robustdup.evaluation"] = Field(default=SCHEMA, description="Kind of this record.")
    schema_version: int = Field(default=VERSION, description="Version of its schema; newer versions read older ones.")
    run_id: str = Field(description="Name of the run: that of its folder.")
    created: str = Field(description="When it was finished, in UTC.")
    status: Literal["complete", "failed"] = Field(description="failed where no attack finished a single call.")
    command: str = Field(description="What runs it again.")
    n: int = Field(description="Samples.")
    threat: Threat = Field(description="The threat model of the result: the largest eps, or the union of balls.")
    tolerance: float = Field(description="How far over eps an example may lie by rounding.")
    clean_accuracy: Accuracy = Field(description="Share of samples classified correctly as they are.")
    robust_accuracy: Accuracy = Field(
        description="Share of samples classified correctly under all attacks; undecided ones only in `high`."
    )
    reliable: bool | None = Field(
        default=None,
        description="Whether the robust accuracy may be believed. false: gradients looked masked and no attack was seen to "
        "get through, so that it is an upper bound only; null: not looked at.",
    )
    unreliable_reasons: list[str] = Field(
        default_factory=list, description="Why the robust accuracy is an upper bound only, in words."
    )
    robust_accuracy_8bit: float | None = Field(
        default=None, description="The same after the adversarial images are rounded to 8 bits."
    )
    n_undecided: int = Field(description="Samples on which an attack failed and that no other broke.")
    n_not_attacked: int = Field(default=0, description="Samples that were left out.")
    attacks: list[AttackResult] = Field(
        description="The stages, in order, at the largest eps; of a union those of all balls."
    )
    union: list[UnionBall] = Field(
        default_factory=list, description="The balls, in order, where the threat model is a union over norms."
    )
    individual: bool = Field(default=False, description="Whether each attack ran on all samples, not on those left.")
    escalation: Escalation | None = Field(
        default=None,
        description="Whether an ensemble went on to its stages for models that mask gradients; null where it has none.",
    )
    min_distance: MinDistance | None = Field(
        default=None, description="The smallest eps of the samples, where asked for."
    )
    certification: Certification | None = Field(
        default=None, description="What was proven before the attacks, where asked for."
    )
    interval_about: str = Field(description="What the intervals speak of.")
    curve: dict[str, CurvePoint] = Field(default_factory=dict, description="Robust accuracy at each eps, by its text.")
    curve_attacks: dict[str, list[AttackResult]] = Field(
        default_factory=dict, description="The stages at each eps, by its text; in each ball of a union, by its name."
    )
    per_class: list[ClassResult] = Field(default_factory=list, description="Accuracies per class.")
    diagnostics: list[Diagnostic] = Field(
        default_factory=list, description="Signs that the result should not be believed."
    )
    events: list[str] = Field(default_factory=list, description="What happened on the way that a reader should know.")
    passes: PassTotals = Field(description="Rows through the model, by purpose.")
    seconds: float = Field(
        description="Seconds of the session that finished the run, and at least those of all its calls."
    )
    seed: int = Field(description="Seed of everything random.")
    config: dict[str, Any] = Field(description="All settings, by name.")
    data: DataInfo = Field(description="The images that were evaluated on.")
    model: ModelInfo = Field(description="The model that was judged.")
    environment: Environment = Field(description="Where it ran.")
    versions: dict[str, str] = Field(description="Versions of what it was computed with.")

    def __str__(self) -> str:
        """Return what it says in one line; `repr` and `to_json` show all of it."""
        from robustdup.records.verdict import bound_text, doubt_text, proven_text

        clean, robust = self.clean_accuracy, self.robust_accuracy
        undecided = f", {self.n_undecided} undecided" if self.n_undecided else ""
        doubt = doubt_text(self)
        robust_text = (
            f"{bound_text(self)}, {doubt}" if doubt else f"{robust.value:.2%} [{robust.low:.2%}, {robust.high:.2%}]"
        )
        return (
            f"{self.model.name} on {self.data.spec} ({self.data.split}), {self.threat.text}, "
            f"{self.n} samples: clean {clean.value:.2%} [{clean.low:.2%}, {clean.high:.2%}], "
            f"robust {robust_text}{undecided}{f', {proven_text(self)}' if self.certification is not None else ''}"
        )


def save_record(record: EvaluationRecord, folder: Path) -> Path:
    """Write `record.json` into a run folder and return its path."""
    return write_record(record, folder, made_here=True)


def load_record(place: str | Path) -> EvaluationRecord:
    """Read an evaluation record from a run folder or a file; older versions are upgraded, newer ones refused (UserError)."""
    return read_record(
        place, EvaluationRecord, schema=SCHEMA, version=VERSION, noun="an evaluation record", upgrade=_upgrade
    )


def _upgrade(content: dict[str, Any], version: int) -> None:
    """Give the fields of an older record today's names; what it lacks has defaults."""
    if version >= 3:
        return
    curves = content.get("curve_attacks")
    stages = [content.get("attacks"), *(curves.values() if isinstance(curves, dict) else ())]
    renamed = [
        (content.get("escalation"), "seen", "signs"),
        (content.get("min_distance"), "found", "n_found"),
        *(
            (attack, "fooled_after", "broken_after")
            for attacks in stages
            if isinstance(attacks, list)
            for attack in attacks
        ),
    ]
    for part, old, new in renamed:
        if isinstance(part, dict) and old in part:
            part[new] = part.pop(old)
