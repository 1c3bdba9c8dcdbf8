"""The recipe of a study: the base of all cells, the factors that are crossed, and the analysis, fixed in advance."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from robustdup.config import Config, build
from robustdup.errors import UserError, unknown
from robustdup_study.publications import TRAIN, protocols
from robustdup_study.vocabulary import has_arms, with_conditions

Level = str | int | float | bool | dict[str, Any]


class AnalysisConfig(Config):
    """What is compared, fixed before there are results. Margins and precision are points for accuracies."""

    metrics: list[str] = Field(
        default_factory=lambda: ["clean_accuracy", "robust_accuracy"], description="Metrics that the study is about.",
        min_length=1,
    )  # fmt: skip
    margins: dict[str, float] = Field(
        default_factory=lambda: {"clean_accuracy": 1.0, "robust_accuracy": 1.0},
        description="Differences below which two settings count as equivalent, by metric.",
    )
    primary: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Comparisons that are corrected together (Holm), by metric, dose, factor levels, contrast; all doses "
        "of all metrics if none is named.",
    )
    contrasts: list[str] = Field(
        default_factory=list,
        description="Factors by whose levels the effects of a dose are compared; the first level is the reference.",
    )
    dose: str = Field("dose", description="The factor that is the dose; its level 0 is the baseline.")
    alpha: float = Field(0.05, description="Level of tests and, as 1 - alpha, of intervals.", gt=0, lt=0.5)
    power: float = Field(0.8, description="Power at which needed seeds are counted.", gt=0.05, lt=1)
    precision: float = Field(0.5, description="Wished half width of intervals, in points.", gt=0)
    bootstrap: int = Field(0, description="Draws of a bootstrap interval beside the t interval; 0: none.", ge=0)
    anova: bool = Field(True, description="Repeated-measures ANOVA of the effects over all factors.")

    @field_validator("margins")
    @classmethod
    def _positive(cls, margins: dict[str, float]) -> dict[str, float]:
        for name, value in margins.items():
            if not value > 0:
                raise ValueError(f"the margin of {name} must be above 0")
        return margins


class StudyConfig(Config):
    """What `robustdup study` needs: a recipe."""

    recipes_of: ClassVar[str] = "study"

    name: str = Field("study", description="Name of the study.")
    protocol: str = Field(
        TRAIN,
        description="What a cell does: train (robustdup's own training and evaluation), or the protocol of a publication, "
        "such as as-published (arXiv 2504.00638, flaws included).",
    )
    base: dict[str, Any] = Field(default_factory=dict, description="Settings of `robustdup train` for every cell.")
    factors: dict[str, list[Level]] = Field(
        default_factory=dict,
        description="Factors and their levels: objective, scheme, dose, mode, near, budget, condition, extra, model, data, or "
        "any setting of `robustdup train`. A level may be a mapping with a name: {name: …, setting: value}.",
    )
    budgets: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="What each level of the factor budget sets: {fixed-epochs: {epochs: 10}}."
    )
    baseline_budget: str | None = Field(
        None,
        description="Cells without copies are run under this budget only: for budgets that are equal at dose 0.",
    )
    exclude: list[dict[str, Any]] = Field(
        default_factory=list, description="Combinations to leave out: {objective: standard, condition: as-weights}."
    )
    seeds: int | list[int] = Field(5, description="Number of seeds, or the seeds themselves.")
    checkpoint: Literal["last", "best"] = Field("last", description="Checkpoint whose accuracies are the study's.")
    metrics_on: int = Field(
        2000, description="Training images on which accuracy on duplicated and on single ones is measured, each.", ge=0
    )
    clean_on: int | None = Field(
        None,
        description="Test images on which clean accuracy and calibration are measured, where they should be more than the "
        "base.test_n of the attacks.",
        ge=1,
    )
    near_test: bool = Field(
        False, description="Also measure clean accuracy without test images that have a near-duplicate in training."
    )
    shifted: str | None = Field(None, description="A shifted test set (DATA or DATA@SPLIT), for effective robustness.")
    analysis: AnalysisConfig = Field(default_factory=lambda: AnalysisConfig.model_validate({}))
    published: bool = Field(
        False, description="Set published figures beside (arXiv 2504.00638), and judge published claims."
    )
    compare_with: list[str] = Field(
        default_factory=list,
        description="Folders of other studies of that paper (as published, repaired), whose figures are set beside too.",
    )
    beside: list[str] = Field(default_factory=list, description="The old name of compare_with.", exclude=True)
    runner: str = Field("local", description="Where cells run: local, or ray (a cluster).")
    workers: int | None = Field(
        None, description="Cells at a time; one for each core, or each GPU, if not given.", ge=1
    )
    device: str = Field("auto", description="cpu, cuda, or auto.")
    threads: int | None = Field(
        None, description="CPU threads of a cell; an even share of the cores if not given.", ge=1
    )
    retries: int = Field(2, description="How often a cell whose worker died is tried again.", ge=0)
    keep_weights: bool = Field(False, description="Keep the checkpoints of all cells.")
    plugin: list[str] = Field(default_factory=list, description="Plugin files to load, besides installed plugins.")
    out: str | None = Field(None, description="Folder of the study; studies/NAME if not given.")

    @field_validator("seeds")
    @classmethod
    def _some_seeds(cls, seeds: int | list[int]) -> int | list[int]:
        if isinstance(seeds, int) and seeds < 1:
            raise ValueError("there must be at least one seed")
        if isinstance(seeds, list) and (not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0):
            raise ValueError("seeds must be different numbers from 0 on")
        return seeds

    @model_validator(mode="before")
    @classmethod
    def _old_factor(cls, content: Any) -> Any:
        if not isinstance(content, dict) or not has_arms(content):
            return content
        warnings.warn("The factor 'arm' is now called 'condition'.", FutureWarning, stacklevel=2)
        return with_conditions(content)

    @model_validator(mode="after")
    def _old_name(self) -> StudyConfig:
        if self.beside:
            warnings.warn("The setting 'beside' is now called 'compare_with'.", FutureWarning, stacklevel=2)
            self.compare_with, self.beside = [*self.compare_with, *self.beside], []
        return self

    @property
    def seed_list(self) -> list[int]:
        """The seeds themselves."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds

    @property
    def measure(self) -> dict[str, Any]:
        """What is measured on a cell's model besides its evaluation."""
        settings = {"metrics_on": self.metrics_on, "near_test": self.near_test, "shifted": self.shifted}
        return settings if self.clean_on is None else {**settings, "clean_on": self.clean_on}

    @property
    def folder(self) -> Path:
        """Where the study is kept."""
        return Path(self.out) if self.out else Path("studies") / self.name


ELSEWHERE = ("runner", "workers", "device", "threads", "retries", "plugin", "out", "keep_weights", "compare_with")


def load_recipe(file: str | Path | None, overrides: list[str], values: dict[str, Any] | None = None) -> StudyConfig:
    """Return the recipe of a YAML file with overrides. Raises UserError naming the key that is wrong."""
    config = build(StudyConfig, file, overrides, values)
    if file is not None and "name" not in config.model_fields_set:
        config = config.model_copy(update={"name": Path(file).stem})
    if not config.name.strip() or Path(config.name).name != config.name:
        raise UserError(
            f"The study's name must be a plain word, since its folder is called so; got {config.name!r}.",
            code="bad-value",
        )
    if config.protocol not in protocols():
        raise unknown("protocol", config.protocol, protocols())
    for name, levels in config.factors.items():
        if not levels:
            raise UserError(f"Factor {name!r} has no levels.", code="bad-value")
        labels = [label(level) for level in levels]
        if len(set(map(str, labels))) < len(labels):
            raise UserError(f"Factor {name!r} names a level twice: {', '.join(map(str, labels))}.", code="bad-value")
    _check_named(config)
    return config


def label(level: Level) -> str | int | float | bool:
    """Return what a level is called: itself, or the `name` of a mapping. Raises UserError for a mapping without one."""
    if isinstance(level, dict):
        if not isinstance(level.get("name"), str | int | float):
            raise UserError(
                f"A level that is a mapping needs a name: {{name: …, setting: value}}; got {level!r}.", code="bad-value"
            )
        return level["name"]  # type: ignore[no-any-return]
    return level


def settings(level: Level) -> dict[str, Any]:
    """Return what a level that is a mapping sets; {} for a plain one."""
    return {key: value for key, value in level.items() if key != "name"} if isinstance(level, dict) else {}


def _check_named(config: StudyConfig) -> None:
    """Refuse exclusions, contrasts and budgets that name what is not there."""
    factors = config.factors
    for number, excluded in enumerate(config.exclude, start=1):
        for name, wanted in excluded.items():
            if name not in factors:
                raise unknown(f"factor of exclusion {number}:", name, factors)
            allowed = [str(label(level)) for level in factors[name]]
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if str(value) not in allowed:
                    raise unknown(f"level of {name!r} in exclusion {number}:", str(value), allowed)
    for name in config.analysis.contrasts:
        if name not in factors:
            raise unknown("factor of analysis.contrasts:", name, factors)
    for level in factors.get("budget", []):
        if str(label(level)) not in config.budgets and not isinstance(level, dict):
            raise UserError(
                f"Budget {label(level)!r} is not defined. Write budgets: {{{label(level)}: {{epochs: 10}}}} "
                f"(defined: {', '.join(config.budgets) or 'none'}).",
                code="unknown-budget",
            )
    if config.baseline_budget is not None and config.baseline_budget not in map(
        str, map(label, factors.get("budget", []))
    ):
        raise unknown("budget of baseline_budget:", config.baseline_budget, map(str, config.budgets))
