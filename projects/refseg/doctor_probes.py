"""Facts about installed libraries for `refseg doctor`, gathered in a child process: a library that crashes takes only
the child with it. `python -m refseg.doctor_probes NAME...` prints one JSON line before and one after each probe.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any

Facts = dict[str, Any]


def distribution_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _plain(module: str, *more: str) -> Callable[[], Facts]:
    """A probe that imports a module, and more modules that depend on it."""

    def probe() -> Facts:
        found = importlib.import_module(module)
        for name in more:
            importlib.import_module(name)
        return {"version": str(getattr(found, "__version__", ""))}

    return probe


def probe_numpy() -> Facts:
    import numpy as np

    assert np.ones((2, 2)).sum() == 4
    return {"version": np.__version__}


def probe_torch() -> Facts:
    import torch

    assert torch.ones(3).mul(2).sum().item() == 6
    facts: Facts = {"version": torch.__version__, "cuda": torch.version.cuda, "hip": torch.version.hip, "gpus": []}
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            facts["gpus"].append(
                {
                    "name": properties.name,
                    "gib": round(properties.total_memory / 2**30, 1),
                    "bf16": properties.major >= 8 or bool(torch.version.hip),
                }
            )
        try:
            assert torch.ones(3, device="cuda").mul(2).sum().item() == 6
        except Exception as error:  # e.g. no kernel image for this GPU
            facts["gpu_error"] = f"{type(error).__name__}: {error}"[:300]
    elif torch.version.cuda:
        try:
            torch.zeros(1, device="cuda")
        except Exception as error:
            facts["no_gpu_because"] = str(error).splitlines()[0][:300]
    return facts


def probe_torchvision() -> Facts:
    import torch
    import torchvision

    torchvision.ops.nms(torch.rand(2, 4), torch.rand(2), 0.5)
    return {"version": torchvision.__version__, "wants": _pinned_torch()}


def _pinned_torch() -> str:
    """The torch that the installed torchvision was built for: its metadata names one version exactly."""
    try:
        wanted = importlib.metadata.requires("torchvision") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    pins = [line for line in wanted if line.replace(" ", "").startswith("torch==")]
    return pins[0].split("==")[1].split(";")[0].strip(" )") if pins else ""


def probe_torch_pair() -> Facts:
    """Without importing either: a pair that does not fit may fail in many ways."""
    return {"torch": distribution_version("torch"), "wants": _pinned_torch()}


def probe_mmcv() -> Facts:
    from refseg import compat

    facts: Facts = {"full": distribution_version("mmcv"), "lite": distribution_version("mmcv-lite")}
    try:
        facts["version"] = importlib.import_module("mmcv").__version__
    except ModuleNotFoundError as error:
        if error.name != "mmcv":
            raise
        return facts
    facts["compiled"], facts["state"] = compat.mmcv_ext_state()
    return facts


def probe_pycocotools() -> Facts:
    import numpy as np
    from pycocotools import mask

    assert mask.area(mask.encode(np.asfortranarray(np.ones((2, 3), np.uint8)))) == 6
    return {"version": distribution_version("pycocotools")}


def probe_setuptools() -> Facts:
    importlib.import_module("pkg_resources")  # gone since setuptools 81; mmengine imports it
    return {"version": distribution_version("setuptools")}


def probe_ops() -> Facts:
    import torch

    from refseg.ops import available_backends, choose_backend

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name, reason = choose_backend(torch.empty(1, device=device))
    return {"backend": name, "reason": reason, "available": list(available_backends())}


PROBES: dict[str, Callable[[], Facts]] = {
    "torch pair": probe_torch_pair,
    "torch": probe_torch,
    "torchvision": probe_torchvision,
    "numpy": probe_numpy,
    "scipy": _plain("scipy"),
    "pillow": _plain("PIL"),
    "opencv": _plain("cv2"),
    "mmengine": _plain("mmengine", "mmengine.runner"),
    "mmcv": probe_mmcv,
    "mmdet": _plain("mmdet", "mmdet.models"),
    "mmsegmentation": _plain("mmseg", "mmseg.models"),
    "transformers": _plain("transformers"),
    "timm": _plain("timm"),
    "pycocotools": probe_pycocotools,
    "ftfy": _plain("ftfy"),
    "setuptools": probe_setuptools,
    "tensorboard": _plain("tensorboard"),
    "triton": _plain("triton"),
    "deformable attention": probe_ops,
}


def _run(name: str) -> Facts:
    try:
        return PROBES[name]()
    except ModuleNotFoundError as error:
        return {"missing": error.name or "", "error": f"{type(error).__name__}: {error}"}
    except BaseException as error:  # a broken library may raise anything, SystemExit too
        text = str(error).strip().splitlines() or [""]
        return {"error": f"{type(error).__name__}: {text[0]}"[:400]}


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print
    for name in names:
        print(json.dumps({"begin": name}), file=answers, flush=True)
        print(json.dumps({"end": name, "facts": _run(name)}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
