"""Write a trained model to its staging directory, except for its manifest file (L6).

Nothing written here may depend on time, location or machine name, or two equal trainings would have two
digests.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from iccm_assets.models.generation import LoadedModel
from iccm_assets.registry.hub import ADAPTER_CONFIG_FILE, CONFIG_FILE, has_manifest
from iccm_assets.registry.manifest import MANIFEST_FILE, Manifest, read_manifest
from iccm_assets.registry.model_store import FOREIGN_FILES, training_provenance
from iccm_assets.training.dataset import Dataset
from iccm_assets.training.finetuning import FineTuneResult
from iccm_assets.training.model_card import MODEL_CARD_FILE, render_model_card
from iccm_assets.training.worker_protocol import TrainingJob

HISTORY_FILE = "training_history.json"
# Written again for every candidate, or not part of a model.
_NOT_COPIED = {
    *(CONFIG_FILE, ADAPTER_CONFIG_FILE, "generation_config.json"),
    *(MODEL_CARD_FILE, MANIFEST_FILE, HISTORY_FILE),
}


def write_checkpoint(
    job: TrainingJob,
    parent: LoadedModel,
    dataset: Dataset,
    trained: FineTuneResult,
    staging: Path,
    base_directory: Path,
    device: str,
) -> Manifest:
    """Write weights, configs, tokenizer, history and model card; return the manifest without its files.

    The weights are a whole model's, or those of an adapter alone; ``base_directory`` is then the base's.
    ``device`` is the class of device that trained it.
    """
    base_digest = _write_weights(job, parent, trained, staging, base_directory)
    _copy_tokenizer(parent.path, staging)
    base = read_manifest(parent.path).base if has_manifest(parent.path) else parent.path.name
    history = [
        {name: value for name, value in vars(point).items() if value is not None} for point in trained.history
    ]
    (staging / HISTORY_FILE).write_text(json.dumps(history, indent=1) + "\n", encoding="utf-8")
    processes = {"processes": job.accelerate.num_processes} if job.accelerate else {}
    card = render_model_card(
        base=base,
        parent_digest=parent.digest,
        base_digest=base_digest,
        dataset_digest=dataset.digest,
        counts=trained.counts,
        config={**job.hyperparameters, **processes},
        history=trained.history,
        weight_change=trained.weight_change,
        best_step=trained.best_step,
    )
    (staging / MODEL_CARD_FILE).write_text(card, encoding="utf-8")
    return Manifest(
        kind="fine-tuned",
        base=base,
        files={},
        parent_digest=parent.digest,
        dataset_digest=dataset.digest,
        config=job.hyperparameters,
        seed=job.config.seed,
        threads=job.config.threads,
        device=device,
        code=training_provenance(job.config.method),
        prompt=parent.encoder.prompt,
        base_digest=base_digest,
        accelerate=job.accelerate.describe_for_manifest() if job.accelerate else None,
    )


def _write_weights(
    job: TrainingJob, parent: LoadedModel, trained: FineTuneResult, staging: Path, base_directory: Path
) -> str | None:
    """Write the weights and their config; return the digest of an adapter's base."""
    model = trained.loaded.model
    if job.config.method == "full":
        model.save_pretrained(staging)
        return None
    from iccm_assets.training.adapter_training import save_adapter

    base_digest = read_manifest(base_directory).digest
    save_adapter(model, staging, base_digest, parent.kind)
    return base_digest


def _copy_tokenizer(parent: Path, staging: Path) -> None:
    """Copy the parent's tokenizer files: saving the tokenizer could alter them or write local paths."""
    for path in sorted(parent.iterdir()):
        weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
        if (
            path.is_file()
            and not weights
            and path.name not in _NOT_COPIED
            and path.suffix not in FOREIGN_FILES
        ):
            shutil.copyfile(path, staging / path.name)
            (staging / path.name).chmod(0o644)
