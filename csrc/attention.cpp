// Attention, host side: written once for every device.  (contract: attention.h; schemas and derivatives: hetkern/ops/attention.py)
//
// Each function goes: check, guard, sizes, allocate, return if empty, plan, launch.
#include "attention.h"

#include <tuple>

#include "common/operands.h"
#include "ops.h"

namespace hetkern {
namespace {

// The gradients that a call wants.
enum Needs : int64_t { kDq = 1, kDk = 2, kDv = 4, kDbias = 8, kDsink = 16, kDslopes = 32 };

struct Shape {
  int64_t size[4];
  size_t rank;
  template <class... S>
  explicit Shape(S... sizes) : size{sizes...}, rank(sizeof...(S)) {}
  operator Sizes() const { return {size, rank}; }
};

// A tensor of rank 4, or packed of rank 3; a dimension of one element is never walked.
Heads heads(const Tensor& t, bool packed) {
  const auto stride = [&](int64_t d) { return t.size(d) > 1 ? t.stride(d) : 0; };
  void* const data = const_cast<void*>(t.const_data_ptr());
  if (packed) return {data, 0, stride(1), stride(0), stride(2)};
  return {data, stride(0), stride(1), stride(2), stride(3)};
}

// The scores' arguments, as they come.
struct Scores {
  double scale, softcap;
  bool causal;
  int64_t window_left, window_right;
  OptionalTensor slopes, bias, mask, sink;
  double dropout_p;
  OptionalTensor seed, cu_seqlens_q, cu_seqlens_k;
  int64_t max_seqlen_q, max_seqlen_k;
  OptionalTensor seqlens_k;
};

// A call's checked arguments; holds what kernels read.
struct Call {
  const char* op;
  const Tensor &q, &k, &v;
  Scores s;
  bool packed, host_reads;  // host_reads: lengths, which a GPU's kernels check themselves
  DType type;
  ScalarType storage, accumulator;
  int64_t B, Hq, Hkv, Lq, Lk, D, Dv;

  Call(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const Scores& scores, bool host_reads)
      : op(op), q(q), k(k), v(v), s(scores), packed(scores.cu_seqlens_q.has_value()), host_reads(host_reads) {
    type = checked_float(op, "q", q);
    storage = q.scalar_type(), accumulator = accumulator_of(storage);
    check_sizes();
    check_scores();
    check_lengths();
  }

  void check_sizes() {
    const size_t rank = packed ? 3 : 4;
    const char* const wanted = packed ? "(rows, heads, columns)" : "(B, heads, L, columns)";
    for (const auto& [name, t] : {std::pair{"q", &q}, {"k", &k}, {"v", &v}})
      if (t->sizes().size() != rank) value_error(op, ": ", name, ": wanted shape ", wanted, ", got ", t->sizes());
    check_like(op, "k", k, q, storage), check_like(op, "v", v, q, storage);
    const int64_t last = packed ? 2 : 3;
    Hq = q.size(1), Hkv = k.size(1), D = q.size(last), Dv = v.size(last);
    if (packed) {
      if (!s.cu_seqlens_k) value_error(op, ": cu_seqlens_k: wanted a tensor beside cu_seqlens_q");
      B = s.cu_seqlens_q->numel() - 1, Lq = s.max_seqlen_q, Lk = s.max_seqlen_k;
      check_shape(op, "k", k, Shape(k.size(0), Hkv, D)), check_shape(op, "v", v, Shape(k.size(0), Hkv, Dv));
    } else {
      if (s.cu_seqlens_k) value_error(op, ": cu_seqlens_k: wanted none without cu_seqlens_q");
      B = q.size(0), Lq = q.size(2), Lk = k.size(2);
      check_shape(op, "k", k, Shape(B, Hkv, Lk, D)), check_shape(op, "v", v, Shape(B, Hkv, Lk, Dv));
    }
    if (Hkv == 0 ? Hq != 0 : Hq % Hkv != 0)
      value_error(op, ": k: wanted a number of heads that divides q's ", Hq, ", got ", Hkv);
  }

  void check_scores() {
    check_softcap(op, s.softcap);
    for (const auto& [name, side] : {std::pair{"window_left", s.window_left}, {"window_right", s.window_right}})
      if (side < -1) value_error(op, ": ", name, ": wanted 0 or above, or -1 for no bound, got ", side);
    if (s.slopes) {
      check_like(op, "alibi_slopes", *s.slopes, q, accumulator);
      const Sizes got = s.slopes->sizes();
      if (!(got.size() == 1 && got[0] == Hq) && !(got.size() == 2 && got[0] == B && got[1] == Hq))
        value_error(op, ": alibi_slopes: wanted shape (", Hq, ",) or (", B, ", ", Hq, "), got ", got);
    }
    for (const auto& [name, t, wanted] : {std::tuple{"bias", &s.bias, storage}, {"mask", &s.mask, ScalarType::Bool}}) {
      if (!*t) continue;
      if (packed) value_error(op, ": ", name, ": wanted none with packed sequences");
      check_like(op, name, **t, q, wanted);
      if ((*t)->sizes().size() != 4) value_error(op, ": ", name, ": wanted four dimensions, got ", (*t)->sizes());
      check_broadcasts(op, name, (*t)->sizes(), Shape(B, Hq, Lq, Lk));
    }
    if (s.sink) check_like(op, "sink", *s.sink, q, storage), check_shape(op, "sink", *s.sink, Shape(Hq));
    if (!(s.dropout_p >= 0 && s.dropout_p < 1))
      value_error(op, ": dropout_p: wanted a probability in [0, 1), got ", s.dropout_p);
    if (s.dropout_p > 0) {
      if (!s.seed) value_error(op, ": seed: wanted a tensor with dropout");
      check_like(op, "seed", *s.seed, q, ScalarType::Long);
      if (s.seed->numel() != 1) value_error(op, ": seed: wanted one element, got shape ", s.seed->sizes());
    }
    for (OptionalTensor* t : {&s.slopes, &s.sink})
      if (*t) *t = torch::stable::contiguous(**t);
  }

  void check_lengths() {
    if (packed) {
      check_sequences("cu_seqlens_q", *s.cu_seqlens_q, q.size(0), "max_seqlen_q", Lq);
      check_sequences("cu_seqlens_k", *s.cu_seqlens_k, k.size(0), "max_seqlen_k", Lk);
      if (s.seqlens_k) value_error(op, ": seqlens_k: wanted none with packed sequences");
    }
    constexpr int64_t kMost = (int64_t{1} << 31) - 65536;  // positions are numbers of 32 bits, with room for a block
    if (Lq > kMost || Lk > kMost) value_error(op, ": q, k: wanted fewer than ", kMost, " rows, got ", Lq, " and ", Lk);
    if (!s.seqlens_k) return;
    check_like(op, "seqlens_k", *s.seqlens_k, q, ScalarType::Int), check_shape(op, "seqlens_k", *s.seqlens_k, Shape(B));
    s.seqlens_k = torch::stable::contiguous(*s.seqlens_k);
    if (!host_reads) return;
    const auto* n = static_cast<const int32_t*>(s.seqlens_k->const_data_ptr());
    for (int64_t b = 0; b < B; ++b)
      if (n[b] < 0 || n[b] > Lk)
        value_error(op, ": seqlens_k: wanted lengths in [0, ", Lk, "], got ", n[b], " for row ", b);
  }

  void check_sequences(const char* name, Tensor& at, int64_t total, const char* most_name, int64_t most) {
    check_like(op, name, at, q, ScalarType::Int);
    if (at.sizes().size() != 1 || at.size(0) != B + 1 || B < 0)
      value_error(op, ": ", name, ": wanted shape (", B < 0 ? 1 : B + 1, ",), got ", at.sizes());
    if (most < 0) value_error(op, ": ", most_name, ": wanted 0 or above, got ", most);
    at = torch::stable::contiguous(at);
    if (!host_reads) return;
    const auto* n = static_cast<const int32_t*>(at.const_data_ptr());
    if (n[0] != 0) value_error(op, ": ", name, ": wanted 0 first, got ", n[0]);
    for (int64_t b = 0; b < B; ++b) {
      if (n[b + 1] < n[b])
        value_error(op, ": ", name, ": wanted rising numbers, got ", n[b], " before ", n[b + 1], " at ", b + 1);
      if (int64_t{n[b + 1]} - n[b] > most)
        value_error(op, ": ", most_name, ": wanted at least ", n[b + 1] - n[b], ", sequence ", b, "'s length, got ",
                    most);
    }
    if (n[B] != total) value_error(op, ": ", name, ": wanted ", total, ", the number of rows, last, got ", n[B]);
  }

  Shape rows() const { return packed ? Shape(Hq, q.size(0)) : Shape(B, Hq, Lq); }
  int64_t queries() const { return packed ? q.size(0) : B * Lq; }
  int64_t keys() const { return packed ? k.size(0) : B * Lk; }

  // Heads inside where q's are: the next projection takes the result without a copy.
  Tensor new_out() const {
    if (packed) return empty(q, Shape(q.size(0), Hq, Dv), storage);
    if (Lq > 1 && Hq > 1 && q.stride(1) < q.stride(2))
      return torch::stable::transpose(empty(q, Shape(B, Lq, Hq, Dv), storage), 1, 2);
    return empty(q, Shape(B, Hq, Lq, Dv), storage);
  }

  static const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

  void fill(AttentionProblem& p) const {
    p.type = type, p.B = B, p.Hq = Hq, p.Hkv = Hkv, p.Lq = Lq, p.Lk = Lk, p.D = D, p.Dv = Dv;
    p.q = heads(q, packed), p.k = heads(k, packed), p.v = heads(v, packed);
    p.scale = s.scale, p.softcap = s.softcap, p.causal = s.causal;
    p.window_left = s.window_left, p.window_right = s.window_right;
    p.slopes = data(s.slopes);
    p.slope_head = 1, p.slope_batch = s.slopes && s.slopes->sizes().size() == 2 ? Hq : 0;
    if (s.bias) p.bias = heads(*s.bias, false);
    if (s.mask) p.mask = heads(*s.mask, false);
    p.sink = data(s.sink);
    p.dropout_p = s.dropout_p, p.seed = static_cast<const int64_t*>(s.dropout_p > 0 ? data(s.seed) : nullptr);
    p.cu_seqlens_q = static_cast<const int32_t*>(data(s.cu_seqlens_q));
    p.cu_seqlens_k = static_cast<const int32_t*>(data(s.cu_seqlens_k));
    p.seqlens_k = static_cast<const int32_t*>(data(s.seqlens_k));
    p.rows_q = packed ? q.size(0) : 0, p.rows_k = packed ? k.size(0) : 0;
    p.stat_batch = packed ? 0 : Hq * Lq, p.stat_head = packed ? q.size(0) : Lq;
  }
  AttentionShape shape() const {
    const int64_t right = s.causal && (s.window_right < 0 || s.window_right > 0) ? 0 : s.window_right;
    const int64_t window = s.window_left >= 0 && right >= 0 ? s.window_left + right + 1 : 0;
    return {type, B, Hq, Hkv, Lq, Lk, D, Dv, s.causal, window, packed ? q.size(0) : 0};
  }
  Tensor workspace(const AttentionPlan& plan) const {
    const int64_t words = plan.workspace / 4 + 1;
    return empty(q, {&words, 1}, ScalarType::Float);
  }
};

template <GetAttentionKernels kernels>
constexpr bool host_reads_lengths = false;
template <>
constexpr bool host_reads_lengths<cpu::attention_kernels> = true;

}  // namespace

template <GetAttentionKernels kernels>
std::tuple<Tensor, Tensor, Tensor> attention(const Tensor& q, const Tensor& k, const Tensor& v, double scale,
                                             double softcap, bool causal, int64_t window_left, int64_t window_right,
                                             OptionalTensor slopes, OptionalTensor bias, OptionalTensor mask,
                                             OptionalTensor sink, double dropout_p, OptionalTensor seed,
                                             OptionalTensor cu_seqlens_q, OptionalTensor cu_seqlens_k,
                                             int64_t max_seqlen_q, int64_t max_seqlen_k, OptionalTensor seqlens_k) {
  const Call call("hetkern::attention", q, k, v,
                  {scale, softcap, causal, window_left, window_right, slopes, bias, mask, sink, dropout_p, seed,
                   cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqlens_k},
                  host_reads_lengths<kernels>);

  // Guard, allocate, return if empty.
  const OnDevice on(q);
  Tensor out = call.new_out();
  Tensor row_max = empty(q, call.rows(), call.accumulator), log_sum = empty(q, call.rows(), call.accumulator);
  if (row_max.numel() == 0) return {out, row_max, log_sum};

  AttentionForward p{};
  call.fill(p);
  p.out = heads(out, call.packed);
  p.row_max = row_max.mutable_data_ptr(), p.log_sum = log_sum.mutable_data_ptr();

  // Plan and launch.
  const AttentionKernels& kernel = kernels();
  const AttentionPlan plan = kernel.plan(call.shape());
  const Tensor workspace = call.workspace(plan);
  p.workspace = workspace.mutable_data_ptr();
  kernel.forward(p, plan, on.stream);
  return {out, row_max, log_sum};
}

template <GetAttentionKernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_backward(
    const Tensor& dout, OptionalTensor dlse, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& out,
    const Tensor& row_max_any, const Tensor& log_sum_any, double scale, double softcap, bool causal,
    int64_t window_left, int64_t window_right, OptionalTensor slopes, OptionalTensor bias, OptionalTensor mask,
    OptionalTensor sink, double dropout_p, OptionalTensor seed, OptionalTensor cu_seqlens_q,
    OptionalTensor cu_seqlens_k, int64_t max_seqlen_q, int64_t max_seqlen_k, OptionalTensor seqlens_k, int64_t needs) {
  constexpr const char* op = "hetkern::attention_backward";
  const Call call(op, q, k, v,
                  {scale, softcap, causal, window_left, window_right, slopes, bias, mask, sink, dropout_p, seed,
                   cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqlens_k},
                  host_reads_lengths<kernels>);

  // Check.
  const Shape out_shape = call.packed ? Shape(q.size(0), call.Hq, call.Dv) : Shape(call.B, call.Hq, call.Lq, call.Dv);
  check_like(op, "out", out, q, call.storage), check_shape(op, "out", out, out_shape);
  check_like(op, "dout", dout, q, call.storage), check_shape(op, "dout", dout, out_shape);
  Tensor row_max = row_max_any, log_sum = log_sum_any;
  for (const auto& [name, t] : {std::pair{"row_max", &row_max}, {"log_sum", &log_sum}}) {
    check_like(op, name, *t, q, call.accumulator), check_shape(op, name, *t, call.rows());
    *t = torch::stable::contiguous(*t);
  }
  if (dlse) {
    check_like(op, "dlse", *dlse, q, call.accumulator), check_shape(op, "dlse", *dlse, call.rows());
    dlse = torch::stable::contiguous(*dlse);
  }
  if (needs < 0 || needs > 63) value_error(op, ": needs: wanted a sum of 1, 2, 4, 8, 16 and 32, got ", needs);
  if (!bias) needs &= ~kDbias;
  if (!sink) needs &= ~kDsink;
  if (!slopes) needs &= ~kDslopes;

  // Guard, allocate, return if empty.
  const OnDevice on(q);
  const auto gradient = [&](int64_t bit, const OptionalTensor& of) {
    return needs & bit ? empty(q, of->sizes(), of->scalar_type()) : empty(q, Shape(int64_t{0}), call.storage);
  };
  Tensor dq = gradient(kDq, q), dk = gradient(kDk, k), dv = gradient(kDv, v);
  Tensor dbias = gradient(kDbias, bias), dsink = gradient(kDsink, sink), dslopes = gradient(kDslopes, slopes);
  const std::tuple results{dq, dk, dv, dbias, dsink, dslopes};
  if (dq.numel() + dk.numel() + dv.numel() + dbias.numel() + dsink.numel() + dslopes.numel() == 0) return results;

  AttentionBackward p{};
  call.fill(p);
  p.dout = heads(dout, call.packed), p.out = heads(out, call.packed);
  p.dlse = Call::data(dlse), p.row_max = row_max.const_data_ptr(), p.log_sum = log_sum.const_data_ptr();
  if (needs & kDq) p.dq = heads(dq, call.packed);
  if (needs & kDk) p.dk = heads(dk, call.packed);
  if (needs & kDv) p.dv = heads(dv, call.packed);
  if (needs & kDbias) {
    p.dbias = heads(dbias, false);
    for (int d = 0; d < 4; ++d) p.bias_size[d] = dbias.size(d);
  }
  if (needs & kDsink) p.dsink = dsink.mutable_data_ptr();
  if (needs & kDslopes) p.dslopes = dslopes.mutable_data_ptr();

  // Plan and launch.
  const AttentionKernels& kernel = kernels();
  AttentionShape shape = call.shape();
  shape.backward = true, shape.dbias = needs & kDbias;
  const AttentionPlan plan = kernel.plan(shape);
  const Tensor workspace = call.workspace(plan);
  p.workspace = workspace.mutable_data_ptr();
  kernel.backward(p, plan, on.stream);
  return results;
}

template <GetAttentionKernels kernels>
void serve_attention(StableLibrary& m) {
  m.impl("attention", TORCH_BOX((&attention<kernels>)));
  m.impl("attention_backward", TORCH_BOX((&attention_backward<kernels>)));
}
template void serve_attention<cpu::attention_kernels>(StableLibrary&);
#ifdef HETKERN_WITH_CUDA
template void serve_attention<cuda::attention_kernels>(StableLibrary&);
#endif

}  // namespace hetkern
