"""`robustdup eval`: attack a model, believe no attack's own word, and say where it stands."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from robustdup.cli.flags import RECORD_AS_JSON, RESUME, TRUST, split_words, with_flags
from robustdup.cli.quiet import diverted
from robustdup.cli.runs import configuration, interrupted
from robustdup.config import EvalConfig
from robustdup.errors import RobustdupError, RunError, UserError
from robustdup.plugins import ThreatSpec, load_plugins
from robustdup.records.base import RECORD_FILE
from robustdup.records.folder import fresh_folder, withdraw
from robustdup.records.origin import file_made_here

if TYPE_CHECKING:
    from robustdup.records import EvaluationRecord
    from robustdup.report.terminal import Form


def _eval(
    words: list[str],
    flags: dict[str, Any],
    resume: str | None = RESUME,
    trust: bool = TRUST,
    bundle: str | None = typer.Option(
        None,
        "--bundle",
        metavar="FOLDER",
        help="Write the evidence there: examples, outcomes, hashes (robustdup verify).",
    ),
    sign: str | None = typer.Option(
        None,
        "--sign",
        metavar="KEY",
        help="Sign the bundle with a private key in a file (ssh-keygen -t ed25519; extra sign).",
    ),
    json: bool = RECORD_AS_JSON,
    latex: bool = typer.Option(False, "--latex", help="Print the result as a LaTeX table."),
    markdown: bool = typer.Option(False, "--markdown", help="Print the result as a Markdown table."),
) -> int:
    """Evaluate a model: clean and robust accuracy, verified, with intervals. With no arguments: built-in model and data."""
    file, overrides = split_words(words)
    config, folder = configuration(EvalConfig, "attacks", _fresh, file, overrides, flags, resume, trust=trust)

    from robustdup import jobs  # torch is imported from here on
    from robustdup.evidence.bundle import check_place
    from robustdup.evidence.signature import read_key
    from robustdup.report.live import LiveView
    from robustdup.report.terminal import show_record

    form: Form = "json" if json else "latex" if latex else "markdown" if markdown else "table"
    if bundle is not None:  # before the attacks run, not after
        check_place(Path(bundle))
    if sign is not None:
        if bundle is None:
            raise UserError("--sign signs a bundle: name its folder with --bundle.", code="missing-option")
        read_key(Path(sign))
    # Plugins are loaded for it where a threat is named: those of files run each time.
    if config.threat and (spec := load_plugins(config.plugin).get_threat(config.threat)) is not None:
        return _without_attacks(spec, config, folder, resume=resume is not None, bundle=bundle, sign=sign, form=form)
    if bundle is not None and not config.save_images:
        raise UserError("--bundle needs the adversarial images: leave out --no-save-images.", code="bad-option")
    record = jobs.finished_record(folder) if resume is not None else None
    if record is not None:
        jobs.check_same(folder, config)
        if not file_made_here(folder / RECORD_FILE):
            print(f"Note: {str(folder / RECORD_FILE)!r} is not as a run under this account wrote it.", file=sys.stderr)
    else:
        view = LiveView(enabled=form == "table" and sys.stderr.isatty(), lines=True)
        try:
            # What toolkits print must not stand between the lines of the record.
            with view, diverted(form != "table"):
                record = jobs.run_evaluation(
                    config, folder=folder, resume=resume is not None, progress=view.update, spread=True
                ).record
        except KeyboardInterrupt:
            if not folder.is_dir():
                raise
            return interrupted("eval", folder)
    failed = _failure(record) if record.status == "failed" else None
    if isinstance(failed, UserError) and resume is None:  # the corrected command finds its --out free
        withdraw(folder)
        raise failed
    _write_evidence(folder, bundle, sign)
    show_record(record, folder, form=form, bundle=bundle)
    if failed is not None:
        raise failed
    return 0


def _write_evidence(folder: Path, bundle: str | None, sign: str | None) -> None:
    """Write the bundle of a finished run, and sign it, where that was asked for."""
    from robustdup.evidence.bundle import write_bundle
    from robustdup.evidence.signature import sign_bundle

    if bundle is not None:
        write_bundle(folder, Path(bundle))
        if sign is not None:
            sign_bundle(Path(bundle), Path(sign))


def _failure(record: EvaluationRecord) -> RobustdupError:
    """Return the error of a run in which no attack finished a call: a mistake where each of them says so."""
    errors = list(dict.fromkeys(error for attack in record.attacks for error in attack.errors))
    mistakes = all(error.startswith("UserError:") for error in errors)
    reasons = "; ".join(error.removeprefix("UserError: ") for error in errors)
    return (UserError if mistakes else RunError)(f"No attack finished a single call: {reasons}", code="attacks-failed")


def _without_attacks(
    spec: ThreatSpec,
    config: EvalConfig,
    folder: Path,
    *,
    resume: bool,
    bundle: str | None,
    sign: str | None,
    form: Form,
) -> int:
    """Evaluate on what a plugin shows in place of attacks, or go on with that, and print the result."""
    from robustdup import jobs
    from robustdup.report.live import Lines

    lines = Lines()

    def tell(name: str, number: int, total: int) -> None:
        if name:
            lines.say(lambda: f"{name}, {number} of {total} sets")

    if resume and (folder / RECORD_FILE).is_file():
        record = spec.load(folder)
        jobs.check_same(folder, config)
    else:
        try:
            with diverted(form != "table"):
                record = spec.evaluate(config, folder=folder, resume=resume, progress=tell).record
        except KeyboardInterrupt:
            if not folder.is_dir():
                raise
            return interrupted("eval", folder)
    _write_evidence(folder, bundle, sign)
    spec.show(record, folder, form=form)
    if bundle is not None and form == "table":
        print(f"Evidence: {bundle} (robustdup verify {shlex.quote(bundle)})")
    return 0


def _fresh(config: EvalConfig) -> Path:
    return fresh_folder(config.model.split("@")[0], config.data)


eval_command = with_flags(EvalConfig, _eval)
