"""Which sources a worker reads: UWORKER_SOURCE_ALLOW, what goes without it, and which addresses are public."""

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from job_api.locations import segments_of
from uworker.images import SourceNotAllowed, SourceUnsupported
from uworker.settings import SettingsError, WorkerSettings, load_settings
from uworker.sources import Sources
from uworker.sources.allow import Allowance, is_public, place_of


def settings(**given: object) -> WorkerSettings:
    return WorkerSettings.model_validate({"job_api_root": "http://h", **given})


def allows(entries: str | list[str], url: str, *, bound: bool = False) -> bool:
    listed = [entries] if isinstance(entries, str) else entries
    try:
        Allowance(settings(source_allow=listed).source_allow, bound=bound).admit(url)
    except SourceNotAllowed:
        return False
    return True


@pytest.mark.parametrize(
    ("entry", "url", "allowed"),
    [
        ("https://host/a", "https://host/a", True),
        ("https://host/a", "https://host/a/", True),
        ("https://host/a/", "https://host/a/b/c", True),
        ("https://host", "https://host/a", True),
        ("https://HOST/a", "https://Host/a", True),
        ("https://host:443/a", "https://host/a", True),
        ("http://host/a", "http://host:80/a", True),
        ("https://bücher.example/a", "https://xn--bcher-kva.example/a", True),
        ("https://host/a b", "https://host/a%20b/c", True),
        ("https://host/%61", "https://host/a", True),
        ("https://host/a", "https://host/ab", False),
        ("https://host/a", "https://host/A", False),
        ("https://host/a/b", "https://host/a", False),
        ("https://host/a", "http://host/a", False),
        ("https://host/a", "https://host:8443/a", False),
        ("https://host/a", "https://host.evil.example/a", False),
        ("https://host/a", "https://evil.example/https://host/a", False),
        ("https://host/a", "https://host/b/../a", False),
        ("https://host/a", "https://host/a/../b", False),
        ("https://host/a", "https://host/a/%2e%2e/b", False),
        ("https://host/a", "https://host/a/.%2E/b", False),
        ("https://host/a", "https://host/a%2f..%2fb", False),
        ("https://host/a", "https://host/a/..%5cb", False),
        ("https://host/a", "https://host/a/%252e%252e/b", True),  # a folder that is called %2e%2e
        ("https://host/a/b", "https://host/a%2Fb", False),
        ("https://host/a", "https://host//a", False),
        ("https://host/a", "https://user:pw@host/a", False),
        ("https://host/a", "https://host@evil.example/a", False),
        ("https://127.0.0.1/a", "https://2130706433/a", False),
        ("az://container/a", "az://container/a/b", True),
        ("az://container", "az://container/a", True),
        ("az://container/a", "az://container/ab", False),
        ("az://container/a", "az://other/a", False),
        ("az://container/a", "s3://container/a", False),
        ("az://c1/a", "abfss://c1@account.dfs.core.windows.net/a", False),
        ("abfss://c1@account.dfs.core.windows.net/a", "abfss://c1@account.dfs.core.windows.net/a/b", True),
        ("abfss://c1@account.dfs.core.windows.net/a", "abfss://c1@other.dfs.core.windows.net/a/b", False),
        ("s3://bucket/a", "s3://bucket/a%20b", False),
        ("s3://bucket/a b", "s3://bucket/a%20b", True),
        ("gs://bucket/a", "gs://bucket", False),
        ("/data", "https://host/data", False),
        ("https://host/a", "file:///a", False),
    ],
)
def test_an_entry_allows_what_lies_below_it(entry: str, url: str, allowed: bool) -> None:
    assert allows(entry, url) is allowed
    assert allows(["/elsewhere", "s3://else", entry], url) is allowed, "wherever it stands in the list"


SEGMENT = st.text(st.characters(codec="utf-8", exclude_characters="/\\\0"), min_size=1, max_size=6).filter(
    lambda text: text not in (".", "..")
)
PATH = st.lists(SEGMENT, max_size=4)


def url_of(segments: list[str]) -> str:
    return "https://host" + "".join("/" + quote(segment, safe="") for segment in segments)


@given(PATH, PATH)
def test_the_rule_is_that_of_whole_parts(entry: list[str], path: list[str]) -> None:
    assert place_of(url_of(entry)).holds(place_of(url_of(path))) is (path[: len(entry)] == entry)
    assert place_of(url_of(entry)).holds(place_of(url_of(entry + path)))


@given(PATH)
def test_the_parts_of_a_path_are_decoded_exactly_once(path: list[str]) -> None:
    assert segments_of("/" + "/".join(quote(segment, safe="") for segment in path)) == tuple(path)


@given(
    st.text(st.sampled_from(list("./%2eEfF5cC\\a")), max_size=14).map(lambda path: "https://host/a/" + path),
)
def test_no_spelling_leads_out_of_an_entry(url: str) -> None:
    """Whatever is allowed stays below the entry also for a server that decodes twice, or takes \\ for a separator."""
    try:
        place = place_of(url)
    except ValueError:
        return
    depth = 0
    for segment in place.segments[1:]:
        for piece in segment.replace("\\", "/").split("/"):
            depth += {"..": -1, ".": 0, "": 0}.get(piece, 1)
            assert depth >= 0


def test_an_unbound_worker_reads_remote_sources_only_where_they_are_listed(tmp_path: Path) -> None:
    sources = Sources(settings())
    with pytest.raises(SourceNotAllowed) as caught:
        sources.open("https://images.example/set")
    sources.open(str(tmp_path))
    assert "UWORKER_SOURCE_ALLOW=https://images.example/set" in str(caught.value)
    assert "UWORKER_JOB_API_PROJECT" in str(caught.value)
    Sources(settings(source_allow="https://images.example")).open("https://images.example/set")


def test_a_bound_worker_reads_the_remote_source_that_it_began_with() -> None:
    sources = Sources(settings(job_api_project="patents"))
    sources.open("https://images.example/set")
    sources.open("https://images.example/set/below")
    for other in (
        "https://images.example/other",
        "https://images.example",
        "http://images.example/set",
        "s3://bucket/x",
    ):
        with pytest.raises(SourceNotAllowed, match="began with") as caught:
            sources.open(other)
        assert f"UWORKER_SOURCE_ALLOW={other}" in str(caught.value)


def test_the_same_holds_for_object_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    sources = Sources(settings(job_api_project="patents"))
    sources.open("s3://bucket/images")
    for other in ("s3://bucket", "s3://others/images", "az://bucket/images", "https://images.example/set"):
        with pytest.raises(SourceNotAllowed, match="began with"):
            sources.open(other)
    with pytest.raises(SourceNotAllowed, match="UWORKER_SOURCE_ALLOW=s3://bucket/images"):
        Sources(settings()).open("s3://bucket/images")
    with pytest.raises(SourceNotAllowed, match="add s3://others/images"):
        Sources(settings(source_allow="s3://bucket")).open("s3://others/images")


def test_a_worker_that_began_with_a_local_source_reads_no_remote_one_later(tmp_path: Path) -> None:
    sources = Sources(settings(job_api_project="patents"))
    sources.open(str(tmp_path))
    with pytest.raises(SourceNotAllowed, match="began with"):
        sources.open("https://images.example/set")
    sources.open(str(tmp_path))


def test_what_is_listed_counts_alone(tmp_path: Path) -> None:
    sources = Sources(settings(source_allow=f"{tmp_path}, https://images.example/set", job_api_project="patents"))
    sources.open(str(tmp_path / "below"))
    sources.open("https://images.example/set/1")
    with pytest.raises(SourceNotAllowed, match=r"add https://images\.example/other"):
        sources.open("https://images.example/other")
    with pytest.raises(SourceNotAllowed, match="UWORKER_SOURCE_ALLOW"):
        sources.open(str(tmp_path.parent))


def test_a_source_stays_open_for_the_next_job() -> None:
    sources = Sources(settings(source_allow="https://images.example"))
    assert sources.open("https://images.example/a") is sources.open("https://images.example/a")
    assert sources.open("https://images.example/a") is not sources.open("https://images.example/b")


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret-1@images.example/a",
        "https://images.example/a?sig=secret-1",
        "https://images.example/a#secret-1",
    ],
)
def test_a_source_with_a_credential_in_it_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(SourceUnsupported) as caught:
        Sources(settings(job_api_project="patents")).open(url)
    assert "secret-1" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "entries"),
    [
        ("/data/a,/data/b c", ["/data/a", "/data/b c"]),
        (" /data/a , https://host:8443/x ,", ["/data/a", "https://host:8443/x"]),
        ("az://c1/p,abfss://c1@acc.dfs.core.windows.net/p", ["az://c1/p", "abfss://c1@acc.dfs.core.windows.net/p"]),
        ("file:///data/a%2Cb", ["file:///data/a%2Cb"]),
    ],
)
def test_entries_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, value: str, entries: list[str]) -> None:
    monkeypatch.setenv("UWORKER_SOURCE_ALLOW", value)
    monkeypatch.setenv("UWORKER_JOB_API_TOKEN", "dj_x")
    assert load_settings(job_api_root="http://h").source_allow == entries


@pytest.mark.parametrize(
    "value", ["data", "ftp://host/x", "https:///x", "https://u:secret-1@host/x", "https://host/a/../b"]
)
def test_an_entry_that_makes_no_sense_is_told_at_the_start(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("UWORKER_SOURCE_ALLOW", f"/data,{value}")
    monkeypatch.setenv("UWORKER_JOB_API_TOKEN", "dj_x")
    with pytest.raises(SettingsError, match="UWORKER_SOURCE_ALLOW") as caught:
        load_settings(job_api_root="http://h")
    assert "secret-1" not in str(caught.value)


def test_a_folder_with_a_comma_is_written_as_a_url(tmp_path: Path) -> None:
    folder = tmp_path / "a,b"
    folder.mkdir()
    Sources(settings(source_allow=folder.as_uri().replace(",", "%2C"))).open(str(folder))


def test_only_the_host_of_an_entry_is_named() -> None:
    allowance = Allowance(["https://host/a", "http://other:8080", "s3://bucket/x"], bound=True)
    assert allowance.names("host", 443)
    assert allowance.names("OTHER", 8080)
    assert not any(allowance.names(*at) for at in (("host", 80), ("other", 80), ("bucket", 443), ("sub.host", 443)))
    began = Allowance([], bound=True)
    began.admit("https://host/a")
    assert not began.names("host", 443), "to begin with a source is not to name its host"


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"]
)
def test_addresses_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",  # noqa: S104 - judged, not listened on
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "168.63.129.16",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b::127.0.0.1",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "2001:0:808:808::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "ff02::1",
        "2001:db8::1",
    ],
)
def test_all_others_are_not(address: str) -> None:
    assert not is_public(address)
