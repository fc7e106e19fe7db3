# A short training from random weights, of InstAlign and ReLA on RefShapes mini.
_base_ = 'adamw_cosine.py'
optim_wrapper = dict(optimizer=dict(lr=1.2e-3))
train_cfg = dict(max_epochs=4, val_interval=4)
auto_scale_lr = dict(base_batch_size=8)
