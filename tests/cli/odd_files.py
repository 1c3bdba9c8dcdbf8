"""Files that somebody may hand over, by mistake or to do harm: written here, driven by test_mistakes.py."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
N = 4


def png(side: int = 8, value: int = 0) -> bytes:
    content = io.BytesIO()
    Image.fromarray(np.full((side, side), value, np.uint8)).save(content, "PNG")
    return content.getvalue()


def large_png(side: int) -> bytes:
    """A picture of a few hundred bytes that states side x side pixels: what would unpack them is cut off."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")


def postscript() -> bytes:
    """PostScript that calls itself a picture: Pillow would have a program, Ghostscript, run it."""
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(ran) print\nshowpage\n%%EOF\n"


def text_bomb() -> bytes:
    """A picture with a text inside that is a thousand times as long as it is stored."""
    text = zlib.compress(bytes(2 << 20), 9)
    return png()[:33] + png_chunk(b"zTXt", b"a\0\0" + text) + png()[33:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def table(file: Path, **columns: object) -> None:
    pq.write_table(pa.table(columns), file)


def pictures(contents: list[bytes | None] | None = None, path: str | None = None) -> pa.Array:
    contents = [png(value=i) for i in range(N)] if contents is None else contents
    return pa.array([{"bytes": content, "path": path} for content in contents], ENCODED)


def labelled(labels: pa.Array) -> Callable[[Path], None]:
    return lambda file: table(file, image=pictures(), label=labels)


def named(path: str) -> Callable[[Path], None]:
    return lambda file: table(file, image=pictures([None] * N, path), label=list(range(N)))


def containing(*contents: bytes | None) -> Callable[[Path], None]:
    return lambda file: table(file, image=pictures([*contents, *[png()] * (N - len(contents))]), label=list(range(N)))


def pipe(file: Path) -> None:
    os.mkfifo(file.with_suffix(".fifo"))
    named(str(file.with_suffix(".fifo")))(file)


def zeros(file: Path) -> None:
    """A bomb by compression: 50 MB of zeros, of which the footer tells."""
    schema = pa.schema([("image", ENCODED), ("label", pa.int64())])
    with pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        writer.write_table(pa.table({"image": pictures([bytes(50 << 20)]), "label": [0]}, schema=schema))


def repeated(file: Path) -> None:
    """A bomb by repetition: one picture of 100 KB, stored once and named by 500 rows."""
    table(file, image=pictures([bytes(100_000)] * 500), label=np.zeros(500, np.int64))


TABLES: dict[str, Callable[[Path], None]] = {
    "no columns of ours": lambda file: table(file, a=[1, 2], b=["x", "y"]),
    "no labels": lambda file: table(file, image=pictures()),
    "no images": lambda file: table(file, label=list(range(N))),
    "no rows": lambda file: table(file, image=pictures([]), label=pa.array([], pa.int64())),
    "labels above int64": labelled(pa.array([2**63 + i for i in range(N)], pa.uint64())),
    "labels below zero": labelled(pa.array([-1] * N)),
    "labels of a trillion": labelled(pa.array([10**12] * N)),
    "labels missing": labelled(pa.array([None] * N, pa.int64())),
    "labels partly missing": labelled(pa.array([1, None, 2, 3])),
    "labels of decimals": labelled(pa.array([1] * N).cast(pa.decimal128(20, 0))),
    "labels of fractions": labelled(pa.array([0.5] * N)),
    "labels of nan": labelled(pa.array([float("nan")] * N)),
    "labels of lists": labelled(pa.array([[1, 2], [1], [], [3]])),
    "labels of structs": labelled(pa.array([{"a": 1}] * N)),
    "labels of dates": labelled(pa.array([1] * N, pa.timestamp("s"))),
    "labels of bytes": labelled(pa.array([b"\xff"] * N)),
    "a link": named("http://127.0.0.1:9/x.png"),
    "a link with tls": named("https://127.0.0.1:9/x.png"),
    "a link into a zip": named("zip://a.png::https://127.0.0.1:9/x.zip"),
    "a link to the hub": named("hf://datasets/a/b/x.png"),
    "a link to a bucket": named("s3://bucket/x.png"),
    "a link to memory": named("memory://x.png"),
    "a link through a cache": named("filecache::http://127.0.0.1:9/x"),
    "a path to text": named("/etc/hostname"),
    "a path upwards": named("../../../../etc/hostname"),
    "a path to a device": named("/dev/zero"),
    "a path to a pipe": pipe,
    "a path to a folder": named("/"),
    "a path to nothing": named("not-there.png"),
    "a path with nul": named("a\0b.png"),
    "a path too long": named("x" * 5000),
    "neither bytes nor path": containing(None),
    "no bytes": containing(b""),
    "text as picture": containing(b"hello"),
    "half a picture": containing(png()[:40]),
    "postscript": containing(postscript()),
    "a picture with a bomb of text": lambda file: containing(text_bomb())(file),
    "drawn in words": containing(b"<svg xmlns='http://www.w3.org/2000/svg' width='8' height='8'/>"),
    "900 megapixels": containing(large_png(30_000)),
    "four thousand megapixels": containing(large_png(65_000)),
    "sizes that differ": containing(png(8), png(9)),
    "another size": lambda file: table(file, image=pictures([png(3)] * N), label=list(range(N))),
    "images of text": lambda file: table(file, image=["x.png"] * N, label=list(range(N))),
    "images of numbers": lambda file: table(file, image=[1.0] * N, label=list(range(N))),
    "one picture many times": repeated,
    "fifty megabytes of zeros": zeros,
    "cut off": lambda file: (labelled(pa.array(range(N)))(file), file.write_bytes(file.read_bytes()[:200]))[0],
    "its middle overwritten": lambda file: (
        labelled(pa.array(range(N)))(file),
        file.write_bytes(file.read_bytes()[:60] + bytes(300) + file.read_bytes()[360:]),
    )[0],
    "text": lambda file: file.write_text("hello") and None,
    "empty": lambda file: file.touch(),
    "a folder": lambda file: file.mkdir(),
}  # fmt: skip


def npz_bomb(file: Path) -> None:
    """A .npz that states 400 GB: nothing of it is unpacked."""
    head = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 8, 8, 1)}
    np.lib.format.write_array_header_1_0(head, shape)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", head.getvalue() + bytes(1000))
        archive.writestr("labels.npy", head.getvalue())
    content = bytearray(file.read_bytes())
    at = content.index(b"PK\x01\x02") + 24  # the size that the directory states
    content[at : at + 4] = struct.pack("<I", 2**32 - 2)
    file.write_bytes(content)


def npy(shape: tuple[int, ...], descr: str = "<f8", content: bytes = b"") -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": descr, "fortran_order": False, "shape": shape})
    return head.getvalue() + content


def idx(dims: tuple[int, ...], content: bytes = b"") -> bytes:
    return struct.pack(f">HBB{len(dims)}I", 0, 8, len(dims), *dims) + content


def saved(values: object) -> bytes:
    content = io.BytesIO()
    np.save(content, np.asarray(values), allow_pickle=True)
    return content.getvalue()


def archive(**members: bytes) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        with zipfile.ZipFile(file, "w") as opened:
            for name, content in members.items():
                opened.writestr(name, content)

    return write


OTHERS: dict[str, Callable[[Path], object]] = {
    "bomb.npz": npz_bomb,
    "text.npz": lambda file: file.write_text("hello"),
    "empty.npz": lambda file: file.touch(),
    "objects.npz": archive(**{"images.npy": saved([{}]), "labels.npy": saved([1])}),
    "noarrays.npz": archive(readme=b"hello"),
    "lonely.npy": lambda file: file.write_bytes(saved(np.zeros((4, 8, 8, 1)))),
    "text.pt": lambda file: file.write_text("hello"),
    "empty.pt": lambda file: file.touch(),
    "text.safetensors": lambda file: file.write_text("hello"),
    "claims.safetensors": lambda file: file.write_bytes(struct.pack("<Q", 2**62) + b"{}"),
    "deep.safetensors": lambda file: file.write_bytes(struct.pack("<Q", 50_000) + b"[" * 50_000),
    "text.mat": lambda file: file.write_text("hello"),
    "text.zip": lambda file: file.write_text("hello"),
    "outside.zip": archive(**{"../../evil.png": png()}),
    "nothing.zip": archive(),
    "text.tar": lambda file: file.write_text("hello"),
    "text.tar.gz": lambda file: file.write_text("hello"),
    "t10k-images-idx3-ubyte": lambda file: file.write_bytes(idx((2**31 - 1, 28, 28))),
    "train-images-idx3-ubyte.gz": lambda file: file.write_bytes(gzip.compress(idx((2**31 - 1, 28, 28), bytes(99)))),
    "labels.csv": lambda file: file.write_text("file_name,label\nnot-there.png,1\n"),
    "nul.csv": lambda file: file.write_bytes(b"file_name,label\na\0b.png,1\n"),
    "quote.csv": lambda file: file.write_text('file_name,label\n"never closed'),
    "wide.csv": lambda file: file.write_text("file_name,label\n" + "x" * 300_000 + ",1\n"),
    "list.jsonl": lambda file: file.write_text("[" * 100_000),
    "list.json": lambda file: file.write_text(json.dumps({"a": 1})),
    "picture.png": lambda file: file.write_bytes(png()),
    "movie.mp4": lambda file: file.write_bytes(bytes(100)),
    "nosuffix": lambda file: file.write_bytes(bytes(100)),
}  # fmt: skip


def tensors(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


EXAMPLES: dict[str, Callable[[Path], object]] = {
    "claims.npy": lambda file: file.write_bytes(npy((10**9, 8, 8, 1))),
    "cut.npy": lambda file: file.write_bytes(npy((4, 1, 8, 8), content=bytes(100))),
    "objects.npy": lambda file: file.write_bytes(saved([{}, {}])),
    "text.npy": lambda file: file.write_bytes(saved(["a", "b"])),
    "complex.npy": lambda file: file.write_bytes(saved(np.zeros((4, 1, 8, 8), complex))),
    "scalar.npy": lambda file: file.write_bytes(saved(1.0)),
    "none.npy": lambda file: file.write_bytes(saved(np.zeros((0, 1, 8, 8)))),
    "nan.npy": lambda file: file.write_bytes(saved(np.full((4, 1, 8, 8), np.nan))),
    "other-size.npy": lambda file: file.write_bytes(saved(np.zeros((4, 1, 9, 9)))),
    "negative.npy": lambda file: file.write_bytes(saved(np.full((4, 1, 8, 8), -3.0))),
    "many.npy": lambda file: file.write_bytes(saved(np.zeros((9000, 1, 8, 8), np.float32))),
    "bomb.npz": npz_bomb,
    "repeats.pt": lambda file: file.write_bytes(tensors(torch.zeros(1, 1, 1, 1).expand(10**9, 1, 8, 8))),
    "sparse.pt": lambda file: file.write_bytes(tensors(torch.zeros(4, 1, 8, 8).to_sparse())),
    "quantized.pt": lambda file: file.write_bytes(
        tensors(torch.quantize_per_tensor(torch.zeros(4, 1, 8, 8), 0.1, 0, torch.quint8))
    ),
    "nowhere.pt": lambda file: file.write_bytes(tensors(torch.zeros(4, 1, 8, 8, device="meta"))),
    "labels.pt": lambda file: file.write_bytes(tensors({"images": torch.zeros(4, 1, 8, 8), "labels": torch.zeros(4, 0)})),
    "index.pt": lambda file: file.write_bytes(tensors({"images": torch.zeros(4, 1, 8, 8), "index": torch.full((4,), 2**62)})),
    "numbers.pt": lambda file: file.write_bytes(tensors({1: 2, None: 3})),
    "within.pt": lambda file: file.write_bytes(tensors([[[[[]]]]])),
    "text.npz": lambda file: file.write_text("hello"),
    "text.pt": lambda file: file.write_text("hello"),
    "empty.pt": lambda file: file.touch(),
    "text.safetensors": lambda file: file.write_text("hello"),
    "table.parquet": labelled(pa.array(range(N))),
    "folder": lambda file: file.mkdir(),
}  # fmt: skip
