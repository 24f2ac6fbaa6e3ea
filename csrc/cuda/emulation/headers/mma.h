// wmma: a warp's matrices. Which lane holds which element CUDA leaves open; here it is lane i mod 32, row by row. Sums are exact but
// for their last rounding: a GPU truncates more.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
// These need those.
#include "../ptx_twins.h"

inline float __float_to_tf32(float x) {
  return std::isfinite(x) ? __uint_as_float((__float_as_uint(x) + 0x1000u) & ~0x1fffu) : x;
}

namespace nvcuda::wmma {

using hetkern::emulation::Site;

struct matrix_a;
struct matrix_b;
struct accumulator;
struct row_major;
struct col_major;
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32;
}

namespace details {

template <class T>
struct Stored {
  using type = T;
};
template <>
struct Stored<precision::tf32> {
  using type = float;
};

template <class T, class V>
auto exact(V x) {
  if constexpr (std::is_same_v<T, precision::tf32>)
    return static_cast<double>(__uint_as_float(__float_as_uint(x) & ~0x1fffu));
  else if constexpr (std::is_integral_v<V>)
    return static_cast<int>(x);
  else if constexpr (hetkern::emulation::is_half<V>)
    return static_cast<double>(hetkern::ptx::as_float(x));
  else
    return static_cast<double>(x);
}

// All lanes' values of a fragment, lane by lane.
template <class Fragment>
void all_of(const Fragment& f, typename Fragment::element_type (&all)[Fragment::kRows * Fragment::kColumns],
            Site site) {
  constexpr unsigned kElement = sizeof f.x[0], kPiece = sizeof f.x < 16 ? sizeof f.x : 16, kEach = kPiece / kElement;
  for (int first = 0; first < f.num_elements; first += kEach) {
    typename Fragment::element_type piece[32 * kEach];
    if (hetkern::emulation::gather(~0u, &f.x[first], piece, kPiece, site) != ~0u)
      hetkern::emulation::fail(site, "wmma wants all 32 lanes of a warp");
    for (unsigned lane = 0; lane < 32; ++lane)
      for (unsigned i = 0; i < kEach; ++i) all[(first + i) * 32 + lane] = piece[lane * kEach + i];
  }
}

template <class Pointer>
void check(Pointer p, unsigned ldm, Site site) {
  hetkern::emulation::check_aligned(p, 32, site);
  if (ldm * sizeof *p % 16) hetkern::emulation::fail(site, "wmma wants rows whose distance is a multiple of 16 bytes");
  if (hetkern::emulation::ballot(~0u, true, site) != ~0u)
    hetkern::emulation::fail(site, "wmma wants all 32 lanes of a warp");
}

}  // namespace details

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
  static constexpr bool kA = std::is_same_v<Use, matrix_a>, kB = std::is_same_v<Use, matrix_b>;
  static constexpr int kRows = kB ? K : M, kColumns = kA ? K : N;
  using element_type = typename details::Stored<T>::type;
  using storage_element_type = element_type;
  static constexpr int num_elements = kRows * kColumns / 32;
  element_type x[num_elements];
  static int row(int i) { return (i * 32 + static_cast<int>(hetkern::emulation::current->lane)) / kColumns; }
  static int column(int i) { return (i * 32 + static_cast<int>(hetkern::emulation::current->lane)) % kColumns; }
};

template <class Use, int M, int N, int K, class T, class Layout, class V>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, V value) {
  for (auto& x : f.x) x = static_cast<std::decay_t<decltype(x)>>(value);
}

template <int M, int N, int K, class T, class V>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const V* p, unsigned ldm, layout_t layout,
                      Site site = Site::here()) {
  details::check(p, ldm, site);
  for (int i = 0; i < f.num_elements; ++i)
    f.x[i] = layout == mem_row_major ? p[f.row(i) * ldm + f.column(i)] : p[f.column(i) * ldm + f.row(i)];
}
template <class Use, int M, int N, int K, class T, class Layout, class V>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const V* p, unsigned ldm, Site site = Site::here()) {
  static_assert(!std::is_void_v<Layout>, "an accumulator is loaded with its layout");
  details::check(p, ldm, site);
  for (int i = 0; i < f.num_elements; ++i)
    f.x[i] = std::is_same_v<Layout, row_major> ? p[f.row(i) * ldm + f.column(i)] : p[f.column(i) * ldm + f.row(i)];
}
template <int M, int N, int K, class T, class V>
void store_matrix_sync(V* p, const fragment<accumulator, M, N, K, T>& f, unsigned ldm, layout_t layout,
                       Site site = Site::here()) {
  details::check(p, ldm, site);
  for (int i = 0; i < f.num_elements; ++i)
    (layout == mem_row_major ? p[f.row(i) * ldm + f.column(i)] : p[f.column(i) * ldm + f.row(i)]) = f.x[i];
}

template <int M, int N, int K, class T, class LayoutA, class LayoutB, class D, class C>
void mma_sync(fragment<accumulator, M, N, K, D>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, C>& c,
              bool saturated = false, Site site = Site::here()) {
  typename details::Stored<T>::type left[M * K], right[K * N];
  details::all_of(a, left, site), details::all_of(b, right, site);
  for (int i = 0; i < d.num_elements; ++i) {
    if constexpr (std::is_same_v<D, int>) {
      long long sum = c.x[i];
      for (int k = 0; k < K; ++k)
        sum += static_cast<long long>(left[d.row(i) * K + k]) * static_cast<long long>(right[k * N + d.column(i)]);
      d.x[i] = !saturated                              ? static_cast<int>(static_cast<unsigned>(sum))
               : sum > std::numeric_limits<int>::max() ? std::numeric_limits<int>::max()
               : sum < std::numeric_limits<int>::min() ? std::numeric_limits<int>::min()
                                                       : static_cast<int>(sum);
    } else {
      double sum = static_cast<double>(details::exact<C>(c.x[i]));
      for (int k = 0; k < K; ++k)
        sum = std::fma(details::exact<T>(left[d.row(i) * K + k]), details::exact<T>(right[k * N + d.column(i)]), sum);
      d.x[i] = static_cast<D>(sum);
    }
  }
}

}  // namespace nvcuda::wmma
