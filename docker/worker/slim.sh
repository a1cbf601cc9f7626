#!/bin/sh
# Takes out of /opt/venv what no worker uses, half of TensorFlow among it. tests/test_worker_image.py has the image
# recognise the samples afterwards; docs/benchmarks.md has the figures.
set -eu
cd /opt/venv/lib/python3.*/site-packages

# Headers for building operations of one's own.
rm -rf tensorflow/include
# What TensorFlow asks for and imports only where it is used: training's displays and what they need, other compilers.
rm -rf tensorboard tensorboard_data_server grpc clang tensorflow/compiler/mlir/stablehlo
rm -rf setuptools _distutils_hack distutils-precedence.pth
# A model is prepared before an image is built, not in it.
rm -rf onnx
# ONNX Runtime's library for other languages (its module for Python holds the same once more), and its tools.
rm -rf onnxruntime/capi/libonnxruntime.so* onnxruntime/backend onnxruntime/datasets onnxruntime/quantization
rm -rf onnxruntime/tools onnxruntime/transformers
# What scikit-image asks for, of which DECIMER needs the resizing of images.
rm -rf networkx imageio tifffile
# RDKit's contributions and type stubs.
rm -rf rdkit/Contrib rdkit-stubs
find . -type d -name tests -prune -exec rm -rf {} +
# Not *.pyi: scikit-image reads its own.
find . -type f \( -name '*.a' -o -name '*.h' -o -name '*.hpp' -o -name '*.pyx' -o -name '*.pxd' \) -delete
# The names of functions in TensorFlow's libraries that nothing is linked to, for debuggers.
if [ -d tensorflow ]; then
    find tensorflow -type f -name '*.so*' -exec strip --strip-unneeded {} +
fi
