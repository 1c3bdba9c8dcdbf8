"""Whose files lie in `robustbench/`: both wheels in both orders, in folders that look like site-packages."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

from robustdup_robustbench import clash

from robustdup import how_to_install

REAL = {"robustbench/__init__.py": "real", "robustbench/utils.py": "real utils", "robustbench/data.py": "shared"}
COPY = {"robustbench/__init__.py": "copy", "robustbench/utils.py": "copy utils", "robustbench/data.py": "shared"}


def install(site: Path, name: str, version: str, files: dict[str, str], installer: str = "pip") -> None:
    """Write a wheel's files and its RECORD as an installer does: over what is there."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text(installer + "\n")
    lines = [f"{info.name}/RECORD,,"]
    for path, content in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).rstrip(b"=").decode()
        lines.append(f"{path},sha256={digest},{len(content)}")
    (info / "RECORD").write_text("\n".join(lines) + "\n")


def look(site: Path) -> clash.Finding:
    (finding,) = clash.check([str(site)])
    return finding


def test_robustbench_alone_is_well(tmp_path):
    install(tmp_path, "robustbench", "1.1.1", REAL)
    assert look(tmp_path) == (True, "robustbench 1.1.1: its files are its own.", "")


def test_robustbench_installed_last_is_well(tmp_path):
    install(tmp_path, "torchattacks", "3.5.1", COPY)
    install(tmp_path, "robustbench", "1.1.1", REAL)
    assert look(tmp_path).ok


def test_torchattacks_installed_last_is_found_and_the_repair_is_named(tmp_path):
    install(tmp_path, "robustbench", "1.1.1", REAL)
    install(tmp_path, "torchattacks", "3.5.1", COPY)
    finding = look(tmp_path)
    assert not finding.ok
    assert "2 of its files differ" in finding.message
    assert "torchattacks 3.5.1 wheel, installed later, has overwritten" in finding.message
    assert finding.command == how_to_install("--force-reinstall", "--no-deps", "robustbench==1.1.1")
    install(tmp_path, "robustbench", "1.1.1", REAL)  # what the command does
    assert look(tmp_path).ok


def test_uninstalling_torchattacks_removes_files(tmp_path):
    install(tmp_path, "robustbench", "1.1.1", REAL)
    for path in COPY:
        (tmp_path / path).unlink()
    finding = look(tmp_path)
    assert not finding.ok
    assert "3 of its files differ" in finding.message
    assert "uninstalling torchattacks" in finding.message


def test_one_changed_byte_is_found(tmp_path):
    install(tmp_path, "robustbench", "1.1.1", REAL)
    (tmp_path / "robustbench/utils.py").write_text("real utilz")
    assert "one of its files differs from what was installed (robustbench/utils.py)" in look(tmp_path).message


def test_the_copy_of_torchattacks_is_not_taken_for_robustbench(tmp_path):
    install(tmp_path, "torchattacks", "3.5.1", COPY)
    finding = look(tmp_path)
    assert finding.ok, "the zoo is optional"
    assert "an old copy that the torchattacks wheel carries" in finding.message
    assert finding.command == how_to_install("robustdup[zoo]")


def test_nothing_installed(tmp_path):
    assert look(tmp_path).message == "RobustBench's model zoo (optional) is not installed."
