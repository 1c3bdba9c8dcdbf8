import copy

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from robustdup.errors import UserError
from robustdup.models.attack_copy import prepare as prepare_module
from robustdup.models.attack_copy.fold import fold_batchnorm
from robustdup.models.attack_copy.prepare import prepare
from robustdup.models.networks import Normalise, SmallCNN

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def images(n=8, shape=(3, 12, 12)):
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def with_statistics(model, seed=0):
    """Give a model weights and BatchNorm statistics that matter, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.4, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(0, 0.3, generator=generator)
    return model.eval()


def block(channels, out, **options):
    return [nn.Conv2d(channels, out, 3, padding=1, **options), nn.BatchNorm2d(out), nn.ReLU()]


def bn_cnn(channels=3, extra=()):
    torch.manual_seed(0)
    layers = [*block(channels, 8, bias=False), *block(8, 8, groups=4), *extra, nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return with_statistics(nn.Sequential(*layers, nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5)))


def norms_in(model):
    return [module for module in model.modules() if isinstance(module, NORMS)]


def gradient(model, points):
    points = points.clone().requires_grad_(True)
    return torch.autograd.grad((model(points) * torch.arange(1, 6)).sum(), points)[0]


def assert_same(model, prepared, points):
    assert torch.allclose(prepared(points), model(points), atol=1e-4, rtol=1e-4)
    one, two = gradient(model, points), gradient(prepared, points)
    assert two.is_contiguous()
    assert torch.allclose(one, two, atol=1e-4 * float(one.abs().max()), rtol=1e-3)


class Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = bn_cnn()

    def forward(self, images):
        return self.net(images) if images.mean() > 0.5 else self.net(images) * 2


class SharedConv(nn.Module):
    """One convolution before two BatchNorms, one BatchNorm after two convolutions, weights read besides a call."""

    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 5)

    def forward(self, images):
        first = self.one(self.conv(images)).relu()
        second = self.two(self.conv(first)).relu()
        third = self.two(self.other(second)).relu()
        fourth = nn.functional.conv2d(third, self.conv.weight, padding=1) + self.conv(third)
        return self.head(fourth.mean(dim=(2, 3)))


class StraightThrough(torch.autograd.Function):
    """Rounds to 16 levels and lets the gradient through, twice as long."""

    @staticmethod
    def forward(ctx, images):
        return (images * 15).round() / 15

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Rounding(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = bn_cnn()

    def forward(self, images):
        return self.net(StraightThrough.apply(images))


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = bn_cnn()

    def forward(self, images):
        return self.net(images + 0.1 * torch.randn(images.shape[0], 3, 12, 12))


class FreshDraw(Noisy):
    """A draw made without the images: tracing would freeze it."""

    def forward(self, images):
        return self.net(images + 0.1 * torch.randn(1, 3, 12, 12))


class BrokenRows(nn.Module):
    """NaN for bright images."""

    def __init__(self):
        super().__init__()
        self.net = bn_cnn()

    def forward(self, images):
        bright = images.mean(dim=(1, 2, 3), keepdim=True) > 0.7
        return self.net(torch.where(bright, torch.full_like(images, torch.nan), images))


class Option(nn.Module):
    """Further arguments with defaults, and a branch on them, which tracing must take as called."""

    def __init__(self):
        super().__init__()
        self.net = bn_cnn()

    def forward(self, images, features=False):
        return images if features else self.net(images)


def resnet():
    torch.manual_seed(0)
    return with_statistics(resnet18(num_classes=5))


def frozen_norm():
    """A BatchNorm that is left in training mode: it uses the statistics of the batch."""
    model = bn_cnn()
    model[4].train()
    return model


@pytest.mark.parametrize(
    ("build", "shape", "folded"),
    [
        (bn_cnn, (3, 12, 12), 3),
        (lambda: bn_cnn(channels=1), (1, 9, 14), 3),
        (lambda: nn.Sequential(Normalise([0.5] * 3, [0.2] * 3), bn_cnn()).eval(), (3, 16, 8), 3),
        (resnet, (3, 32, 32), 20),
        (Branch, (3, 12, 12), 0),
        (lambda: with_statistics(SharedConv()), (3, 12, 12), 3),
        (Rounding, (3, 12, 12), 0),
        (Option, (3, 12, 12), 3),
        (lambda: SmallCNN(classes=5).eval(), (1, 8, 8), 0),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten(), nn.Linear(400, 5)).eval(),
         (3, 12, 12), 1),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 5), nn.BatchNorm1d(5, affine=False)).eval(), (3, 12, 12), 1),
        (lambda: nn.DataParallel(bn_cnn()).eval(), (3, 12, 12), 0),
    ],
)  # fmt: skip
def test_answers_and_gradients_stay(build, shape, folded):
    model = build()
    prepared = prepare(model, images(6, shape), micro_batch=8)
    assert (prepared.folded, prepared.error < 1e-4) == (folded, True), prepared.notes
    assert len(norms_in(prepared.model)) == len(norms_in(model)) - folded or isinstance(model, SharedConv)
    for n in (8, 3):
        assert_same(model, prepared.model, images(n, shape))
    if folded == 0 and norms_in(model):
        assert any("BatchNorm" in note for note in prepared.notes)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert torch.equal(prepared.model(images(4, shape)), copy.deepcopy(prepared.model)(images(4, shape)))


def test_the_original_is_untouched():
    model = bn_cnn()
    model[1].train()
    model[0].weight.requires_grad_(False)
    seen = []
    model[2].register_forward_hook(lambda *_: seen.append(1))
    model[0].bias = nn.Parameter(torch.zeros(8))
    model[0].bias.grad = torch.ones(8)
    state = copy.deepcopy(model.state_dict())
    flags = [(p.requires_grad, p.grad is None) for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    before = torch.get_rng_state(), torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    prepared = prepare(model, images(), micro_batch=8, precision="bf16")
    gradient(prepared.model, images())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert flags == [(p.requires_grad, p.grad is None) for p in model.parameters()]
    assert torch.equal(model[0].bias.grad, torch.ones(8))
    assert modes == [module.training for module in model.modules()]
    assert len(model[2]._forward_hooks) == 1
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before[1:]
    assert not {id(p) for p in model.parameters()} & {id(p) for p in prepared.model.parameters()}
    assert not any(p.requires_grad for p in prepared.model.parameters())


def test_batchnorm_in_training_mode_is_never_folded():
    model = frozen_norm()
    prepared = prepare(model, images(), micro_batch=8)
    assert prepared.folded == 2
    assert "1 of 3 BatchNorm layers do not fold and were left." in prepared.notes
    assert [norm.training for norm in norms_in(prepared.model)] == [True]
    assert_same(copy.deepcopy(model), prepared.model, images())


def test_dropout_that_is_on_stays_on():
    model = bn_cnn(extra=[nn.Dropout(0.5)])
    model[6].train()
    prepared = prepare(model, images(), micro_batch=8).model
    assert not torch.equal(prepared(images()), prepared(images()))
    torch.manual_seed(3)
    expected = model(images())
    torch.manual_seed(3)
    assert torch.allclose(prepared(images()), expected, atol=1e-4)


def test_hooks_still_run():
    model = bn_cnn()
    model[0].register_forward_hook(lambda module, args, output: output * 2)
    model.register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    prepared = prepare(model, images(), micro_batch=8)
    assert prepared.folded == 0
    assert any("hooks" in note for note in prepared.notes)
    assert_same(model, prepared.model, images())


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weight_normalisation_is_left_alone(wrap):
    model = bn_cnn()
    wrap(model[0])
    prepared = prepare(model, images(), micro_batch=8)
    assert prepared.folded == 2
    assert_same(model, prepared.model, images())


@pytest.mark.parametrize("build", [Noisy, FreshDraw])
def test_a_randomised_model_stays_random(build):
    prepared = prepare(build().eval(), images(), micro_batch=8, randomized=True, compile="on")
    assert (prepared.folded, prepared.compiled) == (0, "off")
    assert any("randomised" in note for note in prepared.notes)
    assert not torch.equal(prepared.model(images()), prepared.model(images()))


def test_a_frozen_draw_is_noticed():
    prepared = prepare(FreshDraw().eval(), images(), micro_batch=8)
    assert prepared.folded == 0
    assert any("changes the answers" in note for note in prepared.notes)
    assert not torch.equal(prepared.model(images()), prepared.model(images()))


def test_a_model_that_never_repeats_itself_is_only_copied():
    class Drifting(Noisy):
        generator = torch.Generator().manual_seed(0)

        def forward(self, images):
            return self.net(images + torch.rand(images.shape, generator=self.generator))

    prepared = prepare(Drifting().eval(), images(), micro_batch=8)
    assert prepared.folded == 0
    assert prepared.error != prepared.error
    assert any("repeat" in note for note in prepared.notes)


def test_rows_that_are_not_finite_stay_so():
    model, points = BrokenRows().eval(), images()
    points[2] = 0.9
    prepared = prepare(model, points, micro_batch=8)
    assert (prepared.folded, prepared.error < 1e-4) == (3, True), prepared.notes
    assert torch.equal(prepared.model(points).isnan(), model(points).isnan())
    assert prepared.model(points).isnan().any(dim=1).tolist() == [False, False, True, *[False] * 5]


def test_float64_weights_do_not_crash():
    model = bn_cnn().double()
    prepared = prepare(model, images(), micro_batch=8)
    assert prepared.error != prepared.error
    assert any("failed on the example images" in note for note in prepared.notes)
    assert torch.allclose(prepared.model(images().double()), model(images().double()))


def test_a_model_that_cannot_be_copied_is_attacked_itself():
    model = bn_cnn()
    model.handle = (step for step in range(3))  # generators cannot be copied
    prepared = prepare(model, images(), micro_batch=8, fold=False, channels_last=False)
    assert any("could not be copied" in note for note in prepared.notes)
    assert prepared.model is not model
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(prepared.model(images()), model(images()))


@pytest.mark.parametrize("damage", ["logits", "gradient"])
def test_a_wrong_fold_is_noticed_and_undone(monkeypatch, damage):
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, logits):
            return logits.clone()

        @staticmethod
        def backward(ctx, grad):
            return 1.1 * grad

    class Damaged(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, images):
            logits = self.net(images)
            return logits + 1e-3 * logits.abs().max() if damage == "logits" else Double.apply(logits)

    def wrong(model):
        net, count = fold_batchnorm(model)
        return Damaged(net), count

    monkeypatch.setattr(prepare_module, "fold_batchnorm", wrong)
    model = bn_cnn()
    prepared = prepare(model, images(), micro_batch=8)
    assert prepared.folded == 0
    assert any("changes the answers" in note for note in prepared.notes)
    assert_same(model, prepared.model, images())


def test_bf16_is_near_and_comes_back_as_float32():
    model = bn_cnn()
    prepared = prepare(model, images(), micro_batch=8, precision="bf16")
    assert prepared.precision == "bf16"
    logits = prepared.model(images())
    assert (logits.dtype, gradient(prepared.model, images()).dtype) == (torch.float32, torch.float32)
    assert torch.allclose(logits, model(images()), atol=0.1)
    assert 1e-4 < prepared.error < 0.1


def test_tf32_on_cpu_says_that_it_is_for_cuda():
    prepared = prepare(bn_cnn(), images(), micro_batch=8, precision="tf32")
    assert prepared.precision == "fp32"
    assert any("TF32" in note for note in prepared.notes)


@pytest.mark.parametrize("allowed", ["highest", "medium"])
def test_fp32_holds_in_forward_and_backward_whatever_the_flags(allowed):
    seen = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images):
            seen.append(torch.get_float32_matmul_precision())
            return images.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(torch.get_float32_matmul_precision())
            return grad

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = bn_cnn()

        def forward(self, images):
            return self.net(Watch.apply(images))

    prepared = prepare(Watched().eval(), images(), micro_batch=8, fold=False).model
    seen.clear()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        points = images().requires_grad_(True)
        logits = prepared(points)
        for _ in range(2):
            torch.autograd.grad(logits.sum(), points, retain_graph=True)
        assert torch.get_float32_matmul_precision() == allowed
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"] * 3


def test_compiling_that_fails_leaves_the_copy_uncompiled(monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no compiler here\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    prepared = prepare(bn_cnn(), images(), micro_batch=8, compile="on")
    assert (prepared.compiled, prepared.folded) == ("off", 3)
    assert any("no compiler here" in note and "more" not in note for note in prepared.notes)
    assert_same(bn_cnn(), prepared.model, images())


def test_compiled_code_serves_its_shape_only(monkeypatch):
    calls = []

    def compiled(net, **options):
        assert options == {"dynamic": False, "options": {"fallback_random": True}}
        return lambda points: calls.append(tuple(points.shape)) or net(points)

    monkeypatch.setattr(torch, "compile", compiled)
    prepared = prepare(bn_cnn(), images(), micro_batch=8, compile="on")
    assert prepared.compiled == "default"
    calls.clear()
    assert_same(bn_cnn(), prepared.model, images(8))
    assert set(calls) == {(8, 3, 12, 12)}
    calls.clear()
    assert_same(bn_cnn(), prepared.model, images(5))
    assert calls == []


def test_compiling_is_off_on_cpu_unless_asked():
    assert prepare(bn_cnn(), images(), micro_batch=8).compiled == "off"
    prepared = prepare(bn_cnn(), images(), micro_batch=8, compile="cudagraphs")
    assert prepared.compiled == "off"
    assert any("CUDA graphs are for CUDA" in note for note in prepared.notes)


def test_switched_off_steps_are_not_done():
    prepared = prepare(bn_cnn(), images(), micro_batch=8, fold=False, channels_last=False)
    assert (prepared.folded, prepared.channels_last, prepared.error) == (0, False, 0.0)
    assert len(norms_in(prepared.model)) == 3


@pytest.mark.parametrize(("option", "near"), [({"compile": "of"}, "off"), ({"precision": "bf61"}, "bf16")])
def test_unknown_values_are_the_users_mistake(option, near):
    with pytest.raises(UserError, match=near):
        prepare(bn_cnn(), images(), micro_batch=8, **option)
