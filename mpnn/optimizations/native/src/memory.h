// Buffers of floats, aligned to cache lines; large ones come in huge pages and are used again.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

namespace mpnn {

// `size` floats that the owner alone writes. Contents are unspecified until written.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size);
  Buffer(Buffer&& other) noexcept : p(std::exchange(other.p, nullptr)), bytes(other.bytes), asked(other.asked) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(p, other.p), std::swap(bytes, other.bytes), std::swap(asked, other.asked);
    return *this;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  float* data() const { return p; }
  float* operator+(size_t i) const { return p + i; }
  float& operator[](size_t i) const { return p[i]; }

 private:
  float* p = nullptr;
  size_t bytes = 0, asked = 0;  // a block used again may be larger than what was asked for
};

// Most bytes that all buffers together had at once since this was last called, above what they had then.
int64_t take_peak_bytes();

}  // namespace mpnn
