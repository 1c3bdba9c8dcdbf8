"""Evaluate a Hugging Face image classifier. Here a tiny one made on the spot; put the id of any on the Hub in its place."""

import tempfile

import torch
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

import robustdup

with tempfile.TemporaryDirectory() as folder:
    # In place of these lines: spec = "hf:OWNER/MODEL".
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    model = robustdup.load_model(f"hf:{folder}")

    images = torch.rand(8, 3, 32, 32)
    labels = model(images).argmax(dim=1)  # an untrained model agrees with itself
    result = robustdup.evaluate(model, images, labels, eps="8/255", attacks="pgd(steps=5)", progress=False)
    print(result)
    print("images that changed the answer:", int(result.is_adv.sum()), "of", len(labels))
