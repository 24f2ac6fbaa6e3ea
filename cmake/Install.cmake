install(TARGETS hetkern_ops LIBRARY DESTINATION hetkern)
if(HETKERN_PYTHON_MODULE)
  install(TARGETS _C LIBRARY DESTINATION hetkern)
endif()
# The command's entry point lies beside the package, so that `hetkern --help` does not import torch.
install(FILES hetkern/cli.py DESTINATION . RENAME hetkern_cli.py)
