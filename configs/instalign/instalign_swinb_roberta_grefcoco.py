# Table 6: RoBERTa. The tokenizer follows the text encoder.
_base_ = 'instalign_swinb_grefcoco.py'
model = dict(encoder=dict(text=dict(pretrained='roberta-base', config=dict(model_type='roberta'))))
