"""Evaluate a Hugging Face image classifier: a small one here, trained in seconds, or any on the Hub."""

import tempfile

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import robustdup


def train(folder):
    """Train a vision transformer on 8 x 8 digits and save it as transformers does."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=8, patch_size=2,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    model, data = ViTForImageClassification(config), robustdup.load_data("builtin:digits", split="train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        rows = torch.randint(len(data.labels), (128,))
        loss = model(pixel_values=data.images[rows] * 2 - 1, labels=data.labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)


with tempfile.TemporaryDirectory() as folder:
    train(folder)  # in place of this line: model = robustdup.load_model("hf:OWNER/MODEL")
    model = robustdup.load_model(f"hf:{folder}")
    data = robustdup.load_data("builtin:digits", n=100)
    result = robustdup.evaluate(model, data, eps="0.1", attacks="apgd-ce(steps=20)", progress=False)
    print(result)
    print("images whose answer changed:", result.outcomes.count("broken"), "of", result.record.n)
