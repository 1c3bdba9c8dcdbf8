"""The page of a described dataset: multiplicities, class balance and images of each split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from robustdup.records.description import DescriptionRecord, SplitDescription
from robustdup.report.charts import Axis, Bar, Chart, counts
from robustdup.report.format import fixed, percent, plural, whole
from robustdup.report.html.page import Cell, Figure, Notice, Page, Section, Segment, Table, reproduce_section
from robustdup.report.runs import Run

SAME_BY = {
    "source_index": "told apart by the column source_index",
    "pixels": "told apart by their pixels",
    "rows": "not compared with each other",
}
WIDEST = 24  # numbers of entries with a bar each
SIZES = 20  # sizes of images that are listed


def description_page(run: Run, name: str) -> Page:
    """Return the page of a described dataset, named `name`; the first split comes first."""
    record: DescriptionRecord = run.record
    first = record.splits[0] if record.splits else None
    sections = [section for number, split in enumerate(record.splits) for section in _split(split, number)]
    context = {
        "subtitle": [plural(len(record.splits), "split"), record.created[:10]],
        "notices": [notice for split in record.splits for notice in _notices(split)],
        "figures": list(_figures(first)) if first else [],
        "sentence": _sentence(first) if first else "",
        "segments": _segments(first) if first else [],
        "sections": [*sections, reproduce_section(record.command, {"Finished": record.created, **record.versions})],
    }
    return Page(name, record.data or run.name, "Data", "summary.html.j2", context)


def _notices(split: SplitDescription) -> Iterator[Notice]:
    if split.conflicts:
        carriers = plural(split.conflicts, "sample carries", "samples carry")
        yield Notice("warning", f"{split.place}: {carriers} different labels.")
    if split.n_unreadable:
        yield Notice("warning", f"{split.place}: {plural(split.n_unreadable, 'image')} cannot be read.")
    for note in split.notes:
        yield Notice("info", note)


def _figures(split: SplitDescription) -> Iterator[Figure]:
    how = f"of {whole(split.entries)} entries, {SAME_BY[split.same_by]}"
    yield Figure("Distinct samples", whole(split.unique), split.unique, "splits.0.unique", how, big=True)
    rate = f"{percent(split.dose)} of the entries"
    yield Figure("Copies", whole(split.copies), split.copies, "splits.0.copies", rate)
    size = split.effective_sample_size
    kish = "Kish's: as many equal samples would weigh as much"
    yield Figure("Effective sample size", fixed(size, 1), size, "splits.0.effective_sample_size", kish)


def _sentence(split: SplitDescription) -> str:
    if not split.multiplicity:
        return ""
    most = max(split.multiplicity)
    if most == 1:
        return f"No sample of {split.place} occurs twice."
    repeated = sum(n for entries, n in split.multiplicity.items() if entries > 1)
    return (
        f"In {split.place} {plural(repeated, 'sample occurs', 'samples occur')} more than once, the most frequent "
        f"{most:,} times."
    )


def _segments(split: SplitDescription) -> list[Segment]:
    if not split.entries or split.unique + split.copies != split.entries:
        return []
    parts = (("first of its sample", split.unique, "stands"), ("copy", split.copies, "broken"))
    return [Segment(label, n, n / split.entries, tone) for label, n, tone in parts if n]


def _split(split: SplitDescription, number: int) -> Iterator[Section]:
    if split.multiplicity:
        charts = (_histogram(split.multiplicity, number),) if max(split.multiplicity) > 1 else ()
        heading = f"Multiplicities, {split.place}"
        yield Section(f"multiplicities-{number}", heading, "sections/chart.html.j2", _sentence(split), charts=charts)
    tables = {"balance": ("Class balance", [_classes(split, number)] if split.classes else [])}
    tables["images"] = ("Images", list(_images(split, number)))
    for name, (heading, content) in tables.items():
        if content:
            template = "sections/table.html.j2"
            yield Section(f"{name}-{number}", f"{heading}, {split.place}", template, content=tuple(content))


def _histogram(multiplicity: Mapping[int, int], number: int) -> Chart:
    """Return a bar for each number of entries; for each power of two where the numbers reach far."""
    last = max(multiplicity)
    bins = [(entries, entries) for entries in range(1, last + 1)]
    if last > WIDEST:
        bins = [(2**power, 2 ** (power + 1) - 1) for power in range(last.bit_length())]
    names = [f"{low:,}" if low == high else f"{low:,} to {high:,}" for low, high in bins]
    sizes = [sum(n for entries, n in multiplicity.items() if low <= entries <= high) for low, high in bins]
    bars = [
        Bar(x - 0.46, x + 0.46, 0, n, "robust" if x == 1 else "broken", f"{name} entries: {plural(n, 'sample')}")
        for x, (name, n) in enumerate(zip(names, sizes, strict=True), start=1)
        if n
    ]
    every = -(-len(bins) // 12)
    ticks = tuple((float(x), name) for x, name in list(enumerate(names, start=1))[::every])
    return Chart(
        f"multiplicities-{number}",
        "Entries of a sample",
        f"{plural(sum(multiplicity.values()), 'sample')}, at most {whole(last)} entries.",
        Axis(0.5, len(bins) + 0.5, ticks, "entries of the sample"),
        counts(max(sizes), "samples"),
        bars=bars,
        height=200,
        headings=("entries", "samples"),
        rows=[(whole(entries), whole(n)) for entries, n in sorted(multiplicity.items())],
    )


def _classes(split: SplitDescription, number: int) -> Table:
    most = max(count.share for count in split.classes) or 1.0
    rows = []
    for index, count in enumerate(split.classes):
        rate = count.copies / count.entries if count.entries else None
        rows.append(
            [
                Cell(count.name),
                Cell(whole(count.entries), count.entries, f"splits.{number}.classes.{index}.entries"),
                Cell(percent(count.share), count.share, bar=count.share / most),
                Cell(whole(count.unique), count.unique),
                Cell(whole(count.copies), count.copies),
                Cell(percent(rate), rate, bar=rate),
            ]
        )
    headings = ("Class", "Entries", "Share of all", "Distinct", "Copies", "Copies of the class")
    return Table(f"balance-table-{number}", "Entries by class", headings, rows)


def _images(split: SplitDescription, number: int) -> Iterator[Table]:
    for key, heading, images in (("sizes", "Sizes", split.sizes), ("modes", "Modes", split.modes)):
        if images:
            rows = [[Cell(name), Cell(whole(n), n)] for name, n in list(images.items())[:SIZES]]
            cut = f", the {SIZES} most frequent of {len(images)}" if len(images) > SIZES else ""
            yield Table(f"{key}-{number}", f"{heading} of images{cut}", (heading[:-1], "Images"), rows)
    if split.unreadable:
        rows = [[Cell(str(image.row)), Cell(image.path), Cell(image.reason)] for image in split.unreadable]
        yield Table(f"unreadable-{number}", "Images that cannot be read", ("Row", "Path", "Why"), rows, left=3)
