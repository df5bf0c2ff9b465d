"""The server that we talk to: what it is, what its binary log has, and what it must be set to.

A setting or a privilege that is missing is named together with the statement that mends it, all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streaming.capture.errors import Halt, Retryable
from streaming.mysql.connect import Database
from streaming.mysql.dictionary import Described, Dictionary
from streaming.mysql.positions import place

if TYPE_CHECKING:
    import pymysql

__all__ = ["Logs", "Server", "check_log", "check_tables"]

_FACTS = ("version", "server_id", "hostname", "port", "datadir", "lower_case_table_names")
_ROW_SETTINGS = {"binlog_format": "ROW", "binlog_row_image": "FULL", "binlog_row_metadata": "FULL"}
_MYSQL_SETTINGS = {"binlog_transaction_compression": "OFF", "binlog_row_value_options": ""}
_ASKED = (
    *_FACTS,
    *_ROW_SETTINGS,
    *_MYSQL_SETTINGS,
    "log_bin",
    "log_slave_updates",
    "gtid_slave_pos",
    "expire_logs_days",
    "binlog_expire_logs_seconds",
    "max_binlog_total_size",
)
_DAY_S = 86_400
_TABLE_KINDS = ("BASE TABLE",)


@dataclass(frozen=True)
class Logs:
    """The binary log: its end, and its files' sizes in their order."""

    file: str
    pos: int
    sizes: Mapping[str, int]

    @property
    def end(self) -> int:
        return place(self.file, self.pos)

    def behind(self, file: str, pos: int) -> int:
        """Bytes from that place to the end."""
        names = list(self.sizes)
        later = names[names.index(file) :] if file in names else names
        return max(sum(self.sizes[name] for name in later) - pos, 0)


class Server:
    """A server's facts and settings, as they were when we connected."""

    def __init__(self, database: Database, connection: pymysql.Connection) -> None:
        """Raises Retryable, Halt."""
        self._database, self._connection = database, connection
        names = ", ".join(f"'{name}'" for name in _ASKED)
        rows = database.query(connection, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")
        self.settings: Mapping[str, str] = {str(name).lower(): str(value) for name, value in rows}
        self.mariadb = "mariadb" in self.settings["version"].lower()

    @property
    def server_id(self) -> int:
        return int(self.settings["server_id"])

    @property
    def name(self) -> str:
        """Which server this is, as far as it tells; another installation at the same address differs mostly."""
        found = self.settings
        return f"server {found['server_id']} on {found['hostname']}:{found['port']} ({found['datadir']})"

    @property
    def folds_names(self) -> bool:
        """Whether names of tables are the same in upper and lower case."""
        return self.settings.get("lower_case_table_names", "0") != "0"

    @property
    def kept_s(self) -> float:
        """For how long a file of the log is kept; 0: forever."""
        return float(self.settings.get("binlog_expire_logs_seconds") or 0) or _DAY_S * float(
            self.settings.get("expire_logs_days") or 0
        )

    @property
    def kept_bytes(self) -> int:
        """How large the log may become; 0: unbounded."""
        return int(self.settings.get("max_binlog_total_size") or 0)

    def status(self) -> Sequence[tuple[str, int, str, str]]:
        """The end of the log: file, position, the databases that alone are in it, those that are not; empty without."""
        statements = ("SHOW MASTER STATUS", "SHOW BINARY LOG STATUS")  # of MariaDB and older MySQL; of newer
        for number, statement in enumerate(statements):
            try:
                found = self._database.query(self._connection, statement)
            except Retryable:
                if self.mariadb or number:
                    raise
                continue
            return [(row[0], int(row[1]), row[2] or "", row[3] or "") for row in found]
        return []

    def logs(self) -> Logs:
        """The log's files and its end. Raises Retryable, Halt."""
        sizes = {row[0]: int(row[1]) for row in self._database.query(self._connection, "SHOW BINARY LOGS")}
        status = self.status()
        if not status:
            raise _unset(["log_bin is OFF"], ["log_bin in the server's configuration, and restart it"])
        return Logs(status[0][0], status[0][1], sizes)

    def gtid_at(self, file: str, pos: int) -> str:
        """MariaDB's GTID state at a place of the log; empty where there is none."""
        if not self.mariadb:
            return ""
        ((found,),) = self._database.query(self._connection, "SELECT BINLOG_GTID_POS(%s, %s)", (file, pos))
        return str(found or "").replace(" ", "")


def check_log(server: Server, databases: Sequence[str], our_id: int) -> None:
    """Whether the log has what we need. Raises Halt that names all that is missing."""
    found: list[str] = []
    mend: list[str] = []
    settings = server.settings
    if settings.get("log_bin") not in ("ON", "1"):
        raise _unset(["log_bin is OFF"], ["put log_bin into the server's configuration and restart it"])
    wanted = {**_ROW_SETTINGS, **({} if server.mariadb else _MYSQL_SETTINGS)}
    for name, value in wanted.items():
        if name not in settings and name in _ROW_SETTINGS:
            found.append(f"there is no {name}")
            mend.append("capture from MariaDB 10.5 or MySQL 8.0.14 at least")
        elif settings.get(name, value).upper() != value:
            found.append(f"{name} is {settings[name] or 'empty'}")
            mend.append(f"SET GLOBAL {name} = '{value}' (and in the configuration)")
    if settings.get("gtid_slave_pos") and settings.get("log_slave_updates") in ("OFF", "0"):
        found.append("this replica does not log what it replicates")
        mend.append("put log_slave_updates into its configuration and restart it")
    if server.server_id == our_id:
        found.append(f"the server's own server_id is {our_id}, as ours")
        mend.append("choose another for us: ?server_id=... in the URL")
    for _, _, only, without in server.status():
        for database in databases:
            if (only and database not in only.split(",")) or database in without.split(","):
                found.append(f"the binary log leaves out {database}")
                mend.append("take binlog_do_db and binlog_ignore_db out of the server's configuration, and restart it")
    if found:
        raise _unset(found, mend)


def _unset(found: Sequence[str], mend: Sequence[str]) -> Halt:
    return Halt(
        f"the server is not set for capture: {'; '.join(found)}",
        "; ".join(dict.fromkeys(mend)).removesuffix("."),
        "mariadb_settings",
    )


def check_tables(
    dictionary: Dictionary, connection: pymysql.Connection, names: Sequence[str], known: Sequence[str]
) -> list[Described]:
    """The tables to capture as they are now; one of `known` may be gone. Raises Halt."""
    found = {name: dictionary.describe(connection, name) for name in names}
    if missing := [name for name, table in found.items() if table is None and name not in known]:
        raise Halt(
            f"found no table {', '.join(missing)} that this user may read",
            "Create it, GRANT SELECT on it, or take it out of catalog/sources",
            "mariadb_tables",
        )
    tables = [table for table in found.values() if table is not None]
    for table in tables:
        _check_table(table)
    if cascades := dictionary.cascades(connection, names):
        raise Halt(
            f"foreign keys change rows of captured tables without a word in the binary log: {', '.join(cascades)}",
            "Make them ON DELETE RESTRICT ON UPDATE RESTRICT and let the application change the rows",
            "mariadb_cascades",
        )
    return tables


def _check_table(table: Described) -> None:
    name = table.schema.name
    if table.kind not in _TABLE_KINDS:
        raise Halt(
            f"{name} is no plain table but: {table.kind.lower()}",
            "Capture the tables that a view is made of; a system-versioned table keeps its history itself",
            "mariadb_tables",
        )
    if not table.schema.key and table.engine.upper() != "INNODB":
        raise Halt(
            f"{name} has neither a primary key nor an engine that can show it as of an instant ({table.engine})",
            f"ALTER TABLE {name} ENGINE = InnoDB, or add a primary key",
            "mariadb_tables",
        )
