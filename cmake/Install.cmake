install(TARGETS hetkern_ops LIBRARY DESTINATION hetkern)
if(HETKERN_PYTHON_MODULE)
  install(TARGETS _C LIBRARY DESTINATION hetkern)
endif()
# The command's entry point lies beside the package, so that `hetkern --help` does not import torch.
install(FILES hetkern/cli.py DESTINATION . RENAME hetkern_cli.py)
# The test kit builds other people's CUDA files with these, whether or not CUDA is here. (hetkern/testing/emulation/build.py)
install(FILES csrc/cuda/device/check.cuh csrc/cuda/device/launch.cuh csrc/cuda/device/ptx.cuh csrc/cuda/device/shared_parts.cuh DESTINATION hetkern/include/cuda/device)
install(DIRECTORY csrc/cuda/emulation DESTINATION hetkern/include/cuda PATTERN table.cpp EXCLUDE)   # table.cpp registers our own kernels
