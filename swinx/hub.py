"""Files on the Hugging Face hub, by huggingface_hub, which smp and timm bring: found at once, or refused at once."""

import os
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import HfHubHTTPError, LocalEntryNotFoundError

_PATIENCE = 2.0  # seconds; the hub's own functions try for half a minute before they say that there is no connection


def require(repo_id: str, files: tuple[str, ...], revision: str, advice: str, cache_dir: Any = None) -> None:
    """Nothing, where the files of a repository are in the hub's cache, or the hub answers, with an error or without.

    The environment variable HF_HUB_ETAG_TIMEOUT says how many seconds to wait for it, 2 where it is not set; with
    HF_HUB_OFFLINE it is not asked.

    Args:
        repo_id: owner and name.
        files: their names.
        revision: branch, tag or commit.
        advice: what to pass instead, as the end of the error's sentence.
        cache_dir: another cache than the hub's.

    Raises:
        LocalEntryNotFoundError: neither.
    """
    found = [try_to_load_from_cache(repo_id, file, cache_dir=cache_dir, revision=revision) for file in files]
    if all(isinstance(path, str) for path in found):
        return
    patience = float(os.environ.get("HF_HUB_ETAG_TIMEOUT") or _PATIENCE)
    try:
        get_hf_file_metadata(hf_hub_url(repo_id, files[0], revision=revision), timeout=patience)
    except HfHubHTTPError:  # an answer: what follows says what it means
        return
    except Exception as error:  # no connection, in any of the ways of the client that the hub's version uses
        folder, cache = f"models--{repo_id.replace('/', '--')}", cache_dir or constants.HF_HUB_CACHE
        offline = constants.HF_HUB_OFFLINE
        reason = "HF_HUB_OFFLINE is set in the environment" if offline else f"{constants.ENDPOINT} does not answer"
        raise LocalEntryNotFoundError(
            f"{reason}, and the cache lacks {' and '.join(files)} of {repo_id}: copy the "
            f"folder {folder} of a machine that has them to {cache}, or {advice}"
        ) from error


class PublishedWeights(dict[str, str]):
    """smp's settings of one set of weights, "repo_id" and "revision".

    smp looks up the revision when it is about to download: without a connection that fails at once, with what to do.
    """

    def __getitem__(self, key: str) -> str:
        if key == "revision":
            advice = (
                "pass encoder_weights=None and load a file of yours by swinx.load_checkpoint(model.encoder, 'FILE')"
            )
            require(
                super().__getitem__("repo_id"), ("config.json", "model.safetensors"), self.get("revision", ""), advice
            )
        return super().__getitem__(key)
