"""What `python -m benchmarks.timing eval` is told: model, samples and threat as for `robustdup eval`, and what to compare."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from robustdup.config import DataFields, EvalConfig, usual_eps, validate
from robustdup.config.fields import ModelFields
from robustdup.errors import UserError

# Fields that mean here what they mean in an evaluation.
SHARED = (
    "model", "data", "split", "data_config", "revision", "image_column", "label_column", "resize", "crop", "grey", "n",
    "norm", "eps", "seed", "threads", "device", "allow_pickle", "plugin",
)  # fmt: skip


def _shared(name: str) -> Any:
    return EvalConfig.model_fields[name]


class TimingConfig(DataFields, ModelFields):
    """What `python -m benchmarks.timing eval` needs. Field descriptions are the help texts of the flags."""

    n: int = Field(64, description="Take the first N points; every contender gets all of them.", ge=1)
    norm: str = _shared("norm")
    eps: str = Field(
        default_factory=usual_eps,
        description="One radius in pixel units of [0, 1], such as 8/255; that of 'robustdup eval' if not given.",
    )
    seed: int = _shared("seed")
    threads: int | None = Field(
        None, description="CPU threads, the same for every contender; all cores if not given.", ge=1
    )
    device: str = _shared("device")
    contenders: str | None = Field(
        None,
        description=(
            "What to compare, in order: robustdup's ensembles or attacks, and baselines of toolkits, with @SIZE for a "
            "batch size and @best for the quickest of --batch-sizes. [default: autoattack, fast, pyautoattack, "
            "pyautoattack@best, torchattacks-autoattack, art-autoattack, where they are there]"
        ),
    )
    repeats: int = Field(3, description="Measurements of each contender, taken in turn.", ge=1)
    batch_sizes: str = Field("32,64,128,256,1000", description="Batch sizes among which @best looks.")
    sweep_n: int = Field(64, description="Points on which @best looks; sizes above it cannot be told apart.", ge=1)
    timeout: float | None = Field(
        None, description="Seconds after which a contender is stopped; its time is then a lower bound.", gt=0
    )
    allow_pickle: bool = _shared("allow_pickle")
    plugin: list[str] = _shared("plugin")
    out: str | None = Field(None, description="File for the result (JSON), written anew after every measurement.")

    @property
    def sizes(self) -> list[int]:
        """The batch sizes of the sweep, rising. Raises UserError."""
        words = [word.strip() for word in self.batch_sizes.split(",") if word.strip()]
        if not words or not all(word.isdecimal() and int(word) > 0 for word in words):
            raise UserError(f"batch_sizes must be whole numbers such as '32,64,128', got {self.batch_sizes!r}.")
        return sorted({int(word) for word in words})

    def evaluation(self, **changes: Any) -> EvalConfig:
        """Return the evaluation of the same model on the same points, with `changes` of its other keys."""
        return validate(EvalConfig, {**{name: getattr(self, name) for name in SHARED}, **changes})
