"""The configuration of an evaluation: what `robustdup eval` is told."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from robustdup.config.fields import DATA_DETAILS, DIGITS, EVALUATION_NORMS, DataFields, ModelFields, usual_eps
from robustdup.errors import UserError

DIGITS_SAMPLES = 200  # of the built-in digits, so that a first look takes less than a minute


def _usual_n(values: Mapping[str, Any]) -> int | None:
    first_look = (values.get("data"), values.get("attacks")) == (DIGITS, "autoattack")
    return DIGITS_SAMPLES if first_look and values.get("sample") is None else None


class EvalConfig(DataFields, ModelFields):
    """What `robustdup eval` needs. Field descriptions are the help texts of the flags."""

    recipes_of: ClassVar[str] = "eval"
    panels: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "Model": ("model", "normalize", "class_names", "attack_model", "mode", "judge_draws", "allow_pickle"),
        "Data": ("data", "split", "n", "sample", "resize", "crop", "grey", *DATA_DETAILS),
        "Threat model": ("norm", "eps", "threat", "each_norm"),
        "Attacks": (
            "attacks", "replay", "options", "loss", "eot", "individual", "min_distance", "diagnostics", "certify",
            "certify_seconds", "certify_branch", "seed", "plugin",
        ),
        "Speed": (
            "device", "workers", "runner", "threads", "batch_size", "micro_batch", "precision", "compile", "fold",
        ),
        "Output": ("out", "save_images"),
    }  # fmt: skip

    sample: int | None = Field(
        None, description="Take a random subset of this many samples, drawn from the seed.", ge=1
    )
    norm: str = Field(
        "Linf", description="Norm of the threat model.", json_schema_extra={"choices": list(EVALUATION_NORMS)}
    )
    eps: str = Field(
        default_factory=usual_eps,
        description=(
            "Radius in pixel units of [0, 1]: 8/255, 0.5, or several for a curve: 2/255,4/255,8/255. In L0: how many values may "
            "change, each one channel of one pixel; in L0-pixels how many pixels. "
            "[default: Linf 8/255, L2 0.5, L1 12, L0 20, L0-pixels 10; for builtin:digits Linf 0.15, L2 0.5, L1 2, L0 and "
            "L0-pixels 5]"
        ),
    )
    threat: str | None = Field(
        None,
        description="Threat model in place of --norm and --eps: 'Linf 8/255 + L2 0.5 + L1 12' is a union, in which a sample is "
        "robust when it survives in every ball; 'corruptions' shows common corruptions in place of attacks.",
    )
    each_norm: bool = Field(
        False,
        description="With a union: attack all samples in every norm, for exact accuracies in each one alone; otherwise what one "
        "norm has broken is not attacked in the next.",
    )
    attacks: str = Field(
        "autoattack",
        description="Attacks, in order: names of attacks and ensembles, with options: 'fgsm,pgd(steps=40,restarts=2)'.",
    )
    n: int | None = Field(
        default_factory=_usual_n,
        description="Take the first N samples, as RobustBench does (where they come in order of class, N by chance with each "
        "class by its share); all if not given, but 200 of the 500 built-in digits for autoattack, so "
        "that a first look takes less than a minute.",
        ge=1,
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="Options by attack: options.pgd.steps=40."
    )
    replay: str | None = Field(
        None,
        description="Try the adversarial images of an earlier run first: a run folder or a bundle on the same images. The "
        "referee judges them, and what they break is not attacked again.",
    )
    individual: bool = Field(
        False, description="Run each attack on all samples instead of on survivors, to compare attacks."
    )
    class_names: Literal["compare", "ignore"] = Field(
        "compare",
        description="Compare the names of the model's classes with the data's and map labels by name, or ignore them.",
    )
    attack_model: str | None = Field(
        None, description="Attack this model and judge --model: BPDA, stand-ins, transfer."
    )
    loss: str | None = Field(
        None,
        description="Loss for every native gradient attack that takes one: ce, margin, dlr, probability-margin, or a "
        "plugin's.",
    )
    eot: int = Field(
        1,
        description="Gradient draws a step for randomised models (EOT), for attacks by gradient; for such a model 10 to 64 if "
        "not given, as its answers vary.",
        ge=1,
    )
    judge_draws: int = Field(100, description="Fresh draws by which a randomised model is judged.", ge=1)
    mode: Literal["eval", "as-is"] = Field("eval", description="Put the model in eval mode, or leave it as it comes.")
    seed: int = Field(0, description="Seed of everything random.", ge=0)
    batch_size: int | None = Field(
        None,
        description="Samples in one call of an attack, which is what a kill can lose; chosen by the device if not given.",
        ge=1,
    )
    micro_batch: int | None = Field(
        None, description="Batch rows in one padded model call; chosen by the device if not given.", ge=1
    )
    threads: int | None = Field(
        None, description="CPU threads; one for models too small to share out, all otherwise, if not given.", ge=1
    )
    device: str = Field("auto", description="cpu, cuda, cuda:1, or auto.")
    workers: int | None = Field(
        None,
        description="Processes (or actors of a cluster) that share the samples; the result is the same. If not given: one "
        "for each core where a small model computes with one thread and the run may take long, otherwise one.",
        ge=1,
    )
    runner: str = Field("local", description="Where the workers are: local, or ray (a cluster).")
    fold: bool = Field(
        True, description="Attack a copy with BatchNorm folded into convolutions; the original is judged."
    )
    compile: Literal["auto", "off", "on", "cudagraphs"] = Field(
        "auto",
        description=(
            "Compile the copy that native attacks use: auto is off on a CPU, and on with CUDA where the run threatens to take "
            "two minutes."
        ),
    )
    precision: Literal["auto", "fp32", "tf32", "bf16"] = Field(
        "auto",
        description="Precision of the copy that native attacks use; the judge is always strict fp32. auto: TF32 on CUDA from "
        "compute capability 8.0 on, as torch's own defaults have it, else fp32.",
    )
    min_distance: bool = Field(
        False, description="Also look for the smallest eps of every sample, and report robust accuracy over eps."
    )
    certify: bool | None = Field(
        None,
        description="First prove, for as many samples as possible, that no adversarial example exists; no attack runs on "
        "these, and robust accuracy gets a lower bound. If not given, autoattack on many samples does so where a probe of a "
        "few says that it pays.",
    )
    certify_seconds: float | None = Field(
        60.0, description="Seconds after which certify begins no further samples.", gt=0
    )
    certify_branch: float = Field(
        1.0,
        description="With certify: seconds of CPU that a sample which bounds leave open is given to be proven case by case "
        "(branch and bound on rectifiers, for small networks); 0 for none.",
        ge=0,
    )
    allow_pickle: bool = Field(
        False, description="Load weights that are pickles. They can run any code: only from people you trust."
    )
    diagnostics: bool = Field(True, description="Look for signs that the number should not be believed.")
    save_images: bool = Field(True, description="Keep the adversarial images (exact) in the run folder.")
    plugin: list[str] = Field(default_factory=list, description="Plugin files to load, besides installed plugins.")
    out: str | None = Field(None, description="Run folder; runs/<time>-<model> if not given.")

    @model_validator(mode="after")
    def _one_threat(self) -> EvalConfig:
        if self.threat is not None and (self.norm != "Linf" or self.eps != usual_eps({"data": self.data})):
            raise UserError(
                f"--threat {self.threat!r} names norm and eps already: leave out --norm and --eps.", code="bad-option"
            )
        if self.each_norm and self.threat is None:
            raise UserError("--each-norm goes with a union: --threat 'Linf 8/255 + L2 0.5'.", code="bad-option")
        return self
