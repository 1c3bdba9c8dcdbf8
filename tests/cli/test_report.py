"""`robustdup report` and `robustdup plot`: what is written where, and what a mistake is told."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from robustdup.cli.main import main

_spec = importlib.util.spec_from_file_location("report_conftest", Path(__file__).parents[1] / "report" / "conftest.py")
_made = importlib.util.module_from_spec(_spec)
sys.modules["report_conftest"] = _made  # dataclasses look their module up
_spec.loader.exec_module(_made)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBUSTDUP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(tmp_path):
    return lambda name="run", **options: str(_made.make_run(tmp_path / name, **options).folder)


def test_one_run_gets_its_page_inside_its_folder(run, capsys):
    folder = run()
    assert main(["report", folder]) == 0
    assert capsys.readouterr().out.strip() == f"{folder}/report/index.html"
    assert "68" not in (Path(folder) / "report" / ".robustdup-report.json").read_text()
    assert main(["report", folder]) == 0  # again: its own pages are replaced


def test_several_runs_get_one_folder(run, tmp_path, capsys):
    assert main(["report", run("a"), run("b")]) == 0
    assert capsys.readouterr().out.strip() == "report/index.html"
    assert sorted(p.name for p in (tmp_path / "report").glob("*.html")) == [
        "index.html",
        "run-001.html",
        "run-002.html",
    ]
    assert main(["report", run("c"), run("d"), "--to", "other", "--no-each"]) == 0
    assert sorted(p.name for p in (tmp_path / "other").glob("*.html")) == ["index.html"]


def test_a_folder_of_somebody_else(run, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    assert main(["report", run(), "--to", "mine"]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["report", run("again"), "--to", "mine", "--overwrite"]) == 0
    assert (tmp_path / "mine" / "file").read_text() == "x"


def test_a_mistake_is_one_message(capsys):
    assert main(["report", "nowhere"]) == 2
    assert "There is no record at 'nowhere'" in capsys.readouterr().err
    assert main(["report"]) == 2


def test_the_card_goes_to_standard_output_or_a_new_file(run, tmp_path, capsys):
    folder = run()
    assert main(["report", "--card", folder]) == 0
    text = capsys.readouterr().out
    assert text.startswith("---\npipeline_tag: image-classification\n")
    assert main(["report", "--card", folder, "--to", "CARD.md"]) == 0
    assert (tmp_path / "CARD.md").read_text() == text
    assert main(["report", "--card", folder, "--to", "CARD.md"]) == 2
    assert main(["report", "--card", folder, folder]) == 2
    assert "about one run; 2 were given" in capsys.readouterr().err


def test_a_figure(run, tmp_path, capsys):
    folder = run()
    assert main(["plot", folder, "--to", "figure.svg", "--kind", "classes", "--width", "two"]) == 0
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")
    assert main(["plot", folder, "--to", "figure.svg"]) == 2
    assert main(["plot", folder, "--to", "other.svg", "--width", "three"]) == 2
    assert "Unknown width 'three'" in capsys.readouterr().err


def test_clean_images_are_read_again_where_the_data_is_the_same(run, tmp_path, capsys):
    from robustdup.config import EvalConfig
    from robustdup.jobs import load_data
    from robustdup.plugins import load_plugins
    from robustdup.records import DataInfo

    config = EvalConfig(n=20)
    data = load_data(config, load_plugins())
    info = DataInfo(
        spec=data.spec, split=data.split, n_total=500, selection="first", image_shape=[1, 8, 8],
        class_names=data.class_names, fingerprint=data.fingerprint,
    )  # fmt: skip
    options = {"n": 20, "k": 10, "clean_images": False, "config": config.model_dump(mode="json")}
    same, other = (
        run("same", data=info, **options),
        run("other", data=info.model_copy(update={"fingerprint": "0"}), **options),
    )
    assert main(["report", same, "--clean-images"]) == 0
    assert '"columns": ["clean", "adversarial", "difference"]' in (Path(same) / "report" / "index.html").read_text()
    assert main(["report", other, "--clean-images"]) == 0
    assert "other images now" in capsys.readouterr().err
    assert '"columns": ["adversarial"]' in (Path(other) / "report" / "index.html").read_text()
    kept = run("kept", data=info.model_copy(update={"fingerprint": "0"}), **{**options, "clean_images": True})
    assert main(["report", kept, "--clean-images"]) == 0
    assert capsys.readouterr().err == ""  # not read again: the run kept them


def test_pages_and_figures_are_made_without_torch(run):
    code = f"""
import sys
from robustdup.cli.main import main
assert main(["report", {run("a")!r}]) == 0
assert main(["plot", {run("b")!r}, "--to", "x.pdf"]) == 0
assert main(["report", "--card", {run("c")!r}]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
