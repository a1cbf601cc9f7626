"""DECIMER's model in another form, which gives the same answers four times faster: made, proved, and run here.

`uworker prepare` translates the weights as DECIMER ships them (`shipped`, `structure`, `encoder`, `decoder`) and
compares what both say (`proof`); that needs TensorFlow. What recognises (`files`, `decoding`) needs ONNX Runtime and
NumPy. How it works, and what is guaranteed: docs/prepared.md.
"""
