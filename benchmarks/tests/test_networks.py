"""The networks of the bench: the recipe learns and repeats itself, and the masks hide gradients without changing answers."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import benchmarks.masked
import benchmarks.networks
from benchmarks.masked import AFTER, BEFORE, MASKS, TUNING, masked, stand_in
from benchmarks.networks import (
    RECIPES,
    Recipe,
    accuracies,
    augment,
    cnn,
    main,
    resnet,
    silu,
    train,
    training_examples,
)
from robustdup.attacks.losses import cw, dlr
from robustdup.attacks.passes import Passes
from robustdup.attacks.pgd import pgd
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin
from robustdup.errors import UserError
from robustdup.models.load import load_model
from robustdup.plugins import load_plugins
from robustdup.rng import SampleRng
from robustdup.threat import ThreatModel

EASY = ThreatModel("Linf", "16/255")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The networks are too small to gain from threads, which cost much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def colours(count, seed):
    """Noisy images whose mean colour is one of the eight corners of a cube of side 0.4: uint8 (N, 3, 32, 32), labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 8, (count,), generator=generator)
    corner = torch.stack([labels >> channel & 1 for channel in range(3)], dim=1).view(-1, 3, 1, 1)
    noise = 0.1 * torch.randn(count, 3, 32, 32, generator=generator)
    return ((0.3 + 0.4 * corner + noise).clamp(0, 1) * 255).round().to(torch.uint8), labels


def tiny(**changes):
    return Recipe(**({"factory": lambda: cnn(8), "seed": 0, "batch_size": 32, "epochs": 1} | changes))


# The recipe


@pytest.mark.parametrize("name", RECIPES)
def test_networks_have_ten_logits_normalisation_inside_and_a_modest_cost(name):
    from torch.utils.flop_counter import FlopCounterMode

    network = RECIPES[name].factory().eval()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        logits = network(images)
    assert logits.shape == (2, 10)
    assert 2e6 < counter.get_total_flops() / 2 / len(images) < 11e6  # two operations a multiply-add
    assert torch.equal(network.head(network.features(images)), logits)
    assert any(isinstance(part, nn.BatchNorm2d) for part in network.modules())
    shifted = network.normalise(images) * network.normalise.std + network.normalise.mean
    assert torch.allclose(shifted, images, atol=1e-6)


def test_names_for_tuning_and_held_out_differ_in_more_than_seed():
    shapes = {name: [tuple(p.shape) for p in recipe.factory().parameters()] for name, recipe in RECIPES.items()}
    tuned, held = [n for n in shapes if n.endswith("-a")], [n for n in shapes if n.endswith("-b")]
    assert len(tuned) >= 2
    assert len(held) >= 3
    assert all(shapes[a] != shapes[b] for a in tuned for b in held)
    assert len({recipe.seed for recipe in RECIPES.values()}) == len(RECIPES)


KINDS = {
    "standard": {},
    "n-fgsm": {"threat": EASY},
    "pgd": {"threat": EASY, "steps": 2},
    "trades": {"threat": EASY, "steps": 2, "trades": 4.0},
    "l2": {"threat": ThreatModel("L2", "0.5"), "steps": 2},
}


@pytest.mark.parametrize("kind", KINDS)
def test_training_repeats_itself_and_leaves_the_global_generator_alone(kind):
    pixels, labels = colours(96, seed=1)
    before = torch.get_rng_state()
    one, two = (train(tiny(**KINDS[kind]), pixels, labels).state_dict() for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[name], two[name]) for name in one)
    other = train(tiny(**KINDS[kind], seed=1), pixels, labels).state_dict()
    assert not torch.equal(one["head.weight"], other["head.weight"])


@pytest.mark.parametrize("factory", [cnn, resnet, silu])
def test_training_lowers_the_loss_and_gains_robust_accuracy(factory):
    pixels, labels = colours(480, seed=1)
    test_pixels, test_labels = colours(100, seed=2)
    lines = []
    recipe = tiny(factory=lambda: factory(8), threat=EASY, epochs=6)
    trained = train(recipe, pixels, labels, progress=lines.append)
    losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
    assert len(losses) == 6
    assert losses[-1] < 0.7 * losses[0]
    images = test_pixels.float() / 255
    clean, robust = accuracies(trained, images, test_labels, EASY, steps=5)
    assert clean > 0.9
    assert 0.6 < robust <= clean
    assert accuracies(recipe.factory(), images, test_labels, EASY, steps=5)[1] < 0.2
    wide = accuracies(trained, images, test_labels, ThreatModel("Linf", "80/255"), steps=5)
    assert wide[1] < 0.2  # and a ball that holds the other colours leaves nothing


@pytest.mark.parametrize(("norm", "eps", "steps"), [("Linf", "8/255", 3), ("L2", "0.5", 1), ("L2", "0.5", 3)])
def test_training_examples_stay_in_the_ball_and_raise_the_loss(norm, eps, steps):
    threat, network = ThreatModel(norm, eps), cnn(8).eval()
    pixels, labels = colours(16, seed=3)
    images = pixels.float() / 255

    def loss(logits):
        return F.cross_entropy(logits, labels, reduction="sum")

    def examples(steps):
        return training_examples(
            network, images, loss, threat, steps=steps, generator=torch.Generator().manual_seed(0)
        )  # fmt: skip

    adv_images = examples(steps)
    assert not adv_images.requires_grad
    assert not threat.violations(images, adv_images).any.any()
    start = images + threat.radius / 2 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1)).sign()
    if norm == "L2":
        start = threat.project(images, start)
    with torch.no_grad():
        assert loss(network(adv_images)) > loss(network(start))


def test_one_step_reaches_beyond_the_ball_as_n_fgsm_says():
    threat, network = ThreatModel("Linf", "8/255"), cnn(8).eval()
    images = torch.full((4, 3, 32, 32), 0.5)
    adv_images = training_examples(
        network, images, lambda logits: logits[:, 0].sum(), threat, steps=1, generator=torch.Generator().manual_seed(0)
    )
    reach = (adv_images - images).abs() * 255
    assert 20 < reach.max() <= 24 + 1e-3
    with pytest.raises(UserError, match="Choose Linf or L2"):
        training_examples(
            network, images, torch.sum, ThreatModel("L1", 12), steps=2, generator=torch.Generator()
        )  # fmt: skip


def test_augmented_images_are_crops_of_the_padded_image_and_of_its_mirror():
    pixels = torch.arange(3 * 8 * 8, dtype=torch.uint8).view(1, 3, 8, 8).expand(200, -1, -1, -1)
    images = (augment(pixels, torch.Generator().manual_seed(0), padding=1) * 255).round().to(torch.uint8)
    padded = F.pad(pixels[:1], (1,) * 4)[0]
    crops = [padded[:, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    allowed = {crop.contiguous().numpy().tobytes() for crop in crops + [crop.flip(2) for crop in crops]}
    seen = {image.contiguous().numpy().tobytes() for image in images}
    assert seen == allowed  # 200 draws of 18: each is seen


def test_command_writes_weights_that_load_as_a_spec(tmp_path, monkeypatch, capsys):
    make_dataset(tmp_path / "data")
    monkeypatch.setitem(
        RECIPES, "cnn-a", Recipe(RECIPES["cnn-a"].factory, seed=1, threat=EASY, batch_size=16, epochs=1)
    )
    main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "nets"), "--names", "cnn-a", "--test-points", "8"])
    seen = json.loads((tmp_path / "nets" / "cnn-a.json").read_text())
    assert seen["n"] == 8
    assert 0 <= seen["pgd20_accuracy"] <= seen["clean_accuracy"] <= 1
    assert "epoch 1 of 1" in capsys.readouterr().out
    weights = tmp_path / "nets" / "cnn-a.safetensors"
    images = torch.rand(4, 3, 32, 32)
    plain = load_model(f"{benchmarks.networks.__file__}:cnn_a@{weights}", registry=load_plugins())
    behind = load_model(f"{benchmarks.masked.__file__}:cnn_a_scaled@{weights}", registry=load_plugins())
    with torch.no_grad():
        assert torch.equal(plain.eval()(images) * 1e4, behind.eval()(images))
    with pytest.raises(UserError, match="Did you mean 'cnn-a'"):
        main(["--data", "x", "--out", str(tmp_path), "--names", "cnn-aa"])


def make_dataset(folder):
    from PIL import Image

    for split, count in (("train", 32), ("test", 10)):
        pixels, labels = colours(count, seed=4)
        for row, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            place = folder / split / f"class{int(label)}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(place / f"{row}.png")
    for label in range(10):  # every split knows every class
        for split in ("train", "test"):
            place = folder / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32)).save(place / "black.png")


# The masks


@pytest.fixture(scope="module")
def digits():
    registry = load_plugins()
    data = load_builtin("digits", DataOptions(split="test"))
    return load_model("builtin:digits-robust", registry=registry).eval(), data.images[:200], data.labels[:200]


def gradients(network, images, labels, loss=None):
    images = images.detach().requires_grad_(True)
    values = (
        F.cross_entropy(network(images), labels, reduction="none") if loss is None else loss(network(images), labels)
    )
    return torch.autograd.grad(values.sum(), images)[0]


def predictions(network, images):
    with torch.no_grad():
        return network(images).argmax(dim=1)


@pytest.mark.parametrize("name", MASKS)
def test_masks_keep_the_predictions_and_the_wrapped_model(name, digits):
    network, images, _ = digits
    state = copy.deepcopy(network.state_dict())
    wrapped = masked(name, network)
    same = (predictions(wrapped, images) == predictions(network, images)).double().mean()
    assert same == 1 if name in ("scaled", "clipped", "quantised", "thermometer") else same >= 0.98
    assert torch.equal(predictions(wrapped, images), predictions(wrapped, images))
    assert torch.equal(predictions(stand_in(name, network), images), predictions(wrapped, images))
    assert wrapped.state_dict().keys() == state.keys()
    assert all(torch.equal(state[key], value) for key, value in wrapped.state_dict().items())


# How each mask hides the gradient of the cross-entropy, at images with some noise that are still classified rightly.
# zero rows: share of rows without any gradient; agree: share of pixels with a gradient whose sign is the unmasked one's.
def hidden(name, digits, loss=None):
    network, images, labels = digits
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    noisy = (images + 0.2 * noise).abs().clamp(max=0.99)  # away from 0 and 1, where pixels stand in line
    right = (predictions(network, noisy) == labels) & (predictions(masked(name, network), noisy) == labels)
    noisy, labels = noisy[right], labels[right]
    honest, seen = gradients(network, noisy, labels, loss), gradients(masked(name, network), noisy, labels, loss)
    zero_rows = (seen.flatten(1) == 0).all(dim=1).double().mean()
    zero_pixels = (seen == 0).double().mean()
    agree = ((seen.sign() == honest.sign()) & (seen != 0)).double().sum() / (seen != 0).sum().clamp(min=1)
    return float(zero_rows), float(zero_pixels), float(agree)


def test_scaled_underflows_in_the_cross_entropy_alone(digits):
    assert hidden("scaled", digits)[0] > 0.9
    zero_rows, _, agree = hidden("scaled", digits, dlr)
    assert zero_rows == 0
    assert agree > 0.99


def test_quantised_has_no_gradient_for_any_loss(digits):
    assert hidden("quantised", digits)[0] == 1
    assert hidden("quantised", digits, cw)[0] == 1


def test_clipped_is_flat_for_any_loss(digits):
    assert hidden("clipped", digits)[0] > 0.8
    assert hidden("clipped", digits, cw)[0] > 0.8


def test_thermometer_shows_a_gradient_at_few_pixels(digits):
    zero_rows, zero_pixels, agree = hidden("thermometer", digits)
    assert zero_rows < 0.2
    assert zero_pixels > 0.8
    assert agree > 0.9  # where there is one it is right: what is hidden is the rest


def test_shattered_points_the_wrong_way_nearly_half_of_the_time(digits):
    for loss in (None, cw):
        zero_rows, zero_pixels, agree = hidden("shattered", digits, loss)
        assert zero_rows == 0
        assert zero_pixels < 0.2
        assert 0.4 < agree < 0.6


def test_no_mask_agrees_with_itself_so_that_the_measure_can_fail(digits, monkeypatch):
    monkeypatch.setitem(AFTER, "scaled", nn.Identity)
    zero_rows, _, agree = hidden("scaled", digits)
    assert zero_rows == 0
    assert agree == 1


@pytest.mark.parametrize("name", MASKS)
def test_pgd_is_fooled_by_the_mask_and_the_stand_in_undoes_it(name, digits):
    network, images, labels = digits
    threat = ThreatModel("Linf", "0.2")

    def survivors(attacked):
        judged = masked(name, network)
        rng = SampleRng(0, torch.arange(len(labels)))
        adv_images = pgd(Passes(attacked, 64), images, labels, threat, rng=rng, steps=10)
        return float((predictions(judged, adv_images) == labels).double().mean())

    behind, honest = survivors(masked(name, network)), survivors(stand_in(name, network))
    assert behind > honest + 0.15  # the mask makes the network look more robust than it is


@pytest.mark.parametrize("name", BEFORE)
def test_masks_of_images_stay_near_them(name):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (BEFORE[name]()(images) - images).abs().max() <= 0.5 / 16 + 1e-6


def test_factories_by_name_and_the_nearest_name():
    assert set(TUNING) < set(MASKS) == set(BEFORE) | set(AFTER)
    file = Path(benchmarks.masked.__file__)
    network = load_model(f"{file}:digits_robust_quantised", registry=load_plugins())
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 10)
    assert benchmarks.masked.silu_b_clipped()(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    with pytest.raises(UserError, match="Did you mean 'quantised'"):
        masked("quantized", network)
    with pytest.raises(UserError, match="cnn_a_shatered"):
        load_model(f"{file}:cnn_a_shatered", registry=load_plugins())
