"""Compiled loops over raw memory: columns of any number type into rows of float32.

They take addresses and trust them; :mod:`mlaas_ray.streaming.scatter` checks what it gives. They lie apart
because importing numba takes longer than the rest of this layer together, and they speak of pointers, not of
arrays, because that compiles in half the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, njit, types

from mlaas_ray.core.compiling import alone

# Its type would be that of the function it decorates, which is called otherwise.
intrinsic: Any = extending.intrinsic

# Codes of the number types; SWAPPED is added for those of the other byte order.
CODES = {"i1": 0, "u1": 1, "b1": 1, "i2": 2, "u2": 3, "i4": 4, "u4": 5, "f4": 6, "i8": 7, "u8": 8, "f8": 9}
SWAPPED = 16

LARGEST = np.float32(np.finfo(np.float32).max)


def compiled(function: Any, **options: Any) -> Any:
    """Compile at the first call, without Python's lock, and keep the result on disk where one can write."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return alone(njit(function, cache=True, **options))
    except RuntimeError:  # neither beside this file nor in the user's cache folder
        return alone(njit(function, **options))


def part(function: Any) -> Any:
    """Compile what only compiled functions call: no entry from Python, which would take as long again."""
    return compiled(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@intrinsic  # type: ignore[untyped-decorator]
def pointer(typing_context: Any, address: Any, number: Any) -> Any:
    """Take an integer as the address of numbers of a type."""
    result = types.CPointer(number.dtype)  # type: ignore[no-untyped-call]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return result(types.int64, number), generate


@intrinsic  # type: ignore[untyped-decorator]
def _swap(typing_context: Any, value: Any) -> Any:
    """Reverse the bytes of an unsigned integer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bswap(arguments[0])

    return value(value), generate


@intrinsic  # type: ignore[untyped-decorator]
def _stream(typing_context: Any, target: Any, index: Any, value: Any) -> Any:
    """Store ``target[index] = value`` past the caches: rows are too many to be there when they are read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, index, value = arguments
        store = builder.store(value, builder.gep(target, [index]))
        once = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        store.set_metadata("nontemporal", once)
        return context.get_dummy_value()

    return types.void(target, index, value), generate


@part
def _swap_all(source, count, target):  # type: ignore[no-untyped-def]
    for i in range(count):
        target[i] = _swap(source[i])


@part
def _convert(source, count, target):  # type: ignore[no-untyped-def]
    for i in range(count):
        target[i] = np.float32(source[i])


@part
def _load(code, address, count, values, words):  # type: ignore[no-untyped-def]
    """Convert numbers to float32; ``values`` and ``words``: addresses of room, 4 and 8 bytes a number."""
    if code >= SWAPPED:
        code -= SWAPPED
        if code == 2 or code == 3:
            _swap_all(pointer(address, np.uint16), count, pointer(words, np.uint16))
        elif code <= 6:
            _swap_all(pointer(address, np.uint32), count, pointer(words, np.uint32))
        else:
            _swap_all(pointer(address, np.uint64), count, pointer(words, np.uint64))
        address = words
    target = pointer(values, np.float32)
    if code == 0:
        _convert(pointer(address, np.int8), count, target)
    elif code == 1:
        _convert(pointer(address, np.uint8), count, target)
    elif code == 2:
        _convert(pointer(address, np.int16), count, target)
    elif code == 3:
        _convert(pointer(address, np.uint16), count, target)
    elif code == 4:
        _convert(pointer(address, np.int32), count, target)
    elif code == 5:
        _convert(pointer(address, np.uint32), count, target)
    elif code == 6:
        _convert(pointer(address, np.float32), count, target)
    elif code == 7:
        _convert(pointer(address, np.int64), count, target)
    elif code == 8:
        _convert(pointer(address, np.uint64), count, target)
    else:
        _convert(pointer(address, np.float64), count, target)


@part
def _outside(values, count, low, high):  # type: ignore[no-untyped-def]
    """Count the finite values below ``low`` or above ``high``."""
    found = np.int32(0)
    for i in range(count):
        value = values[i]
        below = (value < low) & (value >= -LARGEST)
        above = (value > high) & (value <= LARGEST)
        found += np.int32(below | above)
    return found


@part
def _places(offsets, first, last, length, base, spare, places):  # type: ignore[no-untyped-def]
    """Tell to which cell of a tile each value of some events goes; one beyond the length, to ``spare``."""
    j = 0
    for event in range(first, last):
        row = base[event]
        count = offsets[event + 1] - offsets[event]
        kept = min(count, length)
        for slot in range(kept):
            places[j + slot] = row + slot
        for slot in range(kept, count):
            places[j + slot] = spare
        j += count


@part
def _regular_places(first, last, length, base, places):  # type: ignore[no-untyped-def]
    """Tell the same of a branch with ``length`` values in every event."""
    j = 0
    for event in range(first, last):
        for slot in range(length):
            places[j] = base[event] + slot
            j += 1


@part
def _tile(feature, first, last, room, base, spare, known, scratch, cells, low, high):  # type: ignore[no-untyped-def]
    """Put the values of one feature's events into a tile's cells, and count those out of range.

    ``known`` says for which offsets and length ``places`` was made: branches of one collection share it.
    """
    code, address, size = feature[0], feature[1], feature[2]
    start, length, jagged = feature[3], feature[4], feature[5]
    offsets = pointer(jagged, np.int64)
    values = pointer(scratch, np.float32)
    places = pointer(scratch + 4 * room, np.int32)
    found = 0
    begin_run = first
    while begin_run < last:
        end_run = last
        while True:  # as many events as there is room for
            begin = offsets[begin_run] if jagged else begin_run * length
            count = (offsets[end_run] if jagged else end_run * length) - begin
            if count <= room or end_run == begin_run + 1:
                break
            end_run = begin_run + (end_run - begin_run) // 2
        if count > room:  # one event alone, whose length is within the room
            count = length
        if known[0] != jagged or known[1] != length or known[2] != begin_run or known[3] != end_run:
            known[0], known[1], known[2], known[3] = jagged, length, begin_run, end_run
            if not jagged:
                _regular_places(begin_run, end_run, length, base, places)
            elif end_run == begin_run + 1:
                for slot in range(count):
                    places[slot] = base[begin_run] + slot if slot < length else spare
            else:
                _places(offsets, begin_run, end_run, length, base, spare, places)
        _load(code, address + begin * size, count, scratch, scratch + 8 * room)
        for j in range(count):
            cells[places[j] + start] = values[j]
        found += _outside(values, count, low, high)
        begin_run = end_run
    return found


def scatter_tiles(features, limits, rows, out, room, memory, scratch, bases, outside):  # type: ignore[no-untyped-def]
    """Write event ``i`` of some features to row ``rows[i]`` of ``out``, a tile of events at a time.

    A tile is filled in the caches, whatever the order of the rows, and each row is then written once. What it
    works in comes from outside: numba would free an array of its own once only its address is in use.

    Args:
        features: ``(features, 6)`` int64: type code, address of the values, bytes of each, first column,
            length, and address of the int64 offsets, or 0 where every event has ``length`` values.
        limits: ``(features, 2)`` float32: lowest and highest value to expect.
        rows: ``(events,)`` int64; negative where an event is left out.
        out: ``(n, width)`` float32.
        room: Values to convert at once; no length exceeds it.
        memory: ``((tile + 1) * width,)`` float32, for a tile and the values that are left out.
        scratch: ``(2 * room + 4,)`` uint64.
        bases: ``(tile,)`` int32.
        outside: ``(features,)`` int64: is increased by the finite values out of their limits.
    """
    events, width, tile = len(rows), out.shape[1], len(bases)
    spare = tile * width
    known = pointer(scratch.ctypes.data + 16 * room, np.int64)
    cells = pointer(memory.ctypes.data, np.float32)
    target = pointer(out.ctypes.data, np.float32)
    for first in range(0, events, tile):
        last = min(first + tile, events)
        for i in range(last - first):
            bases[i] = i * width if rows[first + i] >= 0 else spare
        base = pointer(bases.ctypes.data - 4 * first, np.int32)  # so that an event finds its own
        for cell in range((last - first) * width):
            cells[cell] = np.nan
        known[0] = -1
        for f in range(len(features)):
            if features[f, 4] == 0:
                continue
            low, high = limits[f, 0], limits[f, 1]
            outside[f] += _tile(
                features[f], first, last, room, base, spare, known, scratch.ctypes.data, cells, low, high
            )
        for i in range(last - first):
            row = rows[first + i]
            if row >= 0:
                for column in range(width):
                    _stream(target, row * width + column, cells[i * width + column])


scatter_tiles = compiled(scatter_tiles)
