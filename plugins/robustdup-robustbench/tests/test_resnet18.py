"""The ResNet-18 in the pyautoattack wheel: the right answers on real CIFAR-10 where that data is at hand."""

from __future__ import annotations

import io
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from robustdup_robustbench import resnet18

from robustdup import UserError

OPTIONS = SimpleNamespace(allow_pickle=False)


def cifar10_file() -> Path:
    root = Path(__file__).resolve().parents[3]
    folder = Path(os.environ.get("ROBUSTDUP_TEST_DATA", root.parent / "shared" / "data"))
    file = folder / "cifar10-lossless" / "test.parquet"
    if not file.is_file():
        pytest.skip("CIFAR-10 is not here (ROBUSTDUP_TEST_DATA)")
    return file


def test_accuracy_on_real_cifar10():
    rows = pyarrow.parquet.read_table(cifar10_file()).slice(0, 100).to_pylist()
    pictures = [np.array(Image.open(io.BytesIO(row["img"]["bytes"])).convert("RGB")) for row in rows]
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    model = resnet18.load("resnet18", OPTIONS)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    assert (predicted == torch.tensor([row["label"] for row in rows])).float().mean() >= 0.9


def test_it_is_in_eval_mode_with_trained_weights():
    model = resnet18.load("resnet18", OPTIONS)
    assert not any(module.training for module in model.modules())
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert model.bn1.running_mean.abs().sum() > 0, "a fresh BatchNorm has zero means"


def test_another_name_is_a_user_error():
    with pytest.raises(UserError, match="write pyautoattack:resnet18, not 'pyautoattack:resnet50'"):
        resnet18.load("resnet50", OPTIONS)
