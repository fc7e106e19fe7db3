# ReLA without fusion in the encoder: images are encoded once for all their phrases, as in
# InstAlign, so that the two can be compared at equal numbers of phrases and about equal time.
_base_ = 'rela_tiny_refshapes.py'
model = dict(encoder=dict(fusion=None))
train_dataloader = dict(dataset=dict(expressions_per_image=18))
