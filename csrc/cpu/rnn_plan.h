// How the CPU shares out a sequence: a pure function of the shape, the machine and its vectors.
#pragma once
#include "../rnn.h"
#include "isa.h"

namespace hetkern::cpu {

// How a vector of the instruction set in force and its products are.
struct Vectors {
  int64_t bytes;
  Product product;  // of bfloat16
};
Vectors vectors_in_force();

RnnPlan rnn_plan(const RnnShape& shape, const Machine& machine, const Vectors& vectors);
RnnPlan rnn_plan(const RnnShape& shape);  // on this machine, now

}  // namespace hetkern::cpu
