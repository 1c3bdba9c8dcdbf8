"""The reference AutoAttack (pyautoattack 0.2.0), attack by attack, and its three published versions as ensembles.

AutoAttack runs each attack on the samples that are still robust, in dataset order, in batches, and every call starts from
the same seed. So its attacks are `batch` attacks here and its versions are ensembles: a cascade over survivors that calls
them with the same batch size gives what `AutoAttack.run_standard_evaluation` gives. Papers:
https://arxiv.org/abs/2003.01690 (AutoAttack), https://arxiv.org/abs/2103.01208 (L1).
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robustdup import SampleRng, ThreatModel, Unavailable, UserError, how_to_install, isolated

Options = Mapping[str, Any]


def apgd_ce(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    n_iter: int = 100, n_restarts: int | None = None, eot_iter: int = 1, rho: float = 0.75,
    use_largereps: bool | None = None, seed: int | None = None,
) -> Tensor:  # fmt: skip
    """APGD on the cross-entropy: step-size free PGD, https://arxiv.org/abs/2003.01690.

    (N, C, H, W) in [0, 1] -> the same shape; samples that it does not break come back unchanged, as from the reference.
    None means the standard version's value for the norm: 1 restart in Linf and L2; in L1 5 restarts and `use_largereps`
    (3 eps, 2 eps, eps in turn). `seed` is the run's own seed if not given. Raises UserError on a wrong option.
    """
    in_l1 = threat.norm == "L1"
    n_restarts = _count("n_restarts", n_restarts, 5 if in_l1 else 1)
    large = _largereps(use_largereps, threat)
    attack = _apgd("APGDAttack", threat, images, n_iter, n_restarts, eot_iter, rho, loss="ce", use_largereps=large)
    attack.model = model
    return _perturb(attack, model, images, labels, rng, seed)


def apgd_dlr(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    n_iter: int = 100, n_restarts: int = 5, eot_iter: int = 1, rho: float = 0.75, seed: int | None = None,
) -> Tensor:  # fmt: skip
    """APGD on the difference of logits ratio, https://arxiv.org/abs/2003.01690; needs at least 3 classes.

    (N, C, H, W) in [0, 1] -> the same shape; samples that it does not break come back unchanged. `seed` is the run's own
    seed if not given. Raises UserError on a wrong option or too few classes.
    """
    n_restarts = _count("n_restarts", n_restarts, 5)
    attack = _apgd("APGDAttack", threat, images, n_iter, n_restarts, eot_iter, rho, loss="dlr")
    attack.model = _checked(model, 3, "APGD-DLR: the DLR loss compares the three largest logits")
    return _perturb(attack, model, images, labels, rng, seed)


def apgd_t(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    n_iter: int = 100, n_restarts: int = 1, n_target_classes: int | None = None, eot_iter: int = 1, rho: float = 0.75,
    use_largereps: bool | None = None, seed: int | None = None,
) -> Tensor:  # fmt: skip
    """APGD on the targeted DLR loss, one target class after the other, https://arxiv.org/abs/2003.01690.

    (N, C, H, W) in [0, 1] -> the same shape; samples that it does not break come back unchanged. None means the standard
    version's value for the norm: 9 target classes in Linf and L2; 5, with `use_largereps`, in L1. With fewer classes all
    others are targets (the reference crashes). Raises UserError on a wrong option or below 4 classes.
    """
    n_restarts = _count("n_restarts", n_restarts, 1)
    large = _largereps(use_largereps, threat)
    attack = _apgd("APGDAttack_targeted", threat, images, n_iter, n_restarts, eot_iter, rho, use_largereps=large)
    fit = _set_targets(attack, _count("n_target_classes", n_target_classes, 5 if threat.norm == "L1" else 9))
    attack.model = _checked(model, 4, "APGD-T: the targeted DLR loss compares the four largest logits", fit)
    return _perturb(attack, model, images, labels, rng, seed)


def fab(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    n_iter: int = 100, n_restarts: int = 5, seed: int | None = None,
) -> Tensor:  # fmt: skip
    """FAB against every other class, https://arxiv.org/abs/1907.02044: one backward pass a class and iteration.

    (N, C, H, W) in [0, 1] -> the same shape; only results within eps are returned, other samples come back unchanged.
    Raises UserError on a wrong option.
    """
    attack = _fab(threat, images, n_iter, _count("n_restarts", n_restarts, 5), targeted=False)
    attack.predict = model
    return _perturb(attack, model, images, labels, rng, seed)


def fab_t(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    n_iter: int = 100, n_restarts: int = 1, n_target_classes: int = 9, seed: int | None = None,
) -> Tensor:  # fmt: skip
    """FAB against one target class after the other, https://arxiv.org/abs/1907.02044.

    (N, C, H, W) in [0, 1] -> the same shape; only results within eps are returned, other samples come back unchanged.
    With fewer classes all others are targets (the reference crashes). Raises UserError on a wrong option.
    """
    attack = _fab(threat, images, n_iter, _count("n_restarts", n_restarts, 1), targeted=True)
    fit = _set_targets(attack, _count("n_target_classes", n_target_classes, 9))
    attack.predict = _checked(model, 2, "FAB-T: it attacks towards another class", fit)
    return _perturb(attack, model, images, labels, rng, seed)


def square(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, rng: SampleRng,
    n_queries: int = 5000, n_restarts: int = 1, p_init: float = 0.8, seed: int | None = None,
) -> Tensor:  # fmt: skip
    """Square Attack: random search on the margin, no gradients, https://arxiv.org/abs/1912.00049.

    (N, C, H, W) in [0, 1] -> the same shape; samples that it does not break come back unchanged. In L2 and L1 the images
    must be at least 5 pixels high. Raises UserError on a wrong option or smaller images.
    """
    if threat.norm != "Linf" and images.shape[2] < 5:
        raise UserError(
            f"robustbench:Square tiles an image with 5 x 5 windows in {threat.norm}: images must be at least 5 pixels "
            f"high, got {tuple(images.shape[1:])}.",
            code="bad-images",
        )
    attack = _module("square").SquareAttack(
        model, p_init=p_init, n_queries=_count("n_queries", n_queries, 5000), eps=threat.radius, norm=threat.norm,
        n_restarts=_count("n_restarts", n_restarts, 1), verbose=False, device=images.device, resc_schedule=False,
    )  # fmt: skip
    return _perturb(attack, model, images, labels, rng, seed)


def _perturb(attack: Any, model: nn.Module, images: Tensor, labels: Tensor, rng: SampleRng, seed: int | None) -> Tensor:
    """Call the reference as AutoAttack does: without gradients outside its own, on copies, with AutoAttack's one seed."""
    attack.seed = rng.seed if seed is None else int(seed)
    with isolated(model, seed=rng.call_seed()), torch.no_grad():
        adv_images: Tensor = attack.perturb(images.clone(), labels.clone())
    return adv_images.detach().to(images.dtype)


def _apgd(
    kind: str, threat: ThreatModel, images: Tensor, n_iter: int, n_restarts: int, eot_iter: int, rho: float, **more: Any
) -> Any:
    return getattr(_module("autopgd_base"), kind)(
        None, n_restarts=n_restarts, n_iter=_count("n_iter", n_iter, 100), verbose=False, eps=threat.radius,
        norm=threat.norm, eot_iter=_count("eot_iter", eot_iter, 1), rho=rho, device=images.device,
        logger=logging.getLogger("auto-attack"), **more,
    )  # fmt: skip


def _fab(threat: ThreatModel, images: Tensor, n_iter: int, n_restarts: int, *, targeted: bool) -> Any:
    return _module("fab_pt").FABAttack_PT(
        None, n_restarts=n_restarts, n_iter=_count("n_iter", n_iter, 100), eps=threat.radius, norm=threat.norm,
        verbose=False, device=images.device, targeted=targeted,
    )  # fmt: skip


def _checked(
    model: nn.Module, least: int, why: str, then: Callable[[int], None] = lambda classes: None
) -> Callable[[Tensor], Tensor]:
    """The number of classes shows only in the logits: look at those of the attack's own calls, so that none is added."""

    def predict(images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        if logits.shape[1] < least:
            raise UserError(
                f"robustbench:{why}, so that it needs at least {least} classes; this model has {logits.shape[1]}. "
                "Name the other attacks of the ensemble instead, for instance "
                "'robustbench:APGD-CE,robustbench:FAB-T,robustbench:Square'.",
                code="too-few-classes",
            )
        then(logits.shape[1])
        return logits

    return predict


def _set_targets(attack: Any, wanted: int) -> Callable[[int], None]:
    # The reference looks at the clean logits before it starts on the targets, so that this comes in time.
    def then(classes: int) -> None:
        attack.n_target_classes = min(wanted, classes - 1)

    return then


def _count(name: str, value: Any, reference: int) -> int:
    if value is None:
        return reference
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or value < 1:
        raise UserError(
            f"Option {name!r} must be a whole number of at least 1, such as {reference}; got {value!r}.",
            code="bad-option",
        )
    return int(value)


def _largereps(value: Any, threat: ThreatModel) -> bool:
    in_l1 = threat.norm == "L1"
    if value is None:
        return in_l1
    if not isinstance(value, bool):
        raise UserError(f"Option 'use_largereps' must be true or false, got {value!r}.", code="bad-option")
    if value and not in_l1:
        raise UserError(f"Option 'use_largereps' exists in L1 only; the norm is {threat.norm}.", code="bad-option")
    return value


def _module(name: str) -> Any:
    try:
        return importlib.import_module(f"pyautoattack.{name}")
    except ImportError as error:
        raise Unavailable(
            f"The reference AutoAttack cannot be imported: {error}. Run: {how_to_install('robustdup[robustbench]')}"
        ) from error


# Costs of a sample that survives, without the evaluation of the result, which is the referee's.


def apgd_cost(options: Options) -> tuple[float, float]:
    """Forward and backward passes of a surviving sample (Linf and L2; L1 by its `use_largereps`)."""
    per_run = _run_passes(options)
    restarts = options["n_restarts"] or (5 if options.get("use_largereps") else 1)
    return 1 + restarts * per_run, restarts * per_run


def apgd_t_cost(options: Options) -> tuple[float, float]:
    """Forward and backward passes of a surviving sample: each target reads the clean logits once more."""
    targets = options["n_target_classes"] or (5 if options.get("use_largereps") else 9)
    runs, per_run = targets * options["n_restarts"], _run_passes(options)
    return 1 + runs * (1 + per_run), runs * per_run


def _run_passes(options: Options) -> int:
    """The start and each iteration; with `use_largereps` there are three phases, each with a start of its own."""
    starts = 3 if options.get("use_largereps") else 1
    return int(options["eot_iter"] * (options["n_iter"] + starts))


def fab_cost(options: Options) -> tuple[float, float]:
    """Forward and backward passes of a surviving sample, for 10 classes."""
    runs, n_iter = options["n_restarts"], options["n_iter"]
    return 1 + runs * (2 + 2 * n_iter), runs * 10 * n_iter


def fab_t_cost(options: Options) -> tuple[float, float]:
    """Forward and backward passes of a surviving sample."""
    runs, n_iter = options["n_target_classes"] * options["n_restarts"], options["n_iter"]
    return 1 + runs * (3 + 2 * n_iter), runs * n_iter


def square_cost(options: Options) -> tuple[float, float]:
    """Forward passes of a surviving sample: the start, the queries, and the reference's own check."""
    return 1 + options["n_restarts"] * (options["n_queries"] + 2), 0
