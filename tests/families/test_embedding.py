"""The encoders that distances of pictures are measured with."""

from __future__ import annotations

from typing import Any

import pytest

from zoo.errors import DataError, UserError
from zoo.families import embedding


@pytest.mark.parametrize("error", [DataError("the hub does not answer"), OSError("the hub does not answer")])
def test_weights_that_cannot_be_fetched_stop_a_benchmark_once(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A mistake of one image would be noted, and be said again of the next."""

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(embedding, "build_encoder", fails)
    embedding.encoder_of.cache_clear()
    with pytest.raises(UserError, match="resnet50: the hub does not answer"):
        embedding.encoder_of("resnet50")
