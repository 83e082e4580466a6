"""Precisions and their errors, BitConfig and its way through config.json."""

import pytest

from bitlab import BitConfig, BitlabError
from bitlab.methods import parse_precision


@pytest.mark.parametrize(
    ("text", "bits"),
    [("W1A1", (1, 1)), ("w1a2", (1, 2)), (" W1A4 ", (1, 4)), ("W1A8", (1, 8)), ("W32A32", (32, 32))],
)
def test_precision(text, bits):
    assert parse_precision(text) == bits
    config = BitConfig.from_precision(text)
    assert (config.weight_bits, config.activation_bits) == bits
    assert config.precision == text.strip().upper()


@pytest.mark.parametrize("text", ["W3A1", "W1A3", "W0A0", "W2A1", "W1A16"])
def test_precision_that_does_not_exist(text):
    choices = "weights have 1 or 32 bits, activations 1, 2, 4, 8 or 32"
    with pytest.raises(BitlabError, match=f"{text} does not exist: {choices}"):
        parse_precision(text)


@pytest.mark.parametrize(
    "text", ["banana", "", "W1", "A1", "1-1-1", "W1A1A1", "W-1A1", "W1.0A1", None, 11, "W1A1\nW1A2"]
)
def test_no_precision(text):
    with pytest.raises(BitlabError, match="is no precision: write W"):
        parse_precision(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "bibert", "activation_bits": 2}, "W1A2 does not exist for bibert.*activations 1 or 32"),
        ({"method": "bibert", "weight_bits": 2}, "W2A1 does not exist for bibert: weights have 1 or 32 bits"),
        ({"method": "binarybert", "weight_bits": 4}, "W4A1 does not exist for binarybert: weights have 1, 2 or 32"),
        ({"method": "bit-released"}, "method 'bit-released' does not exist: choose bit, bibert or binarybert"),
        ({"embedding_bits": 4}, "embedding of 4 bits"),
        ({"weigth_bits": 1}, "'weigth_bits'"),
    ],
)
def test_bad_option(options, message):
    with pytest.raises(BitlabError, match=message):
        BitConfig(**options)


def test_embedding_follows_the_weights():
    assert BitConfig(1).word_embedding_bits == 1
    assert BitConfig(32).word_embedding_bits == 32
    assert BitConfig(1, embedding_bits=32).word_embedding_bits == 32
    assert BitConfig(32, embedding_bits=1).word_embedding_bits == 1


def test_dictionary_and_back():
    config = BitConfig(1, 2, embedding_bits=32, modules_to_not_convert=["pooler"], history="W32A32 -> W1A2")
    stored = config.to_dict()
    assert stored["quant_method"] == "bitlab"
    assert BitConfig.from_dict(stored).to_dict() == stored
    assert BitConfig(**stored).precision == "W1A2"


def test_whole_numbers_may_arrive_as_floats():
    config = BitConfig(1.0, 2.0, embedding_bits=32.0)
    bits = config.weight_bits, config.activation_bits, config.embedding_bits
    assert bits == (1, 2, 32) and all(type(number) is int for number in bits)
    assert '"activation_bits": 2,' in config.to_json_string(use_diff=False)
    with pytest.raises(BitlabError, match=r"W1\.5A1 does not exist"):
        BitConfig(1.5)


@pytest.mark.parametrize("names", [5, ["pooler", 5], {"pooler": 1}])
def test_modules_to_not_convert_are_names(names):
    with pytest.raises(BitlabError, match="give parts of module names"):
        BitConfig(modules_to_not_convert=names)
