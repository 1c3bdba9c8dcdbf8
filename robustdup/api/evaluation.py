"""Attack and evaluate a model from Python."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from robustdup.api.given import as_dataset
from robustdup.api.options import EvaluateOptions
from robustdup.api.results import EvaluationResult
from robustdup.errors import UserError
from robustdup.plugins import Registry, load_plugins, register_attack
from robustdup.plugins.specs import spec_of

if TYPE_CHECKING:
    from typing import Unpack

    from torch import Tensor, nn

    from robustdup.records import Progress


def evaluate(
    model: nn.Module | str, data: Any, labels: Any = None, *, norm: str = "Linf",
    eps: str | float | Sequence[str | float] | None = None, threat: str | None = None,
    attacks: str | Sequence[Any] = "autoattack", attack_model: nn.Module | str | None = None, n: int | None = None,
    out: str | Path | None = None, resume: bool = False,
    progress: bool | Callable[[Progress], None] | None = None, **options: Unpack[EvaluateOptions],
) -> EvaluationResult:  # fmt: skip
    """Evaluate a model: clean and robust accuracy, every adversarial image verified by the referee.

    Args:
        model: a module that takes images (N, C, H, W) in [0, 1] to logits (N, K), or a spec as for `load_model`.
        data: what `load_data` returned, images (N, C, H, W) in [0, 1] (then `labels` too), a `DataLoader`, a
            `datasets.Dataset`.
        labels: int64 (N,), where `data` is a tensor or array of images.
        norm: Linf, L2, L1, L0 (values that change) or L0-pixels.
        eps: the radius in pixel units of [0, 1], "8/255" or 0.5; several give a curve, whose largest is the verdict. If not
            given: 8/255 in Linf, 0.5 in L2, 12 in L1.
        threat: a union over norms in place of norm and eps: "Linf 8/255 + L2 0.5 + L1 12". A sample is robust when it survives
            in every ball.
        attacks: names as on the command line ("fast", "pgd(steps=40),square"), or a list of names and of functions decorated with
            `register_attack`.
        attack_model: attacked in place of the model, which is judged (BPDA, a surrogate).
        n: take the first n samples.
        out: the run folder; a temporary one, deleted at exit, if not given.
        resume: go on with the unfinished run in `out`.
        progress: True (bars; a line every half minute on standard error where it is redirected), False, or a function that
            takes each event; bars in notebooks and terminals if not given.
        options: the other settings of `robustdup eval`, by name.

    Returns:
        The result, with `record`, `adv_images`, `outcomes`, `robust_accuracy`, `save()`, `rank()`.

    Raises:
        UserError: a mistake: an unknown attack, images outside [0, 1], an option that does not exist.
        RunError: no result could come out.
    """
    from robustdup.config import EvalConfig, validate
    from robustdup.jobs import run_evaluation

    registry = load_plugins(options.get("plugin") or ())
    dataset = as_dataset(data, labels, n=n)
    spec = model if isinstance(model, str) else "python"
    config = validate(
        EvalConfig,
        {
            **_known(dict(options), EvalConfig), "model": spec, "data": dataset.spec, "split": dataset.split,
            "n": len(dataset) if dataset.selection in ("first", "stratified") else None, "norm": norm, "eps": _eps_text(eps),
            "threat": threat,
            "attacks": attacks if isinstance(attacks, str) else ",".join(_named(each, registry) for each in attacks),
            "out": None if out is None else str(out),
            "attack_model": attack_model if isinstance(attack_model, str | None) else "python",
        },
    )  # fmt: skip
    if (shown := registry.get_threat(threat)) is not None:
        how = f"robustdup.evaluate_{shown.name}(model, data, …)" if shown.name == "corruptions" else "robustdup eval"
        raise UserError(f"What {shown.name!r} shows is no attack: call {how}.", code="bad-option")
    folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="robustdup-")) / _run_name(model)
    try:
        with _shown(progress) as show:
            done = run_evaluation(
                config, model=None if isinstance(model, str) else model,
                attack_model=None if isinstance(attack_model, str) else attack_model, data=dataset,
                registry=registry, progress=show, folder=folder, resume=resume, command="robustdup.evaluate(…)",
            )  # fmt: skip
    except KeyboardInterrupt:
        print(
            f"Interrupted. Nothing is lost: call evaluate(…, out={str(folder)!r}, resume=True) with the same arguments.",
            file=sys.stderr,
        )
        raise
    except BaseException:
        if out is None:
            shutil.rmtree(folder.parent, ignore_errors=True)
        raise
    if out is None:
        _delete_at_exit(folder.parent)
    return EvaluationResult(done.record, done.adv_images, _words(done.outcomes), done.samples, folder)


@overload
def attack(
    model: nn.Module | str,
    images: Any,
    labels: Any,
    attack: Any = "apgd-ce",
    *,
    norm: str = "Linf",
    eps: str | float | None = None,
    seed: int = 0,
    **options: Any,
) -> Tensor: ...


@overload
def attack(model: str, *, norms: Sequence[str], **options: Any) -> Callable[[Any], Any]: ...


def attack(
    model: nn.Module | str,
    images: Any = None,
    labels: Any = None,
    attack: Any = "apgd-ce",
    *,
    norm: str = "Linf",
    eps: str | float | None = None,
    seed: int = 0,
    norms: Sequence[str] | None = None,
    **options: Any,
) -> Any:
    """Attack images and return adversarial ones, projected into the ball and verified.

    `attack(model, images, labels, "apgd-ce", eps="8/255", steps=40)`.

    Args:
        model: a module that takes images (N, C, H, W) in [0, 1] to logits (N, K), or a spec as for `load_model`.
        images: (N, C, H, W) in [0, 1].
        labels: int64 (N,).
        attack: the name of an attack or ensemble, with options as "pgd(steps=40)", or a function decorated with
            `register_attack`.
        norm: Linf, L2, L1, L0 (values that change) or L0-pixels.
        eps: the radius in pixel units of [0, 1].
        seed: of everything random.
        norms: only where this stands for `register_attack`, as it did before.
        options: options of the attack, by name.

    Returns:
        float32 (N, C, H, W): inside the ball and [0, 1]. A sample that the model gets wrong already comes back unchanged.

    Raises:
        UserError: an unknown attack or option, or images that do not fit.
    """
    if norms is not None and isinstance(model, str):  # the decorator's old name
        warnings.warn(
            "robustdup.attack as a decorator is called robustdup.register_attack now.", DeprecationWarning, stacklevel=2
        )
        return register_attack(model, norms=norms, **options)
    if options and not isinstance(attack, str):
        raise UserError(
            "Options go with the name of an attack: attack(model, images, labels, 'pgd', steps=40).", code="bad-option"
        )
    written = ",".join(f"{name}={value}" for name, value in options.items())
    attacks = [f"{attack}({written})" if options else attack]
    result = evaluate(
        model, images, labels, norm=norm, eps=eps, attacks=attacks, seed=seed, diagnostics=False, progress=False
    )
    return result.adv_images


def _words(outcomes: Tensor) -> list[str]:
    """Return the word of each outcome; a sample that was not attacked was misclassified already."""
    from robustdup.records import Outcome

    return [
        "misclassified" if outcome == Outcome.NOT_ATTACKED else Outcome(outcome).word for outcome in outcomes.tolist()
    ]


def _eps_text(eps: Any) -> str:
    if eps is None:
        return ""
    from robustdup.threat import eps_as_text

    if getattr(eps, "ndim", 0):  # an array, as of numpy.linspace
        eps = eps.tolist()
    if not isinstance(eps, list | tuple):
        return eps_as_text(eps)
    if not eps:
        raise UserError(
            "eps is an empty list. Write for instance eps='8/255', or leave it out for the usual one.", code="bad-eps"
        )
    return ",".join(eps_as_text(each) for each in eps)


def _known(options: dict[str, Any], config: Any) -> dict[str, Any]:
    """Return the options; what other toolkits call otherwise is named. Raises UserError."""
    for theirs, ours in (("epsilon", "eps"), ("epsilons", "eps"), ("batchsize", "batch_size"), ("attack", "attacks")):
        if theirs in options and theirs not in config.model_fields:
            raise UserError(f"evaluate() has no option {theirs!r}: write {ours}=….", code="unknown-option")
    return options


def _named(attack: Any, registry: Registry) -> str:
    if isinstance(attack, str):
        return attack
    spec = spec_of(attack)
    registry.add_attack(replace(spec, source="python"))
    return spec.name


@contextmanager
def _shown(progress: bool | Callable[[Progress], None] | None) -> Iterator[Callable[[Progress], None]]:
    """Give what takes the events of a run: nothing, a live view, or the user's function."""
    if callable(progress):
        yield progress
        return
    from robustdup.report.live import LiveView

    seen = sys.stderr.isatty() or "IPython" in sys.modules
    with LiveView(enabled=seen and progress is not False, lines=progress is True) as view:
        yield view.update


def _run_name(model: nn.Module | str) -> str:
    """Return what to call a run that is kept in memory: its model, so that comparisons tell two apart."""
    return (
        re.sub(r"[^A-Za-z0-9.-]+", "-", model if isinstance(model, str) else type(model).__name__).strip("-.")[-60:]
        or "run"
    )


def _delete_at_exit(folder: Path) -> None:
    import atexit

    atexit.register(shutil.rmtree, folder, ignore_errors=True)
