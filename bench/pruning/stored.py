"""Stored: what exported models share: block-sparse parts, their bytes, and a file with its checksum beside it.

A file is a dictionary of plain tensors as torch saves it, with its sha256 beside it (`sha256sum -c` reads that),
because torch loads a file with a flipped bit without a word. Whatever a kill leaves is the export before, or the new
one.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bench.storing.parquet import DamagedError, publish_pair, read_table, require_pair
from kernels.blockmask import BlockMask
from kernels.bsr import BSRMatrix
from kernels.layers.weight import BlockSparseWeight
from kernels.system.resources import in_words
from kernels.tensors.rounding import in_blocks

PARTS = ("data", "indices", "indptr", "shape")  # of a block-sparse weight


class Exported(nn.Module):
    """A model in evaluation, its pruned weights block-sparse, that can be saved and loaded.

    FORMAT: what its files are called inside. layers: those with the pruned weights. A class says what of it is stored
    (`content`), and makes itself of that (`of_content`: ValueError naming the field that is none).
    """

    FORMAT: ClassVar[str]
    layers: nn.ModuleList

    def content(self) -> dict[str, Any]:
        """Its tensors, as a file holds them."""
        raise NotImplementedError

    @classmethod
    def of_content(cls, content: Mapping[str, Any]) -> Self:
        """The model whose `content` that is."""
        raise NotImplementedError

    @property
    def _pruned(self) -> list[BlockSparseWeight]:
        return [each for each in self.layers.modules() if isinstance(each, BlockSparseWeight)]

    @property
    def sparse_weights(self) -> list[BSRMatrix]:
        """The weights that were pruned."""
        return [each.matrix for each in self._pruned]

    @property
    def stepped_weights(self) -> list[BSRMatrix]:
        """Those of them by which its kernel is known, a layer each."""
        return self.sparse_weights

    @property
    def widths(self) -> list[int]:
        """Units of each layer."""
        raise NotImplementedError

    @property
    def block_size(self) -> int:
        """Of the pruned weights; 1 where there are none."""
        return max((weight.block_size for weight in self.sparse_weights), default=1)

    @property
    def sparsity(self) -> float | None:
        """Share of empty blocks of the pruned weights, which have one block size; None where there are none."""
        blocks = sum(weight.mask.kept.numel() for weight in self.sparse_weights)
        return 1.0 - sum(weight.nnzb for weight in self.sparse_weights) / blocks if blocks else None

    @property
    def kept(self) -> int:
        """Weights of the layers that are stored: elements of the kept blocks, and all of what is dense. No biases."""
        dense = sum(each.numel() for each in self.layers.parameters() if each.ndim == 2)
        return dense + sum(weight.nnzb * weight.block_size**2 for weight in self.sparse_weights)

    @property
    def nbytes(self) -> int:
        """Bytes of the pruned weights as they are stored, values and indices; of all in the layers where none was."""
        pruned = sum(weight.values_nbytes + weight.index_nbytes for weight in self.sparse_weights)
        return pruned or self._matrix_nbytes

    @property
    def dense_nbytes(self) -> int:
        """Bytes of the same weights as dense matrices."""
        pruned = sum(weight.shape[0] * weight.shape[1] * weight.dtype.itemsize for weight in self._pruned)
        return pruned or self._matrix_nbytes

    @property
    def _matrix_nbytes(self) -> int:
        return sum(each.nbytes for each in self.layers.parameters() if each.ndim == 2)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model to `path`, as tensors of the CPU, and its checksum to `path`.sha256.

        OSError where no file can be written there, or what lies there is none.
        """
        path = Path(path)
        require_pair(path)
        buffer = io.BytesIO()
        torch.save({"format": self.FORMAT, **self.content()}, buffer)
        before = None
        with suppress(DamagedError):
            before = read_table(path)
        publish_pair(path, buffer.getvalue(), before)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """The model that was saved to `path`; ValueError, one line, where that is not what lies there.

        The file may have been renamed with its checksum since: the sum counts, not the name beside it.
        """
        content = read(path)
        if not content or content["format"] != cls.FORMAT:
            raise ValueError(f"{Path(path)} is no exported model; accepted: files of the format {cls.FORMAT!r}")
        return cls.of_file(path, content)

    @classmethod
    def of_file(cls, path: str | PathLike[str], content: Mapping[str, Any]) -> Self:
        """The model whose `content` was read from `path`; ValueError, one line with the file, where it is none."""
        try:
            return cls.of_content(content)
        except ValueError as error:
            raise ValueError(f"{Path(path)} is no exported model: {error}") from None


def read(path: str | PathLike[str]) -> dict[str, Any]:
    """What a file holds that torch saved; nothing where it has no format. ValueError where it cannot be read."""
    try:
        data = read_table(Path(path))
    except DamagedError as error:
        raise ValueError(f"{error}; export the model again") from None
    except OSError as error:
        raise ValueError(f"an exported model cannot be read: {in_words(error)}") from None
    try:
        content: Any = torch.load(io.BytesIO(data), weights_only=True)
        return content if isinstance(content["format"], str) else {}
    except Exception:  # torch and pickle have many ways to say that bytes are not theirs
        return {}


def require_masks(masks: Mapping[str, BlockMask], shapes: Mapping[str, tuple[int, ...]], gates: int = 1) -> None:
    """ValueError for a mask of another name than the weights of a model have, or of another size in whole blocks."""
    for name, mask in masks.items():
        if name not in shapes:
            raise ValueError(f"masks: {name!r} is no weight of the model; accepted: {', '.join(shapes)}")
        if mask.shape != in_blocks((shapes[name][0], shapes[name][1]), gates, mask.block_size):
            raise ValueError(f"masks: that of {name} covers {mask.shape}, and the weight is {shapes[name]}")


def here(weight: Tensor) -> Tensor:
    """On the CPU, as plain data."""
    return weight.detach().cpu()


def as_dense(weight: Tensor | BlockSparseWeight) -> Tensor:
    """A weight as a dense matrix."""
    return weight.to_dense() if isinstance(weight, BlockSparseWeight) else weight


def pack(weight: Tensor | BlockSparseWeight) -> Tensor | dict[str, Any]:
    """A weight as a file holds it."""
    if isinstance(weight, Tensor):
        return here(weight)
    matrix = weight.matrix
    own = {"unpadded": weight.shape} if weight.gates == 1 and weight.padded != weight.shape else {}
    return dict(zip(PARTS, (*map(here, (matrix.data, *matrix.pattern)), matrix.shape), strict=True)) | own


def unpack(place: str, stored: Any) -> Any:
    """A weight that a file holds; ValueError naming the place where a block-sparse one is none."""
    if not isinstance(stored, dict):
        return stored
    if set(stored) - {"unpadded"} != set(PARTS):
        raise ValueError(f"{place} must have {', '.join(PARTS)}, got {', '.join(map(str, stored)) or 'nothing'}")
    try:
        matrix = BSRMatrix(**stored)
        _ = matrix.index  # looked at, so that a pattern that points outside is refused here
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return matrix


def field(stored: Any, name: str, place: str) -> Any:
    """What stands under a name; ValueError where nothing does."""
    if not isinstance(stored, dict) or name not in stored:
        raise ValueError(f"{place} is missing")
    return stored[name]
