"""The second judge: a process that imported no attack loads the model anew and judges the final examples once more.

What an attack may have done to the process that it ran in is not there. Where the two judges differ, the run is refused.
A model that was given as an object is judged again where it is, by threat models made anew.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustdup.attacks.isolation import isolated
from robustdup.config import EvalConfig
from robustdup.data.dataset import ImageDataset
from robustdup.data.dataset import fingerprint as fingerprint_of_data
from robustdup.errors import RunError, error_text, plain
from robustdup.evaluation.calls import CLOSE, PlannedStage
from robustdup.evaluation.context import EngineOptions, make_context
from robustdup.evaluation.engine import Evaluation
from robustdup.evaluation.guard import Refused
from robustdup.evaluation.referee import judge_images
from robustdup.models.adapt import PLAIN, Adaptation, adapted
from robustdup.models.code import code_fingerprint
from robustdup.models.load import fingerprint, load_model
from robustdup.plugins import load_plugins
from robustdup.records import Outcome, write_atomic
from robustdup.threat import ThreatModel

REQUEST, AROUND, TENSORS, ANSWER = "request.json", "adaptation.pickle", "images.safetensors", "answer.json"
COMMAND = "from robustdup.jobs.second_judge import main; main()"
CHANCE = 0.05  # by which the accuracy of a model that answers at random may differ, besides three standard errors


def judge_again(
    config: EvalConfig, result: Evaluation, data: ImageDataset, stages: Sequence[PlannedStage], *, code: str | None,
    model: nn.Module, adaptation: Adaptation = PLAIN,
) -> list[str]:  # fmt: skip
    """Judge the final examples anew in a clean process, where others' attacks ran, and return what a reader should know.

    Args:
        config: what was evaluated.
        result: what came of it.
        data: the images.
        stages: the attacks that ran.
        code: hash of the model's code when it was loaded; None for a model that was given as an object.
        model: that object, as it was adapted to the data.
        adaptation: what was put around the model for these data.

    Raises:
        RunError: where the second judge differs from the first; code "model-changed", or "other-code" where files of the
            model were edited meanwhile.
    """
    if not config.plugin and all(stage.spec.source == "native" for stage in stages):
        return []
    if fingerprint_of_data(data.images, data.labels) != data.fingerprint:
        raise Refused("The images or labels changed while the attacks ran: the results cannot be trusted.")
    if code is None:
        images = {"images": data.images, "adv_images": result.adv_images, "labels": data.labels}
        with isolated(model):
            answer = _answers(_request(config, result), model, images)
        _compare(answer, result, by="A second look at the final examples")
        return ["The examples were judged again in this process, not in a clean one: the model is an object in memory."]
    with tempfile.TemporaryDirectory(prefix="robustdup-judge-") as folder:
        answer = _ask(Path(folder), config, result, data, adaptation)
    if "error" in answer:
        return [f"The examples were not judged again in a clean process: {plain(answer['error'], 500)}"]
    if answer["code"] != code:
        raise RunError(
            f"The code of {config.model!r} was edited while the run was at work, so that its examples cannot be judged "
            "again. Put it back as it was, and go on with --resume.",
            code="other-code",
        )
    _compare(answer, result, by="A clean process, which loaded the model anew and no attack,")
    return []


def _request(config: EvalConfig, result: Evaluation) -> dict[str, Any]:
    """Return what a judge must know besides images and labels."""
    record = result.record
    return {
        "model": config.model,
        "allow_pickle": config.allow_pickle,
        "mode": config.mode,
        "seed": config.seed,
        "balls": [(ball.norm, ball.eps_text) for ball in record.union]
        or [(record.threat.norm, record.threat.eps_text)],
        "draws": record.model.judge_draws,
        "micro_batch": record.model.judged_in_batches_of or record.environment.micro_batch,
        "threads": record.environment.threads,
        "device": record.environment.device,
    }


def _ask(
    folder: Path, config: EvalConfig, result: Evaluation, data: ImageDataset, adaptation: Adaptation
) -> dict[str, Any]:
    write_atomic(folder / REQUEST, json.dumps(_request(config, result)).encode())
    write_atomic(folder / AROUND, pickle.dumps(adaptation))  # a folder of this process alone
    images = {"images": data.images, "adv_images": result.adv_images, "labels": data.labels}
    write_atomic(folder / TENSORS, save({name: tensor.contiguous().clone() for name, tensor in images.items()}))
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMMAND, str(folder)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    try:
        answer: dict[str, Any] = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        return answer
    except (OSError, ValueError):
        last_line = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        return {"error": " ".join([f"the process ended with exit code {done.returncode}.", *last_line])}


def main() -> None:
    """Be the second judge: read the request in the folder that the command line names, and leave the answer there."""
    folder = Path(sys.argv[1])
    try:
        answer = _judge(json.loads((folder / REQUEST).read_text(encoding="utf-8")), folder)
    except BaseException as error:  # whatever loading a model may raise is the answer  # noqa: BLE001
        answer = {"error": error_text(error)}
    write_atomic(folder / ANSWER, json.dumps(answer).encode())


def _judge(request: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    torch.set_num_threads(request["threads"])
    spec = request["model"]
    registry = load_plugins(installed=(spec.partition(":")[0],))
    model = load_model(spec, registry=registry, allow_pickle=request["allow_pickle"])
    model = adapted(model, pickle.loads((folder / AROUND).read_bytes()))
    return _answers(request, model, load_file(folder / TENSORS))


def _answers(request: Mapping[str, Any], model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what a model says of the images (N, C, H, W) and adversarial images, and which of these lie in no ball."""
    device = torch.device(request["device"])
    options = EngineOptions(mode=request["mode"], micro_batch=request["micro_batch"], seed=request["seed"])
    original = make_context(model, None, device, options).original
    tensors = {name: tensor.to(device) for name, tensor in given.items()}
    images, adv_images, labels = tensors["images"], tensors["adv_images"], tensors["labels"]
    weights = fingerprint(original.model)
    clean = judge_images(original, images, labels, draws=request["draws"], seed=request["seed"])
    answers = judge_images(original, adv_images, labels, draws=request["draws"], seed=request["seed"] + 1)
    in_no_ball = [ThreatModel(norm, eps).violations(images, adv_images).any for norm, eps in request["balls"]]
    outside = torch.stack(in_no_ball).all(dim=0)
    return {
        "weights": weights,
        "code": code_fingerprint(original.model),
        "clean": clean.correct_share.tolist(),
        "clean_margin": clean.margin.nan_to_num(posinf=1e30, neginf=-1e30).tolist(),
        "share": answers.correct_share.tolist(),
        "margin": answers.margin.nan_to_num(posinf=1e30, neginf=-1e30).tolist(),
        "outside": outside.cpu().tolist(),
    }


def _compare(answer: Mapping[str, Any], result: Evaluation, *, by: str) -> None:
    """Raise Refused where the second judge, named by `by`, says something else, by more than rounding or chance."""
    record, outcomes = result.record, result.outcomes
    if answer["weights"] != record.model.fingerprint:
        raise Refused(f"{by} finds other weights of the model: the results cannot be trusted.")
    clean, share = torch.tensor(answer["clean"]), torch.tensor(answer["share"])
    clean_margin, margin = torch.tensor(answer["clean_margin"]), torch.tensor(answer["margin"])
    outside = torch.tensor(answer["outside"], dtype=torch.bool)
    wrong, broken, robust = (outcomes == o for o in (Outcome.NOT_ATTACKED, Outcome.BROKEN, Outcome.ROBUST))
    usual = float(clean_margin.abs().median())
    if record.model.randomized:
        error = 3 * (0.25 / max(len(share), 1)) ** 0.5 + CHANCE
        standing = float((share * (~wrong)).mean())
        differ = [abs(float(clean.mean()) - record.clean_accuracy.value) > error]
        differ.append(record.n_undecided == 0 and standing < record.robust_accuracy.value - error)
        differ.append(record.n_undecided == 0 and standing > record.robust_accuracy.value + error)
        count = len(share) if any(differ) else 0
    else:
        clear, clear_clean = margin.abs() > CLOSE * usual, clean_margin.abs() > CLOSE * usual
        different = clear_clean & ((clean <= 0.5) != wrong)
        different |= clear & ((broken & (share > 0.5)) | (robust & (share <= 0.5)))
        count = int(different.sum())
    count += int((outside & (broken | robust)).sum())
    if count:
        raise Refused(
            f"{by} judges {count} of {len(share)} samples otherwise: an attack changed the judge, and the results cannot be "
            "trusted."
        )
