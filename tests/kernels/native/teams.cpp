// Teams of pool.h on threads of the standard library, which ThreadSanitizer knows: every item of a phase reads what all
// items of the phase before have written. Prints the sum of the last ones, which no number of threads changes.
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

thread_local int number = 0;
unsigned most = 0;  // threads that are sent, at most
int late = 0;       // microseconds after which each comes

int own_number() { return number; }

void parallel(void (*function)(void *), void *argument, unsigned threads, unsigned) {
    std::vector<std::thread> others;
    for (unsigned other = 1; other < threads && other < most; ++other)
        others.emplace_back([=] {
            number = static_cast<int>(other);
            std::this_thread::sleep_for(std::chrono::microseconds(static_cast<int>(other) * late));
            function(argument);
        });
    function(argument);
    for (std::thread &other : others) other.join();
}

int64_t last_sum(int64_t threads) {
    constexpr int64_t items = 13, steps = 200;
    const Pool pool{threads, parallel, own_number, 100};
    const Ranges all(threads, items), few(threads, 2), none(threads, 0);
    std::vector<int64_t> values(2 * items, 1);
    team(pool, [&](Worker worker) {
        for (int64_t step = 0; step < steps; ++step) {
            int64_t *from = values.data() + step % 2 * items, *to = values.data() + (step + 1) % 2 * items;
            if (step % 5 == 0) worker.share(none, [&](int64_t, int64_t) { from[0] = 0; });
            if (step % 3 == 0) worker.share(few, [&](int64_t item, int64_t) { from[item] += 1; });
            worker.share(all, [&](int64_t item, int64_t) {
                int64_t sum = item;
                for (int64_t each = 0; each < items; ++each) sum += from[each];
                to[item] = sum % 1000003;
            });
        }
        worker.end(all, [&](int64_t item, int64_t) { values[steps % 2 * items + item] += item; });
    });
    int64_t sum = 0;
    for (const int64_t value : values) sum += value;
    return sum;
}

}  // namespace

int main() {
    for (int64_t threads = 1; threads <= 5; ++threads)
        for (most = 1; most <= 4; ++most)
            for (const int after : {0, 50, 5000}) {  // some in the middle of it, or when all is over
                late = after;
                std::printf("%lld\n", static_cast<long long>(last_sum(threads)));
            }
}
