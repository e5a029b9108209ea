from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from iccm_assets.errors import InputError
from iccm_assets.training.dataset import (
    Dataset,
    DatasetStore,
    TrainingExample,
    compose_dataset,
    load_rehearsal,
    read_dataset,
)

NEW = [TrainingExample(i, f"new source {i}", f"It shall {i}.", "new", "pool") for i in range(1, 61)]
SAMPLE = [
    TrainingExample(None, f"old source {i}", f"It shall not {i}.", "rehearsal", f"sample/{'abc'[i % 3]}")
    for i in range(300)
]
PINNED = [
    TrainingExample(1000 + i, f"learned source {i}", f"It did {i}.", "rehearsal", "pinned") for i in range(40)
]


def compose(**changes: object) -> Dataset:
    arguments = {"rehearsal_fraction": 0.75, "validation_share": 0.1, "seed": 5, **changes}
    return compose_dataset(NEW, SAMPLE, PINNED, **arguments)  # type: ignore[arg-type]


def test_rehearsal_is_the_configured_share_of_all_examples() -> None:
    counts = compose().counts
    assert counts["origin pool"] == 60
    assert counts["origin pinned"] + counts["origin sample"] == 180
    assert compose(rehearsal_fraction=0.5).counts["origin pool"] == 60
    assert len(compose(rehearsal_fraction=0.5).examples) == 120
    assert len(compose(rehearsal_fraction=0.0).examples) == 60


def test_pinned_examples_are_up_to_half_of_the_rehearsal_and_the_sample_is_drawn_evenly() -> None:
    dataset = compose(rehearsal_fraction=0.5)
    origins = Counter(example.origin for example in dataset.examples)
    assert origins["pinned"] == 30
    assert [origins[f"sample/{name}"] for name in "abc"] == [10, 10, 10]


def test_other_new_examples_draw_other_rehearsal_so_that_a_large_sample_is_replayed_in_turn() -> None:
    settings = {"rehearsal_fraction": 0.8, "validation_share": 0.1}
    weeks = [compose_dataset(NEW[i : i + 10], SAMPLE, [], seed=5, **settings) for i in range(0, 60, 10)]
    draws = [{row.source_code for row in week.examples if row.conversation_id is None} for week in weeks]
    assert [len(draw) for draw in draws] == [40] * 6
    assert len(set.union(*draws)) > 150  # of 300; the same 40 would come again if only the seed decided
    assert compose().examples == compose().examples


def test_when_one_source_of_rehearsal_is_exhausted_the_other_fills_up() -> None:
    origins = Counter(
        example.origin
        for example in compose_dataset(
            NEW, [], PINNED, rehearsal_fraction=0.4, validation_share=0.1, seed=1
        ).examples
    )
    assert origins == {"pool": 60, "pinned": 40}
    few = compose_dataset(NEW, SAMPLE[:5], [], rehearsal_fraction=0.9, validation_share=0.1, seed=1)
    assert few.counts["origin sample"] == 5
    alone = compose_dataset(NEW, [], [], rehearsal_fraction=0.9, validation_share=0.1, seed=1)
    assert alone.counts["rehearsal"] == 0


def test_a_tenth_of_each_kind_and_at_least_one_example_is_for_validation() -> None:
    validation = compose().with_roles("validation")
    assert Counter(example.origin == "pool" for example in validation) == {True: 6, False: 18}
    assert (
        len(
            compose_dataset(NEW[:3], [], [], rehearsal_fraction=0, validation_share=0.1, seed=1).with_roles(
                "validation"
            )
        )
        == 1
    )


def test_the_digest_does_not_depend_on_the_order_of_the_rows() -> None:
    shuffled = [list(rows) for rows in (NEW, SAMPLE, PINNED)]
    for rows in shuffled:
        random.Random(1).shuffle(rows)
    again = compose_dataset(*shuffled, rehearsal_fraction=0.75, validation_share=0.1, seed=5)
    assert again == compose()
    assert again.digest == compose().digest


def test_the_digest_depends_on_the_seed_and_every_text() -> None:
    digest = compose().digest
    assert compose(seed=6).digest != digest
    changed = [*NEW[:-1], TrainingExample(60, NEW[-1].source_code, "It shall change.", "new", "pool")]
    assert (
        compose_dataset(changed, SAMPLE, PINNED, rehearsal_fraction=0.75, validation_share=0.1, seed=5).digest
        != digest
    )


def test_the_same_pair_is_never_trained_on_twice() -> None:
    copies = [
        TrainingExample(
            5000 + example.conversation_id, example.source_code, example.requirements, "new", "pool"
        )
        for example in NEW
    ]
    rehearsed = [
        TrainingExample(None, example.source_code, example.requirements, "rehearsal", "sample/a")
        for example in NEW
    ]
    dataset = compose_dataset(
        NEW + copies, rehearsed + SAMPLE, [], rehearsal_fraction=0.5, validation_share=0.1, seed=1
    )
    hashes = [example.content_hash for example in dataset.examples]
    assert len(hashes) == len(set(hashes)) == 120


def test_nothing_to_train_on_is_an_input_error() -> None:
    with pytest.raises(InputError):
        compose_dataset([], SAMPLE, [], rehearsal_fraction=0.5, validation_share=0.1, seed=1)
    with pytest.raises(InputError):
        compose_dataset(NEW[:1], [], [], rehearsal_fraction=0.5, validation_share=0.1, seed=1)


def test_a_stored_set_is_read_back_equal_and_storing_it_again_changes_nothing(tmp_path: Path) -> None:
    store = DatasetStore(tmp_path)
    dataset = compose_dataset(
        [*NEW, TrainingExample(None, "ünïcode 🙂\x00", "", "new", "pool")], SAMPLE, [],
        rehearsal_fraction=0.5, validation_share=0.1, seed=5,
    )  # fmt: skip
    directory = store.write(dataset)
    assert directory.name == dataset.digest
    before = (directory / "examples.parquet").stat().st_mtime_ns
    assert store.write(dataset) == directory
    assert (directory / "examples.parquet").stat().st_mtime_ns == before
    assert store.load(dataset.digest) == dataset
    assert [path.name for path in (tmp_path / "datasets").iterdir() if not path.name.startswith(".")] == [
        dataset.digest
    ]


def test_a_changed_missing_or_corrupt_set_is_rejected_and_repaired_by_writing_it_again(
    tmp_path: Path,
) -> None:
    store = DatasetStore(tmp_path)
    dataset, other = compose(), compose(seed=9)
    directory, other_directory = store.write(dataset), store.write(other)
    for content in ((other_directory / "examples.parquet").read_bytes(), b"garbage"):
        (directory / "examples.parquet").chmod(0o644)
        (directory / "examples.parquet").write_bytes(content)
        with pytest.raises(InputError, match=dataset.digest[:12]):
            store.load(dataset.digest)
    store.write(dataset)
    assert store.load(dataset.digest) == dataset
    with pytest.raises(InputError):
        read_dataset(tmp_path / "nothing")


def test_a_rehearsal_file_may_be_plain_or_gzipped(tmp_path: Path) -> None:
    lines = [
        {"source_code": "x", "requirements": "y", "slice": "tiers"},
        {"source_code": "a", "requirements": "b"},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + "\n\n"
    (tmp_path / "r.jsonl").write_text(text)
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    plain, packed = load_rehearsal(str(tmp_path / "r.jsonl")), load_rehearsal(str(tmp_path / "r.jsonl.gz"))
    assert plain == packed
    assert [example.origin for example in plain] == ["sample/tiers", "sample/"]
    assert load_rehearsal("") == []


@pytest.mark.parametrize("bad", ["{", "[]", "{}", '{"source_code": 1, "requirements": "x"}', "null"])
def test_a_bad_line_of_a_rehearsal_file_is_named(bad: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"source_code": "x", "requirements": "y"}\n' + bad + "\n")
    with pytest.raises(InputError, match=r"r\.jsonl, line 2"):
        load_rehearsal(str(path))


def test_an_unreadable_rehearsal_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    (tmp_path / "not.gz").write_bytes(b"plain")
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe")
    for name in ("cut.gz", "not.gz", "latin.jsonl", "missing.jsonl"):
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            load_rehearsal(str(tmp_path / name))


def test_own_answers_are_trained_on_never_validated_with_and_rehearsed_against() -> None:
    new = [TrainingExample(i, f"source {i}", f"text {i}", "new", "pool") for i in range(20)]
    own = [TrainingExample(i, f"source {i}", f"own {i}", "self", "sampled") for i in range(25)]
    plain = compose_dataset(new, [], [], rehearsal_fraction=0.0, validation_share=0.2, seed=1)
    dataset = compose_dataset(new, [], [], rehearsal_fraction=0.0, validation_share=0.2, seed=1, own=own)
    validated = {row.source_code for row in dataset.with_roles("validation")}
    assert dataset.with_roles("validation") == plain.with_roles("validation") and len(validated) == 4
    assert len(dataset.with_roles("self")) == 21
    assert not validated & {row.source_code for row in dataset.with_roles("self")}
    repeated = [TrainingExample(i, f"source {i}", f"text {i}", "self", "sampled") for i in range(20)]
    again = compose_dataset(new, [], [], rehearsal_fraction=0.0, validation_share=0.2, seed=1, own=repeated)
    assert again.digest == plain.digest
    sample = [TrainingExample(None, f"s{i}", f"t{i}", "rehearsal", "sample/a") for i in range(200)]
    rehearsed = compose_dataset(
        new, sample, [], rehearsal_fraction=0.5, validation_share=0.1, seed=1, own=own
    )
    assert rehearsed.counts["origin sample"] == 45


def test_a_set_without_rejected_answers_has_the_digest_it_had_before_there_were_any(tmp_path: Path) -> None:
    rows = (
        TrainingExample(1, "a", "b", "new", "pool"),
        TrainingExample(None, "c", "d", "rehearsal", "sample/x"),
    )
    plain = Dataset(rows, 3)
    assert plain.digest == "3524a872b06cea3b1ff82eee3ec880812faa40e227e600287f06db5b41bb6486"
    pairs = Dataset((replace(rows[0], rejected="worse"), rows[1]), 3)
    assert pairs.digest != plain.digest
    store = DatasetStore(tmp_path)
    for dataset in (plain, pairs):
        store.write(dataset)
        assert store.load(dataset.digest) == dataset
