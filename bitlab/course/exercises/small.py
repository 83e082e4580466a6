"""A small BERT, its sentences and its lessons: what the capstones' answers are judged on."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from bitlab.layers import BinaryLinear

VOCABULARY = 112
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def bert() -> BertForSequenceClassification:
    """A small float BERT, always the same, without dropout."""
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2205)
        return BertForSequenceClassification(BertConfig(vocab_size=VOCABULARY, **SMALL, **still)).eval()


def batches(number: int = 60) -> list[dict[str, Tensor]]:
    """Sentences of random tokens; the label is whether the first one has a high number."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, VOCABULARY, (number, 16, 8), generator=generator)
    return [{"input_ids": i, "attention_mask": torch.ones_like(i), "labels": (i[:, 0] > 58).long()} for i in ids]


def binary_layers(model: nn.Module) -> set[str]:
    """Names of a model's binary linear layers."""
    return {name for name, module in model.named_modules() if isinstance(module, BinaryLinear)}


def no_classifier(model, tokens: int) -> str | None:
    """What keeps a model from being a float one that tells two kinds of sentences of so many tokens; None if nothing.

    Two places more are wanted, for families that leave the first two out.
    """
    if not isinstance(model, PreTrainedModel):
        return f"expected a model of transformers, got {type(model).__name__}"
    if binary_layers(model):
        return "expected a model in full precision, got one that is binary already"
    words = model.get_input_embeddings().num_embeddings
    if words < VOCABULARY:
        return f"expected a word vector for each of the {VOCABULARY} tokens, got {words}"
    if (positions := model.config.max_position_embeddings) < tokens + 2:
        return f"expected {tokens + 2} positions or more, got {positions}"
    output = model.eval()(input_ids=torch.full((3, tokens), VOCABULARY - 1))
    shape = tuple(output.logits.shape) if "logits" in output else "no logits"
    return None if shape == (3, 2) else f"expected logits of shape (3, 2) for three sentences, got {shape}"


def logit_error(student: nn.Module, teacher: nn.Module, batch: dict, learns: bool = False) -> Tensor:
    """Mean squared difference of the logits, where the teacher may learn along."""
    with torch.set_grad_enabled(learns):
        said = teacher(**batch).logits
    return F.mse_loss(student(**batch).logits, said)


def taught(student: nn.Module, teacher: nn.Module, batches: list, rate: float = 2e-3, along: bool = False) -> None:
    """One step of Adam on the `logit_error` of each batch, where the teacher may learn along."""
    optimizer = torch.optim.Adam([*student.parameters(), *(teacher.parameters() if along else ())], lr=rate)
    for batch in batches:
        logit_error(student, teacher, batch, along).backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def distance(student: nn.Module, teacher: nn.Module, batches: list) -> float:
    """Mean of `logit_error` over batches, of a student in eval mode."""
    training = student.training
    found = sum(logit_error(student.eval(), teacher, batch).item() for batch in batches) / len(batches)
    student.train(training)
    return found
