"""A published model whose network could not be made into a graph: the zoo's code is beside it.

It takes files where it runs, as `zoo predict input=` does, and gives one row an item. Nothing but
`weights.safetensors`, in which settings and facts travel with the tensors, is read.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel


class Predictor(PythonModel):
    """Paths to predictions."""

    def load_context(self, context: Any) -> None:
        """Remember where the weights are; each prediction makes its model of them."""
        self.weights = Path(context.artifacts["weights.safetensors"])
        told = json.loads(Path(context.artifacts["io.json"]).read_text(encoding="utf-8"))
        if told.get("notice"):
            logging.getLogger("zoo").warning(told["notice"])

    # MLflow derives a signature from any other hint; ours stands in MLmodel.
    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict on files.

        Args:
            context: MLflow's; unused.
            model_input: A column `path` of files or folders.
            params: Unused.

        Returns:
            One row an item, as in predictions.csv of `zoo predict`.

        Raises:
            MlflowException: The paths or what lies there cannot be read; one line.
        """
        from zoo.errors import ZooError
        from zoo.inference import predict_paths
        from zoo.progress import Reporter

        if not isinstance(model_input, (pd.DataFrame, Mapping)) or "path" not in model_input:
            msg = "the model takes a column 'path' of files or folders where it runs"
            raise MlflowException(msg, error_code=INVALID_PARAMETER_VALUE)
        paths = [Path(str(p)) for p in model_input["path"]]
        try:
            with tempfile.TemporaryDirectory(prefix="zoo-") as out:
                words = [f"weights={self.weights}", f"predict.out={out}", "predict.dense=false"]
                return pd.DataFrame(predict_paths(words, paths, Reporter(True))[0])
        except ZooError as error:
            msg = str(error).splitlines()[0]
            raise MlflowException(msg, error_code=INVALID_PARAMETER_VALUE) from None


mlflow.models.set_model(Predictor())
