install(TARGETS hetkern_ops LIBRARY DESTINATION hetkern)
if(HETKERN_PYTHON_MODULE)
  install(TARGETS _C LIBRARY DESTINATION hetkern)
endif()
