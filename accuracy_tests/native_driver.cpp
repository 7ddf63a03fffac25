// Runs one job without Python: under qemu for another processor, or under a sanitizer.
//
// driver INPUT OUTPUT. The input holds what test_native_builds.py writes, array after array, each after
// its size in bytes; the output is S [N, R] and log_probs [N, R, 21] as the library returns them.
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "decoder.h"

extern "C" {
int32_t mpnn_network_new(const int32_t*, int32_t, const float* const*, const int64_t*, mpnn::Network**, char*);
int32_t mpnn_encode(const mpnn::Network*, const mpnn::Structures*, int32_t, const int32_t*, mpnn::Encoding**,
                    char*);
int32_t mpnn_sample(mpnn::Encoding*, const mpnn::SamplingJob*, int64_t*, float*, int32_t, const int32_t*, char*);
void mpnn_encoding_free(mpnn::Encoding*);
void mpnn_network_free(mpnn::Network*);
}

namespace {

std::vector<std::vector<char>> arrays;

template <class T>
const T* next(std::ifstream& in) {
  int64_t size = 0;
  in.read(reinterpret_cast<char*>(&size), sizeof size);
  arrays.emplace_back(static_cast<size_t>(size));
  in.read(arrays.back().data(), size);
  if (!in) std::exit(3);
  return reinterpret_cast<const T*>(arrays.back().data());
}

void check(int32_t status, const char* message) {
  if (status) std::fprintf(stderr, "status %d: %s\n", status, message), std::exit(2);
}

}  // namespace

int main(int, char** arguments) {
  std::ifstream in(arguments[1], std::ios::binary);
  const int32_t* sizes = next<int32_t>(in);  // C, encoders, decoders, tensors, R, B, K, N, threads
  std::vector<const float*> tensors;
  std::vector<int64_t> elements;
  for (int t = 0; t < sizes[3]; ++t) {
    tensors.push_back(next<float>(in));
    elements.push_back(static_cast<int64_t>(arrays.back().size() / sizeof(float)));
  }
  mpnn::Structures s{sizes[4], sizes[5], sizes[6], nullptr, nullptr, nullptr, nullptr, nullptr, nullptr};
  s.X = next<float>(in), s.mask = next<uint8_t>(in);
  s.residue_idx = next<int64_t>(in), s.chain_encoding = next<int64_t>(in), s.starts = next<int64_t>(in);
  mpnn::SamplingJob job{};
  job.N = sizes[7];
  job.S = next<int64_t>(in), job.designed = next<uint8_t>(in), job.rank = next<int64_t>(in);
  job.gumbel = next<double>(in), job.temperature = next<double>(in), job.bias = next<double>(in);
  job.tie_group = next<int64_t>(in), job.tie_weight = next<double>(in);

  char message[256] = "";
  mpnn::Network* network = nullptr;
  mpnn::Encoding* encoding = nullptr;
  check(mpnn_network_new(sizes, sizes[3], tensors.data(), elements.data(), &network, message), message);
  check(mpnn_encode(network, &s, sizes[8], nullptr, &encoding, message), message);
  const size_t rows = static_cast<size_t>(job.N) * static_cast<size_t>(s.R);
  std::vector<int64_t> S(rows);
  std::vector<float> log_probs(rows * 21);
  check(mpnn_sample(encoding, &job, S.data(), log_probs.data(), sizes[8], nullptr, message), message);
  mpnn_encoding_free(encoding);
  mpnn_network_free(network);
  std::ofstream out(arguments[2], std::ios::binary);
  out.write(reinterpret_cast<const char*>(S.data()), static_cast<std::streamsize>(rows * sizeof(int64_t)));
  out.write(reinterpret_cast<const char*>(log_probs.data()), static_cast<std::streamsize>(rows * 21 * sizeof(float)));
}
