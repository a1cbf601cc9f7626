"""Material for tests and the demo, all of it made by this project: a miniature model and pictures it knows."""
