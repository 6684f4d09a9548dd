"""SIMD vectors for numba functions: load, store, arithmetic and elementary functions on several values at once.

Kernels that use these functions are vectorised explicitly and do not depend on the compiler's autovectoriser. A vector
holds 64 bytes: 16 lanes of float32 or 8 lanes of float64. On a machine with shorter registers, LLVM splits a vector
into several registers. numba compiles the code on the machine that runs it, so no compiler needs to be installed.

Arrays are one-dimensional and contiguous. ``start`` is the position of the first lane, in elements. Bounds are not
checked.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, njit, types
from numba.core import cgutils

# typed Any because numba's annotations count the typing context as an argument of the caller
intrinsic: Any = extending.intrinsic

VECTOR_BYTES = 64


class VectorType(types.Type):
    """A vector of ``lanes`` values of numba type ``scalar``."""

    def __init__(self, scalar: types.Float) -> None:
        self.scalar = scalar
        self.lanes = VECTOR_BYTES * 8 // scalar.bitwidth
        super().__init__(f"Vector({scalar})")


@extending.register_model(VectorType)
class _VectorModel(extending.models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: VectorType) -> None:
        scalar = ir.FloatType() if fe_type.scalar.bitwidth == 32 else ir.DoubleType()
        super().__init__(dmm, fe_type, ir.VectorType(scalar, fe_type.lanes))


def lanes_per_vector(dtype: Any) -> int:
    """The number of values of ``dtype`` that a vector holds."""
    return VECTOR_BYTES // np.dtype(dtype).itemsize


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any) -> Any:
    """The LLVM pointer to ``array[index]``."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def _broadcast(builder: Any, llvm_type: Any, value: Any) -> Any:
    """The LLVM vector of type ``llvm_type`` with ``value`` in every lane."""
    undefined = ir.Constant(llvm_type, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), llvm_type.count), None))


def _llvm_name(name: str, vector: VectorType) -> str:
    """The full name of LLVM's intrinsic ``name`` for a vector type, such as llvm.fma.v16f32."""
    return f"llvm.{name}.v{vector.lanes}f{vector.scalar.bitwidth}"


@intrinsic
def load(typing: Any, array: Any, start: Any) -> Any:
    """The vector array[start : start + lanes]."""
    vector = VectorType(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        llvm_type = context.get_value_type(vector)
        pointer = _pointer(context, builder, signature.args[0], *arguments)
        return builder.load(builder.bitcast(pointer, llvm_type.as_pointer()), align=vector.scalar.bitwidth // 8)

    return vector(array, types.intp), generate


@intrinsic
def store(typing: Any, array: Any, start: Any, value: Any) -> Any:
    """Writes ``value`` to ``array[start : start + lanes]``."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = signature.args[2]
        llvm_type = context.get_value_type(vector)
        pointer = _pointer(context, builder, signature.args[0], *arguments[:2])
        pointer = builder.bitcast(pointer, llvm_type.as_pointer())
        builder.store(arguments[2], pointer, align=vector.scalar.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(array, types.intp, value), generate


@intrinsic
def splat(typing: Any, array: Any, index: Any) -> Any:
    """A vector with array[index] in every lane."""
    vector = VectorType(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = builder.load(_pointer(context, builder, signature.args[0], *arguments))
        return _broadcast(builder, context.get_value_type(vector), value)

    return vector(array, types.intp), generate


@intrinsic
def lanes(typing: Any, a: Any) -> Any:
    """The number of lanes of the vector ``a``, a constant in compiled code."""
    n_lanes = a.lanes
    return types.intp(a), lambda context, builder, signature, arguments: ir.Constant(ir.IntType(64), n_lanes)


def _binary(name: str, doc: str) -> Any:
    """An intrinsic that applies the LLVM instruction ``name`` to two vectors; ``doc`` becomes its docstring."""

    def function(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, name)(*arguments, flags=("contract",))

        return a(a, b), generate

    function.__doc__ = doc
    return intrinsic(function)


add = _binary("fadd", "a + b.")
sub = _binary("fsub", "a − b.")
mul = _binary("fmul", "a · b.")
div = _binary("fdiv", "a / b.")


def _call(llvm: str, n_arguments: int, doc: str) -> Any:
    """An intrinsic that calls LLVM's intrinsic ``llvm`` with ``n_arguments`` vectors; ``doc`` becomes its docstring."""

    def emit(context: Any, builder: Any, vector: Any, arguments: Any) -> Any:
        llvm_type = context.get_value_type(vector)
        function_type = ir.FunctionType(llvm_type, [llvm_type] * n_arguments)
        llvm_function = cgutils.get_or_insert_function(builder.module, function_type, _llvm_name(llvm, vector))
        return builder.call(llvm_function, arguments)

    def unary(typing: Any, a: Any) -> Any:
        return a(a), lambda context, builder, signature, arguments: emit(context, builder, a, arguments)

    def binary(typing: Any, a: Any, b: Any) -> Any:
        return a(a, b), lambda context, builder, signature, arguments: emit(context, builder, a, arguments)

    def ternary(typing: Any, a: Any, b: Any, c: Any) -> Any:
        return a(a, b, c), lambda context, builder, signature, arguments: emit(context, builder, a, arguments)

    function = (unary, binary, ternary)[n_arguments - 1]
    function.__doc__ = doc
    return intrinsic(function)


fma = _call("fma", 3, "a · b + c, rounded once.")
fabs = _call("fabs", 1, "|a|.")


def _select(comparison: str, doc: str) -> Any:
    """An intrinsic that returns, per lane, b where "b ``comparison`` a" is true and a elsewhere."""

    def function(typing: Any, a: Any, b: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            first, second = arguments
            return builder.select(builder.fcmp_ordered(comparison, second, first), second, first)

        return a(a, b), generate

    function.__doc__ = doc
    return intrinsic(function)


fmax = _select(">", "The larger of a and b; a where either is NaN.")
fmin = _select("<", "The smaller of a and b; a where either is NaN.")


@intrinsic
def select_lt(typing: Any, a: Any, b: Any, low: Any, high: Any) -> Any:
    """``low`` in lanes where a < b, ``high`` in the others, also where a or b is NaN."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first, second, below, above = arguments
        return builder.select(builder.fcmp_ordered("<", first, second), below, above)

    return low(a, b, low, high), generate


@intrinsic
def reduce_add(typing: Any, a: Any) -> Any:
    """The sum of all lanes. It adds the upper half of the lanes to the lower half until one lane is left."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,) = arguments
        n_left = a.lanes
        undefined = ir.Constant(context.get_value_type(a), ir.Undefined)
        while n_left > 1:
            n_left //= 2
            order = [i + n_left if i < n_left else i for i in range(a.lanes)]
            mask = ir.Constant(ir.VectorType(ir.IntType(32), a.lanes), order)
            value = builder.fadd(value, builder.shuffle_vector(value, undefined, mask))
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return a.scalar(a), generate


@intrinsic
def movemask(typing: Any, a: Any) -> Any:
    """An int64 whose bit k is set if lane k of ``a`` is not 0; a NaN lane counts as not 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (value,) = arguments
        set_lanes = builder.fcmp_unordered("!=", value, ir.Constant(value.type, [0.0] * a.lanes))
        return builder.zext(builder.bitcast(set_lanes, ir.IntType(a.lanes)), ir.IntType(64))

    return types.int64(a), generate


@intrinsic
def count_trailing_zeros(typing: Any, bits: Any) -> Any:
    """The position of the lowest set bit of ``bits``, counted from 0; undefined for 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@intrinsic
def _scale_by_power_of_two(typing: Any, a: Any, power: Any) -> Any:
    """``a`` · 2^k, with k the integer in the low bits of ``power``; k is added to the exponent bits of ``a``."""
    bits = 23 if a.scalar.bitwidth == 32 else 52

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        llvm_type = ir.VectorType(ir.IntType(a.scalar.bitwidth), a.lanes)
        value, shift = (builder.bitcast(argument, llvm_type) for argument in arguments)
        exponent = builder.shl(shift, ir.Constant(llvm_type, [bits] * a.lanes))
        return builder.bitcast(builder.add(value, exponent), context.get_value_type(a))

    return a(a, power), generate


@intrinsic
def constant(typing: Any, a: Any, number: Any) -> Any:
    """A vector of the type of ``a`` with ``number`` in every lane."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value = context.cast(builder, arguments[1], number, a.scalar)
        return _broadcast(builder, context.get_value_type(a), value)

    return a(a, number), generate


def _polynomial(single: list[float], double: list[float], doc: str) -> Any:
    """An intrinsic that computes Σ c_k a^k by Horner's rule, with coefficients for float32 and for float64."""

    def function(typing: Any, a: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            llvm_type = context.get_value_type(a)
            function_type = ir.FunctionType(llvm_type, [llvm_type] * 3)
            fma_function = cgutils.get_or_insert_function(builder.module, function_type, _llvm_name("fma", a))
            coefficients = [
                ir.Constant(llvm_type, [c] * a.lanes) for c in (single if a.scalar.bitwidth == 32 else double)
            ]
            value = coefficients[-1]
            for coefficient in reversed(coefficients[:-1]):
                value = builder.call(fma_function, [value, arguments[0], coefficient])
            return value

        return a(a), generate

    function.__doc__ = doc
    return intrinsic(function)


_LN2 = math.log(2)
_two_to_fraction = _polynomial(  # float32: interpolation in Chebyshev points of [−½, ½]; float64: Taylor series
    np.polynomial.chebyshev.Chebyshev.interpolate(np.exp2, 6, domain=[-0.5, 0.5])
    .convert(kind=np.polynomial.Polynomial)
    .coef.tolist(),
    [_LN2**k / math.factorial(k) for k in range(14)],
    "2 to the power of a in [−½, ½].",
)
_half_log_series = _polynomial(
    [1 / (2 * k + 1) for k in range(8)], [1 / (2 * k + 1) for k in range(18)], "artanh(s) / s as a series in s² ≤ 1/9."
)


@njit(inline="always")
def exp(x: Any) -> Any:
    """e^x, with x clipped to ±87 in float32 and ±708 in float64, so that no result is infinite or denormal."""
    limit, rounder = (87.0, 12582912.0) if lanes(x) == 16 else (708.0, 6755399441055744.0)  # 1.5 · 2^23, 1.5 · 2^52
    x = fmin(fmax(x, constant(x, -limit)), constant(x, limit))
    # the low bits of ``shifted`` are x / log 2 rounded to an integer
    shifted = fma(x, constant(x, 1.4426950408889634), constant(x, rounder))
    fraction = fma(x, constant(x, 1.4426950408889634), sub(constant(x, rounder), shifted))
    return _scale_by_power_of_two(_two_to_fraction(fraction), shifted)


_phi_series = _polynomial(
    [1 / math.factorial(k + 1) for k in range(8)], [1 / math.factorial(k + 1) for k in range(17)], "phi for |a| ≤ ½."
)
_phi_slope_series = _polynomial(
    [(k + 1) / math.factorial(k + 2) for k in range(8)],
    [(k + 1) / math.factorial(k + 2) for k in range(17)],
    "The derivative of phi for |a| ≤ ½.",
)


@njit(inline="always")
def phi(x: Any, exp_x: Any) -> Any:
    """(e^x − 1) / x, and 1 at x = 0; ``exp_x`` is e^x."""
    ratio = div(sub(exp_x, constant(x, 1.0)), x)
    return select_lt(fabs(x), constant(x, 0.5), _phi_series(x), ratio)


@njit(inline="always")
def phi_slope(x: Any, exp_x: Any) -> Any:
    """The derivative of ``phi``: (x e^x − e^x + 1) / x², and ½ at x = 0."""
    ratio = div(add(fma(x, exp_x, sub(constant(x, 0.0), exp_x)), constant(x, 1.0)), mul(x, x))
    return select_lt(fabs(x), constant(x, 0.5), _phi_slope_series(x), ratio)


@njit(inline="always")
def sigmoid(x: Any) -> Any:
    """1 / (1 + e^−x)."""
    one = constant(x, 1.0)
    return div(one, add(one, exp(sub(constant(x, 0.0), x))))


@njit(inline="always")
def softplus(x: Any) -> Any:
    """log(1 + e^x), computed as max(x, 0) + 2 artanh(e / (2 + e)) with e = e^−|x|; accurate for small and large x."""
    e = exp(sub(constant(x, 0.0), fabs(x)))
    s = div(e, add(constant(x, 2.0), e))
    return fma(mul(constant(x, 2.0), s), _half_log_series(mul(s, s)), fmax(x, constant(x, 0.0)))
