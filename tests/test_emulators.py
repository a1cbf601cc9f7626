"""The storage servers of the tests are real enough: they keep odd keys, refuse wrong keys, and leave nothing behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import boto3
import httpx
import psutil
import pytest
from azure.core.exceptions import HttpResponseError
from azure.storage.blob import ContainerClient
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.emulators.azurite import Azurite, install
from tests.emulators.buckets import Bucket
from tests.emulators.processes import NoServer, run_server
from tests.emulators.relay import Relay
from tests.emulators.s3 import ALL_ALLOWED, S3Server
from tests.emulators.web import WebServer
from tests.serving import wait_for

ROOT = Path(__file__).parents[1]
ODD_KEYS = (
    "Müller (2019)/output/sequence 01.png",
    "a#b/100%.png",
    "a+b/%20.png",
    "a&b=c/?.png",
    "N\u0308FD/Ñ.png",
    "very/deep/below/it/1.png",
    "long/" + "x" * 200 + ".png",
)


def test_odd_keys_come_out_as_they_went_in(bucket: Bucket) -> None:
    objects = {key: key.encode() for key in ODD_KEYS} | {"empty.png": b""}
    bucket.fill(objects)
    assert bucket.content() == objects
    bucket.delete("a#b/100%.png")
    assert sorted(bucket.content()) == sorted(objects.keys() - {"a#b/100%.png"})


def test_each_test_has_a_bucket_of_its_own(bucket: Bucket) -> None:
    other = bucket.emulator.new_bucket()
    other.fill({"a": b"there"})
    assert bucket.content() == {}
    other.remove()
    other.remove()


def azure_keys(connection_string: str, container: str) -> list[str]:
    with ContainerClient.from_connection_string(connection_string, container) as client:
        return list(client.list_blob_names())


def test_azurite_refuses_a_wrong_key(azurite: Azurite, azure_bucket: Bucket) -> None:
    azure_bucket.fill({"a": b"1"})
    right, wrong = (e["AZURE_STORAGE_CONNECTION_STRING"] for e in (azurite.environment, azurite.wrong_environment))
    assert azure_keys(right, azure_bucket.name) == ["a"]
    with pytest.raises(HttpResponseError, match="Server failed to authenticate"):
        azure_keys(wrong, azure_bucket.name)


def test_azurite_refuses_a_signature_that_has_expired_or_does_not_allow_it(
    azurite: Azurite, azure_bucket: Bucket
) -> None:
    azure_bucket.fill({"a": b"1"})

    def keys(signature: str) -> list[str]:
        with ContainerClient(azurite.endpoint, azure_bucket.name, credential=signature) as client:
            return list(client.list_blob_names())

    assert keys(azurite.sas(azure_bucket.name)) == ["a"]
    for signature in (azurite.sas(azure_bucket.name, hours=-1), azurite.sas(azure_bucket.name, "r")):
        with pytest.raises(HttpResponseError, match=r"failed to authenticate|not authorized"):
            keys(signature)


def s3_read(environment: dict[str, str], bucket: str, key: str) -> bytes:
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        config=Config(retries={"max_attempts": 1}),
    )
    try:
        data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert isinstance(data, bytes)
        return data
    finally:
        client.close()


def test_the_s3_server_refuses_a_wrong_key(s3_server: S3Server, s3_bucket: Bucket) -> None:
    s3_bucket.fill({"a": b"1"})
    assert s3_read(s3_server.environment, s3_bucket.name, "a") == b"1"
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        s3_read(s3_server.wrong_environment, s3_bucket.name, "a")


def test_the_s3_server_refuses_what_a_user_may_not_do(s3_server: S3Server, s3_bucket: Bucket) -> None:
    s3_bucket.fill({"open": b"1", "shut": b"2"})
    shut = {"Effect": "Deny", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{s3_bucket.name}/shut"}
    environment = s3_server.environment_of_user(ALL_ALLOWED, shut)
    assert s3_read(environment, s3_bucket.name, "open") == b"1"
    with pytest.raises(ClientError, match="AccessDenied"):
        s3_read(environment, s3_bucket.name, "shut")


def test_signatures_hold_through_a_relay(bucket: Bucket, relay_to: Callable[[str], Relay]) -> None:
    relay = relay_to(bucket.emulator.server)
    bucket.fill({"a b#c%.png": b"1"})
    environment = bucket.behind(relay.address).environment
    if "AZURE_STORAGE_CONNECTION_STRING" in environment:
        assert azure_keys(environment["AZURE_STORAGE_CONNECTION_STRING"], bucket.name) == ["a b#c%.png"]
    elif "AWS_REGION" in environment:
        assert s3_read(environment, bucket.name, "a b#c%.png") == b"1"
    else:
        url = f"{environment['STORAGE_EMULATOR_HOST']}/{bucket.name}/a%20b%23c%25.png"
        assert httpx.get(url).content == b"1"
    assert relay.count() == 1


def test_the_web_server_shows_folders(web_server: WebServer) -> None:
    web_server.fill({"Müller (2019)/output/a #1.png": b"1"})
    index = httpx.get(f"{web_server.address}/M%C3%BCller%20(2019)/output/")
    assert 'href="a%20%231.png"' in index.text
    assert httpx.get(f"{web_server.address}/M%C3%BCller%20(2019)/output/a%20%231.png").content == b"1"


def test_a_server_ends_when_whoever_started_it_is_killed(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time\n"
        "from tests.emulators.processes import run_server\n"
        "command = [sys.executable, '-m', 'http.server', '0', '--bind', '127.0.0.1']\n"
        "with run_server(command, r'\\((http://\\S+:\\d+)/\\)') as server:\n"
        "    print(server.pid, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        server = psutil.Process(int(starter.stdout.readline()))
        assert "http.server" in server.cmdline()
        os.kill(starter.pid, signal.SIGKILL)
    # Where nobody reaps it, it stays as what has ended.
    wait_for(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE)


def test_a_server_that_does_not_start_says_why() -> None:
    with (
        pytest.raises(NoServer, match="no such port"),
        run_server([sys.executable, "-c", "raise SystemExit('no such port')"], "never"),
    ):
        pass


def test_what_is_installed_is_left_alone(azurite: Azurite) -> None:
    """So that tests need no network but the first time."""
    installed = ROOT / "tests/emulators/node_modules/.installed"
    before = installed.stat().st_mtime_ns
    install()
    assert installed.stat().st_mtime_ns == before
