"""The job service of decimer-jobs: REST API, queue and results store, and the client that speaks to it.

`schemas` and `client` need only the base install and are what other programs import; the rest is the service
itself and needs the `api` extra.
"""
