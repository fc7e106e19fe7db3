# Table VI b, row 2: only [CLS] retrieves.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(cues=dict(local_cues=False))
