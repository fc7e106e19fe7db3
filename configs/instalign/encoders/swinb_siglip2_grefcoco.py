# SigLIP 2's text tower (ViT-B/16) in place of BERT.
_base_ = 'swinb_modernbert_grefcoco.py'
model = dict(encoder=dict(text=dict(pretrained='google/siglip2-base-patch16-256')))
_tiny = dict(model=dict(encoder=dict(text=dict(config=dict(model_type='siglip_text_model')))))
