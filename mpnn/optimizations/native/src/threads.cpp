#include "threads.h"

#include <unistd.h>
#if defined(__APPLE__)
#include <pthread/qos.h>
#endif

namespace mpnn {
namespace {

constexpr int SPINS = 4000;  // of about 50 ns each: levels of a wavefront follow within that time
constexpr int SPINS_PER_YIELD = 64;

void pause_briefly(int spin) {
  if (spin % SPINS_PER_YIELD == SPINS_PER_YIELD - 1) return std::this_thread::yield();
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

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
  x = Buffer(edges), y = Buffer(edges), radial = Buffer(12 * 400 + 64), distances = Buffer(12 * 32);
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
    for (int spin = 0; finished.load(std::memory_order_acquire) != count; ++spin) pause_briefly(spin);
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
    for (int spin = 0; spin < SPINS; ++spin)
      if (work(worker)) spin = 0;
      else pause_briefly(spin);
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
