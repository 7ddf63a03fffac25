#include "threads.h"

#include <unistd.h>

#include <chrono>
#if defined(__APPLE__)
#include <pthread/qos.h>
#endif

namespace mpnn {
namespace {

// Waits for what comes within microseconds: levels of a wavefront follow one another at once. A
// thread that yields may be away for a whole time slice of others, so it first spins alone.
class Spin {
 public:
  // Waits a moment; returns whether it is still worth it to wait awake.
  bool wait() {
    pause();
    if (++count % PAUSES) return true;
    const auto waited = Clock::now() - start;
    if (waited > ALONE) std::this_thread::yield();
    return waited < AWAKE;
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr auto ALONE = std::chrono::microseconds(60), AWAKE = std::chrono::microseconds(300);
  static constexpr int PAUSES = 16;  // between two looks at the clock

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
  }

  Clock::time_point start = Clock::now();
  int count = 0;
};

// On macOS threads without a class may be put on efficiency cores.
void ask_for_performance_cores() {
#if defined(__APPLE__)
  pthread_set_qos_class_self_np(QOS_CLASS_USER_INTERACTIVE, 0);
#endif
}

int rounded(int n, int to) { return (n + to - 1) / to * to; }

}  // namespace

void Scratch::fit(int width, int neighbors) {
  if (C == width && K >= neighbors) return;
  C = width, K = neighbors;
  counted.resize(size_t(K));
  const size_t edges = rounded(K, 16) * size_t(C), tile = TILE * size_t(C);
  x = Buffer(edges), y = Buffer(edges), radial = Buffer(EDGE_BLOCK * RADIAL), distances = Buffer(EDGE_BLOCK * PADDED);
  states = Buffer(tile), nodes = Buffer(tile), inner = Buffer(4 * tile), sums = Buffer(tile), own = Buffer(tile);
}

Pool& Pool::here() {
  static std::mutex guard;
  static Pool* pool = nullptr;
  static pid_t owner = 0;
  static const int registered = pthread_atfork([] { guard.lock(); }, [] { guard.unlock(); }, [] { guard.unlock(); });
  (void)registered;
  const std::lock_guard lock(guard);
  if (!pool || owner != getpid()) pool = new Pool, owner = getpid();  // the parent's is left alone
  return *pool;
}

Work Pool::totals() {
  const std::lock_guard lock(job);
  Work all;
  for (const auto& scratch : scratches) {
    all.multiply_adds += scratch->ahead.work.multiply_adds;
    all.matmuls += scratch->ahead.work.matmuls;
  }
  return all;
}

void Pool::check_canceled() const {
  if (cancel && __atomic_load_n(cancel, __ATOMIC_RELAXED)) throw Canceled();
}

void Pool::run(int number, Scratch& scratch) {
  try {
    if (heeds_cancel) check_canceled();
    if (!failed.load(std::memory_order_relaxed)) (*task)(number, scratch);
  } catch (...) {
    const std::lock_guard lock(mutex);
    if (!error) error = std::current_exception();
    failed.store(true, std::memory_order_relaxed);
  }
  finished.fetch_add(1, std::memory_order_release);
}

bool Pool::work(int worker) {
  if (worker >= present.load(std::memory_order_relaxed)) return false;
  uint64_t now = tasks.load(std::memory_order_acquire);
  while ((now & 0xffffffff) < now >> 32)
    if (tasks.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
      run(static_cast<int>(now & 0xffffffff), *scratches[static_cast<size_t>(worker)]);
      return true;
    }
  return false;
}

void Pool::share(int count, const Task& shared, bool cancelable) {
  if (count <= 0) return;
  heeds_cancel = cancelable;
  task = &shared, error = nullptr, failed.store(false, std::memory_order_relaxed);
  finished.store(0, std::memory_order_relaxed);
  if (team == 1 || count == 1) {
    for (int i = 0; i < count; ++i) run(i, *scratches[0]);
  } else {
    tasks.store(uint64_t(count) << 32, std::memory_order_seq_cst);
    if (sleeping.load(std::memory_order_seq_cst)) {
      const std::lock_guard lock(mutex);
      wake.notify_all();
    }
    while (work(0)) {
    }
    for (Spin spin; finished.load(std::memory_order_acquire) != count;) spin.wait();
  }
  if (error) std::rethrow_exception(error);
}

void Pool::loop(int worker) {
  const FlushDenormals flush;
  ask_for_performance_cores();
  auto waiting = [&] {
    const uint64_t now = tasks.load(std::memory_order_seq_cst);
    return worker < present.load(std::memory_order_relaxed) && (now & 0xffffffff) < now >> 32;
  };
  for (;;) {
    for (Spin spin; spin.wait();)
      if (work(worker)) spin = Spin();
    std::unique_lock lock(mutex);
    sleeping.fetch_add(1, std::memory_order_seq_cst);
    wake.wait(lock, waiting);
    sleeping.fetch_sub(1, std::memory_order_seq_cst);
  }
}

Job::Job(int threads, int C, int K, const int32_t* cancel) : pool(Pool::here()), lock(pool.job) {
  ask_for_performance_cores();
  while (pool.scratches.size() < static_cast<size_t>(threads)) pool.scratches.push_back(std::make_unique<Scratch>());
  for (auto& scratch : pool.scratches) scratch->fit(C, K);
  pool.team = threads;
  pool.present.store(threads, std::memory_order_relaxed);
  while (pool.threads.size() + 1 < static_cast<size_t>(threads)) {
    const int worker = static_cast<int>(pool.threads.size()) + 1;
    pool.threads.emplace_back([pool = &pool, worker] { pool->loop(worker); });
  }
  pool.cancel = cancel;
}

Job::~Job() { pool.cancel = nullptr; }

}  // namespace mpnn
