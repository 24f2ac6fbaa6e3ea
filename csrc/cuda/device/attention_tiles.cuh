// Tiles of attention in shared memory, and their products by a warp.                                   (the contract: csrc/attention.h)
//
// A warp has 16 rows of scores; a lane has what the tensor cores' m16n8k16 gives it: of the n-th 8 columns the elements
//   e = 0, 1: row lane / 4, columns 2 (lane mod 4) and the next      e = 2, 3: the same of row lane / 4 + 8
// 16-bit elements go through the tensor cores; float and double through fused multiply-adds, in the same places.
// A tile's rows lie an odd number of 16 bytes apart, so that eight of them meet no bank twice.
#pragma once
#include "../../attention.h"
#include "numbers.cuh"
#include "ptx.cuh"

namespace hetkern::cuda {

template <class T>
using AccumulatorOf = std::conditional_t<std::is_same_v<T, double>, double, float>;
template <class T>
constexpr bool kTensorCores = sizeof(T) == 2;
template <class T>
constexpr int kChunk = 16 / static_cast<int>(sizeof(T));
template <class T>
struct alignas(16) Chunk {
  T e[kChunk<T>];
};

__device__ __forceinline__ int lane_of_warp() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int fragment_row() { return lane_of_warp() / 4; }
__device__ __forceinline__ int fragment_column() { return lane_of_warp() % 4 * 2; }

template <class A, int N>
__device__ __forceinline__ void clear(A (&f)[N][4]) {
#pragma unroll
  for (int t = 0; t < N; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e) f[t][e] = A(0);
}

// ---- Global to shared and back. --------------------------------------------------------------------------------------------

// Rows of a tensor, as a tile takes them.
template <class T, bool kFold = false>
struct TileRows {
  T* at;
  int64_t row, step;
  bool vectors;  // rows begin on 16 bytes, and their elements are neighbours
  __device__ __forceinline__ T* operator[](int r) const { return at + r * row; }
};
// Of a group's heads: those of a query stand beside each other. `at` is the first head's row 0, `first` the tile's row 0.
template <class T>
struct TileRows<T, true> {
  T* at;
  int64_t row, step;
  bool vectors;
  int64_t head;
  int heads, first;
  __device__ __forceinline__ T* operator[](int r) const {
    return at + (first + r) / heads * row + (first + r) % heads * head;
  }
};

// `rows` rows, of which `have` are there, and `columns` columns up to a multiple of 16: zeros elsewhere. All threads call it.
template <class T, bool kFold>
__device__ __forceinline__ void load_tile(T* to, int ld, const TileRows<const T, kFold>& from, int rows, int have,
                                          int columns) {
  const int whole = (columns + 15) / 16 * 16, threads = static_cast<int>(blockDim.x);
  if (from.vectors) {
    const int chunks = whole / kChunk<T>;
    for (int n = static_cast<int>(threadIdx.x); n < rows * chunks; n += threads) {
      const int r = n / chunks, c = n % chunks * kChunk<T>;
      const int left = r < have ? (columns - c) * static_cast<int>(sizeof(T)) : 0;
      const int bytes = left < 0 ? 0 : left < 16 ? left : 16;
      ptx::copy_async<16>(to + r * ld + c, bytes > 0 ? from[r] + c : from.at, bytes);
    }
  } else {
    for (int n = static_cast<int>(threadIdx.x); n < rows * whole; n += threads) {
      const int r = n / whole, c = n % whole;
      T value = To<T>::from(0);
      if (r < have && c < columns) value = from[r][c * from.step];
      to[r * ld + c] = value;
    }
  }
}

// A warp's 16 rows, times a factor for each half of them, by way of shared memory that is the warp's own.
template <class T, class A, int N, bool kFold>
__device__ __forceinline__ void store_rows(T* stage, const A (&o)[N][4], A factor_0, A factor_1,
                                           const TileRows<T, kFold>& to, int have, int columns) {
  constexpr int ld = 8 * N + kChunk<T>;
#pragma unroll
  for (int t = 0; t < N; ++t)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      stage[(fragment_row() + e / 2 * 8) * ld + 8 * t + fragment_column() + e % 2] =
          To<T>::from(o[t][e] * (e < 2 ? factor_0 : factor_1));
  __syncwarp();
  const int lane = lane_of_warp();
  if (to.vectors) {
    const int chunks = (columns + kChunk<T> - 1) / kChunk<T>;
    for (int n = lane; n < 16 * chunks; n += 32) {
      const int r = n / chunks, c = n % chunks * kChunk<T>;
      if (r >= have) break;
      const auto& chunk = *reinterpret_cast<const Chunk<T>*>(stage + r * ld + c);
      T* const at = to[r] + c;
      if (columns - c >= kChunk<T>)
        ptx::store_16_streaming(reinterpret_cast<Chunk<T>*>(at), chunk);
      else
        for (int i = 0; i < columns - c; ++i) at[i] = chunk.e[i];
    }
  } else {
    for (int n = lane; n < 16 * columns; n += 32) {
      const int r = n / columns, c = n % columns;
      if (r >= have) break;
      to[r][c * to.step] = stage[r * ld + c];
    }
  }
}

// ---- s += a b^T: 16 rows of a, 8 N rows of b, over `depth` columns of both, a multiple of 16. --------------------------------

template <class T, class A, int N>
__device__ __forceinline__ void multiply_rows(A (&s)[N][4], const T* a, int lda, const T* b, int ldb, int depth) {
  const int lane = lane_of_warp();
  if constexpr (kTensorCores<T>) {
    const T* const from_a = a + lane % 16 * lda + lane / 16 * 8;
    const T* const from_b = b + (lane % 8 + lane / 16 * 8) * ldb + lane / 8 % 2 * 8;
#pragma unroll 2
    for (int k = 0; k < depth; k += 16) {
      uint32_t of_a[4];
      ptx::load_matrices(of_a, from_a + k);
#pragma unroll
      for (int t = 0; t < N; t += 2) {
        uint32_t of_b[4];
        ptx::load_matrices(of_b, from_b + 8 * t * ldb + k);
        const uint32_t low[2] = {of_b[0], of_b[1]}, high[2] = {of_b[2], of_b[3]};
        ptx::multiply_add<T>(s[t], of_a, low);
        ptx::multiply_add<T>(s[t + 1], of_a, high);
      }
    }
  } else {
    const T* const from_a = a + fragment_row() * lda;
    const T* const from_b = b + fragment_column() * ldb;
    constexpr int kRun = 8;  // products that are added up from 0: one sum of all would lose digits to its own size
    for (int k = 0; k < depth; k += kRun) {
      A sum[N][4];
      clear(sum);
#pragma unroll
      for (int i = 0; i < kRun; i += kChunk<T>) {
        const auto a_0 = *reinterpret_cast<const Chunk<T>*>(from_a + k + i);
        const auto a_1 = *reinterpret_cast<const Chunk<T>*>(from_a + 8 * lda + k + i);
#pragma unroll
        for (int t = 0; t < N; ++t) {
          const auto b_0 = *reinterpret_cast<const Chunk<T>*>(from_b + 8 * t * ldb + k + i);
          const auto b_1 = *reinterpret_cast<const Chunk<T>*>(from_b + (8 * t + 1) * ldb + k + i);
#pragma unroll
          for (int c = 0; c < kChunk<T>; ++c) {
            sum[t][0] += a_0.e[c] * b_0.e[c], sum[t][1] += a_0.e[c] * b_1.e[c];
            sum[t][2] += a_1.e[c] * b_0.e[c], sum[t][3] += a_1.e[c] * b_1.e[c];
          }
        }
      }
#pragma unroll
      for (int t = 0; t < N; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) s[t][e] += sum[t][e];
    }
  }
}

// ---- o += p m: 16 rows of p in fragments, 8 N rows of m, `columns` of its columns. -------------------------------------------
//
// 0 times NaN is NaN, but what a row does not see must not reach it. Without tensor cores a weight of -0 is one that is not
// seen, and its product is left out. With them, tiles in which some row does not see some column are looked through: where they
// hold what is not finite, that is taken out of the product, and counted for those who see it by another one.

constexpr float kUnseen = -0.0f;

template <class A>
__device__ __forceinline__ bool unseen(A p) {
  if constexpr (sizeof(A) == 8)
    return __double_as_longlong(p) == static_cast<long long>(0x8000000000000000ull);
  else
    return __float_as_uint(p) == 0x80000000u;
}

// Two neighbouring elements as a word of the tensor cores.
template <class T>
__device__ __forceinline__ uint32_t packed(float low, float high) {
  const T pair[2] = {To<T>::from(low), To<T>::from(high)};
  uint32_t word;
  memcpy(&word, pair, 4);
  return word;
}

// Of a word's two halves: the bits that are all set where an element is not finite, and 1.
template <class T>
constexpr uint32_t kExponent = std::is_same_v<T, f16> ? 0x7c00u : 0x7f80u;
template <class T>
constexpr uint32_t kOne = std::is_same_v<T, f16> ? 0x3c00u : 0x3f80u;

template <class T>
__device__ __forceinline__ bool has_bad(uint32_t word) {
  constexpr uint32_t low = kExponent<T>, high = low << 16;
  return (word & low) == low || (word & high) == high;
}
template <class T>
__device__ __forceinline__ uint32_t without_bad(uint32_t word) {
  constexpr uint32_t low = kExponent<T>, high = low << 16;
  if ((word & low) == low) word &= 0xffff0000u;
  if ((word & high) == high) word &= 0x0000ffffu;
  return word;
}
// 1 where an element is NaN or that infinity.
template <class T>
__device__ __forceinline__ uint32_t bad_of_sign(uint32_t word, bool negative) {
  uint32_t ones = 0;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t bits = word >> 16 * half & 0xffffu;
    const uint32_t other = kExponent<T> | (negative ? 0u : 0x8000u);  // the infinity that does not count
    if ((bits & kExponent<T>) == kExponent<T> && bits != other) ones |= kOne<T> << 16 * half;
  }
  return ones;
}

// Whether the tile holds what is not finite; the whole warp looks and gets the same answer.
template <class T>
__device__ __forceinline__ bool tile_has_bad(const T* m, int ld, int rows, int columns) {
  const int chunks = (columns + kChunk<T> - 1) / kChunk<T>;
  bool bad = false;
  for (int n = lane_of_warp(); n < rows * chunks; n += 32) {
    const uint4 words = *reinterpret_cast<const uint4*>(m + n / chunks * ld + n % chunks * kChunk<T>);
    bad |= has_bad<T>(words.x) || has_bad<T>(words.y) || has_bad<T>(words.z) || has_bad<T>(words.w);
  }
  return __any_sync(0xffffffffu, bad);
}

// Adds NaN or an infinity where a row sees one. Bit 4 t + e of `seen` is a fragment's element.
template <class T, int N, int O>
__device__ __forceinline__ void add_bad(float (&o)[O][4], uint32_t seen, const T* m, int ld, int columns) {
  const int lane = lane_of_warp();
  const T* const from = m + lane % 16 * ld + lane / 16 * 8;
#pragma unroll
  for (int u = 0; u < O; u += 2) {
    if (8 * u >= columns) break;
#pragma unroll 1
    for (int sign = 0; sign < 2; ++sign) {
      float count[2][4];
      clear(count);
#pragma unroll 1
      for (int k = 0; k < N / 2; ++k) {
        uint32_t of_m[4], ones[4];
        ptx::load_matrices<true>(of_m, from + 16 * k * ld + 8 * u);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const uint32_t bits = seen >> (8 * k + 2 * i);
          ones[i] = (bits & 1 ? kOne<T> : 0u) | (bits & 2 ? kOne<T> << 16 : 0u);
          of_m[i] = bad_of_sign<T>(of_m[i], sign == 1);
        }
        const uint32_t low[2] = {of_m[0], of_m[1]}, high[2] = {of_m[2], of_m[3]};
        ptx::multiply_add<T>(count[0], ones, low);
        ptx::multiply_add<T>(count[1], ones, high);
      }
      const float bad = sign == 1 ? -kInfinity<float> : kInfinity<float>;
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[u + t][e] += count[t][e] > 0 ? bad : 0.0f;
    }
  }
}

// careful: some row may not see some column.
template <class T, class A, int N, int O>
__device__ __forceinline__ void multiply_columns(A (&o)[O][4], const A (&p)[N][4], uint32_t seen, const T* m, int ld,
                                                 int columns, bool careful) {
  if constexpr (kTensorCores<T>) {
    const int lane = lane_of_warp();
    const T* const from = m + lane % 16 * ld + lane / 16 * 8;
    const bool bad = careful && tile_has_bad(m, ld, 8 * N, columns);
    if (bad) add_bad<T, N>(o, seen, m, ld, columns);
#pragma unroll
    for (int k = 0; k < N / 2; ++k) {
      const uint32_t of_p[4] = {packed<T>(p[2 * k][0], p[2 * k][1]), packed<T>(p[2 * k][2], p[2 * k][3]),
                                packed<T>(p[2 * k + 1][0], p[2 * k + 1][1]),
                                packed<T>(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
      for (int u = 0; u < O; u += 2) {
        if (8 * u >= columns) break;
        uint32_t of_m[4];
        ptx::load_matrices<true>(of_m, from + 16 * k * ld + 8 * u);
        if (bad)
#pragma unroll
          for (uint32_t& word : of_m) word = without_bad<T>(word);
        const uint32_t low[2] = {of_m[0], of_m[1]}, high[2] = {of_m[2], of_m[3]};
        ptx::multiply_add<T>(o[u], of_p, low);
        ptx::multiply_add<T>(o[u + 1], of_p, high);
      }
    }
  } else {
    constexpr int kTogether = 4;  // of the n-th 8 columns: a weight is fetched from its lane once for all of them
    const int quad = lane_of_warp() & ~3;
#pragma unroll
    for (int u = 0; u < O; u += kTogether) {
      if (8 * u >= columns) break;
      A sum[kTogether][4];  // of this tile: begun at 0
      clear(sum);
#pragma unroll
      for (int t = 0; t < N; ++t)
#pragma unroll 1
        for (int q = 0; q < 4; ++q)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const A p_0 = __shfl_sync(0xffffffffu, p[t][e], quad + q);
            const A p_1 = __shfl_sync(0xffffffffu, p[t][2 + e], quad + q);
            const T* const row = m + (8 * t + 2 * q + e) * ld + 8 * u + fragment_column();
#pragma unroll
            for (int i = 0; i < kTogether; ++i) {
              if (8 * (u + i) >= columns) break;
              const A m_0 = row[8 * i], m_1 = row[8 * i + 1];
              if (!unseen(p_0)) sum[i][0] += p_0 * m_0, sum[i][1] += p_0 * m_1;
              if (!unseen(p_1)) sum[i][2] += p_1 * m_0, sum[i][3] += p_1 * m_1;
            }
          }
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
#pragma unroll
        for (int e = 0; e < 4; ++e) o[u + i][e] += sum[i][e];
    }
  }
}

}  // namespace hetkern::cuda
