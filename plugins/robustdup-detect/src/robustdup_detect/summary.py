"""From what was found to the record: counts, expectations, and the pairs and clusters that are shown."""

from __future__ import annotations

import math
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustdup.data.columns import Columns
from robustdup.data.splits import Splits
from robustdup.records import now
from robustdup.report.format import plural
from robustdup_detect.calibrate import ANNOTATED_PAIRS, Calibration
from robustdup_detect.decisions import Decisions
from robustdup_detect.pairlist import Pairs
from robustdup_detect.pairs import NEIGHBOURS
from robustdup_detect.paths import dataset_paths, encoded_column, unread_files, unread_note
from robustdup_detect.record import (
    NO_LABEL,
    Band,
    ClassBalance,
    Cluster,
    DuplicatesRecord,
    Expected,
    ImageRef,
    Method,
    ShownPair,
    SkippedImage,
)
from robustdup_detect.shards import SearchPlan
from robustdup_detect.sheets import COLUMNS, LINES, change_in_words, write_image, write_sheet
from robustdup_detect.sources import split_of
from robustdup_detect.store import DIMENSIONS
from robustdup_detect.verify import MEASURES
from robustdup_detect.work import INDEX_FILE, load_finder

PICTURED = 24, 8  # clusters whose images are kept as files, and images of each
NAME = 12  # letters of a file's name on a sheet; its end tells most
LISTED = 1000  # unreadable images, clusters and conflicts in the record; all are counted
BANDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True)
class SearchResult:
    """Everything that a search found.

    The second images of pairs are places: rows of the split and, after them, of the other one. `clusters` has a cluster
    around one image (or -1) for each place; `leaving` are the rows of the split that a deduplicated one leaves out.
    """

    plan: SearchPlan
    pairs: Pairs
    calibration: Calibration
    columns: dict[str, Columns]
    source: Splits
    labels: dict[str, Any]
    class_names: list[str]
    clusters: Any
    conflicts: Any
    leaving: Any
    broken: dict[str, list[Any]]
    paths: dict[str, list[str]]
    decisions: Decisions
    decided: Any
    recall: tuple[float, float, float, int] | None

    @property
    def exact(self) -> Any:
        """True for the pairs (P,) with identical pixels."""
        return (self.pairs.score == 1).numpy() & ~self.pairs.mirrored.numpy()

    @property
    def all_labels(self) -> Any:
        """The labels of all places."""
        return np.concatenate([self.labels[name] for name in self.columns])

    def split_and_row(self, place: int) -> tuple[str, int]:
        """Return the split and the row of a place: rows of the split, and after them those of the other one."""
        config = self.plan.config
        n = self.plan.rows[config.split]
        return (config.split, place) if place < n else (str(config.against), place - n)


def pair_columns(result: SearchResult) -> dict[str, Any]:
    """Return the columns of pairs.parquet."""
    config, pairs = result.plan.config, result.pairs
    a, warp = pairs.a.numpy(), pairs.warp.double().numpy()
    others = [result.split_and_row(place) for place in pairs.b.tolist()]
    return {
        "decided": result.decided, "path_a": [result.paths[config.split][row] or None for row in a.tolist()],
        "path_b": [result.paths[split][row] or None for split, row in others],
        "split_a": [config.split] * len(pairs), "row_a": a, "label_a": result.labels[config.split][a],
        "split_b": [split for split, _ in others], "row_b": [row for _, row in others],
        "label_b": result.all_labels[pairs.b.numpy()],
        "score": pairs.score.double().numpy(), "kind": np.where(result.exact, "exact", "near").tolist(),
        "mirrored": pairs.mirrored.numpy(), "scale_x": warp[:, 0], "scale_y": warp[:, 1], "shift_x": warp[:, 2],
        "shift_y": warp[:, 3], "cluster": _clusters_of_pairs(result),
        "turn": pairs.turn.double().numpy(),
    }  # fmt: skip


def _clusters_of_pairs(result: SearchResult) -> Any:
    """Return the cluster in which both images of a pair are, int64 (P,); -1 where they are in two, or one stands alone."""
    first, second = result.clusters[result.pairs.a.numpy()], result.clusters[result.pairs.b.numpy()]
    return np.where(first == second, first, -1)


def make_record(result: SearchResult, folder: Path, *, seconds: dict[str, float], command: str) -> DuplicatesRecord:
    """Return the record of a search; the pictures that it names are written into `folder`."""
    config, plan = result.plan.config, result.plan
    near = ~result.exact
    shown, sheets = _show(result, folder)
    files = {(image.split, image.row): image.file for pair in shown for image in (pair.a, pair.b)}
    n = plan.rows[config.split]
    unreadable = [
        SkippedImage(split=name, row=row, path=result.paths[name][row], reason=reason)
        for name, rows in result.broken.items()
        for row, _, reason in rows
    ]
    unread, names = _unread(result)
    scores = result.pairs.score.numpy()[near]
    edges = zip(BANDS, (*BANDS[1:-1], math.inf), strict=False)
    bands = [
        Band(low=low, high=min(high, 1.0), pairs=int(((scores >= low) & (scores < high)).sum())) for low, high in edges
    ]
    return DuplicatesRecord(
        run_id=folder.name, created=now(), command=command, data=config.data, split=config.split,
        against=config.against, data_config=config.data_config, revision=result.source.revision,
        class_names=result.class_names, n=n - len(result.broken[config.split]),
        n_against=None if config.against is None else plan.rows[config.against] - len(result.broken[config.against]),
        n_unreadable=len(unreadable), unreadable=unreadable[:LISTED], n_exact=int(result.exact.sum()),
        n_near=int(near.sum()), n_mirrored=int(result.pairs.mirrored.sum()),
        n_clusters=int(result.clusters.max(initial=-1)) + 1, n_rows=int((result.clusters[:n] >= 0).sum()),
        n_redundant=len(result.leaving), keep=config.keep, n_conflicts=len(result.conflicts),
        conflicts=result.conflicts[:LISTED].tolist(), bands=[band for band in bands if band.pairs], pairs=shown,
        clusters=_clusters(result, files, folder), classes=_classes(result), sheets=sheets, method=_method(result),
        expected=_expected(result),
        seconds=dict(seconds), config=config.model_dump(mode="json"), environment=environment(),
        unread_files=unread,
        notes=list(dict.fromkeys(
            [*result.source.notes, *(note for columns in result.columns.values() for note in columns.notes),
             *([unread_note(unread, names)] if unread else []), *_calibration_notes(result)]
        )),
    )  # fmt: skip


def _unread(result: SearchResult) -> tuple[dict[str, int], list[str]]:
    """Return the pictures of the source's folder that no split holds, by ending, and their names."""
    config, data = result.plan.config, result.plan.config.data
    paths = [path for name, part in result.paths.items() if split_of(config, name)[0] == data for path in part]
    if not any(paths):
        return {}, []
    image = result.columns[config.split].image
    for name, split in result.source.splits.items():
        if name not in result.paths and image in split.column_names:
            paths += dataset_paths(split, image, data)
    return unread_files(data, paths)


def _show(result: SearchResult, folder: Path) -> tuple[list[ShownPair], list[str]]:
    """Write the images and pages of the pairs that are shown: those with conflicting labels first, then by falling score."""
    config, plan, pairs = result.plan.config, result.plan, result.pairs
    a, b = pairs.a.numpy(), pairs.b.numpy()
    labels_a, labels_b = result.labels[config.split][a], result.all_labels[b]
    conflict = (labels_a != labels_b) & (labels_a >= 0) & (labels_b >= 0)
    chosen = np.lexsort((np.arange(len(pairs)), -pairs.score.numpy(), ~conflict))[: config.pictures]
    chosen = chosen[np.argsort(-pairs.score.numpy()[chosen], kind="stable")]
    images, clusters = _encoded(result), _clusters_of_pairs(result)
    shown = []
    for number, place in enumerate(chosen.tolist()):
        sides = []
        for split, row, label in (
            (config.split, int(a[place]), int(labels_a[place])), (*result.split_and_row(int(b[place])), int(labels_b[place])),
        ):  # fmt: skip
            file = _picture(images, split, row, folder, config.background)
            sides.append(_image(result, split, row, label, file))
        facts = plan.store(config.split).read("facts")[a[place]]
        shown.append(
            ShownPair(
                a=sides[0], b=sides[1], score=float(pairs.score[place]), kind="exact" if result.exact[place] else "near",
                mirrored=bool(pairs.mirrored[place]), cluster=int(clusters[place]),
                change="as decided" if result.decided[place] and not pairs.score[place] else change_in_words(
                    bool(pairs.mirrored[place]), pairs.warp[place].tolist(), (int(facts[0]), int(facts[1])),
                    float(pairs.turn[place]),
                ),
                conflict=bool(conflict[place]), sheet=f"sheets/pairs-{number // (COLUMNS * LINES) + 1:03d}.png",
            )
        )  # fmt: skip
    sheets = list(dict.fromkeys(pair.sheet for pair in shown if pair.sheet is not None))
    for sheet in sheets:
        page = [pair for pair in shown if pair.sheet == sheet]
        write_sheet([(folder / str(p.a.file), folder / str(p.b.file), _line(p)) for p in page], folder / sheet)
    return shown, sheets


def _image(result: SearchResult, split: str, row: int, label: int, file: str | None) -> ImageRef:
    path = result.paths[split][row] or None
    return ImageRef(split=split, row=row, label=label if label >= 0 else None, path=path, file=file)


def _encoded(result: SearchResult) -> dict[str, tuple[Any, str]]:
    """The images of each split as they are stored, and the name of their column."""
    return {
        name: (encoded_column(result.source.get(name), columns.image), columns.image)
        for name, columns in result.columns.items()
    }


def _picture(images: dict[str, tuple[Any, str]], split: str, row: int, folder: Path, background: str) -> str:
    """Write an image into the run folder unless it is there, and return its name there."""
    file = f"images/{re.sub(r'[^A-Za-z0-9_.-]', '-', split)}-{row}.png"
    if not (folder / file).is_file():
        dataset, column = images[split]
        write_image(dataset[row : row + 1][column].to_pylist()[0], folder / file, background)
    return file


def _line(pair: ShownPair) -> str:
    """Return what stands below a pair on a sheet: rows or files, score, and what is odd; as much as there is room for."""
    flags = f"{' mirrored' if pair.mirrored else ''}{' labels differ' if pair.conflict else ''}"
    if not (pair.a.path or pair.b.path):
        return f"{pair.a.row}  {pair.b.row}  {pair.score:.2f}{flags}"
    names = [(image.path or str(image.row)).rpartition("/")[2] for image in (pair.a, pair.b)]
    first, second = (name if len(name) <= NAME else f"..{name[2 - NAME :]}" for name in names)
    return f"{first}  {second}  {pair.score:.2f}{flags}".encode("ascii", "replace").decode()


def _classes(result: SearchResult) -> list[ClassBalance]:
    """Return how the classes of the split share its images, its clusters, and what would leave."""
    config = result.plan.config
    labels = np.asarray(result.labels[config.split])
    clustered, leaves = result.clusters[: len(labels)] >= 0, np.zeros(len(labels), dtype=bool)
    leaves[np.asarray(result.leaving, dtype=np.int64)] = True
    names = result.class_names
    return [
        ClassBalance(
            name=names[label] if 0 <= label < len(names) else NO_LABEL if label < 0 else str(label), n=int(members.sum()),
            n_clustered=int((members & clustered).sum()), n_redundant=int((members & leaves).sum()),
        )
        for label in np.unique(labels).tolist()
        if (members := labels == label).any()
    ]  # fmt: skip


def _clusters(result: SearchResult, files: dict[tuple[str, int], str | None], folder: Path) -> list[Cluster]:
    """Return the largest clusters, those whose labels differ first; the first ones with pictures."""
    config, encoded = result.plan.config, _encoded(result)
    rows = np.flatnonzero(result.clusters >= 0)
    rows = rows[np.argsort(result.clusters[rows], kind="stable")]
    parts = np.split(rows, np.flatnonzero(np.diff(result.clusters[rows])) + 1) if len(rows) else []
    conflicts = set(result.conflicts.tolist())
    order = sorted(range(len(parts)), key=lambda c: (c not in conflicts, -len(parts[c]), c))
    pictured, each = PICTURED if config.pictures else (0, 0)
    made = []
    for turn, number in enumerate(order[:LISTED]):
        images = []
        for shown, place in enumerate(parts[number][:LISTED].tolist()):
            split, row = result.split_and_row(place)
            label = int(result.labels[split][row])
            file = files.get((split, row))
            if file is None and turn < pictured and shown < each:
                file = _picture(encoded, split, row, folder, config.background)
            images.append(_image(result, split, row, label, file))
        made.append(Cluster(cluster=number, size=len(parts[number]), conflict=number in conflicts, images=images))
    return made


def _method(result: SearchResult) -> Method:
    score = result.calibration.score
    return Method(
        search="faiss" if (result.plan.folder(result.plan.asked) / INDEX_FILE).is_file() else "exact",
        embedding=result.plan.config.embedding, dimensions=DIMENSIONS,
        neighbours=NEIGHBOURS, least_similarity=load_finder(result.plan.state).least, measures=[*MEASURES, "similarity"],
        weights=list(score.weights), bias=score.bias, threshold=result.calibration.threshold,
    )  # fmt: skip


def _expected(result: SearchResult) -> Expected:
    """Return what is expected of the near pairs listed, from all candidates that were compared and what somebody decided."""
    calibration = result.calibration
    recall, low, high, confirmed = result.recall or (*(calibration.recall or (None, None, None)), 0)
    if confirmed:
        known = f"Recall: the share of {confirmed} pairs that somebody confirmed (--decisions) which the search found by itself."
    elif recall is not None:
        known = (
            f"Recall: what this threshold finds of {ANNOTATED_PAIRS} near-duplicates that ciFAIR's authors annotated between "
            "CIFAR-10's splits; the interval is wider where pairs of these images lie just below the threshold. That of these "
            "images themselves would take pairs that somebody confirmed (--decisions)."
        )
    else:
        known = "Recall of real duplicates is not known: it would take pairs that somebody confirmed (--decisions)."
    if not calibration.calibrated:
        about = (
            "Too few images or candidates to say what precision to expect: the threshold is the usual one, of CIFAR-10. "
            + known
        )
    else:
        about = (
            "Precision, by image: pairs of different pictures above the threshold, extrapolated from the scores of all "
            f"candidates below those of duplicates, against the images found; an estimate, not a count. {known}"
        )
    if calibration.positives:
        about += f" Made copies: {calibration.positives} copies of these images were made in ways that nothing was learned from."
    different, above = calibration.different, calibration.above
    return Expected(
        calibrated=calibration.calibrated, precision=calibration.precision(different),
        precision_low=calibration.precision(calibration.different_high),
        precision_high=calibration.precision(calibration.different_low),
        precision_of_pairs=None if different is None or not above else max(1 - different / above, 0.0),
        different_pairs=different, recall=recall, recall_low=low, recall_high=high, confirmed=confirmed,
        recall_by_change=calibration.recall_by_change, positives=calibration.positives,
        negatives=calibration.negatives, about=about,
    )  # fmt: skip


def _calibration_notes(result: SearchResult) -> list[str]:
    """Say where the wanted precision is not expected."""
    config, calibration = result.plan.config, result.calibration
    notes = []
    if calibration.missed:
        notes.append(
            f"The precision of {config.precision:.0%} that was asked for is not expected: about {calibration.different:.0f} of "
            f"the {calibration.above:,} pairs with a score of {calibration.threshold:g} or more, of {calibration.images:,} "
            "images, may be wrong. Look at them, or give --threshold."
        )
    if len(result.decisions):
        notes.append(
            f"{plural(len(result.decisions), 'decision')} honoured: {plural(len(result.decisions.same), 'duplicate')}, "
            f"{len(result.decisions.different):,} that are none."
        )
    return notes


def environment() -> dict[str, str]:
    """Return what the figures of a run depend on."""
    import datasets
    import PIL

    return {
        "python": platform.python_version(), "platform": platform.platform(), "torch": torch.__version__,
        "datasets": datasets.__version__, "pillow": PIL.__version__, "threads": str(torch.get_num_threads()),
    }  # fmt: skip
