# CGFormer: 50 epochs of AdamW (AMSGrad) with polynomial decay, batch 64 (16 on each of 4 GPUs).
# Swin and BERT learn at half the rate. Everything has weight decay, and no gradient is clipped. The
# published code trains in mixed precision: --amp.
_base_ = 'adamw_poly.py'
optim_wrapper = dict(
    constructor='EncoderRatesConstructor',
    optimizer=dict(lr=1e-4, weight_decay=1e-4, amsgrad=True),
    paramwise_cfg=dict(_delete_=True, encoder_lr_mult=0.5),
)
train_cfg = dict(max_epochs=50)
auto_scale_lr = dict(base_batch_size=64)
