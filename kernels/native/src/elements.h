// What the tensors hold: ELEMENT (float, double or bfloat16, set by the compiler's flags), and how it is multiplied.
//
// bfloat16 are summed in float, two products a step. Packed operands hold them in pairs that follow each other along the
// sum; a pair fills the bits of one float and is moved as one, so that everything but the products is the code of float.
// No C++ library is used: zig would build its own first, for more than a minute.
#pragma once
#include <stdint.h>
#if defined(__AVX__)
#include <immintrin.h>
#endif

// How pairs are multiplied: by the instruction for it, or with EMULATE_BF16 (for tests) by ordinary ones that give the same.
#if defined(EMULATE_BF16)
#define PAIR_PRODUCTS "emulated bfloat16"
#elif defined(__AVX512BF16__) && defined(__AVX512VL__)
#define PAIR_INSTRUCTION
#define PAIR_PRODUCTS "vdpbf16ps"
#else
#define PAIR_PRODUCTS ""
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

constexpr uint32_t not_a_number = 0x7fc0;  // as bfloat16; rounding would make infinity or zero of some others

struct bfloat16 {  // the upper half of a float
    uint16_t bits;

    bfloat16() = default;

    bfloat16(float value) {  // to nearest, ties to even
        uint32_t wide;
        __builtin_memcpy(&wide, &value, sizeof wide);
        bits = static_cast<uint16_t>(value == value ? (wide + 0x7fff + (wide >> 16 & 1)) >> 16 : not_a_number);
    }
};

template <class Type> struct SumOf { using type = Type; };
template <> struct SumOf<bfloat16> { using type = float; };

using Element = ELEMENT;
using Scalar = SumOf<Element>::type;  // of sums and of vectors
constexpr bool paired = sizeof(Element) < sizeof(Scalar);
constexpr int pair = paired ? 2 : 1;  // elements of a sum that are added in one step

inline Scalar scalar_at(const Scalar *from) { return *from; }

inline Scalar scalar_at(const bfloat16 *from) {  // the bits of a pair
    Scalar bits;
    __builtin_memcpy(&bits, from, sizeof bits);
    return bits;
}

inline Scalar pair_of(bfloat16 first, bfloat16 second) {
    const bfloat16 both[2] = {first, second};
    return scalar_at(both);
}

}  // namespace
