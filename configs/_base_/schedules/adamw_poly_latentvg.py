# Latent-VG: AdamW, batch 64 (16 on each of 4 GPUs). The learning rate and its decay, weight decay,
# and 40 epochs are LAVT's, since our summary of the paper gives none. `new_parts_lr_mult` multiplies
# the rate of parts without pretrained weights; DeRIS has 2, and C3VG 10.
_base_ = 'adamw_poly_beit3.py'
optim_wrapper = dict(constructor='EncoderRatesConstructor', paramwise_cfg=dict(new_parts_lr_mult=1.0))
auto_scale_lr = dict(base_batch_size=64)
