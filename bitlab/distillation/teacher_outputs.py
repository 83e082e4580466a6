"""What a teacher says about every training example, computed once instead of once an epoch.

A resting teacher (no dropout) says the same whenever it is given the same. So its answers are kept under what it was
given: everything that a batch holds of an example, up to its last real token. Where a collator makes another example
of it (masked words, padding on the left), nothing is found and the teacher is asked.

In memory an answer is as large as the teacher's hidden states, float32: 4 (L + 1) width bytes a token. For a
MiniLM (L = 6, width 384) that is 11 KB, for the 5,749 pairs of STS-B with their 27 tokens 1.7 GB.
"""

import hashlib
from collections.abc import Callable, Mapping

import torch
from datasets import Dataset
from torch import Tensor
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput

MEMORY = 4 * 2**30  # bytes, at most, for one teacher, unless told otherwise
PLACES = "_bitlab_places"  # where a batch's examples lie among the answers
BATCH = 32

Batch = Mapping[str, Tensor]


def padding_mask(batch: Batch) -> Tensor:
    """A batch's `attention_mask`, 1 for a real token and 0 for padding; all ones where it has none. (..., T)"""
    if batch.get("attention_mask") is not None:
        return batch["attention_mask"]
    tokens = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"][..., 0]
    return torch.ones_like(tokens, dtype=torch.long)


def keys(batch: Batch) -> list[bytes]:
    """What tells each example of a batch (B, T) from others: a hash of all that a model is given of it."""
    mask = padding_mask(batch).ne(0)
    length = mask.shape[1]
    ends = (mask * torch.arange(1, length + 1)).amax(1)  # one past the last real token
    arrays = [(x.dim() > 1 and x.shape[1] == length, x.numpy()) for x in batch.values() if isinstance(x, Tensor)]
    found = []
    for row, end in enumerate(ends.tolist()):
        parts = (array[row, :end] if by_token else array[row] for by_token, array in arrays)
        found.append(hashlib.blake2b(b"".join(part.tobytes() for part in parts), digest_size=16).digest())
    return found


def with_places(collate: Callable, places: dict[bytes, int], rows: list[dict]) -> Batch:
    """A collator's batch of rows, with their places among the answers under `PLACES` if those to all of them are kept.

    It runs where batches are made, so that nothing has to be fetched back from a GPU.

    Args:
        places: of the examples that have an answer, by `keys`.
    """
    batch = collate(rows)
    found = [places.get(key) for key in keys(batch)]
    if None not in found:
        batch[PLACES] = torch.tensor(found)
    return batch


class KeptOutputs:
    """A teacher's logits and hidden states on many examples, without padding: what `kept_outputs` returns.

    Attributes:
        places: of the examples, by `keys`.

    Call:
        a batch (B, T) -> the outputs for it: looked up where it has its `PLACES`, else the teacher's own. At padding
        the hidden states are arbitrary.
    """

    def __init__(self, ask: Callable[[Batch], ModelOutput], first: ModelOutput, examples: int, tokens: int):
        self.ask, self.places, self.count = ask, {}, 0
        self.starts = torch.zeros(examples + 1, dtype=torch.long, device=first.logits.device)
        self.logits = first.logits.new_empty(examples, first.logits.shape[-1])
        self.states = [x.new_empty(tokens, x.shape[-1]) for x in first.get("hidden_states", ())]

    def add(self, names: list[bytes], mask: Tensor, found: ModelOutput) -> None:
        """Keep what the teacher said about the examples of these names, whose real tokens `mask` (B, T) tells."""
        old, new = self.count, self.count + len(names)
        self.places |= {name: old + number for number, name in enumerate(names)}
        self.count = new
        self.starts[old + 1 : new + 1] = self.starts[old] + mask.sum(1).cumsum(0)
        self.logits[old:new] = found.logits
        for kept, states in zip(self.states, found.get("hidden_states", ()), strict=True):
            kept[self.starts[old] : self.starts[new]] = states[mask]

    def __call__(self, batch: Batch) -> ModelOutput:
        if PLACES not in batch:
            return self.ask(batch)
        places, mask = batch[PLACES], padding_mask(batch).ne(0)
        tokens = self.starts[places, None] + (mask.cumsum(1) - 1).clamp(min=0)
        states = tuple(kept[tokens] for kept in self.states)
        return SequenceClassifierOutput(logits=self.logits[places], hidden_states=states)


def kept_outputs(
    ask: Callable[[Batch], ModelOutput], rows: Dataset, collate: Callable, device: torch.device, memory: int = MEMORY
) -> KeptOutputs | None:
    """What a teacher says about all `rows`, if it fits and will be found again.

    Batches are taken in the order of length, the same ones every time, so that an interrupted training computes the
    same numbers when it goes on.

    Args:
        ask: called with a batch, returns `logits` and, if wanted, `hidden_states`, L + 1 tensors (B, T, width).
        rows: the examples, with `input_ids`.
        collate: makes a padded batch of a list of them.
        device: of the batches.
        memory: bytes at most.

    Returns:
        the outputs; or None if they need more memory, if `collate` makes another batch of the same rows each time, or
        if the teacher has another head than one decision for each example.
    """

    def batch_of(numbers: Tensor) -> Batch:
        return collate([rows[i] for i in numbers.tolist()])

    lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
    order = lengths.argsort(stable=True).split(BATCH)
    again = batch_of(order[0])
    if padding_mask(again).dim() != 2 or keys(again) != keys(batch_of(order[0])):
        return None
    kept = None
    for numbers in order:
        batch = batch_of(numbers)
        found = ask({name: x.to(device) for name, x in batch.items()})
        if kept is None:
            other_head = "logits" not in found or found.logits.dim() != 2
            if other_head or _size(found, len(rows), int(lengths.sum())) > memory:
                return None
            kept = KeptOutputs(ask, found, len(rows), int(lengths.sum()))
        kept.add(keys(batch), padding_mask(batch).ne(0).to(device), found)
    return kept


def _size(found: ModelOutput, examples: int, tokens: int) -> int:
    """Bytes of such outputs on so many examples and tokens."""
    states = sum(x.shape[-1] * x.element_size() for x in found.get("hidden_states", ()))
    return tokens * states + examples * found.logits.shape[-1] * found.logits.element_size()
