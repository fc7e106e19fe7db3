# Table VI a, row 1: all pixels are refined and read, none is retrieved.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(cues=dict(global_cue=False, local_cues=False), supervision=dict(scores=None))
