"""digits: the 1,797 images of 8 x 8 grey values that scikit-learn carries (Alpaydin & Kaynak, 1998). No download.

Divided once, at random: 1,197 to train on, 300 for validation and 300 for the test.
"""

from __future__ import annotations

from pathlib import Path

from bench.data.corpus import CLASSIFICATION
from bench.data.images import Images, ImageSizes

TASK = CLASSIFICATION
SIZES = ImageSizes(train=1197, valid=300, test=300, features=64, classes=10)
LARGEST = 16.0  # grey value


def sizes() -> ImageSizes:
    return SIZES


def load(folder: Path) -> Images:  # noqa: ARG001  (nothing lies in a folder here)
    """The images; `folder` is not used."""
    import numpy as np
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    assert inputs.shape == (SIZES.train + SIZES.valid + SIZES.test, SIZES.features), inputs.shape
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(inputs))
    train, valid, test = np.split(order, [SIZES.train, SIZES.train + SIZES.valid])
    parts = {"train": train, "valid": valid, "test": test}
    return Images.from_arrays({name: (inputs[at] / LARGEST, labels[at]) for name, at in parts.items()}, SIZES.classes)
