"""Duplicate a dataset and see what it does: the same network, the same steps, with and without copies."""

import tempfile
from pathlib import Path

import robustdup

data = robustdup.load_data("builtin:digits", n=50)
with tempfile.TemporaryDirectory() as folder:
    for dose in (0.0, 0.5):
        copies = {"scheme": "class_skewed", "classes": ["3"], "dose": dose, "copies": 12} if dose else {}
        out = Path(folder) / f"dose-{dose}"
        robustdup.train(
            data="builtin:digits", model="small-cnn", objective="standard", steps=80, validation=0, evaluate="none",
            duplicate=copies, out=out,
        )  # fmt: skip
        result = robustdup.evaluate(f"run:{out}@last", data, eps="0.05", attacks="fgsm", progress=False)
        print(f"dose {dose}: {result}")
