"""The shipped table says what RobustBench published, and is chosen from as asked."""

import subprocess
import sys
from collections import Counter
from fractions import Fraction

import pytest

from robustdup.errors import UserError
from robustdup.leaderboard import load, ordered, select
from robustdup.leaderboard.table import SHIPPED, cache_path, exact_eps, read_table, same_eps, write_table
from tests.raising import raises


def find(dataset, threat, model_id):
    return next(e for e in load().board(dataset, threat) if e.model_id == model_id)


def test_the_shipped_table_holds_the_published_entries():
    table = load()
    assert len(table.entries) == 236
    assert {key: len(entries) for key, entries in table.boards.items()} == {
        ("cifar10", "L2"): 21, ("cifar10", "Linf"): 99, ("cifar10", "corruptions"): 23, ("cifar100", "Linf"): 38,
        ("cifar100", "corruptions"): 13, ("imagenet", "Linf"): 30, ("imagenet", "corruptions"): 12,
    }  # fmt: skip
    assert table.date == "2026-11-22"
    assert "github.com/RobustBench/robustbench" in table.source
    assert "MIT" in table.licence


def test_known_numbers():
    carmon = find("cifar10", "Linf", "Carmon2019Unlabeled")
    assert (carmon.clean_acc, carmon.autoattack_acc, carmon.extra_data, carmon.eps) == (89.69, 59.53, True, "8/255")
    kang = find("cifar10", "Linf", "Kang2021Stable")
    assert (kang.autoattack_acc, kang.external_acc, kang.robust_acc, kang.unreliable) == (71.28, 64.20, 64.20, True)
    deit = find("imagenet", "corruptions", "Tian2022Deeper_DeiT-B")
    assert (deit.corruptions_acc, deit.corruptions_mce, deit.robust_acc, deit.eps) == (67.55, 41.70, 67.55, None)


def test_names_are_unique_and_every_entry_has_its_number():
    entries = load().entries
    assert max(Counter(entry.key for entry in entries).values()) == 1
    assert all(entry.robust_acc is not None and entry.clean_acc is not None for entry in entries)
    assert sum(entry.external_acc is not None for entry in entries) == 25
    assert not any("<" in entry.venue + entry.paper_title for entry in entries)


def test_a_radius_is_kept_as_text_and_compared_exactly():
    trades = find("cifar10", "Linf", "Zhang2019Theoretically")
    assert trades.eps == "0.031"
    assert exact_eps(trades.eps) == Fraction(31, 1000)
    assert not same_eps("0.031", "8/255")
    assert same_eps("16/510", "8/255")
    assert same_eps(repr(8 / 255), "8/255")
    table = load()
    assert [table.eps(*key) for key in table.boards] == ["0.5", "8/255", None, "8/255", None, "4/255", None]


def test_robustbench_order_puts_external_evaluations_in_place_of_autoattack():
    robust = [e.robust_acc for e in select(dataset="CIFAR-10", threat="linf")]
    assert robust == sorted(robust, reverse=True)
    by_autoattack = [e.model_id for e in select(dataset="cifar10", threat="Linf", sort="autoattack", top=2)]
    assert by_autoattack == ["Amini2024MeanSparse_S-WRN-94-16", "Bartoldson2024Adversarial_WRN-94-16"]
    assert [e.model_id for e in select(dataset="cifar10", threat="Linf", top=2)] == by_autoattack[::-1]


def test_filters():
    assert {e.model_id for e in select(unreliable=True)} == {"Kang2021Stable", "Xiao2020Enhancing"}
    assert len(select(eps="0.031")) == 6
    assert len(select(extra_data=True)) + len(select(extra_data=False)) == 236
    assert {e.venue for e in select(search="neurips 2019", dataset="cifar10", threat="Linf")} == {"NeurIPS 2019"}
    assert all("swin" in e.architecture.lower() for e in select(architecture="Swin"))
    names = [e.model_id.lower() for e in select(dataset="imagenet", sort="name")]
    assert names == sorted(names)


def test_entries_without_the_number_come_last():
    entries = ordered(select(dataset="cifar10", threat="Linf"), "external")
    missing = [e.external_acc is None for e in entries]
    assert missing == sorted(missing)
    assert any(missing)


@pytest.mark.parametrize(
    ("arguments", "code", "names"),
    [
        ({"dataset": "cifar01"}, "unknown-dataset", ["'cifar10'"]),
        ({"threat": "Lin"}, "unknown-threat-model", ["'Linf'"]),
        ({"dataset": "cifar100", "threat": "L2"}, "unknown-leaderboard", ["cifar100", "Linf, corruptions"]),
        ({"sort": "clena"}, "unknown-sort-order", ["'clean'"]),
        ({"top": 0}, "bad-option", ["--top"]),
    ],
)
def test_mistakes_are_named(arguments, code, names):
    with raises(code, UserError, *names):
        select(**arguments)


def test_a_fetched_table_comes_first_and_a_damaged_one_is_left_aside(own_cache):
    table = read_table(SHIPPED)
    smaller = type(table)(table.entries[:3], "elsewhere", "MIT", "2027-01-01", "a" * 40)
    write_table(smaller, cache_path())
    assert load() == smaller
    assert cache_path().parent == own_cache
    cache_path().write_text(cache_path().read_text()[:500])
    left_aside = load()
    assert left_aside.entries == table.entries
    assert "not a whole JSON file" in left_aside.warning
    with raises("damaged-file"):
        load(cache_path())


def test_a_newer_table_is_refused(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(SHIPPED.read_text().replace('"version": 1', '"version": 2'))
    with raises("newer-version", UserError, "version 2"):
        load(path)


def test_the_package_does_without_torch():
    code = (
        "import sys, robustdup.leaderboard, robustdup.cli.leaderboard, robustdup.cli.compare; "
        "robustdup.leaderboard.load(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
