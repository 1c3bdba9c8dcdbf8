"""Who states a bundle: an Ed25519 signature over its manifest, which holds the digests of all its files.

Keys are those of OpenSSH (`ssh-keygen -t ed25519`), which many people have and publish, or PEM. Only somebody who signs, or
checks what was signed, needs the package `cryptography`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from robustdup.errors import Unavailable, UserError, how_to_install, plain
from robustdup.evidence.bundle import SIGNATURE, check_manifest, refused
from robustdup.evidence.verification import Signed
from robustdup.inflation import read_text
from robustdup.records import MANIFEST, write_atomic
from robustdup.records.base import each_once

FORMAT = "robustdup.signature/1"
PURPOSE = b"robustdup.signature/1\n"  # signed before the manifest: no signature of something else is taken for one
KIND = "ssh-ed25519"
LARGEST = 10_000  # bytes of a signature or key file
NEW_KEY = "ssh-keygen -t ed25519 -N '' -f signing-key"  # what makes one
# Points of small order as they are written, the last bit left out: y = 0, 1, -1 and the two of order 8, also above p. Under such
# a key a signature holds that anybody can make (https://eprint.iacr.org/2020/1244).
_ORDER_8 = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"
SMALL_ORDER = frozenset(
    (
        bytes(32),
        bytes([1, *bytes(31)]),
        bytes.fromhex(_ORDER_8),
        ((1 << 255) - 19 - int.from_bytes(bytes.fromhex(_ORDER_8), "little")).to_bytes(32, "little"),
        *(((1 << 255) - 19 + offset).to_bytes(32, "little") for offset in (-1, 0, 1)),
    )
)
Of = TypeVar("Of", bound=Signed)


@dataclass(frozen=True)
class Signer:
    """A public key, as OpenSSH writes it (`ssh-ed25519 AAAA…`), and what somebody calls it."""

    key: str
    name: str = ""

    @property
    def fingerprint(self) -> str:
        """The key in few letters, as `ssh-keygen -l` shows it."""
        digest = hashlib.sha256(base64.b64decode(self.key.split()[1])).digest()
        return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def sign_bundle(folder: Path, key_file: Path) -> Signer:
    """Sign a whole bundle that nobody signed, and return whose key it was.

    Raises UserError for a file that holds no such key, or for a bundle that was changed, or is signed.
    """
    key = read_key(key_file)
    check_manifest(folder)
    if (folder / SIGNATURE).exists():
        raise UserError(f"{str(folder)!r} is signed already.", code="already-signed")
    signed = key.sign(PURPOSE + (folder / MANIFEST).read_bytes())
    public = _public_text(key.public_key())
    content = {"format": FORMAT, "key": public, "signature": base64.b64encode(signed).decode()}
    write_atomic(folder / SIGNATURE, (json.dumps(content, indent=2) + "\n").encode())
    return Signer(public)


def read_key(path: Path) -> Any:
    """Return the private key in a file, of OpenSSH or PEM. Raises UserError."""
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= LARGEST):
            raise UserError(f"{str(path)!r} is no file that holds one private key.", code="bad-key")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the key {str(path)!r}: {error.strerror}.", code="bad-key") from None
    ssh = b"OPENSSH PRIVATE KEY" in content
    load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
    try:
        key = load(content, password=None)
    except TypeError:
        raise UserError(
            f"The key {str(path)!r} is protected by a passphrase. Take one without: {NEW_KEY}.",
            code="bad-key",
        ) from None
    except Exception as error:  # cryptography raises errors of several kinds  # noqa: BLE001
        raise UserError(
            f"{str(path)!r} holds no private key ({plain(error, 200)}). Make one: {NEW_KEY}.",
            code="bad-key",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise UserError(
            f"The key {str(path)!r} is not of the kind Ed25519. Make one: {NEW_KEY}.",
            code="bad-key",
        )
    return key


def signer_of(folder: Path) -> Signer | None:
    """Return who signed a bundle; None where nobody did.

    Raises UserError where the signature does not hold, Unavailable where `cryptography` is not installed.
    """
    path = folder / SIGNATURE
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST:
        raise refused(f"{SIGNATURE} is damaged.")
    try:
        content = json.loads(path.read_bytes(), object_pairs_hook=each_once)
        form, text, signed = (
            content["format"],
            str(content["key"]),
            base64.b64decode(content["signature"], validate=True),
        )
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise refused(f"{SIGNATURE} is damaged.") from None
    if form != FORMAT or set(content) != {"format", "key", "signature"}:
        raise refused(f"{SIGNATURE} is of another form than {FORMAT!r}.")
    key = _public_key(text)
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signed, PURPOSE + (folder / MANIFEST).read_bytes())
    except InvalidSignature:
        raise refused(
            "its signature does not hold: it was changed after it was signed, or another key made it."
        ) from None
    return Signer(_public_text(key))


def read_signers(text: str) -> list[Signer]:
    """Return the keys that a user names: a line `ssh-ed25519 AAAA…`, a .pub file, or a file of lines with names before."""
    path = Path(text)
    try:
        lines = read_text(path).splitlines() if not text.startswith(KIND) and path.is_file() else [text]
    except (OSError, ValueError):
        lines = []
    signers = []
    for line in lines:
        before, kind, after = f" {line}".partition(f" {KIND} ")
        if kind and after.split() and not line.lstrip().startswith(("#", "@")):  # a comment, a mark such as @revoked
            name = before.strip() or " ".join(after.split()[1:])
            signers.append(Signer(f"{KIND} {after.split()[0]}", plain(name, 100)))
    if not signers:
        raise UserError(
            f"--signer {text[:80]!r} names no key: give a .pub file of ssh-keygen -t ed25519, a file of such lines, or the line "
            "itself.",
            code="bad-key",
        )
    return signers


def check_signer(signer: Signer | None, wanted: list[Signer]) -> Signer:
    """Return the signer with the name that the user knows it by. Raises UserError where it is none of those wanted."""
    known = next(
        (signer_of_list for signer_of_list in wanted if signer is not None and signer_of_list.key == signer.key), None
    )
    if known is None:
        raise refused(
            "nobody signed it." if signer is None else f"{signer.fingerprint} signed it, which is none of --signer."
        )
    return known


def with_signature(verification: Of, folder: Path, wanted: str | None = None) -> Of:
    """Say in a verification who signed the bundle. Raises UserError where the signature does not hold, or is not `wanted`."""
    try:
        signer = signer_of(folder)
    except Unavailable:
        if wanted is not None:
            raise
        return verification.model_copy(update={"signature": "not-checked"})
    if wanted is not None:
        signer = check_signer(signer, read_signers(wanted))
    if signer is None:
        return verification
    fields = [*verification.rechecked, "signature.format", "signature.key", "signature.signature"]
    update = {"signature": "holds", "signed_by": signer.key, "signer": signer.name, "rechecked": fields}
    return verification.model_copy(update=update)


def _public_key(text: str) -> Any:
    serialization = _serialization()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = serialization.load_ssh_public_key(text.encode())
    except Exception:  # of several kinds  # noqa: BLE001
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise refused(f"{SIGNATURE} names no public key of the kind Ed25519.")
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    if bytes([*raw[:-1], raw[-1] & 0x7F]) in SMALL_ORDER:
        raise refused(f"{SIGNATURE} names a key that nobody has: anybody can sign by it.")
    return key


def _public_text(key: Any) -> str:
    serialization = _serialization()
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return str(key.public_bytes(*form).decode())


def _serialization() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError:
        raise Unavailable(
            f"Signatures need the package cryptography: {how_to_install('robustdup[sign]')}", code="not-installed"
        ) from None
    return serialization
