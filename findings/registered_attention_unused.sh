#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0, CPU: models without attention of the library's interface take the name of a registered attention
# function, keep it in their config, and never call the function.
# Seen: a function that counts its calls, registered with AttentionInterface and AttentionMaskInterface. Llama and BERT call it once a
# layer. DeBERTa-v2, XLNet, XLM, OpenAI GPT and FSMT refuse attn_implementation="sdpa" with a ValueError that says so, but take the
# registered name without a word, and run their own attention. Expected: the same refusal. Whoever swaps attention by name learns only
# by counting that nothing was swapped.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder"
venv/bin/python -W ignore - <<'END'
import torch
import transformers
from transformers import AttentionInterface, AutoConfig, AutoModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

transformers.logging.set_verbosity_error()
print("torch", torch.__version__, "transformers", transformers.__version__)
calls = []


def counted(*args, **kwargs):
    calls.append(args[0])
    return sdpa_attention_forward(*args, **kwargs)


AttentionInterface.register("counted", counted)
AttentionMaskInterface.register("counted", sdpa_mask)
usual = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
sizes = {
    "llama": usual, "bert": usual, "deberta-v2": usual,
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "xlm": {"emb_dim": 32, "n_layers": 2, "n_heads": 4},
    "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "fsmt": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2},
}
for kind, size in sizes.items():
    config = AutoConfig.for_model(kind, **size, **({} if kind == "fsmt" else {"vocab_size": 50}))
    try:
        AutoModel.from_config(config, attn_implementation="sdpa")
        refuses = False
    except ValueError as error:
        refuses = "scaled_dot_product_attention" in str(error)
    calls.clear()
    model = AutoModel.from_config(config, attn_implementation="counted").eval()
    tokens = torch.arange(5, 17)[None]
    with torch.no_grad():
        model(tokens, **({"decoder_input_ids": tokens} if kind == "fsmt" else {}))
    print(kind, "refuses sdpa:", refuses, "keeps", model.config._attn_implementation, "calls", len(calls))
    wanted = (False, 2) if kind in ("llama", "bert") else (True, 0)
    assert (refuses, len(calls)) == wanted, (kind, refuses, len(calls))
    assert model.config._attn_implementation == "counted"
END
