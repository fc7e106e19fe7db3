# Latent-VG: AdamW, batch 64 (16 on each of 4 GPUs). The learning rate and its decay, weight decay,
# and 40 epochs are LAVT's, since our summary of the paper gives none.
_base_ = 'adamw_poly_beit3.py'
auto_scale_lr = dict(base_batch_size=64)
