"""Networks that were trained here: what a run folder keeps of them, and `run:FOLDER` as a model.

A folder holds `network.json` (how to build the network), `best.safetensors` and `last.safetensors`. Loading one runs no code
from it. Only a network that was trained from a `file.py:factory` is built by running that file again: where it was, for whoever
trained it, and never a file that lies in the run folder itself, since run folders are passed around.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError
from torch import Tensor, nn

from robustdup.errors import UserError, unknown, user_path
from robustdup.models.adapt import keep_names
from robustdup.models.architectures import HUB, build_network
from robustdup.models.checkpoint_file import is_safetensors
from robustdup.models.files import is_file_spec, load_weights
from robustdup.plugins import Registry
from robustdup.records.base import Part, to_json, write_atomic
from robustdup.records.origin import file_made_here, note_made_here

NETWORK_FILE = "network.json"
CHECKPOINTS = ("best", "last")


class NetworkDescription(Part):
    """How to build a network: what `build_network` takes. `size` is (height, width) in pixels."""

    schema_name: Literal["robustdup.network"] = "robustdup.network"
    schema_version: Literal[1] = 1
    spec: str
    channels: int
    size: tuple[int, int]
    classes: int
    mean: list[float]
    std: list[float]
    class_names: list[str] = Field(default_factory=list)
    normalize: str | None = None


def describe_network(
    spec: str, *, channels: int, size: int | tuple[int, int], classes: int, mean: Sequence[float], std: Sequence[float],
    class_names: Sequence[str] = (), normalize: str | None = None,
) -> NetworkDescription:  # fmt: skip
    """Return the description of a network; the file of a 'file.py:factory' or folder of an 'hf:' is named by its whole path."""
    if is_file_spec(spec):
        file, colon, factory = spec.rpartition(".py:")
        spec = f"{user_path(file + '.py').resolve()}:{factory}" if colon else spec
    elif spec.startswith(HUB) and user_path(spec.removeprefix(HUB)).is_dir():
        spec = f"{HUB}{user_path(spec.removeprefix(HUB)).resolve()}"
    return NetworkDescription(
        spec=spec, channels=channels, size=(size, size) if isinstance(size, int) else size, classes=classes,
        mean=list(mean), std=list(std), class_names=list(class_names), normalize=normalize,
    )  # fmt: skip


def save_network(folder: Path, description: NetworkDescription) -> None:
    """Write `network.json` into a run folder. Raises RunError where it cannot be written."""
    content = (to_json(description) + "\n").encode()
    note_made_here(content)
    write_atomic(folder / NETWORK_FILE, content)


def save_weights(folder: Path, name: str, module: nn.Module | Mapping[str, Tensor]) -> Path:
    """Write NAME.safetensors, whole or not at all, from a module or its state dict; return its path. Raises RunError."""
    from safetensors.torch import save

    path = folder / f"{name}.safetensors"
    if isinstance(module, nn.Module):
        module = getattr(module, "_orig_mod", module).state_dict()  # as it was before torch.compile
    # Copies: tied weights are refused by safetensors.
    write_atomic(path, save({key: value.detach().cpu().contiguous().clone() for key, value in module.items()}))
    return path


def load_trained(rest: str, registry: Registry) -> nn.Module:
    """Return the network of `FOLDER`, `FOLDER@best` or `FOLDER@last`, on the CPU; without a name the best, where there is one.

    Raises UserError for what is missing or does not fit; for weights of another network it names the first tensor.
    """
    folder, name = _place(rest)
    description = read_description(folder)
    weights = folder / f"{name}.safetensors"
    if not weights.is_file():
        saved = [f"@{other}" for other in CHECKPOINTS if (folder / f"{other}.safetensors").is_file()]
        raise UserError(
            f"{str(folder)!r} has no {weights.name}{f'; it has {saved[0]}' if saved else ': its training saved no network yet'}.",
            code="missing-file",
        )
    if not is_safetensors(weights):
        raise UserError(f"{str(weights)!r} is not what training wrote there. Copy it again.", code="damaged-checkpoint")
    network = build_network(
        description.spec, channels=description.channels, size=description.size, classes=description.classes,
        mean=description.mean, std=description.std, seed=0, registry=registry,
        normalize=description.normalize,
    )  # fmt: skip
    load_weights(network, weights)
    keep_names(network, description.class_names)
    return network


def read_description(folder: Path) -> NetworkDescription:
    """Return how the network of a run folder is built. Raises UserError, also for a file that must not be run unasked."""
    file = folder / NETWORK_FILE
    if not file.is_file():
        lacking = "There is no folder" if not folder.is_dir() else f"There is no {NETWORK_FILE} in"
        raise UserError(f"{lacking} {str(folder)!r}: give the run folder of 'robustdup train'.", code="missing-file")
    try:
        description = NetworkDescription.model_validate_json(file.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"{str(file)!r} is not a network description: {place} {first['msg'].lower()}.", code="damaged-record"
        ) from None
    if is_file_spec(description.spec):
        _check_code(file, description.spec)
    return description


def _place(rest: str) -> tuple[Path, str]:
    """Return the folder and the checkpoint's name."""
    folder, separator, name = rest.rpartition("@")
    if separator and name in CHECKPOINTS:
        return user_path(folder), name
    path = user_path(rest)
    if separator and not path.exists():
        raise unknown("checkpoint", f"run:{rest}", [f"run:{folder}@{name}" for name in CHECKPOINTS])
    if not rest:
        raise UserError(
            "run: needs a run folder, for instance run:runs/my-training or run:runs/my-training@last.", code="bad-spec"
        )
    only_last = (path / "last.safetensors").is_file() and not (path / "best.safetensors").is_file()
    return path, "last" if only_last else "best"


def _check_code(description: Path, spec: str) -> None:
    code = Path(spec.rpartition(".py:")[0] + ".py")
    if not code.is_absolute() or code.resolve().is_relative_to(description.parent.resolve()):
        raise UserError(
            f"{str(description)!r} asks to run {str(code)!r}, which came with the run folder. If you trust it, load it "
            f"yourself: path/to/model.py:factory@{description.parent / 'best.safetensors'}",
            code="refused-code",
        )
    if not code.is_file():
        raise UserError(
            f"The network was built by {str(code)!r}, which is not there any more. Give it and the weights yourself: "
            f"path/to/model.py:factory@{description.parent / 'best.safetensors'}",
            code="missing-file",
        )
    if not file_made_here(description):
        raise UserError(
            f"{str(description)!r}, which was not written here, asks to run {str(code)!r}: it was not run. If you have looked at "
            f"that file and trust it, name it yourself: {spec}@{description.parent / 'best.safetensors'}; or add --trust to "
            "eval, train or verify, once.",
            code="untrusted-code",
        )
