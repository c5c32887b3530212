from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest

from mlaas_ray.streaming.buffers import Pool

SIZE = 1 << 20


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_memory_that_nothing_refers_to_is_handed_out_again() -> None:
    pool = Pool()
    first = pool.take((SIZE // 4, 1), np.float32)
    first[:] = 1
    place = address(first)
    assert pool.idle == 0
    del first
    assert pool.idle >= SIZE
    assert address(pool.take(SIZE)) == place


@pytest.mark.parametrize(
    "held", [lambda a: a[5:9].view(">u2"), lambda a: pa.py_buffer(a), lambda a: memoryview(a)[3:]]
)
def test_memory_that_anything_still_sees_is_not(held: object) -> None:
    pool = Pool()
    array = pool.take(SIZE)
    place = address(array)
    view = held(array)  # type: ignore[operator]
    del array
    other = pool.take(SIZE)
    assert address(other) != place
    del view
    assert address(pool.take(SIZE)) == place


def test_arrays_have_the_shape_and_type_asked_for() -> None:
    for shape, dtype in [((70_000, 3), np.float32), (5, ">i8"), (0, "u1"), ((0, 9), "f8"), (300_001, "u1")]:
        array = Pool().take(shape, dtype)
        assert array.shape == (shape if isinstance(shape, tuple) else (shape,))
        assert array.dtype == np.dtype(dtype)
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_only_so_much_is_kept_idle() -> None:
    pool = Pool(idle=3 * SIZE)
    arrays = [pool.take(SIZE) for _ in range(8)]
    del arrays
    held = pool.take(SIZE)
    assert address(held)
    assert 0 < pool.idle <= 3 * SIZE


def test_a_large_block_is_not_spent_on_a_small_array() -> None:
    pool = Pool()
    place = address(pool.take(16 * SIZE))
    assert address(pool.take(SIZE)) != place


def test_threads_never_get_the_same_memory() -> None:
    pool = Pool()
    clashes: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            array = pool.take(SIZE // 4)
            array[::4096] = number
            threading.Event().wait(0)
            if (array[::4096] != number).any():
                clashes.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not clashes
