#include "memory.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mpnn {
namespace {

constexpr size_t LINE = 64, HUGE_PAGE = size_t(2) << 20;
constexpr size_t KEPT = size_t(192) << 20;  // bytes kept for the next job: those of 8 × 955 residues

// Large blocks that nobody uses: the next job saves the page faults, 0.3 ms for each megabyte.
struct Free {
  struct Block {
    float* p;
    size_t bytes;
  };
  std::mutex mutex;
  std::vector<Block> blocks;
  size_t total = 0;

  // A block of at least `bytes`, which become its size; nullptr where there is none.
  float* take(size_t& bytes) {
    const std::unique_lock lock(mutex, std::try_to_lock);  // a fork may have left it locked forever
    if (!lock) return nullptr;
    size_t best = blocks.size();  // the smallest that is large enough, and not twice as large
    for (size_t i = 0; i < blocks.size(); ++i)
      if (blocks[i].bytes >= bytes && blocks[i].bytes < 2 * bytes &&
          (best == blocks.size() || blocks[i].bytes < blocks[best].bytes))
        best = i;
    if (best < blocks.size()) {
      float* p = blocks[best].p;
      bytes = blocks[best].bytes;
      total -= bytes;
      blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(best));
      return p;
    }
    return nullptr;
  }
  void give(float* p, size_t bytes) {
    const std::unique_lock lock(mutex, std::try_to_lock);
    if (!lock) return std::free(p);
    while (!blocks.empty() && total + bytes > KEPT) {  // the oldest goes first
      total -= blocks.front().bytes;
      std::free(blocks.front().p);
      blocks.erase(blocks.begin());
    }
    if (total + bytes > KEPT) return std::free(p);
    blocks.push_back({p, bytes});
    total += bytes;
  }
};

Free& free_blocks() {
  static Free* blocks = new Free;  // never destroyed: results may outlive the library's statics
  return *blocks;
}

// Bytes in buffers now, their maximum, and where the count of the maximum began.
std::atomic<int64_t> held{0}, peak{0}, base{0};

void count(int64_t change) {
  const int64_t now = held.fetch_add(change, std::memory_order_relaxed) + change;
  int64_t most = peak.load(std::memory_order_relaxed);
  while (now > most && !peak.compare_exchange_weak(most, now, std::memory_order_relaxed)) {
  }
}

}  // namespace

int64_t take_peak_bytes() {
  const int64_t now = held.load(), most = peak.exchange(now);
  return std::max(most, now) - base.exchange(now);
}

Buffer::Buffer(size_t size) : asked(size * sizeof(float)) {
  const size_t wanted = asked, page = wanted < HUGE_PAGE ? LINE : HUGE_PAGE;
  bytes = (wanted + page - 1) / page * page;
  if (!bytes) return;
  if (page == HUGE_PAGE) p = free_blocks().take(bytes);
  if (!p) {
    p = static_cast<float*>(std::aligned_alloc(page, bytes));
    if (!p) throw std::bad_alloc();
#if defined(__linux__)
    if (page == HUGE_PAGE) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  }
  count(int64_t(asked));
}

Buffer::~Buffer() {
  if (!p) return;
  count(-int64_t(asked));
  if (bytes % HUGE_PAGE) std::free(p);
  else free_blocks().give(p, bytes);
}

}  // namespace mpnn
