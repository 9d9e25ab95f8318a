"""Each emulated piece against its definition in the PTX ISA, written out with numpy."""

import ctypes
from dataclasses import dataclass

import emulator
import numpy as np
import pytest
import torch

ROUNDED = {"bf16": torch.bfloat16, "f16": torch.float16}
every_order = pytest.mark.parametrize("order", emulator.ORDERS)


@dataclass(frozen=True)
class Variant:
    source: str
    name: str
    defines: tuple[tuple[str, str | int], ...] = ()
    threads: int = 32
    shared_bytes: int = 2048


class Arguments(ctypes.Structure):
    _fields_ = (("inputs", ctypes.c_void_p), ("out", ctypes.c_void_p), ("kind", ctypes.c_int), ("count", ctypes.c_int))


def run(name, inputs, size, kind=0, threads=32, grid=1, count=0, cooperative=False, shared_bytes=2048, **how):
    """`size` words that the kernel `name` of trial_pieces.cu makes of the words `inputs`."""
    out = np.zeros(size, np.uint32)
    inputs = np.ascontiguousarray(inputs).view(np.uint32)
    kernel = emulator.load(Variant("trial_pieces.cu", name, (), threads, shared_bytes), **how)
    arguments = Arguments(inputs.ctypes.data, out.ctypes.data, kind, count or inputs.size)
    kernel((grid, 1, 1), arguments, cooperative=cooperative)
    return out


@every_order
@pytest.mark.parametrize("kind", range(4))
def test_load_matrix(kind: int, order: str) -> None:
    stored = np.random.default_rng(kind).integers(0, 1 << 16, (4, 8, 8), np.uint16)
    got = run("matrices", stored, 128, kind, order=order).view(np.uint16).reshape(32, 4, 2)
    for lane in range(32):
        for i in range(4):
            matrix = stored[i % 2 if kind >= 2 else i]
            row, col = lane // 4, lane % 4 * 2
            wanted = matrix[col : col + 2, row] if kind % 2 else matrix[row, col : col + 2]
            assert got[lane, i].tolist() == wanted.tolist()


@pytest.mark.parametrize("transposed", [False, True])
def test_store_matrix_is_the_way_back(transposed: bool) -> None:
    stored = np.random.default_rng(5).integers(0, 1 << 16, (4, 8, 8), np.uint16)
    got = run("matrices", stored, 128, 4 + transposed).view(np.uint16).reshape(4, 8, 8)
    assert np.array_equal(got, stored.swapaxes(1, 2) if transposed else stored)


def bits(values: torch.Tensor) -> np.ndarray:
    """16-bit elements as numbers."""
    return values.contiguous().view(torch.int16).numpy().view(np.uint16).astype(np.uint32)


@every_order
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_multiply_of_halves(kind: str, order: str) -> None:
    a, b = (torch.randn(16, columns, generator=torch.manual_seed(1)).to(ROUNDED[kind]) for columns in (16, 8))
    sums = torch.randn(16, 8)
    lanes = np.zeros((32, 10), np.uint32)
    for lane in range(32):
        row, col = lane // 4, lane % 4 * 2
        pairs = [
            a[row, col : col + 2],
            a[row + 8, col : col + 2],
            a[row, col + 8 : col + 10],
            a[row + 8, col + 8 : col + 10],
        ]
        pairs += [b[col : col + 2, row], b[col + 8 : col + 10, row]]
        lanes[lane, :6] = [int(low) | int(high) << 16 for low, high in map(bits, pairs)]
        lanes[lane, 6:] = sums[[row, row, row + 8, row + 8], [col, col + 1, col, col + 1]].numpy().view(np.uint32)
    got = run("product", lanes, 128, ["bf16", "f16"].index(kind), order=order).view(np.float32).reshape(32, 4)
    wanted = (sums.double() + a.double() @ b.double()).numpy()
    for lane in range(32):
        row, col = lane // 4, lane % 4 * 2
        for i in range(4):
            assert got[lane, i] == pytest.approx(wanted[row + i // 2 * 8, col + i % 2], rel=1e-5, abs=1e-5)


def test_multiply_of_tf32_cuts_off_what_is_beyond_tf32() -> None:
    rng = np.random.default_rng(2)
    a, b = rng.standard_normal((16, 8)).astype(np.float32), rng.standard_normal((8, 8)).astype(np.float32)
    lanes = np.zeros((32, 10), np.uint32)
    for lane in range(32):
        row, col = lane // 4, lane % 4
        values = [a[row, col], a[row + 8, col], a[row, col + 4], a[row + 8, col + 4], b[col, row], b[col + 4, row]]
        lanes[lane, :6] = np.array(values, np.float32).view(np.uint32)
    got = run("product", lanes, 128, 2).view(np.float32).reshape(32, 4)
    cut = [(each.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64) for each in (a, b)]
    wanted = cut[0] @ cut[1]
    for lane in range(32):
        row, col = lane // 4, lane % 4 * 2
        assert np.allclose(
            got[lane], wanted[[row, row, row + 8, row + 8], [col, col + 1, col, col + 1]], rtol=1e-5, atol=1e-6
        )
    assert np.abs(wanted - a.astype(np.float64) @ b).max() > 1e-4, "the operands must show the difference"


@every_order
def test_what_lanes_tell_each_other(order: str) -> None:
    values = np.random.default_rng(3).integers(0, 1 << 32, 64, np.uint32)
    got = run("lanes", values, 2 * 64 * 16 // 2, threads=64, order=order).reshape(64, 16)
    for thread in range(64):
        lane, warp = thread % 32, values[thread // 32 * 32 :][:32]
        value = int(values[thread])
        wanted = [
            warp[5],
            warp[lane // 8 * 8 + (lane + 1) % 8],
            warp[lane ^ 16],
            warp[lane + 3] if lane < 29 else value,
            warp[lane - 3] if lane % 16 >= 3 else value,
            sum(int(each & 1) << i for i, each in enumerate(warp)),
            int(values[7] in warp),
            value.bit_count(),
            (value & -value).bit_length(),
            32 - value.bit_length(),
            warp[lane ^ 1] if lane < 16 else warp[lane ^ 2],
            int(np.float32(lane ^ 1).view(np.uint32)),
            16,
            7,
            thread + 640000 + 1000000,
            int(np.float32(7.5).view(np.uint32)),
        ]
        assert got[thread].tolist() == [int(each) for each in wanted]


@every_order
def test_reduction_through_shared_memory(order: str) -> None:
    values = np.random.default_rng(4).integers(0, 1 << 20, 256, np.uint32)
    got = run("reduction", values, 4, threads=256, order=order)
    assert got.tolist() == [values.sum(), values.sum(), 256, 0]


@pytest.mark.skipif(not emulator.watches(), reason="ziglang's compiler does not let us see ordinary accesses")
@every_order
def test_a_missing_barrier_between_ordinary_stores_and_loads(order: str) -> None:
    with pytest.raises(emulator.EmulationError, match=r"a (load|store) .*no barrier between|never written"):
        run("reduction", np.arange(256, dtype=np.uint32), 4, kind=1, threads=256, order=order)


@every_order
@pytest.mark.parametrize("kind", [0, 5, 6, 7])
def test_neighbours_that_wait_for_each_other(kind: int, order: str) -> None:
    values = np.arange(100, 164, dtype=np.uint32)
    got = run("neighbours", values, 64, kind, threads=64, order=order)
    other = np.arange(64) ^ 1 if kind == 5 else (np.arange(64) + 1) % 64
    assert np.array_equal(got, 2 * values[other] + 1)


@pytest.mark.skipif(not emulator.watches(), reason="ziglang's compiler does not let us see ordinary accesses")
@every_order
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (1, "a (load|store) .*no barrier between|never written"),
        (2, "a (load|store) .*no barrier between"),
        (3, "a load reads byte 128 of shared memory, which was never written"),
        (4, "a load at byte 2048 of 2048 bytes"),
    ],
)
def test_neighbours_that_do_not(kind: int, message: str, order: str) -> None:
    with pytest.raises(emulator.EmulationError, match=message):
        run("neighbours", np.arange(64, dtype=np.uint32), 64, kind, threads=64, count=1024, order=order)


@pytest.mark.parametrize(("order", "seed"), [("forward", 0), ("reverse", 0), *(("random", seed) for seed in range(5))])
def test_barrier_of_the_grid(order: str, seed: int) -> None:
    ctas, rounds = 9, 4
    got = run(
        "rounds",
        np.zeros(1, np.uint32),
        1 + ctas + ctas * rounds,
        threads=64,
        grid=ctas,
        count=rounds,
        cooperative=True,
        order=order,
        seed=seed,
    )
    assert got[0] == ctas * rounds * 2
    total = ctas * (ctas + 1) // 2
    assert got[1 + ctas :].reshape(rounds, ctas).tolist() == [[total * (i + 1)] * ctas for i in range(rounds)]


def test_a_cta_that_does_not_wait_for_the_grid_shows() -> None:
    ctas, rounds = 9, 4
    sums = []
    for order, seed in (("forward", 0), ("reverse", 0), ("random", 1)):
        got = run(
            "rounds",
            np.zeros(1, np.uint32),
            1 + ctas + ctas * rounds,
            1,
            64,
            ctas,
            rounds,
            True,
            order=order,
            seed=seed,
        )
        sums.append(got[1 + ctas :].reshape(rounds, ctas)[:, 2].tolist())
    assert any(each != [45, 90, 135, 180] for each in sums)


@every_order
def test_a_grid_that_waits_for_ever(order: str) -> None:
    with pytest.raises(emulator.EmulationError, match=r"deadlock: .*(an atomic|relax)"):
        run("rounds", np.zeros(1, np.uint32), 100, 2, 64, 9, 4, True, order=order)
    with pytest.raises(
        emulator.EmulationError, match="deadlock"
    ):  # the CTAs of an ordinary launch come one after another
        run("rounds", np.zeros(1, np.uint32), 100, 0, 64, 9, 4, False, order=order)


def test_arguments_of_another_size_are_refused() -> None:
    class Short(ctypes.Structure):
        _fields_ = (("inputs", ctypes.c_void_p),)

    with pytest.raises(emulator.EmulationError, match="another size"):
        emulator.load(Variant("trial_pieces.cu", "product"))((1, 1, 1), Short(None))
    with pytest.raises(emulator.EmulationError, match="more threads"):
        emulator.load(Variant("trial_pieces.cu", "product", threads=64))((1, 1, 1), Arguments())
