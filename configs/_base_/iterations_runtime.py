# For trainings whose length is a number of iterations: checkpoints and logs count these, not epochs.
_base_ = 'default_runtime.py'
default_hooks = dict(checkpoint=dict(interval=5000, by_epoch=False))
log_processor = dict(by_epoch=False)
