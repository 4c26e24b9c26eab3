"""A substitute for TensorFlow Serving: Predict of its gRPC and REST APIs, for the signatures of an export.

Formats of https://www.tensorflow.org/tfx/serving/api_rest: `instances` (rows) return `predictions`; `inputs` (columns)
return `outputs`; {"b64": ...} are bytes.
"""

import base64
import concurrent.futures
import contextlib
import http.server
import json
import threading

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


@contextlib.contextmanager
def served(name, signatures):
    """Yields (gRPC address, REST address) of a model that is served on this machine."""

    def answers(signature, given):
        return {key: value.numpy() for key, value in signatures[signature](**given).items()}

    class Grpc(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            assert request.model_spec.name == name
            given = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
            found = answers(request.model_spec.signature_name, given)
            return predict_pb2.PredictResponse(
                outputs={key: tf.make_tensor_proto(value) for key, value in found.items()}
            )

    class Rest(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == f"/v1/models/{name}:predict"
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])), object_hook=_bytes)
            rows = request.get("instances")
            columns = {key: [row[key] for row in rows] for key in rows[0]} if rows else request["inputs"]
            given = {key: tf.constant(value) for key, value in columns.items()}
            found = {key: _texts(value.tolist()) for key, value in answers(request["signature_name"], given).items()}
            each = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)] if rows else None
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"predictions": each} if rows else {"outputs": found}).encode())

        def log_message(self, *_):
            pass

    calls = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Grpc(), calls)
    port = calls.add_insecure_port("127.0.0.1:0")
    calls.start()
    pages = http.server.HTTPServer(("127.0.0.1", 0), Rest)
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{port}", f"127.0.0.1:{pages.server_port}"
    finally:
        calls.stop(None).wait()
        pages.shutdown()
        pages.server_close()


def _bytes(value: dict):
    return base64.b64decode(value["b64"]) if value.keys() == {"b64"} else value


def _texts(value):
    return [_texts(each) for each in value] if isinstance(value, list) else getattr(value, "decode", lambda: value)()
