import json
from pathlib import Path
from unittest import mock

import pytest

from refseg.engine.run import RunOptions, batch_report, load_config, take_resume, without_weights
from refseg.errors import CheckpointError, ConfigError, UsageError

CONFIG = "baseline_tiny_refshapes"


def load(**kwargs: object) -> object:
    return load_config(CONFIG, RunOptions(**kwargs))


@pytest.mark.parametrize(("bf16", "dtype", "scale"), [(True, "bfloat16", 1.0), (False, "float16", "dynamic")])
def test_amp_uses_bf16_if_the_gpu_has_it(bf16: bool, dtype: str, scale: object) -> None:
    with (
        mock.patch("torch.cuda.is_available", return_value=True),
        mock.patch("torch.cuda.is_bf16_supported", return_value=bf16),
    ):
        cfg = load(amp=True)
    assert (cfg.optim_wrapper.type, cfg.optim_wrapper.dtype) == ("GuardedAmpOptimWrapper", dtype)
    assert cfg.optim_wrapper.loss_scale == scale


def test_amp_needs_a_gpu() -> None:
    with mock.patch("torch.cuda.is_available", return_value=False), pytest.raises(UsageError, match="needs a GPU"):
        load(amp=True)


def test_batch_size_is_compared_with_the_paper() -> None:
    """8 images on 4 processes with 2 accumulated steps are 64. The config says 8."""
    line, agrees = batch_report(load(cfg_options={"optim_wrapper.accumulative_counts": 2}), 4)
    assert line.startswith("batch: 8 per process x 4 x 2 accumulation = 64 images (the learning rate belongs to 8)")
    assert not agrees and "--auto-scale-lr" in line
    assert batch_report(load(), 1)[1]
    assert batch_report(load(auto_scale_lr=True), 4)[1]


def test_auto_scale_lr_counts_accumulation(tmp_path: Path, tiny_options: dict) -> None:
    """4 images x 2 accumulated steps are the 8 of the config. Without accumulation, the rate is halved."""
    from refseg.engine.run import build_runner

    for accumulation, expected in ((2, 1e-3), (1, 5e-4)):
        options = tiny_options | {"optim_wrapper.accumulative_counts": accumulation}
        cfg = load(work_dir=str(tmp_path), cfg_options=options, auto_scale_lr=True)
        runner = build_runner(cfg)
        wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(wrapper, runner.auto_scale_lr)
        assert wrapper.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_timeout_of_processes_comes_from_the_config() -> None:
    from refseg.engine.run import build_runner

    with mock.patch("refseg.engine.run.init_cpu_dist", side_effect=StopIteration) as joined:
        for options in ({}, {"env_cfg.dist_cfg.timeout": 7200}):
            with pytest.raises(StopIteration):
                build_runner(load(cfg_options=options))
    assert [call.args for call in joined.call_args_list] == [("none", None), ("none", 7200)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("_base_ = ['gone.py']", r"own\.py: its _base_ 'gone\.py' is not there \(.*gone\.py\)"),
        ("_base_ = 'refseg::_base_/gone.py'", r"own\.py: its _base_ .* is not there"),
        ("_base_ = ['other.py']", r"other\.py: its _base_ 'gone\.py' is not there"),
        ("_base_ = ['own.py']", r"own\.py cannot be read as a config \(RecursionError"),
        ("_base_ = ['gone.py'", r"own\.py cannot be read as a config \(SyntaxError"),
        ("a = b", r"own\.py cannot be read as a config \(NameError: name 'b'"),
    ],
)
def test_broken_configs(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(content)
    (tmp_path / "other.py").write_text("_base_ = ['gone.py']")
    with pytest.raises(ConfigError, match=says):
        load_config(str(tmp_path / "own.py"))


def test_one_key_enables_wandb() -> None:
    kinds = [backend.type for backend in load().visualizer.vis_backends]
    assert kinds == ["LocalVisBackend", "TensorboardVisBackend"]
    backend = load(cfg_options={"wandb.enable": True, "wandb.project": "p"}).visualizer.vis_backends[-1]
    assert backend.type == "OptionalWandbBackend" and backend.init_kwargs == {"project": "p"}


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    cfg = load(work_dir=str(tmp_path))
    assert take_resume(cfg, True) is None
    assert "starting from the beginning" in capsys.readouterr().out
    (tmp_path / "epoch_3.pth").touch()
    assert take_resume(cfg, True) == tmp_path / "epoch_3.pth"
    assert take_resume(cfg, False) is None
    with pytest.raises(CheckpointError, match=r"--resume: no such checkpoint: none\.pth"):
        take_resume(cfg, "none.pth")


def test_resume_is_removed_from_the_config(tmp_path: Path) -> None:
    """With `resume`, `load_from` names the checkpoint to continue from, as in OpenMMLab's tools."""
    (tmp_path / "epoch_3.pth").touch()
    cfg = load(cfg_options={"resume": True, "load_from": str(tmp_path / "epoch_3.pth")})
    assert take_resume(cfg, False) == tmp_path / "epoch_3.pth"
    assert not cfg.resume and cfg.load_from is None


def test_checkpoints_and_results_name_the_training_data(tiny_config: Path, tmp_path: Path) -> None:
    from refseg.engine.run import test as evaluate
    from refseg.engine.run import train

    file = load_config(str(tiny_config)).train_dataloader.dataset.annotations.to_dict()
    leaks = {"train_dataloader.dataset.exclude_images_of": [dict(annotations=file, split="val")]}
    more = {"train_cfg.max_epochs": 1, "train_dataloader.dataset.split": ["train", "val"]}
    train(str(tiny_config), RunOptions(work_dir=str(tmp_path), cfg_options=leaks | more))
    evaluate(
        str(tiny_config),
        str(tmp_path / "epoch_1.pth"),
        RunOptions(work_dir=str(tmp_path / "test"), cfg_options={"model.postprocess.threshold": 0.4}),
        out=str(tmp_path / "r.json"),
    )
    result = json.loads((tmp_path / "r.json").read_text())
    # RefShapes tiny has 7 images with 6 expressions each in val; all of them are images of val.
    assert result["cfg_options"] == {"model.postprocess.threshold": 0.4} and result["postprocess"]["threshold"] == 0.4
    assert result["trained_on"]["leak_filter"]["dropped_expressions"] == 42
    assert result["trained_on"]["split"] == ["train", "val"] and result["data"]["split"] == "test"
    assert (
        result["metrics"] and result["protocols"][0]["name"] == "refseg" and len(result["checkpoint"]["sha256"]) == 64
    )


def test_run_shorter_than_its_warm_up(tiny_config: Path, tmp_path: Path) -> None:
    """The run has 2 epochs of 6 steps, and the warm-up has 100 steps."""
    from refseg.engine.run import train

    schedule = [dict(type="LinearLR", by_epoch=False, end=100), dict(type="PolyLR", by_epoch=False, begin=100)]
    options = RunOptions(work_dir=str(tmp_path), cfg_options={"param_scheduler": schedule})
    with pytest.raises(ConfigError, match="the run is shorter than a part of its schedule"):
        train(str(tiny_config), options)


def test_models_of_checkpoints_are_built_without_pretrained_weights() -> None:
    """Encoders are built from their architecture. Tokenizers stay pretrained."""
    cfg = load_config("lavt_swinb")
    encoder = without_weights(cfg.model)["encoder"]
    assert cfg.model.encoder.vision.pretrained and cfg.model.encoder.text.pretrained
    assert encoder["vision"]["pretrained"] is None and encoder["text"]["pretrained"] is None
    assert cfg.test_dataloader.dataset.pipeline[2].tokenizer.pretrained == "bert-base-uncased"
