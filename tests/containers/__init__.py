"""Docker for the tests: a real engine of their own, with base images made of Debian's packages."""
