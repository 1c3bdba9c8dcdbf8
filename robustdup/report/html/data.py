"""The page of a search for duplicates, from its record as plain JSON: how much repeats itself, pairs side by side, leaks,
conflicts of labels.

A field that is not there is left out, so that records of earlier and later versions can be shown.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from robustdup.report.html.charts import Bar, Chart, Rule, counts, linear
from robustdup.report.html.page import Cell, Figure, Notice, Page, Section, Segment, Table
from robustdup.report.html.sources import OtherRun
from robustdup.report.html.text import NONE, duration, listed, number, percent, plural, whole

SCHEMA = "robustdup.duplicates"
PAIRS = 120  # shown as pictures
STRIPS, STRIP = 24, 8  # clusters shown as pictures, and pictures of each
TILE = 96  # pixels a side at most
PIXEL_ART = 64  # up to this size pixels are kept
PER_SHEET = 24
Content = Mapping[str, Any]


def duplicates_page(run: OtherRun, name: str) -> Page:
    """Return the page of a search for duplicates."""
    record = run.content
    files: dict[str, bytes] = {}
    sections = [
        _multiplicities(record),
        _classes(record),
        _cluster_strips(run, name, files),
        _pairs(run, name, files),
        _leaks(record),
        _conflicts(record),
        _scores(record),
        _unreadable(record),
        _reproduce(record),
    ]
    context = {
        "subtitle": [text for text in _subtitle(record) if text],
        "notices": [Notice("info", str(note)) for note in _list(record, "notes")],
        "figures": list(_figures(record)),
        "sentence": _sentence(record),
        "segments": _segments(record),
        "sections": [section for section in sections if section is not None],
    }
    return Page(name, str(record.get("data") or run.name), "Data", "summary.html.j2", context, files)


def _list(record: Content, key: str) -> list[Any]:
    found = record.get(key)
    return found if isinstance(found, list) else []


def _count(record: Content, key: str) -> int | None:
    found = record.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _inside(record: Content, key: str) -> Content:
    found = record.get(key)
    return found if isinstance(found, Mapping) else {}


def _subtitle(record: Content) -> list[str]:
    against = record.get("against")
    n, other = _count(record, "n"), _count(record, "n_against")
    return [
        f"{record.get('split', '')}: {whole(n)} images" if n is not None else "",
        f"against {against}: {whole(other)} images" if against else "",
        str(record.get("created", ""))[:10],
    ]


def _share(part: int | None, total: int | None) -> float | None:
    return part / total if part is not None and total else None


def _figures(record: Content) -> Iterator[Figure]:
    n, redundant = _count(record, "n"), _count(record, "n_redundant")
    note = f"of {plural(n or 0, 'image')} would leave a deduplicated split"
    yield Figure("Redundant images", whole(redundant), redundant, "n_redundant", note, big=True)
    exact, near = _count(record, "n_exact"), _count(record, "n_near")
    clusters = _count(record, "n_clusters")
    yield Figure(
        "Clusters", whole(clusters), clusters, "n_clusters", f"{whole(exact)} exact and {whole(near)} near pairs"
    )
    conflicts = _count(record, "n_conflicts")
    yield Figure(
        "Label conflicts", whole(conflicts), conflicts, "n_conflicts", "clusters whose images have different labels"
    )


def _sentence(record: Content) -> str:
    n, rows, redundant = (_count(record, key) for key in ("n", "n_rows", "n_redundant"))
    if not n or rows is None:
        return ""
    text = f"{percent(_share(rows, n))} of the {plural(n, 'image')} are in some cluster of duplicates"
    text += f"; {percent(_share(redundant, n))} could go without losing a picture." if redundant is not None else "."
    return text


def _segments(record: Content) -> list[Segment]:
    n, rows, redundant = (_count(record, key) for key in ("n", "n_rows", "n_redundant"))
    if not n or rows is None or redundant is None or not 0 <= redundant <= rows <= n:
        return []
    parts = (
        ("single", n - rows, "stands"),
        ("in a cluster, kept", rows - redundant, "wrong"),
        ("redundant", redundant, "broken"),
    )
    return [Segment(label, count, count / n, tone) for label, count, tone in parts if count]


def _clusters(record: Content) -> list[Content]:
    return [found for found in _list(record, "clusters") if isinstance(found, Mapping)]


def _multiplicities(record: Content) -> Section | None:
    """How many clusters have how many images."""
    sizes = Counter(size for found in _clusters(record) if (size := _count(found, "size")) is not None and size > 0)
    if not sizes:
        return None
    last = max(sizes)
    bars = [
        Bar(size - 0.5, size + 0.5, 0, count, "robust", f"{size} images: {plural(count, 'cluster')}")
        for size, count in sizes.items()
    ]
    listed, total = sum(sizes.values()), _count(record, "n_clusters")
    lead = f"The largest cluster has {plural(last, 'image')}."
    if total is not None and listed < total:
        lead += f" The record lists {whole(listed)} of {whole(total)} clusters."
    chart = Chart(
        "sizes", "Images in a cluster", f"{plural(listed, 'cluster')}, {lead}",
        linear(1.5, last + 0.5, "images in the cluster", text=whole, tight=True, count=min(8, last)),
        counts(max(sizes.values()), "clusters"), bars=sorted(bars, key=lambda bar: bar.left), height=200,
        headings=("images", "clusters"), rows=[(whole(size), whole(sizes[size])) for size in sorted(sizes)],
    )  # fmt: skip
    return Section("multiplicities", "Multiplicities", "sections/chart.html.j2", lead, charts=(chart,))


def _label(record: Content, label: Any) -> str:
    names = _list(record, "class_names")
    if isinstance(label, int) and 0 <= label < len(names):
        return str(names[label])
    return NONE if label is None else str(label)


def _classes(record: Content) -> Section | None:
    """How the classes share the images, the clusters and what would leave; of earlier records only the clusters' images."""
    listed_classes = enumerate(_list(record, "classes"))
    balance = [(at, one) for at, one in listed_classes if isinstance(one, Mapping) and _count(one, "n")]
    if not balance:
        return _classes_of_clusters(record)
    n, left = (sum(_count(one, key) or 0 for _, one in balance) for key in ("n", "n_redundant"))
    rows, changes = [], []
    for at, one in balance:
        many, clustered, leaves = (_count(one, key) or 0 for key in ("n", "n_clustered", "n_redundant"))
        before, after = many / max(n, 1), (many - leaves) / max(n - left, 1)
        changes.append((abs(after - before), str(one.get("name", "")), before, after))
        rows.append(
            [
                Cell(str(one.get("name", ""))), Cell(whole(many), many, f"classes.{at}.n"),
                Cell(whole(clustered), clustered, f"classes.{at}.n_clustered"),
                Cell(whole(leaves), leaves, f"classes.{at}.n_redundant"),
                Cell(percent(leaves / many), leaves / many, bar=leaves / many),
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
        _label(record, image.get("label"))
        for found in _clusters(record)
        for image in _list(found, "images")
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


def _pairs(run: OtherRun, name: str, files: dict[str, bytes]) -> Section | None:
    """The pairs of the record side by side; those that cross splits or conflict first."""
    pairs = [pair for pair in _list(run.content, "pairs") if isinstance(pair, Mapping)]
    if not pairs:
        return None
    order = sorted(pairs, key=lambda pair: (not pair.get("conflict"), not _crosses(pair)))
    shown = order[:PAIRS]
    cards = [_card(run.content, pair) for pair in shown]
    tiles = [[_picture(run.folder, pair.get("a")), _picture(run.folder, pair.get("b"))] for pair in shown]
    side = _side(tiles)
    for start in range(0, len(shown), PER_SHEET):
        part = tiles[start : start + PER_SHEET]
        path = f"images/{name}-{start // PER_SHEET:02d}.png"
        files[path] = _sheet(part, side)
        for row, card in enumerate(cards[start : start + PER_SHEET]):
            card["sheet"], card["row"], card["rows"] = path, row, len(part)
    lead = f"{whole(len(shown))} of {plural(len(pairs), 'listed pair')}; label conflicts and pairs across splits come first."
    kinds = {
        "conflict": "label conflicts", "across splits": "across splits", "exact": "exact", "near": "near",
    }  # fmt: skip
    filters = [
        (word, text, count)
        for word, text in kinds.items()
        if (count := sum(word in _words(card) for card in cards)) and count < len(cards)
    ]
    content = {"cards": cards, "pixelated": side <= PIXEL_ART, "filters": filters}
    return Section("pairs", "Pairs side by side", "sections/pictures.html.j2", lead, content)


def _words(card: Mapping[str, Any]) -> set[str]:
    """What a pair can be chosen by."""
    flags = {"conflict": card["conflict"], "across splits": card["crosses"]}
    return {card["kind"], *(word for word, on in flags.items() if on)}


def _crosses(pair: Content) -> bool:
    return _inside(pair, "a").get("split") != _inside(pair, "b").get("split")


def _card(record: Content, pair: Content) -> dict[str, Any]:
    a, b = _inside(pair, "a"), _inside(pair, "b")
    score = _number(pair.get("score"))
    return {
        "a": _named(record, a),
        "b": _named(record, b),
        "kind": str(pair.get("kind", "")),
        "score": "" if score is None else f"score {number(score, 3)}",
        "change": str(pair.get("change", "")),
        "conflict": bool(pair.get("conflict")),
        "crosses": _crosses(pair),
    }


def _named(record: Content, image: Content) -> str:
    """Return what an image is called: its split, row and label."""
    return f"{image.get('split', '')} {image.get('row', '')}: {_label(record, image.get('label'))}"


def _picture(folder: Path, image: Any) -> Image.Image | None:
    """Return a small picture of the run folder; None where the record names none, or something outside the folder."""
    name = image.get("file") if isinstance(image, Mapping) else None
    if not isinstance(name, str):
        return None
    path = PurePosixPath(name)
    target = folder / path
    try:
        inside = target.resolve().is_relative_to(folder.resolve())
        if path.is_absolute() or ".." in path.parts or not inside or not target.is_file():
            return None
        with Image.open(target, formats=("PNG", "JPEG")) as opened:
            small = opened.convert("RGB")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    small.thumbnail((TILE, TILE), Image.Resampling.LANCZOS)
    return small


def _side(tiles: Sequence[Sequence[Image.Image | None]]) -> int:
    """Return the side of a tile: no larger than the largest picture needs, so that small pictures make small files."""
    return max((max(picture.size) for row in tiles for picture in row if picture is not None), default=1)


def _sheet(tiles: Sequence[Sequence[Image.Image | None]], side: int) -> bytes:
    """Lay pictures in rows; small ones keep their pixels, larger as the largest, and are centred on grey."""
    columns = max(len(row) for row in tiles)
    sheet = Image.new("RGB", (columns * side, len(tiles) * side), (128, 128, 128))
    for row, pictures in enumerate(tiles):
        for column, picture in enumerate(pictures):
            if picture is not None:
                scale = side / max(picture.size)
                size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
                fitted = picture.resize(size, Image.Resampling.NEAREST)
                sheet.paste(fitted, (column * side + (side - size[0]) // 2, row * side + (side - size[1]) // 2))
    content = io.BytesIO()
    sheet.save(content, "PNG", optimize=True)
    return content.getvalue()


def _cluster_strips(run: OtherRun, name: str, files: dict[str, bytes]) -> Section | None:
    """Clusters of more than two images, each a strip of its pictures; those in conflict first, then the largest."""
    found = [
        (cluster, [one for one in _list(cluster, "images") if isinstance(one, Mapping)])
        for cluster in _clusters(run.content)
        if (_count(cluster, "size") or 0) > 2
    ]
    strips: list[dict[str, Any]] = []
    tiles: list[list[Image.Image]] = []
    for cluster, images in sorted(
        found, key=lambda pair: (not pair[0].get("conflict"), -(_count(pair[0], "size") or 0))
    ):
        pictures = [(image, _picture(run.folder, image)) for image in images]
        shown = [(image, picture) for image, picture in pictures if picture is not None][:STRIP]
        if len(shown) < 2 or len(strips) == STRIPS:
            continue
        size = _count(cluster, "size") or len(images)
        strips.append(
            {
                "size": size,
                "conflict": bool(cluster.get("conflict")),
                "images": [_named(run.content, image) for image, _ in shown],
                "labels": listed(dict.fromkeys(_label(run.content, image.get("label")) for image in images)),
                "more": size - len(shown),
            }
        )
        tiles.append([picture for _, picture in shown])
    if not strips:
        return None
    path = f"images/{name}-clusters.png"
    side = _side(tiles)
    files[path] = _sheet(tiles, side)
    columns = max(len(row) for row in tiles)
    content = {"sheet": path, "strips": strips, "columns": columns, "pixelated": side <= PIXEL_ART}
    lead = (
        f"{whole(len(strips))} of {plural(len(found), 'listed cluster')} with more than two images; conflicts come first, "
        "then the largest."
    )
    return Section("clusters", "Clusters side by side", "sections/strips.html.j2", lead, content)


def _leaks(record: Content) -> Section | None:
    """Pairs across splits: images that are tested on and trained on."""
    against = record.get("against")
    if not against:
        return None
    found = [pair for pair in _list(record, "pairs") if isinstance(pair, Mapping) and _crosses(pair)]
    tested = {
        (_inside(pair, side).get("split"), _inside(pair, side).get("row")) for pair in found for side in ("a", "b")
    }
    other = sum(split == against for split, _ in tested)
    splits = f"{record.get('split', '')} and {against}"
    lead = f"No listed pair lies across {splits}."
    if found:
        lead = f"{plural(len(found), 'listed pair')} across {splits}: {plural(other, 'image')} of {against}."
    tables = (_pair_table(record, found, "leaks"),) if found else ()
    return Section("leaks", "Leaks between splits", "sections/table.html.j2", lead, tables)


def _conflicts(record: Content) -> Section | None:
    found = [pair for pair in _list(record, "pairs") if isinstance(pair, Mapping) and pair.get("conflict")]
    total = _count(record, "n_conflicts")
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
        card, score = _card(record, pair), _number(pair.get("score"))
        rows.append(
            [Cell(card["a"]), Cell(card["b"]), Cell(card["kind"]), Cell(card["change"]), Cell(number(score, 4), score)]
        )
    return Table(
        f"{name}-table", "Pairs, as split, row and label", ("First", "Second", "Kind", "Change", "Score"), rows, left=4
    )


def _scores(record: Content) -> Section | None:
    """Near pairs by score, and what calibration says of them."""
    bands = [band for band in _list(record, "bands") if isinstance(band, Mapping)]
    expected = _inside(record, "expected")
    lead = ""
    precision, recall = _number(expected.get("precision")), _number(expected.get("recall"))
    if precision is not None:
        lead = f"Expected precision of the near pairs: {percent(precision)}."
    if recall is not None:
        lead += f" Expected recall of changed copies: {percent(recall)}."
    charts = []
    counted = [(_number(b.get("low")), _number(b.get("high")), _count(b, "pairs")) for b in bands]
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
        threshold = _number(_inside(record, "method").get("threshold"))
        chart = Chart(
            "scores", "Near pairs by score", f"{plural(sum(count for _, _, count in known), 'near pair')}.",
            linear(known[0][0], known[-1][1], "score", tight=True),
            counts(max(c for _, _, c in known), "pairs"),
            bars=bars, rules=[] if threshold is None else [Rule(f"threshold {number(threshold)}", x=threshold)], height=200,
            headings=("from", "to", "pairs"), rows=[(number(low), number(high), whole(count)) for low, high, count in known],
        )  # fmt: skip
        charts.append(chart)
    changes = _inside(expected, "recall_by_change")
    rows = [
        [Cell(str(kind)), Cell(percent(_number(share)), _number(share), bar=_number(share))]
        for kind, share in changes.items()
    ]
    tables = (Table("recall-table", "Expected recall by kind of change", ("Change", "Recall"), rows),) if rows else ()
    if not (lead or charts or tables):
        return None
    return Section("scores", "How sure", "sections/table.html.j2", lead.strip(), tables, tuple(charts))


def _unreadable(record: Content) -> Section | None:
    found = [one for one in _list(record, "unreadable") if isinstance(one, Mapping)]
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
    lead = f"{plural(_count(record, 'n_unreadable') or len(found), 'image')} could not be read."
    table = Table("unreadable-table", "Images that were skipped", ("Image", "Path", "Why"), rows, left=3)
    return Section("unreadable", "Unreadable images", "sections/table.html.j2", lead, (table,))


def _reproduce(record: Content) -> Section:
    facts = {"Run": str(record.get("run_id", "")), "Finished": str(record.get("created", ""))}
    facts |= {f"Time, {name}": duration(_number(seconds)) for name, seconds in _inside(record, "seconds").items()}
    facts |= {f"Method, {name.replace('_', ' ')}": str(value) for name, value in _inside(record, "method").items()}
    facts |= {str(name): str(value) for name, value in _inside(record, "environment").items()}
    content = {"command": str(record.get("command", "")), "facts": facts}
    lead = str(_inside(record, "expected").get("about", ""))
    return Section("reproduce", "Run it again", "sections/reproduce.html.j2", lead, content)
