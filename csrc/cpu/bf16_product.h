// Which way of multiplying numbers of bfloat16 is in force on the CPU.
//
// A fixed rule of the processor, never a timing, or bits would change from run to run: AMX where there is one (ten times the
// rate of multiply-adds), then the dot product of pairs on AMD's processors (twice the rate; on Intel's it has half), else
// multiply-adds. HETKERN_BF16=fma|dot|amx overrules it where the processor, at the instruction set in force, has that way.
#pragma once
#include "../bf16_product.h"

namespace hetkern::cpu {

Product bf16_product();                  // in force
void set_bf16_product(Product product);  // affects calls that start afterwards

}  // namespace hetkern::cpu
