"""Which pictures share local features: an index of visual words, so that the work does not grow with all pairs of them.

A descriptor becomes one of 128 x 128 words: its halves after a principal component analysis, each put to the nearest of 128
centres (an inverted multi-index: Babenko and Lempitsky 2012, https://doi.org/10.1109/CVPR.2012.6248038). A picture is asked
for with several near words of each descriptor; rare words count more (Sivic and Zisserman 2003,
https://doi.org/10.1109/ICCV.2003.1238663).
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save

from robustdup.records import write_atomic
from robustdup_detect.keypoints import Keypoints

WORDS_FILE = "words.safetensors"
DIMENSIONS = 32  # principal components of a descriptor, in two halves
CENTRES = 128  # of each half
NEAR = 3  # near centres of each half that a query asks for
ROUNDS = 10  # of k-means
FEWEST = 64  # descriptors from which words are learned
SAMPLE = 20_000  # descriptors from which the words are learned
BLOCK = 256  # queries that are voted for at once


@dataclass(frozen=True)
class Vocabulary:
    """How descriptors become words: `mean` (128,), `basis` (128, D), and the centres of both halves (2, C, D / 2)."""

    mean: Any
    basis: Any
    centres: Any

    def words(self, descriptors: Any, near: int = 1) -> Any:
        """Return the words int64 (P, near * near) of descriptors uint8 (P, 128), the nearest first."""
        projected = (descriptors.astype(np.float32) - self.mean) @ self.basis
        half = projected.shape[1] // 2
        nearest = []
        for part, centres in zip((projected[:, :half], projected[:, half:]), self.centres, strict=True):
            far = (centres**2).sum(axis=1) - 2 * part @ centres.T
            close = np.argpartition(far, near - 1, axis=1)[:, :near] if near > 1 else far.argmin(axis=1)[:, None]
            nearest.append(close)
        return (nearest[0][:, :, None] * self.centres.shape[1] + nearest[1][:, None]).reshape(
            len(descriptors), near * near
        )

    def words_of(self, pictures: Keypoints, near: int = 1) -> Any:
        """Return the words int32 (N, K) of the keypoints of pictures, or (N, K, near * near) of them; 0 where none is."""
        filled = pictures.filled
        words = np.zeros((*filled.shape, near * near), np.int32)
        words[filled] = self.words(pictures.descriptors[filled], near)
        return words[..., 0] if near == 1 else words

    @property
    def size(self) -> int:
        """The number of words."""
        return int(self.centres.shape[1] ** 2)


def learn_words(descriptors: Any, seed: int = 0) -> Vocabulary:
    """Learn words from descriptors uint8 (P, 128); of many, a sample is taken."""
    from scipy.cluster.vq import kmeans2

    rng = np.random.default_rng([seed, 2])
    rows = np.sort(rng.permutation(len(descriptors))[:SAMPLE])
    values = descriptors[rows].astype(np.float32)
    mean = values.mean(axis=0)
    variance, directions = np.linalg.eigh(np.cov((values - mean).T))
    order = np.argsort(-variance)[:DIMENSIONS]
    # Strong and weak components are shared out among the halves, so that both tell equally much apart.
    order = np.concatenate([order[0::4], order[3::4], order[1::4], order[2::4]])
    basis = directions[:, order].astype(np.float32)
    projected = (values - mean) @ basis
    centres = []
    for half in np.split(projected, 2, axis=1):
        count = min(CENTRES, len(half))
        start = half[np.sort(rng.permutation(len(half))[:count])]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # an empty cluster keeps its centre
            means, _ = kmeans2(half, start, iter=ROUNDS, minit="matrix")
        centres.append(means.astype(np.float32))
    return Vocabulary(mean, basis, np.stack(centres))


def save_words(vocabulary: Vocabulary, state: Path) -> None:
    """Keep a vocabulary in the folder of the state."""
    content = {"mean": vocabulary.mean, "basis": vocabulary.basis, "centres": vocabulary.centres}
    write_atomic(state / WORDS_FILE, save({name: np.ascontiguousarray(values) for name, values in content.items()}))


def load_words(state: Path) -> Vocabulary:
    """Return the vocabulary that `save_words` kept."""
    return Vocabulary(**load_file(state / WORDS_FILE))


@dataclass(frozen=True)
class WordIndex:
    """Which of M pictures have which words: a sparse matrix (words, M) whose values weigh a word."""

    vocabulary: Vocabulary
    pictures: Any

    def ask(self, queries: Keypoints, k: int) -> tuple[Any, Any, Any]:
        """Return (query, picture, votes) of up to k pictures that share most words with each query."""
        parts = []
        for start in range(0, len(queries), BLOCK):
            asked = self._asked(queries[slice(start, start + BLOCK)])
            votes = (asked @ self.pictures).toarray()
            many = min(k, votes.shape[1])
            best = np.argpartition(-votes, many - 1, axis=1)[:, :many]
            values = np.take_along_axis(votes, best, axis=1)
            query = np.repeat(np.arange(start, start + len(best))[:, None], many, axis=1)
            kept = values > 0
            parts.append((query[kept], best[kept], values[kept]))
        if not parts:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))  # type: ignore[return-value]

    def _asked(self, queries: Keypoints) -> Any:
        words = self.vocabulary.words_of(queries, NEAR)
        return word_matrix(words, queries.count, self.vocabulary.size)


def build_word_index(vocabulary: Vocabulary, words: Any, count: Any) -> WordIndex:
    """Return the index of M pictures from the words of their keypoints int (M, K), of which `count` (M,) are filled."""
    from scipy.sparse import diags

    counts = word_matrix(words[..., None], count, vocabulary.size)
    often = np.bincount(counts.indices, minlength=vocabulary.size)
    rare = np.log((len(words) + 1) / (often + 1)).astype(np.float32) ** 2
    long = 1 / np.sqrt(np.maximum(count, 8)).astype(np.float32)
    return WordIndex(vocabulary, (diags(long) @ counts @ diags(rare)).T.tocsr())


def word_matrix(words: Any, count: Any, size: int) -> Any:
    """Return 1 for each word of each picture, sparse float32 (N, size); `words` are (N, K, W), of which `count` are filled."""
    from scipy.sparse import csr_matrix

    filled = np.arange(words.shape[1]) < count[:, None]
    rows = np.repeat(np.nonzero(filled)[0], words.shape[2])
    matrix = csr_matrix((np.ones(len(rows), np.float32), (rows, words[filled].ravel())), shape=(len(words), size))
    matrix.sum_duplicates()
    matrix.data[:] = 1
    return matrix
