"""Sizes of well-known encoders, for models with random weights on a machine that cannot ask the Hub."""

from __future__ import annotations

from transformers import BertConfig, DistilBertConfig, ElectraConfig, PreTrainedConfig, RobertaConfig


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
_ELECTRA_SMALL = {"embedding_size": 128, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
_ELECTRA_BASE = {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
_MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}

# owner, name, config class, what differs from the defaults of the class
_KNOWN = (
    ("google-bert", "bert-base-uncased", BertConfig, {"vocab_size": 30522}),
    ("google-bert", "bert-base-cased", BertConfig, {"vocab_size": 28996}),
    ("google-bert", "bert-large-uncased", BertConfig, {"vocab_size": 30522, **_LARGE}),
    ("google-bert", "bert-large-cased", BertConfig, {"vocab_size": 28996, **_LARGE}),
    ("FacebookAI", "roberta-base", RobertaConfig, _ROBERTA),
    ("FacebookAI", "roberta-large", RobertaConfig, {**_ROBERTA, **_LARGE}),
    ("distilbert", "distilbert-base-uncased", DistilBertConfig, {"vocab_size": 30522}),
    ("google", "electra-small-discriminator", ElectraConfig, _ELECTRA_SMALL),
    ("google", "electra-base-discriminator", ElectraConfig, _ELECTRA_BASE),
    ("google", "electra-large-discriminator", ElectraConfig, {"embedding_size": 1024, **_LARGE}),
    ("sentence-transformers", "all-MiniLM-L6-v2", BertConfig, {"vocab_size": 30522, **_MINILM}),
)


def known_config(name: str) -> PreTrainedConfig | None:
    """A fresh config of the Hub model `name`, with or without its owner; `None` for a model not in the table."""
    for owner, short, config_class, values in _KNOWN:
        if name in (short, f"{owner}/{short}"):
            return config_class(**values)
    return None
