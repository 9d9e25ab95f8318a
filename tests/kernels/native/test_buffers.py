"""Large buffers come back when nothing uses them any more, and never before; until then they are tensors as torch's own."""

import copy
import gc
import io
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kernels.native.library import GRAIN, SMALLEST, Buffers

COUNT = SMALLEST // 4 + 3


def test_a_buffer_is_used_again_only_when_every_tensor_on_it_is_gone() -> None:
    pool = Buffers()
    first = pool.empty((COUNT,), torch.float32)
    place, view = first.data_ptr(), first[5:9]
    second = pool.empty((COUNT,), torch.float32)
    assert second.data_ptr() != place
    del first
    gc.collect()
    assert pool.idle == []
    view.fill_(1.0)
    third = pool.empty((COUNT,), torch.float32)
    assert third.data_ptr() != place
    del view
    assert pool.empty((COUNT + 1, 1), torch.float32).data_ptr() == place


def test_what_a_graph_has_saved_is_in_use() -> None:
    pool = Buffers()
    weight = torch.ones(1, requires_grad=True)
    saved = pool.empty((COUNT,), torch.float32).fill_(2.0)
    product = (weight * saved).sum()
    place = saved.data_ptr()
    del saved
    assert pool.empty((COUNT,), torch.float32).fill_(7.0).data_ptr() != place
    product.backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None and float(weight.grad) == 2.0 * COUNT
    del product
    assert any(buffer.data_ptr == place for buffer in pool.idle)


def test_shapes_and_types_are_torchs() -> None:
    pool = Buffers()
    for shape in ((2, COUNT), (0, 3), (7,), ()):
        for dtype in (torch.float32, torch.float64, torch.int32):
            tensor = pool.empty(shape, dtype)
            assert tensor.shape == shape and tensor.dtype == dtype and tensor.is_contiguous()


def test_a_tensor_is_nobodys_view() -> None:
    for mode in (torch.no_grad(), torch.enable_grad()):
        with mode:
            tensor = Buffers().empty((COUNT,), torch.float32).zero_()
        assert tensor._base is None
        weight = torch.ones(1, requires_grad=True)
        tensor.add_(weight).sum().backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None and float(weight.grad) == COUNT


def test_buffers_begin_with_a_page() -> None:
    assert Buffers().empty((COUNT,), torch.float32).data_ptr() % GRAIN == 0


def test_small_ones_are_left_to_the_c_library() -> None:
    pool = Buffers()
    pool.empty((3,), torch.float32)
    assert pool.idle == []


def test_no_more_than_wanted_is_kept() -> None:
    pool = Buffers(most_kept=3 * GRAIN)
    tensors = [pool.empty((GRAIN,), torch.uint8) for _ in range(5)]
    assert len(pool.known) == 3  # the others are nobody's but the tensors'
    del tensors
    assert len(pool.idle) == 3


def test_threads_never_share_a_buffer() -> None:
    pool, wrong = Buffers(), []

    def work(mark: float) -> None:
        for _ in range(200):
            tensor = pool.empty((COUNT,), torch.float32)
            tensor[:4] = mark
            tensor[-4:] = mark
            if not bool((tensor[:4] == mark).all() and (tensor[-4:] == mark).all()):
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(float(mark),)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and len(pool.known) <= 8  # a thread takes its next one before it drops its last


def grown(given: Tensor) -> Tensor:
    return given.resize_(3 * COUNT)


def grown_by_an_operator(given: Tensor) -> Tensor:
    more = torch.ones(3 * COUNT)
    return torch.add(more, more, out=given.resize_(0))


def grown_storage(given: Tensor) -> Tensor:
    given.untyped_storage().resize_(12 * COUNT + 8 * GRAIN)
    return given


def emptied(given: Tensor) -> Tensor:
    given.untyped_storage().resize_(0)
    return given.set_()


def shared(given: Tensor) -> Tensor:
    return given.share_memory_()


def replaced(given: Tensor) -> Tensor:
    return given.set_(torch.ones(COUNT).untyped_storage())


@pytest.mark.parametrize("change", [grown, grown_by_an_operator, grown_storage, emptied, shared, replaced])
def test_results_change_as_any_tensor_does(change: Callable[[Tensor], Tensor]) -> None:
    """What is no longer the buffer that it was is nobody's but the tensor's, and is not lent again."""
    pool = Buffers()
    for _ in range(3):
        changed = change(pool.empty((COUNT,), torch.float32).fill_(1.0))
        kept = changed.fill_(2.0).clone()
        others = [pool.empty((COUNT,), torch.float32).fill_(7.0) for _ in range(3)]
        assert torch.equal(changed, kept)
        del changed, others
        gc.collect()
        fresh = pool.empty((COUNT,), torch.float32)
        assert fresh.fill_(3.0).sum() == 3.0 * COUNT
        del fresh


def test_shared_memory_that_another_process_may_see_is_not_lent_again() -> None:
    pool = Buffers()
    place = pool.empty((COUNT,), torch.float32).share_memory_().data_ptr()
    assert pool.empty((COUNT,), torch.float32).data_ptr() != place and len(pool.known) == 1


HOLDERS: dict[str, Callable[[Tensor], object]] = {
    "storage": Tensor.untyped_storage,
    "numpy": Tensor.numpy,
    "dlpack": torch.utils.dlpack.to_dlpack,
    "detached": Tensor.detach,
    "data": lambda made: made.data,
    "view of another type": lambda made: made.view(torch.int32)[5:],
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_whoever_holds_the_memory_keeps_it(holder: str) -> None:
    pool = Buffers()
    made = pool.empty((COUNT,), torch.float32).fill_(1.0)
    place, held = made.data_ptr(), HOLDERS[holder](made)
    del made
    gc.collect()
    assert pool.idle == [] and pool.empty((COUNT,), torch.float32).fill_(7.0).data_ptr() != place
    del held
    gc.collect()
    assert len(pool.idle) == 2


def test_a_lazy_clone_keeps_its_values() -> None:
    pool = Buffers()
    made = pool.empty((COUNT,), torch.float32).fill_(1.0)
    clone = torch._lazy_clone(made)
    del made
    pool.empty((COUNT,), torch.float32).fill_(7.0)
    assert bool((clone == 1.0).all())


def test_copies_and_files_are_of_the_tensor() -> None:
    made = Buffers().empty((3, COUNT), torch.float32).copy_(torch.arange(3 * COUNT).view(3, COUNT))
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    for other in (copy.deepcopy(made), torch.load(file, weights_only=True)):
        assert torch.equal(other, made) and other.data_ptr() != made.data_ptr()


def test_a_buffer_first_taken_in_inference_mode_serves_outside() -> None:
    pool = Buffers()
    with torch.inference_mode():
        place = pool.empty((COUNT,), torch.float32).data_ptr()
    made = pool.empty((COUNT,), torch.float32)
    assert made.data_ptr() == place and not made.is_inference() and made.fill_(2.0).requires_grad_().is_leaf
