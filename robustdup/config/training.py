"""The configuration of a training run: what `robustdup train` is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field, field_validator

from robustdup.config.duplication import DuplicationOptions
from robustdup.config.fields import DATA_DETAILS, DIGITS, NORMS, DataFields, ModelFields, usual_eps

T = TypeVar("T")

BUDGETS = ("epochs", "steps", "samples")


def _usual(default: T, *, digits: T) -> Callable[[Mapping[str, Any]], T]:
    """Return a default that is another one for the 8x8 digits: they are too small to crop, and must not be mirrored."""
    return lambda values: digits if values.get("data") == DIGITS else default


def _usual_epochs(values: Mapping[str, Any]) -> float | None:
    if values.get("steps") is not None or values.get("samples") is not None:
        return None
    return 20.0 if values.get("data") == DIGITS else 10.0


class TrainConfig(DataFields, ModelFields):
    """What `robustdup train` needs. Field descriptions are the help texts of the flags; the digits have some other defaults."""

    recipes_of: ClassVar[str] = "train"
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Model": ("model", "normalize", "init", "new_head", "freeze", "allow_pickle"),
        "Data": (
            "data", "split", "n", "sample", "test_split", "test_data", "augment", "padding", "transforms", "mix", "resize",
            "crop", "grey", "extra_data", "extra_share", "extra_split", "extra_labels", *DATA_DETAILS,
        ),
        "Duplication": ("duplicate", "score_model", "as_weights", "share_augmentation", "keep_near_duplicates"),
        "Objective": (
            "objective", "update", "norm", "eps", "attack", "eps_schedule", "steps_schedule", "inner_bn", "label_smoothing",
            "plugin",
        ),
        "Training": (
            "epochs", "steps", "samples", "batch_size", "optimizer", "lr", "schedule", "warmup", "milestones",
            "schedule_steps", "weight_decay", "decay_all", "momentum", "nesterov", "muon_lr", "clip", "ema", "swa", "seed",
        ),
        "Evaluation": (
            "validation", "validation_attack", "validate_every", "evaluate", "test_n", "targets",
        ),
        "Speed": (
            "device", "precision", "compile", "accumulate", "deterministic", "channels_last", "threads", "loader_workers",
            "in_memory",
        ),
        "Output": ("out", "checkpoint_every", "track"),
    }  # fmt: skip

    model: str = Field(
        "small-cnn",
        description="Architecture to train: small-cnn, small-resnet, preact-resnet18, wide-resnet(depth=28,width=10), "
        "timm:NAME, hf:ID, file.py:factory, …",
    )
    normalize: str | None = Field(
        None,
        description="Mean and deviation that the network normalises by: imagenet, cifar10, …, 0.5,0.5; the training images' own "
        "if not given. Put before a file.py:factory, which is left alone otherwise.",
    )
    init: str | None = Field(
        None,
        description="Start from these weights: run:FOLDER, timm:NAME, hf:ID, file.safetensors. The last layer is new where they "
        "have other classes.",
    )
    new_head: bool = Field(False, description="Draw the last layer anew though that of init would fit.")
    freeze: str | None = Field(
        None,
        description="Parts that are not trained: backbone (all but the last layer), or names with commas: net.layer1,net.bn*.",
    )
    split: str = Field("train", description="Split to train on.")
    test_split: str = Field("test", description="Split on which the best and the last checkpoint are evaluated.")
    test_data: str | None = Field(None, description="Other data to evaluate on; the training data's own if not given.")
    n: int | None = Field(None, description="Train on the first N images of the split.", ge=1)
    sample: int | None = Field(
        None, description="Train on a random subset of this many images, drawn from the seed.", ge=1
    )
    extra_data: str | None = Field(
        None,
        description="More images to train on, generated ones say: file.npz (image, label), or any data spec. Epochs count the "
        "data's own.",
    )
    extra_share: float = Field(
        0.7, description="Share of each batch that comes from the extra data, to the nearest whole number.", gt=0, lt=1
    )
    extra_split: str | None = Field(None, description="Split of the extra data; train, or the only one, if not given.")
    extra_labels: str | None = Field(
        None, description="Model that labels the extra images (pseudo-labels), in place of labels of their own."
    )
    duplicate: DuplicationOptions = Field(
        default_factory=lambda: DuplicationOptions.model_validate({}),
        description="How training images are duplicated: duplicate.scheme=uniform duplicate.dose=0.5, …",
    )
    score_model: str | None = Field(
        None, description="Model whose margin ranks the training images, for duplicate.scheme hardest and easiest."
    )
    as_weights: bool = Field(
        False, description="Weigh the loss of the originals as the duplicates would, and train on no copy."
    )
    objective: str = Field(
        "pgd_at", description="Objective: standard, pgd_at, trades(beta=6), mart, free(replays=8), n_fgsm, morel, …"
    )
    update: str = Field("plain", description="Update rule: plain, awp(gamma=0.005); the objective free brings its own.")
    attack: str = Field(
        default_factory=_usual("pgd(steps=10)", digits="pgd(steps=7)"),
        description="Inner attack: pgd(steps=10,step_size=2/255), or any registered bounded attack.",
    )
    norm: str = Field("Linf", description="Norm of the threat model.", json_schema_extra={"choices": list(NORMS)})
    eps: str = Field(
        default_factory=usual_eps,
        description="Radius in pixel units of [0, 1]. [default: Linf 8/255, L2 0.5, L1 12; for builtin:digits Linf 0.15, "
        "L2 0.5, L1 2]",
    )
    eps_schedule: str | None = Field(
        None,
        description="Radius of the inner attack over the budget, linear between points SHARE:EPS: 0:0,0.3:8/255. Validation and "
        "evaluation have eps.",
    )
    steps_schedule: str | None = Field(
        None, description="Steps of the inner attack pgd from a share of the budget on, SHARE:STEPS: 0:2,0.5:10."
    )
    inner_bn: Literal["eval", "train"] = Field(
        "eval", description="BatchNorm during the inner attack: running statistics (eval) or the batch's (train)."
    )
    label_smoothing: float = Field(0.0, description="Label smoothing of cross-entropy terms.", ge=0, lt=1)
    augment: Literal["crop-flip", "crop", "flip", "none"] = Field(
        default_factory=_usual("crop-flip", digits="none"), description="Random crop and flip."
    )
    padding: int = Field(4, description="Pixels of zero padding before the random crop.", ge=0)
    transforms: str | None = Field(
        None,
        description="Further changes of each image, by torchvision: resized-crop(scale=0.25), randaugment(num_ops=2), "
        "trivialaugment, autoaugment, erasing, color-jitter; several with commas.",
    )
    mix: str | None = Field(
        None, description="Mix images and labels of a batch: cutmix(alpha=1) or mixup(alpha=0.2), by torchvision."
    )
    share_augmentation: bool = Field(False, description="Give all copies of an image the augmentation of the original.")
    steps: int | None = Field(None, description="Budget: optimizer steps.")
    samples: int | None = Field(None, description="Budget: training entries seen.")
    epochs: float | None = Field(
        default_factory=_usual_epochs, description="Budget: passes over the training entries.", gt=0
    )
    batch_size: int = Field(
        default_factory=_usual(128, digits=64), description="Training entries in a step, over all processes.", ge=1
    )
    optimizer: Literal["sgd", "adamw", "muon"] = Field(
        default_factory=_usual("sgd", digits="adamw"),
        description="SGD with momentum, AdamW, or Muon for layers behind a normalisation (SGD for the rest).",
    )
    lr: float = Field(default_factory=_usual(0.1, digits=0.005), description="Largest learning rate.", gt=0)
    muon_lr: float = Field(0.03, description="Largest step of Muon, as a share of a weight's length.", gt=0)
    momentum: float = Field(0.9, description="Momentum of SGD.", ge=0, lt=1)
    nesterov: bool = Field(
        True,
        description="Nesterov's momentum in sgd; the papers on TRADES, MART, AWP and robust overfitting use plain.",
    )
    weight_decay: float = Field(default_factory=_usual(5e-4, digits=0.01), description="Weight decay.", ge=0)
    decay_all: bool = Field(True, description="Decay biases and normalisation layers too.")
    schedule: Literal["cosine", "one-cycle", "linear", "piecewise", "constant"] = Field(
        "one-cycle", description="Learning rate over the budget."
    )
    warmup: float = Field(
        0.0, description="Share of the budget in which the rate rises (one-cycle: 0.3 if 0).", ge=0, lt=1
    )
    milestones: list[float] = Field(
        default_factory=lambda: [0.5, 0.75],
        description="Shares of the budget at which piecewise divides the rate by ten.",
    )
    schedule_steps: int | None = Field(
        None, description="Steps over which the schedule runs, where that is not the budget (to compare budgets)."
    )
    clip: float | None = Field(None, description="Largest norm of the gradient of all weights.", gt=0)
    ema: float = Field(0.0, description="Decay of an exponential moving average of the weights; 0: none.", ge=0, lt=1)
    swa: float = Field(
        0.0, description="Share of the budget after which weights are averaged equally; 0: never.", ge=0, lt=1
    )
    validation: float = Field(
        default_factory=_usual(0.02, digits=0.1),
        description="Images of the training split held out to choose the checkpoint: a share below 1, or a number. 0: none.",
        ge=0,
    )
    validation_attack: str = Field("pgd(steps=10)", description="Attack by which checkpoints are chosen.")
    keep_near_duplicates: bool = Field(
        False, description="Train on near-duplicates of validation images too (else they are kept out)."
    )
    validate_every: int | None = Field(
        None,
        description="Steps between candidates for the best checkpoint; a twentieth of the budget if not given.",
        ge=1,
    )
    evaluate: str | None = Field(
        "fast", description="Attacks for the evaluation of best and last on the test split; none: no evaluation."
    )
    test_n: int | None = Field(None, description="Evaluate on the first N test samples; all if not given.", ge=1)
    targets: list[float] = Field(
        default_factory=lambda: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
        description="Validation accuracies to report time and steps for.",
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "auto",
        description="Precision of training (bf16 and fp16 through autocast; weights are fp32; fp16 scales the loss, for GPUs "
        "without bf16). auto: bf16 where the device computes "
        "in it (CUDA from compute capability 8.0 on; CPUs with avx512_bf16 or AMX, but for small networks), else fp32.",
    )
    accumulate: int = Field(
        1,
        description="Parts in which each batch is computed, their gradients summed, to save memory; more, unasked, where memory "
        "runs out. BatchNorm sees each part by itself.",
        ge=1,
    )
    deterministic: bool = Field(
        False, description="Use deterministic kernels alone on a GPU, so that a run repeats itself to the bit; slower."
    )
    compile: Literal["auto", "off", "on", "cudagraphs"] = Field(
        "auto",
        description=(
            "Compile the model: auto is off on a CPU, and on with CUDA for 1,000 steps or more. cudagraphs also records the "
            "steps of the inner attack as one CUDA graph."
        ),
    )
    channels_last: bool = Field(True, description="Keep images and convolutions in channels-last layout.")
    device: str = Field("auto", description="cpu, cuda, cuda:1, or auto.")
    threads: int | None = Field(
        None, description="CPU threads; one for networks too small to share out, all otherwise, if not given.", ge=1
    )
    loader_workers: int = Field(
        0, description="Processes that decode images, for data that does not fit in memory.", ge=0
    )
    in_memory: bool | Literal["auto"] = Field(
        "auto", description="Keep all images on the device as bytes (true), or read them as they are needed (false)."
    )
    seed: int = Field(0, description="Seed of everything random.", ge=0)
    checkpoint_every: int | None = Field(
        None, description="Steps between checkpoints to resume from; about a minute of work if not given.", ge=1
    )
    track: str = Field("", description="Trackers, through accelerate: tensorboard, wandb, mlflow; several with commas.")
    allow_pickle: bool = Field(False, description="Load weights that are pickles. They can run any code.")
    plugin: list[str] = Field(default_factory=list, description="Plugin files to load, besides installed plugins.")
    out: str | None = Field(None, description="Run folder; runs/<time>-train-<model> if not given.")

    @field_validator("evaluate", mode="before")
    @classmethod
    def _none_is_no_evaluation(cls, value: Any) -> Any:
        return None if value in ("none", "") else value

    def budget(self) -> dict[str, Any]:
        """Return the one budget that is given: {name: value}."""
        return {name: getattr(self, name) for name in BUDGETS if getattr(self, name) is not None}
