"""Who states a bundle: a signature holds for its every byte, and whatever else is told or refused."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import shutil
import sys

import pytest

from robustdup import UserError, jobs
from robustdup.cli.main import main
from robustdup.config import EvalConfig, build
from robustdup.errors import Unavailable, how_to_install
from robustdup.evidence import bundle as bundles
from robustdup.evidence.signature import (
    SMALL_ORDER,
    Signer,
    read_key,
    read_signers,
    sign_bundle,
    signer_of,
    with_signature,
)
from robustdup.evidence.verification import Verification
from tests.raising import raises

pytest.importorskip("cryptography")
from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

OPENSSH = forms.Encoding.PEM, forms.PrivateFormat.OpenSSH, forms.NoEncryption()
PEM = forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()


def key_file(path, form=OPENSSH, key=None):
    """Write a key, and the public one beside it as ssh-keygen does."""
    key = key or Ed25519PrivateKey.generate()
    path.write_bytes(key.private_bytes(*form))
    if isinstance(key, Ed25519PrivateKey):
        public = key.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH).decode()
        path.with_suffix(".pub").write_text(f"{public} ada@example\n")
    return path


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("honest")
    jobs.run_evaluation(build(EvalConfig, values={"n": 4, "attacks": "fgsm", "eps": "0.1"}), folder=folder / "run")
    return bundles.write_bundle(folder / "run", folder / "bundle")


@pytest.fixture
def bundle(honest, tmp_path):
    return shutil.copytree(honest, tmp_path / "bundle")


@pytest.mark.parametrize("form", [OPENSSH, PEM])
def test_a_signature_holds_and_names_its_key(bundle, tmp_path, form):
    key = key_file(tmp_path / "key", form)
    assert signer_of(bundle) is None
    sign_bundle(bundle, key)
    line = (tmp_path / "key.pub").read_text()
    assert signer_of(bundle) == Signer(" ".join(line.split()[:2]))
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()  # as ssh-keygen -l shows it
    assert signer_of(bundle).fingerprint == "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
    bundles.check_manifest(bundle)  # it belongs to the bundle
    with raises("already-signed", UserError, "signed already"):
        sign_bundle(bundle, key)


def test_what_was_changed_after_it_was_signed_is_refused(bundle, tmp_path):
    sign_bundle(bundle, key_file(tmp_path / "key"))
    path = bundle / "manifest.json"
    content = json.loads(path.read_text())
    content.pop("sha256")
    content["command"] += " --attacks autoattack"
    path.write_bytes(bundles._canonical({**content, "sha256": bundles._digest(content)}))
    with raises("refused-bundle", UserError, "its signature does not hold"):
        signer_of(bundle)


def test_another_key_cannot_take_a_signature(bundle, tmp_path):
    sign_bundle(bundle, key_file(tmp_path / "key"))
    key_file(tmp_path / "other")
    path = bundle / "signature.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"key": " ".join((tmp_path / "other.pub").read_text().split()[:2])}))
    with raises("refused-bundle", UserError, "its signature does not hold"):
        signer_of(bundle)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"junk", b"[" * 100_000, b"[1]", b"{}", b'{"format": "robustdup.signature/1", "key": 3, "signature": "AA=="}',
        b'{"format": "robustdup.signature/1", "key": "ssh-ed25519 AAAA", "signature": "AA=="}',
        b'{"format": "robustdup.signature/2", "key": "ssh-ed25519 AAAA", "signature": "AA=="}',
        b'{"format": "robustdup.signature/1", "key": "ssh-ed25519 AAAA", "signature": "?"}', b" " * 100_000,
    ],
)  # fmt: skip
def test_a_damaged_signature_is_refused(bundle, content):
    (bundle / "signature.json").write_bytes(content)
    with raises("refused-bundle", UserError):
        signer_of(bundle)


def ssh_line(raw, kind="ssh-ed25519", name=b"ssh-ed25519"):
    """Write a public key as OpenSSH does, whatever its bytes are."""
    blob = len(name).to_bytes(4) + name + len(raw).to_bytes(4) + raw
    return f"{kind} {base64.b64encode(blob).decode()}"


def forged_signatures(folder, own):
    """Return what a stranger may put in place of a signature by `own`, by its kind."""
    ours = json.loads((folder / "signature.json").read_text())
    manifest = (folder / "manifest.json").read_bytes()
    key, signed = ours["key"], base64.b64decode(ours["signature"])
    stranger, other = Ed25519PrivateKey.generate(), Ed448PrivateKey.generate()
    theirs = stranger.public_key().public_bytes(forms.Encoding.OpenSSH, forms.PublicFormat.OpenSSH).decode()
    order = 2**252 + 27742317777372353535851937790883648493
    scalar = int.from_bytes(signed[32:], "little") + order  # the same point: a signature that was not made by the key

    def by(key, signature, **more):
        text = signature if isinstance(signature, str) else base64.b64encode(signature).decode()
        return {"format": "robustdup.signature/1", "key": key, "signature": text, **more}

    return {
        "of the manifest alone, without its purpose": by(key, own.sign(manifest)),
        "of another purpose": by(key, own.sign(b"robustdup.signature/2\n" + manifest)),
        "of a longer manifest": by(key, own.sign(b"robustdup.signature/1\n" + manifest + b" ")),
        "of nothing": by(key, own.sign(b"")),
        "another key's under our name": by(key, stranger.sign(b"robustdup.signature/1\n" + manifest)),
        "ours under another key": by(theirs, signed),
        "of Ed448": by(key, other.sign(b"robustdup.signature/1\n" + manifest)),
        "empty": by(key, b""),
        "cut off": by(key, signed[:-1]),
        "longer": by(key, signed + b"\0"),
        "zeros": by(key, bytes(64)),
        "a bit changed": by(key, bytes([signed[0] ^ 1, *signed[1:]])),
        "the scalar above the order": by(key, signed[:32] + scalar.to_bytes(32, "little")),
        "text with a break": by(key, ours["signature"][:10] + "\n" + ours["signature"][10:]),
        "a list": ours | {"signature": [ours["signature"]]},
        "no key": by("", signed),
        "a key that is cut off": by(key[:-8], signed),
        "a key of another kind": by(ssh_line(bytes(32), "ssh-rsa", b"ssh-rsa"), signed),
        "another kind inside": by(ssh_line(bytes(32), name=b"ssh-ed448"), signed),
        "a key of 31 bytes": by(ssh_line(bytes(31)), signed),
        "another field": by(key, signed, signer="ada@example"),
        "another format": ours | {"format": "robustdup.signature/0"},
        "a field in capitals": {"Key": key, **{name: ours[name] for name in ("format", "signature")}},
    }


def test_forged_signatures_are_refused(bundle, tmp_path):
    own = Ed25519PrivateKey.generate()
    sign_bundle(bundle, key_file(tmp_path / "key", key=own))
    assert signer_of(bundle) is not None
    forged = forged_signatures(bundle, own)
    let_pass = []
    for kind, content in forged.items():
        (bundle / "signature.json").write_text(json.dumps(content))
        with contextlib.suppress(UserError):
            signer_of(bundle)
            let_pass.append(kind)
    assert let_pass == []


def test_a_signature_in_which_a_name_stands_twice_is_refused(bundle, tmp_path):
    """Another reader would take the first of the two keys for who signed."""
    sign_bundle(bundle, key_file(tmp_path / "key"))
    path = bundle / "signature.json"
    path.write_text(path.read_text().replace('"key":', '"key": "ssh-ed25519 AAAA", "key":'))
    with raises("refused-bundle", UserError, "damaged"):
        signer_of(bundle)


def test_the_signature_of_another_bundle_is_refused(bundle, honest, tmp_path):
    other = shutil.copytree(honest, tmp_path / "other")
    (other / "samples.parquet").write_bytes((other / "samples.parquet").read_bytes() + b"\0")
    content = json.loads((other / "manifest.json").read_text())
    content.pop("sha256")
    content["files"]["samples.parquet"] = bundles._sha256(other / "samples.parquet")
    (other / "manifest.json").write_bytes(bundles._canonical({**content, "sha256": bundles._digest(content)}))
    key = key_file(tmp_path / "key")
    sign_bundle(bundle, key)
    sign_bundle(other, key)
    for one, two in ((bundle, other), (other, bundle)):
        kept = (one / "signature.json").read_bytes()
        (one / "signature.json").write_bytes((two / "signature.json").read_bytes())
        with raises("refused-bundle", UserError, "its signature does not hold"):
            signer_of(one)
        (one / "signature.json").write_bytes(kept)


@pytest.mark.parametrize("point", sorted(SMALL_ORDER), ids=lambda point: point.hex()[:8])
def test_a_key_by_which_anybody_can_sign_is_refused(bundle, point):
    """Under the neutral point, R = 1 and S = 0 hold for every message; under others of small order for one in 8 or 4."""
    for sign in (0, 0x80):
        line = ssh_line(bytes([*point[:-1], point[-1] | sign]))
        signature = base64.b64encode(bytes([1, *bytes(63)])).decode()
        content = {"format": "robustdup.signature/1", "key": line, "signature": signature}
        (bundle / "signature.json").write_text(json.dumps(content))
        with raises("refused-bundle", UserError, "nobody has"):
            signer_of(bundle)


def test_a_signature_by_the_neutral_point_would_hold():
    """Why such keys are refused: the library takes the signature."""
    forms.load_ssh_public_key(ssh_line(bytes([1, *bytes(31)])).encode()).verify(bytes([1, *bytes(63)]), b"anything")


def test_points_of_small_order_are_those_of_the_curve():
    """Computed apart: y of all points whose eightfold is the neutral one, on -x^2 + y^2 = 1 + d x^2 y^2 modulo p."""
    p = 2**255 - 19
    d = -121665 * pow(121666, -1, p) % p
    for written in SMALL_ORDER:
        y = int.from_bytes(written, "little") % p
        square = (y * y - 1) * pow(d * y * y + 1, -1, p) % p
        x = pow(square, (p + 3) // 8, p)
        x = x if (x * x - square) % p == 0 else x * pow(2, (p - 1) // 4, p) % p
        assert (x * x - square) % p == 0
        for _ in range(3):
            t = d * x * x * y * y % p
            x, y = 2 * x * y * pow(1 + t, -1, p) % p, (y * y + x * x) * pow(1 - t, -1, p) % p
        assert (x, y) == (0, 1)


def test_signers_are_read_from_lines_and_files(tmp_path):
    public = key_file(tmp_path / "key").with_suffix(".pub")
    line = public.read_text().strip()
    key = " ".join(line.split()[:2])
    assert read_signers(str(public)) == [Signer(key, "ada@example")]
    assert read_signers(key) == [Signer(key)]
    (tmp_path / "allowed").write_text(f"# people\nbob@example {key}\n\n")
    assert read_signers(str(tmp_path / "allowed")) == [Signer(key, "bob@example")]
    (tmp_path / "empty").touch()
    lines = (f"@revoked bob {key}", f"sk-{key}", key.replace("ssh-ed25519", "sk-ssh-ed25519@openssh.com"), f"# {key}")
    for place, line in enumerate(lines):
        (tmp_path / str(place)).write_text(line)
    others = [str(tmp_path / str(place)) for place in range(len(lines))]
    for other in ("nobody", str(tmp_path / "empty"), str(tmp_path), *others):
        with raises("bad-key", UserError, "names no key"):
            read_signers(other)


@pytest.mark.parametrize(
    "kind", ["missing", "junk", "a folder", "a pipe", "endless", "of another kind", "with a passphrase", "public"]
)
def test_what_is_no_key_is_told(tmp_path, kind):
    path = tmp_path / "key"
    if kind == "junk":
        path.write_bytes(b"\xff" * 99)
    elif kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "of another kind":
        key_file(path, PEM, Ed448PrivateKey.generate())
    elif kind == "with a passphrase":
        key_file(path, (*PEM[:2], forms.BestAvailableEncryption(b"secret")))
    elif kind == "public":
        path = key_file(path).with_suffix(".pub")
    with raises("bad-key", UserError):
        read_key(path)


def test_verify_says_who_signed_or_that_nobody_did(bundle, tmp_path, capsys):
    key, other = key_file(tmp_path / "key"), key_file(tmp_path / "other")
    assert main(["verify", str(bundle)]) == 0
    assert "nobody signed it" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--signer", f"{key}.pub"]) == 2
    assert "nobody signed it" in capsys.readouterr().err
    assert main(["verify", str(bundle), "--sign", str(key), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == "holds"
    assert main(["verify", str(bundle), "--signer", f"{key}.pub"]) == 0
    assert "(ada@example)" in capsys.readouterr().out
    assert main(["verify", str(bundle), "--signer", f"{other}.pub"]) == 2
    assert "none of --signer" in " ".join(capsys.readouterr().err.split())


def test_a_run_is_signed_with_its_bundle(tmp_path, capsys):
    key = key_file(tmp_path / "key")
    words = ["eval", "--n", "4", "--attacks", "fgsm", "--out", str(tmp_path / "run"), "--sign", str(key), "--json"]
    assert main(words) == 2
    assert "--bundle" in capsys.readouterr().err
    assert main([*words, "--bundle", str(tmp_path / "bundle")]) == 0
    assert signer_of(tmp_path / "bundle") is not None


def test_without_the_package_a_signature_is_not_checked(bundle, tmp_path, monkeypatch):
    sign_bundle(bundle, key_file(tmp_path / "key"))
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    seen = Verification.model_construct(rechecked=[], signature="none")
    assert with_signature(seen, bundle).signature == "not-checked"
    with raises("not-installed", Unavailable, how_to_install("robustdup[sign]")):
        with_signature(seen, bundle, "ssh-ed25519 AAAA")
