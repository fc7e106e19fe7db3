_base_ = 'dmmi/dmmi_swinb_refcoco.py'
