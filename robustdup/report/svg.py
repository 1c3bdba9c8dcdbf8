"""Vega-Lite drawn as SVG by vl-convert, with nothing fetched from anywhere; in a page for wide and for narrow columns."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from xml.etree import ElementTree

from robustdup.report.charts import Chart
from robustdup.report.vega import SCREEN, specification

SVG = "http://www.w3.org/2000/svg"
BROAD, NARROW = 924, 370  # pixels that a chart of a page is drawn for


@lru_cache(maxsize=256)
def _draw(text: str) -> str:
    import vl_convert  # takes part of a second to start, which only charts need

    return str(vl_convert.vegalite_to_svg(text, allowed_base_urls=[]))


def draw(spec: Mapping[str, Any]) -> ElementTree.Element:
    """Return a specification of Vega-Lite as an SVG tree, with nothing fetched from anywhere."""
    root = ElementTree.fromstring(_draw(json.dumps(spec)))
    _prune(root)
    return root


def _prune(element: ElementTree.Element) -> None:
    """Leave out what draws nothing: empty paths, groups that only hold others, words for tools that there are none for."""
    kept: list[ElementTree.Element] = []
    for child in element:
        kind = child.get("class", "")
        if child.get("d") == "" or (kind in ("background", "foreground")):
            continue
        if kind.startswith("mark-") and kind.split()[-1].endswith("_marks"):
            child.set("class", re.sub(r"(_\d+)?_marks$", "", kind.split()[-1]))
        else:
            child.attrib.pop("class", None)
        for name in ("role", "aria-roledescription", "aria-hidden", "pointer-events", "stroke-miterlimit"):
            child.attrib.pop(name, None)
        if child.get("opacity") == "1":
            del child.attrib["opacity"]
        _prune(child)
        plain = child.tag == f"{{{SVG}}}g" and not child.attrib
        kept += list(child) if plain else [child] if len(child) or child.tag != f"{{{SVG}}}g" else []
    element[:] = kept


def page_svg(chart: Chart) -> str:
    """Return a chart for a page: drawn for a wide column and for a narrow one, of which the style sheet shows one."""
    return "".join(_page_svg(chart, name, width) for name, width in (("broad", BROAD), ("narrow", NARROW)))


def _page_svg(chart: Chart, name: str, width: int) -> str:
    spec, hints = specification(chart, width, SCREEN)
    root = draw(spec)
    root.attrib = {"class": name, "viewBox": root.attrib["viewBox"]}
    for parent in list(root.iter()):
        for place, child in enumerate(list(parent)):
            label = child.attrib.pop("aria-label", "")
            child.attrib.pop("font-family", None)  # the page's own
            if not label.startswith("hint "):
                continue
            words, href = hints[int(label[5:])]
            child.set("data-tip", words)
            child.set("class", parent.get("class", ""))
            if href:
                link = ElementTree.Element(f"{{{SVG}}}a", {"href": href, "aria-label": words})
                link.append(child)
                parent[place] = link
    return text_of(root, html=True)


def text_of(root: ElementTree.Element, *, html: bool = False) -> str:
    """Return an SVG tree as text, numbers with two decimals: more cannot be seen."""
    ElementTree.register_namespace("", SVG)
    for element in root.iter():
        for key in ("d", "transform", "x", "y", "x2", "y2", "width", "height"):
            if (value := element.get(key)) is not None and "." in value:
                element.set(key, re.sub(r"-?\d+\.\d{3,}(?!\d|e)", lambda match: f"{float(match[0]):.2f}", value))
    text = ElementTree.tostring(root, encoding="unicode")
    return text.replace(f' xmlns="{SVG}"', "", 1) if html else text
