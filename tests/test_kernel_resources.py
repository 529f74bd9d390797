"""The machine code of the kernels: no spills where they are tuned, and shared memory that every GPU has.

Compiled in processes of their own, where Triton is not an interpreter. No GPU is needed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from releases import needs

from swinx.attention.triton import parameters
from swinx.attention.triton.table import TABLE
from tests.benchmarks.kernel_resources import SHARED_MEMORY, longest_loop
from tests.benchmarks.tune_attention import GIVEN_UP, by_time

pytestmark = needs("triton", "3.3", "the oldest release whose machine code is counted")
ROWS = Path(__file__).parent.parent / "docs" / "benchmarks" / "kernel-resources.jsonl"


def compiled(tmp_path: Path, *arguments: str) -> list[dict]:
    output = tmp_path / "rows.jsonl"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.benchmarks.kernel_resources", "--output", str(output), *arguments]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in output.read_text().splitlines()]


def check_tuned(row: dict) -> None:
    assert row["spills"] == 0, row
    assert row["stack_bytes"] == 0, row
    assert row["narrow_loads"] == 0, row  # all tokens in pieces of 16 bytes, padding too
    assert row["matrix_instructions"] > 0, row
    assert row["copies_ahead"] >= 3, row  # tokens of the next window are on their way while this one is computed


def test_windows_of_7_and_8_spill_nothing(tmp_path: Path) -> None:
    rows = compiled(tmp_path, "--windows", "7", "8", "--dtypes", "bf16", "--capabilities", "90")
    assert [row["kernel"] for row in rows] == ["forward", "backward"] * 2
    for row in rows:
        check_tuned(row)


def test_the_table_in_the_docs_has_no_spills_there_either() -> None:
    """Triton 3.6 and 3.9: register counts differ from version to version."""
    rows = [json.loads(line) for line in ROWS.read_text().splitlines()]
    tuned = [
        row
        for row in rows
        if (row["capability"], row["dtype"], row["head_dim"], row["cosine"]) == (90, "bf16", 32, False)
        and row["window"] in (7, 8)
        and row["triton"] in ("3.6.0", "3.9.0")
    ]
    assert len(tuned) == 2 * 4
    for row in tuned:
        check_tuned(row)


def test_the_compiler_gave_up_on_no_entry_of_the_launch_table() -> None:
    """With 32 registers it has put nearly everything into memory. What was timed was the fastest of many."""
    rows = [json.loads(line) for line in (ROWS.parent / "kernel-candidates.jsonl").read_text().splitlines()]
    for key, (warps, _, limit, _) in TABLE.items():
        entry = "-".join(map(str, key))
        chosen = [row for row in rows if (row["entry"], row["warps"], row["limit"]) == (entry, warps, limit)]
        assert chosen or by_time(key), entry
        assert min((row["registers"] for row in chosen), default=GIVEN_UP + 1) > GIVEN_UP, chosen


def test_wide_float32_heads_always_have_a_limit_of_registers() -> None:
    for tokens in (16, 49, 144):
        for generation in (8, 9, 10, 12):
            launch = parameters.launch("forward", tokens, 64, torch.float32, generation, 101376)
            assert launch.registers in (128, parameters.ALL_REGISTERS)
    assert parameters.launch("backward", 49, 64, torch.bfloat16, 9, 232448).registers is None


@pytest.mark.parametrize(("capability", "dtype"), [("90", "bf16"), ("89", "fp16")])
def test_the_largest_window_and_head_fit_into_shared_memory(tmp_path: Path, capability: str, dtype: str) -> None:
    options = ["--windows", "16", "--head-dims", "128", "--dtypes", dtype, "--capabilities", capability]
    for row in compiled(tmp_path, *options):
        assert row["shared_bytes"] <= SHARED_MEMORY[int(capability)], row


def test_a_loop_ends_with_either_kind_of_jump() -> None:
    """The second is that of sm_120 where all threads of a warp jump together."""
    for jump in ("@!P0 BRA 0x0020", "BRA.U UP0, 0x0020", "BRA.U !UP0, 0x0020", "BRA P1, 0x0020"):
        lines = [f"/*{16 * place:04x}*/  {code} ;" for place, code in enumerate(["NOP", "NOP", "LDL", "NOP", jump])]
        assert longest_loop("\n".join(lines)) == 2


def test_interpreted_kernels_are_refused() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.benchmarks.kernel_resources", "--windows", "7"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "TRITON_INTERPRET must be unset" in result.stderr
