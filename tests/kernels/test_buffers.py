"""Large buffers come back when nothing uses them any more, and never before."""

import gc
import threading

import torch

from kernels.backends.buffers import GRAIN, SMALLEST, Buffers

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
    assert any(buffer.data_ptr() == place for buffer in pool.idle)


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
    assert wrong == [] and len(pool.idle) <= 8  # a thread takes its next one before it drops its last
