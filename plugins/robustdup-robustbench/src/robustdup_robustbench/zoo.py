"""RobustBench's model zoo, loaded by the robustbench package itself (1.1.1, the plugin's extra `zoo`).

That package cannot be imported as it is: it imports `autoattack`, which its own dependency installs as `pyautoattack`, and
`pkg_resources`, which setuptools 82 removed. Both stand in for the import only. `benchmark()` is never called.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import pickle
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustdup import Unavailable, UserError
from robustdup_robustbench import clash

DATASETS = ("cifar10", "cifar100", "imagenet")
THREATS = ("Linf", "L2", "corruptions")
WEB = "https://drive.google.com/uc?id="


def load(rest: str, options: Any) -> nn.Module:
    """Return the model of `robustbench:NAME` or `robustbench:DATASET/THREAT/NAME` in eval mode.

    Float images (N, 3, H, W) in [0, 1] -> logits; the dataset is cifar10 and the threat model Linf if not named. Checkpoints
    lie where RobustBench puts them, in models/DATASET/THREAT/NAME.pt, or in the folder that ROBUSTBENCH_MODEL_DIR names;
    one that is missing is downloaded. Raises UserError for an unknown name, a missing or broken file, Unavailable where
    robustbench cannot be used. https://github.com/RobustBench/robustbench#model-zoo
    """
    dataset, threat, name = parse(rest)
    utils = import_zoo()
    entry = _entry(utils.all_models, dataset, threat, name)
    folder = Path(os.environ.get("ROBUSTBENCH_MODEL_DIR", "models"))
    files = _files(utils, entry, folder, dataset, threat, name)
    for path, address in files:
        if not path.is_file() and address.startswith(WEB):
            _download(utils, path, address, files)
        if path.is_file():
            _refuse_web_page(path, address)
    # RobustBench prints; standard output belongs to the record.
    with contextlib.redirect_stdout(sys.stderr), _weights_only(not options.allow_pickle):
        try:
            model: nn.Module = utils.load_model(name, model_dir=folder, dataset=dataset, threat_model=threat)
        except OSError as error:
            raise _missing(files, error) from error
        except Exception as error:
            raise _broken(files, error) from error
    return model.eval()


def parse(rest: str) -> tuple[str, str, str]:
    """Return (dataset, threat model, name) of `NAME`, `THREAT/NAME`, `DATASET/NAME` or `DATASET/THREAT/NAME`."""
    *places, name = rest.split("/")
    parts = {"dataset": "cifar10", "threat": "Linf"}
    allowed = {**{d.lower(): ("dataset", d) for d in DATASETS}, **{t.lower(): ("threat", t) for t in THREATS}}
    for place in places:
        if place.lower() not in allowed:
            raise UserError(
                f"Cannot read 'robustbench:{rest}': {place!r} is neither a dataset ({', '.join(DATASETS)}) nor a threat "
                f"model ({', '.join(THREATS)}). Write robustbench:NAME or robustbench:DATASET/THREAT/NAME.",
                code="bad-spec",
            )
        kind, value = allowed[place.lower()]
        parts[kind] = value
    return parts["dataset"], parts["threat"], name


def import_zoo() -> Any:
    """Return the module `robustbench.utils`. Raises Unavailable, saying what to run, where it cannot be used."""
    if (finding := clash.check()[0]).command:
        raise Unavailable(f"{finding.message} Run: {finding.command}")
    try:
        with _stand_ins(), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            return importlib.import_module("robustbench.utils")
    except ImportError as error:
        raise Unavailable(
            f"RobustBench's model zoo cannot be imported ({type(error).__name__}: {error}). Run: {clash.INSTALL}"
        ) from error


@contextlib.contextmanager
def _stand_ins() -> Iterator[None]:
    """Let `autoattack` and `pkg_resources` be imported where they are not installed, and take them away again."""
    added: dict[str, types.ModuleType] = {}
    if "autoattack" not in sys.modules and importlib.util.find_spec("autoattack") is None:
        for name in ("", ".state"):
            added[f"autoattack{name}"] = importlib.import_module(f"pyautoattack{name}")
    if "pkg_resources" not in sys.modules and importlib.util.find_spec("pkg_resources") is None:
        resources = types.ModuleType("pkg_resources")
        resources.resource_filename = _resource_filename  # type: ignore[attr-defined]
        added["pkg_resources"] = resources
    sys.modules.update(added)
    try:
        yield
    finally:
        for name in added:
            sys.modules.pop(name, None)


def _resource_filename(module: str, name: str) -> str:
    return str(Path(str(sys.modules[module].__file__)).parent / name)


def _entry(models: Any, dataset: str, threat: str, name: str) -> dict[str, Any]:
    sections = {
        (d.value, t.value): names for d, by_threat in models.items() for t, names in by_threat.items()
    }  # fmt: skip
    names = sections.get((dataset, threat), {})
    if name in names:
        return dict(names[name])
    elsewhere = [f"robustbench:{d}/{t}/{name}" for (d, t), others in sections.items() if name in others]
    if elsewhere:
        raise UserError(
            f"RobustBench has no {name!r} for {dataset}, {threat}. Write {' or '.join(elsewhere)}.",
            code="unknown-model",
        )
    raise _unknown(name, names, dataset, threat)


def _unknown(name: str, names: dict[str, Any], dataset: str, threat: str) -> UserError:
    by_lower = {other.lower(): other for other in names}
    near = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UserError(
        f"Unknown RobustBench model {name!r} for {dataset}, {threat}.{hint} "
        "The names are the 'Model ID' column of https://github.com/RobustBench/robustbench#model-zoo.",
        code="unknown-model",
    )


def _files(
    utils: Any, entry: dict[str, Any], folder: Path, dataset: str, threat: str, name: str
) -> list[tuple[Path, str]]:
    """The files that the model needs and where each comes from, as `robustbench.utils.load_model` finds them."""
    registered = f"{name.lower().replace('-', '_')}_{dataset}_{threat.lower()}"
    if utils.timm.is_model(registered):
        address = utils.timm.get_pretrained_cfg(registered).url or ""
        return [(Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2], address)]
    path, ids = folder / dataset / threat / f"{name}.pt", entry["gdrive_id"]
    if isinstance(ids, list):
        return [(path.with_name(f"{path.name}_m{i}.pt"), WEB + file_id) for i, file_id in enumerate(ids)]
    return [(path, WEB + ids)] if ids else []


def _download(utils: Any, path: Path, address: str, files: list[tuple[Path, str]]) -> None:
    """Fetch one file from Google Drive; it appears under its name only when it is whole and is a checkpoint."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr):
            utils.gdown.download(id=address.removeprefix(WEB), output=str(part))
        _refuse_web_page(part, address)
        part.replace(path)
    except UserError:
        raise
    except Exception as error:  # gdown has its own errors, requests others, and a full disk is a third
        raise _missing(files, error) from error
    finally:
        part.unlink(missing_ok=True)


def _missing(files: list[tuple[Path, str]], error: Exception) -> UserError:
    absent = [(path, address) for path, address in files if not path.is_file()]
    if not absent:
        return UserError(f"RobustBench could not load the model: {type(error).__name__}: {error}", code="bad-model")
    listed = "\n".join(f"  {address} -> {path.absolute()}" for path, address in absent)
    return UserError(
        f"The checkpoint is not here and could not be downloaded ({type(error).__name__}: {_first_line(error)}). "
        f"Download it where there is a network, and put it here:\n{listed}",
        code="missing-file",
    )


def _broken(files: list[tuple[Path, str]], error: Exception) -> UserError:
    names = ", ".join(str(path.absolute()) for path, _ in files)
    if isinstance(error, pickle.UnpicklingError) and "nsupported" in str(error):
        return UserError(
            f"The checkpoint ({names}) is a pickle that holds more than weights, and a pickle can run any code. If you "
            "trust RobustBench with that, give --allow-pickle.",
            code="refused-pickle",
        )
    return UserError(
        f"The checkpoint ({names}) cannot be loaded: {type(error).__name__}: {_first_line(error)}. "
        "It is truncated, damaged, or not this model's; delete it and fetch it again.",
        code="damaged-checkpoint",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".")


def _refuse_web_page(path: Path, address: str) -> None:
    with path.open("rb") as opened:
        start = opened.read(512).lstrip().lower()
    if start.startswith((b"<!doctype html", b"<html")):
        raise UserError(
            f"{path.absolute()} is a web page, not a checkpoint: Google Drive answered with a page (too many downloads, "
            f"or a question). Delete it, open {address} in a browser, and put the file there. "
            "(https://github.com/RobustBench/robustbench/issues/68)",
            code="damaged-checkpoint",
        )


@contextlib.contextmanager
def _weights_only(safe: bool) -> Iterator[None]:
    """RobustBench and timm call torch.load themselves; torch reads these variables at each call."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD" if safe else "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    others = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    before = {other: os.environ.pop(other, None) for other in others}
    os.environ[name] = "1"
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
            yield
    finally:
        for other in others:
            os.environ.pop(other, None)
        os.environ.update({other: value for other, value in before.items() if value is not None})
