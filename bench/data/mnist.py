"""mnist: handwritten digits of 28 x 28 grey values (LeCun, Bottou, Bengio & Haffner, 1998).

Read from the four files in `<folder>/mnist`, or downloaded there; each is known by its sha256. The last 10,000 of the
60,000 training images are for validation.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
from pathlib import Path
from typing import Any

from bench.data.corpus import CLASSIFICATION, DATA_DIR_VARIABLE, DataError, download_into, fetch
from bench.data.images import Images, ImageSizes

TASK = CLASSIFICATION
SIZES = ImageSizes(train=50_000, valid=10_000, test=10_000, features=784, classes=10)
LARGEST = 255.0  # grey value
FILES = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)


def sizes() -> ImageSizes:
    return SIZES


def missing(folder: Path) -> str | None:
    """What a run would have to download, or None."""
    absent = [name for name in FILES if not (folder / "mnist" / name).is_file()]
    return f"{', '.join(absent)}; a run downloads them" if absent else None


def load(folder: Path) -> Images:
    """The images from `folder`/mnist, downloaded first where a file is missing.

    DataError if a file is not right.
    """
    home = folder / "mnist"
    if missing(folder):
        download(home)
    found = {name: _read(home / name) for name in FILES}
    (inputs, labels), test = (
        (found[f"{part}-images-idx3-ubyte.gz"] / LARGEST, found[f"{part}-labels-idx1-ubyte.gz"])
        for part in ("train", "t10k")
    )
    train = slice(None, SIZES.train), slice(SIZES.train, None)
    parts = {name: (inputs[at], labels[at]) for name, at in zip(("train", "valid"), train, strict=True)}
    return Images.from_arrays({**parts, "test": test}, SIZES.classes)


def from_mirror(mirror: str, scratch: Path) -> dict[str, Path]:
    """The four files from one mirror, known by their checksums."""
    return {name: fetch(mirror + name, scratch, name, f"sha256:{known}") for name, known in FILES.items()}


def download(home: Path) -> None:
    """Put verified files into `home` from the first mirror that has them; DataError with what to do where none does."""
    if not download_into(home, [functools.partial(from_mirror, mirror) for mirror in MIRRORS]):
        raise DataError(
            f"its images could not be downloaded; put {', '.join(FILES)} into {home}, "
            f"or set {DATA_DIR_VARIABLE} to a folder that holds them in mnist"
        )


def _read(path: Path) -> Any:
    """The numbers of one IDX file: uint8 [n, 784] of images, [n] of labels. DataError where it is another file."""
    import numpy as np

    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != FILES[path.name]:
        raise DataError(
            f"{path} is corrupt ({len(content)} bytes with another sha256 than MNIST's); delete it to have it "
            "downloaded again"
        )
    data = gzip.decompress(content)
    sides = data[3]  # big-endian sizes follow the magic number
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, 4 + 4 * sides, 4)]
    array = np.frombuffer(data, dtype=np.uint8, offset=4 + 4 * sides)
    return array.reshape(shape[0], -1) if sides > 1 else array
