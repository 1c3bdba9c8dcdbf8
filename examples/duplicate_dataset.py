"""Duplicate a dataset and see what it does: the same network, the same number of steps, with and without copies."""

import tempfile
from pathlib import Path

import robustdup

data = robustdup.load_data("builtin:digits")
results = {}
with tempfile.TemporaryDirectory() as folder:
    # Half of the entries are copies then: twelve copies of some of the threes, all other images once.
    for name, copies in {
        "once each": {},
        "copies of 3s": {"scheme": "class_skewed", "classes": ["3"], "dose": 0.5, "copies": 12},
    }.items():
        out = Path(folder) / name.replace(" ", "-")
        record = robustdup.train(
            data="builtin:digits", model="small-cnn", objective="standard", steps=80, validation=0, evaluate="none",
            duplicate=copies, out=out,
        )  # fmt: skip
        print(
            f"{name}: {record.steps} steps, {record.samples_seen} images seen, {record.unique_samples_seen} of them different"
        )
        results[name] = robustdup.evaluate(f"run:{out}@last", data, eps="0.05", attacks="fgsm", progress=False)
difference = robustdup.compare(results["copies of 3s"], results["once each"])
print(f"clean:  {difference.clean}")
print(f"robust: {difference.robust}")
print("One training each, so the luck of a seed is in it: `robustdup study run quickstart` repeats it over seeds.")
