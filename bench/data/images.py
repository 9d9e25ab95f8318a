"""Labelled examples: what a classifier is trained and evaluated on.

torch and numpy are imported inside the functions: naming the datasets must not load them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

EVAL_EXAMPLES = 1000  # that are evaluated at once
PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class ImageSizes:
    """Examples of the three parts of a data set, numbers that each has, and classes."""

    train: int
    valid: int
    test: int
    features: int
    classes: int


@dataclass(frozen=True)
class Examples:
    """inputs: float32 [n, features]; labels: int64 [n]."""

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: str) -> Examples:
        return Examples(self.inputs.to(device), self.labels.to(device))

    def batches(self, size: int, order: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) of `size` examples each, the last of what is left; in `order`, int64 [n], if it is given."""
        for start in range(0, len(self), size):
            at = slice(start, start + size) if order is None else order[start : start + size]
            yield self.inputs[at], self.labels[at]


@dataclass(frozen=True, eq=False)
class Images:
    """Three parts of labelled examples. sha256: of all of them, so that equal numbers mean equal data.

    token: what one is called in the tables.
    """

    train: Examples
    valid: Examples
    test: Examples
    classes: int
    sha256: str
    token: str = "example"

    @property
    def sizes(self) -> ImageSizes:
        features = self.train.inputs.shape[1]
        return ImageSizes(len(self.train), len(self.valid), len(self.test), features, self.classes)

    @classmethod
    def from_arrays(cls, parts: dict[str, tuple[Any, Any]], classes: int) -> Images:
        """parts: (inputs, labels) of train, valid and test, numpy arrays [n, features] and [n].

        ValueError where a label is none of `classes`, or where there are not as many as inputs.
        """
        import numpy as np
        import torch

        digest, found = hashlib.sha256(str(classes).encode()), []
        for part in PARTS:
            inputs, labels = (
                np.ascontiguousarray(array, dtype=kind) for array, kind in zip(parts[part], ("<f4", "<i8"), strict=True)
            )
            if labels.shape != inputs.shape[:1] or inputs.ndim != 2:
                raise ValueError(f"{part}: {list(inputs.shape)} inputs and {list(labels.shape)} labels")
            if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
                raise ValueError(f"{part}: a label is none of {classes} classes")
            digest.update(repr(inputs.shape).encode() + inputs.tobytes() + labels.tobytes())
            found.append(Examples(torch.from_numpy(inputs), torch.from_numpy(labels)))
        train, valid, test = found
        return cls(train, valid, test, classes, digest.hexdigest())


def shuffled(count: int, seed: str) -> Tensor:
    """The order of the examples of an epoch, int64 [count]: the same for the same seed, everywhere."""
    import torch

    generator = torch.Generator().manual_seed(random.Random(seed).getrandbits(63))
    return torch.randperm(count, generator=generator, device="cpu")
