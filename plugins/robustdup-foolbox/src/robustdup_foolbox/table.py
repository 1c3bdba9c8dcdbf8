"""What foolbox 3.3 offers, one row an attack class: data only, so that listing the attacks imports nothing of foolbox.

Options and defaults are foolbox's own constructor options; a test compares the rows with the installed classes.
Reference: https://foolbox.readthedocs.io/en/stable/modules/attacks.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustdup.plugins import Kind, Knowledge

DOCS = "https://foolbox.readthedocs.io/en/stable/modules/attacks.html"
ALL_NORMS = ("Linf", "L2", "L1")
Cost = tuple[float, float] | Callable[[Mapping[str, Any]], tuple[float, float]]


@dataclass(frozen=True)
class Entry:
    """One attack class of foolbox.

    `options` are its constructor's, with their defaults; `left_out` names those that hold foolbox objects or log to disk.
    `own_defaults` are options for which foolbox has no default, or one that cannot work in float32. `choices` lists the
    words that an option accepts. `start` names the attack whose result the class needs as a starting point.
    `keep_best`: where the class gives a row up (it returns the clean image, a black one or NaN), its best iterate is
    returned instead. `clip`: apply foolbox's own clipping to eps, as calling the attack does.
    """

    name: str
    norms: tuple[str, ...]
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "bounded"
    knowledge: Knowledge = "white-box"
    url: str = DOCS
    cost: Cost | None = None
    quick: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    own_defaults: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    start: str = ""
    keep_best: bool = False
    clip: bool = False
    targeted: bool = False
    needs: str = ""
    warning: str = ""
    undemonstrated: str = ""


def _each_step(options: Mapping[str, Any]) -> tuple[float, float]:
    steps = options.get("steps", 1)
    return steps, steps


def _descent(norm: str, name: str, summary: str, url: str, defaults: Mapping[str, Any], **fields: Any) -> Entry:
    return Entry(
        name=norm + name, norms=(norm.replace("LInf", "Linf"),), summary=summary, url=url, options=defaults,
        cost=_each_step, **fields,
    )  # fmt: skip


_PGD = {"rel_stepsize": 0.025, "abs_stepsize": None, "steps": 50, "random_start": True}
_LINF_PGD = {**_PGD, "rel_stepsize": 0.01 / 0.3, "steps": 40}
_BIM = {"rel_stepsize": 0.2, "abs_stepsize": None, "steps": 10, "random_start": False}
_ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
_PGD_URL, _BIM_URL = "https://arxiv.org/abs/1706.06083", "https://arxiv.org/abs/1607.02533"
_MI_URL, _FGSM_URL = "https://arxiv.org/abs/1710.06081", "https://arxiv.org/abs/1412.6572"
_NO_ADAM = (
    "foolbox 3.3 never builds the Adam optimizer for this norm: the adam options change nothing, the result is {}'s."
)

DESCENT = [
    _descent("L1", "ProjectedGradientDescentAttack", "PGD in L1", _PGD_URL, _PGD, aliases=("L1PGD",)),
    _descent("L2", "ProjectedGradientDescentAttack", "PGD in L2", _PGD_URL, _PGD, aliases=("L2PGD",)),
    _descent("Linf", "ProjectedGradientDescentAttack", "PGD in Linf", _PGD_URL, _LINF_PGD, aliases=("LinfPGD", "PGD")),
    _descent("L1", "AdamProjectedGradientDescentAttack", "PGD with Adam steps in L1", DOCS, {**_PGD, **_ADAM},
             aliases=("L1AdamPGD",)),
    _descent("L2", "AdamProjectedGradientDescentAttack", "PGD with Adam steps in L2", DOCS, {**_PGD, **_ADAM},
             aliases=("L2AdamPGD",)),
    _descent("Linf", "AdamProjectedGradientDescentAttack", "PGD with Adam steps in Linf", DOCS, {**_PGD, **_ADAM},
             aliases=("LinfAdamPGD", "AdamPGD")),
    _descent("L1", "BasicIterativeAttack", "PGD without random start, few large steps, in L1", _BIM_URL, _BIM),
    _descent("L2", "BasicIterativeAttack", "PGD without random start, few large steps, in L2", _BIM_URL, _BIM),
    _descent("Linf", "BasicIterativeAttack", "Basic iterative method (iterated FGSM)", _BIM_URL, _BIM),
    _descent("L1", "AdamBasicIterativeAttack", "Basic iterative method in L1", DOCS, {**_BIM, **_ADAM},
             warning=_NO_ADAM.format("L1BasicIterativeAttack")),
    _descent("L2", "AdamBasicIterativeAttack", "Basic iterative method in L2", DOCS, {**_BIM, **_ADAM},
             warning=_NO_ADAM.format("L2BasicIterativeAttack")),
    _descent("Linf", "AdamBasicIterativeAttack", "Basic iterative method with Adam in Linf", DOCS, {**_BIM, **_ADAM}),
    _descent("L1", "MomentumIterativeFastGradientMethod", "MI-FGSM in L1", _MI_URL, {"momentum": 1.0, **_BIM}),
    _descent("L2", "MomentumIterativeFastGradientMethod", "MI-FGSM in L2", _MI_URL, {"momentum": 1.0, **_BIM}),
    _descent("Linf", "MomentumIterativeFastGradientMethod", "MI-FGSM", _MI_URL, {"momentum": 1.0, **_BIM},
             aliases=("MIFGSM",)),
    _descent("L1", "FastGradientAttack", "One gradient step of length eps in L1", _FGSM_URL, {"random_start": False}),
    _descent("L2", "FastGradientAttack", "One gradient step of length eps in L2", _FGSM_URL, {"random_start": False},
             aliases=("FGM",)),
    _descent("Linf", "FastGradientAttack", "Fast gradient sign method", _FGSM_URL, {"random_start": False},
             aliases=("FGSM",)),
    Entry("SparseL1DescentAttack", ("L1",), "PGD in L1 that moves the pixels of largest gradient",
          {"quantile": 0.99, **_BIM}, url="https://arxiv.org/abs/1904.13000", cost=_each_step, clip=True,
          warning="foolbox's projection can end up to about 1% outside the ball; foolbox's own clipping to eps is "
          "applied, as when the attack is called in foolbox."),
    Entry("VirtualAdversarialAttack", ("L2",), "Step of length eps where the KL divergence curves most",
          {"steps": 10, "xi": 1e-6}, url="https://arxiv.org/abs/1507.00677", cost=lambda o: (1 + o["steps"], o["steps"]),
          own_defaults=("steps",), keep_best=True,
          warning="Does not look at the labels. With xi = 1e-6 the probe drowns in float32 rounding; try xi = 0.01."),
]  # fmt: skip


def _noise(name: str, norm: str, summary: str, **fields: Any) -> list[Entry]:
    clipping_aware = "ClippingAware" in name
    url = "https://arxiv.org/abs/2007.07677" if clipping_aware else DOCS
    aware = "ClippingAware" if clipping_aware else ""
    rest = name.removeprefix("ClippingAware")
    exact = " after clipping to [0, 1]" if clipping_aware else ""
    return [
        Entry(f"{norm}{aware}{rest}", (norm,), f"{summary} of length eps{exact}, one draw; never asks the model",
              knowledge="decision-based", url=url, cost=(0, 0), **fields,
              undemonstrated="It is noise of length eps itself, and breaks as much as noise does."),
        Entry(f"{norm}{aware}Repeated{rest}", (norm,), f"{summary} of length eps{exact}, redrawn until one fools",
              {"repeats": 100, "check_trivial": True}, knowledge="decision-based", url=url, keep_best=True,
              cost=lambda o: (o["repeats"] + o["check_trivial"], 0), **fields),
    ]  # fmt: skip


_OVER_EPS = (
    "foolbox scales by the largest positive value instead of the largest absolute one, so that raw noise can leave the "
    "ball; foolbox's own clipping to eps is applied, as when the attack is called in foolbox."
)
NOISE = [
    *_noise("AdditiveGaussianNoiseAttack", "L2", "Gaussian noise"),
    *_noise("AdditiveUniformNoiseAttack", "L2", "Uniform noise"),
    *_noise("ClippingAwareAdditiveGaussianNoiseAttack", "L2", "Gaussian noise"),
    *_noise("ClippingAwareAdditiveUniformNoiseAttack", "L2", "Uniform noise"),
    *_noise("AdditiveUniformNoiseAttack", "Linf", "Uniform noise", clip=True, warning=_OVER_EPS),
]

_FMN = {"steps": 100, "max_stepsize": 1.0, "min_stepsize": None, "gamma": 0.05, "binary_search_steps": 10}
_FMN_FIELDS: dict[str, Any] = {
    "kind": "minimum-norm", "url": "https://arxiv.org/abs/2102.12827", "cost": _each_step, "left_out": ("init_attack",),
    "keep_best": True, "quick": {"steps": 50},
}  # fmt: skip


def _deepfool(options: Mapping[str, Any]) -> float:
    """One pass a step and candidate class; ten classes where the candidates are not limited."""
    return float(options["steps"] * ((options["candidates"] or 10) - 1))


_DEEPFOOL = {"steps": 50, "candidates": 10, "overshoot": 0.02, "loss": "logits"}
_DEEPFOOL_FIELDS: dict[str, Any] = {
    "kind": "minimum-norm", "url": "https://arxiv.org/abs/1511.04599", "choices": {"loss": ("logits", "crossentropy")},
    "cost": lambda o: (1 + _deepfool(o), _deepfool(o)),
    "keep_best": True,
}  # fmt: skip

MINIMISATION = [
    Entry("DDNAttack", ("L2",), "Decoupled direction and norm", {"init_epsilon": 1.0, "steps": 100, "gamma": 0.05},
          kind="minimum-norm", url="https://arxiv.org/abs/1811.09600", cost=_each_step, keep_best=True,
          quick={"steps": 50}),
    Entry("L2CarliniWagnerAttack", ("L2",), "Carlini and Wagner's L2 attack",
          {"binary_search_steps": 9, "steps": 10000, "stepsize": 0.01, "confidence": 0.0, "initial_const": 0.001,
           "abort_early": True},
          kind="minimum-norm", url="https://arxiv.org/abs/1608.04644", keep_best=True,
          quick={"steps": 100, "binary_search_steps": 3, "initial_const": 1.0},
          warning="Up to 90,000 passes at the defaults (binary_search_steps × steps)."),
    Entry("EADAttack", ("L1",), "Elastic-net attack (L1 and L2 together)",
          {"binary_search_steps": 9, "steps": 10000, "initial_stepsize": 0.01, "confidence": 0.0,
           "initial_const": 0.001, "regularization": 0.01, "decision_rule": "EN", "abort_early": True},
          kind="minimum-norm", url="https://arxiv.org/abs/1709.04114", keep_best=True,
          choices={"decision_rule": ("EN", "L1")}, quick={"steps": 100, "binary_search_steps": 3, "initial_const": 1.0},
          warning="Up to 180,000 passes at the defaults (2 × binary_search_steps × steps)."),
    Entry("NewtonFoolAttack", ("L2",), "Gradient descent on the true class's probability",
          {"steps": 100, "stepsize": 0.01}, kind="minimum-norm", url="https://doi.org/10.1145/3134600.3134635",
          cost=_each_step, keep_best=True, warning="foolbox returns NaN where the gradient underflows after success; "
          "the nearest image that it found on the way is returned for those."),
    Entry("L2DeepFoolAttack", ("L2",), "DeepFool", _DEEPFOOL, **_DEEPFOOL_FIELDS),
    Entry("LinfDeepFoolAttack", ("Linf",), "DeepFool in Linf", _DEEPFOOL, **_DEEPFOOL_FIELDS),
    Entry("L0FMNAttack", ("L0", "L1"), "Fast minimum-norm attack in L0", _FMN, **_FMN_FIELDS),
    Entry("L1FMNAttack", ("L1",), "Fast minimum-norm attack in L1", _FMN, **_FMN_FIELDS),
    Entry("L2FMNAttack", ("L2",), "Fast minimum-norm attack in L2", _FMN, **_FMN_FIELDS,
          warning="foolbox 3.3 never projects onto its L2 ball (it divides a norm by itself), so that its results are "
          "larger than the published attack's; DDNAttack comes nearer."),
    Entry("LInfFMNAttack", ("Linf",), "Fast minimum-norm attack in Linf", _FMN, **_FMN_FIELDS),
]  # fmt: skip

_BOUNDARY_OPTIONS = {
    "steps": 25000, "spherical_step": 0.01, "source_step": 0.01, "source_step_convergance": 1e-7,
    "step_adaptation": 1.5, "update_stats_every_k": 10,
}  # fmt: skip
_HSJ_OPTIONS = {
    "steps": 64, "initial_gradient_eval_steps": 100, "max_gradient_eval_steps": 10000,
    "stepsize_search": "geometric_progression", "gamma": 1.0,
}  # fmt: skip
_BB_OPTIONS = {
    "overshoot": 1.1, "steps": 1000, "lr": 0.001, "lr_decay": 0.5, "lr_num_decay": 20, "momentum": 0.8,
    "binary_search_steps": 10,
}  # fmt: skip
_BB_FIELDS: dict[str, Any] = {
    "kind": "minimum-norm", "url": "https://arxiv.org/abs/1907.01003", "left_out": ("init_attack", "tensorboard"),
    "start": "noise", "needs": "numba", "quick": {"steps": 20, "lr": 0.01},
}  # fmt: skip

STARTED = [
    Entry("BoundaryAttack", ("L2",), "Walk along the decision boundary towards the clean image", _BOUNDARY_OPTIONS,
          kind="minimum-norm", knowledge="decision-based", url="https://arxiv.org/abs/1712.04248", start="noise",
          left_out=("init_attack", "tensorboard"),
          quick={"steps": 1500},
          warning="Rows of one batch share random directions, and 25,000 steps are its default."),
    Entry("HopSkipJumpAttack", ("Linf", "L2"), "Boundary walk with an estimated gradient", _HSJ_OPTIONS,
          kind="minimum-norm", knowledge="decision-based", url="https://arxiv.org/abs/1904.02144", start="noise",
          left_out=("init_attack", "tensorboard", "constraint"),
          choices={"stepsize_search": ("geometric_progression", "grid_search")},
          quick={"steps": 6, "initial_gradient_eval_steps": 50},
          warning="Its constraint follows the threat model's norm; its steps are scaled by the norm of the whole batch."),
    Entry("PointwiseAttack", ("L0", "L1", "L2"), "Resets one value after the other to the clean one",
          {"l2_binary_search": True}, kind="minimum-norm", knowledge="decision-based",
          url="https://arxiv.org/abs/1805.09190", start="salt and pepper", left_out=("init_attack",),
          quick={"l2_binary_search": False}, warning="For small images: l2_binary_search can take very long."),
    Entry("L0BrendelBethgeAttack", ("L0", "L1"), "Follows the boundary with the gradient, in L0", _BB_OPTIONS,
          **_BB_FIELDS),
    Entry("L1BrendelBethgeAttack", ("L1",), "Follows the boundary with the gradient, in L1", _BB_OPTIONS, **_BB_FIELDS),
    Entry("L2BrendelBethgeAttack", ("L2",), "Follows the boundary with the gradient, in L2", _BB_OPTIONS, **_BB_FIELDS),
    Entry("LinfinityBrendelBethgeAttack", ("Linf",), "Follows the boundary with the gradient, in Linf", _BB_OPTIONS,
          **_BB_FIELDS),
    Entry("BinarizationRefinementAttack", ALL_NORMS, "Moves values to a binarising model's threshold",
          {"threshold": None, "included_in": "upper"}, kind="minimum-norm", knowledge="decision-based", start="noise",
          left_out=("distance",), choices={"included_in": ("lower", "upper")},
          warning="Only for models that binarise their inputs at `threshold` (0.5 if null); others are refused.",
          undemonstrated="It refuses the conformance network, which does not binarise its inputs; on one that does, it "
          "breaks what it starts from, and nearer (this plugin's tests)."),
]  # fmt: skip

_CONTRAST = "Draws the image towards grey until it fools"
SIMPLE = [
    Entry("L2ContrastReductionAttack", ("L2",), "Moves the image by eps towards grey; never asks the model",
          {"target": 0.5}, knowledge="decision-based", cost=(0, 0)),
    Entry("BinarySearchContrastReductionAttack", ALL_NORMS, _CONTRAST + " (binary search)",
          {"binary_search_steps": 15, "target": 0.5}, kind="minimum-norm", knowledge="decision-based",
          left_out=("distance",), cost=lambda o: (o["binary_search_steps"], 0)),
    Entry("LinearSearchContrastReductionAttack", ALL_NORMS, _CONTRAST + " (linear search)",
          {"steps": 1000, "target": 0.5}, kind="minimum-norm", knowledge="decision-based", left_out=("distance",),
          cost=lambda o: (o["steps"], 0), quick={"steps": 100}),
    Entry("GaussianBlurAttack", ALL_NORMS, "Blurs more and more until it fools",
          {"steps": 1000, "channel_axis": None, "max_sigma": None}, kind="minimum-norm", knowledge="decision-based",
          left_out=("distance",), cost=lambda o: (1 + o["steps"], 0), keep_best=True, quick={"steps": 100}),
    Entry("SaltAndPepperNoiseAttack", ("L2",), "More and more black and white pixels until it fools",
          {"steps": 1000, "across_channels": True, "channel_axis": None}, kind="minimum-norm",
          knowledge="decision-based", cost=lambda o: (1 + o["steps"], 0), keep_best=True, quick={"steps": 100}),
    Entry("LinearSearchBlendedUniformNoiseAttack", ALL_NORMS, "Blends the image with a noise image until it fools",
          {"directions": 1000, "steps": 1000}, kind="minimum-norm", knowledge="decision-based", left_out=("distance",),
          cost=lambda o: (o["directions"] + o["steps"] + 1, 0), quick={"directions": 50, "steps": 100}),
    Entry("InversionAttack", ("L2", "L1", "Linf"), "The negative image; never asks the model and does not minimise",
          kind="unbounded", knowledge="decision-based", url="https://arxiv.org/abs/1703.06857",
          left_out=("distance",), cost=(0, 0)),
    Entry("DatasetAttack", ALL_NORMS, "Another image of the same batch that the model classifies otherwise",
          kind="minimum-norm", knowledge="decision-based", left_out=("distance",), cost=(2, 0),
          warning="Takes its images from the batch under attack: it needs images of several classes in one batch."),
    Entry("SpatialAttack", ("L2", "L1", "Linf"), "Rotations and translations, on a grid or at random",
          {"max_translation": 3.0, "max_rotation": 30.0, "num_translations": 5, "num_rotations": 5, "grid_search": True,
           "random_steps": 100},
          kind="unbounded", knowledge="decision-based", url="https://arxiv.org/abs/1712.02779", keep_best=True,
          cost=lambda o: (1 + (o["num_rotations"] * o["num_translations"] ** 2 if o["grid_search"]
                               else o["random_steps"]), 0)),
    Entry("GenAttack", ("Linf",), "Genetic search for the second most likely class",
          {"steps": 1000, "population": 10, "mutation_probability": 0.1, "mutation_range": 0.15,
           "sampling_temperature": 0.3, "channel_axis": None, "reduced_dims": None},
          knowledge="score-based", url="https://arxiv.org/abs/1805.11090", targeted=True,
          cost=lambda o: (1 + o["steps"] * o["population"], 0), quick={"steps": 30},
          warning="A targeted attack: the target is each sample's most likely wrong class. Fails on logits above 88, which "
          "overflow in foolbox's fitness."),
]  # fmt: skip

ENTRIES = (*DESCENT, *NOISE, *MINIMISATION, *STARTED, *SIMPLE)
