# Table VI b, row 3: all tokens but [CLS] retrieve.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(cues=dict(global_cue=False))
