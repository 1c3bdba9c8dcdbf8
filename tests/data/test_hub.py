"""Datasets of the Hugging Face Hub, read from a small server of the test's own that speaks the Hub's protocol."""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import textwrap
import threading
from urllib.parse import unquote, urlparse

import datasets
import pytest
from PIL import Image

from robustdup.config import DataOptions
from robustdup.data.hub import load_hub, looks_like_hub_id
from robustdup.data.sources import load_images
from robustdup.errors import UserError
from robustdup.plugins import Registry
from tests.raising import raises

COMMIT, REPO = "c0ffee" + "0" * 34, "tiny/colours"
COLOURS = [(250, 10, 0), (20, 240, 0), (0, 30, 230), (200, 200, 10)]


def colour(rgb):
    content = io.BytesIO()
    Image.new("RGB", (4, 4), rgb).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": None}


def parquet(tmp_path, rows):
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "coarse_label": datasets.ClassLabel(names=["warm", "cold"]),
            "fine_label": datasets.ClassLabel(names=["red", "green", "blue", "yellow"]),
        }
    )
    columns = {
        "img": [colour(COLOURS[i]) for i in rows],
        "coarse_label": [i % 2 for i in rows],
        "fine_label": list(rows),
    }
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "rows.parquet")
    return (tmp_path / "rows.parquet").read_bytes()


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves the files of one dataset repository at one commit, reachable as `main` and by its hash."""

    files: dict[str, bytes]
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, code, body=b"", **headers):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def answer_json(self, content):
        self.answer(200, json.dumps(content).encode(), Content_Type="application/json")

    def entry(self, name):
        blob = hashlib.sha1(self.files[name]).hexdigest()
        return {"type": "file", "oid": blob, "size": len(self.files[name]), "path": name}

    def listing(self, folder):
        names = sorted({name.removeprefix(folder).split("/")[0] for name in self.files if name.startswith(folder)})
        folders = [folder + name for name in names if folder + name not in self.files]
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in folders]
        return entries + [self.entry(folder + name) for name in names if folder + name in self.files]

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlparse(self.path).path)
        known = [f"/datasets/{REPO}/resolve/{revision}/" for revision in ("main", COMMIT)]
        api = f"/api/datasets/{REPO}"
        if path.startswith(f"/datasets/{REPO}/resolve/") and not path.startswith(tuple(known)):
            self.answer(404, X_Error_Code="RevisionNotFound")
        elif path.startswith(tuple(known)):
            self.send_file(path.split("/resolve/", 1)[1].split("/", 1)[1])
        elif path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in self.files]
            self.answer_json({"id": REPO, "sha": COMMIT, "private": False, "siblings": siblings, "tags": []})
        elif path.startswith(f"{api}/tree/"):
            folder = path.removeprefix(f"{api}/tree/{COMMIT}").strip("/")
            self.answer_json(self.listing(f"{folder}/" if folder else ""))
        elif path.startswith(f"{api}/paths-info/"):
            wanted = [name.strip("/") for name in json.loads(body)["paths"]]
            self.answer_json([self.entry(name) for name in wanted if name in self.files])
        else:
            self.answer(404, X_Error_Code="RepoNotFound")

    def send_file(self, name):
        if name not in self.files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        content = self.files[name]
        return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=COMMIT)

    do_GET = do_HEAD = do_POST = handle_request


@pytest.fixture
def hub(tmp_path):
    """The address of a running Hub with one dataset: four training rows, and a test split of two."""
    Hub.files = {
        "README.md": b"---\nlicense: mit\n---\n",
        "data/train-00000-of-00001.parquet": parquet(tmp_path, range(4)),
        "data/test-00000-of-00001.parquet": parquet(tmp_path, [3, 1]),
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


READ = """
    import json, sys
    from robustdup.config import DataOptions
    from robustdup.data.sources import load_images
    from robustdup.errors import UserError
    from robustdup.plugins import Registry

    def read(spec, **options):
        try:
            data = load_images(spec, DataOptions(**options), registry=Registry())
        except UserError as error:
            return str(error)
        pixels = (data.images[:, :, 0, 0] * 255).round().int().tolist()
        return [pixels, data.labels.tolist(), data.class_names, data.revision, list(data.notes)]

    print(json.dumps([read(spec, **options) for spec, options in json.loads(sys.argv[1])]))
"""


def read_with(endpoint, cache, *calls):
    """Read data in a process of its own: huggingface_hub takes its address from the environment when imported."""
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", textwrap.dedent(READ), json.dumps(calls)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_hub_dataset_end_to_end(hub, tmp_path):
    test, train, split, revision, config, missing, column = read_with(
        hub, tmp_path / "cache",
        (REPO, {}),
        (REPO, {"split": "train", "label_column": "coarse_label", "revision": COMMIT}),
        (REPO, {"split": "tset"}),
        (REPO, {"revision": "v2"}),
        (REPO, {"config": "defualt"}),
        ("tiny/colors", {}),
        (REPO, {"image_column": "imgs"}),
    )  # fmt: skip
    pixels, labels, names, commit, notes = test
    assert pixels == [list(COLOURS[3]), list(COLOURS[1])]
    assert labels == [3, 1]
    assert names == ["red", "green", "blue", "yellow"]
    assert commit == COMMIT
    assert len(notes) == 1
    assert "'fine_label'" in notes[0]
    assert "coarse_label" in notes[0]
    assert train == [[list(c) for c in COLOURS], [0, 1, 0, 1], ["warm", "cold"], COMMIT, []]
    assert split == f"Unknown split of {REPO}: 'tset'. Did you mean 'test'? Allowed: test, train."
    assert "v2" in revision
    assert "Did you mean 'default'?" in config
    assert "no dataset 'tiny/colors' on the Hugging Face Hub" in missing
    assert "Did you mean 'img'?" in column


@pytest.mark.slow
def test_what_is_cached_is_read_offline_and_the_rest_says_so(hub, tmp_path):
    cache = tmp_path / "cache"
    (online,) = read_with(hub, cache, (REPO, {}))
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        cached, other = read_with("http://127.0.0.1:9", cache, (REPO, {}), ("other/data", {}))
    finally:
        del os.environ["HF_HUB_OFFLINE"]
    assert cached == online
    assert "Cannot reach the Hugging Face Hub for 'other/data'" in other
    assert "builtin:digits needs no network" in other


def test_offline_error_names_the_way_out(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'uoft-cs/cifar10' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with raises("offline", UserError, "'uoft-cs/cifar10'", "builtin:digits"):
        load_images("uoft-cs/cifar10", registry=Registry())


def test_never_asks_for_remote_code(monkeypatch):
    seen = {}

    def fail(*args, **kwargs):
        seen.update(kwargs)
        raise RuntimeError("Dataset scripts are no longer supported, but found data.py")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with raises("bad-data", UserError, "parquet"):
        load_hub("some/data", DataOptions())
    assert "trust_remote_code" not in seen


def test_a_commit_that_was_not_loaded_is_refused(monkeypatch, tmp_path):
    rows = datasets.Dataset.from_dict({"label": [0]})
    rows.save_to_disk(tmp_path / COMMIT)
    rows = datasets.load_from_disk(str(tmp_path / COMMIT))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: datasets.DatasetDict({"test": rows}))
    load_hub("a/b", DataOptions(revision=COMMIT))
    with raises("offline", UserError, "1111111111111111111111111111111111111111"):
        load_hub("a/b", DataOptions(revision="1" * 40))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("uoft-cs/cifar10", True), ("mnist", True), ("./mnist", False), ("../data/x", False), ("/data/x", False),
        ("a/b/c", False), ("a b", False), ("", False), ("C:\\data", False), ("~/data", False),
        ("generated.npz", False), ("test.parquet", False), ("cifar.tar.gz", False), ("owner/set.zip", True), ("owner/v1.5", True),
    ],
)  # fmt: skip
def test_hub_ids(spec, expected):
    assert looks_like_hub_id(spec) is expected


def test_a_file_that_is_not_there_is_not_asked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: pytest.fail("the Hub was asked"))
    (tmp_path / "sets").mkdir()
    for spec in ("generated.npz", "sets/generated.npz"):
        with raises("unknown-data", UserError, f"There is no file or folder '{spec}'"):
            load_images(spec, registry=Registry())
