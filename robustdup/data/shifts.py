"""Natural shifts of ImageNet whose classes are some of its thousand: ImageNet-A and ImageNet-R, with the outputs that they mean.

Their authors compare the outputs of their own 200 classes alone (https://arxiv.org/abs/1907.07174, https://arxiv.org/abs/2006.16241).
CIFAR-10.1, CIFAR-10.2 and ImageNet-V2 have all classes of their originals: their files and folders are read as any others.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor, tensor

from robustdup.data.dataset import Samples
from robustdup.errors import Unavailable, UserError, how_to_install, user_path

if TYPE_CHECKING:
    from robustdup.config import DataOptions


class PartOfImageNet:
    """The samples of a folder with a folder for each class, by WordNet id, that has some of ImageNet's classes.

    `outputs` says which of the thousand outputs of an ImageNet classifier is each of its classes.
    """

    def __init__(self, samples: Samples, name: str, classes: Sequence[str], whole: Sequence[str]) -> None:
        """Read the classes of `samples` as those of `name`, which are `classes` among `whole`. Raises UserError."""
        number = {wnid: place for place, wnid in enumerate(classes)}
        strange = [wnid for wnid in samples.class_names if wnid not in number]
        if strange or not samples.class_names:
            listed = ", ".join(strange[:5]) or "none"
            raise UserError(
                f"{name} has folders of its {len(classes)} classes by their WordNet ids, such as {classes[0]}; found: {listed}.",
                code="other-classes",
            )
        self._samples = samples
        self._numbers = tensor([number[wnid] for wnid in samples.class_names])
        self.class_names = list(classes)
        place = {wnid: output for output, wnid in enumerate(whole)}
        self.outputs = tuple(place[wnid] for wnid in classes)
        self.revision = getattr(samples, "revision", None)
        self.notes = (
            *getattr(samples, "notes", ()),
            f"{name}: the outputs of its {len(classes)} classes are compared alone, as its authors do.",
        )

    def __len__(self) -> int:
        return len(self._samples)

    def fetch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return images float32 (n, C, H, W) in [0, 1] and labels int64 (n,), numbers of the classes of this set."""
        images, labels = self._samples.fetch(indices)
        return images, self._numbers[labels]


def load_imagenet_a(rest: str, options: DataOptions) -> PartOfImageNet:
    """Read ImageNet-A from its folder. Raises UserError."""
    return _part("ImageNet-A", "imagenet-a", rest, options)


def load_imagenet_r(rest: str, options: DataOptions) -> PartOfImageNet:
    """Read ImageNet-R from its folder. Raises UserError."""
    return _part("ImageNet-R", "imagenet-r", rest, options)


def _part(name: str, subset: str, rest: str, options: DataOptions) -> PartOfImageNet:
    from robustdup.data.sources import open_samples
    from robustdup.plugins import Registry

    if not user_path(rest).is_dir():
        raise UserError(
            f"There is no folder {rest!r}. Name the folder of {name}: --data {subset}:path/to/{subset}.",
            code="unknown-data",
        )
    samples = open_samples(rest, options, Registry(), lenient=True)
    return PartOfImageNet(samples, name, synsets(subset), synsets("imagenet"))


def synsets(subset: str) -> list[str]:
    """Return the WordNet ids of imagenet, imagenet-a or imagenet-r in the order of their numbers. Raises Unavailable."""
    if importlib.util.find_spec("timm") is None:
        raise Unavailable(f"The classes of {subset} come with timm. Install it: {how_to_install('robustdup[timm]')}")
    file = importlib.resources.files("timm.data") / "_info" / f"{subset.replace('-', '_')}_synsets.txt"
    return file.read_text(encoding="utf-8").split()
