// Portable vectors of SCALAR (float or double, set by the compiler's flags) and the transposition of small matrices.
//
// No C++ library is used: zig would build its own first, for more than a minute.
#pragma once
#include <stdint.h>

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

#define UNROLL _Pragma("GCC unroll 32")  // sums that are indexed by a loop variable would live in memory

namespace {

using Scalar = SCALAR;

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, registers = 32;
constexpr const char *isa_name = "avx512";
#elif defined(__AVX__)
constexpr int vector_bytes = 32, registers = 16;
constexpr const char *isa_name = "avx";
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, registers = 32;
constexpr const char *isa_name = "neon";
#else
constexpr int vector_bytes = 16, registers = 16;
constexpr const char *isa_name = "128-bit";
#endif

constexpr int lanes = vector_bytes / static_cast<int>(sizeof(Scalar));

template <int N> struct VectorOf {
    typedef Scalar type __attribute__((vector_size(N * sizeof(Scalar))));
};
template <int N> using Vector = typename VectorOf<N>::type;

template <int N> inline Vector<N> load(const Scalar *from) {
    Vector<N> vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

template <int N> inline void store(Scalar *to, const Vector<N> &vector) { __builtin_memcpy(to, &vector, sizeof vector); }

// As load and store, of the first `count` <= N elements; the others are zero.
template <int N> inline Vector<N> load_some(const Scalar *from, int64_t count) {
    if (count == N) return load<N>(from);
    Vector<N> vector = {};
    for (int64_t i = 0; i < count; ++i) vector[i] = from[i];
    return vector;
}

template <int N> inline void store_some(Scalar *to, const Vector<N> &vector, int64_t count) {
    if (count == N) return store<N>(to, vector);
    for (int64_t i = 0; i < count; ++i) to[i] = vector[i];
}

// The elements of two vectors in turns; half 0: their first halves, half 1: their second.
template <int half> inline Vector<8> interleave(const Vector<8> &first, const Vector<8> &second) {
    constexpr int o = half * 4;
#if defined(__clang__)
    return __builtin_shufflevector(first, second, o, o + 8, o + 1, o + 9, o + 2, o + 10, o + 3, o + 11);
#else
    using Index = decltype(first < second);
    return __builtin_shuffle(first, second, (Index){o, o + 8, o + 1, o + 9, o + 2, o + 10, o + 3, o + 11});
#endif
}

// to[c][r] = from[r][c] for 8 x 8 elements. An element's place is six bits, three of its row and three of its column;
// interleaving row i with row i + 4 rotates them by one, so that three rounds exchange rows and columns.
inline void turn8(const Scalar *from, int64_t from_stride, Scalar *to, int64_t to_stride) {
    Vector<8> rows[2][8];
    UNROLL for (int r = 0; r < 8; ++r) rows[0][r] = load<8>(from + r * from_stride);
    UNROLL for (int round = 0; round < 3; ++round)
        UNROLL for (int r = 0; r < 4; ++r) {
            const Vector<8> &first = rows[round % 2][r], &second = rows[round % 2][r + 4];
            rows[(round + 1) % 2][2 * r] = interleave<0>(first, second);
            rows[(round + 1) % 2][2 * r + 1] = interleave<1>(first, second);
        }
    UNROLL for (int r = 0; r < 8; ++r) store<8>(to + r * to_stride, rows[1][r]);
}

// to[c][r] = from[r][c] for rows x cols elements.
__attribute__((noinline, unused)) void turn(const Scalar *from, int64_t from_stride, int64_t rows, int64_t cols, Scalar *to, int64_t to_stride) {
    const int64_t even_rows = rows / 8 * 8, even_cols = cols / 8 * 8;
    for (int64_t r = 0; r < even_rows; r += 8) {
        for (int64_t c = 0; c < even_cols; c += 8)
            turn8(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
        for (int64_t c = even_cols; c < cols; ++c)
            for (int64_t i = r; i < r + 8; ++i) to[c * to_stride + i] = from[i * from_stride + c];
    }
    for (int64_t r = even_rows; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) to[c * to_stride + r] = from[r * from_stride + c];
}

inline void copy_row(const Scalar *from, int64_t count, Scalar *to) {
    __builtin_memcpy(to, from, static_cast<unsigned long long>(count) * sizeof(Scalar));
}

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
