"""Croissant metadata of a written dataset: JSON-LD that dataset search engines and `mlcroissant` read.

https://docs.mlcommons.org/croissant/docs/croissant-spec.html (version 1.0)
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from robustdup.duplication.plan import DuplicationPlan

if TYPE_CHECKING:
    import datasets

CROISSANT_FILE = "croissant.json"

_CROISSANT_WORDS = (
    "citeAs", "column", "extract", "field", "fileObject", "fileProperty", "fileSet", "format", "includes",
    "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated",
    "replace", "samplingRate", "separator", "source", "subField", "transform", "equivalentProperty",
)  # fmt: skip
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "dct": "http://purl.org/dc/terms/",
    "sc": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{word: f"cr:{word}" for word in _CROISSANT_WORDS},
}


def write_croissant(folder: Path, splits: Mapping[str, datasets.Dataset], plan: DuplicationPlan, source: str) -> Path:
    """Write `croissant.json` beside the parquet files that are in `folder`, with their hashes.

    Args:
        folder: Where `data/SPLIT-*.parquet` lie.
        splits: What was written, by the name of the split.
        plan: How the data was duplicated.
        source: The dataset that it was made from, as people may be told of it.

    Returns:
        The path of the file.
    """
    metadata = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"{re.sub(r'[^A-Za-z0-9]+', '-', source).strip('-')}-{plan.scheme}",
        "description": (
            f"{source} with duplicates put in on purpose: {plan.scheme}, {len(plan)} entries, "
            f"{plan.readings().copies} of them copies. Column source_index is the row in the source, copy is 0 for an original."
        ),
        "version": "1.0.0",
        "isLiveDataset": False,
        "distribution": [_file(folder, path) for path in sorted((folder / "data").glob("*.parquet"))],
        "recordSet": [
            _records(path, split)
            for name, split in splits.items()
            for path in sorted((folder / "data").glob(f"{name}-[0-9]*-of-[0-9]*.parquet"))
        ],
    }
    path = folder / CROISSANT_FILE
    path.write_text(json.dumps(metadata, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _file(folder: Path, path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject",
        "@id": path.stem,
        "name": path.name,
        "contentUrl": path.relative_to(folder).as_posix(),
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": digest,
    }


def _records(path: Path, split: datasets.Dataset) -> dict[str, Any]:
    """Describe the rows of one file: a split that takes several files is as many record sets."""
    return {
        "@type": "cr:RecordSet",
        "@id": f"rows-{path.stem}",
        "name": f"rows-{path.stem}",
        "field": [_field(name, feature, path.stem) for name, feature in split.features.items()],
    }


def _field(name: str, feature: Any, file: str) -> dict[str, Any]:
    import datasets

    source: dict[str, Any] = {"fileObject": {"@id": file}, "extract": {"column": name}}
    described: dict[str, Any] = {"@type": "cr:Field", "@id": f"rows-{file}/{name}", "name": name, "source": source}
    if isinstance(feature, datasets.Image):
        source["transform"] = {"jsonPath": "bytes"}
        return {**described, "dataType": "sc:ImageObject"}
    if isinstance(feature, datasets.ClassLabel):
        names = ", ".join(f"{number} {text}" for number, text in enumerate(feature.names))
        return {**described, "dataType": "sc:Integer", "description": f"Classes: {names}"}
    dtype = str(getattr(feature, "dtype", "string"))
    numbers = {"int": "sc:Integer", "uin": "sc:Integer", "flo": "sc:Float", "boo": "sc:Boolean"}
    return {**described, "dataType": numbers.get(dtype[:3], "sc:Text")}
