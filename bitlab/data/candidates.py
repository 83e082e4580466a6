"""Words of a sentence, and what may stand in their place: word vectors and a masked language model say it.

What a word is: two letters or digits or more, the first a letter, with hyphens and apostrophes inside ("well-known",
"don't"); a possessive 's stays behind. Punctuation, numbers and single letters are no words and are never touched.
Word vectors are looked up in lower case, as GloVe is, and a replacement takes the case of the word it replaces.

Source: TinyBERT (Jiao et al., 2019, arXiv 1909.10351), section 3.2 and algorithm 1.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bitlab.errors import BitlabError

WORD = re.compile(r"(?<!\w)(?<![^\W_]['’])[^\W\d_][^\W_]+(?:[-'’](?!s\b)[^\W_]+)*")
COSINES = 2**26  # computed at once: 256 MiB
TOKENS = 2048  # in one call of the masked language model: more is no faster on a CPU
SPARE = 4  # times as many predictions are asked for as candidates wanted: pieces and the word itself fall away


def replaceable(sentence: str) -> list[re.Match]:
    """The sentence's words that are no stop words (scikit-learn's English list), each with its place."""
    return [word for word in WORD.finditer(sentence) if word[0].lower() not in ENGLISH_STOP_WORDS]


def in_case_of(original: str, word: str) -> str:
    """`word` in capitals or with a capital where `original` has them."""
    if original.isupper():
        return word.upper()
    return word[0].upper() + word[1:] if original[0].isupper() else word


class WordVectors:
    """Nearest words by the cosine of their vectors.

    Args:
        words: in lower case, no two equal.
        matrix: (words, width) float32, rows of length 1.
        digest: of the file.
    """

    def __init__(self, words: list[str], matrix: torch.Tensor, digest: str):
        self.words, self.matrix, self.digest = words, matrix, digest
        self.place = {word: place for place, word in enumerate(words)}

    def neighbours(self, needed: Iterable[str], count: int) -> dict[str, list[str]]:
        """The `count` nearest other words of each needed word that has a vector, the nearest first."""
        known = sorted({word.lower() for word in needed} & self.place.keys())
        count = min(count, len(self.words) - 1)
        size = max(1, COSINES // len(self.words))
        found = {}
        for start in range(0, len(known), size):
            batch = known[start : start + size]
            places = torch.tensor([self.place[word] for word in batch])
            cosines = self.matrix[places] @ self.matrix.T
            cosines[torch.arange(len(batch)), places] = -torch.inf
            for word, nearest in zip(batch, cosines.topk(count).indices.tolist(), strict=True):
                found[word] = [self.words[place] for place in nearest]
        return found


def read_vectors(path: str | PathLike) -> WordVectors:
    """Read a GloVe text file: a word and its numbers on each line, separated by single spaces.

    A first line of two whole numbers (word2vec's and fastText's header) is left out, and so are entries that are no
    words in our sense, entries that differ from an earlier one in case only, and vectors of length 0.

    Raises:
        BitlabError: with the line, where a vector has another width than the first or holds anything but finite
            numbers; also for no file, an empty one, and one with fewer than two words.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise BitlabError(f"no word vectors at {str(path)!r}: give a GloVe text file, one word and its numbers a line")
    words: dict[str, np.ndarray] = {}
    width = None
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for number, raw in enumerate(file, 1):
            digest.update(raw)
            fields = _fields(f"{path}, line {number}", raw)
            if number == 1 and len(fields) == 2 and all(field.isdigit() for field in fields):
                continue
            width = width or len(fields) - 1
            word, vector = _vector(f"{path}, line {number}", fields, width)
            if WORD.fullmatch(word) and vector.any():
                words.setdefault(word.lower(), vector)
    if len(words) < 2:
        raise BitlabError(f"{path} holds {len(words)} words with vectors: give a GloVe text file")
    matrix = torch.nn.functional.normalize(torch.from_numpy(np.stack(list(words.values()))))
    return WordVectors(list(words), matrix, digest.hexdigest())


def _fields(where: str, raw: bytes) -> list[str]:
    try:
        return raw.decode("utf-8").rstrip(" \r\n").split(" ")
    except UnicodeDecodeError as error:
        raise BitlabError(f"{where}: not UTF-8 text (byte {error.start + 1})") from None


def _vector(where: str, fields: list[str], width: int) -> tuple[str, np.ndarray]:
    """The line's word and its vector. The largest GloVe has words with spaces, like ". . .": that is no other width."""
    if not width or len(fields) <= width or any(map(_is_number, fields[1:-width])):
        expected = f"{width}, as on the first line" if width else "a word and its vector"
        raise BitlabError(f"{where}: {len(fields) - 1} numbers, expected {expected}")
    try:
        vector = np.array(fields[-width:], dtype=np.float32)
    except ValueError:
        vector = np.full(width, np.nan)
    if not np.isfinite(vector).all():
        wrong = next(text for text in fields[-width:] if not _is_number(text))
        raise BitlabError(f"{where}: {wrong!r} is no number")
    return " ".join(fields[:-width]), vector


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(np.float32(text)))
    except ValueError:
        return False


class MaskedLM:
    """What a masked language model puts in a word's place, for the words that are one piece of its vocabulary."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel):
        self.tokenizer = tokenizer
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._whole: dict[int, str | None] = {}
        self._single: dict[str, bool] = {}

    def digest(self) -> str:
        """Of weights, configuration and vocabulary: two models with one digest predict the same."""
        digest = hashlib.sha256()
        config = {k: v for k, v in self.model.config.to_dict().items() if k[0] != "_" and k != "transformers_version"}
        backend = getattr(self.tokenizer, "backend_tokenizer", None)  # says more than the vocabulary: case, accents
        rules = json.loads(backend.to_str()) if backend else {"vocabulary": self.tokenizer.get_vocab()}
        rules = {k: v for k, v in rules.items() if k not in ("truncation", "padding")}  # left there by the last call
        digest.update(json.dumps([config, rules], sort_keys=True, default=str).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
        return digest.hexdigest()

    def is_single_piece(self, word: str) -> bool:
        """Whether the vocabulary has the word, as it stands inside a sentence, in one piece."""
        if word not in self._single:
            pieces = self._pieces(word)
            self._single[word] = len(pieces) == 1 and pieces[0] != self.tokenizer.unk_token_id
        return self._single[word]

    def candidates(self, sentences: Iterable[str], count: int) -> dict[tuple[str, int], list[str]]:
        """For each single-piece word of each sentence, by (sentence, first character): its most likely replacements.

        The model reads the sentence with the word masked, and then the sentence as it is, for context. The word
        itself, special tokens and pieces of words are no replacements. A word whose mask falls behind the model's
        longest input has none.
        """
        places = [
            (sentence, word)
            for sentence in sorted(set(sentences))
            for word in replaceable(sentence)
            if self.is_single_piece(word[0])
        ]
        found = {}
        for (sentence, word), pieces in zip(places, self._predict(places, SPARE * count), strict=True):
            fits = [text for text in map(self._whole_word, pieces) if text and text.lower() != word[0].lower()]
            found[sentence, word.start()] = fits[:count]
        return found

    @torch.inference_mode()
    def _predict(self, places: list[tuple[str, re.Match]], count: int) -> list[list[int]]:
        """The `count` most likely pieces at each place, the most likely first."""
        mask = self.tokenizer.mask_token
        masked = [f"{text[: word.start()]}{mask}{text[word.end() :]}" for text, word in places]
        inputs = [
            self.tokenizer(text, original, truncation=True, max_length=self.tokenizer.model_max_length)
            for text, (original, _) in zip(masked, places, strict=True)
        ]
        found: list[list[int]] = [[]] * len(places)
        for batch in _batches([len(row["input_ids"]) for row in inputs]):
            rows = [inputs[i] for i in batch]  # on the right, or what a model predicts hangs on its neighbours' lengths
            padded = self.tokenizer.pad(rows, padding_side="right", return_tensors="pt").to(self.model.device)
            masks = padded["input_ids"] == self.tokenizer.mask_token_id
            top = self._logits(padded, masks.int().argmax(1)).topk(min(count, len(self.tokenizer))).indices
            for i, is_there, pieces in zip(batch, masks.any(1).tolist(), top.tolist(), strict=True):
                found[i] = pieces if is_there else []
        return found

    def _logits(self, padded: dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
        """(sentences, vocabulary) at one place of each: the last layer, a third of the work, is spared the others."""
        rows = torch.arange(len(at))
        last = self.model.get_output_embeddings()
        hook = last and last.register_forward_pre_hook(lambda module, inputs: (inputs[0][rows, at],))
        try:
            logits = self.model(**padded).logits
        finally:
            if hook:
                hook.remove()
        return logits if logits.dim() == 2 else logits[rows, at]  # MobileBERT's last layer is called by no forward

    def _whole_word(self, piece: int) -> str | None:
        """The piece's text if it is a word by itself, None if it is special or a part of words."""
        if piece not in self._whole:
            text = self.tokenizer.decode([piece]).strip()
            self._whole[piece] = text if WORD.fullmatch(text) and self._pieces(text) == [piece] else None
        return self._whole[piece]

    def _pieces(self, word: str) -> list[int]:
        # the space is for vocabularies that mark a word's beginning by it (RoBERTa's); BERT's drop it
        return self.tokenizer(f" {word}", add_special_tokens=False)["input_ids"]


def _batches(lengths: list[int]) -> Iterable[list[int]]:
    """Places in order of length, in batches of at most TOKENS tokens, padding counted in."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and (len(batch) + 1) * lengths[place] > TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
