"""Who may import whom, and what the code location may not import at load."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]

# Our packages that each package may import, beside itself (docs/architecture.md, "Who may import whom").
ALLOWED = {
    "catalog": set(),
    "lake": {"catalog"},
    "streaming": {"catalog", "lake"},
    "ml": {"catalog", "lake"},
    "serving": {"catalog", "lake", "ml", "streaming.log", "streaming.open_log"},
    "resources": {"catalog", "lake", "streaming", "ml"},
    "assets": {"catalog", "lake", "streaming", "ml", "resources"},
    "sensors": {"catalog", "lake", "streaming", "ml", "resources"},
    "feature_repo": {"catalog"},
    "headwater": {
        "catalog", "lake", "streaming", "ml", "serving", "resources", "assets", "feature_repo", "definitions",
    },
}  # fmt: skip
OURS = set(ALLOWED) | {"definitions"}
DAGSTER_FREE = ("catalog", "lake", "streaming", "ml", "serving", "feature_repo")
HEAVY = (
    "torch", "mlflow", "feast", "great_expectations", "evidently", "sentence_transformers", "lightgbm", "sklearn",
    "matplotlib", "onnxruntime", "skl2onnx",
)  # fmt: skip


def imports(file: Path) -> set[str]:
    """Every module that the file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def violations(package: str, file: Path) -> list[str]:
    broken = []
    for module in imports(file):
        top = module.split(".")[0]
        allowed = ALLOWED[package]
        ours = top in OURS and top != package
        if ours and not any(module == a or module.startswith(a + ".") or a.startswith(module + ".") for a in allowed):
            broken.append(f"{file.relative_to(PROJECT)} imports {module}")
        if top in ("dagster", "dagster_dbt") and package in DAGSTER_FREE:
            broken.append(f"{file.relative_to(PROJECT)} imports {module}")
    return broken


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_a_package_imports_only_what_the_architecture_allows(package: str) -> None:
    files = sorted((PROJECT / package).rglob("*.py"))
    assert files
    assert [v for file in files for v in violations(package, file)] == []


def test_the_boundary_check_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "PROJECT", tmp_path)
    file = tmp_path / "bad.py"
    file.write_text("import dagster\nfrom serving.app import create_app\n")
    assert len(violations("ml", file)) == 3


def test_the_code_location_loads_in_a_fresh_interpreter_without_heavy_packages(tmp_path: Path) -> None:
    code = (
        "import sys, time; t = time.process_time(); import definitions; "
        "print('CPU seconds to load:', round(time.process_time() - t, 2)); "
        f"print('heavy:', sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    environment = {**os.environ, "HEADWATER_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stdout


def test_a_connector_on_the_embedded_log_imports_no_table_library(tmp_path: Path) -> None:
    """It takes a second and 150 MB that a connector has no use for."""
    code = """
import sys
from pathlib import Path
import streaming.capture.service, streaming.mysql.source, streaming.postgres.source
from streaming.sqlite_writer import SqliteWriter
writer = SqliteWriter(Path(sys.argv[1]))
writer.send("t", b"k", b"{}", 1)
writer.flush()
print(writer.tails("t"))
print("heavy:", sorted({"pyarrow", "pandas", "numpy", "duckdb", "deltalake", "dagster"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code, str(tmp_path / "log.db")]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["{0: [Record(offset=0, timestamp_us=1, key=b'k', value=b'{}')]}", "heavy: []"]
