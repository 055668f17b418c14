"Devices: choices and refusals, the CPU's units and the variables that limit them, and glibc's heap."

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import metavoice.core.devices as devices
from metavoice.core.devices import (
    cpu_units,
    has_amx,
    has_native_bfloat16,
    has_onednn_bfloat16,
    has_onednn_int8,
    int8_backend,
    is_unit_allowed,
    limit_malloc_arenas,
    malloc_trim,
    pick_device,
    pick_dtype,
    prefers_fbgemm,
)
from metavoice.core.errors import OptionError

ROOT = Path(__file__).parents[2]
UNITS = ("amx", "avx512_bf16", "avx512_vnni")
ANSWERS = (
    "import metavoice.core.devices as d\n"
    "print(sorted(d.cpu_units()), d.has_amx(), d.has_native_bfloat16(), d.has_onednn_int8(), repr(d.int8_backend()))\n"
    "print(d.has_onednn_bfloat16())"
)
is_x86 = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="units of x86")


def answers(**variables):
    "What a process with these environment variables says about its CPU."
    command = [sys.executable, "-W", "ignore", "-c", ANSWERS]
    env = os.environ | variables | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout.splitlines()


def test_pick_device_returns_what_was_asked_for():
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    assert pick_device().type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    "device, message",
    [
        ("abacus", "unknown device 'abacus'; use cpu, cuda, cuda:N or mps"),
        ("meta", "unknown device 'meta'"),
        ("cuda:99", "'cuda:99' isn't available here"),
        ("", "unknown device ''"),
    ],
)
def test_pick_device_refuses_what_is_not_there(device, message):
    with pytest.raises(OptionError, match=message):
        pick_device(device)


def test_pick_dtype_follows_the_model_and_the_cpu(monkeypatch):
    cpu = torch.device("cpu")
    assert pick_dtype(cpu) == torch.float32 and pick_dtype(cpu, "float16") == torch.float16
    assert pick_dtype(cpu, torch.bfloat16) == torch.bfloat16
    for native, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(devices, "has_native_bfloat16", lambda device=None: native)
        assert pick_dtype(cpu, large=True) == dtype and pick_dtype(cpu) == torch.float32
        assert pick_dtype(torch.device("mps"), large=True) == torch.float32


@pytest.mark.parametrize(
    "capability, native, dtype",
    [((7, 5), False, torch.float16), ((8, 0), True, torch.bfloat16), ((9, 0), True, torch.bfloat16)],
)
def test_cuda_takes_bfloat16_from_ampere_on(monkeypatch, capability, native, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert has_native_bfloat16(torch.device("cuda")) is native and pick_dtype(torch.device("cuda")) == dtype


@pytest.mark.parametrize("dtype", ["int3", "float64", "torch.int8", ""])
def test_pick_dtype_refuses_other_formats(dtype):
    with pytest.raises(OptionError, match=f"unknown dtype '{dtype}'; use one of float32, bfloat16, float16"):
        pick_dtype(torch.device("cpu"), dtype)


@pytest.mark.parametrize(
    "limit, allowed",
    [
        ("AVX2", ()),
        ("avx512_core", ()),
        ("AVX512_CORE_VNNI", ("avx512_vnni",)),
        ("AVX512_CORE_BF16", ("avx512_bf16", "avx512_vnni")),
        ("avx10_1_512", ("avx512_bf16", "avx512_vnni")),
        ("AVX512_CORE_AMX", UNITS),
        ("DEFAULT", UNITS),
        ("ALL", UNITS),
        ("", UNITS),
    ],
)
def test_onednn_limit(limit, allowed):
    for variable in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        assert tuple(unit for unit in UNITS if is_unit_allowed(unit, {variable: limit})) == allowed


@pytest.mark.parametrize("capability, allowed", [("avx2", False), ("default", False), ("avx512", True), ("", True)])
def test_pytorch_limit(capability, allowed):
    assert all(is_unit_allowed(unit, {"ATEN_CPU_CAPABILITY": capability}) is allowed for unit in UNITS)


@is_x86
def test_limited_cpu_answers_like_an_old_one():
    limited = answers(ONEDNN_MAX_CPU_ISA="AVX2", ATEN_CPU_CAPABILITY="avx2")
    assert limited == ["[] False False False ''", "False"]


def test_answers_agree_with_each_other():
    assert has_amx() == ("amx" in cpu_units()) and not (prefers_fbgemm() and has_amx())
    assert int8_backend() in ("", "fbgemm", "onednn")
    if int8_backend():
        assert "avx512_vnni" in cpu_units()
    if has_native_bfloat16():
        assert has_onednn_bfloat16()
    assert not has_native_bfloat16(torch.device("mps")) and not has_native_bfloat16(torch.device("meta"))


def test_onednn_kernels_run_where_the_answer_is_yes():
    if has_onednn_bfloat16():
        weight, x = torch.randn(16, 64).bfloat16(), torch.randn(2, 64).bfloat16()
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 8)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
        assert (y.float() - x.float() @ weight.float().T).abs().max() < 0.2
    if has_onednn_int8():  # without VNNI the sums of such large products saturate
        packed = torch.ops.onednn.qlinear_prepack(torch.full((16, 64), 127, dtype=torch.int8), [1, 64])
        x, zero = torch.full((1, 64), 255, dtype=torch.uint8), torch.zeros(16, dtype=torch.int64)
        y = torch.ops.onednn.qlinear_pointwise(
            x, 1.0, 0, packed, torch.ones(16), zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        assert y.unique().item() == 255 * 127 * 64


def test_heap_functions_work_on_every_system(monkeypatch):
    malloc_trim()
    limit_malloc_arenas(2)
    for system in ("win32", "darwin"):
        devices._glibc.cache_clear()
        monkeypatch.setattr(sys, "platform", system)
        malloc_trim()
        limit_malloc_arenas()
    devices._glibc.cache_clear()
