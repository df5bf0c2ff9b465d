"""HEADWATER_LOG_URL as each client is told it; a record's bytes as text; what a topic that is made gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog.settings import SettingsError, load_settings
from streaming.kafka_config import (
    TopicShape,
    confluent_options,
    kafka_python_options,
    parse_log_url,
    topic_options,
)
from streaming.log_writer import LogAddressError
from streaming.open_log import has_log, open_log, open_writer, shown_address
from streaming.record_text import ESCAPE, to_bytes, to_text


@given(st.binary() | st.text().map(str.encode) | st.binary().map(lambda raw: ESCAPE.encode() + raw))
def test_bytes_come_back_from_text(raw: bytes) -> None:
    assert to_bytes(to_text(raw)) == raw


def test_text_is_itself() -> None:
    assert to_text('{"name": "Ærø"}'.encode()) == '{"name": "Ærø"}'
    assert to_text(b"\xff") == "data:;base64,/w=="


@pytest.mark.parametrize(
    ("url", "servers"),
    [
        ("kafka://host", ("host:9092",)),
        ("kafka://one:1,two,[::1]:3,[::1]", ("one:1", "two:9092", "[::1]:3", "[::1]:9092")),
    ],
)
def test_servers(url: str, servers: tuple[str, ...]) -> None:
    assert parse_log_url(url).servers == servers
    assert load_settings({"HEADWATER_LOG_URL": url}).log_url == url


def test_both_clients_are_told_the_same(tmp_path: Path) -> None:
    ca, secret = tmp_path / "ca.pem", tmp_path / "secret"
    ca.touch()
    secret.write_text("pass%41word\n")
    url = f"kafka://ann:x@host:1?tls=on&sasl=plain&ca={ca}&password_file={secret}"
    address = parse_log_url(url)
    assert confluent_options(address) == {
        "bootstrap.servers": "host:1",
        "security.protocol": "sasl_ssl",
        "log_level": "3",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "ann",
        "sasl.password": "pass%41word",
        "ssl.ca.location": str(ca),
    }
    assert kafka_python_options(address) == {
        "bootstrap_servers": ["host:1"],
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "pass%41word",
        "ssl_cafile": str(ca),
    }
    quoted = parse_log_url("kafka://a%40b:p%3Aw@host?sasl=scram-sha-256")
    assert (quoted.user, quoted.password, quoted.sasl) == ("a@b", "p:w", "scram-sha-256")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("kafka://h?tls=maybe", r"found tls=maybe, allowed is one of off, on"),
        ("kafka://h?tsl=on", r"found option 'tsl', allowed is one of ca, certificate, key, password_file, sasl, tls"),
        ("kafka://h?ca=/nowhere", r"found ca=/nowhere, which is no file"),
        (
            "kafka://ann:secret@h",
            r"a user and no option sasl, allowed is sasl=plain or sasl=scram-sha-256 or",
        ),
        (
            "kafka://ann@h?sasl=plain",
            r"a user and no password, allowed is user:password@host, or the option pass",
        ),
        ("kafka://h?sasl=plain", r"a password or the option sasl and no user"),
        ("kafka://:secret@h", r"a password or the option sasl and no user"),
        (f"kafka://h?ca={__file__}", r"found option ca and not tls=on, allowed is tls=on with it"),
        ("kafka://h,,i", r"found kafka://h,,i, allowed is kafka://host:port"),
        ("redis://h", r"found redis://h, allowed"),
    ],
)
def test_what_is_wrong_in_a_url_is_said(url: str, said: str) -> None:
    with pytest.raises(LogAddressError, match=said):
        parse_log_url(url)


def test_a_certificate_needs_its_key(tmp_path: Path) -> None:
    (tmp_path / "c").touch()
    with pytest.raises(LogAddressError, match="found only one of certificate and key"):
        parse_log_url(f"kafka://h?certificate={tmp_path / 'c'}")


def test_the_password_is_never_shown(tmp_path: Path) -> None:
    settings = load_settings(
        {"HEADWATER_LOG_URL": "kafka://ann:secret@h:1?sasl=plain", "HEADWATER_HOME": str(tmp_path)}
    )
    with open_log(settings) as log:  # type: ignore[attr-defined]
        shown = [str(parse_log_url(str(settings.log_url))), repr(parse_log_url(str(settings.log_url))), repr(settings)]
        shown += [shown_address(settings), repr(log)]
    with pytest.raises(LogAddressError) as refused:
        parse_log_url("kafka://ann:secret@h?tsl=on")
    with pytest.raises(SettingsError) as unread:
        load_settings({"HEADWATER_LOG_URL": "kafka://ann:secret@h:x"})
    assert not [text for text in (*shown, str(refused.value), str(unread.value)) if "secret" in text]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HEADWATER_LOG_URL", "h:1"),
        ("HEADWATER_LOG_URL", "kafka://h/topic"),
        ("HEADWATER_LOG_PARTITIONS", "0"),
        ("HEADWATER_LOG_REPLICATION", "ten"),
        ("HEADWATER_LOG_RETENTION", "0"),
        ("HEADWATER_LOG_RETENTION", "7d"),
    ],
)
def test_wrong_settings_are_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"environment:{name}: found '{value}'"):
        load_settings({name: value})


def test_what_a_topic_gets() -> None:
    kept = topic_options(TopicShape(), compacted=False)
    assert (kept["cleanup.policy"], kept["retention.ms"], kept["min.insync.replicas"]) == ("delete", "-1", "1")
    week = topic_options(TopicShape(retention_ms=604_800_000, replication=3), compacted=False)
    assert (week["retention.ms"], week["min.insync.replicas"]) == ("604800000", "2")
    compacted = topic_options(TopicShape(retention_ms=604_800_000), compacted=True)
    assert compacted["cleanup.policy"] == "compact"
    assert "retention.ms" not in compacted


def test_without_a_url_the_log_is_a_file(tmp_path: Path) -> None:
    settings = load_settings({"HEADWATER_HOME": str(tmp_path)})
    assert not has_log(settings)
    writer = open_writer(settings)
    writer.send("t", None, b"v", 1)
    writer.flush()
    writer.close()
    assert has_log(settings)
    assert shown_address(settings) == str(tmp_path / "log.db")
    log = open_log(settings)
    assert list(log.topics()) == ["t"]
    log.close()


def test_a_writer_to_kafka_loads_neither_tables_nor_the_other_client(tmp_path: Path) -> None:
    code = (
        "import sys; from catalog.settings import load_settings; from streaming.open_log import open_writer; "
        f"home = {str(tmp_path)!r}; "
        "open_writer(load_settings({'HEADWATER_LOG_URL': 'kafka://127.0.0.1:1', 'HEADWATER_HOME': home})); "
        "print({'pyarrow', 'numpy', 'kafka', 'duckdb', 'dagster', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
