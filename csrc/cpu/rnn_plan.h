// How the CPU shares out a sequence: a pure function of the shape, the machine and its vectors.
#pragma once
#include "../rnn.h"
#include "isa.h"

namespace hetkern::cpu {

// How a vector of the instruction set in force and its products are.
struct Vectors {
  int64_t bytes;
  bool dot;  // of bfloat16 pairs
};
Vectors vectors_in_force();

RnnPlan rnn_plan(const RnnShape& shape, const Machine& machine, const Vectors& vectors);
RnnPlan rnn_plan(const RnnShape& shape);  // on this machine, now

// Products of bfloat16 are fused multiply-adds of float32, or the processor's dot product of pairs. A fixed rule, never a
// timing, or bits would change from run to run: the dot product where it is the faster one, on AMD's processors that have it
// (on Intel's it has half the rate of multiply-adds). HETKERN_BF16=fma|dot overrules it where the instruction exists.
bool has_bf16_dot();          // this processor, at the instruction set in force
bool bf16_dot();              // in force
void set_bf16_dot(bool dot);  // affects calls that start afterwards

}  // namespace hetkern::cpu
