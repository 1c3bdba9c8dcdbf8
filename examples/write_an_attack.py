"""Write an attack, check that it keeps the contract, and evaluate with it, beside one that is there already."""

import torch

import robustdup
from robustdup.testing import check_attack


@robustdup.register_attack("momentum-sign", norms=["Linf"], url="https://arxiv.org/abs/1710.06081")
def momentum_sign(model, images, labels, threat, *, rng, steps: int = 10, decay: float = 1.0):
    """Follow the sign of an average of the gradients so far (MI-FGSM)."""
    adv_images, average = images, torch.zeros_like(images)
    for _ in range(steps):
        gradient, _, _ = robustdup.input_gradient(
            model,
            adv_images,
            lambda logits, rows: torch.nn.functional.cross_entropy(logits, labels[rows], reduction="none"),
        )
        average = decay * average + gradient / gradient.abs().mean(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12)
        adv_images = threat.project(images, adv_images + threat.radius / steps * average.sign())
    return adv_images


report = check_attack(momentum_sign)
print(f"keeps the contract: {report.ok}; {report.evidence}")
data = robustdup.load_data("builtin:digits", n=100)
model = robustdup.load_model("builtin:digits-robust")
for attack in ("fgsm", momentum_sign):
    result = robustdup.evaluate(model, data, eps="0.15", attacks=[attack], progress=False)
    print(f"{result.record.attacks[0].name}: robust accuracy {result.robust_accuracy.value:.1%}")
