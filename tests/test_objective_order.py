"""On the digits, standard training leaves next to nothing standing, and robust objectives most of what PGD training does.

Whose PGD trains makes no difference that three seeds show (configs/study/inner-attacks-digits.yaml).
"""

from __future__ import annotations

import pytest

from robustdup.config import TrainConfig, build
from robustdup.jobs import run_training
from robustdup.plugins import load_plugins

SETTINGS = (
    "model=small-cnn(width=8)", "epochs=5", "batch_size=64", "optimizer=adamw", "lr=0.01", "attack=pgd(steps=5)",
    "augment=none", "validation=0", "evaluate=pgd(steps=20)", "test_n=200", "threads=1",
)  # fmt: skip


def slow(*values):
    """Several trainings show the same of one objective each: the quick lane makes one of them."""
    return pytest.param(*values, marks=pytest.mark.slow)


def robust_accuracy(folder, *words):
    record = run_training(build(TrainConfig, overrides=[*SETTINGS, *words]), folder=folder)
    last = record.checkpoints[-1]
    assert last.clean_accuracy.value > 0.75
    return last.robust_accuracy.value


@pytest.fixture(scope="module")
def pgd_at(tmp_path_factory):
    return robust_accuracy(tmp_path_factory.mktemp("runs") / "pgd_at", "objective=pgd_at")


def test_standard_training_is_not_robust_and_pgd_training_is(tmp_path, pgd_at):
    assert robust_accuracy(tmp_path / "run", "objective=standard") < 0.25
    assert pgd_at > 0.45


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (("objective=trades(beta=6)",), 0.8),
        slow(("objective=mart",), 0.8),
        slow(("objective=pgd_at", "update=awp"), 0.8),
        slow(("objective=n_fgsm",), 0.8),
        slow(("objective=morel",), 0.8),
        slow(
            ("objective=free(replays=4)",), 0.6
        ),  # it starts from the perturbations of other images: 0.7 was seen here
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_every_robust_objective_keeps_most_of_what_pgd_training_does(tmp_path, pgd_at, words, share):
    assert robust_accuracy(tmp_path / "run", *words) >= share * pgd_at


@pytest.mark.slow  # that they train at all: tests/training/test_inner.py
@pytest.mark.parametrize(
    "attack",
    [
        "torchattacks:PGD(steps=5,alpha=0.075)",
        "art:ProjectedGradientDescent(max_iter=5,eps_step=0.075,num_random_init=1)",
        "foolbox:LinfProjectedGradientDescentAttack(steps=5,abs_stepsize=0.075)",
    ],
)
def test_the_pgd_of_each_toolkit_trains_as_well(tmp_path, pgd_at, attack):
    known = load_plugins().attacks.get(attack.split("(")[0])
    if known is None or not known.available:
        pytest.skip(f"{attack} is not installed")
    found = robust_accuracy(tmp_path / "run", "objective=pgd_at", f"attack={attack}")
    assert found == pytest.approx(pgd_at, abs=0.08)  # of 200 points; standard training keeps less than 0.25
