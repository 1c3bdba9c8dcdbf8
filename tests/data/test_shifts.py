"""Natural shifts: files as their authors publish them, and which outputs of an ImageNet classifier the classes mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import robustdup
from robustdup.data.shifts import synsets
from tests.raising import raises

pytest.importorskip("timm")


def pictures(root, folders):
    for name, value in folders.items():
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (32, 32), (value,) * 3).save(root / name / f"{number}.png")
    return root


class Thousand(nn.Module):
    """An ImageNet classifier that says `output` of bright images and `other` of dark ones, and 7 above all."""

    def __init__(self, output, other):
        super().__init__()
        self.output, self.other = output, other

    def forward(self, images):
        logits = torch.zeros(len(images), 1000) + 0 * images.flatten(1).sum(1, keepdim=True)
        bright = images.flatten(1).mean(dim=1)
        logits[:, self.output] = 10 * bright
        logits[:, self.other] = 10 * (1 - bright)
        logits[:, 7] = 100
        return logits


@pytest.mark.parametrize("name", ["a", "r"])
def test_classes_of_a_part_of_imagenet_mean_their_outputs(tmp_path, name):
    whole, part = synsets("imagenet"), synsets(f"imagenet-{name}")
    assert (len(whole), len(part), part) == (1000, 200, sorted(part))
    assert whole[7] == "n01514668"  # a cock, which is in neither
    assert whole[7] not in part
    first, last = part[3], part[150]
    root = pictures(tmp_path / "shift", {first: 200, last: 50})
    data = robustdup.load_data(f"imagenet-{name}:{root}")
    assert (len(data), data.labels.tolist(), len(data.class_names)) == (4, [3, 3, 150, 150], 200)
    assert [data.outputs[3], data.outputs[150]] == [whole.index(first), whole.index(last)]
    model = Thousand(whole.index(first), whole.index(last))
    result = robustdup.evaluate(model, data, eps="1/255", attacks="fgsm", progress=False, diagnostics=False)
    assert result.record.clean_accuracy.value == 1.0  # output 7 is not asked
    assert result.record.model.num_classes == 200
    assert result.record.model.class_order == list(data.outputs)
    assert any("compared alone" in event for event in result.record.events)


def test_other_folders_are_refused(tmp_path):
    root = pictures(tmp_path / "dogs", {"poodle": 10, "terrier": 20})
    with raises("other-classes", robustdup.UserError, "poodle", "WordNet"):
        robustdup.load_data(f"imagenet-a:{root}")
    with raises("unknown-data"):
        robustdup.load_data("imagenet-r:nowhere")


def test_files_of_cifar_10_1_and_10_2_are_read_as_they_are(tmp_path):
    images, labels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8), np.arange(20) % 10
    np.save(tmp_path / "cifar10.1_v6_data.npy", images)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", labels)
    np.savez(tmp_path / "cifar102_test.npz", images=images, labels=labels)
    for file in ("cifar10.1_v6_data.npy", "cifar102_test.npz"):
        data = robustdup.load_data(str(tmp_path / file))
        assert data.labels.tolist() == labels.tolist()
        assert torch.equal((data.images * 255).round().byte().permute(0, 2, 3, 1), torch.from_numpy(images))


def test_folders_of_imagenet_v2_are_class_numbers(tmp_path):
    root = pictures(tmp_path / "imagenetv2", {str(number): number for number in range(12)})
    data = robustdup.load_data(str(root))
    shown = (data.images.flatten(1).mean(dim=1) * 255).round().long()
    assert torch.equal(data.labels, shown)  # 10 is the tenth class, not the third
    assert len(data.class_names) == 12
