# BEiT-3-B at 480 x 480 with patches of 16. Pixels are scaled to -1..1, as in its pretraining.
# Tokens are XLM-R's SentencePiece, at most 20 including special ones, as in most work on BEiT-3.
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
        drop_path_rate=0.1,  # as in published fine-tunings on this task
        pretrained='data/weights/beit3_base_patch16_224.pth',
    ),
)

# Overrides for the tests.
_tiny = dict(
    model=dict(
        encoder=dict(
            arch=dict(_delete_=True, embed_dim=32, num_layers=2, num_heads=2, vocab_size=64, text_positions=40),
            image_size=64,
            pretrained=None,
        )
    )
)
