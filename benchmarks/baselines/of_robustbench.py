"""The reference AutoAttack as its user calls it, for `benchmarks.timing`: https://github.com/fra31/auto-attack."""

from __future__ import annotations

from torch import Tensor, nn

from robustdup import ThreatModel, Unavailable, isolated

BATCH_SIZE = 250  # the default of run_standard_evaluation


def pyautoattack(
    model: nn.Module, images: Tensor, labels: Tensor, threat: ThreatModel, *, batch_size: int | None, seed: int
) -> Tensor:
    """Run AutoAttack's standard version on all images (N, C, H, W) in [0, 1] and return what it returns.

    Points that it does not break come back unchanged. Batches are of 250 if not given. Raises Unavailable without the
    package, and what the reference raises (below 10 classes, for one).
    """
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise Unavailable(f"pyautoattack cannot be imported: {error}. Run: pip install pyautoattack==0.2.0") from error
    if not len(images):
        return images
    with isolated(model, seed=seed):
        attack = AutoAttack(model, norm=threat.norm, eps=threat.radius, seed=seed, device=images.device)
        adv_images, _ = attack.run_standard_evaluation(images, labels, batch_size=batch_size or BATCH_SIZE)
    return adv_images.detach()  # type: ignore[no-any-return]
