"""Common corruptions: the same pixels in any order, published folders with known accuracies, records, pages, ranks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_sets import Bright, made_here, published
from robustdup_corruptions.effective import effective_robustness
from robustdup_corruptions.rank import corruption_position
from robustdup_corruptions.record import ALEXNET_ERRORS, COMMON, KINDS, SEVERITIES, load_corruption_record
from robustdup_corruptions.run import parse_order, run_corruptions
from robustdup_corruptions.sets import find_corruptions
from robustdup_corruptions.tables import markdown

import robustdup
from robustdup.cli.main import main
from robustdup.config import EvalConfig, build
from robustdup.data.dataset import from_tensors
from robustdup.leaderboard.table import LeaderboardEntry, load
from tests.raising import raises


def run(data, threat="corruptions", model=None, **settings):
    config = build(EvalConfig, values={"data": str(data), "threat": threat, "threads": 1, **settings})
    return run_corruptions(config, model=model or Bright())


def test_published_arrays_give_the_accuracies_that_they_were_written_with(tmp_path):
    record = run(published(tmp_path / "CIFAR-10-C", COMMON)).record
    assert (record.source, record.n, record.complete, record.missing) == ("arrays", 20, True, [])
    for number, kind in enumerate(record.kinds):
        expected = [1 - (2 * s / 20 if number % 2 == 0 else 0) for s in SEVERITIES]
        assert [found.accuracy.value for found in kind.severities] == pytest.approx(expected)
        assert kind.accuracy.value == pytest.approx(np.mean(expected))
    means = [kind.accuracy.value for kind in record.kinds]
    assert record.corruption_accuracy.value == pytest.approx(np.mean(means))
    assert record.corruption_accuracy.low < record.corruption_accuracy.value < record.corruption_accuracy.high
    assert record.mce is None  # no baseline is published for CIFAR-10-C


def test_what_is_missing_is_named_and_the_mean_is_over_the_others(tmp_path):
    record = run(published(tmp_path / "CIFAR-10-C", ["fog", "snow", "saturate"])).record
    assert [kind.kind for kind in record.kinds] == ["snow", "fog", "saturate"]
    assert len(record.missing) == 13
    assert record.corruption_accuracy.value == pytest.approx((0.7 + 1.0) / 2)  # saturate is outside the fifteen
    rank = corruption_position(record)
    assert rank.place is None
    assert "2 of fifteen kinds" in rank.reasons[0]
    assert "gaussian_noise" in " ".join(record.events)


def test_some_kinds_and_severities_are_taken_where_they_are_named(tmp_path):
    folder = published(tmp_path / "CIFAR-10-C", ["fog", "snow"])
    record = run(folder, "corruptions(kinds=[fog],severities=[1,5])", n=10).record
    assert [kind.kind for kind in record.kinds] == ["fog"]
    assert [found.accuracy.value for found in record.kinds[0].severities] == pytest.approx([0.8, 0.0])
    with raises("missing-corruption", robustdup.UserError, "frost", "It holds: snow, fog"):
        run(folder, "corruptions(kinds=[frost])")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("corruptions(severities=[6])", "bad-value"), ("corruptions(severities=0)", "bad-value"),
        ("corruptions(severities=2.5)", "bad-value"), ("corruptions(severities=[1.0])", "bad-value"),
        ("corruptions(severities=high)", "bad-value"), ("corruptions(severities=true)", "bad-value"),
        ("corruptions(kinds=7)", "unknown-corruption"),
        ("corruptions(kinds=[fogg])", "unknown-corruption"), ("corruptions(kind=fog)", "unknown-option-of-corruptions"),
    ],
)  # fmt: skip
def test_an_order_that_cannot_be_is_refused(text, code):
    with pytest.raises(robustdup.UserError) as caught:
        parse_order(text)
    assert caught.value.code.startswith(code.split("-")[0])
    assert any(word in str(caught.value) for word in ("1 to 5", "fog", "kinds"))


def test_a_file_without_five_severities_is_refused_rather_than_taken_five_times(tmp_path):
    folder = published(tmp_path / "CIFAR-10-C", ["fog"])
    labels = np.load(folder / "labels.npy")
    labels[0] = 1 - labels[0]
    np.save(folder / "labels.npy", labels)
    with raises("missing-corruption", robustdup.UserError, "five severities"):
        run(folder)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("gausian_noise", "Did you mean gaussian_noise.npy? Rename it."), ("JPEG", "Did you mean jpeg_compression.npy?"),
        ("Glass-Blur", "Did you mean glass_blur.npy?"), ("readme", "It was left out."),
    ],
)  # fmt: skip
def test_a_misspelt_file_is_named_with_the_right_spelling(tmp_path, name, advice):
    record = run(published(tmp_path / "CIFAR-10-C", ["fog", name])).record
    assert f"{name}.npy is no kind of corruption. {advice}" in " ".join(record.events)


def test_a_folder_of_misspelt_files_alone_is_refused(tmp_path):
    folder = published(tmp_path / "CIFAR-10-C", ["foggs", "snw"])
    with raises("missing-corruption", robustdup.UserError, "It holds: none", "Did you mean fog.npy?", "mean snow.npy?"):
        run(folder)
    (folder / "foggs.npy").rename(folder / "fog.npy")
    with raises("missing-corruption", robustdup.UserError, "does not hold snow", "It holds: fog", "mean snow.npy?"):
        run(folder, "corruptions(kinds=[snow])")


def test_labels_of_another_length_and_attacks_are_refused(tmp_path):
    folder = published(tmp_path / "CIFAR-10-C", ["fog"], labels=np.arange(90) % 2)
    with pytest.raises(robustdup.UserError) as caught:
        run(folder)
    assert "90" in str(caught.value)
    with raises("bad-option", robustdup.UserError, "--attacks"):
        run(folder, attacks="pgd")


def test_misspelt_folders_are_named_and_numbered_classes_are_no_severities(tmp_path):
    for kind in ("fog", "snou", "pictures"):
        (tmp_path / "c" / kind / "1" / "class").mkdir(parents=True)
    strays = find_corruptions(str(tmp_path / "c"), [], [1]).strays
    assert strays == [
        "pictures is no kind of corruption. It was left out.", "snou is no kind of corruption. Did you mean snow? Rename it.",
    ]  # fmt: skip
    with raises("missing-corruption", robustdup.UserError, "Did you mean snow?"):
        find_corruptions(str(tmp_path / "c" / "snou"), [], [1])
    for label in "0123456789":
        (tmp_path / "snowy" / label).mkdir(parents=True)
    assert find_corruptions(str(tmp_path / "snowy"), [], [1]) is None


def test_folders_of_pictures_are_read_as_imagenet_c_is(tmp_path):
    for kind in ("defocus_blur", "fog"):
        family = {"defocus_blur": "blur", "fog": "weather"}[kind]
        for severity in (1, 3):
            for name, value in (("n01440764", 50), ("n01443537", 200)):
                place = tmp_path / "imagenet-c" / family / kind / str(severity) / name
                place.mkdir(parents=True)
                for number in range(3):
                    swap = kind == "fog" and severity == 3 and number == 0
                    Image.new("RGB", (40, 40), (250 - value if swap else value,) * 3).save(place / f"{number}.png")
    record = run(tmp_path / "imagenet-c", "corruptions(severities=[1,3])").record
    assert (record.source, [kind.kind for kind in record.kinds]) == ("folders", ["defocus_blur", "fog"])
    assert [found.accuracy.value for found in record.kinds[1].severities] == pytest.approx([1.0, 4 / 6])
    with raises("missing-corruption", robustdup.UserError, "no folder 2"):
        run(tmp_path / "imagenet-c")


def test_mce_is_one_for_a_model_as_bad_as_alexnet(tmp_path):
    from robustdup_corruptions.judged_sets import JudgedSet
    from robustdup_corruptions.run import _of_kind

    n = 1_000_000
    for kind in ("snow", "fog"):
        right = torch.ones(n, dtype=torch.float64)
        right[: round(ALEXNET_ERRORS[kind] * n)] = 0
        one = JudgedSet(right, right, right, right, right, right.numpy(), "")
        judged = {(kind, s): one for s in SEVERITIES}
        assert _of_kind(kind, judged, imagenet=True).relative_error == pytest.approx(1.0)
        assert _of_kind(kind, judged, imagenet=False).relative_error is None
    assert sum(ALEXNET_ERRORS.values()) / 15 == pytest.approx(0.7886, abs=1e-3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in a folder on published arrays with all fifteen kinds."""
    folder = tmp_path_factory.mktemp("whole")
    config = build(
        EvalConfig,
        values={"data": str(published(folder / "CIFAR-10-C", COMMON)), "threat": "corruptions", "threads": 1},
    )
    run_corruptions(config, model=Bright(), folder=folder / "run")
    return folder / "run"


def test_a_run_is_ranked_reported_and_compared(whole, tmp_path, capsys):
    record = load_corruption_record(whole)
    board = load().boards["cifar10", "corruptions"]
    rank = corruption_position(record)
    value = record.corruption_accuracy.value
    assert rank.place.place == 1 + sum(entry.corruptions_acc > 100 * value for entry in board)
    assert rank.place.best <= rank.place.place <= rank.place.worst
    assert "hashes do not ship" in rank.notes[0]
    assert main(["leaderboard", "rank", str(whole), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["comparable"] is False  # twenty images of two classes are not CIFAR-10's first
    assert "labels" in answer["reasons"][0]
    assert main(["report", str(whole), "--to", str(tmp_path / "page")]) == 0
    page = next((tmp_path / "page").glob("*.html")).read_text()
    for words in ("gaussian noise", "Severity 5", "The hardest kind", "corruptions.png"):
        assert words in page
    (picture,) = (tmp_path / "page").rglob("*corruptions.png")
    assert Image.open(picture).size == (5 * 96, 15 * 96)
    assert "| gaussian_noise | noise |" in markdown(record)


def test_every_field_of_the_record_is_described():
    from robustdup_corruptions import record as corruptions

    for kind in (corruptions.CorruptionRecord, corruptions.CorruptionResult, corruptions.SeverityResult):
        assert all(field.description for field in kind.model_fields.values())
    assert len(COMMON) == 15
    assert len(KINDS) == 19


@made_here
@pytest.mark.parametrize(
    "kind", ["gaussian_noise", "impulse_noise", "motion_blur", "frost", "elastic_transform", "spatter"]
)
def test_pixels_do_not_depend_on_order_batch_or_the_state_of_numpy(kind):
    from robustdup_corruptions.making import make_corrupted

    images, index = torch.rand(4, 3, 32, 40), torch.tensor([7, 3, 11, 0])
    np.random.seed(1)
    first = np.random.get_state()[1].copy()
    together = make_corrupted(images, index, kind, 3, seed=5)
    assert np.array_equal(np.random.get_state()[1], first)
    np.random.seed(2)
    apart = torch.cat(
        [make_corrupted(images[i : i + 1], index[i : i + 1], kind, 3, seed=5) for i in (3, 2, 1, 0)]
    ).flip(0)
    assert torch.equal(together, apart)
    assert together.shape == images.shape
    assert torch.equal((together * 255).round() / 255, together)
    assert not torch.equal(make_corrupted(images, index, kind, 3, seed=6), together)
    assert not torch.equal(make_corrupted(images[:1], index[1:2], kind, 3, seed=5), together[:1])


@made_here
def test_strengths_are_those_of_the_paper():
    from robustdup_corruptions.making import make_corrupted

    grey, index = torch.full((1, 3, 64, 64), 102 / 255), torch.zeros(1, dtype=torch.int64)
    for severity, sigma in ((1, 0.08), (3, 0.18)):
        noisy = make_corrupted(grey, index, "gaussian_noise", severity, seed=0)
        assert float((noisy - grey).std()) == pytest.approx(sigma, rel=0.05)
    for severity in SEVERITIES:
        bright = make_corrupted(grey, index, "brightness", severity, seed=0)
        assert float((bright - grey).mean()) == pytest.approx(severity / 10, abs=0.005)
        assert torch.allclose(make_corrupted(grey, index, "contrast", severity, seed=0), grey, atol=1.01 / 255)
    salt = make_corrupted(grey, index, "impulse_noise", 5, seed=0)
    assert float((salt != grey).float().mean()) == pytest.approx(0.27, abs=0.03)


@made_here
def test_strengths_on_small_images_are_those_of_cifar_10_c():
    from robustdup_corruptions.making import make_corrupted

    grey, index = torch.full((4, 3, 32, 32), 102 / 255), torch.arange(4)
    for severity, sigma in ((1, 0.04), (5, 0.10)):
        noisy = make_corrupted(grey, index, "gaussian_noise", severity, seed=0)
        assert float((noisy - grey).std()) == pytest.approx(sigma, rel=0.05)
    shot = make_corrupted(grey, index, "shot_noise", 5, seed=0)
    assert float((shot - grey).std()) == pytest.approx((0.4 / 50) ** 0.5, rel=0.05)  # Poisson: variance is the mean
    salt = make_corrupted(grey, index, "impulse_noise", 5, seed=0)
    assert float((salt != grey).float().mean()) == pytest.approx(0.07, abs=0.01)
    bright = make_corrupted(grey, index, "brightness", 5, seed=0)
    assert float((bright - grey).mean()) == pytest.approx(0.3, abs=0.005)
    for kind in (
        "defocus_blur",
        "gaussian_blur",
        "motion_blur",
        "zoom_blur",
        "contrast",
        "elastic_transform",
        "pixelate",
    ):
        assert torch.allclose(make_corrupted(grey, index, kind, 5, seed=0), grey, atol=1.01 / 255), kind
    pixels = (torch.rand(1, 3, 32, 32) * 255).round() / 255
    content = io.BytesIO()
    Image.fromarray((pixels[0].permute(1, 2, 0) * 255).round().byte().numpy()).save(content, "JPEG", quality=40)
    expected = torch.from_numpy(np.array(Image.open(content))).permute(2, 0, 1) / 255
    assert torch.allclose(
        make_corrupted(pixels, index[:1], "jpeg_compression", 5, seed=0)[0], expected, atol=1.01 / 255
    )


@made_here
def test_small_grey_images_are_enlarged_and_averaged_back():
    from robustdup_corruptions.making import make_corrupted

    images = torch.rand(2, 1, 8, 8).mul(255).round().div(255)
    found = make_corrupted(images, torch.arange(2), "brightness", 1, seed=0)
    assert found.shape == images.shape
    low = images < 0.85
    assert torch.allclose(found[low], images[low] + 0.05, atol=1.5 / 255)


@made_here
def test_images_made_here_are_evaluated_and_never_ranked():
    values = torch.linspace(0.22, 0.78, 12)
    images = values.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).contiguous()
    data = from_tensors(images, (values > 0.5).long())
    config = build(EvalConfig, values={"threat": "corruptions(kinds=[brightness],severities=[1,5])", "threads": 1})
    record = run_corruptions(config, model=Bright(), data=data).record
    # brightness adds 0.05 and 0.3: what stays below one half with it keeps its class
    dark = values[values <= 0.5]
    kept = [float((dark + shift < 0.5).sum() + (values > 0.5).sum()) / 12 for shift in (0.05, 0.3)]
    assert [found.accuracy.value for found in record.kinds[0].severities] == pytest.approx(kept)
    assert (record.source, record.clean_accuracy.value) == ("made", 1.0)
    assert "CIFAR-10-C" in record.made_with
    rank = corruption_position(record)
    assert rank.place is None
    assert "made here" in rank.reasons[0]


def entry(clean, corrupted):
    return LeaderboardEntry(
        dataset="cifar10", threat_model="corruptions", model_id=f"m{clean}", architecture="a", clean_acc=clean,
        corruptions_acc=corrupted,
    )  # fmt: skip


def test_effective_robustness_is_the_distance_from_a_line_that_is_known():
    def on_line(clean):  # logit(corrupted) = 0.8 logit(clean) - 0.5
        odds = np.exp(0.8 * np.log(clean / (1 - clean)) - 0.5)
        return odds / (1 + odds)

    shares = np.linspace(0.6, 0.97, 12)
    entries = [entry(100 * share, 100 * on_line(share)) for share in shares]
    found = effective_robustness(entries, 0.9, (on_line(0.9) + 0.03, on_line(0.9) + 0.01, on_line(0.9) + 0.05))
    assert (found.slope, found.intercept, found.r_squared) == pytest.approx((0.8, -0.5, 1.0))
    assert (found.effective, found.low, found.high) == pytest.approx((0.03, 0.01, 0.05))
    assert found.spread == pytest.approx(0.0, abs=1e-6)
    assert effective_robustness(entries[:5], 0.9, (0.5, 0.4, 0.6)) is None


def test_a_rank_says_how_much_the_clean_accuracy_does_not_explain(whole):
    record = load_corruption_record(whole)
    assert corruption_position(record).effective is None  # no clean images beside CIFAR-10-C
    found = corruption_position(record, clean=0.95).effective
    assert found.effective == pytest.approx(record.corruption_accuracy.value - found.predicted)
    assert 0.85 < found.predicted < 0.92
    assert found.n_entries == len(load().boards["cifar10", "corruptions"])


def test_python_has_its_own_verb_and_evaluate_names_it(tmp_path):
    folder = published(tmp_path / "CIFAR-10-C", ["fog", "snow"])
    record = robustdup.evaluate_corruptions(Bright(), folder, kinds=["fog"], severities=[1, 5], threads=1)
    assert [found.accuracy.value for found in record.kinds[0].severities] == pytest.approx([0.9, 0.5])
    assert (record.n, record.severities, record.missing[0]) == (20, [1, 5], "gaussian_noise")
    with raises("bad-option", robustdup.UserError, "evaluate_corruptions"):
        robustdup.evaluate(Bright(), torch.rand(4, 3, 32, 32), torch.zeros(4).long(), threat="corruptions")


def test_who_fails_where_under_corruptions_is_told_of_runs(tmp_path, capsys):
    class Dark(Bright):
        """Says the first class of every image."""

        def forward(self, images):
            return super().forward(images * 0)

    folder = published(tmp_path / "CIFAR-10-C", ["fog", "snow"])
    runs = [str(tmp_path / name) for name in ("bright", "dark", "again")]
    for place, model in zip(runs, (Bright(), Dark(), Bright()), strict=True):
        config = build(EvalConfig, values={"data": str(folder), "threat": "corruptions", "threads": 1})
        run_corruptions(config, model=model, folder=Path(place))
    assert main(["compare", *runs, "--json"]) == 0
    bright_dark, same, _ = json.loads(capsys.readouterr().out)
    # KINDS has snow first, but the folder was written with fog as number 0: 2 s of 20 fog images are wrong at severity s
    wrong_bright, n = 2 + 4 + 6 + 8 + 10, 200
    both_wrong = wrong_bright // 2  # every other image of fog is of the second class, which the dark one never says
    assert (bright_dark["consistency"]["n"], bright_dark["consistency"]["both_wrong"]) == (n, both_wrong)
    assert bright_dark["wrong_too_b"] == pytest.approx(both_wrong / wrong_bright)
    assert bright_dark["wrong_too_a"] == pytest.approx(both_wrong / 100)
    observed = (both_wrong + (100 - both_wrong)) / n
    expected = 0.5 * (1 - wrong_bright / n) + 0.5 * wrong_bright / n
    assert bright_dark["consistency"]["kappa"] == pytest.approx((observed - expected) / (1 - expected))
    assert (same["consistency"]["kappa"], same["kinds"]) == (
        pytest.approx(1.0),
        {"snow": None, "fog": pytest.approx(1.0)},
    )
    assert main(["compare", *runs]) == 0
    assert "wrong in B too" in capsys.readouterr().out
    assert main(["compare", *runs, "--transfer"]) == 2
    other = published(tmp_path / "other", ["snow", "fog"])
    run_corruptions(
        build(EvalConfig, values={"data": str(other), "threat": "corruptions", "threads": 1}), model=Bright(),
        folder=tmp_path / "elsewhere",
    )  # fmt: skip
    assert main(["compare", runs[0], str(tmp_path / "elsewhere")]) == 2
    assert "other images" in capsys.readouterr().err
