"""The published pages of results against the published cells, recomputed with scipy and statsmodels alone."""

from __future__ import annotations

import csv
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from robustdup_study.paper_2504_00638.published import FIGURES, NOTEBOOK
from scipy import stats
from statsmodels.stats.multitest import multipletests

RESULTS = Path(__file__).parents[3] / "docs" / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="the documentation is there in a clone only")


def points(name, factors, dose=True):
    """Return {(factors, the last a dose, metric): values by seed, in points} of a table of cells."""
    found = {}
    with (RESULTS / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            levels = [row[factor] for factor in factors]
            levels[-1] = float(levels[-1]) if dose else levels[-1]
            for metric in row:
                if metric not in (*factors, "seed", "cell", "status") and row[metric]:
                    key = (*levels, metric)
                    found.setdefault(key, {})[int(row["seed"])] = 100 * float(row[metric])
    return found


@pytest.fixture(scope="module")
def cells():
    return points("cifar10-small-cpu", ("objective", "scheme", "arm", "budget", "dose"))


def difference(cells, objective, scheme, budget, metric="clean_accuracy", condition="copies", dose=0.5):
    """Paired differences to the same seeds without copies."""
    where = (objective, scheme, condition, budget)
    after, before = cells[*where, dose, metric], cells[*where, 0.0, metric]
    return np.array([after[seed] - before[seed] for seed in sorted(after)])


def told(values, signed=True):
    """Write a mean with its t interval as the pages do."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return (
        f"{values.mean():+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
        .replace("+0.0 ", "0.0 ")
        .replace("−0.0 ", "0.0 ")
    )


PLACES = [
    (objective, scheme, metric)
    for scheme in ("uniform", "class_skewed")
    for objective, metric in (
        ("standard", "clean_accuracy"),
        ("pgd_at", "clean_accuracy"),
        ("pgd_at", "robust_accuracy"),
    )
]


@pytest.mark.parametrize(("objective", "scheme", "metric"), PLACES)
def test_differences_and_intervals_of_the_page_are_those_of_the_cells(cells, objective, scheme, metric):
    page = (RESULTS / "cifar10-small-cpu.md").read_text(encoding="utf-8")
    words = (
        {"uniform": "uniform", "class_skewed": "five classes"}[scheme],
        {"standard": "standard", "pgd_at": "PGD"}[objective],
    )
    [row] = re.findall(rf"^\| {', '.join(words)} \| {metric.split('_')[0]} \|.*$", page, flags=re.MULTILINE)
    for budget in ("fixed-steps", "fixed-epochs"):
        assert told(difference(cells, objective, scheme, budget, metric)) in row


def family(cells):
    """The 15 comparisons that the recipe calls primary: differences, by place."""
    found = {}
    for budget in ("fixed-epochs", "fixed-steps"):
        for objective, scheme, metric in PLACES:
            found[objective, scheme, metric, budget] = difference(cells, objective, scheme, budget, metric)
    for objective, metric in (
        ("standard", "clean_accuracy"),
        ("pgd_at", "clean_accuracy"),
        ("pgd_at", "robust_accuracy"),
    ):
        control, copies = (
            difference(cells, objective, "class_skewed", "fixed-steps", metric, condition)
            for condition in ("prior-matched", "copies")
        )
        found[objective, "control", metric, "fixed-steps"] = control - copies
    return found


def test_corrected_p_values_of_the_page_are_holms_over_the_fifteen(cells):
    page = (RESULTS / "cifar10-small-cpu.md").read_text(encoding="utf-8")
    found = family(cells)
    assert len(found) == 15
    plain = [stats.ttest_1samp(values, 0).pvalue for values in found.values()]
    p = dict(zip(found, multipletests(plain, method="holm")[1], strict=True))
    for (objective, scheme, metric, budget), value in p.items():
        if scheme == "control":
            assert value > 0.05
            assert told(found[objective, scheme, metric, budget]) in page
            continue
        name = "uniform" if scheme == "uniform" else "five classes"
        words = f"{name}, {'standard' if objective == 'standard' else 'PGD'}"
        [row] = re.findall(rf"^\| {words} \| {metric.split('_')[0]} \|.*$", page, flags=re.MULTILINE)
        cell = row.split("|")[3 if budget == "fixed-steps" else 4]
        shown = "open" if value >= 0.05 else "p < 0.001" if value < 0.001 else f"p = {value:.2g}"
        assert shown in cell, (words, metric, budget, value)
    assert round(p["pgd_at", "uniform", "robust_accuracy", "fixed-steps"], 2) == 0.19


def test_the_control_has_a_third_fewer_images(cells):
    at = ("class_skewed", "prior-matched", "fixed-steps", 0.5, "unique_samples")
    images = {round(np.mean(list(cells[objective, *at].values())) / 100) for objective in ("standard", "pgd_at")}
    assert images == {3159}
    assert "3,159 distinct images against 4,750" in (RESULTS / "cifar10-small-cpu.md").read_text(encoding="utf-8")


def test_every_difference_of_the_tables_is_that_of_the_cells(cells):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (RESULTS / "cifar10-small-cpu-tables.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| (standard|pgd_at) \| (uniform|class_skewed) \|", line)
    ]
    assert len(rows) == 36
    for objective, scheme, condition, budget, dose, _, clean, clean_text, robust, robust_text in rows:
        for metric, mean, text in (("clean_accuracy", clean, clean_text), ("robust_accuracy", robust, robust_text)):
            values = cells[objective, scheme, condition, budget, float(dose), metric]
            assert float(mean) == pytest.approx(np.mean(list(values.values())), abs=0.006)
            if float(dose):
                found = difference(cells, objective, scheme, budget, metric, condition, float(dose))
                ends = stats.t.interval(0.95, len(found) - 1, found.mean(), stats.sem(found))
                numbers = [float(part) for part in re.findall(r"[+-]?[\d.]+", text.replace("−", "-"))]
                assert numbers == pytest.approx([found.mean(), *ends], abs=0.006)


def test_the_page_of_the_published_protocol_is_that_of_its_cells():
    page = (RESULTS / "paper-small-cpu.md").read_text(encoding="utf-8")
    cells = points("paper-small-cpu", ("arm", "clamp", "percent"))
    effects = {}
    for arm, clamp in (("adversarial", "published"), ("adversarial", "repaired"), ("standard", "published")):
        for dose in (60.0, 100.0):
            after, before = (cells[arm, clamp, at, "test_clean_acc"] for at in (dose, 0.0))
            effects[arm, clamp, dose] = np.array([after[seed] - before[seed] for seed in sorted(after)])
            assert told(effects[arm, clamp, dose]) in page
    clamp = [
        effects["adversarial", "repaired", dose] - effects["adversarial", "published", dose] for dose in (60.0, 100.0)
    ]
    assert all(told(values) in page for values in clamp)
    tested = [effects[key] for key in effects if key[0] == "adversarial"] + clamp
    p = multipletests([stats.ttest_1samp(values, 0).pvalue for values in tested], method="holm")[1]
    assert min(p) == pytest.approx(0.55, abs=0.005)


def test_the_statistics_of_the_eleven_published_figures():
    page = " ".join((RESULTS / "paper-small-cpu.md").read_text(encoding="utf-8").split())
    runs = [figure for figure in FIGURES if figure.arm == "adversarial" and figure.source == NOTEBOOK]
    again = {
        figure.percent: figure.clean
        for figure in FIGURES
        if figure.source not in (NOTEBOOK,) and figure.arm == "adversarial"
    }
    doses, clean = (np.array([getattr(figure, name) for figure in runs]) for name in ("percent", "clean"))
    assert len(clean) == 11
    line, rank = stats.linregress(doses, clean), stats.spearmanr(doses, clean)
    assert f"{10 * line.slope:.2f} points for ten more per cent (p = {line.pvalue:.2f})".replace("-", "−") in page
    assert f"{rank.statistic:.2f} (p = {rank.pvalue:.2f})".replace("-", "−") in page
    grubbs = (clean.mean() - clean.min()) / clean.std(ddof=1)
    t = stats.t.ppf(1 - 0.05 / 11, 9)
    critical = 10 / np.sqrt(11) * np.sqrt(t**2 / (9 + t**2))
    assert f"statistic {grubbs:.2f}, critical value {critical:.2f}" in page
    pairs = np.array([value - again[percent] for percent, value in zip(doses, clean, strict=True) if percent in again])
    noise = np.sqrt((pairs**2).sum() / 2 / len(pairs))
    ratio = clean.var(ddof=1) / noise**2
    assert f"standard deviation of {noise:.1f} points" in page
    assert f"{clean.std(ddof=1):.1f} (F = {ratio:.1f}, p = {stats.f.sf(ratio, 10, len(pairs)):.2f}, one-sided)" in page
    ends = [noise * np.sqrt(len(pairs) / stats.chi2.ppf(q, len(pairs))) for q in (0.975, 0.025)]
    assert f"known only to lie between {ends[0]:.1f} and {ends[1]:.1f};" in page
    smallest = -np.random.default_rng(0).normal(size=(100_000, 11)).min(axis=1).mean()
    assert f"a smallest {smallest:.1f} standard deviations below" in page


def test_the_page_of_the_fall_by_half_is_that_of_its_cells():
    page = (RESULTS / "paper-fall.md").read_text(encoding="utf-8")
    cells = {
        (percent, metric): np.array([values[seed] for seed in range(3)])
        for (_, percent, metric), values in points("paper-fall", ("arm", "percent")).items()
    }
    assert [cells[dose, "steps"][0] / 100 for dose in (0.0, 60.0)] == [1185, 1875]
    words = {
        "test_clean_acc": "clean",
        "test_adv_acc": "attacked",
        "clamped_accuracy": "clean, dark pixels turned grey as in training",
    }
    for metric, word in words.items():
        before, after = cells[0.0, metric], cells[60.0, metric]
        runs = [", ".join(f"{value:.1f}" for value in values) for values in (before, after)]
        means = [f"{values.mean():.1f}" for values in (before, after)]
        differ = p_text(stats.ttest_1samp(after - before, 0).pvalue)
        assert row_of(page, word) == [*runs, *means, told(after - before), differ]
    text = " ".join(page.split()).replace("−", "-")
    before, after = cells[0.0, "test_clean_acc"], cells[60.0, "test_clean_acc"]
    above = told(after - before / 2).replace("+", "")
    assert f"At 60% accuracy lies {above.replace(' [', ' points [')} above half" in text
    one, two, three = (f"{value:+.1f}" for value in after - before)
    assert f"{one}, {two} and {three};" in text
    spreads = [values.std(ddof=1) for values in (before, after)]
    pooled = np.mean(np.square(spreads))
    ends = [np.sqrt(4 * pooled / stats.chi2.ppf(q, 4)) for q in (0.975, 0.025)]
    assert f"{spreads[0]:.1f} points without copies, {spreads[1]:.1f} with them" in text
    assert f"{pooled**0.5:.1f} [{ends[0]:.1f}, {ends[1]:.1f}] for both together" in text
    assert f"it is {cells[0.0, 'clamped_accuracy'].std(ddof=1):.1f} without copies" in text
    published = [figure.clean for figure in FIGURES if figure.arm == "adversarial" and figure.source == NOTEBOOK]
    assert f"whose standard deviation is {np.std(published, ddof=1):.1f}, with" in text
    assert (
        f"difference of two is {2**0.5 * spreads[0]:.1f}; the published one is {max(published) - min(published):.1f}."
        in text
    )
    assert f"below {before.min():.1f}%, and the lowest had no copies" in text


UNIFORM = [
    ("pgd_at", "clean_accuracy", 0.25),
    ("pgd_at", "clean_accuracy", 0.5),
    ("pgd_at", "robust_accuracy", 0.25),
    ("pgd_at", "robust_accuracy", 0.5),
    ("standard", "clean_accuracy", 0.25),
    ("standard", "clean_accuracy", 0.5),
]


@pytest.fixture(scope="module")
def uniform():
    """Paired differences of the study of uniform copies: the six comparisons that its recipe calls primary."""
    cells = points("uniform-adversarial", ("objective", "dose"))
    found = {}
    for objective, metric, dose in UNIFORM:
        after, before = cells[objective, dose, metric], cells[objective, 0.0, metric]
        assert sorted(after) == sorted(before) == list(range(20))
        found[objective, metric, dose] = np.array([after[seed] - before[seed] for seed in sorted(after)])
    return found


def p_text(p):
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def test_the_page_of_uniform_copies_is_that_of_its_cells(uniform):
    page = (RESULTS / "uniform-adversarial.md").read_text(encoding="utf-8")
    differ = multipletests([stats.ttest_1samp(values, 0).pvalue for values in uniform.values()], method="holm")[1]
    within = multipletests([within_a_point(values) for values in uniform.values()], method="holm")[1]
    for (objective, metric, dose), values, p, same in zip(uniform, uniform.values(), differ, within, strict=True):
        words = f"{'standard' if objective == 'standard' else 'PGD'} | {metric.split('_')[0]} | {100 * dose:g}%"
        [row] = re.findall(rf"^\| {re.escape(words)} \|.*$", page, flags=re.MULTILINE)
        assert told(values) in row
        assert [cell.strip() for cell in row.split("|")][5:7] == [p_text(p), p_text(same)]


def crossed(answers):
    """Return the 95% interval of a mean over seeds and images, both random: two-way variance, Satterthwaite's freedom."""
    n_seeds, n_images = answers.shape
    seeds, images = answers.mean(axis=1), answers.mean(axis=0)
    rest = answers - seeds[:, None] - images + answers.mean()
    over_seeds, over_images = n_images * seeds.var(ddof=1), n_seeds * images.var(ddof=1)
    free = np.array([n_seeds - 1, n_images - 1, (n_seeds - 1) * (n_images - 1)])
    parts = np.array([over_seeds, over_images, (rest**2).sum() / free[2]])
    variance = parts @ [1, 1, -1]
    half = stats.t.ppf(0.975, variance**2 / (parts**2 / free).sum()) * np.sqrt(variance / answers.size)
    return 100 * (answers.mean() - half), 100 * (answers.mean() + half)


def within_a_point(values, margin=1):
    """The larger p value of two one-sided tests."""
    lower, upper = ((-margin, "greater"), (margin, "less"))
    return max(stats.ttest_1samp(values, end, alternative=side).pvalue for end, side in (lower, upper))


CROSSED = [
    (scheme, f"{metric}_accuracy")
    for scheme in ("uniform", "class_skewed")
    for metric in ("clean", "robust", "prior_adjusted")
]
SHARES = {"uniform": "even", "class_skewed": "skewed"}
CONDITIONS = ("copies", "matched")


@pytest.fixture(scope="module")
def crossed_cells():
    """Values of the study of non-uniform copies, (scheme, condition, metric): 20 seeds, in points."""
    cells = points("non-uniform", ("scheme", "condition"), dose=False)
    assert len({len(values) for values in cells.values()} - {20}) == 0
    return {place: np.array([values[seed] for seed in range(20)]) for place, values in cells.items()}


def row_of(page, *words):
    [row] = re.findall(rf"^\| {re.escape(' | '.join(words))} \|.*$", page, flags=re.MULTILINE)
    return [cell.strip() for cell in row.strip("|").split("|")][len(words) :]


def test_the_page_of_non_uniform_copies_is_that_of_its_cells(crossed_cells):
    page = (RESULTS / "non-uniform.md").read_text(encoding="utf-8")
    effects = {
        (scheme, metric): crossed_cells[scheme, "matched", metric] - crossed_cells[scheme, "copies", metric]
        for scheme, metric in CROSSED
    }
    differ = multipletests([stats.ttest_1samp(values, 0).pvalue for values in effects.values()], method="holm")[1]
    within = multipletests([within_a_point(values) for values in effects.values()], method="holm")[1]
    for ((scheme, metric), values), p, same in zip(effects.items(), differ, within, strict=True):
        words = metric.removesuffix("_accuracy").replace("prior_", "")
        verdict = "equivalent" if same < 0.05 else "undecided"
        if p < 0.05:
            verdict = "lower" if values.mean() < 0 else "higher"
        assert row_of(page, SHARES[scheme], words) == [told(values), p_text(p), p_text(same), verdict]
    for metric in ("clean", "robust", "prior_adjusted"):
        words, name = metric.replace("prior_", ""), f"{metric}_accuracy"
        skewed = [crossed_cells["class_skewed", c, name] - crossed_cells["uniform", c, name] for c in CONDITIONS]
        interaction = effects["class_skewed", name] - effects["uniform", name]
        assert row_of(page, words)[:3] == [told(values) for values in (*skewed, interaction)]
        assert row_of(page, words)[3] == p_text(within_a_point(interaction))
    for scheme in SHARES:
        for condition in CONDITIONS:
            assert set(crossed_cells[scheme, condition, "unique_samples"]) == {475_000}
            assert set(crossed_cells[scheme, condition, "steps"]) == {37_200}


@pytest.mark.parametrize(("objective", "metric"), [("pgd_at", "robust_accuracy"), ("standard", "clean_accuracy")])
def test_intervals_over_seeds_and_images_are_those_of_the_published_answers(uniform, objective, metric):
    with np.load(RESULTS / "uniform-adversarial-answers.npz") as arrays:
        n = {"clean_accuracy": 10_000, "robust_accuracy": 2_000}[metric]
        answers = np.unpackbits(arrays[metric], axis=-1, count=n)[("standard", "pgd_at").index(objective)].astype(float)
    page = " ".join((RESULTS / "uniform-adversarial.md").read_text(encoding="utf-8").split())
    ends = []
    for row, dose in ((1, 0.25), (2, 0.5)):
        difference = answers[row] - answers[0]
        assert 100 * difference.mean(axis=1) == pytest.approx(uniform[objective, metric, dose], abs=1e-9)
        ends.append("[{1:.1f}, {0:.1f}]".format(*(-end for end in crossed(difference))))
    assert (
        f"{metric.split('_')[0]}{' of standard training' * (objective == 'standard')} {ends[0]} and {ends[1]}" in page
    )


def test_intervals_of_non_uniform_copies_over_seeds_and_images_are_those_of_the_published_answers(crossed_cells):
    page = " ".join((RESULTS / "non-uniform.md").read_text(encoding="utf-8").split())
    with np.load(RESULTS / "non-uniform-answers.npz") as arrays:
        sizes = {"clean_accuracy": 10_000, "robust_accuracy": 2_000}
        answers = {name: np.unpackbits(arrays[name], axis=-1, count=n).astype(float) for name, n in sizes.items()}
    for name, ((copies, distinct), (skewed_copies, skewed_distinct)) in answers.items():
        for number, values in enumerate((copies, distinct, skewed_copies, skewed_distinct)):
            place = ("uniform", "class_skewed")[number // 2], CONDITIONS[number % 2], name
            assert 100 * values.mean(axis=1) == pytest.approx(crossed_cells[place], abs=1e-9)
        interaction = crossed(skewed_distinct - skewed_copies - distinct + copies)
        assert (
            f"{name.removesuffix('_accuracy')} [{interaction[0]:.1f}, {interaction[1]:.1f}]".replace("-", "−") in page
        )
    (copies, distinct), (skewed_copies, skewed_distinct) = answers["clean_accuracy"]
    for told_mean, effect in (("−11.9", skewed_copies - copies), ("−11.7", skewed_distinct - distinct)):
        low, high = crossed(effect)
        assert f"{told_mean} [{low:.1f}, {high:.1f}]".replace("-", "−") in page


STEPS = [
    (objective, target, dose)
    for objective, target in (("standard", "clean_40"), ("pgd_at", "clean_40"), ("pgd_at", "robust_15"))
    for dose in (0.25, 0.5)
]


def whole(values):
    """Write a mean of steps with its t interval."""
    low, high = stats.t.interval(0.95, len(values) - 1, values.mean(), stats.sem(values))
    return f"{values.mean():+.0f} [{low:+.0f}, {high:+.0f}]".replace("-", "−")


def test_the_page_of_steps_to_a_target_is_that_of_its_cells():
    page = (RESULTS / "less-efficient.md").read_text(encoding="utf-8")
    cells = points("less-efficient", ("objective", "dose"))
    effects, means = {}, {}
    for objective, target, dose in STEPS:
        after, before = (
            np.array([cells[objective, at, f"steps_to_{target}"][seed] / 100 for seed in range(10)])
            for at in (dose, 0.0)
        )
        effects[objective, target, dose], means[objective, target, dose] = after - before, (before.mean(), after.mean())
    differ = multipletests([stats.ttest_1samp(values, 0).pvalue for values in effects.values()], method="holm")[1]
    within = multipletests([within_a_point(values, 20) for values in effects.values()], method="holm")[1]
    for ((objective, target, dose), values), p, same in zip(effects.items(), differ, within, strict=True):
        words = ("standard" if objective == "standard" else "PGD", f"{target.replace('_', ' ')}%")
        verdict = "equivalent" if same < 0.05 else "undecided"
        assert p > 0.05
        before, after = means[objective, target, dose]
        row = row_of(page, *words, f"{before:.0f}", f"{100 * dose:.0f}%")
        assert row == [f"{after:.0f}", whole(values), p_text(p), p_text(same), verdict]
    text = " ".join(page.split())
    for objective, metric in (("standard", "clean"), ("pgd_at", "clean"), ("pgd_at", "robust")):
        for dose in (0.25, 0.5):
            after, before = (cells[objective, at, f"{metric}_accuracy"] for at in (dose, 0.0))
            interval = told(np.array([after[seed] - before[seed] for seed in range(10)])).partition(" ")[2]
            assert interval in text or interval.replace("+", "") in text
    others = [f"steps_to_{target}" for target in ("clean_15", "clean_20", "clean_30", "robust_20")]
    for objective, metric, dose in itertools.product(("standard", "pgd_at"), others, (0.25, 0.5)):
        if (objective, 0.0, metric) in cells and len(cells[objective, 0.0, metric]) == 10:
            after, before = (cells[objective, at, metric] for at in (dose, 0.0))
            values = np.array([after[seed] - before[seed] for seed in range(10)])
            assert values.std() == 0 or stats.ttest_1samp(values, 0).pvalue > 0.05


def test_answers_of_steps_to_a_target_are_those_of_the_cells():
    cells = points("less-efficient", ("objective", "dose"))
    with np.load(RESULTS / "less-efficient-answers.npz") as arrays:
        for metric, n in (("clean_accuracy", 10_000), ("robust_accuracy", 2_000)):
            right = np.unpackbits(arrays[metric], axis=-1, count=n).mean(axis=-1)
            for i, objective in enumerate(("standard", "pgd_at")):
                for j, dose in enumerate((0.0, 0.25, 0.5)):
                    expected = [cells[objective, dose, metric][seed] for seed in range(10)]
                    assert 100 * right[i, j] == pytest.approx(expected, abs=1e-9)


BUDGETS = ("short", "four-times")
GAINS = [(metric, budget) for metric in ("clean", "robust") for budget in BUDGETS]


@pytest.fixture(scope="module")
def gains():
    """Values of the study of longer training, (metric, budget, dose): 10 seeds, in points."""
    cells = points("no-gain", ("budget", "dose"))
    assert {len(values) for values in cells.values()} == {10}
    return {
        (metric, budget, dose): np.array([cells[budget, dose, f"{metric}_accuracy"][seed] for seed in range(10)])
        for metric, budget in GAINS
        for dose in (0.0, 0.5)
    } | {("steps", budget, dose): cells[budget, dose, "steps"][0] / 100 for budget in BUDGETS for dose in (0.0, 0.5)}


def test_the_page_of_longer_training_is_that_of_its_cells(gains):
    page = (RESULTS / "no-gain.md").read_text(encoding="utf-8")
    effects = {(metric, budget): gains[metric, budget, 0.5] - gains[metric, budget, 0.0] for metric, budget in GAINS}
    change = effects["clean", "four-times"] - effects["clean", "short"]
    tested = [*effects.values(), change]
    differ = multipletests([stats.ttest_1samp(values, 0).pvalue for values in tested], method="holm")[1]
    within = multipletests([within_a_point(values) for values in tested], method="holm")[1]
    words = {"short": "10 epochs", "four-times": "40 epochs"}
    for (metric, budget), p, same in zip(GAINS, differ, within, strict=False):
        values = effects[metric, budget]
        verdict = "equivalent" if same < 0.05 else "undecided"
        if p < 0.05:
            verdict = "lower" if values.mean() < 0 else "higher"
        means = [f"{gains[metric, budget, dose].mean():.1f}" for dose in (0.0, 0.5)]
        assert row_of(page, metric, words[budget]) == [*means, told(values), p_text(p), p_text(same), verdict]
    assert row_of(page, "clean", "40 epochs less 10")[2:5] == [told(change), p_text(differ[-1]), p_text(within[-1])]
    robust = effects["robust", "four-times"] - effects["robust", "short"]
    assert told(robust) in page
    for dose in (0.0, 0.5):
        for metric in ("clean", "robust"):
            assert told(gains[metric, "four-times", dose] - gains[metric, "short", dose]) in page
    steps = [gains["steps", budget, dose] for budget in BUDGETS for dose in (0.0, 0.5)]
    assert all(f"{round(number):,}" in page for number in steps)


def test_answers_of_longer_training_are_those_of_the_cells(gains):
    text = " ".join((RESULTS / "no-gain.md").read_text(encoding="utf-8").split())
    with np.load(RESULTS / "no-gain-answers.npz") as arrays:
        for metric, n in (("clean", 10_000), ("robust", 2_000)):
            right = np.unpackbits(arrays[f"{metric}_accuracy"], axis=-1, count=n).astype(float)
            for i, budget in enumerate(BUDGETS):
                for j, dose in enumerate((0.0, 0.5)):
                    assert 100 * right[j, i].mean(axis=-1) == pytest.approx(gains[metric, budget, dose], abs=1e-9)
                low, high = crossed(right[1, i] - right[0, i])
                assert f"[{low:.1f}, {high:.1f}]".replace("-", "−") in text, (metric, budget)


@pytest.fixture(scope="module")
def precisions():
    """Values of the study of bf16 beside fp32, (metric, precision): 5 seeds, accuracies in points, training in minutes."""
    cells = points("precision", ("precision",), dose=False)
    assert {len(values) for values in cells.values()} == {5}
    found = {place[::-1]: np.array([values[seed] for seed in range(5)]) for place, values in cells.items()}
    return found | {("minutes", p): found["seconds", p] / 100 / 60 for p in ("bf16", "fp32")}


def test_the_page_of_bf16_beside_fp32_is_that_of_its_cells(precisions):
    page = (RESULTS / "precision.md").read_text(encoding="utf-8")
    gaps = {
        metric: precisions[f"{metric}_accuracy", "bf16"] - precisions[f"{metric}_accuracy", "fp32"]
        for metric in ("clean", "robust")
    }
    differ = multipletests([stats.ttest_1samp(values, 0).pvalue for values in gaps.values()], method="holm")[1]
    within = multipletests([within_a_point(values) for values in gaps.values()], method="holm")[1]
    for (metric, values), p, same in zip(gaps.items(), differ, within, strict=True):
        verdict = "equivalent" if same < 0.05 else "undecided"
        if p < 0.05:
            verdict = ("lower" if values.mean() < 0 else "higher") + (", within 1 point" if same < 0.05 else "")
        means = [f"{precisions[f'{metric}_accuracy', precision].mean():.1f}" for precision in ("fp32", "bf16")]
        assert row_of(page, metric) == [*means, told(values), p_text(p), p_text(same), verdict]
    for precision in ("bf16", "fp32"):
        columns = [precisions[name, precision] for name in ("clean_accuracy", "robust_accuracy", "minutes")]
        assert row_of(page, precision) == [f"{v.mean():.1f} ({v.min():.1f} to {v.max():.1f})" for v in columns]


def test_what_the_recipe_reaches_is_what_the_page_says(precisions):
    """At least 55% clean and 33% robust, in each seed and precision."""
    lowest = {
        metric: min(precisions[f"{metric}_accuracy", precision].min() for precision in ("bf16", "fp32"))
        for metric in ("clean", "robust")
    }
    reached = lowest["clean"] >= 55 and lowest["robust"] >= 33
    page = (RESULTS / "precision.md").read_text(encoding="utf-8")
    assert ("were reached by every cell" in page) == reached
    assert f"the lowest are {lowest['clean']:.1f}% and {lowest['robust']:.1f}%" in page
