"""The cost that the table states, against passes counted on a point that survives everything."""

import pytest
import torch

from robustdup import Passes, ThreatModel

COUNTED = {
    "VANILA": {}, "GN": {}, "FGSM": {}, "FFGSM": {}, "BIM": {"steps": 4}, "RFGSM": {"steps": 4}, "PGD": {"steps": 4},
    "EOTPGD": {"steps": 3, "eot_iter": 3}, "TPGD": {"steps": 3}, "UPGD": {"steps": 3, "eot_iter": 2}, "Jitter": {"steps": 3},
    "PGDRS": {"steps": 2, "noise_batch_size": 3}, "MIFGSM": {"steps": 3}, "NIFGSM": {"steps": 3},
    "SINIFGSM": {"steps": 2, "m": 3}, "VMIFGSM": {"steps": 2, "N": 3}, "VNIFGSM": {"steps": 2, "N": 3},
    "DIFGSM": {"steps": 3}, "TIFGSM": {"steps": 3}, "PIFGSM": {"num_iter_set": 4}, "PIFGSMPP": {"num_iter_set": 4},
    "SPSA": {"nb_iter": 2, "nb_sample": 10, "max_batch_size": 4}, "PGDL2": {"steps": 3},
    "PGDRSL2": {"steps": 2, "noise_batch_size": 3}, "APGD": {"steps": 3, "n_restarts": 2, "eot_iter": 2},
    "APGDT": {"steps": 3, "n_restarts": 2}, "FAB": {"steps": 3, "n_restarts": 2},
    "Square": {"n_queries": 6, "n_restarts": 2}, "CW": {"steps": 1}, "DeepFool": {"steps": 3},
    "EADL1": {"abort_early": False, "max_iterations": 3, "binary_search_steps": 2, "initial_const": 1e-12},
    "EADEN": {"abort_early": False, "max_iterations": 3, "binary_search_steps": 2, "initial_const": 1e-12},
    "Pixle": {"restarts": 2, "max_iterations": 3}, "MultiAttack": {"attacks": "FGSM+APGD+FAB"},
    "AutoAttack": {"version": "rand"},
}  # fmt: skip
MORE = {"FAB": {"multi_targeted": True, "steps": 2}, "APGDT": {"n_classes": 4, "steps": 2},
        "Pixle": {"update_each_iteration": True, "max_iterations": 4}}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [*COUNTED.items(), *MORE.items()])
def test_cost_is_what_is_counted(name, options, task, attack, registry):
    spec = registry.attacks[f"torchattacks:{name}"]
    norm = spec.norms[0] if spec.norms[0] != "L0" else "L2"
    sure = torch.nn.Sequential(task.model, Certain(task.labels[:1]))
    passes = Passes(sure)
    attack(name, task.rows(1), ThreatModel(norm, "0.001"), model=passes, **options)
    counted = passes.count.forward, passes.count.backward
    classes_looked_up = name in ("APGDT", "FAB", "AutoAttack", "MultiAttack")  # one row a call, not a point
    stated = spec.passes(options)
    assert (counted[0] - classes_looked_up, counted[1]) == stated


class Certain(torch.nn.Module):
    """Add so much to the true class of a single point that nothing ever breaks it."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, logits):
        return logits + 100 * torch.nn.functional.one_hot(self.label, logits.shape[1])


def test_every_row_without_a_cost_has_a_reason_to_be_without(registry):
    unknown = {spec.name.split(":")[1] for spec in registry.attacks.values() if spec.cost is None}
    # SparseFool and JSMA stop when they succeed, OnePixel's population follows the channels, LGV's training the batch.
    assert unknown == {"SparseFool", "JSMA", "OnePixel", "LGV"}
