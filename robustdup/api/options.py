"""The options of the verbs, by name and type, so that an editor completes them and a type checker checks them.

They are the fields of the configurations; `tests/api/test_options.py` holds that.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict


class SharedOptions(TypedDict, total=False):
    """Options of `robustdup.evaluate` and of `robustdup.train` that have one meaning in both."""

    normalize: str | None
    split: str
    data_config: str | None
    revision: str | None
    image_column: str | None
    label_column: str | None
    resize: int | None
    crop: int | None
    grey: bool
    sample: int | None
    seed: int
    threads: int | None
    device: str
    compile: Literal["auto", "off", "on", "cudagraphs"]
    allow_pickle: bool
    plugin: list[str]


class EvaluateOptions(SharedOptions, total=False):
    """Further options of `robustdup.evaluate`: see `robustdup eval --help`."""

    class_names: Literal["compare", "ignore"]
    replay: str | None
    options: dict[str, dict[str, Any]]
    individual: bool
    each_norm: bool
    loss: str | None
    eot: int
    judge_draws: int
    mode: Literal["eval", "as-is"]
    batch_size: int | None
    micro_batch: int | None
    workers: int | None
    runner: str
    fold: bool
    precision: Literal["auto", "fp32", "tf32", "bf16"]
    min_distance: bool
    certify: bool | None
    certify_seconds: float | None
    certify_branch: float
    diagnostics: bool
    save_images: bool


class TrainOptions(SharedOptions, total=False):
    """Options of `robustdup.train`: see `robustdup train --help`."""

    model: str
    data: str
    init: str | None
    new_head: bool
    freeze: str | None
    extra_data: str | None
    extra_share: float
    extra_split: str | None
    extra_labels: str | None
    transforms: str | None
    mix: str | None
    nesterov: bool
    eps_schedule: str | None
    steps_schedule: str | None
    test_split: str
    test_data: str | None
    n: int | None
    duplicate: dict[str, Any]
    score_model: str | None
    as_weights: bool
    objective: str
    update: str
    attack: str
    norm: str
    eps: str
    inner_bn: Literal["eval", "train"]
    label_smoothing: float
    augment: Literal["crop-flip", "crop", "flip", "none"]
    padding: int
    share_augmentation: bool
    steps: int | None
    samples: int | None
    epochs: float | None
    batch_size: int
    optimizer: Literal["sgd", "adamw", "muon"]
    lr: float
    muon_lr: float
    momentum: float
    weight_decay: float
    decay_all: bool
    schedule: Literal["cosine", "one-cycle", "linear", "piecewise", "constant"]
    warmup: float
    milestones: list[float]
    schedule_steps: int | None
    clip: float | None
    ema: float
    swa: float
    validation: float
    validation_attack: str
    keep_near_duplicates: bool
    validate_every: int | None
    evaluate: str | None
    test_n: int | None
    targets: list[float]
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"]
    accumulate: int
    deterministic: bool
    channels_last: bool
    loader_workers: int
    in_memory: bool | Literal["auto"]
    checkpoint_every: int | None
    track: str


class DuplicateOptions(TypedDict, total=False):
    """Further options of `robustdup.duplicate`: see `robustdup data duplicate --help`."""

    mode: Literal["append", "replace"]
    dose: float | None
    fraction: float | None
    copies: int | None
    classes: list[str]
    skew: float
    exponent: float
    row: int | None
    score_column: str | None
    leak_from: str
    paper_p: int | None
    paper_r: float | None
    control: Literal["none", "fewer_unique", "class_prior", "matched"]
    near: str | None
