# SPDX-License-Identifier: Apache-2.0
# transformers' continuous batching on quire: one import registers `paged|quire`. The model has
# random weights, so that nothing is downloaded. Needs torch and transformers 5.17.
import torch
import transformers

import quire.integrations.transformers  # noqa: F401

# %% A small Llama whose attention is quire's.
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
)
model = transformers.AutoModelForCausalLM.from_config(config).to(device).eval()
model.set_attn_implementation("paged|quire")

# %% Three prompts, in one batch that changes from step to step.
prompts = [list(range(1, n)) for n in (8, 40, 20)]
outputs = model.generate_batch(
    prompts,
    generation_config=transformers.GenerationConfig(
        max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0
    ),
    continuous_batching_config=transformers.ContinuousBatchingConfig(
        num_blocks=32,
        block_size=16,
        max_batch_tokens=64,
        use_cuda_graph=device == "cuda",
        use_async_batching=device == "cuda",
    ),
    progress_bar=False,
)
print("new tokens:", [len(output.generated_tokens) for output in outputs.values()])
