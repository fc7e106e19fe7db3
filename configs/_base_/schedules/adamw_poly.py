# AdamW with polynomial decay per iteration: LAVT, LGFormer, VIPA. Configs set lr, epochs, and the
# paper's batch. The parameter groups are LAVT's: no weight decay for Swin's norms and position
# tables; decay for everything else, including BatchNorm, biases, and BERT's norms. Longer keys win.
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-5, weight_decay=0.01),
    paramwise_cfg=dict(
        bypass_duplicate=True,
        custom_keys={
            'relative_position_bias_table': dict(decay_mult=0.0),
            'decoder.': dict(decay_mult=1.0),
            'norm': dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False)]

train_cfg = dict(type='ResumableTrainLoop', max_epochs=40, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=32)  # total batch size for lr
