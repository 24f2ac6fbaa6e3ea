// How the CPU's recurrences multiply numbers of bfloat16. The sums are float32 always; each way has bits of its own.
#pragma once
#include <cstdint>

namespace hetkern {

enum class Product : int8_t {
  fma,  // widened to float32: fused multiply-adds
  dot,  // AVX512-BF16: dot products of pairs
  amx,  // AMX: tiles of 16 rows, 32 columns deep
};
inline const char* name_of(Product product) {
  return product == Product::amx ? "amx" : product == Product::dot ? "dot" : "fma";
}

}  // namespace hetkern
