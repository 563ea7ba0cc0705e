"""What both scripts are built on: it knows neither the method nor the data."""

import os

# tensorboard-logger 0.1.0 ships protobuf code of an old generator, which protobuf >= 4 refuses unless it runs in pure
# Python. The variable must be set before anything imports protobuf, as older torchvisions do where ONNX is installed.
# This package is imported first.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
