"""Encoders small enough for a test, of every architecture and head that bitlab converts.

Where a test holds two ways of computing a binary model to each other, it does so in float64 (`model.double()`): in
float32 the last bit of a sum, which is another one on another processor, may lie at a threshold and decide a code.
"""

import torch
from transformers import (
    AlbertConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    RobertaConfig,
)

from bitlab.layers import Binarizer, ElasticBinarizer

WORDS = 60
SIZES = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
DISTILBERT_SIZES = {
    "vocab_size": WORDS,
    "dim": 16,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 32,
    "max_position_embeddings": 32,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_classif_dropout": 0.0,
    "qa_dropout": 0.0,
}
CONFIGS = {
    "bert": lambda **options: BertConfig(**SIZES, **options),
    "roberta": lambda **options: RobertaConfig(**SIZES, **options),
    # a narrower embedding, as in the released small ELECTRA: it adds one linear layer, embeddings_project
    "electra": lambda **options: ElectraConfig(**SIZES, embedding_size=8, **options),
    "distilbert": lambda **options: DistilBertConfig(**DISTILBERT_SIZES, **options),
}
OTHERS = {
    "mpnet": lambda **options: MPNetConfig(**SIZES, **options),
    # one layer that is run twice, behind an embedding that is narrower
    "albert": lambda **options: AlbertConfig(**SIZES, embedding_size=8, classifier_dropout_prob=0.0, **options),
}
HEADS = {
    "sequence": AutoModelForSequenceClassification,
    "span": AutoModelForQuestionAnswering,
    "token": AutoModelForTokenClassification,
    "bare": AutoModel,
}


def tiny(architecture="bert", head="sequence", seed=0, **options):
    """A float model in eval mode, the same every time; LayerNorms and biases are not left at 1 and 0."""
    torch.manual_seed(seed)
    model = HEADS[head].from_config((CONFIGS | OTHERS)[architecture](**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            spread = 0.3 if "embeddings" in name or parameter.dim() == 2 else 0.1
            parameter.add_(spread * torch.randn_like(parameter))
    return model.eval()


def batch(size=3, length=9, seed=0, pad=0):
    """Random word ids of `size` sentences; the last `pad` places of each are padding."""
    ids = torch.randint(3, WORDS, (size, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(size, length, dtype=torch.long)
    if pad:
        ids[:, -pad:], mask[:, -pad:] = 1, 0
    return {"input_ids": ids, "attention_mask": mask}


def outputs(model, **inputs):
    """The model's outputs in eval mode as a tuple of tensors."""
    model.eval()
    with torch.no_grad():
        return tuple(value for value in model(**inputs).values() if isinstance(value, torch.Tensor))


def binarizers(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Binarizer)}


def warm_up(model, **inputs):
    """Initialise every alpha from one batch, then move alphas and betas off their first values."""
    model.train()
    with torch.no_grad():
        model(**(inputs or batch()))
        generator = torch.Generator().manual_seed(7)
        for module in binarizers(model).values():
            if isinstance(module, ElasticBinarizer):  # BiBERT's have none
                module.alpha *= 1.1
            if getattr(module, "beta", None) is not None:
                module.beta += 0.05 * torch.randn(module.beta.shape, generator=generator)
    return model.eval()


def assert_same_gradients(found, expected):
    """To the rounding of the largest of their kind (alpha, beta, weight): one alone may be a sum that cancels."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        kind = name.rpartition(".")[2]
        size = max(g.abs().max().item() for other, g in expected.items() if other.rpartition(".")[2] == kind)
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-7 * size, msg=lambda m, n=name: f"{n}: {m}")
