"""The published figures of arXiv 2504.00638 set beside those of a study, as published and repaired."""

from __future__ import annotations

from collections.abc import Sequence

from robustdup_study.paper_2504_00638.published import FIGURES, Figure
from robustdup_study.records import DoseMean, PublishedFigure, StudyRecord

CLEAN = ("clean_accuracy", "test_clean_acc")
ROBUST = ("robust_accuracy", "test_adv_acc")


def set_beside(record: StudyRecord, others: Sequence[StudyRecord] = ()) -> list[PublishedFigure]:
    """Return each published figure with the means seen here at the same arm and percentage, in per cent.

    `record` and `others` (of other recipes) are searched for the protocol as it was published, and for what is repaired.
    """
    of_paper = [study for study in (record, *others) if study.recipe.get("analysis", {}).get("dose") == "percent"]
    if not of_paper:
        return []
    means = [(study, mean) for study in of_paper for mean in study.means]
    return [
        _beside(figure, name, value, [(study, mean) for study, mean in means if mean.metric in names])
        for figure in FIGURES
        for name, value, names in (("clean", figure.clean, CLEAN), ("robust", figure.adversarial, ROBUST))
        if value is not None
    ]


def _beside(
    figure: Figure, metric: str, published: float, means: Sequence[tuple[StudyRecord, DoseMean]]
) -> PublishedFigure:
    """Return a published figure with the first means seen of it: as published, and with the most repaired."""
    seen: dict[str, DoseMean] = {}
    for study, mean in means:
        if mean.dose == figure.percent and figure.arm in map(str, mean.factors.values()):
            seen.setdefault(_mended(study, mean), mean)
    mended = next((key for key in ("all", "clamp") if key in seen), "")
    here, low, high, seeds = _in_percent(seen.get(""))
    repaired, repaired_low, repaired_high, repaired_seeds = _in_percent(seen.get(mended) if mended else None)
    return PublishedFigure(
        arm=figure.arm,
        percent=figure.percent,
        metric=metric,
        published=published,
        source=figure.source,
        here=here,
        low=low,
        high=high,
        seeds=seeds,
        repaired=repaired,
        repaired_low=repaired_low,
        repaired_high=repaired_high,
        repaired_seeds=repaired_seeds,
        mended=mended,
    )


def _mended(study: StudyRecord, mean: DoseMean) -> str:
    """Return what is repaired in these runs of a study: nothing, the clamp alone, or all."""
    if study.recipe.get("protocol") != "as-published":
        return "all"
    return "clamp" if str(mean.factors.get("clamp", "published")) == "repaired" else ""


def _in_percent(mean: DoseMean | None) -> tuple[float | None, float | None, float | None, int]:
    """Return mean, interval and seeds, shares in per cent."""
    if mean is None:
        return None, None, None, 0
    value, low, high = (None if share is None else 100 * share for share in (mean.mean, mean.low, mean.high))
    return value, low, high, mean.n
