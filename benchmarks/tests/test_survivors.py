"""Few survivors: what is computed ahead leaves the images and passes of one after the other; the table says what lines hold."""

import torch
from torch import nn

from benchmarks import survivors
from benchmarks.survivors import alone, main, ours, table
from robustdup.attacks.passes import Count, Passes
from robustdup.threat import ThreatModel


def test_both_ways_leave_the_same_images_on_small_networks(tmp_path, capsys):
    out = tmp_path / "survivors.jsonl"
    words = ["--model", "builtin:digits-robust", "--data", "builtin:digits", "--eps", "0.02", "--counts", "2"]
    assert main([*words, "--steps", "2", "--rounds", "1", "--out", str(out)]) == 0
    assert "| 19,178 | 2 | 2 |" in capsys.readouterr().out
    assert '"same_images": true' in out.read_text()


def test_what_an_attack_has_broken_is_not_attacked_again():
    torch.manual_seed(0)
    model = Passes(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    images = torch.full((2, 1, 2, 2), 0.5)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    adv_images = ours(model, images, labels, ThreatModel("Linf", "0.5"), steps=2)
    assert not bool((model(adv_images).argmax(dim=1) == labels).any())
    assert model.count.forward < 2 * 50  # Square alone would ask a hundred times for each


def test_ratios_are_those_of_the_rounds():
    passes = {"forward": 100, "backward": 20, "padding": 50}
    line = {"parameters": 19546, "samples": 9, "survivors": 8, "before": [4.0, 9.0, 6.0], "now": [2.0, 3.0, 1.0],
            "reference": {"4": [8.0, 8.0, 8.0], "9": [5.0, 3.0, 4.0]}, "passes_before": passes, "copy_alone": [1.5, 1.0, 1.25],
            "model_alone": [2.0, 3.0, 2.5], "passes_now": {**passes, "padding": 5}}  # fmt: skip
    assert table([line]).splitlines()[-1] == (
        "| 19,546 | 9 | 8 | 6.00 | 2.00 | 4.00 | 9 | 3.00 (2.00 to 6.00) | 2.50 (1.00 to 4.00) | 1.25 | 2.50 | 5% |"
    )


def test_passes_alone_are_counted_forward_and_with_gradients(monkeypatch):
    monkeypatch.setattr(survivors, "timed", lambda call: (call(), 8.0 if call.__name__ == "both" else 2.0))
    assert alone(nn.Flatten(), torch.rand(2, 1, 2, 2), Count(10, 4)) == 6 * 1.0 + 4 * 4.0
