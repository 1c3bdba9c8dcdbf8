"""Budgets are kept to the sample and the step; rates are those of torch's schedulers; the right weights decay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_rates

from robustdup.errors import UserError
from robustdup.training.options import TrainerOptions
from robustdup.training.schedule import make_budget, make_optimizer, rate_over
from tests.raising import raises


def budget(entries, replays=1, **options):
    given = TrainerOptions(**options)
    return make_budget(given.budget(), given.batch_size, entries, replays)


@pytest.mark.parametrize(
    ("options", "samples", "steps"),
    [
        ({"epochs": 3, "batch_size": 10}, 300, 30),
        ({"epochs": 0.25, "batch_size": 10}, 25, 3),
        ({"steps": 7, "batch_size": 32}, 224, 7),
        ({"samples": 101, "batch_size": 100}, 101, 2),
        ({"samples": 3, "batch_size": 128}, 3, 1),
        ({"epochs": 1.504, "batch_size": 32}, 150, 5),
        ({"samples": 7, "batch_size": 32}, 7, 1),
    ],
)
def test_each_budget_is_what_it_says(options, samples, steps):
    found = budget(100, **options)
    assert (found.samples, found.steps) == (samples, steps)


def test_replays_make_more_steps_of_as_many_samples():
    assert budget(100, replays=4, epochs=1, batch_size=10).steps == 40
    exact = budget(100, replays=4, steps=10, batch_size=10)
    assert (exact.steps, exact.samples) == (10, 30)
    assert [exact.replays_of(batch) for batch in range(exact.batches)] == [4, 4, 2]


@given(
    st.integers(1, 500), st.integers(1, 9), st.integers(1, 64), st.sampled_from(["epochs", "steps", "samples"]),
    st.integers(1, 40),
)  # fmt: skip
def test_batches_add_up_to_the_budget(entries, replays, batch_size, name, value):
    found = budget(entries, replays, batch_size=batch_size, **{name: value})
    batches = range(found.batches)
    assert sum(found.rows(batch) for batch in batches) == found.samples
    assert sum(found.replays_of(batch) for batch in batches) == found.steps
    assert all(found.rows(batch) >= 1 and found.replays_of(batch) >= 1 for batch in batches)
    assert {
        "epochs": found.samples == value * entries,
        "steps": found.steps == value,
        "samples": found.samples == value,
    }[name]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 1.0, "steps": 5}, "epochs=1.0 and steps=5"),
        ({"steps": 0}, "steps=0"),
        ({"samples": -3}, "samples=-3"),
        ({"epochs": 0.0001}, "epochs=0.0001"),
        ({"epochs": 0}, "epochs=0"),
        ({}, "epochs, steps or samples; got none"),
        ({"samples": 2**53}, "would never end"),
        ({"epochs": 2.0**47}, "would never end"),
    ],
)
def test_budgets_that_cannot_be(options, message):
    with raises("bad-budget", UserError, message):
        budget(100, **options)


def rates_of_torch(make, steps, lr):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make(optimizer)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def warm_cosine(optimizer):
    rise = torch_rates.LinearLR(optimizer, start_factor=1 / 10, total_iters=9)
    fall = torch_rates.CosineAnnealingLR(optimizer, T_max=30)
    return torch_rates.SequentialLR(optimizer, [rise, fall], milestones=[10])


@pytest.mark.parametrize(
    ("options", "make"),
    [
        ({"schedule": "cosine"}, lambda o: torch_rates.CosineAnnealingLR(o, T_max=40)),
        ({"schedule": "cosine", "warmup": 0.25}, warm_cosine),
        ({"schedule": "linear"}, lambda o: torch_rates.LinearLR(o, 1.0, 0.0, total_iters=40)),
        ({"schedule": "constant"}, lambda o: torch_rates.ConstantLR(o, factor=1.0)),
        (
            {"schedule": "piecewise", "milestones": [0.5, 0.75]},
            lambda o: torch_rates.MultiStepLR(o, [20, 30], gamma=0.1),
        ),
        (
            {"schedule": "one-cycle"},
            lambda o: torch_rates.OneCycleLR(o, max_lr=0.2, total_steps=41, cycle_momentum=False),
        ),
        (
            {"schedule": "one-cycle", "warmup": 0.1},
            lambda o: torch_rates.OneCycleLR(o, max_lr=0.2, total_steps=41, pct_start=0.1, cycle_momentum=False),
        ),
    ],
)
def test_rates_are_those_of_torch(options, make):
    steps = 41 if options["schedule"] == "one-cycle" else 40
    rate = rate_over(TrainerOptions(lr=0.2, **options), steps)
    assert [rate(step) for step in range(steps)] == pytest.approx(rates_of_torch(make, steps, 0.2), rel=1e-6, abs=1e-12)


def test_a_schedule_of_its_own_length():
    longer = rate_over(TrainerOptions(schedule="cosine", schedule_steps=100), 50)
    assert longer(50) == pytest.approx(0.05)
    shorter = rate_over(TrainerOptions(schedule="linear", schedule_steps=10), 50)
    assert shorter(9) == shorter(49) == pytest.approx(0.01)
    with raises("bad-value", UserError, "schedule_steps", "got 0"):
        rate_over(TrainerOptions(schedule_steps=0), 50)


@given(
    st.sampled_from(["cosine", "one-cycle", "linear", "piecewise", "constant"]), st.integers(1, 60), st.floats(0, 0.99)
)
def test_rates_stay_between_zero_and_the_largest(schedule, steps, warmup):
    rate = rate_over(TrainerOptions(schedule=schedule, warmup=warmup, lr=0.3), steps)
    assert all(0 <= rate(step) <= 0.3 + 1e-9 for step in range(steps + 1))


def test_biases_and_norms_do_not_decay_where_asked():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2), torch.nn.Flatten())
    optimizer = make_optimizer(model, TrainerOptions(decay_all=False, weight_decay=0.01, momentum=0.8))
    decayed, kept = optimizer.param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(2, 1, 3, 3)]
    assert len(kept["params"]) == 3
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.01, 0.0)
    assert (decayed["nesterov"], decayed["momentum"]) == (True, 0.8)
    assert make_optimizer(model, TrainerOptions(nesterov=False)).param_groups[0]["nesterov"] is False
    assert len(make_optimizer(model, TrainerOptions()).param_groups) == 1
    assert isinstance(make_optimizer(model, TrainerOptions(optimizer="adamw")), torch.optim.AdamW)


def test_nothing_to_train():
    with raises("bad-model", UserError, "no parameters"):
        make_optimizer(torch.nn.Flatten(), TrainerOptions())
