"""What is read of compiled kernels, and how two results of them are told apart."""

from pathlib import Path

import pytest

from benchmarks.compiled import count, differences, line, outdated, page, save
from benchmarks.files import load_json, save_json
from benchmarks.results import Results

SASS = """
        /*0000*/                   MOV R1, c[0x0][0x28] ;                        /* 0x00000a0000017a02 */
        /*0010*/              @!P0 BRA 0x340 ;                                   /* 0x0000033000008947 */
        /*0020*/                   LDG.E.128.CONSTANT R4, [R2.64] ;              /* 0x0000000402047981 */
        /*0030*/              @P1  LDG.E R8, [R2.64+0x10] ;                      /* 0x0000100402087981 */
        /*0040*/                   LDG.E.U16.CONSTANT R9, [R2.64] ;              /* 0x0000100402087981 */
        /*0050*/             @!UP2 LDGSTS.E.BYPASS.128 [R5], [R2.64] ;           /* 0x0000000002057fae */
        /*0060*/                   LDGSTS.E.64 [R5+0x800], [R2.64+0x40] ;        /* 0x0080000002057fae */
        /*0070*/                   HMMA.1688.F32.TF32 R8, R4, R6, R8 ;           /* 0x000000060408723c */
        /*0080*/                   FFMA R1, R2, R3, R4 ;                         /* 0x0000000302017223 */
        /*0090*/                   FFMA2 R2, R4, R6, R8 ;                        /* 0x0000000604027249 */
        /*00a0*/                   MUFU.EX2 R1, R1 ;                             /* 0x0000000100017308 */
        /*00b0*/                   STG.E.64 [R2.64], R8 ;                        /* 0x0000000802007986 */
        /*00c0*/                   ATOMG.E.ADD.STRONG.GPU PT, R1, [R2.64], R4 ;  /* 0x00000004020179a8 */
        /*00d0*/                   EXIT ;                                        /* 0x000000000000794d */
        /*00e0*/                   NOP ;                                         /* 0x0000000000007918 */
"""


def test_instructions_are_counted_by_kind_and_width() -> None:
    expected = {"LDG.128": 1, "LDG.32": 1, "LDG.16": 1, "LDGSTS.128": 1, "LDGSTS.64": 1, "STG.64": 1}
    assert count(SASS) == {"all": 14, "HMMA": 1, "FFMA": 2, "MUFU": 1, "ATOMG": 1, **expected}


def row(registers: int, sass: dict[str, int], kernel: str = "moments_kernel") -> dict[str, object]:
    where = {"kernel": kernel, "workload": "c10-ipc10", "dtype": "float32", "chip": "H100"}
    return {**where, "programs": 120, "registers": registers, "sass": sass, "complaint": ""}


def test_what_differs_between_two_results_is_said() -> None:
    """... and a kernel's second configuration of a workload is compared with the second."""
    before = [row(235, {"all": 1816, "STG.32": 32}), row(40, {"all": 90}), row(9, {"all": 7}, "gone")]
    after = [row(181, {"all": 1144, "STG.128": 8}), row(41, {"all": 90}), row(9, {"all": 7}, "new")]
    *changed, rest = differences(before, after)
    assert changed == [
        "moments_kernel c10-ipc10 float32 H100: registers 235 -> 181, all 1816 -> 1144, STG.32 32 -> 0, STG.128 0 -> 8",
        "moments_kernel c10-ipc10 float32 H100 #1: registers 40 -> 41",
    ]
    assert rest == "0 configurations are the same, 1 new, 1 gone"
    assert list(differences(before, before)) == ["3 configurations are the same, 0 new, 0 gone"]


def test_a_line_has_every_count_and_the_complaint() -> None:
    shown = line(row(235, {"all": 1816}) | {"complaint": "spills"})
    assert shown == "moments_kernel  c10-ipc10  float32  H100  programs 120  registers 235  all 1816  spills"


PAGE = "# Kernels\n\n<!-- triton:begin -->\nold\n<!-- triton:end -->\n\nafter\n"


def test_the_page_shows_what_is_committed(tmp_path: Path) -> None:
    """... of the newest Triton chips side by side, and of every Triton what fails."""
    spilling = row(255, {"all": 9}) | {"complaint": "spills"}
    save(tmp_path / "triton-3.6.json.gz", "Triton 3.6.0", [with_usage(spilling)])
    sass = {"HMMA": 96, "LDG.32": 4, "LDGSTS.128": 30, "STG.128": 8, "all": 1144}
    chips = [with_usage(row(registers, sass)) | {"chip": chip} for chip, registers in (("A100", 174), ("H100", 181))]
    save(tmp_path / "triton-3.9.json.gz", "Triton 3.9.0", chips)
    shown = page(PAGE, tmp_path, ["A100", "H100", "B200"])
    assert "old" not in shown
    assert shown.endswith("<!-- triton:end -->\n\nafter\n")
    assert "| Triton 3.6.0 |" in shown
    assert "spills |" in next(line for line in shown.splitlines() if line.startswith("| Triton 3.6.0 |"))
    assert next(line for line in shown.splitlines() if line.startswith("| moments_kernel ")) == (
        "| moments_kernel | c10-ipc10 | 174 / 181 / – | 2 / 2 / – | 32 / 32 / – | 1144 / 1144 / – | 96 HMMA |"
        " 4 LDG.32, 30 LDGSTS.128 | 8 STG.128 |"
    )
    assert page(shown, tmp_path, ["A100", "H100", "B200"]) == shown


def with_usage(row: dict[str, object]) -> dict[str, object]:
    return row | {"stack": 0, "spills": 0, "shared": 32768, "blocks": 2}


def test_a_page_of_other_kernels_is_found_out(tmp_path: Path) -> None:
    kept, rows = tmp_path / "triton-3.9.json.gz", [row(181, {"all": 9}), row(40, {"all": 7}) | {"chip": "B200"}]
    save(kept, "Triton 3.9.0", rows)
    assert outdated(kept, "Triton 3.9.0", rows) is None
    assert outdated(kept, "Triton 3.9.0", rows[:1]) is None, "one chip alone is compared with its own rows"
    assert outdated(kept, "Triton 3.9.1", [row(9, {})]) is None, "another compiler gives other counts"
    stale = outdated(kept, "Triton 3.9.0", [row(181, {"all": 8}), rows[1]])
    assert stale is not None
    assert stale.startswith("moments_kernel c10-ipc10 float32 H100: all 9 -> 8\n")
    assert outdated(kept, "Triton 3.9.0", [*rows, rows[0]]) is not None


@pytest.mark.parametrize("name", ["operators.json", "operators.json.gz"])
def test_results_are_read_compressed_or_not(tmp_path: Path, name: str) -> None:
    info = {"operator": "class_moments", "workload": "c10-ipc10", "direction": "forward", "contender": "cpp"}
    held = {"benchmarks": [{"extra_info": info, "stats": {"data": [0.25, 0.5]}}]}
    save_json(tmp_path / name, held)
    assert load_json(tmp_path / name) == held
    assert Results(tmp_path).groups["class_moments", "c10-ipc10", "forward"]["cpp"]["samples"] == [0.25, 0.5]


def test_equal_results_are_equal_files(tmp_path: Path) -> None:
    for name in ("a.json.gz", "b.json.gz"):
        save_json(tmp_path / name, {"x": [1.5, None]})
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
