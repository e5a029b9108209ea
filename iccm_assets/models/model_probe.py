"""Load a model in a process of its own and generate with it, before anything depends on it (V5).

The memory is free again at its end, and a process that the system kills for its memory is a result, too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from iccm_assets.errors import IccmError, ModelError
from iccm_assets.registry.hub import resolve
from iccm_assets.registry.manifest import Prompt
from iccm_assets.registry.model_store import ModelStore, StoredModel
from iccm_assets.settings import PromptSettings, Settings
from iccm_assets.worker_process import exit_with_parent, parent_env, worker_command


@dataclass(frozen=True)
class ModelAnswer:
    """What a model is, and its response to a function of two lines, cut after a few tokens."""

    kind: str
    parameters: int
    tokens: int
    text: str
    prompt: Prompt


def probe_model(directory: Path, settings: Settings) -> ModelAnswer:
    """Load the model of a directory and generate with it, by its own prompt or that of the settings.

    Raises ``CorruptCheckpointError``, ``ModelNotFoundError`` or ``ModelError`` with the reason and the fix.
    """
    module, limit = "iccm_assets.models.model_probe", settings.evaluation.max_new_tokens
    process = subprocess.run(
        worker_command(module, str(directory), str(limit), settings.prompt.model_dump_json()),
        capture_output=True,
        text=True,
        env={**os.environ, **parent_env()},
        check=False,
    )
    if process.returncode < 0:
        raise ModelError(
            f"the process that loaded {directory} was ended by {signal.Signals(-process.returncode).name}",
            hint="It probably needs more memory than is free: weights are loaded as float32.",
        )
    try:
        reply = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        last_line = process.stderr.strip().rpartition("\n")[2]
        raise ModelError(f"{directory} cannot be loaded ({last_line})") from None
    if "error" in reply:
        raise IccmError.from_dict(reply["error"])
    return ModelAnswer(**{**reply, "prompt": Prompt.model_validate(reply["prompt"])})


def import_probed_model(store: ModelStore, path_or_hub_id: str, settings: Settings) -> StoredModel:
    """Copy a model into the store once it has loaded and answered; raises what both functions do."""
    answer = probe_model(resolve(path_or_hub_id), settings)
    return store.import_model(path_or_hub_id, answer.prompt)


def load_and_answer(directory: Path, prompt: PromptSettings, max_new_tokens: int) -> ModelAnswer:
    """Do in this process what ``probe_model`` does in one of its own."""
    from iccm_assets.models.generation import check_answers, load_model

    loaded = load_model(directory, prompt=prompt)
    return ModelAnswer(
        loaded.kind,
        parameters=sum(weight.numel() for weight in loaded.model.parameters()),
        tokens=len(loaded.tokenizer),
        text=check_answers(loaded, max_new_tokens).text,
        prompt=loaded.encoder.prompt,
    )


def main(directory: str, max_new_tokens: str, prompt: str) -> None:
    """Print the result or the error as the last line."""
    exit_with_parent()
    try:
        settings = PromptSettings.model_validate_json(prompt)
        answer = load_and_answer(Path(directory), settings, int(max_new_tokens))
        reply = {**vars(answer), "prompt": answer.prompt.model_dump()}
    except IccmError as error:
        reply = {"error": error.to_dict()}
    sys.stdout.write(f"{json.dumps(reply)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
