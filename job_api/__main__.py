"""`python -m job_api` is the `job-api` command."""

from job_api.cli import app

if __name__ == "__main__":
    app(prog_name="job-api")
