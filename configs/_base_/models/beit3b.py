# BEiT-3-B at 480 x 480, patches of 16. Its pixels are in -1..1, as in its pretraining. Its tokens are XLM-R's SentencePiece,
# 20 of them, special ones counted, as most of the field has it on BEiT-3.
inputs = dict(tokenizer=dict(sentencepiece='data/weights/beit3.spm', max_words=20), image_size=(480, 480))
model = dict(
    data_preprocessor=dict(
        type='ReferringDataPreprocessor', mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5), size_divisor=16
    ),
    encoder=dict(
        type='BEiT3Encoder',
        arch='base',
        image_size=480,
        patch_size=16,
        drop_path_rate=0.1,  # of published fine-tunings of this field
        pretrained='data/weights/beit3_base_patch16_224.pth',
    ),
)

# How the tests shrink it.
_tiny = dict(
    model=dict(
        encoder=dict(
            arch=dict(_delete_=True, embed_dim=32, num_layers=2, num_heads=2, vocab_size=64, text_positions=40),
            image_size=64,
            pretrained=None,
        )
    )
)
