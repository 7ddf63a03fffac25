// On macOS the matmuls are Accelerate's: on M1 to M3 nothing else reaches the matrix unit.
// -DMPNN_BLAS='"file"' builds the same for any library that has cblas_sgemm with 32-bit sizes.
#include "matmul.h"

#if defined(MPNN_WITH_BLAS)
#include <dlfcn.h>

#if !defined(MPNN_BLAS)
#define MPNN_BLAS "/System/Library/Frameworks/Accelerate.framework/Accelerate"
#endif

namespace mpnn {

Sgemm find_sgemm() {
  void* library = dlopen(MPNN_BLAS, RTLD_NOW | RTLD_LOCAL);
  return library ? reinterpret_cast<Sgemm>(dlsym(library, "cblas_sgemm")) : nullptr;
}

}  // namespace mpnn
#endif
