"""Make the pictures of the README: runs, their pages, and screenshots of these in docs/images.

    uv run python docs/screenshots.py [--runs FOLDER] [--study FOLDER]

Takes some minutes; with --runs the runs in a folder are used, or made there for the next time. Needs a chromium on the
path (or in ROBUSTDUP_CHROMIUM), and for the pictures of CIFAR-10 the folder that ROBUSTDUP_TEST_DATA names; without it the
built-in digits are shown. --study names a study that has run; the one of configs/study/quickstart.yaml is run if not given.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
NETWORK = Path(__file__).parents[1] / "tests" / "fixtures" / "first_edition"  # small, robust, for CIFAR-10
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def robustdup(*words: str, cwd: Path) -> None:
    """Run a command of robustdup in a folder."""
    subprocess.run([sys.executable, "-m", "robustdup", *words], cwd=cwd, check=True)


def make_runs(folder: Path) -> None:
    """Evaluate a small robust network, and two of the built-in ones over several eps, where that is not done yet."""
    data = Path(os.environ.get("ROBUSTDUP_TEST_DATA", "")) / "cifar10-lossless"
    first = ["--eps", "0.15"]
    if data.is_dir():
        link = folder / "cifar10-test"
        link.unlink(missing_ok=True)
        link.symlink_to(data.resolve(), target_is_directory=True)
        for file, name in (("nets.py", "small_cnn.py"), ("cifar_net.safetensors", "robust.safetensors")):
            shutil.copyfile(NETWORK / file, folder / name)
        first = ["--model", "small_cnn.py:cifar_net@robust.safetensors", "--data", "cifar10-test"]
        first += ["--n", "64", "--eps", "8/255"]
    robustdup("eval", *first, "--out", "first", "--resume", cwd=folder)
    for name in ("robust", "standard"):
        words = [
            "--model",
            f"builtin:digits-{name}",
            "--eps",
            "0.05,0.1,0.15",
            "--attacks",
            "fast",
            "--out",
            name,
            "--resume",
        ]
        robustdup("eval", *words, cwd=folder)
    if data.is_dir() and not (folder / "detect" / "record.json").is_file():
        robustdup(
            "data", "detect", "cifar10-test", "--split", "train", "--against", "test", "--out", "detect", cwd=folder
        )


def make_study(folder: Path) -> Path:
    """Run the quickstart study, where that is not done yet, and return its folder."""
    recipe = Path(__file__).parents[1] / "configs" / "study" / "quickstart.yaml"
    robustdup("study", "run", str(recipe), f"out={folder / 'study'}", cwd=folder)
    return folder / "study"


def make_pages(folder: Path, study: Path) -> None:
    """Write the pages of the runs, and figures."""
    robustdup("report", "first", "--to", "pages/first", cwd=folder)
    robustdup("report", str(study), "--to", "pages/study", cwd=folder)
    if (folder / "detect").is_dir():
        robustdup("report", "detect", "--to", "pages/data", cwd=folder)
    robustdup("report", "robust", "standard", "--to", "pages/compared", cwd=folder)
    robustdup("plot", "robust", "standard", "--kind", "curve", "--to", "curve.svg", "--overwrite", cwd=folder)


def shoot(browser: Any, path: Path, name: str, *, width: int, height: int, scheme: str, selector: str = "") -> None:
    """Save a screenshot of a page, from the element `at` on."""
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    if selector:
        page.evaluate(f"document.querySelector('{selector}').scrollIntoView({{behavior: 'instant'}})")
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    if scheme == "light":  # few colours do for those, and make the files small
        picture = picture.quantize(200, dither=Image.Dither.NONE)
    picture.save(IMAGES / f"{name}.png", optimize=True)
    page.close()


def main() -> None:
    """Make every picture anew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="a folder that keeps the runs")
    parser.add_argument("--study", type=Path, help="the folder of a finished study, to show its page too")
    given = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as place, sync_playwright() as tool:
        folder = (given.runs or Path(place)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        make_runs(folder)
        make_pages(folder, given.study.resolve() if given.study is not None else make_study(folder))
        shutil.copyfile(folder / "curve.svg", IMAGES / "curve.svg")
        chromium = os.environ.get("ROBUSTDUP_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        browser = tool.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        first, compared = folder / "pages" / "first" / "index.html", folder / "pages" / "compared" / "index.html"
        shoot(browser, first, "evaluation", width=1280, height=760, scheme="light")
        shoot(browser, first, "gallery", width=1280, height=620, scheme="light", selector="#gallery")
        shoot(browser, first, "leaderboard", width=1280, height=640, scheme="light", selector="#leaderboard")
        shoot(browser, first, "phone", width=375, height=760, scheme="dark")
        shoot(browser, compared, "comparison", width=1280, height=640, scheme="dark")
        study, data = folder / "pages" / "study" / "index.html", folder / "pages" / "data" / "index.html"
        shoot(browser, study, "study", width=1280, height=1010, scheme="light", selector="#dose-0")
        shoot(browser, study, "effects", width=1280, height=640, scheme="light", selector="#effects-dose")
        if data.is_file():
            shoot(browser, data, "data", width=1280, height=700, scheme="light", selector="#clusters")
        browser.close()
    print(f"{sum(file.stat().st_size for file in IMAGES.iterdir()):,} bytes in {IMAGES}")


if __name__ == "__main__":
    main()
