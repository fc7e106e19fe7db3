_base_ = 'vipa/vipa_swinb_refcoco.py'
