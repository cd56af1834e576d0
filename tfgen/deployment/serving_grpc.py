"""The gRPC half of the client (`serving.Client`); importing it imports TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import numpy as np
from tensorflow_serving.apis import prediction_service_pb2_grpc

from tfgen import errors
from tfgen.deployment import serving_messages
from tfgen.deployment.served import Requests
from tfgen.deployment.serving import MAX_BYTES, ServerError, Unavailable

_LOOKS_MS = 50  # between looks for a server that was not there
_REFUSED = {
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.OUT_OF_RANGE,
}


class Grpc:
    """TF Serving's PredictionService."""

    def __init__(self, address: str, model: str, version: int | None):
        options = [
            ("grpc.max_send_message_length", MAX_BYTES),
            ("grpc.max_receive_message_length", MAX_BYTES),
            # A channel that was refused once would not look again for a second.
            ("grpc.initial_reconnect_backoff_ms", _LOOKS_MS),
            ("grpc.min_reconnect_backoff_ms", _LOOKS_MS),
            ("grpc.max_reconnect_backoff_ms", 1_000),
        ]
        self._channel = grpc.insecure_channel(address, options)
        self._stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._model, self._version = model, version

    def close(self) -> None:
        self._channel.close()

    def ask(self, requests: Requests, timeout_s: float) -> Mapping[str, np.ndarray]:
        message = serving_messages.predict_request(self._model, requests, self._version)
        try:
            return serving_messages.arrays(self._stub.Predict(message, timeout=timeout_s))
        except grpc.RpcError as error:
            code, words = error.code(), error.details()
            if code == grpc.StatusCode.UNAVAILABLE:
                raise Unavailable(words) from error
            if code in _REFUSED:
                raise errors.UsageError(f"the server refuses the request: {words}") from error
            raise ServerError(f"{code.name}: {words}") from error
