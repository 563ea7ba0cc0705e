"""The ground both scripts stand on: it knows neither the method nor the data."""

import os

# tensorboard-logger 0.1.0 ships protobuf code of an old generator, which protobuf >= 4 refuses unless it runs in pure
# Python. That must be said before anything imports protobuf, as older torchvisions do where ONNX is installed: here,
# which the other rooms import first.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
