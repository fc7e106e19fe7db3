"""What the tools and the command call: build a runner from a config, train, test, quick start."""

from refseg.apis.runner import RunOptions, build_runner, load_config, load_weights, test, train

__all__ = ["RunOptions", "build_runner", "load_config", "load_weights", "test", "train"]
