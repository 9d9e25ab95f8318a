"""mnist1d: the MNIST-1D data set (Greydanus & Kobak, 2011.14439), made from its seed by the package of that name.

4,000 examples to train on and 1,000 for the test, as published; 1,000 more, made from another seed, for validation.
No download: the package's `make_dataset`, whose random numbers are those that made the published file.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from bench.data.corpus import CLASSIFICATION
from bench.data.images import Images, ImageSizes

TASK = CLASSIFICATION
SIZES = ImageSizes(train=4000, valid=1000, test=1000, features=40, classes=10)
SEED, VALIDATION_SEED = 42, 43


def sizes() -> ImageSizes:
    return SIZES


def load(folder: Path) -> Images:  # noqa: ARG001  (nothing lies in a folder here)
    """The examples; `folder` is not used."""
    published, more = _made(SEED), _made(VALIDATION_SEED, num_samples=SIZES.valid, train_split=0.0)
    parts = {
        "train": (published["x"], published["y"]),
        "valid": (more["x_test"], more["y_test"]),
        "test": (published["x_test"], published["y_test"]),
    }
    return Images.from_arrays(parts, SIZES.classes)


def _made(seed: int, **settings: Any) -> dict[str, Any]:
    """What the package makes from a seed; it seeds the generators of Python and numpy, which are put back."""
    import numpy as np
    from mnist1d.data import get_dataset_args, make_dataset

    before = random.getstate(), np.random.get_state()  # noqa: NPY002  (the package draws from them)
    try:
        wanted = get_dataset_args()
        vars(wanted).update(settings, seed=seed)
        made: dict[str, Any] = make_dataset(wanted)
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
    return made
