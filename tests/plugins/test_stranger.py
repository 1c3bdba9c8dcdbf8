"""A stranger's plugin, as pip would install it: a command, a kind of record with its page and figure, what a model is
shown in place of attacks, a finder of duplicates."""

import json
import os
import textwrap

import pytest

from tests import forked

SCHEMA = "stranger.greeting"

PLUGIN = '''
"""What a stranger wrote."""
import json
from pathlib import Path

from robustdup import Registry
from robustdup.plugins import FigureSpec, RecordKind, ThreatSpec


def register(registry: Registry) -> None:
    registry.add_command("hello", "stranger:hello", help="Say hello.")
    registry.add_command("data hello", "stranger:hello_data", help="Say hello to data.")
    registry.add_record_kind(RecordKind(
        "stranger.greeting", load="stranger:load", title="stranger:title", page="stranger:page",
        figures={"wave": FigureSpec("a wave", chart="stranger:wave")}, rank="stranger:rank", compare="stranger:compare",
        verify="stranger:recheck", files=("wave.txt",),
    ))
    registry.add_threat(ThreatSpec("wave", evaluate="stranger:evaluate", load="stranger:load_folder", show="stranger:show"))
    registry.add_duplicate_finder("same", "stranger:find", description="Equal bytes.")


def hello(name: str) -> int:
    """Say hello and keep a record of it."""
    Path(name).mkdir()
    (Path(name) / "record.json").write_text(json.dumps(
        {"schema_name": "stranger.greeting", "schema_version": 1, "greeting": "hello <b>" + name + "</b>"}))
    print("hello", name)
    return 0


def hello_data(times: int = 1) -> int:
    """Say hello to data."""
    print("hello data " * times)
    return 0


def load(path):
    return Waved(json.loads(Path(path).read_text()))


def title(record):
    return record["greeting"]


def page(run, name):
    from robustdup.report.html.page import Page, Section

    section = Section("reproduce", "Greeting", "sections/table.html.j2", run.record["greeting"], ())
    context = {"subtitle": [], "notices": [], "figures": [], "sentence": "It waved.", "segments": [], "sections": [section]}
    return Page(name, title(run.record), "Greeting", "summary.html.j2", context, {})


def wave(runs, width):
    from robustdup.report.charts import Chart, Point, Series, linear

    axis = linear(0, 2, "time")
    return Chart("wave", "", "", axis, axis, [Series("wave", [Point(0, 0), Point(1, 1), Point(2, 0)])])


class Waved(dict):
    """A record: its words, also as attributes."""

    record = property(lambda self: self)
    command = property(lambda self: self["greeting"])
    data = model = property(lambda self: self)
    fingerprint = "0"


def evaluate(config, *, folder, resume, progress, **_):
    progress("wave", 0, 1)
    hello(str(folder))
    (folder / "wave.txt").write_text(config.threat)
    return load(folder / "record.json")


def load_folder(folder):
    return load(folder / "record.json")


def show(record, folder, *, form):
    print(f"waved as {form}: {record['greeting']}")


def rank(path, table, *, clean, as_json):
    print(f"first, clean {clean}")


def compare(runs, *, as_json):
    print(f"{len(runs)} greetings")


def recheck(folder, changes, *, trust=False, model=None, images=None, labels=None):
    from robustdup.evidence.verification import Signed

    class Seen(Signed):
        n: int = 1
        about = property(lambda self: "a wave")

        def headline(self):
            return "It was " + (folder / "wave.txt").read_text()

    return Seen(accepted=True)


def find(a, b=None):
    import torch

    equal = [(i, j) for i in range(len(a)) for j in range(i) if torch.equal(a[i], a[j])]
    return torch.tensor([i for i, _ in equal]), torch.tensor([j for _, j in equal])
'''


@pytest.fixture(scope="module")
def robustdup(tmp_path_factory):
    """Return a function that runs the command line where the stranger's distribution is installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "stranger.py").write_text(PLUGIN)
    info = folder / "stranger-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("[robustdup.plugins]\nstranger = stranger:register\n")

    def run(*words, code=None):
        path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
        if code:
            (folder / "script.py").write_text(textwrap.dedent(code))
        command = [str(folder / "script.py")] if code else ["robustdup", *words]
        return forked.run(command, folder=folder, env={**os.environ, "PYTHONPATH": path})

    run.folder = folder
    return run


def test_the_command_is_listed_explained_and_run(robustdup):
    listed = robustdup("--help")
    assert "hello" in listed.stdout
    assert "Say hello." in listed.stdout
    result = robustdup("hello", "you")
    assert (result.returncode, result.stdout) == (0, "hello you\n"), result.stderr
    nested = robustdup("data", "hello", "--times", "2")
    assert (nested.returncode, nested.stdout.split()) == (0, ["hello", "data"] * 2), nested.stderr
    mistake = robustdup("hello")
    assert mistake.returncode == 2
    assert "Missing argument" in mistake.stderr


def test_its_record_gets_a_page_and_a_figure(robustdup):
    assert robustdup("hello", "page").returncode == 0
    made = robustdup("report", "page", "--to", "pages")
    assert made.returncode == 0, made.stderr
    html = (robustdup.folder / "pages" / "index.html").read_text()
    assert "It waved." in html
    assert "hello &lt;b&gt;page&lt;/b&gt;" in html  # a stranger's text is escaped like everybody's
    drawn = robustdup("plot", "page", "--kind", "wave", "--to", "wave.svg")
    assert drawn.returncode == 0, drawn.stderr
    assert (robustdup.folder / "wave.svg").read_text().startswith("<?xml")


def test_what_it_shows_in_place_of_attacks_is_evaluated_ranked_compared_and_verified(robustdup):
    done = robustdup("eval", "--threat", "wave(times=2)", "--out", "w", "--bundle", "w-bundle")
    assert done.returncode == 0, done.stderr
    assert "waved as table: hello <b>w</b>" in done.stdout
    again = robustdup("leaderboard", "rank", "w", "--clean", "50")
    assert (again.returncode, again.stdout) == (0, "first, clean 0.5\n"), again.stderr
    assert robustdup("hello", "other").returncode == 0
    assert robustdup("compare", "w", "other").stdout == "2 greetings\n"
    verified = robustdup("verify", "w-bundle")
    assert verified.returncode == 0, verified.stderr
    assert "accepted (a wave, 1 samples" in verified.stdout
    assert "It was wave(times=2)" in verified.stdout


def test_its_search_for_duplicates_is_found_and_used(robustdup):
    result = robustdup(
        code="""
        import json, torch, robustdup
        finders = robustdup.load_plugins().duplicate_finders
        images = torch.tensor([0, 1, 0], dtype=torch.uint8).view(3, 1, 1, 1)
        print(json.dumps([part.tolist() for part in finders["same"].find(images)]))
        """
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == [[2], [0]]


def test_doctor_names_the_plugin(robustdup):
    result = robustdup("doctor")
    assert "stranger" in result.stdout, result.stdout + result.stderr
