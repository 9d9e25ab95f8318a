// Operands of wgmma in shared memory: where a descriptor says that their elements lie. PTX ISA, "Matrix descriptor" and
// "Strides".
#pragma once
#include "emulated_copies.h"

namespace emulated {

enum Element { bf16, f16, tf32 };
ENGINE Element element_of(Bfloat16) { return bf16; }
ENGINE Element element_of(Float16) { return f16; }
ENGINE Element element_of(Tf32) { return tf32; }

struct Operand {  // in shared memory, as its descriptor says
    u64 descriptor;
    bool turned;
    int first, count;  // rows of A or columns of B
};

ENGINE float value_of(Element element, const char *at) {
    if (element == tf32) {
        u32 bits;
        memcpy(&bits, at, 4);
        return tf32_value(bits);
    }
    u16 bits;
    memcpy(&bits, at, 2);
    return element == bf16 ? bf16_value(bits) : f16_value(bits);
}

// Byte in shared memory of a piece of 16 bytes: piece `chunk` of row `line` (plain), or of step `line` of K (turned).
ENGINE u32 chunk_offset(const Operand &operand, int line, int chunk) {
    const u64 bits = operand.descriptor;
    const u32 leading = (u32)(bits >> 16 & 0x3fff) << 4, stride = (u32)(bits >> 32 & 0x3fff) << 4, mode = (u32)(bits >> 62);
    if (bits >> 49 & 7) fault("multiply_wide: a descriptor with a base offset, which is not emulated");
    const u32 width = mode == 0 ? 16 : 256u >> mode, eighth = (u32)line / 8, rest = (u32)line % 8, pieces = width / 16;
    u32 address = ((u32)bits & 0x3fff) << 4;
    if (mode == 0 && operand.turned) address += eighth * leading + (u32)chunk * stride;
    else if (mode == 0) address += eighth * stride + (u32)chunk * leading;
    else if (operand.turned) address += eighth * stride + (u32)chunk / pieces * leading + (u32)chunk % pieces * 16;
    else address += eighth * stride + (u32)chunk * 16;
    address += rest * width;
    address ^= address >> 3 & (width - 16);
    if (address < 1024 || address - 1024 + 16 > run.options.shared_bytes)
        fault("multiply_wide reads byte %lld of %u bytes of shared memory", (long long)address - 1024, run.options.shared_bytes);
    return address - 1024;
}

// see(byte in shared memory, line, chunk) for each 16 bytes of the operand.
template <class See> ENGINE void each_chunk(const Operand &operand, See see) {
    if (operand.turned)
        for (int k = 0; k < 16; ++k)
            for (int i = operand.first / 8; i < (operand.first + operand.count) / 8; ++i) see(chunk_offset(operand, k, i), k, i);
    else
        for (int i = operand.first; i < operand.first + operand.count; ++i)
            for (int chunk = 0; chunk < 2; ++chunk) see(chunk_offset(operand, i, chunk), i, chunk);
}

// put(row or column counted from the first, k, value) for each element.
template <class Put> ENGINE void each_element(Element element, const Operand &operand, Put put) {
    const int bytes = element == tf32 ? 4 : 2;
    each_chunk(operand, [&](u32 offset, int line, int chunk) {
        for (int i = 0; i < 16 / bytes; ++i) {
            const float value = value_of(element, now->cta->memory + offset + i * bytes);
            const int other = chunk * (16 / bytes) + i;
            operand.turned ? put(other - operand.first, line, value) : put(line - operand.first, other, value);
        }
    });
}

}  // namespace emulated
