_base_ = 'lgformer/lgformer_swinb_refcoco.py'
