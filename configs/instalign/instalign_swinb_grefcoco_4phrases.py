# Four phrases share the encoding of their image: the same 8 phrases per GPU and step, from 2
# images, at 28 % of the arithmetic (29.8 instead of 106.5 GMAC per phrase). The paper samples
# phrases one by one; the effect of less varied batches is not known.
_base_ = 'instalign_swinb_grefcoco.py'
train_dataloader = dict(batch_size=2, dataset=dict(expressions_per_image=4))
