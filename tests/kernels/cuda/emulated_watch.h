// Every load and store that the kernel itself does in shared memory. The compiler calls these functions before each where it is
// told -fsanitize=thread; its own runtime is not linked. A compiler that cannot do so leaves ordinary accesses unseen.
#pragma once
#include "emulated_copies.h"

namespace emulated {

// Byte in shared memory of what a thread touches; -1 outside it (global memory, the thread's own).
ENGINE long long touched(const void *pointer, size_t bytes, const char *what) {
    if (!now) return -1;
    const long long offset = (const char *)pointer - now->cta->memory, size = run.options.shared_bytes;
    if (offset < -guard_bytes || offset >= size + guard_bytes) return -1;
    if (offset < 0 || offset + (long long)bytes > size) fault("%s at byte %lld of %lld bytes of shared memory", what, offset, size);
    return offset;
}

ENGINE void watch_load(const void *pointer, size_t bytes) {
    const long long offset = touched(pointer, bytes, "a load");
    if (offset < 0 || bytes < 2) return;
    check_read(*now, (u32)offset, (u32)bytes, "a load");
    const u32 time = event(*now);
    for (u32 i = (u32)offset / 2; i < ((u32)offset + bytes) / 2; ++i) {
        Half &half = now->cta->halves[i];
        const int place = over_for(*now, half.readers[0], half.read_times[0]) ? 0 : 1;
        half.read_times[place] = time, half.readers[place] = (u16)now->place;
    }
}

ENGINE void watch_store(const void *pointer, size_t bytes) {
    const long long offset = touched(pointer, bytes, "a store");
    if (offset < 0 || bytes < 2) return;
    begin_write(*now->cta, *now, (u32)offset, (u32)bytes, "a store");
    end_write(*now->cta, *now, (u32)offset, (u32)bytes, stored, event(*now));
}

}  // namespace emulated

#define WATCH(bytes)                                                                                        \
    ENGINE_HOOK __tsan_read##bytes(void *pointer) { emulated::watch_load(pointer, bytes); }                 \
    ENGINE_HOOK __tsan_write##bytes(void *pointer) { emulated::watch_store(pointer, bytes); }               \
    ENGINE_HOOK __tsan_unaligned_read##bytes(void *pointer) { emulated::watch_load(pointer, bytes); }       \
    ENGINE_HOOK __tsan_unaligned_write##bytes(void *pointer) { emulated::watch_store(pointer, bytes); }
#define ENGINE_HOOK extern "C" __attribute__((no_sanitize("thread"))) void
WATCH(1)
WATCH(2)
WATCH(4)
WATCH(8)
WATCH(16)
ENGINE_HOOK __tsan_read_range(void *pointer, size_t bytes) { emulated::watch_load(pointer, bytes); }
ENGINE_HOOK __tsan_write_range(void *pointer, size_t bytes) { emulated::watch_store(pointer, bytes); }
ENGINE_HOOK __tsan_func_entry(void *) {}
ENGINE_HOOK __tsan_func_exit(void *) {}
ENGINE_HOOK __tsan_init() {}
#undef WATCH
#undef ENGINE_HOOK
