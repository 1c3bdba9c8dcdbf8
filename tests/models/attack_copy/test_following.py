"""The copy that follows training agrees with the model in eval mode, whatever happened to its weights and statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from robustdup import SampleRng, ThreatModel
from robustdup.models.attack_copy.following import Unstrided, make_following_copy
from robustdup.models.resnets import small_resnet
from robustdup.plugins import Registry
from robustdup.training.inner import prepare_inner
from robustdup.training.modes import inner_mode
from tests.networks import cnn, resnet


class PreAct(nn.Module):
    """BatchNorm before convolutions, grouped and dilated ones, affine-free BatchNorm, dropout, a branch."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, padding=2, dilation=2, groups=4, bias=True)
        self.plain = nn.BatchNorm2d(16, affine=False, eps=1e-2)
        self.drop = nn.Dropout(0.5)
        self.embed = nn.Linear(16, 12)
        self.last = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, images):
        raw = self.first(images)
        deep = F.relu(self.plain(self.second(F.relu(self.norm(raw)))))
        pooled = self.drop(deep.mean(dim=(2, 3)))
        return self.head(F.relu(self.last(self.embed(pooled))) + raw.mean())


# On a CPU oneDNN corrupts memory in channels-last 1x1 convolutions with stride of fewer than 8 channels.
MODELS = {"resnet": (lambda: resnet(8), 9), "cnn": (lambda: cnn(4), 5), "preact": (PreAct, 2)}


def train_a_little(model, seed):
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for _ in range(3):
        images = torch.rand(16, 3, 32, 32, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), torch.randint(0, 5, (16,), generator=generator)).backward()
        optimizer.step()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", MODELS)
def test_the_copy_follows_weights_and_statistics(name, layout):
    torch.manual_seed(0)
    build, folded = MODELS[name]
    model = build().to(memory_format=layout)
    images = torch.rand(6, 3, 32, 32).to(memory_format=layout)
    with inner_mode(model):
        following, note = make_following_copy(model, images)
    assert (note, following.folded) == ("", folded)
    for seed in range(2):
        train_a_little(model, seed)
        with inner_mode(model):
            behind = (following.network(images) - model(images)).abs().max()
            following.refresh()
            assert behind > 1e-3  # it was not up to date before
            torch.testing.assert_close(following.network(images), model(images), rtol=1e-5, atol=1e-5)
            leaf = images.clone().requires_grad_()
            ours, theirs = (torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)[0] for net in (following.network, model))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_stem_takes_the_division_in_and_goes_without_its_stride():
    torch.manual_seed(0)
    settings = {"channels": 3, "size": (32, 32), "classes": 5, "mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}
    model, images = small_resnet(**settings, width=6), torch.rand(6, 3, 32, 32)
    for seed in range(2):
        train_a_little(model, seed)
        with inner_mode(model):
            following, note = make_following_copy(model, images)
            assert (note, following.folded) == ("", 7)
            assert torch.equal(following.folds[0].divisor, model.normalise.std)
            assert [fold.divisor for fold in following.folds[1:]] == [None] * 6
            assert isinstance(following.folds[0].fused, Unstrided)
            assert "truediv" not in following.graph.code
            torch.testing.assert_close(following.network(images), model(images), rtol=1e-5, atol=1e-5)
            leaf = images.clone().requires_grad_()
            ours, theirs = (torch.autograd.grad(net(leaf)[:, 1].sum(), leaf)[0] for net in (following.network, model))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_inner_attack_renews_its_copy_for_each_batch():
    torch.manual_seed(0)
    model, images = resnet(4), torch.rand(6, 3, 32, 32)
    inner = prepare_inner("pgd(steps=2)", Registry(), ThreatModel("Linf", "8/255"))
    inner.attach(model, images)
    assert (inner.folded, inner.notes) == (9, [])
    labels, rng = torch.zeros(6, dtype=torch.int64), SampleRng(0, torch.arange(6))
    for seed in range(2):
        train_a_little(model, seed)
        attack = inner.batch(rng)
        attack(images, labels)
        with inner_mode(model):
            torch.testing.assert_close(attack.logits(images), model(images), rtol=1e-5, atol=1e-5)


class Choosing(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = resnet(2)

    def forward(self, images):
        return self.net(images) if float(images.mean()) > 0 else self.net(-images)


def test_a_model_that_cannot_be_traced_is_attacked_itself():
    model, images = Choosing(), torch.rand(4, 3, 32, 32)
    inner = prepare_inner("pgd(steps=2)", Registry(), ThreatModel("Linf", "8/255"))
    inner.attach(model, images)
    assert inner.folded == 0
    assert len(inner.notes) == 1
    assert inner.notes[0].startswith("The inner attack runs on the model itself: it could not be folded (TypeError: ")
    attack = inner.batch(SampleRng(0, torch.arange(4)))
    adv_images = attack(images, torch.zeros(4, dtype=torch.int64))
    assert not inner.threat.violations(images, adv_images).any.any()
    assert not torch.equal(adv_images, images)


def test_a_layer_whose_weights_a_hook_makes_is_not_folded():
    body = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))
    body(torch.rand(2, 3, 8, 8))
    model, images = body, torch.rand(4, 3, 8, 8)
    inner = prepare_inner("pgd", Registry(), ThreatModel("Linf", "8/255"))
    inner.attach(model, images)
    assert inner.folded == 0


def test_a_model_without_batch_norm_has_no_copy_and_no_note():
    inner = prepare_inner("pgd", Registry(), ThreatModel("Linf", "8/255"))
    inner.attach(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.rand(4, 3, 2, 2))
    assert (inner.folded, inner.notes) == (0, [])


def test_under_autocast_the_folded_weights_are_kept_in_its_precision():
    torch.manual_seed(0)
    model, images = resnet(4), torch.rand(6, 3, 32, 32)
    train_a_little(model, 0)
    with inner_mode(model):
        following, _ = make_following_copy(model, images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            following.refresh()
            assert {fold.fused.weight.dtype for fold in following.folds} == {torch.bfloat16}
            torch.testing.assert_close(following.network(images).float(), model(images).float(), rtol=0.1, atol=0.1)
        following.refresh()
        torch.testing.assert_close(following.network(images), model(images), rtol=1e-5, atol=1e-5)


class Casts(TorchDispatchMode):
    """Lists the shapes of float32 tensors that are converted."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == "aten::_to_copy" and args[0].dtype == torch.float32:
            self.shapes.append(tuple(args[0].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_under_autocast_no_pass_converts_weights_and_all_of_them_follow_the_model(name):
    torch.manual_seed(0)
    model, images = MODELS[name][0](), torch.rand(6, 3, 32, 32)
    with inner_mode(model):
        following, _ = make_following_copy(model, images)
    for seed in range(2):
        train_a_little(model, seed)
        with inner_mode(model), torch.autocast("cpu", dtype=torch.bfloat16):
            following.refresh()
            with Casts() as casts:
                following.network(images)
            assert [shape[0] for shape in casts.shapes] == [len(images)]  # the images, and no weights
            torch.testing.assert_close(following.network(images).float(), model(images).float(), rtol=0.1, atol=0.1)
        model.head.weight.data.mul_(2)  # what does not fold is the model's own layer again
        with inner_mode(model):
            following.refresh()
            torch.testing.assert_close(following.network(images), model(images), rtol=1e-5, atol=1e-5)
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_model_without_batch_norm_is_compiled_too_and_keeps_its_weights_in_the_precision_of_autocast():
    torch.manual_seed(0)
    model, images = (
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5)),
        torch.rand(6, 3, 8, 8),
    )
    with inner_mode(model):
        following, note = make_following_copy(model, images, compile=lambda graph: graph)
        assert (note, following.folded) == ("", 0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            following.refresh()
            with Casts() as casts:
                following.network(images)
    assert casts.shapes == [(6, 3, 8, 8)]
