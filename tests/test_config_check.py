from pathlib import Path

import pytest

from refseg.config_check import accepted_names, unknown_keys
from refseg.engine.run import RunOptions, load_config
from refseg.errors import ConfigError

CONFIG = "baseline_tiny_refshapes"


def complaints(**options: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(CONFIG, RunOptions(cfg_options={key.replace("__", "."): value for key, value in options.items()}))
    return str(caught.value).splitlines()[1:]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("param_schedulers", "param_scheduler"),
        ("train_dataloader.batchsize", "batch_size"),
        ("train_dataloader.dataset.pipe_line", "pipeline"),
        ("train_dataloader.sampler.shufle", "shuffle"),
        ("train_dataloader.dataset.pipeline.1.siez", "size"),
        ("optim_wrapper.accumulative_count", "accumulative_counts"),
        ("optim_wrapper.optimizer.weight_decy", "weight_decay"),
        ("optim_wrapper.paramwise_cfg.norm_decay", "norm_decay_mult"),
        ("param_scheduler.0.start_facto", "start_factor"),
        ("train_cfg.max_epoch", "max_epochs"),
        ("default_hooks.checkpoint.intervall", "interval"),
        ("custom_hooks.1.max_in_row", "max_in_a_row"),
        ("model.text_encoder.pretraind", "pretrained"),
        ("env_cfg.mp_cfg.opencv_threads", "opencv_num_threads"),
        ("randomness.sede", "seed"),
        ("auto_scale_lr.base_batchsize", "base_batch_size"),
        ("val_evaluator.row_file", "rows_file"),
    ],
)
def test_typo_is_reported_with_a_suggestion(key: str, meant: str) -> None:
    (line,) = complaints(**{key.replace(".", "__"): 1})
    assert key.split(".")[-1] in line
    assert f"did you mean {meant!r}?" in line


@pytest.mark.parametrize(
    ("config", "key", "meant"),
    [
        ("instalign_tiny_refshapes", "instances.pao", "poa"),
        ("instalign_tiny_refshapes", "pixel_decoder.num_layer", "num_layers"),
        ("instalign_tiny_refshapes", "no_target.feature", "features"),
        ("instalign_tiny_refshapes", "postprocess.treshold", "threshold"),
        ("lgformer_tiny_refshapes", "prototype.num_query", "num_queries"),
        ("rela_tiny_refshapes", "decoder.num_querys", "num_queries"),
    ],
)
def test_typo_in_a_group_without_a_type(config: str, key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"model.{key}: .*did you mean '{meant}'"):
        load_config(config, RunOptions(cfg_options={f"model.{key}": 1}))


def test_a_typo_in_the_rate_of_new_parts_is_named() -> None:
    with pytest.raises(ConfigError, match=r"new_part_lr_mult.*did you mean 'new_parts_lr_mult'"):
        load_config("latentvg_beit3b", RunOptions(cfg_options={"optim_wrapper.paramwise_cfg.new_part_lr_mult": 2.0}))


@pytest.mark.parametrize(
    ("config", "key", "meant"),
    [
        ("latentvg_beit3b", "layer_decy", "layer_decay"),
        ("instalign_tiny_refshapes", "bias_lr_mul", "bias_lr_mult"),  # MuonConstructor
    ],
)
def test_typos_in_paramwise_cfg(config: str, key: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"paramwise_cfg\.{key}: .*did you mean '{meant}'"):
        load_config(config, RunOptions(cfg_options={f"optim_wrapper.paramwise_cfg.{key}": 1.0}))


def test_layer_decay_belongs_to_two_constructors() -> None:
    options = {"optim_wrapper.paramwise_cfg.layer_decay": dict(vision=0.8)}
    for name, constructor in (
        ("latentvg_beit3b", "EncoderRatesConstructor"),
        ("instalign_tiny_refshapes", "MuonConstructor"),
    ):
        assert load_config(name, RunOptions(cfg_options=options)).optim_wrapper.constructor == constructor
    options["optim_wrapper.constructor"] = None
    with pytest.raises(ConfigError, match="layer_decay: the optimizer constructor does not read this key"):
        load_config("latentvg_beit3b", RunOptions(cfg_options=options))


def test_all_typos_are_reported_at_once() -> None:
    assert len(complaints(param_schedulers=1, train_cfg__max_epoch=1)) == 2


def test_keys_of_an_earlier_type() -> None:
    options = {"model.encoder.vision.type": "TimmEncoder", "model.encoder.vision.name": "resnet18"}
    with pytest.raises(
        ConfigError, match=r"arch: TimmEncoder does not .*model\.encoder\.vision\._delete_=True"
    ) as error:
        load_config("instalign_swinb", RunOptions(cfg_options=options))
    assert "_scope_" not in str(error.value)


def test_unregistered_type_is_reported() -> None:
    (line,) = complaints(model__type="InstAline")
    assert "InstAline" in line


def test_helper_variables_and_wandb_are_accepted() -> None:
    assert unknown_keys(load_config(CONFIG, RunOptions(cfg_options={"_helper": 1, "wandb.project": "x"}))) == []


def own_config(folder: Path, line: str) -> str:
    file = folder / "own.py"
    file.write_text(f"_base_ = 'refseg::{CONFIG}.py'\n{line}\n")
    return str(file)


def test_custom_module_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_a_test.py").write_text(
        "from refseg.models import QueryBaseline\nfrom refseg.registry import MODELS\n"
        "@MODELS.register_module()\nclass OwnBaseline(QueryBaseline):\n    pass\n"
    )
    config = own_config(
        tmp_path, "custom_imports = dict(imports=['module_of_a_test'])\nmodel = dict(type='OwnBaseline')"
    )
    with pytest.raises(ConfigError, match=r"own.py: .*No module named 'module_of_a_test'.*PYTHONPATH"):
        load_config(config)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_config(config).model.type == "OwnBaseline"
    load_config(config, RunOptions(cfg_options={"model.mask_dim": 8}))
    with pytest.raises(ConfigError, match="did you mean 'mask_dim'"):
        load_config(config, RunOptions(cfg_options={"model.mask_dimm": 8}))


def test_custom_imports_has_two_keys() -> None:
    with pytest.raises(ConfigError, match=r"custom_imports.import_: .*did you mean 'imports'"):
        load_config(CONFIG, RunOptions(cfg_options={"custom_imports": dict(import_=["os"])}))


def test_keywords_include_those_of_parents() -> None:
    """B passes **kwargs to A, so it accepts a and b. C has no **kwargs and accepts c alone."""

    class A:
        def __init__(self, a: int = 0) -> None: ...

    class B(A):
        def __init__(self, b: int = 0, **kwargs: int) -> None: ...

    class C(B):
        def __init__(self, c: int = 0) -> None: ...

    assert accepted_names(B) == {"a", "b"}
    assert accepted_names(C) == {"c"}
