"""Pictures of duplicates: pairs and clusters side by side, packed into sheets that the page shows parts of."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from robustdup.report.format import NONE, listed, number, plural, whole
from robustdup.report.html.page import Section
from robustdup.report.plain import Content, count_of, inside, list_of, number_of
from robustdup.report.runs import PluggedRun

PAIRS = 120  # shown as pictures
STRIPS, STRIP = 24, 8  # clusters shown as pictures, and pictures of each
TILE = 96  # pixels a side at most
PIXEL_ART = 64  # up to this size pixels are kept
PER_SHEET = 24


def clusters_of(record: Content) -> list[Content]:
    """Return the clusters that the record lists."""
    return [found for found in list_of(record, "clusters") if isinstance(found, Mapping)]


def label_of(record: Content, label: Any) -> str:
    """Return the name of a label, its number where it has none."""
    names = list_of(record, "class_names")
    if isinstance(label, int) and 0 <= label < len(names):
        return str(names[label])
    return NONE if label is None else str(label)


def pairs_section(run: PluggedRun, name: str, files: dict[str, bytes]) -> Section | None:
    """The pairs of the record side by side; those that cross splits or conflict first."""
    pairs = [pair for pair in list_of(run.record, "pairs") if isinstance(pair, Mapping)]
    if not pairs:
        return None
    order = sorted(pairs, key=lambda pair: (not pair.get("conflict"), not crosses(pair)))
    shown = order[:PAIRS]
    cards = [card_of(run.record, pair) for pair in shown]
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


def crosses(pair: Content) -> bool:
    """Whether the images of a pair are of different splits."""
    return inside(pair, "a").get("split") != inside(pair, "b").get("split")


def card_of(record: Content, pair: Content) -> dict[str, Any]:
    """Return what is said of a pair."""
    a, b = inside(pair, "a"), inside(pair, "b")
    score = number_of(pair.get("score"))
    return {
        "a": named(record, a),
        "b": named(record, b),
        "kind": str(pair.get("kind", "")),
        "score": "" if score is None else f"score {number(score, 3)}",
        "change": str(pair.get("change", "")),
        "conflict": bool(pair.get("conflict")),
        "crosses": crosses(pair),
    }


def named(record: Content, image: Content) -> str:
    """Return what an image is called: its split, row and label."""
    return f"{image.get('split', '')} {image.get('row', '')}: {label_of(record, image.get('label'))}"


def _picture(folder: Path, image: Any) -> Image.Image | None:
    """Return a small picture of the run folder; None where the record names none, or something outside the folder."""
    name = image.get("file") if isinstance(image, Mapping) else None
    if not isinstance(name, str):
        return None
    path = PurePosixPath(name)
    target = folder / path
    try:
        within = target.resolve().is_relative_to(folder.resolve())
        if path.is_absolute() or ".." in path.parts or not within or not target.is_file():
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


def clusters_section(run: PluggedRun, name: str, files: dict[str, bytes]) -> Section | None:
    """Clusters of more than two images, each a strip of its pictures; those in conflict first, then the largest."""
    found = [
        (cluster, [one for one in list_of(cluster, "images") if isinstance(one, Mapping)])
        for cluster in clusters_of(run.record)
        if (count_of(cluster, "size") or 0) > 2
    ]
    strips: list[dict[str, Any]] = []
    tiles: list[list[Image.Image]] = []
    for cluster, images in sorted(
        found, key=lambda pair: (not pair[0].get("conflict"), -(count_of(pair[0], "size") or 0))
    ):
        pictures = [(image, _picture(run.folder, image)) for image in images]
        shown = [(image, picture) for image, picture in pictures if picture is not None][:STRIP]
        if len(shown) < 2 or len(strips) == STRIPS:
            continue
        size = count_of(cluster, "size") or len(images)
        strips.append(
            {
                "size": size,
                "conflict": bool(cluster.get("conflict")),
                "images": [named(run.record, image) for image, _ in shown],
                "labels": listed(dict.fromkeys(label_of(run.record, image.get("label")) for image in images)),
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
