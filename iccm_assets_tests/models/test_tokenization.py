from __future__ import annotations

from iccm_assets.models.tokenization import IGNORE_INDEX, SEPARATOR, encode_example, encode_source, pad
from iccm_assets_tests.factories.tiny_models import byte_tokenizer

SEQ = byte_tokenizer(ends_source=True)
CAUSAL = byte_tokenizer(ends_source=False)
END = 1


def test_a_seq2seq_target_is_the_text_and_the_end_token() -> None:
    row = encode_example(SEQ, "seq2seq", "x = 1", "It shall run.", 100, 100)
    assert SEQ.decode(row.input_ids, skip_special_tokens=True) == "x = 1"
    assert row.input_ids[-1] == END
    assert SEQ.decode(row.labels[:-1]) == "It shall run."
    assert row.labels[-1] == END


def test_a_causal_example_starts_with_exactly_the_prompt_of_generation() -> None:
    prompt = encode_source(CAUSAL, "causal", "x = 1", 100)
    row = encode_example(CAUSAL, "causal", "x = 1", "It shall run.", 100, 100)
    assert row.input_ids[: len(prompt)] == prompt
    assert row.labels[: len(prompt)] == [IGNORE_INDEX] * len(prompt)
    assert row.labels[len(prompt) :] == row.input_ids[len(prompt) :]
    assert CAUSAL.decode(prompt, skip_special_tokens=True) == "x = 1" + SEPARATOR
    assert row.labels[-1] == END


def test_truncation_keeps_the_separator_and_the_end_token() -> None:
    row = encode_example(CAUSAL, "causal", "y" * 500, "z" * 500, 60, 40)
    prompt = [token for token, label in zip(row.input_ids, row.labels, strict=True) if label == IGNORE_INDEX]
    assert len(prompt) == 60
    assert CAUSAL.decode(prompt).endswith(SEPARATOR)
    assert len(row.input_ids) == 100
    assert row.labels[-1] == END
    assert len(encode_example(SEQ, "seq2seq", "y" * 500, "z", 60, 40).input_ids) == 60


def test_an_empty_source_is_at_least_one_token() -> None:
    assert encode_source(SEQ, "seq2seq", "", 10)
    assert encode_source(CAUSAL, "causal", "", 100)


def test_padding_goes_left_or_right() -> None:
    assert pad([[1], [2, 3]], 0) == [[1, 0], [2, 3]]
    assert pad([[1], [2, 3]], 0, left=True) == [[0, 1], [2, 3]]
