_base_ = 'latentvg/latentvg_beit3b_refcoco.py'
