"""Models on the Hugging Face hub: found in the local cache, downloaded if the user allows it, and uploaded.

The methods of `ReferringInferencer` have the names and the meaning of huggingface_hub's `ModelHubMixin`, and use its
`HfApi`. The mixin itself does not fit: its `from_pretrained` downloads without being allowed to, and passes the keys of
`config.json` to the constructor, where `model` means something else.
"""

from __future__ import annotations

import re
from pathlib import Path

from refseg.errors import CheckpointError, UsageError
from refseg.json_config import CONFIG
from refseg.pretrained import downloads_allowed

# "user/model", or "user/model@revision"
_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*?)(?:@([\w./-]+))?")
_FILES = (CONFIG, "*.safetensors", "README.md", "*.json", "*.txt", "*.spm", "*.model")  # never a program


def is_hub_name(model: object) -> bool:
    """Return whether a name can be that of a model on the hub. A path with a suffix such as `.pth` cannot."""
    return _NAME.fullmatch(str(model)) is not None and Path(str(model)).suffix not in (".pth", ".pt", ".py", ".onnx")


def hub_folder(model: str, *, allow_download: bool | None = None) -> Path:
    """Return the local folder of a model on the hub.

    Args:
        model: "user/model" or "user/model@revision".
        allow_download: Whether files that are not in the local cache are downloaded. The default is the user's choice:
            --allow-download or REFSEG_ALLOW_DOWNLOAD=1.

    Raises:
        CheckpointError: The model is not in the local cache, cannot be downloaded, or is none of refseg.
    """
    from huggingface_hub import snapshot_download

    match = _NAME.fullmatch(model)
    if match is None:
        raise UsageError(f"{model!r} is not a name on the hub. Expected 'user/model' or 'user/model@revision'.")
    name, revision = match.groups()
    allowed = downloads_allowed() if allow_download is None else allow_download
    try:
        found = snapshot_download(name, revision=revision, allow_patterns=list(_FILES), local_files_only=not allowed)
    except Exception as error:  # of the network, the cache, or the hub
        if not allowed:
            raise CheckpointError(
                f"{model} is not in the local hub cache. Pass --allow-download (REFSEG_ALLOW_DOWNLOAD=1), or download "
                f"it once with `hf download {name}{f' --revision {revision}' if revision else ''}`."
            ) from None
        raise CheckpointError(f"{model} cannot be downloaded ({_reason(error)}).") from None
    if not (Path(found) / CONFIG).is_file():
        raise CheckpointError(f"{model} is not a model of refseg: it has no {CONFIG}.")
    return Path(found)


def push_folder(
    folder: Path, repo_id: str, *, private: bool | None, revision: str | None, message: str, token: str | None
) -> str:
    """Upload a folder to the hub, and return the address of the commit. The repository is made if there is none."""
    from huggingface_hub import HfApi

    if not is_hub_name(repo_id) or "@" in repo_id:
        raise UsageError(f"{repo_id!r} is not a name on the hub. Expected 'user/model'.")
    api = HfApi(token=token)
    try:
        name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message=message)
    except Exception as error:
        raise UsageError(
            f"{folder} cannot be uploaded to {repo_id} ({_reason(error)}). `hf auth whoami` shows whether you are "
            "logged in."
        ) from None
    return str(commit.commit_url)


def _reason(error: Exception) -> str:
    """Return the first sentence of an error. It never contains the token, which is sent in a header."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text[:200]}"
