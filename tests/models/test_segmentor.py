import pytest
import torch

from refseg.analysis.synthetic import dummy_batch
from refseg.models import RefSegmentor
from refseg.structures import Batch, Prediction


class Stub(RefSegmentor):
    """Counts its forwards; the loss is the mean logit."""

    def __init__(self, names: tuple[str, ...] = ("loss_mask",), **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.calls, self.names = 0, names

    def infer(self, batch: Batch) -> Prediction:
        self.calls += 1
        return Prediction(self.weight * torch.ones(batch.num_expressions, 4, 4))

    def losses(self, prediction: Prediction, batch: Batch) -> dict:
        return {name: prediction.mask_logits.mean() for name in self.names}


def prepared(model: RefSegmentor) -> dict:
    return model.data_preprocessor(dummy_batch(shape=(8, 8), expressions_per_image=3), True)


def test_the_three_modes_of_forward() -> None:
    model = Stub()
    data = prepared(model)
    assert model(**data).mask_logits.shape == (3, 4, 4)
    assert model(**data, mode="loss")["loss_mask"].item() == 1
    (result,) = model(**data, mode="predict")
    assert result.masks.shape == (3, 8, 8) and result.masks.all()
    assert model.calls == 3
    with pytest.raises(ValueError, match="mode"):
        model(**data, mode="test")


def test_losses_are_summed_and_stray_names_rejected() -> None:
    model = Stub(("loss_a", "loss_b", "accuracy"))
    total, log = model.parse_losses(model(**prepared(model), mode="loss"))
    assert total.item() == 2 and log["accuracy"].item() == 1
    model.names = ("aux_loss",)
    with pytest.raises(KeyError, match="aux_loss"):
        model.parse_losses(model(**prepared(model), mode="loss"))


def test_the_postprocess_settings_are_checked() -> None:
    assert not Stub(postprocess=dict(threshold=0.9))(**prepared(Stub()), mode="predict")[0].masks.any()
    with pytest.raises(TypeError):
        Stub(postprocess=dict(treshold=0.9))


def test_model_without_infer_raises() -> None:
    with pytest.raises(TypeError, match="must define infer"):
        RefSegmentor()(**prepared(Stub()))
