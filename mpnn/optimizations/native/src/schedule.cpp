#include "schedule.h"

#include <algorithm>

namespace mpnn {
namespace {

// Members of each group of tied residues of one structure, in the order of the rows.
struct Groups {
  std::vector<int32_t> members, begins;  // group g is members[begins[g]] … members[begins[g + 1] - 1]
};

Groups groups_of(const int64_t* tie_group, int32_t start, int32_t end) {
  Groups groups;
  groups.members.resize(size_t(end - start));
  for (int32_t i = start; i < end; ++i) groups.members[size_t(i - start)] = i;
  std::stable_sort(groups.members.begin(), groups.members.end(),
                   [&](int32_t a, int32_t b) { return tie_group[a] < tie_group[b]; });
  for (size_t m = 0; m < groups.members.size(); ++m)
    if (!m || tie_group[groups.members[m]] != tie_group[groups.members[m - 1]]) groups.begins.push_back(int32_t(m));
  groups.begins.push_back(int32_t(groups.members.size()));
  return groups;
}

// Steps of one sample of one structure, groups in the order of their ranks.
void find_steps(const Graph& graph, const SamplingJob& job, const Groups& groups, const int64_t* rank, int32_t* step) {
  int64_t first = INT64_MAX;  // rank of the first designed residue
  for (int32_t i : groups.members)
    if (job.designed[i]) first = std::min(first, rank[i]);
  std::vector<std::pair<int64_t, int32_t>> order;
  for (size_t g = 0; g + 1 < groups.begins.size(); ++g) {
    const int64_t its_rank = rank[groups.members[size_t(groups.begins[g])]];
    if (its_rank >= first) order.emplace_back(its_rank, int32_t(g));
  }
  std::sort(order.begin(), order.end());
  for (const auto& [its_rank, g] : order) {
    const int32_t *begin = &groups.members[0] + groups.begins[size_t(g)],
                  *end = &groups.members[0] + groups.begins[size_t(g) + 1];
    int32_t latest = 0;
    for (const int32_t* i = begin; i != end; ++i) {
      if (!graph.mask[size_t(*i)]) continue;  // sees nothing, for its states are 0
      const int32_t* idx = graph.neighbors(*i);
      for (int k = 0; k < graph.slots[size_t(*i)]; ++k)
        if (rank[idx[k]] < its_rank) latest = std::max(latest, step[idx[k]]);
    }
    for (const int32_t* i = begin; i != end; ++i) step[*i] = latest + 1;
  }
}

}  // namespace

Schedule schedule(const Graph& graph, const SamplingJob& job, Pool& pool) {
  const size_t R = size_t(graph.R), N = size_t(job.N), B = graph.starts.size() - 1;
  std::vector<int32_t> step(N * R, 0);
  std::vector<Groups> groups;
  groups.reserve(B);
  for (size_t b = 0; b < B; ++b) groups.push_back(groups_of(job.tie_group, graph.starts[b], graph.starts[b + 1]));
  pool.share(int(N * B), [&](int t, Scratch&) {
    const size_t n = size_t(t) / B, b = size_t(t) % B;
    find_steps(graph, job, groups[b], job.rank + n * R, &step[n * R]);
  });
  Schedule result;
  const int32_t last = *std::max_element(step.begin(), step.end());
  result.begins.assign(size_t(last) + 2, 0);
  for (int32_t s : step) ++result.begins[size_t(s) + 1];
  for (size_t s = 1; s < result.begins.size(); ++s) result.begins[s] += result.begins[s - 1];
  result.rows.resize(N * R);
  std::vector<size_t> fill(result.begins);
  for (size_t i = 0; i < R; ++i)
    for (size_t n = 0; n < N; ++n) result.rows[fill[size_t(step[n * R + i])]++] = int32_t(n * R + i);
  return result;
}

Schedule all_at_once(const Graph& graph, int N) {
  const int32_t R = graph.R;
  Schedule result;
  for (int32_t i = 0; i < R; ++i)
    for (int32_t n = 0; n < N; ++n) result.rows.push_back(n * R + i);
  result.begins = {0, result.rows.size()};
  return result;
}

std::vector<size_t> chunks_of(const std::vector<int32_t>& rows, size_t from, size_t to, int R, int threads) {
  const size_t count = to - from, least = (count + TILE - 1) / TILE, team = size_t(threads);
  const size_t wanted = std::max<size_t>(1, (least + team - 1) / team * team);
  std::vector<size_t> chunks{from};
  for (size_t c = 1; c < wanted; ++c) {
    size_t at = from + count * c / wanted;
    while (at < to && at > from && rows[at] % R == rows[at - 1] % R) ++at;
    if (at > chunks.back() && at < to) chunks.push_back(at);
  }
  if (count) chunks.push_back(to);
  return chunks;
}

}  // namespace mpnn
