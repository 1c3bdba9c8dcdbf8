"""`robustdup data`: what is written, shown and pushed, and what is said to a mistake."""

from __future__ import annotations

import base64
import html
import http.server
import io
import json
import os
import re
import shlex
import threading

import datasets
import numpy as np
import pytest
from PIL import Image

from robustdup.cli.main import main
from robustdup.duplication.plan import load_plan
from tests import forked


def run(capsys, *words):
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_duplicate_then_describe(capsys, tmp_path):
    code, out, _ = run(
        capsys, "data", "duplicate", "builtin:digits", "scheme=class_skewed", "classes=[3, 4]", "--dose", "0.2",
        "copies=2", "--to", tmp_path / "out", "--json",
    )  # fmt: skip
    assert code == 0
    made = json.loads(out)
    assert made["plan"]["hash"] == load_plan(tmp_path / "out").hash
    assert made["rows"] == {"train": 1297 + made["readings"]["copies"], "test": 500}
    assert {each["name"] for each in made["classes"] if each["copies"]} == {"3", "4"}
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"scheme=class_skewed 'classes=[3, 4]' copies=2 dose=0.2 --to {tmp_path / 'out'}" in card
    code, out, _ = run(capsys, "data", "describe", tmp_path / "out", "--split", "train", "--json")
    (found,) = json.loads(out)
    assert code == 0
    assert found["same_by"] == "source_index"
    assert found["entries"] == made["rows"]["train"]
    assert (found["unique"], found["copies"]) == (1297, made["readings"]["copies"])
    assert found["effective_sample_size"] == pytest.approx(made["readings"]["effective_sample_size"])
    copied = made["readings"]["copied_samples"]
    assert found["multiplicity"] == {"1": 1297 - copied, "3": copied}
    assert [(c["name"], c["entries"], c["copies"]) for c in found["classes"]] == [
        (c["name"], c["entries"], c["copies"]) for c in made["classes"]
    ]


def test_the_card_repeats_the_command(capsys, tmp_path, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    words = ["data", "duplicate", "builtin:digits", "--scheme", "uniform", "dose=0.1", "--seed", "3", "--to", "a"]
    assert run(capsys, *words)[0] == 0
    (command,) = [
        line for line in (tmp_path / "a" / "README.md").read_text().splitlines() if line.startswith("robustdup ")
    ]
    again = [word if word != "a" else "b" for word in shlex.split(command)[1:]]
    assert run(capsys, *again)[0] == 0
    assert load_plan(tmp_path / "a").hash == load_plan(tmp_path / "b").hash


def test_the_tables_show_classes_and_multiplicities_as_bars(capsys, tmp_path):
    words = ("builtin:digits", "scheme=conflicting", "fraction=0.5", "copies=3", "--to", tmp_path / "out")
    code, out, _ = run(capsys, "data", "duplicate", *words)
    assert code == 0
    for text in ("Written to", "dose (share of entries that are copies)", "effective sample size", "▒"):
        assert text in out
    code, _, err = run(capsys, "report", tmp_path / "out")
    assert code == 2
    assert f"robustdup data describe {tmp_path / 'out'} --out RUN" in " ".join(err.split())
    code, out, _ = run(capsys, "data", "describe", tmp_path / "out", "--no-images")
    assert code == 0
    flat = " ".join(out.split())
    assert "samples with conflicting labels 649" in flat
    assert "entries a sample" in flat
    assert "█" in out
    assert "(test): 500 entries" in flat


def encoded(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def test_describe_counts_pixels_conflicts_and_broken_images(capsys, tmp_path):
    generator = np.random.default_rng(0)
    one, two, grey = (generator.integers(0, 256, size, np.uint8) for size in ((8, 8, 3), (8, 8, 3), (6, 4)))
    images = [encoded(one), encoded(one), encoded(two), encoded(grey), encoded(two), None]
    images[4]["bytes"] = images[4]["bytes"][:60]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    content = {"image": images, "label": [0, 1, 0, 0, 1, 1]}
    datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "rows.parquet")
    code, out, _ = run(capsys, "data", "describe", tmp_path / "rows.parquet", "--json")
    (found,) = json.loads(out)
    assert code == 0
    assert (found["same_by"], found["unique"], found["copies"], found["conflicts"]) == ("pixels", 5, 1, 1)
    assert (found["sizes"], found["modes"]) == ({"8x8": 3, "4x6": 1}, {"RGB": 3, "L": 1})
    assert found["n_unreadable"] == 2
    assert [bad["row"] for bad in found["unreadable"]] == [4, 5]
    assert found["unreadable"][1]["reason"] == "no image"
    assert [(c["name"], c["entries"]) for c in found["classes"]] == [("x", 3), ("y", 3), ("z", 0)]
    _, out, _ = run(capsys, "data", "describe", tmp_path / "rows.parquet")
    assert "2 images cannot be read:" in out
    assert "row 5: no image" in out


def test_a_description_becomes_a_page(capsys, tmp_path):
    """Four images: one of class x twice as x and y, one of y; one of z broken."""
    generator = np.random.default_rng(0)
    one, two = (generator.integers(0, 256, (8, 8, 3), np.uint8) for _ in range(2))
    images = [encoded(one), encoded(one), encoded(two), None]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["x", "y", "z"])})
    content = {"image": images, "label": [0, 1, 1, 2]}
    datasets.Dataset.from_dict(content, features=features).to_parquet(tmp_path / "rows.parquet")
    words = ["data", "describe", tmp_path / "rows.parquet", "--split", "train"]
    code, out, _ = run(capsys, *words, "--out", tmp_path / "run")
    assert (code, out.splitlines()[-1]) == (0, f"Record: {tmp_path / 'run' / 'record.json'}")
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["command"] == shlex.join(["robustdup", *map(str, words)])
    assert run(capsys, "report", tmp_path / "run")[0] == 0
    page = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    text = " ".join(
        html.unescape(re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]*>", " ", page, flags=re.S)).split()
    )
    place = f"{tmp_path / 'rows.parquet'} (train)"
    assert f"In {place} 1 sample occurs more than once, the most frequent 2 times." in text
    assert "y 2 50.00% 2 0 0.00% z 1 25.00% 1 0 0.00%" in text
    assert f"{place}: 1 sample carries different labels." in text
    assert "3 no image" in text
    values = dict(re.findall(r'data-field="([^"]*)" data-value="([^"]*)"', page))
    assert (values["splits.0.unique"], values["splits.0.copies"]) == ("3", "1")
    assert values["splits.0.classes.1.entries"] == "2"
    code, _, err = run(capsys, *words, "--out", tmp_path / "run")
    assert code == 2
    assert "is there already. Choose another --out" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["duplicate", "builtin:digits", "scheme=unifrom", "--to", "x"], "Did you mean 'uniform'?"),
        (
            ["duplicate", "builtin:digit", "scheme=uniform", "dose=0.1", "--to", "x"],
            "There is no file or folder 'builtin:digit'",
        ),
        (["duplicate", "scheme=uniform", "dose=0.1", "split=tain", "--to", "x"], "Did you mean 'train'?"),
        (["duplicate", "scheme=leak", "dose=0.1", "leak_from=train", "--to", "x"], "A split does not leak into itself"),
        (["duplicate", "scheme=uniform", "dose=0.1", "--to", "hub:me"], "Write hub:owner/name"),
        (["duplicate", "scheme=uniform", "dose=abc", "--to", "x"], "Configuration key 'dose'"),
        (["describe", "no/such/folder"], "There is no file or folder 'no/such/folder'"),
        (["describe", "builtin:digits", "--split", "tset"], "Did you mean 'test'?"),
    ],
)
def test_mistakes_are_one_message(capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "data", *words)
    assert code == 2
    assert message in " ".join(err.split())
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_data_without_labels_or_rows_is_refused(capsys, tmp_path):
    image = encoded(np.zeros((4, 4, 3), np.uint8))
    features = datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")})
    rows = datasets.Dataset.from_dict({"image": [image], "name": ["x"]}, features=features)
    rows.to_parquet(tmp_path / "bare.parquet")
    words = ("scheme=conflicting", "dose=0.1", "--to", tmp_path / "out")
    code, _, err = run(capsys, "data", "duplicate", tmp_path / "bare.parquet", *words)
    assert code == 2
    assert "is known to hold labels; it has image (Image), name (text)" in err
    labelled = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])})
    empty = datasets.Dataset.from_dict({"image": [], "label": []}, features=labelled, split="train")
    empty.to_parquet(tmp_path / "empty.parquet")
    code, _, err = run(capsys, "data", "duplicate", tmp_path / "empty.parquet", *words)
    assert code == 2
    assert "empty.parquet' has no rows: give it some, or take it away." in err


class Hub(http.server.BaseHTTPRequestHandler):
    """Takes what `huggingface_hub` uploads: creation, the question how to upload, and a commit with the files in it."""

    files: dict[str, bytes]
    created: list[dict]
    allowed = True
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, content, code=200):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def handle_request(self):
        body, path = self.body(), self.path.split("?")[0]
        if not self.allowed:
            self.answer({"error": "You don't have the rights"}, 403)
        elif path == "/api/repos/create":
            Hub.created.append(json.loads(body))
            self.answer({"url": f"http://{self.headers['Host']}/datasets/me/dup", "name": "me/dup"})
        elif path.endswith("/preupload/main"):
            wanted = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in wanted]
            self.answer({"files": modes})
        elif path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del Hub.files[line["value"]["path"]]
            url = f"http://{self.headers['Host']}/datasets/me/dup/commit/{'a' * 40}"
            self.answer({"commitUrl": url, "commitOid": "a" * 40, "success": True})
        elif "/tree/" in path:
            self.answer(
                [{"type": "file", "path": name, "oid": "0" * 40, "size": len(c)} for name, c in self.files.items()]
            )
        elif path.startswith("/api/datasets/me/dup"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer({"id": "me/dup", "sha": "a" * 40, "private": False, "siblings": siblings, "tags": []})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        else:
            self.answer({"error": path}, 404)

    do_GET = do_HEAD = do_POST = handle_request


@pytest.fixture
def hub():
    Hub.files, Hub.created, Hub.allowed = {}, [], True
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def push(endpoint, home, *words):
    """Push in a process of its own: huggingface_hub takes its address from the environment when imported."""
    environment = {
        **os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "a-token-for-the-test", "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    command = ["robustdup", "data", "duplicate", "builtin:digits", "scheme=uniform", "dose=0.1", "--to", "hub:me/dup"]
    return forked.run([*command, *words], env=environment)


def test_push_to_the_hub(hub, tmp_path):
    done = push(hub, tmp_path, "--private", "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made["to"] == f"{hub}/datasets/me/dup"
    assert "private" in json.dumps(Hub.created[0])  # as a flag or as the visibility, by version
    assert Hub.created[0]["type"] == "dataset"
    for name, content in Hub.files.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(content)
    back = datasets.load_dataset(str(tmp_path / "copy"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(split) for name, split in back.items()} == made["rows"]
    assert load_plan(tmp_path / "copy").hash == made["plan"]["hash"]
    assert made["plan"]["hash"] in Hub.files["README.md"].decode()
    again = push(hub, tmp_path)
    assert again.returncode == 2
    assert "The dataset 'me/dup' is on the Hub already. Choose another name, or add --overwrite." in again.stderr
    Hub.files["data/old-00000-of-00001.parquet"] = b"left over"
    assert push(hub, tmp_path, "--overwrite").returncode == 0
    assert sorted(Hub.files) == [
        "README.md",
        "croissant.json",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "plan.safetensors",
    ]


def test_a_push_that_is_not_allowed_says_how_to_log_in(hub, tmp_path):
    Hub.allowed = False
    done = push(hub, tmp_path)
    assert done.returncode == 2
    assert "The Hub does not let you write 'me/dup' (403). Log in: 'hf auth login'." in " ".join(done.stderr.split())


@pytest.mark.parametrize("scheme", ["uniform", "class_skewed"])
@pytest.mark.parametrize("near", [(), ("near=jpeg",)])
def test_labels_are_asked_for_only_where_the_scheme_looks_at_them(capsys, tmp_path, scheme, near):
    content = io.BytesIO()
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(content, "PNG")
    picture = {"bytes": content.getvalue(), "path": None}
    rows = datasets.Dataset.from_dict({"image": [picture] * 20, "caption": [f"text {row}" for row in range(20)]})
    (tmp_path / "data").mkdir()
    rows.cast_column("image", datasets.Image()).to_parquet(tmp_path / "data" / "train.parquet")
    words = ("data", "duplicate", tmp_path / "data", f"scheme={scheme}", "dose=0.5", "copies=1", *near)
    code, out, err = run(capsys, *words, "--to", tmp_path / "out", "--json")
    if scheme == "class_skewed":
        assert code == 2
        assert "label_column" in err
        return
    made = json.loads(out)
    assert (code, made["rows"]) == (0, {"train": 40})
    assert made["classes"] == [{"name": "(no labels)", "source": 20, "entries": 40, "copies": 20}]
    table = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert sorted(table["caption"]) == sorted([f"text {row}" for row in range(20)] * 2)
