// Tensor maps: what cuTensorMapEncodeTiled would write is a struct of our own here, and how a box of one comes to shared
// memory and back. CUDA driver API, "Tensor Map Object Management"; PTX ISA, "Tensors" and "Swizzling modes".
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

ENGINE u32 map_element_bytes(int type) {  // float16, bfloat16, float32
    return type == 6 || type == 9 ? 2 : type == 7 ? 4 : 0;
}

// 0, or 1 (CUDA_ERROR_INVALID_VALUE) as the driver answers what it does not take, or we do not need.
ENGINE int encode_tiled(TensorMap *to, int type, u32 rank, const void *address, const u64 *sizes, const u64 *pitches,
                        const u32 *box, const u32 *strides, int interleave, int swizzle, int, int fill) {
    const u32 bytes = map_element_bytes(type);
    if ((size_t)to % 64 || !bytes || rank != 2 || !address || (size_t)address % 16) return 1;
    if (interleave || swizzle < 0 || swizzle > 3 || fill) return 1;
    for (int i = 0; i < 2; ++i)
        if (sizes[i] < 1 || sizes[i] > 1ull << 32 || box[i] < 1 || box[i] > 256 || strides[i] != 1) return 1;
    if (pitches[0] % 16 || pitches[0] >= 1ull << 40 || pitches[0] < sizes[0] * bytes) return 1;
    if (box[0] * bytes % 16 || (swizzle && box[0] * bytes > 16u << swizzle)) return 1;
    memset(to, 0, sizeof *to);
    const char *from = (const char *)address;
    *(Map *)to = Map{map_mark, from, sizes[0], sizes[1], pitches[0], box[0], box[1], bytes, (u32)swizzle};
    return 0;
}

ENGINE const Map &map_at(const TensorMap &map, const char *piece) {
    const Map &its = (const Map &)map;
    if ((size_t)&map % 64) fault("%s: a tensor map at %p, which is not aligned to 64", piece, (const void *)&map);
    if (its.mark != map_mark) fault("%s: there is no tensor map", piece);
    return its;
}

ENGINE u32 box_bytes(const Map &map) { return map.box_columns * map.element_bytes * map.box_rows; }

// see(byte in shared memory, address in global memory or null outside the tensor) for each element of the box at column x
// and row y that lies from byte `offset` of a CTA's memory on, which begins at a multiple of 1024.
template <class See> ENGINE void each_of_box(const Map &map, int x, int y, u32 offset, See see) {
    const u32 width = map.box_columns * map.element_bytes, mask = map.swizzle ? (16u << map.swizzle) - 16 : 0;
    for (u32 row = 0; row < map.box_rows; ++row)
        for (u32 byte = 0; byte < width; byte += map.element_bytes) {
            const long long column = x + (long long)(byte / map.element_bytes), line = y + (long long)row;
            const u32 straight = offset + row * width + byte, to = straight ^ (straight >> 3 & mask);
            const bool across = column >= 0 && column < (long long)map.columns;
            const bool inside = across && line >= 0 && line < (long long)map.rows;
            see(to, inside ? (char *)map.address + (u64)line * map.pitch + (u64)column * map.element_bytes : nullptr);
        }
}

ENGINE void bring_box(const Map &map, int x, int y, char *memory, u32 offset) {  // zeros outside the tensor
    each_of_box(map, x, y, offset, [&](u32 to, const char *from) {
        if (from) memcpy(memory + to, from, map.element_bytes);
        else memset(memory + to, 0, map.element_bytes);
    });
}

// What products and boxes read must have been made visible to them: by who wrote it, or by who begins them.
ENGINE void check_proxy(const Fibre &thread, u32 offset, const char *piece) {
    for (u32 i = offset / 2; i < offset / 2 + 8; ++i) {
        const Half &half = thread.cta->halves[i];
        if (half.state == stored && thread_at(*thread.cta, half.writer).fenced < half.time && thread.fenced < half.time)
            fault("%s reads byte %u of shared memory, which thread %d wrote without a proxy_fence after",
                  piece, 2 * i, half.writer);
    }
}

struct Store {  // a box on its way from shared memory
    Fibre *thread;
    const Map *map;
    u32 offset, group;
    int x, y;
    bool done;
};
static Store stores[1024];
static int store_count;

ENGINE void move_box(Store &store) {
    const Map &map = *store.map;
    const char *memory = store.thread->cta->memory;
    each_of_box(map, store.x, store.y, store.offset, [&](u32 from, char *to) {
        if (to) memcpy(to, memory + from, map.element_bytes);
    });
    store.done = true;
}

ENGINE void mark_store(const Store &store, u32 time) {
    const u32 warp = (u32)(store.thread->number / lanes_of_a_warp);
    for (u32 i = store.offset / 16; i < (store.offset + box_bytes(*store.map)) / 16; ++i)
        store.thread->cta->readers[i * (u32)warps_of_a_cta() + warp] = time;
}

ENGINE void store_box_begin(const TensorMap &map, int x, int y, const void *shared) {
    const char *piece = "store_box";
    const Map &its = map_at(map, piece);
    const u32 bytes = box_bytes(its), offset = shared_offset(shared, bytes, 128, piece);
    if (store_count == sizeof stores / sizeof stores[0])
        fault("%s: more than %d boxes are on their way", piece, store_count);
    for (u32 i = offset; i < offset + bytes; i += 16) {
        read_sixteen(*now, i, reading, piece);
        check_proxy(*now, i, piece);
    }
    Store &store = stores[store_count++] = Store{now, &its, offset, now->store_groups, x, y, false};
    if (at_once()) move_box(store);
}

// Until all but the calling thread's `left` last groups have read shared memory.
ENGINE void wait_for_stores(u32 left) {
    const u32 time = event(*now);
    int kept = 0;
    for (int i = 0; i < store_count; ++i) {
        Store &store = stores[i];
        if (store.thread == now && (int)(now->store_groups - left - store.group) > 0) {
            if (!store.done) move_box(store);
            mark_store(store, time);
        } else stores[kept++] = store;
    }
    store_count = kept;
    for (int i = 0; i < store_count; ++i)
        if (stores[i].thread == now) mark_store(stores[i], reading);
}

ENGINE void check_stores() {  // of a thread that exits
    for (int i = 0; i < store_count; ++i)
        if (stores[i].thread == now) fault("exits while store_box may still read its shared memory");
}

}  // namespace emulated

extern "C" __attribute__((visibility("default"), used)) ENGINE int emulated_encode_tiled(
    TensorMap *to, int type, u32 rank, const void *address, const u64 *sizes, const u64 *pitches, const u32 *box,
    const u32 *strides, int interleave, int swizzle, int promotion, int fill) {
    return emulated::encode_tiled(to, type, rank, address, sizes, pitches, box, strides, interleave, swizzle,
                                  promotion, fill);
}
