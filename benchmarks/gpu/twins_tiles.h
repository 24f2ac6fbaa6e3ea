// The twin table's cases of bulk copies and matrices.
#pragma once
#include "twins_inputs.h"

namespace {

// ---- Bulk copies. ---------------------------------------------------------------------------------------------------------

constexpr int kTiles = 5;
struct alignas(16) BulkShared {
  uint4 tile[2][kThreads];
  uint64_t full[2], empty[2];
};

// A ring of two tiles: thread 0 asks for them in two requests each, all threads read them and say so.
__global__ void __launch_bounds__(kThreads) bulk_kernel(const uint4* in, uint4* out) {
  HETKERN_SHARED(BulkShared, s);
  const unsigned t = threadIdx.x;
  if (t == 0)
    for (int i = 0; i < 2; ++i) ptx::barrier_init(&s.full[i], 1), ptx::barrier_init(&s.empty[i], kThreads);
  __syncthreads();
  for (int tile = 0; tile < kTiles; ++tile) {
    const int slot = tile % 2, phase = tile / 2 % 2;
    if (t == 0) {
      if (tile >= 2) ptx::barrier_wait(&s.empty[slot], 1 - phase);
      ptx::barrier_arrive_expecting(&s.full[slot], sizeof(s.tile[slot]));
      ptx::copy_bulk(s.tile[slot], in + tile * kThreads, 48, &s.full[slot]);
      ptx::copy_bulk(s.tile[slot] + 3, in + tile * kThreads + 3, sizeof(s.tile[slot]) - 48, &s.full[slot]);
    }
    ptx::barrier_wait(&s.full[slot], phase);
    out[tile * kThreads + t] = s.tile[slot][scattered(t, kThreads)];
    ptx::barrier_arrive(&s.empty[slot]);
  }
}

Words bulk_copies() {
  const Buffer<uint32_t> in(adversarial(4 * kTiles * kThreads, 70)), out(4 * kTiles * kThreads, 0xa5);
  HETKERN_LAUNCH(bulk_kernel, 1, kThreads, sizeof(BulkShared), nullptr, reinterpret_cast<const uint4*>(in.data()),
                 reinterpret_cast<uint4*>(out.data()));
  return out.read();
}

// ---- Matrices. ------------------------------------------------------------------------------------------------------------

struct alignas(16) MatrixShared {
  uint32_t rows[kThreads][4];
};

template <bool transposed>
__global__ void __launch_bounds__(kThreads) matrix_kernel(const uint32_t* in, uint32_t* out) {
  HETKERN_SHARED(MatrixShared, s);
  const unsigned t = threadIdx.x;
  for (int i = 0; i < 4; ++i) s.rows[t][i] = in[4 * t + i];
  __syncthreads();
  uint32_t r[4];
  ptx::load_matrices<transposed>(r, s.rows[scattered(t, kThreads)]);
  for (int i = 0; i < 4; ++i) out[4 * t + i] = r[i];
}

Words matrices() {
  const Buffer<uint32_t> in(adversarial(4 * kThreads, 80)), plain(4 * kThreads, 0xa5), transposed(4 * kThreads, 0xa5);
  HETKERN_LAUNCH((matrix_kernel<false>), 1, kThreads, sizeof(MatrixShared), nullptr,
                 static_cast<const uint32_t*>(in.data()), plain.data());
  HETKERN_LAUNCH((matrix_kernel<true>), 1, kThreads, sizeof(MatrixShared), nullptr,
                 static_cast<const uint32_t*>(in.data()), transposed.data());
  Words words = plain.read();
  const Words more = transposed.read();
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

// in: for each thread four words of a, two of b.
template <class X>
__global__ void __launch_bounds__(kThreads) product_kernel(const uint32_t* in, float* out) {
  const unsigned t = threadIdx.x;
  uint32_t a[4], b[2];
  for (int i = 0; i < 4; ++i) a[i] = in[6 * t + i];
  for (int i = 0; i < 2; ++i) b[i] = in[6 * t + 4 + i];
  float d[4] = {0.0f, 1.0f, 0.5f, 1e-3f};
  for (int repeat = 0; repeat < 2; ++repeat) ptx::multiply_add<X>(d, a, b);
  for (int i = 0; i < 4; ++i) out[4 * t + i] = d[i];
}

// Positive numbers between 1/4 and 4: nothing cancels, so that every bit of an element shows in the sums.
template <class X>
void products_of(Words& result, uint32_t least, uint32_t most, uint64_t seed) {
  Random random(seed);
  Words in(6 * kThreads);
  const auto element = [&] { return least + random.bits() % (most - least); };
  for (uint32_t& word : in) word = element() | element() << 16;
  const Buffer<uint32_t> from(in);
  const Buffer<float> out(4 * kThreads, 0xa5);
  HETKERN_LAUNCH((product_kernel<X>), 1, kThreads, 0, nullptr, static_cast<const uint32_t*>(from.data()), out.data());
  const std::vector<float> sums = out.read();
  const size_t before = result.size();
  result.resize(before + sums.size());
  std::memcpy(&result[before], sums.data(), 4 * sums.size());
}

Words products() {
  Words result;
  products_of<__nv_bfloat16>(result, 0x3e80, 0x4080, 90);
  products_of<__half>(result, 0x3400, 0x4400, 91);
  return result;
}

}  // namespace
