#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0, CPU: the loss of a causal model on a batch padded on the left depends on the padding.
# Seen: Llama and Qwen3, labels -100 wherever attention_mask is 0, position_ids from 0 at the first real token. Padded on the right,
# a document has the loss that it has alone. On the left it is off by 0.03 to 0.2, by amounts that change with the
# attention implementation (eager, sdpa) and with the token that stands in the padding, and the padding token's embedding gets a
# gradient. Labels are moved by one inside the model, so the first real token is predicted from the last place of the padding, whose
# label -100 hides nothing. Expected: the loss of the document alone. A label of -100 at the first real token gives it back.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder"
venv/bin/python -W ignore - <<'END'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

transformers.logging.set_verbosity_error()
print("torch", torch.__version__, "transformers", transformers.__version__)
size = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "initializer_range": 0.2,
}
torch.manual_seed(1)
document = torch.randint(3, 50, (1, 9))
kept = torch.cat([torch.zeros(1, 5, dtype=torch.long), torch.ones(1, 9, dtype=torch.long)], 1)


def loss_of(model, pad, side, first=None):
    padding = torch.full((1, 5), pad)
    left = side == "left"
    ids = torch.cat([padding, document] if left else [document, padding], 1)
    mask = kept if left else kept.flip(1)
    labels = ids.masked_fill(mask == 0, -100)
    if first is not None:
        labels[0, 5] = first
    positions = (mask.cumsum(1) - 1).clamp(0)
    return model(ids, attention_mask=mask, position_ids=positions, labels=labels).loss


for config, kind in ((LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)):
    seen = {}
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = kind._from_config(config(**size), attn_implementation=implementation)
        alone = model(document, labels=document).loss
        for pad in (0, 1):
            torch.testing.assert_close(loss_of(model, pad, "right"), alone)
            torch.testing.assert_close(loss_of(model, pad, "left", first=-100), alone)
            loss = loss_of(model, pad, "left")
            gradient, = torch.autograd.grad(loss, model.get_input_embeddings().weight)
            assert gradient[pad].abs().max() > 0, "the padding's embedding has no gradient now"
            seen[implementation, pad] = loss.item()
    print(kind.__name__, "alone", round(alone.item(), 4), {k: round(v, 4) for k, v in seen.items()})
    values = [alone.item(), *seen.values()]
    assert all(abs(a - b) > 1e-4 for i, a in enumerate(values) for b in values[:i]), values
END
