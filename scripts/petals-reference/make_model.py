"""Random Llama checkpoints with a fixed seed. Usage: make_model.py small|tiny DIRECTORY"""

import sys

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "tiny": dict(hidden_size=64, intermediate_size=176, num_hidden_layers=4, num_attention_heads=4,
                 num_key_value_heads=2, vocab_size=512, max_position_embeddings=512),
    "small": dict(hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16,
                  num_key_value_heads=16, vocab_size=32000, max_position_embeddings=2048),
}

torch.manual_seed(0)
config = LlamaConfig(**SIZES[sys.argv[1]], bos_token_id=1, eos_token_id=2, tie_word_embeddings=False, torch_dtype="float32")
LlamaForCausalLM(config).float().save_pretrained(sys.argv[2], safe_serialization=True)
