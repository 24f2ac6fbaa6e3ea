#!/usr/bin/env bash
# torch 2.13.0: what torch.distributed.checkpoint raises is no Exception.
# Seen: loading a tensor that a checkpoint does not hold raises CheckpointException, whose only base is BaseException. `except
# Exception`, as a program that falls back on an older checkpoint writes it, lets it pass, and so does contextlib.suppress(Exception);
# a logger that catches Exception at the top of a program never sees it. Expected: an Exception, as every other failed read is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python -W ignore - <<'END'
import contextlib

import torch
import torch.distributed.checkpoint as checkpoint

print("torch", torch.__version__)
checkpoint.save({"weight": torch.ones(3)}, checkpoint_id="saved")
raised = None
try:
    with contextlib.suppress(Exception):
        checkpoint.load({"another": torch.ones(3)}, checkpoint_id="saved")
except BaseException as error:
    raised = type(error)
print("passes `except Exception`:", raised, "with the bases", raised and raised.__bases__)
assert raised is not None and raised.__bases__ == (BaseException,), "BaseException alone was seen"
END
