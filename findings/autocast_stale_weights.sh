#!/usr/bin/env bash
# torch 2.13.0, CPU: new weights loaded inside one autocast block are used by some layers only.
# Seen: two sets of weights (a model's and an average of them, say) are evaluated in one `with torch.no_grad(), torch.autocast("cpu",
# torch.bfloat16)`. After the second load_state_dict the Linear goes on with its first weights, of which a bfloat16 copy is kept until
# the block ends, whereas LayerNorm, which reads its own, has the new ones: the result is that of neither set. state_dict() shows the
# new weights throughout. Expected: what two blocks give. That, or cache_enabled=False, gives it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy
cd "$folder"
venv/bin/python -W ignore - <<'END'
import torch
from torch import nn

print("torch", torch.__version__)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
first = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
second = {name: torch.randn_like(value) for name, value in first.items()}
mixed = {name: (first if name.startswith("0.") else second)[name] for name in first}
x = torch.randn(1, 4)


def evaluate(weights):
    model.load_state_dict(weights)
    return model(x)


def autocast(**options):
    return torch.autocast("cpu", torch.bfloat16, **options)


with torch.no_grad():
    alone = []
    for weights in (first, second, mixed):
        with autocast():
            alone.append(evaluate(weights))
    with autocast():
        together = [evaluate(first), evaluate(second)]
        assert all(torch.equal(model.state_dict()[name], second[name]) for name in second)
    with autocast(cache_enabled=False):
        uncached = [evaluate(first), evaluate(second)]
print("second set in a block of its own:", alone[1].tolist())
print("second set after the first:      ", together[1].tolist())
assert torch.equal(together[0], alone[0])
assert not torch.allclose(together[1], alone[1], atol=0.1), "the new weights are used now"
assert torch.equal(together[1], alone[2]), "the second LayerNorm after the first Linear"
assert torch.equal(uncached[1], alone[1])
END
