#include "decoder.h"

#include <algorithm>
#include <limits>

#include "activations.h"

namespace mpnn {
namespace {

constexpr int MEMO_FROM = 3, MULTIPLY_FROM = 2;  // samples from which either saves time
constexpr size_t MEMO_BYTES = size_t(96) << 20;
constexpr size_t MEMO_PER_EDGE = 4;  // eight samples of 955 residues show 2.4 types an edge

template <class T, class Keep>
std::vector<T> filtered(const T* from, const T* to, Keep keep) {
  std::vector<T> kept;
  std::copy_if(from, to, std::back_inserter(kept), keep);
  return kept;
}

}  // namespace

Memo::Memo(size_t edges, int width, bool wanted) : C(width) {
  if (!wanted) return;
  const size_t most_messages = std::min(edges * MEMO_PER_EDGE, MEMO_BYTES / (size_t(C) * sizeof(float)));
  most = static_cast<int32_t>(most_messages);
  places.assign(edges * (RESIDUE_TYPES + 1), -1);
  pool = Buffer(most_messages * size_t(C));
}

float* Memo::place(size_t edge, int type) {
  if (taken.load(std::memory_order_relaxed) >= most) return nullptr;
  const int32_t at = taken.fetch_add(1, std::memory_order_relaxed);
  if (at >= most) return nullptr;
  places[edge * (RESIDUE_TYPES + 1) + size_t(type)] = at;
  return pool + size_t(at) * size_t(C);
}

// For each neighbor of one row: what it shows is one row to add, and in the first layer one of 22.
struct Decoder::Edges {
  const float* add[MOST_NEIGHBORS];
  int8_t type[MOST_NEIGHBORS];
};

Decoder::Decoder(Encoding& encoding, int samples, const int64_t* ranks, int64_t* types, float* out, Pool& threads)
    : e(encoding), net(encoding.net), graph(encoding.graph), N(samples), R(graph.R), K(graph.K), C(net.C), rank(ranks),
      S(types), logits(out), pool(threads), memo(size_t(R) * K, C, samples >= MEMO_FROM), decoded(net.decoder.size()) {
  if (N >= MULTIPLY_FROM || pool.size() > 1) multiply_edges(e, pool);
  for (size_t l = 1; l < decoded.size(); ++l) decoded[l] = Buffer(size_t(N) * R * C);
}

void Decoder::score() {
  const Schedule all = all_at_once(graph, N);
  teacher_forced(all.rows.data(), all.rows.size());
  finish();
}

void Decoder::sample(const SamplingJob& job) {
  const Schedule plan = schedule(graph, job, pool);
  bool tied = false;
  members.assign(size_t(R), {});
  for (int32_t i = 0; i < R; ++i) tied = tied || job.tie_group[i] != i;
  for (int32_t i = 0; tied && i < R; ++i) members[size_t(job.tie_group[i])].push_back(i);
  for (int n = 0; n < N; ++n) std::copy_n(job.S, R, S + size_t(n) * R);
  teacher_forced(plan.rows.data(), plan.begins[1]);
  pool.steps += int64_t(plan.steps()) - 1;
  for (size_t step = 1; step < plan.steps(); ++step) {
    const size_t from = plan.begins[step], to = plan.begins[step + 1];
    const std::vector<size_t> chunks = chunks_of(plan.rows, from, to, R, pool.size());
    pool.share(int(chunks.size()) - 1, [&](int c, Scratch& scratch) {
      for (size_t at = chunks[size_t(c)]; at < chunks[size_t(c) + 1]; at += TILE)
        decode(&plan.rows[at], int(std::min<size_t>(TILE, chunks[size_t(c) + 1] - at)), job, tied, scratch);
    });
    if (tied) draw_groups(&plan.rows[from], to - from, job);
  }
  finish();
}

// Rows whose residue types are known, layer by layer, side by side in each.
void Decoder::teacher_forced(const int32_t* begin, size_t count) {
  auto complete = [&](int32_t row) { return graph.mask[size_t(row % R)] != 0; };
  const std::vector<int32_t> rows = filtered(begin, begin + count, complete);
  for (int32_t row : filtered(begin, begin + count, [&](int32_t r) { return !complete(r); }))
    set_masked(row), commit(row, S[row]);
  const Buffer h(rows.size() * size_t(C));
  for (size_t r = 0; r < rows.size(); ++r) std::copy_n(e.h_V + size_t(rows[r] % R) * C, C, h + r * C);
  const std::vector<size_t> chunks = chunks_of(rows, 0, rows.size(), R, pool.size());
  for (size_t l = 0; l < net.decoder.size(); ++l)
    pool.share(int(chunks.size()) - 1, [&](int c, Scratch& scratch) {
      for (size_t at = chunks[size_t(c)]; at < chunks[size_t(c) + 1]; at += TILE) {
        const int m = int(std::min<size_t>(TILE, chunks[size_t(c) + 1] - at));
        layer(l, &rows[at], m, h + at * C, scratch);
        if (l + 1 == net.decoder.size()) {
          write_logits(&rows[at], m, h + at * C, scratch);
          continue;
        }
        show(l + 1, &rows[at], m, h + at * C, scratch);
        for (int r = 0; r < m; ++r) reveal(l + 1, rows[at + size_t(r)]);
      }
    });
}

// Up to TILE rows of one step through all layers, and the draws of those that are not tied.
void Decoder::decode(const int32_t* rows, int count, const SamplingJob& job, bool tied, Scratch& scratch) {
  int32_t active[TILE];
  int n = 0;
  float* h = scratch.states.data();
  for (int r = 0; r < count; ++r) {
    const size_t i = size_t(rows[r] % R);
    if (!graph.mask[i]) {
      set_masked(rows[r]);
      continue;
    }
    std::copy_n(e.h_V + i * C, C, h + size_t(n) * C);
    active[n++] = rows[r];
  }
  for (size_t l = 0; n && l < net.decoder.size(); ++l) {
    layer(l, active, n, h, scratch);
    if (l + 1 < net.decoder.size()) show(l + 1, active, n, h, scratch);
  }
  if (n) write_logits(active, n, h, scratch);
  for (int r = 0; r < count && !tied; ++r) draw(rows[r], job);
}

// One decoder layer: rows of h [count, C] in place.
void Decoder::layer(size_t l, const int32_t* rows, int count, float* h, Scratch& scratch) {
  const Message& message = net.decoder[l].message;
  if (l) multiply(message.A, message.b1.data(), count, h, scratch.own.data(), C, scratch.ahead);
  int32_t messages[TILE];
  Edges edges[2];  // of this row and of the next
  find_edges(l, rows[0], edges[0]);
  for (int r = 0; r < count; ++r) {
    const int i = rows[r] % R;
    scratch.ahead.begin(C, 0);
    if (r + 1 < count) {
      find_edges(l, rows[r + 1], edges[(r + 1) % 2]);
      fetch(l, rows[r + 1], edges[(r + 1) % 2], scratch);
    }
    float* total = scratch.sums + size_t(r) * C;
    if (l == 0 && memo.used()) sum_remembered(i, edges[r % 2], total, scratch);
    else sum_new(l, i, edges[r % 2], l ? scratch.own + size_t(r) * C : e.own + size_t(i) * C, total, scratch);
    messages[r] = graph.slots[size_t(i)];
  }
  update_nodes(net.decoder[l].update, count, messages, h, scratch);
}

void Decoder::find_edges(size_t l, int32_t row, Edges& edges) const {
  const int i = row % R, sample = row / R;
  const int32_t* idx = graph.neighbors(i);
  const size_t first = size_t(sample) * R;
  const int64_t its_rank = rank[first + size_t(i)];
  for (int k = 0; k < graph.slots[size_t(i)]; ++k) {
    const size_t j = size_t(idx[k]);
    const bool seen = rank[first + j] < its_rank;
    if (l == 0) {
      edges.type[k] = seen ? int8_t(S[first + j]) : int8_t(UNSEEN);
      edges.add[k] = &net.decoder[0].residues[size_t(edges.type[k]) * size_t(C)];
    } else {
      edges.add[k] = seen ? decoded[l] + (first + j) * C : e.unseen[l] + j * C;
    }
  }
}

// Has what the next row needs fetched while this one computes.
void Decoder::fetch(size_t l, int32_t row, const Edges& edges, Scratch& scratch) const {
  const int i = row % R, slots = graph.slots[size_t(i)];
  const float* input = e.edge(e.multiplied ? l : 0, i);
  if (l == 0 && memo.used()) {  // few matmuls follow, so at once
    scratch.ahead.begin(C, slots);
    for (int k = 0; k < slots; ++k) {
      const float* known = memo.find(size_t(i) * K + size_t(k), edges.type[k]);
      scratch.ahead.add(known ? known : input + size_t(k) * C);
    }
    return scratch.ahead.fetch_some();
  }
  scratch.ahead.begin(C, e.multiplied ? 6 : 3);
  scratch.ahead.add(input, slots);
  for (int k = 0; l && k < slots; ++k) scratch.ahead.add(edges.add[k]);
}

// The sum over messages of one row, all computed here: from E·h_E + what the neighbor shows + A·h_i.
void Decoder::sum_new(size_t l, int i, const Edges& edges, const float* own, float* total, Scratch& scratch) const {
  const int rows = graph.slots[size_t(i)], width = C;
  const float *input = e.edge(e.multiplied ? l : 0, i), *others = e.neighbor.data();
  const int32_t* idx = graph.neighbors(i);
  float* x = scratch.x.data();
  const Message& message = net.decoder[l].message;
  if (e.multiplied) {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < C; c += LANES) {
        const Vector y = load(input + size_t(r) * C + c) + load(edges.add[r] + c);
        store(x + size_t(r) * C + c, l ? y + load(own + c) : y);
      }
  } else if (l == 0) {  // the same sums in the same order, the edge's part made here
    matmul(
        scratch.ahead, rows, input, C, message.E,
        [=](int r, int c) MPNN_LAMBDA { return load(own + c) + load(others + size_t(idx[r]) * width + c); },
        [&](int r, int c, Vector y) MPNN_LAMBDA { store(x + size_t(r) * width + c, y + load(edges.add[r] + c)); });
  } else {
    matmul(
        scratch.ahead, rows, input, C, message.E, [](int, int) MPNN_LAMBDA { return Vector{}; },
        [&](int r, int c, Vector y)
            MPNN_LAMBDA { store(x + size_t(r) * width + c, y + load(edges.add[r] + c) + load(own + c)); });
  }
  sum_messages(message, rows, nullptr, total, scratch);
}

// The same sum in the first layer, each message computed once for an edge and a residue type.
void Decoder::sum_remembered(int i, const Edges& edges, float* total, Scratch& scratch) {
  constexpr int BLOCK = 64 / LANES;
  const int rows = graph.slots[size_t(i)];
  const float* input = e.edge(0, i);
  float *x = scratch.x.data(), *y = scratch.y.data();
  const float* message[MOST_NEIGHBORS];
  int wanted[MOST_NEIGHBORS], n = 0;
  for (int r = 0; r < rows; ++r) {
    message[r] = memo.find(size_t(i) * K + size_t(r), edges.type[r]);
    if (message[r]) continue;
    for (int c = 0; c < C; c += LANES)
      store(x + size_t(n) * C + c, load(input + size_t(r) * C + c) + load(edges.add[r] + c));
    wanted[n++] = r;
  }
  if (n) {
    const Message& m = net.decoder[0].message;
    gelu_rows(x, n * C);
    multiply(m.W2, m.b2.data(), n, x, y, C, scratch.ahead);
    gelu_rows(y, n * C);
  }
  for (int q = 0; q < n; ++q) {
    float *made = y + size_t(q) * C, *place = memo.place(size_t(i) * K + size_t(wanted[q]), edges.type[wanted[q]]);
    if (place) std::copy_n(made, C, place);
    message[wanted[q]] = made;
  }
  for (int c = 0; c < C; c += 64) {
    Vector sums[BLOCK] = {};
    for (int r = 0; r < rows; ++r)
      repeat<BLOCK>([&](auto u) MPNN_LAMBDA { sums[u] += load(message[r] + c + u * LANES); });
    repeat<BLOCK>([&](auto u) MPNN_LAMBDA { store(total + c + u * LANES, sums[u]); });
  }
}

// Writes V·h of decoded rows to what `layer` reads of them; `reveal` adds their residue types.
void Decoder::show(size_t l, const int32_t* rows, int count, const float* h, Scratch& scratch) {
  float* out = decoded[l].data();
  const int width = C;
  matmul(
      scratch.ahead, count, h, C, net.decoder[l].message.V, [](int, int) MPNN_LAMBDA { return Vector{}; },
      [=](int r, int c, Vector y) MPNN_LAMBDA { store(out + size_t(rows[r]) * width + c, y); });
}

void Decoder::reveal(size_t l, int32_t row) {
  float* x = decoded[l] + size_t(row) * C;
  const float* residue = &net.decoder[l].residues[size_t(S[row]) * size_t(C)];
  for (int c = 0; c < C; c += LANES) store(x + c, load(x + c) + load(residue + c));
}

void Decoder::write_logits(const int32_t* rows, int count, const float* h, Scratch& scratch) {
  float* wide = scratch.inner.data();
  const int columns = net.W_out.columns();
  matmul(
      scratch.ahead, count, h, C, net.W_out, [&](int, int c) MPNN_LAMBDA { return load(&net.b_out[size_t(c)]); },
      [=](int r, int c, Vector y) MPNN_LAMBDA { store(wide + r * columns + c, y); });
  for (int r = 0; r < count; ++r)
    std::copy_n(wide + r * columns, RESIDUE_TYPES, logits + size_t(rows[r]) * RESIDUE_TYPES);
}

// A masked residue's states are 0, whatever its neighbors are.
void Decoder::set_masked(int32_t row) {
  std::copy_n(net.b_out.data(), RESIDUE_TYPES, logits + size_t(row) * RESIDUE_TYPES);
  for (size_t l = 1; l < decoded.size(); ++l) std::fill_n(decoded[l] + size_t(row) * C, C, 0.f);
}

void Decoder::commit(int32_t row, int64_t type) {
  S[row] = type;
  for (size_t l = 1; l < decoded.size(); ++l) reveal(l, row);
}

// Gumbel-max: the residue type with the largest (logit + bias) / temperature + noise.
void Decoder::draw(int32_t row, const SamplingJob& job) {
  const size_t i = size_t(row % R), n = size_t(row / R), V = RESIDUE_TYPES;
  int64_t type = S[row];
  float best = -std::numeric_limits<float>::infinity();
  for (size_t v = 0; job.designed[i] && v < V; ++v) {
    const float logit = logits[size_t(row) * V + v] + float(job.bias[i * V + v]);
    const float x = logit / float(job.temperature[n]) + float(job.gumbel[size_t(row) * V + v]);
    if (x > best) best = x, type = int64_t(v);
  }
  commit(row, type);
}

void Decoder::draw_groups(const int32_t* rows, size_t count, const SamplingJob& job) {
  for (size_t r = 0; r < count; ++r)
    if (job.tie_group[rows[r] % R] == rows[r] % R) draw_group(rows[r], job);
}

// One draw for all members of the group whose first residue this row is: from the mean over members
// of weight · logits + bias, with the first one's noise.
void Decoder::draw_group(int32_t row, const SamplingJob& job) {
  const size_t head = size_t(row % R), n = size_t(row) / size_t(R), V = RESIDUE_TYPES;
  const std::vector<int32_t>& group = members[head];
  int64_t type = 0;
  float best = -std::numeric_limits<float>::infinity();
  for (size_t v = 0; v < V; ++v) {
    float total = 0;
    for (int32_t i : group)
      total +=
          logits[(n * size_t(R) + size_t(i)) * V + v] * float(job.tie_weight[i]) + float(job.bias[size_t(i) * V + v]);
    const float x = total / float(group.size()) / float(job.temperature[n]) + float(job.gumbel[size_t(row) * V + v]);
    if (x > best) best = x, type = int64_t(v);
  }
  for (int32_t i : group) {
    const int32_t member = int32_t(n) * R + i;
    commit(member, job.designed[i] ? type : S[member]);
  }
}

// Logits to log-probabilities.
void Decoder::finish() {
  constexpr size_t CHUNK = 1024;
  const size_t rows = size_t(N) * R;
  pool.share(int((rows + CHUNK - 1) / CHUNK), [&](int c, Scratch&) {
    for (size_t r = size_t(c) * CHUNK; r < std::min(rows, size_t(c + 1) * CHUNK); ++r)
      log_softmax(logits + r * RESIDUE_TYPES, RESIDUE_TYPES);
  });
}

}  // namespace mpnn
