# Latent-VG: AdamW, batch 64 (16 on each of 4 GPUs). Rate, weight decay, decay of the rate and the 40 epochs are LAVT's,
# as our text has none of the paper's.
_base_ = 'adamw_poly_beit3.py'
auto_scale_lr = dict(base_batch_size=64)
