"""pytest plugins that make costly material once per test run."""
