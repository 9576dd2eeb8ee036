"""A random Llama of a given shape as GGUF without a tokenizer. usage: make_gguf.py GGUF_PY OUT HIDDEN MLP BLOCKS HEADS KEY_HEADS VOCABULARY"""

import sys

import numpy as np


def main():
    package, out, *sizes = sys.argv[1:]
    hidden, mlp, blocks, heads, key_heads, vocabulary = map(int, sizes)
    sys.path.insert(0, package)
    import gguf

    writer, rng, dim = gguf.GGUFWriter(out, "llama"), np.random.default_rng(0), hidden // heads
    writer.add_name("random")
    writer.add_context_length(4096)
    writer.add_embedding_length(hidden)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(0)
    writer.add_tokenizer_model("no_vocab")
    matrices = {"token_embd": (vocabulary, hidden), "output": (vocabulary, hidden)}
    norms = ["output_norm"]
    for number in range(blocks):
        at = f"blk.{number}."
        norms += [at + "attn_norm", at + "ffn_norm"]
        matrices |= {at + "attn_q": (hidden, hidden), at + "attn_k": (key_heads * dim, hidden), at + "attn_v": (key_heads * dim, hidden)}
        matrices |= {at + "attn_output": (hidden, hidden), at + "ffn_gate": (mlp, hidden), at + "ffn_up": (mlp, hidden), at + "ffn_down": (hidden, mlp)}
    for name, shape in matrices.items():
        writer.add_tensor(f"{name}.weight", rng.standard_normal(shape, dtype=np.float32) * 0.02)
    for name in norms:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
