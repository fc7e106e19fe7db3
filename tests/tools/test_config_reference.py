"""docs/config_reference.md matches the code, and the examples of docs/configs.md have keys that are read."""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path
from types import ModuleType

import pytest

from conftest import REPOSITORY, load_script
from refseg.compat import dict_action
from refseg.engine.run import RunOptions, load_config

CONFIG = "instalign_swinb"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/dev/config_reference.py")


def test_page_is_up_to_date(tool: ModuleType) -> None:
    assert tool.PAGE.read_text() == tool.reference(), "python tools/dev/config_reference.py"


def test_docstrings_are_split_into_prose_and_arguments(tool: ModuleType) -> None:
    prose, texts = tool.split_docstring("One.\n\nTwo.\n\nArgs:\n    a: x,\n        y.\n    b, c: z.")
    assert prose == "One.\n\nTwo."
    assert texts == {"a": "x, y.", "b": "z.", "c": "z."}


def test_arguments_that_the_owner_passes_are_not_listed(tool: ModuleType) -> None:
    """The owner passes `size`, which it has itself, and `width`, which is required."""

    class Owner:
        def __init__(self, size: int = 1) -> None: ...

    class Group:
        def __init__(self, width: int, size: int = 2, depth: int = 3, **more: int) -> None: ...

    assert list(tool.keys_of(Group, Owner)) == [("`depth`", "`3`"), ("...", "those of object")]
    assert [key for key, _ in tool.keys_of(Group, None)] == ["`width`", "`size`", "`depth`", "..."]


def page() -> str:
    return (REPOSITORY / "docs/configs.md").read_text()


def test_example_keys_are_read_by_the_code() -> None:
    examples = re.findall(r"^\| `([\w.]+=\S+)` \|", page(), re.MULTILINE)
    assert len(examples) == page().count("| `"), "a row without KEY=VALUE"
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=dict_action())
    changed = parser.parse_args(["--cfg-options", *examples]).cfg_options
    cfg = load_config(CONFIG, RunOptions(cfg_options=changed))
    assert cfg.train_dataloader.dataset.pipeline[1].size == [640, 640]
    assert cfg.model.postprocess.threshold == 0.4


def test_example_of_a_config_works(tmp_path: Path) -> None:
    block = re.search(r"^(?: {4}.*\n)+", page(), re.MULTILINE).group()
    (tmp_path / "own.py").write_text(textwrap.dedent(block))
    cfg = load_config(str(tmp_path / "own.py"))
    assert (cfg.model.type, cfg.model.decoder.num_queries, cfg.model.decoder.num_blocks) == ("InstAlign", 50, 9)
    (tmp_path / "leaf.py").write_text("_base_ = 'refseg::instalign_swinb.py'\n")
    assert load_config(str(tmp_path / "leaf.py")).model == load_config(CONFIG).model
