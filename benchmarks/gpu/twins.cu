// Twin conformance: what each function of ptx:: does on a GPU, and what its twin does in the emulation.
//
// One source, built by nvcc for a GPU and by a C++ compiler for the emulation. Each case prints a line of 32-bit words; twins.py
// compares the two programs' lines word by word. A case's limit is 0 (the same bits) or a distance in representable floats.
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <vector>

#include "twins_inputs.h"
#include "twins_tiles.h"

namespace {

struct alignas(16) Halves {
  uint16_t v[8];
};
struct alignas(16) Doubles {
  double v[2];
};

// ---- Global memory. -------------------------------------------------------------------------------------------------------

template <class V, bool Once>
__global__ void __launch_bounds__(kThreads) load_kernel(const V* in, V* out, unsigned count) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const V* const p = in + scattered(i, count);
  if constexpr (Once)
    out[i] = ptx::load_16_once(p);
  else
    out[i] = ptx::load_16(p);
}

template <class V>
__global__ void __launch_bounds__(kThreads) store_kernel(const V* in, V* out, unsigned count) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) ptx::store_16_streaming(out + scattered(i, count), in[i]);
}

template <class V, class Launch>
void each_vector(Words& result, uint64_t seed, Launch launch) {
  constexpr unsigned count = 1024;
  const Buffer<uint32_t> in(adversarial(4 * count, seed));
  const Buffer<uint32_t> out(4 * count + 4, 0xa5);  // the last vector stays as it is
  launch(reinterpret_cast<const V*>(in.data()), reinterpret_cast<V*>(out.data()), count);
  const Words words = out.read();
  result.insert(result.end(), words.begin(), words.end());
}

template <bool Once>
Words loads() {
  Words result;
  const auto launch = [](auto* in, auto* out, unsigned count) {
    using V = std::remove_pointer_t<decltype(out)>;
    HETKERN_LAUNCH((load_kernel<V, Once>), (count + kThreads - 1) / kThreads, kThreads, 0, nullptr, in, out, count);
  };
  each_vector<uint4>(result, 1, launch);
  each_vector<Halves>(result, 2, launch);
  each_vector<Doubles>(result, 3, launch);
  return result;
}

Words stores() {
  Words result;
  const auto launch = [](auto* in, auto* out, unsigned count) {
    using V = std::remove_pointer_t<decltype(out)>;
    HETKERN_LAUNCH((store_kernel<V>), (count + kThreads - 1) / kThreads, kThreads, 0, nullptr, in, out, count);
  };
  each_vector<uint4>(result, 4, launch);
  each_vector<Halves>(result, 5, launch);
  each_vector<Doubles>(result, 6, launch);
  return result;
}

// ---- Asynchronous copies. -------------------------------------------------------------------------------------------------

template <int Bytes>
struct alignas(16) CopyShared {
  unsigned char bytes[kThreads * Bytes];
};

// Thread t copies t mod (Bytes + 1) bytes, so that every length from none to all is filled up with zeros.
template <int Bytes>
__global__ void __launch_bounds__(kThreads) copy_kernel(const unsigned char* in, unsigned char* out) {
  using S = CopyShared<Bytes>;
  HETKERN_SHARED(S, s);
  const unsigned t = threadIdx.x, from = scattered(t, kThreads) * Bytes;
  for (int i = 0; i < Bytes; ++i) s.bytes[t * Bytes + i] = 0x5a;
  ptx::copy_async<Bytes>(s.bytes + t * Bytes, in + from, static_cast<int>(t % (Bytes + 1)));
  ptx::copy_async_commit();
  ptx::copy_async_wait<0>();
  __syncthreads();
  const unsigned other = kThreads - 1 - t;
  for (int i = 0; i < Bytes; ++i) out[t * Bytes + i] = s.bytes[other * Bytes + i];
}

template <int Bytes>
void copies(Words& result) {
  const Buffer<uint32_t> in(adversarial(kThreads * Bytes / 4, 10 + Bytes));
  const Buffer<uint32_t> out(kThreads * Bytes / 4, 0xa5);
  HETKERN_LAUNCH((copy_kernel<Bytes>), 1, kThreads, sizeof(CopyShared<Bytes>), nullptr,
                 reinterpret_cast<const unsigned char*>(in.data()), reinterpret_cast<unsigned char*>(out.data()));
  const Words words = out.read();
  result.insert(result.end(), words.begin(), words.end());
}

Words all_copies() {
  Words result;
  copies<4>(result), copies<8>(result), copies<16>(result);
  return result;
}

constexpr int kStages = 4;
struct alignas(16) PipelineShared {
  uint4 stage[kStages][kThreads];
};

// Groups arrive in their order: with Pending under way, the oldest is there. An empty group counts too.
__global__ void __launch_bounds__(kThreads) pipeline_kernel(const uint4* in, uint4* out) {
  HETKERN_SHARED(PipelineShared, s);
  const unsigned t = threadIdx.x;
  for (int g = 0; g < kStages; ++g) {
    if (g != 2 || t % 2) ptx::copy_async<16>(&s.stage[g][t], in + g * kThreads + t);
    ptx::copy_async_commit();
  }
  ptx::copy_async_wait<3>();
  out[t] = s.stage[0][t];
  ptx::copy_async_wait<1>();
  out[kThreads + t] = s.stage[1][t];
  out[2 * kThreads + t] = t % 2 ? s.stage[2][t] : uint4{1, 2, 3, 4};
  ptx::copy_async_wait<0>();
  __syncthreads();
  out[3 * kThreads + t] = s.stage[3][t ^ 33];
}

Words pipeline() {
  const Buffer<uint32_t> in(adversarial(4 * kStages * kThreads, 20));
  const Buffer<uint32_t> out(4 * kStages * kThreads, 0xa5);
  HETKERN_LAUNCH(pipeline_kernel, 1, kThreads, sizeof(PipelineShared), nullptr,
                 reinterpret_cast<const uint4*>(in.data()), reinterpret_cast<uint4*>(out.data()));
  return out.read();
}

// ---- Arithmetic. ----------------------------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kThreads) exp2_kernel(const float* in, float* out, unsigned count) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) out[i] = ptx::exp2_approximate(in[i]);
}

// Without what lies within an error of the largest and the least normal result, where either answer is right.
Words exponentials() {
  std::vector<float> x{0.0f,    -0.0f,   1.0f,     -1.0f,     128.0f,   FLT_MAX, INFINITY, -INFINITY,
                       NAN,     -126.5f, -149.0f,  -200.0f,   -FLT_MAX, FLT_MIN, -FLT_MIN, 1e-40f,
                       -1e-40f, 0.5f,    0x1p-24f, -0x1p-24f, 127.99f,  -125.99f};
  Random random(30);
  while (x.size() < 4096) {
    const double wide = -125.9 + 253.8 * random.unit();
    const double narrow = std::ldexp(random.unit() - 0.5, -static_cast<int>(random.bits() % 30));
    x.push_back(static_cast<float>(x.size() % 2 ? wide : narrow));
  }
  const Buffer<float> in(x);
  const Buffer<float> out(x.size(), 0xa5);
  HETKERN_LAUNCH(exp2_kernel, x.size() / kThreads, kThreads, 0, nullptr, in.data(), out.data(),
                 static_cast<unsigned>(x.size()));
  const std::vector<float> y = out.read();
  Words words(y.size());
  std::memcpy(words.data(), y.data(), 4 * y.size());
  return words;
}

// ---- Clusters. ------------------------------------------------------------------------------------------------------------

constexpr unsigned kClusterSizes[] = {1, 2, 4, 8};

__global__ void __launch_bounds__(kThreads) rank_kernel(unsigned* rank, unsigned* size) {
  if (threadIdx.x) return;
  rank[blockIdx.x] = ptx::cluster_rank();
  size[blockIdx.x] = ptx::cluster_size();
}

template <bool Rank>
Words ranks() {
  Words result;
  for (const unsigned cluster : kClusterSizes) {
    const Buffer<unsigned> rank(24, 0xa5), size(24, 0xa5);
    HETKERN_LAUNCH_CLUSTER(rank_kernel, cluster, 24, kThreads, 0, nullptr, rank.data(), size.data());
    const Words words = (Rank ? rank : size).read();
    result.insert(result.end(), words.begin(), words.end());
  }
  return result;
}

struct ClusterShared {
  unsigned mine[kThreads], given[kThreads];
};

// Each block reads what its neighbour wrote, adds it to what it gives to the one behind, for as many rounds as there are blocks.
template <bool Halves>
__global__ void __launch_bounds__(kThreads) ring_kernel(const unsigned* in, unsigned* out, int rounds) {
  HETKERN_SHARED(ClusterShared, s);
  const unsigned t = threadIdx.x, rank = ptx::cluster_rank(), size = ptx::cluster_size();
  s.mine[t] = in[blockIdx.x * kThreads + t];
  s.given[t] = 0;
  const auto meet = [] {
    if constexpr (Halves) {
      ptx::cluster_arrive();
      ptx::cluster_wait();
    } else {
      ptx::cluster_sync();
    }
  };
  meet();
  for (int r = 0; r < rounds; ++r) {
    const unsigned ahead = (rank + 1) % size, behind = (rank + size - 1) % size;
    const unsigned seen = ptx::map_shared(s.mine, ahead)[kThreads - 1 - t];
    ptx::map_shared(&s.given[t], behind)[0] = seen * 2654435761u + r;
    meet();
    s.mine[t] += s.given[t];
    meet();
  }
  out[blockIdx.x * kThreads + t] = s.mine[t];
}

template <bool Halves>
Words rings() {
  Words result;
  for (const unsigned cluster : kClusterSizes) {
    const Buffer<unsigned> in(adversarial(8 * kThreads, 40 + cluster)), out(8 * kThreads, 0xa5);
    HETKERN_LAUNCH_CLUSTER((ring_kernel<Halves>), cluster, 8, kThreads, sizeof(ClusterShared), nullptr,
                           static_cast<const unsigned*>(in.data()), out.data(), static_cast<int>(cluster) + 1);
    const Words words = out.read();
    result.insert(result.end(), words.begin(), words.end());
  }
  return result;
}

// ---- Waiting for other blocks. --------------------------------------------------------------------------------------------

// The sums wrap around.
__global__ void __launch_bounds__(kThreads) add_kernel(unsigned* sums, const unsigned* in) {
  ptx::add_release(sums + threadIdx.x % 7, in[blockIdx.x * kThreads + threadIdx.x]);
}
Words sums() {
  const Buffer<unsigned> in(adversarial(4 * kThreads, 50)), out(adversarial(7, 51));
  HETKERN_LAUNCH(add_kernel, 4, kThreads, 0, nullptr, out.data(), static_cast<const unsigned*>(in.data()));
  return out.read();
}

// What each element was; behind them all, the sum of what they are, by the block that comes last.
__global__ void __launch_bounds__(kThreads) last_kernel(unsigned* sums, const unsigned* in, unsigned* out) {
  const unsigned t = threadIdx.x, i = blockIdx.x * kThreads + t, count = gridDim.x * kThreads;
  out[i] = ptx::add_acquire_release(sums + i, in[i]);
  __syncthreads();
  if (t || ptx::add_acquire_release(sums + count, 1) != gridDim.x - 1) return;
  unsigned sum = 0;
  for (unsigned k = 0; k < count; ++k) sum += out[k] + sums[k];
  out[count] = sum;
}
Words last_block() {
  constexpr unsigned blocks = 16;
  std::vector<unsigned> start = adversarial(blocks * kThreads, 52);
  start.push_back(0);
  const Buffer<unsigned> sums(start), in(adversarial(blocks * kThreads, 53)), out(blocks * kThreads + 1, 0xa5);
  HETKERN_LAUNCH(last_kernel, blocks, kThreads, 0, nullptr, sums.data(), static_cast<const unsigned*>(in.data()),
                 out.data());
  return out.read();
}

__global__ void __launch_bounds__(kThreads) acquire_kernel(const unsigned* in, unsigned* out) {
  out[threadIdx.x] = ptx::load_acquire(in + (threadIdx.x ^ 21));
}
Words acquires() {
  const Buffer<unsigned> in(adversarial(kThreads, 60)), out(kThreads, 0xa5);
  HETKERN_LAUNCH(acquire_kernel, 1, kThreads, 0, nullptr, static_cast<const unsigned*>(in.data()), out.data());
  return out.read();
}

// Block b goes on from what block b - 1 wrote, once that one has said so.
__global__ void __launch_bounds__(kThreads) chain_kernel(unsigned* turn, unsigned* data) {
  const unsigned t = threadIdx.x, b = blockIdx.x;
  if (t == 0) ptx::spin_until([&] { return ptx::load_acquire(turn) == b; });
  __syncthreads();
  const unsigned before = b ? data[(b - 1) * kThreads + (t + 1) % kThreads] : t;
  data[b * kThreads + t] = before * 2654435761u + b;
  __syncthreads();
  if (t == 0) ptx::add_release(turn, 1);
}
Words chain() {
  const Buffer<unsigned> turn(1, 0), data(16 * kThreads, 0xa5);
  HETKERN_LAUNCH(chain_kernel, 16, kThreads, 0, nullptr, turn.data(), data.data());
  return data.read();
}

// ---- The table: each function of ptx:: that a kernel may call. ------------------------------------------------------------

struct Case {
  const char* name;
  Words (*run)();
  int limit;
};
constexpr Case kCases[] = {
    {"load_16", loads<false>, 0},
    {"load_16_once", loads<true>, 0},
    {"store_16_streaming", stores, 0},
    {"copy_async", all_copies, 0},
    {"copy_async_commit", pipeline, 0},
    {"copy_async_wait", pipeline, 0},
    {"barrier_init", bulk_copies, 0},
    {"barrier_arrive", bulk_copies, 0},
    {"barrier_arrive_expecting", bulk_copies, 0},
    {"barrier_wait", bulk_copies, 0},
    {"copy_bulk", bulk_copies, 0},
    {"load_matrices", matrices, 0},
    {"multiply_add", products, 32},         // a GPU truncates where the twin rounds once
    {"exp2_approximate", exponentials, 3},  // the instruction's two, and the twin's rounding
    {"cluster_rank", ranks<true>, 0},
    {"cluster_size", ranks<false>, 0},
    {"cluster_arrive", rings<true>, 0},
    {"cluster_wait", rings<true>, 0},
    {"cluster_sync", rings<false>, 0},
    {"map_shared", rings<false>, 0},
    {"add_release", sums, 0},
    {"add_acquire_release", last_block, 0},
    {"load_acquire", acquires, 0},
    {"spin_until", chain, 0},
};

}  // namespace

int main() {
  int failed = 0;
  for (const Case& c : kCases) {
    try {
      const Words words = c.run();
      std::printf("%s %d", c.name, c.limit);
      for (const uint32_t word : words) std::printf(" %08x", word);
      std::printf("\n");
    } catch (const std::exception& e) {
      std::printf("%s failed: %s\n", c.name, e.what());
      failed = 1;
    }
    std::fflush(stdout);
  }
  return failed;
}
