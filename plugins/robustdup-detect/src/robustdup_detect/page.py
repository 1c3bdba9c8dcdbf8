"""The page of a search for duplicates, from its record as plain JSON: how much repeats itself, pairs side by side, leaks,
conflicts of labels.

A field that is not there is left out, so that records of earlier and later versions can be shown.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from robustdup.records.base import read_content
from robustdup.records.folder import CONFIG_FILE, STATE
from robustdup.report.charts import Bar, Chart, Rule, counts, linear
from robustdup.report.format import NONE, duration, missing, number, percent, plural, whole
from robustdup.report.html.page import Cell, Figure, Notice, Page, Section, Segment, Table
from robustdup.report.plain import Content, count_of, inside, list_of, number_of
from robustdup.report.runs import PluggedRun, UnfinishedRun, read_plain
from robustdup_detect.page_pairs import card_of, clusters_of, clusters_section, crosses, label_of, pairs_section

SCHEMA = "robustdup.duplicates"
NARROWEST = 9  # images in a cluster up to which the scale goes at least


def duplicates_page(run: PluggedRun, name: str) -> Page:
    """Return the page of a search for duplicates."""
    record = run.record
    files: dict[str, bytes] = {}
    sections = [
        _multiplicities(record),
        _classes(record),
        clusters_section(run, name, files),
        pairs_section(run, name, files),
        _leaks(record),
        _conflicts(record),
        _scores(record),
        _unreadable(record),
        _reproduce(record),
    ]
    context = {
        "subtitle": [text for text in _subtitle(record) if text],
        "notices": [Notice("info", str(note)) for note in list_of(record, "notes")],
        "figures": list(_figures(record)),
        "sentence": _sentence(record),
        "segments": _segments(record),
        "sections": [section for section in sections if section is not None],
    }
    return Page(name, str(record.get("data") or run.name), "Data", "summary.html.j2", context, files)


def load_content(path: Path) -> dict[str, Any]:
    """Return the record of a search as plain JSON. Raises UserError where it is damaged."""
    return read_content(path)


def title(record: Content) -> str:
    """Return what to call a search."""
    return str(record.get("run_id") or record.get("data") or "duplicates")


def unfinished(folder: Path) -> UnfinishedRun | None:
    """Return what is there of a search without a record yet; None where the folder holds something else."""
    path = folder / STATE / CONFIG_FILE
    config = read_plain(path) if path.is_file() else {}
    if "against" not in config:
        return None
    command = f"robustdup data detect --resume {shlex.quote(str(folder))}"
    return UnfinishedRun(folder, config, "What it read and found so far is saved.", [command])


def _subtitle(record: Content) -> list[str]:
    against = record.get("against")
    n, other = count_of(record, "n"), count_of(record, "n_against")
    return [
        f"{record.get('split', '')}: {whole(n)} images" if n is not None else "",
        f"against {against}: {whole(other)} images" if against else "",
        str(record.get("created", ""))[:10],
    ]


def _share(part: int | None, total: int | None) -> float | None:
    return part / total if part is not None and total else None


def _figures(record: Content) -> Iterator[Figure]:
    n, redundant = count_of(record, "n"), count_of(record, "n_redundant")
    note = f"of {plural(n or 0, 'image')} would leave a deduplicated split"
    yield Figure("Redundant images", whole(redundant), redundant, "n_redundant", note, big=True)
    exact, near = count_of(record, "n_exact"), count_of(record, "n_near")
    clusters = count_of(record, "n_clusters")
    yield Figure(
        "Clusters", whole(clusters), clusters, "n_clusters", f"{whole(exact)} exact and {whole(near)} near pairs"
    )
    conflicts = count_of(record, "n_conflicts")
    yield Figure(
        "Label conflicts", whole(conflicts), conflicts, "n_conflicts", "clusters whose images have different labels"
    )


def _sentence(record: Content) -> str:
    n, rows, redundant = (count_of(record, key) for key in ("n", "n_rows", "n_redundant"))
    if not n or rows is None:
        return ""
    text = f"{percent(_share(rows, n))} of the {plural(n, 'image')} are in some cluster of duplicates"
    text += f"; {percent(_share(redundant, n))} could go without losing a picture." if redundant is not None else "."
    return text


def _segments(record: Content) -> list[Segment]:
    n, rows, redundant = (count_of(record, key) for key in ("n", "n_rows", "n_redundant"))
    if not n or rows is None or redundant is None or not 0 <= redundant <= rows <= n:
        return []
    parts = (
        ("single", n - rows, "stands"),
        ("in a cluster, kept", rows - redundant, "wrong"),
        ("redundant", redundant, "broken"),
    )
    return [Segment(label, count, count / n, tone) for label, count, tone in parts if count]


def _multiplicities(record: Content) -> Section | None:
    """How many clusters have how many images."""
    sizes = Counter(size for found in clusters_of(record) if (size := count_of(found, "size")) is not None and size > 0)
    if not sizes:
        return None
    last = max(sizes)
    bars = [
        Bar(size - 0.5, size + 0.5, 0, count, "robust", f"{size} images: {plural(count, 'cluster')}")
        for size, count in sizes.items()
    ]
    listed, total = sum(sizes.values()), count_of(record, "n_clusters")
    lead = f"The largest cluster has {plural(last, 'image')}."
    if total is not None and listed < total:
        lead += f" The record lists {whole(listed)} of {whole(total)} clusters."
    chart = Chart(
        "sizes", "Images in a cluster", f"{plural(listed, 'cluster')}, {lead}",
        linear(1.5, max(last, NARROWEST) + 0.5, "images in the cluster", text=whole, tight=True, count=8),
        counts(max(sizes.values()), "clusters"), bars=sorted(bars, key=lambda bar: bar.left), height=200,
        headings=("images", "clusters"), rows=[(whole(size), whole(sizes[size])) for size in sorted(sizes)],
    )  # fmt: skip
    return Section("multiplicities", "Multiplicities", "sections/chart.html.j2", lead, charts=(chart,))


def _classes(record: Content) -> Section | None:
    """How the classes share the images, the clusters and what would leave; of earlier records only the clusters' images."""
    listed_classes = enumerate(list_of(record, "classes"))
    balance = [(at, one) for at, one in listed_classes if isinstance(one, Mapping) and count_of(one, "n")]
    if not balance:
        return _classes_of_clusters(record)
    n, left = (sum(count_of(one, key) or 0 for _, one in balance) for key in ("n", "n_redundant"))
    most = max(((count_of(one, "n_redundant") or 0) / (count_of(one, "n") or 1) for _, one in balance), default=0) or 1
    rows, changes = [], []
    for at, one in balance:
        many, clustered, leaves = (count_of(one, key) or 0 for key in ("n", "n_clustered", "n_redundant"))
        before, after = many / max(n, 1), (many - leaves) / max(n - left, 1)
        changes.append((abs(after - before), str(one.get("name", "")), before, after))
        rows.append(
            [
                Cell(str(one.get("name", ""))), Cell(whole(many), many, f"classes.{at}.n"),
                Cell(whole(clustered), clustered, f"classes.{at}.n_clustered"),
                Cell(whole(leaves), leaves, f"classes.{at}.n_redundant"),
                Cell(percent(leaves / many), leaves / many, bar=leaves / many / most),
                Cell(percent(before), before), Cell(percent(after), after),
            ]
        )  # fmt: skip
    worst = max(rows, key=lambda row: row[4].value or 0.0)
    _, name, before, after = max(changes)
    lead = (
        f"Class {worst[0].text} repeats itself most: {worst[4].text} of its images could go. Without them the share of "
        f"{name} goes from {percent(before)} to {percent(after)}, the largest change."
        if left
        else "No image of any class is redundant."
    )
    headings = ("Class", "Images", "In clusters", "Redundant", "Of the class", "Share before", "Share after")
    table = Table("balance-table", f"Classes of {record.get('split', 'the split')}", headings, rows)
    return Section("balance", "Class balance", "sections/table.html.j2", lead, (table,))


def _classes_of_clusters(record: Content) -> Section | None:
    counts = Counter(
        label_of(record, image.get("label"))
        for found in clusters_of(record)
        for image in list_of(found, "images")
        if isinstance(image, Mapping)
    )
    if not counts:
        return None
    total = sum(counts.values())
    rows = [
        [Cell(name), Cell(whole(count), count), Cell(percent(count / total), count / total, bar=count / total)]
        for name, count in counts.most_common()
    ]
    table = Table("balance-table", "Images of the clusters by class", ("Class", "Images", "Share"), rows)
    top, count = counts.most_common(1)[0]
    lead = f"Most images of clusters are of class {top} ({percent(count / total)})."
    return Section("balance", "Class balance of duplicates", "sections/table.html.j2", lead, (table,))


def _leaks(record: Content) -> Section | None:
    """Pairs across splits: images that are tested on and trained on."""
    against = record.get("against")
    if not against:
        return None
    found = [pair for pair in list_of(record, "pairs") if isinstance(pair, Mapping) and crosses(pair)]
    tested = {(inside(pair, side).get("split"), inside(pair, side).get("row")) for pair in found for side in ("a", "b")}
    other = sum(split == against for split, _ in tested)
    splits = f"{record.get('split', '')} and {against}"
    lead = f"No listed pair lies across {splits}."
    if found:
        lead = f"{plural(len(found), 'listed pair')} across {splits}: {plural(other, 'image')} of {against}."
    tables = (_pair_table(record, found, "leaks"),) if found else ()
    return Section("leaks", "Leaks between splits", "sections/table.html.j2", lead, tables)


def _conflicts(record: Content) -> Section | None:
    found = [pair for pair in list_of(record, "pairs") if isinstance(pair, Mapping) and pair.get("conflict")]
    total = count_of(record, "n_conflicts")
    if not found:
        text = (
            "No images of one picture have different labels."
            if total == 0
            else "No listed pair is of a cluster in conflict."
        )
        return Section("conflicts", "Label conflicts", "sections/table.html.j2", text, ())
    lead = f"{plural(len(found), 'listed pair')} of clusters whose images have different labels."
    return Section(
        "conflicts", "Label conflicts", "sections/table.html.j2", lead, (_pair_table(record, found, "conflicts"),)
    )


def _pair_table(record: Content, pairs: Sequence[Content], name: str) -> Table:
    rows = []
    for pair in pairs:
        card, score = card_of(record, pair), number_of(pair.get("score"))
        rows.append(
            [Cell(card["a"]), Cell(card["b"]), Cell(card["kind"]), Cell(card["change"]), Cell(number(score, 4), score)]
        )
    return Table(
        f"{name}-table", "Pairs, as split, row and label", ("First", "Second", "Kind", "Change", "Score"), rows, left=4
    )


def _scores(record: Content) -> Section | None:
    """Near pairs by score, and what calibration says of them."""
    bands = [band for band in list_of(record, "bands") if isinstance(band, Mapping)]
    expected = inside(record, "expected")
    lead = ""
    precision, recall = number_of(expected.get("precision")), number_of(expected.get("recall"))
    if precision is not None:
        lead = f"Expected precision of the near pairs: {percent(precision)}."
    if recall is not None:
        lead += f" Expected recall of changed copies: {percent(recall)}."
    charts = []
    counted = [(number_of(b.get("low")), number_of(b.get("high")), count_of(b, "pairs")) for b in bands]
    known = [
        (low, high, count) for low, high, count in counted if low is not None and high is not None and count is not None
    ]
    if known and any(count for _, _, count in known):
        tips = [f"{number(low)} to {number(high)}: {plural(count, 'pair')}" for low, high, count in known]
        bars = [
            Bar(low, high, 0, count, "robust", tip)
            for (low, high, count), tip in zip(known, tips, strict=True)
            if count
        ]
        threshold = number_of(inside(record, "method").get("threshold"))
        chart = Chart(
            "scores", "Near pairs by score", f"{plural(sum(count for _, _, count in known), 'near pair')}.",
            linear(known[0][0], known[-1][1], "score", tight=True),
            counts(max(c for _, _, c in known), "pairs"),
            bars=bars, rules=[] if threshold is None else [Rule(f"threshold {number(threshold)}", x=threshold)], height=200,
            headings=("from", "to", "pairs"), rows=[(number(low), number(high), whole(count)) for low, high, count in known],
        )  # fmt: skip
        charts.append(chart)
    changes = inside(expected, "recall_by_change")
    rows = [
        [Cell(str(kind)), Cell(percent(number_of(share)), number_of(share), bar=number_of(share))]
        for kind, share in changes.items()
    ]
    tables = (Table("recall-table", "Expected recall by kind of change", ("Change", "Recall"), rows),) if rows else ()
    if not (lead or charts or tables):
        return None
    return Section("scores", "How sure", "sections/table.html.j2", lead.strip(), tables, tuple(charts))


def _unreadable(record: Content) -> Section | None:
    found = [one for one in list_of(record, "unreadable") if isinstance(one, Mapping)]
    if not found:
        return None
    rows = [
        [
            Cell(f"{one.get('split', '')} {one.get('row', '')}"),
            Cell(str(one.get("path", ""))),
            Cell(str(one.get("reason", ""))),
        ]
        for one in found
    ]
    lead = f"{plural(count_of(record, 'n_unreadable') or len(found), 'image')} could not be read."
    table = Table("unreadable-table", "Images that were skipped", ("Image", "Path", "Why"), rows, left=3)
    return Section("unreadable", "SkippedImage images", "sections/table.html.j2", lead, (table,))


def _plain(value: object) -> str:
    return NONE if missing(value) else str(value)


def _reproduce(record: Content) -> Section:
    facts = {"Run": str(record.get("run_id", "")), "Finished": str(record.get("created", ""))}
    facts |= {f"Time, {name}": duration(number_of(seconds)) for name, seconds in inside(record, "seconds").items()}
    facts |= {f"Method, {name.replace('_', ' ')}": _plain(value) for name, value in inside(record, "method").items()}
    facts |= {str(name): str(value) for name, value in inside(record, "environment").items()}
    content = {"command": str(record.get("command", "")), "facts": facts}
    lead = str(inside(record, "expected").get("about", ""))
    return Section("reproduce", "Run it again", "sections/reproduce.html.j2", lead, content)
