"""The recognisers apart from the worker: in a process, mostly a container, of their own, reached over a Unix socket.

`wire` is what both sides speak; `engine` listens and recognises; `link` and `crew` are the worker's side, which stands
where `uworker.crew.Crew` stands otherwise; `hands` knows what becomes of images when the engine dies.
"""
