"""What a caller has set in torch reaches into no cell, and is as before when the cell is done."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from rows import results, silent
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode
from torch.autograd import forward_ad
from torch.nn.modules import module
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from bench.cells import CheckCell, GemmCell, TrainCell, TuneCell
from bench.measuring.checks import check_cell
from bench.measuring.modes import FLAGS, PRECISIONS, initial_modes
from bench.measuring.tuning import tune_cell
from bench.schema import PATTERNS
from bench.timing import time_cell
from bench.train import train_cell
from bench.training.paths import missing_kernel

pytestmark = pytest.mark.usefixtures("few_words")

SETTINGS = {
    "train_tokens": 600,
    "eval_tokens": 200,
    "embedding_size": 16,
    "hidden_size": 16,
    "block_size": 8,
    "batch_size": 5,
    "bptt": 20,
    "epochs": 1,
    "threads": 1,
    "schedule": "linear",
    "target_sparsity": 0.5,
}
PATH = "dense" if missing_kernel() else "sparse"


@contextmanager
def default_type() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def rounded_products() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        for place in PRECISIONS:
            torch._C._set_fp32_precision_setter(*place, "none")


@contextmanager
def precision(library: str, operation: str, value: str) -> Iterator[None]:
    """By torch's newer settings, one of which stands for several."""
    torch._C._set_fp32_precision_setter(library, operation, value)
    try:
        yield
    finally:
        torch._C._set_fp32_precision_setter(library, operation, "none")


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def called(change: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


@contextmanager
def quietly(mode: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        entered = mode()
    with entered:
        yield


@contextmanager
def hook(register: Callable[..., Any]) -> Iterator[None]:
    handle = register(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


RESOLVED = {torch._C._BlasBackend.Default: torch._C._BlasBackend.Cublas}  # where there is no better one


class Seen(TorchFunctionMode):
    """Changes nothing."""


Mode = Callable[[], AbstractContextManager[Any]]
PINNED: dict[str, Mode] = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast that is off": lambda: torch.autocast("cpu", enabled=False),
    "default type": default_type,
    "default device": default_device,
    "device context": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "rounded products": rounded_products,
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "no cache of autocast": lambda: called(torch.set_autocast_cache_enabled, False, True),
    "anomaly detection": lambda: quietly(lambda: torch.autograd.detect_anomaly(check_nan=False)),
    "set_detect_anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "no oneDNN": lambda: attribute(torch.backends.mkldnn, "enabled", False),
    "deterministic oneDNN": lambda: attribute(torch.backends.mkldnn, "deterministic", True),
    "oneDNN in bfloat16": lambda: precision("mkldnn", "all", "bf16"),
    "products of oneDNN in bfloat16": lambda: precision("mkldnn", "matmul", "bf16"),
    "layers of oneDNN in bfloat16": lambda: precision("mkldnn", "rnn", "bf16"),
    "everything in bfloat16": lambda: precision("generic", "all", "bf16"),
    "everything in TF32": lambda: precision("generic", "all", "tf32"),
    "products of cuBLAS in TF32": lambda: precision("cuda", "matmul", "tf32"),
    "no cuDNN": lambda: attribute(torch.backends.cudnn, "enabled", False),
    "cuDNN that tries": lambda: attribute(torch.backends.cudnn, "benchmark", True),
    "deterministic cuDNN": lambda: attribute(torch.backends.cudnn, "deterministic", True),
    "sums in float16": lambda: attribute(torch.backends.cuda.matmul, "allow_fp16_accumulation", True),
    "no NNPACK": lambda: torch.backends.nnpack.flags(enabled=False),
    "no fast path": lambda: called(torch.backends.mha.set_fastpath_enabled, False, True),
    "another number of threads": lambda: called(torch.set_num_threads, 2, torch.get_num_threads()),
    "compiler stance": lambda: torch.compiler.set_stance("force_eager"),
    "another seed": torch.random.fork_rng,
    "no hooks of saved tensors": lambda: torch.autograd.graph.disable_saved_tensors_hooks("none here"),
    "no overridden functions": torch._C.DisableTorchFunction,
    "one thread backward": lambda: torch.autograd.set_multithreading_enabled(False),
}
SAVED, EVERY_MODULE = "hooks of every saved tensor", "hooks of every module"
FUNCTION, DISPATCH = "a mode of __torch_function__", "a mode of __torch_dispatch__"
REFUSED: dict[str, tuple[str, Mode]] = {
    "dual level": ("forward-mode differentiation", forward_ad.dual_level),
    "counter": (DISPATCH, lambda: FlopCounterMode(display=False)),
    "fake tensors": (DISPATCH, FakeTensorMode),
    "functional tensors": (DISPATCH, FunctionalTensorMode),
    "functional tensors before dispatch": (DISPATCH, lambda: FunctionalTensorMode(pre_dispatch=True)),
    "mutation": (DISPATCH, torch.autograd.graph.allow_mutation_on_saved_tensors),
    "function mode": (FUNCTION, Seen),
    "saved tensors": (SAVED, lambda: torch.autograd.graph.saved_tensors_hooks(lambda x: x + 1, lambda x: x)),
    "saved on the CPU": (SAVED, torch.autograd.graph.save_on_cpu),
    **{
        name: (EVERY_MODULE, partial(hook, getattr(module, f"register_module_{name}")))
        for name in (
            *("forward_pre_hook", "forward_hook", "full_backward_pre_hook", "full_backward_hook"),
            *("buffer_registration_hook", "module_registration_hook", "parameter_registration_hook"),
        )
    },
    "step": ("hooks of every optimizer", lambda: hook(register_optimizer_step_pre_hook)),
    "stepped": ("hooks of every optimizer", lambda: hook(register_optimizer_step_post_hook)),
    "flushed": (
        "a process that flushes denormal numbers to zero",
        lambda: called(torch.set_flush_denormal, True, False),
    ),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is only measured is measured a few times."""
    for name, few in {
        "bench.train.PROBES_AN_EPOCH": 1,
        "bench.training.meter.TRAINING_PAIRS": 1,
        "bench.training.meter.INFERENCE_PAIRS": 2,
        **dict.fromkeys((f"bench.timing.{limit}_SECONDS" for limit in ("MIN", "MAX", "RESAMPLE")), 0.01),
        "bench.measuring.clocks.WARM_UP_SECONDS": 0.01,
        "bench.timing.MIN_PAIRS": 4,
        "bench.timing.FEWEST_PAIRS": 4,
        "bench.measuring.tuning.ROUNDS": 1,
        "bench.measuring.checks.COLUMNS_OF_X": (7,),
    }.items():
        monkeypatch.setattr(name, few)


def state() -> tuple[Any, ...]:
    depth = torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    return (
        *(read() for read, _, _ in FLAGS),
        *(torch._C._get_fp32_precision_getter(*place) for place in PRECISIONS),
        *(torch.get_num_threads(), torch.get_rng_state().numpy().tobytes()),
        *(torch._C._is_torch_function_all_disabled(), torch.autograd.is_multithreading_enabled()),
        *(torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda"), depth),
        *(
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
        ),
        *(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        legacy_precision(),
    )


def legacy_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # the newer settings contradict it
        return "contradicted"


@cache
def wanted(precision: str) -> list[dict[str, Any]]:
    return results(
        train_cell(TrainCell(**SETTINGS, path="dense" if precision != "ieee" else PATH, precision=precision), silent)
    )


@pytest.mark.parametrize("name", PINNED)
def test_a_cell_trains_the_same_under_every_mode(name: str) -> None:
    expected = wanted("ieee")
    assert [row["status"] for row in expected] == ["ok", "ok"]
    initial = state()
    with PINNED[name]():
        before = state()
        found = results(train_cell(TrainCell(**SETTINGS, path=PATH), silent))
        assert state() == before
    assert found == expected
    assert state() == initial, "a later test would not be what it says"


@pytest.mark.parametrize("name", PINNED)
def test_inside_every_setting_is_that_of_a_new_process(name: str) -> None:
    """Also where a cell as small as these would show no difference."""

    def settings() -> list[Any]:
        with initial_modes():
            precisions = [torch._C._get_fp32_precision_getter(*place) for place in PRECISIONS]
            exact = {"none": "exact", "ieee": "exact"}
            return [read() for read, _, _ in FLAGS] + [exact.get(precision, precision) for precision in precisions]

    initial = settings()
    assert initial[: len(FLAGS)] == [RESOLVED.get(value, value) for _, _, value in FLAGS]
    with PINNED[name]():
        assert settings() == initial


def test_settings_that_followed_a_general_one_follow_it_afterwards() -> None:
    with precision("generic", "all", "bf16"):
        train_cell(TrainCell(**SETTINGS), silent)
        with precision("generic", "all", "ieee"):
            assert torch.backends.mkldnn.matmul.fp32_precision == "ieee"


@pytest.mark.parametrize("name", ["autocast", "autocast that is off"])
def test_weights_rounded_at_one_step_are_not_those_of_the_next(name: str) -> None:
    expected = wanted("bfloat16")
    with PINNED[name]():
        assert results(train_cell(TrainCell(**SETTINGS, precision="bfloat16"), silent)) == expected


@pytest.mark.parametrize("name", PINNED)
def test_a_cell_is_timed_the_same_under_every_mode(name: str) -> None:
    cell = GemmCell(backend="torch_bsr", m=64, k=64, n=8, block_size=16, target_sparsity=0.5, threads=1)
    with PINNED[name]():
        before = state()
        (row,) = time_cell(cell, silent)
        assert state() == before
    assert row["status"] == "ok", row["reason"]


CHECK = CheckCell(backend="torch_bsr", op="dsd", block_size=8, threads=1)
TUNE = TuneCell(backend="torch_bsr", m=64, k=64, n=8, block_size=16, target_sparsity=0.5, threads=1)


@pytest.mark.parametrize("name", PINNED)
def test_a_kernel_is_checked_and_tuned_the_same_under_every_mode(name: str) -> None:
    expected = check_cell(CHECK, silent)
    assert [row["status"] for row in expected] == ["ok"] * len(PATTERNS)
    with PINNED[name]():
        before = state()
        assert check_cell(CHECK, silent) == expected
        assert {row["status"] for row in tune_cell(TUNE, silent)} == {"ok"}
        assert state() == before


@pytest.mark.parametrize("name", REFUSED)
def test_what_sees_or_changes_every_step_is_refused(name: str) -> None:
    seen, mode = REFUSED[name]
    with mode(), pytest.raises(ValueError, match=f"^a cell is neither trained nor timed inside {seen}; .*$"):
        train_cell(TrainCell(**SETTINGS), silent)


@pytest.mark.parametrize("run", [partial(time_cell, GemmCell()), partial(check_cell, CHECK), partial(tune_cell, TUNE)])
def test_it_is_refused_whatever_the_cell_is(run: Callable[..., Any]) -> None:
    for name in ("function mode", "saved tensors", "forward_hook"):
        with REFUSED[name][1](), pytest.raises(ValueError, match=r"^a cell is neither trained nor timed inside "):
            run(silent)


def test_a_transform_is_refused() -> None:
    def inside(x: torch.Tensor) -> torch.Tensor:
        train_cell(TrainCell(**SETTINGS), silent)
        return x

    with pytest.raises(ValueError, match=r"inside a transform of torch\.func; call it outside"):
        torch.func.vmap(inside)(torch.ones(2))
