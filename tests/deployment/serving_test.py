"""A served generator: its files, the loaders that read them, a server under load, its clients."""

import collections
import contextlib
import dataclasses
import functools
import http.client
import json
import pathlib
import shutil
import socket
import subprocess
import sys
import threading
import time
from unittest import mock

import grpc
import numpy as np
from absl.testing import absltest, parameterized
from google.protobuf import text_format
from tensorflow_serving.apis import prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from tests.deployment import c_loader
from tests.space.small import small_space
from tfgen import errors, seeds, workdir
from tfgen.cost.budget import Budget
from tfgen.cost.cost_model import CostModel
from tfgen.cost.metrics import PerformanceScale
from tfgen.deployment import serving, serving_export, serving_messages
from tfgen.deployment.served import Answerer, Answers, Requests
from tfgen.deployment.serving import SIGNATURE, Client, Served, ServerError
from tfgen.evidence.insight import Insight, InsightSurrogate
from tfgen.generators.baselines import RandomGenerator
from tfgen.selection import Selector
from tfgen.space import catalog
from tools.loopback_server import Server

BUDGETS = [Budget.parse(text) for text in ("macs=20", "r2=0.5,macs=30", "storage_kb=0.02")]
SIZES = (1, 4)


def made(count: int = 3, space=None) -> tuple[Answerer, Served]:
    """An answerer that draws at random, and what is told of it."""
    space = space or small_space()
    random = seeds.stream(1, "insight")
    lost = tuple(np.sort(random.random(len(d.values)))[::-1] for d in space.decisions)
    told = InsightSurrogate.of(
        space, Insight(2.0, lost, lost, 0.3), random.normal(0, 0.1, 40), PerformanceScale(0.2, 0.9)
    )
    selector = Selector(count=count, draws=32, max_rounds=1, refinements=0)
    answer = Answerer(space, RandomGenerator(space), told, CostModel(space), "r2", selector)
    served = Served(
        "tfgen", space.name, "random", answer.metrics, answer.costs, count, 32, SIZES, None
    )
    return answer, served


def export(base: pathlib.Path, count: int = 3) -> pathlib.Path:
    answer, served = made(count)
    return serving_export.export(answer, served, base, config={"test": True}, parents={})


@functools.cache
def exported() -> pathlib.Path:
    base = pathlib.Path(absltest.TEST_TMPDIR.value) / "exported" / "tfgen"
    shutil.rmtree(base, ignore_errors=True)  # of an earlier run
    export(base)
    return base


def nobodys_port() -> int:
    """Where nobody listens now."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


class ServingTestCase(parameterized.TestCase):
    """Has one exported model, of which each test takes a copy."""

    def exported(self) -> pathlib.Path:
        return exported()

    def base(self) -> pathlib.Path:
        path = pathlib.Path(self.create_tempdir().full_path) / "tfgen"
        shutil.copytree(self.exported(), path)
        return path

    def requests(self, budgets=BUDGETS, seed: int = 7) -> Requests:
        return Requests.of(made()[0].metrics, budgets, [seed] * len(budgets))

    def server(self, base: pathlib.Path, **arguments) -> Server:
        server = Server(base, poll_seconds=0.1, **arguments)
        self.addCleanup(server.stop)
        return server

    def client(self, server: Server, **arguments) -> Client:
        served = Served.read(self.exported())
        return Client(f"127.0.0.1:{server.port}", served, timeout_s=20, **arguments)


class FilesTest(ServingTestCase):
    def test_what_lies_there(self):
        base = self.base()
        there = sorted(p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file())
        for name in (
            "1/assets.extra/served.json", "1/assets.extra/tf_serving_warmup_requests",
            "1/manifest.json", "1/saved_model.pb", "README.md", "batching.config", "models.config",
        ):  # fmt: skip
            self.assertIn(name, there)
        workdir.read_manifest(base / "1")  # verifies every hash
        config = model_server_config_pb2.ModelServerConfig()
        text_format.Parse((base / "models.config").read_text(), config)
        (model,) = config.model_config_list.config
        self.assertEqual((model.name, model.base_path), ("tfgen", "/models/tfgen"))
        batching = (base / "batching.config").read_text()
        self.assertIn("max_batch_size { value: 4 }", batching)
        self.assertIn("allowed_batch_sizes: 1\nallowed_batch_sizes: 4", batching)
        self.assertEqual((base / "README.md").read_text().count("docker run"), 2)

    def test_the_next_version_has_the_next_number(self):
        base = self.base()
        (base / "notes").mkdir()
        self.assertEqual(export(base).name, "2")
        self.assertTrue((base / "1" / "saved_model.pb").exists())
        self.assertEqual(Served.read(base).count, 3)

    def test_a_graph_that_answers_otherwise_never_appears(self):
        base = self.base()
        real = serving_export.run_session

        def wrong(folder, requests):
            return [{**one, "metric": one["metric"] + 1e-8} for one in real(folder, requests)]

        with (
            mock.patch.object(serving_export, "run_session", wrong),
            self.assertRaisesRegex(errors.ExportMismatchError, "disagree on 'metric'"),
        ):
            export(base)
        self.assertEqual(
            sorted(path.name for path in base.iterdir()),
            ["1", "README.md", "batching.config", "models.config"],
        )

    def test_an_export_at_work_keeps_others_away(self):
        base = self.base()
        with workdir.owning(base), self.assertRaisesRegex(errors.UsageError, "is at work on it"):
            export(base)

    def test_bad_descriptions_are_refused(self):
        _, served = made()
        for wrong in ({"name": "a/b"}, {"count": 0}, {"batch_sizes": (4, 1)}, {"batch_sizes": ()}):
            with self.assertRaises(errors.UsageError):
                dataclasses.replace(served, **wrong)
        with self.assertRaisesRegex(errors.UsageError, "no served generator"):
            Served.read(pathlib.Path(self.create_tempdir().full_path))
        base = self.base()
        for text in ('{"name": "tfgen"}', "[]", json.dumps({**served.to_json(), "name": 5})):
            (base / "1" / serving.SERVED).write_text(text)
            with self.assertRaisesRegex(errors.CorruptFileError, "tells of no generator"):
                Served.read(base)


class LoadersTest(ServingTestCase):
    def check(self, found) -> None:
        expected = made()[0](np, self.requests())
        for field in dataclasses.fields(Answers):
            ours, theirs = getattr(expected, field.name), found[field.name]
            np.testing.assert_allclose(theirs, ours, rtol=1e-12, err_msg=field.name)
        self.assertTrue(found["valid"].any())

    def test_the_c_loader(self):
        session = c_loader.Session(self.exported() / "1")
        self.check(session.run(SIGNATURE, self.requests().inputs))

    def test_the_c_loader_refuses_what_is_cut_or_missing(self):
        path = self.base() / "1" / "saved_model.pb"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        for folder in (path.parent, path.parents[1]):
            with self.assertRaises(c_loader.LoadError):
                c_loader.Session(folder)

    def test_pythons_session(self):
        (found,) = serving_export.run_session(self.exported() / "1", [self.requests()])
        self.check(found)

    def test_saved_model_cli(self):
        folder = pathlib.Path(self.create_tempdir().full_path)
        np.savez(folder / "in.npz", **self.requests().inputs)
        inputs = ";".join(f"{name}={folder}/in.npz[{name}]" for name in self.requests().inputs)
        command = [
            sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "run",
            "--dir", str(self.exported() / "1"), "--tag_set", "serve", "--signature_def", SIGNATURE,
            "--inputs", inputs, "--outdir", str(folder / "out"),
        ]  # fmt: skip
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        self.assertEqual(ended.returncode, 0, ended.stderr[-2000:])
        arrays = [p for p in (folder / "out").glob("*.npy") if p.stem not in ("text", "meaning")]
        self.check({path.stem: np.load(path) for path in arrays})

    def test_words_are_the_networks_values(self):
        (found,) = serving_export.run_session(self.exported() / "1", [self.requests()])
        space = small_space()
        for row, place in np.argwhere(found["valid"]):
            values = space.values(space.architecture(found["choices"][row, place]))
            words = " ".join(f"{name}={value}" for name, value in values.items())
            self.assertEqual(found["text"][row, place].decode(), words)
        self.assertTrue((found["text"][~found["valid"]] == b"").all())


class ServerTest(ServingTestCase):
    """Status codes are those that the real server gives."""

    def status(self, server: Server, message) -> tuple[str, str]:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            with self.assertRaises(grpc.RpcError) as raised:
                stub.Predict(message, timeout=20)
        return raised.exception.code().name, raised.exception.details()

    def message(self, **changed):
        message = serving_messages.predict_request("tfgen", self.requests())
        for name, value in changed.items():
            if value is None:
                del message.inputs[name]
            else:
                inputs = {**self.requests().inputs, name: value}
                own = serving_messages.predict_request("tfgen", Requests(**inputs))
                message.inputs[name].CopyFrom(own.inputs[name])
        return message

    def test_what_is_wrong_gets_its_status(self):
        server = self.server(self.base())
        limit = self.requests().limit
        for changed, words in (
            ({"limit": np.full_like(limit, np.nan)}, "a limit is a finite number"),
            ({"limit": np.full_like(limit, np.inf)}, "a limit is a finite number"),
            ({"limit": -limit}, "a limit on a cost lies above 0"),
            ({"limit": np.zeros_like(limit)}, "a limit on a cost lies above 0"),
            ({"limit": limit + 5.0}, "r2 is at most 1"),
            ({"has_limit": np.zeros(limit.shape, np.bool_)}, "an empty budget"),
            ({"seed": np.zeros(2, np.int64)}, "a seed for each budget"),
            ({"seed": np.zeros(3, np.float32)}, "seed: expected int64"),
            ({"limit": limit[:, :2]}, "shape"),
            ({"seed": None}, "input must be exactly"),
        ):
            code, told = self.status(server, self.message(**changed))
            self.assertEqual(code, "INVALID_ARGUMENT", (changed, told))
            self.assertIn(words, told)
        five = serving_messages.predict_request("tfgen", self.requests(BUDGETS[:1] * 5))
        code, told = self.status(server, five)
        self.assertEqual((code, "1 to 4 budgets" in told), ("INVALID_ARGUMENT", True))
        # A request that is refused is not answered first: 50,000 seeds would take minutes.
        code, told = self.status(server, self.message(seed=np.zeros(50_000, np.int64)))
        self.assertEqual((code, "a seed for each" in told), ("INVALID_ARGUMENT", True))
        malformed = self.message()
        malformed.inputs["limit"].tensor_content = b"abc"
        self.assertEqual(self.status(server, malformed)[0], "INVALID_ARGUMENT")
        other = self.message()
        other.model_spec.signature_name = "other"
        self.assertEqual(self.status(server, other)[0], "FAILED_PRECONDITION")
        other.model_spec.name = "another"
        self.assertEqual(self.status(server, other)[0], "NOT_FOUND")
        late = self.message()
        late.model_spec.version.value = 9
        self.assertEqual(self.status(server, late)[0], "NOT_FOUND")
        # And it still answers.
        self.assertLen(self.client(server).answer(BUDGETS, seed=7), 3)

    def test_a_new_version_takes_over_under_load_and_bad_ones_do_not(self):
        base = self.base()
        server = self.server(base)
        served = Served.read(base)
        counts, failures = collections.Counter(), []
        stop = threading.Event()

        def ask(number: int) -> None:
            client = Client(f"127.0.0.1:{server.port}", served, timeout_s=20)
            while not stop.is_set():
                try:
                    (found,) = client.answer([Budget.parse("macs=1e6")], seed=number)
                    counts[len(found)] += 1
                except Exception as error:
                    failures.append(error)
                    return

        threads = [threading.Thread(target=ask, args=[n]) for n in range(3)]

        def finish() -> None:
            stop.set()
            for thread in threads:
                thread.join()

        self.addCleanup(finish)
        for thread in threads:
            thread.start()

        def wait(condition) -> None:
            deadline = time.monotonic() + 60
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.05)
            self.assertTrue(condition())

        wait(lambda: counts[3] >= 20)
        export(base, count=2)  # answers of two networks tell the second version
        wait(lambda: counts[2] >= 20)
        shutil.copytree(base / "2", base / "pending")
        path = base / "pending" / "saved_model.pb"
        path.write_bytes(path.read_bytes()[:1000])
        (base / "pending").rename(base / "3")
        shutil.copytree(base / "2", base / "pending")
        (base / "pending" / serving_export.WARMUP).write_bytes(b"no record")
        (base / "pending").rename(base / "4")
        wait(lambda: {3, 4} <= set(server.model.refused))
        seen = counts[2]
        wait(lambda: counts[2] >= seen + 20)
        finish()
        self.assertEmpty(failures)

    def test_overload_is_answered(self):
        server = self.server(self.base(), max_concurrent=1)
        outcomes = collections.Counter()

        def ask() -> None:
            client = self.client(server, retries=0)
            for _ in range(10):
                try:
                    client.answer(BUDGETS, seed=1)
                    outcomes["answered"] += 1
                except ServerError as error:
                    outcomes[str(error).partition(":")[0]] += 1

        threads = [threading.Thread(target=ask) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(set(outcomes), {"answered", "RESOURCE_EXHAUSTED"})
        self.assertEqual(outcomes.total(), 120)


class ClientTest(ServingTestCase):
    @parameterized.parameters("grpc", "rest")
    def test_candidates_are_typed(self, protocol):
        server = self.server(self.base(), rest_port=0)
        port = server.port if protocol == "grpc" else server.rest_port
        served = Served.read(self.exported())
        client = Client(f"127.0.0.1:{port}", served, protocol=protocol, timeout_s=20)
        answered = client.answer(BUDGETS, seed=7)
        answer, _ = made()
        expected = answer(np, self.requests())
        for row, candidates in enumerate(answered):
            self.assertLen(candidates, expected.valid[row].sum())
            for place, candidate in enumerate(candidates):
                at = (row, place)
                self.assertEqual(candidate.architecture.choices, tuple(expected.choices[at]))
                self.assertEqual(candidate.budget, BUDGETS[row])
                self.assertAlmostEqual(candidate.metric, expected.metric[at])
                self.assertAlmostEqual(candidate.low, expected.metric_low[at])
                cost = dict(zip(served.costs, expected.cost[at], strict=True))
                self.assertAlmostEqual(candidate.cost["macs"], cost["macs"])
                self.assertEqual(candidate.to_json()["method"], "random")
        self.assertEqual(answered, client.answer(BUDGETS, seed=7))
        self.assertNotEqual(answered, client.answer(BUDGETS, seed=-7))

    @parameterized.parameters("grpc", "rest")
    def test_what_the_client_refuses_and_what_the_server_refuses(self, protocol):
        server = self.server(self.base(), rest_port=0)
        port = server.port if protocol == "grpc" else server.rest_port
        served = Served.read(self.exported())
        address = f"127.0.0.1:{port}"
        client = Client(address, served, protocol=protocol, timeout_s=20)
        for budgets, words in (
            ([], "1 to 4"),
            (BUDGETS * 2, "1 to 4"),
            ([Budget.parse("accuracy=0.5")], "accuracy is not served"),
            ([Budget.parse("latency_ms=5@pixel3")], "latency on 'pixel3' is not served"),
        ):
            with self.assertRaisesRegex(errors.UsageError, words):
                client.answer(budgets, seed=1)
        late = Client(address, served, protocol=protocol, timeout_s=20, version=9)
        with self.assertRaisesRegex(errors.UsageError, "the server refuses.*not found"):
            late.answer(BUDGETS, seed=1)

    def test_nobody_there(self):
        _, served = made()
        for protocol in ("grpc", "rest"):
            address = f"127.0.0.1:{nobodys_port()}"
            client = Client(address, served, protocol=protocol, timeout_s=5, retries=2)
            with self.assertRaisesRegex(ServerError, "not available after 3 attempts"):
                client.answer(BUDGETS, seed=1)
        for wrong in ({"timeout_s": 0}, {"retries": -1}, {"protocol": "soap"}):
            with self.assertRaises(errors.UsageError):
                Client("127.0.0.1:9", served, **wrong)
        for address in ("127.0.0.1", "localhost:port", "http://localhost:8501", ":", ""):
            with self.assertRaisesRegex(errors.UsageError, "is not host:port"):
                Client(address, served, protocol="rest")

    def test_a_server_that_comes_late_is_asked_again(self):
        first = Server(self.base())
        port = first.port
        first.stop()
        client = Client(f"127.0.0.1:{port}", Served.read(self.exported()), timeout_s=60, retries=12)
        with contextlib.ExitStack() as stack:

            def start() -> None:
                time.sleep(0.3)
                stack.callback(Server(self.base(), port=port).stop)

            thread = threading.Thread(target=start)
            thread.start()
            self.assertLen(client.answer(BUDGETS, seed=1), 3)
            thread.join()

    def test_a_version_that_means_another_is_told(self):
        server = self.server(self.base())
        served = dataclasses.replace(Served.read(self.exported()), space="another")
        with (
            Client(f"127.0.0.1:{server.port}", served, timeout_s=20) as client,
            self.assertRaisesRegex(ServerError, "no more of 'another: .*read Served again"),
        ):
            client.answer(BUDGETS, seed=1)

    def test_rest_refuses_what_grpc_refuses(self):
        server = self.server(self.base(), rest_port=0)
        inputs = {name: value.tolist() for name, value in self.requests().inputs.items()}

        def status(body: str) -> tuple[int, str]:
            connection = http.client.HTTPConnection("127.0.0.1", server.rest_port, timeout=20)
            connection.request("POST", "/v1/models/tfgen:predict", body)
            response = connection.getresponse()
            return response.status, json.loads(response.read()).get("error", "")

        self.assertEqual(status(json.dumps({"inputs": inputs}))[0], 200)
        for changed, words in (
            ({"limit": [[float("nan")] * len(row) for row in inputs["limit"]]}, "finite number"),
            ({"seed": [1.5, 2.5, 3.5]}, "seed: expected int64"),
            ({"has_limit": [["false"] * len(row) for row in inputs["limit"]]}, "expected bool"),
            ({"limit": [[1.0], [1.0, 2.0], []]}, "inputs: "),
            ({"more": [1]}, "input must be exactly"),
        ):
            code, told = status(json.dumps({"inputs": {**inputs, **changed}}))
            self.assertEqual(code, 400, told)
            self.assertIn(words, told)
        for body in ("no JSON", "[]", '{"instances": []}', "[" * 100_000):
            self.assertEqual(status(body)[0], 400)

    def test_an_answer_that_is_none(self):
        for status, content, error in (
            (200, b"no JSON", ServerError),
            (200, b'{"predictions": 1}', ServerError),
            (404, json.dumps({"error": "unknown"}).encode(), errors.UsageError),
            (429, json.dumps({"error": "busy"}).encode(), ServerError),
            (500, b"[]", ServerError),
        ):
            with self.assertRaises(error):
                serving._read(status, content)

    def test_time_is_limited(self):
        # A port that takes connections and never answers.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            _, served = made()
            for protocol in ("grpc", "rest"):
                client = Client(
                    f"127.0.0.1:{silent.getsockname()[1]}", served, protocol=protocol, timeout_s=0.3
                )
                begin = time.monotonic()
                with self.assertRaises(ServerError):
                    client.answer(BUDGETS, seed=1)
                self.assertLess(time.monotonic() - begin, 5)


class ShippedTest(absltest.TestCase):
    def test_a_space_of_the_catalogue(self):
        answer, served = made(space=catalog.get("california_housing_mlp"))
        base = pathlib.Path(self.create_tempdir().full_path) / "tfgen"
        serving_export.export(answer, served, base, config={}, parents={})  # compares itself
        size = sum(path.stat().st_size for path in (base / "1").rglob("*"))
        self.assertLess(size, 12e6)


if __name__ == "__main__":
    absltest.main()
