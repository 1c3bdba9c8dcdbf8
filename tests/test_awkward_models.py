"""Models that are awkward to prepare or to attack: AutoAttack's attacks work on them, or one message says why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustdup

ATTACKS = "apgd-ce(steps=8),apgd-dlr(steps=5),apgd-t(steps=5),fab(steps=3),fab-t(steps=5),square(queries=20)"


def network(channels: int = 1, classes: int = 10, height: int = 8, width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * height * width, classes),
    )  # fmt: skip


class Around(nn.Module):
    """A network with something awkward around it."""

    def __init__(self, change, **shape) -> None:
        super().__init__()
        self.inner = network(**shape)
        self.change = change

    def forward(self, images):
        return self.change(self.inner, images)


def evaluated(model: nn.Module, *, attacks: str = ATTACKS, **options):
    shape = options.pop("shape", (1, 8, 8))
    images = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model.eval()(images).argmax(dim=1)
    settings = {"eps": "0.05", "diagnostics": False, "individual": True, "micro_batch": 4, "batch_size": 8} | options
    return robustdup.evaluate(model, images, labels, attacks=attacks, **settings).record


def only_if(inner, images):
    return inner(images) * (2 if images.mean() > 2 else 1)


def nan_at_the_edge(inner, images):
    logits = inner(images)
    return torch.where((images[:, 0, 0, 0] > 0.9999)[:, None], torch.full_like(logits, torch.nan), logits)


def in_double(inner, images):
    return inner.double()(images.double())


@pytest.mark.parametrize("change", [only_if, nan_at_the_edge, in_double], ids=lambda change: change.__name__)
def test_awkward_models_are_attacked_all_the_same(change):
    record = evaluated(Around(change))
    assert record.n_undecided == 0
    assert record.robust_accuracy.value < record.clean_accuracy.value
    assert [attack.errors for attack in record.attacks] == [[]] * 6


def test_a_model_that_cannot_be_traced_is_attacked_without_folding_and_the_record_says_so():
    record = evaluated(Around(only_if))
    assert record.environment.folded == 0
    assert any(event.startswith("BatchNorm folding was left out") for event in record.events)
    assert evaluated(network()).environment.folded == 1


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        (2, ["apgd-dlr: DLR needs at least 3 classes", "apgd-t: targeted DLR needs at least 4 classes"]),
        (3, ["apgd-t: targeted DLR needs at least 4 classes"]),
    ],
)
def test_few_classes_are_attacked_with_another_loss_and_the_record_says_so(classes, said):
    record = evaluated(network(classes=classes), eps="0.2")
    assert record.robust_accuracy.value < 1
    assert len(record.events) == len(said)
    assert all(event.startswith(start) for event, start in zip(record.events, said, strict=True))


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_images_that_are_not_square_in_three_channels(norm):
    eps = {"Linf": "0.05", "L2": "0.8", "L1": "8"}[norm]
    record = evaluated(network(3, 10, 8, 12), shape=(3, 8, 12), norm=norm, eps=eps)
    assert record.n_undecided == 0
    assert record.robust_accuracy.value < 1
    assert any("not square" in event for event in record.events)


def test_bf16_is_for_attacking_only_and_the_record_names_it():
    record = evaluated(network(), attacks="pgd(steps=10)", precision="bf16")
    assert record.environment.attack_precision == "bf16"
    assert record.environment.judge_precision == "fp32"
    assert record.robust_accuracy.value < 1


def test_a_model_that_cannot_be_compiled_is_attacked_uncompiled_and_the_record_says_so(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", broken)
    record = evaluated(network(), attacks="pgd(steps=10)", compile="on")
    assert record.environment.compiled == "off"
    assert any("no compiler here" in event for event in record.events)
    assert record.robust_accuracy.value < 1


class InPlace(nn.Module):
    """Normalises in place, as many training scripts do: what is given must not be what it writes into."""

    def __init__(self, inner, shift) -> None:
        super().__init__()
        self.inner, self.shift = inner, shift

    def forward(self, images):
        return self.inner(images.sub_(0.5).div_(0.25) if self.shift else (images - 0.5) / 0.25)


def in_half(inner, images):
    return inner.half()(images.half()).float()


def quick(model, **options):
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    settings = {"eps": "0.02", "diagnostics": False, "workers": 1} | options
    kept = images.clone()
    labels = network().eval()(images).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 10  # misclassified as it is
    result = robustdup.evaluate(model, images, labels, attacks="fgsm,pgd(steps=4)", **settings)
    assert torch.equal(images, kept)
    return result


@pytest.fixture(scope="module")
def bare():
    """The result of the network itself."""
    return quick(network().eval())


SAME = {
    "in a list": lambda net: Around(lambda inner, images: [inner(images), 1]),
    "in a tuple": lambda net: Around(lambda inner, images: (inner(images), None)),
    "in a mapping": lambda net: Around(lambda inner, images: {"features": images, "logits": inner(images)}),
    "for several devices": nn.DataParallel,
    "compiled": lambda net: torch.compile(net, backend="eager"),
    "scripted": torch.jit.script,
    "traced": lambda net: torch.jit.trace(net, torch.rand(2, 1, 8, 8)),
    "frozen": lambda net: torch.jit.freeze(torch.jit.script(net)),
    "in double": lambda net: Around(in_double),
}


@pytest.mark.filterwarnings("ignore")  # torch calls TorchScript old
@pytest.mark.parametrize("form", SAME)
def test_a_network_in_any_form_is_judged_as_the_network_itself(form, bare):
    result = quick(SAME[form](network().eval()).eval())
    assert result.outcomes == bare.outcomes
    assert bare.record.robust_accuracy.value < bare.record.clean_accuracy.value


def test_normalisation_in_place_changes_nothing():
    bare, result = (quick(InPlace(network(), shift).eval()) for shift in (False, True))
    assert result.outcomes == bare.outcomes
    assert torch.equal(result.adv_images, bare.adv_images)


def test_half_precision_inside_is_judged_as_it_is():
    result = quick(Around(in_half).eval())
    assert result.record.n_undecided == 0
    assert result.record.robust_accuracy.value < result.record.clean_accuracy.value


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_torchscript_is_evaluated_like_the_network_in_it(tmp_path, bare):
    torch.jit.script(network().eval()).save(str(tmp_path / "net.pt"))
    assert quick(str(tmp_path / "net.pt")).outcomes == bare.outcomes
