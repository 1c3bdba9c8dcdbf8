from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import robustdup
from robustdup.attacks.passes import Passes
from robustdup.evaluation.referee import judge_images
from robustdup.evaluation.steadiness import Steadiness, same_answers, steadiness

IMAGES = torch.rand(48, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A small network, and what `change` makes of its input or its logits."""

    def __init__(self, norm=None, before=lambda images: images, after=lambda logits: logits):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            layers = [nn.Conv2d(3, 6, 3), norm or nn.Identity(), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)]
            self.net = nn.Sequential(*layers)
        self.before, self.after = before, after

    def forward(self, images):
        return self.after(self.net(self.before(images)))


def flips(logits, *, chance, rows):
    """Swap the first two logits now and then: of single rows, or of a whole call."""
    size = (len(logits), 1) if rows else (1, 1)
    return torch.where(torch.rand(size) < chance, logits[:, [1, 0, 2, 3]], logits)


def close_calls(logits):
    """Toss a coin between the best two classes where they are closer than a hundredth."""
    top = logits.topk(2, dim=1).values
    return logits + 0.02 * torch.randn_like(logits) * ((top[:, :1] - top[:, 1:]) < 0.01)


class OwnGenerator(Net):
    calls = 0

    def forward(self, images):
        self.calls += 1
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(self.calls))
        return self.net(images + 0.05 * noise)


class Remembering(Net):
    """Answers as before to what is near an image that it was asked about: https://arxiv.org/abs/1907.05587."""

    def __init__(self):
        super().__init__()
        self.asked, self.answers = [], []

    def forward(self, images):
        own, answers = self.net(images), []
        for image, logits in zip(images.detach(), own, strict=True):
            gaps = [float((image - other).abs().max()) for other in self.asked]
            near = bool(gaps) and min(gaps) < 0.2
            answers.append(self.answers[gaps.index(min(gaps))] if near else logits)
            self.asked.append(image)
            self.answers.append(answers[-1].detach())
        return torch.stack(answers)


def crop(images):
    top = int(torch.randint(0, 3, ()))
    return torch.roll(images, top, dims=2)


STEADY, RANDOM, COMPANY = Steadiness(), Steadiness(randomized=True), Steadiness(batch_dependent=True)
MEMORY = Steadiness(remembers=True)
CASES = {
    "plain": (Net(), STEADY),
    "BatchNorm": (Net(nn.BatchNorm2d(6)), STEADY),
    "dropout": (Net(nn.Dropout(0.3).train()), RANDOM),
    "one row in six": (Net(after=lambda x: flips(x, chance=0.17, rows=True)), RANDOM),
    "close calls only": (Net(after=close_calls), RANDOM),
    "noise of numpy": (Net(before=lambda x: x + torch.from_numpy(np.random.randn(*x.shape)).float() * 0.05), RANDOM),
    "one crop a call": (Net(before=crop), RANDOM),
    "a generator of its own": (OwnGenerator(), RANDOM),
    "batch statistics": (Net(nn.BatchNorm2d(6, track_running_stats=False)), COMPANY),
    "the batch's largest pixel": (Net(before=lambda x: x / x.amax()), COMPANY),
    "the length of all logits": (Net(after=lambda x: x / x.norm()), COMPANY),
    "softmax over the batch": (Net(after=lambda x: x + x.softmax(dim=0)), COMPANY),
    "attention across the batch": (Net(after=lambda x: torch.softmax(x @ x.T, dim=1) @ x), COMPANY),
    "whitening": (Net(after=lambda x: x @ torch.linalg.inv(torch.cov(x.T) + torch.eye(4))), COMPANY),
    "a neighbour": (Net(after=lambda x: x + 0.05 * x.roll(1, 0)), COMPANY),
    "how many share the batch": (Net(after=lambda x: x * (1 + 0.01 * len(x))), COMPANY),
    "the place in the batch": (Net(after=lambda x: x + 0.05 * torch.arange(len(x) * 4).view(-1, 4) / len(x)), COMPANY),
    "answers of before": (Remembering(), MEMORY),
    "both": (Net(nn.Sequential(nn.Dropout(0.3).train(), nn.BatchNorm2d(6, track_running_stats=False))), Steadiness(True, True)),
}  # fmt: skip


def put_in_eval_mode(model):
    for module in model.modules():
        if not isinstance(module, nn.Dropout):
            module.training = False
    return model


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_repeat_itself_is_noticed_and_nothing_else(case):
    model, expected = put_in_eval_mode(CASES[case][0]), CASES[case][1]
    answers = judge_images(Passes(model, 16), IMAGES, torch.zeros(48, dtype=torch.int64))
    assert steadiness(model, IMAGES, answers.margin, answers.prediction, rows=16) == expected


def test_a_change_of_whole_calls_is_found_in_nearly_all_runs():
    model, missed = Net(after=lambda x: flips(x, chance=0.17, rows=False)).eval(), 0
    margin, prediction = torch.zeros(48), torch.zeros(48, dtype=torch.int64)
    before = torch.get_rng_state()
    for number in range(5):  # the coin follows the seeds of the asks, which are the same: another one for each run
        model.after = lambda x, chance=0.12 + 0.02 * number: flips(x, chance=chance, rows=False)
        missed += not steadiness(model, IMAGES, margin, prediction, rows=16).randomized
    assert missed == 0
    assert torch.equal(torch.get_rng_state(), before)


def test_answers_are_the_same_but_for_rounding():
    margin = torch.tensor([3.0, -1.0, torch.inf, torch.nan])
    assert same_answers(margin, margin + 1e-6)
    assert not same_answers(margin, torch.tensor([3.0, -1.001, torch.inf, torch.nan]))
    assert not same_answers(margin, torch.tensor([3.0, -1.0, torch.inf, 0.0]))


def test_one_image_of_one_class_can_be_asked_about():
    model = Net(nn.BatchNorm2d(6, track_running_stats=False)).eval()
    one = torch.zeros(1, dtype=torch.int64)
    assert steadiness(model, IMAGES[:1], torch.ones(1), one, rows=8).batch_dependent
    assert steadiness(Net().eval(), IMAGES[:1], torch.ones(1), one, rows=1) == STEADY


def test_a_model_that_answers_as_before_is_not_believed_and_gets_no_rank():
    model = Remembering().eval()
    with torch.no_grad():
        labels = model.net(IMAGES[:8]).argmax(dim=1)
    result = robustdup.evaluate(model, IMAGES[:8], labels, attacks="fgsm,pgd(steps=5)", eps="8/255", workers=1)
    assert result.record.reliable is False
    assert "asked before" in result.record.unreliable_reasons[0]
    assert [sign.severity for sign in result.record.diagnostics if sign.code == "remembers"] == ["serious"]
    assert result.rank().reasons


def test_a_model_that_depends_on_its_batch_is_judged_in_a_stated_one_and_gets_no_rank():
    model = Net(nn.BatchNorm2d(6, track_running_stats=False)).eval()
    with torch.no_grad():
        labels = torch.cat([model(part) for part in IMAGES.split(16)]).argmax(dim=1)
    options = {"attacks": "fgsm,pgd(steps=5)", "eps": "8/255", "workers": 1}
    results = [
        robustdup.evaluate(model, IMAGES, labels, micro_batch=16, batch_size=size, **options) for size in (16, 48)
    ]
    for result in results:
        record = result.record
        assert (record.model.batch_dependent, record.model.judged_in_batches_of) == (True, 16)
        assert [d.severity for d in record.diagnostics if d.code == "batch_dependent"] == ["serious"]
        assert record.clean_accuracy.value == 1.0  # in the batches that the labels come from
        with torch.no_grad():
            apart = torch.cat([model(part) for part in result.adv_images.split(16)]).argmax(dim=1)
        assert record.robust_accuracy.value == float((apart == labels).double().mean()) < 1
        assert any("share a batch" in reason for reason in result.rank().reasons)
        assert record.attacks[-1].robust_accuracy_after == record.robust_accuracy.value
    assert robustdup.evaluate(model, IMAGES, labels, **options).record.model.judged_in_batches_of == 32
