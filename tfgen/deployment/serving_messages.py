"""TF Serving's messages: what is asked and answered, as protocol buffers.

Importing it imports TensorFlow, whose tensors the messages hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from tfgen.deployment.served import Requests
from tfgen.deployment.serving import SIGNATURE
from tfgen.nets.keras_compat import tf


def predict_request(model: str, requests: Requests, version: int | None = None) -> Any:
    """A PredictRequest for a model, of its newest version unless one is named."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name = model
    message.model_spec.signature_name = SIGNATURE
    if version is not None:
        message.model_spec.version.value = version
    for name, value in requests.inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return message


def arrays(message: Any) -> dict[str, np.ndarray]:
    """The outputs of a PredictResponse, by name."""
    return {name: tf.make_ndarray(tensor) for name, tensor in message.outputs.items()}


def warmup(model: str, requests: Requests) -> Any:
    """A PredictionLog that a server replays when it loads a version."""
    log = prediction_log_pb2.PredictLog(request=predict_request(model, requests))
    return prediction_log_pb2.PredictionLog(predict_log=log)
