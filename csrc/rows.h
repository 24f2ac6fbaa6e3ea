// Rows: how a kernel sees a tensor that is reduced over one dimension.  No torch here: kernels include this file.
//
// A tensor of any shape and strides is M rows of N elements. All dimensions but the reduced one are merged into at most
// kMaxOuter outer dimensions, in their order, so that row r of every operand is found from the same mixed-radix index.
#pragma once
#include <cstdint>

#ifdef __CUDACC__
#define HETKERN_HOST_DEVICE __host__ __device__
#else
#define HETKERN_HOST_DEVICE
#endif

namespace hetkern {

enum class DType : int8_t { f32, f64, f16, bf16 };
HETKERN_HOST_DEVICE constexpr int64_t size_of(DType t) { return t == DType::f64 ? 8 : t == DType::f32 ? 4 : 2; }
HETKERN_HOST_DEVICE constexpr double eps_of(DType t) {  // from 1 to the next number
  return t == DType::f64 ? 0x1p-52 : t == DType::f32 ? 0x1p-23 : t == DType::f16 ? 0x1p-10 : 0x1p-7;
}

constexpr int kMaxOuter = 8;

struct Rows {
  int64_t M, N;             // rows, elements a row
  int outer_dims;           // 0: a single row
  int64_t size[kMaxOuter];  // their product is M
};

// One tensor; strides are in elements, 0 where it is broadcast.
struct Operand {
  void* data;                 // null: absent
  int64_t step;               // from one element of a row to the next
  int64_t stride[kMaxOuter];  // of the outer dimensions
  HETKERN_HOST_DEVICE explicit operator bool() const { return data != nullptr; }
};

// A row's position in the outer dimensions.
struct RowIndex {
  int64_t at[kMaxOuter];
};

// How a kernel shares out rows. The bits of a row depend on N and the dtype alone: every path combines the same chunks in
// the same order.
enum class RowPath : int8_t {
  whole_rows,  // a task takes whole rows
  split_rows,  // fewer rows than threads: a task takes chunks of a row
  columns,     // the reduced dimension is not the innermost: a task takes vectors of neighbouring rows
};

// How a GPU's blocks take rows; a task is a block. Element vectors go round the `lanes` of a row, which are the leaves of its
// reduction tree. They are threads: part of a block, all of one, or those of a cluster (split_rows). On the columns path a
// thread is a row, and the warps of its block share out the leaves.
struct BlockShape {
  int threads = 0;  // of a block; 0 on the CPU
  int lanes = 0;    // of a row
  int cluster = 1;  // blocks that share a row
  int shared = 0;   // bytes a block
};

HETKERN_HOST_DEVICE inline RowIndex row_index(const Rows& rows, int64_t row) {
  RowIndex index;
  for (int d = rows.outer_dims - 1; d > 0; --d) {
    index.at[d] = row % rows.size[d];
    row /= rows.size[d];
  }
  index.at[0] = row;
  return index;
}

HETKERN_HOST_DEVICE inline int64_t offset(const Rows& rows, const Operand& operand, const RowIndex& index) {
  int64_t sum = 0;
  for (int d = 0; d < rows.outer_dims; ++d) sum += index.at[d] * operand.stride[d];
  return sum;
}

}  // namespace hetkern
