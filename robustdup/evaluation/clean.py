"""The clean images: whether the model can take them at all, what it says of them, and whether it says so every time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from robustdup.attacks.isolation import isolated
from robustdup.attacks.passes import Count, Passes
from robustdup.data.dataset import ImageDataset
from robustdup.device import out_of_memory
from robustdup.errors import RunError, UserError, plain
from robustdup.evaluation.context import Context
from robustdup.evaluation.referee import Answers, judge_images
from robustdup.evaluation.saved import load_tensors, save_tensors
from robustdup.evaluation.steadiness import examine
from robustdup.models.code import code_fingerprint
from robustdup.models.load import fingerprint

ANSWERS_FILE = "clean.safetensors"  # in the state of a run
OF_LATER_VERSIONS = ("code", "settings")  # what older runs did not keep


# In what ways a model may not repeat itself; the saved answers keep each.
UNSTEADY = ("randomized", "batch_dependent", "remembers")


@dataclass(frozen=True)
class CleanAnswers:
    """What the model says of the clean images, how many classes it knows, and whether it repeats itself.

    `randomized`: it answers at random. `batch_dependent`: its answers change with the images that share a batch.
    `remembers`: they change with what it was asked before.
    """

    answers: Answers
    num_classes: int
    randomized: bool
    batch_dependent: bool = False
    remembers: bool = False

    @property
    def wavering(self) -> bool:
        """Whether the model does not repeat itself, in one way or the other."""
        return self.randomized or self.batch_dependent


def clean_answers(
    context: Context, data: ImageDataset, weights: str, *, draws: int, plugins: Sequence[str] = (), settings: str = "",
    state: Path | None = None,
) -> CleanAnswers:  # fmt: skip
    """Judge the clean images, or take the saved answers of the run that goes on.

    Args:
        context: what the evaluation runs on.
        data: images (N, C, H, W) in [0, 1] with labels (N,).
        weights: fingerprint of the original.
        draws: fresh draws by which a randomised model is judged.
        plugins: plugin files; a run goes on only with the same content.
        settings: digest of the settings; a run goes on only with the same.
        state: folder in which the answers are kept; None keeps nothing.

    Raises:
        UserError: where the model cannot take the images, or where the data, the weights or the plugin files are no
            longer those that the run was started with.
    """
    path = None if state is None else state / ANSWERS_FILE
    inputs = {
        "data": data.fingerprint,
        "weights": weights,
        "weights of the attacked model": fingerprint(context.attacked),
        "code of the model": code_fingerprint(context.original.model),
        "code of the attacked model": code_fingerprint(context.attacked),
        "plugin files": " ".join(
            hashlib.sha256(file.read_bytes()).hexdigest() for file in map(Path, plugins) if file.is_file()
        ),
        "settings": settings,
    }
    if path is not None and (
        path.exists() or has_calls(path.parent)
    ):  # without them nobody knows what the calls judged
        return _saved_answers(path, inputs)
    clean = _judge_clean(context, data, draws)
    if path is not None:
        head = {**inputs, "num_classes": str(clean.num_classes)}
        head |= {name: str(getattr(clean, name)) for name in UNSTEADY}
        save_tensors(path, vars(clean.answers), head)
    return clean


def has_calls(state: Path) -> bool:
    """Tell whether the state of a run holds calls that a resumed one need not make again."""
    return any(state.glob("eps-*/*"))


def _saved_answers(path: Path, inputs: dict[str, str]) -> CleanAnswers:
    try:
        tensors, head = load_tensors(path)
        answers = Answers(*(tensors[name] for name in ("prediction", "margin", "correct_share")))
        num_classes = int(head["num_classes"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise damaged_state(path, error) from None
    for name, value in inputs.items():
        if head.get(name, value if name.startswith(OF_LATER_VERSIONS) else None) != value:
            raise UserError(
                f"The run in {str(path.parent.parent)!r} was started with another state: the {name} changed since. "
                "Put it back as it was, or start again in another --out.",
                code="other-run",
            )
    return CleanAnswers(answers, num_classes, *(head.get(name) == "True" for name in UNSTEADY))


def damaged_state(path: Path, error: Exception) -> UserError:
    """Return the error for a file of a run's state that is gone or not what was written, and that nothing replaces."""
    why = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({plain(error, 200)})"
    return UserError(
        f"{str(path)!r} {why}, and the run cannot go on without it. Start it again in another --out.",
        code="damaged-run",
    )


def _judge_clean(context: Context, data: ImageDataset, draws: int) -> CleanAnswers:
    images, labels = data.images.to(context.device), data.labels.to(context.device)
    few = slice(0, context.micro_batch)
    num_classes = _check_model(context, images[few], labels)
    if context.attacked is not context.original.model:
        _check_stand_in(context, images[few], labels)
    answers = _judge_in_memory(context, images, labels, 1)
    steady = examine(context.original, images, labels, answers, seed=context.seed)
    if steady.randomized:
        answers = _judge_in_memory(context, images, labels, draws)
    context.original.count = Count()
    if not bool(answers.margin.isfinite().any()):
        raise _not_finite()
    return CleanAnswers(answers, num_classes, steady.randomized, steady.batch_dependent, steady.remembers)


def _judge_in_memory(context: Context, images: Tensor, labels: Tensor, draws: int) -> Answers:
    """Judge the images with half of the rows at once for as long as memory runs out."""
    original = context.original
    while True:
        try:
            return judge_images(original, images, labels, draws=draws, seed=context.seed)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if not original.micro_batch or original.micro_batch == 1:
                raise RunError("Out of memory with a single image in a batch.", code="out-of-memory") from None
            original.micro_batch //= 2


def _check_model(context: Context, images: Tensor, labels: Tensor) -> int:
    """Return the number of classes. Raises UserError where the model cannot take the images or know all labels."""
    try:
        with isolated(context.original.model), torch.no_grad():
            logits = context.original(images)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"The model cannot take images of shape {tuple(images.shape[1:])}: {error}. {_what_to_check(error)}",
            code="model-and-data",
        ) from error
    context.original.count = Count()
    if logits.shape[1] < 2:
        raise UserError(
            "The model has one output. A classifier of two classes needs two: torch.cat([-logit, logit], 1).",
            code="model-and-data",
        )
    if not bool(logits.isfinite().all(dim=1).any()):
        raise _not_finite()
    check_outputs(logits, labels)
    return int(logits.shape[1])


def check_outputs(logits: Tensor, labels: Tensor) -> None:
    """Raise UserError where logits (n, K) have no output for some of the labels (N,)."""
    if int(labels.max()) >= logits.shape[1]:
        raise UserError(
            f"The labels go up to {int(labels.max())}, but the model has {logits.shape[1]} outputs. "
            "Do model and data belong together?",
            code="model-and-data",
        )


def _what_to_check(error: Exception) -> str:
    """Return where to look for what a model's forward raised: at the device, the batch, or the images' shape."""
    text = f"{type(error).__name__}: {error}".lower()
    if any(word in text for word in ("cuda", "nvidia", "same device", "mps backend", "hip error")):
        return (
            "Its forward moves tensors to a device of its own (.cuda(), .to('cuda')): take that out, and name the device "
            "with --device."
        )
    if re.search(r"batch", text) and re.search(r"\d", text) and "norm" not in text:
        return "It seems to take one number of images only: give that with --micro-batch."
    if re.search(r"dtype|scalar type|should be the same", text):
        return "Its forward computes in a precision of its own: leave the images' and the weights' dtype alone."
    shape = r"shape|size|dimension|channel|\bdim\b|mat1|matmul|broadcast|expected input|kernel|image height|image size"
    if re.search(shape, text):
        return "Check channels (--grey) and size (--resize, --crop)."
    return f"The error ({type(error).__name__}) comes from its forward: call it on torch.zeros(2, …) of that shape to see where."


def not_finite_note(clean: CleanAnswers) -> list[str]:
    """Say on how many clean images the logits are NaN or infinite: they count as wrong."""
    count = int((~clean.answers.margin.isfinite()).sum())
    if not count:
        return []
    return [
        f"The model's logits are NaN or infinite on {count} of {len(clean.answers.margin)} clean images: they count as wrong."
    ]


def _not_finite() -> UserError:
    return UserError(
        "The model returns NaN or infinite logits on all clean images. Check its weights and normalisation.",
        code="not-finite",
    )


def _check_stand_in(context: Context, images: Tensor, labels: Tensor) -> None:
    """Raise UserError where the model under attack cannot take the images or does not know the labels."""
    try:
        with isolated(context.attacked), torch.no_grad():
            logits = Passes(context.attacked, context.micro_batch)(images)
    except Exception as error:
        shape = tuple(images.shape[1:])
        raise UserError(
            f"The attacked model (--attack-model) cannot take images of shape {shape}: {error}", code="model-and-data"
        ) from error
    if int(labels.max()) >= logits.shape[1]:
        raise UserError(
            f"The attacked model (--attack-model) has {logits.shape[1]} outputs, but the labels go up to "
            f"{int(labels.max())}. It must know the classes of the judged model.",
            code="model-and-data",
        )


def check_unchanged(context: Context, images: Tensor, clean: CleanAnswers, weights: str) -> None:
    """Raise RunError where the original's weights or its answers on clean images (N, C, H, W) are not as before."""
    changed = fingerprint(context.original.model) != weights
    if not context.copied and not clean.randomized:
        images = images.to(context.device)
        labels = torch.zeros(len(images), dtype=torch.int64, device=context.device)
        changed |= not torch.equal(judge_images(context.original, images, labels).prediction, clean.answers.prediction)
    if changed:
        raise RunError(
            "The judged model's weights or answers changed during the run: its results cannot be trusted.",
            code="model-changed",
        )
