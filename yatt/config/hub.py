"""Models that settings name as they are called on the Hugging Face Hub. What fetches them is `yatt.faces.hub`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from yatt.config.paths import ON_HUB
from yatt.config.schema import Config

Place = tuple[str, ...]
"""Where a setting stands, such as ("model", "path")."""

POLICY: Place = ("model", "path")
_CACHED = re.compile(r".*/models--([^/]+?)--([^/]+?)/snapshots/([0-9a-f]{40})/?")


class HubModel(NamedTuple):
    """A model on the Hub: ORG/NAME, and its branch, tag or commit, if one is named."""

    name: str
    revision: str | None

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def as_written(path: str) -> HubModel | None:
    """The model that ORG/NAME or ORG/NAME@REVISION names; None for any other text."""
    match = ON_HUB.fullmatch(path)
    return HubModel(match[1], match[2]) if match else None


def of_cache(path: str) -> HubModel | None:
    """The model whose commit a folder of the Hub's cache holds; None for any other folder."""
    match = _CACHED.fullmatch(path)
    return HubModel(f"{match[1]}/{match[2]}", match[3]) if match else None


def hub_model(path: str) -> HubModel | None:
    """The model to fetch for `path`, where it is no folder here: a name, or a folder of a cache that is gone."""
    if os.path.isdir(path):
        return None
    written = None if os.path.isdir(os.path.dirname(path)) else as_written(path)
    return written or of_cache(path)


def models(config: Config) -> dict[Place, str]:
    """Every model that the settings name, by the setting."""
    named: dict[Place, str | None] = {
        POLICY: config.model.path,
        ("model", "reference"): config.model.reference,
        ("model", "teacher"): config.model.teacher,
        ("critic", "path"): config.critic.path,
    }
    named |= {("reward", "models", name, "path"): judge.path for name, judge in config.reward.models.items()}
    return {place: path for place, path in named.items() if path is not None}


def missing(config: Config) -> dict[Place, HubModel]:
    """The models that have to be fetched; `model.revision` is the policy's, where its name has none."""
    found = {place: model for place, path in models(config).items() if (model := hub_model(path))}
    if POLICY in found and found[POLICY].revision is None:
        found[POLICY] = found[POLICY]._replace(revision=config.model.revision)
    return found


def placed(config: Config, folders: Mapping[Place, str]) -> Config:
    """The config with these folders in place of names, and the commit of the policy's as its revision."""
    for place, folder in folders.items():
        config = _with(config, place, folder)
    commit = of_cache(folders[POLICY]) if POLICY in folders else None
    return config if commit is None else _with(config, ("model", "revision"), commit.revision)


def _with(values: Any, place: Place, value: Any) -> Any:
    first, *rest = place
    if isinstance(values, Mapping):
        return {**values, first: _with(values[first], tuple(rest), value)}
    inner = _with(getattr(values, first), tuple(rest), value) if rest else value
    return values.model_copy(update={first: inner})


def revision_mistakes(config: Config) -> Iterator[str]:
    """One line where `model.revision` says nothing of the policy's folder, or contradicts it."""
    path, revision = config.model.path, config.model.revision
    if revision is None:
        return
    model = hub_model(path) or of_cache(path)
    if model is None:
        yield f"model.revision={revision} is of a name on the Hub, and model.path={path} is a folder; unset it"
    elif model.revision not in (None, revision):
        yield f"model.revision={revision} and model.path={path} name two revisions; keep one of them"
