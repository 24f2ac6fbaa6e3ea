// The functions that a product is fused with as well as the operators; the _rn ones are not. Before CUDA's own headers are read they
// are themselves again.
#if !defined(HETKERN_FMAD) || HETKERN_FMAD
#undef __hmul
#undef __hmul2
#undef __hadd
#undef __hadd2
#undef __hsub
#undef __hsub2
#ifndef HETKERN_PLAIN_HALF_NAMES
#define __hmul(...) hetkern_half_product(__VA_ARGS__)
#define __hmul2(...) hetkern_half_product(__VA_ARGS__)
#define __hadd(...) hetkern_half_sum(__VA_ARGS__)
#define __hadd2(...) hetkern_half_sum(__VA_ARGS__)
#define __hsub(...) hetkern_half_difference(__VA_ARGS__)
#define __hsub2(...) hetkern_half_difference(__VA_ARGS__)
#endif
#undef HETKERN_PLAIN_HALF_NAMES
#endif
