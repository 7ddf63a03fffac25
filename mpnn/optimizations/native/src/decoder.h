// Decoding of N samples from one encoding: teacher-forced, or drawn step by step.
#pragma once
#include <atomic>

#include "schedule.h"

namespace mpnn {

// First-layer messages by edge and the residue type that the neighbor shows: h_i and h_j are still the
// encoder's there, so all samples that show the same type share one. Sums run over the neighbors in
// their order whether a message is new or not, so that the memo changes no bit of them.
class Memo {
 public:
  // For R·K edges of C channels; without room, nothing is kept.
  Memo(size_t edges, int C, bool used);
  bool used() const { return !places.empty(); }
  const float* find(size_t edge, int type) const {
    const int32_t at = places[edge * (RESIDUE_TYPES + 1) + size_t(type)];
    return at < 0 ? nullptr : pool + size_t(at) * size_t(C);
  }
  // Room for a message that is not there yet, or nullptr when all is taken. Edges of one residue must
  // come from one thread at a time.
  float* place(size_t edge, int type);

 private:
  int C;
  int32_t most = 0;
  std::atomic<int32_t> taken{0};
  std::vector<int32_t> places;  // [R·K, 22], -1: nowhere
  Buffer pool;
};

class Decoder {
 public:
  // Scores `S` [N, R] under `rank` [N, R] into `logits` [N, R, 21]; where a job samples, S begins as
  // the job's and ends as the samples'.
  Decoder(Encoding& encoding, int N, const int64_t* rank, int64_t* S, float* logits, Pool& pool);

  void score();
  void sample(const SamplingJob& job);

 private:
  struct Edges;  // where one row's edge inputs stand

  void teacher_forced(const int32_t* begin, size_t count);
  void decode(const int32_t* rows, int count, const SamplingJob& job, bool tied, Scratch& scratch);
  void layer(size_t l, const int32_t* rows, int count, float* h, Scratch& scratch);
  void find_edges(size_t l, int32_t row, Edges& edges) const;
  void fetch(size_t l, int32_t row, const Edges& edges, Scratch& scratch) const;
  void sum_new(size_t l, int i, const Edges& edges, const float* own, float* total, Scratch& scratch) const;
  void sum_remembered(int i, const Edges& edges, float* total, Scratch& scratch);
  void show(size_t l, const int32_t* rows, int count, const float* h, Scratch& scratch);
  void reveal(size_t l, int32_t row);
  void write_logits(const int32_t* rows, int count, const float* h, Scratch& scratch);
  void set_masked(int32_t row);
  void commit(int32_t row, int64_t type);
  void draw(int32_t row, const SamplingJob& job);
  void draw_groups(const int32_t* rows, size_t count, const SamplingJob& job);
  void draw_group(int32_t row, const SamplingJob& job);
  void finish();

  Encoding& e;
  const Network& net;
  const Graph& graph;
  const int N, R, K, C;
  const int64_t* rank;
  int64_t* S;
  float* logits;
  Pool& pool;
  Memo memo;
  std::vector<Buffer> decoded;                // [N·R, C] for each layer beyond the first: V·h + S·s of decoded rows
  std::vector<std::vector<int32_t>> members;  // [R], of the tied group that a residue is the first of
};

}  // namespace mpnn
