# Table 3b: the union of the instances with a relevance above 0.5.
_base_ = '../instalign_swinb_grefcoco.py'
model = dict(aggregation='fixed')
