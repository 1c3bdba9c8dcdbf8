"""A copy that sees through masks: its values are the model's to the bit, its gradient is that of the model behind them."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from robustdup import Passes, SampleRng, ThreatModel, UserError
from robustdup.attacks.detours import Detours
from robustdup.attacks.guided import Guided
from robustdup.attacks.inner import PROBED
from robustdup.attacks.losses import cw, misclassified
from robustdup.attacks.see_through import SeeThrough
from robustdup.attacks.straight_through import straight_through, straight_through_cost
from robustdup.errors import AttackWarning
from tests.raising import raises


class Small(nn.Module):
    """Three classes, linear in the images: (N, 1, 4, 4) -> (N, 3)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 3)
        generator = torch.Generator().manual_seed(0)
        nn.init.normal_(self.layer.weight, generator=generator)
        nn.init.zeros_(self.layer.bias)

    def forward(self, images):
        return self.layer(images.flatten(1))


SMALL = Small().eval().requires_grad_(False)
IMAGES = 0.2 + 0.6 * torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
LABELS = SMALL(IMAGES).argmax(dim=1)


def behind(function):
    """A model that does something to the images, or to what the small one says."""

    class Behind(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = SMALL

        def forward(self, images):
            return function(self.model, images)

    return Behind().eval()


def numpy_round(model, images):
    return model(torch.from_numpy(np.round(images.detach().cpu().numpy() * 31) / 31))


def pil(model, images):
    parts = []
    for image in images:
        array = (image.detach()[0].numpy() * 255).round().astype("uint8")
        file = io.BytesIO()
        Image.fromarray(array).save(file, "PNG")
        parts.append(torch.from_numpy(np.array(Image.open(file)))[None].float() / 255)
    return model(torch.stack(parts))


def without_gradients(model, images):
    with torch.no_grad():
        return model(images)


def inference(model, images):
    with torch.inference_mode():
        images = (31 * images).round() / 31
    return model(images.clone())


class Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        ctx.save_for_backward(images)
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


def hooked(model, images):
    logits = model(images)
    if logits.requires_grad:
        logits.register_hook(lambda gradient: -gradient)
    return logits


def table(model, images):
    return model(F.embedding((images * 31).round().long(), torch.linspace(0, 1, 32)[:, None])[..., 0])


def compared(model, images):
    return model(sum((images > level).float() for level in torch.linspace(0.02, 0.98, 32)) / 32)


def in_place(model, images):
    images = images * 1.0
    images.mul_(31).round_().div_(31)
    return model(images)


MASKS = {
    "round": lambda model, images: model((31 * images).round() / 31),
    "floor": lambda model, images: model((31 * images).floor() / 31),
    "in place": in_place,
    "cast": lambda model, images: model((31 * images).int().float() / 31),
    "bytes": lambda model, images: model(torch.div((255 * images).to(torch.uint8), 8, rounding_mode="floor") * 8 / 255),
    "staircase": lambda model, images: (8 * model(images)).round() / 8,
    "detach": lambda model, images: model(images.detach()),
    "data": lambda model, images: model(images.data),
    "no_grad": without_gradients,
    "inference": inference,
    "numpy": numpy_round,
    "pil": pil,
    "custom backward": lambda model, images: model(Turned.apply(images)),
    "hook": hooked,
    "table": table,
    "compared": compared,
    "clipped": lambda model, images: (model(images) - model(images).amax(1, keepdim=True)).clamp(min=-0.01),
    "one-hot": lambda model, images: F.one_hot(model(images).argmax(dim=1), 3).float(),
    "scatter": lambda model, images: torch.zeros(len(images), 3).scatter_(
        1, model(images).argmax(1, keepdim=True), 1.0
    ),
    "equal": lambda model, images: (model(images) == model(images).amax(dim=1, keepdim=True)).float(),
}


def gradient(model, images=IMAGES):
    images = images.clone().requires_grad_()
    return torch.autograd.grad(cw(model(images), LABELS).sum(), images)[0]


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("name", MASKS)
def test_gradients_pass_and_point_where_the_model_behind_falls(name, smooth):
    masked = behind(MASKS[name])
    copy = SeeThrough(masked, smooth=smooth)
    if not smooth:
        assert torch.equal(copy(IMAGES.clone().requires_grad_()), masked(IMAGES))
    found, true = gradient(copy).flatten(1), gradient(SMALL).flatten(1)
    floor = 0.7 if name in ("clipped", "one-hot", "scatter", "equal") else 0.98  # those mix in the third class
    assert float(F.cosine_similarity(found, true).min()) > floor
    assert name == "hook" or copy.passed


@pytest.mark.parametrize("name", ["round", "one-hot", "custom backward", "no_grad"])
def test_the_same_masks_hide_the_gradient_without_the_copy(name):
    masked, images = behind(MASKS[name]), IMAGES.clone().requires_grad_()
    logits = masked(images)
    if not logits.requires_grad:
        return
    (found,) = torch.autograd.grad(cw(logits, LABELS).sum(), images)
    assert float((found * gradient(SMALL)).sum()) <= 0


def test_nothing_stays_changed():
    before = torch.autograd.Function.__dict__["apply"], torch.from_numpy, torch.inference_mode.__enter__
    with pytest.raises(ZeroDivisionError):
        SeeThrough(behind(lambda model, images: 1 / 0))(IMAGES.clone().requires_grad_())
    SeeThrough(behind(MASKS["numpy"]))(IMAGES.clone().requires_grad_())
    assert (torch.autograd.Function.__dict__["apply"], torch.from_numpy, torch.inference_mode.__enter__) == before
    assert not torch.nn.modules.module._global_forward_hooks
    images = IMAGES.clone().requires_grad_()
    assert not bool(torch.autograd.grad(images.round().sum(), images)[0].any())


def test_an_honest_model_keeps_its_gradient_to_the_bit():
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).eval()
    assert torch.equal(gradient(SeeThrough(network)), gradient(network))


def test_what_leaves_is_known_when_it_comes_back():
    away = Detours()
    source = torch.rand(3, 4, 5)
    away.leave(source)
    assert torch.equal(away.back(torch.zeros(4, 5, 3, dtype=torch.uint8)), 255 * source.permute(1, 2, 0))
    assert away.back(torch.zeros(4, 5, 3)) is None  # it came back already
    away.leave(source)
    assert away.back(torch.zeros(7)) is None


def test_a_guided_attack_gets_the_judges_answers_and_the_guides_gradient():
    judged = behind(lambda model, images: -model(images))
    both = Guided(SMALL, judged)
    assert torch.equal(both(IMAGES).argmax(dim=1), judged(IMAGES).argmax(dim=1))
    assert torch.equal(Guided(SMALL, SMALL)(IMAGES), SMALL(IMAGES))
    images = IMAGES.clone().requires_grad_()
    found = torch.autograd.grad(both(images)[:, 0].sum(), images)[0]
    assert torch.allclose(found, SMALL.layer.weight[0].view(1, 1, 4, 4).expand_as(found), atol=1e-5)


THREAT = ThreatModel("Linf", "0.1")


class Two(nn.Module):
    """Two classes by w·x - b, in steps of 1/200, behind images in steps of 1/500: nothing has a gradient."""

    def __init__(self):
        super().__init__()
        weight = torch.randn(16, generator=torch.Generator().manual_seed(2))
        self.register_buffer("weight", weight)
        self.bias = float(IMAGES[0].flatten() @ weight)

    def forward(self, images):
        score = ((500 * images).round() / 500).flatten(1) @ self.weight - self.bias
        score = (200 * score).floor() / 200
        return torch.stack([torch.zeros_like(score) - 0.0025, score], dim=1)


@pytest.mark.parametrize(("norm", "eps", "dual"), [("Linf", "0.1", 1), ("L2", "0.5", 2), ("L1", "0.5", float("inf"))])
def test_it_falls_where_the_best_perturbation_falls_and_never_beyond(norm, eps, dual):
    for share, falls in ((0.9, True), (1.1, False)):
        model, threat = Two(), ThreatModel(norm, eps)
        model.bias += share * float(eps) * float(torch.linalg.vector_norm(model.weight, dual))
        images, labels = IMAGES[:1].repeat(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64)
        adv_images = straight_through(model, images, labels, threat, rng=SampleRng(0, torch.arange(3)), targets=0)
        assert not threat.violations(images, adv_images).any.any()
        assert misclassified(model(adv_images), labels).tolist() == [falls] * 3


def test_where_the_answer_is_all_there_is_the_smooth_copy_leads():
    masked = behind(MASKS["one-hot"])
    adv_images = straight_through(masked, IMAGES, LABELS, ThreatModel("Linf", "0.3"), rng=SampleRng(0, torch.arange(6)))
    assert bool(misclassified(masked(adv_images), LABELS).all())


def test_a_row_ends_the_same_to_the_bit_in_any_company():
    masked, rng = behind(MASKS["round"]), SampleRng(0, torch.arange(6))

    def run(rows):
        return straight_through(
            Passes(masked, 4),
            IMAGES[rows],
            LABELS[rows],
            ThreatModel("Linf", "0.02"),
            rng=rng[rows],
            steps=4,
            targets=0,
        )

    together = run(torch.arange(6))
    assert torch.equal(run(torch.tensor([4, 1])), together[[4, 1]])


def test_passes_are_counted_and_bounded():
    masked = behind(MASKS["round"])
    passes, options = Passes(masked, 8), {"steps": 3, "restarts": 1, "eot": 1, "targets": 0}
    straight_through(passes, IMAGES, LABELS, ThreatModel("Linf", "1e-6"), rng=SampleRng(0, torch.arange(6)), **options)
    forward, backward = straight_through_cost(options)
    assert passes.count.backward == 6 * 2 * 3 + 2 * PROBED  # two runs of three steps, and the probes of a call
    assert passes.count.backward <= 64 * backward
    assert 0.6 * 6 * forward < passes.count.forward <= 64 * forward


def test_bad_input_is_named():
    with raises("bad-option", UserError, "steps", "at least 1"):
        straight_through(SMALL, IMAGES, LABELS, THREAT, rng=SampleRng(0, torch.arange(6)), steps=0)
    lost = behind(lambda model, images: model(torch.tensor(images.tolist())))
    assert SeeThrough(lost)(IMAGES.clone().requires_grad_()).requires_grad
    nothing = behind(lambda model, images: torch.ones(len(images), 3).cumsum(dim=1))
    with pytest.warns(AttackWarning, match="no gradient passes"):
        straight_through(nothing, IMAGES, LABELS, THREAT, rng=SampleRng(0, torch.arange(6)), steps=1, targets=0)
