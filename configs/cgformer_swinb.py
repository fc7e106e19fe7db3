_base_ = 'cgformer/cgformer_swinb_refcoco.py'
