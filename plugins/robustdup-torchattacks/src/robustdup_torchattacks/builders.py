"""How the attack object of a row is built and called: `builder(call, images, labels) -> adv_images`."""

from __future__ import annotations

import copy
import importlib
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from robustdup import Passes, UserError
from robustdup_torchattacks.call import Call, class_count, fill_in
from robustdup_torchattacks.row import Row
from robustdup_torchattacks.table import ROWS


def plain(call: Call, images: Tensor, labels: Tensor) -> Tensor:
    """Construct the class and call it; CW starts inside (0, 1), DeepFool is pushed past the boundary."""
    inside, push = call.options.get("inside", 0.0), call.options.get("push", 0.0)
    start = images.clamp(inside, 1 - inside) if inside else images
    adv_images = _attacked(call.plain(), start, labels)
    return (images + (1 + push) * (adv_images - images)).clamp(0, 1) if push else adv_images


def jsma(call: Call, images: Tensor, labels: Tensor) -> Tensor:
    """Aim at a wrong class of the model, where torchattacks aims at (label + 1) % 10."""
    attack = call.plain()
    attack.set_mode_targeted_by_function(
        lambda inputs, given: call.guard.wrong_class(inputs, given, call.options["target"]), quiet=True
    )
    return _attacked(attack, images, labels)


def multi_attack(call: Call, images: Tensor, labels: Tensor) -> Tensor:
    """Run the members in order, each at its defaults on what the earlier ones left."""
    members = []
    for row in member_rows(call):
        options = fill_in(row, {}, call.threat)
        for check in row.checks:
            check(row.name, images, options)
        members.append(replace(call, row=row, options=options, classes=class_count(row, call.guard, options, images)))
    return _attacked(call.toolkit.MultiAttack([member.plain() for member in members]), images, labels)


def member_rows(call: Call) -> list[Row]:
    """Return the rows that the option `attacks` names. Raises UserError for a member that MultiAttack would misread."""
    text = call.options["attacks"]
    names = [name.strip() for name in (text.replace(",", "+").split("+") if isinstance(text, str) else text)]
    allowed = {
        row.name: row
        for row in ROWS
        if row.kind == "bounded" and row.build == "plain" and call.threat.norm in row.norms and row.name != "VANILA"
    }
    for name in names:
        if name.removeprefix("torchattacks:") not in allowed:
            raise UserError(
                f"torchattacks:MultiAttack cannot take {name!r} here. It stops at the first misclassification, at any "
                f"distance, so its members are the attacks bounded in {call.threat.norm}: {', '.join(sorted(allowed))}.",
                code="bad-option",
            )
    if len(names) < 2:
        raise UserError(
            f"torchattacks:MultiAttack needs at least two attacks, such as APGD+FAB; got {text!r}.", code="bad-option"
        )
    return [allowed[name.removeprefix("torchattacks:")] for name in names]


def _attacked(attack: Any, images: Tensor, labels: Tensor) -> Tensor:
    adv_images: Tensor = attack(images, labels)
    return adv_images


class Surrogate(nn.Module):
    """A copy of the model to train; its copies go on counting in the original's passes."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (N, K)."""
        logits: Tensor = self.model(images.to(self.dtype)).float()
        return logits

    def __deepcopy__(self, memo: dict[int, Any]) -> Surrogate:
        return Surrogate(copy_counting(self.model, memo), self.dtype)


def copy_counting(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copy a model deeply, except for the counts of `Passes` in it."""
    shared = {id(part.count): part.count for part in model.modules() if isinstance(part, Passes)}
    return copy.deepcopy(model, {**(memo or {}), **shared})


def lgv(call: Call, images: Tensor, labels: Tensor) -> Tensor:
    """Collect models by SGD from a copy of the model on these images, then run BIM on them in turn."""
    module: Any = importlib.import_module(call.toolkit.LGV.__module__)
    if torch.cuda.is_available() and images.device.type != "cuda":
        raise UserError(
            "torchattacks:LGV trains on the GPU wherever there is one: put the model and the images there.",
            code="other-device",
        )
    start = Surrogate(copy_counting(call.guard.model), call.guard.dtype)
    for parameter in start.parameters():
        parameter.requires_grad_(True)
    options = dict(call.options)
    steps, size, alpha = options.pop("steps"), options.pop("train_batch"), options.pop("alpha")
    repeats = -(-options["nb_models_epoch"] * size // len(images))  # a batch at least for every model of an epoch
    data = TensorDataset(images.repeat(repeats, 1, 1, 1), labels.repeat(repeats))
    bar, module.tqdm = module.tqdm, lambda iterator, *args: iterator  # it prints whatever `verbose` says
    try:
        attack = call.toolkit.LGV(
            start, DataLoader(data, batch_size=size, shuffle=True), verbose=False, eps=call.threat.radius, alpha=alpha,
            steps=steps, **options,
        )  # fmt: skip
        attack.set_device(images.device)
        return _attacked(attack, images, labels)
    finally:
        module.tqdm = bar
