# Table VII, without fusion, with VE: images are shared by their phrases. All twelve layers of BERT keep the size.
_base_ = '../vipa_swinb_refcocoplus.py'
model = dict(encoder=dict(text=dict(stages=None), fusion=None))
_tiny = dict(model=dict(encoder=dict(fusion=None)))
