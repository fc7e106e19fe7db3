# Table VI a, row 1: no retrieval. All pixels are refined and read.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(cues=dict(global_cue=False, local_cues=False), supervision=dict(scores=None))
