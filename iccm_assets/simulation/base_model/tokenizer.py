"""The base model's tokenizer: byte-level BPE with single digits, trained on the simulation's texts (X2).

Words never include a space, so that an identifier is the same token in code and in requirements and copying
it is one step; a fixed phrase of the requirements language may become one token.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 1024
PAD, EOS, UNK = "<pad>", "</s>", "<unk>"
_RELATIONS = (
    r"(?:is less than|is at most|is more than|is at least|is not|is longer than|is shorter than"
    r"|is between|is empty|starts with|ends with|contains|is)"
)
_PHRASES = (
    r"The function `",
    r"The class `",
    r"\.? ?The method `",
    r"`? shall take nothing(?:\. )?",
    r"`? and keep the ",
    r"[,.]? ?[Ii]t shall set its `",
    r"`? to (?:an empty list|its `|`)",
    r"[,.]? ?[Ii]t shall append `",
    r"`? (?:is more than|is at least|is less than) its `",
    r"the size of (?:its )?`",
    r"the (?:first|last) item (?:taken from|of) (?:its )?`",
    r"self\.",
    r"`? shall take `?",
    r"(?:`, `|` and `| and )",
    r"`? and return the ",
    r"(?:\. )?When (?:the size of )?(?:its )?`",
    r",? (?:it|Otherwise it|It) shall (?:return |raise )?",
    r"\. (?:Otherwise it|It) shall (?:return |raise )?",
    rf"`? that (?:{_RELATIONS} )?",
    rf"`? (?:{_RELATIONS}|plus|minus|times) `?",
    r"`? ?(?:stripped|in lower case|in upper case|capitalised|sorted|reversed|without repeats)",
    r"`? (?:with|cut to|in front|at the end|replaced by|characters|items) ?",
    r",? (?:then cut to|then with|then|and at most|at least|at most|or) ",
    r"(?:whether|each item of|the (?:count|sum|largest|smallest) of each item of) `",
    r" if there is none\.?",
)
PATTERN = "|".join((*_PHRASES, "'", r"[A-Za-z]+", r"[0-9]", r"[^'A-Za-z0-9]+"))


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of ``VOCABULARY_SIZE`` tokens that ends every text with ``</s>``."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token=None))
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )
