// Logistic and hyperbolic tangent of vectors, within a few units in the last place; NaN stays NaN.
//
// Both come from exp(x) - 1 = 2^k p + (2^k - 1) with x = k log(2) + r, |r| <= log(2) / 2, where p is the Taylor
// polynomial of exp(r) - 1. Near zero k = 0, so that nothing cancels.
#pragma once
#include "vectors.h"

namespace {

constexpr bool is_float = sizeof(Scalar) == 4;
template <bool narrow> struct WordOf { using type = uint32_t; };
template <> struct WordOf<false> { using type = uint64_t; };
typedef WordOf<is_float>::type Bits __attribute__((vector_size(vector_bytes)));  // unsigned: those of NaN overflow

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

// The least of `bound` and `x`, which stays NaN: as one instruction, for which g++ takes two.
inline Vector<lanes> at_most(const Vector<lanes> &x, const Vector<lanes> &bound) {
#if defined(__AVX512F__)
    if constexpr (is_float) return same_bits<Vector<lanes>>(_mm512_min_ps(same_bits<__m512>(bound), same_bits<__m512>(x)));
    else return same_bits<Vector<lanes>>(_mm512_min_pd(same_bits<__m512d>(bound), same_bits<__m512d>(x)));
#elif defined(__AVX__)
    if constexpr (is_float) return same_bits<Vector<lanes>>(_mm256_min_ps(same_bits<__m256>(bound), same_bits<__m256>(x)));
    else return same_bits<Vector<lanes>>(_mm256_min_pd(same_bits<__m256d>(bound), same_bits<__m256d>(x)));
#else
    return x > bound ? bound : x;
#endif
}

inline Vector<lanes> at_least(const Vector<lanes> &x, const Vector<lanes> &bound) {
#if defined(__AVX512F__)
    if constexpr (is_float) return same_bits<Vector<lanes>>(_mm512_max_ps(same_bits<__m512>(bound), same_bits<__m512>(x)));
    else return same_bits<Vector<lanes>>(_mm512_max_pd(same_bits<__m512d>(bound), same_bits<__m512d>(x)));
#elif defined(__AVX__)
    if constexpr (is_float) return same_bits<Vector<lanes>>(_mm256_max_ps(same_bits<__m256>(bound), same_bits<__m256>(x)));
    else return same_bits<Vector<lanes>>(_mm256_max_pd(same_bits<__m256d>(bound), same_bits<__m256d>(x)));
#else
    return x < bound ? bound : x;
#endif
}

inline Exponential exponential(const Vector<lanes> &given) {
    const Vector<lanes> most = Vector<lanes>{} + largest_exponent, x = at_least(at_most(given, most), -most);
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

// Zero where exp(-x) is past what `exponential` takes: infinity shuts a gate, whatever it is multiplied by.
inline Vector<lanes> sigmoid(const Vector<lanes> &x) {
    const Exponential e = exponential(-x);
    const Vector<lanes> open = one / (one + (e.power * e.rest + e.power));
    return x < -(Vector<lanes>{} + largest_exponent) ? Vector<lanes>{} : open;
}

inline Vector<lanes> tangent(const Vector<lanes> &x) {
    const Exponential e = exponential(two * x);
    const Vector<lanes> less_one = e.power * e.rest + (e.power - one);
    return less_one / (less_one + two);
}

}  // namespace
