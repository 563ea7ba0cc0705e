"""The foundation of both scripts, independent of the method and of the data."""

import os

# tensorboard-logger 0.1.0 contains protobuf code of an old generator, which protobuf >= 4 supports only in pure Python.
# The variable must be set before anything imports protobuf; older torchvision versions import it if ONNX is installed.
# This package is imported first.
os.environ.setdefault("PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "python")
