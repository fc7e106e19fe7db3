# A short training from random weights on RefShapes mini: InstAlign, ReLA, VIPA, and Latent-VG.
_base_ = 'muon_cosine.py'
train_cfg = dict(max_epochs=3, val_interval=3)
auto_scale_lr = dict(base_batch_size=8)
