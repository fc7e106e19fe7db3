# CLIP's text tower (ViT-B/16) in place of BERT.
_base_ = 'swinb_modernbert_grefcoco.py'
model = dict(encoder=dict(text=dict(pretrained='openai/clip-vit-base-patch16')))
_tiny = dict(model=dict(encoder=dict(text=dict(config=dict(model_type='clip_text_model')))))
