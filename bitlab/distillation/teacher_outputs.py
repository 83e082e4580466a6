"""What a teacher says about every training example, computed once instead of once an epoch.

A resting teacher (no dropout) says the same about an example in every epoch, if its batch holds the example as it is
in the data set: a collator that masks words, or changes them otherwise, makes another example of it. A training that
sees each example once has nothing to gain.
"""

from collections.abc import Callable, Mapping

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

MEMORY = 4 * 2**30  # bytes, at most, for one teacher, unless told otherwise
ROW = "_bitlab_row"  # the column that tells an example's place in the data set
BATCH = 32


def size(teacher: PreTrainedModel, rows: Dataset) -> int:
    """Bytes of the float32 hidden states of all layers on all `rows`."""
    config = teacher.config
    return 4 * sum(map(len, rows["input_ids"])) * (config.num_hidden_layers + 1) * config.hidden_size


def padding_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """A batch's `attention_mask`, 1 for a real token and 0 for padding; all ones where it has none. (..., T)"""
    if batch.get("attention_mask") is not None:
        return batch["attention_mask"]
    tokens = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"][..., 0]
    return torch.ones_like(tokens, dtype=torch.long)


def collated(collate: Callable, rows: list[dict]) -> tuple[Mapping[str, Tensor], bool]:
    """A collator's batch, and whether it holds just the tokens of these rows, each followed by padding or nothing."""
    # looked at before the collator, which may write into its rows
    own = [torch.as_tensor(row["input_ids"]).tolist() for row in rows]
    real = [torch.as_tensor(row.get("attention_mask", [1] * len(ids))).tolist() for row, ids in zip(rows, own)]
    batch = collate(rows)
    if "input_ids" not in batch or len(batch["input_ids"]) != len(rows):
        return batch, False
    found = zip(batch["input_ids"].tolist(), padding_mask(batch).tolist(), own, real, strict=True)
    same = (a[: len(ids)] == ids and mask == r + [0] * (len(a) - len(ids)) for a, mask, ids, r in found)
    return batch, all(same)


class NamingCollator:
    """A collator's batches, with the places of their examples under `ROW` where the examples are in them as they are.

    Args: collate: the collator; it does not see the column `ROW`.
    """

    def __init__(self, collate: Callable):
        self.collate = collate

    def __call__(self, rows: list[dict]) -> Mapping[str, Tensor]:
        if any(ROW not in row for row in rows):  # rows to evaluate on
            return self.collate(rows)
        rows = [dict(row) for row in rows]
        places = torch.tensor([row.pop(ROW) for row in rows])
        batch, unchanged = collated(self.collate, rows)
        if unchanged:
            batch[ROW] = places
        return batch


class TeacherOutputs:
    """Logits and hidden states of a teacher on a data set, without padding.

    Batches are taken in the order of length, the same ones every time, so that an interrupted training computes the
    same numbers when it goes on.

    Args:
        outputs: called with a batch, returns `logits` (B, classes) and `hidden_states`, L + 1 tensors (B, T, width).
        rows: the examples, with `input_ids`. collate: makes a padded batch of a list of them. device: of the batches.
    Attributes: complete: False if the collator changed an example, at which this gave up.
    Call: `(rows, mask)`: places of the examples (B,), their padding mask (B, T) -> the outputs for that batch; at
        padding the hidden states are arbitrary.
    """

    def __init__(self, outputs, rows: Dataset, collate, device):
        lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
        self.starts = lengths.cumsum(0) - lengths
        self.logits, self.states, self.complete = None, (), False
        for places in lengths.argsort(stable=True).split(BATCH):
            batch, unchanged = collated(collate, [rows[i] for i in places.tolist()])
            if not unchanged:
                return
            batch = {name: x.to(device) for name, x in batch.items()}
            found = outputs(batch)
            if self.logits is None:
                self.logits = found.logits.new_empty(len(rows), found.logits.shape[1])
                self.states = [x.new_empty(int(lengths.sum()), x.shape[-1]) for x in found.hidden_states or ()]
            mask = padding_mask(batch).bool()
            self.logits[places] = found.logits
            tokens = self._places(places, mask)[mask]
            for kept, new in zip(self.states, found.hidden_states or (), strict=True):
                kept[tokens] = new[mask]
        self.complete = True

    def _places(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B, T): where each real token of these examples lies in `states`; 0 for padding."""
        within = mask.long().cumsum(1) - 1
        return (self.starts.to(mask.device)[rows, None] + within) * mask

    def __call__(self, rows: Tensor, mask: Tensor) -> SequenceClassifierOutput:
        places = self._places(rows, mask)
        states = tuple(kept[places] for kept in self.states)
        return SequenceClassifierOutput(logits=self.logits[rows], hidden_states=states)
