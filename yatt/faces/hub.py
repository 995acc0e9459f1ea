"""To and from the Hugging Face Hub: models that settings name are fetched, an export is published."""

from __future__ import annotations

import sys
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from yatt.config.hub import POLICY, HubModel, as_written, missing, of_cache, placed
from yatt.config.load import load_config
from yatt.config.schema import Config
from yatt.errors import BackendError, ConfigError

FILES = ["*.json", "*.jinja", "*.txt", "*.model"]
"""What is read of a model beside its weights."""
WEIGHTS = ["*.safetensors"]
LEFT = ["*/*", "consolidated*"]
"""What an engine would read in place of the model, or nobody reads."""


def fetched(config: Config, *, weights: bool = True) -> Config:
    """The config with each model that is a name on the Hub as a folder of the cache, pinned to a commit. Downloads what
    the cache lacks, and says where it is; without `weights`, what else there is. Raises ConfigError where there is none
    to be had."""
    found = missing(config)
    if POLICY in found and found[POLICY].revision is None and config.resume == "auto":
        found[POLICY] = begun_with(config, found[POLICY])
    return placed(config, {place: fetch(model, ".".join(place), weights=weights) for place, model in found.items()})


def begun_with(config: Config, model: HubModel) -> HubModel:
    """The policy's model at the commit that the run has begun with, though its branch may have moved; as it is where no
    run of this name began with it."""
    file = Path(config.run.dir) / config.run.name / "config.yaml"
    then = of_cache(load_config(str(file), []).model.path) if file.is_file() else None
    return then if then is not None and then.name == model.name else model


def fetch(model: HubModel, setting: str, *, weights: bool = True) -> str:
    """The folder of a model in the Hub's cache, all of it. Raises ConfigError naming `setting`."""
    at = f"{setting}={model}"
    elsewhere = f"`hf download {model.name} --local-dir {Path(model.name).name}` where there is a network"
    try:
        folder = snapshot_download(
            model.name,
            revision=model.revision,
            allow_patterns=FILES + WEIGHTS * weights,
            ignore_patterns=LEFT,
        )
    except GatedRepoError:
        page = f"{constants.ENDPOINT}/{model.name}"
        raise ConfigError(f"{at}: the Hub gives it to those who agreed at {page}; then `hf auth login`") from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{at}: no such folder, and the Hub has no such model, or shows it to its owner alone; mend the name, or "
            "`hf auth login`"
        ) from None
    except RevisionNotFoundError:
        named = "model.revision" if setting == "model.path" else setting
        raise ConfigError(
            f"{named}={model.revision}: {model.name} has no such branch, tag or commit; leave it out for the newest"
        ) from None
    except HFValidationError as error:
        raise ConfigError(f"{at}: no such folder, and no name on the Hub: {_line(error)}") from None
    except Exception as error:  # of the network, in whatever library it arises
        if constants.is_offline_mode():
            raise ConfigError(
                f"{at}: no such folder, and HF_HUB_OFFLINE keeps the Hub out; unset it, or {elsewhere} and name the "
                "folder"
            ) from None
        cause = error.__cause__ or error
        raise ConfigError(
            f"{at}: no such folder, and the Hub cannot be reached ({_line(cause)}); try again, or {elsewhere} and name "
            "the folder"
        ) from None
    pinned = of_cache(folder)
    print(f"{at}: {pinned.revision if pinned else 'found'}, in {folder}", file=sys.stderr)
    return folder


def check_push(name: str) -> None:
    """Raises ConfigError where nothing can be published under this name from here."""
    model = as_written(name)
    if model is None or model.revision is not None:
        raise ConfigError(f"--push={name} is no name on the Hub; write ORG/NAME")
    if constants.is_offline_mode():
        raise ConfigError(f"--push={name}: HF_HUB_OFFLINE keeps the Hub out; unset it")


def push(folder: Path, name: str, *, public: bool = False, api: HfApi | None = None) -> str:
    """Publish a model folder as `name`, seen by its owner alone unless `public`; returns the address.

    Raises BackendError with the command that does it by hand: the folder is there.
    """
    api = api or HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Export of YATT")
    except Exception as error:  # of the network, in whatever library it arises
        status = getattr(getattr(error, "response", None), "status_code", None)
        remedy = "`hf auth login`, then " if status in (401, 403) else ""
        raise BackendError(
            f"--push={name}: the Hub did not take it ({_line(error)}); {remedy}`hf upload {name} {folder}`"
        ) from None
    return str(getattr(done, "commit_url", done))


def _line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
