"""A small random model of every class in transformers' causal-LM mapping: what `test_every_model.py` sweeps.

`tiny_model("llama")` builds one in milliseconds. Sizes shrink by the names that configurations give them (`SIZES`),
lists with an entry a layer keep one layer of every kind, and `PARTICULAR` has what only one family calls by its name.
Chance is taken out: no dropout, no jitter in routers. Weights are drawn so large that outputs depend on all inputs.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

MODEL_TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
VOCABULARY = 64
_LARGE = 0.15

_ALL = {
    32: "hidden_size d_model n_embd dim_model emb_dim embedding_size hidden_size_global embedding_dim dim lru_width "
    "input_size backbone_hidden_size input_embedding_size output_embedding_size word_embed_proj_dim "
    "attention_hidden_size hidden_size_per_layer_input embed_dim output_dim projection_dim output_channels "
    "mamba_d_ssm out_hidden_size adapter_out_dim kv_lora_rank q_lora_rank o_lora_rank router_hidden_size "
    "vision_output_dim projector_input_dim projector_output_dim adapter_input_size adapter_in_dim "
    "shape_embed_dim pronunciation_embed_dim hc_lowrank ple_embed_dim codebook_dim",
    48: "intermediate_size moe_intermediate_size shared_expert_intermediate_size ffn_dim decoder_ffn_dim "
    "encoder_ffn_dim ffn_hidden_size expert_ffn_hidden_size n_inner dim_ff dff d_inner d_ff feed_forward_size "
    "shared_intermediate_size shared_experts_intermediate_size intermediate_size_mlp dense_intermediate_size "
    "moe_shared_expert_intermediate_size mlp_dim conv_dim",
    4: "num_attention_heads n_head n_heads attention_heads decoder_attention_heads encoder_attention_heads "
    "num_decoder_attention_heads num_encoder_attention_heads mamba_n_heads mamba_num_heads linear_num_value_heads "
    "linear_num_heads num_local_experts num_experts n_routed_experts moe_num_experts swa_num_attention_heads "
    "index_n_heads sliding_window attention_window_size local_attention window_size swa_window_size "
    "attention_chunk_size sliding_window_size rel_extent zero_expert_num local_attention_window_len",
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_decoder_layers "
    "num_encoder_layers num_blocks depth num_key_value_heads num_kv_heads kv_n_heads num_experts_per_tok "
    "num_experts_per_token moe_topk moe_top_k moe_k linear_num_key_heads swa_num_key_value_heads num_query_groups "
    "num_layers_per_stack n_input_layers n_output_layers n_recurrent_layers",
    1: "n_group topk_group num_expert_group n_groups mamba_n_groups mamba_ngroups num_nextn_predict_layers "
    "n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace num_dense_layers o_groups "
    "max_window_layers num_mem_blocks",
    8: "head_dim qk_rope_head_dim v_head_dim qk_nope_head_dim linear_key_head_dim linear_value_head_dim "
    "linear_head_dim index_head_dim d_kv kv_channels swa_head_dim d_rel dim_head attention_head_size d_head "
    "mamba_d_head mamba_head_dim mamba_d_state ssm_state_size state_size rotary_dim time_step_rank mamba_dt_rank "
    "chunk_size mamba_chunk_size laurel_rank adapter_rank gated_norm_rank loop_gate_rank block_size "
    "attention_head_dim index_block_size mamba_headdim",
    16: "qk_head_dim index_topk",  # all keys of a short row: of fewer, ties would be broken by where padding stands
    64: "vocab_size vocab_size_per_layer_input unpadded_vocab_size decoder_vocab_size ngram_vocab_size_base",
    128: "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length "
    "original_max_position_embeddings model_max_length",
    0: "num_kv_shared_layers",
}
SIZES = {name: size for size, names in _ALL.items() for name in names.split()}
"""Small sizes, by the names under which configurations have them."""

_CHANCE = ("drop", "jitter", "pdrop")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "decoder_layers")

DOTS3 = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
QWEN4 = {
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 32,
    "indexer_compress_ratio": 2,
}

PARTICULAR: dict[str, dict[str, Any]] = {
    "bamba": {"mamba_d_head": 16, "mamba_n_heads": 4, "attn_layer_indices": [1]},
    "granitemoehybrid": {"mamba_d_head": 16, "mamba_n_heads": 4, "layer_types": ["mamba", "attention"]},
    "mamba2": {"num_heads": 8},
    "dory": {"num_hidden_layers": 6, "layer_types": None},
    "dots1": {
        "num_experts_per_tok": 2,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "moe_intermediate_size": 16,
    },
    "dots3_note": {"text_config": DOTS3},
    "dots3_note_text": DOTS3,
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "hrm_text": {"num_hidden_layers": 4, "num_layers_per_stack": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
    },
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8}},
    "llama4": {"text_config": {"moe_layers": [1]}},
    "llama4_text": {"moe_layers": [1]},
    "lfm2": {"block_auto_adjust_ff_dim": False},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "qwen4_exp": {"text_config": QWEN4},
    "qwen4_exp_text": QWEN4,
    "xlstm": {"num_heads": 2},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid", "mamba", "hybrid"],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "n_mamba_heads": 2,
    },
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16, "mamba_headdim": 8, "n_mamba_heads": 8},
}
"""What only one family has."""


def tiny_config(model_type: str) -> PretrainedConfig:
    """The configuration of `tiny_model`."""
    return _shrunk(CONFIG_MAPPING[model_type](), PARTICULAR.get(model_type, {}))


def tiny_model(model_type: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    """A float32 model of the type's causal-LM class, in `eval()` mode; the same for the same type and seed."""
    config = tiny_config(model_type)
    if dtype == torch.float64:  # the other implementation of experts has no such product
        config.get_text_config()._experts_implementation = config._experts_implementation = "eager"
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1 and weight.std() < _LARGE:
                weight.normal_(std=_LARGE)
            else:
                weight.add_(
                    torch.randn_like(weight), alpha=_LARGE
                )  # scales that begin as zeros would hide their inputs
    return model.eval()


def _shrunk(config: PretrainedConfig, particular: dict[str, Any]) -> PretrainedConfig:
    """The same configuration in small; made again, so that what follows from other fields is computed again."""
    values = config.to_dict()
    parts = [name for name, value in vars(config).items() if isinstance(value, PretrainedConfig)]
    small: dict[str, Any] = {"is_decoder": True} if "is_decoder" in values else {}
    kept = _layers_of_every_kind(values)
    num_layers = max((values[name] for name in _LAYERS if isinstance(values.get(name), int)), default=0)
    for name, value in values.items():
        if name in parts:
            small[name] = _shrunk(getattr(config, name), particular.get(name, {}))
        elif isinstance(value, bool) or value is None:
            continue
        elif name in SIZES and isinstance(value, int):
            small[name] = min(SIZES[name], value) if SIZES[name] != 32 else SIZES[name]
        elif isinstance(value, (int, float)) and any(word in name for word in _CHANCE):
            small[name] = 0 * value
        elif name.endswith("_token_id") and isinstance(value, (int, list)):
            small[name] = {"pad": 1, "bos": 2}.get(name[:3], VOCABULARY - 1)
        elif isinstance(value, list) and kept and len(value) == num_layers:
            small[name] = [value[index] for index in kept]
    if kept:
        small |= {name: len(kept) for name in _LAYERS if name in values}
    if "kv_lora_rank" in values:  # latent attention has as many keys as queries
        small["num_key_value_heads"] = small["num_attention_heads"]
    return type(config)(**{**small, **{k: v for k, v in particular.items() if k not in parts}})


def _layers_of_every_kind(values: dict[str, Any]) -> list[int]:
    """Indices of layers, at least two, among which every kind is that the per-layer lists of a configuration tell."""
    num_layers = max((values[name] for name in _LAYERS if isinstance(values.get(name), int)), default=0)
    lists = [
        value
        for value in values.values()
        if isinstance(value, list) and len(value) == num_layers > 2 and len(set(map(str, value))) < num_layers
    ]
    kinds = list(map(str, zip(*lists, strict=True)))
    kept = sorted({kind: index for index, kind in reversed(list(enumerate(kinds)))}.values())
    return kept if len(kept) != 1 else [0, 1]
