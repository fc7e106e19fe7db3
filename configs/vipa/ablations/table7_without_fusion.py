# Table VII, no fusion, with VE: phrases share their image. All twelve layers of BERT keep the size.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(encoder=dict(text=dict(stages=None), fusion=None))
_tiny = dict(model=dict(encoder=dict(fusion=None)))
