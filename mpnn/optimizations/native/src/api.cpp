// The C interface. Everything that crosses it has been checked by the caller; what is returned says
// whether the job was done, and a message why it was not.
#include <algorithm>
#include <cstdio>
#include <exception>
#include <iterator>
#include <memory>
#include <new>

#include "decoder.h"

using namespace mpnn;

#define MPNN_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int32_t ABI_VERSION = 2;  // of this file, and of `ABI_VERSION` in engine.py
constexpr int32_t DONE = 0, FAILED = 1, CANCELED = 2, OUT_OF_MEMORY = 3;
constexpr size_t MESSAGE = 256;

// Runs `work`, and turns what it throws into a status and a message [MESSAGE].
template <class Work>
int32_t guarded(char* message, Work work) {
  try {
    work();
    return DONE;
  } catch (const Canceled&) {
    return CANCELED;
  } catch (const std::bad_alloc&) {
    return OUT_OF_MEMORY;
  } catch (const std::exception& error) {
    std::snprintf(message, MESSAGE, "%s", error.what());
    return FAILED;
  }
}

}  // namespace

MPNN_EXPORT int32_t mpnn_abi_version() { return ABI_VERSION; }

// sizes: C, encoder layers, decoder layers.
MPNN_EXPORT int32_t mpnn_network_new(const int32_t* sizes, int32_t count, const float* const* tensors,
                                     const int64_t* elements, Network** out, char* message) {
  return guarded(message, [&] { *out = new Network(sizes[0], sizes[1], sizes[2], count, tensors, elements); });
}

MPNN_EXPORT void mpnn_network_free(Network* network) { delete network; }

MPNN_EXPORT int32_t mpnn_encode(const Network* network, const Structures* structures, int32_t threads,
                                const int32_t* cancel, Encoding** out, char* message) {
  return guarded(message, [&] {
    const Job job(threads, network->C, structures->K, cancel);
    auto encoding = std::make_unique<Encoding>(*network);
    encode(*encoding, *structures, job.pool);
    *out = encoding.release();
  });
}

MPNN_EXPORT void mpnn_encoding_free(Encoding* encoding) { delete encoding; }

// Writes the work of all jobs of this process: multiply-adds, matmuls and wavefront steps, and the most
// bytes that buffers had at once since the last call, above what they had then. Between jobs.
MPNN_EXPORT void mpnn_work(int64_t* out) {
  Pool& pool = Pool::here();
  const Work all = pool.totals();
  const int64_t found[] = {all.multiply_adds, all.matmuls, pool.steps, take_peak_bytes()};
  std::copy(std::begin(found), std::end(found), out);
}

// Copies E_idx [R, K], rows of all structures, to `out`.
MPNN_EXPORT void mpnn_neighbors(const Encoding* encoding, int64_t* out) {
  std::copy(encoding->graph.E_idx.begin(), encoding->graph.E_idx.end(), out);
}

// Log-probabilities [N, R, 21] of S [N, R] under rank [N, R].
MPNN_EXPORT int32_t mpnn_score(Encoding* encoding, int32_t N, const int64_t* rank, int64_t* S, float* log_probs,
                               int32_t threads, const int32_t* cancel, char* message) {
  return guarded(message, [&] {
    const Job job(threads, encoding->net.C, encoding->graph.K, cancel);
    Decoder(*encoding, N, rank, S, log_probs, job.pool).score();
  });
}

// Fills S [N, R] and log_probs [N, R, 21].
MPNN_EXPORT int32_t mpnn_sample(Encoding* encoding, const SamplingJob* wanted, int64_t* S, float* log_probs,
                                int32_t threads, const int32_t* cancel, char* message) {
  return guarded(message, [&] {
    const Job job(threads, encoding->net.C, encoding->graph.K, cancel);
    Decoder(*encoding, wanted->N, wanted->rank, S, log_probs, job.pool).sample(*wanted);
  });
}
