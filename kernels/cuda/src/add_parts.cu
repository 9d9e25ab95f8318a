// The sum of the parts of a divided reduction, always in the same order: results are equal to the last bit from run to run.
#include "tile.h"

typedef ELEMENT Element;
typedef Element::Storage Storage;

struct Parts {  // mirrored in Python, field by field
    const float *parts;  // [parts, numbers]
    Storage *out;        // [numbers]
    int numbers, count;  // numbers: a multiple of 4
};

KERNEL(add_parts, Parts, THREADS, 1) {
    const int first = 4 * (blockIdx.x * THREADS + threadIdx.x);
    if (first >= given.numbers) return;
    float sums[4] = {};
    for (int part = 0; part < given.count; ++part) {
        const Vector<float, 4> more = *(const Vector<float, 4>*)(given.parts + (u64)part * given.numbers + first);
        UNROLL for (int i = 0; i < 4; ++i) sums[i] += more.at[i];
    }
    Vector<Storage, 4> line;
    UNROLL for (int i = 0; i < 4; ++i) line.at[i] = Convert<Element>::narrow(sums[i]);
    *(Vector<Storage, 4>*)(given.out + first) = line;
}
