"""k-reciprocal re-ranking in memory that grows with the images, not with their square.

Source: Zhong et al., "Re-ranking person re-identification with k-reciprocal encoding" (CVPR 2017),
sections 3.2 to 3.5 (equations in the functions). The published forms hold several matrices of all
pairs; here only the nearest few of each row are kept, the encodings are sparse rows, and the
final distances come in chunks of queries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from zoo.domains.reid.fusion_reid.topk import blocks, smallest, unit_rows
from zoo.errors import ConfigError

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float32]
_BLOCK = 2048


class Space(Protocol):
    """Distances between all N images, queries first, then the gallery.

    Attributes:
        size: N.
    """

    size: int

    def rows(self, first: int, last: int, start: int) -> Tensor:
        """(last - first, N - start) distances of images first..last-1 to images start..N-1."""
        ...

    def of(self, image: int, others: IntArray) -> FloatArray:
        """Distances of one image to some others."""
        ...


class FeatureSpace:
    """Squared Euclidean distances of features, never held as a matrix.

    Args:
        features: (N, D) float32 or float64.
    """

    def __init__(self, features: Tensor) -> None:
        self.features = features
        self.squares = features.square().sum(dim=1)
        self.size = len(features)

    def rows(self, first: int, last: int, start: int) -> Tensor:
        """Of images first..last-1 to images start..N-1."""
        lengths = self.squares[first:last, None] + self.squares[start:]
        return lengths.addmm_(self.features[first:last], self.features[start:].mT, alpha=-2.0)

    def of(self, image: int, others: IntArray) -> FloatArray:
        """Of one image to some others."""
        places = torch.from_numpy(others).to(self.features.device)
        products = self.features[places] @ self.features[image]
        found = self.squares[image] + self.squares[places] - 2.0 * products
        return found.float().cpu().numpy()


class GivenSpace:
    """Distances that someone computed, parts of them by local features for instance.

    Args:
        distances: (N, N); column i holds the distances of image i, as in the published code.
    """

    def __init__(self, distances: Tensor) -> None:
        if distances.dim() != 2 or distances.shape[0] != distances.shape[1]:
            msg = f"distances between all images must be (N, N), got {tuple(distances.shape)}"
            raise ValueError(msg)
        self.distances = distances.mT
        self.size = len(distances)

    def rows(self, first: int, last: int, start: int) -> Tensor:
        """Of images first..last-1 to images start..N-1."""
        return self.distances[first:last, start:].clone()

    def of(self, image: int, others: IntArray) -> FloatArray:
        """Of one image to some others."""
        found: FloatArray = self.distances[image].cpu().numpy()[others].astype(np.float32)
        return found


@dataclass(frozen=True)
class Reranker:
    """Settings of the re-ranking; FusionReID uses (50, 15, 0.3), the method's paper (20, 6, 0.3).

    Attributes:
        k1: Neighbours that must be mutual.
        k2: Neighbours whose encodings are averaged (query expansion); 1: none.
        lam: Weight of the original distance in the result.
        half: Compute with encodings in float16, as the published evaluation does; only to compare
            with it, since it is slower and less exact.
    """

    k1: int = 50
    k2: int = 15
    lam: float = 0.3
    half: bool = False

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1 or not 0 <= self.lam <= 1:
            msg = (
                f"re-ranking: k1 and k2 must be at least 1 and lam in [0, 1], got k1={self.k1}, "
                f"k2={self.k2}, lam={self.lam}"
            )
            raise ConfigError(msg)

    @torch.no_grad()
    def fit(self, query: Tensor, gallery: Tensor, *, normalise: bool = True) -> Reranked:
        """Encodes all images by their neighbours.

        Args:
            query: (Q, D) features.
            gallery: (G, D) features.
            normalise: Whether distances are those of unit-length features.
        """
        joined = torch.cat([query, gallery])
        joined = unit_rows(joined) if normalise else joined.to(unit_rows(joined[:1]).dtype)
        return self.fit_space(FeatureSpace(joined), len(query))

    @torch.no_grad()
    def fit_space(self, space: Space, queries: int) -> Reranked:
        """The same on any distances between all images, of which the first are the queries."""
        order, top = neighbours(space, max(self.k1 + 1, self.k2))
        encoded = self._rounded(encode(space, order[:, : self.k1 + 1], top, self.k1))
        if self.k2 > 1:
            encoded = self._rounded(expand(encoded, order[:, : self.k2]))
        return Reranked(self, space, encoded, top, queries)

    def _rounded(self, encoded: Any) -> Any:
        if self.half:
            encoded.data = encoded.data.astype(np.float16).astype(np.float32)
            encoded.eliminate_zeros()
        return encoded


class Reranked:
    """Encoded queries and gallery, ready to give distances.

    Args:
        settings: How they were encoded.
        space: The original distances.
        encoded: (N, N) sparse encodings.
        top: (N,) largest original distance of each image.
        queries: How many of the images are queries.
    """

    def __init__(
        self, settings: Reranker, space: Space, encoded: Any, top: Tensor, queries: int
    ) -> None:
        self.settings, self.space, self.top, self.queries = settings, space, top, queries
        self.query = encoded[:queries]
        # By column: which gallery images have an image among their neighbours, and how strongly.
        self.gallery = encoded[queries:].tocsc()

    def rows(self, first: int, last: int) -> Tensor:
        """(last - first, G) float32 re-ranked distances of queries first..last-1; equation 12."""
        original = self.space.rows(first, last, self.queries)
        original = (original / self.top[first:last, None]).float()
        form: Callable[[int], Any] = self._half_jaccard if self.settings.half else self._jaccard
        jaccard: Any = np.stack([form(query) for query in range(first, last)])
        share = jaccard.dtype.type(1 - self.settings.lam)  # in float16, one share is rounded too
        found = torch.from_numpy(jaccard * share).to(original)
        return found.add_(original, alpha=self.settings.lam)

    def matrix(self) -> Tensor:
        """(Q, G) all distances at once; `rows` needs less memory."""
        parts = blocks(self.queries, self.space.size - self.queries)
        return torch.cat([self.rows(*bounds) for bounds in parts])

    def _jaccard(self, query: int) -> FloatArray:
        """(G,) Jaccard distance of one query; equation 10 over shared neighbours alone."""
        bounds, gallery = self.query.indptr, self.gallery
        own = slice(bounds[query], bounds[query + 1])
        columns, strength = self.query.indices[own], self.query.data[own]
        begin, counts = gallery.indptr[columns], np.diff(gallery.indptr)[columns]
        total = int(counts.sum())
        # Places of all entries of these columns, one after the other.
        shift = np.repeat(begin - (np.cumsum(counts) - counts), counts)
        places = np.arange(total) + shift
        shared = np.minimum(np.repeat(strength, counts), gallery.data[places])
        overlap = np.bincount(gallery.indices[places], shared, minlength=gallery.shape[0])
        found: FloatArray = (1.0 - overlap / (2.0 - overlap)).astype(np.float32)
        return found

    def _half_jaccard(self, query: int) -> Any:
        """The same in float16 throughout, summed in the order of the published code."""
        bounds, gallery = self.query.indptr, self.gallery
        overlap = np.zeros(gallery.shape[0], dtype=np.float16)
        for entry in range(bounds[query], bounds[query + 1]):
            column = self.query.indices[entry]
            own = slice(gallery.indptr[column], gallery.indptr[column + 1])
            shared = np.minimum(self.query.data[entry], gallery.data[own])
            overlap[gallery.indices[own]] += shared.astype(np.float16)
        return np.float16(1) - overlap / (np.float16(2) - overlap)


# -- encoding -----------------------------------------------------------------------------------


def neighbours(space: Space, count: int) -> tuple[IntArray, Tensor]:
    """The nearest images of every image, itself among them, and its largest distance.

    Args:
        space: Distances between N images.
        count: How many neighbours; N where there are fewer images.

    Returns:
        (N, count) places, nearest first, equal ones by place, and (N,) distances.
    """
    order, top = [], []
    for first, last in blocks(space.size, space.size):
        values = space.rows(first, last, 0)
        order.append(smallest(values, count).cpu().numpy())
        top.append(values.amax(dim=1))
    largest = torch.cat(top)
    # Images that all lie on one point have no distances to scale.
    return np.concatenate(order), torch.where(largest > 0, largest, 1.0)


def mutual(order: IntArray) -> Any:
    """(N, N) sparse 0/1: both images are among each other's neighbours; equation 3."""
    size, count = order.shape
    ones = np.ones(order.size, dtype=np.int32)
    one_way = sparse.csr_matrix((ones, order.ravel(), np.arange(size + 1) * count), (size, size))
    return one_way.multiply(one_way.T).tocsr()


def encode(space: Space, order: IntArray, top: Tensor, k1: int) -> Any:
    """(N, N) sparse float32 encodings: exp(-distance) over the extended mutual neighbours.

    A mutual neighbour brings its own mutual neighbours (of half as many) along if more than two
    thirds of them are mutual neighbours already; equations 4 and 7, each row scaled to sum to 1.
    """
    large, small = mutual(order), mutual(order[:, : round(k1 / 2) + 1])
    sizes = np.diff(small.indptr)
    limits = top.double().cpu().numpy()
    found = []
    for first in range(0, space.size, _BLOCK):
        own = large[first : first + _BLOCK]
        both = (own @ small).multiply(own).tocsr()
        # The limit as the published code rounds it.
        both.data = (both.data > 2 / 3 * sizes[both.indices]).astype(np.int32)
        both.eliminate_zeros()
        extended = (both @ small + own).tocsr()
        extended.sort_indices()
        found.append(_weighted(space, extended, first, limits))
    return sparse.vstack(found, format="csr")


def _weighted(space: Space, pattern: Any, first: int, limits: NDArray[np.float64]) -> Any:
    columns, values, counts = [], [], []
    for row in range(pattern.shape[0]):
        image = first + row
        near = pattern.indices[pattern.indptr[row] : pattern.indptr[row + 1]].astype(np.int64)
        if not len(near):  # more copies of an image than neighbours: it is its own only one
            near = np.array([image])
        weights = np.exp(-space.of(image, near) / limits[image])
        columns.append(near)
        values.append((weights / weights.sum()).astype(np.float32))
        counts.append(len(near))
    bounds = np.concatenate([[0], np.cumsum(counts)])
    parts = (np.concatenate(values), np.concatenate(columns), bounds)
    return sparse.csr_matrix(parts, (pattern.shape[0], space.size))


def expand(encoded: Any, order: IntArray) -> Any:
    """Mean encoding of each image's nearest ones, itself among them; equation 11."""
    size, count = order.shape
    ones = np.ones(order.size, dtype=np.float32)
    chosen = sparse.csr_matrix((ones, order.ravel(), np.arange(size + 1) * count), (size, size))
    found = (chosen @ encoded).tocsr()
    found.data /= count
    found.sort_indices()
    return found
