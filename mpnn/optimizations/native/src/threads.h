// A persistent pool of threads that shares out the tasks of one job at a time.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

#include "network.h"

namespace mpnn {

constexpr int TILE = 48;  // residues or samples of residues whose node matmuls are one

// What one thread works in.
struct Scratch {
  Buffer x, y, radial, distances;  // edges of one residue: [K, C], [K, C], [EDGE_BLOCK, RADIAL], [EDGE_BLOCK, PADDED]
  Buffer states, nodes, sums, own, inner;  // nodes of one tile: [TILE, C] each, inner [TILE, 4C]
  std::vector<uint8_t> counted;            // [K]
  Ahead ahead;
  int C = 0, K = 0;

  void fit(int C, int K);
};

struct Canceled : std::runtime_error {
  Canceled() : std::runtime_error("canceled") {}
};

using Task = std::function<void(int task, Scratch& scratch)>;

class Pool {
 public:
  // The pool of this process: a forked process gets its own, for threads are not inherited.
  static Pool& here();

  // Calls task(0), …, task(count - 1) on all threads of the job, the caller among them, and returns
  // when all have returned. If one throws, the rest are not begun and the exception is thrown here.
  // Unless it is `cancelable`, the tasks all run even if the job is given up meanwhile.
  void share(int count, const Task& task, bool cancelable = true);
  int size() const { return team; }
  // What all jobs of this process have multiplied, between jobs.
  Work totals();
  int64_t steps = 0;  // wavefront steps of them
  // Throws Canceled if the job's owner wants no result any more.
  void check_canceled() const;

 private:
  friend class Job;
  Pool() = default;
  bool work(int worker);  // whether there was a task
  void run(int task, Scratch& scratch);
  void loop(int worker);

  std::mutex job;  // held by the one job that runs
  int team = 1;    // threads of that job
  const int32_t* cancel = nullptr;
  bool heeds_cancel = true;
  std::vector<std::unique_ptr<Scratch>> scratches;  // one for each thread
  std::vector<std::thread> threads;                 // all but the caller

  // The tasks of one `share` as count << 32 | next: one atomic, so that whoever takes a number
  // knows that the task it stands for is the present one.
  alignas(64) std::atomic<uint64_t> tasks{0};
  alignas(64) std::atomic<int> finished{0};
  alignas(64) std::atomic<int> sleeping{0};
  std::atomic<int> present{1};  // `team`, as the workers read it
  const Task* task = nullptr;
  std::atomic<bool> failed{false};
  std::exception_ptr error;
  std::mutex mutex;  // guards error, and the sleep of workers
  std::condition_variable wake;
};

// One job: holds the pool, with denormals flushed in this thread.
class Job {
 public:
  // `cancel` becomes nonzero when the caller gives the job up.
  Job(int threads, int C, int K, const int32_t* cancel);
  ~Job();
  Pool& pool;

 private:
  std::unique_lock<std::mutex> lock;
  FlushDenormals flush;
};

}  // namespace mpnn
