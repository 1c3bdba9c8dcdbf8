"""Data: from a spec to images in [0, 1] with their labels."""

from __future__ import annotations

from robustdup.plugins import RecordKind, Registry


def register(registry: Registry) -> None:
    """Register the built-in data source (local folders and Hub ids need no scheme) and the record of a described dataset."""
    registry.add_data_source(
        "builtin", "robustdup.data.digits:load_builtin", description="Data that comes with robustdup, offline.",
        examples=("builtin:digits",),
    )  # fmt: skip
    registry.add_data_source(
        "torchvision", "robustdup.data.torchvision:load_torchvision", description="A dataset of torchvision that is on the disk.",
        examples=("torchvision:CIFAR10@root",),
    )  # fmt: skip
    for name in ("a", "r"):
        registry.add_data_source(
            f"imagenet-{name}", f"robustdup.data.shifts:load_imagenet_{name}",
            description=f"ImageNet-{name.upper()} in its folder: 200 of ImageNet's classes, whose outputs are compared alone.",
            examples=(f"imagenet-{name}:path/to/imagenet-{name}",),
        )  # fmt: skip
    registry.add_record_kind(
        RecordKind(
            "robustdup.description",
            load="robustdup.records.description:load_description",
            title="robustdup.records.description:title",
            page="robustdup.report.html.description:description_page",
            description="What a dataset holds.",
        )
    )
