# InstAlign: AdamW, 20 epochs, linear decay, batch 32. The learning rate is illegible in our copy of
# the paper. We use Mask2Former's, with a tenth of it for the pretrained encoders, and Mask2Former's
# weight decay and gradient clipping. No decay for norms, position tables, and embeddings. VATEX's published code (the paper's reference 27) has the same
# learning rate and clipping.
optim_wrapper = dict(
    type='GuardedOptimWrapper',
    constructor='EncoderRatesConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),
    paramwise_cfg=dict(
        bypass_duplicate=True,
        norm_decay_mult=0.0,
        encoder_lr_mult=0.1,
        custom_keys={
            'relative_position_bias_table': dict(decay_mult=0.0),
            'decoder.queries': dict(decay_mult=0.0),
            'query_position': dict(decay_mult=0.0),
            'level_embed': dict(decay_mult=0.0),
            'aggregate.slope': dict(decay_mult=0.0),
            'level_encoding': dict(decay_mult=0.0),
        },
    ),
)
param_scheduler = [dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False)]

train_cfg = dict(type='ResumableTrainLoop', max_epochs=20, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

auto_scale_lr = dict(enable=False, base_batch_size=32)  # total batch size for lr
