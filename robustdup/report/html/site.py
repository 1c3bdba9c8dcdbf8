"""From runs to a folder of pages: which pages there are, their templates filled in, nothing fetched from anywhere.

Each page carries its own style and script, so that it can be read from a disk, a server or a mail. Its Content Security
Policy lets it load nothing but pictures beside it, and run no script but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from robustdup.errors import UserError
from robustdup.plugins import record_kinds
from robustdup.report import format as text
from robustdup.report.format import WORDS_MEET
from robustdup.report.html.comparison import difference_text
from robustdup.report.html.folder import check_folder, write_files
from robustdup.report.html.page import Notice, Page, Section
from robustdup.report.runs import Run, UnfinishedRun, read_run
from robustdup.report.svg import page_svg

OWN_PAGES = 12  # up to this many runs each get a page of their own beside the comparison
INDEX = "index"
CONTROL = dict.fromkeys(code for code in range(32) if chr(code) not in "\t\n")  # no character of an HTML page


def write_report(
    places: Sequence[str | Path],
    to: Path,
    *,
    overwrite: bool = False,
    gallery: int = 240,
    each: bool | None = None,
    clean_images: Mapping[int, Any] | None = None,
) -> Path:
    """Write the pages of runs into the folder `to` and return the path of its index.html.

    `gallery` samples a run are shown as pictures; `each` says whether every run gets a page of its own besides (None: up to
    twelve). `clean_images` are those of runs that kept none, by place. Raises UserError where a place holds no run, and where
    the folder holds something else (unless `overwrite`); RunError where it cannot be written.
    """
    check_folder(to, overwrite=overwrite)
    each = len(places) <= OWN_PAGES if each is None else each
    runs = [read_run(place, brief=len(places) > 1 and not each) for place in places]
    shown = [
        replace(run, gallery=gallery, clean_images=(clean_images or {}).get(i)) if isinstance(run, Run) else run
        for i, run in enumerate(runs)
    ]
    pages = make_pages(shown, each=each)
    files: dict[str, bytes] = {}
    for page in pages:
        files[f"{page.name}.html"] = render(page).encode("utf-8", "replace")
        files.update(page.files)
    write_files(to, files, overwrite=overwrite)
    return to / f"{INDEX}.html"


def make_pages(runs: Sequence[Run | UnfinishedRun], *, each: bool) -> list[Page]:
    """Return the pages of runs, the one to begin with first. File names are numbers: nothing in a record names a file.

    Without `each`, runs that are compared sample by sample get no page of their own beside the comparison.
    """
    if not runs:
        raise UserError("Name at least one run: robustdup report RUN...", code="no-runs")
    if len(runs) == 1:
        return [_page(runs[0], INDEX)]
    needed = [each or isinstance(run, UnfinishedRun) or not run.kind.samples for run in runs]
    names = [f"run-{i + 1:03d}" if make else "" for i, make in enumerate(needed)]
    return [_index(runs, names), *(_page(run, name) for run, name in zip(runs, names, strict=True) if name)]


def _page(run: Run | UnfinishedRun, name: str) -> Page:
    if isinstance(run, UnfinishedRun):
        return _unfinished_page(run, name)
    if run.kind.page is None:
        schema = run.kind.schema
        raise UserError(
            f"There is no page for records of kind {schema!r}, as {str(run.folder)!r} holds.", code="no-page"
        )
    page: Page = run.kind.page(run, name)
    return page


def _unfinished_page(run: UnfinishedRun, name: str) -> Page:
    settings = {key: str(value) for key, value in run.config.items() if value not in (None, [], {}, False)}
    context = {"there": run.there, "commands": run.commands, "settings": settings}
    return Page(name, run.name, "Unfinished run", "unfinished.html.j2", context)


def _index(runs: Sequence[Run | UnfinishedRun], names: Sequence[str]) -> Page:
    """The page that several runs begin with: those of a kind compared, and a list of the others."""
    linked = [(run, f"{name}.html" if name else "") for run, name in zip(runs, names, strict=True)]
    by_kind: dict[str, list[tuple[Run, str]]] = {}
    for run, link in linked:
        if isinstance(run, Run):
            by_kind.setdefault(run.kind.schema, []).append((run, link))
    sections: list[Section] = []
    compared = set()
    for schema, kind in record_kinds().items():
        alike = by_kind.get(schema, [])
        if len(alike) > 1 and kind.sections is not None:
            sections += kind.sections([run for run, _ in alike], [link for _, link in alike])
            compared.add(schema)
    others = [(run, link) for run, link in linked if isinstance(run, UnfinishedRun) or run.kind.schema not in compared]
    if others:
        sections.append(Section("others", "Other runs", "sections/others.html.j2", content=others))
    finished = [run for run in runs if isinstance(run, Run)]
    notices = [Notice("warning", f"{run.record.run_id}: {note}") for run in finished for note in run.notes]
    context = {"sections": sections, "subtitle": [text.plural(len(runs), "run")], "notices": notices}
    return Page(INDEX, "Comparison", "Comparison", "comparison.html.j2", context)


def _loaders() -> list[PackageLoader]:
    """Where templates are: here, and in the packages of plugged-in kinds."""
    packages = [
        "robustdup.report.html",
        *sorted({kind.templates for kind in record_kinds().values() if kind.templates}),
    ]
    return [PackageLoader(package, "templates") for package in packages]


@cache
def environment() -> Environment:
    """The templates, with autoescape everywhere and an error for a name that does not exist."""
    templates = Environment(
        loader=ChoiceLoader(_loaders()), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    words = (
        "known",
        "fixed",
        "percent",
        "interval",
        "signed",
        "signed_interval",
        "number",
        "whole",
        "short",
        "duration",
        "plural",
        "listed",
    )
    templates.filters.update({name: getattr(text, name) for name in words})
    templates.filters.update({"difference": difference_text, "drawn": page_svg, "breakable": breakable})
    return templates


def breakable(name: object) -> Markup:
    """Return a name that a browser breaks where its words meet, and only where these do not fit inside a word."""
    return Markup("<wbr>").join(WORDS_MEET.split(str(name)))


def render(page: Page) -> str:
    """Return a page as HTML."""
    style, script = _asset("style.css"), _asset("page.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src 'self' file: data:",  # file: for a page that is opened from a disk
            "style-src 'unsafe-inline'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    template = environment().get_template(page.template)
    text = template.render(page=page, style=style, script=script, policy=policy, **page.context)
    return text.translate(CONTROL)


@cache
def _asset(name: str) -> str:
    return (resources.files("robustdup.report.html") / "assets" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
