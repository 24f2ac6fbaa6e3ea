// Inline PTX as other people's kernels write it: each launcher is a claim of test_emulation_inline_ptx.py.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "cuda/device/launch.cuh"

namespace {

__device__ unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }

// ---- Products of one warp. -------------------------------------------------------------------------------------------------

template <class T>
struct Tiles {
  alignas(16) T a[16 * 16];
  alignas(16) T b[16 * 8];
};

// y = a b of 16 × 16 and 16 × 8 numbers in rows. few: as two products of half the depth, their fragments by x2 and x1.
template <class T>
__global__ void product(const T* a, const T* b, float* y, int few) {
  HETKERN_SHARED(Tiles<T>, s);
  const int lane = threadIdx.x;
  for (int i = lane; i < 256; i += 32) s.a[i] = a[i];
  for (int i = lane; i < 128; i += 32) s.b[i] = b[i];
  __syncthreads();
  float d[4] = {0, 0, 0, 0};
  if (!few) {
    unsigned x[4], z[2];
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(shared_address(&s.a[lane % 16 * 16 + lane / 16 * 8])));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(z[0]), "=r"(z[1])
                 : "r"(shared_address(&s.b[lane % 16 * 8])));
    if constexpr (sizeof(T) == 2 && !std::is_same_v<T, __half>)
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(z[0]), "r"(z[1]));
    else
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
          "{%0, %1, %2, %3};"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(z[0]), "r"(z[1]));
  } else {
    for (int k = 0; k < 16; k += 8) {
      unsigned x[2], z;
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                   : "=r"(x[0]), "=r"(x[1])
                   : "l"(__cvta_generic_to_shared(&s.a[lane % 16 * 16 + k])));
      asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];"
                   : "=r"(z)
                   : "r"(shared_address(&s.b[(k + lane % 8) * 8])));
      asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(z));
      if constexpr (std::is_same_v<T, __half>)
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(x[0]), "r"(x[1]), "r"(z));
      else
        asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(x[0]), "r"(x[1]), "r"(z));
    }
  }
  for (int i = 0; i < 4; ++i) y[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

// y = a b of 16 × 8 and 8 × 8 numbers; a product of TF32 takes of each its first eleven digits.
__global__ void product_tf32(const float* a, const float* b, float* y) {
  const int row = threadIdx.x / 4, k = threadIdx.x % 4;
  unsigned x[4], z[2];
  const float from[6] = {a[row * 8 + k],           a[(row + 8) * 8 + k], a[row * 8 + k + 4],
                         a[(row + 8) * 8 + k + 4], b[k * 8 + row],       b[(k + 4) * 8 + row]};
  for (int i = 0; i < 6; ++i) asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(i < 4 ? x[i] : z[i - 4]) : "f"(from[i]));
  float d[4];
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, "
      "%10, %10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(z[0]), "r"(z[1]), "f"(0.0f));
  for (int i = 0; i < 4; ++i) y[(row + i / 2 * 8) * 8 + k * 2 + i % 2] = d[i];
}

// y = a b of 16 × 32 and 8 × 32 whole numbers, both in rows; a as two products of half the depth if few.
__global__ void product_int8(const unsigned* a, const unsigned* b, int* y, int few) {
  const int row = threadIdx.x / 4, k = threadIdx.x % 4;
  const unsigned x[4] = {a[row * 8 + k], a[(row + 8) * 8 + k], a[row * 8 + k + 4], a[(row + 8) * 8 + k + 4]};
  const unsigned z[2] = {b[row * 8 + k], b[row * 8 + k + 4]};
  int d[4] = {0, 0, 0, 0};
  if (!few)
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(z[0]), "r"(z[1]));
  else
    for (int i = 0; i < 2; ++i)
      asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
          : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
          : "r"(x[2 * i]), "r"(x[2 * i + 1]), "r"(z[i]));
  for (int i = 0; i < 4; ++i) y[(row + i / 2 * 8) * 8 + k * 2 + i % 2] = d[i];
}

// ---- Fragments as they lie in the lanes' registers. ------------------------------------------------------------------------

#define FOUR(d) "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
#define FED(a, b) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(0)
__global__ void fragments(const unsigned* given, unsigned* y, int which) {
  const unsigned* a = given + threadIdx.x * 6;
  const unsigned* b = a + 4;
  unsigned d[8] = {0, 0, 0, 0, 0, 0, 0, 0};
  if (which == 0)
    asm("mma.sync.aligned.m16n8k64.row.col.s32.s4.u4.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, "
        "%10};"
        : FOUR(d)
        : FED(a, b));
  if (which == 1)
    asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, "
        "%10, %10};"
        : FOUR(d)
        : FED(a, b));
  if (which == 2)
    asm("mma.sync.aligned.m8n8k16.row.col.s32.u8.s8.s32 {%0, %1}, {%2}, {%3}, {%4, %4};"
        : "=r"(d[0]), "=r"(d[1])
        : "r"(a[0]), "r"(b[0]), "r"(0));
  if (which == 3)
    asm("mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9}, {%10, %11}, "
        "{%0, %1, %2, %3, %4, %5, %6, %7};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]));
  if (which == 4)
    asm("mma.sync.aligned.m8n8k4.row.row.f16.f16.f16.f16 {%0, %1, %2, %3}, {%4, %5}, {%6, %7}, {%0, %1, %2, %3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b[0]), "r"(b[1]));
  if (which == 5)
    asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %8};"
        : "=r"(d[0]), "=r"(d[1])
        : FED(a, b));
  for (int i = 0; i < 8; ++i) y[threadIdx.x * 8 + i] = d[i];
}

// ---- One element a thread. -------------------------------------------------------------------------------------------------

__global__ void elementwise(const float* x, float* y, const unsigned* a, unsigned* b, int n) {
  const int t = threadIdx.x;
  asm("{ .reg .pred p; .reg .f32 %%u;\n\t"
      "fma.rn.f32 %%u, %1, %1, 0f3F800000;  // x x + 1\n\t"
      "setp.lt.f32 p, %1, 0f00000000;\n\t"
      "@p neg.f32 %%u, %%u;\n\t"
      "mov.f32 %0, %%u; }"
      : "=f"(y[t])
      : "f"(x[t]));
  asm("lop3.b32 %0, %1, %2, %3, 0xE8;" : "=r"(b[4 * t]) : "r"(a[t]), "r"(a[(t + 1) % n]), "r"(a[(t + 2) % n]));
  asm("prmt.b32 %0, %1, %2, 0x7531;" : "=r"(b[4 * t + 1]) : "r"(a[t]), "r"(a[(t + 1) % n]));
  asm("bfe.u32 %0, %1, %2, %3;" : "=r"(b[4 * t + 2]) : "r"(a[t]), "n"(5), "r"(9));
  asm("mad.lo.u32 %0, %1, %2, %%laneid;" : "=r"(b[4 * t + 3]) : "r"(a[t]), "r"(a[(t + 1) % n]));
}

// ---- Asynchronous copies. --------------------------------------------------------------------------------------------------

struct Rows {
  alignas(16) float a[32 * 4];
};
// Each thread's four numbers come from the lane opposite. pending: of its two groups, how many may be left.
__global__ void copied(const float* x, float* y, int pending) {
  HETKERN_SHARED(Rows, s);
  const int t = threadIdx.x;
  const unsigned to = shared_address(&s.a[4 * t]);
  asm volatile("cp.async.ca.shared.global.L2::128B [%0], [%1], 8;" ::"r"(to), "l"(x + 4 * t));
  asm volatile("cp.async.commit_group;" ::: "memory");
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to + 8), "l"(x + 4 * t + 2), "n"(8));
  asm volatile("cp.async.commit_group;");
  if (pending == 0) asm volatile("cp.async.wait_all;");
  if (pending == 1) asm volatile("cp.async.wait_group %0;" ::"n"(1));
  __syncthreads();
  for (int i = 0; i < 4; ++i) y[4 * t + i] = s.a[4 * (31 - t) + i];
}

}  // namespace

extern "C" {
void go_product_float16(const __half* a, const __half* b, float* y, int few, void* stream) {
  HETKERN_LAUNCH(product<__half>, 1, 32, sizeof(Tiles<__half>), stream, a, b, y, few);
}
void go_product_bfloat16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* y, int few, void* stream) {
  HETKERN_LAUNCH(product<__nv_bfloat16>, 1, 32, sizeof(Tiles<__nv_bfloat16>), stream, a, b, y, few);
}
void go_product_tf32(const float* a, const float* b, float* y, void* stream) {
  HETKERN_LAUNCH(product_tf32, 1, 32, 0, stream, a, b, y);
}
void go_product_int8(const signed char* a, const signed char* b, int* y, int few, void* stream) {
  HETKERN_LAUNCH(product_int8, 1, 32, 0, stream, reinterpret_cast<const unsigned*>(a),
                 reinterpret_cast<const unsigned*>(b), y, few);
}
void go_fragments(const unsigned* given, unsigned* y, int which, void* stream) {
  HETKERN_LAUNCH(fragments, 1, 32, 0, stream, given, y, which);
}
void go_elementwise(const float* x, float* y, const unsigned* a, unsigned* b, int n, void* stream) {
  HETKERN_LAUNCH(elementwise, 1, n, 0, stream, x, y, a, b, n);
}
void go_copied(const float* x, float* y, int pending, void* stream) {
  HETKERN_LAUNCH(copied, 1, 32, sizeof(Rows), stream, x, y, pending);
}
}
