"""Networks written as programs: ONNX files, and `torch.export` archives (.pt2)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from robustdup.errors import Unavailable, UserError, how_to_install


def save_program(model: nn.Module, images: Tensor, file: Path) -> None:
    """Write a classifier as a program for batches of any size, .onnx or .pt2; `images` (2, C, H, W) are an example.

    Raises UserError for a network that cannot be traced, Unavailable where onnx is not installed.
    """
    batch = torch.export.Dim("batch", min=1)
    model = model.eval()
    try:
        program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
        if file.suffix == ".pt2":
            torch.export.save(program, file)
            return
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401

        torch.onnx.export(
            program, (images,), str(file), input_names=["images"], output_names=["logits"], external_data=False,
            verbose=False,
        )  # fmt: skip
    except ImportError as error:
        raise Unavailable(
            f"An ONNX file needs onnx and onnxscript, which cannot be imported here ({error}). Install them: "
            + how_to_install("robustdup[onnx]")
        ) from None
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"The network cannot be exported as a program: {reason}", code="bad-model") from error
