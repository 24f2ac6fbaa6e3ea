// hetkern._C: build facts, instruction sets, plans.  Nothing but introspection may depend on it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "facts.h"

namespace py = pybind11;
using namespace hetkern;

namespace {

DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::f32;
  if (name == "float64") return DType::f64;
  if (name == "float16") return DType::f16;
  if (name == "bfloat16") return DType::bf16;
  throw py::value_error("dtype: wanted float32, float64, float16 or bfloat16, got " + name);
}

const char* name_of(RowPath path) {
  return path == RowPath::whole_rows ? "whole_rows" : path == RowPath::split_rows ? "split_rows" : "columns";
}

void add(py::dict d, const BlockShape& block) {
  if (!block.threads) return;  // the CPU's
  d["threads"] = block.threads;
  d["lanes"] = block.lanes;
  d["cluster"] = block.cluster;
  d["shared_bytes"] = block.shared;
}

py::dict dict_of(const SoftmaxPlan& plan) {
  py::dict d;
  d["path"] = name_of(plan.path);
  d["tasks"] = plan.tasks;
  d["keep"] = plan.keep;
  add(d, plan.block);
  return d;
}

py::dict dict_of(const CrossEntropyPlan& plan) {
  py::dict d;
  d["path"] = name_of(plan.path);
  d["tasks"] = plan.tasks;
  add(d, plan.block);
  return d;
}

Cell cell_of(const std::string& name) {
  if (name == "tanh") return Cell::tanh;
  if (name == "relu") return Cell::relu;
  if (name == "lstm") return Cell::lstm;
  if (name == "gru") return Cell::gru;
  throw py::value_error("cell: wanted tanh, relu, lstm or gru, got " + name);
}

const char* name_of(RnnPath path) {
  return path == RnnPath::one_task      ? "one_task"
         : path == RnnPath::split_rows  ? "split_rows"
         : path == RnnPath::split_units ? "split_units"
                                        : "step_by_step";
}

py::dict dict_of(const RnnPlan& plan) {
  py::dict d;
  d["path"] = name_of(plan.path);
  d["tasks"] = plan.tasks;
  d["unit_vectors"] = plan.unit_vectors;
  d["product"] = name_of(plan.product);
  add(d, plan.block);
  return d;
}

const char* name_of(AttentionPath path) {
  return path == AttentionPath::one_task        ? "one_task"
         : path == AttentionPath::split_queries ? "split_queries"
         : path == AttentionPath::split_keys    ? "split_keys"
                                                : "split_heads";
}

py::dict dict_of(const AttentionPlan& plan) {
  py::dict d;
  d["path"] = name_of(plan.path);
  d["tasks"] = plan.tasks;
  d["parts"] = plan.parts;
  d["fold"] = plan.fold;
  d["product"] = name_of(plan.product);
  d["workspace"] = plan.workspace;
  add(d, plan.block);
  return d;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the native library: how it was built, which instruction set runs, which plan a shape gets.";
  m.def("compiler", &compiler);
  m.def("why_no_cuda", &why_no_cuda, "Why the library was built without CUDA kernels; empty if it has them.");
  m.def("isa_levels", &isa_levels, "Instruction sets that this processor can run, lowest first.");
  m.def("isa", &isa_in_force, "The instruction set in force.");
  m.def("set_isa", &clamp_isa, py::arg("most"), "Run at most this level from now on; returns the level then in force.");
  m.def("threads", &threads);
  m.def("bf16_product", &bf16_product, "How products of bfloat16 are made: fma, dot or amx.");
  m.def("set_bf16_product", &set_bf16_product, py::arg("wanted"),
        "Make them so from now on, where the processor can; returns what is then in force.");
  m.def(
      "rnn_plan",
      [](const std::string& cell, int64_t T, int64_t B, int64_t H, const std::string& x, bool ragged, bool backward,
         int threads, int64_t l2) {
        return dict_of(rnn_plan_cpu({cell_of(cell), dtype_of(x), T, B, H, ragged, backward}, {threads, l2}));
      },
      py::arg("cell"), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("x"), py::arg("ragged") = false,
      py::arg("backward") = false, py::arg("threads") = 0, py::arg("l2_bytes") = 0,
      "The CPU's plan for a sequence of T steps and B rows; zeros stand for this machine.");
  m.def(
      "attention_plan",
      [](int64_t B, int64_t Hq, int64_t Hkv, int64_t Lq, int64_t Lk, int64_t D, int64_t Dv, const std::string& x,
         bool causal, int64_t window, int64_t rows, bool backward, bool dbias, int threads, int64_t l2) {
        return dict_of(attention_plan_cpu(
            {dtype_of(x), B, Hq, Hkv, Lq, Lk, D, Dv, causal, window, rows, backward, dbias}, {threads, l2}));
      },
      py::arg("B"), py::arg("Hq"), py::arg("Hkv"), py::arg("Lq"), py::arg("Lk"), py::arg("D"), py::arg("Dv"),
      py::arg("x"), py::arg("causal") = false, py::arg("window") = 0, py::arg("rows") = 0, py::arg("backward") = false,
      py::arg("dbias") = false, py::arg("threads") = 0, py::arg("l2_bytes") = 0,
      "The CPU's plan for attention of B sequences; window: the keys that a query sees at most, rows: the queries of a "
      "packed batch; zeros stand for none, or for this machine.");
  m.def(
      "softmax_plan",
      [](int64_t M, int64_t N, bool columns, const std::string& x, const std::string& y, int threads, int64_t l2) {
        return dict_of(softmax_plan_cpu({M, N, columns, dtype_of(x), dtype_of(y)}, {threads, l2}));
      },
      py::arg("M"), py::arg("N"), py::arg("columns"), py::arg("x"), py::arg("y"), py::arg("threads") = 0,
      py::arg("l2_bytes") = 0, "The CPU's plan for M rows of N; zeros stand for this machine.");
  m.def(
      "cross_entropy_plan",
      [](int64_t M, int64_t N, bool columns, const std::string& x, int threads, int64_t l2) {
        return dict_of(cross_entropy_plan_cpu({M, N, columns, dtype_of(x)}, {threads, l2}));
      },
      py::arg("M"), py::arg("N"), py::arg("columns"), py::arg("x"), py::arg("threads") = 0, py::arg("l2_bytes") = 0,
      "The CPU's plan for M rows of N; zeros stand for this machine.");
  m.def(
      "softmax_plan_cuda",
      [](int64_t M, int64_t N, bool columns, const std::string& x, const std::string& y, int reads, int capability,
         int processors, int64_t shared_bytes) {
        return dict_of(softmax_plan_cuda({M, N, columns, dtype_of(x), dtype_of(y), reads},
                                         {capability, processors, shared_bytes}));
      },
      py::arg("M"), py::arg("N"), py::arg("columns"), py::arg("x"), py::arg("y"), py::arg("reads") = 1,
      py::arg("capability") = 0, py::arg("processors") = 0, py::arg("shared_bytes") = 0,
      "A GPU's plan for M rows of N, of which `reads` tensors are read (forward 1, backward 2, double backward 3); "
      "capability 90 is 9.0, zeros stand for the current GPU, or an H100 where there is none.");
  m.def(
      "cross_entropy_plan_cuda",
      [](int64_t M, int64_t N, bool columns, const std::string& x, int capability, int processors,
         int64_t shared_bytes) {
        return dict_of(cross_entropy_plan_cuda({M, N, columns, dtype_of(x)}, {capability, processors, shared_bytes}));
      },
      py::arg("M"), py::arg("N"), py::arg("columns"), py::arg("x"), py::arg("capability") = 0,
      py::arg("processors") = 0, py::arg("shared_bytes") = 0,
      "A GPU's plan for M rows of N; zeros stand for the current GPU, or an H100 where there is none.");
  m.def(
      "rnn_plan_cuda",
      [](const std::string& cell, int64_t T, int64_t B, int64_t H, const std::string& x, bool ragged, bool backward,
         int capability, int processors, int64_t shared_bytes) {
        return dict_of(rnn_plan_cuda({cell_of(cell), dtype_of(x), T, B, H, ragged, backward},
                                     {capability, processors, shared_bytes}));
      },
      py::arg("cell"), py::arg("T"), py::arg("B"), py::arg("H"), py::arg("x"), py::arg("ragged") = false,
      py::arg("backward") = false, py::arg("capability") = 0, py::arg("processors") = 0, py::arg("shared_bytes") = 0,
      "A GPU's plan for a sequence of T steps and B rows; zeros stand for the current GPU, or an H100 where there is "
      "none.");
  m.def(
      "attention_plan_cuda",
      [](int64_t B, int64_t Hq, int64_t Hkv, int64_t Lq, int64_t Lk, int64_t D, int64_t Dv, const std::string& x,
         bool causal, int64_t window, int64_t rows, bool backward, bool dbias, int capability, int processors,
         int64_t shared_bytes) {
        return dict_of(
            attention_plan_cuda({dtype_of(x), B, Hq, Hkv, Lq, Lk, D, Dv, causal, window, rows, backward, dbias},
                                {capability, processors, shared_bytes}));
      },
      py::arg("B"), py::arg("Hq"), py::arg("Hkv"), py::arg("Lq"), py::arg("Lk"), py::arg("D"), py::arg("Dv"),
      py::arg("x"), py::arg("causal") = false, py::arg("window") = 0, py::arg("rows") = 0, py::arg("backward") = false,
      py::arg("dbias") = false, py::arg("capability") = 0, py::arg("processors") = 0, py::arg("shared_bytes") = 0,
      "A GPU's plan for attention, backward that of dq's pass: lanes are the keys of a tile of scores; zeros stand for "
      "the current GPU, or an H100 where there is none.");
}
