# Four phrases of an image share its encoding: the same 8 phrases per GPU and step, from 2 images, at 28 % of the arithmetic
# (29.8 instead of 106.5 G products each). The paper draws phrases one by one; what the smaller variety of a batch costs is
# not known.
_base_ = 'instalign_swinb_grefcoco.py'
train_dataloader = dict(batch_size=2, dataset=dict(expressions_per_image=4))
