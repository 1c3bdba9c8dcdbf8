"""`python -m benchmarks.timing eval`: real processes, what is printed, and exit codes."""

import io
import json
import textwrap
from unittest import mock

import pytest

import benchmarks.contender as process
from benchmarks import timing_evaluation
from benchmarks.baselines import BASELINES
from benchmarks.measured import Measurement, TimingResult
from benchmarks.timing import main
from benchmarks.timing_evaluation import in_fresh_process

PLUGIN = """
    import torch

    def gradient_sign(model, images, labels, threat, *, batch_size, seed):
        print("toolkits talk")
        images.requires_grad_(True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        clean = images.detach()
        return threat.project(clean, clean + threat.radius * images.grad.sign())

    def flat(model, images, labels, threat, *, batch_size, seed):
        raise RuntimeError("a flat tyre [sic]")

    def register(registry):
        from benchmarks.baselines import BASELINES
        from robustdup.plugins import Named

        BASELINES["lab-sign"] = Named("lab-sign", gradient_sign, "One step")
        BASELINES["lab-flat"] = Named("lab-flat", flat)
"""


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "lab.py"
    path.write_text(textwrap.dedent(PLUGIN))
    return str(path)


@pytest.fixture
def one_process_is_enough(monkeypatch):
    """Measure lab-sign in a process of its own and the others in this one: a start takes five seconds of a CPU."""

    def measure(config, contender, n, threads, repeat):
        if contender.name == "lab-sign":
            return in_fresh_process(config, contender, n, threads, repeat)
        events, order = [], {"config": config.model_dump(mode="json"), "contender": contender.call, "n": n}
        process.measure({**order, "batch_size": contender.batch_size, "threads": threads}, events.append)
        known = {"contender": contender.name, "repeat": repeat, "batch_size": contender.batch_size, "n": n}
        return timing_evaluation._measurement(events[-1], {**known, "threads": threads}, 0, io.BytesIO())

    monkeypatch.setattr(timing_evaluation, "in_fresh_process", measure)
    with mock.patch.dict(BASELINES):
        yield


@pytest.mark.usefixtures("one_process_is_enough")
def test_fresh_processes_side_by_side(capfd, plugin, tmp_path):
    out = tmp_path / "bench.json"
    words = ["eval", "--n", "8", "--threads", "1", "--repeats", "1", "--plugin", plugin, "--out", str(out)]
    code = main([*words, "--contenders", "fgsm,lab-sign,lab-flat", "--json"])
    printed = capfd.readouterr()
    assert code == 0
    assert printed.err == ""
    result = TimingResult.model_validate(json.loads(printed.out))
    assert result.measurements == TimingResult.model_validate_json(out.read_text()).measurements
    fgsm, sign, flat = result.contenders
    assert sign.seconds.median > 0
    assert (sign.forward_passes, sign.backward_passes, sign.passes_a_point) == (8, 8, 2)
    assert (sign.counted_by, fgsm.counted_by) == ("benchmark", "robustdup")
    assert sign.robust_accuracy == fgsm.robust_accuracy < result.clean_accuracy  # the same step
    assert sign.ratios[0].to == "fgsm"
    assert sign.ratios[0].median == pytest.approx(sign.seconds.median / fgsm.seconds.median)
    assert (flat.status, "RuntimeError: a flat tyre [sic]" in flat.reason) == ("failed", True)
    assert result.environment["threads"] == "1"
    assert all(each.threads == 1 for each in result.measurements)

    from benchmarks.timing import show
    from robustdup.cli.leaderboard import console

    show(result, console(wide=True))
    shown = capfd.readouterr().out
    assert "× fgsm" in shown
    assert "failed" in shown
    assert "a flat tyre [sic]" in shown
    assert result.command in shown


def test_a_users_mistakes_are_messages(capsys):
    assert main(["eval", "--contenders", "autoatack"]) == 2
    assert "Did you mean 'autoattack'?" in capsys.readouterr().err
    assert main(["eval", "--repeats", "0"]) == 2
    assert "'repeats'" in capsys.readouterr().err
    assert main(["eval", "--contenders", "fgsm", "--model", "builtin:digits-robus"]) == 2
    assert "builtin:digits-robust" in capsys.readouterr().err


def test_all_failed_is_a_failed_run(capsys, monkeypatch):
    def flat(config, contender, n, threads, repeat):
        return Measurement(
            contender=contender.name, repeat=repeat, batch_size=None, n=n, status="failed", reason="a flat tyre"
        )

    monkeypatch.setattr("benchmarks.timing_evaluation.in_fresh_process", flat)
    assert main(["eval", "--contenders", "fgsm,pgd"]) == 1
    assert "pgd: a flat tyre" in capsys.readouterr().out
