"""Extra training data: the share of each batch, in the same order however often a run is interrupted; labels; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from robustdup.config import DataOptions, TrainConfig, build
from robustdup.data.batches import EntryOptions, Stream, TrainingSet
from robustdup.data.digits import load_builtin
from robustdup.data.passes_over import extra_rows, interleaved
from robustdup.errors import UserError
from robustdup.jobs import run_training
from robustdup.jobs.training_data import prepare_data
from robustdup.plugins import load_plugins
from robustdup.records import load_training_record
from tests.raising import raises

N, EXTRA = 20, 31
QUICK = (
    "model=small-cnn(width=4)", "epochs=0.5", "batch_size=40", "lr=0.01", "attack=pgd(steps=1)", "validation=97",
    "validation_attack=pgd(steps=1)", "evaluate=none", "in_memory=yes",
)  # fmt: skip


def entries_of(share=0.7):
    """20 images of the data, of value 0, and 31 extra ones, of value 1."""
    pixels = torch.cat([torch.zeros(N, 1, 4, 4), torch.ones(EXTRA, 1, 4, 4)])
    options = EntryOptions(augment="none", extra_share=share, classes=2)
    return TrainingSet(pixels, torch.arange(N + EXTRA) % 2, options=options, extra=EXTRA)


def extra_file(folder, n=60, *, labels=True, name="generated.npz", shift=0):
    """Digits of the test split as published generated data are: image (N, H, W, C) bytes, label (N,)."""
    digits = load_builtin("digits", DataOptions(split="test"))
    images = (digits.images[:n] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    arrays = {"image": images, **({"label": (digits.labels[:n] + shift).numpy()} if labels else {})}
    np.savez(folder / name, **arrays)
    return folder / name


def config_of(*words):
    return build(TrainConfig, overrides=[*QUICK, *words])


def prepared(*words):
    return prepare_data(config_of(*words), load_plugins(), torch.device("cpu"))


@pytest.mark.parametrize(
    ("rows", "share", "extra"), [(128, 0.7, 90), (10, 0.7, 7), (3, 0.5, 2), (1, 0.2, 0), (0, 0.7, 0)]
)
def test_the_share_is_the_nearest_whole_number(rows, share, extra):
    assert extra_rows(rows, share) == extra


@pytest.mark.parametrize(("own", "extra"), [(3, 7), (7, 3), (5, 0), (0, 4), (38, 90)])
def test_both_kinds_are_mixed_evenly(own, extra):
    order = interleaved(own, extra)
    assert order.sort().values.tolist() == list(range(own + extra))
    counts = (order >= own).cumsum(0)  # of any first rows, the share of extra ones is right to one row
    wanted = torch.arange(1, own + extra + 1) * extra / (own + extra)
    assert bool(((counts - wanted).abs() < 1).all())


@pytest.mark.parametrize("processes", [1, 3])
def test_each_batch_holds_the_share_and_each_image_comes_in_turn(processes):
    entries = entries_of()
    parts = [list(Stream(entries, 10, 65, rank=rank, processes=processes)) for rank in range(processes)]
    batches = [torch.cat([part[step][1].position for part in parts]) for step in range(7)]
    assert [int((batch >= N).sum()) for batch in batches] == [7, 7, 7, 7, 7, 7, 4]  # 3.5 of the last 5, a half upwards
    extra = torch.cat([batch[batch >= N] for batch in batches])
    own = torch.cat([batch[batch < N] for batch in batches])
    assert extra[:EXTRA].sort().values.tolist() == list(range(N, N + EXTRA))  # a pass before any comes again
    assert len(own) == 19
    assert len(own.unique()) == 19
    if processes > 1:  # every process gets its share of both
        assert all((part[0][1].position >= N).sum() >= 2 for part in parts)
    assert Stream(entries, 10, 65).drawn(65) == (19, 46)
    assert Stream(entries, 10, 65).unique_seen(65) == 19 + EXTRA


def test_images_and_labels_are_those_of_their_positions():
    entries = entries_of()
    for _, batch in Stream(entries, 10, 30):
        assert torch.equal(batch.images[:, 0, 0, 0], (batch.position >= N).float())
        assert torch.equal(batch.labels, batch.position % 2)


def test_a_stream_with_extra_data_goes_on_where_it_stopped():
    entries = entries_of()
    whole = dict(iter(Stream(entries, 10, 95)))
    for step, batch in Stream(entries, 10, 95, start_step=4):
        assert torch.equal(batch.position, whole[step].position)
        assert torch.equal(batch.rng.index, whole[step].rng.index)


def test_the_data_come_in_the_order_they_have_alone():
    alone = TrainingSet(torch.zeros(N, 1, 4, 4), torch.arange(N) % 2, options=EntryOptions(augment="none"))
    order = torch.cat([batch.position for _, batch in Stream(alone, 3, N)])
    mixed = torch.cat([batch.position for _, batch in Stream(entries_of(), 10, 65)])
    assert torch.equal(mixed[mixed < N], order[:19])


def test_a_run_with_extra_data_is_recorded_resumed_and_not_that_of_other_data(tmp_path):
    file = extra_file(tmp_path)
    words = (f"extra_data={file}", "extra_share=0.7")
    record = run_training(config_of(*words), folder=tmp_path / "run")
    extra = record.extra
    assert (extra.n, extra.in_batch, extra.labels, extra.agreement) == (60, 28, "given", None)
    assert load_training_record(tmp_path / "run").extra == extra
    entries = 1200 - record.n_excluded
    assert record.samples_seen == round(0.5 * entries)  # an epoch counts the data's own
    own = record.samples_seen - 28 * (record.samples_seen // 40) - extra_rows(record.samples_seen % 40, 0.7)
    assert record.unique_samples_seen == own + 60
    other = run_training(config_of(f"extra_data={extra_file(tmp_path, 59)}"), folder=tmp_path / "other")
    assert other.extra.fingerprint != extra.fingerprint


def test_pseudo_labels_are_the_models(tmp_path):
    labelled, bare = extra_file(tmp_path), extra_file(tmp_path, labels=False, name="bare.npz")
    with raises("bad-data", UserError, "bare.npz"):
        prepared(f"extra_data={bare}")
    given = prepared(f"extra_data={labelled}", "extra_labels=builtin:digits-robust")
    made = prepared(f"extra_data={bare}", "extra_labels=builtin:digits-robust")
    assert 0.9 < given.extra.agreement <= 1  # 96.8% clean accuracy on all 500
    assert made.extra.agreement is None
    assert made.extra.fingerprint == given.extra.fingerprint
    assert torch.equal(made.entries.labels[-60:], given.entries.labels[-60:])


def test_extra_images_that_are_validation_images_are_left_out(tmp_path):
    plain = prepared()
    held = plain.validation
    images = (held.images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "held.npz", image=images[:30], label=held.labels[:30].numpy())
    with raises("no-data", UserError, "held.npz"):
        prepared(f"extra_data={tmp_path / 'held.npz'}")
    kept = prepared(f"extra_data={tmp_path / 'held.npz'}", "keep_near_duplicates=yes")
    assert (kept.extra.n, kept.extra.n_excluded) == (30, 0)


@pytest.mark.parametrize(
    ("words", "code", "names"),
    [
        (("extra_share=0.001",), "bad-value", ["0.001", "40"]),
        (("extra_labels=builtin:digits-robust", "extra_data=null"), "missing-option", ["extra_data"]),
        (("extra_share=0.5", "extra_data=null"), "missing-option", ["extra_data"]),
        (("in_memory=no",), "options-conflict", ["in_memory"]),
        (("resize=6",), "", []),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, words, code, names):
    every = (f"extra_data={extra_file(tmp_path)}", *words)
    if not code:  # what is done to the data's images is done to these
        assert prepared(*every).entries.size == (6, 6)
        return
    with raises(code, UserError, *names):
        prepared(*every)


def test_labels_beyond_the_classes_and_other_shapes_are_refused(tmp_path):
    with raises("bad-labels", UserError, "0 to 9"):
        prepared(f"extra_data={extra_file(tmp_path, shift=1)}")
    np.savez(tmp_path / "large.npz", image=np.zeros((4, 9, 9, 1), dtype=np.uint8), label=np.arange(4))
    with raises("different-sizes", UserError, "1x9x9", "1x8x8"):
        prepared(f"extra_data={tmp_path / 'large.npz'}")


def test_transformed_and_mixed_images_give_the_same_weights_again(tmp_path):
    words = (
        "transforms=resized-crop(scale=0.5),erasing",
        "mix=cutmix",
        "objective=trades(beta=1)",
        "epochs=null",
        "steps=4",
    )
    record = run_training(config_of(*words), folder=tmp_path / "run")
    assert record.status == "complete"
    again = run_training(config_of(*words), folder=tmp_path / "again")
    assert again.checkpoints[1].fingerprint == record.checkpoints[1].fingerprint
    with raises("options-conflict", UserError, "mart"):
        run_training(config_of(*words[:2], "objective=mart"), folder=tmp_path / "mart")
