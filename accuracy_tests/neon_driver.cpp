// Scores one structure through the C interface, without Python: a machine of another instruction set
// runs it in an emulator. Reads arrays (their bytes, then the bytes) and writes log-probabilities.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "encoding.h"

using namespace mpnn;

extern "C" {
int32_t mpnn_network_new(const int32_t*, int32_t, const float* const*, const int64_t*, Network**, char*);
int32_t mpnn_encode(const Network*, const Structures*, int32_t, const int32_t*, Encoding**, char*);
int32_t mpnn_score(Encoding*, int32_t, const int64_t*, int64_t*, float*, int32_t, const int32_t*, char*);
}

namespace {

void check(bool good, const char* message) {
  if (good) return;
  std::fprintf(stderr, "%s\n", message);
  std::exit(1);
}

template <class T>
std::vector<T> read(FILE* file) {
  int64_t bytes = 0;
  check(std::fread(&bytes, sizeof bytes, 1, file) == 1, "a size is missing");
  std::vector<T> out(size_t(bytes) / sizeof(T));
  check(std::fread(out.data(), sizeof(T), out.size(), file) == out.size(), "an array is cut off");
  return out;
}

}  // namespace

int main(int, char** names) {
  FILE* in = std::fopen(names[1], "rb");
  check(in != nullptr, "no input");
  const auto sizes = read<int32_t>(in);  // C, encoder layers, decoder layers, tensors, R, K
  std::vector<std::vector<float>> tensors;
  std::vector<const float*> pointers;
  std::vector<int64_t> elements;
  for (int i = 0; i < sizes[3]; ++i) tensors.push_back(read<float>(in));
  for (const auto& tensor : tensors) {
    pointers.push_back(tensor.data());
    elements.push_back(int64_t(tensor.size()));
  }
  const auto X = read<float>(in);
  const auto mask = read<uint8_t>(in);
  const auto residue_idx = read<int64_t>(in), chain_encoding = read<int64_t>(in), rank = read<int64_t>(in);
  auto S = read<int64_t>(in);
  const int R = sizes[4], threads = 2;
  const int64_t starts[] = {0, R};
  const Structures structures{
      R, 1, sizes[5], X.data(), mask.data(), residue_idx.data(), chain_encoding.data(), starts, nullptr};
  Network* network = nullptr;
  Encoding* encoding = nullptr;
  char message[256] = "";
  const int32_t cancel = 0;
  std::vector<float> log_probs(size_t(R) * 21);
  check(!mpnn_network_new(sizes.data(), sizes[3], pointers.data(), elements.data(), &network, message), message);
  check(!mpnn_encode(network, &structures, threads, &cancel, &encoding, message), message);
  check(!mpnn_score(encoding, 1, rank.data(), S.data(), log_probs.data(), threads, &cancel, message), message);
  FILE* out = std::fopen(names[2], "wb");
  check(out && std::fwrite(log_probs.data(), 4, log_probs.size(), out) == log_probs.size(), "cannot write");
  return std::fclose(out);
}
