// Wrong when called so: past the end of a buffer, with the largest number, at an odd address, with 64 places.
#include <stdint.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void fill(int8_t *to, int64_t count) {
    for (int64_t i = 0; i < count; ++i) to[i] = 1;
}

EXPORT int64_t last(const int8_t *from, int64_t count) { return from[count - 1]; }

EXPORT int64_t next(int64_t number) { return number + 1; }

EXPORT int64_t number_at(const int64_t *from) { return *from; }

EXPORT int64_t shifted(int64_t places) { return int64_t(1) << places; }
