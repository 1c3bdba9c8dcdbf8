"""What adv-lib 0.2 offers for classifiers, one row a function: data only, so that listing the attacks imports nothing of it.

Options and defaults are adv-lib's own, Greek letters written out; a test compares the rows with the installed functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustdup.plugins import Kind

Cost = tuple[float, float] | Callable[[Mapping[str, Any]], tuple[float, float]]
GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "η": "eta", "μ": "mu", "ρ": "rho", "σ": "sigma", "τ": "tau", "ε": "eps",
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One attack function of adv-lib.

    `options` are its parameters with their defaults; `left_out` names those that the adapter gives, or that hold objects or
    change what is returned. `own_defaults` are options for which adv-lib has no default, or one under which the attack does
    nothing useful. `norm` and `eps` name the parameters that the threat model fills. `least_classes` is what the DLR loss
    needs, where that is chosen; `colour`: only for images of three channels.
    """

    name: str
    norms: tuple[str, ...]
    summary: str
    url: str
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "minimum-norm"
    module: str = "adv_lib.attacks"
    cost: Cost | None = None
    quick: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ("targeted",)
    own_defaults: tuple[str, ...] = ()
    norm: str = ""
    eps: str = ""
    least_classes: int = 2
    colour: bool = False
    warning: str = ""
    undemonstrated: str = ""


def ascii_name(parameter: str) -> str:
    """Return a parameter's name with its Greek letters written out: 'ρ_init' is 'rho_init'."""
    return "".join(GREEK.get(letter, letter) for letter in parameter)


def _steps(name: str) -> Callable[[Mapping[str, Any]], tuple[float, float]]:
    return lambda options: (options[name], options[name])


_APGD_URL, _CW_URL = "https://arxiv.org/abs/2003.01690", "https://arxiv.org/abs/1608.04644"
_PD_URL, _SPARSE_URL = "https://arxiv.org/abs/2106.01538", "https://arxiv.org/abs/2011.12423"
_CONVEX = ("Linf", "L2", "L1")
_LOSSES = {"loss_function": ("ce", "dlr")}
_APGD = {"n_iter": 100, "n_restarts": 1, "loss_function": "dlr", "eot_iter": 1, "rho": 0.75, "use_large_reps": False,
         "use_rs": True}  # fmt: skip
_DUAL = {"primal_lr": 0.1, "primal_lr_decrease": 0.01, "dual_ratio_init": 0.01, "dual_lr": 0.1, "dual_lr_decrease": 0.1,
         "dual_ema": 0.9, "dual_min_ratio": 1e-6}  # fmt: skip
_ADAM = {"beta_1": 0.9, "beta_2": 0.999}
_CALLED = ("targeted", "callback")
_LARGE = "use_large_reps is for L1; adv-lib refuses it elsewhere."

BOUNDED = (
    Entry("apgd", _CONVEX, "APGD on the DLR or the cross-entropy", _APGD_URL, {**_APGD, "best_loss": False},
          kind="bounded", norm="norm", eps="eps", quick={"n_iter": 30, "loss_function": "ce"}, choices=_LOSSES,
          least_classes=3, warning=_LARGE),
    Entry("apgd_targeted", _CONVEX, "APGD towards one class after the other", _APGD_URL, {**_APGD, "num_targets": None},
          kind="bounded", norm="norm", eps="eps", quick={"n_iter": 20, "num_targets": 3}, choices=_LOSSES, least_classes=4,
          warning=_LARGE),
    Entry("pgd_linf", ("Linf",), "PGD in Linf", "https://arxiv.org/abs/1706.06083",
          {"steps": 40, "random_init": True, "restarts": 1, "loss_function": "ce", "relative_step_size": 0.01 / 0.3,
           "absolute_step_size": None},
          kind="bounded", eps="ε", left_out=_CALLED, choices={"loss_function": ("ce", "dl", "dlr")}, least_classes=3),
)  # fmt: skip

MINIMUM_NORM = (
    Entry("alma", ("L2", "L1"), "ALMA: augmented Lagrangian, with a penalty that adapts",
          "https://arxiv.org/abs/2011.11857",
          {"num_steps": 1000, "lr_init": 0.1, "lr_reduction": 0.01, "init_lr_distance": None, "mu_init": 1, "rho_init": 1,
           "check_steps": 10, "tau": 0.95, "gamma": 1.2, "alpha": 0.9, "alpha_rms": None, "momentum": None,
           "logit_tolerance": 1e-4, "levels": None},
          left_out=("targeted", "callback", "penalty", "distance"), cost=_steps("num_steps"), quick={"num_steps": 100},
          warning="Its paper sets init_lr_distance (0.1 in L2, 0.5 in L1 at 1,000 steps): without it the first step has a "
          "fixed rate."),
    Entry("carlini_wagner_l2", ("L2",), "Carlini and Wagner in L2", _CW_URL,
          {"confidence": 0.0, "learning_rate": 0.01, "initial_const": 0.001, "binary_search_steps": 9,
           "max_iterations": 10000, "abort_early": True, **_ADAM},
          left_out=_CALLED, quick={"max_iterations": 60, "binary_search_steps": 3, "initial_const": 1.0}),
    Entry("carlini_wagner_linf", ("Linf",), "Carlini and Wagner in Linf", _CW_URL,
          {"learning_rate": 0.01, "max_iterations": 1000, "initial_const": 1e-5, "largest_const": 20.0,
           "const_factor": 2.0, "reduce_const": False, "decrease_factor": 0.9, "abort_early": True, **_ADAM},
          left_out=_CALLED, quick={"max_iterations": 30, "initial_const": 1.0}),
    Entry("ddn", ("L2",), "DDN: direction and length apart", "https://arxiv.org/abs/1811.09600",
          {"steps": 100, "gamma": 0.05, "init_norm": 1.0, "levels": 256}, left_out=_CALLED, cost=_steps("steps"),
          quick={"steps": 40}, warning="Rounds its images to `levels` values; levels=0 does not."),
    Entry("df", ("L2", "Linf"), "DeepFool", "https://arxiv.org/abs/1511.04599", {"steps": 100, "overshoot": 0.02},
          left_out=("targeted", "return_unsuccessful", "return_targets"), norm="norm", quick={"steps": 20}),
    Entry("fab", _CONVEX, "FAB: a walk along the boundary", "https://arxiv.org/abs/1907.02044",
          {"n_iter": 100, "eps": None, "alpha_max": 0.1, "beta": 0.9, "eta": 1.05, "restarts": None,
           "targeted_restarts": False},
          norm="norm", quick={"n_iter": 10},
          warning="Its eps is the length of the random starts of restarts: 0.3 in Linf, 1 in L2, 5 in L1 if None."),
    Entry("fmn", ("Linf", "L2", "L1", "L0"), "FMN: gradient steps in a ball that shrinks on success",
          "https://arxiv.org/abs/2102.12827",
          {"steps": 10, "alpha_init": 1.0, "alpha_final": None, "gamma_init": 0.05, "gamma_final": 0.001},
          left_out=("targeted", "starting_points", "binary_search_steps"), norm="norm", cost=_steps("steps"),
          quick={"steps": 60}, warning="Ten steps are adv-lib's default and too few; its paper takes 100 to 1,000."),
    Entry("minimal_apgd", _CONVEX, "APGD in balls found by halving", _APGD_URL,
          {"max_eps": None, "binary_search_steps": 20, "targeted_version": False, **_APGD, "num_targets": None},
          module="adv_lib.attacks.auto_pgd", norm="norm", own_defaults=("max_eps",), choices=_LOSSES, least_classes=4,
          quick={"n_iter": 15, "binary_search_steps": 6},
          warning="max_eps, the largest radius that is tried halved, is twice the eps of the threat model if None."),
    Entry("pdgd", ("L2",), "PDGD: primal-dual gradient descent", _PD_URL, {"num_steps": 500, "random_init": 0.0, **_DUAL},
          left_out=_CALLED, cost=_steps("num_steps"), quick={"num_steps": 100}),
    Entry("pdpgd", ("Linf", "L2", "L1", "L0"), "PDPGD: primal-dual proximal gradient descent", _PD_URL,
          {"num_steps": 500, "random_init": 0.0, "proximal_operator": None, **_DUAL, "proximal_steps": 5,
           "eps_threshold": 0.01},
          left_out=_CALLED, norm="norm", cost=_steps("num_steps"), quick={"num_steps": 100}),
    Entry("sdf", ("L2",), "SuperDeepFool", "https://arxiv.org/abs/2303.12481",
          {"steps": 100, "df_steps": 100, "overshoot": 0.02, "search_iter": 10}, quick={"steps": 10, "df_steps": 20}),
    Entry("sigma_zero", ("L0",), "σ-zero: descent on a smooth count of changed values",
          "https://arxiv.org/abs/2402.01879",
          {"num_steps": 1000, "eta_0": 1.0, "sigma": 0.001, "tau_0": 0.3, "tau_factor": 0.01, "grad_norm": math.inf},
          cost=_steps("num_steps"), quick={"num_steps": 100}),
    Entry("fga", ("L0",), "FGA: one value after the other, by folded Gaussian noise", _SPARSE_URL,
          {"increasing": True, "max_iter": None, "n_samples": 10, "large_memory": False}, quick={"max_iter": 60}),
    Entry("vfga", ("L0",), "VFGA: FGA that votes between raising and lowering", _SPARSE_URL,
          {"max_iter": None, "n_samples": 10, "large_memory": False}, quick={"max_iter": 60}),
    Entry("tr", ("L2", "Linf"), "Trust region: short steps as far as the model is linear", "https://arxiv.org/abs/1812.06371",
          {"iter": 100, "adaptive": False, "eps": None, "c": 9, "worst_case": False}, norm="p",
          own_defaults=("eps",), quick={"iter": 100},
          warning="Its eps is the length of a step: 0.05 in L2, 0.01 in Linf if None; adv-lib's own 0.001 needs thousands."),
)  # fmt: skip

OTHER = (
    Entry("str_attack", ("L2",), "StrAttack: changes in groups of pixels", "https://arxiv.org/abs/1808.01664",
          {"confidence": 0.0, "initial_const": 1.0, "binary_search_steps": 6, "max_iterations": 2000, "rho": 1.0,
           "alpha": 5.0, "tau": 2.0, "gamma": 1.0, "group_size": 2, "stride": 2, "retrain": True, "sigma": 3.0,
           "fix_y_step": False},
          left_out=_CALLED, quick={"max_iterations": 15, "binary_search_steps": 2}),
    Entry("perc_al", ("L2",), "PerC-AL: the least difference of colour as people see it",
          "https://arxiv.org/abs/1911.02466",
          {"max_iterations": 1000, "alpha_l_init": 1.0, "alpha_c_init": 0.5, "confidence": 0.0}, kind="unbounded",
          left_out=("targeted", "num_classes", "kwargs"), quick={"max_iterations": 60}, colour=True,
          warning="Minimises a difference of colours (CIEDE2000), and rounds to 8 bits; its results are judged in L2."),
)  # fmt: skip

ENTRIES = (*BOUNDED, *MINIMUM_NORM, *OTHER)
