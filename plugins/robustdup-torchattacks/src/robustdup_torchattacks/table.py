"""Every attack class of torchattacks 3.5.1, a row a class, read off its source (nothing here imports it).

https://github.com/Harry24k/adversarial-attacks-pytorch, version 3.5.1; the tests compare the rows with the installed
classes and the costs with counted passes.
"""

from __future__ import annotations

from robustdup_torchattacks import checks
from robustdup_torchattacks.row import BOTH, CLASSES, Options, Row, each, other_classes, share

STEPS = {"steps": 10}
QUARTER = {"alpha": share(4)}  # alpha = 2/255 at eps = 8/255 in torchattacks
FIFTH = {"alpha": share(5)}  # alpha = 0.2 at eps = 1.0
DIVERSE = {"steps": 10, "decay": 0.0, "resize_rate": 0.9, "diversity_prob": 0.5, "random_start": False}
SMOOTHED = {"steps": 10, "noise_type": "guassian", "noise_sd": 0.5, "noise_batch_size": 5, "batch_max": 2048}
NOISES = {"noise_type": ("guassian", "uniform")}  # torchattacks' own spelling
EAD = {
    "kappa": 0.0, "lr": 0.01, "binary_search_steps": 9, "max_iterations": 100, "abort_early": True,
    "initial_const": 0.001, "beta": 0.001,
}  # fmt: skip
PATCHWISE = {"num_iter_set": 10, "momentum": 1.0, "amplification": 10.0, "prob": 0.7}
UNUSED = "momentum and prob are accepted but torchattacks does not use them."

NOT_REFERENCE = (
    "Not the reference {name}: torchattacks runs 10 steps by default where the reference runs 100 "
    "(https://github.com/fra31/auto-attack). Give steps=100 for a comparable budget."
)


def apgd_cost(options: Options) -> tuple[float, float]:
    """One gradient before the loop and one a step, for every restart, after one forward pass."""
    gradients = options["n_restarts"] * options["eot_iter"] * (options["steps"] + 1)
    return 1 + gradients, gradients


def apgdt_cost(options: Options) -> tuple[float, float]:
    """APGD for every wrong class, with one more forward pass each to choose the target."""
    runs = options["n_restarts"] * other_classes(options)
    gradients = runs * options["eot_iter"] * (options["steps"] + 1)
    return 1 + runs + gradients, gradients


def fab_cost(options: Options) -> tuple[float, float]:
    """Two forward passes a step; untargeted, a backward pass for every class."""
    restarts, steps = options["n_restarts"], options["steps"]
    if options["multi_targeted"]:
        runs = restarts * other_classes(options)
        return 1 + runs * (3 + 2 * steps), runs * steps
    return 1 + restarts * (2 + 2 * steps), restarts * steps * CLASSES


def square_cost(options: Options) -> tuple[float, float]:
    """One forward pass a query and three around them."""
    return 1 + options["n_restarts"] * (2 + options["n_queries"]), 0


def ead_cost(options: Options) -> tuple[float, float]:
    """Two forward passes and a backward pass an iteration; less where abort_early stops a whole batch."""
    iterations = options["binary_search_steps"] * options["max_iterations"]
    return 1 + 2 * iterations, iterations


def autoattack_cost(options: Options) -> tuple[float, float]:
    """The sum of its members at their defaults, and a forward pass after each."""
    common = {"steps": 10, "n_restarts": 1, "eot_iter": 1, "n_classes": options["n_classes"], "n_queries": 5000}
    apgd, apgdt, square = apgd_cost(common), apgdt_cost(common), square_cost(common)
    fabt = fab_cost({**common, "multi_targeted": True})
    if options["version"] == "rand":
        members = [apgd_cost({**common, "eot_iter": 20})] * 2
    elif options["version"] == "plus":
        fab = fab_cost({**common, "multi_targeted": False, "n_restarts": 5})
        members = [*[apgd_cost({**common, "n_restarts": 5})] * 2, fab, square, apgdt, fabt]
    else:
        members = [apgd, apgdt, fabt, square]
    return sum(forward + 1 for forward, _ in members), sum(backward for _, backward in members)


def multi_attack_cost(options: Options) -> tuple[float, float]:
    """The sum of its members at their defaults, and a forward pass after each."""
    members = [row for row in ROWS if row.name in str(options["attacks"]).replace(",", "+").split("+")]
    costs = [row.cost({"n_classes": None, **row.options}) for row in members if row.cost]
    return sum(forward + 1 for forward, _ in costs), sum(backward for _, backward in costs)


def pixle_cost(options: Options) -> tuple[float, float]:
    """Two forward passes an iteration; restarts only where the image is not updated each iteration."""
    rounds = 1 if options["update_each_iteration"] else options["restarts"]
    return 1 + 2 * rounds * options["max_iterations"], 0


ROWS = (
    Row("VANILA", (*BOTH, "L1"), "https://adversarial-attacks-pytorch.readthedocs.io/en/latest/attacks.html",
        "Control: returns the images unchanged.", eps=None, cost=lambda options: (0, 0),
        warning="A control, not an attack: it returns the clean images.",
        undemonstrated="returns the images unchanged, by design"),
    Row("GN", (*BOTH, "L1"), "https://adversarial-attacks-pytorch.readthedocs.io/en/latest/attacks.html",
        "Control: Gaussian noise of standard deviation std, whatever eps is.", {"std": 0.1}, eps=None, kind="unbounded",
        cost=lambda options: (0, 0), warning="A control, not an attack: Gaussian noise that ignores eps and the model.",
        undemonstrated="is noise itself, by design"),
    # Linf, one step
    Row("FGSM", ("Linf",), "https://arxiv.org/abs/1412.6572", "One step along the sign of the gradient.",
        cost=lambda options: (1, 1)),
    Row("FFGSM", ("Linf",), "https://arxiv.org/abs/2001.03994", "FGSM from a random start (fast adversarial training).",
        steps={"alpha": ("1.25 eps", lambda eps, options: 1.25 * eps)}, cost=lambda options: (1, 1)),
    # Linf, iterated
    Row("BIM", ("Linf",), "https://arxiv.org/abs/1607.02533",
        "Iterated FGSM.", STEPS, QUARTER, cost=each("steps")),
    Row("RFGSM", ("Linf",), "https://arxiv.org/abs/1705.07204", "Iterated FGSM after a random step.",
        STEPS, QUARTER, cost=each("steps")),
    Row("PGD", ("Linf",), "https://arxiv.org/abs/1706.06083", "Projected gradient descent.",
        {**STEPS, "random_start": True}, QUARTER, cost=each("steps")),
    Row("EOTPGD", ("Linf",), "https://arxiv.org/abs/1907.00895",
        "PGD on a gradient averaged over draws of a randomised model.",
        {**STEPS, "eot_iter": 2, "random_start": True}, QUARTER, cost=each("steps", "eot_iter")),
    Row("TPGD", ("Linf",), "https://arxiv.org/abs/1901.08573",
        "PGD on the divergence from the clean prediction (the inner attack of TRADES); it ignores the labels.",
        STEPS, QUARTER, cost=each("steps", extra=1)),
    Row("UPGD", ("Linf",), "https://adversarial-attacks-pytorch.readthedocs.io/en/latest/attacks.html",
        "PGD with a choice of loss, momentum and averaging over draws.",
        {**STEPS, "random_start": False, "loss": "ce", "decay": 1.0, "eot_iter": 1}, QUARTER,
        choices={"loss": ("ce", "margin", "dlr")}, cost=each("steps", "eot_iter"), shift=True,
        least_classes=lambda options: 3 if options["loss"] == "dlr" else 2),
    Row("Jitter", ("Linf",), "https://arxiv.org/abs/2105.10304", "PGD on rescaled and noisy softmax outputs.",
        {**STEPS, "scale": 10.0, "std": 0.1, "random_start": True}, QUARTER, cost=each("steps")),
    Row("PGDRS", ("Linf",), "https://arxiv.org/abs/1906.04584",
        "PGD against a smoothed classifier: the gradient is averaged over noise of noise_sd.",
        SMOOTHED, QUARTER, choices=NOISES, cost=each("steps", "noise_batch_size")),
    # Linf, made to transfer
    Row("MIFGSM", ("Linf",), "https://arxiv.org/abs/1710.06081", "Iterated FGSM with momentum.",
        {**STEPS, "decay": 1.0}, QUARTER, cost=each("steps")),
    Row("NIFGSM", ("Linf",), "https://arxiv.org/abs/1908.06281", "Iterated FGSM with Nesterov momentum.",
        {**STEPS, "decay": 1.0}, QUARTER, cost=each("steps")),
    Row("SINIFGSM", ("Linf",), "https://arxiv.org/abs/1908.06281",
        "NIFGSM with the gradient averaged over m darker copies of the image.",
        {**STEPS, "decay": 1.0, "m": 5}, QUARTER, cost=each("steps", "m")),
    Row("VMIFGSM", ("Linf",), "https://arxiv.org/abs/2103.15571",
        "MIFGSM with the gradient tuned by its variance over N neighbours within beta eps.",
        {**STEPS, "decay": 1.0, "N": 5, "beta": 1.5}, QUARTER,
        cost=lambda options: (options["steps"] * (1 + options["N"]),) * 2),
    Row("VNIFGSM", ("Linf",), "https://arxiv.org/abs/2103.15571", "VMIFGSM with Nesterov momentum.",
        {**STEPS, "decay": 1.0, "N": 5, "beta": 1.5}, QUARTER,
        cost=lambda options: (options["steps"] * (1 + options["N"]),) * 2),
    Row("DIFGSM", ("Linf",), "https://arxiv.org/abs/1803.06978", "Iterated FGSM through random resizing and padding.",
        DIVERSE, QUARTER, cost=each("steps"), checks=(checks.diversity,)),
    Row("TIFGSM", ("Linf",), "https://arxiv.org/abs/1904.02884",
        "DIFGSM with the gradient smoothed by a kernel of len_kernel pixels (15 suits 299 x 299; on small images it washes "
        "the gradient out). Three channels only.",
        {**DIVERSE, "kernel_name": "gaussian", "len_kernel": 15, "nsig": 3.0}, QUARTER,
        choices={"kernel_name": ("gaussian", "linear", "uniform")}, cost=each("steps"),
        quick={"len_kernel": 3}, checks=(checks.rgb, checks.diversity)),
    Row("PIFGSM", ("Linf",), "https://arxiv.org/abs/2007.06765",
        f"Amplified steps whose overflow goes to the neighbouring pixels. Three channels only. {UNUSED}",
        PATCHWISE, eps="max_epsilon", cost=each("num_iter_set"), checks=(checks.rgb,)),
    Row("PIFGSMPP", ("Linf",), "https://arxiv.org/abs/2012.15503",
        f"PIFGSM with a smoothed gradient. Three channels only. {UNUSED}",
        {**PATCHWISE, "project_factor": 0.8}, eps="max_epsilon", cost=each("num_iter_set"), checks=(checks.rgb,)),
    # Linf, no gradients
    Row("SPSA", ("Linf",), "https://arxiv.org/abs/1802.05666",
        "Gradient estimated from differences of delta along random signs, followed with Adam.",
        {"delta": 0.01, "nb_iter": 1, "nb_sample": 128, "max_batch_size": 64},
        {"lr": ("eps, or 2.5 eps / nb_iter where less", lambda eps, options: min(eps, 2.5 * eps / options["nb_iter"]))},
        knowledge="score-based", cost=lambda options: (2 * options["nb_iter"] * options["nb_sample"], 0),
        quick={"nb_iter": 5, "nb_sample": 16, "max_batch_size": 16},
        warning="torchattacks' own lr = 0.01 moves pixels by at most 0.01 a step whatever eps is; here lr follows eps. "
        "The default is still a single step: nb_iter=20 or more makes a search."),
    # L2
    Row("PGDL2", ("L2",), "https://arxiv.org/abs/1706.06083", "Projected gradient descent in L2.",
        {**STEPS, "random_start": True, "eps_for_division": 1e-10}, FIFTH, cost=each("steps")),
    Row("PGDRSL2", ("L2",), "https://arxiv.org/abs/1906.04584",
        "PGD in L2 against a smoothed classifier: the gradient is averaged over noise of noise_sd.",
        {**SMOOTHED, "eps_for_division": 1e-10}, FIFTH, choices=NOISES, cost=each("steps", "noise_batch_size")),
    # Linf and L2
    Row("APGD", BOTH, "https://arxiv.org/abs/2003.01690", "PGD that adapts its step size, with restarts.",
        {**STEPS, "n_restarts": 1, "loss": "ce", "eot_iter": 1, "rho": 0.75}, choices={"loss": ("ce", "dlr")},
        takes_norm=True, takes_seed=True, cost=apgd_cost, warning=NOT_REFERENCE.format(name="APGD"),
        least_classes=lambda options: 3 if options["loss"] == "dlr" else 2),
    Row("APGDT", BOTH, "https://arxiv.org/abs/2003.01690",
        "APGD on the targeted DLR loss, for the n_classes - 1 likeliest wrong classes (left out: all).",
        {**STEPS, "n_restarts": 1, "eot_iter": 1, "rho": 0.75}, takes_norm=True, takes_seed=True, takes_classes=True,
        cost=apgdt_cost, warning=NOT_REFERENCE.format(name="APGD-T")
        + " The reference goes through 9 wrong classes, this one through all (n_classes=10 for 9).",
        least_classes=lambda options: 4),
    Row("FAB", BOTH, "https://arxiv.org/abs/1907.02044",
        "Nearest image across the linearised boundary; returns only what lies within eps. No L1: torchattacks' code for "
        "L1 stops with an UnboundLocalError (it never measures the distance there).",
        {**STEPS, "n_restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9, "multi_targeted": False},
        takes_norm=True, takes_seed=True, takes_classes=True, cost=fab_cost, warning=NOT_REFERENCE.format(name="FAB")),
    Row("Square", BOTH, "https://arxiv.org/abs/1912.00049", "Random search with squares.",
        {"n_queries": 5000, "n_restarts": 1, "p_init": 0.8, "loss": "margin", "resc_schedule": True},
        choices={"loss": ("margin", "ce")}, takes_norm=True, takes_seed=True, knowledge="score-based", cost=square_cost,
        quick={"n_queries": 100}, checks=(checks.squares_fit,)),
    Row("AutoAttack", BOTH, "https://arxiv.org/abs/2003.01690",
        "torchattacks' APGD, APGDT, multi-targeted FAB and Square in order, each on what the earlier ones left.",
        {"version": "standard"}, choices={"version": ("standard", "plus", "rand")}, takes_norm=True, takes_seed=True,
        takes_classes=True, cost=autoattack_cost, quick={"version": "rand"}, checks=(checks.squares_fit,),
        least_classes=lambda options: 3 if options["version"] == "rand" else 4,
        warning="Not the reference AutoAttack: its APGD, APGDT and FAB run 10 steps instead of 100, and its targeted "
        "attacks go through all wrong classes instead of 9. More samples survive it; report the reference "
        "(pyautoattack) as AutoAttack, never this."),
    # The nearest adversarial example, no eps
    Row("CW", ("L2",), "https://arxiv.org/abs/1608.04644",
        "Adam on distance plus c times the margin. Pixels at exactly 0 or 1 cannot move in its coordinates: they are first "
        "moved inside by `inside`.",
        {"c": 1.0, "kappa": 0.0, "steps": 50, "lr": 0.01}, own={"inside": 0.001}, eps=None, kind="minimum-norm",
        cost=each("steps"), shift=True,
        warning="No binary search over c, and the whole batch stops when the sum of its losses rises: distances are larger "
        "than those of the reference CW. Pixels near 0 and 1 hardly move."),
    Row("DeepFool", ("L2",), "https://arxiv.org/abs/1511.04599",
        "Steps to the nearest linearised boundary. Its results end at the boundary, so they are pushed on by `push` of "
        "their length.",
        {"steps": 50, "overshoot": 0.02}, own={"push": 0.001}, eps=None, kind="minimum-norm", quick={"steps": 4},
        cost=lambda options: (options["steps"], options["steps"] * CLASSES)),
    Row("EADL1", ("L1",), "https://arxiv.org/abs/1709.04114",
        "Elastic-net attack: soft-thresholded descent, the smallest L1 distance kept.", EAD, eps=None,
        kind="minimum-norm", cost=ead_cost, shift=True, checks=(checks.ten_iterations,),
        row_by_row=lambda options: options["kappa"] != 0, quick={"binary_search_steps": 5, "max_iterations": 40}),
    Row("EADEN", ("L1", "L2"), "https://arxiv.org/abs/1709.04114",
        "Elastic-net attack, the smallest squared L2 plus beta L1 distance kept.", EAD, eps=None,
        kind="minimum-norm", cost=ead_cost, shift=True, checks=(checks.ten_iterations,),
        row_by_row=lambda options: options["kappa"] != 0, quick={"binary_search_steps": 5, "max_iterations": 40}),
    Row("SparseFool", ("L0",), "https://arxiv.org/abs/1811.02248",
        "DeepFool's boundary reached with few pixels.", {**STEPS, "lam": 3.0, "overshoot": 0.02}, eps=None,
        kind="minimum-norm", quick={"steps": 1}),
    # Few pixels, no eps
    Row("OnePixel", ("L0",), "https://arxiv.org/abs/1710.08864",
        "Differential evolution of the place and colour of `pixels` pixels.",
        {"pixels": 1, "steps": 10, "popsize": 10, "inf_batch": 128}, eps=None, kind="unbounded",
        knowledge="score-based", quick={"pixels": 10, "steps": 3, "popsize": 50}),
    Row("JSMA", ("L0",), "https://arxiv.org/abs/1511.07528",
        "Changes the pair of values with the highest saliency by theta, up to the share gamma of all values, towards the "
        "class that `target` names: the likeliest wrong one, label + 1, or the least likely.",
        {"theta": 1.0, "gamma": 0.1}, own={"target": "runner-up"},
        choices={"target": ("runner-up", "next", "least-likely")}, eps=None, kind="unbounded", checks=(checks.small,),
        build="jsma", quick={"gamma": 0.05},
        warning="torchattacks aims at (label + 1) % 10 whatever the number of classes; here the target is the likeliest "
        "wrong class unless `target` says otherwise."),
    Row("Pixle", ("L0",), "https://arxiv.org/abs/2202.02236",
        "Random search that copies patches of pixels elsewhere. Square images only.",
        {"x_dimensions": (2, 10), "y_dimensions": (2, 10), "pixel_mapping": "random", "restarts": 20,
         "max_iterations": 10, "update_each_iteration": False},
        choices={"pixel_mapping": ("random", "similarity", "similarity_random", "distance", "distance_random")},
        eps=None, kind="unbounded", knowledge="score-based", cost=pixle_cost, checks=(checks.square,),
        row_by_row=lambda options: options["update_each_iteration"]),
    # Wrappers
    Row("MultiAttack", BOTH, "https://adversarial-attacks-pytorch.readthedocs.io/en/latest/attacks.html",
        "Several torchattacks attacks at their defaults in order (`attacks`, joined by +), each on what the earlier ones "
        "left.", own={"attacks": "APGD+FAB"}, build="multi_attack", cost=multi_attack_cost,
        warning="Keeps only the examples that torchattacks itself finds misclassified and returns the clean image for the "
        "rest. Stages of `eval` do the same and are judged."),
    Row("LGV", ("Linf",), "https://arxiv.org/abs/2207.13129",
        "BIM on copies of the model gathered along SGD at a high rate (lr, epochs, nb_models_epoch, wd), n_grad of them a "
        "step. The copies train on the images under attack and their labels, for want of the training set.",
        {"lr": 0.05, "epochs": 10, "nb_models_epoch": 4, "wd": 1e-4, "n_grad": 1},
        {"alpha": share(10)}, own={"steps": 50, "train_batch": 16}, knowledge="transfer", build="lgv",
        least={"n_grad": -1},
        warning="The paper collects models on the training set; here they are trained on the attacked images alone, so the "
        "result depends on the batch. It is made to transfer to other models and is weaker than BIM on the model itself.",
        quick={"epochs": 2, "steps": 20}),
)  # fmt: skip
