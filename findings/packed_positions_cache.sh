#!/usr/bin/env bash
# transformers 5.24.0, torch 2.13.0, CPU: two documents packed into one row, told apart by position_ids that begin anew, as its data
# collator without padding makes them. In evaluation Llama keeps them apart only with use_cache=False; with the default, a cache, the
# second document attends to the first and its logits change without a word. GPT-OSS lets it do so with and without a cache.
# Expected: a document's logits are those that it has alone, or an error.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 transformers==5.24.0 numpy
cd "$folder"
venv/bin/python -W ignore - <<'END'
import torch
import transformers
from transformers import GptOssConfig, GptOssForCausalLM, LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
print("torch", torch.__version__, "transformers", transformers.__version__)
size = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": 64,
}
experts = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 32}
models = {
    "Llama": (LlamaForCausalLM, LlamaConfig(**size, attn_implementation="sdpa")),
    "GPT-OSS": (GptOssForCausalLM, GptOssConfig(**size, **experts, attn_implementation="eager")),
}
kept_apart = {("Llama", True): False, ("Llama", False): True, ("GPT-OSS", True): False, ("GPT-OSS", False): False}
for (name, cache), apart in kept_apart.items():
    torch.manual_seed(0)
    model = models[name][0](models[name][1]).eval()
    first, second = torch.randint(0, 50, (1, 7)), torch.randint(0, 50, (1, 9))
    positions = torch.cat([torch.arange(7), torch.arange(9)])[None]
    with torch.no_grad():
        packed = model(torch.cat([first, second], 1), position_ids=positions, use_cache=cache).logits[:, 7:]
        alone = model(second, use_cache=cache).logits
    largest = (packed - alone).abs().max().item()
    print(f"{name}, use_cache={cache}: the second document's logits move by {largest:.2g}")
    assert (largest < 1e-5) == apart
END
