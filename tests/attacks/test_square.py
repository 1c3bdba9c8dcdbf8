"""Square against the published code: step by step on one row, in its marginals, and in its success over queries."""

import math
import warnings
from fractions import Fraction

import pyautoattack.square as published
import pytest
import torch
from torch import nn

from robustdup import Passes, SampleRng, ThreatModel, UserError
from robustdup.attacks.square import square, square_cost
from robustdup.attacks.square_windows import CHUNK, draw_moves, window_pattern, window_sides
from robustdup.config import DataOptions
from robustdup.data.digits import load_builtin as digits
from robustdup.errors import AttackWarning
from robustdup.models.load import ModelOptions, load_builtin
from tests.lanes import each_once

EPS = {"Linf": "0.1", "L2": "1.0", "L1": "5"}
BREAKS_MANY = {"Linf": "0.25", "L2": "1.2", "L1": "4"}  # of the robust digits, in the course of some hundred queries


def reference(model, norm, queries, loss="margin", rescale=False, eps=EPS):
    attack = published.SquareAttack(
        model, norm=norm, n_queries=queries, eps=float(Fraction(eps[norm])), loss=loss, resc_schedule=rescale
    )
    attack.init_hyperparam(torch.zeros(1, 1, 8, 8))
    return attack


class Seen(nn.Module):
    """Keeps a copy of everything it is shown; with `hold`, class 0 is far ahead, so that no row leaves."""

    def __init__(self, shape, hold=100.0, classes=4, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(math.prod(shape), 24, generator=generator) / math.prod(shape) ** 0.5
        self.last = torch.randn(24, classes, generator=generator) * scale
        self.hold, self.images = hold, []

    def forward(self, images):
        self.images.append(images.detach().clone())
        logits = torch.tanh(images.flatten(1).float() @ self.first * 3) @ self.last
        return torch.cat([logits[:, :1] + self.hold, logits[:, 1:]], dim=1)


def scripted(values):
    """A stand-in for torch.rand that returns what it is told, and checks that what is asked for has that shape."""
    queue = iter(values)

    def rand(*shape):
        value = next(queue)
        assert tuple(torch.Size(shape[0] if isinstance(shape[0], list | tuple | torch.Size) else shape)) == value.shape
        return value

    return rand


def script(norm, rng, queries, shape):
    """The native attack's draws for one row, as the uniform numbers from which the published code makes the same."""
    channels, height, width = shape
    streams = rng.fold("restart").fold(0)
    start = streams.fold("start")
    if norm == "Linf":
        yield (start.signs((channels, 1, width)) + 1) / 4 + 0.25
    else:
        tiles = height // (height // 5), width // (height // 5)
        signs = start.fold("signs").signs((*tiles, channels))
        turned = start.fold("turns").integers(0, 2, tiles)
        for i in range(tiles[0]):
            for j in range(tiles[1]):
                yield turned[0, i, j].view(1) * 0.5 + 0.25
                yield (signs[:, i, j, :, None, None] + 1) / 4 + 0.25
    sides = window_sides(norm, queries, 0.8, height, width, rescale=False)
    for query, side in enumerate(sides):
        at, chunk = query % CHUNK, query // CHUNK
        moves = draw_moves(
            streams.fold("queries"), sides[chunk * CHUNK : (chunk + 1) * CHUNK], shape, chunk, norm != "Linf"
        )
        for corner in (moves.corner, moves.corner2) if norm != "Linf" else (moves.corner,):
            place = int(corner[0, at])
            for number, size in ((place // width, height), (place % width, width)):
                yield torch.tensor([(number + 0.5) / max(size - side, 1)])
        if norm != "Linf":
            yield moves.turned[:1, at] * 0.5 + 0.25
        sign = (moves.sign[0, at].float() + 1) / 4 + 0.25
        yield sign.view(channels, 1, 1) if norm == "Linf" else sign.view(1, channels, 1, 1)


@each_once(norm=EPS, loss=["margin", "ce"], shape=[(3, 10, 10), (1, 16, 16)])
def test_one_row_follows_the_published_code_step_by_step(norm, shape, loss, monkeypatch):
    """For a single row both draw for that row alone; given the same draws, all that the model is shown is the same.

    In L1 the published projection leaves changes of 1e-8 where it means none, and a window with nothing else in it
    takes their direction: there it gets an exact projection, in float64.
    """
    generator = torch.Generator().manual_seed(5)
    images, labels = (torch.rand(1, *shape, generator=generator) * 1.4 - 0.2).clamp(0, 1), torch.zeros(1).long()
    images = images.double() if norm == "L1" else images
    rng, queries = SampleRng(2, torch.tensor([7])), 2 * CHUNK + 12
    ours, theirs = (Seen(shape, hold=3.0, scale=0.15) for _ in range(2))
    square(ours, images, labels, ThreatModel(norm, EPS[norm]), rng=rng, queries=queries, loss=loss)
    with monkeypatch.context() as patch:
        if norm == "L1":
            patch.setattr(
                published, "L1_projection", lambda x, y, eps: ThreatModel(norm, eps).project(x, x + y) - x - y
            )
        patch.setattr(torch, "rand", scripted(script(norm, rng, queries, shape)))
        reference(theirs, norm, queries, loss).attack_single_run(images, labels)
    assert len(ours.images) == len(theirs.images) == queries + 1
    for query, (one, other) in enumerate(zip(ours.images, theirs.images, strict=True)):
        assert torch.allclose(one, other, atol=1e-3 if norm == "L1" else 2e-5), (
            f"query {query}: {float((one - other).abs().max())}"
        )
    moved = [not torch.equal(one, ours.images[0]) for one in ours.images]
    assert sum(moved) > queries / 2


class Curve(nn.Module):
    """Counts the points that each call breaks, given that a row leaves when it is misclassified and no other does."""

    def __init__(self, model, labels):
        super().__init__()
        self.model, self.left, self.broken = model, labels, []

    def forward(self, images):
        assert len(images) == len(self.left)
        logits = self.model(images)
        wrong = logits.argmax(dim=1) != self.left
        self.left = self.left[~wrong]
        self.broken.append(int(wrong.sum()))
        return logits

    def shares(self, queries, n):
        return torch.tensor([sum(self.broken[: query + 1]) / n for query in queries])


@pytest.fixture(scope="module")
def robust_points():
    rows = digits("digits", DataOptions(split="test"))
    model = load_builtin("digits-robust", ModelOptions()).eval()
    images, labels = rows.fetch(range(150))
    with torch.no_grad():
        right = model(images).argmax(dim=1) == labels
    return model, images[right][:120], labels[right][:120], torch.arange(150)[right][:120]


@pytest.mark.parametrize("norm", [pytest.param(n, marks=[] if n == "Linf" else pytest.mark.slow) for n in EPS])
def test_success_over_queries_is_that_of_the_published_code(norm, robust_points):
    model, images, labels, index = robust_points
    queries, seeds, at = 100, range(5), [0, 5, 20, 50, 100]
    ours, theirs = [], []
    for seed in seeds:
        curve = Curve(model, labels)
        threat = ThreatModel(norm, BREAKS_MANY[norm])
        square(curve, images, labels, threat, rng=SampleRng(seed, index), queries=queries)
        ours.append(curve.shares(at, len(images)))
        curve = Curve(model, labels)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            reference(curve, norm, queries, eps=BREAKS_MANY).attack_single_run(images, labels)
        theirs.append(curve.shares(at, len(images)))
    mine, known = torch.stack(ours), torch.stack(theirs)
    error = ((mine.var(dim=0) + known.var(dim=0)) / len(seeds)).sqrt()
    gap = (mine.mean(dim=0) - known.mean(dim=0)).abs()
    assert (gap <= 3 * error + 0.015).all(), (mine.mean(dim=0), known.mean(dim=0), error)
    assert float(known.mean(dim=0)[-1] - known.mean(dim=0)[0]) > 0.15  # what the search itself adds


@each_once(norm=EPS, shape=[(3, 16, 16), (1, 12, 12)])
def test_every_proposal_lies_inside_ball_and_box(norm, shape):
    images = (torch.rand(12, *shape, generator=torch.Generator().manual_seed(3)) * 2 - 0.5).clamp(0, 1)
    threat, model = ThreatModel(norm, EPS[norm]), Seen(shape)
    labels = torch.zeros(12, dtype=torch.int64)
    adv_images = square(model, images, labels, threat, rng=SampleRng(0, torch.arange(12)), queries=300)
    assert len(model.images) == 301
    for seen in model.images:
        assert not threat.violations(images, seen).any.any()
    assert not threat.violations(images, adv_images).any.any()
    distances = torch.stack([threat.distance(images, seen) for seen in model.images[::20]])
    assert float(distances.amin()) > 0.5 * threat.radius
    assert float(distances.amax()) > 0.99 * threat.radius


@pytest.mark.parametrize("norm", EPS)
def test_the_best_proposal_is_what_comes_back(norm):
    shape, labels = (3, 10, 10), torch.zeros(6, dtype=torch.int64)
    images, model = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1)), Seen((3, 10, 10))
    adv_images = square(
        model, images, labels, ThreatModel(norm, EPS[norm]), rng=SampleRng(0, torch.arange(6)), queries=150
    )
    seen = torch.stack(model.images)
    with torch.no_grad():
        margins = torch.stack([(lambda o: o[:, 0] - o[:, 1:].amax(dim=1))(model(images)) for images in seen])
    best = margins.argmin(dim=0)
    assert (best > 0).all()
    for row in range(6):
        assert torch.equal(adv_images[row], seen[best[row], row])


@each_once(
    height__width=[(32, 32), (28, 28), (8, 8), (5, 5), (3, 3), (20, 28), (224, 224)], norm=EPS, rescale=[False, True]
)
def test_windows_shrink_as_published(norm, rescale, height, width):
    for queries in (5000, 700):
        attack = reference(None, norm, queries, rescale=rescale)
        expected = []
        for query in range(queries):
            side = round(math.sqrt(attack.p_selection(query) * (3 * height * width) / 3))
            side = max(side, 1) if norm == "Linf" else max(side, 3) + (max(side, 3) % 2 == 0)
            expected.append(min(side, height, width))
        assert window_sides(norm, queries, 0.8, height, width, rescale=rescale) == expected


@pytest.mark.parametrize("norm", ["L2", "L1"])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 6, 9, 29])
def test_the_pattern_of_a_window_is_the_published_one(norm, side, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda shape: torch.zeros(shape))  # not turned
    attack = reference(None, norm, 1)
    attack.device = "cpu"
    assert torch.allclose(window_pattern(side, norm).float(), attack.eta(side), atol=1e-6)


@pytest.mark.parametrize(("height", "width", "side"), [(9, 12, 4), (8, 8, 8), (8, 8, 7), (6, 6, 1)])
def test_places_signs_and_turns_have_the_published_marginals(height, width, side):
    """The published code truncates, so that a window never lies at the last place that it fits (unless it is the only)."""
    moves = draw_moves(SampleRng(4, torch.arange(500)), [side] * CHUNK, torch.Size((33, height, width)), 3, True)
    attack = reference(None, "L2", 1)
    for corner in (moves.corner, moves.corner2):
        for places, size in ((corner // width, height), (corner % width, width)):
            expected = max(size - side, 1)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                drawn = attack.random_int(0, size - side, [10_000])
            counts = torch.bincount(places.flatten(), minlength=size).double()
            assert set(drawn.tolist()) == set(places.flatten().tolist()) == set(range(expected))
            share = counts[:expected] / counts.sum()
            assert float((share - 1 / expected).abs().max()) < 4.5 * math.sqrt(1 / expected / places.numel())
    assert torch.equal(moves.down, moves.corner2 // width - moves.corner // width)
    assert torch.equal(moves.along, moves.corner2 % width - moves.corner % width)
    assert set(moves.sign.unique().tolist()) == {-1, 1}
    assert set(moves.turned.unique().tolist()) == {0, 1}
    draws = torch.cat([moves.sign, moves.turned[..., None] * 2 - 1], dim=-1).flatten(0, 1).double()
    together = draws.T @ draws / len(draws) - torch.eye(34)  # coins of one query do not know each other
    assert float(together.abs().max()) < 5 / math.sqrt(len(draws))
    assert float(draws.mean(dim=0).abs().max()) < 4.5 / math.sqrt(len(draws))
    rows = moves.sign[:, :, 0].double()
    assert float((rows @ rows.T / CHUNK - torch.eye(500)).abs().max()) < 6 / math.sqrt(CHUNK)


class NoGradient(Seen):
    """Refuses to run with gradients on and to be differentiated; counts its rows."""

    def __init__(self, shape, hold=100.0):
        super().__init__(shape, hold)
        self.rows = 0

    def forward(self, images):
        assert not torch.is_grad_enabled()
        assert not images.requires_grad
        self.rows += len(images)
        return super().forward(images)


@pytest.mark.parametrize("norm", EPS)
def test_no_gradient_is_asked_for_and_a_survivor_costs_what_is_said(norm):
    images, model = torch.rand(5, 2, 7, 7, requires_grad=True), NoGradient((2, 7, 7))
    options = {"queries": 70, "restarts": 2}
    adv_images = square(
        model, images, torch.zeros(5).long(), ThreatModel(norm, "0.2"), rng=SampleRng(0, torch.arange(5)), **options
    )
    assert not adv_images.requires_grad
    assert torch.is_grad_enabled()
    assert square_cost(options) == (142, 0)
    assert model.rows == 5 * 142


@pytest.mark.parametrize("norm", EPS)
def test_a_fooled_row_leaves_at_once(norm):
    model = NoGradient((1, 6, 6), hold=-100.0)
    images = torch.rand(4, 1, 6, 6)
    square(model, images, torch.zeros(4).long(), ThreatModel(norm, "0.2"), rng=SampleRng(0, torch.arange(4)))
    assert model.rows == 4


@each_once(norm=EPS, loss=["margin", "ce"])
def test_a_row_is_bit_equal_in_any_order_and_company(norm, loss, robust_points):
    model, images, labels, index = robust_points

    def attacked(rows):
        return square(
            Passes(model, 8), images[rows], labels[rows], ThreatModel(norm, EPS[norm]),
            rng=SampleRng(3, index[rows]), queries=40, restarts=2, loss=loss,
        )  # fmt: skip

    everyone = attacked(torch.arange(20))
    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    for rows in (shuffled, torch.arange(11, 20), torch.tensor([13]), torch.tensor([19, 0, 11])):
        assert torch.equal(attacked(rows), everyone[rows])


def test_it_comes_close_to_the_optimum_of_a_linear_model():
    """Small windows never reach the last row and column, as published: those keep their stripes, the rest gets there."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(10, 1, 6, 6, generator=generator) * 2 - 0.5).clamp(0, 1)
    weight = torch.randn(1, 6, 6, generator=generator)
    rng, threat, labels = SampleRng(0, torch.arange(10)), ThreatModel("Linf", "0.1"), torch.zeros(10).long()
    adv_images = square(Scores(weight.flatten()), images, labels, threat, rng=rng, queries=1500)
    room = torch.where(weight > 0, 1 - images, images).clamp(max=0.1)
    inner = (slice(None), 0, slice(5), slice(5))
    best, gain = (room * weight.abs())[inner].flatten(1).sum(dim=1), ((adv_images - images) * weight)[inner]
    ratio = gain.flatten(1).sum(dim=1) / best
    assert float(ratio.min()) > 0.99
    assert float(ratio.max()) < 1 + 1e-4


class Scores(nn.Module):
    """Two classes: logits (0, w·x - 1000), so that the loss of label 0 is linear."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, images):
        score = images.flatten(1) @ self.weight - 1000.0
        return torch.stack([torch.zeros_like(score), score], dim=1)


class NanFor(Seen):
    """Returns NaN for images whose first pixel is above one half."""

    def forward(self, images):
        logits = super().forward(images)
        return torch.where((images[:, 0, 0, 0] > 0.5)[:, None], torch.nan, logits)


@pytest.mark.parametrize("norm", EPS)
def test_rows_of_nan_are_fooled_and_harm_no_other(norm):
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[:, 0, 0, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    threat, rng, labels = ThreatModel(norm, "0.2"), SampleRng(0, torch.arange(6)), torch.zeros(6).long()
    adv_images = square(NanFor((1, 8, 8)), images, labels, threat, rng=rng, queries=50)
    fine = images[:, 0, 0, 0] == 0
    others = square(NanFor((1, 8, 8)), images[fine], labels[fine], threat, rng=rng[fine], queries=50)
    assert torch.allclose(adv_images[fine], others, atol=1e-6)
    assert not threat.violations(images, adv_images).any.any()


@pytest.mark.parametrize("norm", EPS)
def test_images_that_are_not_square_work_and_say_so(norm):
    for shape in ((3, 6, 10), (1, 11, 4)):
        images, threat = torch.rand(3, *shape), ThreatModel(norm, "0.3")
        model = Seen(shape)
        with pytest.warns(AttackWarning, match=f"square: the images are {shape[1]}x{shape[2]}"):
            adv_images = square(
                model, images, torch.zeros(3).long(), threat, rng=SampleRng(0, torch.arange(3)), queries=80
            )
        assert not threat.violations(images, adv_images).any.any()
        assert not torch.equal(adv_images, images)


@each_once(size=[1, 2, 3, 4, 5, 8, 12, 28], norm=EPS, dtype=[torch.float32, torch.float64])
def test_any_size_works(norm, size, dtype):
    images, threat = torch.rand(3, 1, size, size, dtype=dtype), ThreatModel(norm, EPS[norm])
    model = Seen((1, size, size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adv_images = square(model, images, torch.zeros(3).long(), threat, rng=SampleRng(0, torch.arange(3)), queries=70)
    assert adv_images.dtype == dtype
    assert not torch.equal(adv_images, images)
    assert not any(threat.violations(images, seen).any.any() for seen in model.images)


def test_one_class_and_no_rows():
    images, rng = torch.rand(2, 1, 6, 6), SampleRng(0, torch.arange(2))
    threat, labels = ThreatModel("Linf", "0.1"), torch.zeros(2).long()
    only = Seen((1, 6, 6), classes=1)
    assert not threat.violations(images, square(only, images, labels, threat, rng=rng, queries=5)).any.any()
    assert len(square(only, images[:0], labels[:0], threat, rng=rng[:0], queries=5)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries must be at least 1"), ({"restarts": 0}, "restarts must be at least 1"),
        ({"p_init": 0.0}, "p_init is a share"), ({"loss": "margn"}, "Did you mean 'margin'"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        square(
            Seen((1, 4, 4)), torch.rand(1, 1, 4, 4), torch.zeros(1).long(), ThreatModel("Linf", "0.1"),
            rng=SampleRng(0, torch.arange(1)), **options,
        )  # fmt: skip
