# RefCOCO, RefCOCO+, and RefCOCOg (umd) together, without training images that any of them evaluates
# on. `exclude_images_of=[]` in all three reproduces published mixtures, which leak (docs/data.md).
_base_ = 'refcoco.py'
_refcoco = dict(format='refer', refs='data/refcoco/refs(unc).p', instances='data/refcoco/instances.json')
_refcocoplus = dict(format='refer', refs='data/refcoco+/refs(unc).p', instances='data/refcoco+/instances.json')
_refcocog = dict(format='refer', refs='data/refcocog/refs(umd).p', instances='data/refcocog/instances.json')
_leak_filter = [
    dict(annotations=_refcoco, split=['val', 'test']),
    dict(annotations=_refcocoplus, split=['val', 'test']),
    dict(annotations=_refcocog, split=['val', 'test']),
]
_train = dict(
    type='ReferringDataset',
    image_root='data/images/train2014',
    split='train',
    sentences='one_per_object',
    expressions_per_image=1,
    exclude_images_of=_leak_filter,
    max_bad_samples=10,
    pipeline=_base_._train_pipeline,
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='MixedDataset',
        datasets=[
            dict(_train, annotations=_refcoco),
            dict(_train, annotations=_refcocoplus),
            dict(_train, annotations=_refcocog),
        ],
    )
)
