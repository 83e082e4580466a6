"""What a teacher says about every training example, computed once instead of once an epoch.

A resting teacher (no dropout) says the same about an example in every epoch. A training that sees each example once has
nothing to gain.
"""

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

MEMORY = 4 * 2**30  # bytes, at most, for one teacher, unless told otherwise
ROW = "row"  # the column that tells an example's place in the data set
BATCH = 32


def size(teacher: PreTrainedModel, rows: Dataset) -> int:
    """Bytes of the float32 hidden states of all layers on all `rows`."""
    config = teacher.config
    return 4 * sum(map(len, rows["input_ids"])) * (config.num_hidden_layers + 1) * config.hidden_size


class TeacherOutputs:
    """Logits and hidden states of a teacher on a data set, without padding.

    Batches are taken in the order of length, the same ones every time, so that an interrupted training computes the
    same numbers when it goes on.

    Args:
        outputs: called with a batch, returns `logits` (B, classes) and `hidden_states`, L + 1 tensors (B, T, width).
        rows: the examples, with `input_ids`. collate: makes a padded batch of a list of them. device: of the batches.
    Call: `(rows, mask)`: places of the examples (B,), their padding mask (B, T) -> the outputs for that batch; at
        padding the hidden states are arbitrary.
    """

    def __init__(self, outputs, rows: Dataset, collate, device):
        lengths = torch.tensor([len(ids) for ids in rows["input_ids"]])
        self.starts = lengths.cumsum(0) - lengths
        self.logits, self.states = None, ()
        for places in lengths.argsort(stable=True).split(BATCH):
            batch = {name: x.to(device) for name, x in collate([rows[i] for i in places.tolist()]).items()}
            found = outputs(batch)
            if self.logits is None:
                self.logits = found.logits.new_empty(len(rows), found.logits.shape[1])
                self.states = [x.new_empty(int(lengths.sum()), x.shape[-1]) for x in found.hidden_states or ()]
            mask = batch["attention_mask"].bool()
            self.logits[places] = found.logits
            tokens = self._places(places, mask)[mask]
            for kept, new in zip(self.states, found.hidden_states or (), strict=True):
                kept[tokens] = new[mask]

    def _places(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B, T): where each real token of these examples lies in `states`; 0 for padding."""
        within = mask.long().cumsum(1) - 1
        return (self.starts.to(mask.device)[rows, None] + within) * mask

    def __call__(self, rows: Tensor, mask: Tensor) -> SequenceClassifierOutput:
        places = self._places(rows, mask)
        states = tuple(kept[places] for kept in self.states)
        return SequenceClassifierOutput(logits=self.logits[rows], hidden_states=states)
