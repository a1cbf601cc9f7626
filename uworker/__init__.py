"""The pull worker of decimer-jobs: claims jobs, recognises their images in child processes, posts the results.

Importing this package imports neither the service nor TensorFlow nor RDKit; the last two live in the recogniser
processes alone.
"""
