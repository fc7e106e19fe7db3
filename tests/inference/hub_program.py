"""Talk to a fake hub, in a process of its own: huggingface_hub reads its endpoint when it is imported.

`test_model_folder.py` runs it: hub_program.py MODEL_FOLDER HOME TOKEN.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from fake_hub import INLINE_LIMIT, FakeHub, running_hub

PROGRAM = b"raise SystemExit('the program was run')"


def main(folder: str, home: str, token: str) -> None:
    with running_hub() as hub:
        os.environ |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": home, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0",
                       "HF_HUB_DISABLE_XET": "1", "REFSEG_ALLOW_DOWNLOAD": "0"}  # fmt: skip
        upload_and_download(hub, folder, Path(home), token)
        errors(hub)


def upload_and_download(hub: FakeHub, folder: str, home: Path, token: str) -> None:
    """Upload, download with consent only, and load from the cache when the hub is gone."""
    from refseg import ReferringInferencer

    address = ReferringInferencer(folder, device="cpu").push_to_hub("user/shapes", license="mit")
    assert address.startswith(f"{hub.endpoint}/user/shapes/commit/") and f"Bearer {token}" in hub.tokens
    files = hub.files["user/shapes"]
    assert files.keys() >= {"config.json", "model.safetensors", "words.txt", "README.md"} and "evil.py" not in files
    weights = files["model.safetensors"]
    assert len(weights) > INLINE_LIMIT
    assert list(hub.objects.values()) == [weights], "large files are LFS objects, the others are not"
    assert b"# shapes" in files["README.md"] and b"license: mit" in files["README.md"]

    # Not allowed: no request is made
    from refseg.inference.loading import find_model

    hub.requests.clear()
    message = message_of(lambda: find_model("user/shapes"))
    assert "not in the local hub cache. Pass --allow-download" in message and not hub.requests

    # Allowed, then not allowed and gone. Programs are not downloaded
    files["evil.py"] = PROGRAM
    for allowed in (True, False):
        model = ReferringInferencer.from_pretrained(
            "user/shapes", revision="main", allow_download=allowed, device="cpu"
        )
        cached = model.loaded.config.parent
        assert model.loaded.name == "user/shapes" and cached.is_relative_to(home)
        assert not (cached / "evil.py").exists()
        assert (cached / "model.safetensors").read_bytes() == weights
        hub.files.clear()
        hub.requests.clear()
    assert not hub.requests


def errors(hub: FakeHub) -> None:
    from refseg.inference.hub import hub_folder, push_folder
    from refseg.inference.loading import find_model

    os.environ["REFSEG_ALLOW_DOWNLOAD"] = "1"
    hub.files["user/bert"] = {"model.safetensors": b""}
    assert "user/bert is not a model of refseg: it has no config.json" in message_of(lambda: hub_folder("user/bert"))
    message = message_of(lambda: find_model("user/nothing"))
    assert "user/nothing cannot be downloaded (RepositoryNotFoundError" in message, message
    options = dict(private=None, revision=None, message="", token=None)
    message = message_of(lambda: push_folder(Path("missing"), "user/new", **options))
    assert "missing cannot be uploaded to user/new" in message, message


def message_of(call: Callable) -> str:
    """Return the message of the error that a call must raise, and print it, as a command does."""
    from refseg.errors import UserError

    try:
        call()
    except UserError as error:
        print(error)
        return str(error)
    raise AssertionError("no error")


if __name__ == "__main__":
    main(*sys.argv[1:])
