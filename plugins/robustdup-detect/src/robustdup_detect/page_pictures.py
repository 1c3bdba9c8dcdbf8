"""Pictures of duplicates: pairs and clusters side by side, packed into sheets that the page shows parts of."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image, UnidentifiedImageError

from robustdup.report.format import NONE, listed, number, plural, whole
from robustdup.report.html.page import Section
from robustdup_detect.record import DuplicatesRecord, ImageRef, ShownPair

PAIRS = 120  # shown as pictures
STRIPS, STRIP = 24, 8  # clusters shown as pictures, and pictures of each
TILE = 96  # pixels a side at most
PIXEL_ART = 64  # up to this size pixels are kept
PER_SHEET = 24


def class_name(record: DuplicatesRecord, label: int | None) -> str:
    """Return the name of a label, its number where it has none."""
    if label is not None and 0 <= label < len(record.class_names):
        return record.class_names[label]
    return NONE if label is None else str(label)


def image_name(record: DuplicatesRecord, image: ImageRef) -> str:
    """Return what an image is called: its file where it has one, otherwise its split and index; and its label."""
    name = image.path or f"{image.split} {image.row}"
    return name if image.label is None else f"{name}: {class_name(record, image.label)}"


def crosses(pair: ShownPair) -> bool:
    """Return whether the images of a pair are of different splits."""
    return pair.a.split != pair.b.split


def pairs_section(record: DuplicatesRecord, folder: Path, name: str, files: dict[str, bytes]) -> Section | None:
    """Return the pairs of the record side by side; those in conflict or across splits first. Pictures go into `files`."""
    if not record.pairs:
        return None
    shown = sorted(record.pairs, key=lambda pair: (not pair.conflict, not crosses(pair)))[:PAIRS]
    cards = [_card(record, pair) for pair in shown]
    tiles = [[_picture(folder, pair.a), _picture(folder, pair.b)] for pair in shown]
    side = _side(tiles)
    for start in range(0, len(shown), PER_SHEET):
        part = tiles[start : start + PER_SHEET]
        path = f"images/{name}-{start // PER_SHEET:02d}.png"
        files[path] = _sheet(part, side)
        for row, card in enumerate(cards[start : start + PER_SHEET]):
            card["sheet"], card["row"], card["rows"] = path, row, len(part)
    listed_pairs = plural(len(record.pairs), "listed pair")
    lead = f"{whole(len(shown))} of {listed_pairs}; label conflicts and pairs across splits come first."
    kinds = {"conflict": "label conflicts", "across splits": "across splits", "exact": "exact", "near": "near"}
    filters = [
        (word, text, count)
        for word, text in kinds.items()
        if (count := sum(word in _words(card) for card in cards)) and count < len(cards)
    ]
    content = {"cards": cards, "pixelated": side <= PIXEL_ART, "filters": filters}
    return Section("pairs", "Pairs side by side", "sections/pictures.html.j2", lead, content)


def _card(record: DuplicatesRecord, pair: ShownPair) -> dict[str, Any]:
    return {
        "a": image_name(record, pair.a),
        "b": image_name(record, pair.b),
        "kind": pair.kind,
        "score": f"score {number(pair.score, 3)}",
        "change": pair.change,
        "conflict": pair.conflict,
        "crosses": crosses(pair),
    }


def _words(card: Mapping[str, Any]) -> set[str]:
    """Return what a pair can be chosen by."""
    flags = {"conflict": card["conflict"], "across splits": card["crosses"]}
    return {card["kind"], *(word for word, on in flags.items() if on)}


def _picture(folder: Path, image: ImageRef) -> Image.Image | None:
    """Return a small picture of the run folder; None where the record names none, or something outside the folder."""
    if image.file is None:
        return None
    path, target = PurePosixPath(image.file), folder / image.file
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


def clusters_section(record: DuplicatesRecord, folder: Path, name: str, files: dict[str, bytes]) -> Section | None:
    """Return the clusters of more than two images as strips of pictures; those in conflict first, then the largest."""
    large = [cluster for cluster in record.clusters if cluster.size > 2]
    strips: list[dict[str, Any]] = []
    tiles: list[list[Image.Image]] = []
    for cluster in sorted(large, key=lambda cluster: (not cluster.conflict, -cluster.size)):
        pictures = [(image, _picture(folder, image)) for image in cluster.images]
        shown = [(image, picture) for image, picture in pictures if picture is not None][:STRIP]
        if len(shown) < 2 or len(strips) == STRIPS:
            continue
        strips.append(
            {
                "size": cluster.size,
                "conflict": cluster.conflict,
                "images": [image_name(record, image) for image, _ in shown],
                "labels": listed(dict.fromkeys(class_name(record, image.label) for image in cluster.images)),
                "more": cluster.size - len(shown),
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
        f"{whole(len(strips))} of {plural(len(large), 'listed cluster')} with more than two images; conflicts come first, "
        "then the largest."
    )
    return Section("clusters", "Clusters side by side", "sections/strips.html.j2", lead, content)
