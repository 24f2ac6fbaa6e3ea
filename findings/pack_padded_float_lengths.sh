#!/usr/bin/env bash
# torch 2.13.0: torch.nn.utils.rnn.pack_padded_sequence takes lengths of floating point and cuts them to whole numbers, silently.
# Seen: lengths 4.9 and 2.7 of 5 steps are packed as 4 and 2, from a tensor and from a list alike. So lengths that come out of a
# product (a share of the longest, a down-sampling factor) lose a step wherever rounding falls below the whole number:
# 0.29 * 100 is 28.999999999999996, and the sequence of 29 steps is packed as 28. Expected: an error, or the nearest number.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python - <<'END'
import torch
from torch.nn.utils.rnn import pack_padded_sequence

print("torch", torch.__version__)
batch = torch.zeros(2, 5, 3)
for lengths in (torch.tensor([4.9, 2.7]), [4.9, 2.7]):
    sizes = pack_padded_sequence(batch, lengths, batch_first=True).batch_sizes.tolist()
    print(lengths, "are packed as", sizes)
    assert sizes == [2, 2, 1, 1], "lengths 4 and 2 were seen"

share = torch.tensor([0.29 * 100], dtype=torch.float64)
packed = pack_padded_sequence(torch.zeros(1, 100, 3), share, batch_first=True)
print("0.29 of 100 steps:", len(packed.batch_sizes))
assert len(packed.batch_sizes) == 28, "28 was seen"
END
