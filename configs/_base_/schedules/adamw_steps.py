# ReLA: AdamW, 150,000 iterations of 48 samples, a tenth of the rate after 110,000 and 140,000. The
# published warm-up of 10 iterations has a factor of 1, so there is none. Use --amp for mixed
# precision. No decay for norms (except BERT's), position tables, and embeddings. Longer keys win.
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-5, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),  # of the whole model: clips every step
    paramwise_cfg=dict(
        bypass_duplicate=True,
        norm_decay_mult=0.0,
        custom_keys={
            'encoder.text.': dict(decay_mult=1.0),
            'relative_position_bias_table': dict(decay_mult=0.0),
            'decoder.queries': dict(decay_mult=0.0),
            'decoder.query_position': dict(decay_mult=0.0),
            'decoder.level_embed': dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [dict(type='MultiStepLR', milestones=[110_000, 140_000], gamma=0.1, by_epoch=False)]

train_cfg = dict(type='ResumableTrainLoop', max_iters=150_000, val_interval_iters=5000, val_interval=1_000_000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=48)  # total batch size for lr
