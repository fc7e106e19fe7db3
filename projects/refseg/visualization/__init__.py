"""Drawing of masks, instances and captions on images: arrays in, arrays out."""
