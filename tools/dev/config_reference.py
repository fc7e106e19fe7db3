"""Write docs/config_reference.md, the keys of every component, from docstrings and signatures.

`python tools/dev/config_reference.py --check` only checks that the page is up to date.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO / "projects"))

from refseg import models, registry  # noqa: E402
from refseg.datasets.tokenizers import TextTokenizer  # noqa: E402
from refseg.models import RefSegmentor  # noqa: E402
from refseg.models.fusion import Fusion  # noqa: E402

PAGE = REPO / "docs" / "config_reference.md"
HEAD = """# Reference of config keys

<!-- Written by tools/dev/config_reference.py: change docstrings instead. -->

The keys of everything that refseg registers, from the code. A heading is a `type`. A heading such as "VIPA: cues" is
the dict `cues` of VIPA, which takes no `type`; sizes that the model gives to it are left out. How configs are put
together, and the keys that people change most, are in [configs](configs.md); what the models are, in
[models](models.md)."""
NOT_IN_CONFIGS = {  # arguments that the code passes, never a config
    "dataset", "dataloader", "params", "runner",
    "feeds_next", "pixel_dim", "word_dim",
}  # fmt: skip
OF_EVERY_MODEL = {"data_preprocessor", "postprocess"}  # these have their own sections


def components(of: registry.Registry) -> list[type]:
    """Return the classes that refseg adds to a registry, sorted by name."""
    of.import_from_location()
    for name in models.__all__:  # models are imported when they are first used
        getattr(models, name)
    classes = {cls for cls in of.module_dict.values() if inspect.isclass(cls) and cls.__module__.startswith("refseg.")}
    return sorted(classes, key=lambda cls: cls.__name__.lower())


def split_docstring(doc: str) -> tuple[str, dict[str, str]]:
    """Return the prose of a docstring, and the text of each argument in `Args:`."""
    prose, _, arguments = doc.partition("\nArgs:\n")
    entries = re.findall(r"^    ([\w, ]+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    texts = {name.strip(): " ".join(text.split()) for names, text in entries for name in names.split(",")}
    return prose.strip(), texts


def keys_of(cls: type, owner: type | None) -> Iterator[tuple[str, str]]:
    """Yield the constructor's arguments with their defaults, without those that its owner passes."""
    given = NOT_IN_CONFIGS | (OF_EVERY_MODEL if issubclass(cls, RefSegmentor) else set())
    given |= set(inspect.signature(owner).parameters) if owner else set()
    for name, parameter in inspect.signature(cls).parameters.items():
        needed = parameter.default is parameter.empty
        if parameter.kind is parameter.VAR_KEYWORD:
            parent = next(base for base in cls.__mro__[1:] if not base.__name__.startswith("_"))
            yield "...", f"those of {parent.__name__}"
        elif parameter.kind is parameter.VAR_POSITIONAL or name in given:
            continue
        elif not (needed and (owner or name == "embed_dim")):  # sizes that the model passes
            yield f"`{name}`", "required" if needed else f"`{parameter.default!r}`"


def table(lines: list[tuple[str, str, str]]) -> str:
    """Return a table of keys and defaults, with a column of meanings if there are any."""
    columns = 3 if any(text for _, _, text in lines) else 2
    head = ["| key | default | |", "|---|---|---|"] if columns == 3 else ["| key | default |", "|---|---|"]
    cells = [[part.replace("|", "\\|") for part in line[:columns]] for line in lines]
    return "\n".join([*head, *("| " + " | ".join(line) + " |" for line in cells)])


def section(cls: Any, title: str = "", owner: type | None = None) -> str:
    """Return the section of a class, followed by the sections of its config groups."""
    prose, texts = split_docstring(inspect.getdoc(cls) or "")
    rows = [(name, default, texts.get(name.strip("`"), "")) for name, default in keys_of(cls, owner)]
    parts = [f"{'####' if owner else '###'} {title or cls.__name__}", prose, table(rows) if rows else "No keys."]
    for name, group in getattr(cls, "config_groups", {}).items():
        if name not in OF_EVERY_MODEL:
            parts.append(section(group, f"{cls.__name__}: {name}", cls))
    return "\n\n".join(parts)


def reference() -> str:
    models = components(registry.MODELS)
    segmentors = [cls for cls in models if issubclass(cls, RefSegmentor)]
    fusions = [cls for cls in models if issubclass(cls, Fusion)]
    parts = [cls for cls in models if cls not in segmentors + fusions]
    chapters: dict[str, list[type]] = {
        "Models": segmentors,
        "Encoders and other parts of models": parts,
        "Fusions": fusions,
        "Data sets": components(registry.DATASETS) + components(registry.DATA_SAMPLERS),
        "Transforms": components(registry.TRANSFORMS),
        "Evaluation": components(registry.METRICS),
        "Training": [
            cls
            for of in (registry.OPTIM_WRAPPERS, registry.OPTIMIZERS, registry.LOOPS, registry.HOOKS)
            for cls in components(of)
        ],
    }
    text = [HEAD]
    for title, members in chapters.items():
        text.append(f"## {title}")
        text += [section(cls) for cls in members]
        if title == "Models":
            text.append(section(RefSegmentor.config_groups["postprocess"], "postprocess (of every model)"))
        if title == "Transforms":
            text.append(section(TextTokenizer, "tokenizer (of LoadText)"))
    return "\n\n".join(text) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is out of date")
    args = parser.parse_args()
    page = reference()
    if args.check:
        current = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page
        print(
            "up to date"
            if current
            else "docs/config_reference.md is out of date. Run: python tools/dev/config_reference.py"
        )
        return 0 if current else 1
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
