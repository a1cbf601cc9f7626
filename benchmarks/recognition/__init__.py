"""How fast a machine recognises: DECIMER by itself, the fleet of old, and the worker, on a replica of its model."""
