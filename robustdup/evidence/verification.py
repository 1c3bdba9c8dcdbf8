"""What a verification says: what is proven here, what follows from what is stated, and what is only stated."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from pydantic import Field

from robustdup.records import Part, Threat


class Signed(Part):
    """What any verification says: whether it was accepted, and who states what was verified, which proves nothing of it."""

    accepted: bool = Field(description="Whether nothing speaks against what was claimed.")
    problems: list[str] = Field(default_factory=list, description="What does not fit, in words.")
    rechecked: list[str] = Field(
        default_factory=list, description="Fields of the bundle that were computed again here."
    )
    consistent: list[str] = Field(
        default_factory=list, description="Fields that follow from others of the bundle, and were computed from them."
    )
    signature: Literal["none", "holds", "not-checked"] = Field(
        default="none",
        description="Whether somebody signed the bundle. not-checked: the package cryptography is not installed.",
    )
    signed_by: str = Field(default="", description="The public key of who signed it, as OpenSSH writes it.")
    signer: str = Field(default="", description="What the verifier calls that key, where it was named with --signer.")
    only_stated: list[str] = Field(default_factory=list, description="All other fields: nothing here speaks for them.")
    seconds: float = Field(default=0.0, description="Seconds that it took.")

    def __str__(self) -> str:
        """Return whether it was accepted, and what was found."""
        return f"Accepted. {self.headline()}" if self.accepted else f"Refused: {'; '.join(self.problems)}"

    @abstractmethod
    def headline(self) -> str:
        """Return what was found, in a sentence or two."""

    @property
    @abstractmethod
    def about(self) -> str:
        """What the model was shown: a threat model, say."""

    def remarks(self) -> list[str]:
        """Return what else a reader should know, a sentence each."""
        return []


class Verification(Signed):
    """What the referee says of claimed examples. Accuracies are over the n samples."""

    n: int = Field(description="Samples.")
    threat: Threat = Field(description="The threat model.")
    clean_accuracy: float = Field(description="Share of samples classified correctly as they are.")
    robust_accuracy: float = Field(
        description="Share of samples classified correctly with the examples in their place."
    )
    at_most: float = Field(
        description="What is proven: robust accuracy is at most this, since every other sample is misclassified as it is or by "
        "an example here."
    )
    n_misclassified: int = Field(default=0, description="Samples that are misclassified as they are.")
    n_broken: int = Field(description="Claimed or given examples that hold.")
    n_left: int = Field(
        default=0, description="Samples that nothing here breaks. That stronger attacks fail on them is only stated."
    )
    n_certified: int = Field(
        default=0,
        description="Samples whose certificate the independent checker accepted here: no adversarial example exists.",
    )
    at_least: float | None = Field(
        default=None, description="What is proven where there are certificates: robust accuracy is at least this."
    )
    n_undecided: int = Field(default=0, description="Samples that the bundle says are undecided.")
    randomized: bool = Field(
        default=False, description="Whether the model answers at random: then shares are expected ones."
    )
    violations: int = Field(description="Examples outside the threat model, whose projections were judged.")
    violation_kinds: dict[str, int] = Field(
        default_factory=dict, description="What they violated: not_finite, box, ball."
    )
    within_rounding: int = Field(default=0, description="Claims that fail only within float32 rounding.")
    notes: list[str] = Field(default_factory=list, description="What a reader should know: how the examples were read.")
    n_replayed: int = Field(default=0, description="Survivors on which the stated attacks were run again here.")
    n_replayed_broken: int = Field(default=0, description="Those of them that broke: then the bundle is refused.")

    @property
    def about(self) -> str:
        """The threat model."""
        return self.threat.text

    def headline(self) -> str:
        """Return what is proven, and what is only stated, in two sentences."""
        about = "expected over the draws of a model that answers at random" if self.randomized else "proven here"
        by = f"by {_count(self.n_broken, 'adversarial example')}" if self.n_broken else "by its clean accuracy alone"
        clean = _count(self.n_misclassified, "sample")
        wrong = f" and {clean} misclassified without any change" if self.n_misclassified else ""
        most = f"At most {100 * self.at_most:.2f}% robust ({about} {by}{wrong}, of {self.n})."
        if self.at_least is not None:
            most += f" At least {100 * self.at_least:.2f}% robust (proven here by {_count(self.n_certified, 'certificate')})."
        n_open = self.n_left - self.n_certified
        if not self.n_left:
            return f"{most} No sample is left to break."
        if not n_open:
            return f"{most} No sample is left open."
        return f"{most} That stronger attacks fail on the other {_count(n_open, 'sample')} is only stated."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
