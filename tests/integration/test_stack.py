"""The local stack: real servers as processes, started, asked, killed, stopped; `headwater up` and `headwater down`."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psycopg
import pymysql
import pytest
from homes import PROJECT, Home
from stack_servers import (
    MODULES,
    ask_mariadb,
    ask_postgresql,
    ask_redis,
    assert_captures_and_no_more,
    need,
    processes_below,
    started,
)

from headwater.stack import mariadb, postgresql, redis
from headwater.stack.errors import MissingPrograms, PortTaken, StackError, StartFailed
from headwater.stack.maven import own_files
from headwater.stack.packages import ensure, missing
from headwater.stack.place import HOST
from headwater.stack.process import find
from headwater.stack.server import Server, kill, remove, restart, stop

pytestmark = pytest.mark.filterwarnings(
    # kafka-python reads its protocol's files through it while it is imported
    "ignore:read_text is deprecated:DeprecationWarning"
)


def kafka_topics(server: Server) -> list[str]:
    from kafka.admin import KafkaAdminClient

    with closing(KafkaAdminClient(bootstrap_servers=f"{HOST}:{server.port}")) as admin:
        return sorted(topic for topic in admin.list_topics() if not topic.startswith("__"))


def keep_something(server: Server) -> None:
    """Write what a restart must not lose."""
    if server.name == "postgresql":
        ask_postgresql(server, "CREATE TABLE kept AS SELECT 7 AS n")
    elif server.name == "mariadb":
        ask_mariadb(server, "CREATE DATABASE kept")
    elif server.name == "redis":
        assert ask_redis(server, "SET kept 7") == "+OK"
    else:
        from kafka.admin import KafkaAdminClient, NewTopic

        with closing(KafkaAdminClient(bootstrap_servers=f"{HOST}:{server.port}")) as admin:
            admin.create_topics([NewTopic("kept", num_partitions=2, replication_factor=1)])


def is_kept(server: Server) -> bool:
    if server.name == "postgresql":
        return ask_postgresql(server, "SELECT n FROM kept") == [(7,)]
    if server.name == "mariadb":
        return ("kept",) in ask_mariadb(server, "SHOW DATABASES")
    if server.name == "redis":
        return ask_redis(server, "GET kept").endswith("7")
    return kafka_topics(server) == ["kept"]


@pytest.mark.parametrize("name", MODULES)
def test_a_server_survives_kill_and_leaves_nothing_when_removed(name: str, tmp_path: Path) -> None:
    directory = tmp_path / "a path with spaces" / name
    with started(name, directory) as server:
        keep_something(server)
        assert MODULES[name].start(directory) == server
        kill(server)
        assert not server.is_running
        again = MODULES[name].start(directory)
        assert (again.port, again.url) == (server.port, server.url)
        assert again.pid != server.pid
        assert is_kept(again)
        stop(again)
        assert not processes_below(directory, again.home)
        assert is_kept(restart(again))
    assert not directory.exists()
    assert not again.home.exists()
    assert not processes_below(directory, again.home)


def test_postgresql_is_set_up_for_capture_and_kill_takes_its_backends_along(tmp_path: Path) -> None:
    with started("postgresql", tmp_path / "server", settings={"ssl": "on", "wal_keep_size": "64MB"}) as server:
        told = dict(ask_postgresql(server, "SELECT name, setting FROM pg_settings"))
        assert (told["wal_level"], told["listen_addresses"], told["wal_keep_size"]) == ("logical", HOST, "64")
        assert told["password_encryption"] == "scram-sha-256"
        assert int(told["max_replication_slots"]) >= 20
        assert int(told["max_wal_senders"]) >= 20
        verified = {"sslmode": "verify-full", "sslrootcert": str(server.certificate)}
        in_use = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        assert ask_postgresql(server, in_use, **verified) == [(True,)]
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.admin_url, password="wrong")
        with psycopg.connect(server.admin_url) as connection:
            assert connection.info.backend_pid in processes_below(server.home)
            kill(server)
            assert not processes_below(server.home)


def test_mariadb_is_set_up_for_capture(tmp_path: Path) -> None:
    with started("mariadb", tmp_path / "server", settings={"ssl": "on", "max_binlog_size": "1M"}) as server:
        told = dict(ask_mariadb(server, "SHOW VARIABLES"))
        assert (told["binlog_format"], told["binlog_row_image"], told["binlog_row_metadata"]) == ("ROW", "FULL", "FULL")
        assert (told["log_bin"], told["gtid_strict_mode"], told["bind_address"]) == ("ON", "ON", HOST)
        assert told["max_binlog_size"] == str(1 << 20)
        cipher = ask_mariadb(server, "SHOW STATUS LIKE 'Ssl_cipher'", ssl={"ca": str(server.certificate)})
        assert cipher[0][1]
        with pytest.raises(pymysql.OperationalError, match="Access denied"):
            ask_mariadb(server, "SELECT 1", password="")


def test_a_standby_follows_and_can_be_promoted(tmp_path: Path) -> None:
    with started("postgresql", tmp_path / "primary") as primary:
        standby = postgresql.standby(primary, tmp_path / "standby")
        try:
            assert postgresql.standby(primary, tmp_path / "standby") == standby
            assert ask_postgresql(standby, "SELECT pg_is_in_recovery()") == [(True,)]
            keep_something(primary)
            stop(primary)  # it waits until its standby has everything
            assert ask_postgresql(standby, "SELECT pg_promote()") == [(True,)]
            assert is_kept(standby)
        finally:
            remove(standby)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs a server under another account")
def test_a_directory_that_the_account_may_not_enter_links_to_one_that_it_may(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with started("postgresql", closed / "server") as server:
        assert (closed / "server" / "home").is_symlink()
        assert not server.home.is_relative_to(tmp_path)
        assert Path(f"/proc/{server.pid}").stat().st_uid == pwd.getpwnam("postgres").pw_uid
    assert not server.home.exists()


def test_a_port_that_is_taken_is_said(tmp_path: Path) -> None:
    need("redis")
    with closing(socket.create_server((HOST, 0))) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)):
            redis.start(tmp_path / "server", port=port)


def test_a_server_that_does_not_come_up_shows_its_log_and_is_gone(tmp_path: Path) -> None:
    need("redis")
    with pytest.raises(StartFailed, match="no-such-directive"):
        redis.start(tmp_path / "server", settings={"no-such-directive": "yes"})
    assert not processes_below(tmp_path)


def test_a_server_that_does_not_answer_in_time_is_ended(tmp_path: Path) -> None:
    need("redis")
    with pytest.raises(StartFailed, match=r"no answer within 0\.3 s"):
        redis.start(tmp_path / "server", settings={"requirepass": "secret"}, within_s=0.3)
    assert not processes_below(tmp_path)


def test_a_process_id_that_another_process_has_by_now_is_not_the_server(tmp_path: Path) -> None:
    record = tmp_path / "process"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    stat = Path("/proc/self/stat").read_text()
    record.write_text(boot + stat)
    assert find(record) is not None
    fields = stat.rpartition(")")[2].split()
    record.write_text(boot + stat.replace(fields[19], str(int(fields[19]) - 1)))
    assert find(record) is None
    record.write_text("another boot\n" + stat)
    assert find(record) is None
    record.write_text(boot)  # killed while it was written
    assert find(record) is None


def test_missing_programs_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [need.packages for need in missing("redis")] == [("redis-server",)]
    with pytest.raises(MissingPrograms, match=r"redis-server.*no apt-get"):
        ensure("redis")
    with pytest.raises(StackError, match="apt-get install redis-server"):
        redis.start(tmp_path / "server")


def test_maven_keeps_its_files_where_home_says(tmp_path: Path) -> None:
    """Java looks up the account instead, and `nobody` has no directory."""
    account, other, work = Path(pwd.getpwuid(os.getuid()).pw_dir), tmp_path / "home", tmp_path / "work"
    (other / ".m2").mkdir(parents=True)
    assert own_files(account, work) == []
    assert own_files(other, work) == [f"-Dmaven.repo.local={other}/.m2/repository"]
    (other / ".m2" / "settings.xml").touch()
    assert own_files(other, work)[1:] == ["-s", f"{other}/.m2/settings.xml"]
    assert own_files(tmp_path / "absent", work) == [f"-Dmaven.repo.local={work}/repository"]


def test_up_and_down(tmp_path: Path) -> None:
    need(*MODULES)
    home = Home(tmp_path / "home")
    stack = home.path / "stack"
    try:
        first = home.succeeds("up")
        exported = evaluated(first.out)
        assert exported.keys() == {"HEADWATER_LOG_URL", "HEADWATER_SHOP_URL", "HEADWATER_SHOP_PASSWORD_FILE"}
        assert_no_secret(first.out + first.err, stack)
        servers = [MODULES[name].start(stack / name) for name in MODULES]
        assert home.succeeds("up").out == first.out

        capture, file = exported["HEADWATER_SHOP_URL"], Path(exported["HEADWATER_SHOP_PASSWORD_FILE"])
        assert file.stat().st_mode & 0o777 == 0o600
        password = file.read_text()
        as_owner(first.out, "postgresql", "CREATE TABLE orders AS SELECT 1 AS n")
        assert_captures_and_no_more(capture, password)

        kill(servers[0])
        os.kill(servers[2].pid, signal.SIGKILL)
        assert home.succeeds("up").out == first.out
        assert_captures_and_no_more(capture, password)

        down = home.succeeds("down")
        assert down.err.count("stopped") == 4
        assert not processes_below(*(s.home for s in servers))
        assert home.succeeds("down").err.count("was not running") == 4
        assert home.set(SHOP_PASSWORD_FILE=str(file)).succeeds("up", "--only", "redis").out.startswith("# redis")
        assert home.headwater("down", "--purge").code == 1  # nobody answered
        assert (stack / "redis").is_dir()
    finally:
        home.succeeds("down", "--purge", "--yes")
    assert not any(stack.iterdir())
    assert not any(s.home.exists() for s in servers)


def evaluated(lines: str) -> dict[str, str]:
    """What a shell has after `eval` of them."""
    script = f'eval "$1"; exec {sys.executable} -c "import json, os; print(json.dumps(dict(os.environ)))"'
    done = subprocess.run(["sh", "-euc", script, "sh", lines], env={}, capture_output=True, text=True, check=True)
    return {name: value for name, value in json.loads(done.stdout).items() if name.startswith("HEADWATER_")}


def assert_no_secret(said: str, stack: Path) -> None:
    secrets = [path.read_text() for path in stack.glob("*/*.password")]
    assert len(secrets) >= len(MODULES)
    assert not [secret for secret in secrets if secret in said]


def as_owner(printed: str, scheme: str, statement: str) -> None:
    found = re.search(rf"^# to fill it: .* --url ({scheme}://\S+) --password-file (.+)$", printed, re.MULTILINE)
    assert found is not None
    with psycopg.connect(found[1], password=Path(found[2]).read_text(), autocommit=True) as owner:
        owner.execute(statement)  # type: ignore[call-overload]


def test_of_mariadb_alone_the_shop_is_exported(tmp_path: Path) -> None:
    need("mariadb")
    home = Home(tmp_path / "home")
    try:
        exported = evaluated(home.succeeds("up", "--only", "mariadb").out)
        assert exported.keys() == {"HEADWATER_SHOP_URL", "HEADWATER_SHOP_PASSWORD_FILE"}
        found = re.fullmatch(r"mysql://(\w+)@127.0.0.1:(\d+)/shop", exported["HEADWATER_SHOP_URL"])
        assert found is not None
        server = mariadb.start(home.path / "stack" / "mariadb")
        ask_mariadb(server, "CREATE TABLE shop.orders (n int)")
        capture = {"user": found[1], "password": Path(exported["HEADWATER_SHOP_PASSWORD_FILE"]).read_text()}
        assert ask_mariadb(server, "SELECT * FROM shop.orders", **capture) == []
        assert ask_mariadb(server, "SHOW MASTER STATUS", **capture)
        with pytest.raises(pymysql.OperationalError, match="denied"):
            ask_mariadb(server, "INSERT INTO shop.orders VALUES (1)", **capture)
        with pytest.raises(pymysql.OperationalError, match="denied"):
            ask_mariadb(server, "SELECT * FROM mysql.user", **capture)
    finally:
        home.succeeds("down", "--purge", "--yes")


def test_a_server_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    done = Home(tmp_path).headwater("up", "--only", "oracle")
    assert done.code == 2
    assert "postgresql, mariadb, kafka, redis" in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="runs as another account, which only root may become")
def test_up_as_somebody_who_is_not_root(tmp_path: Path) -> None:
    need("postgresql", "mariadb", "redis")
    nobody = pwd.getpwnam("nobody")
    become = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups", "--"]
    python = python_for(become)
    home = Path("/tmp") / f"headwater-nobody-{os.getpid()}"
    home.mkdir()
    os.chown(home, nobody.pw_uid, nobody.pw_gid)

    def headwater(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HEADWATER_HOME": str(home), "PYTHONPATH": PYTHON_PATH}
        command = [*become, python, "-m", "headwater.cli", *arguments]
        return subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=200)

    try:
        up = headwater("up", "--only", "postgresql,mariadb,redis")
        assert up.returncode == 0, up.stderr
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in processes_below(home)}
        assert owners == {nobody.pw_uid}
    finally:
        down = headwater("down", "--purge", "--yes")
        shutil.rmtree(home)
    assert down.stderr.count("stopped") == 3
    assert not processes_below(home)


PYTHON_PATH = os.pathsep.join([str(PROJECT), *(path for path in sys.path if path.endswith("site-packages"))])


def python_for(become: list[str]) -> str:
    """A Python of our version that this account can run, with our packages."""
    for python in (sys.executable, "/usr/bin/python3"):
        check = "import sys, psycopg, pymysql, headwater.cli; sys.exit(sys.version_info[:2] != (3, 11))"
        command = [*become, python, "-c", check]
        if (
            shutil.which(python)
            and subprocess.run(command, cwd=PROJECT, env={"PYTHONPATH": PYTHON_PATH}, capture_output=True).returncode
            == 0
        ):
            return python
    pytest.skip("no Python 3.11 with the project's packages can be run by the account nobody")
