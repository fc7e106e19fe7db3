# VIPA: 40 epochs of AdamW with polynomial decay from 3e-5, batch 16 (4 on each of 4 GPUs). The
# paper does not give weight decay, the power (0.9), and the parameter groups: they are those of
# LAVT and CrossVLT. Norms outside the decoder have no decay, like Swin's.
_base_ = 'adamw_poly.py'
optim_wrapper = dict(optimizer=dict(lr=3e-5))
auto_scale_lr = dict(base_batch_size=16)
