"""Examples of other tools: read in every layout that they save, and refused where scale, length or order do not fit."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import robustdup
from robustdup import UserError
from robustdup.cli.main import main
from robustdup.data.dataset import from_tensors
from robustdup.evidence.examples import read_examples, read_indices
from robustdup.evidence.match import match, nearest_index
from robustdup.threat import ThreatModel
from tests.raising import raises

N, EPS = 24, 8 / 255
THREAT = ThreatModel("Linf", "8/255")
CIFAR = [torch.tensor(values).view(-1, 1, 1) for values in ((0.2471, 0.2435, 0.2616), (0.4914, 0.4822, 0.4465))]
IMAGENET = [torch.tensor(values).view(-1, 1, 1) for values in ((0.229, 0.224, 0.225), (0.485, 0.456, 0.406))]


def smooth(n, seed):
    """Coloured images on the 8-bit grid that differ from each other as photographs do: a few large patches each."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(0.1 + 0.8 * coarse, size=16, mode="bilinear")
    return (images * 255).round() / 255


CLEAN = smooth(N, 0)
LABELS = torch.arange(N) % 10
ADV = (CLEAN + EPS * torch.sign(torch.rand(CLEAN.shape, generator=torch.Generator().manual_seed(1)) - 0.5)).clamp(0, 1)
DATA = from_tensors(CLEAN, LABELS)
NHWC = ADV.permute(0, 2, 3, 1).contiguous().numpy()
BYTES = (NHWC * 255).round().astype(np.uint8)


def matched(path, **options):
    return match(read_examples(path), DATA, THREAT, **options)


CONTENTS = {
    "a tensor": ADV,
    "needs gradients": ADV.clone().requires_grad_(),
    "half precision": ADV.half(),
    "AutoAttack": {"adv_complete": ADV},
    "AutoAttack with labels": {"adv_complete": ADV, "y_complete": LABELS},
    "torchattacks, floats": {"adv_inputs": ADV, "labels": LABELS, "save_type": "float"},
    "torchattacks, bytes": {"adv_inputs": (ADV * 255).round().to(torch.uint8), "labels": LABELS, "save_type": "int"},
    "x_adv": {"x_adv": ADV},
    "beside the clean ones": {"advs": ADV, "clean": CLEAN, "labels": LABELS},
    "one name of no meaning": {"result": ADV},
    "nested": {"Linf": {"adv": ADV, "y": LABELS}},
    "a pair": (ADV, LABELS),
    "a pair as a list": [ADV, LABELS],
    "with predictions": (ADV, LABELS, LABELS + 1),
    "batches": [ADV[:10], ADV[10:]],
    "batches with labels": [(ADV[:10], LABELS[:10]), (ADV[10:], LABELS[10:])],
    "dicts of batches": [{"adv": ADV[:10], "y": LABELS[:10]}, {"adv": ADV[10:], "y": LABELS[10:]}],
    "single images": list(ADV),
    "foolbox": (ADV + 0.01, ADV, torch.ones(N, dtype=torch.bool)),
    "foolbox with a list of one eps": ([ADV + 0.01], [ADV], torch.ones(1, N, dtype=torch.bool)),
    "channels last": ADV.permute(0, 2, 3, 1),
    "arrays": {"x_adv": ADV.numpy(), "y": LABELS.numpy()},
    "flat": ADV.flatten(1),
    "flat, channels last": ADV.permute(0, 2, 3, 1).flatten(1),
    "batches in one tensor": ADV.reshape(2, N // 2, 3, 16, 16),
    "labels in a column": {"images": ADV, "labels": LABELS[:, None]},
    "labels as floats": {"images": ADV, "labels": LABELS.double()},
    "labels from one": {"images": ADV, "labels": LABELS + 1},
    "width before height": ADV.transpose(2, 3),
    "width, height, channels": ADV.permute(0, 3, 2, 1),
    "samples along the last axis": ADV.permute(2, 3, 1, 0),
    "opaque": torch.cat([ADV.permute(0, 2, 3, 1), torch.ones(N, 16, 16, 1)], dim=3),
    "an image under each number": {i: ADV[i] for i in range(N)},
    "an image under each name": {f"img_{i}": ADV[i] for i in range(N)},
    "dicts of samples": [{"image": ADV[i], "label": int(LABELS[i])} for i in range(N)],
    "pairs of samples": [(ADV[i], int(LABELS[i])) for i in range(N)],
    "pairs of tensors": [(ADV[i], LABELS[i]) for i in range(N)],
    "bfloat16, half as near": ADV.bfloat16(),
    "beside the clean ones, by names of their own": {"x_test": CLEAN, "x_test_adv": ADV},
    "clean and perturbed": {"original": CLEAN, "perturbed": ADV, "y": LABELS},
    "one-hot labels": {"images": ADV, "labels": torch.nn.functional.one_hot(LABELS, 10).float()},
}


@pytest.mark.parametrize("name", CONTENTS)
def test_files_of_torch_are_read(tmp_path, name):
    torch.save(CONTENTS[name], tmp_path / "adv.pth")
    found = matched(tmp_path / "adv.pth")
    assert (found.adv_images - ADV).abs().max() <= (2e-3 if "half" in name else 2.1e-3 if "bytes" in name else 1e-6)
    assert found.data is DATA


ARRAYS = {
    "channels first": ADV.numpy(),
    "channels last": NHWC,
    "doubles": ADV.double().numpy(),
    "big-endian": ADV.numpy().astype(">f4"),
    "bytes": BYTES,
    "0 to 255 as floats": 255 * NHWC,
    "0 to 255 as whole numbers": BYTES.astype(np.int64),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read(tmp_path, name):
    np.save(tmp_path / "adv.npy", ARRAYS[name])
    np.savez(tmp_path / "unnamed.npz", ARRAYS[name], LABELS.numpy())
    np.savez(tmp_path / "named.npz", x_adv=ARRAYS[name], y=np.eye(10)[LABELS.numpy()])
    for file in ("adv.npy", "unnamed.npz", "named.npz"):
        assert (matched(tmp_path / file).adv_images - ADV).abs().max() <= 2.1e-3
    assert bool(matched(tmp_path / "adv.npy").notes) == (ARRAYS[name].max() > 1)


def test_folders_of_pictures_are_read_by_the_numbers_in_their_names(tmp_path):
    for i in range(N):
        Image.fromarray(BYTES[i]).save(tmp_path / f"adv_{i}.png")  # adv_10 before adv_2 as text
    found = matched(tmp_path)
    assert (found.adv_images - ADV).abs().max() <= 0.5 / 255 + 1e-6
    for i in (0, 1, 3, 10):
        (tmp_path / f"adv_{i}.png").unlink()
    found = matched(tmp_path)  # of some samples only: then the numbers are their indices
    assert found.data.index.tolist() == [i for i in range(N) if i not in (0, 1, 3, 10)]
    assert (found.adv_images - ADV[found.data.index]).abs().max() <= 0.5 / 255 + 1e-6


def test_safetensors_with_an_index_are_read_in_any_order(tmp_path):
    order = torch.randperm(N, generator=torch.Generator().manual_seed(2))
    save_file({"images": ADV[order], "labels": LABELS[order], "index": order}, tmp_path / "adv.safetensors")
    found = matched(tmp_path / "adv.safetensors")
    assert torch.equal(found.adv_images, ADV[order])
    assert torch.equal(found.data.index, order)


WRONG_SCALES = {
    "normalised": ((ADV - CIFAR[1]) / CIFAR[0], "cifar10"),
    "-1 to 1": (2 * ADV - 1, "-1..1"),
    "divided twice": (ADV / 255, "1/255"),
    "imagenet": ((ADV - IMAGENET[1]) / IMAGENET[0], "imagenet"),
    "imagenet, channels last": (((ADV - IMAGENET[1]) / IMAGENET[0]).permute(0, 2, 3, 1), "imagenet"),
    "bytes less 128": (255 * ADV - 128, "-128..127"),
    "sixteen bits": (65535 * ADV, "65535"),
    "blue first": (ADV.flip(1), "bgr"),
    "blue first, 0 to 255": (255 * ADV.flip(1), "255+bgr"),
    "as Caffe takes them": ((255 * ADV - torch.tensor([123.68, 116.779, 103.939]).view(3, 1, 1)).flip(1), "caffe"),
}


@pytest.mark.parametrize("name", WRONG_SCALES)
def test_other_units_are_refused_and_read_when_named(tmp_path, name):
    images, scale = WRONG_SCALES[name]
    torch.save(images, tmp_path / "adv.pt")
    with raises("bad-scale", UserError, f"--scale {scale}"):
        matched(tmp_path / "adv.pt")
    assert (matched(tmp_path / "adv.pt", scale=scale).adv_images - ADV).abs().max() <= 1e-5
    assert (matched(tmp_path / "adv.pt", scale=scale).adv_images - ADV).abs().max() <= 1e-5
    with raises("unknown-scale", UserError, "cifar10"):
        matched(tmp_path / "adv.pt", scale="cifra10")


def test_units_of_no_name_are_told_by_a_line_and_read_by_numbers(tmp_path):
    mean, std = torch.tensor([0.3, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.7, 0.9, 0.5]).view(3, 1, 1)
    torch.save((ADV - mean) / std, tmp_path / "adv.pt")
    with raises("bad-scale", UserError, "about these means and deviations") as error:
        matched(tmp_path / "adv.pt")
    told = re.search(r"--scale ([-.,0-9]+)", str(error.value)).group(1).rstrip(".")
    assert [float(value) for value in told.split(",")] == pytest.approx([0.3, 0.5, 0.6, 0.7, 0.9, 0.5], abs=0.02)
    assert (matched(tmp_path / "adv.pt", scale="0.3,0.5,0.6,0.7,0.9,0.5").adv_images - ADV).abs().max() <= 1e-5
    with raises("bad-scale", UserError, "not in the units 'mnist'"):
        matched(tmp_path / "adv.pt", scale="mnist")


@pytest.mark.parametrize(("some", "other"), [(255 * ADV, "255"), (2 * ADV - 1, "-1..1")])
def test_a_part_in_other_units_is_refused(tmp_path, some, other):
    few = (torch.arange(N) < N // 4)[:, None, None, None]
    torch.save(torch.where(few, some, ADV), tmp_path / "adv.pt")
    with raises("bad-scale", UserError, f"example 0 looks like its sample as {other!r}"):
        matched(tmp_path / "adv.pt")


def test_what_was_added_is_no_example_and_rows_that_were_never_filled_are_refused(tmp_path):
    torch.save(ADV - CLEAN, tmp_path / "adv.pt")
    with raises("bad-scale", UserError, "clean + added"):
        matched(tmp_path / "adv.pt")
    torch.save(torch.where((torch.arange(N) < N // 4)[:, None, None, None], 0.0, ADV), tmp_path / "adv.pt")
    with raises("other-samples", UserError, f"{N // 4} of {N}"):
        matched(tmp_path / "adv.pt")


WRONG_ORDERS = {
    "reversed": ADV.flip(0),
    "moved by one": ADV.roll(1, 0),
    "two exchanged": ADV[[1, 0, *range(2, N)]],
    "of other samples": (smooth(N, 7) + 0.01).clamp(0, 1),
    "mirrored colours and rows": 1 - ADV.flip(2),
    "noise": torch.rand(ADV.shape, generator=torch.Generator().manual_seed(3)),
}


@pytest.mark.parametrize("name", WRONG_ORDERS)
def test_examples_that_do_not_look_like_their_samples_are_refused(tmp_path, name):
    torch.save(WRONG_ORDERS[name], tmp_path / "adv.pt")
    with raises("other-samples", UserError, "--indices"):
        matched(tmp_path / "adv.pt")


def test_an_example_far_outside_the_ball_is_judged_by_its_projection_not_refused(tmp_path):
    torch.save(CLEAN + 5 * (ADV - CLEAN), tmp_path / "adv.pt")
    assert matched(tmp_path / "adv.pt").data is DATA
    broken = ADV.clone()
    broken[3, 0, 0, 0] = torch.nan
    torch.save(broken, tmp_path / "nan.pt")
    assert matched(tmp_path / "nan.pt").adv_images.isnan().sum() == 1


def test_some_samples_only_need_their_indices(tmp_path):
    chosen = torch.tensor([2, 3, 11, 20])
    torch.save({"adv_images": ADV[chosen]}, tmp_path / "adv.pt")
    with raises("other-samples", UserError, "--indices"):
        matched(tmp_path / "adv.pt")
    examples = read_examples(tmp_path / "adv.pt")
    assert torch.equal(nearest_index(examples, DATA), chosen)
    named = match(type(examples)(examples.images, index=chosen), DATA, THREAT)
    assert torch.equal(named.data.index, chosen)
    assert "the samples of the file alone" in named.notes[0]
    everyone = match(type(examples)(examples.images, index=chosen), DATA, THREAT, whole=True)
    expected = CLEAN.clone()
    expected[chosen] = ADV[chosen]
    assert torch.equal(everyone.adv_images, expected)
    with raises("other-samples", UserError, "twice"):
        match(type(examples)(examples.images, index=torch.tensor([2, 2, 3, 4])), DATA, THREAT)
    with raises("other-samples", UserError, "sample 99"):
        match(type(examples)(examples.images, index=torch.tensor([2, 99, 3, 4])), DATA, THREAT)


def test_indices_are_read_from_words_and_files(tmp_path):
    (tmp_path / "indices.txt").write_text("0\n2, 5\n")
    np.save(tmp_path / "indices.npy", np.array([0, 2, 5]))
    torch.save(torch.tensor([0, 2, 5]), tmp_path / "indices.pt")
    for text in ("0,2,5", "0 2 5", *(str(tmp_path / f"indices.{ending}") for ending in ("txt", "npy", "pt"))):
        assert read_indices(text, 3).tolist() == [0, 2, 5]
    with raises("other-samples", UserError, "names 3 samples"):
        read_indices("0,2,5", 4)
    with raises("bad-value", UserError, "'nearest'"):
        read_indices("nearset", 3)


class Evil:
    def __reduce__(self):
        return print, ("a pickle ran",)


BAD_FILES = {
    "adv.pt": ({"images": Evil()}, "could run any code"),
    "two.pt": ({"a": ADV, "b": ADV}, "holds ['a', 'b']"),
    "sizes.pt": ([ADV, ADV[:, :, :8, :8]], "shapes"),
    "eps.pt": (([ADV, ADV], [ADV, ADV], torch.ones(2, N, dtype=torch.bool)), "2 values of eps"),
    "empty.pt": ([], "an empty list"),
    "text.pt": ("hello", "a str"),
    "none.pt": (ADV[:0], "expected (N, C, H, W)"),
    "complex.pt": (ADV.to(torch.complex64), "complex"),
    "small.pt": (ADV[:, :, :8, :8], "--resize"),
    "labels.pt": ({"images": ADV, "labels": torch.rand(N, 10)}, "no one-hot rows"),
    "predicted.pt": ({"images": ADV, "labels": LABELS.flip(0)}, "not those of the data"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_hold_no_examples_are_one_message(tmp_path, capsys, name):
    content, text = BAD_FILES[name]
    torch.save(content, tmp_path / name)
    with pytest.raises(UserError) as raised:
        matched(tmp_path / name)
    assert text in str(raised.value)
    assert capsys.readouterr().out == ""


def test_a_damaged_file_is_one_message(tmp_path):
    for name in ("adv.pt", "adv.npy", "adv.npz", "adv.safetensors"):
        (tmp_path / name).write_bytes(b"\x80\x02 not one")
        with raises("bad-examples", UserError, name):
            read_examples(tmp_path / name)
    with raises("bad-examples", UserError, "ending"):
        (tmp_path / "adv.pkl").write_bytes(b"")
        read_examples(tmp_path / "adv.pkl")


@pytest.fixture(scope="module")
def digits():
    """Twenty digits, one large step of FGSM, and the accuracy under it, computed apart."""
    model, data = robustdup.load_model("builtin:digits-standard"), robustdup.load_data("builtin:digits", n=20)
    images = data.images.clone().requires_grad_()
    torch.nn.functional.cross_entropy(model(images), data.labels).backward()
    adv = (data.images + 0.15 * images.grad.sign()).clamp(0, 1)
    right = (model(adv).argmax(1) == data.labels) & (model(data.images).argmax(1) == data.labels)
    return adv, right


DIGITS = ("--model", "builtin:digits-standard", "--data", "builtin:digits", "--eps", "0.15", "--json")


@pytest.mark.parametrize("form", ["nchw", "nhwc", "grey", "0..255", "pictures"])
def test_the_accuracy_of_digits_is_the_one_computed_apart(digits, tmp_path, capsys, form):
    adv, right = digits
    place = tmp_path / "adv.npy"
    if form == "pictures":
        place = tmp_path / "pictures"
        place.mkdir()
        for i, picture in enumerate((adv[:, 0] * 255).round().byte().numpy()):
            Image.fromarray(picture).save(place / f"{i}.png")
    else:
        layout = {"nchw": adv, "nhwc": adv.permute(0, 2, 3, 1), "grey": adv[:, 0], "0..255": adv * 255}
        np.save(place, layout[form].contiguous().numpy())
    assert main(["verify", str(place), *DIGITS]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["robust_accuracy"] == pytest.approx(float(right.double().mean()))
    assert 0 < found["at_most"] < 1


def test_a_file_of_successes_only_gives_the_accuracy_over_all_that_were_asked_for(digits, tmp_path, capsys):
    adv, right = digits
    chosen = (~right).nonzero()[:, 0]
    np.save(tmp_path / "adv.npy", adv[chosen].numpy())
    assert main(["verify", str(tmp_path / "adv.npy"), *DIGITS]) == 2
    assert "--indices" in " ".join(capsys.readouterr().err.split())
    indices = ",".join(str(i) for i in chosen.tolist())
    for given in (indices, "nearest"):
        assert main(["verify", str(tmp_path / "adv.npy"), *DIGITS, "--n", "20", "--indices", given]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["n"], found["at_most"]) == (20, pytest.approx(float(right.double().mean())))


def test_a_model_that_answers_at_random_is_judged_by_its_expected_accuracy(digits, tmp_path, capsys):
    adv, right = digits
    (tmp_path / "noisy.py").write_text(
        "import torch, robustdup\n"
        "class Noisy(torch.nn.Module):\n"
        "    def __init__(self): super().__init__(); self.net = robustdup.load_model('builtin:digits-standard')\n"
        "    def forward(self, images):\n"
        "        logits = self.net(images)\n"
        "        return torch.where(torch.rand(len(images), 1) < 0.5, logits, -logits)\n"  # wrong in half of the draws
    )
    np.save(tmp_path / "adv.npy", adv.numpy())
    words = ["--model", f"{tmp_path / 'noisy.py'}:Noisy", "--eps", "0.15", "--json", "--judge-draws", "100"]
    assert main(["verify", str(tmp_path / "adv.npy"), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["randomized"]
    # Of 20 samples each right in half of 100 draws the mean strays by 0.011; the others are sometimes right when turned.
    assert found["robust_accuracy"] == pytest.approx(0.5 * float(right.double().mean()), abs=0.05)


def test_scale_and_indices_are_not_for_bundles(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    assert main(["verify", str(tmp_path), "--scale", "255"]) == 2
    assert "for files of examples" in capsys.readouterr().err
