"""The modules that the methods adapt when a config names none, by `model.config.model_type`."""

QV = ("q_proj", "v_proj")
QUERY_VALUE = ("query", "value")

ATTENTION: dict[str, tuple[str, ...] | str] = {
    **dict.fromkeys(("bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral"), QV),
    **dict.fromkeys(("stablelm", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), QV),
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra", "layoutlm"), QUERY_VALUE),
    **dict.fromkeys(("bloom", "gpt_neox", "chatglm", "falcon"), ("query_key_value",)),
    **dict.fromkeys(("RefinedWebModel", "RefinedWeb"), ("query_key_value",)),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    **dict.fromkeys(("t5", "mt5"), ("q", "v")),
    "blip-2": ("q", "v", *QV),
    "btlm": ("c_proj", "c_attn"),
    "codegen": ("qkv_proj",),
    "deberta": ("in_proj",),
    "deberta-v2": ("query_proj", "value_proj"),
    "gemma4": r".*language_model\..*\.(q_proj|v_proj)",
    "mpt": ("Wqkv",),
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "phi": (*QV, "fc1", "fc2"),
    "rwkv": ("key", "value", "receptance", "output"),
    "rwkv7": ("r_proj", "k_proj", "v_proj", "o_proj", "key", "value"),
}

# The paper scales keys, values and the inputs of the feed-forward layer; what those are called:
IA3_FEEDFORWARD: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "llama4", "mistral", "gemma", "gemma2"), ("down_proj",)),
    **dict.fromkeys(("gemma3_text", "qwen2", "qwen3"), ("down_proj",)),
    **dict.fromkeys(("bert", "roberta", "deberta", "deberta-v2"), ("output.dense",)),
    **dict.fromkeys(("gpt_neox", "falcon", "RefinedWeb", "RefinedWebModel"), ("dense_4h_to_h",)),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("mlp.c_proj",)),
    **dict.fromkeys(("bart", "opt", "phi"), ("fc2",)),
    "bloom": ("mlp.dense_4h_to_h",),
    "gptj": ("fc_out",),
    "gpt_neo": ("c_proj",),
    "mixtral": ("w2",),
    "mt5": (),
    "t5": ("wo",),
}
_IA3_OTHER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "mixtral"), ("k_proj", "v_proj")),
    **dict.fromkeys(("gptj", "gpt_neo", "bart", "phi", "llama4", "gemma", "gemma2"), QV),
    **dict.fromkeys(("gemma3_text", "qwen2", "qwen3"), QV),
    **dict.fromkeys(("bert", "roberta"), ("key", "value")),
    **dict.fromkeys(("bloom", "gpt_neox", "falcon"), ("query_key_value",)),
    **dict.fromkeys(("RefinedWeb", "RefinedWebModel"), ("query_key_value",)),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    "deberta": ("in_proj",),
    "deberta-v2": ("key_proj", "value_proj"),
    "mt5": ("k", "v", "wi_1"),
    "opt": ("q_proj", "k_proj"),
    "t5": ("k", "v"),
}
IA3 = {name: (*other, *IA3_FEEDFORWARD[name]) for name, other in _IA3_OTHER.items()}

ADALORA: dict[str, tuple[str, ...] | str] = {
    **dict.fromkeys(("gptj", "gpt_neo", "llama", "llama4", "gemma", "gemma2", "gemma3_text"), QV),
    **dict.fromkeys(("qwen2", "qwen3"), QV),
    **dict.fromkeys(("bart", "opt"), ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    **{name: ATTENTION[name] for name in ("gpt2", "gpt_bigcode", "bloom", "gpt_neox", "bert")},
    **{name: ATTENTION[name] for name in ("deberta", "gemma4", "nemotron_h")},
    "deberta-v2": ("query_proj", "key_proj", "value_proj", "dense"),
    "mt5": ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
    "roberta": ("query", "key", "value", "dense"),
    "t5": ("q", "k", "v", "o", "wi", "wo"),
}

MLP_OF_GPT2 = {**ATTENTION, **dict.fromkeys(("gpt2", "gpt_bigcode"), ("mlp.c_proj",))}

VALUE: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("bart", "opt", "gptj", "gpt_neo", "llama", "llama4", "mistral", "mixtral"), ("v_proj",)),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "phi", "qwen2", "qwen3"), ("v_proj",)),
    **dict.fromkeys(("bert", "roberta"), ("value",)),
    **dict.fromkeys(("t5", "mt5"), ("v",)),
    "deberta-v2": ("value_proj",),
}

_AROUND = ("input_layernorm", "post_attention_layernorm")
_FEEDFORWARD = ("pre_feedforward_layernorm", "post_feedforward_layernorm")
NORMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "gemma"), (*_AROUND, "norm")),
    **dict.fromkeys(("gemma2", "gemma3_text"), (*_AROUND, *_FEEDFORWARD, "norm")),
    **dict.fromkeys(("bloom", "falcon"), (*_AROUND, "ln_f")),
    **dict.fromkeys(("qwen2", "qwen3"), ("post_attention_layernorm",)),
    **dict.fromkeys(("t5", "mt5"), ("layer_norm", "final_layer_norm")),
    "bart": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
    "blip-2": ("layernorm", "LayerNorm", "final_layer_norm", "self_attn_layer_norm"),
    "gpt2": ("ln_1", "ln_2", "ln_f"),
    "gptj": ("ln_1", "ln_f"),
    "llava": ("multi_modal_projector", *_AROUND, "norm", "embed_tokens", "lm_head"),
    "phi": ("input_layernorm", "final_layernorm"),
}

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj")
_QUERY_KEY_VALUE = ("query_key_value", "dense_4h_to_h")
OSF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "llama4", "mistral", "mixtral", "phi", "qwen2", "qwen3"), _LLAMA),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text"), _LLAMA),
    **dict.fromkeys(("bloom", "falcon", "gpt_neox"), _QUERY_KEY_VALUE),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn", "c_proj")),
    "gptj": ("q_proj", "v_proj", "k_proj", "out_proj", "fc_in", "fc_out"),
    "opt": ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"),
}
