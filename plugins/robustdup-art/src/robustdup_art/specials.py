"""The few attacks of ART that are not called like the others: how each is built and run. Imports ART on first use."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from robustdup import UserError


def square_image(shape: tuple[int, ...], threat: Any) -> None:
    """Refuse images (N, C, H, W) that are not square."""
    if shape[2] != shape[3]:
        raise UserError(f"This attack of ART needs square images, got {shape[2]} x {shape[3]}.", code="bad-images")


def square_attack_image(shape: tuple[int, ...], threat: Any) -> None:
    """Refuse what ART's SquareAttack cannot place its squares on.

    Its first square covers 0.8 of the area and must be smaller than the image; in L2 it tiles the image five by five and
    halves each tile, which makes NaN of images below 10 x 10.
    """
    height, width = shape[2:]
    if round(math.sqrt(0.8 * height * width)) >= min(height, width):
        raise UserError(
            f"ART's SquareAttack cannot place its squares on images of {height} x {width}.", code="bad-images"
        )
    if threat.norm == "L2":
        square_image(shape, threat)
        if height < 10:
            raise UserError(
                f"ART's SquareAttack in L2 needs images of at least 10 x 10, got {height} x {width}.", code="bad-images"
            )


def rgb_image(shape: tuple[int, ...], threat: Any) -> None:
    """Refuse images that are not RGB."""
    if shape[1] != 3:
        raise UserError(f"This attack of ART draws in colour: it needs 3 channels, got {shape[1]}.", code="bad-images")


def grey_or_rgb_image(shape: tuple[int, ...], threat: Any) -> None:
    """Refuse images that are neither grey nor RGB."""
    if shape[1] not in (1, 3):
        raise UserError(f"This attack of ART needs 1 or 3 channels, got {shape[1]}.", code="bad-images")


def several_classes(call: Any, least: int) -> None:
    """Refuse models with fewer than `least` classes."""
    if call.classifier.nb_classes < least:
        raise UserError(
            f"art:{call.entry.name} needs at least {least} classes with these options, "
            f"the model has {call.classifier.nb_classes}.",
            code="too-few-classes",
        )


def build_auto_gradient(call: Any) -> Any:
    """APGD and its kin: the loss of the logits ratio divides by the third logit."""
    if call.options["loss_type"] == "difference_logits_ratio":
        several_classes(call, 3)
    return call.construct()


def build_auto_attack(call: Any) -> Any:
    """ART's AutoAttack with quiet members, shortened where the options say so."""
    several_classes(call, 3)
    attack = call.construct()
    for member in attack.attacks:
        member.verbose = False
        is_square = type(member).__name__ == "SquareAttack"
        member.max_iter = call.options["square_max_iter" if is_square else "max_iter"]
    return attack


def build_frame_saliency(call: Any) -> Any:
    """FrameSaliency around ART's PGD within eps, which is what it perturbs its frames with."""
    from art.attacks.evasion import ProjectedGradientDescentNumpy

    eps = call.threat.radius
    attacker = ProjectedGradientDescentNumpy(
        call.classifier, eps=eps, eps_step=eps / 4, max_iter=call.options["max_iter"], batch_size=len(call.x),
        verbose=False,
    )  # fmt: skip
    return call.construct(attacker=attacker)


def build_square_patch(call: Any) -> Any:
    """A patch as large as the image's shorter side, which is then scaled."""
    channels, height, width = call.x.shape[1:]
    side = min(height, width)
    return call.construct(patch_shape=(channels, side, side))


def build_numpy_patch(call: Any) -> Any:
    """AdversarialPatchNumpy with plain floats for the pixel range: it fails on the NumPy ones that ART stores."""
    call.classifier._clip_values = (0.0, 1.0)
    return call.construct()


def apply_patch(attack: Any, call: Any) -> Any:
    """Train one untargeted patch on all images, then paste it on each at a random place."""
    attack.generate(call.x, call.y)
    return attack.apply_patch(call.x, scale=call.options["scale"])


def apply_targeted_patch(attack: Any, call: Any) -> Any:
    """Train one patch a target class, then paste on each image the one that is not of its own class."""
    adv_images = call.x.copy()
    for rows, target in target_groups(call):
        attack.reset_patch(attack.mean_value)
        attack.generate(call.x[rows], call.one_hot(np.full(len(rows), target)))
        adv_images[rows] = attack.apply_patch(call.x[rows], scale=call.options["scale"])
    return adv_images


def target_groups(call: Any) -> list[tuple[Any, int]]:
    """Return (rows, target class) so that no row is aimed at its own class.

    The targets are the two classes that come second most often: the first for all rows but its own, which get the other.
    """
    logits = call.classifier.predict(call.x)
    logits[np.arange(len(logits)), call.labels] = -np.inf
    counts = np.bincount(logits.argmax(axis=1), minlength=logits.shape[1])
    first, second = np.argsort(-counts, kind="stable")[:2]
    own = call.labels == first
    groups = [(np.flatnonzero(~own), int(first)), (np.flatnonzero(own), int(second))]
    return [(rows, target) for rows, target in groups if len(rows)]


def build_universal(call: Any) -> Any:
    """A universal perturbation whose inner attack, where it knows eps, stays within the threat model."""
    inner: dict[str, Any] = {}
    name, eps = call.options["attacker"], call.threat.radius
    if name in ("fgsm", "pgd"):
        inner = {"norm": _order(call), "eps": eps, "eps_step": eps / 4}
    elif name == "bim":
        inner = {"eps": eps, "eps_step": eps / 4}
    if name != "fgsm":
        inner["verbose"] = False
    return call.construct(attacker_params=inner)


def build_targeted_universal(call: Any) -> Any:
    """A targeted universal perturbation: its inner FGM must be told that it is targeted, else it runs away.

    One step must reach the target at once to count, so it may go beyond eps; the sum is projected.
    """
    eps = 3 * call.threat.radius
    inner = {"targeted": True, "minimal": True, "norm": _order(call), "eps": eps, "eps_step": eps / 10}
    return call.construct(attacker_params=inner)


def generate_to_targets(attack: Any, call: Any) -> Any:
    """Run one universal perturbation a target class."""
    adv_images = call.x.copy()
    for rows, target in target_groups(call):
        adv_images[rows] = attack.generate(call.x[rows], call.one_hot(np.full(len(rows), target)))
    return adv_images


def _order(call: Any) -> float:
    return {"Linf": math.inf, "L2": 2, "L1": 1}[call.threat.norm]


def guide_images(call: Any) -> Any:
    """Return for each image the nearest one of this call that the model takes for another class (N, C, H, W).

    Where the call has none, uniform noise is tried. Raises UserError where that fails too.
    """
    predicted = call.classifier.predict(call.x).argmax(axis=1)
    flat = call.x.reshape(len(call.x), -1)
    guides = np.empty_like(call.x)
    for row, label in enumerate(call.labels):
        others = np.flatnonzero(predicted != label)
        if len(others):
            distance = ((flat[others] - flat[row]) ** 2).sum(axis=1)
            guides[row] = call.x[others[distance.argmin()]]
            continue
        noise = np.random.uniform(size=(100, *call.x.shape[1:])).astype(np.float32)
        misclassified = np.flatnonzero(call.classifier.predict(noise).argmax(axis=1) != label)
        if not len(misclassified):
            raise UserError(
                f"art:{call.entry.name} needs an image of another class to imitate, and neither this batch nor noise "
                "has one. Use a larger batch.",
                code="bad-images",
            )
        guides[row] = noise[misclassified[0]]
    return guides


def generate_features(attack: Any, call: Any) -> Any:
    """Move each image's logits towards those of a guide image of another class."""
    return attack.generate(call.x, guide_images(call))


def generate_features_singly(attack: Any, call: Any) -> Any:
    """As `generate_features`, one image at a time: ART's L-BFGS would join all images into one problem."""
    limits = {"maxiter": call.options["maxiter"]}
    guides = guide_images(call)
    return np.concatenate([attack.generate(call.x[i : i + 1], guides[i : i + 1], **limits) for i in range(len(guides))])


def with_class_numbers(attack: Any, call: Any) -> Any:
    """Call ART with class numbers, where it does not read one-hot labels."""
    return attack.generate(call.x, call.labels)


class NoStart(Exception):
    """No misclassified image was found to start from."""


def generate_geoda(attack: Any, call: Any) -> Any:
    """GeoDA with an end: its search for a start runs forever where no noise is misclassified."""
    search, tries = attack._is_adversarial, 0

    def counted(x_adv: Any, y_true: Any) -> bool:
        nonlocal tries
        tries += 1
        if tries > call.options["max_start"]:
            raise NoStart
        return bool(search(x_adv, y_true))

    def find(x: Any, y: Any) -> Any:
        nonlocal tries
        tries = 0
        attack._is_adversarial = counted
        try:
            return type(attack)._find_random_adversarial(attack, x, y)
        finally:
            attack._is_adversarial = search

    attack._find_random_adversarial = find
    try:
        return attack.generate(call.x, call.y)
    except NoStart:
        return call.x


def build_threshold(call: Any) -> Any:
    """ThresholdAttack with `th`, its bound in 8-bit levels, as the largest whole number within eps.

    ART cuts levels down to whole numbers, so that an image between two levels may move by a fraction more: that
    fraction is taken off eps.
    """
    levels = call.x.astype(np.float64) * 255
    whole = np.floor(levels + 1e-3)
    th = math.floor(255 * call.threat.radius - (levels - whole).max() + 2e-3)
    if th < 1:
        raise UserError(
            f"art:ThresholdAttack moves pixels by whole 8-bit levels: eps = {call.threat.eps_text} leaves it none "
            "on these images.",
            code="bad-images",
        )
    return call.construct(th=th), ((whole + 0.01) / 255).astype(np.float32)


def generate_threshold(attack: Any, call: Any) -> Any:
    """Run ThresholdAttack on whole levels; where it fails it gives back what it got: the image stays as it is."""
    attack, levels = attack
    adv_images = attack.generate(levels, call.y)
    return call.x if np.array_equal(adv_images, levels) else adv_images


def build_laser(call: Any) -> Any:
    """LaserAttack with a beam generator: any wavelength, any angle, across the image, up to `width` pixels."""
    from art.attacks.evasion.laser_attack.laser_attack import LaserBeam, LaserBeamGenerator

    height = call.x.shape[1]
    least = LaserBeam.from_array([380.0, 0.0, 0.0, 1.0])
    most = LaserBeam.from_array([780.0, 3.14, float(height), max(float(call.options["width"]), 1.0)])
    return call.construct(laser_generator=LaserBeamGenerator(least, most, max_step=call.options["max_step"]))


def generate_low_pro_fool(attack: Any, call: Any) -> Any:
    """LowProFool on flattened images, where every pixel matters alike."""
    attack.fit_importances(importance_array=np.ones(call.x.shape[1]))
    return attack.generate(call.x, call.y)


def build_elastic_net(call: Any) -> Any:
    """ElasticNet that keeps the best in the norm of the threat model, unless told otherwise."""
    return call.construct(
        decision_rule=call.options["decision_rule"] or {"L1": "L1", "L2": "L2"}.get(call.threat.norm, "EN")
    )


def build_zoo(call: Any) -> Any:
    """ZOO with no more coordinates at a time than the image has."""
    return call.construct(nb_parallel=min(call.options["nb_parallel"], call.x[0].size))


def build_wasserstein(call: Any) -> Any:
    """Wasserstein with its own eps, which is no radius of a norm."""
    return call.construct(eps=call.options["wasserstein_eps"])


def nothing(*arguments: Any) -> None:
    """Stand in for a call that leaves files in the working directory."""


def as_floats(values: Any) -> Any:
    """Stand in for `numpy.asfarray`, which NumPy 2 dropped."""
    return np.asarray(values, dtype=float)


NO_FILES = SimpleNamespace(exists=lambda path: False)  # GeoDA would load a basis that it finds where it is run


def seeded_state(seed: int | None = None) -> Any:
    """Stand in for `numpy.random.RandomState()`, which some attacks draw from the clock: seed it from the call's own."""
    return np.random.RandomState(np.random.randint(2**31) if seed is None else seed)


SEEDED = {"np": {"random": SimpleNamespace(**{**vars(np.random), "RandomState": seeded_state})}}
