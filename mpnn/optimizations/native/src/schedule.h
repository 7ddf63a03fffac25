// When each row can be decoded. Row n·R + i is residue i of sample n.
#pragma once
#include <cstdint>
#include <vector>

#include "encoding.h"

namespace mpnn {

// What the caller gives; all arrays are checked before they come here.
struct SamplingJob {
  int N;
  const int64_t* S;           // [R], residue types where not designed
  const uint8_t* designed;    // [R]
  const int64_t* rank;        // [N, R]
  const double* gumbel;       // [N, R, 21]
  const double* temperature;  // [N]
  const double* bias;         // [R, 21]
  const int64_t* tie_group;   // [R], row of the first residue of the group
  const double* tie_weight;   // [R]
};

// Rows by wavefront step, and within a step residue by residue.
//
// A row waits for its earlier neighbors alone, so rows whose neighbors are done can be decoded side by
// side, and give what decoding one after another would. Step 0 has the rows with known residue types
// before every designed one of their sample: they wait for nothing, and are decoded layer by layer.
struct Schedule {
  std::vector<int32_t> rows;
  std::vector<size_t> begins;  // [steps + 1], where each step begins in `rows`, and the end

  size_t steps() const { return begins.size() - 1; }
};

Schedule schedule(const Graph& graph, const SamplingJob& job, Pool& pool);

// All rows in one step.
Schedule all_at_once(const Graph& graph, int N);

// Cuts rows [from, to) of a schedule into chunks for threads; all rows of a residue are in one chunk.
std::vector<size_t> chunks_of(const std::vector<int32_t>& rows, size_t from, size_t to, int R, int threads);

}  // namespace mpnn
