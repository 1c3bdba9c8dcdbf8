"""Models as programs: ONNX files, run by onnxruntime without gradients, and `torch.export` archives (.pt2), with them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from robustdup.errors import UserError, not_importable

SUFFIXES = (".onnx", ".pt2")
NO_GRADIENT = (
    "An ONNX file is run by onnxruntime, which gives no gradients. Use attacks that ask for none: --attacks square, or "
    "--attacks square,rays; or attack a differentiable stand-in and judge this model: --attack-model …."
)


class OnnxClassifier(nn.Module):
    """An ONNX file as a classifier: images (N, C, H, W) in [0, 1] -> logits (N, K), on the CPU, without gradients.

    Its fingerprint is that of the files. A file for batches of one size is asked in batches of that size.
    """

    content: Tensor
    why_no_gradient = NO_GRADIENT

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = str(file.resolve())
        digest = hashlib.sha256(file.read_bytes())
        for beside in weights_beside(file):
            digest.update(beside.read_bytes())
        self.register_buffer("content", torch.tensor(list(digest.digest()), dtype=torch.uint8))
        self._session: Any = None
        self._open()

    def _open(self) -> Any:
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])
        return self._session

    def __getstate__(self) -> dict[str, Any]:
        """Leave the session out: a copy opens its own."""
        return {**self.__dict__, "_session": None}

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        session = self._open()
        given, answer = session.get_inputs()[0], session.get_outputs()[0].name
        rows = given.shape[0] if isinstance(given.shape[0], int) else None
        kind = torch.float16 if given.type == "tensor(float16)" else torch.float32

        def run(part: Tensor) -> Tensor:
            values = part.detach().to("cpu", kind).contiguous().numpy()
            return torch.from_numpy(session.run([answer], {given.name: values})[0]).float()

        return in_batches(run, images, rows).to(images.device)


class ExportedProgram(nn.Module):
    """What `torch.export.save` wrote, as a classifier: images (N, C, H, W) in [0, 1] -> logits (N, K), with gradients."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program.module()
        names = program.graph_signature.user_inputs
        if len(names) != 1:
            raise UserError(
                f"The program takes {len(names)} inputs; a classifier takes images alone.", code="not-a-classifier"
            )
        (node,) = [node for node in program.graph.nodes if node.op == "placeholder" and node.name == names[0]]
        first = node.meta["val"].shape[0]
        self.rows = int(first) if isinstance(first, int) else None

    def train(self, mode: bool = True) -> ExportedProgram:
        """Change nothing: a program is in the mode that it was exported in, whatever its parts say."""
        for part in self.modules():
            part.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of `images`."""
        return in_batches(self.program, images, self.rows)


def weights_beside(file: Path) -> list[Path]:
    """Return the files beside an ONNX file that its weights lie in, which it names. Raises UserError for those that are missing.

    An entry of external data is the text location and the name (onnx.proto, StringStringEntryProto).
    """
    places = re.findall(rb"\n\x08location\x12(.)(.{1,127})", file.read_bytes(), re.DOTALL)  # the length, then the name
    names = {name[: length[0]].decode(errors="replace") for length, name in places}
    files = [file.parent / name for name in sorted(names)]
    missing = [beside.name for beside in files if not beside.is_file()]
    if missing:
        raise UserError(
            f"The weights of {str(file)!r} lie in files of their own, and {', '.join(missing[:3])} is not beside it: copy it "
            "there, or save the network as one file.",
            code="missing-file",
        )
    return files


def in_batches(run: Callable[[Tensor], Tensor], images: Tensor, rows: int | None) -> Tensor:
    """Return run(images), asked in batches of just `rows` (None: of any size); the last one repeats its last image."""
    if rows is None or len(images) == rows:
        return run(images)
    answers = []
    for part in torch.split(images, rows):
        missing = rows - len(part)
        full = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
        answers.append(run(full)[: len(part)])
    return torch.cat(answers)


def load_program(file: Path, *, allow_pickle: bool = False) -> nn.Module:
    """Return the classifier of an .onnx or .pt2 file; of the latter only where it may run code.

    Raises UserError; Unavailable where onnxruntime is not installed.
    """
    if file.suffix == ".pt2" and not allow_pickle:
        raise UserError(
            f"{str(file)!r} is a torch.export archive, and torch may run any code in it when it is opened. If you trust the "
            "file, give --allow-pickle; an .onnx file of the same network runs none.",
            code="refused-pickle",
        )
    try:
        if file.suffix == ".pt2":
            return ExportedProgram(torch.export.load(file))
        return OnnxClassifier(file)
    except ImportError as error:
        raise not_importable(repr(str(file)), "onnxruntime", error, "onnx") from None
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{str(file)!r} is no {'torch.export' if file.suffix == '.pt2' else 'ONNX'} program that can be run here: {reason}",
            code="damaged-checkpoint",
        ) from error
