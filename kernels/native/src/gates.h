// Logistic and hyperbolic tangent of vectors, within a few units in the last place; NaN stays NaN.
//
// Both come from exp(x) - 1 = 2^k p + (2^k - 1) with x = k log(2) + r, |r| <= log(2) / 2, where p is the Taylor
// polynomial of exp(r) - 1. Near zero k = 0, so that nothing cancels.
#pragma once
#include "vectors.h"

namespace {

constexpr bool is_float = sizeof(Scalar) == 4;
using Bits = decltype(Vector<lanes>{} < Vector<lanes>{});

constexpr int degree = is_float ? 7 : 13;
constexpr int mantissa_bits = is_float ? 23 : 52, exponent_bias = is_float ? 127 : 1023;
constexpr Scalar rounder = static_cast<Scalar>(is_float ? 12582912.0 : 6755399441055744.0);  // 1.5 * 2^mantissa_bits
constexpr Scalar largest_exponent = static_cast<Scalar>(is_float ? 87 : 708);
// log(2) in two parts; the first has so few bits that its products with k are exact.
constexpr Scalar log2_high = static_cast<Scalar>(is_float ? 0x1.62ep-1 : 0x1.62e42fefap-1);
constexpr Scalar log2_low = static_cast<Scalar>(is_float ? 0x1.0bfbe8e7bcd5ep-15 : 0x1.cf79abc9e3b3ap-40);

constexpr Scalar inverse_factorial(int n) {
    double product = 1;
    for (int i = 2; i <= n; ++i) product *= i;
    return static_cast<Scalar>(1 / product);
}

struct Exponential {
    Vector<lanes> power, rest;  // exp(x) - 1 = power * rest + (power - 1)
};

inline Vector<lanes> clamp(Vector<lanes> x) {
    const Vector<lanes> most = Vector<lanes>{} + largest_exponent;
    x = x > most ? most : x;
    return x < -most ? -most : x;
}

inline Exponential exponential(const Vector<lanes> &given) {
    const Vector<lanes> x = clamp(given);
    const Vector<lanes> shifted = x * static_cast<Scalar>(1.4426950408889634) + rounder;
    const Vector<lanes> k = shifted - rounder;
    const Vector<lanes> r = (x - k * log2_high) - k * log2_low;
    Vector<lanes> rest = Vector<lanes>{} + inverse_factorial(degree);
    UNROLL for (int power = degree - 1; power >= 1; --power) rest = rest * r + inverse_factorial(power);
    Bits bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + exponent_bias) << mantissa_bits;  // the low bits of `shifted` are those of the integer k
    Exponential result;
    __builtin_memcpy(&result.power, &bits, sizeof bits);
    result.rest = rest * r;
    return result;
}

constexpr Scalar one = 1, two = 2;

inline Vector<lanes> sigmoid(const Vector<lanes> &x) {
    const Exponential e = exponential(-x);
    return one / (one + (e.power * e.rest + e.power));
}

inline Vector<lanes> tangent(const Vector<lanes> &x) {
    const Exponential e = exponential(two * x);
    const Vector<lanes> less_one = e.power * e.rest + (e.power - one);
    return less_one / (less_one + two);
}

}  // namespace
