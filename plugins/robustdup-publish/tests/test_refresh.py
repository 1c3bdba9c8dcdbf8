"""Fetching the table from a local server: every quirk of the published files, and every way to fail."""

import http.server
import io
import json
import threading
import zipfile

import pytest
from robustdup_publish.refresh import refresh

from robustdup.errors import RunError, UserError
from robustdup.leaderboard import load
from robustdup.leaderboard.table import SHIPPED, cache_path
from tests.raising import raises

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLAIN = {
    "link": "https://arxiv.org/abs/1905.13736", "name": "Unlabeled Data Improves Adversarial Robustness",
    "authors": "A, B", "additional_data": True, "number_forward_passes": 1, "dataset": "cifar10",
    "venue": "NeurIPS 2019", "architecture": "WideResNet-28-10", "eps": "8/255", "clean_acc": "89.69",
    "reported": "62.5", "autoattack_acc": "59.53", "footnote": "", "unreliable": False,
}  # fmt: skip
FILES = {
    "cifar10/Linf/Carmon2019Unlabeled": PLAIN,
    "cifar10/Linf/Kang2021Stable": {**PLAIN, "name": "Stable", "autoattack_acc": "71.28", "external": "64.20",
                                    "unreliable": True, "footnote": "see <a href='x'>here</a>"},
    "cifar10/Linf/New2026Thing": {**PLAIN, "name": "New &amp; other", "venue": "GitHub,<br>Sep 2026", "reported": "null",
                                  "clean_acc": "90.00", "autoattack_acc": "60.00", "eps": "0.031"},
    "cifar100/Linf/Wrong2021Dataset": {**PLAIN, "dataset": "cifar10", "reported": "", "number_forward_passes": "2"},
    "imagenet/corruptions/Tian2022Deeper_DeiT-B": {
        "name": "Deeper", "dataset": "imagenet", "venue": "", "architecture": "DeiT Base", "eps": None, "link": "x",
        "clean_acc": "81.38", "reported": None, "corruptions_acc": "67.55", "corruptions_mce": "41.70",
        "corruptions_acc_3d": "65.90", "additional_data": False, "number_forward_passes": 1},
    "imagenet/corruptions/Older2021Fields": {"name": "Older", "clean_acc": 70, "corruptions_acc_2d": "40.0",
                                             "corruptions_mce_2d": "101.5", "eps": "null"},
    "cifar10/L2/Legacy2020Field": {"name": "Legacy", "clean_acc": "91.08%", "AA": "72.91", "eps": "0.5"},
}  # fmt: skip
BROKEN = {
    "cifar10/Linf/Broken2020Json": b"{not json",
    "cifar10/Linf/Broken2020List": b"[]",
    "cifar10/Linf/Broken2020Number": json.dumps({**PLAIN, "clean_acc": "ninety"}).encode(),
    "cifar10/Linf/Broken2020Range": json.dumps({**PLAIN, "clean_acc": "8969"}).encode(),
    "cifar10/Linf/Broken2020Empty": json.dumps({**PLAIN, "autoattack_acc": ""}).encode(),
    "cifar10/Linf/Broken2020Bytes": b"\xff\xfe{}",
}


def archive(files, *, extra=(), comment=COMMIT):
    """A repository archive as GitHub packs it: one top folder, the commit as comment."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.comment = comment.encode()
        packed.writestr("robustbench-master/README.md", "text")
        packed.writestr("robustbench-master/model_info/cifar10/corruptions/unaggregated_results.csv", "a,b")
        for name, content in files.items():
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            packed.writestr(f"robustbench-master/model_info/{name}.json", data)
        for name in extra:
            packed.writestr(name, json.dumps(PLAIN))
    return buffer.getvalue()


@pytest.fixture
def serve():
    """Serve bytes at /zip/refs/heads/master; the answer may be replaced, cut or refused."""
    answer = {"body": b"", "status": 200, "length": None}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            status = answer["status"] if self.path == "/repo/zip/refs/heads/master" else 404
            self.send_response(status)
            self.send_header("Content-Length", str(answer["length"] or len(answer["body"])))
            self.end_headers()
            self.wfile.write(answer["body"])

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()

    def at(body=b"", *, status=200, length=None):
        answer.update(body=body, status=status, length=length)
        return f"http://127.0.0.1:{server.server_port}/repo"

    yield at
    server.shutdown()
    server.server_close()
    thread.join()


def test_every_quirk_is_read(serve):
    result = refresh(serve(archive({**FILES, **BROKEN})))
    table = load()
    assert result.n == len(table.entries) == len(FILES)
    assert (result.commit, table.commit, result.path) == (COMMIT, COMMIT, str(cache_path()))
    by_name = {entry.model_id: entry for entry in table.entries}
    assert by_name["Carmon2019Unlabeled"].autoattack_acc == 59.53
    kang = by_name["Kang2021Stable"]
    assert (kang.autoattack_acc, kang.external_acc, kang.robust_acc, kang.unreliable) == (71.28, 64.2, 64.2, True)
    new = by_name["New2026Thing"]
    assert (new.venue, new.paper_title, new.reported_acc, new.eps) == ("GitHub, Sep 2026", "New & other", None, "0.031")
    wrong = by_name["Wrong2021Dataset"]
    assert (wrong.dataset, wrong.reported_acc, wrong.forward_passes) == ("cifar100", None, 2)
    deit = by_name["Tian2022Deeper_DeiT-B"]
    assert (deit.eps, deit.reported_acc, deit.unreliable, deit.robust_acc) == (None, None, False, 67.55)
    older = by_name["Older2021Fields"]
    assert (older.corruptions_acc, older.corruptions_mce, older.clean_acc, older.eps) == (40.0, 101.5, 70.0, None)
    assert (by_name["Legacy2020Field"].clean_acc, by_name["Legacy2020Field"].autoattack_acc) == (91.08, 72.91)


def test_files_that_cannot_be_read_are_named_with_the_reason(serve):
    skipped = "\n".join(refresh(serve(archive({**FILES, **BROKEN}))).skipped)
    assert skipped.count("\n") == len(BROKEN) - 1
    for name, reason in (("Json", "property name"), ("List", "found list"), ("Number", "'ninety', not a number"),
                         ("Range", "out of range"), ("Empty", "no robust accuracy"), ("Bytes", "decode")):  # fmt: skip
        line = next(line for line in skipped.splitlines() if f"Broken2020{name}:" in line)
        assert reason in line


def test_what_changed_is_counted(serve):
    first = refresh(serve(archive(FILES)))
    assert "cifar10/Linf/New2026Thing" in first.added
    assert "cifar10/Linf/Carmon2019Unlabeled" not in first.added + first.changed + first.removed
    assert len(first.removed) > 200
    same = refresh(serve(archive(FILES)))
    assert same.added == same.changed == same.removed == []
    moved = {name: value for name, value in FILES.items() if "Legacy" not in name and "Carmon" not in name}
    moved["cifar10/Linf/Carmon_2019-unlabeled"] = PLAIN  # the same entry under another spelling
    moved["cifar10/Linf/Kang2021Stable"] = {**FILES["cifar10/Linf/Kang2021Stable"], "external": "63.00"}
    moved["cifar10/Linf/Added2027"] = {**PLAIN, "name": "Added", "autoattack_acc": "61"}
    after = refresh(serve(archive(moved)))
    assert after.added == ["cifar10/Linf/Added2027"]
    assert after.changed == ["cifar10/Linf/Kang2021Stable"]
    assert after.removed == ["cifar10/L2/Legacy2020Field"]


def test_the_shipped_table_survives_a_round_trip(serve):
    files = {}
    for entry in load(SHIPPED).entries:
        names = {"autoattack_acc": "autoattack_acc", "external_acc": "external", "reported_acc": "reported"}
        content = {names.get(k, k): v for k, v in entry.model_dump().items()}
        content.update(additional_data=entry.extra_data, number_forward_passes=entry.forward_passes,
                       name=entry.paper_title, link=entry.paper_url)  # fmt: skip
        files[f"{entry.dataset}/{entry.threat_model}/{entry.model_id}"] = content
    result = refresh(serve(archive(files)))
    assert (result.n, result.added, result.changed, result.removed, result.skipped) == (236, [], [], [], [])
    assert sorted(load().entries, key=str) == sorted(load(SHIPPED).entries, key=str)


@pytest.mark.parametrize("kind", ["404", "500", "cut", "short", "not a zip", "outside", "absolute", "empty", "offline"])
def test_a_failure_keeps_the_old_table(serve, kind):
    good = archive(FILES)
    refresh(serve(good))
    before = cache_path().read_bytes()
    other = archive({"cifar10/Linf/Other": PLAIN})
    answers = {
        "404": (lambda: serve(other, status=404), "no-network", "404"),
        "500": (lambda: serve(other, status=500), "no-network", "500"),
        "cut": (lambda: serve(other[: len(other) // 2]), "damaged-file", "cut off"),
        "short": (lambda: serve(other[:300], length=len(other)), "no-network", "127.0.0.1"),
        "not a zip": (lambda: serve(b"<html>sign in</html>"), "damaged-file", "cut off"),
        "outside": (
            lambda: serve(archive({}, extra=["robustbench-master/model_info/../../x.json"])),
            "bad-archive",
            "../../x.json",
        ),
        "absolute": (
            lambda: serve(archive(FILES, extra=["/etc/model_info/a/b/c.json"])),
            "bad-archive",
            "/etc/model_info",
        ),
        "empty": (lambda: serve(archive({})), "bad-archive", "model_info"),
        "offline": (lambda: "http://127.0.0.1:9/repo", "no-network", "online"),
    }
    address, code, name = answers[kind]
    with raises(code, RunError, name) as caught:
        refresh(address(), timeout=5)
    assert "kept" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cache_path().read_bytes() == before
    assert list(cache_path().parent.iterdir()) == [cache_path()]


def test_a_damaged_member_is_skipped_or_refused_without_a_traceback(serve):
    packed = archive(FILES, comment="")
    place = packed.find(b"NeurIPS") if b"NeurIPS" in packed else len(packed) // 4
    damaged = packed[:place] + bytes([packed[place] ^ 0xFF]) + packed[place + 1 :]
    with raises("damaged-file", RunError):
        refresh(serve(damaged))
    assert not cache_path().exists()


def test_another_file_and_another_address(serve, tmp_path):
    result = refresh(serve(archive(FILES, comment="")), tmp_path / "deep" / "table.json")
    assert result.commit is None
    assert len(load(tmp_path / "deep" / "table.json").entries) == len(FILES)
    assert not cache_path().exists()
    for url in ("file:///etc/passwd", "ftp://x/y", "RobustBench/robustbench"):
        with raises("bad-option", UserError, url, "http"):
            refresh(url)


def test_a_damaged_old_table_is_replaced(serve):
    cache_path().parent.mkdir(parents=True)
    cache_path().write_text("{")
    assert refresh(serve(archive(FILES))).n == len(FILES)
    assert load().commit == COMMIT
