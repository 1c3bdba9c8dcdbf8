"""Registering imports nothing that a run does not use."""

import subprocess
import sys

RUN = """
import sys
from robustdup.cli.main import main
assert main(["eval", "--model", "builtin:digits-standard", "--data", "builtin:digits", "--attacks", "fgsm", "--n", "8",
             "--eps", "0.1", "--no-diagnostics", "--out", sys.argv[1]]) == 0
print(*(name for name in sys.modules if name.startswith("robustdup")), file=sys.stderr)
"""


def test_a_run_of_one_attack_imports_no_other(tmp_path):
    command = [sys.executable, "-c", RUN, str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    modules = set(result.stderr.splitlines()[-1].split())
    attacks = {name for name in modules if name.startswith("robustdup.attacks.")}
    assert "robustdup.attacks.fgsm" in attacks
    assert not {f"robustdup.attacks.{name}" for name in ("square", "fab", "fab_t", "apgd", "apgd_t", "spsa")} & attacks
    assert not {name for name in modules if name.startswith("robustdup.training.objectives.") and "terms" not in name}
    assert not {"robustdup.training.loop", "robustdup.jobs.training"} & modules
    # Of plugins only what says what they bring, not what does it.
    heavy = {"robustdup_study.cell", "robustdup_detect.run", "robustdup_art.adapter", "robustdup_torchattacks.builders"}
    assert not heavy & modules
