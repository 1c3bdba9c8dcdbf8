"""The page of a search in a real browser: it fits a phone, can be read, and its pairs can be searched."""

import pytest
from test_page import HOSTILE, save_record

from robustdup.report.html import write_report
from tests.report.test_browser import CONTRAST, browser, visit  # noqa: F401


@pytest.fixture
def kinds(tmp_path):
    """The page of a search with hostile names."""
    save_record(tmp_path / "run", HOSTILE)
    return {"duplicates": write_report([tmp_path / "run"], tmp_path / "pages")}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_search_fits_a_phone_and_can_be_read(visit, kinds, scheme):  # noqa: F811
    page = visit(kinds["duplicates"], width=375, height=700, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    assert page.evaluate(CONTRAST) == []
    assert page.locator("img").count() == 0


def test_pairs_can_be_searched(visit, kinds):  # noqa: F811
    page = visit(kinds["duplicates"])
    shown = page.locator("#pair-cards .card:visible")
    assert shown.count() == 3
    page.fill("input[data-filters=pair-cards]", "train 3")
    assert shown.count() == 2
    page.select_option("select[data-filters=pair-cards]", "across splits")
    assert shown.count() == 1
    assert page.locator("[data-counts=pair-cards]").inner_text() == "1 of 3"
    page.fill("input[data-filters=pair-cards]", "bird")
    assert shown.count() == 0
