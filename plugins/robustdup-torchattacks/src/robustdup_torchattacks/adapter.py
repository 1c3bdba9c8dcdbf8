"""One adapter for every row: a row of the table becomes an attack that keeps robustdup's contract."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from robustdup import AttackSpec, RunError, Unavailable, UserError, attack_signature, how_to_install
from robustdup_torchattacks.row import Row

if TYPE_CHECKING:
    from torch import Tensor, nn

    from robustdup import SampleRng, ThreatModel

VERSION = "3.5.1"
ROUNDING = 1e-6  # how far a pixel may leave [0, 1] by rounding; more is a violation and is left for the referee to see


def missing() -> str:
    """Return why torchattacks cannot be used here, without importing it; empty where it can."""
    if importlib.util.find_spec("torchattacks") is None:
        return f"torchattacks is not installed: {how_to_install('--no-deps', f'torchattacks=={VERSION}')}"
    try:
        installed = importlib.metadata.version("torchattacks")
    except importlib.metadata.PackageNotFoundError:
        return f"a torchattacks without version is on the path, not the package: {how_to_install(f'torchattacks=={VERSION}')}"
    return "" if installed == VERSION else f"torchattacks {installed} is installed, and this table is of {VERSION}"


def load() -> ModuleType:
    """Import torchattacks, on first use."""
    try:
        return importlib.import_module("torchattacks")
    except Exception as error:
        raise Unavailable(f"torchattacks cannot be imported: {type(error).__name__}: {error}") from error


def make_spec(row: Row, reason: str = "") -> AttackSpec:
    """Build the spec of a row; with a `reason` it is listed as unavailable."""

    def function(
        model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng, **options: Any
    ) -> Tensor:
        return run(row, model, images, labels, threat, rng, spec.check_options(options))

    function.__name__ = function.__qualname__ = row.name
    function.__doc__ = row.description
    defaults = {**row.options, **dict.fromkeys(row.steps), **row.own}
    if row.takes_classes:
        defaults["n_classes"] = None
    function.__signature__ = attack_signature(defaults, row.choices)  # type: ignore[attr-defined]
    left_out = "".join(f" Left out, {name} = {text}." for name, (text, _) in row.steps.items())
    spec = AttackSpec(
        name=f"torchattacks:{row.name}", function=function, norms=row.norms, kind=row.kind, knowledge=row.knowledge,
        url=row.url, batching="batch", cost=row.cost, description=row.description + left_out, quick=row.quick,
        warning=row.warning, undemonstrated=row.undemonstrated, available=not reason, reason=reason,
    )  # fmt: skip
    return spec


def run(
    row: Row,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    threat: ThreatModel,
    rng: SampleRng,
    given: Mapping[str, Any],
) -> Tensor:
    """Run one attack on a batch: images (N, C, H, W) in [0, 1] -> the same shape, dtype and device, detached.

    Raises UserError for input that the class cannot take, RunError for what torchattacks raises.
    """
    import torch

    from robustdup import isolated
    from robustdup_torchattacks import builders
    from robustdup_torchattacks.call import Call, class_count, fill_in
    from robustdup_torchattacks.guard import Guard

    options = fill_in(row, given, threat)
    if row.kind == "bounded" and threat.norm not in row.norms:
        raise UserError(
            f"torchattacks:{row.name} works in {' or '.join(row.norms)}; the threat model is {threat}.",
            code="other-norm",
        )
    for check in row.checks:
        check(row.name, images, options)
    toolkit, seed = load(), rng.call_seed()
    if not len(images):
        return images.clone()
    with isolated(model, seed=seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torchattacks")
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # no weight gradients: neither filled nor computed
        guard = Guard(model, images, shift=row.shift)
        classes = class_count(row, guard, options, images)
        start = images.detach().to(torch.float32).contiguous()
        call = Call(row, toolkit, guard, options, threat, seed, classes)
        batches = [slice(i, i + 1) for i in range(len(start))] if row.row_by_row(options) else [slice(None)]
        try:
            adv_images = torch.cat([getattr(builders, row.build)(call, start[part], labels[part]) for part in batches])
        except (UserError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            if "out of memory" in str(error) or "allocate memory" in str(error):
                raise
            raise RunError(
                f"torchattacks:{row.name} failed: {type(error).__name__}: {error}", code="attack-failed"
            ) from error
    clipped = adv_images.detach().clamp(0, 1)
    adv_images = torch.where((adv_images - clipped).abs() <= ROUNDING, clipped, adv_images.detach())
    return adv_images.to(images.dtype)
