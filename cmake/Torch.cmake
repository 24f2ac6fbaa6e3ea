# torch_stable: LibTorch's stable ABI. Headers and library are found through the interpreter, never by find_package(Torch), which
# would bring the whole C++ API and insist on the CUDA toolkit that torch was built with.
find_package(Python REQUIRED COMPONENTS Interpreter OPTIONAL_COMPONENTS Development.Module)
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
  OUTPUT_VARIABLE HETKERN_TORCH_ROOT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE torch_missing)
if(torch_missing)
  message(FATAL_ERROR "torch is not installed for ${Python_EXECUTABLE}: type `pip install 'torch>=2.11'` first, then `pip install --no-build-isolation .` again.")
endif()
if(NOT EXISTS "${HETKERN_TORCH_ROOT}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "the torch in ${HETKERN_TORCH_ROOT} has no stable ABI: type `pip install 'torch>=2.11'`, then build again.")
endif()
file(STRINGS "${HETKERN_TORCH_ROOT}/version.py" torch_version REGEX "^__version__ = ")
string(REGEX MATCH "[0-9]+\\.[0-9]+" torch_version "${torch_version}")
if(torch_version VERSION_LESS 2.11)
  message(FATAL_ERROR "the torch in ${HETKERN_TORCH_ROOT} is ${torch_version}: type `pip install 'torch>=2.11'`, then build again.")
endif()
message(STATUS "torch ${torch_version}: ${HETKERN_TORCH_ROOT}")

add_library(torch_stable SHARED IMPORTED)
set_target_properties(torch_stable PROPERTIES
  IMPORTED_LOCATION "${HETKERN_TORCH_ROOT}/lib/libtorch${CMAKE_SHARED_LIBRARY_SUFFIX}"
  IMPORTED_SONAME "libtorch${CMAKE_SHARED_LIBRARY_SUFFIX}"
  INTERFACE_INCLUDE_DIRECTORIES "${HETKERN_TORCH_ROOT}/include")
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020b000000000000ULL)   # 2.11
