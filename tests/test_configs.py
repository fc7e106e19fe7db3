"""Every leaf config has valid keys and parameter groups, and its model takes a training step and predicts.

Models are built at the tiny size that their base file gives in `_tiny = dict(model=...)`.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope

from conftest import REPOSITORY
from refseg.analysis.synthetic import dummy_batch, vocabulary_size
from refseg.engine.run import RunOptions, build_model, load_config
from refseg.errors import ConfigError
from refseg.paths import configs_dir, resolve_config, shipped_configs
from refseg.registry import METRICS

CONFIGS = REPOSITORY / "configs"

LEAVES = sorted(
    path.relative_to(CONFIGS)
    for path in CONFIGS.glob("*/**/*.py")
    if not any(part.startswith("_") or part == "zero_shot" for part in path.relative_to(CONFIGS).parts)
)  # zero-shot configs, which need weights: tests/models/zero_shot
# Names that users type -> their leaves. `make check` trains these: one per method.
ENTRY_POINTS = {
    path.stem: Path(re.fullmatch(r"_base_ = '(\S+)'\n", path.read_text())[1]) for path in sorted(CONFIGS.glob("*.py"))
}


def tiny(leaf: Path) -> Config:
    cfg = load_config(str(CONFIGS / leaf))  # raises on unknown keys
    cfg.merge_from_dict(cfg.get("_tiny", {}))
    return cfg


def test_entry_points_name_leaves() -> None:
    assert set(ENTRY_POINTS) == {
        *("instalign_swinb", "lgformer_swinb", "vipa_swinb", "latentvg_beit3b", "lavt_swinb", "rela_swinb"),
        *("cgformer_swinb", "deris_beit3b", "dmmi_swinb", "mask2former_swinb", "instalign_tiny_refshapes"),
        "baseline_tiny_refshapes",
    }
    assert set(ENTRY_POINTS.values()) <= set(LEAVES)


@pytest.mark.parametrize(
    "leaf",
    [pytest.param(leaf, marks=[pytest.mark.smoke] * (leaf in ENTRY_POINTS.values()), id=str(leaf)) for leaf in LEAVES],
)
def test_leaf_takes_a_step_and_predicts(leaf: Path, device: str = "cpu") -> None:
    cfg = tiny(leaf)
    torch.manual_seed(0)
    model = build_model(cfg).to(device)
    batch = dummy_batch(
        shape=(64, 64), num_images=2, expressions_per_image=2, num_words=7, vocab_size=vocabulary_size(model)
    )
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for key in (cfg.optim_wrapper.get("paramwise_cfg") or {}).get("custom_keys", {}):
        if key == "relative_position_bias_table" and "encoders" in leaf.parts:
            continue  # Swin's; other image encoders have none
        assert any(key in name for name in before), f"paramwise_cfg.custom_keys[{key!r}] matches no parameter"
    model.train()
    log = model.train_step(batch, wrapper)
    assert torch.isfinite(log["loss"])
    moved = [name for name, parameter in model.named_parameters() if not torch.equal(before[name], parameter)]
    assert moved, "no parameter changed"

    model.eval()
    results = model.val_step(batch)
    assert [result.masks.shape for result in results] == [(2, 64, 64)] * 2
    assert all(result.masks.dtype is torch.bool and result.rejected.shape == (2,) for result in results)


@pytest.mark.gpu
@pytest.mark.parametrize("leaf", LEAVES, ids=str)
def test_leaf_on_a_gpu(leaf: Path) -> None:
    test_leaf_takes_a_step_and_predicts(leaf, "cuda")


def test_leaves_of_a_data_set_share_the_metric_of_the_best_checkpoint() -> None:
    """The file of the data set names protocols and metric. No leaf sets them, except on BEiT-3, whose papers report
    mIoU on RefCOCO. Validation gives the metric."""
    chosen: dict[str, set[tuple]] = {}
    for leaf in LEAVES:
        cfg = Config.fromfile(CONFIGS / leaf)
        assert cfg.default_hooks.checkpoint.save_best == "auto", leaf
        evaluator = cfg.val_evaluator
        assert evaluator.save_best in METRICS.build(evaluator).metric_names, leaf
        if cfg.model.get("encoder", {}).get("type") == "BEiT3Encoder" and "lavt" in evaluator.protocols:
            assert evaluator.save_best == "lavt/mIoU", leaf
            continue
        data = cfg.val_dataloader.dataset
        name = f"{data.annotations.to_dict()} {data.get('no_target')}"
        chosen.setdefault(name, set()).add((tuple(evaluator.protocols), evaluator.save_best))
        source = (CONFIGS / leaf).read_text()
        assert "val_evaluator" not in source and "save_best" not in source, leaf
    assert len(chosen) >= 8 and {name: found for name, found in chosen.items() if len(found) > 1} == {}


@pytest.mark.parametrize("leaf", ["lgformer_swinb.py", "lgformer/ablations/table4_pwam_baseline.py", "lavt_swinb.py"])
def test_refcoco_configs_use_the_lavt_protocol(leaf: str) -> None:
    cfg = Config.fromfile(CONFIGS / leaf)
    assert tuple(cfg.val_evaluator.protocols) == tuple(cfg.test_evaluator.protocols) == ("lavt", "refseg")
    assert cfg.val_evaluator.save_best == "lavt/oIoU"


def test_leaves_are_short() -> None:
    for leaf in LEAVES:
        lines = (CONFIGS / leaf).read_text().splitlines()
        assert len(lines) <= 40, f"{leaf} has {len(lines)} lines: a leaf is four bases and a few overrides"


class TestNames:
    def test_name_needs_no_folder(self, capsys: pytest.CaptureFixture) -> None:
        wanted = shipped_configs()["lavt/lavt_swinb_refcocog"]
        for name in ("lavt_swinb_refcocog", "lavt_swinb_refcocog.py", "configs/lavt_swinb_refcocog.py"):
            assert resolve_config(name) == wanted
        assert capsys.readouterr().err == ""

    def test_entry_points_come_first(self) -> None:
        assert {*list(shipped_configs())[: len(ENTRY_POINTS)]} == set(ENTRY_POINTS)
        assert resolve_config("instalign_tiny_refshapes") == configs_dir() / "instalign_tiny_refshapes.py"

    def test_renamed_config_is_found_with_a_note(self, capsys: pytest.CaptureFixture) -> None:
        new = "instalign/ablations/table3a_without_instance_supervision"
        for old in ("instalign_ablations/table3a_none", "configs/instalign_ablations/table3a_none.py", "table3a_none"):
            assert resolve_config(old) == shipped_configs()[new]
            assert new in capsys.readouterr().err
        assert resolve_config("instalign_swinb_640").stem == "instalign_swinb_grefcoco_640"

    def test_renamed_config_is_found_as_a_base(self, tmp_path: Path) -> None:
        file = tmp_path / "own.py"
        file.write_text("_base_ = 'refseg::vipa_ablations/fig4_ratio_10.py'\n")
        assert load_config(str(file)).model.generator.ratio == 0.1

    def test_new_names_in_the_table_exist(self) -> None:
        lines = (CONFIGS / "renamed.txt").read_text().splitlines()[1:]
        shipped = shipped_configs()
        for old, new in map(str.split, lines):
            assert new in shipped and old not in shipped

    def test_ambiguous_name_is_an_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "same.py").touch()
        monkeypatch.setattr("refseg.paths.configs_dir", lambda: tmp_path)
        with pytest.raises(ConfigError, match="one/same, two/same"):
            resolve_config("same")


def pipeline_steps(cfg: Config, kind: str) -> list[dict]:
    """Return every step of a type, in all loaders and parts of mixtures."""
    datasets = [cfg[f"{loader}_dataloader"].dataset for loader in ("train", "val", "test")]
    parts = [part for dataset in datasets for part in dataset.get("datasets") or [dataset]]
    return [step for part in parts for step in part.pipeline if step.type == kind]


class TestInputs:
    def load(self, name: str, **cfg_options: object) -> Config:
        return load_config(name, RunOptions(cfg_options=cfg_options))

    @pytest.mark.parametrize(
        ("name", "tokenizer"),
        [
            ("lavt_swinb", dict(pretrained="bert-base-uncased", max_words=20)),
            ("vipa_swinb_mixed", dict(pretrained="bert-base-uncased", max_words=21)),
            ("instalign_swinb_roberta_grefcoco", dict(pretrained="roberta-base", max_words=20)),
            ("vipa_beit3b_mixed", dict(sentencepiece="data/weights/beit3.spm", max_words=21)),
            ("latentvg_beit3b_mixed", dict(sentencepiece="data/weights/beit3.spm", max_words=20)),
        ],
    )
    def test_tokenizer_and_size_come_from_the_model(self, name: str, tokenizer: dict) -> None:
        cfg = self.load(name)
        assert [step.tokenizer.to_dict() for step in pipeline_steps(cfg, "LoadText")] in (
            [tokenizer] * 3,
            [tokenizer] * 5,
        )
        assert {step["size"] for step in pipeline_steps(cfg, "Resize")} == {(480, 480)}
        assert "inputs" not in cfg

    def test_one_option_changes_text_encoder_and_tokenizers(self) -> None:
        cfg = self.load("rela_swinb", **{"model.encoder.text.pretrained": "/my/bert"})
        assert cfg.model.encoder.text.pretrained == "/my/bert"
        assert {step.tokenizer.pretrained for step in pipeline_steps(cfg, "LoadText")} == {"/my/bert"}

    def test_vocabulary_stays_without_pretrained_weights(self) -> None:
        cfg = self.load("rela_swinb", **{"model.encoder.text.pretrained": None})
        assert {step.tokenizer.pretrained for step in pipeline_steps(cfg, "LoadText")} == {"bert-base-uncased"}

    def test_options_of_inputs_reach_every_pipeline(self) -> None:
        cfg = self.load("lavt_swinb", **{"inputs.image_size": (64, 64), "inputs.tokenizer.max_words": 9})
        assert {step["size"] for step in pipeline_steps(cfg, "Resize")} == {(64, 64)}
        assert {step.tokenizer.max_words for step in pipeline_steps(cfg, "LoadText")} == {9}

    def test_values_of_a_pipeline_win(self) -> None:
        step = "test_dataloader.dataset.pipeline"
        cfg = self.load("lavt_swinb", **{f"{step}.1.size": (64, 64), f"{step}.2.tokenizer.keep_end": False})
        assert [one["size"] for one in pipeline_steps(cfg, "Resize")] == [(480, 480), (480, 480), (64, 64)]
        tokenizer = dict(pretrained="bert-base-uncased", max_words=20, keep_end=False)
        assert pipeline_steps(cfg, "LoadText")[2].tokenizer.to_dict() == tokenizer
        # Except for a vocabulary that the pretrained text encoder does not have
        words = {f"{step}.2.tokenizer.word_list": "words.txt"}
        cfg = self.load("lavt_swinb", **words)
        assert pipeline_steps(cfg, "LoadText")[2].tokenizer.to_dict() == dict(
            pretrained="bert-base-uncased", max_words=20
        )
        cfg = self.load("lavt_swinb", **words, **{"model.encoder.text.pretrained": None})
        assert pipeline_steps(cfg, "LoadText")[2].tokenizer.to_dict() == dict(word_list="words.txt", max_words=20)

    @pytest.mark.parametrize(
        ("name", "option", "message"),
        [
            ("lavt_swinb", "inputs.image_sise", "did you mean 'image_size'"),
            ("lavt_tiny_refshapes", "inputs.image_size", "every pipeline has its own"),
            ("lavt_tiny_refshapes", "inputs.tokenizer.max_words", "every pipeline has its own"),
        ],
    )
    def test_option_of_inputs_without_effect_is_an_error(self, name: str, option: str, message: str) -> None:
        with pytest.raises(ConfigError, match=f"{re.escape(option)}: .*{message}"):
            self.load(name, **{option: 64})

    @pytest.mark.parametrize("option", ["inputs", "inputs.tokenizer"])
    def test_inputs_of_another_type_are_an_error(self, option: str) -> None:
        with pytest.raises(ConfigError, match="inputs must be dict"):
            self.load("lavt_swinb", **{option: "bert"})

    def test_missing_inputs_are_an_error(self, tmp_path: Path) -> None:
        bases = ["datasets/refcoco.py", "models/lavt_tiny.py", "schedules/adamw_poly.py", "default_runtime.py"]
        file = tmp_path / "own.py"
        file.write_text(f"_base_ = {[f'refseg::_base_/{base}' for base in bases]}\n")
        with pytest.raises(ConfigError, match=r"train_dataloader: Resize has no size; set inputs=dict\(image_size"):
            load_config(str(file))

    def test_dumped_config_is_complete(self, tmp_path: Path) -> None:
        cfg = self.load("vipa_swinb")
        cfg.dump(tmp_path / "dumped.py")
        again = load_config(str(tmp_path / "dumped.py"))
        assert again.test_dataloader == cfg.test_dataloader and again.train_dataloader == cfg.train_dataloader


def test_readme_of_every_method_names_its_configs() -> None:
    for folder in {leaf.parts[0] for leaf in LEAVES}:
        readme = (CONFIGS / folder / "README.md").read_text()
        missing = [leaf.stem for leaf in LEAVES if leaf.parts[0] == folder and f"`{leaf.stem}`" not in readme]
        assert not missing, f"configs/{folder}/README.md lacks {missing}"
