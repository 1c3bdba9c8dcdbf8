"""What a gate says, for the machines around it: JUnit XML, SARIF, a summary in Markdown, a picture of the lost samples."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from robustdup.errors import plain
from robustdup.leaderboard import GateResult
from robustdup.leaderboard.gate import GateCheck, LostSample
from robustdup.records import load_record, load_samples
from robustdup.report.format import listed, percent, signed, signed_interval
from robustdup.report.gallery import LARGEST, displayable, encoded, find_pictures, side_by_side, tiles
from robustdup.report.samples import read_samples
from robustdup.report.tables import as_markdown

PICTURED = 24  # lost samples in a picture
NAMED = 20  # lost samples in a text
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
RULES = {
    "complete": "The evaluation finished.",
    "believable": "The robust accuracy may be believed.",
    "minimum": "The robust accuracy is at least the minimum.",
    "no-drop": "The robust accuracy is not down against the baseline by more than the margin and chance.",
}


def as_junit(result: GateResult, seconds: float = 0.0) -> bytes:
    """Return a JUnit XML file: a test case for each check."""
    failed = [check for check in result.checks if not check.passed]
    counts = {"tests": str(len(result.checks)), "failures": str(len(failed)), "errors": "0"}
    root = ElementTree.Element("testsuites", counts)
    time = {"time": f"{seconds:.3f}"}
    suite = ElementTree.SubElement(root, "testsuite", {"name": "robustdup gate", **counts, **time})
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _facts(result):
        ElementTree.SubElement(properties, "property", {"name": name, "value": plain(value)})
    for check in result.checks:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": "robustdup.gate", "name": check.name, "time": "0.000"}
        )
        if not check.passed:
            failure = ElementTree.SubElement(case, "failure", {"type": check.name, "message": plain(check.message)})
            failure.text = _detail(result, check)
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def as_sarif(result: GateResult, place: Path, version: str) -> bytes:
    """Return a SARIF 2.1.0 file: a result for each check that failed, at the run's record.

    Args:
        result: what the gate says.
        place: the record, shown relative to the working folder where it lies inside.
        version: of robustdup.
    """
    path = place.resolve()
    uri = path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else path.as_uri()
    results = [
        {
            "ruleId": f"robustdup/{check.name}",
            "level": "error",
            "message": {"text": _detail(result, check)},
            "locations": [
                {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1, "startColumn": 1}}}
            ],
            "partialFingerprints": {"gate/v1": f"{check.name}:{plain(result.model)}:{result.norm}:{result.eps}"},
        }
        for check in result.checks
        if not check.passed
    ]
    rules = [
        {"id": f"robustdup/{name}", "name": name, "shortDescription": {"text": text}} for name, text in RULES.items()
    ]
    driver = {"name": "robustdup", "version": version, "rules": rules}
    document = {
        "$schema": SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "results": results, "columnKind": "utf16CodeUnits"}],
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def as_summary(result: GateResult) -> str:
    """Return a summary in Markdown, as a step of a workflow shows it."""
    word = "✅ passed" if result.passed else "❌ failed"
    rows = [[check.name, "passed" if check.passed else "failed", check.message] for check in result.checks]
    caption = f"{result.model}, {result.norm}, eps = {result.eps}, {result.n} samples"
    parts = [f"## Robustness gate: {word}", "", as_markdown(caption, ["check", "", "what was seen"], rows, left=3)]
    facts = [list(pair) for pair in _facts(result)]
    parts += ["", as_markdown("", ["", ""], facts, left=2).strip()]
    if result.lost:
        head = ["index", "label", "lost to"]
        lost = [[str(sample.index), str(sample.label), sample.cause] for sample in result.lost[:NAMED]]
        more = f" (the first {NAMED})" if len(result.lost) > NAMED else ""
        title = f"{len(result.lost)} samples were lost{more}"
        table = as_markdown("", head, lost, left=3).strip()
        parts += ["", f"<details><summary>{title}</summary>", "", table, "", "</details>"]
    parts += [""] + [f"- {plain(note).replace('<', '&lt;')}" for note in result.notes]
    return "\n".join(parts).rstrip() + "\n"


def picture(result: GateResult, folder: Path) -> bytes | str:
    """Return the lost samples as a PNG, a row each: clean, adversarial, difference; or why there is none, in words.

    Args:
        result: what the gate says.
        folder: of the new run.
    """
    if not result.lost:
        return "no sample was lost"
    record = load_record(folder)
    samples = read_samples(record, load_samples(folder))
    pictures = find_pictures(folder, len(samples))
    if isinstance(pictures, str):
        return pictures
    rows = np.flatnonzero(np.isin(samples.index, [sample.index for sample in result.lost[:PICTURED]]))
    adv_images = displayable(pictures.adversarial(rows))
    columns, _ = side_by_side(record, adv_images, pictures.clean_images(rows))
    factor = max(1, math.ceil(max(adv_images.shape[2:]) / LARGEST))
    sheet = tiles(columns, factor)
    grown = max(1, LARGEST // max(sheet.shape[0] // len(rows), 1))  # small images are shown large
    return encoded(np.ascontiguousarray(sheet.repeat(grown, axis=0).repeat(grown, axis=1)), png=True)


def _facts(result: GateResult) -> list[tuple[str, str]]:
    facts = [
        ("robust accuracy", f"{percent(result.robust_accuracy)} [{100 * result.low:.2f}, {100 * result.high:.2f}]")
    ]
    if result.minimum is not None:
        facts.append(("minimum", percent(result.minimum)))
    if result.paired is not None and result.margin is not None:
        paired = result.paired
        facts += [
            ("baseline", f"{percent(paired.a)} ({result.baseline})"),
            (
                "change in points, 95% interval",
                f"{signed(-paired.difference)} ({signed_interval(-paired.high, -paired.low)})",
            ),
            ("margin", f"{100 * result.margin:g}pt"),
            ("lost, gained", f"{paired.only_a}, {paired.only_b}"),
            ("p, one-sided", f"{result.p_value:.3g}"),
        ]
    return facts


def _detail(result: GateResult, check: GateCheck) -> str:
    text = f"{check.message}."
    if check.name == "no-drop" and result.lost:
        text += f" Lost samples, by index: {listed([_named(sample) for sample in result.lost], NAMED)}."
    return plain(text)


def _named(sample: LostSample) -> str:
    return f"{sample.index} ({sample.cause})"
