// Products of a warpgroup that read shared memory, by the names of wgmma.h. Each warp does its 16 of the 64 rows.
//
// A product is computed when it begins or at the wgmma_wait that covers it. Until then its sums are full of a certain NaN, so
// that whoever touches them before is found, and what it reads may not be written.
#pragma once
#include "emulated_operands.h"

namespace emulated {

constexpr u32 sum_in_flight = 0x7fa5a5a5u;
constexpr int most_k = 16, most_columns = 256;

struct Tensor {
    Tensor *next;
    Element element;
    Operand a, b;  // a.count == 0: `left` was in registers
    float left[16][most_k];
    int sum_count;
    u32 group;
    bool accumulate, done;
    float *sums[lanes_of_a_warp], *saved;
};

ENGINE void begin_reads(const Operand &operand, const char *piece) {
    const Fibre &thread = now->warp->lanes[0];
    each_chunk(operand, [&](u32 offset, int, int) {
        read_sixteen(thread, offset, reading, piece);
        check_proxy(thread, offset, piece);
    });
}

ENGINE void mark_reads(const Operand &operand, u32 time) {
    const u32 warp = (u32)(now->number / lanes_of_a_warp);
    each_chunk(operand, [&](u32 offset, int, int) { now->cta->readers[offset / 16 * (u32)warps_of_a_cta() + warp] = time; });
}

// The 16 rows of this warp: old sums (0 where they do not count) + a b, by lane and place.
ENGINE void compute(Tensor &tensor) {
    const int columns = tensor.b.count;
    static float right[most_k][most_columns], rows[16][most_columns];
    if (tensor.a.count)
        each_element(tensor.element, tensor.a, [&](int row, int k, float value) { tensor.left[row][k] = value; });
    each_element(tensor.element, tensor.b, [&](int col, int k, float value) { right[k][col] = value; });
    for (int row = 0; row < 16; ++row)
        for (int col = 0; col < columns; col += 8) {
            EightFloats sum = {};
            for (int k = 0; k < (tensor.element == tf32 ? 8 : 16); ++k) sum += *(const EightFloats *)(right[k] + col) * tensor.left[row][k];
            *(EightFloats *)(rows[row] + col) = sum;
        }
    for (int lane = 0; lane < lanes_of_a_warp; ++lane)
        for (int i = 0; i < tensor.sum_count; ++i) {
            float &sum = tensor.saved[lane * tensor.sum_count + i];
            const float product = rows[lane / 4 + i / 2 % 2 * 8][i / 4 * 8 + lane % 4 * 2 + i % 2];
            sum = tensor.accumulate ? sum + product : product;
        }
    tensor.done = true;
}

ENGINE void take_sums(Tensor &tensor) {
    for (int lane = 0; lane < lanes_of_a_warp; ++lane)
        for (int i = 0; i < tensor.sum_count; ++i) {
            tensor.saved[lane * tensor.sum_count + i] = tensor.sums[lane][i];
            memcpy(tensor.sums[lane] + i, &sum_in_flight, 4);
        }
}

ENGINE void check_sums(const Tensor &tensor) {
    for (int lane = 0; lane < lanes_of_a_warp; ++lane)
        for (int i = 0; i < tensor.sum_count; ++i)
            if (memcmp(tensor.sums[lane] + i, &sum_in_flight, 4)) fault("the sums of multiply_wide were written before wgmma_wait");
}

// To the next product of the same sums, or to the sums themselves.
ENGINE void give_sums(Tensor &tensor) {
    check_sums(tensor);
    for (Tensor *later = tensor.next; later; later = later->next)
        if (later->sums[0] == tensor.sums[0]) {
            if (later->done) return;
            memcpy(later->saved, tensor.saved, (size_t)tensor.sum_count * lanes_of_a_warp * 4);
            return;
        }
    for (int lane = 0; lane < lanes_of_a_warp; ++lane)
        memcpy(tensor.sums[lane], tensor.saved + lane * tensor.sum_count, (size_t)tensor.sum_count * 4);
}

struct Product {
    float *sum;
    const u32 *a;
};

ENGINE void read_left(Tensor &tensor) {  // fragments of A, as multiply() takes them
    for (int lane = 0; lane < lanes_of_a_warp; ++lane)
        for (int i = 0; i < 4; ++i) {
            const u32 bits = given_by<Product>(lane).a[i];
            const int row = lane / 4 + i % 2 * 8;
            if (tensor.element == tf32) tensor.left[row][lane % 4 + i / 2 * 4] = tf32_value(bits);
            else
                for (int half = 0; half < 2; ++half)
                    tensor.left[row][lane % 4 * 2 + i / 2 * 8 + half] = value_of(tensor.element, (const char *)&bits + 2 * half);
        }
}

ENGINE void begin_tensor(Element element, int columns, Operand a, Operand b, bool accumulate) {
    const char *piece = "multiply_wide";
    Warp &warp = *now->warp;
    if (run.options.threads % 128) fault("%s needs whole warpgroups", piece);
    if (!warp.fenced) fault("%s without a wgmma_fence before the first", piece);
    Tensor &tensor = *(Tensor *)calloc(1, sizeof(Tensor));
    tensor.element = element, tensor.a = a, tensor.b = b, tensor.accumulate = accumulate, tensor.group = warp.commits;
    tensor.sum_count = columns / 2;
    tensor.saved = (float *)malloc((size_t)tensor.sum_count * lanes_of_a_warp * 4);
    for (int lane = 0; lane < lanes_of_a_warp; ++lane) tensor.sums[lane] = given_by<Product>(lane).sum;
    warp_event();
    if (a.count) begin_reads(a, piece);
    else {
        for (const u32 *to : warp.loaded)
            if (to && to == given_by<Product>(0).a) fault("%s takes registers that load_matrix wrote after the last wgmma_fence", piece);
        read_left(tensor);
    }
    begin_reads(b, piece);
    Tensor *follows = nullptr;  // the product before it on the same sums
    for (Tensor *earlier = warp.first; earlier; earlier = earlier->next)
        if (earlier->sums[0] == tensor.sums[0]) follows = earlier;
    follows ? check_sums(tensor) : take_sums(tensor);
    (warp.first ? warp.last->next : warp.first) = &tensor;
    warp.last = &tensor;
    warp.story = (warp.story * 31 + (u32)a.descriptor) * 31 + (u32)b.descriptor + (u32)columns;
    if ((follows && !follows->done) || !at_once()) return;
    if (follows) memcpy(tensor.saved, follows->saved, (size_t)tensor.sum_count * lanes_of_a_warp * 4);
    compute(tensor);
}

ENGINE void finish_tensors(u32 left) {
    Warp &warp = *now->warp;
    const u32 time = warp_event();
    while (warp.first && (int)(warp.commits - left - warp.first->group) > 0) {
        Tensor *tensor = warp.first;
        if (!tensor->done) compute(*tensor);
        give_sums(*tensor);
        if (tensor->a.count) mark_reads(tensor->a, time);
        mark_reads(tensor->b, time);
        warp.first = tensor->next;
        free(tensor->saved), free(tensor);
    }
    for (Tensor *tensor = warp.first; tensor; tensor = tensor->next) {
        if (tensor->a.count) mark_reads(tensor->a, reading);
        mark_reads(tensor->b, reading);
    }
}

}  // namespace emulated

ENGINE void wgmma_fence() {
    emulated::by_the_last("wgmma_fence", nullptr, [] {
        emulated::Warp &warp = *emulated::now->warp;
        warp.fenced = true, memset(warp.loaded, 0, sizeof warp.loaded);
    });
}
ENGINE void wgmma_commit() {
    emulated::by_the_last("wgmma_commit", nullptr, [] { ++emulated::now->warp->commits; });
}
template <int left> ENGINE void wgmma_wait() {
    emulated::by_the_last("wgmma_wait", nullptr, [] { emulated::finish_tensors(left); });
}
template <int count> ENGINE void settle(float (&)[count]) {}

template <int columns, class T, bool a_turned = false, bool b_turned = false> ENGINE void multiply_wide(float (&sum)[columns / 2], u64 a, u64 b, bool accumulate) {
    static_assert(columns % 8 == 0 && columns <= emulated::most_columns, "wgmma has 8 to 256 columns");
    static_assert(T::bytes == 2 || (!a_turned && !b_turned), "wgmma turns 16-bit operands only");
    emulated::Product mine = {sum, nullptr};
    const int first = emulated::now->number / 32 % 4 * 16;
    emulated::by_the_last("multiply_wide", &mine, [=] {
        emulated::begin_tensor(emulated::element_of(T()), columns, {a, a_turned, first, 16}, {b, b_turned, 0, columns}, accumulate);
    });
}
template <int columns, class T, bool b_turned = false> ENGINE void multiply_wide(float (&sum)[columns / 2], const u32 (&a)[4], u64 b, bool accumulate) {
    emulated::Product mine = {sum, a};
    emulated::by_the_last("multiply_wide from registers", &mine, [=] {
        emulated::begin_tensor(emulated::element_of(T()), columns, {0, false, 0, 0}, {b, b_turned, 0, columns}, accumulate);
    });
}
