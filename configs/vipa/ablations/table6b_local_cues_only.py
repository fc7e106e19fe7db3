# Table VI b, row 3: all tokens except [CLS] retrieve.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(cues=dict(global_cue=False))
