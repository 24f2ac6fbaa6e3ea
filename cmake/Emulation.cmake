# libhetkern_emulated.so: the CUDA families on the CPU, for tests: the same host files and .cu files, built by the C++ compiler, with
# csrc/cuda/emulation for a GPU. With HETKERN_SANITIZE it is that sanitizer's; hetkern_traffic is the library that counts.
if(NOT HETKERN_EMULATION)
  return()
endif()

find_path(HETKERN_CUDA_HEADERS cuda_runtime.h HINTS "${CUDAToolkit_ROOT}/include" "$ENV{CUDA_HOME}/include" /usr/local/cuda/include REQUIRED
  DOC "CUDA's headers: the emulation needs no nvcc, but its types")
file(GLOB emulated_kernels CONFIGURE_DEPENDS csrc/cuda/*.cu)
file(GLOB emulated_headers CONFIGURE_DEPENDS csrc/cuda/*.h csrc/cuda/device/*.cuh)
file(STRINGS csrc/cuda/emulation/sources.txt machine_sources)   # what every kind has; hetkern.testing reads it as well
list(TRANSFORM machine_sources PREPEND csrc/cuda/emulation/)
file(GLOB common_sources CONFIGURE_DEPENDS csrc/common/*.cpp)
set(emulated_sources)   # a C++ file for each .cu, which stays nvcc's
foreach(kernel IN LISTS emulated_kernels)
  get_filename_component(stem "${kernel}" NAME_WE)
  file(CONFIGURE OUTPUT "${PROJECT_BINARY_DIR}/emulated/${stem}.cpp" CONTENT "#include \"${kernel}\"\n")
  list(APPEND emulated_sources "${PROJECT_BINARY_DIR}/emulated/${stem}.cpp")
endforeach()

# What a kernel may not use is refused by name before it is compiled.
set(refused "${PROJECT_BINARY_DIR}/emulation_refused.stamp")
add_custom_command(OUTPUT "${refused}" COMMENT "Looking for words that the emulation refuses"
  COMMAND "${Python_EXECUTABLE}" "${PROJECT_SOURCE_DIR}/hetkern/testing/emulation/refused.py" ${emulated_kernels} ${emulated_headers}
  COMMAND "${CMAKE_COMMAND}" -E touch "${refused}"
  DEPENDS ${emulated_kernels} ${emulated_headers} hetkern/testing/emulation/refused.py)

# An emulated library: `instrument` are the kernels' flags, `mode` is what the emulation is told of them.
function(add_emulated name mode)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "" "INSTRUMENT")
  add_library(${name}_machine OBJECT ${machine_sources}
    $<$<STREQUAL:${mode},TRAFFIC>:${PROJECT_SOURCE_DIR}/csrc/cuda/emulation/traffic.cpp>)
  target_compile_options(${name}_machine PRIVATE -Wall -Wextra -O2 -g $<$<BOOL:${HETKERN_WARNINGS_AS_ERRORS}>:-Werror>)
  target_compile_definitions(${name}_machine PRIVATE HETKERN_EMULATION_${mode})
  target_include_directories(${name}_machine SYSTEM PRIVATE "${HETKERN_CUDA_HEADERS}")

  add_library(${name} SHARED csrc/cuda/emulation/table.cpp csrc/attention.cpp csrc/softmax.cpp csrc/cross_entropy.cpp csrc/rnn_gates.cpp
    csrc/rnn_sequence.cpp csrc/rnn_steps.cpp ${common_sources})
  target_link_libraries(${name} PRIVATE hetkern_flags torch_stable ${name}_machine)
  target_compile_definitions(${name} PRIVATE HETKERN_WITH_CUDA)
  # The host files' functions for cpu kernels go unused, and with them what they refer to.
  target_compile_options(${name} PRIVATE -ffunction-sections)
  target_link_options(${name} PRIVATE LINKER:--no-as-needed LINKER:--gc-sections)

  if(emulated_sources)
    add_library(${name}_kernels OBJECT ${emulated_sources} "${refused}")
    target_link_libraries(${name}_kernels PRIVATE hetkern_flags)
    target_compile_options(${name}_kernels PRIVATE $<IF:$<BOOL:${HETKERN_SANITIZE}>,-O1,-O2> -gdwarf-4 -fno-tree-vectorize -fno-tree-slp-vectorize -ffp-contract=off -Wno-unknown-pragmas -Wno-maybe-uninitialized
      ${arg_INSTRUMENT})
    target_include_directories(${name}_kernels SYSTEM PRIVATE "${HETKERN_CUDA_HEADERS}")
    target_link_libraries(${name} PRIVATE ${name}_kernels)
  endif()
endfunction()

set(alignment -fsanitize=alignment -fno-sanitize-recover=alignment)   # answered by the emulation, by name
if(HETKERN_SANITIZE STREQUAL "address")
  add_emulated(hetkern_emulated ADDRESS)
elseif(HETKERN_SANITIZE STREQUAL "thread")
  add_emulated(hetkern_emulated THREAD INSTRUMENT ${alignment})
else()
  add_emulated(hetkern_emulated PLAIN INSTRUMENT ${alignment})
  add_emulated(hetkern_traffic TRAFFIC INSTRUMENT ${alignment} -fno-tree-sra -fno-ipa-sra -fsanitize=thread
    "SHELL:-include ${PROJECT_SOURCE_DIR}/csrc/cuda/emulation/counted_words.h")
endif()
