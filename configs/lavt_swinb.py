_base_ = 'lavt/lavt_swinb_refcoco.py'
