"""Each mask answers as the network behind it nearly always and is seen through, and the halves are fixed."""

import json

import pytest
import torch
from torch import nn

from benchmarks.zoo import KINDS, MASKS, NAMES, held_back, kind_of, main, member, table, wrapped
from benchmarks.zoo_networks import ORDINARY, QUICK
from benchmarks.zoo_opaque import Arrays
from robustdup import SampleRng, ThreatModel
from robustdup.attacks.cosine_pgd import cosine_pgd
from robustdup.attacks.guided import Guided
from robustdup.attacks.inner import find_inner, probing_images
from robustdup.attacks.losses import cw, misclassified
from robustdup.attacks.see_through import SeeThrough
from robustdup.attacks.straight_through import straight_through
from robustdup.config import DataOptions, TrainConfig, build
from robustdup.data.digits import load_builtin
from robustdup.models.load import ModelOptions
from robustdup.models.load import load_builtin as load_network

OTHER_WAY = (
    "views",
    "crops",
    "fading",
)  # whose gradient is rightly another one: of several views, or of the distance too
CLOSED = ("hidden-decoy",)  # whose number stays a bound
OFTEN_OTHER = ("sigmoids",)  # saturated scores are equal, and the first wins


@pytest.fixture(scope="module")
def digits():
    data = load_builtin("digits", DataOptions(split="test"))
    return load_network("digits-robust", ModelOptions()).eval(), data.images[:20], data.labels[:20]


@pytest.mark.parametrize("name", MASKS)
def test_masks_keep_the_answers(name, digits):
    network, images, _ = digits
    with torch.no_grad():
        same = (wrapped(name, network)(images).argmax(dim=1) == network(images).argmax(dim=1)).double().mean()
    assert same >= (0.5 if name in OFTEN_OTHER else 0.9)


class Blind(nn.Module):
    """A model with its own gradient, or none where it has none."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        return self.model(images) + 0 * images.sum()


def gradient(model, images, labels):
    images = images.clone().requires_grad_()
    return torch.autograd.grad(cw(model(images), labels).sum(), images)[0].nan_to_num().flatten(1)


@pytest.mark.parametrize("name", [name for name in MASKS if name not in (*OTHER_WAY, *CLOSED)])
def test_masks_are_seen_through(name, digits):
    network, images, labels = digits
    model = wrapped(name, network)
    inner, true = find_inner(model, probing_images(images)), gradient(network, images, labels)
    copies = [SeeThrough(model), SeeThrough(model, smooth=True, inner=inner)]
    found = [float(torch.cosine_similarity(gradient(copy, images, labels), true).mean()) for copy in copies]
    assert max(found) > 0.9


BY_ITSELF = (
    "staircase", "bytes", "jpeg", "turned", "median", "one-hot", "quantised", "ripple", "through-numpy", "decoy",
)  # fmt: skip


@pytest.mark.parametrize("name", BY_ITSELF)
def test_straight_through_finds_by_itself_what_a_stand_in_finds_by_hand(name, digits):
    network, images, labels = digits
    model, threat, rng = wrapped(name, network), ThreatModel("Linf", "0.2"), SampleRng(0, torch.arange(20))

    def broken(attack, attacked, **options):
        adv_images = attack(attacked, images, labels, threat, rng=rng, steps=10, **options)
        return int(misclassified(model(adv_images), labels).sum())

    by_hand = broken(cosine_pgd, Guided(network, model))
    assert by_hand > broken(cosine_pgd, Blind(model))
    assert broken(straight_through, model, targets=0) >= by_hand


def test_a_network_in_numpy_is_the_network(digits):
    network, images, _ = digits
    torch.testing.assert_close(Arrays(network)(images), network(images), rtol=1e-4, atol=1e-4)


def test_the_split_is_fixed_and_in_halves():
    assert len(set(NAMES)) == len(NAMES) >= 60
    assert len(KINDS["ordinary"]) >= 20
    assert len(KINDS["trained"]) >= 10
    assert 0.3 < sum(map(held_back, NAMES)) / len(NAMES) < 0.7
    assert held_back("staircase")
    assert not held_back("one-hot")


@pytest.mark.parametrize("name", ORDINARY)
def test_recipes_are_recipes(name):
    build(TrainConfig, values={**QUICK, **ORDINARY[name]})


def test_the_command_writes_a_file_for_each_network_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.zoo.STRONG", "fgsm")
    words = ["--out", str(tmp_path), "--n", "4", "--half", "all", "--only", "digits-robust"]
    assert main(words) == 0
    row = json.loads((tmp_path / "digits-robust.json").read_text(encoding="utf-8"))
    assert (row["kind"], row["n"], row["reliable"]) == (kind_of("digits-robust"), 4, True)
    (tmp_path / "digits-robust.json").write_text(json.dumps({**row, "reported": 0.123}), encoding="utf-8")
    assert main(words) == 0
    assert "| digits-robust | ordinary | 12.3% |" in capsys.readouterr().out


def test_sums_count_what_is_believed():
    row = {
        "name": "bits", "kind": "masked", "held_back": True, "reported": 0.8, "true": 0.7, "reliable": True,
        "escalated": True, "passes": 90, "looks": 40, "n": 10,
    }  # fmt: skip
    lines = table([row, {**row, "reliable": False, "reported": 1.0, "true": 0.0, "passes": 30}]).splitlines()
    assert lines[2].startswith(
        "| held back | masked | 2 | 2 | 1 | 10.00 | 10.0 | 6 |"
    )  # AutoAttack's: of 0.7 and 0 a sample
    assert lines[6].startswith("| bits | masked | 80.0% | 70.0% | yes | yes | 90 |")


def test_a_closed_member_comes_with_what_is_known(tmp_path):
    assert member("arrays", tmp_path).known is not None
    assert member("forest", tmp_path).known is None
