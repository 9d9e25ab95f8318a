"""Labelled examples: sizes, checksums, classes, order, and what happens to missing or damaged files."""

from __future__ import annotations

import gzip
import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rows import DIGITS

from bench.cells import TrainCell
from bench.data import digits, mnist, mnist1d
from bench.data.corpus import DataError
from bench.data.datasets import DATASETS, known_sizes, load_corpus, load_data, missing_files, names_of, task_of
from bench.data.images import Images, ImageSizes, shuffled
from bench.training.needs import data_fault
from bench.training.tasks import task_on

ROOT = Path(__file__).parents[3]
NOWHERE = Path("nowhere")
SHA256 = {
    "digits": "7b0e46ec4b6d5aae235ac1435e6f92e29f02b707bf7a27046b9d00f59c609ee1",
    "mnist1d": "5cc232dfb4d33f13ea1cf72fba66ff8f623d50392d3ad2fff68b2c0fddaf91e4",
}


def check(name: str, data: Any) -> None:
    """That it is what its module tells beforehand, each class in each part."""
    assert isinstance(data, Images) and data.sizes == known_sizes(name) and data.token == "example"
    for part in (data.train, data.valid, data.test):
        assert part.inputs.dtype == torch.float32 and part.labels.dtype == torch.int64
        assert part.inputs.isfinite().all() and part.inputs.abs().max() < 10.0
        assert part.labels.unique().tolist() == list(range(data.classes))


def test_digits_are_those_of_scikit_learn() -> None:
    data = load_data("digits", NOWHERE)
    check("digits", data)
    assert data.sizes == ImageSizes(1197, 300, 300, 64, 10) and data.sha256 == SHA256["digits"]
    assert data.train.inputs.min() == 0.0 and data.train.inputs.max() == 1.0
    examples = torch.cat([torch.cat([part.inputs, part.labels[:, None]], 1) for part in (data.train, data.valid)])
    assert len(examples.unique(dim=0)) == len(examples), "no example is in two parts"
    assert load_data("digits", NOWHERE) is data


@pytest.mark.slow(5)
def test_mnist1d_is_the_published_one_and_leaves_the_generators_alone() -> None:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    data = mnist1d.load(NOWHERE)
    check("mnist1d", data)
    assert data.sizes == ImageSizes(4000, 1000, 1000, 40, 10) and data.sha256 == SHA256["mnist1d"]
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[2])
    for one, other in zip(np.random.get_state(), before[1], strict=True):
        assert np.array_equal(one, other)


def test_what_the_package_raises_leaves_the_generators_alone_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Any) -> None:
        random.seed(1)
        np.random.seed(1)
        raise KeyError("x")

    monkeypatch.setattr("mnist1d.data.make_dataset", broken)
    before = random.getstate(), np.random.get_state()
    with pytest.raises(KeyError):
        mnist1d.load(NOWHERE)
    assert random.getstate() == before[0] and np.array_equal(np.random.get_state()[1], before[1][1])


def idx(array: np.ndarray) -> bytes:
    """An IDX file: 0, 0, the type (8: bytes), the number of sides, each side big-endian, and the numbers."""
    head = bytes([0, 0, 8, array.ndim]) + b"".join(side.to_bytes(4, "big") for side in array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a small MNIST, whose checksums are those that the module knows: 12 images and 4 of the test."""
    generator, sums = np.random.Generator(np.random.PCG64(0)), {}
    for name in mnist.FILES:
        count = 12 if name.startswith("train") else 4
        array = generator.integers(0, 256, (count, 28, 28)) if "images" in name else np.arange(count) % 10
        content = idx(array)
        sums[name] = hashlib.sha256(content).hexdigest()
        path = tmp_path / "mnist" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setattr(mnist, "FILES", sums)
    monkeypatch.setattr(mnist, "SIZES", ImageSizes(train=10, valid=2, test=4, features=784, classes=10))
    return tmp_path


def test_mnist_is_read_from_its_files(written: Path) -> None:
    data = mnist.load(written)
    assert data.sizes == mnist.sizes() and missing_files("mnist", written) is None
    images = gzip.decompress((written / "mnist" / "train-images-idx3-ubyte.gz").read_bytes())[16:]
    assert (data.train.inputs[1] * 255).round().to(torch.uint8).tolist() == list(images[784 : 2 * 784])
    assert data.valid.labels.tolist() == [0, 1] and data.test.labels.tolist() == [0, 1, 2, 3]
    assert data.train.inputs.max() == 1.0


@pytest.mark.parametrize("name", mnist.FILES)
def test_a_damaged_file_of_mnist_is_one_line(written: Path, name: str) -> None:
    path = written / "mnist" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (bytes(content), b"", path.read_bytes()[:-1]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"\A[^\n]* is corrupt [^\n]*delete it[^\n]*\Z") as caught:
            mnist.load(written)
        assert str(path) in str(caught.value)


def test_without_a_network_mnist_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("pooch.retrieve", offline)
    assert all(name in str(missing_files("mnist", tmp_path)) for name in mnist.FILES)
    with pytest.raises(DataError, match=r"\Aits images could not be downloaded; put [^\n]*\Z") as caught:
        mnist.load(tmp_path)
    for said in (*mnist.FILES, str(tmp_path / "mnist"), "BENCH_DATA_DIR"):
        assert said in str(caught.value)
    assert not list((tmp_path / "mnist").iterdir())


def test_mnist_takes_the_first_mirror_with_the_right_files(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def serve(url: str, known_hash: str, fname: str, path: str, downloader: object) -> str:
        asked.append(url)
        content = (written / "mnist" / fname).read_bytes()
        if url.startswith(mnist.MIRRORS[0]) and len(asked) == 3:
            raise ConnectionError("this mirror breaks off")
        assert known_hash == f"sha256:{hashlib.sha256(content).hexdigest()}"
        return str((Path(path) / fname).write_bytes(content) and Path(path) / fname)

    monkeypatch.setattr("pooch.retrieve", serve)
    fresh = tmp_path / "fresh"
    assert mnist.load(fresh).sha256 == mnist.load(written).sha256
    assert sorted(path.name for path in (fresh / "mnist").iterdir()) == sorted(mnist.FILES)
    assert asked[3:] == [mnist.MIRRORS[1] + name for name in mnist.FILES]


def test_every_set_of_examples_tells_its_sizes_and_no_text_is_one() -> None:
    """The width of the first layer goes by them, before anything is loaded."""
    assert sorted(names_of("language") + names_of("classification")) == sorted(DATASETS.names())
    for name in names_of("classification"):
        assert isinstance(known_sizes(name), ImageSizes) and task_of(name) == "classification"
        with pytest.raises(ValueError, match=rf"^dataset: {name} is no text; accepted: pydoc, "):
            load_corpus(name, NOWHERE)
    with pytest.raises(ValueError, match="dataset"):
        task_of("no such")


def made(**changed: Any) -> Images:
    """Examples of two classes; a part is a number of them, or what it consists of."""
    wanted = {"train": 10, "valid": 2, "test": 2, **changed}
    parts = {
        name: (np.zeros((part, 3)), np.arange(part) % 2) if isinstance(part, int) else part
        for name, part in wanted.items()
    }
    return Images.from_arrays(parts, 2)


def test_numbers_make_the_checksum() -> None:
    assert made().sha256 == made().sha256 and len(made().sha256) == 64
    others = [
        made(train=9),
        made(test=(np.full((2, 3), 1e-30), np.arange(2))),
        made(valid=(np.zeros((2, 3)), np.array([1, 0]))),
        made(train=(np.zeros((10, 3))[:, ::-1], np.arange(10) % 2), valid=(np.zeros((3, 3)), np.arange(3) % 2)),
    ]
    assert len({made().sha256, *(each.sha256 for each in others)}) == 5


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ((np.zeros((2, 3)), np.array([0, 2])), "train: a label is none of 2 classes"),
        ((np.zeros((2, 3)), np.array([-1, 0])), "train: a label is none of 2 classes"),
        ((np.zeros((2, 3)), np.array([0, 1, 0])), r"train: \[2, 3\] inputs and \[3\] labels"),
        ((np.zeros((2, 3, 1)), np.array([0, 1])), r"train: \[2, 3, 1\] inputs and \[2\] labels"),
    ],
)
def test_examples_that_do_not_fit_are_refused(part: Any, line: str) -> None:
    with pytest.raises(ValueError, match=f"^{line}$"):
        made(train=part)


@pytest.mark.parametrize(("part", "said"), [("train", "training"), ("valid", "validation"), ("test", "test")])
def test_a_part_without_an_example_is_one_line(part: str, said: str) -> None:
    fault = data_fault(TrainCell(**DIGITS), made(**{part: 0}).sizes)
    assert fault == f"dataset: digits has no {said} example; accepted: one with examples in each part"
    assert data_fault(TrainCell(**DIGITS), made().sizes) is None


def test_an_epoch_has_every_example_once_in_an_order_of_its_own() -> None:
    data, cell = load_data("digits", NOWHERE), TrainCell(**DIGITS, seed=3)
    whole = torch.cat([data.train.inputs, data.train.labels[:, None]], dim=1)
    orders = []
    for epoch in (1, 2):
        task = task_on(cell, data)
        batches = list(task.epoch(epoch))
        assert [len(labels) for _, labels in batches] == task.lengths[epoch - 1] == [100] * 11 + [97]
        seen = torch.cat([torch.cat([inputs, labels[:, None]], dim=1) for inputs, labels in batches])
        assert torch.equal(seen.unique(dim=0), whole.unique(dim=0))
        again = torch.cat([labels for _, labels in task_on(cell, data).epoch(epoch)])
        assert torch.equal(again, seen[:, -1].long())
        orders.append(seen)
    other = torch.cat([inputs for inputs, _ in task_on(cell.model_copy(update={"seed": 4}), data).epoch(1)])
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0][:, :-1], other)


def test_an_order_is_that_of_its_seed_everywhere() -> None:
    script = "from bench.data.images import shuffled; print(shuffled(7, '3 1').tolist())"
    wanted = shuffled(7, "3 1").tolist()
    before = torch.get_rng_state()
    with torch.device("meta"):
        assert shuffled(7, "3 1").tolist() == wanted
    assert torch.equal(before, torch.get_rng_state()) and sorted(wanted) == list(range(7))
    environment = {**os.environ, "PYTHONHASHSEED": "5", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(wanted) == "[3, 2, 0, 6, 5, 4, 1]", done.stderr


def test_naming_and_sizes_need_neither_torch_nor_the_packages() -> None:
    script = (
        "import sys; from bench.cells import TrainCell;"
        "from bench.data.datasets import known_sizes, names_of; print(*map(known_sizes, names_of('classification')));"
        "print(TrainCell(model='mlp', dataset='mnist1d').cell_id);"
        "assert not {'torch', 'numpy', 'sklearn', 'mnist1d', 'pooch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("ImageSizes") == 3, done.stderr


def test_digits_are_divided_alike_whatever_was_drawn_before() -> None:
    np.random.seed(5)
    assert digits.load(NOWHERE).sha256 == SHA256["digits"]
