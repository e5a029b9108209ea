"""Base models whose weights all versions of a process share (L11).

Each version has modules of its own around the same parameter tensors. So versions generate at the same time
on different threads, and the adapter of one changes nothing that another one computes with.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import torch

# While they build a model, transformers and peft replace functions of torch for all threads of the process:
# two models that are built at once get weights without data. Besides, no base is loaded twice at once.
loading = threading.RLock()


@dataclass(frozen=True, eq=False)
class SharedBase:
    """A loaded base model, never used itself, that lives as long as any version holds it."""

    model: Any = field(repr=False)

    def make_view(self) -> Any:
        """Return a model with modules, configs and buffers of its own, and the parameters of this one."""
        parameters = {id(weight): weight for weight in self.model.parameters()}
        return copy.deepcopy(self.model, dict(parameters))


@dataclass(frozen=True)
class BaseKey:
    """What makes two loaded copies of a base model interchangeable."""

    digest: str
    device: str
    dtype: torch.dtype


_bases: WeakValueDictionary[BaseKey, SharedBase] = WeakValueDictionary()


def share_base(key: BaseKey, load: Callable[[], Any]) -> SharedBase:
    """Return the process's copy of a base model, which ``load`` loads if no version holds one.

    The caller holds ``loading``.
    """
    base = _bases.get(key)
    if base is None:
        # Training in place would change what the other versions compute with.
        base = SharedBase(load().requires_grad_(False))
        _bases[key] = base
    return base


def list_shared_bases() -> list[BaseKey]:
    """Return the base models that versions of this process hold."""
    return list(_bases)


def count_parameter_bytes(models: Iterable[Any]) -> int:
    """Return the bytes of the parameters of these models; shared ones count once."""
    storages = {
        weight.untyped_storage().data_ptr(): weight.untyped_storage().nbytes()
        for model in models
        for weight in model.parameters()
    }
    return sum(storages.values())
