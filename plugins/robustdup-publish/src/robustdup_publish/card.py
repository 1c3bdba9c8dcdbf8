"""The card of an exported network: how it was trained, what it is worth, how to load it."""

from __future__ import annotations

from robustdup.errors import plain
from robustdup.records import EvaluationRecord, TrainingRecord
from robustdup.report.card import model_card
from robustdup.report.format import printable

LOADING = {
    "safetensors": '''from modeling import load  # needs model.safetensors beside it, torch and safetensors

model = load()''',
    "pt2": '''import torch

model = torch.export.load("model.pt2").module()''',
    "onnx": '''import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(None, {"images": images})[0]  # a float32 array''',
}  # fmt: skip
SPECS = {"safetensors": "modeling.py:load", "pt2": "model.pt2 --allow-pickle", "onnx": "model.onnx --attacks square"}
FRONT = """---
pipeline_tag: image-classification
tags: [adversarial-robustness, robustdup]
---

# An image classifier trained by robustdup

It was not evaluated with verified attacks.
"""


def exported_card(
    record: TrainingRecord, evaluation: EvaluationRecord | None, kind: str, *, classes: list[str], difference: float
) -> str:
    """Return the card in Markdown: the evaluation's, or one that says there is none, training, and code that loads it."""
    record = printable(record)
    start = FRONT if evaluation is None else model_card(evaluation)
    attack = f", inner attack `{record.inner_attack}`" if record.inner_attack else ""
    shape = " x ".join(map(str, record.data.image_shape))
    lines = [
        start.rstrip(),
        "",
        "## Training",
        "",
        f"`{record.architecture}`, objective `{record.objective}`{attack}, threat model {record.threat.norm}, "
        f"eps = {record.threat.eps_text}; {record.steps:,} steps of {record.batch_size}, seed {record.seed}.",
        "",
        "## How to load it",
        "",
        "```python",
        LOADING[kind],
        "```",
        "",
        f"It takes float32 images (N, {shape.replace(' x ', ', ')}) in [0, 1], RGB where there are three channels, and returns "
        "logits. Mean and deviation are taken inside: do not normalise. robustdup is not needed. Its logits differ from those of "
        f"the trained network by {difference:.1e} at most, on four images of noise.",
        "",
        f"Evaluate it with robustdup: `robustdup eval --model {SPECS[kind]} --data …`.",
    ]
    if classes:
        lines += ["", "Classes, in order: " + ", ".join(plain(name) for name in classes) + "."]
    return "\n".join(lines) + "\n"
