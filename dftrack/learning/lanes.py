"""Sixteen numbers side by side: what compiled kernels read, compute with and write at once, on any processor.

LLVM makes vector instructions of a loop only where it can prove that what is written is not what is read next, and
over 32 channels such a loop hardly begins. Here the vectors are written out, as LLVM's own vector types: a processor
with shorter registers gets several instructions for one. Only for compiled code. Functions take a flat array and a
place in it; where `LANES` numbers begin there, nobody checks that they all lie inside.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic, models, register_model

LANES = 16

_WORD, _HALF, _BYTE = (ir.IntType(bits) for bits in (32, 16, 8))
_FLOATS, _WORDS = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(_WORD, LANES)
_HALVES, _BYTES = ir.VectorType(_HALF, LANES), ir.VectorType(_BYTE, LANES)
_MASK = ir.VectorType(ir.IntType(1), LANES)


class Vector(types.Type):
    """Numba's type of a vector; `held` is LLVM's."""

    def __init__(self, name: str, held: ir.VectorType) -> None:
        super().__init__(name=name)
        self.held = held


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, kind.held)  # type: ignore[no-untyped-call]


FLOATS, BYTES, MASK = Vector("floats", _FLOATS), Vector("bytes", _BYTES), Vector("mask", _MASK)
_HELD = {types.float32: _FLOATS, types.uint16: _HALVES, types.uint8: _BYTES}  # by the type of an array


def _take(context: Any, array: Any, place: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        held = builder.load(_pointer(target, builder, signature.args[0], *arguments), align=array.dtype.bitwidth // 8)
        return _widened(builder, held) if array.dtype == types.uint16 else held

    return (BYTES if array.dtype == types.uint8 else FLOATS)(array, types.intp), code


def _put(context: Any, array: Any, place: Any, vector: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        *where, value = arguments
        held = _narrowed(builder, value) if array.dtype == types.uint16 else value
        builder.store(held, _pointer(target, builder, signature.args[0], *where), align=array.dtype.bitwidth // 8)
        return target.get_dummy_value()

    return types.void(array, types.intp, vector), code


def _as_held(context: Any, vector: Any, array: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        value = arguments[0]
        return _widened(builder, _narrowed(builder, value)) if array.dtype == types.uint16 else value

    return vector(vector, array), code


def _fill(context: Any, number: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return _all(builder, _FLOATS, arguments[0])

    return FLOATS(types.float32), code


def _fill_bytes(context: Any, number: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        return _all(builder, _BYTES, builder.trunc(arguments[0], _BYTE))

    return BYTES(types.int64), code


def _fma(context: Any, a: Any, b: Any, c: Any) -> Any:
    def code(target: Any, builder: Any, signature: Any, arguments: Sequence[Any]) -> Any:
        kind, name = ir.FunctionType(_FLOATS, [_FLOATS] * 3), f"llvm.fma.v{LANES}f32"
        function = cgutils.get_or_insert_function(builder.module, kind, name)  # type: ignore[no-untyped-call]
        return builder.call(function, arguments)

    return FLOATS(a, b, c), code


def _choose(context: Any, mask: Any, a: Any, b: Any) -> Any:
    return a(mask, a, b), lambda target, builder, signature, arguments: builder.select(*arguments)


take: Any = intrinsic(_take)  # (array, place) -> FLOATS of float32 or bfloat16 (as its 16 bits), or BYTES of uint8
put: Any = intrinsic(_put)  # (array, place, vector); float32 becomes bfloat16 to nearest, ties to even
as_held: Any = intrinsic(_as_held)  # (vector, array) -> FLOATS, rounded as `put` would round them into `array`
fill: Any = intrinsic(_fill)  # (float32) -> FLOATS, all the same
fill_bytes: Any = intrinsic(_fill_bytes)  # (int) -> BYTES, all the same
fma: Any = intrinsic(_fma)  # (a, b, c) -> a * b + c, rounded once
choose: Any = intrinsic(_choose)  # (mask, a, b) -> a where the mask is set, else b


def _joined(instruction: str, result: Vector, *words: str) -> Any:
    """The intrinsic that joins two vectors by one instruction of LLVM."""

    def join(context: Any, a: Any, b: Any) -> Any:
        return result(a, b), lambda target, builder, signature, arguments: getattr(builder, instruction)(
            *words, *arguments
        )

    return intrinsic(join)


add, subtract, multiply = (_joined(name, FLOATS) for name in ("fadd", "fsub", "fmul"))
above, at_most = (_joined("fcmp_ordered", MASK, sign) for sign in (">", "<="))  # a > b, a <= b; not where one is NaN
same: Any = _joined("icmp_unsigned", MASK, "==")  # of BYTES


def _pointer(target: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    first = builder.gep(target.make_array(kind)(target, builder, array).data, [place])
    return builder.bitcast(first, _HELD[kind.dtype].as_pointer())


def _all(builder: Any, kind: ir.VectorType, number: Any) -> Any:
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_WORDS, [0] * LANES))


def _widened(builder: Any, halves: Any) -> Any:
    words = builder.shl(builder.zext(halves, _WORDS), ir.Constant(_WORDS, [16] * LANES))
    return builder.bitcast(words, _FLOATS)


def _narrowed(builder: Any, floats: Any) -> Any:
    words = builder.bitcast(floats, _WORDS)
    sixteen, one, most = (ir.Constant(_WORDS, [number] * LANES) for number in (16, 1, 0x7FFF))
    odd = builder.and_(builder.lshr(words, sixteen), one)
    return builder.trunc(builder.lshr(builder.add(builder.add(words, most), odd), sixteen), _HALVES)
