// Portable vectors of scalars, their products, and the transposition of small matrices.
#pragma once
#include "elements.h"

#define UNROLL _Pragma("GCC unroll 32")  // sums that are indexed by a loop variable would live in memory

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64, registers = 32;
#define ISA "avx512"
#elif defined(__AVX__)
constexpr int vector_bytes = 32, registers = 16;
#define ISA "avx"
#elif defined(__aarch64__)
constexpr int vector_bytes = 16, registers = 32;
#define ISA "neon"
#else
constexpr int vector_bytes = 16, registers = 16;
#define ISA "128-bit"
#endif

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int lanes = vector_bytes / static_cast<int>(sizeof(Scalar));

template <int N> struct VectorOf {
    typedef Scalar type __attribute__((vector_size(N * sizeof(Scalar))));
};
template <int N> using Vector = typename VectorOf<N>::type;

// The bits of N scalars: as many elements, or N pairs of them.
template <int N, class From> inline Vector<N> load(const From *from) {
    Vector<N> vector;
    __builtin_memcpy(&vector, from, sizeof vector);
    return vector;
}

// Of a vector that is used again and again: g++ would rather read it anew each time, where registers are few.
template <class V> inline void in_register([[maybe_unused]] V &vector) {
#if defined(__AVX__) && !defined(__AVX512F__)
    if constexpr (sizeof(V) >= 16) __asm__("" : "+x"(vector));
#endif
}

template <int N> inline void store(Scalar *to, const Vector<N> &vector) { __builtin_memcpy(to, &vector, sizeof vector); }

template <class To, class From> inline To same_bits(const From &from) {
    static_assert(sizeof(To) == sizeof(From), "no bit is lost");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define SANITIZED
#endif

// Loads and stores of the first `count` elements, where there are instructions for it that a sanitizer sees through.
#if defined(__AVX512VL__) && !defined(SANITIZED)
constexpr int masked_loads = 64, masked_stores = 64;  // bytes, at most

template <int N> inline Vector<N> load_masked(const float *from, int64_t count) {
    const unsigned mask = (1u << count) - 1;
    if constexpr (N == 16) return same_bits<Vector<N>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from));
    if constexpr (N == 8) return same_bits<Vector<N>>(_mm256_maskz_loadu_ps(static_cast<__mmask8>(mask), from));
    if constexpr (N == 4) return same_bits<Vector<N>>(_mm_maskz_loadu_ps(static_cast<__mmask8>(mask), from));
}

template <int N> inline Vector<N> load_masked(const double *from, int64_t count) {
    const unsigned mask = (1u << count) - 1;
    if constexpr (N == 8) return same_bits<Vector<N>>(_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from));
    if constexpr (N == 4) return same_bits<Vector<N>>(_mm256_maskz_loadu_pd(static_cast<__mmask8>(mask), from));
}

template <int N> inline void store_masked(float *to, const Vector<N> &vector, int64_t count) {
    const unsigned mask = (1u << count) - 1;
    if constexpr (N == 16) _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), same_bits<__m512>(vector));
    if constexpr (N == 8) _mm256_mask_storeu_ps(to, static_cast<__mmask8>(mask), same_bits<__m256>(vector));
    if constexpr (N == 4) _mm_mask_storeu_ps(to, static_cast<__mmask8>(mask), same_bits<__m128>(vector));
}

template <int N> inline void store_masked(double *to, const Vector<N> &vector, int64_t count) {
    const unsigned mask = (1u << count) - 1;
    if constexpr (N == 8) _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), same_bits<__m512d>(vector));
    if constexpr (N == 4) _mm256_mask_storeu_pd(to, static_cast<__mmask8>(mask), same_bits<__m256d>(vector));
}
#else
constexpr int masked_stores = 0;

template <int N> void store_masked(Scalar *to, const Vector<N> &vector, int64_t count);

#if defined(__AVX__) && !defined(SANITIZED)  // whose masked stores some processors take apart, at ten times the price
constexpr int masked_loads = 32;

template <int N> inline Vector<N> load_masked(const float *from, int64_t count) {
    static constexpr int32_t masks[2 * N] = {-1, -1, -1, -1, N == 8 ? -1 : 0, N == 8 ? -1 : 0, N == 8 ? -1 : 0, N == 8 ? -1 : 0};
    const int32_t *mask = masks + N - count;
    if constexpr (N == 8) return same_bits<Vector<N>>(_mm256_maskload_ps(from, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(mask))));
    if constexpr (N == 4) return same_bits<Vector<N>>(_mm_maskload_ps(from, _mm_loadu_si128(reinterpret_cast<const __m128i *>(mask))));
}

template <int N> inline Vector<N> load_masked(const double *from, int64_t count) {
    static constexpr int64_t masks[2 * N] = {-1, -1, -1, -1};
    return same_bits<Vector<N>>(_mm256_maskload_pd(from, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(masks + N - count))));
}
#else
constexpr int masked_loads = 0;

template <int N> Vector<N> load_masked(const Scalar *from, int64_t count);
#endif
#endif

template <int N> constexpr bool maskable(int most) { return N >= 4 && N * static_cast<int>(sizeof(Scalar)) <= most; }

// As load and store, of the first `count` <= N elements; the others are zero.
template <int N> inline Vector<N> load_some(const Scalar *from, int64_t count) {
    if (count == N) return load<N>(from);
    if constexpr (maskable<N>(masked_loads)) return load_masked<N>(from, count);
    Vector<N> vector = {};
    for (int64_t i = 0; i < count; ++i) vector[i] = from[i];
    return vector;
}

template <int N> inline void store_some(Scalar *to, const Vector<N> &vector, int64_t count) {
    if (count == N) return store<N>(to, vector);
    if constexpr (maskable<N>(masked_stores)) return store_masked<N>(to, vector, count);
    if constexpr (N > 1) {
        Vector<N / 2> half;
        const bool low = count < N / 2;
        __builtin_memcpy(&half, &vector, sizeof half);
        if (!low) {
            store<N / 2>(to, half);
            __builtin_memcpy(&half, reinterpret_cast<const char *>(&vector) + sizeof half, sizeof half);
        }
        store_some<N / 2>(low ? to : to + N / 2, half, low ? count : count - N / 2);
    }
}

template <int N> struct IntegersOf {
    typedef uint32_t type __attribute__((vector_size(N * 4)));
    typedef uint16_t half __attribute__((vector_size(N * 2)));
};
template <int N> using Integers = typename IntegersOf<N>::type;
template <int N> using Halves = typename IntegersOf<N>::half;

// sums + the products of both elements of each pair: the second one first, each rounded to nearest, as Intel's manual has it.
// The instruction takes subnormal numbers for zero.
template <int N> inline Vector<N> dot2(const Vector<N> &sums, const Vector<N> &a, const Vector<N> &b) {
#if defined(PAIR_INSTRUCTION)
    if constexpr (N == 16) return _mm512_dpbf16_ps(sums, same_bits<__m512bh>(a), same_bits<__m512bh>(b));
    if constexpr (N == 8) return _mm256_dpbf16_ps(sums, same_bits<__m256bh>(a), same_bits<__m256bh>(b));
    if constexpr (N == 4) return _mm_dpbf16_ps(sums, same_bits<__m128bh>(a), same_bits<__m128bh>(b));
#endif
    const Integers<N> left = same_bits<Integers<N>>(a), right = same_bits<Integers<N>>(b);
    const Vector<N> second = sums + same_bits<Vector<N>>(left & 0xffff0000u) * same_bits<Vector<N>>(right & 0xffff0000u);
    return second + same_bits<Vector<N>>(left << 16) * same_bits<Vector<N>>(right << 16);
}

// sums += a * b, of elements or of pairs.
template <int N> inline void add_products(Vector<N> &sums, const Vector<N> &a, const Scalar &b) {
    if constexpr (paired) sums = dot2<N>(sums, a, same_bits<Vector<N>>(Integers<N>{} + same_bits<uint32_t>(b)));
    else sums += a * b;
}

// Sums as elements: rounded to nearest, ties to even, where elements are narrower.
template <int N> inline void store_sums(Scalar *to, const Vector<N> &sums) { store<N>(to, sums); }

template <int N> inline void store_sums(bfloat16 *to, const Vector<N> &sums) {
    const Integers<N> bits = same_bits<Integers<N>>(sums), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const Integers<N> numbers = same_bits<Integers<N>>(sums == sums);
    const Halves<N> halves = __builtin_convertvector((rounded & numbers) | (not_a_number & ~numbers), Halves<N>);
    __builtin_memcpy(to, &halves, sizeof halves);
}

template <int N> inline void store_some_sums(Element *to, const Vector<N> &sums, int64_t count) {
    if (count == N) return store_sums<N>(to, sums);
    if constexpr (!paired) return store_some<N>(to, sums, count);
    for (int64_t i = 0; i < count; ++i) to[i] = sums[i];
}

// The elements of two vectors in turns; half 0: their first halves, half 1: their second.
template <int N, int half, class V> inline V interleave(const V &first, const V &second) {
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
template <int P, int N, class V> inline void exchange(V (&rows)[P]) {
    V others[P];
    UNROLL for (int left = P; left > 1; left /= 2) {
        UNROLL for (int r = 0; r < P / 2; ++r) {
            others[2 * r] = interleave<N, 0>(rows[r], rows[r + P / 2]);
            others[2 * r + 1] = interleave<N, 1>(rows[r], rows[r + P / 2]);
        }
        UNROLL for (int r = 0; r < P; ++r) rows[r] = others[r];
    }
}

// to[c][r] = from[r][c] for 8 x 8 scalars.
template <class From, class To> inline void turn8(const From *from, int64_t from_stride, To *to, int64_t to_stride) {
    Vector<8> rows[8];
    UNROLL for (int r = 0; r < 8; ++r) rows[r] = load<8>(from + r * from_stride);
    exchange<8, 8>(rows);
    UNROLL for (int r = 0; r < 8; ++r) store_sums<8>(to + r * to_stride, rows[r]);
}

// to[c * stride + r] = rows[r][c] of the first `used` of P rows and `columns` of N columns.
template <int P, int N> inline void store_exchanged(Vector<N> (&rows)[P], Element *to, int64_t stride, int64_t used, int64_t columns) {
    exchange<P, N>(rows);
    UNROLL for (int c = 0; c < N; ++c) {
        if (c >= columns) return;
        constexpr int piece = P < N ? P : N;
        UNROLL for (int r = 0; r < P; r += piece) {
            Vector<piece> part;
            __builtin_memcpy(&part, reinterpret_cast<const char *>(rows + (c * P + r) / N) + (c * P + r) % N * sizeof(Scalar), sizeof part);
            if (used >= r + piece) store_sums<piece>(to + c * stride + r, part);
            else if (used > r) store_some_sums<piece>(to + c * stride + r, part, used - r);
        }
    }
}

// to[c][r] = from[r][c] for the first `rows` <= 8 rows and `cols` <= 8 columns of scalars.
template <class To> inline void turn_some(const Scalar *from, int64_t from_stride, int64_t rows, int64_t cols, To *to, int64_t to_stride) {
    Vector<8> all[8] = {};
    UNROLL for (int r = 0; r < 8; ++r)
        if (r < rows) all[r] = load_some<8>(from + r * from_stride, cols);
    exchange<8, 8>(all);
    UNROLL for (int c = 0; c < 8; ++c)
        if (c < cols) {
            if constexpr (sizeof(To) == sizeof(Scalar)) store_some<8>(to + c * to_stride, all[c], rows);
            else store_some_sums<8>(to + c * to_stride, all[c], rows);
        }
}

// to[c][r] = from[r][c] for rows x cols elements; bfloat16 become pairs along their row, the last one with zero if need be,
// and scalars become elements.
template <class From, class To>
__attribute__((noinline)) void turn(const From *from, int64_t from_stride, int64_t rows, int64_t cols, To *to, int64_t to_stride) {
    constexpr int64_t each = sizeof(Scalar) / sizeof(From);
    const int64_t even_rows = rows / 8 * 8, whole = cols / each, even_cols = whole / 8 * 8;
    for (int64_t r = 0; r < even_rows; r += 8)
        for (int64_t c = 0; c < even_cols; c += 8)
            turn8(from + r * from_stride + c * each, from_stride, to + c * to_stride + r, to_stride);
    if constexpr (each == 1) {
        for (int64_t r = 0; r < rows; r += 8)
            for (int64_t c = r < even_rows ? even_cols : 0; c < cols; c += 8)
                turn_some(from + r * from_stride + c, from_stride, smaller(8, rows - r), smaller(8, cols - c), to + c * to_stride + r, to_stride);
        return;
    }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = r < even_rows ? even_cols : 0; c < whole; ++c) to[c * to_stride + r] = scalar_at(from + r * from_stride + c * each);
    if constexpr (each > 1)
        if (whole * each < cols)
            for (int64_t r = 0; r < rows; ++r) to[whole * to_stride + r] = pair_of(from[r * from_stride + cols - 1], bfloat16());
}

using Two = long long;  // two floats that are moved together, by memcpy alone

// Two floats, again and again.
inline Vector<lanes> broadcast_two(const Scalar *from) {
    typedef Two Twos __attribute__((vector_size(vector_bytes)));
    Two two;
    __builtin_memcpy(&two, from, sizeof two);
    return same_bits<Vector<lanes>>(Twos{} + two);
}

inline Vector<lanes / 2> first_half(const Vector<lanes> &vector) {
    Vector<lanes / 2> half;
    __builtin_memcpy(&half, &vector, sizeof half);
    return half;
}

// As turn, of rows x cols twos.
__attribute__((noinline, unused)) void turn_twos(const Two *from, int64_t from_stride, int64_t rows, int64_t cols, Two *to, int64_t to_stride) {
    typedef Two Twos __attribute__((vector_size(8 * sizeof(Two))));
    const int64_t even_rows = rows / 8 * 8, even_cols = cols / 8 * 8;
    for (int64_t r = 0; r < even_rows; r += 8)
        for (int64_t c = 0; c < even_cols; c += 8) {
            Twos all[8];
            UNROLL for (int i = 0; i < 8; ++i) __builtin_memcpy(all + i, from + (r + i) * from_stride + c, sizeof(Twos));
            exchange<8, 8>(all);
            UNROLL for (int i = 0; i < 8; ++i) __builtin_memcpy(to + (c + i) * to_stride + r, all + i, sizeof(Twos));
        }
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = r < even_rows ? even_cols : 0; c < cols; ++c)
            __builtin_memcpy(to + c * to_stride + r, from + r * from_stride + c, sizeof(Two));
}

// Steps of a sum over `count` elements.
inline int64_t steps_in(int64_t count) { return divide_up(count, pair); }

// One step of `count` <= N lanes: elements, or pairs of them with those that lie `stride` further on, or with zero where
// only `left` = 1 element of the sum is left.
template <int N> inline void copy_step(const Element *from, int64_t stride, int64_t left, int64_t count, Scalar *to) {
    if constexpr (!paired) {
        store_some<N>(to, load_some<N>(from, count), count);
    } else if (count == N) {
        Halves<N> first, second = {};
        __builtin_memcpy(&first, from, sizeof first);
        if (left > 1) __builtin_memcpy(&second, from + stride, sizeof second);
        const Integers<N> pairs = __builtin_convertvector(first, Integers<N>) | __builtin_convertvector(second, Integers<N>) << 16;
        store<N>(to, same_bits<Vector<N>>(pairs));
    } else {
        for (int64_t i = 0; i < count; ++i) to[i] = pair_of(from[i], left > 1 ? from[i + stride] : bfloat16());
    }
}

// The same of any number of lanes.
inline void copy_long_step(const Element *from, int64_t stride, int64_t left, int64_t count, Scalar *to) {
    if constexpr (!paired) __builtin_memcpy(to, from, static_cast<unsigned long long>(count) * sizeof(Scalar));
    else
        for (int64_t lane = 0; lane < count; lane += lanes)
            copy_step<lanes>(from + lane, stride, left, smaller(lanes, count - lane), to + lane);
}

constexpr int sampled_rows = registers > 16 ? 8 : 4;  // rows of a panel of gradients, as sdd reads them

// Whether sdd sums along vectors instead, so that none is filled in part for blocks of that size.
inline bool sums_along(int64_t block_size, int64_t n) { return !paired && block_size > 3 && block_size % lanes != 0 && n >= 8 * lanes; }

}  // namespace
