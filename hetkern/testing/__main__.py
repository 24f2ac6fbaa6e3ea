"""``python -m hetkern.testing --include``: where the headers lie that a CUDA kernel includes."""

import argparse

from hetkern.testing.emulation.build import own_headers

parser = argparse.ArgumentParser(prog="python -m hetkern.testing")
parser.add_argument(
    "--include", action="store_true", required=True, help="print the folder of cuda/device/*.cuh"
)
parser.parse_args()
print(own_headers())
