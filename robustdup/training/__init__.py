"""Training: objectives say what is minimised, update rules make the optimizer steps, the loop runs them.

An **objective** is a plain function, registered with `registry.add_objective`:

    objective(model, images, labels, *, attack, rng, **options) -> (loss (N,), metrics)

`images` (N, C, H, W) in [0, 1] are augmented already and `labels` (N,) are the true ones. `loss` has one value a sample:
the loop weighs and averages. `metrics` maps names to detached tensors of one value a sample; "correct" (1.0 where the
images that were trained on are classified rightly) gives the curve its accuracy. The model comes in train mode, and the passes
that an objective makes itself are in that mode. `rng` holds a stream for each sample; nothing else random may decide
what a sample gets. An objective with weights of its own (an embedding, say) is registered with `module`, a function
`module(model, images, **options) -> nn.Module` that builds them for a few example images; it then takes the module as
the keyword `module`. These weights are trained and checkpointed, and are no part of the model that comes out. A
`check(**options)` registered with it raises UserError for values that cannot be, before anything is loaded.

Where images are mixed (CutMix, MixUp) the labels are shares of classes, float (N, K); only an objective that
`robustdup.training.objectives.adversarial.takes_mixed_labels` marks gets such ones. Cross-entropies are against them, those
that the inner attack maximises too; KL terms compare answers to the mixed images and know no label.

`attack` is the inner attack of this batch (`robustdup.training.inner.InnerAttack`):

    attack(images, labels, loss=None) -> adv_images      in the ball and the box, detached, kept for the batch
    attack.logits(images) -> logits (N, K)               of the network as the inner attack sees it, detached
    attack.gradient(images, labels, loss=None)           input gradient of the loss, summed over samples, same network
    attack.threat, attack.label_smoothing

`loss(logits, rows) -> (n,)` replaces the cross-entropy that native attacks maximise; `rows` is the slice of `images`
that the logits belong to. Attacks of other toolkits keep their own loss. A second call with the same tensors returns the
first result, so that an update rule may call the objective again at the price of one attack; an objective that wants two
different attacks on one batch tells them apart with `key`. The inner attack touches neither running statistics, nor
gradients, nor modes, nor the global random state. Label smoothing is for cross-entropy terms that an objective
minimises (`robustdup.training.objectives.adversarial.cross_entropy`), never for what the attack maximises.

An **update rule** (`robustdup.training.updates`) owns zeroing, backward passes and optimizer steps of a batch:

    rule.step(task: UpdateTask) -> (loss, metrics)       detached; task.replays or rule.steps optimizer steps, exactly
    rule.state_dict(), rule.load_state_dict(state)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustdup.plugins import Registry


def register(registry: Registry) -> None:
    """Register the built-in objectives."""
    from robustdup.training.objectives import register_objectives

    register_objectives(registry)
