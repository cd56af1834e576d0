"""A stand-in for TF Serving on this machine: its PredictionService over real SavedModels.

    loopback_server --base=MODELS/tfgen --port=8500 --rest_port=8501

For tests and measurements where `tensorflow_model_server` cannot be had. It keeps the real server's
contract as far as clients see it: it looks for new versions, loads one with its warm-up requests
before the old one goes, keeps the old one where that fails, and answers with the real status codes.
It is no server for production: Python holds one interpreter lock.
"""

from __future__ import annotations

import contextlib
import gc
import http.server
import json
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import grpc
import numpy as np
from absl import flags
from tensorflow_serving.apis import (
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from tfgen import errors, program, workdir
from tfgen.deployment.serving import MAX_BYTES, SIGNATURE, versions
from tfgen.deployment.serving_export import WARMUP
from tfgen.nets.keras_compat import tf

_BASE = flags.DEFINE_string("base", None, "The model's folder; its name is the model's.")
_PORT = flags.DEFINE_integer("port", 8500, "Of gRPC; 0 takes a free one.", lower_bound=0)
_REST_PORT = flags.DEFINE_integer("rest_port", None, "Of REST; 0 takes a free one.")
_CONCURRENT = flags.DEFINE_integer("max_concurrent", 16, "Requests at a time.", lower_bound=1)
_POLL_SECONDS = flags.DEFINE_float("poll_seconds", 1.0, "Between looks for versions.")
_SWITCH_SECONDS = 2e-4  # that one thread keeps others from Python: 5 ms is a request's whole time
_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNAVAILABLE: 503,
}


class Refused(Exception):
    """A request that gets a status other than OK."""

    def __init__(self, code: grpc.StatusCode, words: str):
        super().__init__(words)
        self.code = code


class Version:
    """A loaded version: a session on its graph, as the C++ server has it."""

    def __init__(self, folder: pathlib.Path):
        """Loads it and runs its warm-up requests; raises whatever is wrong."""
        self.number = int(folder.name)
        v1 = tf.compat.v1
        # A request to a core: several share none, and threads that meet cost more than they give.
        config = v1.ConfigProto(intra_op_parallelism_threads=1, inter_op_parallelism_threads=-1)
        self._session = v1.Session(graph=tf.Graph(), config=config)
        try:
            loaded = v1.saved_model.loader.load(
                self._session, [v1.saved_model.SERVING], str(folder)
            )
            self._signatures = dict(loaded.signature_def)
            self._calls: dict[str, Callable[..., Sequence[np.ndarray]]] = {}
            for name, signature in self._signatures.items():
                if signature.inputs:
                    outputs = [info.name for info in signature.outputs.values()]
                    inputs = [info.name for info in signature.inputs.values()]
                    self._calls[name] = self._session.make_callable(outputs, inputs)
            warmup = folder / WARMUP
            if warmup.exists():
                texts = list(tf.data.TFRecordDataset(str(warmup)).as_numpy_iterator())
                if not texts:  # the reader takes a file that is none for an empty one
                    raise ValueError(f"{warmup}: no records")
                for text in texts:
                    log = prediction_log_pb2.PredictionLog.FromString(text)
                    self.run(SIGNATURE, _tensors(log.predict_log.request.inputs))
        except BaseException:
            self._session.close()
            raise

    def run(self, signature: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answers; raises Refused."""
        name = signature or SIGNATURE
        if name not in self._calls:
            raise Refused(
                grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
            )
        known = self._signatures[name]
        if set(inputs) != set(known.inputs):
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"input must be exactly {sorted(known.inputs)}, got {sorted(inputs)}",
            )
        fed = []
        for key, info in known.inputs.items():
            if inputs[key].dtype != tf.as_dtype(info.dtype).as_numpy_dtype:
                raise Refused(
                    grpc.StatusCode.INVALID_ARGUMENT,
                    f"{key}: expected {tf.as_dtype(info.dtype).name}, got {inputs[key].dtype}",
                )
            fed.append(inputs[key])
        try:
            values = self._calls[name](*fed)
        except (tf.errors.InvalidArgumentError, ValueError) as error:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, _words(error)) from error
        except tf.errors.OpError as error:
            raise Refused(grpc.StatusCode.INTERNAL, _words(error)) from error
        return dict(zip(known.outputs, values, strict=True))

    def kinds(self, signature: str) -> dict[str, np.dtype[Any]]:
        """The types of a signature's inputs; none of one that is not there."""
        known = self._signatures.get(signature or SIGNATURE)
        inputs = {} if known is None else known.inputs
        return {n: np.dtype(tf.as_dtype(i.dtype).as_numpy_dtype) for n, i in inputs.items()}

    def close(self) -> None:
        self._session.close()


def _words(error: Exception) -> str:
    """What an error says, without the graph's names around it."""
    lines = [line.strip() for line in str(getattr(error, "message", error)).splitlines()]
    told = [line for line in lines if line and line != "Graph execution error:"]
    return next(iter(told), type(error).__name__)


def _tensors(messages: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Raises Refused for a malformed one."""
    try:
        return {name: tf.make_ndarray(message) for name, message in messages.items()}
    except (TypeError, ValueError, KeyError) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"malformed tensor: {error}") from error


class Model:
    """The newest version that loads, whatever happens in the folder.

    Attributes:
      name: of the model.
      refused: versions that did not load, and why.
    """

    def __init__(self, base: pathlib.Path):
        self.name = base.name
        self.refused: dict[int, str] = {}
        self._base = base
        self._lock = threading.Lock()
        self._using: dict[int, int] = {}  # requests that each version still answers
        self._version: Version | None = None

    def look(self) -> None:
        """Loads the newest version that is not known yet; the old one goes when it is idle."""
        there = versions(self._base)
        self.refused = {number: why for number, why in self.refused.items() if number in there}
        served = -1 if self._version is None else self._version.number
        for number in sorted(n for n in there if n > served and n not in self.refused)[::-1]:
            try:
                fresh = Version(self._base / str(number))
            except Exception as error:  # foreign files may fail in any way
                self.refused[number] = f"{type(error).__name__}: {_words(error)}"
                continue
            with self._lock:
                old, self._version = self._version, fresh
                idle = old is not None and not self._using.get(old.number)
            if old is not None and idle:
                old.close()
            return

    @property
    def ready(self) -> bool:
        """Whether a version is loaded."""
        return self._version is not None

    def close(self) -> None:
        """Lets the last version go; nobody asks any more."""
        if self._version is not None:
            self._version.close()

    @contextlib.contextmanager
    def version(self, wanted: int | None) -> Iterator[Version]:
        """The version that answers; it is not closed meanwhile. Raises Refused."""
        with self._lock:
            found = self._version
            if found is None or (wanted is not None and wanted != found.number):
                words = f"Servable not found for request: {self.name}"
                raise Refused(grpc.StatusCode.NOT_FOUND, words)
            self._using[found.number] = self._using.get(found.number, 0) + 1
        try:
            yield found
        finally:
            with self._lock:
                self._using[found.number] -= 1
                last = not self._using[found.number] and found is not self._version
            if last:
                found.close()


class _Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """TF Serving's PredictionService."""

    def __init__(self, model: Model):
        self._model = model

    def Predict(self, request, context):
        spec = request.model_spec
        try:
            if spec.name != self._model.name:
                words = f"Servable not found for request: {spec.name}"
                raise Refused(grpc.StatusCode.NOT_FOUND, words)
            wanted = spec.version.value if spec.HasField("version") else None
            with self._model.version(wanted) as version:
                found = version.run(spec.signature_name, _tensors(request.inputs))
        except Refused as refused:
            context.abort(refused.code, str(refused))
        response = predict_pb2.PredictResponse()
        response.model_spec.name = self._model.name
        response.model_spec.version.value = version.number
        for name, value in found.items():
            response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
        return response


class Server:
    """gRPC and, where asked, REST, on loopback.

    Attributes:
      model: that is served.
      port: of gRPC.
      rest_port: of REST; None for none.
    """

    def __init__(
        self,
        base: pathlib.Path,
        *,
        port: int = 0,
        rest_port: int | None = None,
        max_concurrent: int = 16,
        poll_seconds: float = 1.0,
    ):
        """Loads the newest version and starts.

        Raises:
          UsageError: no version loads, or a port is taken.
        """
        self.model = Model(base)
        self.model.look()
        if not self.model.ready:
            raise errors.UsageError(f"{base}: no version that loads; {self.model.refused}")
        options = [("grpc.max_receive_message_length", MAX_BYTES), ("grpc.so_reuseport", 0)]
        self._grpc = grpc.server(
            futures.ThreadPoolExecutor(max_concurrent),
            maximum_concurrent_rpcs=max_concurrent,
            options=options,
        )
        service = _Service(self.model)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, self._grpc)
        try:
            self._rest = None if rest_port is None else _rest_server(self.model, rest_port)
            self.port = self._grpc.add_insecure_port(f"127.0.0.1:{port}")
        except (OSError, RuntimeError) as error:
            raise errors.UsageError(f"port {port} or {rest_port} is taken ({error})") from error
        self.rest_port = None if self._rest is None else self._rest.server_address[1]
        self._grpc.start()
        self._stopping = threading.Event()
        self._polling = threading.Thread(target=self._poll, args=[poll_seconds], daemon=True)
        self._polling.start()
        # TensorFlow's modules are a million objects: going through them takes a fifth of a second.
        gc.collect()
        gc.freeze()
        sys.setswitchinterval(_SWITCH_SECONDS)

    def _poll(self, seconds: float) -> None:
        while not self._stopping.wait(seconds):
            self.model.look()

    def stop(self) -> None:
        self._stopping.set()
        self._grpc.stop(grace=1.0).wait()
        if self._rest is not None:
            self._rest.shutdown()
            self._rest.server_close()
        self._polling.join()
        self.model.close()


def _rest_server(model: Model, port: int) -> http.server.ThreadingHTTPServer:
    """TF Serving's REST: POST /v1/models/NAME[/versions/N]:predict with "inputs"."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", 0))
                if length > MAX_BYTES:
                    raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the request is too large")
                self._send(200, {"outputs": self._answer(self.rfile.read(length))})
            except Refused as refused:
                self._send(_HTTP.get(refused.code, 500), {"error": str(refused)})

        def _answer(self, body: bytes) -> dict[str, Any]:
            path, _, verb = self.path.partition(":")
            parts = path.strip("/").split("/")
            numbered = len(parts) == 5 and parts[3] == "versions" and parts[4].isdecimal()
            known = parts[:3] == ["v1", "models", model.name] and (len(parts) == 3 or numbered)
            if verb != "predict" or not known:
                raise Refused(grpc.StatusCode.NOT_FOUND, f"Malformed request: POST {self.path}")
            try:
                request = json.loads(body)
                inputs = request["inputs"]
                signature = str(request.get("signature_name", ""))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"JSON: {error!r}") from error
            with model.version(int(parts[4]) if numbered else None) as version:
                found = version.run(signature, _typed(inputs, version.kinds(signature)))
            return {name: _plain(value) for name, value in found.items()}

        def _send(self, status: int, value: dict[str, Any]) -> None:
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _typed(inputs: Any, kinds: Mapping[str, np.dtype[Any]]) -> dict[str, np.ndarray]:
    """JSON's lists as the signature's arrays; a whole number may stand for another."""
    found = {}
    try:
        for name, value in inputs.items():
            array, kind = np.array(value), kinds.get(name)
            if kind is not None and (array.dtype.kind, kind.kind) in (("i", "i"), ("i", "f")):
                array = array.astype(kind)
            found[name] = array
    except (AttributeError, ValueError, TypeError, OverflowError) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"inputs: {error}") from error
    return found


def _plain(value: np.ndarray) -> Any:
    """As JSON has it."""
    if value.dtype == np.object_:
        return np.vectorize(lambda text: text.decode(), otypes=[object])(value).tolist()
    return value.tolist()


def main(argv: Sequence[str]) -> int:
    """Serves until it is told to stop; returns the exit code."""
    del argv
    if _BASE.value is None:
        raise errors.UsageError("give --base, the folder that export_generator wrote")
    server = Server(
        workdir.user_path(_BASE.value),
        port=_PORT.value,
        rest_port=_REST_PORT.value,
        max_concurrent=_CONCURRENT.value,
        poll_seconds=_POLL_SECONDS.value,
    )
    print(json.dumps({"port": server.port, "rest_port": server.rest_port}), flush=True)
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    server.stop()
    return 0


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    program.run(main)
