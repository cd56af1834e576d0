"""Asking a served generator: a client for TF Serving's gRPC and REST.

    client = Client("localhost:8500", Served.read(folder))
    (candidates,) = client.answer([Budget.parse("storage_kb=64,accuracy=0.8")], seed=1)

gRPC needs `tfgen[serving]` and imports TensorFlow, whose tensors its messages hold; REST needs
no package beside. `serving_export` writes what is served.
"""

from __future__ import annotations

import dataclasses
import http.client
import json
import pathlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from tfgen import errors, workdir
from tfgen.cost.budget import Budget, Cost, Quantity
from tfgen.cost.cost_model import source
from tfgen.deployment.served import Requests
from tfgen.selection import Candidate
from tfgen.space.architecture import Architecture

SIGNATURE = "serving_default"
EXTRA = "assets.extra"
SERVED = f"{EXTRA}/served.json"
GRPC, REST = PROTOCOLS = ("grpc", "rest")
MAX_BYTES = 4 << 20  # of a message; the server's own limit is 2 GiB
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ADDRESS = re.compile(r"[^\s/]+:\d{1,5}")
_FIRST_WAIT_SECONDS = 0.05  # before a retry, doubled each time


def versions(base: pathlib.Path) -> list[int]:
    """Numbers of a model's versions, ascending: a server takes every folder that is named so."""
    return sorted(int(path.name) for path in base.glob("*") if path.name.isdecimal())


@dataclasses.dataclass(frozen=True)
class Served:
    """What a served generator's arrays mean.

    Attributes:
      name: of the model.
      space: whose networks are answered.
      method: whose generator draws.
      metrics: what `limit` limits, the task's metric last.
      costs: what `cost` tells.
      count: answers for a budget.
      draws: that they are chosen from.
      batch_sizes: of requests, ascending; larger ones than the last are refused.
      device: whose latency is limited; None where none is.
    """

    name: str
    space: str
    method: str
    metrics: tuple[str, ...]
    costs: tuple[str, ...]
    count: int
    draws: int
    batch_sizes: tuple[int, ...]
    device: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise errors.UsageError(f"model {self.name!r}: a name of letters, digits and _")
        if min(self.count, self.draws, *self.batch_sizes) < 1 or not self.batch_sizes:
            raise errors.UsageError("count, draws and batch sizes are at least 1")
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)):
            raise errors.UsageError(f"batch sizes {self.batch_sizes} do not ascend")

    @property
    def meaning(self) -> str:
        """What every answer says of itself, so that a client knows a version that means another."""
        return f"{self.space}: {', '.join(self.metrics)}"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def read(cls, folder: pathlib.Path) -> Served:
        """That of a version's folder, or of the newest version of a model's folder.

        Raises:
          UsageError: there is none.
          CorruptFileError: the file is damaged.
        """
        there = versions(folder)
        path = (folder / str(there[-1]) if there else folder) / SERVED
        if not path.is_file():
            raise errors.UsageError(f"{folder}: no served generator; export_generator writes one")
        try:
            data = workdir.read_json(path)
            lists = {k: tuple(data[k]) for k in ("metrics", "costs", "batch_sizes")}
            return cls(**{**data, **lists})
        except (errors.UsageError, *errors.MALFORMED) as error:
            raise errors.CorruptFileError(f"{path}: tells of no generator ({error})") from error


class _Transport(Protocol):
    """One attempt to ask; raises Unavailable where another may succeed."""

    def ask(self, requests: Requests, timeout_s: float) -> Mapping[str, np.ndarray]: ...
    def close(self) -> None: ...


class Unavailable(Exception):
    """The server was not there, or not ready."""


class ServerError(errors.TfgenError):
    """Ask later, or ask another server: the message says what went wrong there."""


class Client:
    """Asks one server for what `generate` calls candidates.

    Not for several threads at once. As a context manager it is closed at the end.
    """

    def __init__(
        self,
        address: str,
        served: Served,
        *,
        protocol: str = GRPC,
        timeout_s: float = 1.0,
        retries: int = 3,
        version: int | None = None,
    ):
        """Connects when it is first asked.

        Args:
          address: host:port.
          served: what is served there.
          protocol: of PROTOCOLS.
          timeout_s: of all attempts together; through REST of each wait for the server.
          retries: after the first attempt, where the server is unavailable.
          version: of the model; None for the newest.

        Raises:
          UsageError: an argument is out of range, or an extra package is missing.
        """
        if not (timeout_s > 0 and retries >= 0):
            raise errors.UsageError("timeout_s lies above 0 and retries at 0 or above")
        if not _ADDRESS.fullmatch(address):
            raise errors.UsageError(f"address {address!r} is not host:port")
        if protocol not in PROTOCOLS:
            raise errors.UsageError(f"protocol {protocol!r} is none of {', '.join(PROTOCOLS)}")
        self.served = served
        self._timeout_s = timeout_s
        self._retries = retries
        make = _grpc if protocol == GRPC else _Rest
        self._transport: _Transport = make(address, served.name, version)

    def close(self) -> None:
        """Lets the connection go."""
        self._transport.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def answer(self, budgets: Sequence[Budget], seed: int) -> list[list[Candidate]]:
        """Candidates for each budget, best first; none where nothing that was drawn keeps it.

        Args:
          budgets: as many as the largest batch at most.
          seed: equal seeds give equal answers, whatever is asked beside.

        Raises:
          UsageError: a budget limits what is not served, or the server refuses the request.
          ServerError: it cannot be reached in time, or is overloaded, or fails.
        """
        most = self.served.batch_sizes[-1]
        if not 1 <= len(budgets) <= most:
            raise errors.UsageError(f"{len(budgets)} budgets in a request; 1 to {most} are served")
        for budget in budgets:
            if budget.device not in (None, self.served.device):
                raise errors.UsageError(
                    f"latency on {budget.device!r} is not served; it is on {self.served.device!r}"
                )
        own = seed & 0xFFFFFFFFFFFFFFFF
        signed = own - (1 << 64) if own >> 63 else own  # as int64 has it
        requests = Requests.of(self.served.metrics, budgets, [signed] * len(budgets))
        found = self._ask(requests)
        self._check(found, len(budgets))
        return [self._candidates(budget, found, n, seed) for n, budget in enumerate(budgets)]

    def _check(self, found: Mapping[str, np.ndarray], budgets: int) -> None:
        """Raises ServerError for an answer that means something else than was read."""
        told = [str(t.decode() if isinstance(t, bytes) else t) for t in found.get("meaning", ())]
        if told != [self.served.meaning] * budgets:
            raise ServerError(
                f"model {self.served.name!r} is no more of {self.served.meaning!r}: read Served "
                "again"
            )

    def _ask(self, requests: Requests) -> Mapping[str, np.ndarray]:
        deadline = time.monotonic() + self._timeout_s
        wait_s = _FIRST_WAIT_SECONDS
        for attempt in range(self._retries + 1):
            left = deadline - time.monotonic()
            try:
                return self._transport.ask(requests, max(left, 1e-3))
            except Unavailable as error:
                if attempt == self._retries or wait_s >= deadline - time.monotonic():
                    raise ServerError(
                        f"the server is not available after {attempt + 1} attempts: {error}"
                    ) from error
            time.sleep(wait_s)
            wait_s *= 2
        raise AssertionError("the last attempt returns or raises")

    def _candidates(
        self, budget: Budget, found: Mapping[str, np.ndarray], row: int, seed: int
    ) -> list[Candidate]:
        made = []
        for place in np.flatnonzero(found["valid"][row]):
            at = (row, int(place))
            cost = dict(zip(self.served.costs, found["cost"][at].tolist(), strict=True))
            high = dict(zip(self.served.costs, found["cost_high"][at].tolist(), strict=True))
            choices = tuple(int(choice) for choice in found["choices"][at])
            made.append(
                Candidate(
                    Architecture(self.served.space, choices),
                    budget,
                    Cost({m: Quantity(float(v), source(m)) for m, v in cost.items()}),
                    {m: v for m, v in high.items() if source(m) == "predicted"},
                    float(found["metric"][at]),
                    float(found["metric_low"][at]),
                    float(found["metric_high"][at]),
                    None,
                    self.served.method,
                    seed,
                )
            )
        return made


def _grpc(address: str, model: str, version: int | None) -> _Transport:
    """gRPC, which needs packages and imports TensorFlow."""
    try:
        from tfgen.deployment import serving_grpc
    except ImportError as error:
        raise errors.UsageError(
            f"{error.name} is not installed: pip install 'tfgen[serving]', or protocol='rest'"
        ) from error
    return serving_grpc.Grpc(address, model, version)


class _Rest:
    """TF Serving's REST, as JSON over HTTP."""

    def __init__(self, address: str, model: str, version: int | None):
        self._address = address
        at = "" if version is None else f"/versions/{version}"
        self._path = f"/v1/models/{model}{at}:predict"

    def close(self) -> None:
        """Each request has a connection of its own."""

    def ask(self, requests: Requests, timeout_s: float) -> Mapping[str, np.ndarray]:
        inputs = {name: np.asarray(value).tolist() for name, value in requests.inputs.items()}
        body = json.dumps({"signature_name": SIGNATURE, "inputs": inputs})
        connection = http.client.HTTPConnection(self._address, timeout=timeout_s)
        try:
            connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, content = response.status, response.read(MAX_BYTES)
        except TimeoutError as error:
            raise ServerError(f"no answer within {timeout_s:.3g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(str(error) or type(error).__name__) from error
        finally:
            connection.close()
        return _read(status, content)


def _read(status: int, content: bytes) -> Mapping[str, np.ndarray]:
    """The outputs of a REST answer, by name; raises what its status means."""
    try:
        told = json.loads(content)
        if status == http.client.OK:
            return {name: np.array(value) for name, value in told["outputs"].items()}
        words = str(told.get("error", told))
    except (AttributeError, KeyError, ValueError) as error:
        raise ServerError(f"HTTP {status} with an answer that is no JSON of a model") from error
    if status == http.client.SERVICE_UNAVAILABLE:
        raise Unavailable(words)
    if status in (http.client.BAD_REQUEST, http.client.NOT_FOUND):
        raise errors.UsageError(f"the server refuses the request: {words}")
    raise ServerError(f"HTTP {status}: {words}")
