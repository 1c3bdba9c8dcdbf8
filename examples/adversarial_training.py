"""Train adversarially, then evaluate the best and the last checkpoint: seconds here; give data and epochs for more."""

import tempfile
from pathlib import Path

import robustdup

with tempfile.TemporaryDirectory() as folder:
    out = Path(folder) / "run"
    record = robustdup.train(
        data="builtin:digits", model="small-cnn", objective="pgd_at", attack="pgd(steps=3)", eps="0.15", steps=60,
        validation=100, evaluate="none", out=out,
    )  # fmt: skip
    print(f"{record.steps} steps in {record.seconds:.0f} s")
    data = robustdup.load_data("builtin:digits", n=50)
    for checkpoint in ("best", "last"):
        model = robustdup.load_model(f"run:{out}@{checkpoint}")
        print(checkpoint, robustdup.evaluate(model, data, eps="0.15", attacks="fgsm", progress=False))
