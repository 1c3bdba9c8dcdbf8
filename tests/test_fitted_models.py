"""Models as people bring them: classes in another order, normalisation outside, answers in other forms; the right values."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import robustdup
from robustdup.data.dataset import from_tensors
from robustdup.errors import Unavailable
from robustdup.jobs import usual_classes
from tests.raising import raises

# Grey images of one value each; the network says whether it is above 0.5, by a margin of 2 |value - 0.5| in steep units.
VALUES = torch.linspace(0.3, 0.7, 40)
IMAGES = VALUES.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
LABELS = (VALUES > 0.5).long()
ROBUST = float(((VALUES - 0.5).abs() > 0.1).double().mean())  # at Linf 0.1


def same(tensor):
    return tensor


class Bright(nn.Module):
    """Logits (dark, bright) of images in [0, 1]; `answer` makes another form of them."""

    def __init__(self, answer=same, take=same):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.answer, self.take = answer, take

    def forward(self, images):
        value = self.weight * self.take(images).mean(dim=(1, 2, 3)) - 0.5
        return self.answer(torch.stack([-value, value], dim=1) * 10)


def evaluated(model, data=IMAGES, labels=LABELS, **options):
    options = {"eps": "0.1", "attacks": "pgd(steps=10)", "diagnostics": False, "micro_batch": 8, **options}
    labels = None if not isinstance(data, torch.Tensor) else labels
    return robustdup.evaluate(model.eval(), data, labels, **options)


def right(record):
    return record.clean_accuracy.value == 1.0 and record.robust_accuracy.value == pytest.approx(ROBUST)


# --- classes by name ---


def named(model, names):
    model.class_names = names
    return model


def test_outputs_in_another_order_are_mapped_by_name_and_the_record_says_so():
    data = from_tensors(IMAGES, 1 - LABELS, class_names=["Bright", "dark"])
    model = named(Bright(), ["dark", "bright"])
    record = evaluated(model, data).record
    assert right(record)
    assert record.model.class_order == [1, 0]
    assert record.model.architecture == "Bright"
    assert "Bright 0 = output 1" in record.events[0]
    ignored = evaluated(model, data, class_names="ignore").record
    assert ignored.clean_accuracy.value == 0.0
    assert ignored.model.class_order is None


def test_a_part_of_the_models_classes_and_the_worker_sees_the_same():
    data = from_tensors(IMAGES[LABELS == 1], LABELS[LABELS == 1] * 0, class_names=["bright"])
    model = named(Bright(), ["dark", "bright"])
    record = evaluated(model, data, workers=2).record
    assert record.clean_accuracy.value == 1.0
    assert record.robust_accuracy.value == pytest.approx(ROBUST)
    assert record.model.class_order == [1, 0]


def test_classes_that_the_model_does_not_know_are_refused_and_no_shared_name_is_a_serious_sign():
    model = named(Bright(), ["dark", "bright"])
    with raises("other-classes", ValueError, "'purple'"):
        evaluated(model, from_tensors(IMAGES, LABELS, class_names=["purple", "dark"]))
    record = evaluated(model, from_tensors(IMAGES, LABELS, class_names=["noir", "blanc"])).record
    assert right(record)
    assert [(sign.code, sign.severity) for sign in record.diagnostics] == [("class_names", "serious")]


class NearestValue(nn.Module):
    """Ten classes by the value of a grey image, the first the darkest."""

    def forward(self, images):
        centres = (torch.arange(10) + 0.5) / 10
        return -100 * (images.mean(dim=(1, 2, 3))[:, None] - centres).square()


def test_names_of_cifar10_in_the_order_of_letters_are_a_sign_where_its_own_order_fits_better():
    folders = sorted(["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"])
    cifar = ["plane", "car", *[name for name in folders if name not in ("plane", "car")]]
    labels = torch.arange(10).repeat(2)
    images = ((labels + 0.5) / 10).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    in_folders = torch.tensor([folders.index(cifar[label]) for label in labels.tolist()])
    options = {"attacks": "fgsm", "eps": "0.01", "micro_batch": 20}
    found = evaluated(NearestValue(), from_tensors(images, in_folders, class_names=folders), **options)
    share = float((in_folders == labels).double().mean())
    (sign,) = [sign for sign in found.diagnostics if sign.code == "class_names"]
    assert sign.severity == "serious"
    assert (
        f"{share:.0%} of some images are right, in CIFAR-10's own order (airplane, automobile, bird, …) 100%"
        in sign.message
    )
    fits = evaluated(NearestValue(), from_tensors(images, labels, class_names=folders), **options)
    assert not [sign for sign in fits.diagnostics if sign.code == "class_names"]
    few = from_tensors(images[labels < 3], labels[labels < 3], class_names=["ape", "bee", "cow"])
    assert "3 classes, the model 10 outputs" in " ".join(evaluated(NearestValue(), few, **options).events)


def test_data_without_names_say_nothing():
    assert usual_classes.by_usual_order([], 10, lambda order: 1.0) == usual_classes.ClassMatch()
    found = evaluated(NearestValue(), IMAGES, (IMAGES.mean(dim=(1, 2, 3)) * 10).long(), attacks="fgsm", eps="0.01")
    assert not [sign for sign in found.diagnostics if sign.code == "class_names"]


def test_wordnet_ids_are_imagenets_outputs(monkeypatch):
    def missing(subset):
        raise Unavailable("not here")

    names, whole = ["n01443537", "n01440764"], [f"n{2000000 + number:08d}" for number in range(1000)]
    monkeypatch.setattr(usual_classes, "synsets", lambda subset: ["n01440764", "n01443537", *whole[2:]])
    match = usual_classes.by_usual_order(names, 1000, lambda order: 1.0)
    assert (match.order, match.doubtful) == ((1, 0, *range(2, 1000)), False)
    monkeypatch.setattr(usual_classes, "synsets", missing)
    match = usual_classes.by_usual_order(names, 1000, lambda order: 1.0)
    assert (match.order, match.doubtful) == (None, True)


def test_evidence_of_a_mapped_model_is_verified_from_memory(tmp_path):
    from robustdup.evidence.bundle import write_bundle

    data = from_tensors(IMAGES, 1 - LABELS, class_names=["bright", "dark"])
    model = named(Bright(), ["dark", "bright"])
    evaluated(model, data, out=tmp_path / "run")
    write_bundle(tmp_path / "run", tmp_path / "bundle")
    verified = robustdup.verify(tmp_path / "bundle", model.eval(), IMAGES, 1 - LABELS)
    assert verified.accepted
    assert verified.robust_accuracy == pytest.approx(ROBUST)


# --- normalisation outside ---


def normalised(mean, std):
    return Bright(take=lambda images: images * std + mean)


def test_normalize_is_put_before_the_model():
    model = normalised(0.2860, 0.3530)
    record = evaluated(model, normalize="fashion-mnist").record
    assert right(record)
    assert record.config["normalize"] == "fashion-mnist"
    assert right(evaluated(model, normalize="0.2860,0.3530").record)


def test_where_few_are_right_the_normalisation_that_fits_is_named_before_the_attacks():
    told = []
    record = evaluated(normalised(0.0, 1 / 255), progress=told.append).record
    assert record.clean_accuracy.value == 0.5
    sign = record.diagnostics[0]
    assert (sign.code, sign.severity) == ("normalisation", "serious")
    assert "Clean accuracy is 50.0%; with --normalize 0..255 it is 100.0% on 40 samples" in sign.message
    assert "--normalize 0..255" in told[0].message
    other = evaluated(Bright(), normalize="0..255").record.diagnostics[0].message
    assert "50.0% with --normalize 0..255; with --normalize none it is 100.0%" in other
    assert not evaluated(Bright()).record.diagnostics


# --- answers in other forms ---


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (lambda logits: {"logits": logits, "features": logits[:, :1]}, "'logits'"),
        (lambda logits: {"y": logits}, "'y'"), (lambda logits: (logits, None), "only tensor"),
        (lambda logits: SimpleNamespace(logits=logits), "SimpleNamespace"),
        (lambda logits: logits[:, 1:] - logits[:, :1], "one output"), (lambda logits: logits[:, 1] - logits[:, 0], "one output"),
    ],
    ids=["mapping", "only-key", "tuple", "object", "one-logit", "flat"],
)  # fmt: skip
def test_answers_that_hold_logits(answer, word):
    record = evaluated(Bright(answer)).record
    assert right(record)
    assert word in record.events[0]
    assert record.model.num_classes == 2


def test_one_logit_has_the_probability_that_its_sigmoid_says():
    from robustdup.models.adapt import Adaptation, adapted

    logit = torch.linspace(-3, 3, 7)[:, None]
    both = adapted(nn.Identity(), Adaptation(one_logit=True))(logit)
    torch.testing.assert_close(both.softmax(dim=1)[:, 1:], logit.sigmoid())


def test_masked_classes_are_wrong_and_cannot_be_a_prediction():
    masked = torch.tensor([0.0, 0.0, -torch.inf])
    model = Bright(lambda logits: torch.cat([logits, logits[:, :1] + 50], dim=1) + masked)
    attacks = "apgd-ce(steps=5),apgd-dlr(steps=5),pgd(steps=10),fab-t(steps=5),square(queries=20)"
    record = evaluated(model, attacks=attacks).record
    assert right(record)
    assert record.n_undecided == 0
    assert any("classes 2" in event for event in record.events)
    labels = LABELS.clone()
    labels[:10] = 2
    assert evaluated(model, labels=labels).record.clean_accuracy.value == 0.75


def test_rows_of_nan_are_wrong_counted_and_said():
    dark = IMAGES.mean(dim=(1, 2, 3)) < 0.35
    model = Bright(take=lambda images: torch.where(images.detach() < 0.35, torch.nan, images))
    result = evaluated(model, eps="0.01")
    assert result.record.clean_accuracy.value == pytest.approx(1 - float(dark.double().mean()))
    assert result.record.n_undecided == 0
    assert f"on {int(dark.sum())} of 40 clean images" in result.record.events[0]


@pytest.mark.parametrize("how", [torch.no_grad, torch.inference_mode])
def test_a_forward_without_gradients_is_named_before_any_attack_and_black_boxes_may_run(how):
    class Still(Bright):
        def forward(self, images):
            with how():
                return super().forward(images)

    told = []
    with raises("no-gradient", ValueError, "no_grad", "--attacks square", "pgd"):
        evaluated(Still(), progress=told.append)
    assert not told
    assert evaluated(Still(), attacks="square(queries=50)").record.n_undecided == 0
    assert right(evaluated(Still(), attack_model=Bright().eval()).record)


def test_a_forward_with_a_device_or_a_batch_of_its_own_is_told_apart_from_wrong_shapes():
    def raising(text):
        def take(images):
            raise RuntimeError(text)

        return Bright(take=take)

    for text, advice in (
        ("Found no NVIDIA driver on your system.", "--device"),
        ("Expected all tensors to be on the same device, but found cuda:0 and cpu", "--device"),
        ("expected batch of 16, got 8", "--micro-batch"),
        ("mat1 and mat2 shapes cannot be multiplied (8x16 and 12x2)", "--grey"),
        ("no such luck", "torch.zeros(2, …)"),
    ):
        with raises("model-and-data", ValueError, text, advice):
            evaluated(raising(text))
