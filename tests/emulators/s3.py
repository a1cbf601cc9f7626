"""An S3 server (moto's), and the stand-in for Google Cloud Storage that it is as well.

The S3 server checks signatures and permissions as soon as its user is made, so that a wrong key is refused as AWS
refuses it. Google's storage is reached by obstore through its XML interface, which is S3's in what it lists, reads and
writes. The emulators on PyPI and npm (gcp-storage-emulator is the best kept) list in Google's JSON interface alone. The
stand-in knows nothing of Google's credentials.
"""

import contextlib
import json
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
from botocore.config import Config

from tests.emulators.buckets import CONNECTIONS, Emulator
from tests.emulators.processes import run_server

REGION = "eu-north-1"
ALL_ALLOWED = {"Effect": "Allow", "Action": "*", "Resource": "*"}
_LISTENS = r"Running on (http://\S+:\d+)"
_SERVER = Path(__file__).with_name("moto_server.py")


@dataclass(frozen=True)
class _Boto(Emulator):
    """What is filled through boto3."""

    key_id: str
    secret: str = field(repr=False)
    _client: Any = field(repr=False)

    def _create(self, bucket: str) -> None:
        self._client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})

    def _put(self, bucket: str, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=bucket, Key=key, Body=data)

    def content(self, bucket: str) -> dict[str, bytes]:
        """See `Emulator`."""
        return {key: self._client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in self._keys(bucket)}

    def _keys(self, bucket: str) -> list[str]:
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def delete(self, bucket: str, key: str) -> None:
        """See `Emulator`."""
        self._client.delete_object(Bucket=bucket, Key=key)

    def remove(self, bucket: str) -> None:
        """See `Emulator`."""
        with contextlib.suppress(self._client.exceptions.NoSuchBucket):
            for key in self._keys(bucket):
                self.delete(bucket, key)
            self._client.delete_bucket(Bucket=bucket)

    def close(self) -> None:
        """See `Emulator`."""
        self._client.close()


@dataclass(frozen=True)
class S3Server(_Boto):
    """A running S3 server."""

    scheme = "s3"

    @property
    def environment(self) -> dict[str, str]:
        """See `Emulator`."""
        return self._environment(self.key_id, self.secret)

    @property
    def wrong_environment(self) -> dict[str, str]:
        """See `Emulator`."""
        return self._environment(self.key_id, "not" + self.secret[3:])

    def _environment(self, key_id: str, secret: str) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": key_id,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_ENDPOINT_URL_S3": self.address,
            "AWS_REGION": REGION,
        }

    def environment_of_user(self, *statements: dict[str, Any]) -> dict[str, str]:
        """Variables of a new user who may do what these statements of a policy say, and nothing else."""
        iam = _client("iam", self.server, self.key_id, self.secret)
        try:
            return self._environment(*_new_user(iam, *statements))
        finally:
            iam.close()


@dataclass(frozen=True)
class GcsServer(_Boto):
    """A running stand-in for Google Cloud Storage; asks nobody who he is."""

    scheme = "gs"

    def _create(self, bucket: str) -> None:
        super()._create(bucket)
        # An emulator is reached without a login, and moto has that allowed for each bucket.
        policy = {"Version": "2012-10-17", "Statement": [{**ALL_ALLOWED, "Principal": "*"}]}
        self._client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))

    @property
    def environment(self) -> dict[str, str]:
        """See `Emulator`. The variable is that of Google's own libraries."""
        return {"STORAGE_EMULATOR_HOST": self.address}

    @property
    def wrong_environment(self) -> dict[str, str]:
        """There is none."""
        raise NotImplementedError("the stand-in for Google Cloud Storage refuses nobody")


def _client(service: str, address: str, key_id: str, secret: str) -> Any:
    return boto3.session.Session().client(
        service,
        endpoint_url=address,
        aws_access_key_id=key_id,
        aws_secret_access_key=secret,
        region_name=REGION,
        config=Config(max_pool_connections=CONNECTIONS, s3={"addressing_style": "path"}),
    )


def _new_user(iam: Any, *statements: dict[str, Any]) -> tuple[str, str]:
    """Make a user; returns the key's id and the key."""
    name = f"user-{uuid.uuid4().hex[:12]}"
    policy = {"Version": "2012-10-17", "Statement": list(statements)}
    iam.create_user(UserName=name)
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


@contextmanager
def _run_moto() -> Iterator[str]:
    with run_server([sys.executable, str(_SERVER)], _LISTENS) as server:
        yield server.address


@contextmanager
def run_s3() -> Iterator[S3Server]:
    """A running S3 server.

    Raises:
        NoServer: it does not start.
    """
    with _run_moto() as address:
        iam = _client("iam", address, "nobody", "nothing")
        key_id, secret = _new_user(iam, ALL_ALLOWED)
        iam.close()
        # From the next request on it asks who that is, and what he may do.
        httpx.post(f"{address}/moto-api/reset-auth", content=b"0", timeout=30).raise_for_status()
        server = S3Server(address, address, key_id, secret, _client("s3", address, key_id, secret))
        try:
            yield server
        finally:
            server.close()


@contextmanager
def run_gcs() -> Iterator[GcsServer]:
    """A running stand-in for Google Cloud Storage.

    Raises:
        NoServer: it does not start.
    """
    with _run_moto() as address:
        server = GcsServer(address, address, "nobody", "nothing", _client("s3", address, "nobody", "nothing"))
        try:
            yield server
        finally:
            server.close()
