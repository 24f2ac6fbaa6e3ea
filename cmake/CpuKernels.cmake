# cpu_kernels: the families' kernels, the same sources once per instruction set, and what chooses among them.
set(kernel_sources csrc/cpu/softmax.cpp csrc/cpu/cross_entropy.cpp
  csrc/cpu/rnn_gates.cpp csrc/cpu/rnn_forward.cpp csrc/cpu/rnn_backward.cpp csrc/cpu/rnn_layer.cpp
  csrc/cpu/attention_forward.cpp csrc/cpu/attention_backward.cpp csrc/cpu/attention_bias.cpp)

set(levels base)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(levels base avx2 avx512)
  if(HETKERN_LEVELS)
    set(levels ${HETKERN_LEVELS})
  endif()
  set(base_flags -march=x86-64-v2)
  set(avx2_flags -march=x86-64-v3)
  set(avx512_flags -march=x86-64-v4)
endif()

add_library(cpu_kernels INTERFACE)
foreach(level IN LISTS levels)
  add_library(cpu_${level} OBJECT ${kernel_sources})
  target_link_libraries(cpu_${level} PRIVATE hetkern_flags)
  target_compile_definitions(cpu_${level} PRIVATE HETKERN_ISA=${level})
  target_compile_options(cpu_${level} PRIVATE ${${level}_flags} $<IF:$<BOOL:${HETKERN_SANITIZE}>,-O0,-O3> -ffp-contract=off -fno-math-errno -fno-trapping-math -Wno-psabi
    $<$<CXX_COMPILER_ID:GNU>:-Wno-ignored-attributes -Wno-uninitialized -Wno-maybe-uninitialized>)   # the last two: GCC 12's own intrinsics
  target_sources(cpu_kernels INTERFACE $<TARGET_OBJECTS:cpu_${level}>)
endforeach()

foreach(level IN LISTS levels)
  string(TOUPPER "HETKERN_HAS_${level}" has)
  target_compile_definitions(cpu_kernels INTERFACE ${has})
endforeach()
target_sources(cpu_kernels INTERFACE ${PROJECT_SOURCE_DIR}/csrc/cpu/attention_plan.cpp ${PROJECT_SOURCE_DIR}/csrc/cpu/bf16_product.cpp ${PROJECT_SOURCE_DIR}/csrc/cpu/isa.cpp ${PROJECT_SOURCE_DIR}/csrc/cpu/kernels.cpp ${PROJECT_SOURCE_DIR}/csrc/cpu/parallel.cpp ${PROJECT_SOURCE_DIR}/csrc/cpu/rnn_plan.cpp ${PROJECT_SOURCE_DIR}/csrc/cpu/team.cpp)
