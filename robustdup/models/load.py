"""From a model spec to a classifier in eval mode: `builtin:NAME`, `hf:ID`, `file.py:factory@weights`, a program, a plugin's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from robustdup.errors import UserError, missing_plugin, unknown, user_path
from robustdup.models.adapt import placed
from robustdup.models.checkpoint_file import read_checkpoint, refuse_other_programs
from robustdup.models.files import is_file_spec, load_from_file, place_of_weights
from robustdup.models.pickles import is_torchscript
from robustdup.models.programs import SUFFIXES, load_program
from robustdup.plugins import Registry

FILES = (*SUFFIXES, ".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pkl", ".tar", ".npz", ".h5")  # that hold weights
# What folders of robustdup's own hold, and how the network in them is named: of a training run, of exports.
HOLDING = {
    "network.json": "run:{}",
    "modeling.py": "{}/modeling.py:load",
    "model.onnx": "{}/model.onnx",
    "model.pt2": "{}/model.pt2",
}


@dataclass(frozen=True)
class ModelOptions:
    """How to load a model. `allow_pickle` lets weights be pickles, which can run any code."""

    allow_pickle: bool = False


def load_model(spec: str, *, registry: Registry, allow_pickle: bool = False) -> nn.Module:
    """Return the classifier of a spec in eval mode, float32, on the CPU. Raises UserError.

    It takes images (N, C, H, W) in [0, 1] and returns logits (N, K); normalisation is inside.
    """
    options = ModelOptions(allow_pickle=allow_pickle)
    scheme, colon, rest = spec.partition(":")
    place = user_path(spec)
    if colon and scheme in registry.models:
        model = registry.models[scheme].load(rest, options)
    elif is_file_spec(spec):
        model = load_from_file(spec, allow_pickle=allow_pickle)
    elif place.is_file():
        model = load_program(place, allow_pickle=allow_pickle) if spec.endswith(SUFFIXES) else load_script(place)
    elif place.is_dir():
        refuse_other_programs(place)
        for held, wanted in HOLDING.items():
            if (place / held).is_file():
                raise UserError(
                    f"{spec!r} is a folder. Name the network in it: {wanted.format(spec)}.", code="no-network"
                )
        raise unknown("model", spec, _examples(registry), see=_how(registry))
    elif colon and (error := missing_plugin(scheme)) is not None:
        raise error
    elif (file := place_of_weights(spec)[0] or Path(spec)).suffix.lower() in FILES:
        raise UserError(f"There is no file {str(file)!r}.", code="missing-file")
    else:
        raise unknown("model", spec, _examples(registry), see=_how(registry))
    if not isinstance(model, nn.Module):
        raise UserError(
            f"The source of {spec!r} returned a {type(model).__name__}, not a torch.nn.Module.", code="not-a-module"
        )
    model = placed(model, "cpu").to(dtype=torch.float32).eval()
    _check_values(model, spec)
    return model


def _check_values(model: nn.Module, spec: str) -> None:
    """Raise UserError for weights that are no numbers."""
    bad = [name for name, value in [*model.named_parameters(), *model.named_buffers()] if bool(value.isnan().any())]
    if bad:
        some = ", ".join(map(repr, bad[:3])) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "")
        raise UserError(
            f"The weights of {spec!r} hold values that are no numbers (NaN), in {some}: the training came apart, or the file is "
            "damaged. Take a checkpoint from before.",
            code="damaged-checkpoint",
        )


def _examples(registry: Registry) -> list[str]:
    return [example for source in registry.models.values() for example in source.examples]


def _how(registry: Registry) -> str:
    schemes = ", ".join(f"{scheme}:…" for scheme in sorted(registry.models))
    return f"Write {schemes} or path/to/model.py:factory@weights."


def load_script(file: Path) -> nn.Module:
    """Return the TorchScript module of a file. Raises UserError for a file that holds no network, only its weights, say."""
    if is_torchscript(file):
        script: nn.Module = read_checkpoint(file)
        return script
    refuse_other_programs(file)
    raise UserError(
        f"{str(file)!r} is no TorchScript, and weights alone are no network: name what builds it, "
        f"path/to/model.py:factory@{file}.",
        code="no-network",
    )


def load_builtin(rest: str, options: ModelOptions) -> nn.Module:
    """Return a classifier that comes with robustdup. Raises UserError for another name."""
    from safetensors.torch import load_file

    from robustdup.models.networks import TRAIN_EPS, digits_classifier

    if rest not in TRAIN_EPS:
        raise unknown("built-in model", f"builtin:{rest}", [f"builtin:{name}" for name in TRAIN_EPS])
    model = digits_classifier()
    model.load_state_dict(load_file(Path(__file__).parent / "weights" / f"{rest}.safetensors"))
    return model


def fingerprint(module: nn.Module) -> str:
    """Return one SHA-256 (hex) over names, dtypes, shapes and bytes of all parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if not isinstance(value, Tensor):  # extra state of some modules
            digest.update(f"{name}:{value!r}\n".encode())
            continue
        digest.update(f"{name}:{str(value.dtype).removeprefix('torch.')}:{tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters, trained or frozen."""
    return sum(parameter.numel() for parameter in module.parameters())
