"""`refseg models`: list the models that have a name, and show where the weights of one are looked for."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from refseg.errors import UserError
from refseg.known_models import (
    KNOWN_MODELS,
    REFSHAPES,
    WEIGHTS,
    download_command,
    find_weights_of,
    has_weights,
    own_models,
    places_of,
    suggest_model,
    weights_in,
)
from refseg.terminal import aligned, printable

EXAMPLES = """
refseg models
refseg models sam3
refseg models --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="show the details of this model")
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(args: argparse.Namespace) -> int:
    models = [shipped_model_entry(), *map(known_model_entry, KNOWN_MODELS), *trained_model_entries()]
    if args.name is not None:
        models = [model for model in models if model["name"] == args.name]
        if not models:
            raise UserError(f"Unknown model {args.name!r}. {suggest_model(args.name)}")
    if args.json:
        print(json.dumps(models[0] if args.name else models, indent=2))
    else:
        print("\n".join(details_of(models[0]) if args.name else table_of(models)))
    return 0


# Entries --------------------------------------------------------------------------------------------------------------


def shipped_model_entry() -> dict[str, Any]:
    """Return the entry of the model that ships with refseg."""
    return {
        "name": REFSHAPES,
        "summary": "ships with refseg: small, for RefShapes only, useless on photographs",
        "config": "instalign_tiny_refshapes",
        "abilities": ["instances", "nothing here", "relations", "training"],
        "license": "Apache-2.0",
        "parameters": 1.7,
        "available": True,
    }


def known_model_entry(name: str) -> dict[str, Any]:
    """Return the entry of a model with published weights."""
    from refseg.engine.run import read_config
    from refseg.paths import resolve_config

    model = KNOWN_MODELS[name]
    weights = weights_in(read_config(resolve_config(model.config)).model)
    return {
        "name": name,
        "summary": model.summary,
        "config": model.config,
        "abilities": list(model.abilities),
        "license": " + ".join(dict.fromkeys(WEIGHTS[source].license for source in weights)),
        "parameters": round(sum(WEIGHTS[source].parameters for source in weights), 1),
        "available": all(find_weights_of(source) for source in weights),
        "memory": {"1 phrase": model.memory[0], "8 phrases": model.memory[1]},
        "weights": [weights_entry(source) for source in weights],
    }


def weights_entry(source: str) -> dict[str, Any]:
    """Return the facts about published weights, and the folders in which they are looked for."""
    weights = WEIGHTS[source]
    return {
        "source": source,
        "license": weights.license,
        "terms": weights.terms,
        "parameters": weights.parameters,
        "places": {str(folder): has_weights(folder) for folder in places_of(source)},
        "download": download_command([source]),
    }


def trained_model_entries() -> list[dict[str, Any]]:
    """Return the entries of the user's own models: those in $REFSEG_MODELS, and work directories in `work_dirs`."""
    folders = own_models()
    folders |= {str(folder): folder for folder in sorted(Path("work_dirs").glob("*")) if folder.is_dir()}
    entries = [trained_model_entry(name, folder) for name, folder in folders.items()]
    return [entry for entry in entries if entry]


def trained_model_entry(name: str, folder: Path) -> dict[str, Any] | None:
    """Return the entry of a work directory, or None if it has no checkpoint."""
    from refseg.config_check import method_and_data
    from refseg.inference.loading import find_model

    try:
        config, checkpoint = find_model(folder)
    except UserError:
        return None
    try:
        method, data = method_and_data(config)
        summary = f"{method} trained on {data}"
    except (UserError, AttributeError) as error:  # any program can be a config
        summary = f"its config cannot be read: {printable(str(error))[:80]}"
    return {
        "name": name,
        "summary": summary,
        "config": str(config),
        "abilities": [],
        "license": "",
        "parameters": None,
        "available": True,
        "checkpoint": checkpoint and str(checkpoint),
    }


# Text -----------------------------------------------------------------------------------------------------------------


def table_of(models: list[dict[str, Any]]) -> list[str]:
    """Return a table with one line per model."""
    rows = [("name", "here", "params", "license of weights", "can do", "what it is")]
    for model in models:
        params = "" if model["parameters"] is None else f"{model['parameters']:.0f} M"
        here = "yes" if model["available"] else "no"
        abilities = ", ".join(model["abilities"])
        rows.append((model["name"], here, params, model["license"], abilities, model["summary"]))
    return [*aligned(rows, right=False), "", "`refseg models NAME` shows where its weights are looked for."]


def details_of(model: dict[str, Any]) -> list[str]:
    """Return the details of a model: facts, weights, and commands to try it."""
    facts = {
        "can do": ", ".join(model["abilities"]),
        "config": model["config"],
        "checkpoint": model.get("checkpoint"),
        "parameters": model["parameters"] and f"{model['parameters']:g} M",
        "license": model["license"],
    }
    if "memory" in model:
        one, eight = model["memory"].values()
        facts["memory"] = f"{one:g} GiB for 1 phrase, {eight:g} GiB for 8 (float32; see docs/zero_shot.md)"
    lines = [f"{model['name']}: {model['summary']}", ""]
    lines += aligned([(f"  {key}", value) for key, value in facts.items() if value], right=False)
    for weights in model.get("weights", []):
        lines += ["", *weights_lines(weights)]
    inputs = '--image photo.jpg --text "the dog"'
    if model["name"] == REFSHAPES:
        inputs = '--image drawing.png --text "the red circle"'
    return [
        *lines,
        "",
        "try it:",
        f"  refseg predict {model['name']} {inputs} --out answers --show",
        f"  refseg demo {model['name']}",
    ]


def weights_lines(weights: dict[str, Any]) -> list[str]:
    """Return the lines about one source of weights."""
    here = any(weights["places"].values())
    lines = [f"{weights['source']}: {'on this machine' if here else 'not on this machine'}"]
    lines += [f"  {weights['parameters']:g} M parameters, {weights['license']}"]
    lines += [f"  {weights['terms']}"] if weights["terms"] else []
    lines += [f"  looked for in {place}: {'found' if found else 'no'}" for place, found in weights["places"].items()]
    if not here:
        folder = f"data/weights/{Path(weights['source']).name}"
        lines += [f"  download:     {weights['download']}", f"  without hub:  copy the folder to {folder}"]
    return lines
