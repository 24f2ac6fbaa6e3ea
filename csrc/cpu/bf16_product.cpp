#include "bf16_product.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "isa.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace hetkern::cpu {
namespace {

#if defined(HETKERN_HAS_AVX512) && defined(__x86_64__)
// Linux gives a process the tiles' registers when it asks for them: Documentation/arch/x86/xstate.rst.
bool ask_for_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool processor_has(Product product) {
  static const bool dot = __builtin_cpu_supports("avx512bf16");
  static const bool amx = ask_for_tiles();
  return product == Product::fma || (product == Product::dot ? dot : amx);
}
Product by_rule() {
  if (processor_has(Product::amx)) return Product::amx;
  return processor_has(Product::dot) && __builtin_cpu_is("amd") ? Product::dot : Product::fma;
}
#else
bool processor_has(Product product) { return product == Product::fma; }
Product by_rule() { return Product::fma; }
#endif

Product from_environment() {
  const char* const wanted = std::getenv("HETKERN_BF16");
  for (const Product product : {Product::fma, Product::dot, Product::amx})
    if (wanted && std::strcmp(wanted, name_of(product)) == 0 && processor_has(product)) return product;
  return by_rule();
}

std::atomic<Product>& in_force() {
  static std::atomic<Product> value{from_environment()};
  return value;
}

}  // namespace

Product bf16_product() { return isa() == Isa::avx512 ? in_force().load(std::memory_order_relaxed) : Product::fma; }
void set_bf16_product(Product product) {
  if (processor_has(product)) in_force().store(product, std::memory_order_relaxed);
}

}  // namespace hetkern::cpu
