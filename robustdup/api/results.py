"""What an evaluation returns to a notebook: the record, the adversarial images, the outcome of each sample."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdup.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from robustdup.leaderboard import RankResult
    from robustdup.records import Accuracy, AttackResult, ClassResult, CurvePoint, Diagnostic, EvaluationRecord, Threat


@dataclass(frozen=True, repr=False)
class EvaluationResult:
    """The result of `robustdup.evaluate`. In a notebook it shows itself as a table.

    What is asked for most in the record stands here too: `clean_accuracy`, `robust_accuracy`, `attacks`, `diagnostics`, ….

    Attributes:
        record: what `robustdup eval` writes: accuracies with intervals, each attack, diagnostics, versions.
        adv_images: float32 (N, C, H, W): the adversarial image of each broken sample, the last one tried of any other.
        outcomes: one word per sample: broken, robust, certified, undecided, or misclassified (wrong without any attack).
        samples: the columns of samples.parquet, a row per sample and attack.
        folder: the run folder, where one was written.
    """

    record: EvaluationRecord
    adv_images: Tensor = field(repr=False)
    outcomes: list[str] = field(repr=False)
    samples: dict[str, list[Any]] = field(repr=False)
    folder: Path | None = None

    @property
    def clean_accuracy(self) -> Accuracy:
        """The share of samples that are classified correctly, with its 95% interval."""
        return self.record.clean_accuracy

    @property
    def robust_accuracy(self) -> Accuracy:
        """The share of samples that survived every attack, with its 95% interval."""
        return self.record.robust_accuracy

    @property
    def n(self) -> int:
        """How many samples were evaluated."""
        return self.record.n

    @property
    def threat(self) -> Threat:
        """The threat model of the result: the largest eps, or the union of balls."""
        return self.record.threat

    @property
    def seed(self) -> int:
        """The seed of everything random."""
        return self.record.seed

    @property
    def attacks(self) -> list[AttackResult]:
        """The attacks in order, with how many samples each attacked and broke."""
        return self.record.attacks

    @property
    def diagnostics(self) -> list[Diagnostic]:
        """Signs that the result should not be believed, each with its severity and a sentence."""
        return self.record.diagnostics

    @property
    def events(self) -> list[str]:
        """What happened on the way that a reader should know."""
        return self.record.events

    @property
    def per_class(self) -> list[ClassResult]:
        """Accuracies per class."""
        return self.record.per_class

    @property
    def curve(self) -> dict[str, CurvePoint]:
        """The robust accuracy at each eps, by its text; empty where one was asked for."""
        return self.record.curve

    @property
    def n_undecided(self) -> int:
        """How many samples an attack failed on and no other broke."""
        return self.record.n_undecided

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return self.record.seconds

    @property
    def reliable(self) -> bool | None:
        """Whether the robust accuracy may be believed: False where it is an upper bound only, None if not looked at."""
        return self.record.reliable

    @property
    def is_adv(self) -> Tensor:
        """Bool (N,): misclassified in the end, under attack or without."""
        import torch

        return torch.tensor([outcome in ("broken", "misclassified") for outcome in self.outcomes])

    def save(self, folder: str | Path) -> Path:
        """Write the run folder: record.json, samples.parquet, images.

        Args:
            folder: a new or empty folder.

        Returns:
            Its path.

        Raises:
            UserError: the folder is not empty, or nothing was kept to write.
        """
        to = Path(folder)
        if to.exists() and (not to.is_dir() or any(to.iterdir())):
            raise UserError(
                f"{str(to)!r} is not empty. Choose another folder; nothing is overwritten.", code="not-empty"
            )
        if self.folder is None or not self.folder.is_dir():
            raise UserError(
                "The run folder of this result is gone. Evaluate with out=… to keep it.", code="missing-file"
            )
        shutil.copytree(self.folder, to, dirs_exist_ok=True)
        return to

    def rank(self) -> RankResult:
        """Return where the model would stand among RobustBench's published ones, or why it cannot be compared."""
        import pyarrow as pa

        from robustdup.leaderboard import position

        return position(self.record, pa.table(self.samples), made_here=True)

    def __str__(self) -> str:
        return str(self.record)

    def __repr__(self) -> str:
        return f"<EvaluationResult: {self}>"

    def _repr_markdown_(self) -> str:
        from robustdup.report.terminal import markdown_table

        return markdown_table(self.record)

    def _repr_html_(self) -> str:
        from robustdup.report.notebook import notebook_html

        return notebook_html(self.record, str(self.rank()))
