// What the driver's families share: rows of numbers on the device between guard bytes, and what is right.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cfloat>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <type_traits>

#include "device_memory.h"
#include "rows.h"

namespace hetkern::gpu_day {

using Numbers = std::vector<double>;  // M rows of N

template <class T>
constexpr DType kType = std::is_same_v<T, double>   ? DType::f64
                        : std::is_same_v<T, float>  ? DType::f32
                        : std::is_same_v<T, __half> ? DType::f16
                                                    : DType::bf16;
template <class T>
constexpr double kEps = eps_of(kType<T>);
template <class T>
constexpr double kSumEps = std::is_same_v<T, double> ? DBL_EPSILON : FLT_EPSILON;
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
T rounded(double x) {
  if constexpr (std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>)
    return T(static_cast<float>(x));
  else
    return static_cast<T>(x);
}
template <class T>
double value(T x) {
  if constexpr (std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>)
    return static_cast<float>(x);
  else
    return static_cast<double>(x);
}

// M rows of N; pad: elements between rows and before the first, so that nothing is aligned.
struct Shape {
  int64_t M, N;
  bool columns;
  int64_t pad;
  Rows rows() const { return {M, N, 1, {M}}; }
};

// A tensor of that shape. What lies between its elements must stay as it was.
template <class T>
class Tensor {
 public:
  explicit Tensor(const Shape& shape, const Numbers* from = nullptr) : shape_(shape), buffer_(contents(shape, from)) {}
  Operand operand() const { return {buffer_.data() + shape_.pad, step(shape_), {stride(shape_)}}; }

  Numbers read(const char* name) const {
    const std::vector<T> host = buffer_.read();
    Numbers numbers;
    std::vector<bool> inside(host.size());
    for (int64_t i = 0; i < shape_.M; ++i)
      for (int64_t j = 0; j < shape_.N; ++j) {
        numbers.push_back(value(host[at(shape_, i, j)]));
        inside[at(shape_, i, j)] = true;
      }
    for (size_t k = 0; k < host.size(); ++k)
      for (size_t b = 0; b < sizeof(T) && !inside[k]; ++b)
        if (reinterpret_cast<const unsigned char*>(&host[k])[b] != 0xff)
          throw std::runtime_error(std::string(name) + ": written outside its elements");
    return numbers;
  }

 private:
  static int64_t step(const Shape& s) { return s.columns ? s.M + s.pad : 1; }
  static int64_t stride(const Shape& s) { return s.columns ? 1 : s.N + s.pad; }
  static size_t at(const Shape& s, int64_t i, int64_t j) {
    return static_cast<size_t>(s.pad + i * stride(s) + j * step(s));
  }
  static std::vector<T> contents(const Shape& s, const Numbers* from) {
    std::vector<T> host(at(s, s.M - 1, s.N - 1) + 1);
    std::memset(static_cast<void*>(host.data()), 0xff, host.size() * sizeof(T));
    for (int64_t i = 0; from && i < s.M; ++i)
      for (int64_t j = 0; j < s.N; ++j) host[at(s, i, j)] = rounded<T>((*from)[i * s.N + j]);
    return host;
  }
  Shape shape_;
  Buffer<T> buffer_;
};

// M of them, one a row.
inline Shape one_a_row(int64_t M) { return {M, 1, false, 0}; }

// Numbers as T has them: what a kernel reads is what the check reads.
template <class T>
Numbers normal(int64_t count, uint64_t seed, double spread = 1) {
  Random random(seed);
  Numbers numbers;
  for (int64_t i = 0; i < count; ++i) {
    const double r = std::sqrt(-2 * std::log(1 - random.unit()));
    numbers.push_back(value(rounded<T>(spread * r * std::cos(6.283185307179586 * random.unit()))));
  }
  return numbers;
}

// Each row within the limit, as a share of its largest magnitude, or of the row's entry in `terms`, what cancelled in it;
// -inf where it belongs.
inline void compare(const char* name, const Numbers& actual, const Numbers& exact, int64_t N, double limit,
                    const Numbers& terms = {}) {
  for (size_t row = 0; row < exact.size(); row += N) {
    double most = terms.empty() ? 0 : terms[row / N];
    for (int64_t j = 0; j < N; ++j)
      if (std::isfinite(exact[row + j])) most = std::max(most, std::fabs(exact[row + j]));
    for (int64_t j = 0; j < N; ++j) {
      const double a = actual[row + j], e = exact[row + j];
      const bool right = std::isfinite(e) ? std::fabs(a - e) <= limit * most + 1e-30 : a == e;
      if (!right)
        throw std::runtime_error(std::string(name) + ": row " + std::to_string(row / N) + " column " +
                                 std::to_string(j) + ": " + std::to_string(a) + ", exactly " + std::to_string(e));
    }
  }
}

// How a plan takes rows, in words.
template <class Plan>
std::string path_of(const Plan& plan, bool keep) {
  std::string path;
  if (plan.path == RowPath::columns)
    path = "columns";
  else if (plan.block.cluster > 1)
    path = "a cluster of blocks a row";
  else
    path = plan.block.lanes < plan.block.threads ? "several rows a block" : "one row a block";
  return keep ? path : path + ", read twice";
}

// What ran: one line each, and the paths met.
struct Log {
  int calls = 0, failed = 0;
  std::set<std::string> paths;

  void run(const std::string& name, const std::function<std::string()>& call) {
    ++calls;
    try {
      const std::string path = call();
      paths.insert(path);
      std::printf("ok      %s: %s\n", name.c_str(), path.c_str());
    } catch (const std::exception& e) {
      ++failed;
      std::printf("FAILED  %s: %s\n", name.c_str(), e.what());
    }
    std::fflush(stdout);
  }
};

}  // namespace hetkern::gpu_day
