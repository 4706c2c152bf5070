from __future__ import annotations

import pytest
import torch

from zoo.domains.remote_sensing.crop_yield.losses import yield_loss


def test_squared_error_and_the_absolute_one_beside_it() -> None:
    prediction, target = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 3.0])
    assert yield_loss(prediction, target).item() == pytest.approx((4 + 1) / 2)
    assert yield_loss(prediction, target, l1=True).item() == pytest.approx(2.5 + 1.5)


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prediction \(3,\) and target \(3, 1\) differ"):
        yield_loss(torch.zeros(3), torch.zeros(3, 1))
