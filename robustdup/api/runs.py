"""Train, rank, compare and verify from Python."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdup.api.given import as_dataset
from robustdup.api.loading import load_model
from robustdup.api.options import TrainOptions
from robustdup.api.results import EvaluationResult
from robustdup.errors import UserError

if TYPE_CHECKING:
    from typing import Unpack

    from robustdup.evidence.verification import Signed
    from robustdup.leaderboard import GateResult, RankResult, RunComparison
    from robustdup.records import EvaluationRecord, TrainingRecord

Run = "str | Path | EvaluationResult | EvaluationRecord"


def train(*, out: str | Path | None = None, resume: bool = False, **options: Unpack[TrainOptions]) -> TrainingRecord:
    """Train a classifier, standard or adversarially, as `robustdup train` does.

    Args:
        out: the run folder; runs/<time>-<model> if not given.
        resume: go on with the unfinished run in `out`.
        options: the settings of `robustdup train`, by name: `data`, `model`, `objective`, `epochs`, …

    Returns:
        The record: accuracies of the best and the last checkpoint, curves, passes, seconds.

    Raises:
        UserError: an option or a value that cannot be.
        RunError: the run could not be finished.
    """
    from robustdup.config import TrainConfig, validate
    from robustdup.jobs import run_training
    from robustdup.records.folder import fresh_folder

    config = validate(TrainConfig, {**options, "out": None if out is None else str(out)})
    folder = Path(out) if out is not None else fresh_folder("train", config.model, config.data)
    return run_training(config, folder=folder, resume=resume)


def rank(run: Any) -> RankResult:
    """Say where a run's model would stand among RobustBench's published ones.

    Args:
        run: a run folder, its record.json, a record, or what `evaluate` returned.

    Returns:
        The rank, or a bound, with the reasons where there is none; `str()` of it is one sentence.

    Raises:
        UserError: there is no evaluation at that place.
    """
    from robustdup.leaderboard import position
    from robustdup.records import find_record
    from robustdup.records.origin import file_made_here

    record, samples = _opened(run)
    made_here = True if isinstance(run, EvaluationResult) else None
    if isinstance(run, str | Path):
        made_here = file_made_here(find_record(run))
    return position(record, samples, made_here=made_here)


def compare(a: Any, b: Any) -> RunComparison:
    """Compare two evaluations on the same samples: difference a minus b, Tango's 95% interval, McNemar's test.

    Args:
        a: a run folder, its record.json, or what `evaluate` returned.
        b: another one.

    Raises:
        UserError: the threat models differ, or the runs share no sample.
    """
    from robustdup.leaderboard import compare as compare_records

    return compare_records(*_with_samples(a), *_with_samples(b))


def gate(
    run: Any, baseline: Any = None, *, minimum: str | float | None = None, margin: str | float = "1pt",
    accept_doubt: bool = False,
) -> GateResult:  # fmt: skip
    """Say whether a run may pass: no drop against a baseline beyond a margin and chance, a minimum, a number to be believed.

    Args:
        run: a run folder, its record.json, or what `evaluate` returned.
        baseline: an earlier one on the same samples; the drop is tested by McNemar's exact test, one-sided, at 1%.
        minimum: robust accuracy that the run must have, such as 0.45 or "45%".
        margin: drop that is let pass: "1pt" (a percentage point), "1%" or 0.01.
        accept_doubt: let a robust accuracy pass that is an upper bound only.

    Returns:
        The result: `passed`, `checks`, `paired`, `lost`, `notes`; `str()` of it is one line.

    Raises:
        UserError: unusable-baseline, with the reason; missing-argument with neither baseline nor minimum; no-record.
    """
    from robustdup.leaderboard import gate as gate_records
    from robustdup.leaderboard.gate import unusable

    record, samples = _with_samples(run)
    try:
        old = None if baseline is None else _with_samples(baseline)
    except UserError as error:
        raise unusable(str(error)) from None
    return gate_records(record, samples, old, minimum=minimum, margin=margin, accept_doubt=accept_doubt)


def verify(
    evidence: str | Path, model: Any = None, data: Any = None, labels: Any = None, *, norm: str | None = None,
    eps: str | float | None = None, device: str = "auto", trust: bool = False,
    scale: str | None = None, indices: str | None = None, signer: str | None = None, **options: Any,
) -> Signed:  # fmt: skip
    """Judge adversarial examples again, by the referee alone, without an attack.

    Args:
        evidence: a bundle (the folder that `eval --bundle` wrote), a file of adversarial images, or a folder of pictures.
        model: a module or a spec; for a bundle, the one that its record names if not given, unless that runs code.
        data: what `load_data` returned, images with `labels`, or a spec; for a bundle, the record's if not given.
        labels: int64 (N,), where `data` is a tensor or array.
        norm: of the threat model, for a file (Linf if not given); a bundle has its own, and another is refused.
        eps: of the threat model, for a file; a bundle has its own, and another is refused.
        device: cpu, cuda, or auto.
        scale: what the pixels of a file are in: 255, cifar10, …; found out where it is clear if not given.
        indices: of which samples a file holds examples: "0,2,5", a file of numbers, or "nearest".
        trust: run code that a bundle names, such as a model in a file, without naming it here.
        signer: who must have signed a bundle: a public key of OpenSSH, or a file of them.
        options: other settings of `robustdup verify`.

    Returns:
        What was found: `accepted`, accuracies, violations, problems; of a kind of record that a plugin brings, what that says.

    Raises:
        UserError: there is nothing at that place, data or weights are not those of the bundle, or it names code.
    """
    from robustdup import jobs
    from robustdup.config import EvalConfig, validate
    from robustdup.threat import eps_as_text

    place = Path(evidence)
    if not place.exists():
        raise UserError(f"There is no bundle or file {str(place)!r}.", code="missing-file")
    is_bundle = jobs.is_bundle(place)
    settings = {"norm": norm, "eps": None if eps is None else eps_as_text(eps), "device": device, **options}
    given = {name: value for name, value in settings.items() if value is not None}
    specs = {name: spec for name, spec in (("model", model), ("data", data)) if isinstance(spec, str)}
    if not is_bundle:
        if len(specs) < 2:
            raise UserError("For a file name model and data by their specs, as on the command line.", code="bad-option")
        return jobs.verify_examples(place, validate(EvalConfig, {**specs, **given}), scale=scale, indices=indices)
    if all(part is None or isinstance(part, str) for part in (model, data)):
        return jobs.verify_bundle(place, {**specs, **given}, trust=trust, signer=signer)
    dataset = None if data is None else as_dataset(data, labels)
    images, true_labels = (None, None) if dataset is None else (dataset.images, dataset.labels)
    module = load_model(model) if isinstance(model, str) else model
    return jobs.verify_bundle(place, given, model=module, images=images, labels=true_labels, trust=trust, signer=signer)


def _with_samples(run: Any) -> tuple[EvaluationRecord, Any]:
    """Return the record of a run and its samples. Raises UserError where these are not at hand."""
    record, samples = _opened(run)
    if samples is None:
        raise UserError(f"{run!r} comes without its samples: give the run folder.", code="missing-file")
    return record, samples


def _opened(run: Any) -> tuple[EvaluationRecord, Any]:
    """Return the record of a run, and its samples where they are at hand."""
    import pyarrow as pa

    from robustdup.records import EvaluationRecord, find_record, load_record, load_samples

    if isinstance(run, EvaluationResult):
        return run.record, pa.table(run.samples)
    if isinstance(run, EvaluationRecord):
        return run, None
    folder = find_record(run).parent
    try:
        return load_record(run), load_samples(folder)
    except UserError as error:
        if error.code != "missing-file":
            raise
        return load_record(run), None
