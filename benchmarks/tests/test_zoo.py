"""Each wrapper answers as the network behind it nearly always, and the split is fixed."""

import pytest
import torch

from benchmarks.zoo import NAMES, held_back, main, wrapped
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin
from robustdup.models.load import ModelOptions
from robustdup.models.load import load_builtin as load_network


@pytest.fixture(scope="module")
def digits():
    data = load_builtin("digits", DataOptions(split="test"))
    return load_network("digits-robust", ModelOptions()).eval(), data.images[:60]


@pytest.mark.parametrize("name", NAMES)
def test_wrappers_keep_the_answers(name, digits):
    network, images = digits
    with torch.no_grad():
        same = (wrapped(name, network)(images).argmax(dim=1) == network(images).argmax(dim=1)).double().mean()
    assert same >= 0.9


def test_the_split_is_fixed_and_in_halves():
    kept = [name for name in NAMES if held_back(name)]
    assert len(NAMES) == 20
    assert 6 <= len(kept) <= 14


def test_the_command_prints_a_line_for_a_wrapper(capsys):
    assert (
        main(["--n", "4", "--half", "all", "--only", "detached", "--attacks", "straight-through(steps=5,targets=0)"])
        == 0
    )
    assert "| detached |" in capsys.readouterr().out
