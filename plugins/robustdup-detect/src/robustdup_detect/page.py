"""The page of a search for duplicates: how much repeats itself, pairs side by side, leaks between splits, label conflicts."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from robustdup.records.folder import CONFIG_FILE, STATE
from robustdup.report.charts import Bar, Chart, Rule, counts, linear
from robustdup.report.format import duration, listed, number, percent, plural, whole
from robustdup.report.html.page import Cell, Figure, Notice, Page, Section, Segment, Table
from robustdup.report.runs import Run, UnfinishedRun, read_plain
from robustdup_detect.page_pictures import class_name, clusters_section, crosses, image_name, pairs_section
from robustdup_detect.record import NO_LABEL, DuplicatesRecord, ShownPair, is_labelled

NARROWEST = 9  # images in a cluster up to which the scale goes at least
TABLE = "sections/table.html.j2"


def duplicates_page(run: Run, name: str) -> Page:
    """Return the page of a search for duplicates, named `name`."""
    record: DuplicatesRecord = run.record
    files: dict[str, bytes] = {}
    sections = [
        _multiplicities(record),
        _classes(record),
        clusters_section(record, run.folder, name, files),
        pairs_section(record, run.folder, name, files),
        _leaks(record),
        _conflicts(record),
        _scores(record),
        _unreadable(record),
        _reproduce(record),
    ]
    context = {
        "subtitle": _subtitle(record),
        "notices": [Notice("info", note) for note in record.notes],
        "figures": list(_figures(record)),
        "sentence": _sentence(record),
        "segments": _segments(record),
        "sections": [section for section in sections if section is not None],
    }
    return Page(name, record.data or run.name, "Data", "summary.html.j2", context, files)


def unfinished(folder: Path) -> UnfinishedRun | None:
    """Return what is there of a search without a record yet; None where the folder holds something else."""
    path = folder / STATE / CONFIG_FILE
    config = read_plain(path) if path.is_file() else {}
    if "against" not in config:
        return None
    command = f"robustdup data detect --resume {shlex.quote(str(folder))}"
    return UnfinishedRun(folder, config, "What it read and found so far is saved.", [command])


def _subtitle(record: DuplicatesRecord) -> list[str]:
    against = [f"against {record.against}: {plural(record.n_against or 0, 'image')}"] if record.against else []
    return [f"{record.split}: {plural(record.n, 'image')}", *against, record.created[:10]]


def _figures(record: DuplicatesRecord) -> Iterator[Figure]:
    note = f"of {plural(record.n, 'image')} would leave a deduplicated split"
    yield Figure("Redundant images", whole(record.n_redundant), record.n_redundant, "n_redundant", note, big=True)
    note = f"{whole(record.n_exact)} exact and {whole(record.n_near)} near pairs"
    yield Figure("Clusters", whole(record.n_clusters), record.n_clusters, "n_clusters", note)
    if is_labelled(record):
        note = "clusters whose images have different labels"
        yield Figure("Label conflicts", whole(record.n_conflicts), record.n_conflicts, "n_conflicts", note)


def _sentence(record: DuplicatesRecord) -> str:
    if not record.n:
        return ""
    if not record.n_rows:
        return f"None of the {plural(record.n, 'image')} was found to repeat another."
    return (
        f"{percent(record.n_rows / record.n)} of the {plural(record.n, 'image')} are in some cluster of duplicates; "
        f"{percent(record.n_redundant / record.n)} could go without losing a picture."
    )


def _segments(record: DuplicatesRecord) -> list[Segment]:
    if not (0 <= record.n_redundant <= record.n_rows <= record.n and record.n):
        return []
    parts = (
        ("single", record.n - record.n_rows, "stands"),
        ("in a cluster, kept", record.n_rows - record.n_redundant, "wrong"),
        ("redundant", record.n_redundant, "broken"),
    )
    return [Segment(label, images, images / record.n, tone) for label, images, tone in parts if images]


def _multiplicities(record: DuplicatesRecord) -> Section | None:
    """Return how many clusters have how many images."""
    sizes = Counter(cluster.size for cluster in record.clusters)
    if not sizes:
        return None
    last, n_listed = max(sizes), sum(sizes.values())
    bars = [
        Bar(size - 0.5, size + 0.5, 0, n, "robust", f"{size} images: {plural(n, 'cluster')}")
        for size, n in sorted(sizes.items())
    ]
    lead = f"The largest cluster has {plural(last, 'image')}."
    if n_listed < record.n_clusters:
        lead += f" The record lists {whole(n_listed)} of {whole(record.n_clusters)} clusters."
    chart = Chart(
        "sizes",
        "Images in a cluster",
        f"{plural(n_listed, 'cluster')}, {lead}",
        linear(1.5, max(last, NARROWEST) + 0.5, "images in the cluster", text=whole, tight=True, count=8),
        counts(max(sizes.values()), "clusters"),
        bars=bars,
        height=200,
        headings=("images", "clusters"),
        rows=[(whole(size), whole(sizes[size])) for size in sorted(sizes)],
    )
    return Section("multiplicities", "Multiplicities", "sections/chart.html.j2", lead, charts=(chart,))


def _classes(record: DuplicatesRecord) -> Section | None:
    """Return how the classes share the images, the clusters and what would leave; of earlier records the clusters alone."""
    balance = [(index, count) for index, count in enumerate(record.classes) if count.n]
    if len(balance) == 1 or not is_labelled(record):  # one class, or no labels: nothing to compare
        return None
    if not balance:
        return _classes_of_clusters(record)
    n = sum(count.n for _, count in balance)
    redundant = sum(count.n_redundant for _, count in balance)
    most = max(count.n_redundant / count.n for _, count in balance) or 1
    rows = []
    for index, count in balance:
        share = count.n_redundant / count.n
        before, after = count.n / n, (count.n - count.n_redundant) / max(n - redundant, 1)
        rows.append(
            [
                Cell(count.name),
                Cell(whole(count.n), count.n, f"classes.{index}.n"),
                Cell(whole(count.n_clustered), count.n_clustered, f"classes.{index}.n_clustered"),
                Cell(whole(count.n_redundant), count.n_redundant, f"classes.{index}.n_redundant"),
                Cell(percent(share), share, bar=share / most),
                Cell(percent(before), before),
                Cell(percent(after), after),
            ]
        )
    lead = _balance_in_words(record, n, redundant)
    headings = ("Class", "Images", "In clusters", "Redundant", "Of the class", "Share before", "Share after")
    table = Table("balance-table", f"Classes of {record.split}", headings, rows)
    return Section("balance", "Class balance", TABLE, lead, (table,))


def _balance_in_words(record: DuplicatesRecord, n: int, redundant: int) -> str:
    """Say which class repeats itself most, and whose share changes most; rows without a label are no class."""
    classes = [count for count in record.classes if count.n and count.name != NO_LABEL]
    shares = {count.name: count.n_redundant / count.n for count in classes}
    most = max(shares.values())
    if not most:
        return "No image of any class is redundant."
    worst = [name for name, share in shares.items() if share == most]
    if len(worst) == len(shares) > 1:
        return f"All classes repeat themselves alike: {percent(most)} of the images of each could go."
    named = f"Class {worst[0]} repeats itself" if len(worst) == 1 else f"Classes {listed(worst)} repeat themselves"
    lead = f"{named} most: {percent(most)} of its images could go."
    if len(worst) > 1:
        lead = f"{named} most: {percent(most)} of the images of each could go."
    change, name, before, after = max(
        (abs(after - before), count.name, before, after)
        for count in classes
        for before, after in [(count.n / n, (count.n - count.n_redundant) / max(n - redundant, 1))]
    )
    if change >= 0.0005:
        lead += (
            f" Without them the share of {name} goes from {percent(before)} to {percent(after)}, the largest change."
        )
    return lead


def _classes_of_clusters(record: DuplicatesRecord) -> Section | None:
    images = Counter(class_name(record, image.label) for cluster in record.clusters for image in cluster.images)
    if not images:
        return None
    total = images.total()
    rows = [
        [Cell(name), Cell(whole(n), n), Cell(percent(n / total), n / total, bar=n / total)]
        for name, n in images.most_common()
    ]
    table = Table("balance-table", "Images of the clusters by class", ("Class", "Images", "Share"), rows)
    top, n = images.most_common(1)[0]
    lead = f"Most images of clusters are of class {top} ({percent(n / total)})."
    return Section("balance", "Class balance of duplicates", TABLE, lead, (table,))


def _leaks(record: DuplicatesRecord) -> Section | None:
    """Return the pairs across splits: images that are tested on and trained on."""
    if not record.against:
        return None
    leaks = [pair for pair in record.pairs if crosses(pair)]
    tested = {(image.split, image.row) for pair in leaks for image in (pair.a, pair.b)}
    images = plural(sum(split == record.against for split, _ in tested), "image")
    splits = f"{record.split} and {record.against}"
    lead = f"{plural(len(leaks), 'listed pair')} across {splits}: {images} of {record.against}."
    if not leaks:
        lead = f"No listed pair lies across {splits}."
    return Section("leaks", "Leaks between splits", TABLE, lead, _pair_tables(record, leaks, "leaks"))


def _conflicts(record: DuplicatesRecord) -> Section | None:
    if not is_labelled(record):
        return None
    conflicts = [pair for pair in record.pairs if pair.conflict]
    lead = f"{plural(len(conflicts), 'listed pair')} whose images have different labels."
    if not conflicts and record.n_conflicts:
        lead = "No listed pair is of a cluster in conflict."
    elif not conflicts:
        lead = "No images of one picture have different labels."
    return Section("conflicts", "Label conflicts", TABLE, lead, _pair_tables(record, conflicts, "conflicts"))


def _pair_tables(record: DuplicatesRecord, pairs: Sequence[ShownPair], name: str) -> tuple[Table, ...]:
    rows = [
        [
            Cell(image_name(record, pair.a)),
            Cell(image_name(record, pair.b)),
            Cell(pair.kind),
            Cell(pair.change),
            Cell(number(pair.score, 4), pair.score),
        ]
        for pair in pairs
    ]
    headings = ("First", "Second", "Kind", "Change", "Score")
    return (Table(f"{name}-table", "Pairs: split and row, or file, and label", headings, rows, left=4),) if rows else ()


def _scores(record: DuplicatesRecord) -> Section | None:
    """Return the near pairs by score, and what calibration says of them."""
    expected = record.expected
    lead = ""
    if expected.precision is not None:
        by = ", by image" if expected.precision_of_pairs is not None else ""
        lead = f"Expected precision of the near pairs{by}: {percent(expected.precision)}."
    if expected.recall is not None and expected.confirmed:
        lead += f" {percent(expected.recall)} of {whole(expected.confirmed)} confirmed pairs were found."
    elif expected.recall is not None and expected.precision_of_pairs is not None:
        lead += f" This threshold finds {percent(expected.recall)} of CIFAR-10's annotated near-duplicates."
    elif expected.recall is not None:
        lead += f" Expected recall of copies that robustdup made: {percent(expected.recall)}."
    elif expected.calibrated:
        lead += " Recall of real duplicates is not known."
    charts = (_score_chart(record),) if any(band.pairs for band in record.bands) else ()
    rows = [[Cell(kind), Cell(percent(share), share, bar=share)] for kind, share in expected.recall_by_change.items()]
    tables = (
        (Table("recall-table", "Copies made of these images: found, by kind of change", ("Change", "Found"), rows),)
        if rows
        else ()
    )
    return Section("scores", "How sure", TABLE, lead.strip(), tables, charts) if lead or charts or tables else None


def _score_chart(record: DuplicatesRecord) -> Chart:
    bands, threshold = record.bands, record.method.threshold
    bars = [
        Bar(band.low, band.high, 0, band.pairs, "robust", f"{number(band.low)} to {number(band.high)}: {pairs}")
        for band in bands
        if band.pairs and (pairs := plural(band.pairs, "pair"))
    ]
    return Chart(
        "scores",
        "Near pairs by score",
        f"{plural(sum(band.pairs for band in bands), 'near pair')}.",
        linear(bands[0].low, bands[-1].high, "score", tight=True),
        counts(max(band.pairs for band in bands), "pairs"),
        bars=bars,
        rules=[Rule(f"threshold {number(threshold)}", x=threshold)],
        height=200,
        headings=("from", "to", "pairs"),
        rows=[(number(band.low), number(band.high), whole(band.pairs)) for band in bands],
    )


def _unreadable(record: DuplicatesRecord) -> Section | None:
    if not record.unreadable:
        return None
    rows = [[Cell(f"{image.split} {image.row}"), Cell(image.path), Cell(image.reason)] for image in record.unreadable]
    lead = f"{plural(record.n_unreadable, 'image')} could not be read."
    table = Table("unreadable-table", "Images that were skipped", ("Image", "Path", "Why"), rows, left=3)
    return Section("unreadable", "Unreadable images", TABLE, lead, (table,))


def _reproduce(record: DuplicatesRecord) -> Section:
    facts = {"Run": record.run_id, "Finished": record.created}
    facts |= {f"Time, {stage}": duration(seconds) for stage, seconds in record.seconds.items()}
    method = record.method.model_dump().items()
    facts |= {f"Method, {name.replace('_', ' ')}": _fact(value) for name, value in method}
    facts |= record.environment
    content = {"command": record.command, "facts": facts}
    return Section("reproduce", "Run it again", "sections/reproduce.html.j2", record.expected.about, content)


def _fact(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_fact(part) for part in value)
    return number(value, 6) if isinstance(value, float) else str(value)
