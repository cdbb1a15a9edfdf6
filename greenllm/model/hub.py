"""Whether the hub has a model: asked once and briefly, before libraries ask for it again and again.

Contract: who cannot reach the hub is told within seconds, in one sentence. What is in the hub's
cache is used then, and nothing asks the hub any more. Not covered: a connection that breaks later.
"""

from __future__ import annotations

import logging
from functools import cache
from urllib.parse import urlsplit

from greenllm.model.info import LoadError

log = logging.getLogger(__name__)

TIMEOUT_S = 10.0
NOT_GGUF = (
    "GGUF files are not read; take the checkpoint that they were made of, or convert them (see"
    " docs/models.md)"
)


@cache
def require_on_hub(source: str) -> None:
    """Return if the hub, or its cache on this machine, has such a model.

    Raises:
        LoadError: with the reason.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
    )

    try:
        get_hf_file_metadata(hf_hub_url(source, "config.json"), timeout=TIMEOUT_S)
    except HFValidationError as error:
        raise LoadError(f"{source!r} is no folder, and no hub id owner/name") from error
    except GatedRepoError as error:
        advice = "accept its terms there, and log in with `hf auth login`"
        raise LoadError(f"the hub gives {source} to some only: {advice}") from error
    except RepositoryNotFoundError as error:
        raise LoadError(
            f"the hub has no {source}; if it is private, log in with `hf auth login`"
        ) from error
    except EntryNotFoundError as error:
        why = NOT_GGUF if "gguf" in source.lower() else "not a model"
        raise LoadError(f"{source} on the hub has no config.json: {why}") from error
    except Exception as error:
        _use_cache(source, error)


def _use_cache(source: str, error: Exception) -> None:
    from huggingface_hub import constants, try_to_load_from_cache

    reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else " ".join(str(error).split())
    host = urlsplit(constants.ENDPOINT).hostname
    if not isinstance(try_to_load_from_cache(source, "config.json"), str):
        raise LoadError(
            f"cannot load {source}: {host} cannot be reached ({reason[:200]}), and it was not"
            " downloaded before; give a model folder or 'bundled'"
        ) from error
    if not constants.HF_HUB_OFFLINE:
        log.warning("%s cannot be reached (%s): using what was downloaded before", host, reason)
        constants.HF_HUB_OFFLINE = True
