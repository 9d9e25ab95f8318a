// Tensor maps: what cuTensorMapEncodeTiled would write is a struct of our own here, and how a box of one comes to shared memory.
// CUDA driver API, "Tensor Map Object Managment"; PTX ISA, "Tensors" and "Swizzling modes".
#pragma once
#include "emulated_barriers.h"

namespace emulated {

constexpr u64 map_mark = 0x7e5012a97e5012a9ull;

struct Map {  // of rows of elements in global memory, of which a box is copied at a time
    u64 mark;
    const char *address;
    u64 columns, rows, pitch;  // elements, rows, bytes from row to row
    u32 box_columns, box_rows, element_bytes, swizzle;
};
static_assert(sizeof(Map) <= sizeof(TensorMap), "a tensor map has 128 bytes");

ENGINE u32 map_element_bytes(int type) { return type == 6 || type == 9 ? 2 : type == 7 ? 4 : 0; }  // float16, bfloat16, float32

// 0, or 1 (CUDA_ERROR_INVALID_VALUE) as the driver answers what it does not take, or we do not need.
ENGINE int encode_tiled(TensorMap *to, int type, u32 rank, const void *address, const u64 *sizes, const u64 *pitches, const u32 *box,
                        const u32 *strides, int interleave, int swizzle, int, int fill) {
    const u32 bytes = map_element_bytes(type);
    if ((size_t)to % 64 || !bytes || rank != 2 || !address || (size_t)address % 16 || interleave || swizzle < 0 || swizzle > 3 || fill) return 1;
    for (int i = 0; i < 2; ++i)
        if (sizes[i] < 1 || sizes[i] > 1ull << 32 || box[i] < 1 || box[i] > 256 || strides[i] != 1) return 1;
    if (pitches[0] % 16 || pitches[0] >= 1ull << 40 || pitches[0] < sizes[0] * bytes) return 1;
    if (box[0] * bytes % 16 || (swizzle && box[0] * bytes > 16u << swizzle)) return 1;
    memset(to, 0, sizeof *to);
    *(Map *)to = Map{map_mark, (const char *)address, sizes[0], sizes[1], pitches[0], box[0], box[1], bytes, (u32)swizzle};
    return 0;
}

ENGINE const Map &map_at(const TensorMap &map, const char *piece) {
    const Map &its = (const Map &)map;
    if ((size_t)&map % 64) fault("%s: a tensor map at %p, which is not aligned to 64", piece, (const void *)&map);
    if (its.mark != map_mark) fault("%s: there is no tensor map", piece);
    return its;
}

ENGINE u32 box_bytes(const Map &map) { return map.box_columns * map.element_bytes * map.box_rows; }

// The box at column x and row y to byte `offset` of a CTA's memory, which begins at a multiple of 1024: zeros outside the tensor.
ENGINE void bring_box(const Map &map, int x, int y, char *memory, u32 offset) {
    const u32 width = map.box_columns * map.element_bytes, mask = map.swizzle ? (16u << map.swizzle) - 16 : 0;
    for (u32 row = 0; row < map.box_rows; ++row)
        for (u32 byte = 0; byte < width; byte += map.element_bytes) {
            const long long column = x + (long long)(byte / map.element_bytes), line = y + (long long)row;
            const u32 straight = offset + row * width + byte, to = straight ^ (straight >> 3 & mask);
            const bool inside = column >= 0 && column < (long long)map.columns && line >= 0 && line < (long long)map.rows;
            if (inside) memcpy(memory + to, map.address + (u64)line * map.pitch + (u64)column * map.element_bytes, map.element_bytes);
            else memset(memory + to, 0, map.element_bytes);
        }
}

}  // namespace emulated

extern "C" __attribute__((visibility("default"), used)) ENGINE int emulated_encode_tiled(
    TensorMap *to, int type, u32 rank, const void *address, const u64 *sizes, const u64 *pitches, const u32 *box, const u32 *strides,
    int interleave, int swizzle, int promotion, int fill) {
    return emulated::encode_tiled(to, type, rank, address, sizes, pitches, box, strides, interleave, swizzle, promotion, fill);
}
