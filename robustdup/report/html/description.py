"""The page of a described dataset, from its record as plain JSON: multiplicities and class balance of each split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from robustdup.report.charts import Axis, Bar, Chart, counts
from robustdup.report.format import fixed, number, percent, plural, whole
from robustdup.report.html.page import Cell, Figure, Notice, Page, Section, Segment, Table
from robustdup.report.plain import Content, count_of, inside, list_of, number_of
from robustdup.report.runs import OtherRun

SCHEMA = "robustdup.description"
SAME_BY = {
    "source_index": "told apart by the column source_index",
    "pixels": "told apart by their pixels",
    "rows": "not compared with each other",
}
WIDEST = 24  # numbers of entries with a bar each
SIZES = 20  # sizes of images that are listed


def description_page(run: OtherRun, name: str) -> Page:
    """Return the page of a described dataset; the first split comes first."""
    splits = [one for one in list_of(run.content, "splits") if isinstance(one, Mapping)]
    sections = [section for at, split in enumerate(splits) for section in _split(split, at)]
    first = splits[0] if splits else {}
    context = {
        "subtitle": [plural(len(splits), "split"), str(run.content.get("created", ""))[:10]],
        "notices": list(_notices(splits)),
        "figures": list(_figures(first)) if splits else [],
        "sentence": _sentence(first) if splits else "",
        "segments": _segments(first),
        "sections": [*sections, _reproduce(run.content)],
    }
    return Page(name, str(run.content.get("data") or run.name), "Data", "summary.html.j2", context)


def _notices(splits: list[Content]) -> Iterator[Notice]:
    for split in splits:
        place = str(split.get("place", ""))
        if conflicts := count_of(split, "conflicts"):
            said = plural(conflicts, "sample carries", "samples carry")
            yield Notice("warning", f"{place}: {said} different labels.")
        if broken := count_of(split, "n_unreadable"):
            yield Notice("warning", f"{place}: {plural(broken, 'image')} cannot be read.")
        for note in list_of(split, "notes"):
            yield Notice("info", str(note))


def _figures(split: Content) -> Iterator[Figure]:
    entries, unique, copies = (count_of(split, key) for key in ("entries", "unique", "copies"))
    size = number_of(split.get("effective_sample_size"))
    how = SAME_BY.get(str(split.get("same_by")), "")
    yield Figure(
        "Distinct samples", whole(unique), unique, "splits.0.unique", f"of {whole(entries)} entries, {how}", big=True
    )
    yield Figure(
        "Copies", whole(copies), copies, "splits.0.copies", f"{percent(number_of(split.get('dose')))} of the entries"
    )
    yield Figure(
        "Effective sample size", fixed(size, 1), size, "splits.0.effective_sample_size",
        "Kish's: as many equal samples would weigh as much",
    )  # fmt: skip


def _sentence(split: Content) -> str:
    many = _multiplicity(split)
    if not many:
        return ""
    if max(many) == 1:
        return f"No sample of {split.get('place', '')} occurs twice."
    repeated = sum(n for times, n in many.items() if times > 1)
    return (
        f"In {split.get('place', '')} {plural(repeated, 'sample occurs', 'samples occur')} more than once, the most frequent "
        f"{max(many):,} times."
    )


def _segments(split: Content) -> list[Segment]:
    entries, unique, copies = (count_of(split, key) for key in ("entries", "unique", "copies"))
    if not entries or unique is None or copies is None or unique + copies != entries:
        return []
    parts = (("first of its sample", unique, "stands"), ("copy", copies, "broken"))
    return [Segment(label, n, n / entries, tone) for label, n, tone in parts if n]


def _multiplicity(split: Content) -> dict[int, int]:
    """How many samples have how many entries; keys that are no numbers are left out."""
    found = inside(split, "multiplicity")
    return {
        int(times): n for times, n in found.items() if str(times).isdecimal() and isinstance(n, int) and int(times) > 0
    }


def _split(split: Content, at: int) -> Iterator[Section]:
    place = str(split.get("place", ""))
    many = _multiplicity(split)
    if many:
        yield Section(
            f"multiplicities-{at}", f"Multiplicities, {place}", "sections/chart.html.j2", _sentence(split),
            charts=(_histogram(many, at),) if max(many) > 1 else (),
        )  # fmt: skip
    balance = _classes(split, at)
    if balance is not None:
        yield Section(f"balance-{at}", f"Class balance, {place}", "sections/table.html.j2", content=(balance,))
    tables = tuple(_tables(split, at))
    if tables:
        yield Section(f"images-{at}", f"Images, {place}", "sections/table.html.j2", content=tables)


def _histogram(many: Mapping[int, int], at: int) -> Chart:
    """A bar for each number of entries; for each power of two where the numbers reach far."""
    last = max(many)
    bins = [(times, times) for times in range(1, last + 1)]
    if last > WIDEST:
        bins = [(2**power, 2 ** (power + 1) - 1) for power in range(last.bit_length())]
    found = []
    for place, (low, high) in enumerate(bins, start=1):
        name = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        found.append((place, name, low, sum(n for times, n in many.items() if low <= times <= high)))
    bars = [
        Bar(
            place - 0.46,
            place + 0.46,
            0,
            n,
            "robust" if low == 1 else "broken",
            f"{name} entries: {plural(n, 'sample')}",
        )
        for place, name, low, n in found
        if n
    ]
    every = -(-len(found) // 12)
    ticks = tuple((float(place), name) for place, name, _, _ in found[::every])
    return Chart(
        f"multiplicities-{at}", "Entries of a sample", f"{plural(sum(many.values()), 'sample')}, at most {whole(last)} entries.",
        Axis(0.5, len(found) + 0.5, ticks, "entries of the sample"), counts(max(n for _, _, _, n in found), "samples"),
        bars=bars, height=200, headings=("entries", "samples"),
        rows=[(whole(times), whole(n)) for times, n in sorted(many.items())],
    )  # fmt: skip


def _classes(split: Content, at: int) -> Table | None:
    rows = []
    found = [one for one in list_of(split, "classes") if isinstance(one, Mapping)]
    most = max((number_of(one.get("share")) or 0.0 for one in found), default=0.0) or 1.0
    for row, one in enumerate(list_of(split, "classes")):
        if not isinstance(one, Mapping):
            continue
        entries, unique, copies = (count_of(one, key) for key in ("entries", "unique", "copies"))
        share = number_of(one.get("share"))
        dose = copies / entries if entries and copies is not None else None
        rows.append(
            [
                Cell(str(one.get("name", ""))),
                Cell(whole(entries), entries, f"splits.{at}.classes.{row}.entries" if entries is not None else ""),
                Cell(percent(share), share, bar=None if share is None else share / most),
                Cell(whole(unique), unique), Cell(whole(copies), copies),
                Cell(percent(dose), dose, bar=dose),
            ]
        )  # fmt: skip
    if not rows:
        return None
    headings = ("Class", "Entries", "Share of all", "Distinct", "Copies", "Copies of the class")
    return Table(f"balance-table-{at}", "Entries by class", headings, rows)


def _tables(split: Content, at: int) -> Iterator[Table]:
    for key, title in (("sizes", "Sizes"), ("modes", "Modes")):
        found = [(str(name), n) for name, n in inside(split, key).items() if isinstance(n, int)]
        if found:
            rows = [[Cell(name), Cell(whole(n), n)] for name, n in found[:SIZES]]
            left = f", the {SIZES} most frequent of {len(found)}" if len(found) > SIZES else ""
            yield Table(f"{key}-{at}", f"{title} of images{left}", (title[:-1], "Images"), rows)
    broken = [one for one in list_of(split, "unreadable") if isinstance(one, Mapping)]
    if broken:
        rows = [[Cell(number(number_of(one.get("row")), 12)), Cell(str(one.get("path", ""))), Cell(str(one.get("reason", "")))]
                for one in broken]  # fmt: skip
        yield Table(f"unreadable-{at}", "Images that cannot be read", ("Row", "Path", "Why"), rows, left=3)


def _reproduce(record: Content) -> Section:
    facts: dict[str, Any] = {"Finished": str(record.get("created", ""))}
    facts |= {str(name): str(value) for name, value in inside(record, "versions").items()}
    content = {"command": str(record.get("command", "")), "facts": facts}
    return Section("reproduce", "Run it again", "sections/reproduce.html.j2", content=content)
