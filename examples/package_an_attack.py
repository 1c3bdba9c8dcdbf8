"""Package an attack: write the package, put an idea in, build a wheel, install it, check it, evaluate with it."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

IDEA = '''
def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the best other logit minus the true one (N,), which the attack increases."""
    true = logits.gather(1, labels[:, None])[:, 0]
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.amax(dim=1) - true
'''


def run(line: str) -> None:
    """Show a command and run it, with what is in the folder `installed` at hand."""
    print(f"\n$ {line}", flush=True)
    words = shlex.split(line)
    if words[0] == "robustdup":
        words = [sys.executable, "-m", *words]
    subprocess.run(words, check=True, env={**os.environ, "PYTHONPATH": "installed"})


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    run("robustdup attacks new margin-steps")
    attack = Path("robustdup-margin-steps/src/robustdup_margin_steps/attack.py")
    attack.write_text(attack.read_text().split("\ndef loss(")[0] + IDEA)
    run("uv build --quiet --wheel robustdup-margin-steps --out-dir dist")
    # Into a folder of its own here; without --target it goes into your environment.
    run(f"uv pip install --quiet --no-deps --target installed {next(Path('dist').glob('*.whl'))}")
    run("robustdup attacks check margin-steps --norm Linf")
    run("robustdup eval --attacks 'margin-steps(steps=10)' --n 50 --out run")
