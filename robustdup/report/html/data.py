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
from robustdup.report.html.text import NONE, duration, number, percent, plural, whole

SCHEMA = "robustdup.duplicates"
PAIRS = 120  # shown as pictures
TILE = 96
PER_SHEET = 24
Content = Mapping[str, Any]


def duplicates_page(run: OtherRun, name: str) -> Page:
    """Return the page of a search for duplicates."""
    record = run.content
    files: dict[str, bytes] = {}
    sections = [
        _multiplicities(record),
        _classes(record),
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
    """Which classes the images of the clusters have."""
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
        [Cell(name), Cell(whole(count), count), Cell(percent(count / total), count / total)]
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
    tiles = [(_picture(run.folder, pair.get("a")), _picture(run.folder, pair.get("b"))) for pair in shown]
    for start in range(0, len(shown), PER_SHEET):
        part = tiles[start : start + PER_SHEET]
        path = f"images/{name}-{start // PER_SHEET:02d}.png"
        files[path] = _sheet(part)
        for row, card in enumerate(cards[start : start + PER_SHEET]):
            card["sheet"], card["row"], card["rows"] = path, row, len(part)
    lead = f"{whole(len(shown))} of {plural(len(pairs), 'listed pair')}; label conflicts and pairs across splits come first."
    return Section("pairs", "Pairs side by side", "sections/pictures.html.j2", lead, cards)


def _crosses(pair: Content) -> bool:
    return _inside(pair, "a").get("split") != _inside(pair, "b").get("split")


def _card(record: Content, pair: Content) -> dict[str, Any]:
    a, b = _inside(pair, "a"), _inside(pair, "b")
    score = _number(pair.get("score"))
    return {
        "a": f"{a.get('split', '')} {a.get('row', '')}: {_label(record, a.get('label'))}",
        "b": f"{b.get('split', '')} {b.get('row', '')}: {_label(record, b.get('label'))}",
        "kind": str(pair.get("kind", "")),
        "score": "" if score is None else f"score {number(score, 3)}",
        "change": str(pair.get("change", "")),
        "conflict": bool(pair.get("conflict")),
        "crosses": _crosses(pair),
    }


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
    scale = TILE / max(small.size)
    size = max(1, round(small.width * scale)), max(1, round(small.height * scale))
    return small.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def _sheet(tiles: Sequence[tuple[Image.Image | None, Image.Image | None]]) -> bytes:
    sheet = Image.new("RGB", (2 * TILE, len(tiles) * TILE), (128, 128, 128))
    for row, pair in enumerate(tiles):
        for column, picture in enumerate(pair):
            if picture is not None:
                sheet.paste(
                    picture, (column * TILE + (TILE - picture.width) // 2, row * TILE + (TILE - picture.height) // 2)
                )
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


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
    rows = [[Cell(str(kind)), Cell(percent(_number(share)), _number(share))] for kind, share in changes.items()]
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
