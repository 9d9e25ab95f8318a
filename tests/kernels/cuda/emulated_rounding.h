// Conversions between float and the shorter types, exact for every value; see the PTX ISA's cvt.
#pragma once

namespace emulated {

ENGINE float f16_value(u32 bits) {
    const u32 sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 0) {  // zero or subnormal: a multiple of 2^-24
        const float value = (float)fraction * 5.9604644775390625e-8f;
        return sign ? -value : value;
    }
    const u32 wide = exponent == 31 ? 255 : exponent + 112;
    return __builtin_bit_cast(float, sign | wide << 23 | fraction << 13);
}

// `bits` without its last `dropped` bits (0 < dropped < 32), to nearest, ties to even.
ENGINE u32 round_off(u32 bits, u32 dropped) {
    const u32 half = 1u << (dropped - 1), odd = bits >> dropped & 1;
    return (bits + half - 1 + odd) >> dropped;
}

ENGINE u32 to_bf16(float value) {
    const u32 bits = __builtin_bit_cast(u32, value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return round_off(bits, 16);
}

ENGINE u32 to_f16(float value) {
    const u32 bits = __builtin_bit_cast(u32, value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    if (size >= 0x47800000u) return sign | 0x7c00;  // 65536 and more; 65520 to 65536 carry into infinity below
    if (size >= 0x38800000u) return sign | (round_off(size, 13) - (112u << 10));
    const u32 shift = 126 - (size >> 23);  // subnormal: in units of 2^-24
    return sign | (shift > 25 ? 0 : round_off((size & 0x7fffffu) | 0x800000u, shift));
}

ENGINE u32 to_tf32(u32 bits) {  // ties away from zero
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fffffffu;
    if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
    return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace emulated
