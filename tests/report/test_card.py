"""The model card's metadata, read back as the Hub reads it."""

import json
import math
import re
import shlex

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from robustdup.cli.main import main
from robustdup.records import Accuracy, load_samples
from robustdup.report.card import eval_results, model_card


def results(text):
    return {found.metric_name: found for found in ModelCard(text).data.eval_results}


def test_the_hub_reads_the_records_numbers(run):
    made = run()
    text = model_card(made.record, load_samples(made.folder))
    found = results(text)
    assert set(found) == {"Clean accuracy", "Robust accuracy"}
    assert found["Robust accuracy"].metric_value == round(made.record.robust_accuracy.value, 6)
    assert found["Clean accuracy"].metric_value == round(made.record.clean_accuracy.value, 6)
    robust = found["Robust accuracy"]
    assert robust.metric_args == {"norm": "Linf", "eps": "0.1", "attacks": "autoattack", "seed": 0}
    assert (robust.dataset_type, robust.dataset_split, robust.task_type) == (
        "some/data",
        "test",
        "image-classification",
    )
    assert ModelCard(text).data.model_name == "model.py:make"
    assert f"| clean | {100 * made.record.clean_accuracy.value:.2f}% |" in text
    assert made.record.command in text


def test_the_hub_reads_the_results_beside_the_card(run, tmp_path, capsys):
    """Numbers are those of the record, in percent; nothing is published about unfinished runs or data that is not there."""
    made = run()
    assert main(["report", "--card", str(made.folder), "--to", str(tmp_path / "card" / "README.md")]) == 0
    assert ".eval_results" in capsys.readouterr().out
    text = (tmp_path / "card" / ".eval_results" / "robustdup.yaml").read_text()
    entries = parse_eval_result_entries(yaml.safe_load(text))
    clean, robust = entries
    assert (clean.dataset_id, clean.task_id, robust.task_id) == ("some/data", "clean_accuracy", "robust_accuracy")
    assert clean.value == round(100 * made.record.clean_accuracy.value, 2)
    assert robust.value == round(100 * made.record.robust_accuracy.value, 2)
    assert "Linf 0.1" in robust.notes
    unfinished = made.record.model_copy(update={"n_undecided": 1})
    assert [entry.task_id for entry in parse_eval_result_entries(yaml.safe_load(eval_results(unfinished)))] == [
        "clean_accuracy"
    ]
    local = made.record.data.model_copy(update={"spec": "builtin:digits"})
    assert eval_results(made.record.model_copy(update={"data": local})) is None


def test_a_path_on_this_machine_is_not_published_as_a_dataset(run, tmp_path):
    made = run()
    data = made.record.data.model_copy(update={"spec": str(tmp_path / "secret place" / "my data")})
    text = model_card(made.record.model_copy(update={"data": data}))
    assert results(text)["Robust accuracy"].dataset_type == "my-data"
    assert "secret place" not in text


@pytest.mark.parametrize(
    ("spec", "shown"),
    [
        ("run:/home/me/secret place/trained@best", "run:path/to/trained@best"),
        (
            "/home/me/secret place/model.py:make@/home/me/secret place/w.safetensors",
            "path/to/model.py:make@path/to/w.safetensors",
        ),
        ("models/model.py:make", "models/model.py:make"),
        ("hf:someone/model", "hf:someone/model"),
    ],
)
def test_no_path_on_this_machine_is_published(run, spec, shown):
    record = run().record
    command = shlex.join(["robustdup", "eval", f"model={spec}", "--out", "/home/me/secret place/out"])
    text = model_card(
        record.model_copy(update={"command": command, "model": record.model.model_copy(update={"spec": spec})})
    )
    assert ModelCard(text).data.model_name == shown
    assert shlex.join(["robustdup", "eval", f"model={shown}", "--out", "path/to/out"]) in text
    assert "secret place" not in text


def test_the_card_of_a_training_is_that_of_its_best_checkpoint(run, tmp_path, capsys):
    made = run("trained/evaluation-best")
    training = {"schema_name": "robustdup.training", "schema_version": 1}
    (tmp_path / "trained" / "record.json").write_text(json.dumps(training))
    assert main(["report", "--card", str(tmp_path / "trained")]) == 0
    assert results(capsys.readouterr().out)["Robust accuracy"].metric_value == round(
        made.record.robust_accuracy.value, 6
    )


def test_numbers_that_are_none_and_partial_results(run):
    made = run(n_undecided=4)
    record = made.record.model_copy(update={"robust_accuracy": Accuracy(value=math.nan, low=0.0, high=1.0)})
    text = model_card(record)
    assert set(results(text)) == {"Clean accuracy"}
    assert "not a number" in text
    assert "This result is partial: 4 points are undecided" in text


@pytest.mark.parametrize(
    "word", ["a | b", "---\nevil: yes", "``` </pre>", "<script>x</script>", "[x](javascript:y)", "\u202e"]
)
def test_hostile_names_do_not_leave_their_place(run, word):
    record = run().record
    plain, hostile = (
        model_card(
            record.model_copy(
                update={
                    "model": record.model.model_copy(update={"spec": name}), "command": name,
                    "data": record.data.model_copy(update={"spec": name, "split": name}),
                    "attacks": [a.model_copy(update={"name": name}) for a in record.attacks],
                }
            )
        )
        for name in ("plain", word)
    )  # fmt: skip
    assert ModelCard(hostile).data.model_name == (word if word != "\u202e" else "\\u202e")  # no control characters
    assert "evil" not in ModelCard(hostile).data.to_dict()
    body, other = (text.split("\n---\n\n", 1)[-1] for text in (hostile, plain))
    assert len(body.splitlines()) == len(other.splitlines())
    outside = re.sub(r"```\n.*?\n```", "", body, flags=re.S)
    assert not re.search(r"(?<!\\)<script", outside)
    assert outside.count("|") - outside.count("\\|") == re.sub(r"```\n.*?\n```", "", other, flags=re.S).count("|")
