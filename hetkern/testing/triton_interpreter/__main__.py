"""``python -m hetkern.testing.triton_interpreter script.py …``."""

import sys

from hetkern.testing.triton_interpreter import main

main(sys.argv[1:])
