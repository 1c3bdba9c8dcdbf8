"""Sets of corrupted images, one a kind and severity: published ones from a folder, or made of clean ones when asked for."""

from __future__ import annotations

import difflib
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from robustdup.config import DataOptions
from robustdup.data.dataset import ImageDataset
from robustdup.data.sources import load_images
from robustdup.errors import UserError, user_path
from robustdup.plugins import Registry
from robustdup_corruptions.making import make_corrupted
from robustdup_corruptions.record import COMMON, KINDS, SEVERITIES

LABELS = "labels.npy"
MISSPELT = 0.7  # how alike a name and a kind's are, by difflib
NAMES_IN = 3  # folders deep that a kind may lie: ImageNet-C is unpacked as blur/defocus_blur/1/n01440764


@dataclass(frozen=True)
class CorruptedSet:
    """The images of one kind at one severity, with labels."""

    kind: str
    severity: int
    data: ImageDataset


@dataclass
class Corruptions:
    """Where corrupted images come from: `places` of each kind, or none where they are made of `clean` images.

    `strays` says what else lies in the folder under a name that is no kind's, a sentence each.
    """

    source: Literal["made", "arrays", "folders"]
    kinds: list[str]
    severities: list[int]
    places: dict[str, Path] = field(default_factory=dict)
    clean: ImageDataset | None = None
    seed: int = 0
    making_seconds: float = 0.0
    strays: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        """The kinds of the fifteen that are not among them."""
        return [kind for kind in COMMON if kind not in self.kinds]


def find_corruptions(spec: str, kinds: Sequence[str], severities: Sequence[int]) -> Corruptions | None:
    """Return the published images in a folder; None where `spec` is no folder of corruptions.

    Args:
        spec: a folder with KIND.npy and labels.npy, as CIFAR-10-C, or with KIND/SEVERITY/CLASS/ pictures, as ImageNet-C.
        kinds: the kinds that are wanted; all that are there if empty.
        severities: from 1 to 5.

    Raises:
        UserError: where a kind that is wanted is not there.
    """
    root = user_path(spec)
    if not spec or not root.is_dir():
        return None
    arrays = {kind: root / f"{kind}.npy" for kind in KINDS if (root / f"{kind}.npy").is_file()}
    folders = {} if arrays else _folders(root)
    places = arrays or {kind: folders[kind] for kind in KINDS if kind in folders}
    others = [place for name, place in folders.items() if name not in KINDS]
    if not folders and (root / LABELS).is_file():
        others = [file for file in sorted(root.glob("*.npy")) if file.name != LABELS and file.stem not in KINDS]
    strays = _strays(others, places)
    absent = [kind for kind in kinds if kind not in places]
    if (absent and places) or (strays and not places):
        lacks = ", ".join(absent) or "any of the nineteen kinds"
        raise UserError(
            " ".join([f"{spec!r} does not hold {lacks}. It holds: {', '.join(places) or 'none'}.", *strays]),
            code="missing-corruption",
        )
    if not places:
        return None
    wanted = [kind for kind in KINDS if kind in places and (not kinds or kind in kinds)]
    return Corruptions("arrays" if arrays else "folders", wanted, list(severities), places, strays=strays)


def _strays(others: Sequence[Path], places: Collection[str]) -> list[str]:
    """Return a sentence on each file or folder under a name that is no kind's; where no kind is there, on misspelt ones alone."""
    strays = []
    for place in others:
        meant = _meant(place.stem, [kind for kind in KINDS if kind not in places])
        if meant or places:
            advice = f"Did you mean {meant}{place.suffix}? Rename it." if meant else "It was left out."
            strays.append(f"{place.name} is no kind of corruption. {advice}")
    return strays


def _meant(name: str, kinds: Sequence[str]) -> str | None:
    """Return the kind that a name shortens or misspells, or None."""
    word = name.lower().replace("-", "_").replace(" ", "_")
    longer = [kind for kind in kinds if kind.startswith(word)]
    close = longer if len(longer) == 1 else difflib.get_close_matches(word, kinds, n=1, cutoff=MISSPELT)
    return close[0] if close else None


def _folders(root: Path) -> dict[str, Path]:
    """Return the folders below `root` that hold folders of severities, by name; a kind's own folder may be `root` itself.

    Under another name than a kind's, those that hold folders of classes in turn: numbered classes are no severities.
    """
    folders: dict[str, Path] = {}
    level = [root]
    for _ in range(NAMES_IN):
        for place in level:
            severities = [place / str(severity) for severity in SEVERITIES if (place / str(severity)).is_dir()]
            if severities and (place.name in KINDS or any(inner.is_dir() for inner in severities[0].iterdir())):
                folders.setdefault(place.name, place)
        level = [
            inner for place in level if place.name not in folders for inner in sorted(place.iterdir()) if inner.is_dir()
        ]
        if len(level) > 1000:  # classes, not kinds
            break
    return folders


def corrupted_sets(
    corruptions: Corruptions,
    spec: str,
    options: DataOptions,
    *,
    n: int | None,
    sample: int | None,
    registry: Registry,
    done: Collection[tuple[str, int]] = (),
) -> Iterator[CorruptedSet]:
    """Walk the sets, kind after kind, severities rising; each is read or made when it is asked for.

    Args:
        corruptions: where they come from.
        spec: how the data was named.
        options: how images are read.
        n: images of each set: the first.
        sample: images of each set, drawn at random: the same ones in all.
        registry: data sources.
        done: kinds with severities that are left out; looked at anew before each set.

    Raises:
        UserError: where a set cannot be read: labels of another length, a severity that is not there.
    """
    for kind in corruptions.kinds:
        for severity in corruptions.severities:
            if (kind, severity) in done:
                continue
            if corruptions.clean is not None:
                started = time.perf_counter()
                clean = corruptions.clean
                images = make_corrupted(clean.images, clean.index, kind, severity, seed=corruptions.seed)
                corruptions.making_seconds += time.perf_counter() - started
                yield CorruptedSet(kind, severity, replace(clean, images=images))
                continue
            place = corruptions.places[kind]
            if corruptions.source == "arrays":
                source, where = spec, replace(options, config=kind, split=f"severity-{severity}")
            else:
                source, where = str(place / str(severity)), options
                if not Path(source).is_dir():
                    raise UserError(
                        f"{str(place)!r} has no folder {severity} of that severity.", code="missing-corruption"
                    )
            of_arrays = corruptions.source == "arrays"
            try:
                data = load_images(
                    source, where, n=n, sample=sample, seed=corruptions.seed, registry=registry, lenient=not of_arrays
                )
            except UserError as error:
                if of_arrays and error.code == "unknown-split":
                    raise _other_severities(place) from error
                raise
            yield CorruptedSet(kind, severity, data)


def _other_severities(place: Path) -> UserError:
    return UserError(
        f"{place} does not hold five severities one after the other: its labels are not five times the same, as in "
        "CIFAR-10-C. Images of one severity are data like any others: leave out --threat corruptions.",
        code="missing-corruption",
    )
