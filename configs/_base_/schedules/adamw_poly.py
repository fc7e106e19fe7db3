# AdamW with polynomial decay per iteration: LAVT, LGFormer, VIPA. A leaf sets lr, epochs and the paper's batch.
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-5, weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0, bypass_duplicate=True),
)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False)]

train_cfg = dict(type='ResumableTrainLoop', max_epochs=40, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=32)  # the total batch that lr belongs to
