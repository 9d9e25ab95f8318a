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

using Pair = long long;  // two floats that are moved together, by memcpy alone

template <int N, class E> struct VectorOf {
    typedef E type __attribute__((vector_size(N * sizeof(E))));
};
template <int N, class E = Scalar> using Vector = typename VectorOf<N, E>::type;

template <int N, class E> inline Vector<N, E> load(const E *from) {
    Vector<N, E> vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

template <int N, class E> inline void store(E *to, const Vector<N, E> &vector) { __builtin_memcpy(to, &vector, sizeof vector); }

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
template <int N, int half, class E = Scalar>
inline Vector<N, E> interleave(const Vector<N, E> &first, const Vector<N, E> &second) {
    constexpr int o = half * N / 2;
#if defined(__clang__)
    if constexpr (N == 2) return __builtin_shufflevector(first, second, o, o + 2);
    if constexpr (N == 4) return __builtin_shufflevector(first, second, o, o + 4, o + 1, o + 5);
    if constexpr (N == 8) return __builtin_shufflevector(first, second, o, o + 8, o + 1, o + 9, o + 2, o + 10, o + 3, o + 11);
    if constexpr (N == 16)
        return __builtin_shufflevector(first, second, o, o + 16, o + 1, o + 17, o + 2, o + 18, o + 3, o + 19,
                                       o + 4, o + 20, o + 5, o + 21, o + 6, o + 22, o + 7, o + 23);
#else
    decltype(first < second) order;
    UNROLL for (int i = 0; i < N; ++i) order[i] = o + i / 2 + i % 2 * N;
    return __builtin_shuffle(first, second, order);
#endif
}

// The sums of neighbouring elements, of `first` and then of `second`.
inline Vector<lanes> add_neighbours(const Vector<lanes> &first, const Vector<lanes> &second) {
#if defined(__clang__)
    Vector<lanes> even = {}, odd = {};
    UNROLL for (int i = 0; i < lanes; ++i) {
        even[i] = i < lanes / 2 ? first[2 * i] : second[2 * i - lanes];
        odd[i] = i < lanes / 2 ? first[2 * i + 1] : second[2 * i + 1 - lanes];
    }
    return even + odd;
#else
    decltype(first < second) order;
    UNROLL for (int i = 0; i < lanes; ++i) order[i] = 2 * i;
    return __builtin_shuffle(first, second, order) + __builtin_shuffle(first, second, order + 1);
#endif
}

// P rows of N columns, exchanged: element (row, column) goes to place column * P + row of the P vectors, end to end. A place
// is log2(P) bits of its row and then log2(N) of its column; interleaving row i with row i + P / 2 rotates them by one.
template <int P, int N, class E = Scalar> inline void exchange(Vector<N, E> (&rows)[P]) {
    Vector<N, E> others[P];
    UNROLL for (int left = P; left > 1; left /= 2) {
        UNROLL for (int r = 0; r < P / 2; ++r) {
            others[2 * r] = interleave<N, 0, E>(rows[r], rows[r + P / 2]);
            others[2 * r + 1] = interleave<N, 1, E>(rows[r], rows[r + P / 2]);
        }
        UNROLL for (int r = 0; r < P; ++r) rows[r] = others[r];
    }
}

// to[c][r] = from[r][c] for 8 x 8 elements.
template <class E> inline void turn8(const E *from, int64_t from_stride, E *to, int64_t to_stride) {
    Vector<8, E> rows[8];
    UNROLL for (int r = 0; r < 8; ++r) rows[r] = load<8>(from + r * from_stride);
    exchange<8, 8, E>(rows);
    UNROLL for (int r = 0; r < 8; ++r) store<8>(to + r * to_stride, rows[r]);
}

// to[c * stride + r] = rows[r][c].
template <int P, int N> inline void store_exchanged(Vector<N> (&rows)[P], Scalar *to, int64_t stride) {
    exchange<P, N>(rows);
    UNROLL for (int c = 0; c < N; ++c) {
        constexpr int piece = P < N ? P : N;
        UNROLL for (int r = 0; r < P; r += piece) {
            Vector<piece> part;
            __builtin_memcpy(&part, reinterpret_cast<const char *>(rows + (c * P + r) / N) + (c * P + r) % N * sizeof(Scalar), sizeof part);
            store<piece>(to + c * stride + r, part);
        }
    }
}

// to[c][r] = from[r][c] for rows x cols elements.
template <class E>
__attribute__((noinline, unused)) void turn(const E *from, int64_t from_stride, int64_t rows, int64_t cols, E *to, int64_t to_stride) {
    const int64_t even_rows = rows / 8 * 8, even_cols = cols / 8 * 8;
    for (int64_t r = 0; r < even_rows; r += 8) {
        for (int64_t c = 0; c < even_cols; c += 8)
            turn8(from + r * from_stride + c, from_stride, to + c * to_stride + r, to_stride);
        for (int64_t c = even_cols; c < cols; ++c)
            for (int64_t i = r; i < r + 8; ++i) __builtin_memcpy(to + c * to_stride + i, from + i * from_stride + c, sizeof(E));
    }
    for (int64_t r = even_rows; r < rows; ++r)
        for (int64_t c = 0; c < cols; ++c) __builtin_memcpy(to + c * to_stride + r, from + r * from_stride + c, sizeof(E));
}

inline void copy_row(const Scalar *from, int64_t count, Scalar *to) {
    __builtin_memcpy(to, from, static_cast<unsigned long long>(count) * sizeof(Scalar));
}

constexpr int sampled_rows = registers > 16 ? 8 : 4;  // rows of a panel of gradients, as sdd reads them

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace
